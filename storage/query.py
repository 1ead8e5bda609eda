"""Questions to the candidates of runs or to a published catalog: the best, a part of the sky, a cross-match, or SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from surveybridge.storage.crossmatch import Targets, match, with_targets
from surveybridge.storage.errors import StorageError
from surveybridge.storage.regions import Region
from surveybridge.storage.runs import READ_TRIES
from surveybridge.storage.schema import thumbnail_names
from surveybridge.storage.systems import KINDS, RANKS, Kind, listed_rows
from surveybridge.storage.views import TABLES, Urls, Views, connect, open_views

_SEARCHED = ("object_id", "ra", "dec", "_healpix_29", "tile_id", "score", "system_id", "kind", "run_id", *RANKS)
"""Columns by which a search is done, and thumbnails and grades are found."""

MOST_ROWS = 2**31 - 1
"""Largest rank."""

GRADES_COLUMN = pa.field(
    "grades", pa.string(), metadata={"description": "What each grader thinks, as A Ada; X Bob", "ucd": "meta.code"}
)


@dataclass(frozen=True)
class Listing:
    """What a list of candidates holds.

    Parameters
    ----------
    kind : Kind
        "object", what may be an anomaly; "star" or "saturated", which rank behind; or "all".
    members : bool
        All rows of each system, the leading one first, and not only the first of those that were found.
    grades : bool
        Also the column `grades`, what each grader thinks ("A Ada; X Bob"), if anybody has graded. The columns asked for
        may name it, and then it is there in any case.

    Raises
    ------
    StorageError
        If there is no such kind.
    """

    kind: Kind = "object"
    members: bool = False
    grades: bool = False

    def __post_init__(self) -> None:
        """Refuse other kinds."""
        if self.kind not in KINDS:
            raise StorageError(f"kind {self.kind!r} is none of {', '.join(KINDS)}; give one of these")


SYSTEMS = Listing()
"""One row a system, without stars and saturated sources."""

EVERY_ROW = Listing("all", members=True)
"""All rows."""


def query(
    urls: Urls,
    region: Region | None = None,
    top: int | None = None,
    *,
    targets: Targets | None = None,
    columns: Sequence[str] | None = None,
    thumbnails: bool = True,
    listing: Listing = SYSTEMS,
    storage_options: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Candidates of the ok tiles of runs, or of a published catalog, highest score first: one row a system.

    Parameters
    ----------
    urls : str or sequence of str
        A run folder or a catalog, local or s3://, or several run folders. Where their fields overlap, an object is
        that of its owner (`storage.ownership`), as in a catalog of them.
    region : Region, optional
        Only what lies inside: a `Box`, a `Coverage` (MOC), a `Cone`, which adds the column `separation`, arcsec.
    top : int, optional
        At most so many systems.
    targets : Targets, optional
        Only what lies near one of these; adds `match_separation`, arcsec, and their columns as `match_...`.
    columns : sequence of str, optional
        Return these only, in this order.
    thumbnails : bool
        Also return the thumbnails of the rows found (never part of the search; `columns` returns what it names). Those
        of a catalog are read from its runs.
    listing : Listing
        Which rows.
    storage_options : mapping, optional
        Arguments of the fsspec filesystem.

    Returns
    -------
    pyarrow.Table
        Columns of the problem's candidates (`storage.schema.candidates_schema`); `rank` counts systems from 1 by the
        falling score of their leading rows, over all runs or the catalog, ties by object_id.

    Raises
    ------
    StorageError
        If there is neither run nor catalog, or a run that makes maps only, or a column is not known.
    """
    if top is not None and not 0 <= top <= MOST_ROWS:
        raise StorageError(f"top {top} lies outside 0..{MOST_ROWS}; give a number of rows, or none for all")
    twice = _twice(columns or ())
    if twice:
        raise StorageError(f"column(s) {', '.join(twice)} are named twice; name each once")

    def ask(views: Views) -> pa.Table:
        found = _search(views, region, targets, top, columns, listing)
        if listing.grades or GRADES_COLUMN.name in (columns or ()):
            found = _with_grades(found, views.grades(), always=columns is not None)
        return _chosen(views, found, columns, thumbnails)

    return _answer(urls, storage_options, ask)


def select(urls: Urls, sql: str, storage_options: Mapping[str, Any] | None = None) -> pa.Table:
    """Return what SQL selects from runs or a published catalog.

    Parameters
    ----------
    urls : str or sequence of str
        As for `query`.
    sql : str
        One SELECT over the views `candidates`, `ledger`, `runs`, `grades` and `mosaics`. It sees nothing else: no
        files, no network. `candidates` has those thumbnails, and `mosaics` those pixels, that the SQL names.
    storage_options : mapping, optional
        Arguments of the fsspec filesystem.

    Raises
    ------
    StorageError
        If there is neither run nor catalog, or the SQL is wrong.
    """
    return _answer(urls, storage_options, lambda views: _select(views, sql))


