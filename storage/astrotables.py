"""Tables for astronomers: astropy's QTable with units; CSV, Parquet, VOTable, FITS and DS9 region files."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.types as kinds
from astropy.table import Column, MaskedColumn, QTable, Table

from surveybridge.storage.errors import StorageError
from surveybridge.storage.parquet import has_votable, parquet_bytes
from surveybridge.storage.query import query
from surveybridge.storage.views import Urls

REGION_ARCSEC = 1.0
"""Radius of the circles of a DS9 region file."""


def query_table(urls: Urls, *arguments: Any, **options: Any) -> QTable:
    """Run `storage.query.query` and return a QTable with units, without thumbnails unless they are asked for.

    Examples
    --------
    >>> table = query_table("s3://sky/catalog", Cone(53.1, -28.0, 30.0))
    >>> table["flux_VIS"].to("uJy")
    """
    return to_qtable(query(urls, *arguments, **{"thumbnails": False, **options}))


def to_qtable(found: pa.Table) -> QTable:
    """An Arrow table as QTable: units, descriptions and UCDs (`meta["ucd"]` of a column's info) from its fields.

    Floats are quantities where they have a unit, null being NaN; other columns are masked where they have nulls.
    """
    table = QTable()
    for field in found.schema:
        metadata = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        values, unit = _values(found[field.name], field.type), metadata.get("unit") or None
        if kinds.is_fixed_size_list(field.type) and "shape" in metadata:
            values = values.reshape(len(values), *map(int, metadata["shape"].split(",")))
        masked = isinstance(values, np.ma.MaskedArray)
        column: Any = (MaskedColumn if masked else Column)(values, unit=unit)
        table[field.name] = column
        info = table[field.name].info
        info.description = metadata.get("description")
        if "ucd" in metadata:
            info.meta = {"ucd": metadata["ucd"]}
    return table


def _values(column: pa.ChunkedArray, kind: pa.DataType) -> Any:
    """numpy values: floats with NaN for null, else masked where null."""
    column = column.combine_chunks()
    if kinds.is_fixed_size_list(kind) or isinstance(kind, pa.FixedShapeTensorType):
        flat = (column.storage if isinstance(column, pa.ExtensionArray) else column).flatten()
        return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(column), -1)
    if kinds.is_floating(kind):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    missing = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
    if kinds.is_string(kind) or kinds.is_large_string(kind):
        values: Any = np.array(["" if value is None else value for value in column.to_pylist()], str)
    elif kinds.is_integer(kind) or kinds.is_boolean(kind):
        values = np.asarray(column.fill_null(pa.scalar(0).cast(kind)).to_numpy(zero_copy_only=False))
    else:  # times, lists, decimals: as text
        values = np.array(["" if value is None else str(value) for value in column.to_pylist()], str)
    return np.ma.MaskedArray(values, missing) if missing.any() else values


# -- files --


def file_bytes(found: pa.Table, kind: str) -> bytes:
    """A table as a file.

    Parameters
    ----------
    found : pyarrow.Table
        From `query`.
    kind : str
        One of `KINDS`.

    Raises
    ------
    StorageError
        If the kind needs columns that are not there, or cannot hold one that is.
    """
    try:
        return KINDS[kind](found)
    except StorageError:
        raise
    except (ValueError, TypeError, pa.ArrowException) as error:  # SQL makes intervals, and names as in no language
        reason = " ".join(str(error).split())
        raise StorageError(
            f"{kind} cannot hold this table: {reason[:200]}; cast or rename the column in the SQL, or take csv or json"
        ) from error


def _csv(found: pa.Table) -> bytes:
    with pa.BufferOutputStream() as sink:
        pyarrow.csv.write_csv(flat(found), sink)
        return bytes(sink.getvalue().to_pybytes())


def _parquet(found: pa.Table) -> bytes:
    return parquet_bytes(found, votable=has_votable(found.schema))


def _votable(found: pa.Table) -> bytes:
    from astropy.io.votable import from_table, writeto
    from astropy.io.votable.tree import CooSys

    found = _without_uint64(flat(found))
    document = from_table(Table(to_qtable(found)), table_id="candidates")
    document.version = "1.4"
    document.resources[0].coordinate_systems.append(CooSys(ID="icrs", system="ICRS"))
    table = document.get_first_table()
    metadata = {field.name: field.metadata or {} for field in found.schema}
    for field in table.fields:
        field.ucd = metadata[field.name].get(b"ucd", b"").decode() or None
        if field.name in ("ra", "dec"):
            field.ref = "icrs"
    sink = io.BytesIO()
    writeto(document, sink)
    return sink.getvalue()


def _without_uint64(found: pa.Table) -> pa.Table:
    """The table with unsigned 64-bit integers, which VOTable lacks, as signed ones or, beyond 2^63, as text."""
    for place, field in enumerate(found.schema):
        if kinds.is_uint64(field.type):
            largest = pc.max(found.column(place)).as_py() or 0
            kind = pa.int64() if largest < 2**63 else pa.string()
            found = found.set_column(place, field.with_type(kind), found.column(place).cast(kind))
    return found


def _fits(found: pa.Table) -> bytes:
    sink = io.BytesIO()
    table = Table(to_qtable(found))
    for name in table.colnames:
        column = table[name]
        column.info.meta = None  # FITS has no place for UCDs; units are TUNITn
        if column.dtype.kind == "U":  # nor for letters beyond ASCII, which a grader's name may have
            text = np.char.encode(np.asarray(column), "ascii", "backslashreplace")
            table[name] = Column(text, description=column.info.description)
    table.write(sink, format="fits")
    return sink.getvalue()


def _regions(found: pa.Table) -> bytes:
    missing = [name for name in ("ra", "dec") if name not in found.column_names]
    if missing:
        raise StorageError(f"DS9 regions need {' and '.join(missing)}, the table has {', '.join(found.column_names)}")
    lines = ["# Region file format: DS9 version 4.1", "icrs"]
    for row in found.select(
        [name for name in ("ra", "dec", "rank", "object_id") if name in found.column_names]
    ).to_pylist():
        label = " ".join(str(row[name]) for name in ("rank", "object_id") if row.get(name) is not None)
        text = f" # text={{{label}}}" if label else ""
        lines.append(f'circle({row["ra"]:.7f},{row["dec"]:.7f},{REGION_ARCSEC:g}"){text}')
    return ("\n".join(lines) + "\n").encode()


def _json(found: pa.Table) -> bytes:
    import json

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    rows = [{name: plain(value) for name, value in row.items()} for row in flat(found).to_pylist()]
    return (json.dumps(rows, indent=1, default=str) + "\n").encode()


def flat(found: pa.Table) -> pa.Table:
    """The table without its arrays."""
    return found.select([field.name for field in found.schema if not is_array(field.type)])


def is_array(kind: pa.DataType) -> bool:
    """Return whether each value is an array."""
    return bool(kinds.is_nested(kind) or isinstance(kind, pa.BaseExtensionType))


KINDS: dict[str, Callable[[pa.Table], bytes]] = {
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
    "votable": _votable,
    "fits": _fits,
    "reg": _regions,
}
"""Kinds of files, by name."""

ENDINGS = {
    ".csv": "csv",
    ".json": "json",
    ".parquet": "parquet",
    ".vot": "votable",
    ".votable": "votable",
    ".xml": "votable",
    ".fits": "fits",
    ".reg": "reg",
}
"""Kinds of files by their ending."""
