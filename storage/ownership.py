"""Ownership: every position on the sky belongs to one tile's core, so that an object in several fields is one row.

The cores of a field's tiles do not overlap, those of different fields may. Among the tiles that count (ok, with images
of both ends) whose core holds a position, one owns it:

1. the tile that has data of both ends throughout the cell of 64 x 64 pixels around it, before one that has them in a
   part of the cell, before one that has them nowhere in it;
2. then the tile of the field whose centre (of its pixel grid) is nearest on the sky;
3. then that of the field whose `grid_id` comes first.

Rule 2 is that of Rubin's sky map, whose tracts overlap: an object is primary in the tract whose centre is nearest
(`lsst.skymap.BaseSkyMap.findTract`; `detect_isPrimary` = inner part of patch and tract, and not a parent of a blend).
Euclid's MER tiles have a core area for the same purpose. Rules 1 and 3 are ours: a failed, missing or half-empty tile
owns nothing that another can show. Ownership is a function of where the tiles lie and of what they cover, and of
nothing else: neither the order of runs nor that of ingest matters.

An object next to a border has a slightly different centre in each field, and could be on the wrong side in both, or on
the right one in both. So rows of two fields that are each other's nearest within `field_cores.RADIUS` are one object;
exactly one of them is kept, and where the owner's data end so near and it has none, that of another field
(`storage.border_matches`). What that cannot do: objects whose centres differ by more than the radius, such as a blend
that is taken apart in one field only, may be kept twice or not at all within that distance of a border; and what the
owner's image does not show is not taken from another field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveybridge.storage.covered_cells import EVERYWHERE, NOWHERE, CoveredCells
from surveybridge.storage.errors import StorageError
from surveybridge.storage.field_cores import SHIFT, Bools, FieldCores, Floats, Grid, Ints, expanded
from surveybridge.storage.sky import unit_vectors


class Cores(NamedTuple):
    """The tiles of a run that count.

    Parameters
    ----------
    run : str
        URL of the run, for messages.
    tiles : pyarrow.Table
        Columns tile_id, grid_id, core_y0, core_x0, core_height, core_width and covered_cells of the ledger. A tile
        without grid_id has no known place: it owns all that it has.
    """

    run: str
    tiles: pa.Table


@dataclass(frozen=True)
class Verdict:
    """Who owns the positions of some rows, by field number: the fields' places in the order of their grid_id.

    Parameters
    ----------
    field, owner : int32 [N]
        Field that a row is from, and the one that owns its position; -1 where the place of the tile is not known.
    coverage : int8 [N]
        Of the cell of pixels around it, in the field that it is from.
    distance : float64 [N]
        Of the centre of the field that it is from, as a squared chord of the unit sphere.
    near : bool [N]
        Whether another field's core is within `field_cores.RADIUS`.
    edge : bool [N]
        Whether another field owns the position and has less data within that radius: it may have lost the object
        there.
    """

    field: NDArray[np.int32]
    owner: NDArray[np.int32]
    coverage: NDArray[np.int8]
    distance: Floats
    near: Bools
    edge: Bools

    @property
    def owned(self) -> Bools:
        """Whether a row is from the field that owns its position."""
        return self.field == self.owner


class Ownership:
    """The owner of every position, among the tiles of some runs.

    Parameters
    ----------
    runs : sequence of Cores
        In any order; the rows of `judge` name a run by its place here.
    grids : mapping of str to Grid
        By grid_id.

    Raises
    ------
    StorageError
        If two tiles of one grid own the same pixels, which no rule could settle.
    """

    def __init__(self, runs: Sequence[Cores], grids: Mapping[str, Grid]) -> None:
        self._names = [run.tiles["tile_id"].combine_chunks() for run in runs]
        lengths = [len(names) for names in self._names]
        self._first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tiles = pa.concat_tables([run.tiles for run in runs]).combine_chunks()
        known = sorted(set(tiles["grid_id"].drop_null().to_pylist()))
        number = pc.index_in(tiles["grid_id"], value_set=pa.array(known, pa.string()))
        self._field = np.asarray(pc.fill_null(number, -1).to_numpy(), np.int32)  # of each tile
        boxes = _boxes(tiles)
        self._coverage = CoveredCells.of(tiles["covered_cells"])
        self._fields = []
        for place, grid_id in enumerate(known):
            members = np.flatnonzero(self._field == place)
            field = FieldCores(grids[grid_id], members, boxes[members])
            _check_apart(field, grid_id, runs, self._first)
            self._fields.append(field)
        self._boxes = boxes
        self._cells, self._start, self._around = _contested([field.cells() for field in self._fields])

    @property
    def contested(self) -> bool:
        """Whether any two fields come near each other."""
        return len(self._cells) > 0

    def judge(self, run: int, rows: pa.Table) -> Verdict:
        """Say who owns the positions of a run's rows.

        Parameters
        ----------
        run : int
            Place of their run.
        rows : pyarrow.Table
            Columns tile_id, ra, dec, _healpix_29 of candidates.
        """
        local = pc.fill_null(pc.index_in(rows["tile_id"].combine_chunks(), value_set=self._names[run]), -1).to_numpy()
        tile = np.where(local >= 0, local + self._first[run], -1)
        field = np.where(tile >= 0, self._field[tile], -1).astype(np.int32)
        full, nothing = np.full(len(field), EVERYWHERE, np.int8), np.zeros(len(field))
        verdict = Verdict(field, field.copy(), full, nothing, nothing.astype(bool), nothing.astype(bool))
        if self.contested:
            self._judge(verdict, tile, *(rows[name].to_numpy() for name in ("ra", "dec", "_healpix_29")))
        return verdict

    def _judge(self, verdict: Verdict, tile: Ints, ra: Floats, dec: Floats, healpix: Ints) -> None:
        """Fill in the rows that lie in cells where several fields are."""
        place = np.minimum(np.searchsorted(self._cells, healpix >> SHIFT), len(self._cells) - 1)
        row = np.flatnonzero((self._cells[place] == healpix >> SHIFT) & (verdict.field >= 0))
        counts = self._start[place[row] + 1] - self._start[place[row]]
        pair_row = np.repeat(row, counts)
        pair_field = self._around[expanded(self._start[place[row]], counts)]
        position = unit_vectors(ra, dec)
        # The own field first: what a row is compared with.
        best = (np.full(len(ra), NOWHERE, np.int8), np.full(len(ra), np.inf))
        own = pair_field == verdict.field[pair_row]
        for number in np.unique(pair_field[own]):
            rows = pair_row[own & (pair_field == number)]
            field = self._fields[number]
            y, x = field.pixels(ra[rows], dec[rows])
            verdict.coverage[rows] = self._coverage.at(tile[rows], self._boxes[tile[rows]], y, x)
            verdict.distance[rows] = field.distance(position[rows])
        best[0][row], best[1][row] = verdict.coverage[row], verdict.distance[row]
        for number in np.unique(pair_field[~own]):
            rows = pair_row[~own & (pair_field == number)]
            field = self._fields[number]
            y, x = field.pixels(ra[rows], dec[rows])
            member, near = field.find(y, x)
            verdict.near[rows] |= near
            inside = member >= 0
            rows, y, x, there = rows[inside], y[inside], x[inside], field.tiles[member[inside]]
            coverage = self._coverage.at(there, self._boxes[there], y, x)
            distance = field.distance(position[rows])
            better = coverage > best[0][rows]
            nearer = (distance < best[1][rows]) | ((distance == best[1][rows]) & (number < verdict.owner[rows]))
            better |= (coverage == best[0][rows]) & nearer
            rows = rows[better]
            best[0][rows], best[1][rows], verdict.owner[rows] = coverage[better], distance[better], number
        lost = row[~verdict.owned[row]]
        for number in np.unique(verdict.owner[lost]):
            rows = lost[verdict.owner[lost] == number]
            verdict.edge[rows] = self._ends(self._fields[number], *self._fields[number].pixels(ra[rows], dec[rows]))

    def _ends(self, field: FieldCores, y: Floats, x: Floats) -> Bools:
        """Whether a field has less data within the margin of positions on its grid than at them."""
        steps = (-field.margin, 0.0, field.margin)
        here = self._level(field, y, x)
        around = [self._level(field, y + down, x + across) < here for down in steps for across in steps]
        return np.asarray(np.any(around, axis=0))

    def _level(self, field: FieldCores, y: Floats, x: Floats) -> NDArray[np.int8]:
        """Coverage around positions on a field's grid, -1 where it has no tile."""
        member, _ = field.find(y, x)
        level = np.full(len(y), -1, np.int8)
        inside = member >= 0
        tiles = field.tiles[member[inside]]
        level[inside] = self._coverage.at(tiles, self._boxes[tiles], y[inside], x[inside])
        return level


