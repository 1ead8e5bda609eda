"""PSFs as profiles and images: width, wings and transfer function, against GalSim's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from surveybridge.storage.errors import StorageError
from surveybridge.storage.psf import Gaussian, Kolmogorov, Moffat, PsfImage, parse_psf, psf_of

galsim = pytest.importorskip("galsim", reason="needs the sim extra: galsim")

PROFILES: dict[str, tuple[Any, Any]] = {
    "gaussian": (Gaussian(0.63), galsim.Gaussian(fwhm=0.63)),
    "moffat 2.3": (Moffat(0.81, 2.3), galsim.Moffat(fwhm=0.81, beta=2.3)),
    "moffat 4.5": (Moffat(0.95, 4.5), galsim.Moffat(fwhm=0.95, beta=4.5)),
    "moffat 60": (Moffat(0.7, 60), galsim.Moffat(fwhm=0.7, beta=60)),
    "kolmogorov": (Kolmogorov(0.88), galsim.Kolmogorov(fwhm=0.88)),
}


def drawn(profile, scale: float, side: int, offset=(0.0, 0.0)) -> PsfImage:
    """GalSim's image of a profile, pixels included."""
    return PsfImage.of(profile.drawImage(nx=side, ny=side, scale=scale, offset=offset).array, scale, "a test")


@pytest.mark.parametrize("name", PROFILES)
def test_transfer_functions_are_those_of_galsim(name):
    ours, theirs = PROFILES[name]
    u, v = np.linspace(-3, 3, 13)[None, :], np.linspace(0, 4, 7)[:, None]
    wanted = [[theirs.kValue(2 * np.pi * x, 2 * np.pi * y).real for x in u[0]] for y in v[:, 0]]
    np.testing.assert_allclose(ours.transfer(u, v), wanted, atol=1e-5)
    assert ours.transfer(np.zeros((1, 1)), np.zeros((1, 1)))[0, 0] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("scale", "side", "offset"), [(0.2, 45, (0, 0)), (0.1, 91, (0.31, -0.22)), (0.13, 64, (0, 0))])
@pytest.mark.parametrize("name", PROFILES)
def test_an_image_has_width_wings_and_transfer_of_its_profile_without_the_pixel(name, scale, side, offset):
    ours, theirs = PROFILES[name]
    image = drawn(theirs, scale, side, offset)
    assert image.fwhm == pytest.approx(ours.fwhm, rel=0.012)
    assert image.wing == pytest.approx(ours.wing, abs=0.015)
    u = np.linspace(-2.4, 2.4, 9)[None, :]
    found = image.transfer(u, u.T)
    np.testing.assert_allclose(found, ours.transfer(u, u.T), atol=0.012)  # the image ends, the profile does not


def test_wings_are_1_over_beta_0_of_a_gaussian_and_a_fifth_of_kolmogorov():
    assert Moffat(1.3, 2.5).wing == 0.4
    assert Gaussian(0.9).wing == 0
    assert Kolmogorov(0.5).wing == Kolmogorov(1.1).wing == pytest.approx(0.2, abs=0.015)


def test_wings_of_an_image_that_ends_within_them_are_unknown_and_its_width_is_not():
    image = drawn(galsim.Moffat(fwhm=1.0, beta=3), 0.1, 23)
    assert math.isnan(image.wing)
    assert image.fwhm == pytest.approx(1.0, rel=0.02)


def test_a_narrow_psf_on_coarse_pixels_is_measured_to_a_tenth():
    image = drawn(galsim.Gaussian(fwhm=0.16), 0.1, 21)
    assert image.fwhm == pytest.approx(0.16, rel=0.1)
    assert image.wing == pytest.approx(0, abs=0.02)


def test_the_image_of_a_flattened_psf_turns_with_its_grid():
    flat = galsim.Gaussian(fwhm=0.8).shear(g1=0.3)
    turn = np.radians(30)
    image = drawn(flat, 0.1, 61).turned(np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]))
    # x' y' of the turned grid see the long axis at minus the angle by which the grid was turned
    wanted = drawn(flat.rotate(-turn * galsim.radians), 0.1, 61)
    other = drawn(flat.rotate(turn * galsim.radians), 0.1, 61)
    off = [float(np.abs(image.values - one.values).max() / wanted.values.max()) for one in (wanted, other)]
    assert min(off) < 0.01 < max(off)
    assert off[0] == min(off)
    same = drawn(flat, 0.1, 61)
    assert same.turned(0.5 * np.eye(2)) is same


@pytest.mark.parametrize("psf", [Gaussian(0.7), Moffat(0.85, 3.5), Kolmogorov(1.05)])
def test_what_is_printed_of_a_profile_is_read_again(psf):
    assert parse_psf(str(psf)) == psf


@pytest.mark.parametrize(
    "text",
    ["0.7", "gaussian:", "gaussian:-1", "gaussian:nan", "gaussian:0.7,3", "moffat:0.8", "moffat:0.8,1",
     "moffat:0.8,1e3", "kolmogorov:0.7,2", "airy:0.2", "moffat:a,b"],
)  # fmt: skip
def test_a_text_that_is_no_profile_is_refused_with_the_forms(text):
    with pytest.raises(StorageError, match=r"expected gaussian:FWHM, moffat:FWHM,BETA or kolmogorov:FWHM"):
        parse_psf(text)


def test_width_and_wings_make_a_profile_and_half_of_them_none():
    assert psf_of(0.8, 0.0) == Gaussian(0.8)
    assert psf_of(0.8, 0.25) == Moffat(0.8, 4.0)
    assert psf_of(0.8, math.nan) is None
    assert psf_of(math.nan, 0.2) is None


@pytest.mark.parametrize("values", [np.zeros((9, 9)), np.full((9, 9), np.nan), np.ones(9), np.ones((2, 9))])
def test_pixels_that_cannot_be_those_of_a_psf_are_refused(values):
    with pytest.raises(StorageError, match="no image of a PSF"):
        PsfImage.of(values, 0.1, "a.fits[PSF]")