def _answer(urls: Urls, storage_options: Mapping[str, Any] | None, ask: Callable[[Views], pa.Table]) -> pa.Table:
    for left in reversed(range(READ_TRIES)):
        views = open_views(urls, storage_options)
        try:
            return ask(views)
        except Exception:
            # Files may go while this reads, and then others hold the same rows.
            if not left or not views.outdated():
                raise
    raise AssertionError("unreachable")


def _search(
    views: Views,
    region: Region | None,
    targets: Targets | None,
    top: int | None,
    columns: Sequence[str] | None,
    listing: Listing,
) -> pa.Table:
    whole = region is None and targets is None
    first = top if whole and listing.kind in ("object", "all") else None  # other kinds rank behind
    needed = [name for name in views.columns if columns is None or name in columns or name in _SEARCHED]
    with connect(views, "", needed, region, first) as connection:
        source = "SELECT * FROM candidates" if region is None else region.select()
        if region is not None and region.table is not None:
            connection.register("region", region.table)
        parameters = {} if region is None else dict(region.parameters)
        if targets is not None:
            places = connection.sql(f"SELECT object_id, ra, dec FROM ({source})", params=parameters).to_arrow_table()
            connection.register("matched", match(places, targets))
            source = f"SELECT * FROM ({source}) JOIN matched USING (object_id)"
        listed = listed_rows(source, listing.kind, listing.members, top, whole=whole)
        found = connection.sql(listed, params=parameters).to_arrow_table()
    found = found if targets is None else with_targets(found, targets)
    known = dict.fromkeys([*views.columns, *found.column_names, *thumbnail_names(views.schema), GRADES_COLUMN.name])
    unknown = [name for name in columns or () if name not in known]
    if unknown:
        raise StorageError(f"unknown column(s) {', '.join(unknown)}; known: {', '.join(known)}")
    return found


def _with_grades(found: pa.Table, grades: pa.Table, always: bool) -> pa.Table:
    """`found` with what each grader thinks of each; without, where nobody has graded, unless `always`."""
    opinions: dict[str, list[str]] = {}
    for row in grades.select(["object_id", "grade", "grader"]).sort_by("grader").to_pylist():
        if row["grade"]:
            opinions.setdefault(row["object_id"], []).append(f"{row['grade']} {row['grader']}")
    if not opinions and not always:
        return found
    texts = ["; ".join(opinions.get(name, ())) or None for name in found["object_id"].to_pylist()]
    return found.append_column(GRADES_COLUMN, pa.array(texts, pa.string()))


def _chosen(views: Views, found: pa.Table, columns: Sequence[str] | None, thumbnails: bool) -> pa.Table:
    """`found` with the columns asked for, each with the metadata of the schema."""
    if thumbnails if columns is None else set(columns) & set(thumbnail_names(views.schema)):
        found = views.thumbnails(found)
    found = found if columns is None else found.select(list(columns))
    return found.cast(pa.schema([_described(field, views.schema) for field in found.schema]))


def _described(field: pa.Field, schema: pa.Schema) -> pa.Field:
    """The field with unit, UCD and description."""
    if field.name in schema.names:
        return schema.field(field.name)
    if field.name == GRADES_COLUMN.name:
        return GRADES_COLUMN
    if field.name in ("separation", "match_separation"):
        what = "the centre of the cone" if field.name == "separation" else "the target"
        described = {"unit": "arcsec", "ucd": "pos.angDistance", "description": f"Distance from {what}"}
        return field.with_metadata(described)
    return field


def _select(views: Views, sql: str) -> pa.Table:
    lower = sql.lower()
    columns = [*views.columns, *(name for name in thumbnail_names(views.schema) if name.lower() in lower)]
    with connect(views, sql, columns) as connection:
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
                raise StorageError(f"SQL is {kinds}; give one SELECT over the views candidates, {', '.join(TABLES)}")
            found = connection.sql(statements[0].query).to_arrow_table()
        except duckdb.Error as error:
            reason = " ".join(str(error).split("\n\nLINE")[0].split())
            known = {"candidates": columns} | {name: _columns(connection, name) for name in TABLES if name in lower}
            views_known = "; ".join(f"{name} has {', '.join(names)}" for name, names in known.items())
            remedy = (
                views_known
                if isinstance(error, duckdb.BinderException)
                else f"the views are candidates, {', '.join(TABLES)}"
            )
            raise StorageError(f"SQL: {reason}; {remedy}") from error
    twice = _twice(found.column_names)
    if twice:
        raise StorageError(f"SQL gives two columns the name {', '.join(twice)}; rename one with AS")
    return found


def _twice(names: Sequence[str]) -> list[str]:
    """Names that are there more than once, each once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _columns(connection: duckdb.DuckDBPyConnection, view: str) -> list[str]:
    return connection.sql(f"SELECT * FROM {view} LIMIT 0").columns
