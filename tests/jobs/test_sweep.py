"""Sweep: run at any time and as often as one likes, it does what is new, once, and publishes it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surveybridge.__main__ import main
from surveybridge.storage.lease import Lease
from surveybridge.storage.manifests import content_digest
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.published import published, published_tiles
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import Tile, TileStore
from tests import tiny, warm
from tests.conftest import ROOT
from tests.jobs.test_translate import QUICK
from tests.storage.faults import moto_server

pytestmark = pytest.mark.long  # 10 s in all


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def store(tmp_path):
    return tiny.write_store(tmp_path / "tiles")


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def words(store, runs, checkpoint, *more, executor="serial") -> list[str]:
    what = ["--store", str(store), "--runs", str(runs), "--checkpoint", checkpoint, "--executor", executor]
    return ["sweep", *what, *QUICK, *more]


def sweep(*arguments, **more) -> int:
    return main(words(*arguments, **more))


def command(*arguments) -> list[str]:
    return [warm.python(), "-m", "surveybridge", *words(*arguments)]


def the_run(runs: Path) -> RunFolder:
    folders = [path for path in runs.iterdir() if (path / "run.json").is_file()]
    assert len(folders) == 1
    return RunFolder.open(folders[0])


def rows(runs: Path) -> dict[str, dict[str, Any]]:
    return {row["tile_id"]: row for row in the_run(runs).ledger().to_pylist()}


def finished(runs: Path) -> dict[str, Any]:
    return {tile: row["finished_at"] for tile, row in rows(runs).items()}


def latest(runs: Path) -> dict[str, Any]:
    snapshot = published(Folder.at(runs))
    assert snapshot is not None
    return snapshot


def rewrite(store: str, edits: dict[str, Callable[[Tile], Tile]]) -> None:
    """Ingest some tiles anew."""
    tiles = TileStore.open(store)
    listed = {row["tile_id"]: row for row in tiles.manifest().to_pylist()}
    for tile_id, edit in edits.items():
        listed[tile_id] = tiles.write_tile(edit(tiles.read_tile(tile_id)))
    tiles.write_manifest(list(listed.values()))


def list_only(store: str, *tile_ids: str) -> Callable[[], None]:
    """Take all other tiles off the manifest; returns what lists them again."""
    tiles = TileStore.open(store)
    listed = tiles.manifest().to_pylist()
    tiles.write_manifest([row for row in listed if row["tile_id"] in tile_ids])
    return lambda: tiles.write_manifest(listed)


def brighter(tile: Tile) -> Tile:
    return tiny.with_images(tile, lsst=replace(tile.images["lsst"], flux=tile.images["lsst"].flux * 2))


def test_the_second_time_there_is_nothing_to_do_and_no_ray(store, runs, checkpoint, capsys, monkeypatch):
    assert sweep(store, runs, checkpoint) == 0
    assert "4 of 4 tiles ok" in (printed := capsys.readouterr().out)
    assert re.search(r"published .*runs/published/000001\.json: 4 tiles ok, 0 failed, 0 left of 4", printed)
    snapshot, before = latest(runs), tiny.files_of(runs)
    assert snapshot["run"] == the_run(runs).run_json["run_id"] == Path(the_run(runs).url).name
    assert snapshot["tiles"] == {"manifest": 4, "ok": 4, "failed": 0, "quarantined": 0, "left": 0}
    assert snapshot["manifest_sha256"] == content_digest(TileStore.open(store).manifest())
    assert snapshot["candidates"] == len(tiny.BLOBS)

    def no_ray(*arguments):
        raise AssertionError("Ray was started")

    monkeypatch.setattr("surveybridge.cluster.connect.start_ray", no_ray)
    assert sweep(store, runs, checkpoint, executor="ray") == 0
    printed = capsys.readouterr().out
    assert "nothing new" in printed and "published before: " in printed
    assert results(tiny.files_of(runs)) == results(before)


def results(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if "lease" not in name}


def test_a_changed_tile_is_done_again_alone(store, runs, checkpoint, capsys):
    assert sweep(store, runs, checkpoint) == 0
    before, mosaic = finished(runs), the_run(runs).read_tile_mosaic("t0001").mean
    rewrite(store, {"t0001": brighter})
    capsys.readouterr()
    assert sweep(store, runs, checkpoint) == 0
    assert "this run: 1 tiles" in capsys.readouterr().out
    assert {tile for tile, when in finished(runs).items() if when != before[tile]} == {"t0001"}
    assert rows(runs)["t0001"]["attempt"] == 2
    assert np.nanmax(abs(the_run(runs).read_tile_mosaic("t0001").mean - mosaic)) > 0.1
    assert latest(runs)["sequence"] == 2 and latest(runs)["tiles"]["ok"] == 4
    assert sweep(store, runs, checkpoint) == 0
    assert latest(runs)["sequence"] == 2


def test_a_new_tile_is_done_alone_and_one_that_vanished_is_not_published(store, runs, checkpoint, capsys):
    list_all = list_only(store, "t0000", "t0001")
    assert sweep(store, runs, checkpoint) == 0
    first, before = latest(runs), finished(runs)
    assert set(before) == {"t0000", "t0001"}
    list_all()
    list_only(store, "t0001", "t0002")
    capsys.readouterr()
    assert sweep(store, runs, checkpoint) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 tiles ok" in printed and "this run: 1 tiles" in printed
    assert finished(runs)["t0001"] == before["t0001"]
    second, root = latest(runs), Folder.at(runs)
    assert second["tiles"] == {"manifest": 2, "ok": 2, "failed": 0, "quarantined": 0, "left": 0}
    assert published_tiles(root, second)["tile_id"].to_pylist() == ["t0001", "t0002"]
    assert published_tiles(root, first)["tile_id"].to_pylist() == ["t0000", "t0001"]
    # a tile that vanishes changes what is published, with nothing to translate
    list_only(store, "t0002")
    assert sweep(store, runs, checkpoint) == 0
    assert "nothing new" in capsys.readouterr().out
    assert published_tiles(root, latest(runs))["tile_id"].to_pylist() == ["t0002"]


def test_a_failed_tile_is_left_until_asked_for_or_changed(store, runs, checkpoint, capsys):
    repair = tiny.damage_tile(store, "t0002")
    assert sweep(store, runs, checkpoint) == 3
    assert latest(runs)["tiles"] == {"manifest": 4, "ok": 3, "failed": 1, "quarantined": 0, "left": 0}
    assert sweep(store, runs, checkpoint) == 0  # nothing new, and the failure was told of
    assert rows(runs)["t0002"]["attempt"] == 1
    assert sweep(store, runs, checkpoint, "--retry-failed") == 3
    assert rows(runs)["t0002"]["attempt"] == 2
    assert latest(runs)["sequence"] == 1
    repair()
    rewrite(store, {"t0001": brighter})
    assert sweep(store, runs, checkpoint) == 0  # another tile is done, and only that
    assert {tile: row["attempt"] for tile, row in rows(runs).items()} == {
        "t0000": 1, "t0001": 2, "t0002": 2, "t0003": 1,
    }  # fmt: skip
    rewrite(store, {"t0002": brighter})
    capsys.readouterr()
    assert sweep(store, runs, checkpoint) == 0
    assert "this run: 1 tiles" in capsys.readouterr().out
    assert rows(runs)["t0002"]["status"] == "ok"
    assert latest(runs)["tiles"]["failed"] == 0


def test_another_setting_is_another_run_in_the_same_folder(store, runs, checkpoint):
    list_only(store, "t0000")
    assert sweep(store, runs, checkpoint) == 0
    first = latest(runs)
    assert sweep(store, runs, checkpoint, "--seed", "1") == 0
    second = latest(runs)
    assert first["run"] != second["run"]
    assert published(Folder.at(runs), first["run_id"]) == first
    assert sweep(store, runs, checkpoint) == 0
    assert latest(runs) == second


def test_while_another_driver_works_nothing_is_done(store, runs, checkpoint, capsys):
    list_only(store, "t0000")
    assert sweep(store, runs, checkpoint) == 0
    rewrite(store, {"t0000": brighter})
    before = finished(runs)
    capsys.readouterr()
    with Lease.acquire(the_run(runs).folder):
        assert sweep(store, runs, checkpoint) == 0
    printed = capsys.readouterr().out
    assert re.match(rf"nothing done: process {os.getpid()} on .* since 20\d\d-", printed)
    assert finished(runs) == before and latest(runs)["sequence"] == 1
    assert sweep(store, runs, checkpoint) == 0
    assert finished(runs) != before and latest(runs)["sequence"] == 2


@pytest.mark.slow  # two processes import torch
def test_two_that_start_at_once_do_every_tile_once_and_publish_once(store, runs, checkpoint):
    both = [
        subprocess.Popen(command(store, runs, checkpoint), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert {tile: row["attempt"] for tile, row in rows(runs).items()} == dict.fromkeys(rows(runs), 1)
    assert len(rows(runs)) == 4 and latest(runs)["sequence"] == 1
    assert sum("this run: 4 tiles" in text for text in printed) == 1, printed


def test_when_the_time_is_over_the_next_sweep_does_the_rest(store, runs, checkpoint, capsys):
    assert sweep(store, runs, checkpoint, "--minutes", "1e-5") == 0
    printed = capsys.readouterr().out
    left = re.search(r"(\d) tiles are left \(1e-05 minutes are over\)", printed)
    assert left and int(left[1]) > 0
    assert sweep(store, runs, checkpoint) == 0
    assert "4 of 4 tiles ok" in capsys.readouterr().out
    assert latest(runs)["tiles"]["left"] == 0


def test_a_killed_driver_is_followed_by_one_that_goes_on(store, runs, checkpoint, capsys):
    process = subprocess.Popen(command(store, runs, checkpoint), cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(runs.glob("*/ledger/*.parquet")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(warm.fork_of(process.pid), signal.SIGKILL)
    process.wait()
    before = finished(runs)
    assert 0 < len(before) < 4 and published(Folder.at(runs)) is None
    assert sweep(store, runs, checkpoint) == 0
    assert f"this run: {4 - len(before)} tiles" in capsys.readouterr().out
    assert {tile: when for tile, when in finished(runs).items() if tile in before} == before
    assert latest(runs)["tiles"]["ok"] == 4


def test_what_a_sweep_killed_before_publishing_left_is_published_by_the_next(store, runs, checkpoint, monkeypatch):
    list_only(store, "t0000")

    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("surveybridge.storage.published.publish", die)
        assert sweep(store, runs, checkpoint) == 130
    assert published(Folder.at(runs)) is None
    assert sweep(store, runs, checkpoint) == 0
    assert latest(runs)["tiles"]["ok"] == 1


def test_sigterm_ends_it_with_143_and_publishes_nothing(store, runs, checkpoint, monkeypatch):
    commit = RunFolder.commit

    def commit_and_be_told_to_stop(self, row):
        commit(self, row)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "commit", commit_and_be_told_to_stop)
        assert sweep(store, runs, checkpoint) == 143
    assert len(rows(runs)) == 1 and published(Folder.at(runs)) is None
    assert sweep(store, runs, checkpoint) == 0
    assert latest(runs)["tiles"]["ok"] == 4


def test_a_wrong_request_is_refused_with_nothing_written(store, runs, checkpoint, capsys):
    assert sweep(store, runs, checkpoint, "--run", "elsewhere") == 2
    assert "unknown setting '--run'" in capsys.readouterr().err
    assert sweep(store, runs, checkpoint, "--min-workers", "3") == 2
    assert "--min-workers 3 is above --workers 1" in capsys.readouterr().err
    Path(store, "manifest.parquet").unlink()
    assert sweep(store, runs, checkpoint) == 2
    assert "has no manifest" in capsys.readouterr().err
    assert not runs.exists()


def test_a_sweep_in_object_storage(store, checkpoint, monkeypatch, capsys):
    list_only(store, "t0000")
    with moto_server() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        sky = Folder.at("s3://sky")
        sky.filesystem.mkdir("sky")
        sky.filesystem.put(store, sky.path("tiles"), recursive=True)
        for _ in range(2):
            assert sweep(sky.file_url("tiles"), sky.file_url("runs"), checkpoint) == 0
        assert "nothing new in s3://sky/tiles" in capsys.readouterr().out
        root = Folder.at(sky.file_url("runs"))
        snapshot = published(root)
        assert snapshot is not None and snapshot["sequence"] == 1 and snapshot["tiles"]["ok"] == 1
        assert root.names("published", suffix=".json") == ["000001.json"]
        assert main(["status", "--run", root.file_url(snapshot["run"])]) == 0
        assert "published published/000001.json" in capsys.readouterr().out


@pytest.mark.slow  # Ray's actors import torch
def test_a_sweep_over_ray_publishes_what_the_serial_one_does(store, tmp_path, checkpoint, ray_cluster):
    for executor in ("serial", "ray"):
        assert sweep(store, tmp_path / executor, checkpoint, executor=executor) == 0
    serial, ray = (latest(tmp_path / executor) for executor in ("serial", "ray"))
    assert {**serial, "published_at": ""} == {**ray, "published_at": ""}
    folders = [Folder.at(tmp_path / executor) for executor in ("serial", "ray")]
    assert published_tiles(folders[0], serial).equals(published_tiles(folders[1], ray))
