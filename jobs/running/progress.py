"""Logs and progress of a running job, on stderr: a bar on a terminal, plain lines or JSON in a log.

Only results go to stdout. ``SURVEYBRIDGE_LOG=json`` makes every line a JSON object, for machines to collect.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TextIO, TypeVar

from surveybridge.jobs.config import RequestError

Item = TypeVar("Item")

LIBRARIES = ("surveybridge",)

LOG_VARIABLE = "SURVEYBRIDGE_LOG"
"""Environment variable that chooses the form of log lines: plain (the default) or json."""

log = logging.getLogger(__name__)
_context: ContextVar[Mapping[str, str]] = ContextVar("log_context", default=MappingProxyType({}))


def setup_logging(level: int = logging.INFO) -> None:
    """Print log records to stderr in the form that `LOG_VARIABLE` chooses; those of other packages from WARNING up.

    Plain lines read ``HH:MM:SS LEVEL library.module: message [name=value ...]``, where the names and values are those
    set by `log_context`. JSON objects have ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, ``run`` and
    ``tile`` (null outside their context), everything else from the context, and ``traceback`` if there is one.

    Each worker process calls this too, before its first item. Calling it again changes nothing.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if _wants_json() else _PlainLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(level)


def start_worker(filesystems: Mapping[str, Mapping[str, Any]]) -> None:
    """Set up a process of a run before its first item: its log, and its access to storage.

    Parameters
    ----------
    filesystems : mapping
        fsspec's options by protocol, as returned by `storage.objectstore.configured()` in the driver.
    """
    from surveybridge.storage.objectstore import configure

    setup_logging()
    configure(filesystems)


@contextmanager
def quiet(name: str, level: int = logging.WARNING) -> Iterator[None]:
    """Suppress, in this context, what a logger and those below it log below a level."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def log_context(**values: str) -> Iterator[None]:
    """Add names and values, as in ``log_context(run=url, tile=tile_id)``, to every line that is logged in this context.

    The context belongs to the thread that enters it; contexts may be nested.
    """
    token = _context.set({**_context.get(), **values})
    try:
        yield
    finally:
        _context.reset(token)


class _PlainLines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        named = " ".join(f"{name}={value}" for name, value in _context.get().items())
        return super().formatMessage(record) + (f" [{named}]" if named else "")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "run": None,
            "tile": None,
        }
        line |= _context.get()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _wants_json() -> bool:
    form = os.environ.get(LOG_VARIABLE) or "plain"
    if form not in ("plain", "json"):
        raise RequestError(f"{LOG_VARIABLE}={form} is set in the environment, but must be plain or json")
    return form == "json"


def progress(
    items: Iterable[Item],
    description: str,
    total: int | None = None,
    *,
    unit: str = "tiles",
    every: float = 60.0,
    stream: TextIO | None = None,
) -> Iterator[Item]:
    """Yield `items`, and report how many have been taken and how long the rest will take.

    Parameters
    ----------
    items : iterable
        The items to yield.
    description : str
        Name of the work, such as ``translate``.
    total : int, optional
        Number of items; by default ``len(items)``, where that exists.
    unit : str
        Name of the items.
    every : float
        Seconds between two lines if `stream` is not a terminal. On a terminal the line is redrawn ten times a second.
    stream : text file, optional
        File to write to; by default stderr, or the log if logs are JSON.
    """
    logged = stream is None and _wants_json()
    stream = sys.stderr if stream is None else stream
    if total is None and isinstance(items, Sized):
        total = len(items)
    terminal = stream.isatty() and not logged
    start = last = time.monotonic()
    count = 0

    def say(line: str) -> None:
        if logged:
            log.info(line)
        else:
            _write(stream, terminal, line)

    try:
        for item in items:
            yield item
            count += 1
            now = time.monotonic()
            if now - last >= (0.1 if terminal else every):
                last = now
                say(_line(description, count, total, unit, now - start, terminal))
    finally:
        say(_line(description, count, total, unit, time.monotonic() - start, terminal))
        if terminal:
            stream.write("\n")


def _write(stream: TextIO, terminal: bool, line: str) -> None:
    stream.write(f"\r{line}\x1b[K" if terminal else f"{line}\n")
    stream.flush()


def _line(description: str, count: int, total: int | None, unit: str, elapsed: float, bar: bool) -> str:
    if not total:
        return f"{description}: {count} {unit} in {_clock(elapsed)}"
    filled = min(24, 24 * count // total)
    drawn = f" [{'#' * filled}{'.' * (24 - filled)}]" if bar else ""
    left = f", {_clock(elapsed / count * (total - count))} left" if 0 < count < total else ""
    return f"{description}:{drawn} {count}/{total} {unit} in {_clock(elapsed)}{left}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
