"""Questions to a run's candidates: the top of the list, a cone on the sky, or SQL (DuckDB)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from storage.errors import StorageError
from storage.objectstore import check_name
from storage.runs import READ_TRIES, RunFolder
from storage.schema import CANDIDATES, THUMBNAILS
from storage.segments import LedgerRows, candidates_dataset, read_rows
from storage.sky import check_cone, cone_ranges

# Great-circle distance in arcsec, haversine form: exact at small separations. Parameters: ra, dec in degrees.
_SEPARATION = """
    2 * 3600 * degrees(asin(least(1.0, sqrt(
        pow(sin(radians(dec - $dec) / 2), 2)
        + cos(radians(dec)) * cos(radians($dec)) * pow(sin(radians(ra - $ra) / 2), 2)
    ))))
"""


def query(
    run_url: str | os.PathLike[str],
    cone: tuple[float, float, float] | None = None,
    top: int | None = None,
    sql: str | None = None,
    *,
    thumbnails: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Candidates of a run's ok tiles, highest score first.

    Parameters
    ----------
    run_url : str
        Run folder, local or s3://.
    cone : (ra, dec, radius), optional
        ICRS degrees and arcsec; adds the column `separation`, arcsec.
    top : int, optional
        At most so many rows.
    sql : str, optional
        One SELECT over the views `candidates` and `ledger`, instead of `cone` and `top`. It sees nothing else: no
        files, no network. `candidates` has those thumbnails that the SQL names.
    thumbnails : bool
        Also return the thumbnails of the rows found (never part of the search; `sql` returns what it selects).
    storage_options : mapping, optional
        Arguments of the fsspec filesystem.

    Returns
    -------
    pyarrow.Table
        Columns of `CANDIDATES`; `rank` counts from 1 by falling score over the whole run, ties by object_id.

    Raises
    ------
    StorageError
        If `run_url` is not a run folder, the cone is not one, or the SQL is wrong.
    """
    run = RunFolder.open(run_url, storage_options)
    if sql is not None and (cone is not None or top is not None):
        raise StorageError("--sql was given with --cone or --top; put them into the SQL (WHERE, LIMIT)")
    if top is not None and top < 0:
        raise StorageError(f"top {top} is below 0; give a number of rows")
    if cone is not None:
        check_cone(*cone)
    columns = [name for name in CANDIDATES.names if name not in THUMBNAILS or name in (sql or "").lower()]
    for left in reversed(range(READ_TRIES)):
        rows = read_rows(run.folder)
        files = rows.candidates_files()
        try:
            with _connect(run, rows, files, columns) as connection:
                if sql is not None:
                    return _select(connection, sql)
                found = _search(connection, cone, top)
            return _with_thumbnails(run, rows, files, found) if thumbnails else found
        except Exception:
            # A compaction removes files that this reads, and then others hold the same rows.
            if not left or read_rows(run.folder, ()).candidates_files() == files:
                raise
    raise AssertionError("unreachable")


def _connect(
    run: RunFolder, rows: LedgerRows, files: Mapping[str, Sequence[str]], columns: Sequence[str]
) -> duckdb.DuckDBPyConnection:
    """DuckDB with the views `candidates` and `ledger`, and no access to anything else."""
    connection = duckdb.connect(config={"autoload_known_extensions": False, "autoinstall_known_extensions": False})
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("ledger", rows.current_table())
    sources = []
    for number, (names, stale) in enumerate(_groups(files)):
        connection.register(f"candidates_{number}", _source(run, names, columns))
        listed = ", ".join(f"'{check_name(tile, 'tile id')}'" for tile in stale)
        quoted = ", ".join(f'"{name}"' for name in columns)
        sources.append(
            f"SELECT {quoted} FROM candidates_{number}" + (f" WHERE tile_id NOT IN ({listed})" if stale else "")
        )
    connection.execute(f"CREATE VIEW stored_candidates AS {' UNION ALL '.join(sources)}")
    connection.execute(
        # DuckDB sorts NaN above every number: a score that is none must not lead the list.
        "CREATE VIEW candidates AS SELECT * REPLACE (CAST(row_number() OVER ("
        "ORDER BY CASE WHEN isnan(score) THEN NULL ELSE score END DESC NULLS LAST, object_id"
        ") AS INTEGER) AS rank) FROM stored_candidates"
    )
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _groups(files: Mapping[str, Sequence[str]]) -> list[tuple[list[str], Sequence[str]]]:
    """Files with the tiles to leave out of them: all files without such tiles together, each other one alone."""
    whole = [name for name, stale in files.items() if not stale]
    return [(whole, ()), *(([name], stale) for name, stale in files.items() if stale)]


