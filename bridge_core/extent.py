"""The size of sources against the point spread function: what tells stars from galaxies.

A PSF with wings makes stars wider, under a weight, than a Gaussian of its FWHM is: `stellar_locus` says by how much.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from surveybridge.bridge_core.correlation import error_factor
from surveybridge.bridge_core.detection import Sources

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
WEIGHT = 1.5
"""Standard deviation of the Gaussian weight, in that of the PSF."""
REACH = 3.5
"""Half the side of the window, in standard deviations of the weight."""
FLAT = 0.99
"""Share of the weight's second moment beyond which a profile is flat within the weight, and its size unknown."""

LARGEST_STAR = 1.2
"""A source is point-like if its extent lies between 1 / 1.2 and 1.2."""
LARGEST_ERROR = 0.1
"""And if the extent's standard error is at most this."""

SAME_WIDTH = 0.1
"""Share by which a star's extent may differ from that of the others, beyond its error: half-light radii of galaxies
with such an extent are below 0.3 FWHM of the PSF."""
WIDEST_WING = 1.35
"""Extent of a star whose PSF is a Moffat of beta = 1.8, beyond which no sources are taken for stars unseen."""
CERTAIN_SNR = 300.0
"""Signal to noise from which what is as narrow as a star is one: galaxies as bright are wider."""
EXTENDED = 0.4
"""Share by which what is surely no star is wider than one."""
ENOUGH_STARS = 3
"""So many bright stars count more than the wings that somebody stated."""


