"""Operators: heat, the quadratic toy, and the seeing between two PSFs."""

from __future__ import annotations

import math

import galsim
import numpy as np
import pytest
import torch

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.physics import Heat, Quadratic, Seeing, frequencies
from surveybridge.storage.psf import Gaussian, Kolmogorov, Moffat, PsfImage

TO_SIGMA = 2 * math.sqrt(2 * math.log(2))
SCALE = 0.1


def galsim_image(galaxy: galsim.GSObject, psf: galsim.GSObject, size: int = 96) -> torch.Tensor:
    """An image on pixels of 0.1", float64 [size, size]."""
    image = galsim.Convolve(galaxy, psf).drawImage(nx=size, ny=size, scale=SCALE, dtype=np.float64)
    return torch.from_numpy(image.array.copy())


@pytest.mark.parametrize("shape", [(32, 32), (24, 41)])
def test_heat_damps_a_wave_by_the_solution_of_the_heat_equation(shape):
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    k = 2 * math.pi * np.array([3 / shape[0], 2 / shape[1]])
    wave = torch.cos(k[0] * y + k[1] * x)
    after = Heat(0.7, spacing=0.5).forward(wave, 0.11)
    assert torch.allclose(after, wave * math.exp(-0.7 * (k @ k) / 0.25 * 0.11), atol=1e-12)


@pytest.mark.parametrize("start", [1.0, -0.6])
def test_the_toy_solves_its_equation_and_goes_back(start):
    toy, x = Quadratic(5.0), torch.tensor([start], dtype=torch.float64)
    slope = (toy.forward(x, 1e-6) - toy.forward(x, -1e-6)) / 2e-6
    assert float(slope) == pytest.approx(-5 * math.copysign(start**2, start), rel=1e-6)
    assert torch.allclose(toy.forward(toy.forward(x, 0.3), -0.3), x)


def test_two_gaussians_are_the_heat_equation():
    narrow, wide = 0.19, 0.83
    variance = (wide**2 - narrow**2) / TO_SIGMA**2
    seeing = Seeing(Gaussian(narrow), Gaussian(wide), SCALE).log_transfer((40, 52))
    heat = Heat(0.5, spacing=SCALE).log_transfer((40, 52)) * variance
    known = heat > math.log(1e-5)
    assert known.sum() > 100
    assert torch.allclose(seeing[known], heat[known], atol=1e-10)


def test_kolmogorov_is_a_fractional_laplacian():
    table = Seeing(None, Kolmogorov(0.6), SCALE).log_transfer((64, 64))[0, 1:]
    k = frequencies((64, 64))[1][0, 1:]
    inside = table > math.log(1e-5)
    assert inside.sum() > 5
    assert torch.allclose((table[inside] / table[0]), (k[inside] / k[0]) ** (5 / 3), rtol=1e-9)


@pytest.mark.parametrize(
    ("psf", "of_galsim", "limit"),
    [
        (Gaussian(0.73), galsim.Gaussian(fwhm=0.73), 1e-3),
        (Kolmogorov(0.66), galsim.Kolmogorov(fwhm=0.66), 1e-3),
        (Moffat(0.8, 3.0), galsim.Moffat(beta=3.0, fwhm=0.8), 1e-3),
    ],
    ids=str,
)
def test_the_image_of_a_galaxy_is_blurred_as_galsim_blurs_it(psf, of_galsim, limit):
    galaxy = galsim.Sersic(n=1.4, half_light_radius=0.31, flux=470.0).shear(g1=0.21, g2=-0.1)
    sharp = galsim_image(galaxy, galsim.Gaussian(fwhm=0.16), 160)
    wide = galsim_image(galaxy, of_galsim, 160)
    blurred = Seeing(Gaussian(0.16), psf, SCALE).forward(sharp, 1.0)
    assert float((sharp - wide).abs().max() / wide.max()) > 0.5
    # what lies beyond the stamp on one side comes in on the other
    middle = np.s_[40:120, 40:120]
    assert float((blurred - wide)[middle].abs().max() / wide.max()) < limit


def test_the_image_of_a_psf_and_its_pixels_count():
    psf = galsim.Moffat(beta=2.9, fwhm=0.77)
    stamp = galsim.Convolve(psf, galsim.Pixel(0.2)).drawImage(nx=61, ny=61, scale=0.2, method="no_pixel").array
    image = PsfImage.of(stamp.astype(float), 0.2, "a test")
    galaxy = galsim.Exponential(half_light_radius=0.4, flux=80.0)
    sharp = galsim_image(galaxy, galsim.Gaussian(fwhm=0.17), 128)
    wide = galsim.Convolve(galaxy, psf, galsim.Pixel(0.2)).drawImage(nx=128, ny=128, scale=SCALE, method="no_pixel")
    wide = torch.from_numpy(wide.array.astype(np.float64))
    blurred = Seeing(Gaussian(0.17), image, SCALE, (0.1, 0.2)).forward(sharp, 1.0)
    off = float((blurred - wide)[24:104, 24:104].abs().max() / wide.max())
    without = Seeing(Gaussian(0.17), image, SCALE).forward(sharp, 1.0)
    off_without = float((without - wide)[24:104, 24:104].abs().max() / wide.max())
    assert off < 3e-3 < 1e-2 < off_without


@pytest.mark.parametrize("psf", [Gaussian(0.7), Moffat(0.9, 2.5), Kolmogorov(0.5)], ids=str)
def test_blurs_add_up_and_keep_the_flux(psf):
    seeing = Seeing(Gaussian(0.16), psf, SCALE)
    sky = torch.rand(3, 48, 56, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    twice = seeing.forward(seeing.forward(sky, 0.27), 0.55)
    assert torch.allclose(twice, seeing.forward(sky, 0.82), atol=1e-12)
    assert torch.allclose(twice.sum((1, 2)), sky.sum((1, 2)))
    assert float((twice - sky).abs().max()) > 0.1


def test_a_sharper_psf_is_refused():
    with pytest.raises(BridgeError, match="go the other way"):
        Seeing(Gaussian(0.7), Gaussian(0.4), SCALE).log_transfer((32, 32))
