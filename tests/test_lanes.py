"""Lanes: every test is in one, and a lane that fails, ends early or holds nothing fails them all."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests import lanes
from tests.conftest import ROOT
from tests.lanes import LANES, Run, lane_of, main, may_hold, slowest
from tests.processor import Group

FILES = {
    "one/test_fast.py": "def test_fast(): ...",
    "one/test_ray.py": "def test_ray(ray_cluster): ...",
    "one/test_slow.py": "import pytest\n@pytest.mark.slow\ndef test_slow(): ...\ndef test_fast_too(): ...",
    "one/test_long.py": "import pytest\n@pytest.mark.long\ndef test_long(): ...",
    "one/test_slurm.py": "import pytest\n@pytest.mark.slurm\ndef test_slurm(): ...",
    "one/test_hidden.py": "import pytest\n@getattr(pytest.mark, 'slow')\ndef test_hidden(): ...",  # is not lost
    "Makefile": "lint:\n\t@echo all is neat",
    "drills/test_drill.py": "import pytest\n@pytest.mark.slow\ndef test_drill(): ...",
}
CONFTEST = """
import os
import pytest
from tests.conftest import *

@pytest.fixture
def ray_cluster(): ...

def pytest_runtest_call(item):
    (ROOT_OF_THIS / "ran" / f"{item.name} {os.getpid()}").touch()
"""


@pytest.mark.parametrize(
    ("folder", "markers", "fixtures", "lane"),
    [
        ("jobs", set(), ("tmp_path",), "fast"),
        ("jobs", {"slow"}, ("tmp_path",), "slow"),
        ("jobs", {"long"}, ("tmp_path",), "long"),
        ("jobs", {"slow", "long"}, ("tmp_path",), "slow"),
        ("jobs", set(), ("ray_cluster",), "ray"),
        ("jobs", {"slow"}, ("ray_cluster",), "ray"),
        ("drills", {"slow"}, ("scene",), "drills"),
        ("drills", {"slurm"}, ("site",), "slurm"),
    ],
)
def test_a_test_is_in_one_lane_and_its_file_shows_which(folder, markers, fixtures, lane):
    text = "".join(f"@pytest.mark.{name}\n" for name in markers) + f"def test_it({', '.join(fixtures)}): ..."
    assert lane_of(Path(folder, "test_it.py"), text, markers, fixtures) == lane


def test_a_file_without_a_sign_of_a_lane_is_not_imported_for_it():
    assert {lane for lane in LANES if may_hold(lane, Path("storage/test_it.py"), "def test_it(): ...")} == {"fast"}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A small tree of tests with our lanes."""
    for name, text in (FILES | {"conftest.py": CONFTEST.replace("ROOT_OF_THIS", f"Path({str(tmp_path)!r})")}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "ran").mkdir()
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT}\nmarkers =\n  slow\n  long\n  slurm\n  gpu\n")
    monkeypatch.setattr(lanes, "ROOT", tmp_path)
    monkeypatch.setattr(lanes, "server_of_forks", dict)
    return tmp_path