def extent(
    flux: NDArray[np.float32],
    variance: NDArray[np.float32],
    valid: NDArray[np.bool_],
    sources: Sources,
    psf_fwhm: float,
    correlation: float = 0.0,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Width of each source over that of the PSF, and its standard error; 1 for a point source.

    The second moment under a Gaussian weight w gives the width s of a Gaussian source: with m = sum(w f r^2) / (2 sum(w
    f)), 1/m = 1/s^2 + 1/s_w^2 (as in adaptive moments, Bernstein & Jarvis 2002, with a fixed weight). The PSF is a
    Gaussian of the stated FWHM, widened by the pixel.

    Parameters
    ----------
    flux, variance
        [H, W].
    valid
        bool [H, W].
    psf_fwhm
        Pixels; NaN where it is not known.
    correlation
        Of the noise of neighbouring pixels.

    Returns
    -------
    tuple of arrays
        float32 [N] each; NaN where the PSF is not known, a pixel of the window is masked or lies outside of the image,
        or too little flux is there. A source that is flat within the weight is infinitely wide.
    """
    n = len(sources)
    unknown = np.full(n, np.nan, np.float32)
    if n == 0 or not math.isfinite(psf_fwhm):
        return unknown, unknown.copy()
    psf = (psf_fwhm / FWHM_PER_SIGMA) ** 2 + 1 / 12  # a pixel is a box of variance 1/12
    width = WEIGHT**2 * psf
    half = math.ceil(REACH * math.sqrt(width))
    column, line = np.floor(sources.x + 0.5).astype(int), np.floor(sources.y + 0.5).astype(int)
    height, breadth = flux.shape
    whole: NDArray[np.bool_] = np.logical_and.reduce(
        [line >= half, line < height - half, column >= half, column < breadth - half]
    )
    steps = np.arange(-half, half + 1)
    rows, columns = (line[whole, None] + steps)[:, :, None], (column[whole, None] + steps)[:, None, :]
    r2 = (rows - sources.y[whole, None, None]) ** 2 + (columns - sources.x[whole, None, None]) ** 2
    weight = np.exp(-r2 / (2 * width))
    seen = np.asarray(valid[rows, columns].all((1, 2)))
    with np.errstate(invalid="ignore", divide="ignore"):
        light = np.where(seen[:, None, None], flux[rows, columns], np.nan).astype(np.float64)
        total = (weight * light).sum((1, 2))
        moment = (weight * light * r2).sum((1, 2)) / (2 * total)
        noise = (weight**2 * (r2 / 2 - moment[:, None, None]) ** 2 * variance[rows, columns]).sum((1, 2))
        error = (
            np.sqrt(noise) / total * error_factor(np.exp(-(steps[:, None] ** 2 + steps**2) / (2 * width)), correlation)
        )
        known = (total > 0) & (moment > 0)
        rest = np.where(known, 1 - moment / width, np.nan)
        flat = rest < 1 - FLAT
        size = np.sqrt(moment / rest / psf)
        spread = error / rest**2 / (2 * size * psf)
    found = unknown.copy(), unknown.copy()
    found[0][whole] = np.where(flat, np.inf, size)
    found[1][whole] = np.where(flat, np.inf, spread)
    return found


def point_like(size: NDArray[np.floating], error: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which sources are stars by their extent, bool [N]; those of unknown or uncertain extent are not."""
    return np.asarray((size >= 1 / LARGEST_STAR) & (size <= LARGEST_STAR) & (error <= LARGEST_ERROR))


class Locus(NamedTuple):
    """Extent of point sources, and the share by which that of a star may differ from it, beyond its error."""

    extent: float
    tolerance: float


def stellar_locus(
    size: NDArray[np.floating], error: NDArray[np.floating], snr: NDArray[np.floating], wing: float = math.nan
) -> Locus:
    """Extent of the stars of an image: that of its bright ones, or that of a PSF with such wings.

    Parameters
    ----------
    size, error
        [N], from `extent`, of sources that are not saturated.
    snr
        [N], signal to noise.
    wing
        1 / beta of the Moffat profile (Moffat 1969) with the PSF's wings, 0 for a Gaussian, NaN where not known.

    Returns
    -------
    Locus
        With neither, the extent is 1, known to within `LARGEST_STAR`.
    """
    known = math.isfinite(wing)
    low, high = 1 / LARGEST_STAR, WIDEST_WING
    if known:
        low, high = (wing_extent(wing) * factor for factor in (1 / LARGEST_STAR, LARGEST_STAR))
    certain = (snr >= CERTAIN_SNR) & (error <= LARGEST_ERROR) & (size >= low) & (size <= high)
    if certain.sum() >= (ENOUGH_STARS if known else 1):
        return Locus(float(np.median(size[certain])), SAME_WIDTH)
    return Locus(wing_extent(wing), SAME_WIDTH) if known else Locus(1.0, LARGEST_STAR - 1)


def star_like(size: NDArray[np.floating], error: NDArray[np.floating], locus: Locus) -> NDArray[np.bool_]:
    """Which sources are as wide as stars, bool [N]; those of unknown or uncertain extent are not."""
    ratio, spread = size / locus.extent, error / locus.extent
    with np.errstate(invalid="ignore"):
        return np.asarray((np.abs(ratio - 1) <= locus.tolerance + spread) & (spread <= LARGEST_ERROR))


def extended(size: NDArray[np.floating], error: NDArray[np.floating], locus: Locus) -> NDArray[np.bool_]:
    """Which sources are wider than any star, by `EXTENDED` and by three standard errors, bool [N]."""
    with np.errstate(invalid="ignore"):
        return np.asarray(size - 3 * np.where(np.isfinite(error), error, 0) > (1 + EXTENDED) * locus.extent)


@functools.cache
def wing_extent(wing: float) -> float:
    """Extent of a point source whose PSF is a Moffat of 1 / beta = `wing`, against a Gaussian of its FWHM.

    The weighted second moment of `extent`, on a fine grid in units of the FWHM.
    """
    if wing <= 0:
        return 1.0
    width = (WEIGHT / FWHM_PER_SIGMA) ** 2
    half = REACH * math.sqrt(width)
    axis = np.linspace(-half, half, 401)
    r2 = axis[:, None] ** 2 + axis**2
    weighted = np.exp(-r2 / (2 * width)) * (1 + 4 * (2**wing - 1) * r2) ** (-1 / wing)
    moment = float((weighted * r2).sum() / (2 * weighted.sum()))
    return math.sqrt(moment / (1 - moment / width)) * FWHM_PER_SIGMA
