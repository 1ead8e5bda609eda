"""Stream: every item comes back exactly once, whatever happens to the workers."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from cluster.connect import start_ray
from cluster.stream import stream

pytestmark = pytest.mark.usefixtures("ray_cluster")


def describe(item: str) -> dict[str, object]:
    return {"item": item, "length": len(item), "process": os.getpid(), "none": None}


def fail_on(bad: str, item: str) -> dict[str, object]:
    if item == bad:
        raise RuntimeError(f"no such tile as {item}")
    return {"item": item}


def die_once(marker: Path, item: str) -> dict[str, object]:
    """Kill the worker's process at item 3, the first time."""
    if item == "t3" and not marker.exists():
        marker.touch()
        os._exit(1)
    return {"item": item}


@pytest.mark.parametrize(("count", "workers"), [(1, 1), (7, 2)])
def test_every_item_comes_back_once(count, workers):
    items = [f"t{k:04d}" * (1 + k % 3) for k in range(count)]
    rows = list(stream(items, lambda: describe, workers=workers))
    assert sorted(str(row["item"]) for row in rows) == sorted(items)
    assert all(row["length"] == len(row["item"]) and row["none"] is None for row in rows)
    assert len({row["process"] for row in rows}) <= workers
    assert os.getpid() not in {row["process"] for row in rows}


def test_no_items_is_no_work():
    def make_worker():
        raise AssertionError("nothing to do")

    assert list(stream([], make_worker, workers=2)) == []


def test_a_workers_exception_stops_the_stream_with_its_message():
    with pytest.raises(Exception, match="RuntimeError: no such tile as t2"):
        list(stream(["t0", "t1", "t2", "t3"], lambda: functools.partial(fail_on, "t2")))


def test_a_worker_that_cannot_start_stops_the_stream_with_its_message():
    def make_worker():
        raise FileNotFoundError("no checkpoint at mosaic-v9")

    with pytest.raises(Exception, match="no checkpoint at mosaic-v9"):
        list(stream(["t0"], make_worker))


def test_items_of_a_dead_worker_are_done_by_another(tmp_path):
    marker = tmp_path / "died"
    items = [f"t{k}" for k in range(6)]
    rows = list(stream(items, lambda: functools.partial(die_once, marker), workers=2))
    assert marker.exists()
    assert sorted(str(row["item"]) for row in rows) == items


def test_a_running_cluster_is_used_and_not_claimed():
    assert start_ray(64) is False
