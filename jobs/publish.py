"""Publish the candidates of runs as a HATS catalog, which LSDB, DuckDB, Polars and astropy open.

A catalog has snapshots that never change, and one file that names the current one, written last: readers see the one
before or the new one, whole. What stands there already is not written again. Of a run that `sweep` published the tiles
of its latest snapshot are taken, of another one its ok tiles. Fields may overlap, in one run or in several: every
position belongs to one tile, so each object is there once, in whatever order the runs are given. Two runs of the same
pixels are refused, with both tiles. Thumbnails and mosaics stay in the runs.

Exit code 0: published, or nothing new; 1 it failed; 2 the request is wrong, or there is nothing to publish.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError, Texts

if TYPE_CHECKING:
    from surveybridge.storage.publishing import Publication

EXAMPLES = """
  surveybridge publish --run runs/field
  surveybridge publish --run s3://survey/runs/north s3://survey/runs/south --out s3://survey/catalog
  surveybridge publish --run s3://survey/runs/dr1 --moc deep.fits --out s3://survey/deep --name deep
  surveybridge publish --run s3://survey/runs/dr1 --executor ray --workers 32
"""


class Config(JobConfig):
    """Settings of `surveybridge publish`."""

    run: Texts = Field(min_length=1, description="run folders, paths or s3:// URLs, in any order; fields may overlap")
    out: str | None = Field(
        None, description="the catalog, a path or s3:// URL (default, for a single run: RUN/catalog)"
    )
    name: str = Field("surveybridge", description="name of the collection; LSDB derives column suffixes from it")
    moc: str | None = Field(
        None, description="publish only what lies in this MOC: a local file, or cells such as '6/30-33 8/999'"
    )
    partition_rows: int = Field(250_000, ge=1, description="largest number of rows in a partition (a Parquet file)")
    keep: int = Field(2, ge=2, description="number of snapshots to keep, including the new one; older ones are removed")
    executor: Literal["serial", "ray"] = Field(
        "serial", description="serial in this process, or ray for very large runs"
    )
    workers: int = Field(1, ge=1, description="Ray tasks at a time, with one CPU each")

    @property
    def destinations(self) -> tuple[str, ...]:
        """The catalog; by default it is in the run folder."""
        return (f"{self.run[0].rstrip('/')}/catalog" if self.out is None else self.out,)


def run(config: Config) -> int:
    """Publish, and print which snapshot is current."""
    from surveybridge.storage.mocs import read_moc
    from surveybridge.storage.publishing import publish

    if config.out is None and len(config.run) > 1:
        raise RequestError(f"{len(config.run)} runs are given but no --out; say where their catalog goes")
    (out,) = config.destinations
    moc = None if config.moc is None else read_moc(config.moc)
    ask = functools.partial(
        publish, config.run, out, name=config.name, moc=moc, partition_rows=config.partition_rows, keep=config.keep
    )
    print(_said(ask() if config.executor == "serial" else _on_ray(ask, config.workers)))
    return 0


def _on_ray(ask: Callable[..., Publication], workers: int) -> Publication:
    """Publish with the files read and written by Ray tasks."""
    from surveybridge.cluster.connect import start_ray, stop_ray
    from surveybridge.cluster.spread import spread
    from surveybridge.storage.objectstore import configure, configured

    # Started when there is something to do, so that a wrong request, or nothing new, does not wait for it.
    started: list[bool] = []

    def each(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        if not started:
            started.append(start_ray(workers))
        return spread(function, items, at_once=workers, start=functools.partial(configure, configured()))

    try:
        return ask(each=each)
    finally:
        if any(started):
            stop_ray()


def _said(done: Publication) -> str:
    facts = done.facts
    tiles = sum(run["tiles"] for run in facts["runs"])
    lines = [
        f"{'published' if done.new else 'published before:'} {done.url}: {facts['rows']} candidates of {tiles} tiles",
        f"  snapshot {done.key}: {len(facts['runs'])} run(s), {facts['partitions']} partition(s), "
        f"{facts['bytes'] / 2**20:.3g} MiB",
    ]
    if facts.get("rows_of_others"):  # which an earlier version did not state
        lines.append(
            f"  fields overlap: {facts['rows_of_others']} rows left out, whose objects are those of another field"
        )
    lines += [f"  {run['url']}: as published by sweep, {run['published']}" for run in facts["runs"] if run["published"]]
    if done.removed:
        lines.append(f"  removed: {', '.join(done.removed)}")
    return "\n".join(lines)
