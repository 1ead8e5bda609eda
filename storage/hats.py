"""The HATS layout of a sky catalog (IVOA note HATS 1.0): its partitions, their margins, and the files beside them.

A table is a folder with one Parquet file a partition, which is a HEALPix cell of any order, and small files that say
what there is; a margin table has for each partition the rows just outside of it. Plain functions of what they are
given: no Dask, and no need of the `hats` package, by which the tests judge what is written.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cdshealpix
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from numpy.typing import NDArray

from surveybridge.storage.parquet import parquet_writer
from surveybridge.storage.sky import HEALPIX_ORDER

CELL_ORDER = 12
"""Order of the cells (52") that are counted; no partition is smaller than one."""

MARGIN_ORDER = 13
"""Order of the cells around a partition that are its margin: at least 16" across, wherever on the sky."""

MARGIN_ARCSEC = 10.0
"""Width of the margin that is promised; the margin holds more."""

SKYMAP_ORDER = 8
"""Order of the map of counts, cells of 14'."""

ROW_GROUP = 1 << 13
"""Rows of a row group, all near each other: a cone reads a few of 1 MB."""


class Pixel(NamedTuple):
    """A HEALPix cell, NESTED."""

    order: int
    number: int

    @property
    def range(self) -> tuple[int, int]:
        """First and last index of order 29 inside."""
        shift = 2 * (HEALPIX_ORDER - self.order)
        return self.number << shift, ((self.number + 1) << shift) - 1

    @property
    def path(self) -> str:
        """Return the path of its leaf file in a table."""
        return f"Norder={self.order}/Dir={self.number // 10_000 * 10_000}/Npix={self.number}.parquet"


@dataclass(frozen=True)
class Leaf:
    """A leaf that was written.

    Parameters
    ----------
    pixel : Pixel
        Its partition.
    footer : pyarrow.parquet.FileMetaData
        Its footer.
    size : int
        bytes.
    first : pyarrow.Table
        Its first row, for the table's thumbnail.
    """

    pixel: Pixel
    footer: pq.FileMetaData
    size: int
    first: pa.Table


def partitions(cells: NDArray[np.int64], counts: NDArray[np.int64], limit: int) -> list[Pixel]:
    """The largest HEALPix cells with at most `limit` rows each that together hold all rows.

    Parameters
    ----------
    cells : int64 [N]
        Indices of order `CELL_ORDER` with rows, ascending.
    counts : int64 [N]
        Rows in them. A cell with more than `limit` is a partition by itself.
    limit : int
        Rows.
    """
    found: list[Pixel] = []
    left = np.ones(len(cells), bool)
    for order in range(CELL_ORDER + 1):
        at_order = cells >> 2 * (CELL_ORDER - order)
        indices, place = np.unique(at_order, return_inverse=True)
        rows = np.bincount(place, weights=counts, minlength=len(indices))
        taken = left & ((rows <= limit)[place] | (order == CELL_ORDER))
        found += [Pixel(order, int(index)) for index in np.unique(at_order[taken])]
        left &= ~taken
    return sorted(found, key=lambda pixel: pixel.range)


def read_partitions(data: bytes) -> list[Pixel]:
    """The partitions that a partition_info.csv lists."""
    return [Pixel(*map(int, line.split(",")[:2])) for line in data.decode().splitlines()[1:]]


def border(pixel: Pixel) -> NDArray[np.int64]:
    """The cells of order `MARGIN_ORDER` around a partition, ascending: what lies within 16" of it lies in them."""
    edges, corners = cdshealpix.external_neighbours(pixel.number, pixel.order, MARGIN_ORDER - pixel.order)
    cells = np.concatenate([np.asarray(edges, np.int64).ravel(), np.asarray(corners, np.int64).ravel()])
    return np.unique(cells[cells >= 0])  # where fewer than eight cells meet, a corner is -1


def leaf(pixel: Pixel, table: pa.Table, lengths: Mapping[str, int]) -> tuple[Leaf, bytes]:
    """The leaf of a partition: VOParquet, equal rows are equal bytes.

    Parameters
    ----------
    pixel : Pixel
        The partition.
    table : pyarrow.Table
        Its rows by `_healpix_29`, at least one; field metadata as `storage.schema` has it.
    lengths : mapping of str to int
        Longest text of each string column over the whole catalog, so that all leaves have one schema.
    """
    sink = io.BytesIO()
    with parquet_writer(sink, table.schema, lengths) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP)
    data = sink.getvalue()
    footer = pq.read_metadata(io.BytesIO(data))
    footer.set_file_path(pixel.path)
    return Leaf(pixel, footer, len(data), table.take([0])), data  # a slice would keep the table alive


