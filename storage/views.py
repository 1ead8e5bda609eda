"""The views that SQL sees of runs or a catalog: `candidates`, `ledger`, `runs`, `grades`, `mosaics`, and no files.

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

from surveybridge.storage.border_matches import owned_rows, renamed
from surveybridge.storage.catalog_sources import problem_of, run_facts, run_id
from surveybridge.storage.catalogs import BEST, Catalog, read_pointer
from surveybridge.storage.errors import StorageError
from surveybridge.storage.grades import latest_grades, read_grades
from surveybridge.storage.mosaics import decode_header
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.problems import ProblemTable
from surveybridge.storage.regions import Region
from surveybridge.storage.run_cores import ownership_of
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import (
    CATALOG_LEDGER,
    MOSAIC,
    RUNS,
    candidates_schema,
    mosaic_schema,
    thumbnail_names,
)
from surveybridge.storage.segments import read_candidates, read_rows
from surveybridge.storage.systems import ranked_rows
from surveybridge.storage.thumbnails import with_thumbnails

TABLES = ("ledger", "runs", "grades", "mosaics")
"""Views beside `candidates`; each is made only for SQL that names it."""

PIXELS = ("mean", "std", "coverage")
"""Columns of `mosaics` that are read only for SQL that names them."""

MOST_GIB = 8
"""Largest size of the thumbnails that SQL may name."""


Urls = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A run or a published catalog, or several runs."""


class Views(ABC):
    """Runs or a catalog as they are at one moment."""

    name: str
    """What it is, for messages."""

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
    def folders(self, ids: Iterable[str | None] = (None,)) -> list[RunFolder]:
        """Runs with these ids (None: all); StorageError if one is not there any more."""

    def thumbnails(self, found: pa.Table) -> pa.Table:
        """`found` (with object_id, tile_id, run_id) and the thumbnails of its rows, which lie in the runs."""
        folders = self.folders(found["run_id"].unique().to_pylist())
        if len(folders) == 1:
            return with_thumbnails(folders[0], found)
        parts = [found.slice(0, 0)]
        for run in folders:
            parts.append(with_thumbnails(run, found.filter(pc.equal(found["run_id"], run_id(run)))))
        return pa.concat_tables(parts, promote_options="default").sort_by(
            [("rank", "ascending"), ("system_rank", "ascending")]
        )

    @abstractmethod
    def outdated(self) -> bool:
        """Return whether files have gone since, and others hold the same rows."""


def problem_at(urls: Urls, storage_options: Mapping[str, Any] | None = None) -> ProblemTable:
    """The problem of runs or a published catalog; StorageError if they are neither."""
    first = _listed(urls)[0]
    folder = Folder.at(first, storage_options)
    if read_pointer(folder) is not None:
        return Catalog.open(first, storage_options).problem
    return RunFolder.open(first, storage_options).problem


def runs_at(urls: Urls, storage_options: Mapping[str, Any] | None = None) -> tuple[str, list[RunFolder]]:
    """What is at `urls` in words, and its runs: those given, or those of the catalog that is given; errors as below."""
    listed = _listed(urls)
    catalog = _only_catalog(listed, storage_options)
    if catalog is not None:
        return catalog.name, catalog.folders()
    return ", ".join(str(url) for url in listed), [RunFolder.open(url, storage_options) for url in listed]


def open_views(urls: Urls, storage_options: Mapping[str, Any] | None = None) -> Views:
    """Open what is at `urls`.

    Raises
    ------
    StorageError
        If it is neither a catalog nor runs, or runs of different problems, or two with one id.
    """
    listed = _listed(urls)
    catalog = _only_catalog(listed, storage_options)
    return catalog or RunViews([RunFolder.open(url, storage_options) for url in listed])


def _only_catalog(
    listed: Sequence[str | os.PathLike[str]], storage_options: Mapping[str, Any] | None
) -> CatalogViews | None:
    """The catalog that is given; None where runs are."""
    folders = [Folder.at(url, storage_options) for url in listed]
    catalogs = [folder for folder in folders if read_pointer(folder) is not None]
    if catalogs and len(folders) > 1:
        raise StorageError(
            f"{catalogs[0].url} is a catalog but {len(folders)} addresses are given; give one catalog, or only runs"
        )
    return CatalogViews(catalogs[0], Catalog.open(listed[0], storage_options)) if catalogs else None


