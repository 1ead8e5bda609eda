"""Parquet files as this project writes them: zstd, equal tables equal bytes, and a VOTable header in the footer.

VOParquet (IVOA note 1.0) carries the units, UCDs and descriptions that `storage.schema` has on every column, so that
`astropy.table.Table.read(file, format="parquet.votable")` has them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from surveybridge.storage.schema import SCHEMA_VERSION, VERSION_KEY

_VOTABLE_TYPES = {
    pa.string(): "unicodeChar",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.int32(): "int",
    pa.int64(): "long",
}


def parquet_bytes(table: pa.Table, metadata: Mapping[str, str] | None = None, *, votable: bool = False) -> bytes:
    """One Parquet file: zstd, float columns byte-stream-split; equal tables give equal bytes.

    Parameters
    ----------
    table : pyarrow.Table
        With field metadata as `storage.schema` has it.
    metadata : mapping of str to str
        Further footer entries.
    votable : bool
        Add the VOParquet header (and the string lengths that astropy's reader asks for).
    """
    lengths = string_lengths([table]) if votable else None
    sink = io.BytesIO()
    with parquet_writer(sink, table.schema, lengths, metadata) as writer:
        writer.write_table(table, row_group_size=row_group_size(table.schema))
    return sink.getvalue()


def parquet_writer(
    sink: Any,
    schema: pa.Schema,
    lengths: Mapping[str, int] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> pq.ParquetWriter:
    """Writer of a Parquet file as `parquet_bytes` makes them, for tables that come one by one.

    Parameters
    ----------
    sink : file object
        Binary.
    schema : pyarrow.Schema
        Of `storage.schema`; the footer states its version.
    lengths : mapping of str to int, optional
        Longest text of each string column (`string_lengths`): adds the VOParquet header.
    metadata : mapping of str to str
        Further footer entries.
    """
    version = (schema.metadata or {}).get(VERSION_KEY, str(SCHEMA_VERSION).encode()).decode()
    footer = {VERSION_KEY.decode(): version, **(metadata or {})}
    if lengths is not None:
        footer |= {f"table::len::{name}": str(length) for name, length in lengths.items()}
        footer["IVOA.VOTable-Parquet.version"] = "1.0"
        footer["IVOA.VOTable-Parquet.content"] = votable_header(schema, lengths)
    floats = [leaf for field in schema if (leaf := _float_leaf(field))]
    return pq.ParquetWriter(
        sink,
        schema.with_metadata(dict(sorted(footer.items()))),
        compression="zstd",
        use_dictionary=texts(schema) or False,
        use_byte_stream_split=floats or False,
    )


def read_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Table of one Parquet file held in memory."""
    # pq.read_table, or threads, would make the many small files of a ledger several times slower.
    file = pq.ParquetFile(pa.BufferReader(data))
    return file.read(columns=list(columns) if columns is not None else None, use_threads=len(data) > 1 << 20)


def row_group_size(schema: pa.Schema) -> int:
    """Rows of a row group: 100 MB of candidates with thumbnails, and never one per thousand rows of a ledger."""
    arrays = any(pa.types.is_fixed_size_list(f.type) or isinstance(f.type, pa.ExtensionType) for f in schema)
    return 1 << 10 if arrays else 1 << 17


def string_lengths(tables: Iterable[pa.Table]) -> dict[str, int]:
    """Longest text of each string column over some tables; 1 where there is none."""
    lengths: dict[str, int] = {}
    for table in tables:
        for name in texts(table.schema):
            longest = pc.max(pc.utf8_length(table.column(name))).as_py() or 1
            lengths[name] = max(lengths.get(name, 1), longest)
    return lengths


def has_votable(schema: pa.Schema) -> bool:
    """Return whether a VOTable header can express the types of all columns."""
    kinds = (f.type.value_type if pa.types.is_fixed_size_list(f.type) else f.type for f in schema)
    return all(kind in _VOTABLE_TYPES for kind in kinds)


def votable_header(schema: pa.Schema, string_lengths: Mapping[str, int]) -> str:
    """VOTable (1.4) with a FIELD per column and no data, as VOParquet wants it in the footer.

    Arrays are declared flat, as they are stored: astropy stacks header and data, and asks for equal shapes.
    """
    lines = []
    for field in schema:
        texts = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        attributes = {"name": field.name}
        if pa.types.is_fixed_size_list(field.type):
            attributes |= {"datatype": _VOTABLE_TYPES[field.type.value_type], "arraysize": str(field.type.list_size)}
        else:
            attributes["datatype"] = _VOTABLE_TYPES[field.type]
        if field.name in string_lengths:
            attributes["arraysize"] = str(string_lengths[field.name])
        attributes |= {key: texts[key] for key in ("unit", "ucd") if key in texts}
        head = " ".join(f"{key}={quoteattr(value)}" for key, value in attributes.items())
        lines.append(f"<FIELD {head}><DESCRIPTION>{texts.get('description', '')}</DESCRIPTION></FIELD>")
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE type="results">'
        '<COOSYS ID="icrs" system="ICRS"/><TABLE>\n' + "\n".join(lines) + "\n</TABLE></RESOURCE></VOTABLE>\n"
    )


def texts(schema: pa.Schema) -> list[str]:
    """Names of the columns of text."""
    return [field.name for field in schema if pa.types.is_string(field.type)]


def _float_leaf(field: pa.Field) -> str | None:
    kind = field.type.storage_type if isinstance(field.type, pa.ExtensionType) else field.type
    if pa.types.is_fixed_size_list(kind):
        return f"{field.name}.list.element"
    return field.name if pa.types.is_floating(kind) else None
