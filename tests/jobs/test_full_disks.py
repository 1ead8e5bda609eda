"""Full disks: one line, exit 1, nothing is blamed on tiles, and the same command goes on once there is room."""

from __future__ import annotations

import logging
import tempfile

import pytest

from surveybridge.__main__ import main
from surveybridge.storage.runs import RunFolder
from tests import tiny
from tests.drills.drill import results
from tests.jobs.test_bad_requests import write_fits
from tests.storage.disks import fill, remount, small_disk

pytestmark = pytest.mark.long

QUICK = ["--samples", "2", "--steps", "1", "--score-samples", "2", "--score-steps", "1", "--executor", "serial"]


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", kilobytes=400) as path:
        yield path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tile store of 16 tiles, a checkpoint, and a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("made")
    store = tiny.write_store(folder / "tiles", tile_size=48, halo=16)
    command = ["translate", "--store", store, "--checkpoint", tiny.write_checkpoint(folder), *QUICK, "--run"]
    assert main([*command, str(folder / "run")]) == 0
    return folder, command


def failed(capsys, *argv: object) -> str:
    """Run the command; it must exit 1 with one line on stderr."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 1
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if "error" in line.lower()]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def test_a_run_stops_early_blames_no_tile_and_goes_on_when_there_is_room(disk, made, capsys, caplog):
    folder, command = made
    capsys.readouterr()
    assert main([*command, str(disk / "run")]) == 1
    out = capsys.readouterr().out
    (said,) = (record.getMessage() for record in caplog.records if record.levelno > logging.INFO)
    assert said.startswith(f"stopped early: StorageFull: {disk}/run/")
    assert said.endswith("cannot be written: No space left on device; make room there")
    rows = RunFolder.open(str(disk / "run")).ledger().to_pylist()
    assert 0 < len(rows) < 16 and {row["status"] for row in rows} == {"ok"}
    assert f"{16 - len(rows)} tiles are left (StorageFull" in out
    assert "this run: " + str(len(rows) + 1) in out  # it stopped at the first tile that was lost
    remount(disk, "size=64m")
    assert main([*command, str(disk / "run")]) == 0
    assert pixels(disk / "run") == pixels(folder / "run")


def pixels(run):
    return {tile: (one.mosaic, one.candidates) for tile, one in results(RunFolder.open(str(run))).items()}


@pytest.mark.parametrize("job", ["translate", "publish", "export", "report", "query"])
def test_a_disk_that_is_full_from_the_start_fails_in_one_line_and_is_no_obstacle_later(disk, made, capsys, job):
    folder, translate = made
    command = {
        "translate": [*translate, disk / "run"],
        "publish": ["publish", "--run", folder / "run", "--out", disk / "catalog"],
        "export": ["export", "--run", folder / "run", "--out", disk / "field.fits", "--png"],
        "report": ["report", "--run", folder / "run", "--out", disk / "report"],
        "query": ["query", "--run", folder / "run", "--out", disk / "found.parquet"],
    }[job]
    rubbish = fill(disk)
    line = failed(capsys, *command)
    assert "No space left on device" in line and str(disk) in line
    assert line.endswith("; make room there, then run the same command again")
    rubbish.unlink()
    remount(disk, "size=64m")
    assert main([str(word) for word in command]) == 0


def test_ingest_into_a_full_disk_fails_in_one_line_and_is_no_obstacle_later(disk, tmp_path, capsys):
    vis, lsst = write_fits(tmp_path, "")
    command = ["ingest", "--euclid", vis, "--lsst", *lsst, "--store", disk / "tiles", "--tile-size", 64]
    rubbish = fill(disk)
    line = failed(capsys, *command)
    assert "No space left on device" in line and "make room" in line
    rubbish.unlink()
    remount(disk, "size=64m")
    assert main([str(word) for word in command]) == 0


def test_a_full_temporary_folder_is_no_matter_to_a_run_here(disk, made, monkeypatch):
    folder, command = made
    fill(disk)
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    monkeypatch.setenv("TMPDIR", str(disk))
    assert main([*command, str(folder / "other")]) == 0
