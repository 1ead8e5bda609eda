"""Agreement of graders against published and scikit-learn's numbers; consensus and purity against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from surveybridge.bridge_core.agreement import MISSING, cohen_kappa, consensus, krippendorff_alpha, purity_at

# Four observers, twelve units: the worked example of Krippendorff (2011), "Computing Krippendorff's
# Alpha-Reliability", section C; a dot is a missing grade.
WORKED = """
    1 2 3 3 2 1 4 1 2 . . .
    1 2 3 3 2 2 4 1 2 5 . 3
    . 3 3 3 2 3 4 2 2 5 1 .
    1 2 3 3 2 4 4 1 2 5 1 .
"""


def worked_example():
    lines = [line.split() for line in WORKED.strip().splitlines()]
    return np.array([[MISSING if value == "." else int(value) for value in line] for line in lines]).T


@pytest.mark.parametrize(("metric", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_worked_example_is_the_published_one(metric, published):
    assert krippendorff_alpha(worked_example(), metric) == pytest.approx(published, abs=6e-4)


def test_alpha_is_one_for_full_agreement_and_about_zero_for_chance():
    rng = np.random.default_rng(0)
    grades = rng.integers(0, 4, 4000)
    assert krippendorff_alpha(np.stack([grades, grades, grades], axis=1)) == pytest.approx(1)
    assert krippendorff_alpha(rng.integers(0, 4, (4000, 3))) == pytest.approx(0, abs=0.03)


def test_alpha_does_not_depend_on_who_is_who_nor_on_objects_that_one_grader_saw():
    ratings = worked_example()
    alone = np.full((5, 4), MISSING)
    alone[:, 2] = [0, 1, 2, 3, 4]
    assert krippendorff_alpha(ratings[:, ::-1]) == pytest.approx(krippendorff_alpha(ratings))
    assert krippendorff_alpha(np.concatenate([ratings, alone])) == pytest.approx(krippendorff_alpha(ratings))


@pytest.mark.parametrize("ratings", [np.zeros((0, 2), int), np.full((3, 2), MISSING), np.full((5, 2), 2), [[1], [2]]])
def test_where_chance_explains_everything_alpha_is_not_a_number(ratings):
    assert np.isnan(krippendorff_alpha(ratings))


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_kappa_is_scikit_learns(weights):
    rng = np.random.default_rng(1)
    first = rng.integers(0, 4, 300)
    second = np.where(rng.random(300) < 0.6, first, rng.integers(0, 4, 300))
    wanted = cohen_kappa_score(first, second, weights=weights, labels=[0, 1, 2, 3])
    assert cohen_kappa(first, second, weights) == pytest.approx(wanted)
    gap = rng.random(300) < 0.2
    assert cohen_kappa(np.where(gap, MISSING, first), second, weights) == pytest.approx(
        cohen_kappa_score(first[~gap], second[~gap], weights=weights, labels=[0, 1, 2, 3])
    )
    assert np.isnan(cohen_kappa([MISSING, 1], [1, MISSING], weights))


@pytest.mark.parametrize(
    ("grades", "agreed"),
    [([3], 3), ([3, 0], 1), ([3, 2], 2), ([3, 3, 2], 3), ([0, 0, 3], 1), ([0, 1], 0), ([2, 1, 1, 2], 1), ([], MISSING)],
)
def test_consensus_is_the_mean_with_halves_to_the_worse(grades, agreed):
    assert consensus([grades + [MISSING] * (5 - len(grades))]).tolist() == [agreed]


def test_purity_counts_lenses_among_the_graded_of_the_top():
    ranks, grades = [1, 2, 3, 7, 12], [3, 0, 2, MISSING, 3]
    found = purity_at(ranks, grades, 10)
    assert (found.top, found.graded, found.lenses, found.purity) == (10, 3, 2, pytest.approx(2 / 3))
    assert 0 < found.low < found.purity < found.high < 1
    whole = purity_at(np.arange(1, 101), np.full(100, 3), 100)
    assert (whole.purity, whole.high) == (1.0, pytest.approx(1.0))
    assert whole.low == pytest.approx(100 / 101)
    assert np.isnan(purity_at([50], [3], 10).purity)