def _contested(fields: Sequence[Ints]) -> tuple[Ints, Ints, NDArray[np.int32]]:
    """Cells of several fields, ascending; for each the first of its entries, and after all their end; the entries."""
    if len(fields) < 2:
        return np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int32)
    cells = np.concatenate(fields)
    number = np.repeat(np.arange(len(fields), dtype=np.int32), [len(one) for one in fields])
    order = np.argsort(cells, kind="stable")
    distinct, place, counts = np.unique(cells[order], return_inverse=True, return_counts=True)
    several = counts > 1
    start = np.concatenate([[0], np.cumsum(counts[several])]).astype(np.int64)
    return distinct[several], start, number[order][several[place]]


def _check_apart(field: FieldCores, grid_id: str, runs: Sequence[Cores], first: Ints) -> None:
    """Refuse two tiles of one grid that own the same pixels."""
    found = field.overlap()
    if found is None:
        return
    where = []
    for tile in found:
        run = int(np.searchsorted(first, tile, "right")) - 1
        where.append(f"tile {runs[run].tiles['tile_id'][tile - int(first[run])].as_py()} of {runs[run].run}")
    raise StorageError(
        f"{' and '.join(where)} own the same pixels of grid {grid_id}, and nothing says which of the two counts; give "
        "one run of each field, or runs of different tiles"
    )


def _boxes(tiles: pa.Table) -> Ints:
    """Cores as (y0, y1, x0, x1), int64 [N, 4]; zeros where they are not known."""
    y0, x0, height, width = (
        np.asarray(pc.fill_null(tiles[name], 0).to_numpy(), np.int64)
        for name in ("core_y0", "core_x0", "core_height", "core_width")
    )
    return np.stack([y0, y0 + height, x0, x0 + width], axis=1)
