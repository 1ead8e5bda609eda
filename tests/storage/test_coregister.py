"""Co-registration conserves flux and position, and says what it did to noise and bad pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.path import Path
from scipy import ndimage

from surveybridge.storage.celestial import celestial_wcs, icrs_wcs, sky_to_pixel, stated_wcs, wcs_header_string
from surveybridge.storage.coregister import Registration, coregister, resample_stamps
from surveybridge.storage.errors import StorageError
from surveybridge.storage.grids import Displacement, GridMapping, pixel_to_pixel
from surveybridge.storage.images import MASK_PLANES, LazyImage, SurveyImage
from surveybridge.storage.spline import TAPS, interpolation_matrix, tap_weights
from tests.storage.fits_files import gaussians, tan_wcs
from tests.storage.wcs_headers import bent, true_sky, unusual

pytestmark = pytest.mark.long

FINE, COARSE = (128, 128), (72, 72)


def header(shape, scale, **how):
    return tan_wcs(shape, scale, **how).to_header_string()


def image_of(flux, *, variance=None, mask=None, rotation=-4.5, scale=0.2, correlation=0.0):
    """One band [H, W], or several [C, H, W] that share variance and mask."""
    flux = np.atleast_3d(np.asarray(flux, np.float32).T).T
    bands = flux.shape[0]
    return SurveyImage(
        survey="lsst",
        bands=tuple(f"b{k}" for k in range(bands)),
        flux=flux,
        variance=np.ones_like(flux)
        if variance is None
        else np.broadcast_to(np.asarray(variance, np.float32), flux.shape),
        mask=np.zeros(flux.shape, np.uint8)
        if mask is None
        else np.broadcast_to(np.asarray(mask, np.uint8), flux.shape),
        wcs_header=header(flux.shape[1:], scale, rotation=rotation, ra=53.0001, dec=-28.0001),
        pixel_scale=scale,
        psf_fwhm=(0.77,) * bands,
        zero_point=31.4,
        noise_correlation=(correlation,) * bands,
    )


def test_flux_and_position_survive_rotation_and_rescaling():
    position = (33.3, 40.7)
    image = image_of(gaussians(COARSE, [position], 1.64))
    out = coregister(image, header(FINE, 0.1), FINE)
    flux = np.where(out.valid[0], out.flux[0], 0).astype(np.float64)
    y, x = np.indices(FINE)
    there = pixel_to_pixel(image.wcs, out.wcs, *map(np.atleast_1d, position))
    assert flux.sum() == pytest.approx(1000.0, rel=1e-4)
    assert (flux * y).sum() / flux.sum() == pytest.approx(there[0][0], abs=2e-3)
    assert (flux * x).sum() / flux.sum() == pytest.approx(there[1][0], abs=2e-3)
    assert out.pixel_scale == pytest.approx(0.1)


def test_mapping_spline_equals_the_wcs():
    fine, coarse = header((600, 500), 0.1), header((300, 300), 0.2, rotation=-4.5)
    mapping = GridMapping.between(fine, (600, 500), coarse)
    y, x = np.arange(0.0, 600, 7), np.arange(0.0, 500, 7)
    where = mapping.at(y, x)
    truth = pixel_to_pixel(celestial_wcs(fine), celestial_wcs(coarse), *np.meshgrid(y, x, indexing="ij"))
    assert max(np.abs(where.y - truth[0]).max(), np.abs(where.x - truth[1]).max()) < 1e-8
    np.testing.assert_allclose(where.area, 0.25, rtol=1e-6)


def test_blocks_of_rows_change_nothing():
    image = image_of(gaussians((160, 160), [(80, 80)], 1.6), rotation=2.0)
    shape = (300, 40)
    assert len(list(GridMapping.between(header(shape, 0.1), shape, image.wcs_header).blocks(0, shape[0]))) > 1
    whole, part = coregister(image, header(shape, 0.1), shape), tan_wcs(shape, 0.1)[:200]
    top = coregister(image, part.to_header_string(), (200, 40))
    np.testing.assert_allclose(top.flux[0], whole.flux[0, :200], atol=1e-5)


def test_a_shift_by_whole_pixels_is_a_copy():
    rng = np.random.default_rng(0)
    image = image_of(rng.normal(size=(60, 60)), rotation=0.0, correlation=0.8)
    wcs = image.wcs[5:45, 7:67]
    out = coregister(image, wcs.to_header_string(), (40, 60))
    np.testing.assert_array_equal(out.flux[0, :, :53], image.flux[0, 5:45, 7:])
    np.testing.assert_array_equal(out.variance[0, :, :53], 1.0)
    assert out.noise_correlation == (0.8,)
    assert (out.mask[0, :, 53:] == MASK_PLANES["NO_DATA"]).all()
    assert np.isnan(out.flux[0, :, 53:]).all()
    assert not out.mask[0, :, :53].any()


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_variance_and_correlation_match_monte_carlo(correlation):
    """Bright-source (Poisson) variance over sky variance; noise with lag-1 correlation r from an AR(1) filter."""
    rng = np.random.default_rng(3)
    source = 1 + gaussians((56, 56), [(28, 28)], 4.0, 2000.0)
    draws, shape = 1200, (48, 48)
    noise = rng.normal(size=(draws, 56, 56))
    for axis in (1, 2) if correlation else ():
        moved = np.moveaxis(noise, axis, 0)
        for k in range(1, moved.shape[0]):
            moved[k] = correlation * moved[k - 1] + np.sqrt(1 - correlation**2) * moved[k]
    noise *= np.sqrt(source)
    out = coregister(image_of(noise, variance=source, correlation=correlation), header(shape, 0.1), shape)
    flux, measured, predicted = out.flux, out.flux.var(axis=0), out.variance[0]
    assert np.median(measured / predicted) == pytest.approx(1.0, abs=0.02)
    # 1200 draws know a variance to 4%; the correlated formula takes the variance as locally constant
    assert np.percentile(np.abs(measured / predicted - 1), 99) < (0.13 if correlation == 0 else 0.25)
    lag_x = (flux[:, :, 1:] * flux[:, :, :-1]).mean() / measured.mean()
    lag_y = (flux[:, 1:] * flux[:, :-1]).mean() / measured.mean()
    assert out.noise_correlation[0] == pytest.approx((lag_x + lag_y) / 2, abs=0.02)


def test_bad_pixels_are_masked_wherever_they_matter():
    clean = gaussians(COARSE, [(36, 36)], 2.0, 1e4)
    mask = np.zeros(COARSE, np.uint8)
    mask[:, 33] = MASK_PLANES["BAD"]
    mask[50, 50] = MASK_PLANES["SAT"]
    dirty = clean.copy()
    dirty[:, 33] = 1e6
    dirty[60, 20] = np.nan
    mask[60, 20] = MASK_PLANES["NO_DATA"]
    target = header(FINE, 0.1)
    truth, out = coregister(image_of(clean), target, FINE), coregister(image_of(dirty, mask=mask), target, FINE)
    valid = out.valid[0]
    assert 0.7 < valid.mean() < 0.97
    assert np.isfinite(out.flux[0][valid]).all()
    # the column crosses the flank of the source; its fill may be wrong by a little, nowhere by more than 1% of the peak
    assert np.abs(out.flux[0] - truth.flux[0])[valid].max() < 0.01 * np.nanmax(truth.flux)
    for plane in ("BAD", "SAT", "NO_DATA"):
        assert (out.mask[0] & MASK_PLANES[plane]).any()
    no_data = (out.mask[0] & MASK_PLANES["NO_DATA"]) != 0
    np.testing.assert_array_equal(np.isnan(out.flux[0]), no_data)
    np.testing.assert_array_equal(np.isnan(out.variance[0]), no_data)


def test_the_value_of_a_bad_pixel_reaches_no_output():
    mask = np.zeros(COARSE, np.uint8)
    mask[30, 30] = MASK_PLANES["BAD"]
    flux = gaussians(COARSE, [(36, 36)], 2.0)
    other = flux.copy()
    other[30, 30] = -1e9
    first, second = (coregister(image_of(f, mask=mask), header(FINE, 0.1), FINE) for f in (flux, other))
    np.testing.assert_array_equal(first.flux, second.flux)


@pytest.mark.parametrize(("plane", "reach"), [("BAD", 2), ("SAT", 3)])
def test_mask_footprint_is_that_of_the_kernel(plane, reach):
    mask = np.zeros(COARSE, np.uint8)
    mask[36, 36] = MASK_PLANES[plane]
    image = image_of(np.ones(COARSE), mask=mask)
    out = coregister(image, header(FINE, 0.1), FINE)
    y, x = pixel_to_pixel(out.wcs, image.wcs, *np.indices(FINE).astype(float))
    distance = np.maximum(np.abs(y - 36), np.abs(x - 36))
    masked = (out.mask[0] & MASK_PLANES[plane]) != 0
    assert masked[distance < reach - 1e-6].all()
    assert not masked[distance > reach + 1e-6].any()


def test_edges_are_no_data_outside_and_clipped_inside():
    image = image_of(np.ones((40, 40)), rotation=0.0)
    out = coregister(image, header(FINE, 0.1, rotation=1.0), FINE)
    y, x = pixel_to_pixel(out.wcs, image.wcs, *np.indices(FINE).astype(float))
    outside = (np.minimum(y, x) < -0.5) | (np.maximum(y, x) > 39.5)
    np.testing.assert_array_equal(out.mask[0] == MASK_PLANES["NO_DATA"], outside)
    inside = (np.minimum(y, x) > 1) & (np.maximum(y, x) < 38)
    assert not out.mask[0][inside].any()
    np.testing.assert_allclose(out.flux[0][inside], 0.25, rtol=1e-5)
    assert (out.mask[0][~outside & ~inside & (np.minimum(y, x) < 0.9)] == MASK_PLANES["CLIPPED_EDGE"]).all()


def test_grids_that_cannot_see_each_other_are_refused():
    with pytest.raises(StorageError, match="do not see the same sky"):
        coregister(image_of(np.ones(COARSE)), header(FINE, 0.1, ra=233.0, dec=28.0), FINE)


def test_stamps_are_resampled_as_the_mosaic_is():
    rng = np.random.default_rng(4)
    stamps = rng.normal(size=(3, 64, 64, 2)).astype(np.float32)
    out = resample_stamps(stamps)
    assert out.shape == (3, 2, 64, 64)
    assert out.dtype == np.float32
    for n, band in ((0, 0), (2, 1)):
        image = image_of(stamps[n, :, :, band])
        same = SurveyImage(**{**image.__dict__, "wcs_header": header((64, 64), 0.2)})
        mosaic = coregister(same, header((64, 64), 0.1), (64, 64))
        np.testing.assert_allclose(out[n, band], mosaic.flux[0], atol=2e-6)


def test_resampling_conserves_the_flux_of_centred_stamps():
    stamp = gaussians((64, 64), [(31.5, 31.5)], 1.64)
    out = resample_stamps(stamp[None, :, :, None])
    assert out.sum() == pytest.approx(1000.0, rel=1e-5)
    y = np.arange(64.0)[:, None]
    assert (out[0, 0] * y).sum() / out.sum() == pytest.approx(31.5, abs=1e-4)


def test_kernel_weights_are_the_interpolating_spline():
    positions = 20 + np.array([0.0, 0.25, 0.5, 0.99])
    matrix = interpolation_matrix(41, positions)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0)
    np.testing.assert_allclose(tap_weights(positions - 20).T, matrix[:, 20 + TAPS], atol=1e-12)
    signal = np.random.default_rng(5).normal(size=41)
    expected = ndimage.map_coordinates(signal, positions[None], order=3, mode="mirror")
    np.testing.assert_allclose(matrix @ signal, expected, atol=1e-12)


@pytest.mark.parametrize("strength", [-6e-6, -3e-5])
def test_only_what_diverges_lies_outside(strength):
    """At -3e-5 the polynomial turns back 105 px from its centre, just outside the corners of the image."""
    shape, wide = (140, 140), (900, 900)
    wcs = bent(shape, strength, rotation=20.0)
    x, y = np.array([12.0, 70, 127, 30]), np.array([15.0, 71, 126, 120])
    image = image_of(gaussians(shape, np.stack([y, x], 1), 1.6))
    image = SurveyImage(**{**image.__dict__, "wcs_header": wcs.to_header_string(relax=True)})
    out = coregister(image, header(wide, 0.1), wide)
    covered = out.valid[0]
    strips = Registration.of(LazyImage.of(image), header(wide, 0.1), wide)
    parts = [strips.strip(start, start + 300) for start in range(0, 900, 300)]
    np.testing.assert_array_equal(np.concatenate([part.flux for part in parts], axis=1), out.flux)
    np.testing.assert_array_equal(np.concatenate([part.mask for part in parts], axis=1), out.mask)
    there = tan_wcs(wide, 0.1).all_world2pix(*wcs.all_pix2world(x, y, 0), 0)
    for u, v in zip(*there, strict=True):
        rows, columns = np.mgrid[round(v) - 14 : round(v) + 15, round(u) - 14 : round(u) + 15]
        flux = np.nan_to_num(out.flux[0, rows, columns].astype(float))
        centre = (flux * rows).sum() / flux.sum() - v, (flux * columns).sum() / flux.sum() - u
        assert np.hypot(*centre) < 0.05  # a Gaussian drawn on bent pixels is not round on the sky
    # the outline: every output pixel is on the image if and only if some pixel of the image is there
    edge = np.concatenate([[(t, -0.5), (139.5, t), (139 - t, 139.5), (-0.5, 139 - t)] for t in np.linspace(0, 139, 71)])
    outline = np.stack(tan_wcs(wide, 0.1).all_world2pix(*wcs.all_pix2world(*edge.T, 0), 0), axis=1)
    order = np.argsort(np.arctan2(*(outline - outline.mean(axis=0)).T[::-1]))
    some = np.mgrid[0:900:7, 0:900:7]
    inside = Path(outline[order]).contains_points(some[::-1].reshape(2, -1).T).reshape(some.shape[1:])
    assert np.mean(inside != (out.mask[0, ::7, ::7] & MASK_PLANES["NO_DATA"] == 0)) < 2e-4
    assert covered.any() and not covered.all()


def test_positions_are_exact_where_splines_are_not():
    shape, wide = (140, 140), (700, 640)
    wcs = bent(shape, -3e-5)
    target = header(wide, 0.1, rotation=50.0)
    mapping = GridMapping.between(target, wide, wcs.to_header_string(relax=True), shape)
    assert mapping.cells is not None and mapping.cells.exact.any() and mapping.cells.unseen.any()
    y, x = np.arange(0.0, 700, 3), np.arange(0.0, 640, 3)
    where = mapping.at(y, x)
    truth = pixel_to_pixel(celestial_wcs(target), wcs, *np.meshgrid(y, x, indexing="ij"))
    on = (np.abs(truth[0] - 69.5) < 70) & (np.abs(truth[1] - 69.5) < 70)
    assert on.sum() > 1000
    assert np.hypot(where.y - truth[0], where.x - truth[1])[on].max() < 2e-4
    with np.errstate(invalid="ignore"):
        claimed = (np.abs(where.y - 69.5) < 70) & (np.abs(where.x - 69.5) < 70)
    np.testing.assert_array_equal(claimed, on)


def test_tpv_that_cannot_be_inverted_far_outside_is_exact_inside():
    shape, wide = (140, 140), (900, 900)
    cards = tan_wcs(shape, 0.2, rotation=20.0).to_header()
    cubic = -2.5e-5 * (3600 / 0.2) ** 2
    terms = {f"PV{axis}_{index}": cubic for axis in (1, 2) for index in (7, 9)}
    cards.update({"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.0, "PV2_1": 1.0} | terms)
    wcs, target = celestial_wcs(cards), header(wide, 0.1)
    mapping = GridMapping.between(target, wide, wcs_header_string(wcs), shape)
    assert mapping.cells is not None and mapping.cells.unseen.any()
    rows, columns = (v.ravel() for v in np.mgrid[2.0:138:17, 2.0:138:17])
    x, y = celestial_wcs(target).all_world2pix(*wcs.all_pix2world(columns, rows, 0), 0)
    for v, u, row, column in zip(y, x, rows, columns, strict=True):
        where = mapping.at(np.array([v]), np.array([u]))
        assert np.hypot(where.y[0, 0] - row, where.x[0, 0] - column) < 2e-4


def test_equal_grids_with_a_distortion_are_copied():
    shape = (400, 400)
    wcs = bent(shape, -2e-6)
    image = image_of(np.random.default_rng(1).normal(size=shape))
    image = SurveyImage(**{**image.__dict__, "wcs_header": wcs.to_header_string(relax=True)})
    out = coregister(image, wcs[20:, 30:].to_header_string(relax=True), (300, 300))
    np.testing.assert_array_equal(out.flux[0], image.flux[0, 20:320, 30:330])


@pytest.mark.parametrize(
    ("frame", "swap", "ra", "dec", "sip"),
    [
        ("ICRS", True, 140.0, 33.0, 0.0),
        ("FK5", False, 140.0, 33.0, 0.0),
        ("FK5", True, 0.0001, -61.0, 0.0),
        ("ICRS", False, 359.9999, 5.0, -2e-6),
        ("ICRS", False, 75.0, 89.998, 0.0),
        ("FK5", False, 200.0, -89.9995, -2e-6),
        ("ICRS", True, 17.0, 89.9999, 1e-6),
        ("GALACTIC", False, 83.0, -5.0, 0.0),
        ("GALACTIC", True, 0.00001, 62.0, 2e-6),
    ],
)
def test_positions_are_right_on_every_kind_of_grid(frame, swap, ra, dec, sip):
    """Input and output in turn have the unusual header; a source at a known place is where it should be."""
    usual = tan_wcs((140, 150), 0.1, rotation=10.0, ra=ra, dec=dec)
    header, native, name = unusual((140, 150), 0.2, (ra, dec), frame, sip=sip, swap=swap)
    x, y = np.array([60.2, 88.7]), np.array([55.4, 80.1])
    true = true_sky(native, name, y, x)
    read = wcs_header_string(icrs_wcs(stated_wcs(header)).wcs)
    for source, target in ((read, usual.to_header_string()), (usual.to_header_string(), read)):
        from_, to = celestial_wcs(source), celestial_wcs(target)
        mapping = GridMapping.between(target, (140, 150), source, (140, 150))
        there = sky_to_pixel(to, true.ra.deg, true.dec.deg)
        for v, u, place in zip(*there, true, strict=True):
            where = mapping.at(np.array([v]), np.array([u]))
            expected = sky_to_pixel(from_, place.ra.deg, place.dec.deg)
            assert np.hypot(where.y[0, 0] - expected[0], where.x[0, 0] - expected[1]) < 2e-4
    back = sky_to_pixel(celestial_wcs(read), true.ra.deg, true.dec.deg)
    np.testing.assert_allclose(back, (y, x), rtol=0, atol=2e-5)


def test_an_error_of_the_wcs_that_is_known_is_taken_back():
    """The image lies 1.3 and -0.6 pixels of the grid off its WCS, and is turned by 0.4 degrees about the middle."""
    turn, middle = np.deg2rad(0.4), ((FINE[0] - 1) / 2, (FINE[1] - 1) / 2)
    displacement = Displacement((1.3, -0.6), turn, middle)
    y, x = np.array([30.0, 64.0, 90.0]), np.array([50.0, 95.0, 40.0])
    target = header(FINE, 0.1)
    shown_y, shown_x = displacement.of(y, x)
    wrong = header(COARSE, 0.2, rotation=-4.5)
    places = np.stack(pixel_to_pixel(celestial_wcs(target), celestial_wcs(wrong), shown_y, shown_x), -1)
    image = replace(image_of(gaussians(COARSE, places, 1.64)), wcs_header=wrong)
    out = Registration.of(LazyImage.of(image), target, FINE, displacement).strip(0, FINE[0])
    expected = gaussians(FINE, np.stack([y, x], -1), 3.28)
    inner = np.s_[8:-8, 8:-8]
    np.testing.assert_allclose(out.flux[0][inner], expected[inner], atol=0.01 * expected.max())
    assert float(np.nansum(out.flux)) == pytest.approx(3000.0, rel=1e-3)


def test_an_image_on_the_grid_itself_is_interpolated_once_it_is_displaced():
    wcs = header(FINE, 0.1)
    image = replace(image_of(gaussians(FINE, [(60.0, 70.0)], 3.0)), wcs_header=wcs)
    moved = Displacement((0.5, 0.25), 0.0, (0.0, 0.0))
    out = Registration.of(LazyImage.of(image), wcs, FINE, moved).strip(0, FINE[0])
    np.testing.assert_allclose(out.flux[0][9:-9, 9:-9], gaussians(FINE, [(59.5, 69.75)], 3.0)[9:-9, 9:-9], atol=0.05)
