"""Workers and nodes that die: nothing is lost, nothing is there twice, and little is done again."""

from __future__ import annotations

import os
import signal

import pytest

from tests.drills.drill import Drill, held
from tests.drills.driver import SLICE

pytestmark = pytest.mark.slow


def test_killed_workers_and_a_node_that_is_gone_change_nothing(scene):
    drill = Drill(scene, "a reader, a model and a writer killed, then a node removed")
    victims = {"t0002": "read", "t0007": "model", "t0011": "write"}
    driver = drill.start(holding=victims | {"t0020": "model"}, seconds=0.3)
    for tile, stage in sorted(victims.items()):
        os.kill(driver.until(held(tile, stage)).pid, signal.SIGKILL)
    node = driver.until(held("t0020", "model")).node
    killed = drill.again()
    # A reader's death costs its task's tiles. What a model or a writer had under way is done again: a group of tiles,
    # here of one to a few, each.
    bounds = {"read": SLICE, "model": 4, "write": 4}
    assert {stage: killed[stage] for stage in bounds if killed[stage] > bounds[stage]} == {}
    scene.servers.remove_node(node)  # the other has no room for its model, which keeps waiting with what it was given
    code = driver.wait()
    scene.servers.add_node()
    assert code == 0, driver.output
    assert drill.again()["model"] >= 2 and drill.again()["write"] >= 1
    # Lost with the node: what was done there and not yet written, and what its readers had in memory.
    lost = {"read": 3 * SLICE, "model": 6, "write": 4}
    drill.check({stage: bounds[stage] + lost[stage] for stage in bounds})
    assert {row["attempt"] for row in drill.rows().values()} == {1}
