"""Compaction of a run folder: ledger rows and candidates of finished tiles move into segments (`storage.segments`).

Only the holder of the run's lease compacts. Each step writes the new file, then removes the old ones, under names that
a repetition gives again; whatever a kill leaves is read correctly, and `tidy` removes it.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from surveybridge.storage.objectstore import Folder, check_name
from surveybridge.storage.parquet import (
    parquet_bytes,
    parquet_writer,
    read_parquet,
    row_group_size,
    string_lengths,
    texts,
)
from surveybridge.storage.schema import RunSchemas, conform
from surveybridge.storage.segments import (
    CANDIDATES_SEGMENTS,
    LEDGER_SEGMENTS,
    ORDER,
    in_segment,
    ledger_segments,
    read_files,
    read_present,
    read_rows,
)

log = logging.getLogger(__name__)

SEGMENT_BYTES = 256 << 20
"""A candidates segment takes no further tile beyond this."""

FAN_IN = 32
"""So many ledger segments of one level are merged: 10^7 tiles in batches of 50 are about 130 files."""

MERGED_ROWS = 1 << 18
"""Largest number of rows in a merged ledger segment: 80 MB in memory."""

_READ_AT_ONCE = 8
"""Candidates files of tiles that are fetched together."""


def compact(folder: Folder, tile_ids: Iterable[str], schemas: RunSchemas) -> int:
    """Move rows and candidates of tiles into segments; tiles that have no row of their own are passed over.

    Parameters
    ----------
    folder : Folder
        The run folder; the caller holds its lease.
    tile_ids : iterable of str
        Tiles that no worker has in flight.
    schemas : RunSchemas
        Of the files that the run writes.

    Returns
    -------
    int
        Tiles that were moved.
    """
    files = [f"ledger/{check_name(tile, 'tile id')}.parquet" for tile in sorted(set(tile_ids))]
    rows = list(read_files(folder, files, schemas.ledger).values())
    moved = 0
    batch: list[pa.Table] = []
    parts: list[bytes] = []
    for row, data in _with_candidates(folder, rows):
        if parts and sum(map(len, parts)) + len(data or b"") > SEGMENT_BYTES:
            moved += _write_segment(folder, batch, parts, schemas)
            batch, parts = [], []
        batch.append(row)
        if data is not None:
            parts.append(data)
        del data
    if batch:
        moved += _write_segment(folder, batch, parts, schemas)
    _merge_levels(folder, schemas)
    return moved


def tidy(folder: Folder, schemas: RunSchemas) -> None:
    """Leave every row that counts exactly once on disk, and nothing else.

    Removes what a killed compaction left, rewrites segments that hold rows of tiles done again since, and merges
    levels.

    Parameters
    ----------
    folder : Folder
        The run folder; the caller holds its lease, and no tile is in flight.
    schemas : RunSchemas
        Of the files that the run writes.
    """
    rows = read_rows(folder, ["status"])
    # Candidates are listed after the ledger: a row's candidates are written before it.
    loose = [f"candidates/{name}" for name in folder.names("candidates", suffix=".parquet")]
    segments = [f"{CANDIDATES_SEGMENTS}/{name}" for name in folder.names(CANDIDATES_SEGMENTS, suffix=".parquet")]
    path = rows.table["candidates_path"].combine_chunks()
    whole = _whole(folder, rows.table["tile_id"].combine_chunks(), path, {*loose, *segments})
    keep = np.zeros(len(whole), bool)
    keep[np.flatnonzero(whole)[rows.select(whole).current()]] = True

    renamed = {
        file: _rewrite_candidates(folder, file, stale, schemas)
        for file, stale in rows.select(whole).candidates_files().items()
        if stale
    }
    moves = pc.is_in(path, pa.array(list(renamed), pa.string())).to_numpy(zero_copy_only=False)
    changed = {rows.files[i]: keep[rows.source == i] for i in np.unique(rows.source[~keep | moves])}
    written = {
        _rewrite_rows(folder, file, rest, renamed, schemas) for file, rest in changed.items() if in_segment(file)
    }
    folder.delete_many([file for file in changed if file not in written])  # one killed before may have written it

    tiles, path = (column.to_pylist() for column in rows.table.filter(keep).select(["tile_id", "candidates_path"]))
    used = {renamed.get(file, file) for file in path}
    known = {f"candidates/{tile}.parquet" for tile in tiles}
    # Candidates of a tile without any row are left alone: the process that does the tile will write them again.
    left = [file for file in segments if file not in used] + [file for file in loose if file in known - used]
    folder.delete_many(left)
    _merge_levels(folder, schemas)


def _with_candidates(folder: Folder, rows: Sequence[pa.Table]) -> Iterator[tuple[pa.Table, bytes | None]]:
    """Ledger rows with the bytes of their candidates file, None where the tile failed."""
    for start in range(0, len(rows), _READ_AT_ONCE):
        some = [(row, row["candidates_path"][0].as_py()) for row in rows[start : start + _READ_AT_ONCE]]
        data = dict(read_present(folder, [path for _, path in some if path]))
        for row, path in some:
            if path is None:
                yield row, None
            elif path in data:
                yield row, data.pop(path)
            else:
                log.warning("%s: tile %s is not compacted: %s is gone", folder.url, row["tile_id"][0].as_py(), path)


def _whole(folder: Folder, tile: pa.Array, path: pa.Array, files: set[str]) -> NDArray[np.bool_]:
    """Return which rows have their candidates, or are the only ones of their tile that name any.

    A worker that was thought dead may commit a tile while the same tile is compacted: then its row outlives the file
    that it names, but the candidates are in the segment.
    """
    present = pc.or_(pc.is_null(path), pc.is_in(path, pa.array(sorted(files), pa.string())))
    others = tile.filter(pc.and_(present, pc.is_valid(path)))
    for name, file in zip(
        tile.filter(pc.invert(present)).to_pylist(), path.filter(pc.invert(present)).to_pylist(), strict=True
    ):
        log.warning("%s: a ledger row of tile %s names %s, which is gone", folder.url, name, file)
    return np.asarray(pc.or_(present, pc.invert(pc.is_in(tile, others))).to_numpy(zero_copy_only=False))


def _write_segment(folder: Folder, rows: Sequence[pa.Table], parts: list[bytes], schemas: RunSchemas) -> int:
    """Write candidates, then ledger rows that name them, then remove what they replace."""
    table = pa.concat_tables(rows).combine_chunks()
    path = table["candidates_path"].combine_chunks()
    if parts:
        name = f"{CANDIDATES_SEGMENTS}/{_name(table)}.parquet"
        folder.put(_join_candidates(parts, schemas), name)
        table = _with_paths(table, {old: name for old in path.drop_null().to_pylist()})
    _put_rows(folder, table, level=0)
    folder.delete_many([f"ledger/{tile}.parquet" for tile in table["tile_id"].to_pylist()])
    folder.delete_many(path.drop_null().to_pylist())
    return int(table.num_rows)


def _join_candidates(parts: list[bytes], schemas: RunSchemas, stale: Sequence[str] = ()) -> bytes:
    """One VOParquet file of several (which are dropped from `parts` on the way), without the rows of stale tiles."""
    schema = schemas.candidates
    assert schema is not None, "a run that makes maps only has no candidates files"
    lengths = string_lengths(read_parquet(data, texts(schema)) for data in parts)
    with tempfile.TemporaryFile() as sink:
        with parquet_writer(sink, schema, lengths) as writer:
            while parts:
                file = pq.ParquetFile(pa.BufferReader(parts.pop(0)))
                for i in range(file.num_row_groups):
                    group = conform(file.read_row_group(i), schema, "candidates")
                    if stale:
                        group = group.filter(pc.invert(pc.is_in(group["tile_id"], pa.array(stale, pa.string()))))
                    if group.num_rows:
                        writer.write_table(group, row_group_size=row_group_size(schema))
        sink.seek(0)
        return sink.read()


def _rewrite_candidates(folder: Folder, file: str, stale: Sequence[str], schemas: RunSchemas) -> str:
    """Write a candidates segment again without the rows of some tiles; returns the new name."""
    digest = hashlib.sha256(repr((file, list(stale))).encode()).hexdigest()[:20]
    name = f"{CANDIDATES_SEGMENTS}/{digest}.parquet"
    folder.put(_join_candidates([folder.read(file)], schemas, stale), name)
    return name


def _rewrite_rows(
    folder: Folder, file: str, keep: NDArray[np.bool_], renamed: Mapping[str, str], schemas: RunSchemas
) -> str | None:
    """Write a ledger segment again with the rows that count and the new names of their candidates; its new name."""
    table = conform(read_parquet(folder.read(file)), schemas.ledger, file).filter(pa.array(keep))
    return _put_rows(folder, _with_paths(table, renamed), level=_level(file)) if table.num_rows else None


def _merge_levels(folder: Folder, schemas: RunSchemas) -> None:
    """Merge ledger segments of one level into few of the next, as long as there are many of a level."""
    levels: dict[int, list[str]] = defaultdict(list)
    for file in ledger_segments(folder):
        levels[_level(file)].append(file)
    level = 0
    while level <= max(levels, default=-1):
        files = levels[level]
        for group in _packed(files) if len(files) >= FAN_IN else []:
            if len(group) > 1:
                tables = [
                    conform(read_parquet(data), schemas.ledger, "ledger rows") for data in folder.read_many(group)
                ]
                merged = pa.concat_tables(tables).combine_chunks()
                levels[level + 1].append(_put_rows(folder, merged.sort_by("tile_id"), level + 1))
                folder.delete_many(group)
        level += 1


def _packed(files: Sequence[str]) -> list[list[str]]:
    """Ledger segments in groups of at most `MERGED_ROWS` rows, or of one."""
    groups: list[list[str]] = []
    total = 0
    for file in files:
        rows = int(file.rsplit("/", 1)[-1].split("-")[1])
        if not groups or total + rows > MERGED_ROWS:
            groups.append([])
            total = 0
        groups[-1].append(file)
        total += rows
    return groups


def _level(file: str) -> int:
    return int(file.rsplit("/", 1)[-1].split("-")[0])


def _put_rows(folder: Folder, table: pa.Table, level: int) -> str:
    file = f"{LEDGER_SEGMENTS}/{level}-{table.num_rows}-{_name(table)}.parquet"
    folder.put(parquet_bytes(table), file)
    return file


def _name(table: pa.Table) -> str:
    """A name that other rows would not have, and that a repetition of the same step gives again."""
    digest = hashlib.sha256()
    for row in zip(*(table[name].to_pylist() for name in ORDER), strict=True):
        digest.update(repr(row).encode())
    return digest.hexdigest()[:20]


def _with_paths(table: pa.Table, renamed: Mapping[str, str]) -> pa.Table:
    """Ledger rows whose candidates lie elsewhere now."""
    index = table.schema.get_field_index("candidates_path")
    paths: list[Any] = [renamed.get(path, path) for path in table["candidates_path"].to_pylist()]
    return table.set_column(index, table.schema.field(index), pa.array(paths, pa.string()))
