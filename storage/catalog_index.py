"""The index of a publication: position, score and name of every candidate, on disk; what partitions are made from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from surveybridge.storage.border_matches import NEAR, numbered, settle
from surveybridge.storage.hats import CELL_ORDER, MARGIN_ORDER, Pixel, border
from surveybridge.storage.sky import HEALPIX_ORDER
from surveybridge.storage.systems import RANKS, ranked_rows

MEMORY = "256MB"
"""Memory that DuckDB may take; beyond it DuckDB spills to the folder of the index."""

MARGIN_SHIFT, CELL_SHIFT = 2 * (HEALPIX_ORDER - MARGIN_ORDER), 2 * (HEALPIX_ORDER - CELL_ORDER)


@dataclass(frozen=True)
class Part:
    """What a chunk contributes.

    Parameters
    ----------
    rows : pyarrow.Table
        Columns object_id, system_id, kind, _healpix_29, score, tile_id, owned (by position) and inside (what is
        published).
    near : pyarrow.Table
        Of these the ones near another field, from `near_rows`.
    """

    rows: pa.Table
    near: pa.Table


@dataclass(frozen=True)
class Members:
    """Rows of a partition, or of its margin, with their ranks, tiles and chunks, by (_healpix_29, object_id)."""

    rows: pa.Table

    @property
    def chunks(self) -> set[int]:
        """Numbers of the chunks that hold them."""
        return {int(number) for number in self.rows["chunk"].unique().to_pylist()}


class Index:
    """The index, in files below a folder. As a context manager it is closed at the end.

    Parameters
    ----------
    folder : str
        Empty, on this machine, with room for about 100 bytes a row.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._connection = duckdb.connect(Path(folder) / "index.duckdb")
        for setting in (
            f"memory_limit = '{MEMORY}'",
            "preserve_insertion_order = false",
            "threads = 2",
            "enable_progress_bar = false",
        ):
            self._connection.execute(f"SET {setting}")
        self._connection.execute(
            "CREATE TABLE rows (row BIGINT, object_id VARCHAR, system_id VARCHAR, kind VARCHAR, "
            "_healpix_29 BIGINT, score DOUBLE, tile_id VARCHAR, owned BOOLEAN, inside BOOLEAN, chunk INTEGER)"
        )
        self._connection.register("nothing", NEAR.empty_table())
        self._connection.execute("CREATE TABLE near AS SELECT * FROM nothing")
        self._rows = 0

    def __enter__(self) -> Index:
        """Do nothing: the index is open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        self._connection.close()

    def add(self, part: Part, chunk: int) -> None:
        """Add what a chunk contributes."""
        numbers = pa.array(np.arange(self._rows, self._rows + part.rows.num_rows))
        self._connection.register("part", part.rows.add_column(0, "row", numbers))
        self._connection.execute(
            "INSERT INTO rows SELECT row, object_id, system_id, kind, _healpix_29, score, tile_id, owned, inside, "
            "$chunk FROM part",
            {"chunk": chunk},
        )
        self._connection.register("part", numbered(part.near, self._rows))
        self._connection.execute("INSERT INTO near SELECT * FROM part")
        self._connection.unregister("part")
        self._rows += part.rows.num_rows

    def settle(self) -> int:
        """Leave one row of every object, and of these what lies inside; returns how many rows of others there were."""
        if self._fetch("SELECT count(*) FROM near")[0][0]:
            rows, systems = settle(self._connection)
            self._connection.register("settled", rows)
            self._connection.execute("UPDATE rows SET owned = settled.owned FROM settled WHERE rows.row = settled.row")
            self._connection.unregister("settled")
            self._connection.register("systems", systems)
            self._connection.execute("UPDATE rows SET system_id = new FROM systems WHERE system_id = old")
            self._connection.unregister("systems")
        others = int(self._fetch("SELECT count(*) FROM rows WHERE inside AND NOT owned")[0][0])
        self._connection.execute("DELETE FROM rows WHERE NOT (inside AND owned)")
        return others

    def twice(self) -> tuple[str, list[tuple[str, int]], int] | None:
        """An object that is there more than once, tile and chunk of each of its rows, and how many such there are."""
        names = "SELECT object_id FROM rows GROUP BY object_id HAVING count(*) > 1"
        found = self._fetch(f"SELECT min(object_id), count(*) FROM ({names})")[0]
        if not found[1]:
            return None
        places = "SELECT tile_id, chunk FROM rows WHERE object_id = $name ORDER BY chunk, tile_id"
        return found[0], self._fetch(places, {"name": found[0]}), found[1]

    def cells(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Cells of order `CELL_ORDER` with rows, ascending, and the rows in each."""
        found = self._connection.sql(
            f"SELECT _healpix_29 >> {CELL_SHIFT} AS cell, count(*) AS n FROM rows GROUP BY cell ORDER BY cell"
        ).fetchnumpy()
        return found["cell"].astype(np.int64), found["n"].astype(np.int64)

    def partition(self, pixels: Sequence[Pixel]) -> Iterator[tuple[Pixel, Members, Members]]:
        """Rank all systems (`storage.systems`), and give each partition its rows and those of its margin."""
        ranks = ", ".join(RANKS)
        empty = ", ".join(f"NULL::INTEGER AS {name}" for name in RANKS)
        source = f"(SELECT _healpix_29, object_id, system_id, kind, tile_id, score, chunk, {empty} FROM rows)"
        self._connection.execute(
            f"CREATE TABLE ranked AS SELECT _healpix_29, object_id, system_id, tile_id, score, chunk, {ranks} "
            f"FROM ({ranked_rows(source)}) ORDER BY _healpix_29, object_id"
        )
        borders = [border(pixel) for pixel in pixels]
        number = np.repeat(np.arange(len(pixels)), [len(cells) for cells in borders])
        self._connection.register("borders", pa.table({"pixel": number, "cell": np.concatenate(borders)}))
        self._connection.execute(
            f"CREATE TABLE margins AS SELECT ranked.*, pixel FROM ranked JOIN borders "
            f"ON _healpix_29 >> {MARGIN_SHIFT} = cell ORDER BY pixel, _healpix_29, object_id"
        )
        self._connection.unregister("borders")
        for place, pixel in enumerate(pixels):
            first, last = pixel.range
            yield (
                pixel,
                self._members(f"ranked WHERE _healpix_29 BETWEEN {first} AND {last}"),
                self._members(f"margins WHERE pixel = {place}"),
            )

    def _members(self, where: str) -> Members:
        columns = ", ".join(("object_id", "system_id", "tile_id", "chunk", "score", *RANKS))
        sql = f"SELECT {columns} FROM {where} ORDER BY _healpix_29, object_id"
        return Members(self._connection.sql(sql).to_arrow_table())

    def _fetch(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[Any]:
        return self._connection.execute(sql, dict(parameters or {})).fetchall()
