"""Stream: every item comes back exactly once, whatever happens to the workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ray.data._internal.block_batching import util

from surveybridge.cluster.connect import start_ray
from surveybridge.cluster.stages import MAX_KILLS, Stages
from surveybridge.cluster.stream import Stream
from tests.cluster.scripted import Script

pytestmark = pytest.mark.usefixtures("ray_cluster")


def names(count):
    return [f"t{k:04d}" for k in range(count)]


def test_every_item_comes_back_once(tmp_path):
    script = Script(tmp_path)
    rows = list(Stream([*names(80), "t0000"], script.stages()))
    assert sorted(row["tile_id"] for row in rows) == names(80)
    assert all(row["value"] == {"read": row["tile_id"], "model": row["tile_id"]} for row in rows)
    assert script.repeated() == {}
    assert str(os.getpid()) not in {pid for stage, pid in script.journal() if stage.startswith("make_")}


def test_no_items_is_no_work(tmp_path):
    script = Script(tmp_path)
    assert list(Stream([], script.stages())) == []
    assert script.journal() == {}


def test_read_model_and_write_overlap(tmp_path):
    script = Script(tmp_path, seconds={"read": 0.5, "model": 0.5, "write": 0.5})
    # so many that readers are at work still when a model has started, which takes seconds on a busy machine
    rows = list(Stream(names(24), script.stages(), intervals=True))
    spans = {stage: [row["intervals"][stage] for row in rows] for stage in ("read", "model", "write")}
    assert all(span["end"] - span["start"] >= 0.5 for stage in spans.values() for span in stage)
    for one, other in (("read", "model"), ("model", "write")):
        assert sum(a["start"] < b["end"] and b["start"] < a["end"] for a in spans[one] for b in spans[other]) >= 3


def test_an_exception_in_any_stage_is_that_items_failure(tmp_path):
    script = Script(tmp_path, raising={"t0001": "read", "t0002": "model", "t0003": "write"})
    rows = {row["tile_id"]: row for row in Stream(names(6), script.stages())}
    assert {item: row["stage"] for item, row in rows.items() if row["status"] == "failed"} == script.raising
    assert rows["t0002"]["reason"] == "RuntimeError: no model of t0002"
    assert Counter(row["status"] for row in rows.values()) == {"ok": 3, "failed": 3}


def test_a_value_that_cannot_travel_is_that_items_failure(tmp_path):
    stages = Script(tmp_path).stages()
    unpicklable = Stages(lambda: lambda item: threading.Lock(), stages.make_model, stages.make_write)
    (row,) = Stream(["t0"], unpicklable)
    assert (row["status"], row["stage"]) == ("failed", "read")
    assert "cannot pickle" in row["reason"]


@pytest.mark.slow
def test_items_that_kill_their_process_in_any_stage_are_quarantined_and_innocents_are_done(tmp_path):
    script = Script(tmp_path, dying={"t0005": "read", "t0010": "model", "t0015": "write"})
    rows = {row["tile_id"]: row for row in Stream(names(20), script.stages(), workers=(1, 2))}
    assert sorted(rows) == names(20)
    assert {item: row["stage"] for item, row in rows.items() if row["status"] != "ok"} == script.dying
    assert {rows[item]["status"] for item in script.dying} == {"quarantined"}
    journal = script.journal()
    for item, stage in script.dying.items():
        # in a group of several the first death has no culprit yet
        assert MAX_KILLS <= journal[stage, item] <= MAX_KILLS + 1
    print(f"repeated {script.repeated()}")


def test_items_of_a_process_that_died_once_are_done_by_another(tmp_path):
    script = Script(tmp_path, dying_once={"t0003": "model"})
    rows = list(Stream(names(8), script.stages()))
    assert Counter(row["status"] for row in rows) == {"ok": 8}
    assert {item for _, item in script.repeated()} == {"t0003"}


def test_a_model_that_is_killed_from_outside_costs_only_what_it_was_doing(tmp_path):
    script = Script(tmp_path, seconds={"model": 0.5})
    stream = Stream(names(8), script.stages())
    rows = []
    killed: list[dict[str, Any]] = []
    for row in stream:
        rows.append(row)
        if not killed:
            while not (killed := [running for running in stream.in_flight() if running["stage"] == "model"]):
                time.sleep(0.01)
            os.kill(killed[0]["pid"], signal.SIGKILL)
    assert sorted(row["tile_id"] for row in rows) == names(8)
    assert {row["status"] for row in rows} == {"ok"}
    assert set(script.repeated()) <= {("model", running["item"]) for running in killed}
    assert stream.in_flight() == []


def test_a_drained_stream_finishes_what_was_begun_and_begins_nothing_more(tmp_path):
    script = Script(tmp_path, seconds={"model": 0.3})
    drain = threading.Event()
    rows = []
    for row in Stream(names(300), script.stages(), drain=drain):
        rows.append(row)
        drain.set()
    modelled = {item for stage, item in script.journal() if stage == "model"}
    assert {row["tile_id"] for row in rows} == modelled
    assert 1 <= len(rows) <= 10


@pytest.mark.parametrize("end", ["drained", "closed", "interrupted"])
def test_a_stream_that_ends_early_leaves_no_thread_that_uses_ray(end, tmp_path, monkeypatch):
    """Such a thread of Ray Data ends the process with exit code 1 if Ray is shut down meanwhile."""
    ended = threading.Event()

    def late(refs, plain=util._calculate_ref_hits):
        if ended.is_set():  # the thread that fetches blocks is not as fast as the one that takes them
            time.sleep(0.7)
        return plain(refs)

    monkeypatch.setattr(util, "_calculate_ref_hits", late)
    before = set(threading.enumerate())
    drain = threading.Event()
    script = Script(tmp_path, seconds={"model": 0.05})
    receipts = iter(Stream(names(120), script.stages(), drain=drain))
    assert next(receipts)["status"] == "ok"
    ended.set()
    if end == "drained":
        drain.set()
        assert {receipt["status"] for receipt in receipts} <= {"ok"}
    elif end == "closed":
        receipts.close()
    else:
        with pytest.raises(KeyboardInterrupt):  # as Ctrl-C does it while a receipt is counted
            receipts.throw(KeyboardInterrupt)
    # the stream's own thread may wait for another moment, but has nothing to tell any more
    assert {thread.name for thread in set(threading.enumerate()) - before} <= {"drain"}


@pytest.mark.parametrize("stage", ["read", "model", "write"])
def test_a_stage_that_cannot_be_made_stops_the_stream_with_its_own_exception(stage, tmp_path):
    def refuse():
        raise ValueError("no checkpoint at mosaic-v9")

    stages = Stages(**{**vars(Script(tmp_path).stages()), f"make_{stage}": refuse})
    with pytest.raises(ValueError, match=r"^no checkpoint at mosaic-v9$"):
        list(Stream(["t0", "t1"], stages))


def test_a_slow_model_does_not_let_readers_fill_the_memory(tmp_path):
    script = Script(tmp_path, seconds={"model": 0.2}, size=8_000_000)  # 40 values would be 320 MB in a store of 150
    ahead = []
    for row in Stream(names(40), script.stages()):
        journal = script.journal()
        ahead.append(sum(stage == "read" for stage, _ in journal) - sum(stage == "model" for stage, _ in journal))
        assert row["status"] == "ok"
    print(f"read ahead of the model: at most {max(ahead)} items")
    assert max(ahead) * script.size < 150_000_000


@pytest.mark.slow
def test_small_items_flow_at_hundreds_a_second_through_a_driver_that_does_not_grow(tmp_path):
    def memory():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    stages = Stages(lambda: str, lambda: lambda item, value: value, lambda: lambda outcome: {"tile_id": outcome.item})
    start, before, count = 0.0, 0, 0
    for count, _ in enumerate(Stream(names(4000), stages), 1):
        if count == 1000:  # from here on groups are full
            start, before = time.monotonic(), memory()
    rate, growth = 3000 / (time.monotonic() - start), memory() - before
    print(f"{rate:.0f} items/s, driver grew by {growth / 1e6:.0f} MB")
    assert count == 4000
    assert growth < 20e6
    assert rate > 100


def test_a_running_cluster_is_used_and_not_claimed():
    assert start_ray(64) is False
