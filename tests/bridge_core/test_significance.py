"""What counts as an object: pure noise has none, however its pixels are correlated, and faint sources are found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from surveybridge.bridge_core.correlation import disc, error_factor
from surveybridge.bridge_core.detection import SIGNIFICANCE, aperture_flux, detect, significance
from surveybridge.storage.photometry import sky_statistics

pytestmark = pytest.mark.long

SIDE = 1024


def noise(kind: str, seed: int, side: int = SIDE) -> np.ndarray:
    """Noise of unit variance by pixel: white, smoothed, bilinearly shifted, or brought onto pixels of half the size."""
    rng = np.random.default_rng(seed)
    if kind == "finer pixels":
        coarse = rng.normal(size=(side // 2 + 8, side // 2 + 8))
        made = zoom(coarse, 2, order=1)[8 : 8 + side, 8 : 8 + side]
    else:
        made = rng.normal(size=(side + 32, side + 32))
        if kind == "half a pixel":
            made = (made[1:, 1:] + made[:-1, 1:] + made[1:, :-1] + made[:-1, :-1]) / 4
        elif kind != "white":
            made = gaussian_filter(made, float(kind))
        made = made[16 : 16 + side, 16 : 16 + side]
    return (made / made.std()).astype(np.float32)


def found_in(flux: np.ndarray, correlation: float, psf_fwhm: float = 1.6) -> tuple[int, int]:
    """How many objects are detected, and how many of them count."""
    variance, valid = np.ones_like(flux), np.ones(flux.shape, bool)
    sources = detect(flux, variance, valid, clean=False)
    signal = significance(flux, variance, valid, sources, psf_fwhm, correlation)
    return len(sources), int((signal >= SIGNIFICANCE).sum())


@pytest.mark.parametrize("kind", ["white", "0.6", "1.1", "half a pixel", "finer pixels"])
def test_pure_noise_has_no_objects_at_the_correlation_that_is_measured(kind):
    reached = 0
    for seed in (3, 14):
        flux = noise(kind, seed)
        correlation = sky_statistics(flux, np.ones(flux.shape, bool)).correlation
        detected, counted = found_in(flux, correlation)
        assert counted == 0, (kind, seed, correlation)
        reached += detected
    assert reached > 0  # without the least significance there would be some
    assert kind == "white" or reached > 200


@pytest.mark.parametrize(("kind", "width"), [("white", 0.8), ("white", 2.0), ("white", 3.0), ("0.6", 1.5)])
def test_sources_well_above_the_least_significance_are_found(kind, width):
    flux = noise(kind, 7, 640)
    correlation = sky_statistics(flux, np.ones(flux.shape, bool)).correlation
    y, x = np.mgrid[:640, :640]
    shape = np.exp(-((x % 40 - 20) ** 2 + (y % 40 - 20) ** 2) / (2 * width**2))
    weights = np.exp(-(np.arange(-8, 9)[:, None] ** 2 + np.arange(-8, 9) ** 2) / (2 * width**2))
    best = np.sqrt((weights**2).sum()) / error_factor(weights, correlation)  # S/N of the matched filter at peak 1
    faint, bright = (found_in((flux + snr / best * shape).astype(np.float32), correlation)[1] for snr in (3, 15))
    assert bright >= 0.95 * 256 and faint <= 0.1 * 256


@pytest.mark.parametrize("kind", ["white", "0.5", "0.9", "finer pixels"])
def test_errors_of_apertures_are_the_scatter_of_apertures_on_empty_sky(kind):
    flux = noise(kind, 21)
    variance, valid = np.ones_like(flux), np.ones(flux.shape, bool)
    correlation = sky_statistics(flux, valid).correlation
    places = np.where((np.indices(flux.shape) % 32 == 16).all(0), 100, 0).astype(np.float32)
    sources = detect(places, variance, valid)  # a grid, so that no place was chosen by what the noise does there
    values, errors, _ = aperture_flux(flux[None], variance[None], valid[None], sources, 5.0, (correlation,))
    assert len(sources) > 900
    # a Gaussian stands for the correlation of any resampling: good to a fifth
    assert errors.mean() == pytest.approx(values.std(), rel=0.08 if kind != "finer pixels" else 0.2)


def test_white_noise_has_no_factor_and_full_correlation_that_of_a_sum():
    circle = disc(4.0)
    assert circle.sum() == pytest.approx(np.pi * 16, rel=0.01)
    assert error_factor(circle, 0.0) == 1.0
    assert error_factor(circle, 0.2) < error_factor(circle, 0.5) < error_factor(circle, 0.8)
    assert error_factor(np.ones((3, 3)), 0.99) == pytest.approx(3, rel=0.05)  # nine equal deviates


def test_of_a_source_behind_masked_pixels_the_significance_is_not_known_and_it_stays():
    flux = noise("white", 5, 128)
    y, x = np.mgrid[:128, :128]
    flux += (400 * np.exp(-((x - 60) ** 2 + (y - 70) ** 2) / (2 * 6.0**2))).astype(np.float32)
    valid = (x - 60) ** 2 + (y - 70) ** 2 > 6**2
    sources = detect(flux, np.ones_like(flux), valid, clean=False, marked=~valid)
    signal = significance(flux, np.ones_like(flux), valid, sources, 1.6)
    assert len(sources) > 0 and sources.touches.any() and (signal >= SIGNIFICANCE).all()


def test_pieces_of_the_wing_of_a_bright_object_do_not_count_and_a_source_in_it_does():
    flux = noise("white", 30, 600)
    y, x = np.mgrid[:600, :600]
    flux += (900 * np.exp(-np.hypot(x - 300, (y - 300) / 0.7) / 18)).astype(np.float32)
    flux += (60 * np.exp(-((x - 420) ** 2 + (y - 330) ** 2) / (2 * 1.2**2))).astype(np.float32)
    variance, valid = np.ones_like(flux), np.ones(flux.shape, bool)
    sources = detect(flux, variance, valid, clean=False)
    kept = sources.select(significance(flux, variance, valid, sources, 1.6) >= SIGNIFICANCE)
    for place in ((300, 300), (420, 330)):
        assert np.hypot(kept.x - place[0], kept.y - place[1]).min() < 1
    assert len(kept) < len(sources) / 2 and len(sources) > 15


def test_cleaning_would_lose_sources_far_above_the_noise():
    flux = noise("white", 11, 640)
    y, x = np.mgrid[:640, :640]
    shape = np.exp(-((x % 40 - 20) ** 2 + (y % 40 - 20) ** 2) / (2 * 3.0**2))
    flux += np.asarray(15 / (np.sqrt(np.pi) * 3) * shape, np.float32)  # signal to noise 15 of a matched filter
    variance, valid = np.ones_like(flux), np.ones(flux.shape, bool)
    found = [len(detect(flux, variance, valid, clean=clean)) for clean in (True, False)]
    assert found[0] < 128 and found[1] >= 256
