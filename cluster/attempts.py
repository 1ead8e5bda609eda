"""Bookkeeping of a stream that outlives its workers: who does which item, and which items killed their process."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surveybridge.cluster import metrics
from surveybridge.cluster.stages import GROUP_BYTES

GROUP_SECONDS = 1.0
"""Small items are grouped until a group takes this long in a stage; as much is repeated after a kill."""
MEMORY = 0.9
"""Weight of the past in the running mean of an item's cost."""


@dataclass(frozen=True)
class Worker:
    """A worker process."""

    node: str
    pid: int


@dataclass(frozen=True)
class Orders:
    """The instructions to a worker that is about to begin a group of items."""

    one_by_one: bool
    """True if a process has died while doing some of them: begin each alone, so that the next death has a culprit."""
    kills: tuple[int, ...]
    """How many processes have died while doing each item."""
    draining: bool


class Attempts:
    """Counts the items that were begun and those that are done. It is one actor per stream, or a plain object in tests.

    A stage begins a group of items, and later is done with it. If a group begins again without having been done, its
    process has died. A group of one item is blamed for that; the items of a larger group are begun one by one from
    then on.
    """

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], tuple[float, Worker]] = {}
        self._kills: Counter[str] = Counter()
        self._suspects: set[str] = set()
        self._cost: dict[str, float] = {}
        self._sizes: dict[str, int] = {}
        self._unreceived: set[str] = set()
        self._draining = False
        self._refusal: Exception | None = None

    def begin(self, stage: str, items: Sequence[str], worker: Worker) -> Orders:
        """Note that `worker` begins `items`, unless it must begin them one by one or not at all; return its orders."""
        died = [item for item in items if self._running.pop((stage, item), None)]
        if len(died) == 1:
            self._kills[died[0]] += 1
        self._suspects.update(died)
        one_by_one = len(items) > 1 and not self._suspects.isdisjoint(items)
        if self._draining and stage != "write":
            self._unreceived.difference_update(items)
        elif not one_by_one:
            self._running.update({(stage, item): (time.time(), worker) for item in items})
            if stage == "model":
                self._unreceived.update(items)
        self._measure()
        return Orders(one_by_one, tuple(self._kills[item] for item in items), self._draining)

    def done(self, stage: str, items: Sequence[str], seconds: float, size: int) -> None:
        """Note that `items` together took `seconds` and produced `size` bytes."""
        for item in items:
            self._running.pop((stage, item), None)
        cost = max(seconds / GROUP_SECONDS, size / GROUP_BYTES) / len(items)
        self._cost[stage] = MEMORY * self._cost.get(stage, cost) + (1 - MEMORY) * cost
        self._measure()

    def group_size(self, first: str, at_most: int) -> int:
        """Return the size of the group that starts at `first`; the answer is the same whenever it is asked again.

        A reader that is run again must yield the same groups, because Ray keeps those that others have already used.
        """
        if first not in self._sizes:
            # until the cost of an item is known for all stages, each item travels alone
            dearest = max(self._cost.values()) if len(self._cost) == 3 else 1.0
            self._sizes[first] = max(1, min(at_most, int(1 / max(dearest, 1e-9))))
        return self._sizes[first]

    def drain(self) -> None:
        """Let no item be read, and no model begin one, from now on."""
        self._draining = True

    def refuse(self, error: Exception) -> None:
        """Note that a worker could not be created, and drain."""
        self._refusal = self._refusal or error
        self._draining = True

    def refusal(self) -> Exception | None:
        """Return the error because of which the first worker could not be created, or None."""
        return self._refusal

    def received(self, items: Sequence[str]) -> bool:
        """Note that the driver has these receipts; return True if it need not wait for more."""
        self._unreceived.difference_update(items)
        return self._draining and (self._refusal is not None or not self._unreceived)

    def in_flight(self) -> list[dict[str, Any]]:
        """Return the items that are being done, the longest-running first."""
        now = time.time()
        return [
            {"item": item, "stage": stage, "seconds": now - since, "node": worker.node, "pid": worker.pid}
            for (stage, item), (since, worker) in sorted(self._running.items(), key=lambda entry: entry[1][0])
        ]

    def _measure(self) -> None:
        metrics.count_in_flight(Counter(stage for stage, _ in self._running))
