"""Runs on images of another PSF than the checkpoint was trained on: what is done, stated, resumed and drawn again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.conditions import ConditionRanges
from surveybridge.bridge_core.model import Card
from surveybridge.jobs.translating.homogenising import Homogenisation
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import TileStore
from tests import tiny

pytestmark = pytest.mark.long

FAST = ["--samples", "2", "--steps", "2", "--score-samples", "2", "--score-steps", "2", "--executor", "serial"]

TRAINED = {"lsst": {"g": 0.77, "r": 0.73, "i": 0.71}, "euclid": {"VIS": 0.16}}


def ranges(spread: float = 1.0) -> ConditionRanges:
    """One Gaussian PSF of each band, or a range of widths."""
    return ConditionRanges(
        {
            end: {
                "fwhm": {band: (fwhm, fwhm * spread) for band, fwhm in bands.items()},
                "wing": {band: (0.0, 0.0) for band in bands},
            }
            for end, bands in TRAINED.items()
        }
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("trained"), conditions=ranges())


def store_at(path: Path, *lsst: float, wing: float = 0.0, **more) -> str:
    """The tiny store with other PSFs of g, r, i."""

    def edit(tile):
        images = {
            "lsst": replace(tile.images["lsst"], psf_fwhm=lsst, psf_wing=(wing,) * 3),
            "euclid": replace(tile.images["euclid"], psf_fwhm=(0.2,), psf_wing=(0.3,)),
        }
        return tiny.with_images(tile, **images)

    return tiny.write_store(path, edit=edit, **more)


def translate(run: Path, store: str, checkpoint: str, *more: str) -> int:
    return main(["translate", "--store", store, "--run", str(run), "--checkpoint", checkpoint, *FAST, *more])


def rows(run: Path) -> list[str | None]:
    return RunFolder.open(run).ledger()["psf"].to_pylist()


@pytest.fixture(scope="module")
def blurred(tmp_path_factory, checkpoint) -> Path:
    """A store whose g is sharper, r the same and i has wings, translated with and without homogenisation."""
    folder = tmp_path_factory.mktemp("blurred")
    store = store_at(folder / "tiles", 0.6, 0.735, 0.7)
    assert translate(folder / "auto", store, checkpoint) == 0
    assert translate(folder / "off", store, checkpoint, "--homogenise", "off") == 0
    return folder


def test_a_run_states_the_psfs_that_it_goes_for_and_its_ledger_what_was_done_by_band(blurred):
    stated = json.loads((blurred / "auto" / "run.json").read_text())["fingerprint"]["homogenise"]
    assert stated == {
        "psfs": {"lsst": {"g": "gaussian:0.77", "r": "gaussian:0.73", "i": "gaussian:0.71"}},
        "noise": 1.5,
    }
    said = set(rows(blurred / "auto"))
    assert len(said) == 1
    (text,) = said
    assert text is not None
    assert text.startswith('lsst g 0.6" to 0.77", noise x 0.') and "lsst r" not in text and "euclid" not in text
    assert "homogenise" not in json.loads((blurred / "off" / "run.json").read_text())
    assert set(rows(blurred / "off")) == {None}


def test_the_network_sees_the_homogenised_image_and_the_catalog_measures_the_other(blurred):
    with_it, without = (RunFolder.open(blurred / name) for name in ("auto", "off"))
    for tile in with_it.ok_tiles():
        means = [run.read_tile_mosaic(tile).mean for run in (with_it, without)]
        assert not np.array_equal(means[0], means[1], equal_nan=True)
        found = [run.read_candidates(tile) for run in (with_it, without)]
        for column in ("object_id", "ra", "dec", "flux_g", "snr_g", "flux_VIS", "extent"):
            assert found[0][column].equals(found[1][column]), column
        assert not found[0]["score"].equals(found[1]["score"])


def test_images_with_the_psf_of_training_give_the_same_bytes_as_without(tmp_path, checkpoint):
    store = store_at(tmp_path / "tiles", 0.78, 0.73, 0.70)
    assert translate(tmp_path / "auto", store, checkpoint) == 0
    assert translate(tmp_path / "off", store, checkpoint, "--homogenise", "off") == 0
    assert set(rows(tmp_path / "auto")) == {None}
    with_it, without = (RunFolder.open(tmp_path / name) for name in ("auto", "off"))
    assert len(with_it.ok_tiles()) == 4
    for tile in with_it.ok_tiles():
        for name in ("mean", "std", "coverage"):
            pixels = [getattr(run.read_tile_mosaic(tile), name) for run in (with_it, without)]
            np.testing.assert_array_equal(pixels[0], pixels[1])
        scores = [run.read_candidates(tile)["score"] for run in (with_it, without)]
        assert scores[0].equals(scores[1])


def test_a_run_from_before_goes_on_without_and_refuses_to_begin_now(tmp_path, checkpoint, capsys):
    store = store_at(tmp_path / "tiles", 0.6, 0.735, 0.7)
    run = tmp_path / "run"
    assert translate(run, store, checkpoint, "--homogenise", "off") == 0
    before = tiny.files_of(run, "mosaics")
    for part in ("ledger", "mosaics", "candidates"):
        (run / part / "t0002.parquet").unlink()
    assert translate(run, store, checkpoint, "--homogenise", "auto") == 2
    assert "has homogenise None but this run has {'psfs'" in capsys.readouterr().err
    assert translate(run, store, checkpoint) == 0
    assert tiny.files_of(run, "mosaics") == before


def test_a_run_goes_on_as_it_began_whatever_the_default_is_and_refuses_another_bound(
    blurred, tmp_path, checkpoint, capsys
):
    store, run = str(blurred / "tiles"), tmp_path / "run"
    assert translate(run, store, checkpoint, "--psf-noise", "1.2") == 0
    before = tiny.files_of(run, "mosaics")
    for part in ("ledger", "mosaics", "candidates"):
        (run / part / "t0001.parquet").unlink()
    assert translate(run, store, checkpoint) == 0
    assert tiny.files_of(run, "mosaics") == before
    assert translate(run, store, checkpoint, "--homogenise", "auto", "--psf-noise", "1.3") == 2
    assert "'noise': 1.2" in capsys.readouterr().err
    assert translate(run, store, checkpoint, "--homogenise", "off") == 2


def test_samples_of_a_homogenised_run_are_drawn_again_to_the_bit(blurred, tmp_path):
    out = tmp_path / "cut.fits"
    request = ["export", "--run", str(blurred / "auto"), "--out", str(out), "--samples", "2"]
    ra, dec = TileStore.open(blurred / "tiles").read_tile("t0000").images["euclid"].wcs.all_pix2world(60, 60, 0)
    assert main([*request, "--cutout", f"{float(ra)},{float(dec)},2"]) == 0
    assert fits.getheader(out, "SAMPLES_VIS")["SB_SAME"] is True


def test_a_tile_with_too_narrow_a_halo_stays_as_it_is_and_says_so(tmp_path, checkpoint):
    store = store_at(tmp_path / "tiles", 0.6, 0.6, 0.6, halo=12)
    assert translate(tmp_path / "run", store, checkpoint) == 0
    for text in rows(tmp_path / "run"):
        assert text is not None
        assert text.count("as it is") == 3 and "pixels around a tile and there are 12" in text


def test_a_field_of_one_tile_needs_no_halo(tmp_path, checkpoint):
    store = store_at(tmp_path / "tiles", 0.6, 0.6, 0.6, halo=0, tile_size=tiny.SIDE)
    assert translate(tmp_path / "run", store, checkpoint) == 0
    (text,) = rows(tmp_path / "run")
    assert text is not None and 'lsst i 0.6" to 0.71"' in text and "as it is" not in text


def test_a_checkpoint_without_a_psf_or_trained_on_a_range_of_them_calls_for_none(tmp_path):
    plain = load_checkpoint(tiny.write_checkpoint(tmp_path, "plain")).card
    several = load_checkpoint(tiny.write_checkpoint(tmp_path, "several", conditions=ranges(1.6))).card
    assert Homogenisation.of_card(plain, 1.5) is None
    assert Homogenisation.of_card(several, 1.5) is None


@pytest.mark.parametrize("name", ["mosaic-v2", "cutout-v1"])
def test_shipped_checkpoints_call_for_the_psfs_of_their_training_pairs(name):
    card: Card = load_checkpoint(name).card
    found = Homogenisation.of_card(card, 1.5)
    assert found is not None
    assert found.psfs == {"lsst": {"g": "gaussian:0.77", "r": "gaussian:0.73", "i": "gaussian:0.71"}}
    assert Homogenisation.of_document(found.document) == found
