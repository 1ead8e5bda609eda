"""Pictures of candidates: which way up, what is grey, and that stretch lifts faint light."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from surveybridge.jobs.drawing.rendering import GREY, candidate_pictures, png, views
from surveybridge.storage.problems import default_problem


@pytest.fixture
def row():
    """A faint source above a noisy sky, in the upper half (large y) of every thumbnail."""
    rng = np.random.default_rng(0)
    stamps = {
        "lsst": rng.normal(0, 1, (3, 64, 64)),
        "euclid": rng.normal(0, 1, (1, 64, 64)),
        "mean": rng.normal(0, 0.1, (1, 64, 64)),
        "error": np.abs(rng.normal(0, 0.1, (1, 64, 64))),
    }
    for stamp in stamps.values():
        stamp[:, 46:52, 30:36] += 6.0
    stamps["euclid"][:, 10, 10] = np.nan
    return {f"thumbnail_{name}": stamp.astype(np.float32).ravel() for name, stamp in stamps.items()}


def test_every_view_has_its_picture_with_the_first_row_at_the_top(row):
    pictures = candidate_pictures(row, default_problem())
    assert set(pictures) == set(views(default_problem()))
    for name in ("lsst", "euclid", "mean", "error"):
        picture = pictures[name]
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        upper, lower = picture[12:18, 30:36].mean(), picture[46:52, 30:36].mean()
        assert upper > lower + 20, name


def test_what_is_not_known_is_grey_and_nothing_else_is(row):
    grey = np.round(255 * np.array(GREY))
    pictures = candidate_pictures(row, default_problem())
    for name in ("euclid", "residual"):
        assert np.argwhere((pictures[name] == grey).all(axis=-1)).tolist() == [[63 - 10, 10]]
    nothing = {name: np.full_like(stamp, np.nan) for name, stamp in row.items()}
    for picture in candidate_pictures(nothing, default_problem()).values():
        assert (picture == grey).all()


def test_stretch_lifts_faint_light(row):
    plain, lifted = candidate_pictures(row, default_problem()), candidate_pictures(row, default_problem(), stretch=4.0)
    for name in ("lsst", "euclid"):
        assert lifted[name][12:18, 30:36].mean() > plain[name][12:18, 30:36].mean() + 10, name


def test_png_holds_the_picture(row):
    picture = candidate_pictures(row, default_problem())["lsst"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), picture)
