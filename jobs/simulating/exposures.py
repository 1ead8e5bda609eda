"""Noise, defects and masks of scenes, and windows of them on the grid of the network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.jobs.simulating.spline_noise import PHASES, noise_correlation, noise_gain
from surveybridge.jobs.simulating.training_skies import Observation

VIS_SCALE, LSST_SCALE = 0.1, 0.2
"""Pixels of the surveys, arcsec."""


@dataclass(frozen=True)
class Exposure:
    """A survey's image of a scene on its own pixels.

    Attributes
    ----------
    flux : Tensor [B, n, n] float32
        nJy per pixel; whatever is there where it is masked.
    sigma : Tensor [B, n, n] float32
        Noise of the sky, nJy.
    saturated, bad : Tensor [B, n, n] bool
    """

    flux: Tensor
    sigma: Tensor
    saturated: Tensor
    bad: Tensor


def expose(
    model: Tensor, bands: slice, observation: Observation, rng: np.random.Generator, noise: torch.Generator
) -> Exposure:
    """Observe the noise-free image of a scene.

    The noise of the sky and of the sources is drawn together, as normal deviates: a pixel counts hundreds of electrons
    of the sky, so that Poisson's distribution is nearly the normal one.

    Parameters
    ----------
    model : Tensor [B, n, n]
        nJy per pixel.
    bands : slice
        Which of the four bands these are.
    observation : Observation
    rng, noise : generators
        Of defects, and of the pixels' noise.
    """
    device, n = model.device, model.shape[-1]

    def numbers(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values[bands], dtype=torch.float32, device=device)[:, None, None]

    beyond = _beyond(n, observation).to(device)
    sigma = numbers(observation.sky) * torch.where(beyond, numbers(observation.step), 1.0)
    correlation = observation.correlation[bands]
    deviates = torch.randn(model.shape, generator=noise, device=device)
    if any(correlation):
        deviates = _correlate(deviates, torch.tensor(correlation, dtype=torch.float32, device=device))
    flux = model + torch.sqrt(sigma**2 + model.clamp(min=0) / numbers(observation.gain)) * deviates
    along = torch.linspace(-1, 1, n, device=device)
    slope = torch.tensor(observation.slope[bands], dtype=torch.float32, device=device)
    gradient = slope[:, 0, None, None] * along + slope[:, 1, None, None] * along[:, None]
    flux += numbers(observation.sky) * (numbers(observation.level) + gradient)
    saturation = numbers(observation.saturation)
    saturated = flux >= saturation
    flux = torch.minimum(flux, saturation)
    bad = torch.zeros_like(saturated)
    for _ in range(observation.bad_columns):
        band, column, width = int(rng.integers(len(model))), int(rng.integers(n)), int(rng.integers(1, 4))
        bad[band, :, column : column + width] = True
    return Exposure(flux, sigma, saturated, bad)


def _beyond(n: int, observation: Observation) -> Tensor:
    """Where an image is beyond the line at which its depth changes, bool [n, n]."""
    axis = (torch.arange(n) + 0.5) / n
    x, y = axis - observation.step_at[0], axis[:, None] - observation.step_at[1]
    return x * math.cos(observation.step_angle) + y * math.sin(observation.step_angle) > 0


def add_trails(exposure: Exposure, observation: Observation, rng: np.random.Generator) -> None:
    """Draw satellite trails across bands of LSST, in place; the bright ones are masked."""
    device, n = exposure.flux.device, exposure.flux.shape[-1]
    axis = torch.arange(n, device=device)
    for _ in range(observation.trails):
        band, angle = int(rng.integers(len(exposure.flux))), float(rng.uniform(0, np.pi))
        at, strength = rng.uniform(0.2 * n, 0.8 * n, 2), float(np.exp(rng.uniform(np.log(0.4), np.log(12.0))))
        distance = (axis - at[0]) * math.sin(angle) - (axis[:, None] - at[1]) * math.cos(angle)
        width = observation.psfs[band].fwhm / 2.355 / LSST_SCALE * float(rng.uniform(1.0, 1.6))
        light = strength * observation.sky[band] * torch.exp(-0.5 * (distance / width) ** 2)
        exposure.flux[band] += light
        if strength > 2.0:
            exposure.bad[band] |= light > 0.3 * observation.sky[band]


def add_cosmic_rays(exposure: Exposure, observation: Observation, rng: np.random.Generator) -> None:
    """Draw tracks of cosmic rays into VIS, in place; most scenes mask them with a margin of a pixel."""
    n = exposure.flux.shape[-1]
    for _ in range(int(rng.poisson(observation.cosmic_rays))):
        length, angle, start = 1 + rng.exponential(8.0), rng.uniform(0, np.pi), rng.uniform(0, n, 2)
        steps = np.arange(0.0, length, 0.5)
        x = np.round(start[0] + steps * np.cos(angle)).astype(int) % n
        y = np.round(start[1] + steps * np.sin(angle)).astype(int) % n
        strength = float(np.exp(rng.uniform(np.log(20.0), np.log(600.0))))
        exposure.flux[0, y, x] += strength
        if observation.masked:
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    exposure.bad[0, (y + dy) % n, (x + dx) % n] = True


@dataclass(frozen=True)
class Windows:
    """Windows of a survey on the grid of the network.

    Attributes
    ----------
    flux, sigma : Tensor [W, B, size, size] float32
        nJy, NaN where masked; and the noise of the sky in each pixel.
    gain : Tensor [W, B]
        Electrons a nJy.
    correlation : list of float
        Of the noise of neighbouring pixels, by band.
    """

    flux: Tensor
    sigma: Tensor
    gain: Tensor
    correlation: list[float]


def own_windows(
    exposure: Exposure, starts: NDArray[np.int64], size: int, bands: slice, observation: Observation
) -> Windows:
    """Cut windows on a survey's own pixels out; `starts` are their first pixels, x and y [W, 2]."""
    flux = torch.where(exposure.saturated | exposure.bad, torch.nan, exposure.flux)
    cut = [
        torch.stack([plane[:, y : y + size, x : x + size] for x, y in starts.tolist()])
        for plane in (flux, exposure.sigma)
    ]
    gain = torch.tensor(observation.gain[bands], dtype=torch.float32, device=flux.device).repeat(len(starts), 1)
    return Windows(cut[0], cut[1], gain, list(observation.correlation[bands]))


