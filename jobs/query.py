"""Search the candidates of runs or of a published catalog: the best, a part of the sky, a cross-match, or SQL.

A lens and its arcs are one system: the list has one row for each, that with the highest score of those found, and
--members shows all. Stars and saturated sources are left out unless --kind asks for them.

SQL sees the views `candidates`, `ledger` (the tiles that are done), `runs`, `grades` (what `vet` has collected) and
`mosaics` (a row a cell of 64 x 64 pixels). A cross-match gives each candidate near an object of another catalog with
that object's columns, as match_...; lenscat's catalog.csv works as it is. Thumbnails are never printed, but --columns
puts them into FITS and Parquet.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError, SkyBox, SkyCircle, Texts
from surveybridge.storage.systems import Kind

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = """
  surveybridge query --run runs/field --top 10
  surveybridge query --run runs/field --top 10 --members
  surveybridge query --run runs/field --kind star --format csv
  surveybridge query --run s3://survey/catalog --cone 53.12,-28.01,30 --format csv
  surveybridge query --run s3://survey/catalog --cone "03:32:29.0 -28:00:36 30"
  surveybridge query --run s3://survey/catalog --box 359.9,0.1,-0.1,0.1 --out corner.fits
  surveybridge query --run s3://survey/catalog --moc deep.fits --top 500 --out best.vot
  surveybridge query --run s3://survey/catalog --match lenscat.csv --match-radius 2 --format reg --out known.reg
  surveybridge query --run runs/field --sql "SELECT tile_id, count(*) AS n FROM candidates GROUP BY tile_id"
  surveybridge query --run runs/field --sql "SELECT tile_id, reason FROM ledger WHERE status = 'failed'"
