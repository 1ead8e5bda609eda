"""Run the tests in lanes, several at a time, and say what each took: python -m tests.lanes [LANE ...] [-- -x ...].

A lane is a process of pytest, with forks that share its files where they can; `lint` is no pytest. Every test
is in one lane. Two lanes that start clusters, servers and browsers run side by side, and those that only compute fill
the cores while they wait: three that start so much make each other miss their deadlines on two cores, Slurm included,
though it sleeps most of the time. What follows -- goes to pytest.

A few tests that fail are run once more when all lanes have ended, and pass if they do so alone: a machine that is slow
for a moment must not refuse a change. They are named at the end, whatever comes of it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.once import MADE_ONCE
from tests.processor import Group

ROOT = Path(__file__).resolve().parent.parent
OUTCOMES = ("passed", "failed", "errors", "skipped")
TESTS_FAILED = 1
"""What pytest ends with where tests have failed, and all have been run."""
SLOWEST = 25
"""Tests that are named with what they took, to be looked at first where `make test` is to be faster."""
RUN_AGAIN = 5
"""Failures, of all lanes together, that are run again; more of them are no accident."""


@dataclass(frozen=True)
class Lane:
    """How the tests of a lane run."""

    tests: str
    """Which, in words."""
    after: tuple[str, ...] = ()
    """Lanes that must have ended before it starts."""
    workers: int = 1
    """Processes that share its files (tests/sharing.py)."""
    niceness: int = 0
    """Above 0 in a lane that only computes: it leaves the cores to those that wait for their processes."""


LANES = {
    "slow": Lane("above 20 s: processes, clusters of their own, browsers"),
    "drills": Lane("workers, drivers, nodes and storage that fail: tests/drills"),
    "slurm": Lane(
        "on a Slurm of their own: they wait for leases to end, and for jobs to be queued again", after=("drills",)
    ),
    "ray": Lane("on a Ray cluster that is there already", after=("slow",)),
    "lint": Lane("no tests: formatting, lint and types, as make lint", niceness=5),
    "long": Lane("files that compute for more than 5 s, and start nothing that they wait for", workers=2, niceness=5),
    "fast": Lane("all others, which share nothing", workers=2, niceness=8),
}
FORKING = {"slow", "drills", "ray"}
"""Lanes with many processes that are forks of one; a server of its own takes a lane 4 s."""


def lane_of(file: Path, text: str, markers: set[str], fixtures: Sequence[str]) -> str:
    """The lane of a test, by its file, its markers and the fixtures that it uses."""
    if "slurm" in markers:
        lane = "slurm"
    elif file.parent.name == "drills":
        lane = "drills"
    elif "ray_cluster" in fixtures:
        lane = "ray"
    else:
        lane = next((lane for lane in ("slow", "long") if lane in markers), "fast")
    return lane if may_hold(lane, file, text) else "fast"


def may_hold(lane: str, file: Path, text: str) -> bool:
    """Whether a file can have tests of a lane, by its text; `fast` sees every file, so that no test is in none.

    To import all of them takes a process 15 s.
    """
    signs = {name: f"mark.{name}" for name in ("slurm", "slow", "long")} | {"ray": "ray_cluster"}
    sign = signs.get(lane)
    return sign in text if sign else lane == "fast" or (lane == "drills" and file.parent.name == "drills")


@dataclass
class Run:
    """A lane under way, or at its end."""

    lane: str
    name: str
    """Of its files in `folder`."""
    folder: Path
    process: subprocess.Popen[bytes]
    group: Group | None
    begun: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    used: float | None = None
    """Processor seconds of it and of all that it started, where they are counted."""
    again: Run | None = None
    """Its failures, run again."""

    @property
    def code(self) -> int:
        """What it has ended with, or its failures, where they were run again."""
        return (self.again or self).process.returncode

    @property
    def log(self) -> str:
        """What it has printed."""
        return (self.folder / f"{self.name}.log").read_text(errors="replace")

    def end(self) -> None:
        """Note what it took."""
        self.seconds = time.monotonic() - self.begun
        if self.group is not None:
            self.used = self.group.seconds()
            self.group.close()

    def cases(self) -> list[ET.Element]:
        """Tests that have come to their end, as pytest reports them."""
        file = self.folder / f"{self.name}.xml"
        return list(ET.parse(file).iter("testcase")) if file.exists() else []

    def failed(self) -> list[str]:
        """Names of the tests that failed."""
        return [
            name_of(case) for case in self.cases() if case.find("failure") is not None or case.find("error") is not None
        ]

    def outcomes(self) -> Counter[str]:
        """Tests by outcome; none of a process that did not come to its end."""
        file = self.folder / f"{self.name}.xml"
        counts: Counter[str] = Counter()
        for suite in ET.parse(file).iter("testsuite") if file.exists() else ():
            tests, failed, errors, skipped = (int(suite.get(n, 0)) for n in ("tests", "failures", "errors", "skipped"))
            counts.update(passed=tests - failed - errors - skipped, failed=failed, errors=errors, skipped=skipped)
        if self.again and not self.again.code:
            counts.update(passed=counts.pop("failed", 0) + counts.pop("errors", 0))
        return counts


def name_of(case: ET.Element) -> str:
    """Name of a test."""
    return f"{case.get('classname', '')}::{case.get('name', '')}"


def command(lane: str, folder: Path, name: str, more: Sequence[str]) -> list[str]:
    """What runs a lane, and leaves the outcomes of its tests in `folder` by `name`, and there what has failed."""
    if lane == "lint":
        return ["make", "--no-print-directory", "lint"]
    processes = f"--processes={LANES[lane].workers}"
    files = ["-o", f"cache_dir={folder / lane}.failed", f"--junitxml={folder / name}.xml"]
    return [sys.executable, "-m", "pytest", "--lane", lane, processes, *more, *files]


def server_of_forks() -> dict[str, str]:
    """One of tests/warm.py for all lanes, and what lets them find it; it imports with the settings that tests have."""
    from tests import conftest, warm

    os.environ.update({name: value for name, value in conftest.ENVIRONMENT.items() if name not in os.environ})
    return {warm.SHARED: warm.python()}


def forks_are_on() -> bool:
    """Whether the server still gives forks."""
    from tests import warm

    return warm.is_on()


def start(
    lane: str, more: Sequence[str], folder: Path, counted: bool, variables: Mapping[str, str], name: str | None = None
) -> Run:
    """Start a lane with more variables; what it says goes to a file, by its own name or another."""
    name = name or lane
    arguments = command(lane, folder, name, more)
    if LANES[lane].niceness:
        arguments = ["nice", "-n", str(LANES[lane].niceness), *arguments]
    # Hundreds of processes start, and none of them should have to compile what it imports.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    # Lanes that share a folder of temporary files delete what is old there, at the same time.
    temporary = folder / name
    temporary.mkdir()
    environment |= {**variables, "PYTEST_DEBUG_TEMPROOT": str(temporary), MADE_ONCE: str(folder / "once")}
    with open(folder / f"{name}.log", "wb") as log:
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    return Run(lane, name, folder, process, Group(name, process.pid) if counted else None)


def as_they_end(lanes: Sequence[str], begin: Callable[[str], Run]) -> Iterator[Run]:
    """Begin each lane when its turn has come, and yield it when it has ended. If the caller is interrupted, all end."""
    waiting, running = list(lanes), list[Run]()
    try:
        while waiting or running:
            unfinished = {*waiting, *(run.lane for run in running)}
            for lane in [lane for lane in waiting if unfinished.isdisjoint(LANES[lane].after)]:
                waiting.remove(lane)
                running.append(begin(lane))
            time.sleep(0.1)
            for run in [run for run in running if run.process.poll() is not None]:
                run.end()
                running.remove(run)
                yield run
    finally:
        for run in running:
            run.process.terminate()
            run.process.wait()


def failures(runs: Sequence[Run]) -> int:
    """Number of tests that failed, in lanes that have come to their end."""
    return sum(count for run in runs for outcome, count in run.outcomes().items() if outcome in ("failed", "errors"))


def run_again(runs: Sequence[Run], begin: Callable[[str], Run]) -> None:
    """Run what has failed of each lane once more, one lane after the other, unless there is too much of it."""
    some = [run for run in runs if run.process.returncode == TESTS_FAILED and run.lane != "lint"]
    if 0 < failures(some) <= RUN_AGAIN:
        for run in some:
            (run.again,) = as_they_end([run.lane], begin)
            print(f"\n==== lane {run.lane}, what has failed, again and alone\n{run.again.log}", flush=True)


def table(runs: Sequence[Run]) -> str:
    """A row a lane."""
    rows = [f"{'lane':<8}{'exit':>5}{'seconds':>9}{'CPU s':>7}" + "".join(f"{name:>9}" for name in OUTCOMES)]
    for run in runs:
        counts = run.outcomes()
        used = "-" if run.used is None else f"{run.used:.0f}"
        numbers = "".join(f"{counts[name]:>9}" for name in OUTCOMES)
        row = f"{run.lane:<8}{run.code:>5}{run.seconds:>9.0f}{used:>7}{numbers}"
        rows.append(f"{row}  {LANES[run.lane].tests}")
    return "\n".join(rows)


def tried_twice(runs: Sequence[Run]) -> list[str]:
    """A line a test that was run again."""
    return [
        f"{'failed again, alone' if test in run.again.failed() else 'passed when run again, alone'}: {test}"
        for run in runs
        if run.again
        for test in run.failed()
    ]


def slowest(runs: Sequence[Run], number: int = SLOWEST) -> list[str]:
    """A line for each of the tests that took longest by the clock, with what was made for them."""
    cases = [(float(case.get("time", 0)), run.lane, name_of(case)) for run in runs for case in run.cases()]
    return [f"{seconds:>6.0f} s  {lane:<8}{name}" for seconds, lane, name in sorted(cases, reverse=True)[:number]]


def closing_line(runs: Sequence[Run], seconds: float) -> str:
    """The sum of all, in the words in which pytest ends."""
    counts = sum((run.outcomes() for run in runs), Counter[str]())
    said = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name] or name == "passed")
    return f" {said} in {seconds:.2f}s ".center(80, "=")


def main(argv: Sequence[str] | None = None) -> int:
    """Run lanes, by default all; 0 if every one of them passed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    more = arguments[end + 1 :]
    parser = argparse.ArgumentParser(prog="python -m tests.lanes", description=__doc__)
    parser.add_argument("lanes", nargs="*", metavar="LANE", help=f"of {', '.join(LANES)}; by default all")
    parser.add_argument(
        "--processor", metavar="FILE", help="count seconds of processor time; those of each test to FILE"
    )
    chosen = parser.parse_args(arguments[:end])
    lanes = chosen.lanes or list(LANES)
    if unknown := set(lanes) - set(LANES):
        parser.error(f"no lane {', '.join(sorted(unknown))}: there are {', '.join(LANES)}")
    begun, ended = time.monotonic(), []
    print(f"lanes: {', '.join(lanes)}; each is shown when it has ended", flush=True)
    shared = {} if chosen.processor or FORKING.isdisjoint(lanes) else server_of_forks()
    if chosen.processor:
        more += [f"--processor={chosen.processor}"]
    # a test that was killed may leave what cannot be deleted, such as a disk that is mounted
    with TemporaryDirectory(prefix="lanes", ignore_cleanup_errors=True) as folder:

        def begin(lane: str) -> Run:
            return start(lane, more, Path(folder), bool(chosen.processor), shared)

        for run in as_they_end(lanes, begin):
            print(f"\n==== lane {run.lane}, after {run.seconds:.0f} s\n{run.log}", flush=True)
            ended.append(run)

        def begin_again(lane: str) -> Run:
            failures_only = ["--last-failed", "--last-failed-no-failures=none", *more]
            return start(lane, failures_only, Path(folder), bool(chosen.processor), shared, f"{lane}-again")

        run_again(ended, begin_again)
        if shared and not forks_are_on():
            print("the server of forks (tests/warm.py) has ended too early: processes were real ones, and took longer")
        said = [*slowest(ended), *tried_twice(ended), table(ended), closing_line(ended, time.monotonic() - begun)]
        print("\n".join(said), flush=True)
    return int(any(run.code for run in ended))


if __name__ == "__main__":
    sys.exit(main())
