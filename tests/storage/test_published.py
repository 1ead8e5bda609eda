"""Published snapshots: whole or not at all, never changed, and of what the store lists now."""

from __future__ import annotations

import json
import threading

import pyarrow as pa
import pytest

from surveybridge.storage.errors import StorageError
from surveybridge.storage.manifests import content_digest
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.published import publish, published, published_tiles, standing_rows
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import LEDGER, MANIFEST, table_from_rows
from tests.storage.test_runs import RUN


def make_manifest(**contents: str) -> pa.Table:
    rows = [{"tile_id": tile, "content": content} for tile, content in sorted(contents.items())]
    return table_from_rows(rows, MANIFEST, "manifest")


def make_ledger(*rows: tuple[str, str, str | None]) -> pa.Table:
    """Rows (tile, status, content)."""
    named = [
        {"tile_id": tile, "status": status, "content": content, "attempt": 1, "n_candidates": 2}
        for tile, status, content in rows
    ]
    return table_from_rows(named, LEDGER, "ledger")


def make_run(root: Folder, run_id: str = "aaa") -> RunFolder:
    return RunFolder.open_or_create(
        root.file_url(run_id), RUN | {"run_id": run_id, "model": "tiny", "code_version": "0"}, root.storage_options
    )


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    if request.param == "local":
        return Folder.at(tmp_path)
    return Folder.at(f"{request.getfixturevalue('bucket')}/runs", request.getfixturevalue("options"))


TWO = make_ledger(("t0", "ok", "x"), ("t1", "ok", "y"))


def test_a_snapshot_names_run_store_counts_and_tiles(root):
    run = make_run(root)
    manifest = make_manifest(t0="x", t1="y", t2="z", t3="new", t4="n", t5="later")
    ledger = make_ledger(
        ("gone", "ok", "w"), ("t0", "ok", "x"), ("t1", "failed", "y"), ("t2", "quarantined", "z"), ("t3", "ok", "old"),
        ("t4", "ok", None),
    )  # fmt: skip
    snapshot = publish(root, run, manifest, ledger)
    assert snapshot is not None
    assert snapshot["tiles"] == {"manifest": 6, "ok": 2, "failed": 1, "quarantined": 1, "left": 2}
    assert snapshot["candidates"] == 4 * 2  # rows of tiles that stand: t0, t1, t2, t4
    assert (snapshot["run"], snapshot["run_id"], snapshot["store"]) == ("aaa", "aaa", RUN["store"])
    assert snapshot["manifest_sha256"] == content_digest(manifest)
    assert published(root) == published(root, "aaa") == snapshot
    assert published(root, "bbb") is None
    assert published_tiles(root, snapshot).to_pylist() == [
        {"tile_id": "t0", "content": "x"},
        {"tile_id": "t4", "content": "n"},
    ]
    assert standing_rows(manifest, ledger)["tile_id"].to_pylist() == ["t0", "t1", "t2", "t4"]


def test_nothing_new_is_not_published_again_and_what_is_new_leaves_the_old_as_it_was(root):
    run, manifest = make_run(root), make_manifest(t0="x", t1="y")
    first = publish(root, run, manifest, TWO)
    assert first is not None and first["sequence"] == 1
    data = root.read(first["path"])
    assert publish(root, run, manifest, TWO) is None
    assert publish(root, run, make_manifest(t0="x"), TWO)["tiles"]["ok"] == 1  # type: ignore[index]  # one vanished
    assert publish(root, run, make_manifest(t0="x", t1="y2"), make_ledger(("t0", "ok", "x"))) is not None
    assert [published(root)["sequence"], published(root)["tiles"]["left"]] == [3, 1]  # type: ignore[index]
    assert root.read(first["path"]) == data
    assert published_tiles(root, first)["tile_id"].to_pylist() == ["t0", "t1"]


def test_without_an_ok_tile_nothing_is_published(root):
    assert publish(root, make_run(root), make_manifest(t0="x"), make_ledger(("t0", "failed", "x"))) is None
    assert published(root) is None and root.names("published") == []


def test_runs_that_share_a_folder_share_the_pointer(root):
    runs = [make_run(root, name) for name in ("aaa", "bbb")]
    manifest = make_manifest(t0="x", t1="y")
    snapshots = [publish(root, run, manifest, TWO) for run in runs]
    assert published(root) == snapshots[1]
    assert [published(root, "aaa"), published(root, "bbb")] == snapshots


def test_many_publishers_at_once_lose_nothing_and_readers_never_see_half(tmp_path):
    root = Folder.at(tmp_path)
    runs = [make_run(root, f"run{i}") for i in range(6)]
    manifests = [make_manifest(**{f"t{i}": "x" for i in range(n + 1)}) for n in range(5)]
    ledgers = [make_ledger(*((f"t{i}", "ok", "x") for i in range(n + 1))) for n in range(5)]
    seen, ended, errors = [], threading.Event(), []

    def read() -> None:
        try:
            while not ended.is_set():
                snapshot = published(root)
                if snapshot is not None:
                    assert published_tiles(root, snapshot).num_rows == snapshot["tiles"]["ok"]
                    seen.append(snapshot["sequence"])
        except Exception as error:
            errors.append(error)

    def write(run: RunFolder) -> None:
        try:
            for manifest, ledger in zip(manifests, ledgers, strict=True):
                assert publish(root, run, manifest, ledger) is not None
        except Exception as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(run,)) for run in runs]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    reader.join()
    assert errors == []
    assert seen == sorted(seen) and len(set(seen)) > 1  # latest never goes back
    assert published(root)["sequence"] == 30  # type: ignore[index]
    assert [published(root, f"run{i}")["tiles"]["ok"] for i in range(6)] == [5] * 6  # type: ignore[index]
    assert len(root.names("published", suffix=".json")) == 30


@pytest.mark.parametrize("dies_at", ["snapshot", "pointer"])
def test_a_publisher_that_died_is_made_good_by_the_next(tmp_path, monkeypatch, dies_at):
    root = Folder.at(tmp_path)
    run, manifest = make_run(root), make_manifest(t0="x", t1="y")

    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            "surveybridge.storage.published." + {"snapshot": "_put_snapshot", "pointer": "_point_to"}[dies_at], die
        )
        with pytest.raises(KeyboardInterrupt):
            publish(root, run, manifest, TWO)
    assert published(root) is None
    snapshot = publish(root, run, manifest, TWO)
    assert snapshot is not None and snapshot["sequence"] == 1
    assert published(root) == snapshot
    assert root.names("published", suffix=".json") == ["000001.json"]


def test_what_is_not_ours_is_refused(tmp_path):
    root = Folder.at(tmp_path)
    with pytest.raises(StorageError, match="not directly below"):
        publish(Folder.at(tmp_path / "elsewhere"), make_run(root), make_manifest(t0="x", t1="y"), TWO)
    (tmp_path / "published.json").write_text('{"our": "papers"}')
    with pytest.raises(StorageError, match=r"published\.json was not written by SurveyBridge"):
        published(root)
    newer = {"format": "surveybridge-published", "format_version": 99}
    (tmp_path / "published.json").write_text(json.dumps(newer))
    with pytest.raises(StorageError, match="version 99 but this program reads up to 1"):
        published(root)
