"""The blocks of a dataset of Ray Data, whose threads would go on using Ray when it is gone; here they end first."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Generator
from typing import Any

import pyarrow as pa
import ray.data
from ray.data._internal.block_batching.util import WaitBlockPrefetcher

log = logging.getLogger(__name__)

END_SECONDS = 60.0
"""How long the end of an execution waits for each of its threads: one may be waiting for a node that is gone."""
THREADS_OF = ("ray.data._internal.block_batching.", "ray.data._internal.execution.")
"""Modules of Ray Data whose threads belong to one execution."""


def blocks_of(dataset: ray.data.Dataset) -> Generator[pa.Table, None, None]:
    """Execute a dataset and yield its blocks; however that ends, all threads of the execution have ended as well.

    Ray Data lets the thread that fetches blocks go on. If it uses Ray just when that is shut down, Ray ends the whole
    process at once, with exit code 1; if it does so a little later, it starts another Ray.
    """
    before = set(threading.enumerate())
    threads: list[threading.Thread] = []
    tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    try:
        with contextlib.closing(iter(tables)) as blocks:  # it is a generator
            for block in blocks:
                threads = threads or _executing(before)  # all of them begin before the first block is here
                yield block
    finally:
        for thread in threads or _executing(before):
            _end(thread)


def _executing(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return the threads of executions that were not there before."""
    began = (thread for thread in threading.enumerate() if thread not in before)
    return [thread for thread in began if str(_work(thread).__module__).startswith(THREADS_OF)]


def _end(thread: threading.Thread) -> None:
    """Wait for a thread whose execution was shut down."""
    if isinstance(owner := getattr(_work(thread), "__self__", None), WaitBlockPrefetcher):
        owner.stop()  # nobody else does
    thread.join(END_SECONDS)
    if thread.is_alive():
        log.warning("%s: this thread of Ray Data has not ended within %g s", thread.name, END_SECONDS)


def _work(thread: threading.Thread) -> Any:
    """Return the function that a thread runs."""
    return getattr(thread, "_target", None) or thread.run
