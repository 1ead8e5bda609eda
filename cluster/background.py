"""Work that runs beside a stream and must not hold it up: a few Ray tasks at a time, none of which reserves a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray


class Background:
    """Runs functions as Ray tasks.

    Parameters
    ----------
    at_once
        Largest number of tasks under way; when it is reached, `submit` waits for one to end.
    """

    def __init__(self, at_once: int = 4) -> None:
        self.at_once = at_once
        self._running: list[ray.ObjectRef] = []

    def submit(self, function: Callable[[], Any]) -> None:
        """Start `function` somewhere in the cluster; an error of an earlier one is raised here."""
        self._collect(0.0)
        while len(self._running) >= self.at_once:
            self._collect(None)
        self._running.append(_call.remote(function))

    def wait(self) -> None:
        """Wait for all functions; an error of any of them is raised here."""
        while self._running:
            self._collect(None)

    def _collect(self, timeout: float | None) -> None:
        if not self._running:
            return
        done, self._running = ray.wait(self._running, num_returns=1, timeout=timeout)
        ray.get(done)


# it reserves no CPU: on a full cluster it would wait for the stream, and the stream for it
@ray.remote(num_cpus=0, max_retries=3, scheduling_strategy="SPREAD")
def _call(function: Callable[[], Any]) -> None:
    function()
