"""Status: what storage says of a run, whoever runs it and whether anybody does."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from surveybridge.__main__ import main
from surveybridge.jobs.reporting.state import reason_pattern, run_status, text
from surveybridge.storage.lease import Lease, read_holder
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.parquet import parquet_bytes
from surveybridge.storage.published import publish
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import LEDGER, MANIFEST, conform, table_from_rows
from surveybridge.storage.tiles import TileStore
from tests.storage.test_runs import RUN


def make_run(path, store: str, run_id: str = "r1") -> RunFolder:
    document = {"run_id": run_id, "model": "mosaic-v1", "code_version": "0.2", "store": store}
    return RunFolder.open_or_create(path, RUN | document)


def make_store(path, tiles: int) -> str:
    """A store that lists tiles t0, t1, ... and holds none."""
    store = TileStore.create(path)
    names = [f"t{i}" for i in range(tiles)]
    table = conform(pa.table({"tile_id": names, "content": [f"c{i}" for i in range(tiles)]}), MANIFEST, "tiles")
    store.folder.put(parquet_bytes(table), "manifest.parquet")
    return store.url


def row(number: int, status: str = "ok", *, minutes_ago: float = 0.0, model: float = 10.0, **more):
    return {
        "tile_id": f"t{number}",
        "content": f"c{number}",
        "status": status,
        "attempt": 1,
        "n_candidates": 3 if status == "ok" else None,
        "seconds_read": 1.0,
        "seconds_model": model,
        "seconds_score": 2.0,
        "seconds_write": 0.5,
        "host": "node7",
        "finished_at": datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=minutes_ago),
        **more,
    }


def fill(run: RunFolder, rows: list) -> None:
    """Put ledger rows as one segment: without mosaics, which status does not look at."""
    table = table_from_rows(rows, LEDGER, "ledger")
    run.folder.put(parquet_bytes(table), f"ledger/segments/0-{len(rows)}-{rows[0]['tile_id']}.parquet")


@contextlib.contextmanager
def held(run: RunFolder, **progress) -> Iterator[None]:
    """A driver at work that has published its progress."""
    with Lease.acquire(run.folder, ttl=8.0) as lease:
        lease.publish(progress)
        while not (holder := read_holder(run.folder)) or not holder.progress:
            time.sleep(0.05)
        yield


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs" / "r1", make_store(tmp_path / "tiles", 20))


def test_a_finished_run_and_what_ran(run):
    fill(run, [row(i, minutes_ago=20 - i) for i in range(20)])
    status = run_status(run)
    assert status["state"] == "finished"
    assert status["tiles"] == {"manifest": 20, "ok": 20, "failed": 0, "quarantined": 0, "left": 0}
    assert (status["run_id"], status["model"], status["direction"], status["code_version"]) == (
        "r1", "mosaic-v1", "lsst->euclid", "0.2",
    )  # fmt: skip
    assert status["candidates"] == 60
    assert status["holder"] is None and status["eta_seconds"] is None
    assert status["tiles_per_minute"]["overall"] == pytest.approx(1.0, rel=0.01)
    assert status["seconds"]["model"] == {"median": 10.0, "p95": 10.0}


def test_only_tiles_that_the_store_lists_with_this_content_count(run):
    gone, changed = row(0, tile_id="gone"), row(1, content="older")
    fill(run, [gone, changed, *(row(i) for i in range(2, 20))])
    status = run_status(run)
    assert status["tiles"] == {"manifest": 20, "ok": 18, "failed": 0, "quarantined": 0, "left": 2}
    assert status["state"] == "interrupted"


def test_a_run_with_a_live_driver_is_running_and_says_who_since_when_and_how_long_it_takes(run):
    fill(run, [row(i, minutes_ago=5 - i / 2) for i in range(10)])
    with held(run, todo=14, done={"ok": 4}, in_flight=[]):
        status = run_status(run)
    assert status["state"] == "running"
    assert set(status["holder"]) == {"host", "pid", "note", "since", "until"}
    assert abs(datetime.datetime.fromisoformat(status["holder"]["since"]) - datetime.datetime.now(datetime.UTC)) < (
        datetime.timedelta(seconds=30)
    )
    assert status["tiles_per_minute"]["overall"] == pytest.approx(2.0, rel=0.05)
    # by the driver's own count: 10 of its tiles are left
    assert status["eta_seconds"] == pytest.approx(10 / 2.0 * 60, rel=0.2)
    assert run_status(run)["state"] == "interrupted"


def test_tiles_out_of_the_domain_are_counted_with_the_reason(run):
    reason = "lsst bands are HSC-R as r"
    fill(run, [row(i, domain=f"out: {reason}" if i < 3 else "in") for i in range(20)])
    status = run_status(run)
    assert status["domains"] == {"in": 17, f"out: {reason}": 3}
    assert f"domain    3 of 20 tiles out (3: {reason})\n" in text(status)


def test_pauses_between_drivers_do_not_count_as_work(run):
    fill(run, [row(i, minutes_ago=1000 - i) for i in range(10)] + [row(i, minutes_ago=20 - i) for i in range(10, 20)])
    assert run_status(run)["tiles_per_minute"]["overall"] == pytest.approx(18 / 18, rel=0.02)


@pytest.mark.parametrize(
    ("ages", "recent", "overall"),
    [
        ([0.2], None, None),  # one tile
        ([0.2, 0.15, 0.1], None, None),  # three
        ([0.02 - k / 1000 for k in range(12)], None, None),  # twelve within a second: a burst
        ([3.0 - k / 2 for k in range(7)], 2.0, 2.0),
        ([35.0, 30.0, 25.0, 1.0], None, 3 / 34),  # few, but all of half an hour
    ],
)
def test_no_rate_is_said_before_it_means_something(run, capsys, ages, recent, overall):
    fill(run, [row(i, minutes_ago=age) for i, age in enumerate(ages)])
    rate = run_status(run)["tiles_per_minute"]
    assert rate["overall"] == (overall and pytest.approx(overall, rel=0.02))
    if recent:
        assert rate["recent"] == pytest.approx(recent, rel=0.2)
    assert main(["status", "--run", run.url]) == 0
    assert ("rate      not known before 5 tiles in 10 s" in capsys.readouterr().out) == (overall is None)


def test_a_driver_that_has_just_begun_says_no_time_left(run):
    fill(run, [row(0, minutes_ago=0.01)])
    with held(run, todo=19, done={"ok": 1}, in_flight=[]):
        status = run_status(run)
    assert status["eta_seconds"] is None and status["tiles_per_minute"] == {"recent": None, "overall": None}


def test_failures_are_grouped_by_stage_and_reason(run):
    damaged = [
        row(
            i,
            "failed",
            stage="read",
            traceback_hash="aaa",
            reason=f"StorageError: tile t{i}: lsst/flux cannot be read at byte {i * 7919}",
        )
        for i in range(5)
    ]
    killed = [row(i, "quarantined", stage="model", traceback_hash="kkk", reason="ProcessDied: 3") for i in (5, 6)]
    other = [row(7, "failed", stage="read", traceback_hash="bbb", reason="OSError: 403 forbidden")]
    fill(run, [*damaged, *killed, *other, *(row(i) for i in range(8, 20))])
    groups = run_status(run)["failures"]
    assert [(g["count"], g["status"], g["stage"], g["traceback_hash"], g["tile"]) for g in groups] == [
        (5, "failed", "read", "aaa", "t0"),
        (2, "quarantined", "model", "kkk", "t5"),
        (1, "failed", "read", "bbb", "t7"),
    ]
    assert groups[0]["pattern"] == "StorageError: tile <tile>: lsst/flux cannot be read at byte #"
    assert groups[0]["reason"].startswith("StorageError: tile t0: ")


@pytest.mark.parametrize(
    ("reason", "pattern"),
    [
        ("OSError: tile t0012: object at 0x7f3a8c is 12.5 s old", "OSError: tile <tile>: object at # is # s old"),
        ("E: chunk 9f86d081884c7d65 has checksum deadbeef01", "E: chunk # has checksum #"),
        ("E: a decade of feedface", "E: a decade of feedface"),  # words are words
    ],
)
def test_a_reason_without_what_differs_from_tile_to_tile(reason, pattern):
    assert reason_pattern(reason, "t0012") == pattern


def test_stragglers_in_flight_and_the_slowest_finished(run):
    fill(run, [row(i, model=100.0 if i == 4 else 10.0) for i in range(10)])
    in_flight = [
        {"item": "t11", "stage": "model", "seconds": 80.0, "node": "node3", "pid": 12},
        {"item": "t12", "stage": "model", "seconds": 20.0, "node": "node3", "pid": 12},  # 12 s of network and score
        {"item": "t13", "stage": "read", "seconds": 9.0, "node": "node4", "pid": 13},
        {"item": "t14", "stage": "read", "seconds": 2.0, "node": "node4", "pid": 13},
    ]
    with held(run, todo=20, done={}, in_flight=in_flight):
        status = run_status(run)
    assert status["in_flight"] == 4
    assert [(item["item"], item["median"]) for item in status["stragglers"]["in_flight"]] == [("t11", 12), ("t13", 1)]
    slowest = status["stragglers"]["finished"]
    assert len(slowest) == 5 and slowest[0] == {"tile": "t4", "seconds": 103.5, "stage": "model", "host": "node7"}


def test_a_store_that_is_gone_costs_only_what_is_left(run, tmp_path):
    fill(run, [row(i) for i in range(5)])
    (tmp_path / "tiles" / "manifest.parquet").unlink()
    status = run_status(run)
    assert status["state"] == "ended"
    assert status["tiles"] == {"manifest": None, "ok": 5, "failed": 0, "quarantined": 0, "left": None}
    assert "manifest" in status["store_trouble"]


def test_a_run_that_has_just_begun(run, capsys):
    status = run_status(run)
    assert status["state"] == "interrupted" and status["tiles"]["left"] == 20
    assert status["seconds"]["read"] == {"median": None, "p95": None}
    assert main(["status", "--run", run.url]) == 0
    assert "published nothing" in capsys.readouterr().out


def test_the_command_prints_lines_or_json_and_failed_tiles_are_no_failure_of_it(run, tmp_path, capsys):
    rows = [row(0, "failed", stage="read", traceback_hash="aaa", reason="E: tile t0"), *(row(i) for i in range(1, 20))]
    fill(run, rows)
    publish(Folder.at(tmp_path / "runs"), run, TileStore.open(tmp_path / "tiles").manifest(), run.ledger())
    assert main(["status", "--run", run.url]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"runs/r1: finished\n", printed)
    assert "tiles     19 of 20 ok, 1 failed, 0 quarantined, 0 left; 57 sources scored" in printed
    assert "failed    1 in read: E: tile <tile> [aaa; for one, tile t0: E: tile t0]" in printed
    assert re.search(r"published published/000001.json at .*: 19 tiles ok", printed)
    assert main(["status", "--run", run.url, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(json.dumps(run_status(run)))
    assert document["published"]["tiles"]["ok"] == 19


def test_what_is_no_run_folder_is_refused(tmp_path, capsys):
    assert main(["status", "--run", str(tmp_path / "nothing")]) == 2
    assert "is not a run folder: found nothing" in capsys.readouterr().err


def test_a_hundred_thousand_tiles_take_a_few_times_as_long_as_reading_their_rows(tmp_path):
    """Which is less than a second; side by side, in seconds of a core, because other lanes have the cores, too."""
    tiles, failed = 100_000, 30_000
    run = make_run(tmp_path / "runs" / "r1", make_store(tmp_path / "tiles", tiles + 100))
    rng = np.random.default_rng(0)
    names = [f"t{i}" for i in range(tiles)]
    status = np.where(np.arange(tiles) < failed, "failed", "ok")
    table = conform(
        pa.table(
            {
                "tile_id": names,
                "content": [f"c{i}" for i in range(tiles)],
                "status": status,
                "stage": [s if s == "failed" else None for s in status],
                "reason": [f"OSError: {name} at {7 * i}" if i < failed else None for i, name in enumerate(names)],
                "attempt": np.ones(tiles, np.int32),
                "host": ["node7"] * tiles,
                "finished_at": pa.array(np.sort(rng.integers(0, 10**11, tiles)), pa.timestamp("us", tz="UTC")),
                **{f"seconds_{stage}": rng.lognormal(size=tiles) for stage in ("read", "model", "score", "write")},
            }
        ),
        LEDGER,
        "rows",
    )
    for start in range(0, tiles, 1000):
        data = parquet_bytes(table.slice(start, 1000))
        run.folder.put(data, f"ledger/segments/0-1000-{start:06d}.parquet")
    began = time.process_time()
    rows = sum(len(pq.read_table(path).to_pylist()) for path in (tmp_path / "runs" / "r1").glob("ledger/segments/*"))
    read = time.process_time() - began
    began = time.process_time()
    found = run_status(run)
    took = time.process_time() - began
    print(f"rows of {rows} tiles are read in {read:.1f} s, their status in {took:.1f} s of a core")
    assert took < 4 * read
    assert found["tiles"] == {"manifest": tiles + 100, "ok": tiles - failed, "failed": failed, "quarantined": 0} | {
        "left": 100
    }
    assert [group["count"] for group in found["failures"]] == [failed]
