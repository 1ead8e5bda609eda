"""Sources of a tile and their fluxes."""

from __future__ import annotations

import numpy as np

from surveybridge.bridge_core.detection import aperture_flux, detect

SIGMA = 1.0
PLACES = [(30.0, 40.0), (80.3, 60.7), (110.5, 20.25)]  # x, y


def scene(width: float = 2.0, peak: float = 60.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three round sources in white noise; the flux of each is 2 pi width^2 peak."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:128, :144]
    flux = rng.normal(0, SIGMA, (128, 144))
    for xc, yc in PLACES:
        flux += peak * np.exp(-((x - xc) ** 2 + (y - yc) ** 2) / (2 * width**2))
    return flux.astype(np.float32), np.full((128, 144), SIGMA**2, np.float32), np.ones((128, 144), bool)


def test_sources_are_found_where_they_are():
    found = detect(*scene())
    assert len(found) == 3
    expected = sorted(PLACES, key=lambda p: p[1])  # rows from the bottom up
    np.testing.assert_allclose(np.stack([found.x, found.y], 1), expected, atol=0.1)
    np.testing.assert_allclose(found.a, 2.0, rtol=0.15)
    np.testing.assert_allclose(found.b, 2.0, rtol=0.15)
    assert found.x.dtype == np.float64
    assert found.flags.dtype == np.int32


def test_noise_alone_has_no_sources():
    flux, variance, valid = scene(peak=0.0)
    assert len(detect(flux, variance, valid)) == 0


def test_threshold_is_in_sigma_of_the_variance():
    flux, variance, valid = scene(peak=6.0)
    assert len(detect(flux, variance, valid)) == 3
    assert len(detect(flux, variance * 100, valid)) == 0


def test_masked_pixels_are_not_read():
    flux, variance, valid = scene()
    valid[30:50, 20:42] = False  # hides the first source
    clean = detect(flux, variance, valid)
    assert len(clean) == 2
    for garbage in (np.nan, np.inf, 1e30):
        holes = np.where(valid, flux, garbage).astype(np.float32)
        for noise in (np.nan, 1e32, -1.0):
            again = detect(holes, np.where(valid, variance, noise).astype(np.float32), valid)
            np.testing.assert_array_equal(again.x, clean.x)


def test_two_tiles_that_see_an_object_agree_on_its_centre():
    flux, variance, valid = scene()
    whole = detect(flux, variance, valid)
    part = (slice(4, 128), slice(41, 144))  # without the first source
    found = detect(flux[part], variance[part], valid[part])
    assert len(found) == 2
    np.testing.assert_allclose(found.x + 41, whole.x[[0, 2]], atol=1e-6)
    np.testing.assert_allclose(found.y + 4, whole.y[[0, 2]], atol=1e-6)


def test_big_endian_images_are_taken_as_they_come():
    flux, variance, valid = scene()
    swapped = detect(flux.astype(">f4"), variance.astype(">f4"), valid)
    np.testing.assert_array_equal(swapped.x, detect(flux, variance, valid).x)


def test_select_keeps_rows_together():
    found = detect(*scene())
    one = found.select(np.array([False, True, False]))
    assert len(one) == 1
    assert one.x[0] == found.x[1]
    assert one.theta[0] == found.theta[1]


def test_aperture_holds_the_flux_and_its_error_is_that_of_its_pixels():
    flux, variance, valid = scene()
    sources, radius = detect(flux, variance, valid), 10.0
    values, errors, _ = aperture_flux(flux[None], variance[None], valid[None], sources, radius)
    total = 2 * np.pi * 2.0**2 * 60
    expected_error = SIGMA * np.sqrt(np.pi) * radius
    assert values.shape == errors.shape == (1, 3)
    np.testing.assert_allclose(values[0], total, atol=4 * expected_error)
    np.testing.assert_allclose(errors[0], expected_error, rtol=0.01)


def test_masked_pixels_of_an_aperture_count_as_its_mean():
    flux, variance, valid = scene()
    sources = detect(flux, variance, valid)
    flat, mask = np.full((2, 128, 144), 3.0, np.float32), np.stack([valid, valid])
    mask[1, :, 80] = False
    flat[1, :, 80] = np.nan
    values, _, _ = aperture_flux(flat, np.stack([variance] * 2), mask, sources, 6.0)
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)
    np.testing.assert_allclose(values[0], 3.0 * np.pi * 36, rtol=0.01)


def test_no_sources_have_no_fluxes():
    flux, variance, valid = scene(peak=0.0)
    values, errors, _ = aperture_flux(flux[None], variance[None], valid[None], detect(flux, variance, valid), 5.0)
    assert values.shape == errors.shape == (1, 0)
