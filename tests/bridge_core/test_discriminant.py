"""The lens score: it knows lenses from regular objects, and does not measure the flux."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression

from surveybridge.bridge_core.discriminant import CLIP, TAIL, Discriminant, Measured, fit, logistic_weights, surprise
from surveybridge.bridge_core.ranking import auroc

RNG = np.random.default_rng(5)
FEATURES = 6


def population(regular: int = 1500, lenses: int = 300, seed: int = 0) -> tuple[Measured, np.ndarray, np.ndarray]:
    """Residuals that grow with flux for all, and lenses, which are bright, with an excess in two numbers."""
    rng = np.random.default_rng(seed)
    lens = np.repeat([False, True], [regular, lenses])
    flux = rng.normal(3.0, 0.5, len(lens)) + 0.6 * lens
    colour = rng.normal(1.5, 0.6, len(lens))
    trend = np.outer(flux - 3, rng.normal(size=FEATURES)) + np.outer(colour - 1.5, rng.normal(size=FEATURES))
    features = trend + rng.normal(size=(2, len(lens), FEATURES)) * 0.1 + rng.normal(size=(len(lens), FEATURES))
    features[:, lens, 1] += 1.5
    features[:, lens, 4] -= 1.5
    return Measured(features, flux, colour), lens, np.arange(len(lens))


@pytest.fixture(scope="module")
def fitted():
    measured, lens, groups = population()
    return measured, lens, *fit(measured, lens, groups, sigma=2.0)


def test_it_tells_lenses_from_objects_it_has_not_seen(fitted):
    measured, lens, discriminant, held_out = fitted
    assert auroc(held_out, lens) > 0.9
    other, kinds, _ = population(seed=1)
    assert auroc(discriminant.score(other.features.mean(0), other.flux, other.colour), kinds) < 1
    # shuffled labels teach nothing: the held-out score is honest
    nothing = RNG.permutation(lens)
    _, blind = fit(measured, nothing, np.arange(len(lens)), sigma=2.0)
    assert abs(auroc(blind, nothing) - 0.5) < 0.06


def test_score_of_regular_objects_does_not_follow_their_flux(fitted):
    measured, lens, _, held_out = fitted
    assert abs(spearmanr(held_out[~lens], measured.flux[~lens]).statistic) < 0.06
    assert abs(spearmanr(held_out[~lens], measured.colour[~lens]).statistic) < 0.06


def test_false_alarm_rate_is_the_share_of_regular_objects_above(fitted):
    _, lens, discriminant, held_out = fitted
    rate = discriminant.false_alarm(held_out[~lens])
    for share in (0.3, 0.1, 0.03, 0.01):
        assert np.mean(rate < share) == pytest.approx(share, abs=0.3 * share + 0.002)
    scores = np.linspace(-10, 20, 500)
    rates = discriminant.false_alarm(scores)
    assert (np.diff(rates) <= 0).all()
    assert (rates > 0).all()
    assert (rates <= 1).all()
    assert np.allclose(discriminant.false_alarm(np.array(discriminant.tail)), TAIL)


def test_objects_that_share_pixels_stay_in_one_fold():
    """Lenses made of the regular objects themselves, with a label that only the twin knows."""
    rng = np.random.default_rng(2)
    half = 400
    features = rng.normal(size=(1, half, 40))
    measured = Measured(np.concatenate([features, features], 1), rng.normal(size=2 * half), rng.normal(size=2 * half))
    lens = np.repeat([False, True], half)
    _, score = fit(measured, lens, np.tile(np.arange(half), 2), sigma=2.0)
    assert auroc(score, lens) == pytest.approx(0.5, abs=0.06)


def test_unknown_numbers_count_as_those_of_a_regular_object(fitted):
    measured, _, discriminant, _ = fitted
    features = measured.features.mean(0)[:5].copy()
    features[:, 2] = np.nan
    z = discriminant.standardise(features, measured.flux[:5], measured.colour[:5])
    assert (z[:, 2] == 0).all()
    assert np.isfinite(discriminant.score(features, measured.flux[:5], measured.colour[:5])).all()


def test_one_wild_number_is_bounded(fitted):
    measured, _, discriminant, _ = fitted
    wild = measured.features.mean(0)[:1] + 1e6
    assert np.abs(discriminant.standardise(wild, measured.flux[:1], measured.colour[:1])).max() == CLIP


def test_objects_beyond_the_fitted_range_are_taken_as_at_its_edge(fitted):
    measured, _, discriminant, _ = fitted
    features = measured.features.mean(0)[:3]
    edge, colour = np.full(3, discriminant.flux[1]), measured.colour[:3]
    assert np.array_equal(discriminant.score(features, edge, colour), discriminant.score(features, edge + 4, colour))


def test_it_survives_its_json(fitted):
    discriminant = fitted[2]
    assert Discriminant.from_card(json.loads(json.dumps(discriminant.card))) == discriminant


def test_weights_are_those_of_logistic_regression():
    z, labels = RNG.normal(size=(400, 5)), RNG.random(400) < 0.3
    z[labels, 0] += 1
    expected = LogisticRegression(C=0.05, tol=1e-8).fit(z, labels).coef_[0]
    assert logistic_weights(z, labels) == pytest.approx(expected, abs=1e-4)


def test_surprise_needs_no_lens_and_finds_what_is_unlike_regular_objects():
    measured, lens, _ = population()
    distance = surprise(measured, ~lens)
    assert distance[~lens].mean() == pytest.approx(FEATURES, rel=0.05)  # chi square
    assert 0.7 < auroc(distance, lens) < auroc(fit(measured, lens, np.arange(len(lens)), sigma=2.0)[1], lens)


# -- where the network is told conditions --


def told_population(number: int = 4000, seed: int = 0) -> tuple[Measured, np.ndarray]:
    """Residuals that grow with the seeing, of which lenses have too much in bad seeing and too little in good."""
    rng = np.random.default_rng(seed)
    measured, lens, _ = population(number * 4 // 5, number // 5, seed)
    seeing = rng.uniform(-1, 1, number)
    features = measured.features.copy()
    features[:, lens, 1] += 1.5 * seeing[lens] - 1.5
    features[:, lens, 4] += 1.5 * seeing[lens] + 1.5
    features = features * np.exp(0.4 * seeing[:, None]) + 2.0 * seeing[:, None]
    return Measured(features, measured.flux, measured.colour, {"seeing": seeing, "depth": np.full(number, 0.3)}), lens


@pytest.fixture(scope="module")
def told():
    measured, lens = told_population()
    return measured, lens, *fit(measured, lens, np.arange(len(lens)), sigma=2.0)


def test_who_is_told_conditions_finds_more_lenses_than_who_is_not(told):
    measured, lens, _, held_out = told
    _, blind = fit(measured._replace(conditions={}), lens, np.arange(len(lens)), sigma=2.0)
    assert auroc(held_out, lens) > auroc(blind, lens) + 0.05


def test_false_alarms_are_as_frequent_under_all_conditions(told):
    _, _, discriminant, _ = told
    other, lens = told_population(20_000, seed=3)
    score = discriminant.score(other.features.mean(0), *other[1:])
    rate = discriminant.false_alarm(score)
    for part in (other.conditions["seeing"] < -0.5, other.conditions["seeing"] > 0.5):
        assert (rate[part & ~lens] < 0.05).mean() == pytest.approx(0.05, abs=0.02)


def test_unknown_conditions_count_as_those_in_the_middle(told):
    measured, _, discriminant, _ = told
    features, flux, colour = measured.features.mean(0)[:9], measured.flux[:9], measured.colour[:9]
    low, high = discriminant.conditions["seeing"]
    middle = {"seeing": np.full(9, (low + high) / 2), "depth": np.full(9, 0.3)}
    expected = discriminant.score(features, flux, colour, middle)
    for conditions in ({}, {"seeing": np.full(9, np.nan)}, {"another": np.ones(9)}):
        assert discriminant.score(features, flux, colour, conditions) == pytest.approx(expected, abs=1e-9)


def test_a_score_by_conditions_survives_its_json(told):
    discriminant = told[2]
    assert Discriminant.from_card(json.loads(json.dumps(discriminant.card))) == discriminant
    assert len(discriminant.weight) == 3 * FEATURES


def test_what_is_told_of_no_conditions_is_as_before(fitted):
    assert set(fitted[2].card).isdisjoint({"conditions", "location", "spread"})
