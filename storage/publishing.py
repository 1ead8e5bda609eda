"""Publish runs as a catalog: two passes that stream, then one file that switches (layout: `storage.catalogs`).

The first pass reads name, position and score of every candidate into an index on this machine's disk, which leaves one
row of each object, ranks, and decides the partitions. The second writes the partitions, each by itself, from the
files that hold its rows. Either may be spread over other machines. What is held in memory is a partition and a bounded
part of the index, however many rows there are. Where fields overlap, an object is that of the tile which owns its
position (`storage.ownership`), so that the order of the runs does not matter; nothing else is de-duplicated.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from surveybridge.storage import hats
from surveybridge.storage.border_matches import NEAR, near_rows
from surveybridge.storage.catalog_index import Index, Members, Part
from surveybridge.storage.catalog_sources import Chunk, Source, problem_of, run_id
from surveybridge.storage.catalogs import (
    BEST,
    FORMAT,
    FORMAT_VERSION,
    MARGIN,
    POINTER,
    TABLE,
    pointer_bytes,
    read_facts,
    read_pointer,
    snapshot_path,
)
from surveybridge.storage.errors import StorageError
from surveybridge.storage.field_cores import RADIUS
from surveybridge.storage.lease import Lease
from surveybridge.storage.objectstore import Folder, check_name, json_bytes
from surveybridge.storage.ownership import Ownership
from surveybridge.storage.parquet import parquet_bytes, string_lengths, texts
from surveybridge.storage.problems import ProblemTable, default_problem, stated_problem
from surveybridge.storage.regions import Coverage
from surveybridge.storage.run_cores import ownership_of
from surveybridge.storage.runs import READ_TRIES, RunFolder
from surveybridge.storage.schema import CATALOG_LEDGER, SCHEMA_VERSION, catalog_schema
from surveybridge.storage.systems import RANKS

PARTITION_ROWS = 250_000
"""Most rows of a partition: 50 MB in memory, 30 on disk."""

CHUNKS = 8
"""A partition is read from about so many chunks, and the chunks that its border cuts."""

_INDEXED = ("ra", "dec", "_healpix_29", "score")
"""Numbers that the first pass reads; of texts it reads all, for their lengths."""

Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Applies a function to items and gives the results in their order: `map`, or one that does it on other machines."""


class _Changed(RuntimeError):
    """A tile was done again between the two passes."""


@dataclass(frozen=True)
class Publication:
    """The outcome of `publish`.

    Parameters
    ----------
    url : str
        The catalog.
    key : str
        Its current snapshot.
    new : bool
        False if it stood there before.
    facts : mapping
        Its snapshot.json: runs, rows, partitions, margin_rows, bytes.
    removed : sequence of str
        Keys of snapshots that were removed.
    """

    url: str
    key: str
    new: bool
    facts: Mapping[str, Any]
    removed: Sequence[str]


