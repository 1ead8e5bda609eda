"""Systems: decided by what is near, never wide, and the same from either side of a border between tiles."""

from __future__ import annotations

import numpy as np
import pytest

from surveybridge.bridge_core.systems import brightest_within

RADIUS = 30.0


def scattered(seed: int, n: int = 3000, side: float = 1600.0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, side, n), rng.uniform(0, side, n), rng.lognormal(3, 1.5, n)


def test_an_arc_its_counterimage_and_the_deflector_are_one_system_and_a_galaxy_farther_out_is_not():
    x = np.array([100.0, 118.0, 91.0, 100.0, 140.0])
    y = np.array([100.0, 104.0, 92.0, 131.0, 100.0])
    head = brightest_within(x, y, np.array([900.0, 60.0, 20.0, 300.0, 10.0]), RADIUS)
    assert head.tolist() == [0, 0, 0, 3, 1]


def test_a_chain_of_neighbours_is_no_giant_group():
    x = np.arange(0.0, 2000.0, 25.0)
    head = brightest_within(x, np.zeros_like(x), np.linspace(10, 500, len(x)), RADIUS)
    assert np.abs(x[head] - x).max() <= RADIUS and np.bincount(head).max() <= 3


@pytest.mark.parametrize("seed", [2, 6])
def test_in_a_crowded_field_no_member_is_farther_than_the_radius_and_none_is_brighter_than_its_head(seed):
    x, y, flux = scattered(seed)
    head = brightest_within(x, y, flux, RADIUS)
    assert np.hypot(x - x[head], y - y[head]).max() <= RADIUS
    apart = np.hypot(x[:, None] - x, y[:, None] - y) <= RADIUS
    np.testing.assert_array_equal(flux[head], np.where(apart, flux, 0).max(1))
    assert 1 < np.bincount(head).max() < 20


def test_two_tiles_that_see_each_other_in_their_halos_decide_alike():
    x, y, flux = scattered(4)
    whole = brightest_within(x, y, flux, RADIUS)
    crossed = 0
    for low, high in ((0.0, 800.0), (800.0, 1600.0)):
        seen = np.flatnonzero((x > low - 31) & (x < high + 31))  # core and halo
        core = (x[seen] >= low) & (x[seen] < high)
        there = seen[brightest_within(x[seen], y[seen], flux[seen], RADIUS)]
        np.testing.assert_array_equal(there[core], whole[seen][core])
        crossed += int(((x[there[core]] < low) | (x[there[core]] >= high)).sum())
    assert crossed > 5


def test_ties_are_settled_by_place_and_what_has_no_brightness_leads_nothing():
    x, y = np.array([5.0, 1.0, 3.0]), np.array([2.0, 2.0, 2.0])
    assert brightest_within(x, y, np.full(3, 7.0), 10.0).tolist() == [1, 1, 1]
    assert brightest_within(x, y, np.array([np.nan, np.nan, 1.0]), 10.0).tolist() == [2, 2, 2]
    assert brightest_within(x, y, np.array([np.inf, 3.0, np.inf]), 10.0).tolist() == [2, 2, 2]
    assert len(brightest_within(x[:0], y[:0], x[:0], 10.0)) == 0
