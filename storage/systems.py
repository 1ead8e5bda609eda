"""One row a system: which rows of candidates are one object on the sky, which of them leads, and how systems rank.

`system_id` is on disk, since only a tile sees what lies around its objects; ranks need all rows, and are filled in when
rows are read or published. A row without a system, as of an earlier version, is one by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["object", "star", "saturated", "all"]
"""What a list holds: objects, which may be anomalies, or what ranks behind all of them; or everything."""

KINDS: tuple[str, ...] = get_args(Kind)

RANKS = ("rank", "system_rank", "system_members")
"""Columns that are filled in."""


def ranked_rows(source: str) -> str:
    """SQL for the rows of a table with their ranks.

    A system ranks by its leading row, that with the highest score; `rank` counts systems from 1 by falling score, ties
    by name, `system_rank` the rows of a system. Stars and saturated sources lead only where nothing else is there, and
    rank behind all other systems.

    Parameters
    ----------
    source : str
        Table with columns object_id, system_id, kind, score and `RANKS`.
    """
    # DuckDB sorts NaN above every number, but a missing score must not lead the list.
    score = "CASE WHEN isnan(score) THEN NULL ELSE score END"
    keys = "_apart, _score DESC NULLS LAST, object_id"
    return (
        "SELECT * EXCLUDE (_system, _score, _apart, _lead, _lead_score, _lead_apart) REPLACE (CAST(dense_rank() OVER "
        "(ORDER BY _lead_apart, _lead_score DESC NULLS LAST, _lead, _system) AS INTEGER) AS rank) FROM ("
        "SELECT * REPLACE (CAST(row_number() OVER inside AS INTEGER) AS system_rank, "
        "CAST(count(*) OVER (PARTITION BY _system) AS INTEGER) AS system_members), "
        "first_value(object_id) OVER inside AS _lead, first_value(_score) OVER inside AS _lead_score, "
        "first_value(_apart) OVER inside AS _lead_apart FROM ("
        f"SELECT *, coalesce(system_id, object_id) AS _system, {score} AS _score, "
        f"coalesce(kind <> 'object', false) AS _apart FROM {source}) "
        f"WINDOW inside AS (PARTITION BY _system ORDER BY {keys}))"
    )


def listed_rows(source: str, kind: Kind, members: bool, top: int | None, *, whole: bool) -> str:
    """SQL for a list of ranked rows, by rank: of each system one row, or all.

    Parameters
    ----------
    source : str
        SELECT of rows with kind and `RANKS`.
    kind : Kind
        Which rows.
    members : bool
        All rows of a system, not only the first of those that were found.
    top : int or None
        At most so many systems.
    whole : bool
        Systems are there with all their rows, so that a first row is that with `system_rank` 1.
    """
    where = "" if kind == "all" else f" WHERE coalesce(kind, 'object') = '{kind}'"
    if members:
        most = "" if top is None else f" QUALIFY dense_rank() OVER (ORDER BY rank) <= {int(top)}"
    elif whole and kind in ("object", "all"):
        where += f" {'AND' if where else 'WHERE'} coalesce(system_rank, 1) = 1"
        most = ""
    else:
        most = " QUALIFY row_number() OVER (PARTITION BY rank ORDER BY system_rank, object_id) = 1"
    limit = "" if top is None or members else f" LIMIT {int(top)}"
    return f"SELECT * FROM ({source}){where}{most} ORDER BY rank, system_rank, object_id{limit}"


def leading(rows: pa.Table) -> pa.Table:
    """Of all ranked rows, by rank, those of a list with one row a system, without stars and saturated sources."""
    import pyarrow.compute as pc

    objects = pc.equal(pc.fill_null(rows["kind"], "object"), "object")
    return rows.filter(pc.and_(objects, pc.equal(pc.fill_null(rows["system_rank"], 1), 1)))
