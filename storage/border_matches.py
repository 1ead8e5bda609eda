"""Objects next to a border between fields: rows that are one object there, and which of them is kept.

Rows of two fields that are each other's nearest within `field_cores.RADIUS` are one object, with more fields a chain of
such pairs. Where not exactly one row of an object is from the owner of its position, its field is chosen among those
that own the position of any of its rows; where an owner has none, since its tiles end there, among those that have one.
It is the field with most rows of the object, then by the order of `storage.ownership`, with the nearest row's distance.
All rows of that field stay, and none of the others. The outcome does not depend on any order.

A system (`storage.systems`) is named after one of its rows. Where a border goes through a system, rows of one field may
be named after a row that is not kept; they take the name of the kept row of the same object, and so stay one system.
"""

from __future__ import annotations

from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveybridge.storage.field_cores import RADIUS
from surveybridge.storage.ownership import Ownership, Verdict
from surveybridge.storage.sky import unit_vectors

_CHORD = float(2 * np.sin(np.deg2rad(RADIUS / 3600) / 2))
_CELL = 8 * _CHORD
"""Side of the cubes of space by which pairs are found: a row is near the side of its cube now and then only."""

NEAR = pa.schema(
    [
        ("row", pa.int64()),
        ("object_id", pa.string()),
        ("field", pa.int32()),
        ("owner", pa.int32()),
        ("edge", pa.bool_()),
        ("coverage", pa.int8()),
        ("distance", pa.float64()),
        ("x", pa.float64()),
        ("y", pa.float64()),
        ("z", pa.float64()),
        ("cube", pa.int64()),
        ("cubes", pa.list_(pa.int64())),
    ]
)
"""Rows near another field: number, name, verdict, direction, the cube of space that holds it, the cubes in reach."""

_PAIRS = f"""
CREATE TABLE pairs AS
WITH reach AS (SELECT *, unnest(cubes) AS reached FROM near),
found AS (
    SELECT a.row AS one, b.row AS other, a.field AS one_field, b.field AS other_field,
        pow(a.x - b.x, 2) + pow(a.y - b.y, 2) + pow(a.z - b.z, 2) AS apart,
        a.x AS one_x, a.y AS one_y, a.z AS one_z, b.x AS other_x, b.y AS other_y, b.z AS other_z,
        (a.owner = a.field) = (b.owner = b.field) AS unsettled
    FROM reach AS a JOIN near AS b ON a.reached = b.cube AND a.field < b.field
    WHERE apart <= {_CHORD**2!r}
)
SELECT one, other, unsettled FROM found
QUALIFY row_number() OVER (PARTITION BY one, other_field ORDER BY apart, other_x, other_y, other_z) = 1
    AND row_number() OVER (PARTITION BY other, one_field ORDER BY apart, one_x, one_y, one_z) = 1
"""

_CHOSEN = """
WITH members AS (SELECT near.*, object FROM near JOIN objects USING (row)),
fields AS (
    SELECT object, field, count(*) AS n, max(coverage) AS coverage, min(distance) AS distance
    FROM members GROUP BY object, field
),
owners AS (
    SELECT object, owner AS field FROM members
    UNION
    SELECT object, field FROM members
    ANTI JOIN fields AS present ON members.object = present.object AND owner = present.field
    WHERE edge
),
chosen AS (
    SELECT object, field FROM fields SEMI JOIN owners USING (object, field)
    QUALIFY row_number() OVER (PARTITION BY object ORDER BY n DESC, coverage DESC, distance, field) = 1
)
SELECT members.row, coalesce(members.field = chosen.field, false) AS owned FROM members LEFT JOIN chosen USING (object)
"""


_SYSTEMS = """
WITH final AS (
    SELECT near.row, object_id, coalesce(settled.owned, owner = field) AS owned FROM near LEFT JOIN settled USING (row)
),
same AS (SELECT one, other FROM pairs UNION ALL SELECT other, one FROM pairs)
SELECT lost.object_id AS old, min(kept.object_id) AS new
FROM same JOIN final AS lost ON one = lost.row JOIN final AS kept ON other = kept.row
WHERE kept.owned AND NOT lost.owned AND lost.object_id NOT IN (SELECT object_id FROM final WHERE owned)
GROUP BY lost.object_id
"""


