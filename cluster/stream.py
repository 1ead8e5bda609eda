"""Stream items through a pool of Ray Data actors: one item is one unit of work, one row comes back for each."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

Worker = Callable[[str], dict[str, Any]]

MAX_BLOCKS = 1000


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
    workers = min(workers, len(items))
    # the caller shows its own progress; Ray's would print a page every ten seconds into a job's log
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
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
