"""Blocks of a store that are written independently of each other: in this process, or by Ray tasks."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from surveybridge.jobs.running.progress import progress

if TYPE_CHECKING:
    from surveybridge.storage.pair_writer import PairWriter


def complete(
    writer: PairWriter,
    work: Callable[[int], int],
    job: str,
    *,
    executor: str,
    workers: int,
    gpus: float = 0,
    unit: str = "blocks",
) -> tuple[int, float] | None:
    """Write the blocks that a pair store lacks, finish it, and write the table of its pairs beside it.

    Parameters
    ----------
    writer : PairWriter
    work, executor, workers, gpus
        As `written`; it returns the number of pairs of a block.
    job, unit : str
        What the progress is of, and in.

    Returns
    -------
    (int, float) or None
        Pairs that were missing, and the seconds that they took; None if the store was finished already.
    """
    from surveybridge.storage.block_labels import finish_with_labels

    missing = writer.missing()
    if writer.finished:
        return None
    started = time.perf_counter()
    done = written(work, missing, executor=executor, workers=workers, gpus=gpus)
    pairs = sum(progress(done, job, unit=unit, total=len(missing)))
    finish_with_labels(writer)
    return pairs, time.perf_counter() - started


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread meanwhile: sums over several threads differ in their last bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
