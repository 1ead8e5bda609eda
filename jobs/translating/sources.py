"""The sources of a tile, before they are scored: which count, what each is, and what lies around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from surveybridge.bridge_core.correlation import disc
from surveybridge.bridge_core.detection import SIGNIFICANCE, Sources, aperture_flux, detect, significance
from surveybridge.bridge_core.extent import extent, point_like
from surveybridge.bridge_core.systems import brightest_within
from surveybridge.storage.flags import BITS, BRIGHT_STAR_SNR, NEAR_ARCSEC
from surveybridge.storage.images import MASK_PLANES, SurveyImage

if TYPE_CHECKING:
    from surveybridge.storage.tiles import Tile

BRIGHTNESS_ARCSEC = 1.0
"""Radius of the circle that says which of several objects is the brightest."""


@dataclass(frozen=True)
class Found:
    """The sources of a tile's core.

    Parameters
    ----------
    sources : Sources
        N objects centred in the core.
    head_x, head_y : float64 [N]
        Array pixels of the brightest object near each, by which its system is named; it may lie in the halo.
    star_near : bool [N]
        Another object within `NEAR_ARCSEC` is a bright star.
    columns : dict of str to array
        Columns kind, extent and extent_err of the catalog.
    """

    sources: Sources
    head_x: NDArray[np.float64]
    head_y: NDArray[np.float64]
    star_near: NDArray[np.bool_]
    columns: dict[str, Any]


def find_sources(image: SurveyImage, core: tuple[int, int, int, int], version: int) -> Found:
    """Detect on the first band of an image, halo included, and keep what is centred in the core.

    Parameters
    ----------
    image : SurveyImage
        Of the endpoint with the catalog.
    core : (y0, y1, x0, x1)
        Pixels of the image.
    version : int
        Schema version of the run: before 4 there was SExtractor's CLEAN, and no least significance.
    """
    flux, variance, valid = image.flux[0], image.variance[0], image.valid[0]
    saturated = image.mask[0] & MASK_PLANES["SAT"] != 0
    psf_fwhm, correlation = image.psf_fwhm[0] / image.pixel_scale, image.noise_correlation[0]
    sources = detect(flux, variance, valid, clean=version < 4, marked=saturated)
    if version >= 4:
        sources = sources.select(significance(flux, variance, valid, sources, psf_fwhm, correlation) >= SIGNIFICANCE)
    size, size_error = extent(flux, variance, valid, sources, psf_fwhm, correlation)
    radius = BRIGHTNESS_ARCSEC / image.pixel_scale
    fluxes, errors, _ = aperture_flux(flux[None], variance[None], valid[None], sources, radius, (correlation,))
    star = point_like(size, size_error) & ~sources.touches
    with np.errstate(invalid="ignore", divide="ignore"):
        bright = star & (fluxes[0] / errors[0] >= BRIGHT_STAR_SNR)
    near = NEAR_ARCSEC / image.pixel_scale
    brightness = np.where(sources.touches, np.inf, fluxes[0])
    head = brightest_within(sources.x, sources.y, brightness, near)
    kind = np.where(sources.touches | sources.touches[head], "saturated", np.where(star, "star", "object"))
    y0, y1, x0, x1 = core
    column, line = np.floor(sources.x + 0.5).astype(int), np.floor(sources.y + 0.5).astype(int)
    inside = (column >= x0) & (column < x1) & (line >= y0) & (line < y1)
    own = sources.select(inside)
    stars = sources.select(bright)
    apart = np.hypot(own.x[:, None] - stars.x, own.y[:, None] - stars.y)
    return Found(
        own,
        sources.x[head][inside],
        sources.y[head][inside],
        np.asarray(((apart > 0) & (apart <= near)).any(axis=1)),
        {"kind": kind[inside].tolist(), "extent": size[inside], "extent_err": size_error[inside]},
    )


def conditions(tile: Tile, found: Found, aperture_arcsec: float) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Our own bits of `flags` (`storage.flags`) and the share of the aperture that is masked, of all bands of all ends.

    Parameters
    ----------
    tile : Tile
        Core and halo.
    found : Found
        N sources of its core.
    aperture_arcsec : float
        Radius of the aperture.

    Returns
    -------
    flags : int32 [N]
    masked : float32 [N]
    """
    scale = next(iter(tile.images.values())).pixel_scale
    near, aperture = disc(NEAR_ARCSEC / scale) > 0, disc(aperture_arcsec / scale)
    wide, narrow = len(near) // 2, len(aperture) // 2
    mask = np.zeros(tile.shape, np.uint8)
    for image in tile.images.values():
        mask |= np.bitwise_or.reduce(image.mask, axis=0)
    reach = max(wide, narrow)
    padded = np.pad(mask, reach, constant_values=MASK_PLANES["NO_DATA"])  # nothing is known beyond the image
    sources = found.sources
    flags, masked = np.zeros(len(sources), np.int32), np.zeros(len(sources), np.float32)
    for i, (x, y) in enumerate(zip(np.floor(sources.x + 0.5), np.floor(sources.y + 0.5), strict=True)):
        row, column = int(y) + reach, int(x) + reach
        around = padded[row - wide : row + wide + 1, column - wide : column + wide + 1][near]
        within = padded[row - narrow : row + narrow + 1, column - narrow : column + narrow + 1]
        masked[i] = (aperture * (within != 0)).sum() / aperture.sum()
        seen = np.bitwise_or.reduce(around)
        saturated = bool((within[aperture > 0] & MASK_PLANES["SAT"]).any()) or sources.touches[i]
        flags[i] = (
            BITS["APERTURE_MASKED"] * bool(masked[i] > 0)
            | BITS["SATURATED"] * saturated
            | BITS["EDGE"] * bool(seen & MASK_PLANES["NO_DATA"])
            | BITS["BRIGHT_STAR"] * bool(found.star_near[i] or seen & MASK_PLANES["SAT"])
        )
    return flags, masked
