"""Bands brought to another PSF, against GalSim's images with that PSF; variance, correlation, masks and tiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from surveybridge.storage.homogenise import FILL_REACH, BandPlan, homogenise, noise_lags, plan_bands
from surveybridge.storage.images import MASK_PLANES, SurveyImage
from surveybridge.storage.psf import Gaussian, Kolmogorov, Moffat, Psf, PsfImage
from surveybridge.storage.psf_matching import EXACT, Matching, matching
from surveybridge.storage.tile_arrays import crop_image
from tests.storage.fits_files import tan_wcs

galsim = pytest.importorskip("galsim", reason="needs the sim extra: galsim")

SIDE, SCALE = 200, 0.13
OBJECTS = [(61.3, 70.2, 900.0, 0.0), (120.8, 90.4, 500.0, 0.6), (95.0, 135.7, 1500.0, 0.35), (140.2, 141.9, 80.0, 0.0)]
"""x, y, flux and half-light radius in arcsec (0: a star)."""


def galsim_of(psf):
    if isinstance(psf, Moffat):
        return galsim.Moffat(fwhm=psf.fwhm, beta=psf.beta)
    return {Gaussian: galsim.Gaussian, Kolmogorov: galsim.Kolmogorov}[type(psf)](fwhm=psf.fwhm)


def scene(profile) -> np.ndarray:
    """The sky seen with a PSF, [1, H, W]."""
    image = galsim.ImageD(SIDE, SIDE, scale=SCALE)
    for x, y, flux, radius in OBJECTS:
        body = galsim.Exponential(half_light_radius=radius).shear(g1=0.2) if radius else None
        seen = profile if body is None else galsim.Convolve(body, profile)
        seen = (seen * flux).drawImage(nx=SIDE - 1, ny=SIDE - 1, scale=SCALE, offset=(x - 99, y - 99))
        image.array[: SIDE - 1, : SIDE - 1] += seen.array
    return image.array[None]


def image_of(flux, psf, variance=1.0, mask=None, correlation=0.0, **more) -> SurveyImage:
    flux = np.asarray(flux, np.float32)
    mask = np.zeros(flux.shape, np.uint8) if mask is None else mask
    flux = np.where(mask & MASK_PLANES["NO_DATA"], np.nan, flux).astype(np.float32)
    variance = np.where(np.isnan(flux), np.nan, np.broadcast_to(variance, flux.shape)).astype(np.float32)
    header = tan_wcs(flux.shape[1:], SCALE).to_header_string()
    widths = dict(psf_fwhm=(psf.fwhm,), psf_wing=(psf.wing,), psf_model=(psf,)) if psf else {"psf_fwhm": (np.nan,)}
    return SurveyImage(
        "lsst", ("r",), flux, variance, mask, header, SCALE, zero_point=31.4, noise_correlation=(correlation,),
        **(widths | more),
    )  # fmt: skip


def plan_of(image: SurveyImage, target: Psf, bound: float = 1.5, halo: int | None = None) -> tuple[BandPlan, Matching]:
    """The plan of the only band, which is one."""
    (plan,) = plan_bands(image, [target], bound, halo)
    assert plan.matching is not None
    return plan, plan.matching


def stamp_of(profile, side: int = 61) -> PsfImage:
    return PsfImage.of(profile.drawImage(nx=side, ny=side, scale=SCALE).array, SCALE, "a test")


FLAT = galsim.Convolve(galsim.Gaussian(fwhm=0.62).shear(g1=0.12, g2=-0.08), galsim.Moffat(fwhm=0.4, beta=3.5))

CASES: dict[str, tuple[Psf, Psf]] = {
    "gaussian to a wider one": (Gaussian(0.55), Gaussian(0.8)),
    "gaussian to a narrower one": (Gaussian(0.8), Gaussian(0.74)),
    "moffat to a gaussian": (Moffat(0.72, 2.5), Gaussian(0.75)),
    "moffat of other wings": (Moffat(0.7, 4.0), Moffat(0.86, 2.8)),
    "kolmogorov to a gaussian": (Kolmogorov(0.68), Gaussian(0.7)),
    "gaussian to kolmogorov": (Gaussian(0.6), Kolmogorov(0.85)),
}


@pytest.mark.parametrize("case", CASES)
def test_an_image_becomes_what_galsim_draws_with_the_wanted_psf(case):
    source, target = CASES[case]
    before, wanted = scene(galsim_of(source)), scene(galsim_of(target))
    image = image_of(before, source)
    plan, how = plan_of(image, target, bound=4.0)
    assert not how.limited
    after = homogenise(image, [plan])
    middle = np.s_[0, 30:-30, 30:-30]
    off = np.abs(after.flux - wanted)[middle].max() / wanted.max()
    assert off < EXACT < np.abs(before - wanted)[middle].max() / wanted.max()
    assert after.flux[middle].sum() == pytest.approx(wanted[middle].sum(), rel=4e-3)
    assert (after.psf_fwhm, after.psf_wing, after.psf_model) == ((target.fwhm,), (target.wing,), (target,))
    assert after.provenance["r.homogenised"] == plan.said


def test_an_image_of_a_lopsided_psf_is_made_round():
    target = Gaussian(0.9)
    image = image_of(scene(FLAT), stamp_of(FLAT))
    after = homogenise(image, plan_bands(image, [target]))
    wanted = scene(galsim_of(target))
    assert np.abs(after.flux - wanted)[0, 30:-30, 30:-30].max() < EXACT * wanted.max()


def test_where_the_noise_bound_is_active_it_is_kept_and_what_is_reached_is_said():
    source, target = Gaussian(1.0), Gaussian(0.7)
    image = image_of(scene(galsim_of(source)), source)
    found = [plan_of(image, target, bound) for bound in (1.2, 1.6, 2.5)]
    assert [how.noise for _, how in found] == pytest.approx([1.2, 1.6, 2.5], rel=0.02)
    assert all(how.limited and "is reached" in plan.said for plan, how in found)
    widths = [how.reached.fwhm for _, how in found]
    assert 1.0 > widths[0] > widths[1] > widths[2] > 0.7
    after = homogenise(image, [found[1][0]])
    assert after.psf_fwhm == (widths[1],) and isinstance(after.psf_model[0], PsfImage)
    # the PSF that the image then has is the one that is stated
    star = PsfImage.of(after.flux[0, 70 - 30 : 70 + 31, 61 - 30 : 61 + 31], SCALE, "a star")
    assert star.fwhm == pytest.approx(widths[1], rel=0.02)


@pytest.mark.parametrize("correlation", [0.0, 0.45])
def test_noise_after_is_the_variance_and_correlation_that_are_stated(correlation):
    rng = np.random.default_rng(5)
    blur = np.exp(-np.arange(0, 60) * np.log(1 / correlation)) if correlation else np.ones(1)
    noise = rng.normal(size=(40, SIDE + 60, SIDE + 60))
    for axis in (1, 2):  # an autoregressive process along each axis
        noise = np.apply_along_axis(np.convolve, axis, noise, blur, "same")
    noise = noise[:, 30:-30, 30:-30]
    level = np.where(np.arange(SIDE) < SIDE / 2, 1.0, 3.0)[None, None]
    noise = noise / noise.std() * level
    source, target = Gaussian(0.8), Moffat(0.78, 3.0)
    images = [image_of(one[None], source, level**2, correlation=correlation) for one in noise]
    plans = plan_bands(images[0], [target])
    after = [homogenise(image, plans) for image in images]
    flux = np.stack([image.flux[0] for image in after])
    stated = after[0].variance[0]
    pull = flux**2 / stated
    for part in (np.s_[:, 25:-25, 25:-25], np.s_[:, 25:-25, 25:75], np.s_[:, 25:-25, 125:-25]):
        assert pull[part].mean() == pytest.approx(1, abs=0.03)
    if correlation == 0:  # exact where the level changes, too
        assert pull[:, 25:-25, 92:108].mean() == pytest.approx(1, abs=0.03)
    flat = flux / np.sqrt(stated)
    found = [
        (flat[:, 25:-26, 25:75] * flat[:, 26:-25, 25:75]).mean(),
        (flat[:, 25:-25, 25:75] * flat[:, 25:-25, 26:76]).mean(),
    ]
    assert after[0].noise_correlation[0] == pytest.approx(np.mean(found), abs=0.02)


def test_noise_of_an_interpolated_image_is_that_of_the_spline():
    told = {"native_pixel_scale": f"{2 * SCALE:.6g}", "interpolation": "cubic spline"}
    lags = noise_lags(image_of(np.zeros((1, 80, 80)), Gaussian(0.8), correlation=0.686, provenance=told), 0)
    assert lags[:4] == pytest.approx((1, 0.686, 0.117, -0.144), abs=0.01)
    assert noise_lags(image_of(np.zeros((1, 80, 80)), Gaussian(0.8), correlation=0.5), 0)[2] == pytest.approx(0.25)
    assert noise_lags(image_of(np.zeros((1, 80, 80)), Gaussian(0.8)), 0) == (1.0,)


def test_masks_grow_by_what_the_kernel_spreads_and_never_shrink():
    source, target = Moffat(0.8, 3.0), Gaussian(0.8)
    mask = np.zeros((1, SIDE, SIDE), np.uint8)
    mask[0, 60, 60], mask[0, 60, 140], mask[0, 140, 100] = (MASK_PLANES[name] for name in ("BAD", "SAT", "NO_DATA"))
    image = image_of(scene(galsim_of(source)), source, mask=mask)
    plan, how = plan_of(image, target)
    after = homogenise(image, [plan])
    grown = {name: how.radius(share) for name, share in (("BAD", 0.1), ("SAT", 0.01))}
    assert 2 <= grown["BAD"] < grown["SAT"] <= how.reach + 1
    y, x = np.indices((SIDE, SIDE))
    for name, (at_y, at_x) in {"BAD": (60, 60), "SAT": (60, 140)}.items():
        is_set = after.mask[0] & MASK_PLANES[name] != 0
        np.testing.assert_array_equal(is_set, np.hypot(y - at_y, x - at_x) <= grown[name])
    lost = after.mask[0] & MASK_PLANES["NO_DATA"] != 0
    assert lost.sum() == 1 and np.isnan(after.flux[0]).sum() == 1 and np.isnan(after.variance[0]).sum() == 1
    assert after.mask[0, 140, 100 + grown["BAD"]] == MASK_PLANES["CLIPPED_EDGE"] == after.mask[0, 0, 100]
    assert after.mask[0, 100, 100] == 0


def test_masked_pixels_are_filled_before_whatever_they_hold():
    source, target = Gaussian(0.6), Gaussian(0.8)
    flux = scene(galsim_of(source))
    mask = np.zeros(flux.shape, np.uint8)
    mask[0, :, 80] = MASK_PLANES["BAD"]
    for junk in (1e7, np.nan, -np.inf):
        image = image_of(np.where(mask, junk, flux), source, mask=mask)
        after = homogenise(image, plan_bands(image, [target]))
        wanted = scene(galsim_of(target))
        usable = after.mask[0] == 0
        assert np.abs(after.flux[0] - wanted[0])[usable].max() < 0.02 * wanted.max()
        assert usable.mean() > 0.8


def test_a_tile_with_its_halo_has_the_pixels_of_the_whole_image():
    source, target = Moffat(0.85, 3.2), Gaussian(0.8)
    rng = np.random.default_rng(2)
    mask = np.where(rng.random((1, SIDE, SIDE)) < 0.01, MASK_PLANES["BAD"], 0).astype(np.uint8)
    mask[0, 90:115, 60:75] |= MASK_PLANES["NO_DATA"]
    variance = 1 + rng.random((1, SIDE, SIDE))
    image = image_of(
        scene(galsim_of(source)) + rng.normal(size=(1, SIDE, SIDE)), source, variance, mask, correlation=0.3
    )
    plan, how = plan_of(image, target)
    whole = homogenise(image, [plan])
    halo = how.reach + FILL_REACH
    y0, y1, x0, x1 = 70, 130, 50, 120
    tile = homogenise(crop_image(image, (y0 - halo, y1 + halo, x0 - halo, x1 + halo)), [plan])
    inner, outer = np.s_[0, halo:-halo, halo:-halo], np.s_[0, y0:y1, x0:x1]
    np.testing.assert_array_equal(tile.mask[inner], whole.mask[outer])
    np.testing.assert_allclose(tile.flux[inner], whole.flux[outer], atol=1e-6 * float(np.nanmax(whole.flux)))
    np.testing.assert_allclose(tile.variance[inner], whole.variance[outer], rtol=1e-6)
    assert (whole.mask[outer] == 0).any() and (whole.mask[outer] != 0).any()


def test_what_agrees_within_two_percent_is_left_as_it_is():
    image = image_of(scene(galsim_of(Gaussian(0.77))), Gaussian(0.77))
    plans = plan_bands(image, [Gaussian(0.78)])
    assert (plans[0].matching, plans[0].said) == (None, "")
    after = homogenise(image, plans)
    assert after.flux is image.flux and after.provenance == image.provenance
    assert plan_bands(image, [Gaussian(0.8)])[0].matching is not None
    assert plan_bands(image, [Moffat(0.77, 5)])[0].matching is not None


def test_where_only_the_width_is_known_the_wings_are_those_of_the_target_and_that_is_said():
    flat = np.zeros((1, 90, 90))
    width_only = image_of(flat, None, psf_fwhm=(0.9,))
    plan = plan_bands(width_only, [Moffat(0.8, 4)], bound=3)[0]
    assert plan.matching is matching(Moffat(0.9, 4), Moffat(0.8, 4), SCALE, (1.0,), 3)
    assert "its wings taken to be those" in plan.said
    unknown = plan_bands(image_of(flat, None), [Gaussian(0.8)])[0]
    assert (unknown.matching, unknown.said) == (None, "as it is: its PSF is not known")


def test_a_halo_that_is_too_narrow_is_said_with_both_numbers():
    image = image_of(np.zeros((1, 90, 90)), Gaussian(0.6))
    need = plan_of(image, Gaussian(0.8))[1].reach + FILL_REACH
    assert plan_bands(image, [Gaussian(0.8)], halo=need)[0].matching is not None
    short = plan_bands(image, [Gaussian(0.8)], halo=need - 1)[0]
    assert short.matching is None
    assert f"needs {need} pixels around a tile and there are {need - 1}" in short.said


def test_bands_are_homogenised_each_to_its_own_psf():
    one = image_of(scene(galsim_of(Gaussian(0.6))), Gaussian(0.6))
    both = replace(
        one, bands=("g", "r"), psf_fwhm=(0.6, 0.7), psf_wing=(0.0, 0.0), psf_model=(None, None),
        noise_correlation=(0.0, 0.2),
        flux=np.repeat(one.flux, 2, 0), variance=np.repeat(one.variance, 2, 0), mask=np.repeat(one.mask, 2, 0),
    )  # fmt: skip
    after = homogenise(both, plan_bands(both, [Gaussian(0.8), Gaussian(0.7)]))
    assert after.psf_fwhm == (0.8, 0.7)
    np.testing.assert_array_equal(after.flux[1], both.flux[1])
    assert after.flux[0].max() < 0.8 * both.flux[0].max()
    assert list(after.provenance) == ["g.homogenised"]
