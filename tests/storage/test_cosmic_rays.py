"""Cosmic rays that no mask shows are found in one image, and stars are not, whatever part of it is read."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage, special

from surveybridge.jobs.simulating.noise import cosmic_rays
from surveybridge.jobs.simulating.observing import INSTRUMENTS, Marks
from surveybridge.storage import cosmic_rays as module
from surveybridge.storage.cosmic_rays import RayFinder, check_astroscrappy, contrast_for, find_rays, star_contrast
from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_images import open_images
from surveybridge.storage.images import MASK_PLANES
from tests.storage.fits_files import EUCLID, gaussians, tan_wcs, write_survey_file

pytest.importorskip("astroscrappy", reason="needs the cosmic-rays extra")

pytestmark = pytest.mark.long  # full medians of many images

SIDE, SIGMA, GAIN, SCALE = 400, 2.0, 12.0, 0.1
VIS = replace(INSTRUMENTS[3], sky_sigma=SIGMA)


def star(shape, y, x, flux, fwhm=0.16):
    """A Gaussian star in pixels of 0.1 arcsec, integrated over each."""
    sigma = fwhm / SCALE / np.sqrt(8 * np.log(2))

    def along(n, centre):
        edges = special.erf((np.arange(n + 1) - 0.5 - centre) / (np.sqrt(2) * sigma))
        return np.diff(edges) / 2

    return flux * along(shape[0], y)[:, None] * along(shape[1], x)[None, :]


def observed(model, rng):
    """Flux and variance with the noise of the sky and of the photons, and a mask of nothing."""
    variance = SIGMA**2 + model / GAIN
    flux = model + np.sqrt(variance) * rng.normal(size=model.shape)
    return flux.astype(np.float32), variance.astype(np.float32), np.zeros(model.shape, np.uint8)


def rays_of(planes, contrast):
    flux, variance, mask = planes
    return find_rays(flux, variance, mask, SIGMA, contrast)


def galaxies(rng, number=60):
    model = np.zeros((SIDE, SIDE))
    for flux in 10 ** rng.uniform(2, 4, number):
        y, x = rng.uniform(10, SIDE - 10, (2, 1))
        model += gaussians(model.shape, [(y[0], x[0])], rng.uniform(1.2, 4.0), flux)
    return model


@pytest.fixture(scope="module")
def hit():
    """An image of galaxies with 45 rays: its planes, the light of the rays, and the planes without them."""
    rng = np.random.default_rng(11)
    clean = observed(galaxies(rng), rng)
    light, _ = cosmic_rays((SIDE, SIDE), replace(VIS, cosmic_rays=Marks(100.0)), rng)
    return SimpleNamespace(
        planes=(clean[0] + light.astype(np.float32), *clean[1:]),
        clean=clean,
        light=light,
        contrast=contrast_for(0.16, SCALE, "vis.fits"),
    )


@pytest.fixture(scope="module")
def rays(hit):
    return rays_of(hit.planes, hit.contrast)


def test_most_rays_are_found_and_next_to_nothing_else(hit, rays):
    tracks, number = ndimage.label(hit.light > 0.5 * SIGMA, np.ones((3, 3)))
    tell = np.arange(1, number + 1)
    bright = ndimage.maximum(hit.light, tracks, tell) > 5 * SIGMA
    found = ndimage.maximum(rays, tracks, tell) > 0
    assert bright.sum() >= 30 and found[bright].mean() > 0.75
    assert rays[hit.light > 2 * SIGMA].mean() > 0.75
    false = rays_of(hit.clean, hit.contrast)
    assert false.sum() <= 45, "five pixels, and those beside them, of 160,000"


@pytest.mark.parametrize("of_sky", [False, True], ids=["photon noise", "noise of the sky alone"])
@pytest.mark.parametrize("fwhm", [0.16, 0.2])
def test_cores_of_stars_are_left_alone_wherever_in_a_pixel_they_are(fwhm, of_sky):
    rng = np.random.default_rng(3)
    places = [
        (y + rng.uniform(-0.5, 0.5), x + rng.uniform(-0.5, 0.5))
        for y in range(25, SIDE, 40)
        for x in range(25, SIDE, 40)
    ]
    fluxes = 10 ** np.linspace(2, 5, len(places))
    model = sum(star((SIDE, SIDE), *place, flux, fwhm) for place, flux in zip(places, fluxes, strict=True))
    flux, variance, mask = observed(model, rng)
    if of_sky:
        variance = np.full_like(variance, SIGMA**2)
    rays = find_rays(flux, variance, mask, SIGMA, contrast_for(fwhm, SCALE, "vis.fits"))
    cores = [rays[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2].any() for y, x in places]
    assert sum(cores) <= 1, "of 100"


def test_the_contrast_is_what_the_sharpness_of_the_psf_asks_for():
    sharp, plain, wide = (star_contrast(fwhm, SCALE) for fwhm in (0.14, 0.16, 0.2))
    assert sharp > plain > wide
    assert contrast_for(0.16, SCALE, "") == pytest.approx(1.3 * plain)
    assert star_contrast(1.6, 10 * SCALE) == plain, "it is a matter of pixels"
    assert contrast_for(0.8, 0.2, "") == module.LEAST_CONTRAST


def test_an_object_at_the_edge_is_as_little_a_ray_as_in_the_middle():
    rng = np.random.default_rng(5)
    model = sum(
        star((SIDE, SIDE), y, x, 5e4) for y, x in [(0.3, 100.2), (200.1, 1.4), (SIDE - 2.3, 300), (5, SIDE - 1)]
    )
    assert not rays_of(observed(model, rng), contrast_for(0.16, SCALE, "")).any()


@pytest.mark.parametrize(
    ("fwhm", "words"),
    [
        (
            0.1,
            ["vis.fits", 'PSF of 0.1"', 'pixels of 0.1"', "stars are as sharp", "above 6", "leave out --cosmic-rays"],
        ),
        (np.nan, ["vis.fits", "its PSF is not known", "--psf NAME.BAND=PSF"]),
    ],
)
def test_stars_that_cannot_be_told_from_rays_are_a_reason_to_refuse(fwhm, words):
    with pytest.raises(StorageError) as refused:
        contrast_for(fwhm, SCALE, "vis.fits")
    assert all(word in str(refused.value) for word in words), refused.value


def test_what_is_found_is_that_of_the_pixel_and_not_of_the_part_that_is_read(hit, rays, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 150)
    read = []

    def box_of(box):
        read.append(box)
        y0, y1, x0, x1 = box
        return tuple(plane[y0:y1, x0:x1] for plane in hit.planes)

    finder = RayFinder(box_of, (SIDE, SIDE), SIGMA, hit.contrast)
    parts = [(290, 400, 0, 400), (0, 37, 11, 400), (37, 151, 0, 400), (151, 290, 0, 180), (151, 290, 180, 400)]
    for y0, y1, x0, x1 in parts:
        flux, _, mask = finder.masked((y0, y1, x0, x1))
        np.testing.assert_array_equal(mask, MASK_PLANES["BAD"] * rays[y0:y1, x0:x1])
        np.testing.assert_array_equal(flux, hit.planes[0][y0:y1, x0:x1])
    looked = len(read)
    finder.masked((100, 300, 100, 300))
    assert len(read) == looked + 1, "no block is searched twice"


def test_what_is_found_does_not_depend_on_the_unit(hit, rays):
    flux, variance, mask = hit.planes
    small = flux * np.float32(2.0**-40), variance * np.float32(2.0**-80), mask
    np.testing.assert_array_equal(find_rays(*small, sigma=SIGMA * 2.0**-40, contrast=hit.contrast), rays)


def test_masked_pixels_are_no_rays_and_what_is_in_them_counts_for_nothing(hit):
    flux, variance, mask = (plane.copy() for plane in hit.clean)
    mask[100:104, 100:140], mask[200:260, 200:260] = MASK_PLANES["BAD"], MASK_PLANES["NO_DATA"]
    flux[100:104, 100:140], flux[200:260, 200:260] = 1e6, np.nan
    rays = find_rays(flux, variance, mask, SIGMA, hit.contrast)
    others = rays_of(hit.clean, hit.contrast)
    np.testing.assert_array_equal(rays & (mask == 0), others & (mask == 0) & rays)
    mask[:] = MASK_PLANES["NO_DATA"]
    assert not find_rays(np.full_like(flux, np.nan), variance, mask, SIGMA, hit.contrast).any()


@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (15, 300)])
def test_images_too_small_to_tell_have_no_rays(shape):
    flux = np.zeros(shape, np.float32)
    flux[shape[0] // 2, shape[1] // 2] = 1e4
    assert not find_rays(flux, np.ones(shape, np.float32), np.zeros(shape, np.uint8), 1.0, 2.0).any()


def vis_file(folder, hit, variance=None, fwhm=0.16):
    header = {"BUNIT": "nJy", "FILTER": "VIS", "PSFFWHM": fwhm, "PSFKIND": "gaussian"}
    plane = hit.planes[1] if variance is None else variance
    return write_survey_file(
        folder / "vis.fits", hit.planes[0], tan_wcs((SIDE, SIDE), SCALE), variance=plane, header=header
    )


SOUGHT = {"cosmic_rays": {"VIS": True}}


def test_the_reading_says_how_many_pixels_were_masked(tmp_path, hit, rays):
    path = vis_file(tmp_path, hit)
    plain, sought = (open_images(EUCLID, {"VIS": path}, noise="file", numbers=n)[0].whole() for n in ({}, SOUGHT))
    np.testing.assert_array_equal(sought.mask[0], MASK_PLANES["BAD"] * rays)
    np.testing.assert_array_equal(sought.flux, plain.flux)
    said = sought.provenance["VIS.cosmic_rays"]
    assert (
        said
        == f"{rays.sum()} of {SIDE**2} usable pixels ({rays.mean():.3%}) masked, at a contrast above {hit.contrast:.2f}"
    )
    assert said in sought.readings[0].line()
    assert sought.readings[0].unusable == pytest.approx(rays.mean())
    assert plain.readings[0].unusable == 0 and "VIS.cosmic_rays" not in plain.provenance


def test_more_pixels_than_rays_can_have_are_warned_of_and_refused(tmp_path, hit, caplog):
    path = vis_file(tmp_path, hit, variance=hit.planes[1] / 3)
    (image,) = open_images(EUCLID, {"VIS": path}, noise="file", numbers=SOUGHT)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"% of {SIDE**2} usable pixels are taken for cosmic rays, expected less than 1%" in line
    assert "leave out --cosmic-rays" in line and image.whole().valid.any()
    path = vis_file(tmp_path, hit, variance=hit.planes[1] / 16)
    with pytest.raises(StorageError, match=r"expected at most 10%; is its noise map too low\? Scale it by --noise"):
        open_images(EUCLID, {"VIS": path}, noise="file", numbers=SOUGHT)


def test_pixels_without_data_are_no_reason_to_believe_in_more_rays(tmp_path, hit):
    flux = np.full((SIDE, SIDE), np.nan, np.float32)
    flux[100:160, 100:160] = hit.planes[0][100:160, 100:160]
    there = SimpleNamespace(planes=(flux, *hit.planes[1:]))
    with pytest.raises(StorageError, match=r"% of 3600 usable pixels are taken for cosmic rays, expected at most 10%"):
        open_images(EUCLID, {"VIS": vis_file(tmp_path, there, variance=hit.planes[1] / 16)}, numbers=SOUGHT)
    (image,) = open_images(EUCLID, {"VIS": vis_file(tmp_path, there)}, numbers=SOUGHT)
    mask = image.whole().mask[0]
    found = np.count_nonzero(mask == MASK_PLANES["BAD"])
    assert found and image.whole().provenance["VIS.cosmic_rays"].startswith(f"{found} of 3600 usable pixels (")
    assert not (mask[~np.isfinite(flux)] & MASK_PLANES["BAD"]).any(), "no ray where there is no data"


def test_rays_are_not_sought_in_what_is_no_flux_nor_without_the_package(tmp_path, hit, monkeypatch):
    path = vis_file(tmp_path, hit)
    with pytest.raises(StorageError, match="a search for cosmic rays, but it is in cm-2, no flux; leave it out"):
        open_images({**EUCLID, "unit": "cm-2", "extensive": False}, {"VIS": path}, numbers=SOUGHT)
    with pytest.raises(StorageError, match="a search for cosmic rays for band H, which is not one of its bands VIS"):
        open_images(EUCLID, {"VIS": path}, numbers={"cosmic_rays": {"H": True}})
    check_astroscrappy()
    monkeypatch.setitem(sys.modules, "astroscrappy", None)
    with pytest.raises(StorageError, match=r"which is not installed; pip install 'surveybridge\[cosmic-rays\]'"):
        open_images(EUCLID, {"VIS": path}, numbers=SOUGHT)
