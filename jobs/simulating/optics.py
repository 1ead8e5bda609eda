"""Point-spread functions of scenes as transfer functions, on any device: atmosphere, telescope, and the pixel.

All frequencies are in cycles per arcsec.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KOLMOGOROV_WING = 0.196
"""1/beta of the Moffat profile whose flux between one and two FWHM, over that within one, is Kolmogorov's."""

LARGEST_BETA = 100.0
"""A Moffat profile of a larger beta counts as a Gaussian."""

TABLE = 2048
"""Frequencies at which a round profile is tabled."""

TELESCOPES = 24
"""Optical PSFs that are kept: aberrations, struts and jitter of a telescope like Euclid's."""

DIAMETER, OBSCURATION = 1.2, 0.33
"""Of Euclid's primary mirror, m, and the obscured share of its diameter."""
WAVELENGTHS = np.array([580.0, 650.0, 720.0, 790.0, 860.0]) * 1e-9
"""m; the band is averaged over these."""
_PUPIL = 112
"""Samples across the pupil, on a grid of 256."""


@dataclass(frozen=True)
class Psf:
    """A PSF without the pixel.

    Attributes
    ----------
    fwhm : float
        arcsec, of the geometric mean of both axes.
    wing : float
        1 / beta of the Moffat profile; 0 is a Gaussian.
    kind : str
        moffat, kolmogorov or optical.
    ellipticity, angle : float
        (1 - q) / (1 + q), and the direction of the major axis in rad; that of an optical PSF is the nearer axis of the
        grid.
    telescope : int
        Of an optical PSF, which of the `TELESCOPES`.
    """

    fwhm: float
    wing: float = 0.0
    kind: str = "moffat"
    ellipticity: float = 0.0
    angle: float = 0.0
    telescope: int = 0


def transfer_functions(psfs: list[Psf], nodes: int, spacing: float, pixel: float, device: torch.device) -> Tensor:
    """Transfer functions of PSFs and pixel on the frequencies of `torch.fft.rfft2`, [P, nodes, nodes // 2 + 1].

    Parameters
    ----------
    psfs : list of Psf
    nodes : int
        Side of the grid.
    spacing, pixel : float
        Distance of its nodes and side of the pixels, arcsec.

    Returns
    -------
    Tensor
        float32, or complex64 where a PSF is optical.
    """
    ky = torch.fft.fftfreq(nodes, spacing, device=device)[:, None]
    kx = torch.fft.rfftfreq(nodes, spacing, device=device)
    number = torch.tensor([[p.ellipticity, p.angle, p.fwhm, p.wing] for p in psfs], device=device, dtype=torch.float32)
    e, angle, fwhm, wing = (column[:, None, None] for column in number.unbind(1))
    cos, sin, stretch = torch.cos(angle), torch.sin(angle), torch.sqrt((1 + e) / (1 - e))
    along, across = (cos * kx + sin * ky) * stretch, (cos * ky - sin * kx) / stretch
    which = torch.tensor([p.kind == "optical" for p in psfs], device=device)
    largest = 0.75 / spacing
    step = largest / (TABLE - 1)
    table = _round_profiles(psfs, step * torch.arange(TABLE, device=device), fwhm[:, :, 0], wing[:, :, 0])
    at = torch.sqrt(along**2 + across**2).clamp(max=largest * 0.9999) / step
    below = at.to(torch.int64)
    share = at - below
    rows = torch.arange(len(psfs), device=device)[:, None, None] * TABLE
    flat = table.flatten()
    below = below + rows
    values = torch.lerp(flat[below], flat[below + 1], share)
    if which.any():
        values = values.to(torch.complex64)
        chosen = torch.nonzero(which)[:, 0]
        numbers = [psfs[int(k)] for k in chosen]
        values[chosen] = _optical(numbers, kx, ky[:, 0])
    return values * torch.sinc(kx * pixel) * torch.sinc(ky * pixel)


def measured_telescope(number: int) -> tuple[float, float]:
    """FWHM in arcsec and wing (1 / beta) of an optical PSF, as `storage.psf` measures them."""
    return _telescopes()[1][number]


