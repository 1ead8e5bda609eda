"""How a running job speaks: a bar on a terminal, plain lines in a log, both on stderr; stdout holds results only."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TextIO, TypeVar

Item = TypeVar("Item")

LIBRARIES = ("bridge_core", "cluster", "jobs", "kernels", "storage")


def setup_logging(level: int = logging.INFO) -> None:
    """Print log records as lines ``HH:MM:SS LEVEL library.module: message``; other packages' from WARNING up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(level)


def progress(
    items: Iterable[Item],
    description: str,
    total: int | None = None,
    *,
    unit: str = "tiles",
    every: float = 60.0,
    stream: TextIO | None = None,
) -> Iterator[Item]:
    """Pass `items` on, reporting how many have been taken and how long the rest will need.

    Parameters
    ----------
    items : iterable
        What to pass on.
    description : str
        What is being done, as in ``translate``.
    total : int, optional
        How many there will be; ``len(items)`` where that exists.
    unit : str
        What is counted.
    every : float
        Seconds between two lines where `stream` is not a terminal. A terminal's line is redrawn ten times a second.
    stream : text file, optional
        Where to write; stderr by default.
    """
    stream = sys.stderr if stream is None else stream
    if total is None and isinstance(items, Sized):
        total = len(items)
    terminal = stream.isatty()
    start = last = time.monotonic()
    count = 0
    try:
        for item in items:
            yield item
            count += 1
            now = time.monotonic()
            if now - last >= (0.1 if terminal else every):
                last = now
                _write(stream, terminal, _line(description, count, total, unit, now - start, terminal))
    finally:
        _write(stream, terminal, _line(description, count, total, unit, time.monotonic() - start, terminal))
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
