"""Segments: readers see exactly the rows that count while files move, and a kill at any point changes nothing."""

from __future__ import annotations

import collections
import datetime
import itertools
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy import units
from astropy.table import Table

from surveybridge.storage import compaction
from surveybridge.storage.catalog_sources import Source
from surveybridge.storage.errors import StorageError
from surveybridge.storage.mosaics import TileMosaic
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.parquet import parquet_bytes
from surveybridge.storage.query import query
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import LEDGER, stamp_array, table_from_rows
from tests.storage.test_runs import RUN, make_candidates, make_header, make_planes

WHEN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
TILES = ("a", "b", "c", "d", "e", "f", "g")


class Killed(BaseException):
    """What ends a run here: nothing may catch it."""


@dataclass(frozen=True)
class MortalFolder(Folder):
    """A folder whose user is killed after `left[0]` changes on disk."""

    left: list[int] = field(default_factory=list)

    def put(self, data: bytes, *parts: str) -> None:
        super().put(data, *parts)
        self._die()

    def delete_many(self, names: Sequence[str]) -> None:
        for name in names:
            super().delete_many([name])
            self._die()

    def _die(self) -> None:
        self.left[0] -= 1
        if self.left[0] == 0:
            raise Killed


def add(run: RunFolder, tile_id: str, *, attempt: int = 1, seed: int = 0, **row: Any) -> None:
    """A tile whose content is a function of (tile, seed); status failed writes the ledger row only."""
    if row.setdefault("status", "ok") == "ok":
        number = sum(tile_id.encode()) + 100 * seed
        mean, std, coverage = make_planes((10, 10), seed=number)
        run.write_mosaic(TileMosaic(tile_id, make_header(), ("VIS",), mean, std, coverage, (0, 0), "grid"))
        count = 0 if tile_id == "c" else 1 + number % 3
        run.write_candidates(tile_id, make_candidates(tile_id, count, number))
        row |= {"n_candidates": count}
    run.commit({"tile_id": tile_id, "attempt": attempt, "finished_at": WHEN, "content": f"{tile_id}{seed}", **row})


@pytest.fixture
def run(tmp_path):
    run = RunFolder.open_or_create(tmp_path / "run", RUN)
    for tile in TILES:
        add(run, tile, status="failed" if tile == "d" else "ok")
    return run


def seen(run: RunFolder) -> tuple[Any, ...]:
    """Everything that readers get: ledger, candidates by query and by tile, with thumbnails."""
    ledger = run.ledger().drop_columns(["candidates_path", "host"]).to_pylist()
    found = query(run.url, storage_options=run.folder.storage_options)
    tiles = [run.read_candidates(row["tile_id"]) for row in ledger if row["status"] == "ok"]
    return ledger, *(parquet_bytes(table) for table in (found, *tiles))  # bytes, since NaN is not equal to NaN


def on_disk(folder: Path) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """How often each tile stands in ledger files, and each object in candidates files, for who reads them all."""

    def count(where: str, column: str) -> collections.Counter[str]:
        files = sorted((folder / where).rglob("*.parquet"))
        return collections.Counter(
            v for file in files for v in pq.read_table(file, partitioning=None)[column].to_pylist()
        )

    return count("ledger", "tile_id"), count("candidates", "object_id")


def assert_each_once(run: RunFolder) -> None:
    tiles, objects = on_disk(Path(run.url))
    assert tiles == collections.Counter(run.ledger()["tile_id"].to_pylist())
    assert objects == collections.Counter(query(run.url)["object_id"].to_pylist())


def kill_everywhere(origin: RunFolder, scratch: Path, work: Callable[[RunFolder], Any]) -> Iterator[RunFolder]:
    """A copy of a run for every change that `work` makes on disk, killed right after it."""
    for step in itertools.count(1):
        shutil.copytree(origin.url, scratch / str(step))
        folder = MortalFolder.at(scratch / str(step))
        folder = MortalFolder(folder.url, left=[step])
        try:
            work(RunFolder(folder, origin.run_json))
        except Killed:
            yield RunFolder.open(folder.url)
        else:
            assert step > 5  # it did die on the way
            return


