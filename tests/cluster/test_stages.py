"""Guards and attempts, without Ray: what a failure becomes, and who is charged when a process dies."""

from __future__ import annotations

import errno
import threading

import pytest

from surveybridge.cluster.attempts import Attempts, Worker
from surveybridge.cluster.stages import (
    MAX_KILLS,
    Outcome,
    Stages,
    model_outcome,
    quarantine,
    read_outcome,
    serially,
    write_outcome,
)
from tests.cluster.scripted import Script

HERE = Worker("node", 1)


def test_serially_does_every_item_and_commits_failures(tmp_path):
    script = Script(tmp_path, raising={"t1": "read", "t2": "model", "t3": "write"})
    rows = list(serially([f"t{k}" for k in range(5)], script.stages()))
    assert [(row["tile_id"], row["status"], row.get("stage")) for row in rows] == [
        ("t0", "ok", None),
        ("t1", "failed", "read"),
        ("t2", "failed", "model"),
        ("t3", "failed", "write"),
        ("t4", "ok", None),
    ]
    assert rows[0]["value"] == {"read": "t0", "model": "t0"}
    assert rows[1]["reason"] == "RuntimeError: no read of t1"
    assert script.repeated() == {}


def test_a_drained_run_begins_nothing_more(tmp_path):
    drain = threading.Event()
    receipts = serially(["t0", "t1", "t2"], Script(tmp_path).stages(), drain=drain)
    assert next(receipts)["tile_id"] == "t0"
    drain.set()
    assert list(receipts) == []


@pytest.mark.parametrize("stage", ["read", "model", "write"])
def test_a_stage_that_cannot_be_made_stops_with_its_own_exception(stage, tmp_path):
    def refuse():
        raise ValueError("no checkpoint at mosaic-v9")

    stages = Script(tmp_path).stages()
    with pytest.raises(ValueError, match="no checkpoint at mosaic-v9"):
        list(serially(["t0"], Stages(**{**vars(stages), f"make_{stage}": refuse})))


def test_equal_causes_have_equal_hashes_and_reasons_are_one_line():
    def read(item):
        raise ValueError(f"bad\n  {item}")

    stages = Stages(lambda: read, lambda: lambda item, value: value, lambda: vars)
    first, second = (outcome["failure"] for outcome in serially(["t0", "t1"], stages))
    assert (first.reason, second.reason) == ("ValueError: bad t0", "ValueError: bad t1")
    assert first.traceback_hash == second.traceback_hash
    assert len(first.traceback_hash) == 12


def test_an_outcome_tells_when_and_how_long_each_stage_worked():
    stages = Stages(lambda: str, lambda: lambda item, value: value, lambda: vars)
    (outcome,) = serially(["t0"], stages)
    assert set(outcome["seconds"]) == set(outcome["intervals"]) == {"read", "model"}
    for stage, interval in outcome["intervals"].items():
        assert interval.end - interval.start == pytest.approx(outcome["seconds"][stage], abs=1e-5)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/data/run/mosaics/t0.parquet"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        ValueError("IO Error: Could not write file: No space left on device"),  # as DuckDB says it
    ],
)
@pytest.mark.parametrize("stage", ["read", "model", "write"])
def test_a_full_disk_is_no_failure_of_the_item(error, stage):
    written = []

    def work(*arguments):
        raise error from None

    def write(outcome):
        written.append(outcome)
        raise error

    outcome = model_outcome(work, read_outcome(work if stage == "read" else str, "t0"))
    if stage == "write":
        outcome = Outcome("t0", 1, None, {})
    receipt = write_outcome(write, outcome)
    assert (receipt["status"], receipt["full"]) == ("lost", True)
    assert str(error) in receipt["reason"]
    assert len(written) == (stage == "write")  # the writer is not asked to blame the item


def test_what_cannot_even_be_written_as_a_failure_is_lost_and_says_so():
    calls = []

    def write(outcome):
        calls.append(outcome)
        raise OSError("disk full")

    assert write_outcome(write, Outcome("t0", 1, None, {})) == {
        "tile_id": "t0",
        "status": "lost",
        "reason": "OSError: disk full",
    }
    assert [outcome.failure and outcome.failure.stage for outcome in calls] == [None, "write"]


def test_an_earlier_failure_is_kept_when_writing_it_fails_once():
    calls = []

    def write(outcome):
        calls.append(outcome)
        if len(calls) == 1:
            raise OSError("busy")
        return {"stage": outcome.failure.stage}

    assert write_outcome(write, Outcome("t0", None, quarantine("model"), {})) == {"stage": "model"}


def test_an_item_alone_is_charged_with_each_death_of_its_process():
    attempts = Attempts()
    kills = [attempts.begin("model", ["t0"], HERE).kills[0] for _ in range(MAX_KILLS + 1)]
    assert kills == [0, 1, 2, 3]


def test_of_a_group_only_the_culprit_is_charged():
    attempts = Attempts()
    group = ["t0", "t1", "t2"]
    assert not attempts.begin("read", group, HERE).one_by_one
    for _ in range(MAX_KILLS):
        assert attempts.begin("read", group, HERE).one_by_one
        attempts.begin("read", ["t0"], HERE)
        attempts.done("read", ["t0"], 1.0, 0)
        attempts.begin("read", ["t1"], HERE)  # here the process dies
    assert attempts.begin("read", group, HERE).kills == (0, 3, 0)


def test_what_was_done_may_be_done_again_without_a_charge():
    attempts = Attempts()
    for _ in range(5):
        assert attempts.begin("read", ["t0", "t1"], HERE).kills == (0, 0)
        attempts.done("read", ["t0", "t1"], 1.0, 0)


def test_cheap_items_travel_together_and_dear_ones_alone():
    attempts = Attempts()
    assert attempts.group_size("a", 64) == 1  # nothing is known yet
    for stage in ("read", "model", "write"):
        attempts.done(stage, ["t0"], 0.05, 0)
    assert attempts.group_size("b", 64) == 20
    assert attempts.group_size("c", 5) == 5
    assert attempts.group_size("a", 64) == 1  # the same question has the same answer
    for _ in range(100):
        attempts.done("model", ["t0"], 30.0, 0)
    assert attempts.group_size("d", 64) == 1
    for _ in range(100):
        attempts.done("model", ["t0"], 0.0, 0)
        attempts.done("read", ["t0"], 0.0, 4 << 20)
    assert 3 <= attempts.group_size("e", 64) <= 4


def test_in_flight_is_what_was_begun_and_is_not_done():
    attempts = Attempts()
    attempts.begin("read", ["t0", "t1"], HERE)
    attempts.begin("write", ["t9"], HERE)
    attempts.done("read", ["t0", "t1"], 1.0, 0)
    (running,) = attempts.in_flight()
    assert running.pop("seconds") >= 0
    assert running == {"item": "t9", "stage": "write", "node": "node", "pid": 1}


def test_a_drained_driver_waits_for_what_a_model_has_begun():
    attempts = Attempts()
    attempts.begin("model", ["t0", "t1"], HERE)
    assert not attempts.received([])
    attempts.drain()
    attempts.begin("model", ["t1"], HERE)  # its process died, and it is not begun again
    assert not attempts.received([])
    assert attempts.received(["t0"])


def test_draining_stops_reading_but_not_writing():
    attempts = Attempts()
    attempts.drain()
    assert attempts.begin("read", ["t0"], HERE).draining
    assert attempts.begin("write", ["t1"], HERE).draining
    assert [running["item"] for running in attempts.in_flight()] == ["t1"]
