"""How long a comparator is trained: a number of steps, or processor seconds, so that a busy machine changes nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from surveybridge.bridge_core.errors import BridgeError


@dataclass(frozen=True)
class Budget:
    """One of the two, and a seed.

    Parameters
    ----------
    steps, seconds
        Steps, or processor seconds of all threads; the other is None.
    seed
        Of all that is random in a training.
    """

    steps: int | None = None
    seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse no budget, two of them, and one that trains nothing or for ever."""
        if (self.steps is None) == (self.seconds is None):
            raise BridgeError(
                f"a comparator's budget is {self.steps} steps and {self.seconds} seconds; give one of the two"
            )
        given = self.seconds if self.steps is None else self.steps
        if given is None or not 0 < given < math.inf:
            unit = "seconds" if self.steps is None else "steps"
            raise BridgeError(f"a comparator's budget is {given} {unit}; give a number above 0")

    def progress(self, steps: int, seconds: float) -> float:
        """Share of the budget that is used."""
        return steps / self.steps if self.steps is not None else seconds / (self.seconds or math.inf)

    @staticmethod
    def half_cosine(progress: float) -> float:
        """Fall from 1 to 0 over the budget."""
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
