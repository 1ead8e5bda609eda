"""Overlapping fields for tests: pixel grids on the sky, their tiles as a ledger lists them, objects seen in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.wcs import WCS

from surveybridge.storage.field_cores import Grid
from surveybridge.storage.mosaics import TileMosaic, header_from
from surveybridge.storage.ownership import Cores
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import stamps
from surveybridge.storage.sky import healpix_29
from tests.storage.test_runs import RUN

GEOMETRY = pa.schema(
    [
        ("tile_id", pa.string()),
        ("grid_id", pa.string()),
        *((name, pa.int64()) for name in ("core_y0", "core_x0", "core_height", "core_width")),
        ("covered_cells", pa.list_(pa.int8())),
    ]
)


@dataclass(frozen=True)
class Field:
    """A field of square tiles on a turned TAN grid with its centre at (ra, dec)."""

    name: str
    ra: float
    dec: float
    turn: float = 0.0
    side: int = 4
    tile: int = 128
    scale: float = 0.1

    @property
    def shape(self) -> tuple[int, int]:
        return self.side * self.tile, self.side * self.tile

    @property
    def wcs(self) -> WCS:
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval = [self.ra, self.dec]
        wcs.wcs.crpix = [(self.shape[1] + 1) / 2, (self.shape[0] + 1) / 2]
        cos, sin = np.cos(np.deg2rad(self.turn)), np.sin(np.deg2rad(self.turn))
        wcs.wcs.cd = self.scale / 3600 * np.array([[-cos, sin], [sin, cos]])
        wcs.wcs.set()
        return wcs

    @property
    def grid(self) -> Grid:
        return Grid(self.wcs.to_header_string(), self.shape)

    def tiles(self, numbers: Any = None, **changes: Any) -> pa.Table:
        """Rows of the geometry of all tiles, or of some."""
        rows = [
            {
                "tile_id": f"{self.name}_{k}",
                "grid_id": f"grid-{self.name}",
                "core_y0": k // self.side * self.tile,
                "core_x0": k % self.side * self.tile,
                "core_height": self.tile,
                "core_width": self.tile,
                "covered_cells": None,
            }
            | changes
            for k in (range(self.side**2) if numbers is None else numbers)
        ]
        return pa.Table.from_pylist(rows, schema=GEOMETRY)

    def tile_at(self, ra: Any, dec: Any) -> np.ndarray:
        """Number of the tile that holds each position, -1 where none does."""
        x, y = self.wcs.all_world2pix(ra, dec, 0)
        line, column = (np.floor(v + 0.5).astype(int) for v in (y, x))
        inside = (line >= 0) & (line < self.shape[0]) & (column >= 0) & (column < self.shape[1])
        return np.where(inside, line // self.tile * self.side + column // self.tile, -1)

    def rows(self, ra: Any, dec: Any, numbers: Any = None) -> tuple[np.ndarray, pa.Table]:
        """Which positions lie in the field's tiles (or in some of them), and their rows as candidates."""
        tile = self.tile_at(ra, dec)
        seen = np.flatnonzero(tile >= 0 if numbers is None else np.isin(tile, numbers))
        names = [f"{self.name}_{k}" for k in tile[seen]]
        table = {
            "object_id": names_of(ra[seen], dec[seen]),
            "tile_id": names,
            "ra": ra[seen],
            "dec": dec[seen],
            "_healpix_29": healpix_29(ra[seen], dec[seen]),
        }
        return seen, pa.table(table)


def names_of(ra: Any, dec: Any) -> list[str]:
    """Names of objects, which are others if the centres differ by more than 0.04 arcsec."""
    return [f"SB {a:.5f}{d:+.5f}" for a, d in zip(ra, dec, strict=True)]


def grids(*fields: Field) -> dict[str, Grid]:
    """Their grids by grid_id."""
    return {f"grid-{field.name}": field.grid for field in fields}


def cores(*fields: Field) -> list[Cores]:
    """A run for each field."""
    return [Cores(f"runs/{field.name}", field.tiles()) for field in fields]


def scattered(
    rng: np.random.Generator, count: int, ra: float, dec: float, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positions within a square of the sky around (ra, dec), half side `radius` arcsec."""
    east, north = rng.uniform(-radius, radius, (2, count)) / 3600
    return (ra + east / np.cos(np.deg2rad(dec))) % 360, dec + north


def write_run(
    where: Any,
    seen: Mapping[Field, tuple[np.ndarray, np.ndarray]],
    run_id: str,
    version: int = 4,
    heads: np.ndarray | None = None,
) -> RunFolder:
    """A run of some fields, and of the objects that each of them shows; column flux_VIS is an object's number.

    Parameters
    ----------
    where : path
        Of the run.
    seen : mapping
        By field the positions of all objects as it measures them.
    run_id : str
        Of the run.
    version : int
        Of its schema; before 4 only the mosaics say where tiles lie.
    heads : int array, optional
        For each object the number of the one after which its system is named; default itself.
    """
    document = {**RUN, "run_id": run_id, "model": "tiny", "code_version": "0", "code_schema_version": version}
    run = RunFolder.open_or_create(where, document)
    for field, (ra, dec) in seen.items():
        if version >= 4:
            grid = {
                "wcs": field.grid.wcs_header,
                "shape": field.shape,
                "field": field.name,
                "grid_id": f"grid-{field.name}",
            }
            more = {"tile_size": field.tile, "halo": 0, "prefix": f"{field.name}_"}
            run.folder.put_json(grid | more, "grids", f"grid-{field.name}.json")
        numbers, rows = field.rows(ra, dec)
        named = np.array(names_of(ra, dec))
        for place in field.tiles().to_pylist():
            of_tile = np.array([name == place["tile_id"] for name in rows["tile_id"].to_pylist()])
            found, number = rows.filter(pa.array(of_tile)), numbers[of_tile]
            origin, shape = (place["core_y0"], place["core_x0"]), (field.tile, field.tile)
            columns = {
                "system_id": named[number if heads is None else heads[number]].tolist(),
                "score": np.cos(number.astype(float)),
                "flux_VIS": number.astype(np.float32),
                "run_id": [run_id] * len(number),
                "thumbnail_euclid": stamps("thumbnail_euclid", np.full((len(number), 1, 64, 64), 7.0, np.float32)),
            }
            for name, values in columns.items():
                found = found.append_column(name, pa.array(values, pa.string() if name == "system_id" else None))
            empty = np.zeros((1, *shape), np.float32)
            header = header_from(field.grid.wcs_header, *origin)
            run.write_mosaic(
                TileMosaic(place["tile_id"], header, ("VIS",), empty, empty, empty[0], origin, place["grid_id"])
            )
            run.write_candidates(place["tile_id"], found)
            run.commit({**place, "status": "ok", "n_candidates": len(number), "catalogued": True, "field": field.name})
    return run
