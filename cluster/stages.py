"""The three stages of an item, read, model and write, and the guards that turn their failures into outcomes."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

STAGES = ("read", "model", "write")
GROUP_BYTES = 16 << 20
"""Items smaller than this travel together up to it; a stage needs memory for as much."""

MAX_KILLS = 3
"""An item that was being done when its process died so often is not tried again."""


@dataclass(frozen=True)
class Failure:
    """Why an item has no value."""

    stage: str
    """Where: "read", "model" or "write"."""
    reason: str
    """One line, "ErrorType: message"."""
    traceback_hash: str
    """First 12 hexadecimal digits of the SHA-256 of the traceback's frames: equal for equal causes."""
    quarantined: bool = False
    """It killed its process `MAX_KILLS` times."""
    kind: str = ""
    """Name of the exception's class, where there was one."""


@dataclass(frozen=True)
class Interval:
    """When and where a stage worked on an item."""

    start: float
    """Epoch seconds."""
    end: float
    worker: str
    """host:pid."""


@dataclass(frozen=True)
class Outcome:
    """What has become of an item so far; the writer gets one for every item."""

    item: str
    value: Any
    """What the last stage returned; None after a failure."""
    failure: Failure | None
    seconds: Mapping[str, float]
    """Wall seconds of each stage so far."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)


Read = Callable[[str], Any]
Model = Callable[[str, Any], Any]
Write = Callable[[Outcome], dict[str, Any]]


@dataclass(frozen=True)
class Stages:
    """The work on every item. Picklable; each ``make_*`` is called once in a process, what it returns does the items.

    A ``make_*`` that raises stops everything with its exception: the request is wrong, not an item.
    """

    make_read: Callable[[], Read]
    """Gives ``read(item) -> value``."""
    make_model: Callable[[], Model]
    """Gives ``model(item, value) -> value``."""
    make_write: Callable[[], Write]
    """Gives ``write(outcome) -> receipt``; it commits outcomes with a failure too, and overwrites what a killed
    process may have left."""


def serially(
    items: Iterable[str], stages: Stages, *, drain: threading.Event | None = None, intervals: bool = False
) -> Generator[dict[str, Any], None, None]:
    """Do the items one after another in this process, and yield the receipts: `Stream` without Ray.

    Parameters
    ----------
    items
        Names, e.g. tile ids.
    stages
        What to do with each.
    drain
        Once it is set no further item is begun.
    intervals
        Give receipts `intervals`: stage -> start, end (epoch seconds) and worker.
    """
    read, model, write = stages.make_read(), stages.make_model(), stages.make_write()
    for item in items:
        if drain is not None and drain.is_set():
            return
        outcome = model_outcome(model, read_outcome(read, item))
        receipt, interval = timed(functools.partial(write_outcome, write, outcome))
        if intervals:
            receipt["intervals"] = {stage: asdict(i) for stage, i in {**outcome.intervals, "write": interval}.items()}
        yield receipt


def read_outcome(read: Read, item: str) -> Outcome:
    """Read an item; an exception becomes a failure."""
    return _guarded("read", lambda: read(item), Outcome(item, None, None, {}))


def model_outcome(model: Model, outcome: Outcome) -> Outcome:
    """Run the model on what was read; an exception becomes a failure, and a failure stays what it is."""
    if outcome.failure is not None:
        return outcome
    return _guarded("model", lambda: model(outcome.item, outcome.value), outcome)


def write_outcome(write: Write, outcome: Outcome) -> dict[str, Any]:
    """Write an outcome and return the receipt; what cannot be written is written as a failure.

    Where even that raises, the receipt has status "lost": nothing was committed, so a rerun does the item again.
    """
    try:
        return write(outcome)
    except Exception as error:
        failure = outcome.failure or failure_of("write", error)
    try:
        return write(replace(outcome, value=None, failure=failure))
    except Exception as error:
        return lost(outcome.item, reason_of(error))


def lost(item: str, reason: str) -> dict[str, Any]:
    """Receipt of an item that could not even be committed as a failure."""
    return {"tile_id": item, "status": "lost", "reason": reason}


def failure_of(stage: str, error: Exception) -> Failure:
    """Describe an exception that a guard caught."""
    # the first frame is the guard's own
    frames = [f"{frame.name}:{frame.line}" for frame in traceback.extract_tb(error.__traceback__)[1:]]
    return Failure(stage, reason_of(error), _short_hash("\n".join(frames)), kind=type(error).__name__)


def quarantine(stage: str) -> Failure:
    """Describe an item that was being done each time when `MAX_KILLS` processes died."""
    return Failure(
        stage,
        f"ProcessDied: {MAX_KILLS} processes died while this was in {stage}; see the logs of the workers (memory?)",
        _short_hash(f"killed:{stage}"),
        quarantined=True,
    )


def reason_of(error: Exception) -> str:
    """Type and message of an exception on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def timed(work: Callable[[], Any]) -> tuple[Any, Interval]:
    """Return what `work` returns, and when and where that was."""
    start, clock = time.time(), time.monotonic()
    result = work()
    return result, Interval(start, start + time.monotonic() - clock, this_worker())


def _guarded(stage: str, work: Callable[[], Any], outcome: Outcome) -> Outcome:
    def attempt() -> tuple[Any, Failure | None]:
        try:
            return work(), None
        except Exception as error:
            return None, failure_of(stage, error)

    (value, failure), interval = timed(attempt)
    return replace(
        outcome,
        value=value,
        failure=failure,
        seconds={**outcome.seconds, stage: interval.end - interval.start},
        intervals={**outcome.intervals, stage: interval},
    )


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def this_worker() -> str:
    """Name of this process in intervals and profiles, host:pid."""
    return f"{socket.gethostname()}:{os.getpid()}"
