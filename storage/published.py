"""The publications in a folder of runs: immutable snapshots, and one pointer to the latest.

Layout below the folder of runs::

    <run>/                          run folders
    published/000001.json           a snapshot: which run, which tiles, when; written once, never changed
    published/tiles-<hash>.parquet  the tiles of a snapshot, with the content that each was made from
    published.json                  names the latest snapshot, and the latest of each run

Every file is put whole and in this order (tiles, snapshot, pointer), so a reader who starts from the pointer never sees
half of anything. A snapshot that no pointer names was being written when its writer died; it does not count.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from surveybridge.storage.errors import StorageError
from surveybridge.storage.manifests import content_digest
from surveybridge.storage.objectstore import Folder, json_bytes
from surveybridge.storage.parquet import parquet_bytes, read_parquet
from surveybridge.storage.runs import RunFolder, pending

FORMAT = "surveybridge-published"
FORMAT_VERSION = 1
POINTER = "published.json"

_SAID_AT_PUBLISHING = ("sequence", "published_at", "path")


def standing_rows(manifest: pa.Table, ledger: pa.Table) -> pa.Table:
    """The ledger rows that count: of tiles that the manifest lists, done with the content that it lists.

    Parameters
    ----------
    manifest, ledger : pyarrow.Table
        Schemas `MANIFEST` and `LEDGER`.
    """
    outdated = pa.array(pending(manifest, ledger), pa.string())
    listed = pc.is_in(ledger["tile_id"], value_set=manifest["tile_id"].combine_chunks())
    return ledger.filter(pc.and_(listed, pc.invert(pc.is_in(ledger["tile_id"], value_set=outdated))))


def publish(root: Folder, run: RunFolder, manifest: pa.Table, ledger: pa.Table) -> dict[str, Any] | None:
    """Publish the tiles that a run has of a store, unless nothing has changed since its last publication.

    Parameters
    ----------
    root : Folder
        The folder of runs; `run` is directly below it.
    run : RunFolder
        Whose lease the caller holds, so that nobody else publishes it at the same time.
    manifest, ledger : pyarrow.Table
        Of the run's store and of the run. Tiles that the manifest does not list are not published, nor are those
        whose content has changed since.

    Returns
    -------
    dict or None
        The new snapshot; None if there is nothing new to say, or no ok tile.
    """
    rows = standing_rows(manifest, ledger)
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    if ok.num_rows == 0:
        return None
    tiles = _tile_list(manifest, ok)
    facts = _facts(root, run, manifest, rows, tiles)
    before = published(root, facts["run_id"])
    if before is not None and _same(before, facts):
        return None
    root.put(parquet_bytes(tiles), facts["tile_list"])
    snapshot = _written_before_its_writer_died(root, facts) or _put_snapshot(root, facts)
    _point_to(root, snapshot)
    return snapshot


def published(root: Folder, run_id: str | None = None) -> dict[str, Any] | None:
    """The latest snapshot (of one run); None if there is none.

    Parameters
    ----------
    root : Folder
        The folder of runs.
    run_id : str, optional
        Only what this run has published.
    """
    pointer, _ = _read_pointer(root)
    path = pointer["latest"] if run_id is None else pointer["runs"].get(run_id)
    return None if path is None else _read_snapshot(root, path)


def published_tiles(root: Folder, snapshot: Mapping[str, Any]) -> pa.Table:
    """Columns tile_id and content of the tiles of a snapshot, sorted by tile_id."""
    return read_parquet(root.read(snapshot["tile_list"]))


def _tile_list(manifest: pa.Table, ok: pa.Table) -> pa.Table:
    kept = manifest.filter(pc.is_in(manifest["tile_id"], value_set=ok["tile_id"].combine_chunks()))
    return kept.select(["tile_id", "content"]).sort_by("tile_id").combine_chunks()


def _facts(root: Folder, run: RunFolder, manifest: pa.Table, rows: pa.Table, tiles: pa.Table) -> dict[str, Any]:
    """Return the contents of a snapshot, except its number and its time."""
    parent, _, name = run.url.rpartition("/")
    if parent != root.url:
        raise StorageError(f"run {run.url} is not directly below {root.url}; publish it in the folder that holds it")
    statuses = {entry["values"]: entry["counts"] for entry in pc.value_counts(rows["status"]).to_pylist()}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run": name,
        "run_id": run.run_json.get("run_id", name),
        **{key: run.run_json.get(key) for key in ("model", "direction", "code_version", "store")},
        "manifest_sha256": content_digest(manifest),
        "tile_list": f"published/tiles-{_table_hash(tiles)[:16]}.parquet",
        "tiles": {
            "manifest": manifest.num_rows,
            "ok": tiles.num_rows,
            "failed": statuses.get("failed", 0),
            "quarantined": statuses.get("quarantined", 0),
            "left": manifest.num_rows - rows.num_rows,
        },
        "candidates": pc.sum(rows["n_candidates"]).as_py() or 0,
    }


def _same(snapshot: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    return {key: value for key, value in snapshot.items() if key not in _SAID_AT_PUBLISHING} == facts


def _written_before_its_writer_died(root: Folder, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The last snapshot, if it says the same and only the pointer to it was never written."""
    names = root.names("published", suffix=".json")
    last = _read_snapshot(root, f"published/{names[-1]}") if names else None
    return last if last is not None and _same(last, facts) else None