def table_files(
    schema: pa.Schema, lengths: Mapping[str, int], leaves: Sequence[Leaf], properties: Mapping[str, Any]
) -> dict[str, bytes]:
    """The files of a table beside its leaves, by path.

    Parameters
    ----------
    schema : pyarrow.Schema
        Of the leaves.
    lengths : mapping of str to int
        As for `leaf`.
    leaves : sequence of Leaf
        In the order of their partitions.
    properties : mapping
        Entries of `hats.properties`; what follows from the leaves is added.
    """
    sink = io.BytesIO()
    with parquet_writer(sink, schema, lengths) as writer:
        writer.write_table(pa.concat_tables([schema.empty_table(), *(item.first for item in leaves)]))
    thumbnail = sink.getvalue()
    written = pq.read_schema(io.BytesIO(thumbnail))
    orders = [item.pixel.order for item in leaves]
    text = property_file(
        {
            **properties,
            "hats_nrows": sum(item.footer.num_rows for item in leaves),
            "hats_order": max(orders, default=0),
            "hats_estsize": -(-sum(item.size for item in leaves) // 1024),
            "moc_sky_fraction": f"{sum(1 / (12 * 4**order) for order in orders):.6g}",
            "hats_npix_suffix": ".parquet",
            "hats_version": "v1.0",
        }
    )
    rows = "".join(f"{pixel.order},{pixel.number}\n" for pixel in sorted(item.pixel for item in leaves))
    return {
        "dataset/_common_metadata": _metadata(written, []),
        "dataset/_metadata": _metadata(written, [item.footer for item in leaves]),
        "partition_info.csv": f"Norder,Npix\n{rows}".encode(),
        "data_thumbnail.parquet": thumbnail,
        "properties": text,  # what readers before HATS 1.0 open
        "hats.properties": text,
    }


def property_file(entries: Mapping[str, Any]) -> bytes:
    """A file of properties, a line each."""
    return "".join(f"{key}={value}\n" for key, value in entries.items() if value not in (None, "")).encode()


def read_properties(data: bytes) -> dict[str, str]:
    """Inverse of `property_file`."""
    lines = (line.partition("=") for line in data.decode().splitlines() if line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in lines}


def skymap(cells: NDArray[np.int64], counts: NDArray[np.int64]) -> bytes:
    """FITS map of the rows in each cell of order `SKYMAP_ORDER` that has any, from those of order `CELL_ORDER`."""
    pixels, place = np.unique(cells >> 2 * (CELL_ORDER - SKYMAP_ORDER), return_inverse=True)
    rows = np.bincount(place, weights=counts, minlength=len(pixels)).astype(np.int64)
    table = fits.BinTableHDU.from_columns(
        [fits.Column("PIXEL", "K", array=pixels), fits.Column("VALUE", "K", array=rows)]
    )
    table.header.update(
        PIXTYPE="HEALPIX",
        INDXSCHM="EXPLICIT",
        ORDERING="NESTED",
        COORDSYS="C",
        NSIDE=2**SKYMAP_ORDER,
        OBS_NPIX=len(pixels),
    )
    sink = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(sink)
    return sink.getvalue()


def _metadata(schema: pa.Schema, footers: list[pq.FileMetaData]) -> bytes:
    sink = io.BytesIO()
    pq.write_metadata(schema, sink, metadata_collector=footers or None)
    return sink.getvalue()
