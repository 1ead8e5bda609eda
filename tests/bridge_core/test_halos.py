"""The wings of bright stars end where they are lost in the noise, and what is as faint as a piece of them is one."""

from __future__ import annotations

import numpy as np
import pytest

from surveybridge.bridge_core.halos import pieces_of_wings, wing_radius

SIDE = 301


def wings(slope: float, at_ten: float, centre=(150.3, 149.6), seed: int = 1):
    """A power law of the radius, `at_ten` sigma at ten pixels, in noise of 1."""
    y, x = np.mgrid[:SIDE, :SIDE]
    radius = np.maximum(np.hypot(y - centre[0], x - centre[1]), 1.0)
    noise = np.random.default_rng(seed).normal(0, 1.0, (SIDE, SIDE))
    return (at_ten * (radius / 10) ** -slope + noise).astype(np.float32)


@pytest.mark.parametrize(("slope", "at_ten"), [(3.0, 4.0), (5.0, 30.0), (2.0, 1.5)])
def test_the_radius_is_where_the_wings_are_half_a_sigma(slope, at_ten):
    flux = wings(slope, at_ten)
    expected = 10 * (at_ten / 0.5) ** (1 / slope)
    found = wing_radius(flux, np.ones_like(flux), np.ones(flux.shape, bool), (150.3, 149.6), 100)
    assert found == pytest.approx(expected, rel=0.15)


def test_masked_pixels_other_sources_and_the_edge_do_not_change_it():
    flux = wings(3.0, 4.0)
    flux[150:170, 160:180] += 500.0
    usable = np.ones(flux.shape, bool)
    usable[140:160, 140:160] = False
    flux[~usable] = np.nan
    radius = wing_radius(flux, np.ones_like(flux), usable, (150.3, 149.6), 100)
    assert radius == pytest.approx(20, rel=0.2)
    near_edge = wing_radius(wings(3.0, 4.0, (3.0, 150.0)), np.ones_like(flux), np.ones_like(usable), (3.0, 150.0), 60)
    assert near_edge == pytest.approx(20, rel=0.25)
    assert wing_radius(wings(0.1, 50.0), np.ones_like(flux), np.ones_like(usable), (150.0, 150.0), 40) == 40


def test_pieces_are_faint_against_their_star_the_more_so_the_farther_they_are():
    x = np.array([0.0, 20.0, 20.0, 100.0, 100.0, 200.0, 60.0])
    flux = np.array([1e6, 1900.0, 2100.0, 190.0, 900.0, 1.0, -3.0])
    piece = pieces_of_wings(x, np.zeros(7), flux, np.array([0]), np.array([45.0]), 0.1)
    # 2": a share of 0.002 at most; 10": 0.0002; 20" lies beyond three radii
    assert piece.tolist() == [False, True, False, True, False, False, True]
    assert not pieces_of_wings(x, np.zeros(7), flux, np.zeros(0, int), np.zeros(0), 0.1).any()