def _round_profiles(psfs: list[Psf], k: Tensor, fwhm: Tensor, wing: Tensor) -> Tensor:
    """Transfer functions [P, K] at frequencies k [K] of PSFs whose FWHM and wing are [P, 1].

    A Moffat profile is a mixture of Gaussians: (1 + (r / a)^2)^-beta = int t^(beta-1) exp(-t (1 + (r / a)^2)) dt /
    Gamma(beta); so its transfer function is that integral over exp(-(pi a k)^2 / t), here a sum over ln t.
    """
    gaussian = torch.exp(-((math.pi * fwhm * k) ** 2) / (4 * math.log(2)))
    kolmogorov = torch.exp(-3.44196 * (fwhm / 0.9758634 * k) ** (5 / 3))
    is_kolmogorov = torch.tensor([p.kind == "kolmogorov" for p in psfs], device=k.device)[:, None]
    is_moffat = wing > 1 / LARGEST_BETA
    beta = 1 / wing.clamp(min=1 / LARGEST_BETA)
    alpha = fwhm / (2 * torch.sqrt(2 ** (1 / beta) - 1))
    # the integrand is widest for the smallest beta, and narrow about ln beta for large ones
    log_t = torch.log(beta)[..., None] + torch.linspace(-13.0, 3.0, 97, device=k.device)
    weight = torch.softmax((beta[..., None] - 1) * log_t - torch.exp(log_t), -1)
    moffat = (torch.exp(-((math.pi * alpha * k) ** 2)[..., None] * torch.exp(-log_t)) * weight).sum(-1)
    return torch.where(is_kolmogorov, kolmogorov, torch.where(is_moffat, moffat, gaussian))


def _optical(psfs: list[Psf], kx: Tensor, ky: Tensor) -> Tensor:
    """Transfer functions of telescopes at frequencies kx [W] and ky [H], scaled to the wanted FWHM: [P, H, W] complex.

    They are splines of fourth order, because what is wrong in a transfer function between its nodes is a ghost of every
    star at the distance of the table's period; a bicubic kernel leaves 7e-4 of its peak there.
    """
    tables, measured = _telescopes()
    spacing = DIAMETER / WAVELENGTHS.mean() / 206264.806 / _PUPIL
    coefficients = torch.from_numpy(tables[[p.telescope for p in psfs]]).to(kx.device)
    numbers = []
    for p in psfs:
        stretch = math.sqrt((1 + p.ellipticity) / (1 - p.ellipticity))
        along_x = stretch if abs(math.cos(p.angle)) > math.sqrt(0.5) else 1 / stretch
        scale = p.fwhm / measured[p.telescope][0] / spacing
        numbers.append([scale * along_x, scale / along_x])
    of_x, of_y = torch.tensor(numbers, dtype=torch.float32, device=kx.device).unbind(1)
    rows = _spline_matrix(coefficients.shape[-1], ky * of_y[:, None])
    columns = _spline_matrix(coefficients.shape[-1], kx * of_x[:, None])
    return torch.complex(*(rows[:, None] @ coefficients @ columns[:, None].mT).unbind(1))


def _spline_matrix(nodes: int, at: Tensor) -> Tensor:
    """Weights [P, K, nodes] of B-splines at places [P, K] counted from the middle node; 0 outside."""
    half = nodes // 2
    inside = at.abs() < half - 2
    place = torch.where(inside, at, 0.0)
    below = torch.floor(place)
    weights = torch.stack(_cubic(place - below), -1) * inside[..., None]
    columns = below.to(torch.int64)[..., None] + half - 1 + torch.arange(4, device=at.device)
    return torch.zeros(*at.shape, nodes, device=at.device).scatter_(-1, columns, weights)


