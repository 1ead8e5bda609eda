"""The three stages of an item (read, model and write), and the guards that turn their errors into outcomes."""

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

from surveybridge.cluster.errors import is_full

STAGES = ("read", "model", "write")
GROUP_BYTES = 16 << 20
"""Smaller items are grouped up to this size; a stage needs memory for that much."""

MAX_KILLS = 3
"""An item is not tried again after this many processes have died while doing it."""


@dataclass(frozen=True)
class Failure:
    """The reason why an item has no value."""

    stage: str
    """The stage that failed: "read", "model" or "write"."""
    reason: str
    """One line, "ErrorType: message"."""
    traceback_hash: str
    """First 12 hexadecimal digits of the SHA-256 of the traceback's frames: equal for equal causes."""
    quarantined: bool = False
    """True if the item killed its process `MAX_KILLS` times."""
    kind: str = ""
    """Name of the exception's class, if there was an exception."""
    full: bool = False
    """True if a disk had no space left, for which the item is not to blame."""


@dataclass(frozen=True)
class Interval:
    """The time during which a stage worked on an item, and the worker."""

    start: float
    """Epoch seconds."""
    end: float
    worker: str
    """host:pid."""


@dataclass(frozen=True)
class Outcome:
    """The state of an item after the stages so far; the writer gets one for every item."""

    item: str
    value: Any
    """The value that the last stage returned; None after a failure."""
    failure: Failure | None
    seconds: Mapping[str, float]
    """Wall seconds of each stage so far."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)


Read = Callable[[str], Any]
Model = Callable[[str, Any], Any]
Write = Callable[[Outcome], dict[str, Any]]


@dataclass(frozen=True)
class Stages:
    """The work on every item. Picklable; each ``make_*`` is called once per process and returns the function for items.

    An exception in a ``make_*`` stops everything: it means that the request is wrong, and not an item.
    """

    make_read: Callable[[], Read]
    """Returns ``read(item) -> value``."""
    make_model: Callable[[], Model]
    """Returns ``model(item, value) -> value``."""
    make_write: Callable[[], Write]
    """Returns ``write(outcome) -> receipt``, which commits failures too, and overwrites what a killed process left."""


def serially(
    items: Iterable[str], stages: Stages, *, drain: threading.Event | None = None, intervals: bool = False
) -> Generator[dict[str, Any], None, None]:
    """Do the items one after another in this process and yield their receipts, as `Stream` does on Ray.

    Parameters
    ----------
    items
        Names of the items, e.g. tile ids.
    stages
        The work on each item.
    drain
        Once this is set, no further item is begun.
    intervals
        Add `intervals` to each receipt: stage -> start, end (epoch seconds) and worker.
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
    """Read an item; turn an exception into a failure."""
    return _guarded("read", lambda: read(item), Outcome(item, None, None, {}))


def model_outcome(model: Model, outcome: Outcome) -> Outcome:
    """Run the model on the value that was read; turn an exception into a failure, and pass failures on."""
    if outcome.failure is not None:
        return outcome
    return _guarded("model", lambda: model(outcome.item, outcome.value), outcome)


def write_outcome(write: Write, outcome: Outcome) -> dict[str, Any]:
    """Write an outcome and return the receipt; if it cannot be written, write a failure instead.

    If that cannot be written either, or a disk was full, the receipt has the status "lost": nothing was committed, and
    a rerun does the item again.
    """
    failure = outcome.failure
    if failure is None or not failure.full:
        try:
            return write(outcome)
        except Exception as error:
            if failure is None or is_full(error):
                failure = failure_of("write", error)
    if failure.full:
        return lost(outcome.item, failure.reason, full=True)
    try:
        return write(replace(outcome, value=None, failure=failure))
    except Exception as error:
        return lost(outcome.item, reason_of(error))


def lost(item: str, reason: str, *, full: bool = False) -> dict[str, Any]:
    """Return the receipt of an item that could not even be committed as a failure; `full` if a disk was full."""
    return {"tile_id": item, "status": "lost", "reason": reason} | ({"full": True} if full else {})


def failure_of(stage: str, error: Exception) -> Failure:
    """Describe an exception that a guard has caught."""
    # the first frame is the guard's own
    frames = [f"{frame.name}:{frame.line}" for frame in traceback.extract_tb(error.__traceback__)[1:]]
    return Failure(
        stage, reason_of(error), _short_hash("\n".join(frames)), kind=type(error).__name__, full=is_full(error)
    )


def quarantine(stage: str) -> Failure:
    """Describe an item that was being done each time one of `MAX_KILLS` processes died."""
    return Failure(
        stage,
        f"ProcessDied: {MAX_KILLS} processes died while this was in {stage}; see the logs of the workers (memory?)",
        _short_hash(f"killed:{stage}"),
        quarantined=True,
    )


def reason_of(error: Exception) -> str:
    """Return the type and message of an exception on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def timed(work: Callable[[], Any]) -> tuple[Any, Interval]:
    """Return what `work` returns, and when and where it ran."""
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
    """Return the name of this process in intervals and profiles, host:pid."""
    return f"{socket.gethostname()}:{os.getpid()}"