def _source(run: RunFolder, files: Sequence[str], columns: Sequence[str]) -> ds.Dataset | pa.Table:
    """What DuckDB scans: local files as it needs them, those of object storage read beforehand.

    pyarrow's `Scanner.to_reader`, which DuckDB calls, keeps the interpreter's lock while it waits for a mutex that
    Arrow holds when it describes an error; where that is Python's, as of a file that has just gone from object
    storage, the process stands still (docs/notes/2026-11-26-query-deadlock.md).
    """
    if not files:
        return CANDIDATES.empty_table()
    dataset = candidates_dataset(run.folder, files)
    return dataset if run.folder.is_local else dataset.to_table(columns=list(columns))


def _search(
    connection: duckdb.DuckDBPyConnection, cone: tuple[float, float, float] | None, top: int | None
) -> pa.Table:
    source, parameters = "SELECT * FROM candidates", {}
    if cone is not None:
        ra, dec, radius = cone
        cells = " OR ".join(f"_healpix_29 BETWEEN {first} AND {last}" for first, last in cone_ranges(ra, dec, radius))
        source = (
            f"SELECT * FROM (SELECT *, {_SEPARATION} AS separation FROM candidates WHERE {cells}) "
            "WHERE separation <= $radius"
        )
        parameters = {"ra": ra, "dec": dec, "radius": radius}
    limit = "" if top is None else f" LIMIT {int(top)}"
    return connection.sql(f"{source} ORDER BY rank{limit}", params=parameters).to_arrow_table()


def _select(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    try:
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
            raise StorageError(f"SQL is {kinds}; give one SELECT over the views candidates and ledger")
        return connection.sql(statements[0].query).to_arrow_table()
    except duckdb.Error as error:
        reason = " ".join(str(error).split("\n\nLINE")[0].split())
        raise StorageError(f"SQL: {reason}; the views are candidates and ledger") from error


def _with_thumbnails(run: RunFolder, rows: LedgerRows, files: Mapping[str, Sequence[str]], found: pa.Table) -> pa.Table:
    """`found` with the thumbnails of its rows, read from the files of their tiles only."""
    wanted = found["object_id"]
    ledger = rows.current_table()
    tiles = found["tile_id"].combine_chunks().unique()
    touched = set(ledger.filter(pc.is_in(ledger["tile_id"], tiles))["candidates_path"].to_pylist())
    parts = [CANDIDATES.empty_table().select(["object_id", *THUMBNAILS])]
    for names, stale in _groups({name: files[name] for name in files if name in touched}):
        if names:
            here = pc.field("tile_id").isin(tiles) & ~pc.field("tile_id").isin(pa.array(stale, pa.string()))
            condition = here & pc.field("object_id").isin(wanted.combine_chunks())
            columns = ["object_id", *THUMBNAILS]
            parts.append(candidates_dataset(run.folder, names).to_table(columns=columns, filter=condition))
    stamps = pa.concat_tables(parts)
    place = {object_id: row for row, object_id in enumerate(stamps["object_id"].to_pylist())}
    rows = pa.array(np.array([place[object_id] for object_id in wanted.to_pylist()], np.int64))
    stamps = stamps.take(rows)
    for name in THUMBNAILS:
        found = found.append_column(CANDIDATES.field(name), stamps[name])
    return found
