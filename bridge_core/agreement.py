"""Measures of how far graders agree, and of how good a ranking is by their grades.

Grades are whole numbers on an ordered scale, here X, C, B, A = 0, 1, 2, 3 (`SCALE`), in an int array [N, G] of N
objects and G graders; `MISSING` where a grader has not graded an object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

SCALE = ("X", "C", "B", "A")
"""Grades from worst to best: no lens, possible, probable, certain."""

MISSING = -1

PURE = 2
"""A candidate counts as a lens from this grade on: B."""

Metric = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(ratings: ArrayLike, metric: Metric = "ordinal") -> float:
    """Return Krippendorff's alpha: 1 for full agreement, 0 for chance; any number of graders, gaps allowed.

    Parameters
    ----------
    ratings : int array [N, G]
        Grades, 0 and up; `MISSING` where there is none. Objects with one grade or none do not count.
    metric : {"nominal", "ordinal", "interval"}
        How much two grades differ (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section F).

    Returns
    -------
    float
        NaN where nobody shares an object, or all give the same grade: then chance explains everything.
    """
    counts = _counts(np.asarray(ratings, np.int64))  # n_uc: how often object u got grade c
    counts = counts[counts.sum(axis=1) > 1]
    pairs = counts.sum(axis=1, keepdims=True) - 1.0
    # o_ck, the coincidences: pairs of grades within an object, each object weighted by its number of grades.
    coincidences = (counts / pairs).T @ counts - np.diag((counts / pairs).sum(axis=0))
    totals = coincidences.sum(axis=1)
    distance = _squared_distance(totals, metric)
    expected = float(totals @ distance @ totals)
    if expected == 0:
        return float("nan")
    return 1 - (totals.sum() - 1) * float((coincidences * distance).sum()) / expected


def cohen_kappa(first: ArrayLike, second: ArrayLike, weights: Literal["linear", "quadratic"] | None = None) -> float:
    """Cohen's kappa of two graders over the objects that both have graded.

    Parameters
    ----------
    first, second : int array [N]
        Grades, 0 and up; `MISSING` where there is none.
    weights : {"linear", "quadratic"}, optional
        Count a disagreement by its distance on the scale; otherwise all pairs of different grades count the same.

    Returns
    -------
    float
        NaN where they share no object, or both give one and the same grade throughout.
    """
    a, b = (np.asarray(grades, np.int64) for grades in (first, second))
    both = (a != MISSING) & (b != MISSING)
    if not both.any():
        return float("nan")
    size = int(max(a[both].max(), b[both].max())) + 1
    joint = np.bincount(a[both] * size + b[both], minlength=size * size).reshape(size, size) / both.sum()
    steps = np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(float)
    cost = {None: (steps > 0).astype(float), "linear": steps, "quadratic": steps**2}[weights]
    expected = float(joint.sum(axis=1) @ cost @ joint.sum(axis=0))
    return 1 - float((joint * cost).sum()) / expected if expected else float("nan")


def consensus(ratings: ArrayLike) -> NDArray[np.int64]:
    """Return one grade per object: the mean of its grades, halves to the worse; `MISSING` if nobody has graded it.

    Parameters
    ----------
    ratings : int array [N, G]

    Returns
    -------
    int64 [N]
    """
    grades = np.asarray(ratings, np.int64)
    known = grades != MISSING
    number = known.sum(axis=1)
    total = np.where(known, grades, 0).sum(axis=1)
    # ceil(mean - 1/2), in whole numbers
    return np.where(number > 0, -((number - 2 * total) // (2 * np.maximum(number, 1))), MISSING)


@dataclass(frozen=True)
class Purity:
    """The share of lenses among the first `top` candidates of a ranking, as far as these are graded.

    Parameters
    ----------
    top, graded, lenses : int
        Candidates, those of them that are graded, and those graded A or B.
    purity, low, high : float
        Lenses over graded and its 68% interval (Wilson); NaN where nothing is graded. If those that are graded were
        not chosen at random, the rest may be different.
    """

    top: int
    graded: int
    lenses: int
    purity: float
    low: float
    high: float


def purity_at(ranks: ArrayLike, grades: ArrayLike, top: int) -> Purity:
    """Purity of the first `top` candidates of a ranking by the grades so far.

    Parameters
    ----------
    ranks : int array [M]
        Rank, from 1, of each graded candidate.
    grades : int array [M]
        Their grades, as `consensus` gives them; `MISSING` counts as not graded.
    top : int
        How many candidates from the top.
    """
    given = np.asarray(grades, np.int64)[np.asarray(ranks, np.int64) <= top]
    given = given[given != MISSING]
    graded, lenses = len(given), int(np.count_nonzero(given >= PURE))
    if graded == 0:
        return Purity(top, 0, 0, float("nan"), float("nan"), float("nan"))
    share = lenses / graded
    # Wilson (1927) at one sigma: (p + 1/2n +- sqrt(p (1 - p) / n + 1/4n^2)) / (1 + 1/n)
    middle, half = share + 0.5 / graded, np.sqrt(share * (1 - share) / graded + 0.25 / graded**2)
    low, high = ((middle + sign * half) / (1 + 1 / graded) for sign in (-1, 1))
    return Purity(top, graded, lenses, share, max(0.0, float(low)), min(1.0, float(high)))


def _counts(ratings: NDArray[np.int64]) -> NDArray[np.float64]:
    """Count how often each object got each grade, [N, grades]."""
    levels = np.arange(max(int(ratings.max(initial=0)), 0) + 1)
    return np.stack([(ratings == level).sum(axis=1) for level in levels], axis=1).astype(float)


def _squared_distance(totals: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """delta^2_ck between every two grades; `totals` is how often each was given."""
    place = np.arange(len(totals), dtype=float)
    if metric == "ordinal":
        place = np.cumsum(totals) - totals / 2  # grades lie as far apart as there are grades between their middles
    difference = np.subtract.outer(place, place)
    return (difference != 0).astype(float) if metric == "nominal" else difference**2
