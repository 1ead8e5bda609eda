"""Search the candidates of a run: the top of the list, a cone on the sky, or SQL.

The views `candidates` and `ledger` hold the tiles that are done. Thumbnails are left out of what is printed; read them
from `candidates/*.parquet` of the run folder with any Parquet reader.
"""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs.config import JobConfig, RequestError

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = """
  surveybridge query --run runs/field --top 10
  surveybridge query --run s3://survey/runs/dr1 --cone 53.12,-28.01,30 --format csv
  surveybridge query --run runs/field --sql "SELECT tile_id, count(*) AS n FROM candidates GROUP BY tile_id"
  surveybridge query --run runs/field --sql "SELECT tile_id, reason FROM ledger WHERE status = 'failed'"
"""

SCREENFUL = 20
"""Rows of a printed table when nobody says how many."""

SHOWN = (
    "rank", "object_id", "ra", "dec", "separation", "score", "score_std", "false_alarm",
    "flux_g", "flux_r", "flux_i", "flux_VIS", "snr_i", "snr_VIS", "flags",
)  # fmt: skip
"""Columns of a printed table; csv and json have all but the thumbnails."""


class Config(JobConfig):
    """What to search for, and how to print it."""

    run: str = Field(description="run folder, a path or s3:// URL")
    cone: tuple[float, float, float] | None = Field(None, description="RA,DEC,ARCSEC: within so many arcsec, ICRS deg")
    top: int | None = Field(
        None, ge=0, description=f"at most N rows (default: {SCREENFUL} in a table without --cone, else all)"
    )
    sql: str | None = Field(None, description="one SELECT over the views candidates and ledger")
    format: Literal["table", "csv", "json"] = Field("table", description="what is printed")


def run(config: Config) -> int:
    """Print what was found; 0 also if that is nothing."""
    from storage.query import query

    if config.sql is not None and (config.cone is not None or config.top is not None):
        raise RequestError("--sql is given with --cone or --top; put them into the SQL (WHERE, LIMIT)")
    cut = config.format == "table" and config.sql is None and config.cone is None and config.top is None
    found = query(config.run, config.cone, SCREENFUL if cut else config.top, config.sql, thumbnails=False)
    found = found.select([field.name for field in found.schema if not _is_array(field.type)])
    if config.format == "csv":
        _print_csv(found)
    elif config.format == "json":
        _print_json(found)
    else:
        if config.sql is None:
            found = found.select([name for name in SHOWN if name in found.column_names])
        _print_table(found)
        if cut and found.num_rows == SCREENFUL:
            print(f"the first {SCREENFUL}; --top N shows more", file=sys.stderr)
    return 0


def _is_array(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_fixed_size_list(kind) or kinds.is_list(kind) or kinds.is_large_list(kind))


def _print_csv(found: pa.Table) -> None:
    import pyarrow.csv

    with pyarrow.BufferOutputStream() as sink:
        pyarrow.csv.write_csv(found, sink)
        print(sink.getvalue().to_pybytes().decode(), end="")


def _print_json(found: pa.Table) -> None:
    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    rows = [{name: plain(value) for name, value in row.items()} for row in found.to_pylist()]
    print(json.dumps(rows, indent=1, default=str))


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
        return f"{value:.6f}" if name in ("ra", "dec") else f"{value:.4g}"
    return " ".join(str(value).split())
