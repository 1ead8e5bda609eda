"""Overlapping fields in one run or in several: one catalog, and one list without a catalog, with each object once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from surveybridge.storage.catalogs import Catalog
from surveybridge.storage.errors import StorageError
from surveybridge.storage.mocs import read_moc
from surveybridge.storage.publishing import publish
from surveybridge.storage.query import EVERY_ROW, query, select
from surveybridge.storage.regions import Cone
from tests.storage.overlaps import Field, write_run
from tests.storage.test_publishing import content

pytestmark = pytest.mark.long

WEST = Field("west", 149.996, 2.0, 20.0, side=2, scale=0.4)
EAST = Field("east", 150.008, 2.004, -50.0, side=2, scale=0.4)


def objects() -> dict[Field, tuple[np.ndarray, np.ndarray]]:
    """About 500 objects over both fields, 4.8 arcsec apart, with centres that differ by up to 0.3 arcsec."""
    rng = np.random.default_rng(11)
    lattice = np.array(np.meshgrid(*2 * [np.arange(-100, 100, 4.8)])).reshape(2, -1)
    found = {}
    for field in (WEST, EAST):
        east, north = (lattice + rng.uniform(-0.1, 0.1, lattice.shape)) / 3600
        found[field] = 150.002 + east / np.cos(np.deg2rad(2.0)), 2.002 + north
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, str]:
    """One run of both fields, and two runs of one each."""
    folder, seen = tmp_path_factory.mktemp("overlapping"), objects()
    made = {"both": seen, "west": {WEST: seen[WEST]}, "east": {EAST: seen[EAST]}}
    return {name: write_run(folder / name, part, name).url for name, part in made.items()}


@pytest.fixture(scope="module")
def shown() -> np.ndarray:
    """Numbers of the objects that any field shows."""
    west, east = (field.rows(*places)[0] for field, places in objects().items())
    assert len(np.intersect1d(west, east)) > 100
    return np.union1d(west, east)


def numbers(found: pa.Table) -> list[int]:
    return sorted(int(number) for number in found["flux_VIS"].to_pylist())


def places(found: pa.Table) -> set[tuple[str, str]]:
    """Objects, and the tiles that they are from."""
    return set(zip(found["object_id"].to_pylist(), found["tile_id"].to_pylist(), strict=True))


def test_one_run_or_two_in_any_order_give_the_same_rows_with_every_object_once(runs, shown, tmp_path):
    given = {"one": ["both"], "two": ["west", "east"], "turned": ["east", "west"]}
    found = {}
    for name, wanted in given.items():
        done = publish([runs[run] for run in wanted], tmp_path / name, partition_rows=60)
        assert done.facts["partitions"] > 3 and done.facts["rows_of_others"] > 100
        found[name] = Catalog.open(tmp_path / name).dataset().to_table()
        assert numbers(found[name]) == shown.tolist()
        assert query(tmp_path / name, thumbnails=False)["rank"].to_pylist() == list(range(1, len(shown) + 1))
    assert places(found["one"]) == places(found["two"])
    assert content(tmp_path / "two") == content(tmp_path / "turned")
    assert set(found["two"]["field"].to_pylist()) == {None} or set(found["two"]["field"].to_pylist()) == {
        "west",
        "east",
    }


def test_margins_and_cones_hold_no_object_twice(runs, tmp_path):
    publish([runs["west"], runs["east"]], tmp_path / "catalog", partition_rows=60)
    opened = Catalog.open(tmp_path / "catalog")
    margin = pa.concat_tables(
        pq.read_table(file, partitioning=None) for file in Path(opened.folder.path("margin")).rglob("Npix=*.parquet")
    )
    rows = opened.dataset().to_table()
    assert margin.num_rows > 50 and places(margin) <= places(rows)
    cone = query(tmp_path / "catalog", Cone(150.002, 2.002, 20.0))
    assert len(numbers(cone)) == len(set(numbers(cone))) > 20
    assert pc.all(pc.equal(pc.list_element(cone["thumbnail_euclid"], 0), 7.0)).as_py()  # from the run of the row


def test_runs_are_read_together_and_alone_as_they_would_be_published(runs, shown, tmp_path):
    both, two = query(runs["both"]), query([runs["east"], runs["west"]])
    assert numbers(both) == numbers(two) == shown.tolist()
    assert places(both) == places(two)
    publish([runs["both"]], tmp_path / "catalog")
    listed = both.select(["rank", "object_id", "tile_id"]).to_pylist()
    assert listed == query(tmp_path / "catalog", thumbnails=False).select(["rank", "object_id", "tile_id"]).to_pylist()
    assert listed == two.select(["rank", "object_id", "tile_id"]).to_pylist()
    assert two["thumbnail_euclid"].null_count == 0 and set(two["run_id"].to_pylist()) == {"west", "east"}
    counted = select([runs["east"], runs["west"]], "SELECT run_id, count(*) AS n FROM ledger GROUP BY 1 ORDER BY 1")
    assert counted.to_pylist() == [{"run_id": "east", "n": 4}, {"run_id": "west", "n": 4}]
    assert select([runs["east"], runs["west"]], "SELECT run_id FROM runs ORDER BY 1")["run_id"].to_pylist() == [
        "east",
        "west",
    ]
    assert select(runs["both"], "SELECT count(*) AS n FROM candidates")["n"].to_pylist() == [len(shown)]


def test_systems_on_a_border_stay_one_system(tmp_path):
    """Lenses with an arc 1.2 arcsec from them: of some only one of the two is from the field that the other is from."""
    rng = np.random.default_rng(5)
    lattice = np.array(np.meshgrid(*2 * [np.arange(-48, 48, 4.0)])).reshape(2, -1)
    count, angle = lattice.shape[1], rng.uniform(0, 2 * np.pi, lattice.shape[1])
    both = np.concatenate([lattice, lattice + 1.2 * np.stack([np.cos(angle), np.sin(angle)])], axis=1)
    seen = {}
    for field in (WEST, EAST):
        east, north = (both + rng.uniform(-0.08, 0.08, both.shape)) / 3600
        seen[field] = 150.002 + east / np.cos(np.deg2rad(2.0)), 2.002 + north
    heads = np.tile(np.arange(count), 2)
    runs = [write_run(tmp_path / f.name, {f: places}, f.name, heads=heads).url for f, places in seen.items()]
    publish(runs, tmp_path / "catalog", partition_rows=200)
    west, east = (field.rows(*places)[0] for field, places in seen.items())
    shown = np.intersect1d(west, east)
    pairs = np.intersect1d(shown, shown - count)  # lenses that both fields show with their arcs
    for urls in (runs, str(tmp_path / "catalog")):
        rows = query(urls, thumbnails=False, listing=EVERY_ROW).to_pylist()
        by_number = {int(row["flux_VIS"]): row for row in rows}
        assert len(by_number) == len(rows)
        divided = 0
        for lens in pairs:
            one, other = by_number[lens], by_number[lens + count]
            assert one["system_id"] == other["system_id"] and one["rank"] == other["rank"]
            assert one["system_members"] == other["system_members"] == 2
            divided += one["run_id"] != other["run_id"]
        assert len(pairs) > 100 and divided > 3


def test_inside_a_moc_every_object_is_there_once(runs, tmp_path):
    whole = query(runs["both"], thumbnails=False)
    cell = int(np.median(whole["_healpix_29"].to_numpy())) >> 2 * (29 - 14)
    moc = read_moc(f"14/{cell - 1}-{cell + 1}")
    publish([runs["west"], runs["east"]], tmp_path / "part", moc=moc)
    inside = whole.filter(pa.array(moc.holds(whole["_healpix_29"].to_numpy())))
    assert 0 < inside.num_rows < whole.num_rows
    assert numbers(query(tmp_path / "part", thumbnails=False)) == numbers(inside)


def test_earlier_runs_say_where_their_tiles_lie_in_their_mosaics(runs, shown, tmp_path):
    seen = objects()
    old = [write_run(tmp_path / f.name, {f: places}, f"old-{f.name}", version=3).url for f, places in seen.items()]
    publish(old, tmp_path / "old")
    assert numbers(query(tmp_path / "old", thumbnails=False)) == shown.tolist()
    publish([old[0], runs["east"]], tmp_path / "mixed")
    assert numbers(query(tmp_path / "mixed", thumbnails=False)) == shown.tolist()


def test_two_runs_of_one_field_and_two_of_one_name_are_refused_with_both_named(runs, tmp_path):
    again = write_run(tmp_path / "again", {WEST: objects()[WEST]}, "again").url
    with pytest.raises(
        StorageError, match=r"tile west_0 of .*again and tile west_0 of .*west own the same pixels of grid"
    ):
        publish([runs["east"], runs["west"], again], tmp_path / "catalog")
    with pytest.raises(StorageError, match="own the same pixels"):
        query([runs["both"], runs["west"]])
    same = write_run(tmp_path / "same", {EAST: objects()[EAST]}, "west").url
    with pytest.raises(StorageError, match=f"{runs['west']} and {same} are both run west"):
        query([runs["west"], same])
    with pytest.raises(StorageError, match="each once"):
        query([runs["west"], runs["west"]])
    publish([runs["west"]], tmp_path / "catalog")
    with pytest.raises(StorageError, match="catalog is a catalog but 2 addresses are given"):
        query([runs["east"], str(tmp_path / "catalog")])