def _put_snapshot(root: Folder, facts: Mapping[str, Any]) -> dict[str, Any]:
    names = root.names("published", suffix=".json")
    sequence = int(names[-1].removesuffix(".json")) if names else 0
    while True:  # another run below this root may take the number first
        sequence += 1
        snapshot = {
            **facts,
            "sequence": sequence,
            "path": f"published/{sequence:06d}.json",
            "published_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        }
        if root.put_new(json_bytes(snapshot), snapshot["path"]) is not None:
            return snapshot


def _point_to(root: Folder, snapshot: Mapping[str, Any]) -> None:
    """Name the snapshot in the pointer, and leave what other runs wrote into it meanwhile."""
    while True:
        pointer, token = _read_pointer(root)
        latest = max(pointer["latest"] or "", snapshot["path"])
        changed = {**pointer, "latest": latest, "runs": {**pointer["runs"], snapshot["run_id"]: snapshot["path"]}}
        data = json_bytes(changed)
        done = root.put_new(data, POINTER) if token is None else root.replace(data, token, POINTER)
        if done is not None:
            return


def _read_pointer(root: Folder) -> tuple[dict[str, Any], str | None]:
    """Return the pointer and the token for replacing it; None if there is no pointer yet."""
    try:
        data, token = root.read_with_token(POINTER)
    except (FileNotFoundError, NotADirectoryError):
        return {"format": FORMAT, "format_version": FORMAT_VERSION, "latest": None, "runs": {}}, None
    return _document(root, POINTER, data), token


def _read_snapshot(root: Folder, path: str) -> dict[str, Any]:
    return _document(root, path, root.read(path))


def _document(root: Folder, path: str, data: bytes) -> dict[str, Any]:
    try:
        document: Any = json.loads(data)
    except ValueError as error:
        raise StorageError(f"{root.file_url(path)} is not JSON ({error}); give another --runs URL") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise StorageError(f"{root.file_url(path)} was not written by SurveyBridge; give another --runs URL")
    if document["format_version"] > FORMAT_VERSION:
        raise StorageError(
            f"{root.file_url(path)} has format version {document['format_version']} but this program reads up to "
            f"{FORMAT_VERSION}; update surveybridge"
        )
    return document


def _table_hash(table: pa.Table) -> str:
    columns = [column.to_pylist() for column in table.columns]
    return hashlib.sha256(repr(list(zip(*columns, strict=True))).encode()).hexdigest()
