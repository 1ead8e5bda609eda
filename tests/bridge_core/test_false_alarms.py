"""Rates of false alarms: those of ordinary objects are uniform, whatever their brightness and their seeing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from surveybridge.bridge_core.discriminant import TAIL, rate_above
from surveybridge.bridge_core.false_alarms import FalseAlarms, fit_false_alarms, held_out_rates

CONDITIONS = ("lsst i fwhm", "lsst i noise", "euclid VIS fwhm", "euclid VIS noise")


def objects(seed: int, number: int, tiles: int = 40) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Scores that depend on flux, colour, seeing and noise, in location and in scale, with a skewed distribution."""
    rng = np.random.default_rng(seed)
    flux, colour = rng.uniform(1.5, 4.0, number), rng.normal(1.0, 0.6, number)
    tile = rng.integers(0, tiles, number)
    fwhm, noise = rng.uniform(0.6, 1.2, tiles)[tile], rng.uniform(0.4, 0.9, tiles)[tile]
    skewed = rng.gamma(4.0, 0.5, number) - 2.0
    score = 0.3 + 0.8 * (flux - 2.5) - 0.2 * (colour - 1) ** 2 + 2.5 * (fwhm - 0.7)
    score += skewed * np.exp(0.3 * (flux - 2.5) + 0.6 * (noise - 0.6))
    return score, flux, colour, dict(zip(CONDITIONS, (fwhm, noise, 0.16 + 0 * fwhm, 2.0 + 0 * fwhm), strict=True))


def columns(conditions: dict[str, Any]) -> Any:
    return np.stack(list(conditions.values()), -1)


@pytest.fixture(scope="module")
def learnt() -> FalseAlarms:
    score, flux, colour, conditions = objects(1, 3000)
    return fit_false_alarms(score, flux, colour, conditions, np.arange(3000))


def test_rates_of_ordinary_objects_that_it_has_not_seen_are_uniform(learnt):
    score, flux, colour, conditions = objects(2, 20_000)
    rate = learnt.rate(score, flux, colour, columns(conditions))
    assert (rate_above(score, [*np.linspace(0, 2, len(TAIL))]) < 0.01).mean() > 0.05  # by a table of another sky
    for level, slack in ((0.01, 0.005), (0.05, 0.012), (0.2, 0.02), (0.5, 0.03), (0.8, 0.03)):
        assert (rate < level).mean() == pytest.approx(level, abs=slack)
    for part in (flux < 2.2, flux > 3.3, conditions["lsst i fwhm"] > 1.05, conditions["lsst i noise"] < 0.5):
        assert (rate[part] < 0.05).mean() == pytest.approx(0.05, abs=0.025)
        assert (rate[part] < 0.5).mean() == pytest.approx(0.5, abs=0.07)


def test_conditions_that_are_one_throughout_play_no_part_and_unknown_ones_are_no_harm(learnt):
    score, flux, colour, conditions = objects(3, 500)
    rate = learnt.rate(score, flux, colour, columns(conditions))
    other = columns(conditions | {"euclid VIS fwhm": np.full(500, 0.3)})
    assert (learnt.rate(score, flux, colour, other) == rate).all()
    unknown = learnt.rate(score, flux, colour, columns(conditions | {"lsst i noise": np.full(500, np.nan)}))
    assert np.isfinite(unknown).all()
    assert (learnt.rate(score + 9, flux, colour, columns(conditions)) < 1e-3).mean() > 0.9
    assert np.isnan(learnt.rate(np.full(500, np.nan), flux, colour, other)).all()


def test_a_few_lenses_among_the_objects_do_not_hide_themselves():
    score, flux, colour, conditions = objects(4, 1500)
    lens = np.arange(1500) % 150 == 0
    score = np.where(lens, score + 12, score)
    found = fit_false_alarms(score, flux, colour, conditions, np.arange(1500))
    rate = found.rate(score, flux, colour, columns(conditions))
    assert rate[lens].max() < 0.01
    assert (rate[~lens] < 0.1).mean() == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("number", [50, 90, 400])
def test_few_objects_give_few_rates_and_still_order_by_score(number):
    score, flux, colour, conditions = objects(6, number)
    found = fit_false_alarms(score, flux, colour, conditions, np.arange(number))
    assert min(found.rates) >= 2 / number
    assert found.objects == number
    ordered = found.rate(np.linspace(-5, 30, 50), np.full(50, 3.0), np.ones(50), np.full((50, 4), np.nan))
    assert (np.diff(ordered) <= 0).all()
    assert ordered[0] > 0.9
    assert ordered[-1] < 0.02


def test_held_out_rates_are_of_the_other_half():
    score, flux, colour, conditions = objects(8, 4000)
    rate = held_out_rates(score, flux, colour, conditions, np.arange(4000) // 2)
    assert (rate < 0.05).mean() == pytest.approx(0.05, abs=0.012)


def test_it_survives_its_card(learnt):
    again = FalseAlarms.from_card(json.loads(json.dumps(learnt.card)))
    assert again == learnt
