"""Training on a cluster of two nodes: the curve of one worker, whatever dies on the way."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests import tiny, warm
from tests.jobs.held_training import Hold
from tests.jobs.training_runs import (
    SIZES,
    TOLERANCE,
    begin,
    command,
    largest_difference,
    losses,
    settings_of,
    train,
    wait_for_hold,
)

PAIRS = 24
STEPS = 30
"""A worker is lost after the report of the 10th, a node after that of the 20th."""

# Ray Train takes 20 s to its first step, and as long to the first after a failure.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and a second node, each with room for one worker."""
    folder = tempfile.mkdtemp(prefix="sb", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        # Ray writes the address of the latest cluster there, where other programs of this machine look for theirs.
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_health_check_period_ms", "500")  # a head asks 5 times before it gives a node up
        head = {"num_cpus": 1, "include_dashboard": False}
        with warm.executable():
            cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            with warm.executable():
                cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return tiny.write_pairs(tmp_path_factory.mktemp("pairs") / "tiny.zarr", PAIRS)


def start(cluster, pairs, out: Path, hold: Hold, *more: str):
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    return begin(command(pairs, str(out), hold, *more), environment, out.with_suffix(".log"))


def finish(driver, out: Path) -> str:
    """Wait for the driver to end well; returns what was said."""
    code = driver.wait(timeout=500)
    said = out.with_suffix(".log").read_text()
    assert code == 0, said[-5000:]
    return said


def train_workers(cluster) -> dict[int, int]:
    """Processes of the training's workers: parent (the node's raylet) by process."""
    nodes = {node.all_processes["raylet"][0].process.pid for node in [cluster.head_node, *cluster.worker_nodes]}
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            worker = warm.fork_of(int(folder.name))
            if parent in nodes and Path(f"/proc/{worker}/cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                found[worker] = parent
        except OSError:
            continue  # it has ended meanwhile
    return found


def steps_reported(said: str) -> list[int]:
    return [int(step) for step in re.findall(r"\bstep=(\d+) ", said)]


@pytest.fixture(scope="module")
def alone(pairs, tmp_path_factory) -> list[dict[str, float]]:
    """Curve of one worker, without Ray."""
    return train(1, tmp_path_factory.mktemp("alone") / "run", settings_of(pairs, PAIRS, **SIZES | {"steps": STEPS}))


def test_a_killed_worker_and_a_lost_node_leave_the_curve_of_one_worker(cluster, pairs, alone, tmp_path):
    """As many workers as there is room for: two, two again when one was killed, and one when a node is gone."""
    out, hold = tmp_path / "out", Hold(str(tmp_path), (10, 20))
    driver = start(cluster, pairs, out, hold, "--workers", "1,2", "--steps", str(STEPS))
    try:
        held = wait_for_hold(hold, 10, out, driver)
        workers = train_workers(cluster)
        assert len(workers) == len(set(workers.values())) == 2  # one on each node
        assert held in workers
        os.kill(held, signal.SIGKILL)
        wait_for_hold(hold, 20, out, driver)
        others = train_workers(cluster)
        assert len(others) == len(set(others.values())) == 2 and set(others).isdisjoint(workers)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        said = finish(driver, out)
    finally:
        driver.kill()
        driver.wait()
    # Not a step up to the last checkpoint was done again.
    assert steps_reported(said) == [10, 20, STEPS]
    curve = losses(out)
    assert [row["workers"] for row in curve] == sorted((row["workers"] for row in curve), reverse=True)
    assert (curve[0]["workers"], curve[-1]["workers"]) == (2, 1)
    difference = largest_difference(alone, curve)
    print(f"\ntwo workers, one killed after 10 steps, a node lost after 20: curve of one to {difference:.1e}")
    assert difference < TOLERANCE
