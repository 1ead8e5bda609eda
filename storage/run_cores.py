"""Where the tiles of runs lie, as their ledgers and grids say it, and for earlier runs the footers of their mosaics."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from surveybridge.storage.errors import StorageError
from surveybridge.storage.field_cores import Grid
from surveybridge.storage.footprint import around, header_box
from surveybridge.storage.mosaics import MosaicHeader, header_from
from surveybridge.storage.ownership import Cores, Ownership
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import LEDGER

_GEOMETRY = ("tile_id", "grid_id", "core_y0", "core_x0", "core_height", "core_width", "covered_cells")


def ownership_of(runs: Sequence[tuple[RunFolder, pa.Table]]) -> Ownership | None:
    """Settle who owns what among the tiles of some runs; None where they are all of one run and one grid.

    Parameters
    ----------
    runs : sequence of (RunFolder, pyarrow.Table)
        Each run, and the ledger rows of those of its tiles that count.

    Raises
    ------
    StorageError
        If two tiles of one grid own the same pixels.
    """
    cores, headers = [], []
    for run, rows in runs:
        counting = rows.filter(pc.fill_null(rows["catalogued"], True))
        tiles = counting.select(list(_GEOMETRY))
        if len(runs) > 1 and run.version < 4:  # alone it is on one grid
            found = _headers(run, counting)
            headers += found
            tiles = _as_headers_say(found) if found else tiles
        cores.append(Cores(run.url, tiles))
    needed = {grid_id for run in cores for grid_id in run.tiles["grid_id"].drop_null().to_pylist()}
    if len(runs) == 1 and len(needed) < 2:
        return None
    grids = _boxes_as_grids(headers)
    for run, _ in runs:
        grids |= {grid_id: Grid(field.wcs_header, field.shape) for grid_id, field in run.fields().items()}
    missing = sorted(needed - set(grids))
    if missing:
        urls = ", ".join(run.url for run, _ in runs)
        raise StorageError(f"{urls}: no grids/{missing[0]}.json, which says where tiles lie; copy the runs whole")
    return Ownership(cores, grids)


def _headers(run: RunFolder, rows: pa.Table) -> list[MosaicHeader]:
    """Footers of the mosaics of tiles with candidates; none if the catalog was kept without the mosaics."""
    tiles = rows.filter(pc.greater(pc.fill_null(rows["n_candidates"], 0), 0))["tile_id"].to_pylist()
    try:
        return run.mosaic_headers(tiles)
    except FileNotFoundError:
        return []


def _as_headers_say(headers: Sequence[MosaicHeader]) -> pa.Table:
    rows = []
    for header in headers:
        place = (header.tile_id, header.grid_id, *header.core_origin, *header.shape, None)
        rows.append(dict(zip(_GEOMETRY, place, strict=True)))
    return pa.Table.from_pylist(rows, schema=pa.schema([LEDGER.field(name) for name in _GEOMETRY]))


def _boxes_as_grids(headers: Sequence[MosaicHeader]) -> dict[str, Grid]:
    """The grids of mosaics; only the box around these is known, so a grid is taken as one with its middle there."""
    found: dict[str, list[MosaicHeader]] = {}
    for header in headers:
        found.setdefault(header.grid_id, []).append(header)
    grids = {}
    for grid_id, members in found.items():
        first = min(members, key=lambda header: header.tile_id)
        y0, y1, x0, x1 = around(header_box(header) for header in members)
        shift = -first.core_origin[0], -first.core_origin[1]
        grids[grid_id] = Grid(header_from(first.wcs_header, *shift), (y0 + y1, x0 + x1))
    return grids
