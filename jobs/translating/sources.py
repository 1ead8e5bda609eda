"""The sources of a tile, before they are scored: which count, what each is, and what lies around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from surveybridge.bridge_core.correlation import disc
from surveybridge.bridge_core.detection import SIGNIFICANCE, Sources, aperture_flux, detect, significance
from surveybridge.bridge_core.extent import extended, extent, point_like, star_like, stellar_locus
from surveybridge.bridge_core.halos import pieces_of_wings, wing_radius
from surveybridge.bridge_core.systems import brightest_within
from surveybridge.storage.flags import BITS, BRIGHT_STAR_SNR, NEAR_ARCSEC
from surveybridge.storage.images import MASK_PLANES, SurveyImage

if TYPE_CHECKING:
    from surveybridge.storage.star_lists import StarList
    from surveybridge.storage.tiles import Tile

BRIGHTNESS_ARCSEC = 1.0
"""Radius of the circle that says which of several objects is the brightest."""

WINGS_ARCSEC = 10.0
"""Radius within which the wings of a bright star are looked for."""

MOSTLY_MASKED = 2 / 3
"""Share of the aperture that is masked from which a source has no score."""


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
    in_wings : bool [N]
        A piece of the wings of a bright star.
    listed : (int, int, int)
        Stars of the list that was given: those in the core, those of them that an object matched, and those of these
        that are too wide for stars.
    """

    sources: Sources
    head_x: NDArray[np.float64]
    head_y: NDArray[np.float64]
    star_near: NDArray[np.bool_]
    columns: dict[str, Any]
    in_wings: NDArray[np.bool_]
    listed: tuple[int, int, int] = (0, 0, 0)


def find_sources(
    image: SurveyImage, core: tuple[int, int, int, int], version: int, stars: StarList | None = None
) -> Found:
    """Detect on the first band of an image, halo included, and keep what is centred in the core.

    Parameters
    ----------
    image : SurveyImage
        Of the endpoint with the catalog.
    core : (y0, y1, x0, x1)
        Pixels of the image.
    version : int
        Schema version of the run: before 4 there was SExtractor's CLEAN, and no least significance; before 5 every PSF
        was taken for a Gaussian, and nothing was known of its wings.
    stars : StarList, optional
        Stars that are known.
    """
    flux, variance, valid = image.flux[0], image.variance[0], image.valid[0]
    saturated = image.mask[0] & MASK_PLANES["SAT"] != 0
    psf_fwhm, correlation = image.psf_fwhm[0] / image.pixel_scale, image.noise_correlation[0]
    sources = detect(flux, variance, valid, clean=version < 4, marked=saturated)
    if version >= 4:
        sources = sources.select(significance(flux, variance, valid, sources, psf_fwhm, correlation) >= SIGNIFICANCE)
    radius = BRIGHTNESS_ARCSEC / image.pixel_scale
    fluxes, errors, _ = aperture_flux(flux[None], variance[None], valid[None], sources, radius, (correlation,))
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = fluxes[0] / errors[0]
    size, size_error = extent(flux, variance, valid, sources, psf_fwhm, correlation)
    matches = None
    if version < 5:
        star = point_like(size, size_error) & ~sources.touches
    else:
        known = np.where(sources.touches, np.nan, size)
        locus = stellar_locus(known, size_error, snr, image.psf_wing[0])
        star = star_like(size, size_error, locus) & ~sources.touches
        if stars is not None:
            matches = stars.match(image.wcs, sources.x, sources.y, core)
            wide = extended(size, size_error, locus) & ~sources.touches
            star |= matches.matched & ~wide & ~sources.touches
        size, size_error = size / np.float32(locus.extent), size_error / np.float32(locus.extent)
    with np.errstate(invalid="ignore"):
        bright = star & (snr >= BRIGHT_STAR_SNR)
    near = NEAR_ARCSEC / image.pixel_scale
    brightness = np.where(sources.touches, np.inf, fluxes[0])
    if version >= 5:
        brightness = np.where(star, np.nan, brightness)  # a star has no arcs: nothing belongs to it
    head = brightest_within(sources.x, sources.y, brightness, near)
    if version >= 5:
        head = np.where(star, np.arange(len(star)), head)
    kind = np.where(sources.touches | sources.touches[head], "saturated", np.where(star, "star", "object"))
    in_wings = np.zeros(len(sources), np.bool_)
    if version >= 5:
        shining = np.flatnonzero(bright | sources.touches)
        reach, noise = round(WINGS_ARCSEC / image.pixel_scale), np.sqrt(variance)
        places = [(float(sources.y[one]), float(sources.x[one])) for one in shining]
        radii = np.array([wing_radius(flux, noise, valid, place, reach) for place in places])
        in_wings = pieces_of_wings(sources.x, sources.y, fluxes[0], shining, radii, image.pixel_scale) & (
            kind == "object"
        )
    y0, y1, x0, x1 = core
    column, line = np.floor(sources.x + 0.5).astype(int), np.floor(sources.y + 0.5).astype(int)
    inside = (column >= x0) & (column < x1) & (line >= y0) & (line < y1)
    own = sources.select(inside)
    bright_x, bright_y = sources.x[bright], sources.y[bright]
    listed = (0, 0, 0)
    if matches is not None:
        bright_x, bright_y = np.append(bright_x, matches.bright_x), np.append(bright_y, matches.bright_y)
        listed = (matches.in_core, int((matches.matched & inside).sum()), int((matches.matched & wide & inside).sum()))
    apart = np.hypot(own.x[:, None] - bright_x, own.y[:, None] - bright_y)
    return Found(
        own,
        sources.x[head][inside],
        sources.y[head][inside],
        np.asarray(((apart > 0) & (apart <= near)).any(axis=1)),
        {"kind": kind[inside].tolist(), "extent": size[inside], "extent_err": size_error[inside]},
        in_wings[inside],
        listed,
    )


def may_be_lenses(found: Found, masked: NDArray[np.floating], flags: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which sources may be lenses, bool [N]: no stars or pieces of their wings, none saturated or largely masked.

    Parameters
    ----------
    found : Found
        N sources.
    masked : float32 [N]
        Share of the aperture that is masked.
    flags : int32 [N]
        From `conditions`.
    """
    kind = np.array(found.columns["kind"], dtype=str)
    return np.asarray(
        (kind == "object") & ~found.in_wings & (masked < MOSTLY_MASKED) & (flags & BITS["SATURATED"] == 0)
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
