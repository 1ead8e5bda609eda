"""The cores of the tiles of one pixel grid: which of them holds a position, and which part of the sky they are on."""

from __future__ import annotations

import functools
from typing import NamedTuple

import cdshealpix.nested
import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from surveybridge.storage.celestial import celestial_wcs, sky_to_pixel
from surveybridge.storage.grids import pixel_scale
from surveybridge.storage.sky import HEALPIX_ORDER, healpix_29, unit_vectors

RADIUS = 0.5
"""arcsec: rows of two fields that are each other's nearest within it are one object; above what names may round."""

ORDER = 11
"""HEALPix order of the cells (103") by which fields are found."""

POINTS_AT_ONCE = 1 << 20
"""Positions on the sky that are computed at a time, which bounds the memory."""

SHIFT = 2 * (HEALPIX_ORDER - ORDER)
"""Bits by which an index of order 29 is longer than that of its cell."""

_CELL_ARCSEC = 103.0
_FAR = float(1 << 29)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Grid(NamedTuple):
    """A pixel grid: the WCS header of its first pixel, and its shape (H, W)."""

    wcs_header: str
    shape: tuple[int, int]


class FieldCores:
    """The tiles of one grid, found by pixel: an index of squares as large as most tiles are.

    Parameters
    ----------
    grid : Grid
        Their pixel grid.
    tiles : int64 [N]
        Their numbers, by which the caller knows them.
    boxes : int64 [N, 4]
        Their cores (y0, y1, x0, x1), half-open, global pixels.
    """

    def __init__(self, grid: Grid, tiles: Ints, boxes: Ints) -> None:
        self.grid, self.tiles, self.boxes = grid, tiles, boxes
        self.margin = 1 + 1.5 * RADIUS / pixel_scale(grid.wcs_header)
        middle = (np.array(grid.shape) - 1) / 2
        self.centre = unit_vectors(*(np.atleast_1d(v) for v in self.wcs.all_pix2world(middle[1], middle[0], 0)))[0]
        y0, y1, x0, x1 = boxes.T
        self._size = max(1, int(np.median(y1 - y0))), max(1, int(np.median(x1 - x0)))
        reach = int(np.ceil(self.margin))
        low = (y0 - reach) // self._size[0], (x0 - reach) // self._size[1]
        high = (y1 - 1 + reach) // self._size[0], (x1 - 1 + reach) // self._size[1]
        rows, columns = high[0] - low[0] + 1, high[1] - low[1] + 1
        member = np.repeat(np.arange(len(boxes)), rows * columns)
        step = expanded(np.zeros(len(boxes), np.int64), rows * columns)
        key = _key(low[0][member] + step // columns[member], low[1][member] + step % columns[member])
        order = np.argsort(key, kind="stable")
        self._keys, self._members = key[order], member[order]

    @property
    def wcs(self) -> WCS:
        """Its WCS."""
        return _wcs(self.grid.wcs_header)

    def pixels(self, ra: Floats, dec: Floats) -> tuple[Floats, Floats]:
        """Positions (y, x) on the grid, NaN where it has none."""
        return sky_to_pixel(self.wcs, ra, dec)

    def distance(self, position: Floats) -> Floats:
        """Squared chord to the centre, term by term, so that it does not depend on how many are asked for at once."""
        x, y, z = (position[:, axis] - self.centre[axis] for axis in range(3))
        return np.asarray(x * x + y * y + z * z)

    def find(self, y: Floats, x: Floats) -> tuple[Ints, Bools]:
        """For positions on the grid the place in `tiles` of the one that holds them (-1: none), and if one is near."""
        found, near = np.full(len(y), -1, np.int64), np.zeros(len(y), bool)
        seen = np.isfinite(y) & np.isfinite(x)
        line, column = (np.floor(np.where(seen, np.clip(v, -_FAR, _FAR), 0) + 0.5).astype(np.int64) for v in (y, x))
        key = _key(line // self._size[0], column // self._size[1])
        start = np.searchsorted(self._keys, key)
        counts = np.where(seen, np.searchsorted(self._keys, key, "right") - start, 0)
        asked = np.repeat(np.arange(len(y)), counts)
        member = self._members[expanded(start, counts)]
        y0, y1, x0, x1 = self.boxes[member].T
        inside = (line[asked] >= y0) & (line[asked] < y1) & (column[asked] >= x0) & (column[asked] < x1)
        found[asked[inside]] = member[inside]
        beyond = np.maximum(np.maximum(y0 - y[asked], y[asked] - y1 + 1), np.maximum(x0 - x[asked], x[asked] - x1 + 1))
        near[asked[beyond - 0.5 <= self.margin]] = True
        return found, near

    def overlap(self) -> tuple[int, int] | None:
        """Numbers of two tiles whose cores share pixels, the first such; None if there are none."""
        for step in range(1, len(self._keys)):
            same = np.flatnonzero(self._keys[step:] == self._keys[:-step])
            if not len(same):
                return None
            one, other = self._members[same], self._members[same + step]
            (a0, a1, c0, c1), (b0, b1, d0, d1) = self.boxes[one].T, self.boxes[other].T
            shared = (np.maximum(a0, b0) < np.minimum(a1, b1)) & (np.maximum(c0, d0) < np.minimum(c1, d1))
            if shared.any():
                pairs = np.sort(np.stack([self.tiles[one[shared]], self.tiles[other[shared]]], axis=1), axis=1)
                first, second = pairs[np.lexsort(pairs.T[::-1])[0]]
                return int(first), int(second)
        return None

    def cells(self) -> Ints:
        """HEALPix cells of order `ORDER` that hold the cores and what is within `RADIUS` of them, ascending."""
        step = _CELL_ARCSEC / 3 / pixel_scale(self.grid.wcs_header)
        y0, y1, x0, x1 = self.boxes.T
        down, across = (int(np.ceil((high - low).max() / step)) + 1 for low, high in ((y0, y1), (x0, x1)))
        found = []
        for start in range(0, len(self.boxes), max(1, POINTS_AT_ONCE // (down * across))):
            part = slice(start, start + max(1, POINTS_AT_ONCE // (down * across)))
            y = (y0[part, None] - 0.5) + np.linspace(0, 1, down) * (y1 - y0)[part, None]
            x = (x0[part, None] - 0.5) + np.linspace(0, 1, across) * (x1 - x0)[part, None]
            places = np.broadcast_arrays(x[:, None, :], y[:, :, None])
            ra, dec = self.wcs.all_pix2world(*(values.ravel() for values in places), 0)
            found.append(np.unique(healpix_29(ra, dec) >> SHIFT))
        # A position is less than a cell from one of these points, so in its cell or a neighbour of that.
        around = cdshealpix.nested.neighbours(np.unique(np.concatenate(found)), ORDER)
        cells = np.unique(np.asarray(around, np.int64))
        return cells[cells >= 0]


def expanded(start: Ints, counts: Ints) -> Ints:
    """The numbers start, start + 1, ... of each of some ranges, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - (ends - counts), counts)


def _key(line: Ints, column: Ints) -> Ints:
    """One number for a square of the index of tiles."""
    return (line << 31) + column


@functools.lru_cache(maxsize=256)
def _wcs(header: str) -> WCS:
    return celestial_wcs(header)
