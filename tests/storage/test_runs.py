"""Run folder: a tile counts only once it is committed, equal content is equal bytes, and other runs are refused."""

from __future__ import annotations

import datetime
import json
import os
import pickle
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.wcs import WCS

from surveybridge.storage.errors import StorageError
from surveybridge.storage.mosaics import TileMosaic, decode, encode
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.runs import LATER_KEYS, RunFolder, pending, version_at, without_secrets
from surveybridge.storage.schema import CANDIDATES, LEDGER, SCHEMA_VERSION, WALL_CLOCK, mosaic_schema, stamps

RUN = {
    "checkpoint_sha256": "c0ffee",
    "direction": "lsst->euclid",
    "samples": 5,
    "steps": 8,
    "score_samples": 5,
    "score_steps": 8,
    "precision": "float32",
    "seed": 1,
    "grid": "mosaic",
    "store": "/data/tiles",
    "config": {"executor": "serial"},
}


def make_header(y: int = 0, x: int = 0) -> str:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [53.1, -28.0]
    wcs.wcs.crpix = [100 - x, 200 - y]
    wcs.wcs.cdelt = [-0.1 / 3600, 0.1 / 3600]
    return str(wcs.to_header_string())


def make_planes(shape: tuple[int, int], n_bands: int = 1, seed: int = 0):
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(n_bands, *shape)).astype(np.float32)
    mean[:, 3, 5] = np.nan
    return mean, np.abs(mean), rng.random(shape).astype(np.float32)


def make_candidates(tile_id: str, n: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "object_id": [f"{tile_id}-{i}" for i in range(n)],
            "ra": 53.1 + rng.random(n) / 100,
            "dec": -28 + rng.random(n) / 100,
            "score": rng.random(n),
            "thumbnail_euclid": stamps("thumbnail_euclid", rng.normal(size=(n, 1, 64, 64))),
        }
    )


def write_tile(run: RunFolder, tile_id: str, y: int, x: int, shape=(100, 130), n: int = 2, seed: int = 0):
    mean, std, coverage = make_planes(shape, seed=seed)
    run.write_mosaic(
        TileMosaic(tile_id, make_header(y, x), ("VIS",), mean, std, coverage, (1000 + y, 2000 + x), "grid")
    )
    run.write_candidates(tile_id, make_candidates(tile_id, n, seed))
    run.commit({"tile_id": tile_id, "status": "ok", "n_candidates": n})
    return mean, std, coverage


@pytest.fixture
def run(tmp_path):
    return RunFolder.open_or_create(tmp_path / "run", RUN)


@pytest.mark.parametrize("shape", [(128, 128), (100, 130), (64, 64), (10, 7)])
@pytest.mark.parametrize("n_bands", [1, 3])
def test_a_mosaic_comes_back_pixel_for_pixel(shape, n_bands):
    mean, std, coverage = make_planes(shape, n_bands)
    bands = ("g", "r", "i")[:n_bands]
    found = decode(encode(TileMosaic("t", make_header(), bands, mean, std, coverage, (7, -9), "grid")))
    np.testing.assert_array_equal(found.mean, mean)
    np.testing.assert_array_equal(found.std, std)
    np.testing.assert_array_equal(found.coverage, coverage)
    assert (found.bands, found.core_origin, found.grid_id, found.wcs_header) == (bands, (7, -9), "grid", make_header())