def publish(
    runs: Sequence[str | os.PathLike[str]],
    catalog: str | os.PathLike[str],
    *,
    name: str = "surveybridge",
    moc: Coverage | None = None,
    partition_rows: int = PARTITION_ROWS,
    keep: int = 2,
    each: Each = map,
    storage_options: Mapping[str, Any] | None = None,
) -> Publication:
    """Publish the candidates of runs as one HATS collection: a new snapshot, unless nothing has changed.

    Parameters
    ----------
    runs : sequence of str
        Run folders in any order, whose fields may overlap. Of a run that `sweep` published the tiles of its latest
        snapshot, of another one its ok tiles.
    catalog : str
        Where: absent, empty, or a catalog.
    name : str
        Name of the collection.
    moc : Coverage, optional
        Publish only what lies inside.
    partition_rows : int
        Most rows of a partition.
    keep : int
        Snapshots to keep, the new one among them; at least 2, so that readers of the one before it finish.
    each : callable
        As `map`, of a picklable function and picklable items.
    storage_options : mapping, optional
        Arguments of the fsspec filesystem, for runs and catalog.

    Raises
    ------
    StorageError
        If there is nothing to publish, runs are of different problems or make maps only, two of them have the same
        pixels of one grid or the same object (its tiles are named), something else stands at `catalog`, or another
        process publishes there.
    """
    root = Folder.at(catalog, storage_options)
    opened = [RunFolder.open(run, storage_options) for run in runs]
    _check(root, [run.url for run in opened], check_name(name, "name"), partition_rows, keep)
    problem = problem_of(opened)
    opened = sorted(opened, key=lambda run: (run_id(run), run.url))  # equal content is equal bytes in any order
    chunk_rows = max(1, partition_rows // CHUNKS)
    for left in reversed(range(READ_TRIES)):
        sources = [Source.of(run, chunk_rows) for run in opened]
        facts = _facts(sources, problem, name, moc, partition_rows)
        try:
            with Lease.acquire(root, note={"job": "publish"}) as lease:
                return _publish(root, sources, facts, moc, keep, each, lease)
        except (FileNotFoundError, _Changed) as error:
            # A compaction removes files that this reads, and then others hold the same rows.
            now = [Source.of(run, chunk_rows).chunks for run in opened]
            lost = isinstance(error, FileNotFoundError) and now == [source.chunks for source in sources]
            if lost or not left:
                raise
    raise AssertionError("unreachable")


def _check(root: Folder, runs: Sequence[str], name: str, partition_rows: int, keep: int) -> None:
    if not runs or len(set(runs)) < len(runs):
        raise StorageError(f"runs to publish: {', '.join(runs) or 'none'}; give at least one, and each once")
    if keep < 2 or partition_rows < 1:
        raise StorageError(f"keep {keep} and partition_rows {partition_rows}; give at least 2 and 1")
    if read_pointer(root) is None and (set(root.names()) - {"snapshots", "lease.json"} or os.path.isfile(root.path())):
        raise StorageError(f"{root.url} is {root.describe()}, neither empty nor a catalog; give another --out URL")


def _facts(
    sources: Sequence[Source], problem: ProblemTable, name: str, moc: Coverage | None, partition_rows: int
) -> dict[str, Any]:
    """All that decides the content of a snapshot."""
    ledger = pa.concat_tables([source.ledger for source in sources])
    finished = pc.max(ledger["finished_at"]).as_py()
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "runs": [source.facts() for source in sources],
        "ledger_sha256": hashlib.sha256(parquet_bytes(ledger)).hexdigest(),
        "last_tile_at": None if finished is None else finished.isoformat(timespec="seconds"),
        "moc_sha256": None if moc is None else hashlib.sha256(moc.ranges.tobytes()).hexdigest(),
        "partition_rows": partition_rows,
        "margin_arcsec": hats.MARGIN_ARCSEC,
        "match_arcsec": RADIUS,
        **({} if problem == default_problem() else {"problem": problem}),
    }


def _publish(
    root: Folder,
    sources: Sequence[Source],
    facts: Mapping[str, Any],
    moc: Coverage | None,
    keep: int,
    each: Each,
    lease: Lease,
) -> Publication:
    key = hashlib.sha256(json_bytes(facts)).hexdigest()[:16]
    before = read_pointer(root)
    if before is not None and before.key == key:
        return Publication(root.url, key, False, read_facts(before.snapshot(root)), ())
    snapshot = Folder(root.file_url(snapshot_path(key)), root.storage_options)
    facts = _write_snapshot(snapshot, key, sources, facts, moc, each)
    lease.check()
    kept = [] if before is None else [old for old in (before.key, *before.before) if old != key][: keep - 1]
    root.put(pointer_bytes(facts["name"], key, kept), POINTER)  # the switch
    removed = sorted(set(root.names("snapshots")) - {key, *kept})
    for old in removed:
        root.delete_below("snapshots", old)
    return Publication(root.url, key, True, facts, removed)


