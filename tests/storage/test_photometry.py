"""Zero points and the noise of the sky."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from surveybridge.storage.photometry import (
    flux_from_magnitude,
    magnitude_from_flux,
    njy_per_count,
    sky_statistics,
)
from tests.storage.fits_files import gaussians


def test_one_njy_is_magnitude_31_4():
    assert float(flux_from_magnitude(31.4)) == pytest.approx(1.0)
    assert float(magnitude_from_flux(3631e9)) == pytest.approx(0.0, abs=2e-4)
    assert np.isnan(magnitude_from_flux(-1.0))


@pytest.mark.parametrize(("zero_point", "njy"), [(31.4, 1.0), (23.9, 1000.0), (24.6, 10**2.72), (30.0, 10**0.56)])
def test_counts_become_njy_by_the_zero_point(zero_point, njy):
    assert njy_per_count(zero_point) == pytest.approx(njy)


def test_sky_noise_is_found_between_sources():
    rng = np.random.default_rng(1)
    sources = gaussians((200, 200), rng.uniform(0, 200, (60, 2)), 3.0, 3000.0)
    sky = sky_statistics(sources + 0.5 + rng.normal(0, 2.0, (200, 200)), np.ones((200, 200), bool))
    assert sky.sigma == pytest.approx(2.0, rel=0.03)
    assert sky.level == pytest.approx(0.5, abs=0.1)
    assert sky.correlation < 0.05


def test_noise_correlation_of_smoothed_sky_is_measured():
    rng = np.random.default_rng(2)
    noise = ndimage.gaussian_filter(rng.normal(size=(300, 300)), 1.0)
    truth = np.exp(-1 / 4)  # a Gaussian kernel of sigma s correlates neighbours by exp(-1/(4 s^2))
    assert sky_statistics(noise, np.ones(noise.shape, bool)).correlation == pytest.approx(truth, abs=0.03)


def test_sky_without_usable_pixels_is_nan():
    assert np.isnan(sky_statistics(np.zeros((8, 8)), np.zeros((8, 8), bool)).sigma)
