"""Blocks of a store that are written independently of each other: in this process, or by Ray tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence


def written(
    work: Callable[[int], int], blocks: Sequence[int], *, executor: str, workers: int, gpus: float = 0
) -> Iterator[int]:
    """Yield what `work` returns for each block, in order.

    Parameters
    ----------
    work : callable
        Writes a block and returns, say, how many rows that were; picklable, and harmless to repeat.
    blocks : sequence of int
        Numbers of blocks.
    executor : str
        ``serial`` in this process, or ``ray``.
    workers : int
        Ray tasks at a time, each of one CPU.
    gpus : float
        GPUs of each task.
    """
    if executor == "serial" or not blocks:
        yield from map(work, blocks)
        return
    from surveybridge.cluster.connect import start_ray, stop_ray
    from surveybridge.cluster.spread import spread
    from surveybridge.storage.objectstore import configure, configured

    started = start_ray(workers)
    try:
        yield from spread(work, blocks, at_once=workers, start=functools.partial(configure, configured()), gpus=gpus)
    finally:
        if started:
            stop_ray()