def test_compaction_changes_where_rows_lie_and_nothing_else(run):
    before = seen(run)
    assert run.loose_tiles() == list(TILES)
    assert run.compact(["b", "a", "d", "b"]) == 3
    assert run.compact(["a", "c", "unheard-of"]) == 1
    assert seen(run) == before
    assert run.loose_tiles() == ["e", "f", "g"]
    files = sorted(str(p.relative_to(run.url)) for p in Path(run.url).rglob("*.parquet") if "mosaics" not in str(p))
    assert len([name for name in files if name.startswith("ledger/segments/")]) == 2
    assert len([name for name in files if name.startswith("candidates/segments/")]) == 2
    assert [name for name in files if "segments" not in name] == [
        f"{kind}/{tile}.parquet" for kind in ("candidates", "ledger") for tile in "efg"
    ]
    assert_each_once(run)
    run.tidy()
    assert seen(run) == before
    assert (
        sorted(str(p.relative_to(run.url)) for p in Path(run.url).rglob("*.parquet") if "mosaics" not in str(p))
        == files
    )


def test_nothing_to_compact_writes_nothing(run):
    files = sorted(Path(run.url).rglob("*"))
    assert run.compact([]) == 0
    run.tidy()
    assert sorted(Path(run.url).rglob("*")) == files


def test_a_candidates_segment_is_a_voparquet_file_with_a_row_group_per_tile(run):
    run.compact(TILES)
    [path] = (Path(run.url) / "candidates/segments").iterdir()
    table = Table.read(path, format="parquet.votable")
    assert table["ra"].unit == units.deg and table["thumbnail_lsst"].unit == units.nJy
    assert sorted(table["object_id"]) == sorted(query(run.url)["object_id"].to_pylist())
    file = pq.ParquetFile(path)
    assert [file.read_row_group(i)["tile_id"].unique().to_pylist() for i in range(file.num_row_groups)] == [
        [tile] for tile in TILES if tile not in "cd"
    ]


@pytest.mark.parametrize("compacted", [False, True])
def test_who_asks_for_some_tiles_reads_none_of_the_others(run, compacted):
    """A partition of a catalog lies in few of the tiles of a chunk."""
    if compacted:
        run.compact(TILES)
    [chunk] = Source.of(run, 10_000).chunks
    everything = chunk.read(["tile_id", "score", "object_id"]).sort_by("object_id")
    for asked in ({"b"}, {"a", "f"}, {"c"}, {"none of them"}, set(TILES)):
        there = pc.is_in(everything["tile_id"], value_set=pa.array(sorted(asked)))
        assert chunk.read(everything.column_names, asked).sort_by("object_id").equals(everything.filter(there))