def lsst_windows(exposure: Exposure, starts: NDArray[np.int64], size: int, observation: Observation) -> Windows:
    """Interpolate windows of LSST onto the pixels of VIS, as `storage.coregister` does.

    Parameters
    ----------
    exposure : Exposure
    starts : int64 [W, 2]
        First pixels x and y of the windows on the grid of VIS.
    size : int
        Pixels of VIS along a side.
    observation : Observation
        Where LSST's grid lies.
    """
    device, n = exposure.flux.device, exposure.flux.shape[-1]
    filled = _fill(exposure.flux, exposure.bad) if bool(exposure.bad.any()) else exposure.flux
    x, y = (position.to(device) for position in _positions(starts, size, observation, n))
    flux = _interpolate(_spline_coefficients(filled), x, y) / 4
    touched = _touched(exposure.bad, x, y, reach=2) | _touched(exposure.saturated, x, y, reach=3)
    gains = torch.stack([torch.from_numpy(noise_gain(r)).float() for r in observation.correlation[:3]]).to(device)
    share_x, share_y = (((p - torch.floor(p)) * (PHASES - 1)).round().to(torch.int64) for p in (x, y))
    deviation = (torch.sqrt(gains[:, share_x] * gains[:, share_y]) / 4).transpose(0, 1)
    nearest = torch.remainder(torch.round(y).to(torch.int64), n) * n + torch.remainder(
        torch.round(x).to(torch.int64), n
    )
    sigma = exposure.sigma.reshape(3, n * n)[:, nearest.flatten()].view(3, *x.shape).transpose(0, 1)
    share = (deviation**2).flatten(2).mean(-1)  # of the variance of an LSST pixel, as is the photons' in the mean
    gain = torch.tensor(observation.gain[:3], dtype=torch.float32, device=device)
    return Windows(
        flux=torch.where(touched, torch.nan, flux).transpose(0, 1),
        sigma=deviation * sigma,
        gain=gain / (4 * share),
        correlation=[noise_correlation(r, observation.grid_turn) for r in observation.correlation[:3]],
    )