def test_the_slowest_tests_are_named_with_their_lanes(tmp_path):
    runs = []
    for lane, times in (("fast", {"quick": 0.2, "slow": 7.4}), ("ray", {"waits": 12.6})):
        cases = "".join(f'<testcase classname="tests.a" name="test_{n}" time="{t}"/>' for n, t in times.items())
        (tmp_path / f"{lane}.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
        runs.append(Run(lane, lane, tmp_path, process=None, group=None))  # type: ignore[arg-type]
    assert slowest(runs, 2) == ["    13 s  ray     tests.a::test_waits", "     7 s  fast    tests.a::test_slow"]


def rows(printed: str) -> dict[str, list[int]]:
    """Exit code, and numbers passed, failed, broken and skipped, by lane."""
    lines = printed.partition("lane     exit")[2].splitlines()[1:-1]
    return {lane: [int(code), *map(int, counts[:4])] for lane, code, _, _, *counts in map(str.split, lines)}


@pytest.mark.long
def test_all_lanes_together_run_every_test_once(elsewhere, capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    passed = {"drills": 1, "slurm": 1, "ray": 1, "slow": 1, "long": 1, "fast": 3, "lint": 0}
    assert rows(printed) == {lane: [0, count, 0, 0, 0] for lane, count in passed.items()}
    assert "all is neat" in printed
    ran = sorted(path.name.split()[0] for path in (elsewhere / "ran").iterdir())
    wanted = ["drill", "fast", "fast_too", "hidden", "long", "ray", "slow", "slurm"]
    assert ran == [f"test_{name}" for name in wanted]
    assert printed.splitlines()[-1].strip("=").split(" in ")[0] == " 8 passed"


@pytest.mark.parametrize(
    ("bad", "script", "code"),
    [
        ("slow", "import sys; sys.exit(1)", 1),
        ("lint", "import sys; sys.exit(2)", 2),
        ("drills", "import os; os.kill(os.getpid(), 9)", -9),
        ("slow", "print('no tests ran'); raise SystemExit(5)", 5),  # what pytest does where a lane holds nothing
    ],
)
def test_one_bad_lane_fails_all_and_the_others_are_told_of(monkeypatch, capsys, bad, script, code):
    def command(lane, folder, name, more):
        return [sys.executable, "-c", script if lane == bad else f"print('{lane} is done')"]

    monkeypatch.setattr(lanes, "command", command)
    monkeypatch.setattr(lanes, "server_of_forks", dict)
    assert main([]) == 1
    printed = capsys.readouterr().out
    assert {lane: row[0] for lane, row in rows(printed).items()} == dict.fromkeys(LANES, 0) | {bad: code}
    for lane in LANES.keys() - {bad}:
        assert f"{lane} is done" in printed
    ended = list(rows(printed))
    assert ended.index("drills") < ended.index("ray")


LUCK = """
from pathlib import Path
import pytest

@pytest.fixture
def room():
    if {at!r} == "setup" and not Path({file!r}).exists():
        Path({file!r}).touch()
        raise OSError("not yet")

def test_luck(room):
    if {at!r} == "call" and not Path({file!r}).exists():
        Path({file!r}).touch()
        raise AssertionError("not yet")

def test_never_fails(): ...
"""
"""A test that fails the first time."""


@pytest.mark.long
@pytest.mark.parametrize("at", ["setup", "call"])
def test_a_failure_that_is_none_alone_is_told_of_and_forgiven(elsewhere, capsys, at):
    (elsewhere / "one" / "test_fast.py").write_text(LUCK.format(at=at, file=str(elsewhere / "tried")))
    assert main(["fast"]) == 0
    printed = capsys.readouterr().out
    assert rows(printed) == {"fast": [0, 4, 0, 0, 0]}
    assert "not yet" in printed and "lane fast, what has failed, again and alone" in printed
    assert "\npassed when run again, alone: one.test_fast::test_luck\n" in printed
    assert len([path for path in (elsewhere / "ran").iterdir() if path.name.startswith("test_never_fails")]) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("text", "code", "row", "again"),
    [
        ("def test_a(): raise AssertionError", 1, [2, 1, 0, 0], ["failed again, alone: one.test_fast::test_a"]),
        ("def test_a():\n    import os; os._exit(7)\ndef test_b(): ...", 2, None, None),  # b would never be run
        ("def test_a(): raise AssertionError\n" + "".join(f"test_{i} = test_a\n" for i in range(6)), 1, None, None),
        ("raise AssertionError", 2, None, None),
    ],
)
def test_a_failure_that_stays_or_leaves_others_out_fails_the_lane(elsewhere, capsys, text, code, row, again):
    (elsewhere / "one" / "test_fast.py").write_text(text)
    assert main(["fast"]) == 1
    printed = capsys.readouterr().out
    found = rows(printed)["fast"]
    assert found[0] == code and (row is None or found[1:] == row)
    assert [line for line in printed.splitlines() if "again, alone: " in line] == (again or [])
    assert ("again and alone" in printed) == bool(again)


@pytest.mark.long
def test_what_an_early_end_has_left_out_is_not_forgiven(elsewhere, capsys):
    (elsewhere / "one" / "test_fast.py").write_text(LUCK.format(at="call", file=str(elsewhere / "tried")))
    assert main(["fast", "--", "-x"]) == 1
    assert "again and alone" not in capsys.readouterr().out


def test_a_lane_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["quick"])
    assert caught.value.code == 2
    assert "no lane quick: there are slow, drills, slurm, ray, lint, long, fast" in capsys.readouterr().err


