"""Stream items through a pool of Ray Data actors: one item is one unit of work, one row comes back for each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

Worker = Callable[[str], dict[str, Any]]

MAX_BLOCKS = 1000


def start_ray(workers: int) -> bool:
    """Connect to the cluster of RAY_ADDRESS, or start one here with a slot for every worker and the driver.

    Returns
    -------
    bool
        True if it was started or connected here, so that the caller shuts it down.
    """
    if ray.is_initialized():
        return False
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True)
    else:
        ray.init(num_cpus=max(os.cpu_count() or 1, workers + 1), include_dashboard=False, configure_logging=False)
    return True


def stream(
    items: Sequence[str], make_worker: Callable[[], Worker], *, workers: int = 1, gpus: float | None = None
) -> Iterator[dict[str, Any]]:
    """Run every item through one of `workers` actors and yield what the worker returns, as it comes.

    Parameters
    ----------
    items
        Names, e.g. tile ids.
    make_worker
        Picklable; called once in each actor. The worker it returns maps an item to a JSON-like row and should turn
        its own failures into rows: an exception stops the stream.
    workers
        Actors.
    gpus
        GPUs of each actor; by default one where the cluster has any.
    """
    if not items:
        return
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
    dataset = ray.data.from_items(
        [{"item": item} for item in items], override_num_blocks=min(len(items), MAX_BLOCKS)
    ).map_batches(
        _Actor,
        fn_constructor_args=(make_worker,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=gpus or None,
    )
    for row in dataset.iter_rows():
        yield json.loads(row["row"])


class _Actor:
    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self.work = make_worker()

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> pa.Table:
        # one JSON string a row: an explicit schema, whatever the rows hold
        return pa.table({"row": pa.array([json.dumps(self.work(str(item))) for item in batch["item"]], pa.string())})
