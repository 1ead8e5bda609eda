"""Calibrate on a tile store: rates of false alarms of its own objects, and arcs put around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.discriminant import Discriminant
from surveybridge.bridge_core.residuals import columns
from surveybridge.jobs.calibrating.objects import gain_of, views, with_arcs
from surveybridge.jobs.calibrating.stages import without_known
from surveybridge.storage.crossmatch import Targets
from surveybridge.storage.held_back import HeldBack
from surveybridge.storage.ingest import Field, cut_tile, tile_boxes
from surveybridge.storage.problems import default_problem
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import Tile, TileStore
from tests import tiny
from tests.storage.fits_files import gaussians

pytestmark = pytest.mark.long  # arcs are drawn and scored

SIDE = 320
QUICK = ("--samples", "2", "--steps", "1", "--to", "euclid")
PLACES = 90
SEEN = 1.3
"""Width of LSST's blobs over that of its stated PSF."""


def make_field(seed: int) -> Field:
    """Galaxies of many fluxes as both surveys see them; LSST in some seeing."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(10, SIDE - 10, (PLACES, 2))
    fluxes = np.geomspace(60, 4000, PLACES)
    images = {}
    for name, bands in tiny.SURVEY_BANDS.items():
        plain = tiny.make_image(name, SIDE)
        sigma = SEEN * tiny.SEEING[name] / 2.3548
        light = np.zeros((SIDE, SIDE))
        for place, flux in zip(places.round().astype(int), fluxes, strict=True):
            y0, x0 = np.clip(place - 20, 0, SIDE - 41)
            light[y0 : y0 + 41, x0 : x0 + 41] += gaussians((41, 41), [place - (y0, x0)], sigma, flux)
        noise = np.array([tiny.SIGMA[band] for band in bands])[:, None, None]
        image = (light + noise * rng.normal(size=plain.flux.shape)).astype(np.float32)
        images[name] = replace(
            plain, flux=image, variance=np.broadcast_to(noise**2, image.shape).astype(np.float32).copy(),
            mask=np.zeros_like(plain.mask),
        )  # fmt: skip
    return Field(images, "euclid")


def write_store(path: Path, seed: int) -> str:
    field, store = make_field(seed), TileStore.create(str(path))
    boxes = tile_boxes(field.shape, SIDE // 2, 64)
    store.write_manifest([store.write_tile(cut_tile(field, box)) for box in boxes])
    return str(path)


@pytest.fixture(scope="module")
def tile(tmp_path_factory) -> Tile:
    store = TileStore.open(write_store(tmp_path_factory.mktemp("arcs") / "store", 5))
    return store.read_tile("t0000")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Iterator[Path]:
    """Two fields of one sky, and a checkpoint whose lens score was calibrated on quite another."""
    folder = tmp_path_factory.mktemp("rates")
    for name, seed in (("here", 1), ("there", 2)):
        write_store(folder / name, seed)
    count = sum(len(some) for name, some in columns(tiny.PROBLEM).items() if "->" in name)
    rng = np.random.default_rng(0)
    score = Discriminant(
        sigma=2.0, draws=1, flux=(1.0, 3.0), colour=(-1.0, 1.0), mean=((0.0,) * count,) * 6, scale=(1.0,) * count,
        weight=tuple(rng.normal(size=count)), centre=0.0, width=1.0, tail=tuple(np.linspace(-3, 0.5, 7)),
    )  # fmt: skip
    tiny.write_checkpoint(folder, discriminant=score)
    yield folder


@pytest.fixture(scope="module")
def calibrated(work) -> tuple[str, str]:
    """The checkpoint, and what the command printed."""
    import contextlib
    import io

    where = ("--store", str(work / "here"), "--checkpoint", str(work / "tiny"), "--out", str(work / "out"))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["calibrate", *where, *QUICK]) == 0
    return str(work / "out" / "tiny"), said.getvalue()


def test_rates_of_another_field_are_those_of_its_ordinary_objects(work, calibrated):
    where = ("--store", str(work / "there"), "--checkpoint", calibrated[0], "--run", str(work / "run"))
    quick = ("--score-samples", "2", "--score-steps", "1", "--executor", "serial", "--calibrated")
    assert main(["translate", *where, *QUICK, *quick]) == 0
    run, card = RunFolder.open(str(work / "run")), load_checkpoint(calibrated[0]).card
    assert card.discriminant is not None
    score, rate = (
        np.concatenate([run.read_candidates(tile)[name].to_numpy() for tile in run.ok_tiles()])
        for name in ("score", "false_alarm")
    )
    assert len(score) > 60
    raw = card.discriminant.false_alarm(score)
    assert np.abs(np.quantile(raw, [0.2, 0.5, 0.8]) - [0.2, 0.5, 0.8]).max() > 0.25  # there was something to mend
    for level in (0.1, 0.3, 0.5, 0.7):
        assert (rate < level).mean() == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / len(score)))
    assert run.run_json["recalibration"]["false_alarms"] is True


def test_it_says_how_many_objects_and_arcs_are_behind_the_rates(calibrated):
    path, said = calibrated
    recalibration = load_checkpoint(path).card.recalibration
    assert recalibration is not None
    rates = recalibration.false_alarms
    assert rates is not None
    assert list(rates.conditions) == ["lsst i fwhm", "lsst i noise", "euclid VIS fwhm", "euclid VIS noise"]
    assert rates.conditions["lsst i noise"] == pytest.approx((0.53, 0.53), abs=0.01)
    assert recalibration.provenance["objects"] == rates.objects > 55
    assert f"{rates.objects} ordinary objects:" in said
    assert "of them with simulated arcs:" in said


def test_without_arcs_the_rates_are_the_same(work, calibrated, tmp_path, capsys):
    where = ("--store", str(work / "here"), "--checkpoint", str(work / "tiny"), "--out", str(tmp_path))
    assert main(["calibrate", *where, *QUICK, "--no-arcs"]) == 0
    assert "simulated arcs" not in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "tiny").card.recalibration == load_checkpoint(calibrated[0]).card.recalibration


def test_known_lenses_are_no_ordinary_objects_and_get_no_arcs(work, calibrated, tmp_path, capsys):
    """Nine of the galaxies are in a table of lenses, as is one on the other side of the sky."""
    places = np.random.default_rng(1).uniform(10, SIDE - 10, (PLACES, 2))[-9:]  # the brightest of `make_field`
    ra, dec = make_field(1).images["euclid"].wcs.all_pix2world(places[:, 1], places[:, 0], 0)
    table, far = tmp_path / "lenses.csv", tmp_path / "far.csv"
    rows = [f"{a:.7f},{d:.7f}" for a, d in zip(ra, dec, strict=True)]
    opposite = f"{(ra[0] + 180) % 360:.5f},{-dec[0]:.5f}"
    table.write_text("\n".join(["ra,dec", *rows, opposite]) + "\n")
    far.write_text(f"ra,dec\n{opposite}\n")
    where = ["calibrate", "--store", str(work / "here"), "--checkpoint", str(work / "tiny"), *QUICK]
    out = ["--out", str(tmp_path / "out"), "--known-lenses-radius", "0.6"]
    assert main([*where, *out, "--known-lenses", str(table)]) == 0
    said = capsys.readouterr().out
    found, before = (load_checkpoint(path).card.recalibration for path in (tmp_path / "out" / "tiny", calibrated[0]))
    assert found is not None and before is not None
    assert found.provenance["known_lenses"] == 9 and before.provenance["known_lenses"] == 0
    assert 4 <= before.provenance["objects"] - found.provenance["objects"] <= 9  # some lie in one object
    assert "of them with simulated arcs" in said
    assert main([*where, *out, "--known-lenses", str(far)]) == 2
    assert "0 of 1 lenses lie in or around the 4 tiles" in capsys.readouterr().err
    assert main([*where, *out]) == 2
    assert "--known-lenses-radius 0.6 says nothing without --known-lenses" in capsys.readouterr().err


def test_objects_near_a_known_lens_are_left_out_to_the_arcsec():
    away = np.array([0.0, 2.4, 2.6, 40.0, 362.4]) / 3600
    objects = pa.table({"object_id": list("abcde"), "ra": 10 + away / np.cos(np.radians(-30)), "dec": [-30.0] * 5})
    lenses = Targets(np.array([10.0, 10 + 365 / 3600 / np.cos(np.radians(-30))]), np.full(2, -30.0), pa.table({}), 2.5)
    assert without_known(objects, lenses)["object_id"].to_pylist() == ["c", "d", "e"]
    assert without_known(objects, replace(lenses, radius=2.7))["object_id"].to_pylist() == ["d"]
    assert without_known(objects, None) is objects


def test_only_sky_that_a_training_held_back_counts(work, tmp_path, capsys, caplog):
    where = ("--store", str(work / "here"), "--checkpoint", str(work / "tiny"), "--no-arcs", *QUICK)
    order = 17  # cells of 1.6", many of them in the field
    flags = ("--hold-back", "0.3", "--hold-back-order", str(order), "--seed", "4")
    assert main(["calibrate", *where, "--out", str(tmp_path / "o"), *flags]) == 0
    found = load_checkpoint(tmp_path / "o" / "tiny").card.recalibration
    assert found is not None
    wcs = make_field(1).images["euclid"].wcs
    y, x = np.mgrid[:SIDE, :SIDE]
    held = HeldBack(0.3, order, 4).at(*wcs.all_pix2world(x.ravel(), y.ravel(), 0))
    assert sum(found.intervals["lsst->euclid"]["VIS"].pixels) == pytest.approx(held.sum(), abs=9)
    assert 0.2 * SIDE**2 < held.sum() < 0.4 * SIDE**2
    assert found.provenance["held_back"] == {"share": 0.3, "order": order, "seed": 4}
    assert found.false_alarms is None
    assert "ordinary objects in these tiles, but rates of false alarms need 50" in caplog.text
    nowhere = ("--hold-back", "0.01", "--hold-back-order", "4")
    assert main(["calibrate", *where, "--out", str(tmp_path / "p"), *nowhere]) == 2
    assert "shows any of the 1% of the sky that are held back" in capsys.readouterr().err


# -- arcs --


def test_arcs_are_seen_through_the_psf_and_noise_that_the_tile_states(tile):
    seen = {}
    for fwhm, wing in ((0.6, 0.0), (1.1, 0.0), (1.1, 0.4)):
        lsst = replace(tile.images["lsst"], psf_fwhm=(fwhm,) * 3, psf_wing=(wing,) * 3)
        here = replace(tile, images=tile.images | {"lsst": lsst})
        place = np.array([[150.0, 140.0]])
        lit = with_arcs(here, place, default_problem(), np.random.default_rng(3))
        light = {name: lit.images[name].flux - image.flux for name, image in here.images.items()}
        y, x = np.indices(light["lsst"].shape[1:])
        radius = np.hypot(y - 140.0, x - 150.0)
        assert (light["lsst"][:, radius > 92] == 0).all()
        seen[fwhm, wing] = {
            name: (one.sum((1, 2)), (one[-1] * radius**2).sum() / one[-1].sum()) for name, one in light.items()
        }
    fluxes = [one["lsst"][0] for one in seen.values()]
    assert fluxes[1] == pytest.approx(fluxes[0], rel=0.01)
    assert (fluxes[0] > 0).all()
    wide, narrow = seen[1.1, 0.0]["lsst"][1], seen[0.6, 0.0]["lsst"][1]
    added = 2 * (1.1**2 - 0.6**2) / 2.3548**2 / 0.1**2  # second moment of the difference of two Gaussians, pixels^2
    assert wide - narrow == pytest.approx(added, rel=0.05)
    assert seen[1.1, 0.4]["lsst"][1] > wide + 5  # wings
    vis = [one["euclid"] for one in seen.values()]
    assert vis[0][0] == pytest.approx(vis[1][0], rel=1e-5)  # the other end is as it was


def test_coarse_pixels_widen_what_a_finer_grid_shows(tile):
    narrow, wide = (views(tile.images["lsst"], native)[0] for native in (0.1, 0.4))
    assert (narrow.native, wide.native) == (0.1, 0.4)
    assert views(tile.images["euclid"], 0.05)[0].native == 0.1


def test_the_gain_is_that_of_the_variance_where_sources_are_in_it():
    image = tiny.make_image("euclid")
    assert gain_of(image, 0) is None
    flux = np.where(image.mask == 0, np.abs(image.flux), 0).astype(np.float32)
    with_sources = replace(image, flux=flux, variance=(image.variance + flux / 12.1).astype(np.float32))
    assert gain_of(with_sources, 0) == pytest.approx(12.1, rel=0.05)


def test_arcs_at_the_edge_of_a_tile_end_there(tile):
    lit = with_arcs(tile, np.array([[3.0, 253.0]]), default_problem(), np.random.default_rng(1))
    light = lit.images["euclid"].flux - tile.images["euclid"].flux
    assert light.shape == tile.images["euclid"].flux.shape
    assert torch.from_numpy(light).isfinite().all()
