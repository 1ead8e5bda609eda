"""Drivers that are killed, drained or too many: a rerun of the same command finishes what is left."""

from __future__ import annotations

import json
import signal
import time

import pytest

from surveybridge.storage.objectstore import Folder
from tests.drills.drill import STAGES, Drill, count, held

pytestmark = pytest.mark.slow


def test_a_driver_killed_early_has_done_no_harm(scene):
    drill = Drill(scene, "driver killed at the first tile")
    driver = drill.start(seconds=0.3)
    driver.until(count("read", 1))
    assert driver.kill(signal.SIGKILL) == -signal.SIGKILL
    assert drill.finish() == 0
    # Whatever was read or in a model when the driver died: two models, and readers ahead of them.
    drill.check({"read": len(scene.tiles), "model": 4, "write": 4})


def test_a_driver_killed_half_way_is_followed_by_one_that_does_the_rest(scene):
    drill = Drill(scene, "driver killed half way")
    driver = drill.start(seconds=0.3)
    driver.until(count("write", 12))
    assert driver.kill(signal.SIGKILL) == -signal.SIGKILL
    assert drill.finish() == 0
    # The readers are ahead by what the object store holds, which is all of these small tiles.
    drill.check({"read": len(scene.tiles) - 11, "model": 6, "write": 4})


def test_a_driver_killed_before_it_has_tidied_leaves_nothing_to_do_but_that(scene):
    drill = Drill(scene, "driver killed before the last tidy")
    driver = drill.start(holding_tidy=2)
    driver.until(held("tidy", "driver"))
    assert driver.kill(signal.SIGKILL) == -signal.SIGKILL
    assert drill.finish() == 0
    drill.check()


def test_of_two_drivers_one_is_refused(scene):
    drill = Drill(scene, "two drivers at once")
    first = drill.start(holding={"t0004": "model"})
    first.until(held("t0004", "model"))
    second = drill.start()
    assert second.wait() == 2
    assert str(first.process.pid) in second.output and "Traceback" not in second.output, second.output
    drill.release()
    assert first.wait() == 0, first.output
    drill.check()


def test_a_driver_whose_lease_was_taken_stops(scene):
    drill = Drill(scene, "lease taken away")
    driver = drill.start(holding={"t0004": "model"})
    driver.until(held("t0004", "model"))
    folder = Folder.at(drill.run, scene.storage_options)
    taken = {**json.loads(folder.read("lease.json")), "holder": "another", "expires_at": time.time() + 3600}
    folder.put_json(taken, "lease.json")
    driver.until(lambda begun: "was taken by" in driver.output)  # at its next renewal
    drill.release()
    assert driver.wait() == 1, driver.output
    assert "LeaseLost" in driver.output and "Ray has not been started" not in driver.output, driver.output
    folder.put_json({**taken, "released": True}, "lease.json")
    done = len(drill.rows())
    assert drill.finish() == 0
    drill.check(dict.fromkeys(STAGES, len(scene.tiles) - done))


def test_a_drained_driver_says_so_and_a_rerun_does_the_rest(scene):
    drill = Drill(scene, "SIGTERM half way")
    driver = drill.start(seconds=0.5)
    driver.until(count("write", 6))
    assert driver.kill(signal.SIGTERM) == 143, driver.output
    done = len(drill.rows())
    assert 6 <= done < len(scene.tiles), driver.output
    assert "run the same command again" in driver.output
    assert drill.finish() == 0
    # What was read ahead is read again; what a model had begun was finished.
    drill.check({"read": len(scene.tiles) - done})
