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
from storage.runs import RunFolder, candidates_path
from storage.schema import CANDIDATES, THUMBNAILS
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
        files, no network.
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
    with _connect(run) as connection:
        if sql is not None:
            return _select(connection, sql)
        found = _search(connection, cone, top)
    return _with_thumbnails(run, found) if thumbnails else found


def _connect(run: RunFolder) -> duckdb.DuckDBPyConnection:
    """DuckDB with the views `candidates` and `ledger`, and no access to anything else."""
    ledger = run.ledger()
    tiles = ledger.filter(pc.equal(ledger["status"], "ok"))["tile_id"].to_pylist()
    connection = duckdb.connect(config={"autoload_known_extensions": False, "autoinstall_known_extensions": False})
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("ledger", ledger)
    connection.register("stored_candidates", _dataset(run, tiles))
    connection.execute(
        # DuckDB sorts NaN above every number: a score that is none must not lead the list.
        "CREATE VIEW candidates AS SELECT * REPLACE (CAST(row_number() OVER ("
        "ORDER BY CASE WHEN isnan(score) THEN NULL ELSE score END DESC NULLS LAST, object_id"
        ") AS INTEGER) AS rank) FROM stored_candidates"
    )
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _dataset(run: RunFolder, tiles: Sequence[str]) -> ds.Dataset | pa.Table:
    """The candidates of some tiles, read when and as far as they are needed."""
    if not tiles:
        return CANDIDATES.empty_table()
    paths = [run.folder.path(candidates_path(tile)) for tile in tiles]
    return ds.dataset(paths, schema=CANDIDATES, format="parquet", filesystem=run.folder.filesystem)


def _search(
    connection: duckdb.DuckDBPyConnection, cone: tuple[float, float, float] | None, top: int | None
) -> pa.Table:
    columns = ", ".join(f'"{name}"' for name in CANDIDATES.names if name not in THUMBNAILS)
    source, parameters = f"SELECT {columns} FROM candidates", {}
    if cone is not None:
        ra, dec, radius = cone
        cells = " OR ".join(f"_healpix_29 BETWEEN {first} AND {last}" for first, last in cone_ranges(ra, dec, radius))
        source = (
            f"SELECT * FROM (SELECT {columns}, {_SEPARATION} AS separation FROM candidates WHERE {cells}) "
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


def _with_thumbnails(run: RunFolder, found: pa.Table) -> pa.Table:
    """`found` with the thumbnails of its rows, read from the files of their tiles only."""
    tiles = sorted(set(found["tile_id"].to_pylist()))
    wanted = found["object_id"]
    stamps = (
        _dataset(run, tiles).to_table(
            columns=["object_id", *THUMBNAILS], filter=pc.field("object_id").isin(wanted.combine_chunks())
        )
        if tiles
        else CANDIDATES.empty_table()
    )
    place = {object_id: row for row, object_id in enumerate(stamps["object_id"].to_pylist())}
    rows = pa.array(np.array([place[object_id] for object_id in wanted.to_pylist()], np.int64))
    stamps = stamps.take(rows)
    for name in THUMBNAILS:
        found = found.append_column(CANDIDATES.field(name), stamps[name])
    return found
