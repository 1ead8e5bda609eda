"""Drivers that are killed, drained or too many: a rerun of the same command finishes what is left."""

from __future__ import annotations

import json
import signal
import time

import pytest

from surveybridge.storage.objectstore import Folder
from tests import warm
from tests.drills.drill import STAGES, Drill, ahead, count, held

pytestmark = pytest.mark.slow


def test_drivers_drained_and_killed_one_after_another_have_done_no_harm(scene):
    """One is drained, one killed at its first tile, one half way, one before the last tidy; a fifth does the rest."""
    drill = Drill(scene, "drivers drained, killed early, half way, and before the last tidy")
    drained = drill.start(seconds=0.5)
    drained.until(count("model", 6))
    assert drained.kill(signal.SIGTERM) == 143, drained.output
    ends, done = [0, len(drill.begun())], len(drill.rows())
    assert 6 <= done < len(scene.tiles), drained.output
    assert "run the same command again" in drained.output

    early = drill.start("--executor", "serial", seconds=0.3)  # so that it is killed early on a busy machine too
    early.until(lambda begun: any(one.stage == "read" for one in begun[ends[1] :]))
    assert early.kill(signal.SIGKILL) == -signal.SIGKILL
    ends.append(len(drill.begun()))

    left = [tile for tile in scene.tiles if tile not in drill.rows()]
    half = drill.start(seconds=0.3, holding={left[-1]: "model"})  # so that it cannot come to its end
    # Starved writers would let the models run ahead of them: it is killed when they have caught up.
    half.until(lambda begun: count("write", min(done + 6, len(scene.tiles) - 6))(begun) and ahead(begun) <= 4)
    assert half.kill(signal.SIGKILL) == -signal.SIGKILL
    ends.append(len(drill.begun()))

    # From here on it is about the driver's own part, which no worker has a hand in.
    late = drill.start("--executor", "serial", holding_tidy=2)
    late.until(held("tidy", "driver"))
    assert late.kill(signal.SIGKILL) == -signal.SIGKILL
    ends.append(len(drill.begun()))
    assert drill.finish("--executor", "serial") == 0

    bounds: tuple[dict[str, int], ...] = (
        # What was read ahead is read again; what a model had begun was finished.
        {"read": len(scene.tiles) - done},
        # Whatever was read or in a model when the driver died: two models, and readers ahead of them.
        {"read": len(scene.tiles) - done, "model": 4, "write": 4},
        # The readers are ahead by what the object store holds, which is all of these small tiles.
        {"read": len(scene.tiles) - done, "model": 6, "write": 4},
        {},  # nothing was left to do but to tidy
    )
    for bound, first, last in zip(bounds, ends, ends[1:], strict=False):
        again = drill.again_after(first, last)
        assert {stage: again[stage] for stage in STAGES if again[stage] > bound.get(stage, 0)} == {}, (first, last)
    drill.check({"read": len(scene.tiles), "model": 10, "write": 8})


def test_a_second_driver_is_refused_and_one_whose_lease_was_taken_stops(scene):
    drill = Drill(scene, "two drivers at once, then the lease taken away", workers=1)
    driver = drill.start(holding={"t0004": "model"})
    driver.until(held("t0004", "model"))
    second = drill.start()
    assert second.wait() == 2
    assert str(warm.fork_of(driver.process.pid)) in second.output and "Traceback" not in second.output, second.output
    assert "tiles to do" not in second.output and "tiles to do" in driver.output
    folder = Folder.at(drill.run, scene.storage_options)
    taken = {**json.loads(folder.read("lease.json")), "holder": "another", "expires_at": time.time() + 3600}
    folder.put_json(taken, "lease.json")
    driver.until(lambda begun: "was taken by" in driver.output)  # at its next renewal
    drill.release()
    assert driver.wait() == 1, driver.output
    assert "LeaseLost" in driver.output and "Ray has not been started" not in driver.output, driver.output
    folder.put_json({**taken, "released": True}, "lease.json")
    done = len(drill.rows())
    assert drill.finish("--executor", "serial") == 0
    drill.check(dict.fromkeys(STAGES, len(scene.tiles) - done))
