"""A timeline in Chrome's trace event format, which https://ui.perfetto.dev and chrome://tracing open."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple


class _Slice(NamedTuple):
    start: int
    end: int
    name: str
    arguments: dict[str, Any]


class Trace:
    """Slices by process and row; times are whole nanoseconds, in the document microseconds since the first slice.

    Epoch seconds in a float are too coarse: its last bit is a quarter of a microsecond.
    """

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, list[_Slice]]] = defaultdict(lambda: defaultdict(list))

    def add(self, process: str, row: str, name: str, start: int, duration: int, **arguments: Any) -> None:
        """Add an interval that begins at `start` of the epoch; those of one row must be nested or disjoint."""
        self._rows[process][row].append(_Slice(start, start + duration, name, arguments))

    def document(self, first: tuple[str, ...] = (), **other: Any) -> dict[str, Any]:
        """The trace as a JSON object; the rows named `first` stand on top of each process."""
        every = [piece for rows in self._rows.values() for pieces in rows.values() for piece in pieces]
        origin = min((piece.start for piece in every), default=0)
        events: list[dict[str, Any]] = []
        for pid, (process, rows) in enumerate(self._rows.items(), 1):
            events.append(_named("process_name", pid, 0, process))
            ordered = sorted(rows, key=lambda row: (first.index(row) if row in first else len(first), row))
            for tid, row in enumerate(ordered, 1):
                events.append(_named("thread_name", pid, tid, row))
                events.append(
                    {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}
                )
                events += _nested(rows[row], origin, pid, tid)
        return {
            "traceEvents": events,
            "displayTimeUnit": "ms",
            "otherData": {"epoch_nanoseconds_of_ts_0": origin, **other},
        }


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def _nested(pieces: list[_Slice], origin: int, pid: int, tid: int) -> list[dict[str, Any]]:
    """Complete events of one row, a slice that ends after the one around it (by the clocks' rounding) cut to it."""
    events = []
    open_ends: list[int] = []
    for piece in sorted(pieces, key=lambda piece: (piece.start, -piece.end)):
        start, end = piece.start - origin, piece.end - origin
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        end = min(end, open_ends[-1]) if open_ends else end
        open_ends.append(end)
        event = {"ph": "X", "name": piece.name, "pid": pid, "tid": tid, "ts": start / 1e3, "dur": (end - start) / 1e3}
        events.append(event | ({"args": piece.arguments} if piece.arguments else {}))
    return events
