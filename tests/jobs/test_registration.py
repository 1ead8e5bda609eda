"""A network that is told conditions is told how the surveys of a tile lie on each other, as their objects show it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from surveybridge.jobs.translating.scene import prepared, scene_of, wanted_conditions
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.tiles import Tile
from tests import tiny
from tests.bridge_core.models import TINY, TO_EUCLID, make_card, random_model
from tests.storage.fits_files import gaussians

SIDE = 240
TOLD = random_model(replace(make_card(network=replace(TINY, conditions=True)), problem=tiny.problem_with()))


def shown(survey: str, shift: tuple[float, float]) -> SurveyImage:
    """Thirty-six galaxies on a grid, moved by so many pixels."""
    image = tiny.make_image(survey, SIDE)
    places = [(y + shift[0], x + shift[1]) for y in range(25, SIDE, 38) for x in range(25, SIDE, 38)]
    sky = gaussians((SIDE, SIDE), places, tiny.SEEING[survey] / 2.3548, 3000.0)
    noise = np.sqrt(np.nan_to_num(image.variance, nan=1.0))
    noisy = sky + noise * np.random.default_rng(3).normal(size=noise.shape)
    return replace(image, flux=np.where(np.isfinite(image.flux), noisy, np.nan).astype(np.float32))


def tile(shift: tuple[float, float]) -> Tile:
    images = {"lsst": shown("lsst", shift), "euclid": shown("euclid", (0.0, 0.0))}
    return Tile("t0", images, core=(0, SIDE, 0, SIDE), origin=(0, 0), grid_id="euclid")


@pytest.mark.parametrize(("shift", "arcsec"), [((0.0, 0.0), 0.005), ((0.6, -0.8), 0.1 / math.sqrt(2))])
def test_both_ways_are_told_the_offset_that_the_objects_show(shift, arcsec):
    found = prepared(TOLD.card, tile(shift))
    wanted = wanted_conditions(TOLD.card, found, TO_EUCLID)
    seen = scene_of(found, "lsst", torch.device("cpu")).conditions
    assert wanted is not None and seen is not None
    assert wanted.registration == seen.registration == found.registration
    assert abs(math.log(found.registration / arcsec)) < 0.2
    assert found.crop((20, 200, 20, 200)).registration == found.registration


def test_a_survey_alone_or_one_without_usable_pixels_lies_nowhere():
    both = tile((0.0, 0.0))
    alone = replace(both, images={"lsst": both.images["lsst"]})
    assert math.isnan(prepared(TOLD.card, alone).registration)
    dark = tiny.with_images(both, lsst=tiny.without_data(both.images["lsst"]))
    assert math.isnan(prepared(TOLD.card, dark).registration)


def test_a_network_that_is_told_nothing_needs_no_offset():
    model = random_model(replace(make_card(), problem=tiny.problem_with()))
    one = tile((0.0, 0.0))
    assert prepared(model.card, one) is one
