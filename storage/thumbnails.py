"""Thumbnails of single candidates, read as pages ask for them: only the row groups that hold them are opened."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.runs import RunFolder, candidates_path
from surveybridge.storage.schema import conform, thumbnail_names
from surveybridge.storage.segments import columns_in, groups_of, parquet_file

TILES_AT_ONCE = 16
"""Tiles whose thumbnails are read concurrently."""


def with_thumbnails(run: RunFolder, found: pa.Table) -> pa.Table:
    """`found` (candidates of the run, with object_id and tile_id) and the thumbnails of its rows."""
    objects, tiles = found["object_id"].to_pylist(), found["tile_id"].to_pylist()
    wanted: dict[str, list[str]] = {}
    for object_id, tile_id in zip(objects, tiles, strict=True):
        wanted.setdefault(tile_id, []).append(object_id)
    reader = ThumbnailReader(run)
    with ThreadPoolExecutor(TILES_AT_ONCE) as pool:
        parts = list(pool.map(reader.read, wanted, wanted.values()))
    stamps = pa.concat_tables([reader.schema.empty_table(), *parts])
    place = {object_id: row for row, object_id in enumerate(stamps["object_id"].to_pylist())}
    stamps = stamps.take(pa.array([place[object_id] for object_id in objects], pa.int64()))
    for field in reader.schema:
        if field.name != "object_id":
            found = found.append_column(field, stamps[field.name])
    return found


class ThumbnailReader:
    """Reads thumbnails of a run whose tiles may be compacted meanwhile. Threads may share it."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        candidates = run.candidates_schema
        wanted = ("object_id", *thumbnail_names(candidates))
        self.schema = pa.schema([field for field in candidates if field.name in wanted])
        self._lock = threading.Lock()
        self._files = self._ledger_files()

    def read(self, tile_id: str, object_ids: Sequence[str]) -> pa.Table:
        """Thumbnails of some candidates of one tile.

        Parameters
        ----------
        tile_id : str
            The tile that holds them.
        object_ids : sequence of str
            In any order; those that the tile does not have are left out.

        Returns
        -------
        pyarrow.Table
            Columns object_id and those of the thumbnails.
        """
        file, before = self._file_of(tile_id), ""
        while file != before:
            try:
                return self._read(file, tile_id, object_ids)
            except FileNotFoundError:
                with self._lock:  # a compaction has moved it: then the ledger names another file by now
                    self._files = self._ledger_files()
                file, before = self._file_of(tile_id), file
        raise StorageError(f"tile {tile_id}: {file} is not in {self.run.url}; translate the tile again")

    def _file_of(self, tile_id: str) -> str:
        with self._lock:
            return self._files.get(tile_id) or candidates_path(tile_id)

    def _ledger_files(self) -> dict[str, str]:
        """Return where the candidates of each tile are now."""
        ledger = self.run.ledger(["tile_id", "candidates_path"])
        return dict(zip(ledger["tile_id"].to_pylist(), ledger["candidates_path"].to_pylist(), strict=True))

    def _read(self, path: str, tile_id: str, object_ids: Sequence[str]) -> pa.Table:
        wanted = pa.array(object_ids, pa.string())
        parts = [self.schema.empty_table()]
        with parquet_file(self.run.folder, path) as file:
            present = columns_in(file, self.schema)
            for group in groups_of(file.metadata, [tile_id]):
                names = file.read_row_group(group, ["object_id", "tile_id"], use_threads=False)
                hit = pc.and_(pc.is_in(names["object_id"], value_set=wanted), pc.equal(names["tile_id"], tile_id))
                if pc.any(hit).as_py():
                    stamps = file.read_row_group(group, present, use_threads=False)
                    parts.append(conform(stamps.filter(hit), self.schema, path))
        return pa.concat_tables(parts)


def thumbnails(
    image: SurveyImage, column: NDArray[np.int64], line: NDArray[np.int64], size: int = 64
) -> NDArray[np.float32]:
    """Windows [N, C, size, size] around pixels, NaN where masked or beyond the image."""
    half = size // 2
    flux = np.where(image.valid, image.flux, np.nan)
    padded = np.pad(flux, ((0, 0), (half, half), (half, half)), constant_values=np.nan)
    return np.stack([padded[:, y : y + size, x : x + size] for y, x in zip(line, column, strict=True)])