def test_mosaic_cells_open_in_any_parquet_reader_with_place_and_padding(run, tmp_path):
    mean, _, _ = write_tile(run, "a", 0, 0)
    table = pq.read_table(tmp_path / "run/mosaics/a.parquet")
    assert table.schema.equals(mosaic_schema(("VIS",), "nJy"), check_metadata=False)
    assert table.num_rows == 2 * 3
    last = table.slice(5).to_pydict()
    assert (last["y"], last["x"], last["height"], last["width"]) == ([1064], [2128], [36], [2])
    cell = table["mean"].combine_chunks().to_numpy_ndarray()[5]
    np.testing.assert_array_equal(cell[:, :36, :2], mean[:, 64:, 128:])
    assert np.isnan(cell[:, 36:]).all() and np.isnan(cell[:, :, 2:]).all()
    sky = WCS(naxis=2)
    sky.wcs.ctype, sky.wcs.crval = ["RA---TAN", "DEC--TAN"], [53.1, -28.0]
    sky.wcs.crpix, sky.wcs.cdelt = [100, 200], [-0.1 / 3600, 0.1 / 3600]
    np.testing.assert_allclose([last["ra"][0], last["dec"][0]], sky.all_pix2world(128.5, 81.5, 0), atol=1e-9)


def test_stitching_puts_every_tile_in_its_place_under_one_wcs(run):
    places = {"a": (0, 0), "b": (0, 130), "c": (100, 0)}
    planes = {name: write_tile(run, name, *place, seed=i) for i, (name, place) in enumerate(places.items())}
    mean, std, coverage, header, unit = run.read_mosaic()
    assert unit == "nJy"
    assert mean.shape == (1, 200, 260)
    for name, (y, x) in places.items():
        there = slice(y, y + 100), slice(x, x + 130)
        np.testing.assert_array_equal(mean[:, *there], planes[name][0])
        np.testing.assert_array_equal(std[:, *there], planes[name][1])
        np.testing.assert_array_equal(coverage[there], planes[name][2])
    assert np.isnan(mean[:, 100:, 130:]).all() and (coverage[100:, 130:] == 0).all()
    assert header == make_header(0, 0)
    part = run.read_mosaic(region=(1050, 1150, 2100, 2200))
    np.testing.assert_array_equal(part.mean, mean[:, 50:150, 100:200])
    np.testing.assert_array_equal(part.coverage, coverage[50:150, 100:200])
    assert part.wcs_header == make_header(50, 100)


def test_the_stitched_wcs_does_not_depend_on_which_tile_comes_first(run):
    write_tile(run, "a", 100, 130)
    write_tile(run, "b", 0, 0)
    assert run.read_mosaic().wcs_header == make_header(0, 0)


def test_stitching_more_than_the_limit_is_refused_with_both_numbers(run):
    write_tile(run, "a", 0, 0)
    with pytest.raises(StorageError, match=r"100 x 130 px needs 0\.149 MiB, allowed are 0\.001 MiB"):
        run.read_mosaic(max_bytes=1000)


def test_a_run_without_finished_tile_has_no_mosaic(run):
    run.commit({"tile_id": "a", "status": "failed", "reason": "corrupt"})
    with pytest.raises(StorageError, match="no finished tile"):
        run.read_mosaic()


def test_a_tile_without_ledger_row_does_not_count(run):
    write_tile(run, "a", 0, 0)
    mean, std, coverage = make_planes((64, 64))
    run.write_mosaic(TileMosaic("b", make_header(0, 130), ("VIS",), mean, std, coverage, (1000, 2130), "grid"))
    assert run.ok_tiles() == ["a"]
    assert run.read_mosaic().mean.shape == (1, 100, 130)


def test_doing_a_tile_again_gives_the_same_bytes(run, tmp_path):
    def contents():
        root = tmp_path / "run"
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("[!.]*") if p.is_file()}

    write_tile(run, "a", 0, 0)
    before = contents()
    write_tile(pickle.loads(pickle.dumps(run)), "a", 0, 0)
    after = contents()
    assert (
        before.keys() == after.keys() == {"run.json", "mosaics/a.parquet", "candidates/a.parquet", "ledger/a.parquet"}
    )
    assert all(before[name] == after[name] for name in before if not name.startswith("ledger/"))
    first, second = (pq.read_table(pa.BufferReader(side["ledger/a.parquet"])) for side in (before, after))
    assert first.drop_columns(WALL_CLOCK).equals(second.drop_columns(WALL_CLOCK))


