"""The part of a run that goes into a catalog: its ledger rows, and its candidates in chunks that are read together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from surveybridge.storage.errors import StorageError
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.problems import ProblemTable
from surveybridge.storage.published import published, published_tiles
from surveybridge.storage.runs import RunFolder, without_secrets
from surveybridge.storage.schema import CATALOG_LEDGER, RUNS
from surveybridge.storage.segments import read_candidates, read_rows


@dataclass(frozen=True)
class Chunk:
    """Candidates files of a run that are read together.

    Parameters
    ----------
    folder : Folder
        The run folder.
    files : mapping of str to sequence of str
        Files, and for each the tiles whose rows in it do not count.
    tiles : mapping of str to set of str
        Files, and for each the tiles whose rows in it count.
    schema : pyarrow.Schema
        Of the run's candidates.
    """

    folder: Folder
    files: Mapping[str, Sequence[str]]
    tiles: Mapping[str, Set[str]]
    schema: pa.Schema

    def read(self, columns: Sequence[str], tiles: Set[str] | None = None) -> pa.Table:
        """Rows that count, in no order; some columns of the schema. With `tiles`, at least those of these tiles."""
        files = self.files
        if tiles is not None:
            files = {file: stale for file, stale in files.items() if not tiles.isdisjoint(self.tiles[file])}
        return read_candidates(self.folder, files, columns, self.schema, tiles)


@dataclass(frozen=True)
class Source:
    """The part of a run that goes into a catalog.

    Parameters
    ----------
    run : RunFolder
        The run.
    ledger : pyarrow.Table
        Rows of the tiles that count, schema `CATALOG_LEDGER`, by tile_id.
    chunks : sequence of Chunk
        Their candidates.
    snapshot : str or None
        The snapshot of `sweep` that lists the tiles.
    """

    run: RunFolder
    ledger: pa.Table
    chunks: Sequence[Chunk]
    snapshot: str | None

    @classmethod
    def of(cls, run: RunFolder, chunk_rows: int) -> Source:
        """Choose the tiles that go in now: those that `sweep` published last, or else all ok tiles of the run.

        Parameters
        ----------
        run : RunFolder
            The run.
        chunk_rows : int
            Most rows of a chunk, unless one file has more.
        """
        rows = read_rows(run.folder)
        current = rows.current_table()
        ok = current.filter(pc.equal(current["status"], "ok"))
        snapshot, ok = _as_swept(run, ok)
        tiles = set(ok["tile_id"].to_pylist())
        left_out = {file: set(stale) for file, stale in rows.candidates_files().items()}
        counts = dict.fromkeys(left_out, 0)
        counted: dict[str, set[str]] = {file: set() for file in left_out}
        found = current.select(["tile_id", "candidates_path", "n_candidates"]).drop_null().to_pylist()
        for row in found:
            if row["tile_id"] in tiles:
                counts[row["candidates_path"]] += row["n_candidates"]
                counted[row["candidates_path"]].add(row["tile_id"])
            else:
                left_out[row["candidates_path"]].add(row["tile_id"])
        ledger = ok.append_column("run_id", pa.array([run_id(run)] * ok.num_rows, pa.string()))
        return cls(
            run,
            ledger.select(CATALOG_LEDGER.names).cast(CATALOG_LEDGER).sort_by("tile_id").combine_chunks(),
            tuple(_chunks(run, {f: n for f, n in counts.items() if n}, left_out, counted, chunk_rows)),
            snapshot,
        )

    def facts(self) -> dict[str, Any]:
        """Return what the catalog states about the run: a row of `RUNS`."""
        return run_facts(self.run) | {"tiles": self.ledger.num_rows, "published": self.snapshot}


def problem_of(runs: Sequence[RunFolder]) -> ProblemTable:
    """The problem of all runs; StorageError if their candidates have different columns, or there are none."""
    first = runs[0]
    for run in runs:
        if not run.candidates_schema.equals(first.candidates_schema, check_metadata=True):
            raise StorageError(
                f"{first.url} is of problem {first.problem['name']} but {run.url} of {run.problem['name']}, whose "
                "candidates have other columns; take the runs of one problem at a time"
            )
    return first.problem


def run_of(runs: Sequence[RunFolder], row_run_id: str | None) -> RunFolder:
    """The run that a row is from: one alone has all rows, whatever they state. StorageError if it is none of them."""
    if len(runs) == 1:
        return runs[0]
    for run in runs:
        if run_id(run) == row_run_id:
            return run
    raise StorageError(f"run {row_run_id} is none of {', '.join(run_id(run) for run in runs)}; give it too")


def run_facts(run: RunFolder) -> dict[str, Any]:
    """Return what run.json contributes to a row of `RUNS`."""
    known = {name: run.run_json.get(name) for name in RUNS.names if name not in ("tiles", "published")}
    facts: dict[str, Any] = without_secrets(known | {"url": run.url, "run_id": run_id(run)})
    return facts


def run_id(run: RunFolder) -> str:
    """Return the id of a run, or the name of its folder if it has none."""
    return str(run.run_json.get("run_id", run.url.rpartition("/")[2]))


def _as_swept(run: RunFolder, ok: pa.Table) -> tuple[str | None, pa.Table]:
    """The snapshot of `sweep`, and of the ok rows those that it lists with the same content."""
    root = Folder.at(run.url.rpartition("/")[0], run.folder.storage_options)
    snapshot = None
    with contextlib.suppress(OSError, StorageError, ValueError):  # the folder above need not be ours, nor readable
        snapshot = published(root, run_id(run))
    if snapshot is None:
        return None, ok
    tiles = published_tiles(root, snapshot)
    row = pc.index_in(ok["tile_id"].combine_chunks(), value_set=tiles["tile_id"].combine_chunks())
    same = pc.equal(ok["content"].combine_chunks(), tiles["content"].combine_chunks().take(row))
    return snapshot["path"], ok.filter(pc.fill_null(same, False))


def _chunks(
    run: RunFolder,
    counts: Mapping[str, int],
    left_out: Mapping[str, Set[str]],
    counted: Mapping[str, Set[str]],
    chunk_rows: int,
) -> Iterator[Chunk]:
    """Files with candidates, in the order of their names."""
    together: list[str] = []
    rows = 0
    for file in [*sorted(counts), None]:
        if together and (file is None or rows + counts[file] > chunk_rows):
            stale = {name: tuple(sorted(left_out[name])) for name in together}
            yield Chunk(run.folder, stale, {name: counted[name] for name in together}, run.candidates_schema)
            together, rows = [], 0
        if file is not None:
            together.append(file)
            rows += counts[file]
