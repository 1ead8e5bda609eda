"""Who is doing which item, and over which items processes died: a stream's memory, which no worker's death erases."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surveybridge.cluster import metrics
from surveybridge.cluster.stages import GROUP_BYTES

GROUP_SECONDS = 1.0
"""Work of one stage that items too small to travel alone are gathered to; so much is done again after a kill."""
MEMORY = 0.9
"""Weight of the past in the running mean of what an item costs."""


@dataclass(frozen=True)
class Worker:
    """A process."""

    node: str
    pid: int


@dataclass(frozen=True)
class Orders:
    """What a worker that begins a group of items is told."""

    one_by_one: bool
    """A process died over some of them: begin each alone, so that the next death has a culprit."""
    kills: tuple[int, ...]
    """How many processes died over each item."""
    draining: bool


class Attempts:
    """Counts what is begun and what is done. One actor a stream; without Ray an ordinary object.

    A stage begins a group of items and is done with it. A group that begins again without having been done has lost
    its process: a group of one item is charged with that, the items of a larger one are begun one by one from then on.
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
        """Note that `worker` begins `items`, unless it shall begin them one by one or not at all."""
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
        """Note that `items` took `seconds` together and gave `size` bytes."""
        for item in items:
            self._running.pop((stage, item), None)
        cost = max(seconds / GROUP_SECONDS, size / GROUP_BYTES) / len(items)
        self._cost[stage] = MEMORY * self._cost.get(stage, cost) + (1 - MEMORY) * cost
        self._measure()

    def group_size(self, first: str, at_most: int) -> int:
        """How many items travel together from `first` on; the same answer whenever the same is asked again.

        A reader that is run again must give the same groups, because Ray keeps those that others have already used.
        """
        if first not in self._sizes:
            # until all stages have told what an item costs, each item travels alone
            dearest = max(self._cost.values()) if len(self._cost) == 3 else 1.0
            self._sizes[first] = max(1, min(at_most, int(1 / max(dearest, 1e-9))))
        return self._sizes[first]

    def drain(self) -> None:
        """From now on no item is read and no model begins one."""
        self._draining = True

    def refuse(self, error: Exception) -> None:
        """Note that a worker could not be made, and drain."""
        self._refusal = self._refusal or error
        self._draining = True

    def refusal(self) -> Exception | None:
        """Return why the first worker could not be made."""
        return self._refusal

    def received(self, items: Sequence[str]) -> bool:
        """Note that the driver has these receipts; tell whether it need not wait for more."""
        self._unreceived.difference_update(items)
        return self._draining and (self._refusal is not None or not self._unreceived)

    def in_flight(self) -> list[dict[str, Any]]:
        """What is being done, the longest first."""
        now = time.time()
        return [
            {"item": item, "stage": stage, "seconds": now - since, "node": worker.node, "pid": worker.pid}
            for (stage, item), (since, worker) in sorted(self._running.items(), key=lambda entry: entry[1][0])
        ]

    def _measure(self) -> None:
        metrics.count_in_flight(Counter(stage for stage, _ in self._running))