SHARED = {
    "test_one.py": """
import os, time

def test_waits():
    print("said by one")
    time.sleep(0.5)

def test_fails():
    print("said by it")
    assert 1 == 2

def test_ends_its_process(): os.kill(os.getpid(), 9)
def test_is_lost(): ...
""",
    "test_other.py": """
import time
import pytest

@pytest.fixture(scope="module")
def room(request):
    yield
    request.path.with_name("left").touch()

def test_waits(room):
    print("said by the other")
    time.sleep(1)

def test_is_skipped(room): pytest.skip("here")
def test_passes(room): ...
""",
    "test_last.py": "def test_last(): ...",
    "conftest.py": "from tests.conftest import *",
    "pytest.ini": f"[pytest]\npythonpath = {ROOT}\n",
}


@pytest.mark.long
def test_processes_share_files_and_one_that_dies_is_a_failed_test(tmp_path):
    for name, text in SHARED.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "--processes", "2", "-v", f"--junitxml={tmp_path}/tests.xml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and " 2 failed, 4 passed, 1 skipped in " in done.stdout, done.stdout + done.stderr
    assert (
        "Captured stdout call" in done.stdout and done.stdout.count("said by") == done.stdout.count("said by it") == 2
    )
    assert "the process that ran tests ended with -9" in done.stdout and "test_is_lost" not in done.stdout
    assert (tmp_path / "left").exists()
    counts = next(ET.parse(tmp_path / "tests.xml").iter("testsuite")).attrib
    assert [counts[name] for name in ("tests", "failures", "errors", "skipped")] == ["7", "2", "0", "1"]


@pytest.mark.long
def test_the_first_failure_ends_all_processes_where_that_is_asked_for(tmp_path):
    for name, text in SHARED.items():
        (tmp_path / name).write_text(text.replace("sleep(1)", "sleep(60)"))
    command = [sys.executable, "-m", "pytest", "--processes", "2", "-x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == 2 and "stopping after 1 failures" in done.stdout, done.stdout + done.stderr


@pytest.mark.long
def test_processor_time_of_a_test_is_that_of_the_processes_it_starts_too(elsewhere, capsys):
    try:
        Group("probe", os.getpid()).close()
    except OSError as error:
        pytest.skip(f"no control groups here: {error}")
    busy = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    text = f"import subprocess, sys\ndef test_busy(): subprocess.run([sys.executable, '-c', {busy!r}])\n"
    text += "def test_idle(): ..."
    (elsewhere / "one" / "test_busy.py").write_text(text)
    assert main(["fast", "--processor", str(elsewhere / "seconds")]) == 0
    counted = {line.split("::")[1]: float(line.split()[0]) for line in (elsewhere / "seconds").read_text().splitlines()}
    assert len(counted) == 5 and 0.5 <= counted["test_busy"] < 2 and counted["test_idle"] < 0.2
    row = capsys.readouterr().out.partition("CPU s")[2].splitlines()[1].split()
    assert float(row[3]) >= 1  # it imports pytest
