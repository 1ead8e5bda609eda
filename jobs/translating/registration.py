"""How well the two surveys of a tile lie on each other, measured on the objects that both show."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from surveybridge.storage.images import seeing

if TYPE_CHECKING:
    from surveybridge.bridge_core.detection import Sources
    from surveybridge.storage.images import SurveyImage
    from surveybridge.storage.tiles import Tile

SMALLEST_ARCSEC = 0.005
"""Offsets below this are called this: the centres of galaxies differ by as much between bands."""
LARGEST_ERROR_ARCSEC = 0.02
THRESHOLD_SIGMAS = 5.0


def with_registration(tile: Tile) -> Tile:
    """Return a tile with the typical offset between its surveys, arcsec along one axis; NaN where it is not measured.

    It is where both surveys see a dozen bright objects and are fluxes. Of each, all bands count together.
    """
    return replace(tile, registration=_measure(tile))


def _measure(tile: Tile) -> float:
    if len(tile.images) < 2 or not all(image.extensive for image in tile.images.values()):
        return math.nan
    from surveybridge.bridge_core.registration import typical_offset

    first, second = tile.images.values()
    scale = first.pixel_scale
    found = typical_offset(
        objects_of(first),
        objects_of(second),
        tile.shape,
        reach=max(seeing(first), seeing(second)) / 2 / scale,
        smallest=SMALLEST_ARCSEC / scale,
        largest_error=LARGEST_ERROR_ARCSEC / scale,
    )
    return float(f"{found * scale:.2g}")


def objects_of(image: SurveyImage) -> Sources:
    """Objects of all bands together, each weighted by its typical inverse variance."""
    from surveybridge.bridge_core.detection import detect

    usable = np.asarray(image.valid.all(0))
    if not usable.any():
        return detect(image.flux[0], image.variance[0], usable)
    weights = 1 / np.median(image.variance[:, usable], axis=1)
    weights = (weights / weights.sum())[:, None, None].astype(np.float32)
    flux, variance = (weights * image.flux).sum(0), (weights**2 * image.variance).sum(0)
    return detect(flux, variance, usable, THRESHOLD_SIGMAS)
