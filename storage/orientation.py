"""Where north and east are in an image, and how large its pixels are, at a position on the sky."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from astropy.wcs import WCS

from surveybridge.storage.celestial import celestial_wcs, sky_to_pixel
from surveybridge.storage.fields import FieldGrid
from surveybridge.storage.footprint import global_wcs
from surveybridge.storage.problems import shown_ends
from surveybridge.storage.runs import RunFolder

_STEP = 1.0
"""Length by which the directions are found, arcsec."""


class Orientation(NamedTuple):
    """Directions on a pixel grid.

    Parameters
    ----------
    north : float
        Degrees from up to north, anticlockwise, in a picture with its first row below.
    mirrored : bool
        Whether east lies clockwise from north, unlike on the sky.
    pixel : float
        Side of a pixel, arcsec: the square root of its area.
    """

    north: float
    mirrored: bool
    pixel: float


def orientation(wcs: WCS, ra: float, dec: float) -> Orientation:
    """The directions at a position, ICRS degrees, measured there: near a pole they turn within an image."""
    step, towards = np.radians([0.0, _STEP / 3600, _STEP / 3600]), np.radians([0.0, 0.0, 90.0])
    sine, cosine = np.sin(np.radians(dec)), np.cos(np.radians(dec))
    reached = sine * np.cos(step) + cosine * np.sin(step) * np.cos(towards)
    turned = np.arctan2(np.sin(towards) * np.sin(step) * cosine, np.cos(step) - sine * reached)
    turned[0] = 0.0  # at a pole it is the rounding that decides
    y, x = sky_to_pixel(wcs, ra + np.degrees(turned), np.degrees(np.arcsin(np.clip(reached, -1, 1))))
    (north_x, north_y), (east_x, east_y) = ((x[k] - x[0], y[k] - y[0]) for k in (1, 2))
    area = north_x * east_y - north_y * east_x  # positive where east is anticlockwise from north
    angle = float(np.degrees(np.arctan2(-north_x, north_y)))
    return Orientation(angle, bool(area < 0), _STEP / float(np.sqrt(abs(area))))


class RunGrids:
    """The pixel grids of a run's tiles, read once. Threads may share it."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._wcs: dict[str | None, WCS] = {}
        self._grid_of: dict[str, str | None] | None = None
        self._fields: dict[str, FieldGrid] = {}

    def directions(self, tile_id: str, ra: float, dec: float) -> Orientation | None:
        """The directions at a position of a tile; None without a sky, or if the run has lost where the tile lies."""
        if not shown_ends(self._run.problem)[1]["pixel_scale"]:
            return None
        try:
            return orientation(self.wcs(tile_id), ra, dec)
        except (OSError, ValueError):
            return None

    def wcs(self, tile_id: str) -> WCS:
        """WCS of the global grid of a tile: its pixel (0, 0) is FITS pixel (1, 1).

        Raises
        ------
        FileNotFoundError
            If the run states no grids, as before version 4, and has lost the tile's mosaic.
        """
        with self._lock:
            if self._grid_of is None:
                ledger = self._run.ledger(["tile_id", "grid_id"])
                self._grid_of = dict(zip(ledger["tile_id"].to_pylist(), ledger["grid_id"].to_pylist(), strict=True))
                self._fields = self._run.fields()
            grid_id = self._grid_of.get(tile_id)
            if grid_id not in self._wcs:
                stated = None if grid_id is None else self._fields.get(grid_id)
                self._wcs[grid_id] = (
                    global_wcs(self._run.mosaic_headers([tile_id])[0])  # before version 4 a run has one grid
                    if stated is None
                    else celestial_wcs(stated.wcs_header)
                )
            return self._wcs[grid_id]
