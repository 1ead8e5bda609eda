"""Grades: added and never changed, each grader alone in a folder, the same rows before, during and after compaction."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from surveybridge.storage.errors import StorageError
from surveybridge.storage.grades import (
    Seen,
    check_grader,
    compact_grades,
    grader_folder,
    latest_grades,
    read_grades,
    write_grade,
)
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import GRADES
from tests.storage.test_runs import RUN

NASTY = '<img src=x onerror="alert(1)">\'"/../../../etc/passwd\\ % \U0001f52d'


def at(seconds: float) -> datetime.datetime:
    return datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC) + datetime.timedelta(seconds=seconds)


@pytest.fixture
def run(tmp_path):
    return RunFolder.open_or_create(tmp_path / "run", RUN)


def files_below(path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in Path(path).rglob("*") if file.is_file())


def counting(run) -> dict[tuple[str, str], str | None]:
    rows = latest_grades(read_grades(run)).to_pylist()
    return {(row["grader"], row["object_id"]): row["grade"] for row in rows}


def test_the_last_grade_of_each_grader_counts_and_all_stay(run):
    write_grade(run, "ann", "o1", "A", graded_at=at(0), seen=Seen(1, "m", "r"))
    write_grade(run, "bob", "o1", "X", "a spiral", graded_at=at(1))
    write_grade(run, "ann", "o1", "B", graded_at=at(2))
    write_grade(run, "ann", "o2", "C", graded_at=at(3))
    history = read_grades(run)
    assert history.schema.equals(GRADES, check_metadata=False)
    assert history["grade"].to_pylist() == ["A", "X", "B", "C"]
    assert history.to_pylist()[0] | {"rank": 1, "model_id": "m", "run_id": "r"} == history.to_pylist()[0]
    assert counting(run) == {("ann", "o1"): "B", ("bob", "o1"): "X", ("ann", "o2"): "C"}
    assert latest_grades(history, at(1))["grade"].to_pylist() == ["A", "X"]


def test_what_is_taken_back_counts_no_more_but_a_comment_does(run):
    write_grade(run, "ann", "o1", "A", graded_at=at(0))
    write_grade(run, "ann", "o1", None, graded_at=at(1))
    write_grade(run, "ann", "o2", None, "  look again ", graded_at=at(2))
    assert counting(run) == {("ann", "o2"): None}
    assert read_grades(run)["comment"].to_pylist() == [None, None, "look again"]
    assert read_grades(run).num_rows == 3


def test_an_entry_written_twice_counts_once(run):
    for _ in range(2):
        write_grade(run, "ann", "o1", "A", entry="abc")
    assert read_grades(run).num_rows == 1


def test_nothing_is_written_outside_the_graders_own_folder(run, tmp_path):
    before = files_below(tmp_path)
    for grader in (NASTY, "..", "/", "a/b", "A/B", ".hidden", "Zoë", "Zoe\u0308"):
        write_grade(run, grader, NASTY, "A", NASTY)
    new = set(files_below(tmp_path)) - set(before)
    assert len(new) == 8
    assert all(file.startswith("run/grades/") and file.count("/") == 3 for file in new)
    history = read_grades(run)
    assert set(history["object_id"].to_pylist()) == {NASTY} == set(history["comment"].to_pylist())
    assert grader_folder("a/b") != grader_folder("A/B")
    assert len({file.split("/")[2] for file in new}) == 7  # composed or not, Zoë is one person


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 81, "a\x00"])
def test_a_name_that_is_none_is_refused_before_anything_is_written(run, name):
    with pytest.raises(StorageError, match="1 to 80 printable"):
        write_grade(run, name, "o1", "A")
    assert not run.folder.names("grades")
    assert check_grader("  Zoe\u0308 ") == "Zoë"


@pytest.mark.parametrize(
    ("grade", "comment", "entry", "said"),
    [
        ("D", "", None, "give one of A, B, C, X"),
        ("A", "x" * 2001, None, "2001"),
        ("A", "", "../../x", "cannot be part"),
    ],
)
def test_a_wrong_entry_is_refused_before_anything_is_written(run, grade, comment, entry, said):
    with pytest.raises(StorageError, match=said):
        write_grade(run, "ann", "o1", grade, comment, entry=entry)
    assert not run.folder.names("grades")


def test_compaction_changes_no_row_and_leaves_one_file(run):
    for k in range(20):
        write_grade(run, "ann", f"o{k % 7}", "ABCX"[k % 4], graded_at=at(k))
    write_grade(run, "bob", "o1", "A", graded_at=at(99))
    before = read_grades(run)
    assert compact_grades(run, "ann", at_least=100) == 0
    assert compact_grades(run, "ann", at_least=2) == 20
    assert read_grades(run).equals(before)
    assert len(run.folder.names(grader_folder("ann"), suffix=".parquet")) == 0
    assert len(run.folder.names(grader_folder("bob"), suffix=".parquet")) == 1
    write_grade(run, "ann", "o1", "X", graded_at=at(100))
    compact_grades(run, "ann", at_least=1)
    assert read_grades(run).num_rows == 22


def test_a_compaction_killed_before_it_removed_anything_doubles_nothing(run, monkeypatch):
    for k in range(5):
        write_grade(run, "ann", f"o{k}", "A", graded_at=at(k))
    before = read_grades(run)
    monkeypatch.setattr(Folder, "delete_many", lambda self, names: None)
    compact_grades(run, "ann", at_least=1)
    assert len(files_below(run.folder.path("grades"))) == 6
    assert read_grades(run).equals(before)


def test_known_files_are_not_read_again(run, monkeypatch):
    known: dict = {}
    write_grade(run, "ann", "o1", "A", graded_at=at(0))
    read_grades(run, known=known)
    write_grade(run, "bob", "o1", "B", graded_at=at(1))
    read: list[str] = []
    plain = Folder._read_all

    def listed(self, names):
        read.extend(names)
        return plain(self, names)

    monkeypatch.setattr(Folder, "_read_all", listed)
    assert read_grades(run, known=known).num_rows == 2
    assert len(read) == 1 and read[0].startswith(grader_folder("bob"))
    compact_grades(run, "ann", at_least=1)
    assert read_grades(run, known=known).equals(read_grades(run))


def test_readers_see_every_entry_while_others_write_and_compact(run):
    total, missed = 60, []
    written = threading.Event()

    def write(grader: str) -> None:
        for k in range(total):
            write_grade(run, grader, f"o{k}", "A")
            if k % 10 == 9:
                compact_grades(run, grader, at_least=5)

    def read() -> None:
        known: dict = {}
        last = 0
        while not written.is_set():
            rows = read_grades(run, known=known).num_rows
            missed.extend([(last, rows)] if rows < last else [])
            last = rows

    writers = [threading.Thread(target=write, args=(name,)) for name in ("ann", "bob")]
    reader = threading.Thread(target=read)
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    written.set()
    reader.join()
    assert missed == []
    assert len(counting(run)) == 2 * total


def test_what_was_written_survives_the_kill_of_its_writer(run):
    code = (
        "import os, signal, sys\n"
        "from storage.grades import write_grade\nfrom storage.runs import RunFolder\n"
        f"run = RunFolder.open({run.url!r})\n"
        "for k in range(100):\n"
        "    write_grade(run, 'ann', f'o{k}', 'A')\n"
        "    print(k, flush=True)\n"
        "    if k == 12: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == -9
    assert len(counting(run)) == len(done.stdout.split()) == 13


def test_files_carry_units_and_open_in_any_reader(run):
    write_grade(run, "ann", "o1", "A")
    (file,) = Path(run.folder.path("grades")).rglob("*.parquet")
    table = pq.read_table(file)
    assert table["grade"].to_pylist() == ["A"]
    assert table.schema.field("graded_at").metadata[b"ucd"] == b"time.creation"


def test_the_same_holds_in_object_storage(bucket, options):
    run = RunFolder.open_or_create(f"{bucket}/run", RUN, options)
    for k in range(6):
        write_grade(run, f"{NASTY}{k % 2}", NASTY, "ABCX"[k % 4], NASTY, graded_at=at(k))
    before = read_grades(run)
    assert before["grade"].to_pylist() == ["A", "B", "C", "X", "A", "B"]
    assert compact_grades(run, f"{NASTY}0", at_least=2) == 3
    assert read_grades(run).equals(before)
