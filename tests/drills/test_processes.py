"""Workers and nodes that die: nothing is lost, nothing is there twice, and little is done again."""

from __future__ import annotations

import os
import signal

import pytest

from tests.drills.drill import Drill, held
from tests.drills.driver import SLICE

pytestmark = pytest.mark.slow


def test_killed_workers_change_nothing(scene):
    drill = Drill(scene, "a reader, a model and a writer killed")
    victims = {"t0002": "read", "t0011": "model", "t0017": "write"}
    driver = drill.start(holding=victims, seconds=0.1)
    for tile, stage in sorted(victims.items()):
        os.kill(driver.until(held(tile, stage)).pid, signal.SIGKILL)
    assert driver.wait() == 0, driver.output
    assert drill.again()["model"] >= 1 and drill.again()["write"] >= 1
    # A reader's death costs its task's tiles. What a model or a writer had under way is done again: a group of tiles,
    # here of one to a few, each.
    drill.check({"read": SLICE, "model": 4, "write": 4})
    assert {row["attempt"] for row in drill.rows().values()} == {1}


def test_a_node_that_is_gone_changes_nothing(scene):
    drill = Drill(scene, "a node removed")
    driver = drill.start(holding={"t0009": "model"}, seconds=0.3)
    node = driver.until(held("t0009", "model")).node
    scene.servers.remove_node(node)
    code = driver.wait()
    scene.servers.add_node()
    assert code == 0, driver.output
    # Lost with the node: what was done there and not yet written, and what its readers had in memory.
    drill.check({"read": 3 * SLICE, "model": 6, "write": 4})