def _write_snapshot(
    snapshot: Folder,
    key: str,
    sources: Sequence[Source],
    facts: Mapping[str, Any],
    moc: Coverage | None,
    each: Each,
) -> dict[str, Any]:
    """Write all files of a snapshot; returns its snapshot.json."""
    chunks = [(number, chunk) for number, source in enumerate(sources) for chunk in source.chunks]
    schema = catalog_schema(stated_problem(facts))
    ownership = ownership_of([(source.run, source.ledger) for source in sources])
    with tempfile.TemporaryDirectory(prefix="surveybridge-publish-") as folder, Index(folder) as index:
        lengths: dict[str, int] = {}
        for number, (part, longest) in enumerate(each(partial(_indexed, ownership=ownership, moc=moc), chunks)):
            index.add(part, number)
            lengths |= {column: max(length, lengths.get(column, 1)) for column, length in longest.items()}
        others = index.settle()
        _check_unique(index, sources)
        cells, counts = index.cells()
        if not len(cells):
            raise StorageError(
                f"nothing to publish: {', '.join(source.run.url for source in sources)} have "
                f"{sum(source.ledger.num_rows for source in sources)} finished tiles and no candidate"
                + ("" if moc is None else " inside the MOC")
            )
        pixels = hats.partitions(cells, counts, facts["partition_rows"])
        tasks = (
            Task(snapshot, schema, pixel, {n: chunks[n][1] for n in sorted(inside.chunks | around.chunks)}, inside,
                 around, lengths)
            for pixel, inside, around in index.partition(pixels)
        )  # fmt: skip
        written = list(each(write_partition, tasks))
    leaves, margins = [item.leaf for item in written], [item.margin for item in written if item.margin is not None]
    files = _table(TABLE, schema, lengths, leaves, facts)
    files[f"{TABLE}/skymap.fits"] = hats.skymap(cells, counts)
    files |= _table(MARGIN, schema, lengths, margins, facts)
    ledger = pa.concat_tables([source.ledger for source in sources]).combine_chunks()
    told = {
        **facts,
        "rows": int(counts.sum()),
        "partitions": len(leaves),
        "margin_rows": sum(leaf.footer.num_rows for leaf in margins),
        "bytes": sum(leaf.size for leaf in (*leaves, *margins)),
        "rows_of_others": others,
    }
    best = pa.concat_tables([item.best for item in written]).sort_by(
        [("rank", "ascending"), ("system_rank", "ascending")]
    )
    files["best.parquet"] = parquet_bytes(best, votable=True)
    files["ledger.parquet"] = parquet_bytes(ledger.cast(CATALOG_LEDGER))
    files["snapshot.json"] = json_bytes(told)
    files[POINTER] = pointer_bytes(facts["name"], key, within=True)
    for path, data in files.items():
        snapshot.put(data, path)
    return told


def _indexed(
    chunk: tuple[int, Chunk], ownership: Ownership | None, moc: Coverage | None
) -> tuple[Part, dict[str, int]]:
    """Return what a chunk of a run (by number) contributes to the index, and the longest text of each column."""
    number, source = chunk
    table = source.read([*texts(source.schema), *_INDEXED])
    owned, near = np.ones(table.num_rows, bool), NEAR.empty_table()
    if ownership is not None:
        verdict = ownership.judge(number, table)
        owned, near = verdict.owned, near_rows(verdict, table)
    inside = np.ones(table.num_rows, bool) if moc is None else moc.holds(table["_healpix_29"].to_numpy())
    rows = table.select(["object_id", "system_id", "kind", "_healpix_29", "score", "tile_id"])
    rows = rows.append_column("owned", pa.array(owned)).append_column("inside", pa.array(inside))
    return Part(rows, near), string_lengths([table])


def _check_unique(index: Index, sources: Sequence[Source]) -> None:
    """Refuse an object that is there twice."""
    found = index.twice()
    if found is None:
        return
    run_of = [source.run.url for source in sources for _ in source.chunks]
    name, places, objects = found
    where = " and ".join(f"tile {tile} of {run_of[chunk]}" for tile, chunk in places)
    more = f"; {objects - 1} more objects are there twice" if objects > 1 else ""
    raise StorageError(f"object {name} is in {where}{more}; publish one run of each field, or a part with --moc")


