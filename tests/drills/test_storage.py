"""Storage that fails: requests are made again; a run that finds no space says so, and a rerun finishes it."""

from __future__ import annotations

import contextlib
import subprocess
import threading

import pytest

from tests.drills.drill import STAGES, Drill, count
from tests.storage.disks import fill, small_disk

pytestmark = pytest.mark.slow


def test_refused_and_broken_replies_and_a_server_that_is_down_for_a_while_change_nothing(scene):
    drill = Drill(scene, "5% of S3 requests refused, 1% cut short, and the server down for 20 s", workers=1)
    scene.faults.forget()
    with faulty(scene, error_rate=0.05, cut_rate=0.01):
        driver = drill.start(seconds=0.2)
        driver.until(count("write", 5))
        with faulty(scene, down=True):
            threading.Event().wait(20)
            assert driver.process.poll() is None, driver.output
        assert driver.wait() == 0, driver.output
    assert scene.faults.faults().keys() == {"slow_down", "cut"}
    drill.check()


def test_a_full_disk_of_workers_and_driver_does_not_matter_to_a_run_in_object_storage(scene, tmp_path):
    drill = Drill(scene, "temporary folder full", workers=1)
    with small_disk(tmp_path / "full", kilobytes=16):
        fill(tmp_path / "full")
        driver = drill.start(temporary=str(tmp_path / "full"))
        assert driver.wait() == 0, driver.output
    assert "not compacted (OSError: [Errno 28] No space left on device" in driver.output, driver.output
    drill.check(compacted=False)  # what is not compacted is read all the same


def test_a_run_on_a_full_disk_stops_early_blames_no_tile_and_is_finished_when_there_is_space(scene, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, kilobytes=600):
        drill = Drill(scene, "disk of a local run full", run=str(disk / "run"), workers=1)
        driver = drill.start()
        assert driver.wait() == 1, driver.output
        assert driver.output.count("stopped early: StorageFull: ") == 1 and "Traceback" not in driver.output
        assert "cannot be written: No space left on device; make room" in driver.output, driver.output
        assert {row["status"] for row in drill.rows().values()} == {"ok"}
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        done = len(drill.rows())
        again = drill.start("--executor", "serial")
        assert again.wait() == 0, again.output
        drill.check(dict.fromkeys(STAGES, len(scene.tiles) - done))  # what is not ok is done again from the start


def test_a_writer_that_cannot_write_fails_its_tiles_and_they_are_done_later(scene, tmp_path):
    drill = Drill(scene, "files of a local run too large", run=str(tmp_path / "run"), workers=1)
    longest = {tile: max(len(what.mosaic), len(what.candidates)) for tile, what in scene.reference.items()}
    limit = sorted(longest.values())[len(longest) // 2]
    driver = drill.start("--executor", "serial", file_limit=limit)  # what fails on Ray is in `test_tiles`
    assert driver.wait() == 3, driver.output
    failed = {tile: row for tile, row in drill.rows().items() if row["status"] == "failed"}
    assert sorted(failed) == [tile for tile in scene.tiles if longest[tile] > limit]
    assert all("File too large" in row["reason"] and row["stage"] == "write" for row in failed.values())
    drill.guilty |= set(failed)
    again = drill.start("--retry-failed", "--executor", "serial")
    assert again.wait() == 0, again.output
    drill.check()


@contextlib.contextmanager
def faulty(scene, **faults):
    """Faults of the proxy for a while."""
    before = {name: getattr(scene.faults, name) for name in faults}
    for name, value in faults.items():
        setattr(scene.faults, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(scene.faults, name, value)
