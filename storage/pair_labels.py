"""The table beside a pair store that was cut from tiles: where each pair is from, and what is in its middle.

It is NAME.parquet of NAME.zarr; its rows are in the order of the pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from surveybridge.storage.columns import F32, F64, I64, TEXT, bands_of, column_of
from surveybridge.storage.errors import StorageError
from surveybridge.storage.objectstore import file_at
from surveybridge.storage.parquet import parquet_bytes, read_parquet
from surveybridge.storage.problems import ProblemTable, default_problem
from surveybridge.storage.schema import candidates_schema

CUT = "surveybridge.cut"
"""Entry of the footer: from what, and how, the pairs were cut."""

_FAILED = b"surveybridge.tiles_failed"

_MEASURED = ("kind", "flags", "masked", "extent", "extent_err")


def pair_labels_schema(problem: ProblemTable) -> pa.Schema:
    """Rows of pairs cut from a tile store.

    What is measured on the object in the middle has the columns of candidates, and is null of a window that is not
    centred on one; a problem that makes maps only has no objects, and no such columns.
    """
    measured: list[pa.Field] = []
    if problem["catalog"] is not None:
        bands = [f"{what}_{column}" for what in ("flux", "snr", "mag", "mag_err") for column, _, _ in bands_of(problem)]
        candidates = candidates_schema(problem)
        measured = [candidates.field(name) for name in (*bands, *_MEASURED) if name in candidates.names]
    return pa.schema(
        [
            column_of("id", TEXT, "Name of the pair, as in the store's array id", "", "meta.id;meta.main"),
            column_of("tile_id", TEXT, "Tile whose core the window is from", "", "meta.id"),
            column_of("field", TEXT, "Field of the tile", "", "meta.id;obs.field"),
            column_of(
                "ra",
                F64,
                "Right ascension of the object, or of the window's centre, ICRS",
                "deg",
                "pos.eq.ra;meta.main",
            ),
            column_of(
                "dec", F64, "Declination of the object, or of the window's centre, ICRS", "deg", "pos.eq.dec;meta.main"
            ),
            column_of("_healpix_29", I64, "HEALPix index, NESTED, order 29, ICRS", "", "pos.healpix"),
            column_of("x", F64, "Column of that position in the field's pixel grid, 0-based", "pix", "pos.cartesian.x"),
            column_of("y", F64, "Row of that position in the field's pixel grid, 0-based", "pix", "pos.cartesian.y"),
            column_of("x0", I64, "First column of the window in the field's pixel grid", "pix", "pos.cartesian.x"),
            column_of("y0", I64, "First row of the window in the field's pixel grid", "pix", "pos.cartesian.y"),
            column_of("centred", pa.bool_(), "Centred on an object", "", "meta.code"),
            column_of("held_back", pa.bool_(), "On sky that is held back for validation", "", "meta.code"),
            column_of(
                "complete",
                F32,
                "Share of the window's pixels with data in all bands of both ends",
                "",
                "stat.proportion",
            ),
            *measured,
        ]
    )


PAIR_LABELS: pa.Schema = pair_labels_schema(default_problem())
"""Labels of pairs of the default problem."""


def labels_url(pairs: str) -> str:
    """Path or URL of the table beside a pair store."""
    return pairs.rstrip("/").removesuffix(".zarr") + ".parquet"


def write_pair_labels(pairs: str, table: pa.Table, cut: Mapping[str, Any]) -> None:
    """Write the table beside a pair store; `cut` says from what, and how, they were cut."""
    folder, name = file_at(labels_url(pairs))
    stated = {_FAILED.decode(): json.dumps(failed_tiles(table)), CUT: json.dumps(cut, sort_keys=True)}
    folder.put(parquet_bytes(table, stated), name)


def with_failed_tiles(table: pa.Table, failed: Sequence[str]) -> pa.Table:
    """The table of pairs, which states the tiles that could not be read when they were planned."""
    return table.replace_schema_metadata({_FAILED: json.dumps(sorted(failed))})


def failed_tiles(table: pa.Table) -> list[str]:
    """The tiles that could not be read when the pairs of a table were planned."""
    return [str(tile) for tile in json.loads((table.schema.metadata or {}).get(_FAILED, b"[]"))]


def read_pair_labels(pairs: str, cut: Mapping[str, Any]) -> pa.Table | None:
    """The table beside a pair store, None where there is none; StorageError if the pairs were cut otherwise."""
    folder, name = file_at(labels_url(pairs))
    try:
        table = read_parquet(folder.read(name))
    except FileNotFoundError:
        return None
    found = json.loads((table.schema.metadata or {}).get(CUT.encode(), b"{}"))
    wanted = json.loads(json.dumps(cut))
    if found != wanted:
        differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        there, here = (
            ", ".join(f"{key} {str(values.get(key))[:60]}" for key in differing[:3]) for values in (found, wanted)
        )
        raise StorageError(
            f"{folder.file_url(name)} is the table of pairs with {there}, but these would have {here}; give another "
            "--out, or delete both"
        )
    return table