def test_segments_end_at_the_limit_of_their_candidates(run, monkeypatch):
    before = seen(run)
    sizes = [(Path(run.url) / f"candidates/{tile}.parquet").stat().st_size for tile in TILES if tile != "d"]
    monkeypatch.setattr(compaction, "SEGMENT_BYTES", sum(sizes) // 3)
    assert run.compact(TILES) == 7
    segments = list((Path(run.url) / "candidates/segments").iterdir())
    assert 3 <= len(segments) <= 6
    assert len(list((Path(run.url) / "ledger/segments").iterdir())) == len(segments)
    assert seen(run) == before
    assert_each_once(run)


@pytest.mark.long
def test_a_kill_at_any_point_of_a_compaction_is_not_seen_and_is_tidied_up(run, tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "FAN_IN", 2)
    run.compact("ab")
    before = seen(run)
    for killed in kill_everywhere(run, tmp_path, lambda run: run.compact("cdef")):
        assert seen(killed) == before
        again = RunFolder.open(shutil.copytree(killed.url, f"{killed.url}-again"))
        killed.tidy()
        assert seen(killed) == before
        assert_each_once(killed)
        again.compact(TILES)  # without tidying up, as after an error that passes
        assert seen(again) == before
        again.tidy()
        assert seen(again) == before
        assert_each_once(again)


@pytest.mark.long
def test_a_kill_at_any_point_of_tidying_up_is_not_seen_and_the_next_one_finishes(run, tmp_path, monkeypatch):
    run.compact("abc")
    run.compact("def")
    add(run, "b", attempt=2, seed=1)  # ingested anew: another content, other candidates
    add(run, "e", attempt=2, status="failed")
    add(run, "d", attempt=2)
    run.compact("d")
    folder = Path(run.url)
    shutil.copy(next((folder / "candidates/segments").iterdir()), folder / "candidates/segments/orphan.parquet")
    add(run, "a")  # done twice: its row stands in a segment, too, and says the same
    monkeypatch.setattr(compaction, "FAN_IN", 3)
    before = seen(run)
    assert {row["tile_id"]: row["content"] for row in before[0]}["b"] == "b1"
    found = query(run.url).to_pylist()
    assert len({row["object_id"] for row in found}) == len(found)
    stamps = {row["object_id"]: row["thumbnail_euclid"] for row in found}
    np.testing.assert_array_equal(
        stamp_array(run.read_candidates("b"), "thumbnail_euclid").reshape(-1, 64 * 64),
        np.array([stamps[name] for name in run.read_candidates("b")["object_id"].to_pylist()], np.float32),
    )
    for killed in kill_everywhere(run, tmp_path, RunFolder.tidy):
        assert seen(killed) == before
        killed.tidy()
        assert seen(killed) == before
        assert_each_once(killed)
    run.tidy()
    assert seen(run) == before
    assert_each_once(run)
    assert not (folder / "candidates/segments/orphan.parquet").exists()


@pytest.mark.parametrize("seconds", range(4))  # other hashes: which of two copies counts depends on their names
def test_a_segment_that_a_killed_tidying_wrote_is_not_removed_as_its_own_predecessor(tmp_path, seconds):
    run = RunFolder.open_or_create(tmp_path / "run", RUN)
    for tile in "ab":
        add(run, tile, finished_at=WHEN + datetime.timedelta(seconds=seconds))
    run.compact("ab")
    add(run, "b", attempt=2, seed=1)
    before = seen(run)
    with pytest.raises(Killed):  # after the new candidates and the new rows, before anything is removed
        RunFolder(MortalFolder(run.url, left=[2]), run.run_json).tidy()
    assert len(list((tmp_path / "run/ledger/segments").iterdir())) == 2
    run.tidy()
    assert seen(run) == before
    assert_each_once(run)


def test_the_last_attempt_counts_and_of_equal_ones_the_later(run):
    run.compact(TILES)
    add(run, "a", attempt=2, seed=1)
    add(run, "b", attempt=1, seed=2, finished_at=WHEN + datetime.timedelta(seconds=1))
    content = {row["tile_id"]: row["content"] for row in run.ledger().to_pylist()}
    assert (content["a"], content["b"], content["c"]) == ("a1", "b2", "c0")
    run.compact("ab")
    assert {row["tile_id"]: row["content"] for row in run.ledger().to_pylist()} == content


def test_a_row_that_a_presumed_dead_worker_left_without_candidates_gives_way_to_the_segment(run, caplog):
    before = seen(run)
    row = (Path(run.url) / "ledger/a.parquet").read_bytes()
    run.compact(TILES)
    late = pq.read_table(pa.BufferReader(row)).to_pylist()[0] | {"finished_at": WHEN + datetime.timedelta(seconds=9)}
    (Path(run.url) / "ledger/a.parquet").write_bytes(parquet_bytes(table_from_rows([late], LEDGER, "row")))
    with pytest.raises(StorageError, match=r"tile a: candidates/a\.parquet is not in"):
        run.read_candidates("a")
    assert run.compact(["a"]) == 0
    run.tidy()
    assert "a ledger row of tile a names candidates/a.parquet, which is gone" in caplog.text
    assert seen(run) == before
    assert_each_once(run)


def test_candidates_that_are_gone_for_good_do_not_cost_the_ledger_its_rows(run):
    run.compact("abc")
    shutil.rmtree(Path(run.url) / "candidates")
    before = run.ledger()
    run.tidy()
    assert run.ledger().equals(before)


def test_candidates_of_a_tile_that_is_not_committed_stay(run):
    run.write_candidates("later", make_candidates("later", 2))
    run.compact(TILES)
    run.tidy()
    assert run.read_candidates("later").num_rows == 2
    assert "later" not in set(query(run.url)["tile_id"].to_pylist())


@pytest.mark.parametrize("batch", [1, 4])
def test_many_compactions_leave_few_ledger_files(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(compaction, "FAN_IN", 4)
    monkeypatch.setattr(compaction, "MERGED_ROWS", 40)
    run = RunFolder.open_or_create(tmp_path / "run", RUN)
    tiles = [f"t{i:03d}" for i in range(96)]
    for start in range(0, len(tiles), batch):
        for tile in tiles[start : start + batch]:
            run.commit({"tile_id": tile, "status": "failed", "reason": tile})
        run.compact(tiles[start : start + batch])
        assert len(list((tmp_path / "run/ledger/segments").iterdir())) <= 3 * 3 + 3
    assert run.ledger()["tile_id"].to_pylist() == run.ledger()["reason"].to_pylist() == tiles
    rows = [pq.read_metadata(file).num_rows for file in (tmp_path / "run/ledger/segments").iterdir()]
    assert sum(rows) == 96 and max(rows) <= 40


def test_a_ledger_of_a_hundred_thousand_tiles_is_read_in_seconds(tmp_path):
    run = RunFolder.open_or_create(tmp_path / "run", RUN)
    folder = tmp_path / "run/ledger/segments"
    folder.mkdir(parents=True)
    count, size = 100_000, 1000
    for start in range(0, count, size):
        rows = [
            {
                "tile_id": f"t{i:06d}",
                "status": "ok",
                "attempt": 1,
                "content": f"{i * 7919:064x}",
                "seconds_model": i / 7,
                "host": "node",
                "finished_at": WHEN + datetime.timedelta(microseconds=i),
                "candidates_path": f"candidates/segments/{start:020d}.parquet",
            }
            for i in range(start, start + size)
        ]
        (folder / f"0-{size}-{start:020d}.parquet").write_bytes(parquet_bytes(table_from_rows(rows, LEDGER, "rows")))
    run.compact([])
    assert len(list(folder.iterdir())) < 30
    start_seconds = time.process_time()  # of this process, however busy the machine is
    ledger = run.ledger()
    assert time.process_time() - start_seconds < 3
    assert ledger.num_rows == count and ledger["tile_id"][-1].as_py() == f"t{count - 1:06d}"
    assert run.ledger(["status", "tile_id"]).column_names == ["status", "tile_id"]


def read_while(run: RunFolder, work: Callable[[int], Any], look: Callable[[RunFolder], Any], times: int) -> None:
    """Repeat `work` until another thread has looked so many times, in two minutes; it must see the same every time."""
    before = look(run)
    looks, done = [0], threading.Event()
    wrong: list[str] = []

    def reader() -> None:
        reading = RunFolder.open(run.url, run.folder.storage_options)
        while not done.is_set() and not wrong:
            try:
                if look(reading) != before:
                    wrong.append("another content")
            except Exception as error:
                wrong.append(repr(error))
            looks[0] += 1

    thread = threading.Thread(target=reader)
    thread.start()
    deadline = time.monotonic() + 120
    try:
        for number in itertools.count():
            work(number)
            if looks[0] >= times or wrong or time.monotonic() > deadline:
                break
    finally:
        done.set()
        thread.join()
    assert wrong == []
    assert looks[0] >= times
    assert look(run) == before


def what_counts(run: RunFolder) -> Any:
    """Ledger and candidates, without what a repeated tile changes."""
    found = query(run.url, top=9, storage_options=run.folder.storage_options)
    ledger = run.ledger(["tile_id", "status", "content"]).to_pylist()
    ok = [row["tile_id"] for row in ledger if row["status"] == "ok"]
    some = [run.read_candidates(tile)["object_id"].to_pylist() for tile in ok[::3]]
    return ledger, parquet_bytes(found), some


def churn(run: RunFolder, number: int) -> None:
    """Compact in batches, do tiles again, tidy up: every kind of move there is."""
    for start in range(0, len(TILES), 3):
        run.compact(TILES[start : start + 3])
    for tile in TILES[::2]:
        add(run, tile, attempt=2 + number, status="failed" if tile == "d" else "ok")
    run.compact(TILES[::4])
    run.tidy()


def test_readers_see_the_same_rows_while_files_move(run, monkeypatch):
    monkeypatch.setattr(compaction, "FAN_IN", 2)
    read_while(run, lambda number: churn(run, number), what_counts, times=8)
    assert_each_once(run)


def test_readers_see_the_same_rows_while_files_move_in_object_storage(bucket, options, monkeypatch):
    monkeypatch.setattr(compaction, "FAN_IN", 2)
    run = RunFolder.open_or_create(f"{bucket}/run", RUN, options)
    for tile in TILES:
        add(run, tile, status="failed" if tile == "d" else "ok")
    read_while(run, lambda number: churn(run, number), what_counts, times=3)
    assert run.loose_tiles() == ["c", "g"]  # done again after the last compaction