"""

SCREENFUL = 20
"""Rows of a printed table when nobody says how many."""

SHOWN_FIRST = (
    "rank", "object_id", "ra", "dec", "separation", "match_separation", "score", "score_std",
    "false_alarm",
)  # fmt: skip
SHOWN_LAST = ("system_members", "flags", "grades")
"""Columns of a printed table around the fluxes, and those of a match; files have all but the thumbnails."""


class Config(JobConfig):
    """Settings of `surveybridge query`."""

    writes = ("out",)

    run: Texts = Field(min_length=1, description="run folders, or one published catalog: paths or s3:// URLs")
    cone: SkyCircle = Field(
        None, description="RA,DEC,ARCSEC: only within this distance; ICRS, deg or as 10:00:24,-02:12:00,10"
    )
    box: SkyBox = Field(
        None, description="RAMIN,RAMAX,DECMIN,DECMAX, ICRS; extends across RA 0 as 359.9,0.1,... or -0.1,0.1,..."
    )
    moc: str | None = Field(None, description="MOC: a local file (FITS, JSON, text) or cells such as '6/30-33 8/999'")
    match: str | None = Field(None, description="only candidates near an object of this catalog (CSV, FITS, VOTable)")
    match_radius: float = Field(2.0, gt=0, description="largest distance from that object, arcsec")
    match_columns: tuple[str, str] | None = Field(
        None, description="its columns with right ascension and declination, ICRS deg (default: found by name)"
    )
    top: int | None = Field(
        None, ge=0, description=f"at most N systems (default: {SCREENFUL} in a table without a region, else all)"
    )
    members: bool = Field(False, description="all rows of each system (a lens and its arcs), not only the leading one")
    kind: Kind = Field("object", description="what to list; stars and saturated sources rank behind all objects")
    columns: tuple[str, ...] | None = Field(None, description="only these columns, in this order")
    sql: str | None = Field(None, description="one SELECT over the views candidates, ledger, runs, grades, mosaics")
    out: str | None = Field(None, description="file to write, path or s3:// URL; its ending determines the format")
    format: Literal["table", "csv", "json", "votable", "reg", "parquet", "fits"] | None = Field(
        None, description="format of the output (default: by the ending of --out, else a table)"
    )


def run(config: Config) -> int:
    """Print or write the rows that were found; return 0 even if there are none."""
    from surveybridge.storage.query import Listing, query, select

    kind = _kind(config)
    region, targets = _region(config), _targets(config)
    asked = (region, targets, config.top, config.columns, config.members or None, config.kind)
    if config.sql is not None and asked != (None, None, None, None, None, "object"):
        raise RequestError(
            "--sql is given with --cone, --top or another question; put them into the SQL (WHERE, LIMIT)"
        )
    cut = kind == "table" and (config.sql, region, targets, config.top) == (None, None, None, None)
    if config.sql is not None:
        found = select(config.run, config.sql)
    else:
        top = SCREENFUL if cut else config.top
        listing = Listing(config.kind, config.members, grades=True)
        found = query(
            config.run, region, top, targets=targets, columns=config.columns, thumbnails=False, listing=listing
        )
    if kind != "table":
        _give(found, kind, config.out)
        return 0
    _print_table(_shown(config, found))
    if cut and found.num_rows >= SCREENFUL:
        print(f"the first {SCREENFUL}; --top N shows more", file=sys.stderr)
    return 0


def _kind(config: Config) -> str:
    """The format, refused where it cannot be."""
    from surveybridge.storage.astrotables import ENDINGS

    ending = os.path.splitext(config.out or "")[1].lower()
    kind = config.format or (ENDINGS.get(ending, "") if config.out else "table")
    if not kind:
        raise RequestError(
            f"--out {config.out} ends in none of {', '.join(ENDINGS)}; take one of these or give --format"
        )
    if config.out and kind == "table":
        raise RequestError(f"--format table is for the screen, but --out {config.out} is a file; leave out one of them")
    if not config.out and kind in ("parquet", "fits"):
        raise RequestError(f"--format {kind} is binary; give --out FILE")
    return kind


def _region(config: Config) -> Any:
    from surveybridge.storage.mocs import read_moc
    from surveybridge.storage.regions import Box, Cone

    given = [name for name in ("cone", "box", "moc") if getattr(config, name) is not None]
    if len(given) > 1:
        raise RequestError(f"--{' and --'.join(given)} are given; keep one region")
    if config.cone is not None:
        return Cone(*config.cone)
    if config.box is not None:
        return Box(*config.box)
    return None if config.moc is None else read_moc(config.moc)


def _targets(config: Config) -> Any:
    from surveybridge.storage.crossmatch import read_targets

    return None if config.match is None else read_targets(config.match, config.match_radius, config.match_columns)


def _give(found: pa.Table, kind: str, out: str | None) -> None:
    """Print, or write, a file."""
    from surveybridge.storage.astrotables import file_bytes
    from surveybridge.storage.objectstore import file_at

    data = file_bytes(found, kind)
    if out is None:
        sys.stdout.write(data.decode())
        return
    folder, name = file_at(out)
    folder.put(data, name)
    print(f"{out}: {found.num_rows} rows")


# -- for a person --


def _shown(config: Config, found: pa.Table) -> pa.Table:
    from surveybridge.storage.astrotables import flat
    from surveybridge.storage.schema import shown_bands
    from surveybridge.storage.views import problem_at

    found = flat(found)
    if config.sql is not None or config.columns is not None:
        return found
    shown = (*SHOWN_FIRST, *shown_bands(problem_at(config.run)), *SHOWN_LAST)
    matched = [name for name in found.column_names if name.startswith("match_") and name not in shown]
    return found.select([name for name in shown if name in found.column_names] + matched[:3])  # what a line may hold


def _print_table(found: pa.Table) -> None:
    columns = [
        [name, *(_text(name, value) for value in found.column(i).to_pylist())]
        for i, name in enumerate(found.column_names)
    ]
    numeric = [_is_number(field.type) for field in found.schema]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        cells = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        )
        print("  ".join(cells).rstrip())


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind))


def _text(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6f}" if name.removeprefix("match_") in ("ra", "dec") else f"{value:.4g}"
    return " ".join(str(value).split())
