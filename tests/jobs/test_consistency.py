"""Flux consistency of runs: what they state, how they go on, and how a checkpoint learns it from pairs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from astropy.io import fits
from numpy.typing import NDArray

import surveybridge as sb
from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint, save_checkpoint
from surveybridge.bridge_core.conditions import Conditions
from surveybridge.bridge_core.light_relation import LightRelation
from surveybridge.bridge_core.settings import WholeTile
from surveybridge.jobs.calibrating import light
from surveybridge.jobs.translating import request
from surveybridge.jobs.translating.light import compared_light
from surveybridge.jobs.translating.scene import wanted_conditions
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.psf import PsfImage
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import Tile, TileStore
from tests import tiny
from tests.jobs.test_export import place
from tests.jobs.test_shared_start import interrupted, stated
from tests.jobs.test_sweep import list_only, sweep, the_run
from tests.jobs.test_translate import candidates, ledger, results, translate

pytestmark = pytest.mark.long

RELATION = LightRelation(
    "VIS", {"g": 0.2, "r": 0.1, "i": 0.7}, scatter=0.05, error={"lsst->euclid": 0.2, "euclid->lsst": 0.2}
)


def shining(folder: Path, **card: Any) -> str:
    """Write a tiny network that says there is light everywhere."""
    model = load_checkpoint(tiny.write_checkpoint(folder / "dark", patch="tile", **card))
    weights = dict(model.network.state_dict())
    weights["final_conv.bias"] = torch.full_like(weights["final_conv.bias"], 0.5)
    return str(save_checkpoint(model.card, weights, folder / "tiny"))


def with_wings(tile: Tile) -> Tile:
    """A tile whose PSFs are known to be Gaussian."""
    return tiny.with_images(
        tile, **{name: replace(image, psf_wing=(0.0,) * len(image.bands)) for name, image in tile.images.items()}
    )


@pytest.fixture(scope="module")
def knowing(tmp_path_factory) -> str:
    return shining(tmp_path_factory.mktemp("knowing"), consistency=RELATION)


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> str:
    """A store whose PSFs are known, wings and all."""
    return tiny.write_store(tmp_path_factory.mktemp("known") / "tiles", edit=with_wings)


@pytest.fixture(scope="module")
def agreeing(tmp_path_factory, known, knowing) -> Path:
    run = tmp_path_factory.mktemp("run") / "agreeing"
    assert translate(known, run, knowing) == 0
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory, known, knowing) -> Path:
    """A run as earlier versions began it."""
    run = tmp_path_factory.mktemp("run") / "alone"
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr(request, "relation_for", lambda card, direction, windows: None)
        assert translate(known, run, knowing) == 0
    return run


def test_a_run_that_begins_now_states_it_and_its_light_is_another(agreeing, alone):
    for part in (stated(agreeing), stated(agreeing)["fingerprint"]):
        assert part["consistency"] == RELATION.card
    assert "consistency" not in stated(alone)
    one, other = (RunFolder.open(str(run)).read_mosaic() for run in (agreeing, alone))
    np.testing.assert_array_equal(np.isfinite(one.mean), np.isfinite(other.mean))
    assert np.nanmin(one.mean / other.mean) < 0.9
    assert not any(row["psf"] for row in ledger(agreeing).values())


def test_candidates_are_those_of_the_network_alone(agreeing, alone):
    assert results(agreeing) != results(alone)
    one, other = (candidates(run).drop_columns(["run_id"]) for run in (agreeing, alone))
    assert one.num_rows > 0
    # pandas takes NaN for equal to NaN
    pd.testing.assert_frame_equal(one.to_pandas(), other.to_pandas())


def test_it_is_left_out_where_that_is_asked_for_or_windows_are_patches(tmp_path, known, knowing, alone):
    assert translate(known, tmp_path / "off", knowing, "--consistency", "off") == 0
    assert results(tmp_path / "off").keys() == results(alone).keys()
    one, other = (RunFolder.open(str(run)).read_mosaic() for run in (tmp_path / "off", alone))
    np.testing.assert_array_equal(one.mean, other.mean)
    assert translate(known, tmp_path / "patches", knowing, "--patch", "64") == 0
    for run in ("off", "patches"):
        assert "consistency" not in stated(tmp_path / run)


def test_tiles_of_unknown_psf_stay_as_they_are_and_the_ledger_says_why(tmp_path, store, knowing):
    run = tmp_path / "run"
    assert translate(store, run, knowing) == 0
    assert translate(store, tmp_path / "off", knowing, "--consistency", "off") == 0
    assert {row["psf"] for row in ledger(run).values()} == {"light is not compared: the PSF of lsst g is not known"}
    one, other = (RunFolder.open(str(of)).read_mosaic() for of in (run, tmp_path / "off"))
    np.testing.assert_array_equal(one.mean, other.mean)


def test_psfs_that_end_too_near_for_their_wings_to_be_known_are_taken_as_images(known, knowing):
    card, tile = load_checkpoint(knowing).card, TileStore.open(known).read_tile("t0000")
    direction, windows = card.problem.to("euclid"), WholeTile()
    y, x = np.mgrid[-4:5, -4:5]
    small = PsfImage.of(np.exp(-(y**2 + x**2) / 16), 0.1, "a test")
    assert np.isnan(small.wing)

    def images(**changes: Any) -> Tile:
        def changed(image: SurveyImage) -> SurveyImage:
            fields: dict[str, Any] = {
                key: value if key == "provenance" else (value,) * len(image.bands) for key, value in changes.items()
            }
            return replace(image, **fields)

        return tiny.with_images(tile, **{name: changed(image) for name, image in tile.images.items()})

    def compared(of: Tile, wanted: Conditions | None = None) -> str:
        asked = wanted or wanted_conditions(card, of, direction)
        return compared_light(card, RELATION, of, direction, asked, windows)[1]

    shown = images(psf_model=small, psf_fwhm=small.fwhm, psf_wing=np.nan)
    assert compared(shown) == ""
    other = Conditions((2.0,), (0.3,), (np.nan,), (0.0,))
    assert compared(shown, other) == "the PSF of euclid VIS is not known"
    assert compared(images(psf_wing=np.nan)) == "the PSF of lsst g is not known"
    strange = images(provenance={"domain": 'out: lsst bands are HSC_z as i; lsst pixels are 0.1", not 0.2"'})
    assert compared(strange) == "lsst bands are HSC_z as i"
    assert compared(images(provenance={"domain": 'out: lsst pixels are 0.1", not 0.2"'})) == ""
    assert compared(images(psf_fwhm=3.0)).startswith("PSFs need ")


@pytest.mark.parametrize("which", ["agreeing", "alone"])
def test_a_run_goes_on_as_it_began_to_the_bytes_of_one_that_was_not_interrupted(
    tmp_path, known, knowing, which, request
):
    complete = request.getfixturevalue(which)
    run = interrupted(complete, tmp_path / "run", "t0002")
    before = stated(run)
    assert translate(known, run, knowing) == 0
    assert results(run) == results(complete) and stated(run) == before


def test_a_run_whose_light_was_compared_otherwise_is_read_but_not_gone_on_with(
    tmp_path, known, knowing, agreeing, capsys
):
    run = interrupted(agreeing, tmp_path / "run", "t0002")
    document = stated(run)
    for part in (document, document["fingerprint"]):
        part["consistency"] |= {"version": 1}
    (run / "run.json").write_text(json.dumps(document))
    cutout = ["--cutout", f"{place(str(agreeing), 90, 100)},2", "--out", str(tmp_path / "cut.fits")]
    for words in (
        ["translate", "--store", known, "--run", str(run), "--checkpoint", knowing],
        ["export", "--run", str(run), *cutout, "--samples", "2"],
    ):
        assert main(words) == 2
        assert "flux consistency of version 1 but this code knows 2; go on with" in capsys.readouterr().err
    assert np.isfinite(RunFolder.open(str(run)).read_mosaic().mean).any()
    assert main(["status", "--run", str(run)]) in (0, 1)


@pytest.mark.parametrize("which", ["agreeing", "alone"])
def test_samples_are_drawn_again_to_the_bit(tmp_path, which, request):
    run, out = request.getfixturevalue(which), tmp_path / "cut.fits"
    words = ["export", "--run", str(run), "--out", str(out), "--cutout", f"{place(str(run), 90, 100)},2"]
    assert main([*words, "--samples", "2"]) == 0
    header = fits.getheader(out, "SAMPLES_VIS")
    assert header["SB_SAME"] is True and header.get("SB_LIGHT", False) is (which == "agreeing")


def test_a_notebook_says_the_same(known, knowing, agreeing, alone):
    tile = TileStore.open(known).read_tile("t0001")
    model = load_checkpoint(knowing)
    without = replace(model, card=replace(model.card, consistency=None))
    for run, of in ((agreeing, model), (alone, without)):
        found = sb.translate(of, tile, to="euclid", samples=2, steps=2)
        written = RunFolder.open(str(run)).read_tile_mosaic("t0001")
        # the run is in float32, the notebook in bfloat16
        np.testing.assert_allclose(np.nanmedian(found.mean / written.mean), 1, atol=0.02)
        assert found.header.get("SB_LIGHT", False) is (of is model)


def test_a_sweep_goes_on_with_the_run_that_it_began(tmp_path, knowing, monkeypatch):
    runs, store = tmp_path / "runs", tiny.write_store(tmp_path / "tiles", edit=with_wings)
    list_all = list_only(store, "t0000", "t0001")
    with monkeypatch.context() as earlier:
        earlier.setattr(request, "relation_for", lambda card, direction, windows: None)
        assert sweep(store, runs, knowing) == 0
    list_all()
    assert sweep(store, runs, knowing) == 0
    begun = the_run(runs)
    assert len(ledger(begun.url)) == 4 and "consistency" not in begun.run_json
    for _ in range(2):  # one that begins now
        assert sweep(store, tmp_path / "new", knowing) == 0
    assert the_run(tmp_path / "new").run_json["consistency"] == RELATION.card


# ---- learning it


def write_pairs(path: Path, weights: tuple[float, ...], count: int = 32, **attributes: Any) -> str:
    """Write galaxies of scattered colours whose light in VIS is the weighted sum of that in g, r, i."""
    tiny.write_pairs(path, count, **attributes)
    rng, group = np.random.default_rng(3), zarr.open_group(str(path), mode="r+")
    stated: Any = group.attrs["bands"]
    group.attrs["bands"] = {
        band: numbers | {"psf_fwhm_arcsec": 0.17 if band == "VIS" else 0.73, "psf_wing": 0.0}
        for band, numbers in stated.items()
    }
    y, x = np.mgrid[:64, :64] - 31.5
    colours = np.exp(0.4 * rng.normal(size=(count, 3))) * rng.uniform(3e4, 9e4, (count, 1))
    in_vis = colours @ np.array(weights) * np.exp(0.03 * rng.normal(size=count))

    def profile(fwhm: float, scale: float) -> NDArray[Any]:
        sigma = np.hypot(0.3, fwhm / 2.3548) / scale
        return np.asarray(np.exp(-(y**2 + x**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2))

    added = {
        "lsst": colours[:, None, None] * profile(0.73, 0.2)[..., None],
        "euclid": in_vis[:, None, None] * profile(0.17, 0.1),
    }
    for name, more in added.items():
        stamps = zarr.open_array(str(path / name), mode="r+")
        stamps[:] = stamps[:] + more.astype(np.float32)
    return str(path)


def test_weights_scatter_and_errors_are_learnt_from_pairs(tmp_path, capsys, monkeypatch):
    weights = (0.3, 0.0, 0.8)
    monkeypatch.setattr(light, "TRANSLATED", 6)  # whose errors are gross
    pairs, out = write_pairs(tmp_path / "pairs.zarr", weights), tmp_path / "out"
    words = ["calibrate", "--pairs", pairs, "--consistency", "--checkpoint", shining(tmp_path)]
    assert main([*words, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    found = load_checkpoint(str(out / "tiny")).card.consistency
    assert found is not None and found.band == "VIS"
    # the round galaxies that every stamp of the tiny pairs has add a little to all bands alike
    assert list(found.weights.values()) == pytest.approx(weights, abs=0.08)
    assert found.scatter == pytest.approx(0.03, rel=0.5)
    assert found.error.keys() == {"lsst->euclid", "euclid->lsst"} and min(found.error.values()) > 0.2
    assert (found.provenance["bright"], found.provenance["translated"]) == (32, 6)
    assert said.startswith("VIS = ") and "32 bright pairs" in said
    assert load_checkpoint(str(out / "tiny")).sha256 == load_checkpoint(str(tmp_path / "tiny")).sha256


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--consistency"], "0 of 24 pairs are complete, of known PSF and noise"),
        (["--consistency", "--maps"], "--maps and --consistency learn one thing each"),
        (["--consistency", "--draws", "3"], "--draws is not for --consistency"),
    ],
)
def test_what_it_cannot_learn_from_is_refused(tmp_path, capsys, words, why):
    pairs = tiny.write_pairs(tmp_path / "pairs.zarr")  # which say nothing of their PSF
    made = ["--checkpoint", tiny.write_checkpoint(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["calibrate", "--pairs", pairs, *words, *made]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
