"""`surveybridge train` on Ray that waits to be killed: python -m tests.jobs.held_training FOLDER STEP,STEP train ...

In the step after the report of each of these, the worker of the last rank waits, when it comes there for the first
time, so that none of the others gets on and a training needs no more steps than it takes to be killed. Energy scores of
reports, which take longer than a small training, come from two samples of one step.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from surveybridge.cluster import training
from surveybridge.cluster.training import Session
from surveybridge.jobs.training import worker

QUICK_ENERGIES = replace(worker.ENERGY_SAMPLING, samples=2, steps=1)
HOLD_SECONDS = 300.0


@dataclass(frozen=True)
class Hold:
    """Where and when somebody waits; the folder is on a disk that all processes see."""

    folder: str
    steps: tuple[int, ...]

    def note(self, step: int) -> Path:
        """File with the process that waits, or waited, after the report of a step."""
        return Path(self.folder) / f"held-{step}"

    def wait(self, step: int) -> None:
        """Wait to be killed, unless somebody has waited there before."""
        part = self.note(step).with_suffix(f".{os.getpid()}")
        part.write_text(str(os.getpid()))
        try:
            os.link(part, self.note(step))  # whoever sees it can read it
        except FileExistsError:
            return
        finally:
            part.unlink()
        time.sleep(HOLD_SECONDS)
        raise TimeoutError(f"nobody came to kill the training after step {step}")


@dataclass(frozen=True)
class HeldSession(Session):
    """A session of Ray Train whose last rank waits."""

    hold: Hold
    reported: list[int] = field(default_factory=list)

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None) -> None:
        super().report(metrics, save)
        self.reported.append(int(metrics["step"]))

    def agree(self, values: Sequence[float]) -> list[float]:
        """Every rank comes here at the end of every step."""
        if self.rank == self.world_size - 1 and self.reported and self.reported[-1] in self.hold.steps:
            self.hold.wait(self.reported[-1])
        return super().agree(values)


def held_loop(hold: Hold, loop: Callable[..., None], session: Session, config: dict[str, Any]) -> None:
    """The training's loop in a worker of Ray Train."""
    worker.ENERGY_SAMPLING = QUICK_ENERGIES
    loop(HeldSession(session.rank, session.world_size, session.device, hold), config)


def main(folder: str, steps: str, *arguments: str) -> int:
    """Run the command."""
    from surveybridge.__main__ import main as surveybridge

    fit, hold = training.fit, Hold(folder, tuple(map(int, steps.split(","))))
    vars(training)["fit"] = lambda loop, *rest, **more: fit(partial(held_loop, hold, loop), *rest, **more)
    return surveybridge(arguments)


if __name__ == "__main__":
    # workers import this module by its name, and the functions that they are given come from there
    from tests.jobs import held_training

    sys.exit(held_training.main(*sys.argv[1:]))
