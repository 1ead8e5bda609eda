"""The table of the pairs of a store that is written in blocks: its parts wait in the store until all are there."""

from __future__ import annotations

import pyarrow as pa

from surveybridge.storage.objectstore import file_at
from surveybridge.storage.pair_labels import labels_url
from surveybridge.storage.pair_writer import PairWriter
from surveybridge.storage.parquet import parquet_bytes, read_parquet

PARTS = "labels"
"""Folder in an unfinished store with the tables of its blocks."""


def write_block_labels(writer: PairWriter, block: int, table: pa.Table) -> None:
    """Keep the table of a block, one row a pair; to be called before the block is written."""
    writer.folder.put(parquet_bytes(table), PARTS, f"{block}.parquet")


def finish_with_labels(writer: PairWriter) -> None:
    """Write the table beside the store, NAME.parquet of NAME.zarr, and finish the store."""
    tables = [read_parquet(writer.folder.read(PARTS, f"{block}.parquet")) for block in range(writer.layout.blocks)]
    folder, name = file_at(labels_url(writer.folder.url), writer.folder.storage_options)
    folder.put(parquet_bytes(pa.concat_tables(tables)), name)
    writer.finish()
    writer.folder.delete_below(PARTS)
