"""Stream: every item comes back exactly once, whatever happens to the workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.data._internal.block_batching import util

from surveybridge.cluster import stream
from surveybridge.cluster.connect import start_ray
from surveybridge.cluster.stages import MAX_KILLS, Stages
from surveybridge.cluster.stream import Stream
from tests.cluster.scripted import Script

pytestmark = pytest.mark.usefixtures("ray_cluster")


def names(count):
    return [f"t{k:04d}" for k in range(count)]


def test_every_item_comes_back_once_and_a_failure_in_any_stage_is_of_its_item_alone(tmp_path):
    """Of 80 items three raise, one in each stage, and what is read of a fourth cannot travel to the model."""
    raising = {"t0001": "read", "t0012": "model", "t0033": "write"}
    script = Script(tmp_path, raising=raising)
    stages = script.stages()
    some_locked = Stages(partial(reader_of_a_lock, stages.make_read, "t0050"), stages.make_model, stages.make_write)
    rows = list(Stream([*names(80), "t0000"], some_locked))
    assert sorted(row["tile_id"] for row in rows) == names(80)
    assert script.repeated() == {}
    assert str(os.getpid()) not in {pid for stage, pid in script.journal() if stage.startswith("make_")}
    failed = {row["tile_id"]: row for row in rows if row["status"] != "ok"}
    assert {item: (row["status"], row["stage"]) for item, row in failed.items()} == {
        item: ("failed", stage) for item, stage in (raising | {"t0050": "read"}).items()
    }
    assert failed["t0012"]["reason"] == "RuntimeError: no model of t0012"
    assert "cannot pickle" in failed["t0050"]["reason"]
    good = [row for row in rows if row["status"] == "ok"]
    assert all(row["value"] == {"read": row["tile_id"], "model": row["tile_id"]} for row in good)


def reader_of_a_lock(make_read, locked):
    """Return a reader that reads a lock in place of one item."""
    read = make_read()
    return lambda item: threading.Lock() if item == locked else read(item)


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


def test_a_model_that_dies_by_an_item_or_from_outside_costs_only_what_it_was_doing(tmp_path):
    """The first is killed while it works, its successor dies of an item, once; a third does what is left."""
    script = Script(tmp_path, seconds={"model": 0.5}, dying_once={"t0006": "model"})
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
    repeated, under_way = set(script.repeated()), {("model", running["item"]) for running in killed}
    assert ("model", "t0006") in repeated and repeated <= under_way | {("model", "t0006")}
    assert stream.in_flight() == []


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
    script = Script(tmp_path, seconds={"model": 0.3 if end == "drained" else 0.05})
    receipts = iter(Stream(names(120), script.stages(), drain=drain))
    first = next(receipts)
    assert first["status"] == "ok"
    ended.set()
    if end == "drained":
        drain.set()
        rows = [first, *receipts]
        assert {row["status"] for row in rows} == {"ok"}
        # what was begun is finished, and nothing more is begun
        modelled = {item for stage, item in script.journal() if stage == "model"}
        assert {row["tile_id"] for row in rows} == modelled
        assert 1 <= len(rows) <= 10
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
def test_small_items_cost_a_driver_that_does_not_grow_as_much_as_a_few_tasks_of_ray(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "READ_TASKS", 128)  # groups as large as of twice as many items

    def memory():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    stages = Stages(lambda: str, lambda: lambda item, value: value, lambda: lambda outcome: {"tile_id": outcome.item})
    start, used, before, count = 0.0, 0.0, 0, 0
    for count, _ in enumerate(Stream(names(1250), stages), 1):
        if count == 500:  # from here on groups are full
            start, used, before = time.monotonic(), time.process_time(), memory()
    rate, growth = 750 / (time.monotonic() - start), memory() - before
    cost = (time.process_time() - used) / 750  # the rate by the clock is a busy machine's, too
    task = cost_of_a_task(300)  # and so are seconds of a core, where another program takes its other half
    print(
        f"{rate:.0f} items/s at {1000 * cost:.1f} ms of the driver, {cost / task:.1f} tasks; {growth / 1e6:.0f} MB more"
    )
    assert count == 1250
    assert growth < 5e6
    assert cost < 8 * task


def test_nobody_is_told_to_set_the_memory_of_an_operator(caplog):
    """Ray Data would have a margin of its own above what a stage has used, in a call that only this package makes."""
    stages = Stages(lambda: str, lambda: partial(hold, b"x" * 50_000_000), lambda: lambda outcome: {"tile_id": "t"})
    assert len(list(Stream(names(2), stages, memory={"model": 100_000_000}))) == 2
    assert "memory" not in caplog.text


def hold(held, item, value):
    """Return the value; a model that holds memory."""
    assert held
    return value


def cost_of_a_task(count):
    """Seconds of this process that a task of Ray costs, which does nothing and whose result is waited for."""
    nothing = ray.remote(lambda: None)
    ray.get(nothing.remote())
    used = time.process_time()
    for _ in range(count):
        ray.get(nothing.remote())
    return (time.process_time() - used) / count


def test_a_running_cluster_is_used_and_not_claimed():
    assert start_ray(64) is False
