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

from tests import tiny
from tests.jobs.training_runs import (
    SIZES,
    STEPS,
    TOLERANCE,
    begin,
    command,
    largest_difference,
    losses,
    settings_of,
    train,
    wait_for_checkpoint,
)

PAIRS = 24

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
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return tiny.write_pairs(tmp_path_factory.mktemp("pairs") / "tiny.zarr", PAIRS)


def start(cluster, pairs, out: Path, *more: str):
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    return begin(command(pairs, str(out), *more), environment, out.with_suffix(".log"))


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
    for folder in Path("/proc").iterdir():
        try:
            title = (folder / "cmdline").read_bytes()
            if title.startswith(b"ray::RayTrainWorker"):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in nodes:
                    found[int(folder.name)] = parent
        except OSError:
            continue  # it has ended meanwhile
    return found


def steps_reported(said: str) -> list[int]:
    return [int(step) for step in re.findall(r"\bstep=(\d+) ", said)]


@pytest.fixture(scope="module")
def alone(pairs, tmp_path_factory) -> list[dict[str, float]]:
    """Curve of one worker, without Ray."""
    return train(1, tmp_path_factory.mktemp("alone") / "run", settings_of(pairs, PAIRS, **SIZES))


def test_two_nodes_with_a_killed_worker_have_the_curve_of_one(cluster, pairs, alone, tmp_path):
    out = tmp_path / "out"
    driver = start(cluster, pairs, out, "--workers", "2")
    try:
        committed = wait_for_checkpoint(out, driver, 10)
        workers = train_workers(cluster)
        assert len(workers) == len(set(workers.values())) == 2  # one on each node
        os.kill(min(workers), signal.SIGKILL)
        said = finish(driver, out)
    finally:
        driver.kill()
        driver.wait()
    assert committed < STEPS
    assert set(train_workers(cluster)).isdisjoint(workers)
    # Not a step up to the last checkpoint was done again.
    reported = steps_reported(said)
    assert [step for step in reported if step <= committed] == list(range(10, committed + 1, 10))
    assert reported[-1] == STEPS
    curve = losses(out)
    assert {row["workers"] for row in curve} == {2}
    difference = largest_difference(alone, curve)
    print(f"\ntwo nodes, one worker killed after step {committed}: curve of one worker to {difference:.1e}")
    assert difference < TOLERANCE


def test_an_elastic_training_goes_on_with_the_node_that_is_left(cluster, pairs, alone, tmp_path):
    out = tmp_path / "out"
    driver = start(cluster, pairs, out, "--workers", "1,2")
    try:
        wait_for_checkpoint(out, driver, 10)
        second = next(iter(cluster.worker_nodes))
        cluster.remove_node(second, allow_graceful=False)
        finish(driver, out)
    finally:
        driver.kill()
        driver.wait()
        if len(cluster.worker_nodes) == 0:
            cluster.add_node(num_cpus=1)
    curve = losses(out)
    assert [row["workers"] for row in curve] == sorted((row["workers"] for row in curve), reverse=True)
    assert (curve[0]["workers"], curve[-1]["workers"]) == (2, 1)
    difference = largest_difference(alone, curve)
    print(f"\nfrom two workers to one: curve of one worker to {difference:.1e}")
    assert difference < TOLERANCE