def _positions(starts: NDArray[np.int64], size: int, observation: Observation, n: int) -> tuple[Tensor, Tensor]:
    """Places of the windows' pixels in LSST pixels, x and y [W, size, size] float64 (as LSST's WCS has them)."""
    at = (torch.from_numpy(starts)[:, :, None] + torch.arange(size)).double() * VIS_SCALE
    middle = n * LSST_SCALE / 2
    x, y = at[:, 0, None, :] - middle, at[:, 1, :, None] - middle
    cos, sin = math.cos(observation.grid_turn), math.sin(observation.grid_turn)
    first = [offset + (LSST_SCALE - VIS_SCALE) / 2 for offset in observation.grid_offset]
    return tuple(
        ((p + middle - origin) / LSST_SCALE).expand(-1, size, size)
        for p, origin in zip((cos * x - sin * y, sin * x + cos * y), first, strict=True)
    )  # type: ignore[return-value]


def _spline_coefficients(flux: Tensor) -> Tensor:
    """Coefficients of the interpolating cubic spline of an image that repeats."""
    n = flux.shape[-1]
    response = [(4 + 2 * torch.cos(2 * math.pi * f)) / 6 for f in (torch.fft.fftfreq(n), torch.fft.rfftfreq(n))]
    response = [part.to(flux.device) for part in response]
    return torch.fft.irfft2(torch.fft.rfft2(flux) / (response[0][:, None] * response[1]), s=(n, n))


def _interpolate(coefficients: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Spline values [B, W, size, size] at positions."""
    bands, n = coefficients.shape[0], coefficients.shape[-1]
    flat = coefficients.reshape(bands, n * n)
    below = [torch.floor(p) for p in (x, y)]
    weights = [_cubic((p - b).float()) for p, b in zip((x, y), below, strict=True)]
    columns, rows = (b.to(torch.int64) for b in below)
    total = torch.zeros(bands, *x.shape, device=flat.device)
    for j in range(4):
        row = torch.remainder(rows + j - 1, n) * n
        for i in range(4):
            place = row + torch.remainder(columns + i - 1, n)
            total += (weights[1][j] * weights[0][i]) * flat[:, place.flatten()].view(bands, *x.shape)
    return total


def _cubic(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cubic B-spline at distances 1 + t, t, 1 - t and 2 - t."""
    u = 1 - t
    return u**3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (4 - 6 * u**2 + 3 * u**3) / 6, t**3 / 6


def _touched(mask: Tensor, x: Tensor, y: Tensor, reach: int) -> Tensor:
    """Whether any pixel up to `reach` to either side of positions is masked, [B, W, size, size]."""
    if not bool(mask.any()):
        return torch.zeros(mask.shape[0], *x.shape, dtype=torch.bool, device=mask.device)
    bands, n = mask.shape[0], mask.shape[-1]
    wide = torch.nn.functional.pad(mask.float()[None], (reach - 1, reach, reach - 1, reach), mode="circular")
    near = torch.nn.functional.max_pool2d(wide, 2 * reach, stride=1)[0] > 0
    column, row = (torch.remainder(torch.floor(p).to(torch.int64), n) for p in (x, y))
    return near.reshape(bands, n * n)[:, (row * n + column).flatten()].view(bands, *x.shape)


def _fill(flux: Tensor, bad: Tensor) -> Tensor:
    """Replace bad pixels by the Gaussian mean of their neighbours."""
    axis = torch.arange(-4, 5, device=flux.device)
    kernel = torch.exp(-0.5 * axis**2)
    kernel = (kernel[:, None] * kernel).expand(len(flux), 1, -1, -1)
    known = (~bad).float()
    sums = [
        # bands as channels of one image: the bits of as many images, in half of the time
        torch.nn.functional.conv2d(
            torch.nn.functional.pad(planes[None], (4, 4, 4, 4), mode="circular"), kernel, groups=len(flux)
        )[0]
        for planes in (torch.where(bad, 0.0, flux), known)
    ]
    return torch.where(bad, sums[0] / sums[1].clamp(min=1e-6), flux)


def _correlate(deviates: Tensor, correlation: Tensor) -> Tensor:
    """Give white noise the correlation r^|lag| along both axes; its variance stays 1."""
    n = deviates.shape[-1]
    r = correlation[:, None]

    def response(frequency: Tensor) -> Tensor:
        cosine = torch.cos(2 * math.pi * frequency.to(deviates.device))
        return torch.sqrt((1 - r**2) / (1 - 2 * r * cosine + r**2))

    rows, columns = response(torch.fft.fftfreq(n)), response(torch.fft.rfftfreq(n))
    return torch.fft.irfft2(torch.fft.rfft2(deviates) * rows[:, :, None] * columns[:, None, :], s=(n, n))
