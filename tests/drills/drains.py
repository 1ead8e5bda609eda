"""Does a run that is told to stop, at any moment and in any way, end with 143 and a summary?

``python -m tests.drills.drains [TRIES [FIRST]]`` tells so many runs on Ray (20) to stop, at one moment after another,
by SIGTERM to the driver alone, to its process group, or to every process below it as well; finishes each; and prints a
table. FIRST (1) is the number of the first try, for whoever wants them in several sittings.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from surveybridge.storage.objectstore import Folder
from surveybridge.storage.runs import RunFolder
from tests import tiny, warm
from tests.drills.drill import QUICK, results
from tests.drills.scene import ROOT, Tile

TARGETS = ("driver", "process group", "every process")
MOMENTS: tuple[float | int, ...] = (0.0, 0.4, 1, 3, 8)
"""Share of the time that the driver takes to its first tile, or number of tiles in the ledger."""
DEADLINE = 180.0
SUMMARY = re.compile(
    r"(\d+) of (\d+) tiles ok, 0 failed.*\n(\d+) tiles are left \(SIGTERM\): run the same command again"
)
STOPPED = "surveybridge translate: stopped by SIGTERM; run the same command again"
"""Said in the place of a summary before the run is looked at."""


@dataclass(frozen=True)
class Try:
    """One run that was told to stop."""

    target: str
    moment: float | int
    code: int
    seconds: float
    """From the signal to the end of the driver."""
    done: int
    """Tiles in the ledger after that."""
    said: str
    """The summary, or all that was printed if there is none."""
    left_behind: tuple[str, ...]
    """Processes of the run that outlive the driver."""

    @property
    def good(self) -> bool:
        """Whether it ended as it should."""
        return self.code == 143 and self.said in ("summary", "one line") and not self.left_behind


class Field:
    """A small tile store, and what an undisturbed run makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = tiny.write_store(folder / "tiles", tile_size=40, halo=16)
        self.checkpoint = tiny.write_checkpoint(folder, network=tiny.LARGER)
        self.to_first = 15.0
        self.home = folder / "home"
        _fill(self.home)
        self.reference = self._finished("undisturbed")

    def command(self, run: str, executor: str) -> list[str]:
        """The command as a person types it."""
        where = ["--store", self.store, "--run", str(self.folder / run), "--checkpoint", self.checkpoint]
        # what is told to stop is a real process, with a process group of its own
        python = sys.executable if executor == "ray" else warm.python()
        few = ["-m", "tests.drills.few"] if executor == "ray" else []
        return [python, *few, "-m", "surveybridge", "translate", *where, *QUICK, "--executor", executor]

    def environment(self, run: str) -> dict[str, str]:
        """Of a driver that starts a Ray of its own; the run's name is in it, to find its processes by."""
        known = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        ours = {"PYTHONPATH": path, "RAY_worker_niceness": "0", "SURVEYBRIDGE_TRY": str(self.folder / run)}
        return known | ours

    def stop(self, target: str, moment: float | int, run: str) -> Try:
        """Start a run, tell it to stop, and wait for its end."""
        log = self.folder / f"{run}.log"
        with log.open("wb") as file:
            driver = subprocess.Popen(
                self.command(run, "ray"), cwd=self.home, env=self.environment(run), stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        began = time.monotonic()
        self._wait(driver, lambda: catches_sigterm(driver.pid), log)
        if isinstance(moment, float):
            time.sleep(moment * self.to_first)
        else:
            self._wait(driver, lambda: self.done(run) >= moment, log)
            if moment == 1:
                self.to_first = time.monotonic() - began
        if target == "every process":
            for pid in below(driver.pid):
                _signal(pid)
        _signal(-driver.pid if target == "process group" else driver.pid)
        told = time.monotonic()
        try:
            code = driver.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            driver.kill()
            code = driver.wait()
        seconds = time.monotonic() - told
        said = log.read_text(errors="replace")
        found = SUMMARY.search(said)
        summed = (
            found is not None and int(found[1]) == self.done(run) and int(found[1]) + int(found[3]) == int(found[2])
        )
        kind = "summary" if summed else "one line" if said.strip().endswith(STOPPED) else said
        return Try(target, moment, code, seconds, self.done(run), kind, tuple(self._left_behind(run)))

    def same_as_undisturbed(self, run: str) -> bool:
        """Finish a run without Ray; whether its results are those of the undisturbed one, to the bit."""
        return self._finished(run) == self.reference

    def done(self, run: str) -> int:
        """Tiles in the ledger."""
        return len(Folder.at(self.folder / run).names("ledger", suffix=".parquet"))

    def _finished(self, run: str) -> dict[str, Tile]:
        done = subprocess.run(
            self.command(run, "serial"), cwd=self.home, env=self.environment(run), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found = results(RunFolder.open(str(self.folder / run)))
        return {name: Tile(tile.mosaic, tile.candidates, {}) for name, tile in found.items()}

    def _left_behind(self, run: str) -> list[str]:
        mark = f"SURVEYBRIDGE_TRY={self.folder / run}".encode()
        for _ in range(40):
            left = [command for command, environment in processes() if mark in environment.split(b"\0")]
            if not left:
                break
            time.sleep(0.25)
        return left

    def _wait(self, driver: subprocess.Popen[bytes], condition: object, log: Path) -> None:
        assert callable(condition)
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert driver.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.02)


def _fill(home: Path) -> None:
    """Make a working directory with a user's own modules, named like some of ours."""
    for name in ("jobs", "cluster", "storage", "bridge_core", "kernels"):
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").write_text("raise SystemExit('a module of the user')\n")
    for name in ("config", "stages", "stream", "runs", "tiles", "translate"):
        (home / f"{name}.py").write_text("raise SystemExit('a module of the user')\n")


def catches_sigterm(pid: int) -> bool:
    """Whether a process handles SIGTERM itself, says the kernel."""
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def below(pid: int) -> list[int]:
    """All processes that descend from one."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            try:
                found += [child, *below(child)]
            except FileNotFoundError:
                continue
    return found


def processes() -> Iterator[tuple[str, bytes]]:
    """Command and environment of every process that is no zombie."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if command:
                    yield command, (entry / "environ").read_bytes()
            except OSError:
                continue


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return


def main(tries: int, first: int) -> int:
    """Print the table; 0 if all tries ended well and left nothing wrong behind."""
    good = 0
    with tempfile.TemporaryDirectory(prefix="drains", dir="/tmp", ignore_cleanup_errors=True) as folder:
        field = Field(Path(folder))
        print("| try | SIGTERM to | when | exit | seconds to the end | tiles done | said | left behind | finished |")
        print("|---|---|---|---|---|---|---|---|---|")
        for number in range(first - 1, first - 1 + tries):
            target, moment = TARGETS[number % len(TARGETS)], MOMENTS[number // len(TARGETS) % len(MOMENTS)]
            one = field.stop(target, moment, f"try-{number}")
            same = field.same_as_undisturbed(f"try-{number}")
            good += one.good and same
            when = (
                f"{moment:.0%} of the time to the first tile" if isinstance(moment, float) else f"{moment} tiles done"
            )
            said = one.said if one.said in ("summary", "one line") else "**no summary**"
            print(
                f"| {number + 1} | {target} | {when} | {one.code} | {one.seconds:.1f} | {one.done} | {said} | "
                f"{len(one.left_behind)} | {'same bytes' if same else '**differs**'} |",
                flush=True,
            )
            if not one.good:
                print(one.said, one.left_behind, file=sys.stderr)
    print(f"\n{good} of {tries} ended with 143 and a summary, left no process, and were finished to the same bytes")
    return 0 if good == tries else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, [*sys.argv[1:], *("20", "1")[len(sys.argv) - 1 :]])))
