"""Grades of candidates, in the runs that they are from: who graded which object how, and when. Entries are only added.

Layout below the run folder::

    grades/<grader>/<entry>.parquet             one act of grading
    grades/<grader>/segments/<hash>.parquet     many of them, once they are compacted

A grader is a folder of their own, so that nobody writes where another does. To grade again is to add an entry, to take
a grade back is to add one without a grade; of a grader's entries for an object the last one counts, and all stay.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import unicodedata
import uuid
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc

from surveybridge.storage.errors import StorageError
from surveybridge.storage.objectstore import check_name
from surveybridge.storage.parquet import parquet_bytes
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import GRADES, table_from_rows
from surveybridge.storage.segments import read_files

GRADE_NAMES = ("A", "B", "C", "X")
"""A certain, B probable, C possible, X no lens."""

MAX_COMMENT = 2000
MAX_NAME = 80
"""Characters of a comment and of a grader's name."""

COMPACT_FROM = 256
"""So many single files of a grader are worth a segment."""


@dataclass(frozen=True)
class Seen:
    """The candidate as a grader saw it: its rank, and the model and the run that it is from."""

    rank: int | None = None
    model_id: str | None = None
    run_id: str | None = None


def write_grade(
    run: RunFolder,
    grader: str,
    object_id: str,
    grade: str | None,
    comment: str = "",
    *,
    entry: str | None = None,
    graded_at: datetime.datetime | None = None,
    seen: Seen = Seen(),
) -> pa.Table:
    """Add one entry to the run; it is on disk when this returns.

    Parameters
    ----------
    run : RunFolder
        Local or s3://.
    grader : str
        Any name; two names that differ never share a folder.
    object_id : str
        The candidate.
    grade : {"A", "B", "C", "X"} or None
        None takes a grade back, or leaves a comment without one.
    comment : str
        Free text.
    entry : str, optional
        Name of this act among the grader's, letters and digits: once more, it adds nothing. Default a new one.
    graded_at : datetime, optional
        With time zone; default now.
    seen : Seen, optional
        What the grader saw.

    Returns
    -------
    pyarrow.Table
        The one row that was written, schema `GRADES`.

    Raises
    ------
    StorageError
        If grade, name or comment are not such.
    """
    grader, comment = check_grader(grader), comment.strip()
    if grade is not None and grade not in GRADE_NAMES:
        raise StorageError(f"grade {grade!r} of {object_id!r}; give one of {', '.join(GRADE_NAMES)} or none")
    if len(comment) > MAX_COMMENT:
        raise StorageError(f"comment of {len(comment)} characters on {object_id!r}; at most {MAX_COMMENT} are kept")
    row = {
        "entry": check_name(entry or uuid.uuid4().hex, "entry"),
        "object_id": object_id,
        "grader": grader,
        "grade": grade,
        "comment": comment or None,
        "graded_at": graded_at or datetime.datetime.now(datetime.UTC),
        **asdict(seen),
    }
    table = table_from_rows([row], GRADES, f"grade of {object_id}")
    run.folder.put(parquet_bytes(table), f"{grader_folder(grader)}/{row['entry']}.parquet")
    return table


def read_grades(*runs: RunFolder, known: dict[str, pa.Table] | None = None) -> pa.Table:
    """All entries of all graders, in the order in which they were made; schema `GRADES`.

    Parameters
    ----------
    *runs : RunFolder
        May be graded and compacted meanwhile.
    known : dict, optional
        What earlier calls have read, by file; filled in, so that the next call reads new files only.
    """
    known = {} if known is None else known
    present: list[str] = []
    for run in runs:
        for grader in run.folder.names("grades"):
            # Single files before segments: one that is gone when it is read is in a segment by then.
            for below in (f"grades/{grader}", f"grades/{grader}/segments"):
                names = [f"{below}/{name}" for name in run.folder.names(below, suffix=".parquet")]
                files = {name: run.folder.file_url(name) for name in names}
                new = read_files(run.folder, [name for name, url in files.items() if url not in known], GRADES)
                known |= {files[name]: table for name, table in new.items()}
                present += [url for url in files.values() if url in known]
    for gone in set(known) - set(present):
        del known[gone]
    return _in_order([known[file] for file in present])


def latest_grades(history: pa.Table, at: datetime.datetime | None = None) -> pa.Table:
    """The entries that count: the last of each grader and object, unless it took everything back.

    Parameters
    ----------
    history : pyarrow.Table
        From `read_grades`.
    at : datetime, optional
        Only what was graded until then.
    """
    if at is not None:
        history = history.filter(pc.less_equal(history["graded_at"], pa.scalar(at, history["graded_at"].type)))
    last: dict[tuple[str, str], int] = {}
    for place, key in enumerate(zip(history["grader"].to_pylist(), history["object_id"].to_pylist(), strict=True)):
        last[key] = place
    counting = history.take(pa.array(sorted(last.values()), pa.int64()))
    return counting.filter(pc.or_(pc.is_valid(counting["grade"]), pc.is_valid(counting["comment"])))


def compact_grades(run: RunFolder, grader: str, at_least: int = COMPACT_FROM) -> int:
    """Move a grader's single files into one segment if there are at least `at_least`; return how many were moved.

    Anybody may do it at any time, several at once too: each removes only what it has written itself, and an entry that
    is there twice counts once.
    """
    below = grader_folder(grader)
    files = [f"{below}/{name}" for name in run.folder.names(below, suffix=".parquet")]
    if len(files) < at_least:
        return 0
    found = read_files(run.folder, files, GRADES)
    table = _in_order(list(found.values()))
    name = hashlib.sha256("\n".join(table["entry"].to_pylist()).encode()).hexdigest()[:20]
    run.folder.put(parquet_bytes(table), f"{below}/segments/{name}.parquet")
    run.folder.delete_many(list(found))
    return len(found)


def check_grader(name: str) -> str:
    """Return a grader's name as it is stored (no outer blanks, Unicode composed); StorageError if it is unusable."""
    name = unicodedata.normalize("NFC", name).strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise StorageError(f"grader {name[: MAX_NAME + 1]!r}: give 1 to {MAX_NAME} printable characters")
    return name


def grader_folder(grader: str) -> str:
    """Folder of a grader's entries, relative to the run folder: readable, safe, and of this name only."""
    plain = re.sub(r"[^a-z0-9]+", "-", grader.lower()).strip("-")[:24] or "grader"
    return f"grades/{plain}-{hashlib.sha256(grader.encode()).hexdigest()[:12]}"


def _in_order(tables: list[pa.Table]) -> pa.Table:
    """Entries by time, each once."""
    table = pa.concat_tables([GRADES.empty_table(), *tables]).combine_chunks()
    table = table.sort_by([("graded_at", "ascending"), ("entry", "ascending")])
    first: dict[tuple[str, str], int] = {}
    for place, key in enumerate(zip(table["grader"].to_pylist(), table["entry"].to_pylist(), strict=True)):
        first.setdefault(key, place)
    return table if len(first) == table.num_rows else table.take(pa.array(list(first.values()), pa.int64()))