def _listed(urls: Urls) -> list[str | os.PathLike[str]]:
    listed = [urls] if isinstance(urls, str | os.PathLike) else list(urls)
    if not listed or len({os.fspath(url) for url in listed}) < len(listed):
        raise StorageError(f"runs: {', '.join(str(url) for url in listed) or 'none'}; give at least one, and each once")
    return listed


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
    """Run folders: their ok tiles, of an object in several fields the owner's row; ranks are those of all together."""

    def __init__(self, runs: Sequence[RunFolder]) -> None:
        problem_of(runs)
        ids = [run_id(run) for run in runs]
        for one, run in enumerate(runs):
            if ids[one] in ids[:one]:
                first = runs[ids.index(ids[one])]
                raise StorageError(f"{first.url} and {run.url} are both run {ids[one]}; give one of them")
        self.name = ", ".join(run.url for run in runs)
        self._folders = list(runs)
        self.schema = runs[0].candidates_schema
        pictures = thumbnail_names(self.schema)
        self.columns = tuple(name for name in self.schema.names if name not in pictures)
        self.rows = [read_rows(run.folder) for run in runs]
        self.files = [rows.candidates_files() for rows in self.rows]

    def candidates(
        self,
        connection: duckdb.DuckDBPyConnection,
        columns: Sequence[str],
        region: Region | None,
        top: int | None,
    ) -> None:
        """Make the view; a rank needs all rows, so all of them are read first (250 bytes each, all columns)."""
        self._check_size(columns)
        tables = [
            read_candidates(run.folder, files, columns, self.schema)
            for run, files in zip(self._folders, self.files, strict=True)
        ]
        ledgers = [rows.current_table() for rows in self.rows]
        ok = [ledger.filter(pc.equal(ledger["status"], "ok")) for ledger in ledgers]
        ownership = ownership_of(list(zip(self._folders, ok, strict=True)))
        if ownership is not None:
            owned, systems = owned_rows(ownership, tables)
            tables = [table.filter(pa.array(mask)) for table, mask in zip(tables, owned, strict=True)]
            place = tables[0].column_names.index("system_id")
            tables = [table.set_column(place, "system_id", renamed(table["system_id"], systems)) for table in tables]
        connection.register("stored_candidates", pa.concat_tables(tables))
        connection.execute(f"CREATE VIEW candidates AS {ranked_rows('stored_candidates')}")

    def ledger(self) -> pa.Table:
        """Implement `Views.ledger`; of several runs with the column run_id."""
        tables = [rows.current_table() for rows in self.rows]
        if len(tables) == 1:
            return tables[0]
        return pa.concat_tables(
            table.append_column(CATALOG_LEDGER.field("run_id"), pa.array([run_id(run)] * table.num_rows, pa.string()))
            for run, table in zip(self._folders, tables, strict=True)
        )

    def runs(self) -> pa.Table:
        """Implement `Views.runs`."""
        facts = []
        for run, rows in zip(self._folders, self.rows, strict=True):
            tiles = pc.sum(pc.equal(rows.current_table()["status"], "ok")).as_py() or 0
            facts.append(run_facts(run) | {"tiles": tiles, "published": None})
        return pa.Table.from_pylist(facts, schema=RUNS)

    def grades(self) -> pa.Table:
        """Implement `Views.grades`."""
        return latest_grades(read_grades(*self._folders))

    def mosaics(self) -> list[tuple[Folder, list[str]]]:
        """Implement `Views.mosaics`."""
        found = []
        for run, rows in zip(self._folders, self.rows, strict=True):
            ledger = rows.current_table()
            paths = ledger.filter(pc.equal(ledger["status"], "ok"))["mosaic_path"].to_pylist()
            found.append((run.folder, paths))
        return found

    def folders(self, ids: Iterable[str | None] = (None,)) -> list[RunFolder]:
        """Implement `Views.folders`; a run alone has all rows, whatever id they state."""
        wanted = set(ids)
        alone = len(self._folders) == 1
        return [run for run in self._folders if alone or None in wanted or run_id(run) in wanted]

    def outdated(self) -> bool:
        """Implement `Views.outdated`: a compaction removes files."""
        return [read_rows(run.folder, ()).candidates_files() for run in self._folders] != self.files

    def _check_size(self, columns: Sequence[str]) -> None:
        """Refuse SQL over thumbnails that do not fit into memory."""
        pictures = thumbnail_names(self.schema)
        pixels = sum(self.schema.field(name).type.list_size for name in columns if name in pictures)
        rows = pc.sum(self.ledger()["n_candidates"]).as_py() or 0
        gib = 4 * pixels * rows / 2**30
        if gib > MOST_GIB:
            raise StorageError(
                f"SQL over thumbnails of {rows} candidates of {self.name} takes {gib:.3g} GiB, at most {MOST_GIB} "
                "are read; search without them and name them in --columns, or read the runs' Parquet files"
            )


class CatalogViews(Views):
    """A snapshot of a published catalog, where ranks are stored."""

    def __init__(self, folder: Folder, catalog: Catalog) -> None:
        self.folder = folder
        self.catalog = catalog
        self.name = folder.url
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
        return latest_grades(read_grades(*self.folders()))

    def mosaics(self) -> list[tuple[Folder, list[str]]]:
        """Implement `Views.mosaics`."""
        ledger = self.ledger()
        return [
            (run.folder, ledger.filter(pc.equal(ledger["run_id"], run_id(run)))["mosaic_path"].to_pylist())
            for run in self.folders()
        ]

    def folders(self, ids: Iterable[str | None] = (None,)) -> list[RunFolder]:
        """Implement `Views.folders`."""
        wanted = set(ids)
        urls = [run["url"] for run in self.catalog.facts["runs"] if run["run_id"] in wanted or None in wanted]
        return [RunFolder.open(url, self.folder.storage_options) for url in urls]

    def outdated(self) -> bool:
        """Implement `Views.outdated`: publications remove old snapshots."""
        return Catalog.open(self.folder.url, self.folder.storage_options).folder.url != self.catalog.folder.url


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