@dataclass(frozen=True)
class Task:
    """A partition to write: where, as what, which rows, and the chunks in which they are read, by number."""

    snapshot: Folder
    schema: pa.Schema
    pixel: hats.Pixel
    chunks: Mapping[int, Chunk]
    inside: Members
    around: Members
    lengths: Mapping[str, int]


@dataclass(frozen=True)
class Written:
    """A partition that was written: its leaf, that of its margin if it has any, and its rows of the best systems."""

    leaf: hats.Leaf
    margin: hats.Leaf | None
    best: pa.Table


def write_partition(task: Task) -> Written:
    """Write a partition's leaf and that of its margin."""
    inside: list[pa.Table] = []
    around: list[pa.Table] = []
    for number, chunk in task.chunks.items():
        own = [members.rows.filter(pc.equal(members.rows["chunk"], number)) for members in (task.inside, task.around)]
        tiles = {tile for rows in own for tile in rows["tile_id"].unique().to_pylist()}
        table = chunk.read(task.schema.names, tiles)
        names = _names(table)
        for rows, found in zip(own, (inside, around), strict=True):
            found.append(table.filter(pc.is_in(names, value_set=_names(rows))))
    rows = _ordered(task, inside, task.inside)
    leaf = _write_leaf(task, TABLE, rows)
    best = rows.filter(pc.less_equal(rows["rank"], BEST))
    margin = _write_leaf(task, MARGIN, _ordered(task, around, task.around)) if task.around.chunks else None
    return Written(leaf, margin, best)


def _ordered(task: Task, parts: Sequence[pa.Table], members: Members) -> pa.Table:
    """The rows of a leaf as the catalog has them, with their ranks."""
    rows = pa.concat_tables(parts).sort_by([("_healpix_29", "ascending"), ("object_id", "ascending")])
    if not _same(rows, members.rows):
        raise _Changed(f"partition {task.pixel.path}: its rows are not those of the first pass any more")
    columns = [members.rows[name] if name in ("system_id", *RANKS) else rows[name] for name in task.schema.names]
    return pa.Table.from_arrays(columns, schema=task.schema)


def _names(rows: pa.Table) -> pa.Array:
    """Names that are unique in a run: an object may be there in two fields."""
    return pc.binary_join_element_wise(rows["tile_id"], rows["object_id"], "/").combine_chunks()


def _same(rows: pa.Table, indexed: pa.Table) -> bool:
    """Return whether names and scores are equal."""
    now, then = (np.asarray(table["score"].to_numpy(), np.float64) for table in (rows, indexed))
    return bool(rows["object_id"].equals(indexed["object_id"])) and np.array_equal(now, then, equal_nan=True)


def _write_leaf(task: Task, table: str, rows: pa.Table) -> hats.Leaf:
    leaf, data = hats.leaf(task.pixel, rows, task.lengths)
    task.snapshot.put(data, table, "dataset", task.pixel.path)
    return leaf


def _table(
    table: str,
    schema: pa.Schema,
    lengths: Mapping[str, int],
    leaves: Sequence[hats.Leaf],
    facts: Mapping[str, Any],
) -> dict[str, bytes]:
    """Files of a table beside its leaves, by path in the snapshot."""
    common = {
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": "_healpix_29",
        "hats_col_healpix_order": 29,
        "hats_max_rows": facts["partition_rows"],
        "hats_builder": "surveybridge",
        "hats_creation_date": facts["last_tile_at"],  # of the content: publishing again is no news
    }
    if table == TABLE:
        own = {"obs_collection": facts["name"], "dataproduct_type": "object", "hats_skymap_order": hats.SKYMAP_ORDER}
    else:
        own = {
            "obs_collection": f"{facts['name']}_{MARGIN}",
            "dataproduct_type": "margin",
            "hats_primary_table_url": TABLE,
            "hats_margin_threshold": facts["margin_arcsec"],
        }
    files = hats.table_files(schema, lengths, leaves, {**own, **common})
    return {f"{table}/{path}": data for path, data in files.items()}