def near_rows(verdict: Verdict, table: pa.Table) -> pa.Table:
    """The rows of a table that come near another field, schema `NEAR`, numbered by their place in it.

    Parameters
    ----------
    verdict : Verdict
        On the table's rows.
    table : pyarrow.Table
        Columns object_id, ra and dec.
    """
    row = np.flatnonzero(verdict.near)
    position = unit_vectors(*(table[name].to_numpy()[row] for name in ("ra", "dec")))
    low, high = (np.floor((position + reach) / _CELL).astype(np.int64) for reach in (-_CHORD, _CHORD))
    corners = [np.where(np.array(pick), high, low) for pick in np.ndindex(2, 2, 2)]
    cubes = np.sort(np.stack([_cube(corner) for corner in corners], axis=1), axis=1)
    distinct = np.ones(cubes.shape, bool)
    distinct[:, 1:] = cubes[:, 1:] != cubes[:, :-1]
    ends = np.cumsum(np.concatenate([[0], distinct.sum(axis=1)]))
    return pa.table(
        [
            row,
            table["object_id"].combine_chunks().take(pa.array(row)),
            *(
                values[row]
                for values in (verdict.field, verdict.owner, verdict.edge, verdict.coverage, verdict.distance)
            ),
            *position.T,
            _cube(np.floor(position / _CELL).astype(np.int64)),
            pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(cubes[distinct])),
        ],
        schema=NEAR,
    )


class Settled(NamedTuple):
    """What is settled about rows next to borders.

    Parameters
    ----------
    rows : pyarrow.Table
        Columns row and owned, of the rows about which their verdict does not say the last word.
    systems : pyarrow.Table
        Columns old and new: names of rows that are not kept, and of the kept ones of the same objects.
    """

    rows: pa.Table
    systems: pa.Table


def settle(connection: duckdb.DuckDBPyConnection) -> Settled:
    """Settle which of the rows next to borders are kept.

    Parameters
    ----------
    connection : duckdb.DuckDBPyConnection
        With the rows of `near_rows` in a table `near`, their numbers made unique.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    connection.execute(_PAIRS)
    connection.execute(
        "CREATE TABLE involved AS SELECT one AS row FROM pairs WHERE unsettled "
        "UNION SELECT other FROM pairs WHERE unsettled UNION SELECT row FROM near WHERE edge"
    )
    before, count = -1, 0
    while before != count:  # with three or more fields: rows of the same object as one of these
        before = count
        connection.execute(
            "CREATE OR REPLACE TABLE involved AS SELECT row FROM involved "
            "UNION SELECT other FROM pairs SEMI JOIN involved ON one = row "
            "UNION SELECT one FROM pairs SEMI JOIN involved ON other = row"
        )
        count = connection.execute("SELECT count(*) FROM involved").fetchall()[0][0]
    rows = np.asarray(connection.execute("SELECT row FROM involved ORDER BY row").fetchnumpy()["row"], np.int64)
    edges = connection.execute("SELECT one, other FROM pairs SEMI JOIN involved ON one = row").fetchnumpy()
    one, other = (np.searchsorted(rows, edges[name]) for name in ("one", "other"))
    _, objects = connected_components(coo_array((np.ones(len(one)), (one, other)), shape=(len(rows), len(rows))))
    connection.register("objects", pa.table({"row": rows, "object": objects.astype(np.int64)}))
    settled = connection.sql(_CHOSEN).to_arrow_table()
    connection.unregister("objects")
    connection.register("settled", settled)
    systems = connection.sql(_SYSTEMS).to_arrow_table()
    connection.unregister("settled")
    return Settled(settled, systems)


def owned_rows(ownership: Ownership, tables: list[pa.Table]) -> tuple[list[NDArray[np.bool_]], pa.Table]:
    """Which rows of each run are kept, and the names of systems that change (`Settled.systems`), all in memory.

    Parameters
    ----------
    ownership : Ownership
        Of the runs.
    tables : list of pyarrow.Table
        Each run's candidates: columns object_id, tile_id, ra, dec, _healpix_29.
    """
    verdicts = [ownership.judge(run, table) for run, table in enumerate(tables)]
    owned = np.concatenate([verdict.owned for verdict in verdicts])
    systems = pa.table({"old": pa.array([], pa.string()), "new": pa.array([], pa.string())})
    first = np.cumsum([0, *(table.num_rows for table in tables)])
    if any(verdict.near.any() for verdict in verdicts):
        with duckdb.connect() as connection:
            connection.execute("SET enable_progress_bar = false")
            parts = [
                numbered(near_rows(verdict, table), int(start))
                for verdict, table, start in zip(verdicts, tables, first, strict=False)
            ]
            connection.register("near", pa.concat_tables(parts))
            rows, systems = settle(connection)
        owned[rows["row"].to_numpy()] = rows["owned"].to_numpy(zero_copy_only=False)
    return np.split(owned, first[1:-1]), systems


def renamed(system_id: pa.ChunkedArray, systems: pa.Table) -> pa.Array:
    """The names of systems, with those that change (`Settled.systems`) replaced."""
    place = pc.index_in(system_id.combine_chunks(), value_set=systems["old"].combine_chunks())
    return pc.coalesce(systems["new"].combine_chunks().take(place), system_id.combine_chunks())


def numbered(near: pa.Table, first: int) -> pa.Table:
    """Rows of `near_rows` with numbers that begin with `first`."""
    return near.set_column(0, "row", pa.array(near["row"].to_numpy() + first))


def _cube(corner: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for a cube."""
    line, column, layer = (corner + (1 << 20)).T
    return np.asarray((line << 42) + (column << 21) + layer)