def test_no_candidates_are_an_empty_table_with_the_full_schema(run):
    run.write_candidates("a", CANDIDATES.empty_table())
    table = run.read_candidates("a")
    assert table.num_rows == 0
    assert table.schema.equals(CANDIDATES, check_metadata=False)


def test_candidates_get_their_tile_and_healpix_and_must_have_a_position(run):
    run.write_candidates("a", make_candidates("a", 3))
    found = run.read_candidates("a")
    assert found["tile_id"].to_pylist() == ["a"] * 3
    assert found["_healpix_29"].null_count == 0
    with pytest.raises(StorageError, match="1 of 1 rows lack ra"):
        run.write_candidates("a", pa.table({"object_id": ["x"], "dec": [1.0], "_healpix_29": [1]}))


def test_a_tile_cannot_be_ok_before_its_files_are_written(run):
    with pytest.raises(StorageError, match=r"mosaics/a\.parquet is not in"):
        run.commit({"tile_id": "a", "status": "ok"})
    assert run.ledger().num_rows == 0


def test_ledger_rows_have_the_schema_whatever_is_given(run):
    write_tile(run, "b", 0, 0)
    run.commit({"tile_id": "a", "status": "failed", "reason": "chunk is corrupt", "attempt": 2})
    ledger = run.ledger()
    assert ledger.schema.equals(LEDGER, check_metadata=False)
    assert ledger["tile_id"].to_pylist() == ["a", "b"]
    assert ledger["candidates_path"].to_pylist() == [None, "candidates/b.parquet"]
    assert ledger["attempt"].to_pylist() == [2, 1]
    age = datetime.datetime.now(datetime.UTC) - ledger["finished_at"][0].as_py()
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=1)
    with pytest.raises(StorageError, match="status 'done'"):
        run.commit({"tile_id": "a", "status": "done"})
    with pytest.raises(StorageError, match="unknown column"):
        run.commit({"tile_id": "a", "status": "failed", "because": "x"})
    with pytest.raises(StorageError, match="cannot be part of a path"):
        run.commit({"tile_id": "../a", "status": "failed"})


def test_pending_is_the_manifest_minus_the_ledger_and_failed_tiles_only_when_asked(run):
    manifest = pa.table({"tile_id": ["c", "a", "b"]})
    assert pending(manifest, run.ledger()) == ["c", "a", "b"]
    write_tile(run, "a", 0, 0)
    run.commit({"tile_id": "b", "status": "failed"})
    assert pending(manifest, run.ledger()) == ["c"]
    assert pending(manifest, run.ledger(), retry_failed=True) == ["c", "b"]


def test_a_tile_ingested_anew_is_to_do_and_an_unknown_content_counts_as_the_same(run):
    manifest = pa.table({"tile_id": ["a", "b", "c", "d"], "content": ["A", "B", "C", "D"]})
    run.commit({"tile_id": "a", "status": "failed", "content": "A"})
    run.commit({"tile_id": "b", "status": "failed", "content": "before"})
    run.commit({"tile_id": "c", "status": "quarantined"})
    assert pending(manifest, run.ledger()) == ["b", "d"]
    assert pending(manifest, run.ledger(), retry_failed=True) == ["a", "b", "c", "d"]
    unknown = manifest.set_column(1, "content", pa.array(["A", None, None, "D"]))
    assert pending(unknown, run.ledger()) == ["d"]


def test_a_million_tiles_are_compared_in_seconds():
    count = 1_000_000
    tiles = [f"t{i:07d}" for i in range(count)]
    content = [f"{i:064x}" for i in range(count)]
    manifest = pa.table({"tile_id": tiles, "content": content})
    ledger = pa.table(
        {
            "tile_id": tiles[::-1][1:],
            "content": ["before", *content[::-1][2:]],
            "status": ["failed", "failed", *["ok"] * (count - 3)],
        }
    )
    start = time.process_time()  # of this process, however busy the machine is
    assert pending(manifest, ledger) == tiles[-2:]
    assert pending(manifest, ledger, retry_failed=True) == tiles[-3:]
    assert time.process_time() - start < 8


