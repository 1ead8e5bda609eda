"""Regions of the sky that are held back for validation: HEALPix cells, chosen by their place and nothing else.

Whether a position is held back is a function of the position, so two stores, or two overlapping fields, never train on
what another one validates with. In every group of 16 cells (the children of a cell two orders above) about the same
number is held back, so that a small field has its share too.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError
from surveybridge.storage.sky import HEALPIX_ORDER, healpix_29

CELL_WINDOWS = 8
"""Side of a cell, at least, in sides of a window: the windows that lie across a border are few."""

SPACING = 8
"""Pixels between the positions by which a window is judged: the corner of a cell that reaches less far into a window
is found by the positions around it."""

_CELL_DEGREES = math.degrees(math.sqrt(math.pi / 3))
_SIBLINGS = 16


@dataclass(frozen=True)
class HeldBack:
    """Which part of the sky is held back.

    Parameters
    ----------
    share : float
        Of the sky, 0 to below 1; of each group of 16 cells within 1/16.
    order : int
        HEALPix order of the cells.
    seed : int
        Another seed, another choice of cells.
    """

    share: float
    order: int
    seed: int = 0

    @property
    def document(self) -> dict[str, Any]:
        """Everything, JSON-like."""
        return asdict(self)

    def at(self, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether positions, ICRS degrees [N], are held back."""
        shape = np.shape(ra)
        cells = healpix_29(np.ravel(ra), np.ravel(dec)) >> 2 * (HEALPIX_ORDER - self.order)
        distinct, place = np.unique(cells, return_inverse=True)
        return np.asarray(self._of_cells(distinct)[place].reshape(shape))

    def windows(
        self, wcs: WCS, y0: NDArray[np.int64], x0: NDArray[np.int64], size: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which windows lie wholly in what is held back, and which wholly outside; those in both are neither.

        Parameters
        ----------
        wcs : WCS
            Of the grid.
        y0, x0 : int64 [N]
            First pixel of each window on the grid.
        size : int
            Side of a window, pixels.

        Returns
        -------
        held, free : bool [N]
        """
        if not self.share or not len(y0):
            return np.zeros(len(y0), bool), np.ones(len(y0), bool)
        # a ring around the window too, so that no corner of a cell slips in between two positions
        steps = np.append(np.arange(-SPACING, size + SPACING, SPACING), size + SPACING - 1) - 0.5
        y, x = y0[:, None, None] + steps[:, None], x0[:, None, None] + steps
        y, x = np.broadcast_arrays(y, x)
        ra, dec = wcs.all_pix2world(x.ravel(), y.ravel(), 0)
        held = self.at(ra, dec).reshape(len(y0), -1)
        return np.asarray(held.all(1)), np.asarray(~held.any(1))

    def _of_cells(self, cells: NDArray[np.int64]) -> NDArray[np.bool_]:
        parents, place = np.unique(cells >> 4, return_inverse=True)
        # 17 numbers of each parent: one for each of its cells, whose order is the choice, and one for the parent
        draws = _uniform(self.seed, self.order, parents)
        rank = np.argsort(np.argsort(draws[:, :_SIBLINGS], axis=1, kind="stable"), axis=1)
        return np.asarray((rank[place, cells & 15] + draws[place, _SIBLINGS]) / _SIBLINGS < self.share)


def order_of(side: float) -> int:
    """Order of the smallest cells that are `CELL_WINDOWS` times as wide as a window of `side` arcsec."""
    if not 0 < side < math.inf:
        raise StorageError(f"windows of {side:g} arcsec have no place on the sky; regions need a grid with a WCS")
    order = math.floor(math.log2(_CELL_DEGREES * 3600 / (CELL_WINDOWS * side)))
    return min(max(order, 2), HEALPIX_ORDER - 2)


def cell_arcsec(order: int) -> float:
    """Side of a square with the area of a cell, arcsec."""
    return float(_CELL_DEGREES * 3600 / 2**order)


def _uniform(seed: int, order: int, parents: NDArray[np.int64]) -> NDArray[np.float64]:
    """17 uniform deviates of each parent, float64 [N, 17]: SplitMix64 (Steele et al. 2014) of place and seed."""
    with np.errstate(over="ignore"):
        state = parents.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed * 64 + order)
        state = _mixed(state)[:, None] + np.arange(1, _SIBLINGS + 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return np.asarray((_mixed(state) >> np.uint64(11)) * 2.0**-53)


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
