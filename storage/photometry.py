"""Zero points, fluxes and the noise of the sky."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from surveybridge.storage.units import njy_per_unit

AB_ZERO_POINT = 31.4
"""AB magnitude of 1 nJy (3631 Jy = magnitude 0; 31.4 to the third decimal)."""

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a Gaussian over its median absolute deviation."""


NOTHING = 1e-19
"""What is nearer to 0 is 0: its square, a variance, is none in float32. Arithmetic leaves such in place of zeros."""

ZERO_AREA = 36
"""Connected pixels of exactly 0 that are no data."""


def njy_per_count(zero_point: float) -> float:
    """NJy per count of an image whose AB zero point is `zero_point`: 10^((31.4 - ZP)/2.5)."""
    return float(10.0 ** ((AB_ZERO_POINT - zero_point) / 2.5))


def flux_from_magnitude(magnitude: ArrayLike) -> NDArray[np.float64]:
    """Flux in nJy of an AB magnitude."""
    return np.asarray(10.0 ** ((AB_ZERO_POINT - np.asarray(magnitude, np.float64)) / 2.5))


def magnitude_from_flux(flux: ArrayLike) -> NDArray[np.float64]:
    """AB magnitude of a flux in nJy; NaN where the flux is not positive."""
    positive = np.asarray(flux, np.float64)
    return np.asarray(AB_ZERO_POINT - 2.5 * np.log10(np.where(positive > 0, positive, np.nan)))


def magnitude_error(flux: NDArray[np.floating], error: NDArray[np.floating]) -> NDArray[np.float32]:
    """Standard error of a magnitude to first order, 2.5 / ln 10 * error / flux; NaN where the flux is not positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(flux > 0, 2.5 / np.log(10) * error / flux, np.nan).astype(np.float32)


def ab_zero_point(unit: str) -> float | None:
    """AB magnitude of one of a unit (31.4 for nJy); None where it is no flux density."""
    njy = njy_per_unit(unit)
    return None if njy is None else AB_ZERO_POINT - 2.5 * math.log10(njy)


class Sky(NamedTuple):
    """Background of an image: level and sigma in its flux unit, lag-1 noise correlation, pixels used."""

    level: float
    sigma: float
    correlation: float
    pixels: int


def sky_statistics(flux: NDArray[np.floating], usable: NDArray[np.bool_], grow: int = 3) -> Sky:
    """Level, noise and lag-1 noise correlation of the sky, sources left out.

    Areas of exact zeros are left out too (`zero_areas`).

    Median and MAD, clipped at 3 sigma until stable; what is above 3 sigma after a light smoothing is a source and is
    grown by `grow` pixels. The correlation is the mean over x and y neighbours that are both sky.

    Parameters
    ----------
    flux : float [H, W]
    usable : bool [H, W]
    grow : int
        Pixels by which sources are grown.
    """
    sky = usable & np.isfinite(flux)
    sky &= ~zero_areas(np.where(sky, flux, np.nan))
    if not sky.any():
        return Sky(np.nan, np.nan, 0.0, 0)
    level, sigma = _clipped(flux[sky])
    filled = np.where(sky, flux, level).astype(np.float64)
    smooth = scipy.ndimage.gaussian_filter(filled, 1.5)
    smooth_level, smooth_sigma = _clipped(smooth[sky])
    source = scipy.ndimage.binary_dilation(smooth > smooth_level + 3 * smooth_sigma, iterations=grow)
    if (sky & ~source).sum() >= 0.05 * sky.sum():
        sky = sky & ~source
    level, sigma = _clipped(flux[sky])
    residual = np.where(sky & (np.abs(filled - level) <= 5 * sigma), filled - level, np.nan)
    variance = np.nanmean(residual**2)
    # with no neighbours that are both sky nothing can be said: white
    products = [residual[1:] * residual[:-1], residual[:, 1:] * residual[:, :-1]]
    lags = [np.nanmean(product) for product in products if np.isfinite(product).any()]
    correlation = float(np.mean(lags) / variance) if lags and variance > 0 else 0.0
    return Sky(level, sigma, float(np.clip(correlation, 0.0, 0.99)), int(sky.sum()))


def zero_areas(flux: NDArray[np.floating], rows: int = 512, frequent: bool | None = None) -> NDArray[np.bool_]:
    """Find where an image is 0 over an area: nothing was observed there, whatever the rest of the file says.

    What is nearer to 0 than `NOTHING` is 0.

    An area is `ZERO_AREA` zeros that touch each other. Noise that was quantised has single zeros and small groups of
    them: of about 30 at most where a quarter of 4 million pixels are 0 (`benchmarks/sky_levels.py`). Where zeros are
    more frequent, an area must also hold a square of 5 x 5.

    Parameters
    ----------
    flux : float [H, W]
    rows : int
        Rows worked on at a time; the result does not depend on it.
    frequent : bool, optional
        Whether single zeros are frequent; by default as this image says (`zeros_are_frequent`).

    Returns
    -------
    bool [H, W]
    """
    areas = _connected_zeros(flux, rows)
    if zeros_are_frequent(flux, areas) if frequent is None else frequent:
        return np.asarray(scipy.ndimage.binary_opening(np.abs(flux) < NOTHING, np.ones((5, 5), bool)))
    return areas


def zeros_are_frequent(flux: NDArray[np.floating], areas: NDArray[np.bool_]) -> bool:
    """Return whether more than a fifth of the pixels outside some areas are exactly 0."""
    others = np.count_nonzero(~areas)
    return bool(others and np.count_nonzero((np.abs(flux) < NOTHING) & ~areas) > 0.2 * others)


def _connected_zeros(flux: NDArray[np.floating], rows: int) -> NDArray[np.bool_]:
    """Zeros of which `ZERO_AREA` touch each other."""
    zero = np.abs(flux) < NOTHING
    areas = np.zeros(zero.shape, bool)
    if np.count_nonzero(zero) < ZERO_AREA:
        return areas
    for start in range(0, zero.shape[0], rows):
        # what touches a pixel reaches ZERO_AREA within as many rows, or not at all
        first = max(start - ZERO_AREA, 0)
        strip = zero[first : start + rows + ZERO_AREA]
        groups, _ = scipy.ndimage.label(strip)
        large = np.bincount(groups.ravel()) >= ZERO_AREA
        large[0] = False
        areas[start : start + rows] = large[groups][start - first : start - first + rows]
    return areas


def _clipped(values: NDArray[np.floating], rounds: int = 10) -> tuple[float, float]:
    # half a million pixels know a median to 0.002 sigma
    values = np.asarray(values, np.float64)[:: max(1, values.size // 500_000)]
    for _ in range(rounds):
        level = float(np.median(values))
        sigma = MAD_TO_SIGMA * float(np.median(np.abs(values - level)))
        kept = values[np.abs(values - level) <= 3 * sigma]
        if kept.size == values.size or kept.size == 0:
            break
        values = kept
    return level, sigma
