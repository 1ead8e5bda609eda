"""The noise of the sky of an image and of parts of it: by the definition, written out, and once for an image."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest

from surveybridge.storage import images
from surveybridge.storage.images import HIGHEST_VARIANCE, LEAST_SKY, MASK_PLANES, SKY_SIGMA, SurveyImage, noise_in
from surveybridge.storage.tiles import TileStore
from tests.tiny import write_store

SIDE = 60


def by_definition(image: SurveyImage, box: tuple[slice, slice]) -> list[float]:
    """What `noise_in` says of a box."""
    found = []
    for flux, variance, mask in zip(image.flux, image.variance, image.mask, strict=True):
        flux, variance, usable = flux[box], variance[box].astype(np.float64), mask[box] == 0
        with np.errstate(invalid="ignore"):
            sky = variance[usable & (np.abs(flux) < SKY_SIGMA * np.sqrt(variance))]
        known = sky if sky.size >= LEAST_SKY else variance[usable & (variance > 0)]
        known = known[known <= HIGHEST_VARIANCE * np.median(known)] if known.size else known
        found.append(float(f"{np.sqrt(known.mean()):.2g}") if known.size else math.nan)
    return found


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> SurveyImage:
    """A sky that gets noisier to the right, with a galaxy, holes, single wild variances and none at all in a corner."""
    tile = TileStore.open(write_store(tmp_path_factory.mktemp("noise") / "tiles")).read_tile("t0000")
    rng = np.random.default_rng(4)
    variance = np.broadcast_to(np.linspace(1, 9, SIDE), (3, SIDE, SIDE)) * rng.uniform(0.9, 1.1, (3, SIDE, SIDE))
    flux = np.sqrt(variance) * rng.standard_normal((3, SIDE, SIDE))
    y, x = np.indices((SIDE, SIDE)) - SIDE / 2
    flux += 300 * np.exp(-(x**2 + y**2) / 50)
    mask = np.where(rng.random((3, SIDE, SIDE)) < 0.05, MASK_PLANES["BAD"], 0).astype(np.uint8)
    variance[rng.random((3, SIDE, SIDE)) < 0.002] = 1e6
    variance[:, :4, :4], variance[:, 4:8, :4], variance[:, 8:12, :4] = np.nan, 0.0, -1.0
    return replace(
        tile.images["lsst"], flux=flux.astype(np.float32), variance=variance.astype(np.float32), mask=mask
    )  # fmt: skip


def test_parts_of_an_image_have_the_noise_of_the_definition(image):
    rng = np.random.default_rng(5)
    boxes = [np.s_[:, :], np.s_[0:4, 0:4], np.s_[0:12, 0:4], np.s_[26:34, 26:34], np.s_[70:80, 0:9]]
    for half in (1, 3, 15):
        boxes += [
            np.s_[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
            for y, x in rng.integers(0, SIDE, (40, 2))
        ]
    found = noise_in(image, boxes)
    np.testing.assert_array_equal(found, [by_definition(image, box) for box in boxes])
    assert np.isnan(found[1]).all() and np.isfinite(found[0]).all()
    assert len({noises for noises in found if not math.isnan(noises[0])}) > 20


def test_an_image_is_looked_at_once_and_what_was_seen_travels_with_it(image, monkeypatch):
    image = replace(image)
    expected = image.sky_noise
    assert list(expected) == by_definition(image, np.s_[:, :])
    monkeypatch.setattr(images, "noise_in", lambda *_: pytest.fail("looked at again"))
    assert pickle.loads(pickle.dumps(image)).sky_noise == image.sky_noise == expected


def test_other_pixels_are_looked_at_anew(image):
    assert image.sky_noise != replace(image, variance=4 * image.variance, flux=2 * image.flux).sky_noise
