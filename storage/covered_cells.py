"""Which cells of 64 x 64 pixels of a tile's core have data of both ends: the ledger's column `covered_cells`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveybridge.storage.images import MASK_PLANES, Box, SurveyImage
from surveybridge.storage.schema import CELL

EVERYWHERE, PARTLY, NOWHERE = 2, 1, 0
"""Coverage of a cell of pixels by data of both ends."""


class CoveredCells(NamedTuple):
    """Which cells of pixels have data of both ends: of each tile the first of its values, -1 for everywhere."""

    first: NDArray[np.int64]
    values: NDArray[np.int8]

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> CoveredCells:
        """From the ledger's column; null: everywhere."""
        lists = column.combine_chunks()
        lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(), np.int64)
        first = np.where(lengths > 0, np.cumsum(lengths) - lengths, -1)
        return cls(first, np.asarray(lists.drop_null().flatten().to_numpy(zero_copy_only=False), np.int8))

    def at(
        self, tiles: NDArray[np.int64], boxes: NDArray[np.int64], y: NDArray[np.float64], x: NDArray[np.float64]
    ) -> NDArray[np.int8]:
        """Coverage around positions on the grids of tiles; what lies just beyond the core counts as at its edge."""
        coverage = np.full(len(tiles), EVERYWHERE, np.int8)
        stated = self.first[tiles] >= 0
        y0, y1, x0, x1 = boxes[stated].T
        line, column = (np.floor(np.nan_to_num(v[stated]) + 0.5).astype(np.int64) for v in (y, x))
        row = np.clip(line - y0, 0, y1 - y0 - 1) // CELL
        cell = row * -(-(x1 - x0) // CELL) + np.clip(column - x0, 0, x1 - x0 - 1) // CELL
        coverage[stated] = self.values[self.first[tiles[stated]] + cell]
        return coverage


def core_coverage(images: Iterable[SurveyImage], core: Box) -> list[int] | None:
    """State which cells of a tile's core have data in all bands of its images, as `cell_coverage`."""
    y0, y1, x0, x1 = core
    lacking = [(image.mask[:, y0:y1, x0:x1] & MASK_PLANES["NO_DATA"] != 0).any(0) for image in images]
    return cell_coverage(~np.logical_or.reduce(lacking))


def cell_coverage(usable: NDArray[np.bool_]) -> list[int] | None:
    """State which cells of 64 x 64 pixels have data: the column `covered_cells` of a ledger row.

    Parameters
    ----------
    usable : bool [H, W]
        Pixels of a tile's core with data of both ends.

    Returns
    -------
    list of int or None
        Row by row `EVERYWHERE`, `PARTLY` or `NOWHERE` for each cell; None if it is everywhere for all of them.
    """
    if usable.all():
        return None
    lines, columns = (np.arange(0, n, CELL) for n in usable.shape)
    count = np.add.reduceat(np.add.reduceat(usable.astype(np.int64), lines, 0), columns, 1)
    size = np.outer(*(np.diff(np.append(edges, n)) for edges, n in zip((lines, columns), usable.shape, strict=True)))
    found = np.where(count == size, EVERYWHERE, np.where(count > 0, PARTLY, NOWHERE))
    return [int(value) for value in found.ravel()]
