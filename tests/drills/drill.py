"""A drill: the command as a process, what its workers began, and what stands in the run folder afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from surveybridge.storage.parquet import parquet_bytes
from surveybridge.storage.runs import RunFolder, mosaic_path
from surveybridge.storage.schema import CANDIDATES, WALL_CLOCK, conform
from tests import warm
from tests.drills.driver import PLAN, Begun, Plan, journal
from tests.drills.scene import ROOT, Row, Scene, Tile

QUICK = ["--samples", "2", "--steps", "2", "--score-samples", "2", "--score-steps", "2", "--precision", "float32"]
STAGES = ("read", "model", "write")
DEADLINE = 300.0
"""Seconds that a driver may take; ten times what the longest takes on two free cores."""


class Drill:
    """One run folder, and the drivers that work on it one after another.

    Parameters
    ----------
    scene
        Where.
    name
        In the table, and of the run folder.
    run
        Run folder, by default in the object store.
    workers
        Models of a driver: two where somebody else has to do the work of one that is lost. Each comes with a reader and
        a writer, and all three take ten seconds of a core to start.
    """

    def __init__(self, scene: Scene, name: str, run: str = "", workers: int = 2) -> None:
        self.scene, self.name, self.workers = scene, name, workers
        slug = "".join(letter if letter.isalnum() else "-" for letter in name)
        self.run = run or f"{scene.runs}/{slug}"
        self.folder = scene.folder / slug
        self.folder.mkdir()
        self.exits: list[int] = []
        self.seconds = 0.0
        self.guilty: set[str] = set()

    def start(self, *flags: str, **plan: Any) -> Driver:
        """Start the command; what goes wrong are the fields of `Plan`."""
        script = Plan(str(self.folder), **plan)
        self.guilty |= set(script.dying) | set(script.raising)
        return Driver(self, ["tests.drills.driver"], flags, {PLAN: script.to_json()})

    def finish(self, *flags: str, **plan: Any) -> int:
        """Run the command to its end; its exit code."""
        return self.start(*flags, **plan).wait()

    def begun(self) -> list[Begun]:
        """What stages began so far."""
        return journal(self.folder)

    def release(self) -> None:
        """Let go on what was held."""
        (self.folder / "release").touch()

    def rows(self) -> dict[str, dict[str, Any]]:
        """Ledger rows by tile."""
        return {row["tile_id"]: row for row in self.run_folder().ledger().to_pylist()}

    def run_folder(self) -> RunFolder:
        return RunFolder.open(self.run, self.scene.storage_options if "://" in self.run else None)

    def check(
        self, bound: Mapping[str, int] | None = None, *, without: Sequence[str] = (), compacted: bool = True
    ) -> None:
        """The run is the undisturbed one but for some failed tiles; no row is on disk twice; few tiles were done again.

        Parameters
        ----------
        bound
            Most tiles that a stage may have begun more than once, those aside that were made to fail; by default none.
        without
            Tiles that are not ok.
        compacted
            Whether segments were made while it ran.
        """
        assert bool(self.run_folder().folder.names("ledger/segments")) == compacted
        bound = bound or {}
        found = results(self.run_folder())
        assert sorted(found) == [tile for tile in self.scene.tiles if tile not in without]
        for tile, result in found.items():
            expected = self.scene.reference[tile]
            assert result.mosaic == expected.mosaic, tile
            assert result.candidates == expected.candidates, tile
            assert result.ledger == {**expected.ledger, "attempt": result.ledger["attempt"]}, tile
        assert_no_row_twice(self.run_folder(), self.folder / "download", self.scene.reference.keys() - set(without))
        again = self.again()
        self.scene.table.append(Row(self.name, tuple(self.exits), self.seconds, again, bound))
        assert {stage: again[stage] for stage in STAGES if again[stage] > bound.get(stage, 0)} == {}

    def again(self) -> Counter[str]:
        """Innocent tiles that each stage began more than once."""
        counts = Counter((begun.stage, begun.tile) for begun in self.begun())
        return Counter(stage for (stage, tile), n in counts.items() if n > 1 and tile not in self.guilty)

    def again_after(self, first: int, last: int) -> Counter[str]:
        """Tiles that each stage began in these lines of the journal, and again later: what the end of a driver cost."""
        begun = self.begun()
        before, later = ({(one.stage, one.tile) for one in part} for part in (begun[first:last], begun[last:]))
        return Counter(stage for stage, _ in before & later)


class Driver:
    """The command in a process of its own."""

    def __init__(self, drill: Drill, module: Sequence[str], flags: Sequence[str], plan: Mapping[str, str]) -> None:
        scene = drill.scene
        self.drill = drill
        self.number = len(list(drill.folder.glob("driver-*.log")))
        self.log = drill.folder / f"driver-{self.number}.log"
        where = ["--store", scene.store, "--run", drill.run, "--checkpoint", scene.checkpoint]
        where += ["--workers", str(drill.workers)]
        command = [warm.python(), "-m", *module, "translate", *where, *QUICK, *flags]
        self.since = time.monotonic()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**scene.environment, **plan}, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def until(self, condition: Callable[[list[Begun]], Any], seconds: float = DEADLINE) -> Any:
        """Wait until something true can be said of what was begun, and return it."""
        deadline = time.monotonic() + seconds
        while not (value := condition(self.drill.begun())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.drill.name}: it never came so far\n{self.output[-8000:]}")
            time.sleep(0.02)
        return value

    def kill(self, signum: int) -> int:
        """Send a signal and wait; the exit code."""
        os.kill(warm.fork_of(self.process.pid), signum)
        return self.wait()

    def wait(self, seconds: float = DEADLINE) -> int:
        """Wait for the end; the exit code."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.drill.name}: not done after {seconds:g} s\n{self.output[-8000:]}") from None
        self.drill.exits.append(code)
        self.drill.seconds += time.monotonic() - self.since
        return code


