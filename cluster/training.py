"""Ray Train around a training loop: workers, a shared clock, checkpoints, resume. The loop comes as an argument."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model


@dataclass(frozen=True)
class Session:
    """What a training loop may ask of the worker it runs in."""

    rank: int
    world_size: int
    device: torch.device

    @contextmanager
    def restore(self) -> Iterator[Path | None]:
        """Folder of the last committed checkpoint of this run, or None on a fresh start."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield Path(folder)

    def prepare(self, network: torch.nn.Module) -> torch.nn.Module:
        """Move to the device and, with several workers, wrap for data-parallel gradients."""
        prepared: torch.nn.Module = prepare_model(network)
        return prepared

    def agree(self, value: float) -> float:
        """Rank 0's value on every rank: clocks differ, schedules must not."""
        if self.world_size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return float(shared[0])

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None = None) -> None:
        """Report metrics; `save(folder)` writes the checkpoint and is called on rank 0 only."""
        if save is None or self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def fit(
    loop: Callable[[Session, dict[str, Any]], None],
    config: dict[str, Any],
    *,
    storage_path: str,
    name: str,
    workers: int = 1,
    cpus_per_worker: float = 1,
    use_gpu: bool = False,
    max_failures: int = 3,
) -> Path | None:
    """Run `loop` on Ray Train and return the folder of its last checkpoint.

    Parameters
    ----------
    loop
        ``loop(session, config)``, run by every worker; it must call ``session.report`` equally often on all ranks.
    storage_path, name
        Where checkpoints go. A run of the same name resumes from its last checkpoint; a finished one trains nothing.
    max_failures
        Worker-group restarts before the run fails.
    """

    def worker(worker_config: dict[str, Any]) -> None:
        context = ray.train.get_context()
        torch.set_num_threads(max(1, int(cpus_per_worker)))
        loop(Session(context.get_world_rank(), context.get_world_size(), get_device()), worker_config)

    trainer = TorchTrainer(
        worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            storage_path=storage_path,
            name=name,
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    result = trainer.fit()
    return Path(result.checkpoint.path) if result.checkpoint else None
