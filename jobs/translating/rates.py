"""What a candidate's rate of false alarms depends on beside its score, once a checkpoint is recalibrated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from surveybridge.bridge_core.problem import Direction
    from surveybridge.storage.problems import ProblemTable
    from surveybridge.storage.tiles import Tile

Floats = NDArray[np.float64]


class RateInputs(NamedTuple):
    """Of N candidates: log10 of the flux in the last observed band, colour of the observed end's outer bands in mag.

    flux, colour: float64 [N]; conditions: by name, such as ``lsst i fwhm``, PSF FWHM in arcsec and noise of a pixel in
    the end's unit, of the bands that `flux` and the detection are of, one number for the tile.
    """

    flux: Floats
    colour: Floats
    conditions: dict[str, float]


def rate_inputs(columns: Mapping[str, Any], tile: Tile, scored: Direction, table: ProblemTable) -> RateInputs:
    """Return what rates depend on, from the flux columns of a tile's candidates and its images.

    Parameters
    ----------
    columns
        Columns of the catalog by name: at least the fluxes.
    tile
        With both ends.
    scored
        The direction in which objects are scored.
    table
        The problem, whose bands name the columns.
    """
    from surveybridge.jobs.translating.scene import conditions_of
    from surveybridge.storage.problems import band_columns

    names, observed = band_columns(table), scored.observed
    blue, red = (
        np.maximum(np.asarray(columns[f"flux_{names[observed.name, band]}"], np.float64), 1.0)
        for band in (observed.bands[0], observed.bands[-1])
    )
    conditions = {}
    for end, plane in ((observed, len(observed.bands) - 1), (scored.wanted, 0)):
        stated = conditions_of(tile.images[end.name])
        conditions[f"{end.name} {end.bands[plane]} fwhm"] = float(stated.fwhm[plane])
        conditions[f"{end.name} {end.bands[plane]} noise"] = float(stated.noise[plane])
    return RateInputs(np.log10(red), -2.5 * np.log10(blue / red), conditions)
