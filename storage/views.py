"""The views that SQL sees of a run or a catalog: `candidates`, `ledger`, `runs`, `grades`, `mosaics`, and no files.

`TABLES` names the views but candidates; another one is another entry, and a method of that name that gives its rows.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from surveybridge.storage.catalog_sources import run_facts, run_id
from surveybridge.storage.catalogs import BEST, Catalog, read_pointer
from surveybridge.storage.errors import StorageError
from surveybridge.storage.grades import latest_grades, read_grades
from surveybridge.storage.mosaics import decode_header
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.problems import ProblemTable
from surveybridge.storage.regions import Region
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import GRADES, MOSAIC, RUNS, candidates_schema, mosaic_schema, thumbnail_names
from surveybridge.storage.segments import read_candidates, read_rows
from surveybridge.storage.thumbnails import with_thumbnails

TABLES = ("ledger", "runs", "grades", "mosaics")
"""Views beside `candidates`; each is made only for SQL that names it."""

PIXELS = ("mean", "std", "coverage")
"""Columns of `mosaics` that are read only for SQL that names them."""

MOST_GIB = 8
"""Largest size of the thumbnails that SQL may name."""


class Views(ABC):
    """A run or a catalog as it is at one moment."""

    schema: pa.Schema
    """Schema of the candidates, including thumbnails."""

    columns: Sequence[str]
    """Columns of the candidates, without thumbnails."""

    @abstractmethod
    def candidates(
        self,
        connection: duckdb.DuckDBPyConnection,
        columns: Sequence[str],
        region: Region | None,
        top: int | None,
    ) -> None:
        """Make the view `candidates` of some columns.

        Where ranks are stored, what lies outside of the region, or ranks below `top`, need not be in it.
        """

    @abstractmethod
    def ledger(self) -> pa.Table:
        """One row a tile."""

    @abstractmethod
    def runs(self) -> pa.Table:
        """One row a run, schema `RUNS`."""

    @abstractmethod
    def grades(self) -> pa.Table:
        """Return each grader's current grade of each candidate, schema `GRADES`."""

    @abstractmethod
    def mosaics(self) -> list[tuple[Folder, list[str]]]:
        """Run folders, and the paths of the mosaics in each."""

    @abstractmethod
    def thumbnails(self, found: pa.Table) -> pa.Table:
        """`found` (with object_id, tile_id, run_id) and the thumbnails of its rows."""

    @abstractmethod
    def outdated(self) -> bool:
        """Return whether files have gone since, and others hold the same rows."""