def test_a_tile_costs_three_writes_and_no_look(run, monkeypatch):
    calls: list[str] = []
    put, exists = Folder.put, Folder.exists

    def counted_put(self, data, *parts):
        calls.append("/".join(parts))
        put(self, data, *parts)

    def counted_exists(self, *parts):
        calls.append("exists")
        return exists(self, *parts)

    monkeypatch.setattr(Folder, "put", counted_put)
    monkeypatch.setattr(Folder, "exists", counted_exists)
    write_tile(run, "a", 0, 0)
    assert calls == ["mosaics/a.parquet", "candidates/a.parquet", "ledger/a.parquet"]
    run.commit({"tile_id": "a", "status": "ok"})  # written, but committed before: looked for again
    assert calls[3:] == ["exists", "exists", "ledger/a.parquet"]


def test_a_run_of_the_first_schema_is_read_but_not_gone_on_with(run, tmp_path):
    write_tile(run, "a", 0, 0)
    document = json.loads((tmp_path / "run/run.json").read_text())
    document["fingerprint"]["code_schema_version"] = document["code_schema_version"] = 1
    (tmp_path / "run/run.json").write_text(json.dumps(document))
    row = pq.read_table(tmp_path / "run/ledger/a.parquet").drop_columns(["stage", "content"])
    pq.write_table(row, tmp_path / "run/ledger/a.parquet")
    old = RunFolder.open(run.url)
    assert old.ledger().select(["tile_id", "status", "content"]).to_pylist() == [
        {"tile_id": "a", "status": "ok", "content": None}
    ]
    assert old.read_mosaic().mean.shape == (1, 100, 130)
    with pytest.raises(StorageError, match="has schema version 1 but this program writes 3, 4"):
        RunFolder.open_or_create(run.url, RUN)


def test_a_run_of_the_third_schema_goes_on_with_the_columns_that_it_has(tmp_path):
    run = RunFolder.open_or_create(tmp_path / "run", RUN | {"code_schema_version": 3})
    write_tile(run, "a", 0, 0)
    again = RunFolder.open_or_create(run.url, RUN)
    assert (version_at(run.url), again.version, version_at(tmp_path / "none")) == (3, 3, SCHEMA_VERSION)
    write_tile(again, "b", 0, 130)
    again.write_candidates("b", make_candidates("b", 2).append_column("domain", pa.array(["in"] * 2)))
    again.commit({"tile_id": "b", "status": "ok", "n_candidates": 2, "field": "deep", "catalogued": True, "core_x0": 4})
    loose = [pq.read_schema(path) for path in (tmp_path / "run").glob("[lc]*/*.parquet")]
    assert again.ledger()["catalogued"].null_count == 2 and again.read_candidates("b")["domain"].null_count == 2
    again.compact(["a", "b"])
    segments = [pq.read_schema(path) for path in (tmp_path / "run").glob("*/segments/*.parquet")]
    assert (len(loose), len(segments)) == (4, 2)
    for schema in loose + segments:
        assert schema.metadata[b"surveybridge.schema_version"] == b"3"
        assert not {"domain", "field", "catalogued"} & {*schema.names}
    assert again.ledger()["catalogued"].null_count == 2 and again.read_candidates("b")["domain"].null_count == 2


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("checkpoint_sha256", "decaf"),
        ("samples", 6),
        ("score_steps", 9),
        ("precision", "bf16"),
        ("patch", 128),
    ],
)
def test_a_run_folder_of_another_run_is_refused_with_both_values(run, tmp_path, key, other):
    before = (tmp_path / "run/run.json").read_bytes()
    with pytest.raises(StorageError, match=f"{key} {(LATER_KEYS | RUN)[key]!r} but this run has {other!r}"):
        RunFolder.open_or_create(run.url, {**RUN, key: other})
    assert (tmp_path / "run/run.json").read_bytes() == before


