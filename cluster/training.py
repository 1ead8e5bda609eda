"""Ray Train around a training loop, which is an argument: workers and what they exchange, checkpoints, resuming."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray.train
import torch
from fsspec import AbstractFileSystem
from ray.train import Checkpoint, CheckpointConfig, CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from ray.util.metrics import Gauge


@dataclass(frozen=True)
class Session:
    """The services that a training loop may ask of the worker in which it runs."""

    rank: int
    world_size: int
    device: torch.device

    def shards(self, count: int) -> list[int]:
        """Return the numbers of those of `count` virtual shards that belong to this worker."""
        return list(range(self.rank, count, self.world_size))

    @contextmanager
    def restore(self) -> Iterator[Path | None]:
        """Yield the folder of the last committed checkpoint of this run, or None on a fresh start."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield Path(folder)

    def prepare(self, network: torch.nn.Module) -> torch.nn.Module:
        """Move a network to the device and, with several workers, wrap it for data-parallel gradients."""
        prepared: torch.nn.Module = prepare_model(network)
        return prepared

    def gather(self, model: torch.nn.Module, last: bool) -> AbstractContextManager[None]:
        """Return the context of one forward and backward pass; only the last pass of a step exchanges the gradients."""
        no_sync: Callable[[], AbstractContextManager[None]] | None = getattr(model, "no_sync", None)
        return nullcontext() if last or no_sync is None else no_sync()

    def agree(self, values: Sequence[float]) -> list[float]:
        """Return rank 0's values on every rank: clocks differ between ranks, but schedules must not."""
        return self._exchange(values, lambda shared: torch.distributed.broadcast(shared, src=0))

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all ranks, on every rank."""
        return self._exchange(values, torch.distributed.all_reduce)

    def _exchange(self, values: Sequence[float], operation: Callable[[torch.Tensor], Any]) -> list[float]:
        if self.world_size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        operation(shared)
        return [float(value) for value in shared.tolist()]

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None) -> None:
        """Report metrics; `save(folder)` writes the checkpoint and is called on rank 0 only.

        This returns when the checkpoint is in storage. The metrics are also Prometheus gauges
        ``surveybridge_train_<name>``.
        """
        if self.rank == 0:
            for name, value in metrics.items():
                _gauge(name).set(value)
        if save is None or self.rank != 0:
            ray.train.report(dict(metrics))
            return
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            # an upload in the background would be lost with its worker, although it has been reported
            ray.train.report(
                dict(metrics),
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_upload_mode=CheckpointUploadMode.SYNC,
            )


@dataclass(frozen=True)
class Scaling:
    """Workers of a training.

    Parameters
    ----------
    workers
        Smallest and largest number. If they differ, there are as many as the cluster has room for, which is checked
        once a minute and after a failure; a change costs the steps since the last checkpoint.
    cpus
        Of each.
    gpu
        Whether each has one.
    memory
        Bytes that each needs at most, where there are as few as there may be: a cluster that cannot hold the smallest
        number of workers is refused.
    """

    workers: tuple[int, int] = (1, 1)
    cpus: float = 1
    gpu: bool = False
    memory: int = 0


def fit(
    loop: Callable[[Session, dict[str, Any]], None],
    config: dict[str, Any],
    *,
    storage_path: str,
    name: str,
    filesystem: AbstractFileSystem | None = None,
    scaling: Scaling = Scaling(),
    max_failures: int = 3,
) -> Checkpoint | None:
    """Run `loop` on Ray Train and return its last checkpoint, to be opened with ``as_directory()``.

    Parameters
    ----------
    loop
        Function ``loop(session, config)`` that every worker runs; it must call ``session.report`` equally often on all
        ranks.
    config
        Argument of the loop. Ray shows it in its dashboard, so it must hold no secrets.
    storage_path, name
        Place of the checkpoints. A run of the same name resumes from its last one; a finished run trains no more.
    filesystem
        fsspec filesystem on which `storage_path` is a path; by default that of this machine.
    scaling
        How many workers, and what each has.
    max_failures
        Number of restarts of the workers before the run fails.

    Raises
    ------
    ClusterError
        If the workers' memory is not there.
    """
    from surveybridge.cluster.preflight import check_memory  # Ray Data, which the workers need not load

    check_memory(scaling.workers[0], scaling.memory)

    def worker(worker_config: dict[str, Any]) -> None:
        context = ray.train.get_context()
        torch.set_num_threads(max(1, int(scaling.cpus)))
        loop(Session(context.get_world_rank(), context.get_world_size(), get_device()), worker_config)

    fewest, most = scaling.workers
    count: Any = scaling.workers if fewest < most else fewest  # a pair is elastic
    trainer = TorchTrainer(
        worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=count,
            use_gpu=scaling.gpu,
            resources_per_worker={"CPU": scaling.cpus, **({"GPU": 1} if scaling.gpu else {})},
        ),
        run_config=RunConfig(
            storage_path=storage_path,
            storage_filesystem=filesystem and pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)),
            name=name,
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    return trainer.fit().checkpoint


@functools.cache
def _gauge(name: str) -> Gauge:
    return Gauge(f"surveybridge_train_{name}", f"Last reported value of {name} in the training.")
