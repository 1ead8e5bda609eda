"""Segments of a run folder: ledger rows and candidates of many tiles in one file, and which of all rows count.

A worker commits a tile as files of its own (`ledger/<tile>.parquet`, `candidates/<tile>.parquet`). Whoever holds the
run's lease has them compacted::

    ledger/segments/<level>-<rows>-<hash>.parquet     rows of many tiles; 32 of a level are merged into one of the next
    candidates/segments/<hash>.parquet                 their candidates, VOParquet, a row group (or more) per tile

Every step first writes the new file, then removes the old ones, so that a kill leaves a row twice but never not at all.
Of a tile's rows the one with the highest (attempt, finished_at) counts; of equal ones the segment's. The rows that do
not count stay in the ledger as long as the candidates that they name, for they say which of these do not count either.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from surveybridge.storage.objectstore import Folder
from surveybridge.storage.parquet import read_parquet
from surveybridge.storage.schema import LEDGER, conform

LEDGER_SEGMENTS, CANDIDATES_SEGMENTS = "ledger/segments", "candidates/segments"

FILES_AT_ONCE = 8
"""Candidates files that are read concurrently."""

ORDER = ("tile_id", "attempt", "finished_at", "candidates_path")
"""Columns that decide which row counts; the path last, so that one of two copies of a candidates file counts whole."""


@dataclass(frozen=True)
class LedgerRows:
    """All ledger rows on disk, whether they count or not.

    Parameters
    ----------
    table : pyarrow.Table
        Columns of `LEDGER`, those of `ORDER` among them.
    files : sequence of str
        Where they lie, relative to the run folder.
    source : ndarray of int32
        For each row the index into `files`; rows of a file follow each other as they do there.
    """

    table: pa.Table
    files: Sequence[str]
    source: NDArray[np.int32]

    def current(self) -> NDArray[np.int64]:
        """Indices of the rows that count, one a tile, by tile id."""
        loose = np.array([not in_segment(file) for file in self.files], bool)[self.source]
        # Of equal rows in two segments that of the longer file counts: a merge that did not remove its sources.
        lengths = np.bincount(self.source, minlength=len(self.files)).astype(np.int64)
        place = np.lexsort((np.array(self.files, str), -lengths)).argsort() if self.files else np.zeros(0, np.int64)
        keys = self.table.select(list(ORDER))
        keys = keys.append_column("loose", pa.array(loose)).append_column("place", pa.array(place[self.source]))
        down = ("attempt", "finished_at")
        columns = ("tile_id", "attempt", "finished_at", "loose", "candidates_path", "place")
        order = pc.sort_indices(keys, [(name, "descending" if name in down else "ascending") for name in columns])
        tiles = keys["tile_id"].combine_chunks().take(order)
        first = np.ones(len(order), bool)
        first[1:] = pc.not_equal(tiles[1:], tiles[:-1]).to_numpy(zero_copy_only=False)
        return order.to_numpy().astype(np.int64)[first]

    def current_table(self) -> pa.Table:
        """The rows that count, one a tile, by tile id."""
        return self.table.take(pa.array(self.current()))

    def select(self, keep: NDArray[np.bool_]) -> LedgerRows:
        """Only some of the rows."""
        return LedgerRows(self.table.filter(pa.array(keep)), self.files, self.source[keep])

    def candidates_files(self) -> dict[str, list[str]]:
        """Files with candidates that count, and for each the tiles whose candidates in it do not count."""
        current = self.current()
        path = self.table["candidates_path"].combine_chunks()
        tile = self.table["tile_id"].combine_chunks()
        files: dict[str, list[str]] = {str(name): [] for name in path.take(current).unique().to_pylist() if name}
        rest = np.setdiff1d(np.arange(len(path)), current)
        rest = rest[pc.fill_null(pc.starts_with(path.take(rest), f"{CANDIDATES_SEGMENTS}/"), False).to_numpy(False)]
        winner = path.take(pc.take(pa.array(current), pc.index_in(tile.take(rest), value_set=tile.take(current))))
        other = pc.fill_null(pc.not_equal(path.take(rest), winner), True)  # a failed row has no candidates
        for i in rest[other.to_numpy(zero_copy_only=False)]:
            if (file := path[i].as_py()) in files:
                files[file].append(tile[i].as_py())
        return {file: sorted(set(stale)) for file, stale in files.items()}


def read_rows(folder: Folder, columns: Iterable[str] | None = None) -> LedgerRows:
    """Read all ledger rows; this sees every tile that was committed before, even while another process compacts.

    Parameters
    ----------
    folder : Folder
        The run folder.
    columns : iterable of str, optional
        Only these columns of `LEDGER`, and those of `ORDER`.
    """
    schema = LEDGER if columns is None else pa.schema([f for f in LEDGER if f.name in {*columns, *ORDER}])
    # Loose files before segments: one that is gone when it is read was compacted, so its segment is there by then.
    loose = read_files(folder, [f"ledger/{name}" for name in folder.names("ledger", suffix=".parquet")], schema)
    segments: dict[str, pa.Table] = {}
    listed: list[str] | None = None
    while listed is None or set(listed) - set(segments):  # what was listed was merged: the merged file is there by now
        listed = ledger_segments(folder)
        segments = {file: table for file, table in segments.items() if file in set(listed)}
        segments |= read_files(folder, [file for file in listed if file not in segments], schema)
    tables = segments | loose
    lengths = [table.num_rows for table in tables.values()]
    return LedgerRows(
        pa.concat_tables([schema.empty_table(), *tables.values()]).combine_chunks(),
        list(tables),
        np.repeat(np.arange(len(tables), dtype=np.int32), lengths),
    )


def current_rows(folder: Folder, columns: Iterable[str] | None = None) -> pa.Table:
    """The ledger: one row a tile, by tile id."""
    table = read_rows(folder, columns).current_table()
    return table if columns is None else table.select(list(columns))


def loose_tiles(folder: Folder) -> list[str]:
    """Tiles whose ledger row is still a file of its own."""
    return [name.removesuffix(".parquet") for name in folder.names("ledger", suffix=".parquet")]


def read_tile_candidates(folder: Folder, path: str, tile_id: str, schema: pa.Schema) -> pa.Table:
    """Candidates of one tile, schema `schema`, from a file that its ledger row names."""
    if not path.startswith(f"{CANDIDATES_SEGMENTS}/"):
        return conform(read_parquet(folder.read(path)), schema, path)
    with parquet_file(folder, path) as file:
        groups = file.read_row_groups(groups_of(file.metadata, [tile_id]), use_threads=False)
    return conform(groups.filter(pc.equal(groups["tile_id"], tile_id)), schema, path)


def read_candidates(
    folder: Folder,
    files: Mapping[str, Collection[str]],
    columns: Sequence[str],
    schema: pa.Schema,
    tiles: Collection[str] | None = None,
) -> pa.Table:
    """Some columns of candidates, in no order.

    Row groups are small, one a tile; a dataset's scanner would take several times as long for each.

    Parameters
    ----------
    folder : Folder
        The run folder.
    files : mapping of str to collection of str
        Files with candidates, and for each the tiles whose rows in it do not count.
    columns : sequence of str
        Of `schema`.
    schema : pyarrow.Schema
        Of the run's candidates.
    tiles : collection of str, optional
        Tiles that are asked for: row groups without any of them are not read.
    """
    schema = pa.schema([schema.field(name) for name in columns])
    asked = None if tiles is None else sorted(tiles)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        try:
            parts = list(pool.map(lambda file: _read_columns(folder, file, files[file], schema, asked), files))
        except OSError as error:
            # Arrow keeps the error of a file as long as its reader, which the traceback would keep in turn, and with it
            # whatever else the callers hold.
            raise error.with_traceback(None)  # noqa: B904  # the same error
    return pa.concat_tables([schema.empty_table(), *parts])


def _read_columns(
    folder: Folder, path: str, left_out: Collection[str], schema: pa.Schema, tiles: Sequence[str] | None
) -> pa.Table:
    with parquet_file(folder, path) as file:
        known = columns_in(file, schema)
        columns = [*known, "tile_id"] if left_out and "tile_id" not in known else known
        if tiles is None:
            table = file.read(columns=columns, use_threads=False)
        else:
            table = file.read_row_groups(groups_of(file.metadata, tiles), columns=columns, use_threads=False)
    if left_out:
        table = table.filter(pc.invert(pc.is_in(table["tile_id"], pa.array(sorted(left_out), pa.string()))))
    return conform(table.select(known), schema, path)


@contextlib.contextmanager
def parquet_file(folder: Folder, path: str) -> Iterator[pq.ParquetFile]:
    """Open a file of a run so that only what is read is fetched: thumbnails make up 98 of 100 bytes of candidates."""
    if folder.is_local:
        with pq.ParquetFile(folder.path(path)) as file:
            yield file
        return
    with folder.filesystem.open(folder.path(path), "rb", cache_type="none") as handle:
        yield pq.ParquetFile(handle, pre_buffer=True)  # the columns that are read of a row group are one request


def columns_in(file: pq.ParquetFile, schema: pa.Schema) -> list[str]:
    """Columns of a schema that a file has, in the order of the schema."""
    present = {*file.schema_arrow.names}  # each look at the file's schema reads it anew
    return [name for name in schema.names if name in present]


def groups_of(metadata: pq.FileMetaData, tiles: Sequence[str]) -> list[int]:
    """Row groups that may hold rows of any of some tiles, in the order of their ids."""
    column = metadata.schema.to_arrow_schema().get_field_index("tile_id")
    found = []
    for group in range(metadata.num_row_groups):
        # Leaf columns before tile_id are scalars, so its place among leaves is its place in the schema.
        statistics = metadata.row_group(group).column(column).statistics
        if statistics is None or not statistics.has_min_max or _any_between(tiles, statistics.min, statistics.max):
            found.append(group)
    return found


def _any_between(names: Sequence[str], low: str, high: str) -> bool:
    place = bisect.bisect_left(names, low)
    return place < len(names) and names[place] <= high


def ledger_segments(folder: Folder) -> list[str]:
    """List the ledger segments until two listings agree, since a listing need not show a single moment."""
    listed: list[str] | None = None
    while listed != (again := folder.names(LEDGER_SEGMENTS, suffix=".parquet")):
        listed = again
    return [f"{LEDGER_SEGMENTS}/{name}" for name in again]


def in_segment(file: str) -> bool:
    """Return whether a file of ledger rows is a segment, and not that of one tile."""
    return file.startswith(f"{LEDGER_SEGMENTS}/")


def read_files(folder: Folder, files: Sequence[str], schema: pa.Schema) -> dict[str, pa.Table]:
    """Return ledger rows by file, without files that are gone."""
    tables = {file: read_parquet(data, schema.names) for file, data in read_present(folder, files)}
    # Of a thousand small files none should be cast that needs no cast.
    return {f: table if table.schema.equals(schema) else conform(table, schema, f) for f, table in tables.items()}


def read_present(folder: Folder, files: Sequence[str]) -> list[tuple[str, bytes]]:
    """Return the contents of files, without those that are gone."""
    try:
        return list(zip(files, folder.read_many(files), strict=True))
    except FileNotFoundError:
        if len(files) == 1:
            return []
        half = len(files) // 2
        return [*read_present(folder, files[:half]), *read_present(folder, files[half:])]
