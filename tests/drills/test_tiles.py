"""Tiles that fail: each becomes a ledger row with its reason, and is done when its cause is gone and somebody asks."""

from __future__ import annotations

import pytest

from surveybridge.cluster.stages import MAX_KILLS
from surveybridge.storage.objectstore import Folder
from tests.drills.drill import Drill
from tests.drills.driver import SLICE

pytestmark = pytest.mark.slow

RAISING = {"t0001": "read", "t0006": "model", "t0012": "write"}
DYING = {"t0003": "model", "t0009": "read", "t0020": "write"}
CORRUPT = "t0015"
BAD = {*RAISING, *DYING, CORRUPT}


def test_tiles_that_raise_or_kill_or_are_corrupt_fail_alone_and_are_done_when_cured(scene):
    drill = Drill(scene, "tiles that raise, kill or are corrupt", workers=1)
    repair = corrupt(scene, CORRUPT)
    drill.guilty.add(CORRUPT)
    driver = drill.start(raising=RAISING, dying=DYING)
    assert driver.wait() == 3, driver.output
    rows = drill.rows()
    assert {tile for tile, row in rows.items() if row["status"] != "ok"} == BAD
    for tile, stage in RAISING.items():
        assert (rows[tile]["status"], rows[tile]["stage"]) == ("failed", stage)
        assert rows[tile]["reason"] == f"RuntimeError: drill: {tile} cannot be done"
    for tile, stage in DYING.items():
        assert (rows[tile]["status"], rows[tile]["stage"]) == ("quarantined", stage)
        assert "3 processes died" in rows[tile]["reason"]
        # A death in a group of tiles has no culprit yet; then it dies alone; then a writer writes that it failed.
        times = sum(begun.tile == tile and begun.stage == stage for begun in drill.begun())
        assert MAX_KILLS <= times <= MAX_KILLS + 2
    assert (rows[CORRUPT]["status"], rows[CORRUPT]["stage"]) == ("failed", "read")
    assert f"tile {CORRUPT}: lsst/flux cannot be read" in rows[CORRUPT]["reason"]
    assert all(f"tile {tile} {rows[tile]['status']}: {rows[tile]['reason']}" in driver.output for tile in BAD)

    begun = len(drill.begun())
    again = drill.start("--executor", "serial", raising=RAISING, dying=DYING)
    assert again.wait() == 3, again.output
    assert len(drill.begun()) == begun  # a rerun does not repeat the crashes
    assert drill.rows() == rows
    assert all(f"tile {tile} {rows[tile]['status']}: {rows[tile]['reason']}" in again.output for tile in BAD)

    # Three deaths in each stage. A reader's costs the tiles of its task, a model's and a writer's what is in its group.
    bounds = {"read": 3 * SLICE, "model": 6, "write": 6}
    drill.check(bounds, without=sorted(BAD))
    repair()
    cured = drill.start("--retry-failed", "--executor", "serial")
    assert cured.wait() == 0, cured.output
    assert {tile: row["attempt"] for tile, row in drill.rows().items() if row["attempt"] != 1} == dict.fromkeys(BAD, 2)
    scene.table.pop()
    drill.check(bounds)


def corrupt(scene, tile):
    """Flip bytes of a chunk in the object store; returns what repairs it."""
    store = Folder.at(scene.store, scene.storage_options)
    path = f"tiles/{tile}/lsst/flux/c/0/0/0"
    good = store.read(path)
    third = len(good) // 3
    store.put(good[:third] + bytes(byte ^ 0xFF for byte in good[third : third + 64]) + good[third + 64 :], path)
    return lambda: store.put(good, path)
