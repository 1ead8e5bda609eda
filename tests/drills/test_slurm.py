"""Slurm for real: cluster/deploy/slurm.sbatch on two nodes, drained, queued again and cancelled in the middle."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

from surveybridge.__main__ import main
from surveybridge.storage.runs import RunFolder
from tests import tiny
from tests.drills.drill import QUICK, results
from tests.drills.driver import PLAN, Plan
from tests.drills.scene import ROOT, Tile
from tests.drills.slurm import Site, slurm_site, why_not

pytestmark = pytest.mark.slurm

SECONDS = 1.0
"""Added to the model of each tile, so that there is a middle to hit."""
SMALL = ["--gpus-per-node=1", "--cpus-per-task=2", "--mem=6G", "--time=30"]


@pytest.fixture(scope="module")
def site():
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # a munge socket needs a short path
    with slurm_site(folder) as made:
        yield made


class Runs:
    """Runs of one tile store under Slurm."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.folder = site, folder
        self.store = tiny.write_store(folder / "tiles", tile_size=40, halo=16)
        self.settings = ["--checkpoint", tiny.write_checkpoint(folder, network=tiny.LARGER), *QUICK]
        self.run = str(folder / "run")
        self.programs = folder / "programs"
        self.programs.mkdir()
        python = self.programs / "python"
        # in the place of `python -m surveybridge`
        python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -m tests.drills.driver "$@"\n')
        python.chmod(0o755)
        self.seen: tuple[tuple[int, ...], int] = ((), 0)

    def submit(self) -> str:
        """Submit the script; the job's id."""
        environment = {
            "PATH": f"{self.programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_worker_niceness": "0",
            PLAN: Plan(str(self.folder), seconds=SECONDS).to_json(),
        }
        script = [str(ROOT / "cluster" / "deploy" / "slurm.sbatch"), self.store, self.run, *self.settings]
        where = ["--parsable", f"--output={self.folder}/job-%j.log", f"--chdir={self.folder}"]
        return self.site.ask("sbatch", *where, *SMALL, *script, **environment)

    def log(self, job: str) -> str:
        path = self.folder / f"job-{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def done(self) -> int:
        """Tiles in the ledger, compacted or not."""
        folders = [folder for name in ("ledger", "ledger/segments") if (folder := Path(self.run, name)).exists()]
        changed = tuple(folder.stat().st_mtime_ns for folder in folders)
        if changed != self.seen[0]:  # to read it takes 50 ms of a core, and this is asked for minutes
            self.seen = changed, len(RunFolder.open(self.run).ok_tiles())
        return self.seen[1]

    def until(self, job: str, condition, seconds: float = 600) -> None:
        """Wait for something of the job."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{self.site.state(job)}\n{self.log(job)[-6000:]}"
            time.sleep(0.5)


def test_a_job_drained_queued_again_and_cancelled_ends_with_the_bytes_of_an_undisturbed_run(site, tmp_path):
    runs = Runs(site, site.folder)
    job = runs.submit()
    runs.until(job, lambda: runs.done() >= 2)
    site.ask("scancel", "--batch", "--signal=TERM", job)  # what --signal=B:TERM@600 does before the end of its time
    runs.until(job, lambda: "Requeue" in site.ask("scontrol", "show", "job", job) and site.state(job) != "RUNNING")
    drained = runs.done()
    assert "SIGTERM: finishing the work under way" in runs.log(job)
    assert "tiles are left (SIGTERM): run the same command again" in runs.log(job), runs.log(job)[-4000:]
    runs.until(job, lambda: runs.done() >= drained + 2)  # it queued itself again, and goes on
    site.ask("scontrol", "requeue", job)  # as when a node is taken away from it
    runs.until(job, lambda: site.state(job) != "RUNNING")
    runs.until(job, lambda: site.state(job) == "RUNNING")  # what it left is gone on with below
    site.ask("scancel", job)
    runs.until(job, lambda: site.state(job) == "CANCELLED")
    left = len(tiles := RunFolder.open(runs.run).ok_tiles())
    assert left < 25, tiles
    time.sleep(8)
    assert site.state(job) == "CANCELLED"  # a cancelled job stays so

    again = runs.submit()
    runs.until(again, lambda: site.state(again) in ("COMPLETED", "FAILED"))
    assert site.state(again) == "COMPLETED", runs.log(again)[-6000:]
    assert "25 of 25 tiles ok, 0 failed" in runs.log(again)
    undisturbed = str(tmp_path / "undisturbed")
    what = ["--store", runs.store, "--run", undisturbed, "--executor", "serial"]
    assert main(["translate", *what, *runs.settings]) == 0
    assert pixels(runs.run) == pixels(undisturbed)


def pixels(run: str) -> dict[str, Tile]:
    """Mosaics and candidates by tile."""
    return {name: Tile(tile.mosaic, tile.candidates, {}) for name, tile in results(RunFolder.open(run)).items()}
