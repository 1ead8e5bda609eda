"""Residuals in rings: of the pixels that are there, signed, and from one network call a direction and noise."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from surveybridge.bridge_core.anomaly import score_windows
from surveybridge.bridge_core.discriminant import Discriminant
from surveybridge.bridge_core.residuals import (
    RINGS_ARCSEC,
    Asked,
    Cutouts,
    columns,
    measure,
    ring_features,
    ring_masks,
)
from surveybridge.bridge_core.settings import Scoring
from tests.bridge_core.models import PROBLEM, analytic_model, gaussian_denoiser, make_card, random_model

RINGS = len(RINGS_ARCSEC) - 1
SIZE = 64
HOW = Scoring(samples=2, steps=2, seed=1, batch=4, precision="float32")


def windows(n: int = 3) -> Cutouts:
    torch.manual_seed(0)
    lsst, euclid = 0.1 * torch.randn(2, n, 3, SIZE, SIZE)
    euclid = euclid[:, :1].expand(-1, 3, -1, -1).contiguous()
    valid = torch.ones(n, 1, SIZE, SIZE, dtype=torch.bool)
    return Cutouts(lsst, euclid, valid, [(0, SIZE * k) for k in range(n)])


def discriminant(features: int = 70) -> Discriminant:
    rng = np.random.default_rng(0)
    mean = tuple(tuple(row) for row in rng.normal(size=(6, features)).tolist())
    weight = tuple(rng.normal(size=features).tolist())
    return Discriminant(
        2.0, 2, (1.0, 4.0), (0.0, 3.0), mean, (1.0,) * features, weight, 0.0, 1.0, (0, 1, 1.3, 1.6, 2, 2.3, 2.6)
    )


def test_rings_share_the_pixels_out():
    rings = ring_masks((SIZE, SIZE), 0.1)
    assert rings.shape == (RINGS, SIZE, SIZE)
    assert rings.sum(0).max() == 1
    for ring, (low, high) in zip(rings, itertools.pairwise(RINGS_ARCSEC), strict=True):
        assert float(ring.sum()) == pytest.approx(math.pi * (high**2 - low**2) / 0.01, rel=0.15)
    assert torch.equal(rings, rings.flip(1).flip(2))


def test_signed_and_squared_residuals_of_a_ring():
    rings = ring_masks((SIZE, SIZE), 0.1)
    residual = torch.zeros(1, 2, SIZE, SIZE, dtype=torch.float64)
    residual[0, 0] = 0.5 * rings[2]
    residual[0, 1] = -0.25 * rings[2]
    found = ring_features(residual, torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool), rings, 1.5)
    assert found.shape == (1, 7 * RINGS)
    signed, squared = found[0, : 2 * RINGS].view(2, RINGS), found[0, 2 * RINGS : 3 * RINGS]
    highest, lowest = found[0, 3 * RINGS :].view(2, 2, RINGS)
    assert signed[:, 2].tolist() == pytest.approx([0.5, -0.25])
    assert signed[:, [0, 1, 3, 4]].abs().max() == 0
    assert float(squared[2].exp()) == pytest.approx(0.5**2 + 0.25**2)
    assert 0.3 < highest[0, 2] < 0.5
    assert -0.25 < lowest[1, 2] < -0.15
    assert highest[0, 2] == highest[0].max()


def test_a_spot_of_light_is_the_highest_place_of_its_ring_and_no_other():
    rings = ring_masks((SIZE, SIZE), 0.1)
    residual = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.float64)
    residual[0, 0, 32, 42] = 10.0  # an arcsec from the middle
    found = ring_features(residual, torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool), rings, 1.5)
    highest = found[0, 2 * RINGS : 3 * RINGS]
    assert int(highest.argmax()) == 2
    assert float(highest[2]) == pytest.approx(10 / (2 * math.pi * 1.5**2), rel=0.05)
    assert float(highest[[0, 4]].abs().max()) < 0.01


def test_columns_name_every_number_once():
    kinds = columns(PROBLEM)
    assert sorted(kinds["euclid->lsst"] + kinds["lsst->euclid"]) == list(range(70))
    assert sorted(k for kind in ("signed", "squared", "highest", "lowest") for k in kinds[kind]) == list(range(70))
    assert [len(kinds[kind]) for kind in ("signed", "squared")] == [4 * RINGS, 2 * RINGS]


def test_masked_pixels_do_not_count_and_an_empty_ring_is_unknown():
    rings = ring_masks((SIZE, SIZE), 0.1)
    residual = torch.ones(1, 1, SIZE, SIZE, dtype=torch.float64)
    residual[..., 40:] = 1e6
    valid = torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool)
    valid[..., 40:] = False
    assert ring_features(residual, valid, rings, 1.5)[0, :RINGS].tolist() == pytest.approx([1] * RINGS)
    valid[:] = rings[0] == 0
    assert math.isnan(ring_features(residual, valid, rings, 1.5)[0, 0])


def test_residual_of_a_model_that_is_right_is_the_noise_it_cannot_know():
    """Both surveys alike up to 0.1 network units, and a model that knows it: the mean residual vanishes."""
    model = analytic_model(gaussian_denoiser(1.0, 0.0, 0.1))
    lsst, _, valid, corners, _ = windows(6)
    euclid = lsst.mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous()
    measured = measure(model, Cutouts(lsst, euclid, valid, corners), Asked(2.0, 2, precision="float32"))
    assert measured.features.shape == (2, 6, 70)
    assert np.abs(measured.features[..., : 3 * RINGS]).max() < 0.1
    assert len(model.calls) == 2 * 2 * 1  # noises, directions, one batch


def test_light_that_only_euclid_shows_is_positive_there():
    model = analytic_model(gaussian_denoiser(1.0, 0.0, 0.05))
    lsst, euclid, valid, corners, _ = windows(1)
    lsst, euclid = torch.zeros_like(lsst), torch.zeros_like(euclid)
    euclid += ring_masks((SIZE, SIZE), 0.1)[2].float()
    found = measure(model, Cutouts(lsst, euclid, valid, corners), Asked(2.0, 1, precision="float32")).features[0, 0]
    to_lsst, to_euclid = found[: 10 * RINGS], found[10 * RINGS :]
    assert to_euclid[2] > 0.9
    assert np.allclose(to_lsst[[2, 2 + RINGS, 2 + 2 * RINGS]], -1, atol=0.1)  # LSST lacks it in all bands


@pytest.mark.parametrize("share, sees", [(0.1, False), (0.0, True)])
def test_at_the_end_a_network_that_begins_with_nothing_does_not_see_what_it_predicts(share, sees):
    card = make_card()
    model = random_model(replace(card, objective=replace(card.objective, end_share=share)))
    asked = Asked(float(card.bridge.sigma[-1]), 1, precision="float32")
    lsst, euclid, valid, corners, _ = windows(2)
    one, other = (
        measure(model, Cutouts(lsst, euclid + more, valid, corners), asked).features[0] for more in (0.0, 0.25)
    )
    there = columns(PROBLEM)
    signed = sorted(set(there["lsst->euclid"]) & set(there["signed"]))
    moved = np.abs(other[:, signed] - one[:, signed] - 0.25).max()
    assert (moved > 1e-4) == sees


def test_flux_and_colour_are_those_of_the_observed_survey():
    model = analytic_model(gaussian_denoiser(1.0, 0.0, 0.05))
    flux = torch.zeros(1, 3, SIZE, SIZE)
    flux[:, :, 32, 32] = torch.tensor([100.0, 200.0, 400.0])
    lsst = PROBLEM["lsst"].forward(flux, 3)
    _, euclid, valid, corners, _ = windows(1)
    measured = measure(model, Cutouts(lsst, euclid, valid, corners), Asked(2.0, 1, precision="float32"))
    assert measured.flux[0] == pytest.approx(math.log10(400), abs=1e-3)
    assert measured.colour[0] == pytest.approx(2.5 * math.log10(4), abs=1e-3)


def test_a_calibrated_checkpoint_scores_with_the_discriminant_and_keeps_the_published_score():
    card = make_card()
    plain, calibrated = random_model(card), random_model(replace(card, discriminant=discriminant()))
    lsst, euclid, valid, corners, _ = windows()
    before, after = (score_windows(model, Cutouts(lsst, euclid, valid, corners), HOW) for model in (plain, calibrated))
    assert torch.equal(before.score, before.published)
    assert before.false_alarm.isnan().all()
    assert torch.equal(after.published, before.published)
    assert not torch.equal(after.score, before.score)
    assert ((after.false_alarm > 0) & (after.false_alarm <= 1)).all()
    assert (after.score_std > 0).all()


def test_lens_score_does_not_depend_on_batch_or_company():
    model = random_model(replace(make_card(), discriminant=discriminant()))
    lsst, euclid, valid, corners, _ = windows(5)
    together = score_windows(model, Cutouts(lsst, euclid, valid, corners), HOW)
    alone = score_windows(model, Cutouts(lsst[3:4], euclid[3:4], valid[3:4], corners[3:4]), replace(HOW, batch=1))
    assert float(alone.score[0]) == pytest.approx(float(together.score[3]), rel=1e-4)


def test_an_object_of_which_too_little_is_seen_has_no_score():
    model = random_model(replace(make_card(), discriminant=discriminant()))
    lsst, euclid, valid, corners, _ = windows(2)
    valid[0, :, 8:] = False
    scores = score_windows(model, Cutouts(lsst, euclid, valid, corners), HOW)
    for number in (scores.score, scores.false_alarm, scores.published):
        assert number.isnan().tolist() == [True, False]
