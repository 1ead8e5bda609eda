"""The grades of runs in memory, as a page needs them: which grades count for whom, now or at an earlier time."""

from __future__ import annotations

import datetime
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from surveybridge.storage.catalog_sources import run_of
from surveybridge.storage.errors import StorageError
from surveybridge.storage.grades import Seen, latest_grades, read_grades, write_grade
from surveybridge.storage.runs import RunFolder

Row = dict[str, Any]

FRESH = 5.0
"""Seconds for which what other graders have written is not looked for again."""

JITTER = datetime.timedelta(seconds=60)
"""By so much a page's requests may be delayed one after the other: within it a grader's entries keep their order."""


class Book:
    """All entries of some runs; what this process writes is in it at once, what others write within `FRESH` seconds.

    An entry is written to the run that the candidate is from.
    """

    def __init__(self, runs: Sequence[RunFolder]) -> None:
        self.runs = runs
        self.history = pa.table({})
        self._files: dict[str, pa.Table] = {}
        self._rows: dict[str, dict[str, list[Row]]] = {}  # by grader and object, in the order of time
        self._entries: dict[tuple[str, str], Row] = {}  # by grader and entry
        self._last_at: dict[str, datetime.datetime] = {}  # by grader
        self._lock = threading.RLock()
        self._read_at = -FRESH
        self.refresh()

    def refresh(self) -> None:
        """Read new entries from the run folders, unless that was done a moment ago."""
        with self._lock:
            if time.monotonic() - self._read_at < FRESH:
                return
            history = read_grades(*self.runs, known=self._files)
            # Entries that this process has written are known already.
            if history.num_rows != self.history.num_rows:
                for row in history.to_pylist():
                    self._take_in(row)
            self.history = history
            self._read_at = time.monotonic()

    def add(
        self,
        grader: str,
        object_id: str,
        grade: str | None,
        comment: str,
        entry: str,
        graded_at: datetime.datetime,
        seen: Seen | None = None,
    ) -> Row:
        """Write an entry to its run folder, unless it is there already; return the row once it is safe.

        A page sends one entry after the other, each with its age; how long a request takes must not change their order.
        """
        with self._lock:
            known = self._entries.get((grader, entry))
            last = self._last_at.get(grader)
            if known is None and last is not None and last - JITTER < graded_at <= last:
                graded_at = last + datetime.timedelta(microseconds=1)
            if known is None and (last is None or graded_at > last):
                self._last_at[grader] = graded_at
        if known is not None:  # the reply was lost, and the page asks again
            if known["object_id"] != object_id:
                raise StorageError(f"entry {entry} is of {known['object_id']!r}, not of {object_id!r}; give a new one")
            return known
        seen = seen or Seen()
        (row,) = write_grade(
            run_of(self.runs, seen.run_id),
            grader,
            object_id,
            grade,
            comment,
            entry=entry,
            graded_at=graded_at,
            seen=seen,
        ).to_pylist()
        with self._lock:
            self._take_in(row)
        return dict(row)

    def of(self, grader: str, at: datetime.datetime | None = None) -> dict[str, Row]:
        """Return the grades that count for a grader, by object, without entries that were taken back."""
        with self._lock:
            last = {name: _last(rows, at) for name, rows in self._rows.get(grader, {}).items()}
        return {name: row for name, row in last.items() if row and (row["grade"] or row["comment"])}

    def graders(self) -> list[str]:
        """Return the names of all who have ever graded."""
        with self._lock:
            return sorted(self._rows)

    def others(self, grader: str, object_id: str) -> list[Row]:
        """Return those grades of an object by other graders that count."""
        with self._lock:
            last = [_last(objects.get(object_id, []), None) for name, objects in self._rows.items() if name != grader]
        return sorted((row for row in last if row and row["grade"]), key=lambda row: row["grader"])

    def disputed(self, at: datetime.datetime | None = None) -> set[str]:
        """Objects whose graders differ."""
        given: dict[str, set[str]] = {}
        for grader in self.graders():
            for name, row in self.of(grader, at).items():
                if row["grade"]:
                    given.setdefault(name, set()).add(row["grade"])
        return {name for name, grades in given.items() if len(grades) > 1}

    def counts(self, grader: str) -> dict[str, int]:
        """Count how often a grader has given each grade."""
        return count_grades(self.of(grader))

    def latest(self) -> pa.Table:
        """The entries that count, of all graders, from the run folders as they are now."""
        with self._lock:
            self._read_at = -FRESH
            self.refresh()
            return latest_grades(self.history)

    def _take_in(self, row: Row) -> None:
        key = (row["grader"], row["entry"])
        if key in self._entries:
            return
        self._entries[key] = row
        self._last_at[row["grader"]] = max(row["graded_at"], self._last_at.get(row["grader"], row["graded_at"]))
        rows = self._rows.setdefault(row["grader"], {}).setdefault(row["object_id"], [])
        rows.append(row)
        rows.sort(key=lambda row: (row["graded_at"], row["entry"]))


def count_grades(opinions: Mapping[str, Row]) -> dict[str, int]:
    """Count each grade among what `Book.of` gave."""
    return dict(Counter(row["grade"] for row in opinions.values() if row["grade"]))


def _last(rows: list[Row], at: datetime.datetime | None) -> Row | None:
    return next((row for row in reversed(rows) if at is None or row["graded_at"] <= at), None)
