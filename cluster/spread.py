"""Spread independent calls over a cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    at_once: int,
    start: Callable[[], None] | None = None,
    gpus: float = 0,
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, like `map`; Ray tasks compute the results.

    Parameters
    ----------
    function : callable
        A picklable function that is harmless to repeat: a task whose node dies is run again.
    items : iterable
        Items; they are taken as tasks become free, so a generator may make them one by one.
    at_once : int
        Number of tasks in flight, each of which has one CPU; at most as many results wait in the object store.
    start : callable, optional
        Called in the worker before each item (to set credentials, say).
    gpus : float
        GPUs of each task; without, it sees none.
    """

    @ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)
    def call(item: Any) -> Any:
        if start is not None:
            start()
        return function(item)

    waiting: deque[ray.ObjectRef] = deque()
    for item in items:
        if len(waiting) >= at_once:
            yield ray.get(waiting.popleft())
        waiting.append(call.remote(item))
    while waiting:
        yield ray.get(waiting.popleft())