def held(tile: str, stage: str) -> Callable[[list[Begun]], Begun | None]:
    """Condition: a process has begun this tile."""
    return lambda begun: next((one for one in begun if (one.tile, one.stage) == (tile, stage)), None)


def count(stage: str, n: int) -> Callable[[list[Begun]], bool]:
    """Condition: a stage has begun so many tiles."""
    return lambda begun: len({one.tile for one in begun if one.stage == stage}) >= n


def ahead(begun: list[Begun]) -> int:
    """By how many tiles the models are ahead of the writers."""
    model, write = ({one.tile for one in begun if one.stage == stage} for stage in ("model", "write"))
    return len(model - write)


def results(run: RunFolder) -> dict[str, Tile]:
    """Everything that a run says, by tile."""
    rows = {row["tile_id"]: row for row in run.ledger().to_pylist() if row["status"] == "ok"}
    left_out = {*WALL_CLOCK, "candidates_path"}
    return {
        tile: Tile(
            mosaic=run.folder.read(mosaic_path(tile)),
            candidates=b"" if run.maps_only else candidates_bytes(run.read_candidates(tile)),
            ledger={name: value for name, value in row.items() if name not in left_out},
        )
        for tile, row in rows.items()
    }


def candidates_bytes(table: pa.Table) -> bytes:
    """A tile's candidates as the worker wrote them, wherever they lie now: equal tables are equal bytes."""
    return parquet_bytes(conform(table.combine_chunks(), CANDIDATES, "candidates"), votable=True)


def assert_no_row_twice(run: RunFolder, download: Path, ok: set[str]) -> None:
    """Every Parquet file of ledger and candidates, read by somebody who knows nothing of segments."""
    shutil.rmtree(download, ignore_errors=True)
    for folder in ("ledger", "ledger/segments", "candidates", "candidates/segments"):
        (download / folder).mkdir(parents=True, exist_ok=True)
        for name in run.folder.names(folder, suffix=".parquet"):
            (download / folder / name).write_bytes(run.folder.read(folder, name))
    with duckdb.connect() as database:

        def column(name: str, files: str) -> list[str]:
            return [row[0] for row in database.sql(f"SELECT {name} FROM '{download}/{files}/**/*.parquet'").fetchall()]

        tiles = column("tile_id", "ledger")
        assert sorted(tiles) == sorted({*tiles, *ok})
        if run.maps_only:
            assert not any((download / "candidates").rglob("*.parquet"))
            return
        objects = column("object_id", "candidates")
        assert set(column("tile_id", "candidates")) <= ok
    assert len(objects) == len(set(objects))
    assert len(objects) == sum(run.read_candidates(tile).num_rows for tile in ok)
