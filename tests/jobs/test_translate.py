"""Translate: the result depends on the request alone, failures stand in the ledger, a resume does what is left."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from surveybridge.__main__ import main
from surveybridge.bridge_core import translate as core
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.sampler import draw
from surveybridge.bridge_core.settings import PatchGrid, Sampling
from surveybridge.jobs.translating.scene import scene_of
from surveybridge.storage.images import MASK_PLANES
from surveybridge.storage.lease import Lease
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import THUMBNAILS, WALL_CLOCK
from surveybridge.storage.tiles import Tile, TileStore
from tests import tiny
from tests.jobs.test_profile import check_table, check_trace, document

QUICK = ["--samples", "2", "--steps", "2", "--score-samples", "2", "--score-steps", "2", "--precision", "float32"]

# Another batch is another order of the float32 sums in a convolution: at most 1.5e-5 nJy seen in a mosaic whose noise
# is 2 nJy, and 1.5e-8 in a score of 0.05.
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 5e-5}
CLOSE_NUMBERS: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
CLOSE_ON_THE_SKY: dict[str, Any] = {
    "rtol": 0.0,
    "atol": 1e-8,
}  # degrees: 0.04 milliarcsec, for positions from float32 images


def translate(store, run, checkpoint, *more, executor="serial"):
    what = ["--store", str(store), "--run", str(run), "--checkpoint", checkpoint, "--executor", executor]
    return main(["translate", *what, *QUICK, *more])


def results(run):
    """Bytes of all mosaics and candidates."""
    return tiny.files_of(run, "mosaics") | tiny.files_of(run, "candidates")


def files(run):
    """Everything in the run folder but who worked there last."""
    return {name: data for name, data in tiny.files_of(run).items() if name != "lease.json"}


def candidates(run) -> pa.Table:
    folder = RunFolder.open(str(run))
    tables = [folder.read_candidates(tile) for tile in folder.ok_tiles()]
    return pa.concat_tables(tables).sort_by("object_id")


def ledger(run):
    return {row["tile_id"]: row for row in RunFolder.open(str(run)).ledger().to_pylist()}


def assert_close(one, other, leave_out=()):
    """Mosaics and candidates agree within CLOSE; every column but some, strings and integers exactly."""
    first, second = (RunFolder.open(str(run)).read_mosaic() for run in (one, other))
    np.testing.assert_allclose(first.mean, second.mean, **CLOSE)
    np.testing.assert_allclose(first.std, second.std, **CLOSE)
    np.testing.assert_array_equal(first.coverage, second.coverage)
    first, second = candidates(one), candidates(other)
    assert first.num_rows == second.num_rows > 0
    for name in set(first.column_names) - set(leave_out):
        a, b = first[name].to_pylist(), second[name].to_pylist()
        if name in THUMBNAILS or pa.types.is_floating(first.schema.field(name).type):
            close = CLOSE if name in THUMBNAILS else CLOSE_ON_THE_SKY if name in ("ra", "dec") else CLOSE_NUMBERS
            np.testing.assert_allclose(np.array(a, float), np.array(b, float), **close, err_msg=name)
        else:
            assert a == b, name


@pytest.mark.slow  # Ray's actors import torch
def test_ray_writes_the_same_bytes_as_serial(tmp_path, store, checkpoint, ray_cluster, capsys):
    """With two workers and a profile of one of them, which the serial run does without."""
    how, profile = ["--batch", "4"], tmp_path / "profile"
    assert translate(store, tmp_path / "serial", checkpoint, *how) == 0
    on_ray = ["--workers", "2", "--profile", str(profile)]
    assert translate(store, tmp_path / "ray", checkpoint, *how, *on_ray, executor="ray") == 0
    serial, ray = results(tmp_path / "serial"), results(tmp_path / "ray")
    assert len(serial) == 8
    assert serial == ray
    assert {tile: row["n_patches"] for tile, row in ledger(tmp_path / "ray").items()} == {
        tile: row["n_patches"] for tile, row in ledger(tmp_path / "serial").items()
    }
    found, trace = (document(profile, f"{name}.json") for name in ("profile", "trace"))
    check_trace(trace)
    check_table(found, tiles=found["tiles"])  # two workers may share the tiles in any way
    models = {e["pid"] for e in trace["traceEvents"] if e["ph"] == "X" and e["name"] == "model"}
    others = {e["pid"] for e in trace["traceEvents"] if e["ph"] == "X" and e["name"] in ("read", "write")}
    assert models and others and not models & others  # processes of their own
    assert f"profile of worker {found['worker']}" in capsys.readouterr().out


def test_batch_size_does_not_matter(tmp_path, store, checkpoint, in_patches):
    assert translate(store, tmp_path / "run", checkpoint, "--batch", "4", "--patch", "64") == 0
    assert all(row["n_patches"] * 2 > 16 for row in ledger(in_patches).values())  # there was more than one batch
    assert_close(in_patches, tmp_path / "run")


def test_large_patches_say_the_same_of_the_sky(tmp_path, checkpoint):
    store = tiny.write_store(tmp_path / "tiles", tile_size=tiny.SIDE, halo=120)
    for patch in (64, 128):
        assert translate(store, tmp_path / str(patch), checkpoint, "--patch", str(patch)) == 0
    small, large = (RunFolder.open(str(tmp_path / str(patch))) for patch in (64, 128))
    one, other = small.read_mosaic(), large.read_mosaic()
    np.testing.assert_array_equal(one.coverage, other.coverage)
    # they differ by what the random network sees beyond a small patch's margin, below what it is unsure of
    known = np.isfinite(one.mean)
    difference = np.abs(one.mean - other.mean)[known]
    assert 0 < np.median(difference) < 0.5 * np.nanmedian(one.std)
    assert np.corrcoef(one.mean[known], other.mean[known])[0, 1] > 0.9
    windows = [run.ledger()["n_patches"].to_pylist()[0] for run in (small, large)]
    assert windows == [36, 9]
    assert (small.run_json["patch"], large.run_json["patch"]) == (64, 128)


@pytest.mark.parametrize("wanted", ["euclid", "lsst"])
def test_patch_order_and_batches_share_one_noise_and_give_one_result(store, checkpoint, monkeypatch, wanted):
    model = load_checkpoint(checkpoint)
    tile = TileStore.open(store).read_tile("t0003")
    direction = model.card.problem.to(wanted)
    scene = scene_of(tile, direction.observed.name, torch.device("cpu"))
    noise: dict[tuple[int, int, int], torch.Tensor] = {}

    def record(sky, step, like):
        z = draw(sky, step, like)
        for sample, y, x, values in zip(sky.sample.tolist(), sky.y0.tolist(), sky.x0.tolist(), z, strict=True):
            assert torch.equal(noise.setdefault((sample, y, x), values), values)
        return z

    monkeypatch.setattr(core, "draw", record)
    corners = PatchGrid().windows(tile.shape, tile.origin, tile.core)

    def result(batch, corners):
        return core.translate_tile(
            model,
            direction,
            scene,
            Sampling(samples=2, steps=2, batch=batch, precision="float32"),
            corners,
        )

    forward = result(16, corners)
    assert len(noise) == 2 * forward.windows >= 2 * 9
    for other in (result(16, corners[::-1]), result(4, corners), result(5, corners[::-1])):
        for name in ("mean", "std"):
            torch.testing.assert_close(getattr(other, name), getattr(forward, name), **CLOSE, equal_nan=True)
        assert torch.equal(other.coverage, forward.coverage)
    assert len(noise) == 2 * forward.windows
    # Each window in a batch of its own: then not even a bit depends on the order.
    alone, reversed_ = result(2, corners), result(2, corners[::-1])
    assert torch.equal(alone.mean.nan_to_num(), reversed_.mean.nan_to_num())
    assert torch.equal(alone.std.nan_to_num(), reversed_.std.nan_to_num())


def test_objects_belong_to_exactly_one_tile(tmp_path, store, checkpoint, in_patches):
    whole = tiny.write_store(tmp_path / "whole", tile_size=tiny.SIDE)
    assert translate(whole, tmp_path / "run", checkpoint, "--patch", "64") == 0
    assert len(ledger(in_patches)) == 4 and len(ledger(tmp_path / "run")) == 1
    found = candidates(in_patches)
    assert found.num_rows == len(tiny.BLOBS)
    x, y = found["x"].to_numpy(), found["y"].to_numpy()
    assert (np.minimum(abs(x - 95.5), abs(y - 95.5)) < 0.5).sum() == 4  # borders were put to the test
    assert_close(in_patches, tmp_path / "run", leave_out=["tile_id", "run_id"])


def test_candidates_lie_on_the_objects_with_their_fluxes(whole):
    found = candidates(whole)
    positions = np.stack([found["y"].to_numpy(), found["x"].to_numpy()], axis=1)
    distance = np.linalg.norm(positions[:, None] - np.array(tiny.BLOBS)[None], axis=2)
    assert (distance.min(0) < 0.3).all() and (distance.min(1) < 0.3).all()
    # All of VIS is within 1 arcsec, of LSST all but 2^-(20/7.3)^2 = 0.5%; masked columns cost some of their objects.
    for band in ("g", "r", "i", "VIS"):
        clear = np.abs(positions[:, 1] - (130 if band == "VIS" else 60)) > 12
        flux, snr = (found[f"{name}_{band}"].to_numpy()[clear] for name in ("flux", "snr"))
        np.testing.assert_allclose(flux, 600.0, atol=5 * tiny.SIGMA[band] * np.sqrt(np.pi) * 10 + 6)
        np.testing.assert_allclose(snr, flux / (tiny.SIGMA[band] * np.sqrt(np.pi) * 10), rtol=0.02)
    assert np.isfinite(found["score"].to_numpy()).all() and (found["score_std"].to_numpy() >= 0).all()


def test_masked_pixels_are_not_invented(whole):
    mosaic = RunFolder.open(whole).read_mosaic()
    bad = tiny.make_image("lsst").mask.any(0)
    assert bad.any()
    np.testing.assert_array_equal(np.isnan(mosaic.mean[0]), bad)
    np.testing.assert_array_equal(np.isnan(mosaic.std[0]), bad)
    np.testing.assert_array_equal(mosaic.coverage == 0, bad)


def test_a_corrupt_chunk_fails_its_tile_only_and_is_done_again_when_asked(tmp_path, checkpoint, whole, capsys):
    store = tiny.write_store(tmp_path / "tiles")
    repair = tiny.damage_tile(store, "t0002")
    run = tmp_path / "run"
    assert translate(store, run, checkpoint) == 3
    rows = ledger(run)
    assert {tile: row["status"] for tile, row in rows.items()} == {
        "t0000": "ok",
        "t0001": "ok",
        "t0002": "failed",
        "t0003": "ok",
    }
    assert re.search(
        r"DamagedData: tile t0002: lsst/flux cannot be read .*ingest the tile again", rows["t0002"]["reason"]
    )
    assert re.fullmatch("[0-9a-f]{12}", rows["t0002"]["traceback_hash"])
    assert rows["t0000"]["reason"] is None and rows["t0002"]["mosaic_path"] is None
    assert not any("t0002" in name for name in results(run))
    assert "3 of 4 tiles ok, 1 failed" in capsys.readouterr().out

    before = files(run)
    assert translate(store, run, checkpoint) == 3
    assert "this run: 0 tiles" in capsys.readouterr().out
    assert files(run) == before

    assert translate(store, run, checkpoint, "--retry-failed") == 3
    again = ledger(run)["t0002"]
    assert (again["attempt"], again["traceback_hash"]) == (2, rows["t0002"]["traceback_hash"])

    repair()
    assert translate(store, run, checkpoint) == 3  # not unless asked
    capsys.readouterr()
    assert translate(store, run, checkpoint, "--retry-failed") == 0
    assert "this run: 1 tiles" in capsys.readouterr().out
    assert (ledger(run)["t0002"]["attempt"], ledger(run)["t0000"]["attempt"]) == (3, 1)
    assert_close(whole, run, leave_out=["run_id"])


def spoil(tile: Tile) -> Tile:
    """t0000 all NaN, t0001 without LSST, t0002 with one band all masked; t0003 as it is, but of unknown seeing."""
    if tile.tile_id == "t0000":
        return tiny.with_images(tile, **{name: tiny.without_data(image) for name, image in tile.images.items()})
    if tile.tile_id == "t0001":
        return replace(tile, images={"euclid": tile.images["euclid"]})
    if tile.tile_id == "t0002":
        mask = tile.images["lsst"].mask.copy()
        mask[1] |= MASK_PLANES["SAT"]
        return tiny.with_images(tile, lsst=replace(tile.images["lsst"], mask=mask))
    unknown = {name: replace(image, psf_fwhm=(np.nan,) * len(image.bands)) for name, image in tile.images.items()}
    return tiny.with_images(tile, **unknown)


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    store = tiny.write_store(tmp_path_factory.mktemp("spoiled") / "tiles", edit=spoil)
    tiny.damage_tile(store, "t0002", "euclid/mask")
    return store


@pytest.mark.slow
def test_every_way_to_fail_becomes_a_ledger_row_on_ray_too(tmp_path, spoiled, checkpoint, ray_cluster):
    for executor in ("serial", "ray"):
        assert translate(spoiled, tmp_path / executor, checkpoint, executor=executor) == 3
    rows = ledger(tmp_path / "ray")
    reasons = {tile: row["reason"] for tile, row in rows.items()}
    assert re.search("tile t0000: 0 of [0-9]+ lsst pixels are usable in all of g,r,i", reasons["t0000"])
    assert "t0001" not in rows  # has no LSST, which is no failure
    assert "tile t0002: euclid/mask cannot be read" in reasons["t0002"]
    assert rows["t0003"]["status"] == "ok" and reasons["t0003"] is None
    serial = ledger(tmp_path / "serial")
    assert reasons == {tile: row["reason"] for tile, row in serial.items()}
    hashes = {tile: row["traceback_hash"] for tile, row in rows.items()}
    assert hashes == {tile: row["traceback_hash"] for tile, row in serial.items()}
    assert len(set(hashes.values())) == 3
    assert results(tmp_path / "serial") == results(tmp_path / "ray")


def test_a_tile_with_the_observed_survey_only_has_a_mosaic_and_no_candidates(tmp_path, spoiled, checkpoint):
    run = tmp_path / "run"
    assert translate(spoiled, run, checkpoint, "--direction", "euclid->lsst") == 3
    rows = ledger(run)
    assert {tile: row["status"] for tile, row in rows.items()} == {
        "t0000": "failed",
        "t0001": "ok",
        "t0002": "failed",
        "t0003": "ok",
    }
    assert rows["t0001"]["n_candidates"] == 0 and rows["t0003"]["n_candidates"] > 0
    mosaic = RunFolder.open(str(run)).read_tile_mosaic("t0001")
    assert mosaic.bands == ("g", "r", "i") and mosaic.mean.shape == (3, 96, 96)
    assert np.isfinite(mosaic.mean).mean() > 0.9


def test_a_wholly_masked_partner_survey_gives_a_mosaic_without_candidates(tmp_path, checkpoint):
    store = tiny.write_store(
        tmp_path / "tiles",
        tile_size=tiny.SIDE,
        edit=lambda tile: tiny.with_images(tile, euclid=tiny.without_data(tile.images["euclid"])),
    )
    assert translate(store, tmp_path / "run", checkpoint) == 0
    assert ledger(tmp_path / "run")["t0000"]["n_candidates"] == 0
    assert np.isfinite(RunFolder.open(str(tmp_path / "run")).read_mosaic().mean).mean() > 0.9


def test_a_band_masked_throughout_is_a_failure_not_an_empty_mosaic(tmp_path, checkpoint):
    def edit(tile):
        return spoil(tile) if tile.tile_id == "t0002" else tile

    store = tiny.write_store(tmp_path / "tiles", edit=edit)
    assert translate(store, tmp_path / "run", checkpoint) == 3
    assert "lsst pixels are usable in all of g,r,i" in ledger(tmp_path / "run")["t0002"]["reason"]


def test_an_interrupted_run_resumes_with_what_is_left(tmp_path, store, checkpoint, whole, capsys):
    run = tmp_path / "run"
    assert translate(store, run, checkpoint) == 0
    before, rows = results(run), ledger(run)
    # A driver that died: two tiles uncommitted, one of them half written.
    for tile in ("t0001", "t0003"):
        (run / "ledger" / f"{tile}.parquet").unlink()
    (run / "candidates" / "t0001.parquet").unlink()
    (run / "mosaics" / "t0003.parquet").write_bytes(b"half")
    capsys.readouterr()
    assert translate(store, run, checkpoint) == 0
    assert "this run: 2 tiles" in capsys.readouterr().out
    assert results(run) == before
    after = ledger(run)
    assert {tile: row["finished_at"] == rows[tile]["finished_at"] for tile, row in after.items()} == {
        "t0000": True,
        "t0001": False,
        "t0002": True,
        "t0003": False,
    }
    for tile, row in after.items():
        assert {k: v for k, v in row.items() if k not in WALL_CLOCK} == {
            k: v for k, v in rows[tile].items() if k not in WALL_CLOCK
        }
    assert_close(whole, run)
    assert translate(store, run, checkpoint) == 0
    assert "this run: 0 tiles" in capsys.readouterr().out


def test_the_seed_makes_the_sky_and_the_mean_of_more_samples_is_no_copy(tmp_path, store, checkpoint, whole):
    assert translate(store, tmp_path / "run", checkpoint, "--seed", "1") == 0
    first, second = (RunFolder.open(str(run)).read_mosaic().mean for run in (whole, tmp_path / "run"))
    assert np.nanmean(abs(first - second)) > 0.01


@pytest.mark.parametrize(("flag", "value"), [("--score-samples", "3"), ("--precision", "bfloat16")])
def test_a_run_is_not_continued_with_other_settings_of_the_score(store, checkpoint, whole, capsys, flag, value):
    before = files(whole)
    what = ["--store", store, "--run", whole, "--checkpoint", checkpoint, "--executor", "serial"]
    settings = dict(zip(QUICK[::2], QUICK[1::2], strict=True))
    was, settings[flag] = settings[flag], value
    assert main(["translate", *what, *(word for pair in settings.items() for word in pair)]) == 2
    error = capsys.readouterr().err
    assert was in error and value in error and flag.strip("-").replace("-", "_") in error
    assert files(whole) == before


def test_a_changed_tile_is_done_again_alone(checkpoint, tmp_path, whole, capsys):
    store, run = tmp_path / "tiles", tmp_path / "run"
    tiny.write_store(store)
    assert translate(store, run, checkpoint) == 0
    before, rows = results(run), ledger(run)

    def brighter(tile):
        if tile.tile_id != "t0001":
            return tile
        return tiny.with_images(tile, lsst=replace(tile.images["lsst"], flux=tile.images["lsst"].flux * 2))

    tiny.write_store(store, edit=brighter)
    capsys.readouterr()
    assert translate(store, run, checkpoint) == 0
    assert "this run: 1 tiles" in capsys.readouterr().out
    after, again = results(run), ledger(run)
    assert {name for name in before if after[name] != before[name]} == {
        "mosaics/t0001.parquet",
        "candidates/t0001.parquet",
    }
    assert {tile: row["attempt"] for tile, row in again.items()} == {"t0000": 1, "t0001": 2, "t0002": 1, "t0003": 1}
    assert again["t0001"]["content"] != rows["t0001"]["content"]
    manifest = TileStore.open(str(store)).manifest()
    assert [again[tile]["content"] for tile in manifest["tile_id"].to_pylist()] == manifest["content"].to_pylist()


def test_a_run_whose_ledger_is_compacted_while_it_goes_holds_the_same(tmp_path, store, checkpoint, whole, monkeypatch):
    monkeypatch.setattr("surveybridge.jobs.translating.engine.SEGMENT_TILES", 2)
    run = tmp_path / "run"
    assert translate(store, run, checkpoint) == 0
    assert len(list(run.glob("ledger/segments/*.parquet"))) == 2
    assert not list(run.glob("ledger/*.parquet")) and not list(run.glob("candidates/*.parquet"))
    assert repr(candidates(run).to_pylist()) == repr(candidates(whole).to_pylist())  # NaN is no other NaN
    assert tiny.files_of(run, "mosaics") == tiny.files_of(whole, "mosaics")
    wall_clock = {*WALL_CLOCK, "candidates_path"}
    for tile, row in ledger(whole).items():
        assert {k: v for k, v in ledger(run)[tile].items() if k not in wall_clock} == {
            k: v for k, v in row.items() if k not in wall_clock
        }


def test_a_second_driver_is_refused(tmp_path, store, checkpoint, whole, capsys):
    with Lease.acquire(RunFolder.open(whole).folder):
        assert translate(store, whole, checkpoint) == 2
    error = capsys.readouterr().err
    assert whole in error and "is being written by process" in error and len(error.splitlines()) == 1
    assert translate(store, whole, checkpoint) == 0


def test_no_tile_is_begun_when_the_minutes_are_over_and_a_rerun_goes_on(tmp_path, store, checkpoint, whole, capsys):
    run = tmp_path / "run"
    assert translate(store, run, checkpoint, "--minutes", "0.0001") == 0
    out = capsys.readouterr().out
    done = len(ledger(run))
    assert done < 4 and f"{4 - done} tiles are left (0.0001 minutes are over)" in out
    assert translate(store, run, checkpoint) == 0
    assert results(run) == results(whole)