def _cubic(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cubic B-spline at distances 1 + t, t, 1 - t and 2 - t."""
    u = 1 - t
    return u**3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (4 - 6 * u**2 + 3 * u**3) / 6, t**3 / 6


def _coefficients(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients of the interpolating cubic spline of a plane that ends in zeros."""
    response = [(4 + 2 * np.cos(2 * np.pi * np.fft.fftfreq(size))) / 6 for size in plane.shape]
    return np.fft.ifft2(np.fft.fft2(plane) / (response[0][:, None] * response[1])).real


@cache
def _telescopes() -> tuple[NDArray[np.float32], list[tuple[float, float]]]:
    """Spline coefficients of transfer functions, FWHM and wings.

    The coefficients are [TELESCOPES, 2, 257, 257]: real and imaginary part, frequency 0 in the middle.
    """
    rng = np.random.default_rng(20251203)
    tables, measured = [], []
    for _ in range(TELESCOPES):
        transfer = _telescope(rng)
        tables.append(np.stack([_coefficients(transfer.real), _coefficients(transfer.imag)]))
        measured.append(_width_and_wing(transfer))
    return np.array(tables, np.float32), measured


def _telescope(rng: np.random.Generator) -> NDArray[np.complex128]:
    """Transfer function [257, 257] of an obscured mirror with three struts, small aberrations and jitter."""
    size = 256
    y, x = (np.mgrid[:size, :size] - size // 2) / (_PUPIL / 2)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    open_pupil, first = (radius < 1) & (radius > OBSCURATION), rng.uniform(0, 2 * np.pi)
    for turn in range(3):
        direction = 2 * np.pi * turn / 3 + first
        along, across = x * np.cos(direction) + y * np.sin(direction), y * np.cos(direction) - x * np.sin(direction)
        open_pupil &= ~((along > 0) & (np.abs(across) < 0.022))
    waves = 0.03 * rng.normal() * np.sqrt(3) * (2 * radius**2 - 1)  # of defocus, astigmatism, coma and trefoil
    for order, power in ((2, 2), (1, 3), (3, 3)):
        shape = radius**power if order != 1 else 3 * radius**3 - 2 * radius
        waves = waves + 0.025 * np.sqrt(6) * shape * (
            rng.normal() * np.cos(order * angle) + rng.normal() * np.sin(order * angle)
        )
    middle = WAVELENGTHS.mean()
    total = np.zeros((size + 1, size + 1), complex)
    axis = np.arange(size + 1) - size // 2
    for wavelength in WAVELENGTHS:
        pupil = open_pupil * np.exp(2j * np.pi * waves * middle / wavelength)
        psf = np.abs(np.fft.fft2(pupil)) ** 2
        transfer = np.fft.fftshift(np.fft.fft2(psf))
        transfer = np.pad(transfer / transfer[size // 2, size // 2], ((0, 1), (0, 1)))
        total += _scaled(transfer, axis * wavelength / middle)
    spacing = DIAMETER / middle / 206264.806 / _PUPIL
    k = np.hypot(axis[:, None], axis) * spacing
    sigma = rng.uniform(0.035, 0.060)  # arcsec, of guiding and of charge diffusion
    # centred, so that a skewed PSF does not move objects: the phase at the lowest frequency is a shift
    total = total / len(WAVELENGTHS) * np.exp(-2 * (np.pi * sigma * k) ** 2)
    middle_row = size // 2
    tilt = [np.angle(total[middle_row + 1, middle_row]), np.angle(total[middle_row, middle_row + 1])]
    return np.asarray(total * np.exp(-1j * (tilt[0] * axis[:, None] + tilt[1] * axis)))


def _scaled(plane: NDArray[np.complex128], at: NDArray[np.float64]) -> NDArray[np.complex128]:
    """`plane` at positions (at, at) from its middle, linearly interpolated; 0 outside."""
    half = plane.shape[0] // 2
    inside = np.abs(at) <= half
    position = np.clip(at + half, 0, 2 * half - 1e-9)
    below = np.floor(position).astype(int)
    share = position - below
    rows = (1 - share)[:, None] * plane[below] + share[:, None] * plane[below + 1]
    both = (1 - share) * rows[:, below] + share * rows[:, below + 1]
    return np.where(inside[:, None] & inside, both, 0)


def _width_and_wing(transfer: NDArray[np.complex128]) -> tuple[float, float]:
    """FWHM, from the area above half of the maximum, and wing, from the flux within one and two FWHM."""
    spacing = DIAMETER / WAVELENGTHS.mean() / 206264.806 / _PUPIL
    size = transfer.shape[0] - 1
    larger = np.zeros((4 * size, 4 * size), complex)
    first = 2 * size - size // 2
    larger[first : first + size, first : first + size] = transfer[:size, :size]
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(larger)).real)
    step = 1 / (spacing * 4 * size)
    fwhm = 2 * math.sqrt((image > image.max() / 2).sum() / math.pi) * step
    y, x = np.indices(image.shape) - 2 * size
    radius = np.hypot(y, x) * step
    ratio = image[radius < 2 * fwhm].sum() / image[radius < fwhm].sum() - 1
    wings = np.linspace(0.01, 0.9, 891)
    shares = [1 - (1 + 4 * r**2 * (2**wings - 1)) ** (1 - 1 / wings) for r in (1.0, 2.0)]
    return fwhm, float(np.interp(ratio, shares[1] / shares[0] - 1, wings, left=0.0))