def test_a_run_from_before_patches_had_a_size_goes_on_with_the_default(run, tmp_path):
    path = tmp_path / "run/run.json"
    document = json.loads(path.read_text())
    del document["patch"], document["fingerprint"]["patch"]
    path.write_text(json.dumps(document))
    RunFolder.open_or_create(run.url, RUN)
    with pytest.raises(StorageError, match="patch 64 but this run has 128"):
        RunFolder.open_or_create(run.url, {**RUN, "patch": 128})


def test_the_same_run_goes_on_and_keeps_its_run_json(run, tmp_path):
    before = (tmp_path / "run/run.json").read_bytes()
    again = RunFolder.open_or_create(run.url, {**RUN, "config": {"executor": "ray"}})
    assert again.run_json["config"] == {"executor": "serial"}
    assert (tmp_path / "run/run.json").read_bytes() == before
    assert RunFolder.open(run.url).run_json == again.run_json


def test_what_decides_the_pixels_must_be_given(tmp_path):
    with pytest.raises(StorageError, match=r"lacks seed, store"):
        RunFolder.open_or_create(tmp_path / "x", {k: v for k, v in RUN.items() if k not in ("seed", "store")})
    assert not (tmp_path / "x").exists()


def test_secrets_are_never_written(tmp_path):
    secret = "hunter2"
    config = {
        "storage_options": {"key": "id", "secret": secret},
        "AWS_SECRET_ACCESS_KEY": secret,
        "nested": [{"api_key": secret, "url": f"s3://user:{secret}@bucket/x", "kept": 1}],
    }
    options = {"auto_mkdir": True}
    run = RunFolder.open_or_create(tmp_path / "run", {**RUN, "config": config}, options)
    assert secret not in (tmp_path / "run/run.json").read_text()
    assert "auto_mkdir" not in (tmp_path / "run/run.json").read_text()
    assert run.run_json["config"] == {"nested": [{"url": "s3://bucket/x", "kept": 1}]}
    assert without_secrets({"max_patches": 3, "keypoints": 1}) == {"max_patches": 3, "keypoints": 1}
    assert secret not in repr(Folder.at("s3://bucket", {"secret": secret}))


def test_something_else_is_not_a_run_folder(tmp_path):
    with pytest.raises(StorageError, match="nothing"):
        RunFolder.open(tmp_path / "absent")
    (tmp_path / "data.fits").write_bytes(b"")
    with pytest.raises(StorageError, match=r"data\.fits; make one with `surveybridge translate`"):
        RunFolder.open(tmp_path)
    with pytest.raises(StorageError, match=r"neither empty nor a run folder"):
        RunFolder.open_or_create(tmp_path, RUN)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(StorageError, match=r"run\.json was not written by a SurveyBridge run"):
        RunFolder.open(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StorageError, match=r"run\.json is not JSON"):
        RunFolder.open(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.fits", "run.json"]


def test_a_write_that_breaks_off_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    folder = Folder.at(tmp_path)
    folder.put(b"old", "ledger", "a.parquet")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        folder.put(b"new", "ledger", "a.parquet")
    assert folder.read("ledger", "a.parquet") == b"old"
    assert [p.name for p in (tmp_path / "ledger").iterdir()] == ["a.parquet"]


def test_an_unfinished_write_of_a_killed_process_is_not_a_ledger_row(run, tmp_path):
    write_tile(run, "a", 0, 0)
    (tmp_path / "run/ledger/.b.parquet.0123.tmp").write_bytes(b"PAR1")
    assert run.ledger()["tile_id"].to_pylist() == ["a"]
