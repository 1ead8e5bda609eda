"""Regions held back for validation: a function of the position, and windows that share no sky across it."""

from __future__ import annotations

import numpy as np
import pytest

from surveybridge.storage.errors import StorageError
from surveybridge.storage.held_back import HeldBack, cell_arcsec, order_of
from tests.storage.fits_files import tan_wcs


def sky(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 360, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))


@pytest.mark.parametrize("share", [0.03, 0.1, 0.37])
def test_the_share_of_the_sky_that_was_asked_for_is_held_back(share):
    held = HeldBack(share, 9).at(*sky(60_000))
    assert held.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 60_000))


def test_every_group_of_cells_has_its_share_within_one_cell():
    rule = HeldBack(0.2, 10, seed=4)
    cells = np.arange(16 * 500)
    held = rule._of_cells(cells).reshape(-1, 16).sum(1)
    assert set(held.tolist()) == {3, 4} and held.mean() == pytest.approx(3.2, abs=0.1)


def test_it_depends_on_position_and_seed_only():
    ra, dec = sky(2000)
    rule, order = HeldBack(0.3, 8), np.random.default_rng(1).permutation(2000)
    np.testing.assert_array_equal(rule.at(ra, dec)[order], rule.at(ra[order], dec[order]))
    one_by_one = [bool(rule.at(ra[k : k + 1], dec[k : k + 1])[0]) for k in range(50)]
    assert one_by_one == rule.at(ra, dec)[:50].tolist()
    assert 0.3 < (rule.at(ra, dec) != HeldBack(0.3, 8, seed=1).at(ra, dec)).mean() < 0.55


@pytest.mark.parametrize(("ra", "dec"), [(150.1, 2.2), (0.0, -27.8), (40.0, 66.5), (10.0, 89.99)])
def test_no_pixel_of_a_window_lies_on_the_other_side(ra, dec):
    """Two grids of the same sky, one turned: every pixel of every window that counts, by its own position."""
    rule = HeldBack(0.25, 13)
    rng = np.random.default_rng(3)
    for angle in (0.0, 31.0):
        wcs = tan_wcs((2000, 2000), 0.1, rotation=angle, ra=ra, dec=dec)
        y0, x0 = rng.integers(0, 1930, (2, 150))
        held, free = rule.windows(wcs, y0, x0, 64)
        assert held.any() and free.any() and not (held & free).any()
        assert (~(held | free)).mean() < 0.6
        steps = np.arange(64)
        for k in np.flatnonzero(held | free):
            y, x = np.meshgrid(y0[k] + steps, x0[k] + steps, indexing="ij")
            inside = rule.at(*wcs.all_pix2world(x.ravel(), y.ravel(), 0))
            assert (inside == held[k]).all()


def test_nothing_is_held_back_where_no_share_is():
    held, free = HeldBack(0.0, 12).windows(tan_wcs((100, 100), 0.1), np.array([3]), np.array([5]), 64)
    assert not held.any() and free.all()


def test_cells_are_some_windows_wide():
    for side in (6.4, 12.8, 640.0):
        assert 8 * side <= cell_arcsec(order_of(side)) < 16 * side
    with pytest.raises(StorageError, match="windows of 0 arcsec"):
        order_of(0.0)
