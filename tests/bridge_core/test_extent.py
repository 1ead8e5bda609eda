"""Stars and galaxies by their width against the PSF: purity and completeness by signal to noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import erf

from surveybridge.bridge_core.detection import Sources, detect, significance
from surveybridge.bridge_core.extent import Locus, extended, extent, point_like, star_like, stellar_locus, wing_extent

FWHM = 1.7
"""Of the PSF, pixels: undersampled, as VIS is."""
SPACING, ROWS = 40, 14
GALAXY = ((0.45, 0.5), (0.4, 1.1), (0.15, 2.0))
"""Shares and widths, in effective radii, of Gaussians whose sum is nearly an exponential disc."""


def spot(shape, x, y, sigma) -> np.ndarray:
    """A Gaussian of flux 1, integrated over the pixels."""
    edges = [np.arange(n + 1) - 0.5 for n in shape]
    along = [np.diff(erf((e - c) / (np.sqrt(2) * sigma))) / 2 for e, c in zip(edges, (y, x), strict=True)]
    return along[0][:, None] * along[1]


def stamps(flux: float, radius: float, seed: int, psf=((1.0, 1.0),)) -> tuple[np.ndarray, Sources]:
    """Objects of one flux and effective radius (0: stars) at any place in a pixel, in noise 1, and those that count.

    `psf`: shares and widths of Gaussians, in that of the stated FWHM.
    """
    rng = np.random.default_rng(seed)
    side = SPACING * ROWS
    image = rng.normal(size=(side, side))
    core = FWHM / 2.3548
    for row in range(ROWS):
        for column in range(ROWS):
            y, x = (SPACING * place + SPACING / 2 + rng.random() - 0.5 for place in (row, column))
            window = np.s_[SPACING * row : SPACING * (row + 1), SPACING * column : SPACING * (column + 1)]
            for share, width in GALAXY if radius else ((1.0, 0.0),):
                for part, spread in psf:
                    sigma = np.hypot(core * spread, width * radius)
                    here = (x - SPACING * column, y - SPACING * row)
                    image[window] += flux * share * part * spot((SPACING, SPACING), *here, sigma)
    noisy = np.asarray(image, np.float32)
    variance, known = np.ones_like(noisy), np.ones(noisy.shape, bool)
    sources = detect(noisy, variance, known, clean=False)
    return noisy, sources.select(significance(noisy, variance, known, sources, FWHM) >= 6)


def called_stars(image: np.ndarray, sources: Sources, fwhm: float = FWHM) -> float:
    """Share of the sources that are called stars."""
    size, error = extent(image, np.ones_like(image), np.ones(image.shape, bool), sources, fwhm)
    return float(point_like(size, error).mean())


@pytest.mark.parametrize(("snr", "least"), [(25, 0.6), (40, 0.97), (200, 1.0), (3000, 1.0)])
def test_stars_are_complete_where_the_extent_is_known_well(snr, least):
    image, sources = stamps(snr * 4.0, 0.0, snr)
    assert len(sources) == ROWS**2
    assert called_stars(image, sources) >= least


@pytest.mark.parametrize("snr", [8, 25, 200, 3000])
@pytest.mark.parametrize("radius", [1.4, 3.0])
def test_galaxies_are_not_called_stars_however_faint(snr, radius):
    image, sources = stamps(snr * 8.0, radius, snr)
    assert len(sources) > 20
    assert called_stars(image, sources) <= 0.01


def test_stars_have_extent_1_and_errors_that_are_those_of_the_noise():
    image, sources = stamps(150.0, 0.0, 77)
    size, error = extent(image, np.ones_like(image), np.ones(image.shape, bool), sources, FWHM)
    assert np.median(size) == pytest.approx(1.0, abs=0.02)
    assert ((size - 1) / error).std() == pytest.approx(1.0, abs=0.2)
    _, wider = extent(image, np.ones_like(image), np.ones(image.shape, bool), sources, FWHM, correlation=0.6)
    assert (wider > 1.3 * error).all()


def test_wings_of_the_psf_do_not_make_galaxies_of_stars():
    image, sources = stamps(2000.0, 0.0, 5, psf=((0.85, 1.0), (0.12, 2.5), (0.03, 6.0)))
    assert called_stars(image, sources) == 1.0


def test_where_the_psf_is_not_known_nothing_is_a_star():
    image, sources = stamps(400.0, 0.0, 9)
    size, error = extent(image, np.ones_like(image), np.ones(image.shape, bool), sources, np.nan)
    assert np.isnan(size).all() and np.isnan(error).all() and not point_like(size, error).any()
    assert called_stars(image, sources, 2.5 * FWHM) == 0.0  # narrower than the PSF: it is a wrong one


def test_beside_masked_pixels_and_at_the_edge_the_extent_is_not_known():
    image, sources = stamps(400.0, 0.0, 13)
    valid = np.ones(image.shape, bool)
    column, line = round(float(sources.x[0])), round(float(sources.y[0]))
    valid[line + 1, column] = False
    size, _ = extent(image, np.ones_like(image), valid, sources, FWHM)
    assert np.isnan(size[0]) and np.isfinite(size[1:]).all()
    window = (slice(line - 2, None), slice(None))
    part = detect(image[window], np.ones_like(image[window]), valid[window] | True)
    first, _ = extent(image[window], np.ones_like(image[window]), valid[window] | True, part, FWHM)
    assert np.isnan(first[part.y < 3]).all() and np.isfinite(first[part.y > 9]).all()


# ---- stars under a PSF with wings


def moffats(places, fwhm: float, beta: float, flux: float, side: int = 240, over: int = 5) -> np.ndarray:
    """Point sources (y, x) under a Moffat PSF (FWHM in pixels), averaged over `over` x `over` points of each pixel."""
    alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    grid = (np.arange(side * over) + 0.5) / over - 0.5
    fine = sum((1 + ((grid[:, None] - y) ** 2 + (grid - x) ** 2) / alpha2) ** -beta for y, x in places) * (
        (beta - 1) / (np.pi * alpha2)
    )
    return flux * fine.reshape(side, over, side, over).mean((1, 3))


@pytest.mark.parametrize("beta", [2.3, 3.0, 4.5])
@pytest.mark.parametrize("fwhm", [1.7, 3.3])
def test_stars_with_wings_are_as_wide_as_the_moffat_says(beta, fwhm):
    places = [(60.2, 60.4), (61.4, 180.1), (179.8, 58.7), (180.0, 181.5)]
    rng = np.random.default_rng(3)
    flux = (moffats(places, fwhm, beta, 6e4) + rng.normal(0, 1.0, (240, 240))).astype(np.float32)
    ones = np.ones_like(flux)
    sources = detect(flux, ones, ones > 0, clean=False)
    near = [int(np.hypot(sources.y - y, sources.x - x).argmin()) for y, x in places]
    size, error = extent(flux, ones, ones > 0, sources, fwhm)
    assert size[near] == pytest.approx(wing_extent(1 / beta), rel=0.015)
    assert not point_like(size[near], error[near]).any() or beta > 2.5
    for wing in (1 / beta, np.nan):  # told, or seen in the bright ones
        locus = stellar_locus(size, error, np.full(len(size), 900.0), wing)
        assert star_like(size, error, locus)[near].all()


def test_the_locus_is_that_of_the_bright_narrow_ones_else_of_the_stated_wings_else_of_a_gaussian():
    size = np.array([1.22, 1.24, 1.23, 1.9, 1.0, 1.3])
    error = np.array([0.001, 0.002, 0.001, 0.001, 0.05, 0.3])
    snr = np.array([2000.0, 900.0, 500.0, 5000.0, 40.0, 400.0])
    assert stellar_locus(size, error, snr) == Locus(1.23, 0.1)
    assert stellar_locus(size, error, snr, 0.5).extent == pytest.approx(1.23)  # three stars count more than a header
    assert stellar_locus(size[:2], error[:2], snr[:2], 0.5).extent == pytest.approx(wing_extent(0.5))
    assert stellar_locus(size[3:5], error[3:5], snr[3:5]) == pytest.approx((1.0, 0.2))
    assert wing_extent(0.0) == 1.0 and 1.1 < wing_extent(0.21) < 1.12


def test_what_is_wider_than_a_star_beyond_its_error_is_extended():
    locus = Locus(1.2, 0.1)
    size, error = np.array([1.2, 1.75, 1.75, np.inf, np.nan]), np.array([0.01, 0.01, 0.2, np.inf, np.nan])
    assert extended(size, error, locus).tolist() == [False, True, False, True, False]
    assert star_like(size, error, locus).tolist() == [True, False, False, False, False]
