"""Noise and spurious light of simulated images: correlation as coadds have it, cosmic rays, satellite trails."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

from surveybridge.jobs.simulating.observing import Instrument

RAY_LENGTH, RAY_WIDTH = 8.0, 0.45
"""Cosmic rays: mean length of the tracks, and their Gaussian sigma, pixels."""
RAY_SIGMAS, RAY_SCATTER = 15.0, 0.8
"""Median brightness of a track, sky sigma a pixel, and its scatter in ln."""
TRAIL_SIGMAS = (2.0, 8.0)
"""Brightness on the ridge of the trails of satellites that a coadd has kept, sky sigma."""


def correlated(white: NDArray[np.float64], correlation: float) -> NDArray[np.float64]:
    """White noise of variance 1 convolved to a lag-1 correlation along each axis; its variance is kept.

    Parameters
    ----------
    white : ndarray [ny, nx] float64
        It is taken as periodic, so that edges are like the rest.
    correlation : float
        0 to 0.95.
    """
    kernel = correlation_kernel(correlation)
    once = ndimage.convolve1d(white, kernel, axis=0, mode="wrap")
    return np.asarray(ndimage.convolve1d(once, kernel, axis=1, mode="wrap"))


@functools.lru_cache(maxsize=16)
def correlation_kernel(correlation: float) -> NDArray[np.float64]:
    """Gaussian kernel of one axis whose convolution with white noise has this lag-1 correlation; sum of squares 1."""

    def kernel(sigma: float) -> NDArray[np.float64]:
        half = int(np.ceil(5 * sigma)) + 1
        values = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
        return np.asarray(values / np.sqrt(np.sum(values**2)))

    def excess(sigma: float) -> float:
        values = kernel(sigma)
        return float(values[1:] @ values[:-1]) - correlation

    return kernel(float(optimize.brentq(excess, 0.15, 6.0)))


def cosmic_rays(
    shape: tuple[int, int], instrument: Instrument, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Light of tracks of cosmic rays, nJy, and the pixels where it exceeds half of the sky noise, [ny, nx] each."""
    light = np.zeros(shape)
    area = shape[0] * shape[1] * (instrument.pixel_scale / 60) ** 2
    for _ in range(rng.poisson(instrument.cosmic_rays.count * area)):
        length = min(2 + rng.exponential(RAY_LENGTH), 60.0)
        angle, peak = rng.uniform(0, np.pi), instrument.sky_sigma * RAY_SIGMAS * np.exp(RAY_SCATTER * rng.normal())
        centre = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        _add_line(light, centre, angle, length, RAY_WIDTH, peak)
    return light, light > 0.5 * instrument.sky_sigma


def trails(
    shape: tuple[int, int], instrument: Instrument, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Light of trails of satellites across the image, nJy, and the pixels within two FWHM of them, [ny, nx] each."""
    light, near = np.zeros(shape), np.zeros(shape, bool)
    sigma = instrument.psf_fwhm / 2.354820 / instrument.pixel_scale
    side = max(shape) * instrument.pixel_scale / 60
    for _ in range(rng.poisson(instrument.trails.count * side)):
        angle, peak = rng.uniform(0, np.pi), instrument.sky_sigma * rng.uniform(*TRAIL_SIGMAS)
        centre = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        own = np.zeros(shape)
        _add_line(own, centre, angle, 3.0 * max(shape), sigma, 1.0)
        light += peak * own
        near |= own > np.exp(-0.5 * (2 * 2.354820) ** 2)
    return light, near


def _add_line(
    light: NDArray[np.float64], centre: tuple[float, float], angle: float, length: float, sigma: float, peak: float
) -> None:
    """Add a straight line of Gaussian cross section, in place; it ends as a Gaussian does."""
    reach = length / 2 + 6 * sigma + 1
    ys, ye = (int(np.clip(centre[0] + side * reach, 0, light.shape[0])) for side in (-1, 1))
    xs, xe = (int(np.clip(centre[1] + side * reach, 0, light.shape[1])) for side in (-1, 1))
    y, x = np.mgrid[ys:ye, xs:xe]
    along = (x - centre[1]) * np.cos(angle) + (y - centre[0]) * np.sin(angle)
    across = (y - centre[0]) * np.cos(angle) - (x - centre[1]) * np.sin(angle)
    beyond = np.maximum(np.abs(along) - length / 2, 0.0)
    light[ys:ye, xs:xe] += peak * np.exp(-0.5 * (across**2 + beyond**2) / sigma**2)
