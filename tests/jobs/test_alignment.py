"""Ingest finds by how much the images of one survey are off, and takes it back where that is certain."""

from __future__ import annotations

import numpy as np
import pytest

from surveybridge.__main__ import main
from surveybridge.jobs.translating.alignment import STRIP_PIXELS, strips
from surveybridge.jobs.translating.registration import with_registration
from surveybridge.storage.grids import pixel_to_pixel
from surveybridge.storage.tiles import TileStore
from tests.storage.fits_files import gaussians, tan_wcs, write_survey_file

pytestmark = pytest.mark.long

FINE, COARSE = (400, 420), (240, 250)


def survey_files(folder, places, shift=(0.0, 0.0), rotation=2.0, turn=0.0):
    """Files of both surveys; LSST's WCS is off by a shift (arcsec to the east and north) and a turn (degrees)."""
    rng = np.random.default_rng(3)
    euclid = tan_wcs(FINE, 0.1)
    stated = tan_wcs(COARSE, 0.2, rotation=rotation)
    true = tan_wcs(
        COARSE, 0.2, rotation=rotation + turn,
        ra=53.0 - shift[0] / 3600 / np.cos(np.deg2rad(28.0)), dec=-28.0 - shift[1] / 3600,
    )  # fmt: skip
    header = {"BUNIT": "nJy", "PSFFWHM": 0.16}
    vis = gaussians(FINE, places, 1.0, 600.0) + rng.normal(0, 1, FINE)
    named = [f"euclid.VIS={write_survey_file(folder / 'vis.fits', vis, euclid, header=header)}"]
    there = np.stack(pixel_to_pixel(euclid, true, places[:, 0], places[:, 1]), -1)
    for band in "gri":
        image = gaussians(COARSE, there, 1.6, 900.0) + rng.normal(0, 1, COARSE)
        header = {"BUNIT": "nJy", "PSFFWHM": 0.75}
        named.append(f"lsst.{band}={write_survey_file(folder / f'{band}.fits', image, stated, header=header)}")
    return named


def ingested(folder, named, *more):
    store = str(folder / "tiles")
    assert main(["ingest", "--image", *named, "--store", store, "--tile-size", "512", *more]) == 0
    tile = TileStore.open(store).read_tile("t0000")
    return tile.images["lsst"].provenance, with_registration(tile).registration


@pytest.fixture(scope="module")
def places():
    rng = np.random.default_rng(1)
    lattice = np.stack(np.meshgrid(np.arange(25, 390, 40.0), np.arange(25, 390, 40.0), indexing="ij"), -1)
    return lattice.reshape(-1, 2) + rng.uniform(-8, 8, (lattice.size // 2, 2))


@pytest.mark.parametrize("shift, turn", [((0.07, -0.05), 0.0), ((-0.9, 1.1), 0.0), ((0.04, 0.0), 0.15)])
def test_a_shift_and_a_turn_are_taken_back(tmp_path, places, shift, turn):
    told, left = ingested(tmp_path, survey_files(tmp_path, places, shift, turn=turn))
    assert f"lsst is off by {np.hypot(*shift):.2f}"[:-1] in told["alignment"] and "against euclid" in told["alignment"]
    assert left <= 0.01


def test_images_that_lie_right_are_left_as_they_are(tmp_path, places):
    told, left = ingested(tmp_path, survey_files(tmp_path, places, (0.004, 0.0)))
    assert "alignment" not in told and left <= 0.01


def test_it_is_not_done_where_it_is_not_wanted_or_too_few_objects_say_it(tmp_path, places, caplog):
    named = survey_files(tmp_path, places, (0.1, 0.0))
    told, left = ingested(tmp_path, named, "--no-align")
    assert "alignment" not in told and left == pytest.approx(0.07, abs=0.02)
    (tmp_path / "few").mkdir()
    caplog.set_level("INFO")
    told, left = ingested(tmp_path / "few", survey_files(tmp_path / "few", places[:6], (0.1, 0.0)))
    assert "alignment" not in told and np.isnan(left)
    assert "it takes a dozen bright objects" in caplog.text


def test_strips_cover_a_small_field_and_the_ends_of_a_large_one():
    assert strips((400, 420)) == [(0, 400)]
    rows = STRIP_PIXELS // 20_000
    found = strips((30_000, 20_000))
    assert [stop - start for start, stop in found] == [rows] * 3
    assert found[0][0] == 0 and found[-1][1] == 30_000
