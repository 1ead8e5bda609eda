"""Areas and rates of a score, against scikit-learn and by counting."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from sklearn import metrics

from surveybridge.bridge_core.ranking import (
    Curve,
    auroc,
    bootstrap,
    matched_auroc,
    precision_at,
)

RNG = np.random.default_rng(5)
ANOMALOUS = RNG.random(400) < 0.3
SCORES = {
    "continuous": RNG.normal(size=400) + ANOMALOUS,
    "with ties": np.round(RNG.normal(size=400) + ANOMALOUS),
    "all equal": np.zeros(400),
}


@pytest.mark.parametrize("name", SCORES)
def test_areas_are_those_of_scikit_learn(name):
    assert auroc(SCORES[name], ANOMALOUS) == pytest.approx(metrics.roc_auc_score(ANOMALOUS, SCORES[name]), abs=1e-12)
    theirs = metrics.average_precision_score(ANOMALOUS, SCORES[name])
    assert Curve.of(SCORES[name], ANOMALOUS).average_precision() == pytest.approx(theirs, abs=1e-12)


def test_a_score_without_a_value_has_no_area():
    score = SCORES["continuous"].copy()
    score[7] = np.nan
    assert np.isnan(auroc(score, ANOMALOUS))


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("completeness", [0.01, 0.05, 0.5, 1.0])
def test_false_alarms_are_read_off_the_roc_curve(name, completeness):
    false, true, _ = metrics.roc_curve(ANOMALOUS, SCORES[name], drop_intermediate=False)
    found = Curve.of(SCORES[name], ANOMALOUS).false_alarms(completeness)
    assert found == pytest.approx(false[true >= completeness - 1e-9][0])


def test_precision_is_that_of_the_list_and_ties_count_by_chance():
    score, anomalous = np.array([5.0, 4, 3, 3, 3, 1]), np.array([True, False, True, False, True, True])
    assert [precision_at(score, anomalous, n) for n in (1, 2, 5, 6, 99)] == [1.0, 0.5, 0.6, 4 / 6, 4 / 6]
    orders = [np.argsort(-(score + 0.1 * np.random.default_rng(seed).random(6))) for seed in range(4000)]
    by_chance = np.mean([anomalous[order[:3]].mean() for order in orders])
    assert precision_at(score, anomalous, 3) == pytest.approx(by_chance, abs=0.01)


@pytest.mark.parametrize("completeness", [0.1, 0.5, 1.0])
def test_the_load_of_a_blind_score_is_one_in_the_prevalence(completeness):
    blind, anomalous = np.zeros(1000), np.arange(1000) < 300
    assert Curve.of(blind, anomalous).inspection_load(prevalence=1e-3, completeness=completeness) == pytest.approx(1000)
    chance = np.random.default_rng(0).random(100_000)
    found = Curve.of(chance, np.arange(100_000) < 50_000).inspection_load(prevalence=1e-3, completeness=completeness)
    assert found == pytest.approx(1000, rel=0.05)
    assert Curve.of(anomalous.astype(float), anomalous).inspection_load(prevalence=1e-3, completeness=1.0) == 1


def area(score, anomalous, rows) -> list[float]:
    return [auroc(score[rows], anomalous[rows])]


def area_by_wins(wins, rows) -> list[float]:
    """The same of scores without ties, in a tenth of the time: `wins` tells for [anomaly, regular] which is higher."""
    times = np.bincount(rows, minlength=sum(wins.shape)).astype(np.float64)
    anomalies, regular = times[: len(wins)], times[len(wins) :]
    return [float(anomalies @ wins @ regular / (anomalies.sum() * regular.sum()))]


def test_intervals_hold_the_true_area_as_often_as_they_say():
    """Two normal populations a standard deviation apart: the area is Phi(1 / sqrt 2) = 0.7602."""
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        anomalous = np.arange(300) < 100
        score = rng.normal(size=300) + anomalous
        wins = (score[:100, None] > score[100:]).astype(np.float64)
        assert wins.mean() == pytest.approx(auroc(score, anomalous), abs=1e-12)
        ((low, high),) = bootstrap(functools.partial(area_by_wins, wins), anomalous, draws=100)
        held += low <= 0.7602 <= high
    assert 178 <= held <= 199  # 95% of 200, and three standard deviations of that


def test_the_same_seed_gives_the_same_intervals():
    def both() -> list[tuple[float, float]]:
        return bootstrap(functools.partial(area, SCORES["continuous"], ANOMALOUS), ANOMALOUS)

    assert both() == both()
    assert all(low < high for low, high in both())


def test_a_flux_meter_is_worth_nothing_at_matched_flux():
    rng = np.random.default_rng(3)
    anomalous = np.arange(3000) < 1000
    flux = rng.normal(size=3000) + 1.0 * anomalous
    assert auroc(flux, anomalous) > 0.7
    assert matched_auroc(flux, anomalous, flux) == pytest.approx(0.5, abs=0.05)
    hidden = rng.normal(size=3000) + 1.0 * anomalous + flux
    assert matched_auroc(hidden, anomalous, flux) == pytest.approx(0.76, abs=0.04)