def problem_at(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> ProblemTable:
    """The problem of a run or a published catalog; StorageError if `url` is neither."""
    folder = Folder.at(url, storage_options)
    if read_pointer(folder) is not None:
        return Catalog.open(url, storage_options).problem
    return RunFolder.open(url, storage_options).problem


def open_views(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Views:
    """Open what is at `url`; StorageError if it is neither a run nor a catalog."""
    folder = Folder.at(url, storage_options)
    if read_pointer(folder) is not None:
        return CatalogViews(folder, Catalog.open(url, storage_options))
    return RunViews(RunFolder.open(url, storage_options))


# Datasets in object storage are read before DuckDB sees them: pyarrow's `Scanner.to_reader`, which DuckDB calls, keeps
# the interpreter's lock while it waits for a mutex that Arrow holds when it describes an error; where that is Python's,
# as of a file that has just gone, the process stands still (docs/notes/2026-11-26-query-deadlock.md).


def connect(
    views: Views, sql: str, columns: Sequence[str], region: Region | None = None, top: int | None = None
) -> duckdb.DuckDBPyConnection:
    """DuckDB with `candidates` and those views that the SQL names, and no access to anything else."""
    connection = duckdb.connect(config={"autoload_known_extensions": False, "autoinstall_known_extensions": False})
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")  # it would go to stdout, among the rows
    views.candidates(connection, columns, region, top)
    lower = sql.lower()
    for name in TABLES:
        if name == "mosaics" and name in lower:
            _add_mosaics(connection, views.mosaics(), [column for column in PIXELS if column in lower])
        elif name in lower:
            connection.register(name, getattr(views, name)())
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


class RunViews(Views):
    """A run folder: its ok tiles; ranks are those of the whole run."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.schema = run.candidates_schema
        pictures = thumbnail_names(self.schema)
        self.columns = tuple(name for name in self.schema.names if name not in pictures)
        self.rows = read_rows(run.folder)
        self.files = self.rows.candidates_files()

    def candidates(
        self,
        connection: duckdb.DuckDBPyConnection,
        columns: Sequence[str],
        region: Region | None,
        top: int | None,
    ) -> None:
        """Make the view; a rank needs all rows, so all of them are read first (250 bytes each, all columns)."""
        self._check_size(columns)
        connection.register("stored_candidates", read_candidates(self.run.folder, self.files, columns, self.schema))
        connection.execute(
            # DuckDB sorts NaN above every number, but a missing score must not lead the list.
            "CREATE VIEW candidates AS SELECT * REPLACE (CAST(row_number() OVER ("
            "ORDER BY CASE WHEN isnan(score) THEN NULL ELSE score END DESC NULLS LAST, object_id"
            ") AS INTEGER) AS rank) FROM stored_candidates"
        )

    def ledger(self) -> pa.Table:
        """Implement `Views.ledger`."""
        return self.rows.current_table()

    def runs(self) -> pa.Table:
        """Implement `Views.runs`."""
        tiles = pc.sum(pc.equal(self.ledger()["status"], "ok")).as_py() or 0
        return pa.Table.from_pylist([run_facts(self.run) | {"tiles": tiles, "published": None}], schema=RUNS)

    def grades(self) -> pa.Table:
        """Implement `Views.grades`."""
        return latest_grades(read_grades(self.run))

    def mosaics(self) -> list[tuple[Folder, list[str]]]:
        """Implement `Views.mosaics`."""
        ledger = self.ledger()
        return [(self.run.folder, ledger.filter(pc.equal(ledger["status"], "ok"))["mosaic_path"].to_pylist())]

    def thumbnails(self, found: pa.Table) -> pa.Table:
        """Implement `Views.thumbnails`."""
        return with_thumbnails(self.run, found)

    def outdated(self) -> bool:
        """Implement `Views.outdated`: a compaction removes files."""
        return read_rows(self.run.folder, ()).candidates_files() != self.files

    def _check_size(self, columns: Sequence[str]) -> None:
        """Refuse SQL over thumbnails that do not fit into memory."""
        pictures = thumbnail_names(self.schema)
        pixels = sum(self.schema.field(name).type.list_size for name in columns if name in pictures)
        rows = pc.sum(self.ledger()["n_candidates"]).as_py() or 0
        gib = 4 * pixels * rows / 2**30
        if gib > MOST_GIB:
            raise StorageError(
                f"SQL over thumbnails of {rows} candidates of {self.run.url} takes {gib:.3g} GiB, at most {MOST_GIB} "
                "are read; search without them and name them in --columns, or read the run's Parquet files"
            )


class CatalogViews(Views):
    """A snapshot of a published catalog, where ranks are stored."""

    def __init__(self, folder: Folder, catalog: Catalog) -> None:
        self.folder = folder
        self.catalog = catalog
        self.schema = candidates_schema(catalog.problem)
        self.columns = tuple(catalog.schema.names)

    def candidates(
        self,
        connection: duckdb.DuckDBPyConnection,
        columns: Sequence[str],
        region: Region | None,
        top: int | None,
    ) -> None:
        """Make the view; row groups without a row that is wanted are not read."""
        names = [name for name in columns if name in self.columns]
        if top is not None and top <= BEST:
            connection.register("stored", self.catalog.best())
        else:
            dataset = self.catalog.dataset(None if region is None else region.ranges)
            where = region.to_read() if region is not None else None if top is None else pc.field("rank") <= top
            lazily = self.folder.is_local and where is None
            connection.register("stored", dataset if lazily else dataset.to_table(columns=names, filter=where))
        quoted = ", ".join(f'"{name}"' for name in names)
        connection.execute(f"CREATE VIEW candidates AS SELECT {quoted} FROM stored")

    def ledger(self) -> pa.Table:
        """Implement `Views.ledger`."""
        return self.catalog.ledger()

    def runs(self) -> pa.Table:
        """Implement `Views.runs`."""
        return pa.Table.from_pylist([dict(run) for run in self.catalog.facts["runs"]], schema=RUNS)

    def grades(self) -> pa.Table:
        """Implement `Views.grades`; the grades lie in the runs."""
        runs = self._runs(self.runs()["run_id"].to_pylist())
        return pa.concat_tables([GRADES.empty_table(), *(latest_grades(read_grades(run)) for run in runs)])

    def mosaics(self) -> list[tuple[Folder, list[str]]]:
        """Implement `Views.mosaics`."""
        ledger = self.ledger()
        return [
            (run.folder, ledger.filter(pc.equal(ledger["run_id"], run_id(run)))["mosaic_path"].to_pylist())
            for run in self._runs(self.runs()["run_id"].to_pylist())
        ]

    def thumbnails(self, found: pa.Table) -> pa.Table:
        """Implement `Views.thumbnails`; the thumbnails lie in the runs."""
        parts = [found.slice(0, 0)]
        for run in self._runs(found["run_id"].unique().to_pylist()):
            own = found.filter(pc.equal(found["run_id"], run_id(run)))
            parts.append(with_thumbnails(run, own))
        return pa.concat_tables(parts, promote_options="default").sort_by("rank")

    def outdated(self) -> bool:
        """Implement `Views.outdated`: publications remove old snapshots."""
        return Catalog.open(self.folder.url, self.folder.storage_options).folder.url != self.catalog.folder.url

    def _runs(self, ids: Iterable[str | None]) -> list[RunFolder]:
        """Open those runs of the catalog; StorageError if one is not there any more."""
        wanted = set(ids)
        urls = [run["url"] for run in self.catalog.facts["runs"] if run["run_id"] in wanted or None in wanted]
        return [RunFolder.open(url, self.folder.storage_options) for url in urls]


def _add_mosaics(
    connection: duckdb.DuckDBPyConnection, mosaics: Sequence[tuple[Folder, list[str]]], pixels: Sequence[str]
) -> None:
    """The view `mosaics`: a row a cell of 64 x 64 pixels, of the columns `PIXELS` only some."""
    names = [name for name in MOSAIC.names if name not in PIXELS or name in pixels]
    sources = []
    for number, (folder, files) in enumerate(mosaics):
        connection.register(f"mosaics_{number}", _cells(folder, files, names))
        sources.append(f"SELECT {', '.join(names)} FROM mosaics_{number}")
    connection.execute(f"CREATE VIEW mosaics AS {' UNION ALL '.join(sources)}")


def _cells(folder: Folder, files: Sequence[str], names: Sequence[str]) -> pa.Table | ds.Dataset:
    if not files:
        return MOSAIC.empty_table()
    with folder.filesystem.open(folder.path(files[0]), "rb") as handle:
        header = decode_header(handle)
    schema = mosaic_schema(header.bands, header.unit)
    paths = [folder.path(file) for file in files]
    dataset = ds.dataset(paths, schema=schema, format="parquet", filesystem=folder.filesystem)
    return dataset if folder.is_local else dataset.to_table(columns=list(names))
