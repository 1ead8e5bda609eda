"""Ownership: one owner for every position, whatever the order; objects next to borders neither lost nor doubled."""

from __future__ import annotations

import pickle
import time

import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord

from surveybridge.storage.border_matches import owned_rows
from surveybridge.storage.covered_cells import EVERYWHERE, NOWHERE, PARTLY, cell_coverage
from surveybridge.storage.errors import StorageError
from surveybridge.storage.ownership import Cores, Ownership
from tests.storage.overlaps import Field, cores, grids, scattered

# Three fields around RA 0, all of which overlap each other, and one that none touches.
WEST = Field("west", 359.999, -31.0, 12.0)
EAST = Field("east", 0.0075, -31.002, -33.0)
SOUTH = Field("south", 0.003, -31.0085, 71.0, side=3, tile=150, scale=0.2)
FAR = Field("far", 12.0, 8.0)
FIELDS = (WEST, EAST, SOUTH)


def centre_distance(field: Field, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    return SkyCoord(ra, dec, unit="deg").separation(SkyCoord(field.ra, field.dec, unit="deg")).arcsec


def test_the_owner_is_the_field_with_the_nearest_centre_of_those_whose_core_holds_the_position():
    ra, dec = scattered(np.random.default_rng(1), 20_000, 0.003, -31.003, 60)
    fields = (*FIELDS, FAR)
    ownership = Ownership(cores(*fields), grids(*fields))
    distance = np.array([np.where(f.tile_at(ra, dec) >= 0, centre_distance(f, ra, dec), np.inf) for f in FIELDS])
    several = 0
    for run, field in enumerate(FIELDS):
        seen, table = field.rows(ra, dec)
        expected = distance.argmin(axis=0)[seen] == run
        assert (ownership.judge(run, table).owned == expected).all()
        several += int((~expected).sum())
    assert several > 5000
    seen, table = FAR.rows(*scattered(np.random.default_rng(2), 50, FAR.ra, FAR.dec, 20))
    assert ownership.judge(3, table).owned.all() and not ownership.judge(3, table).near.any()


def test_neither_the_order_of_runs_nor_their_division_into_parts_matters():
    ra, dec = scattered(np.random.default_rng(3), 5000, 0.003, -31.003, 60)
    straight = Ownership(cores(*FIELDS), grids(*FIELDS))
    turned = Ownership(cores(*FIELDS[::-1]), grids(*FIELDS))
    parts = [Cores(f"run{k}", WEST.tiles(range(k, 16, 2))) for k in range(2)]
    divided = Ownership([parts[1], *cores(SOUTH, EAST), parts[0]], grids(*FIELDS))
    sent = pickle.loads(pickle.dumps(straight))  # to another machine
    for run, field in enumerate(FIELDS):
        _, table = field.rows(ra, dec)
        owned = straight.judge(run, table).owned
        assert (sent.judge(run, table).owned == owned).all()
        assert 0 < owned.sum() < len(owned)
        assert (turned.judge(2 - run, table).owned == owned).all()
    for place, numbers in ((0, range(1, 16, 2)), (3, range(0, 16, 2))):
        _, table = WEST.rows(ra, dec, numbers)
        assert (divided.judge(place, table).owned == straight.judge(0, table).owned).all()


def test_a_tile_that_does_not_count_leaves_its_sky_to_the_next_field():
    ra, dec = scattered(np.random.default_rng(4), 5000, 0.003, -31.003, 60)
    left_out = [5, 6, 9, 10]
    west = Cores("west", WEST.tiles([k for k in range(16) if k not in left_out]))
    ownership = Ownership([west, *cores(EAST)], grids(WEST, EAST))
    _, table = EAST.rows(ra, dec)
    owned, in_west = ownership.judge(1, table).owned, WEST.tile_at(table["ra"].to_numpy(), table["dec"].to_numpy())
    gone = np.isin(in_west, left_out)
    assert gone.sum() > 50 and owned[gone].all()
    assert (~owned[~gone & (in_west >= 0)]).sum() > 20


def test_of_a_tile_that_is_partly_covered_only_the_covered_cells_own_anything():
    """A tile of 2 x 2 cells: everywhere, partly, nowhere, everywhere."""
    ra, dec = scattered(np.random.default_rng(5), 8000, 0.003, -31.003, 60)
    covered = [EVERYWHERE, PARTLY, NOWHERE, EVERYWHERE]
    west = Cores("west", WEST.tiles(covered_cells=covered))
    ownership = Ownership([west, *cores(EAST)], grids(WEST, EAST))
    _, table = EAST.rows(ra, dec)
    x, y = WEST.wcs.all_world2pix(table["ra"].to_numpy(), table["dec"].to_numpy(), 0)
    in_west = WEST.tile_at(table["ra"].to_numpy(), table["dec"].to_numpy()) >= 0
    cell = (np.floor(y + 0.5) % 128 // 64 * 2 + np.floor(x + 0.5) % 128 // 64).astype(int)
    whole = in_west & np.isin(cell, [0, 3])
    owned = ownership.judge(1, table).owned
    assert owned[in_west & ~whole].all() and 0 < owned[whole].sum() < whole.sum()
    _, table = WEST.rows(ra, dec)
    alone = EAST.tile_at(table["ra"].to_numpy(), table["dec"].to_numpy()) < 0
    assert ownership.judge(0, table).owned[alone].all()  # what nobody else shows stays


def test_coverage_is_stated_by_cells_of_pixels():
    usable = np.ones((130, 200), bool)
    assert cell_coverage(usable) is None
    usable[:64, :64] = False
    usable[129, 199] = False
    assert cell_coverage(usable) == [0, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_objects_with_other_centres_in_each_field_are_neither_lost_nor_doubled(seed):
    """Objects along all borders, also where three fields meet, with centres that differ by up to 0.48 arcsec.

    One of the fields shows only what lies in some of its cells of pixels.
    """
    rng = np.random.default_rng(seed)
    lattice = np.array(np.meshgrid(*2 * [np.arange(-60, 60, 1.6)])).reshape(2, -1)  # none nearer than can be told apart
    north, east = (lattice + rng.uniform(-0.3, 0.3, lattice.shape)) / 3600
    ra, dec = (0.003 + east / np.cos(np.deg2rad(31.003))) % 360, -31.003 + north
    tables, objects, covered = [], [], [EVERYWHERE, NOWHERE, PARTLY, EVERYWHERE]
    for field in FIELDS:
        shift, angle = rng.uniform(0, 0.24, len(ra)) / 3600, rng.uniform(0, 2 * np.pi, len(ra))
        seen, table = field.rows(
            (ra + shift * np.cos(angle) / np.cos(np.deg2rad(dec))) % 360, dec + shift * np.sin(angle)
        )
        if field is WEST:
            x, y = WEST.wcs.all_world2pix(table["ra"].to_numpy(), table["dec"].to_numpy(), 0)
            shown = [
                covered[c] > 0 for c in (np.floor(y + 0.5) % 128 // 64 * 2 + np.floor(x + 0.5) % 128 // 64).astype(int)
            ]
            seen, table = seen[shown], table.filter(pa.array(shown))
        tables.append(table)
        objects.append(seen)
    runs = [Cores("west", WEST.tiles(covered_cells=covered)), *cores(EAST, SOUTH)]
    ownership = Ownership(runs, grids(*FIELDS))
    by_position = [ownership.judge(run, table).owned for run, table in enumerate(tables)]
    kept, _ = owned_rows(ownership, tables)
    counts, before = (
        np.bincount(np.concatenate([o[k] for o, k in zip(objects, found, strict=True)]), minlength=len(ra))
        for found in (kept, by_position)
    )
    seen = np.unique(np.concatenate(objects))
    assert len(seen) > 2000 and (counts[seen] == 1).all()
    assert (before[seen] == 0).sum() > 2 and (before[seen] > 1).sum() > 2  # so position alone is not enough
    changed = sum(int((a != b).sum()) for a, b in zip(kept, by_position, strict=True))
    assert changed < len(seen) / 20
    turned = owned_rows(Ownership(runs[::-1], grids(*FIELDS)), tables[::-1])[0][::-1]
    assert all((a == b).all() for a, b in zip(kept, turned, strict=True))


def test_neighbours_within_the_radius_in_one_field_stay_two_objects():
    """A lens and its arc 0.3 arcsec apart on a border, seen in both fields: each is kept once, from either."""
    rng = np.random.default_rng(7)
    middle = SkyCoord([WEST.ra, EAST.ra], [WEST.dec, EAST.dec], unit="deg").cartesian.mean()
    centre = SkyCoord(middle.x, middle.y, middle.z, representation_type="cartesian").represent_as("unitspherical")
    for _ in range(6):
        north = rng.uniform(-3, 3)
        ra = np.repeat(centre.lon.deg, 2) + rng.uniform(-0.2, 0.2) / 3600
        dec = centre.lat.deg + np.array([north, north + 0.3]) / 3600
        tables = []
        for field in (WEST, EAST):
            seen, table = field.rows(ra + rng.uniform(-0.05, 0.05, 2) / 3600, dec + rng.uniform(-0.05, 0.05, 2) / 3600)
            assert len(seen) == 2
            tables.append(table)
        kept, _ = owned_rows(Ownership(cores(WEST, EAST), grids(WEST, EAST)), tables)
        assert (kept[0].astype(int) + kept[1] == 1).all()


def test_two_runs_of_the_same_pixels_are_refused_with_both_tiles_named():
    again = Cores("runs/again", EAST.tiles([3, 7]))
    with pytest.raises(StorageError, match=r"tile east_3 of runs/east and tile east_3 of runs/again .* grid grid-east"):
        Ownership([*cores(WEST, EAST), again], grids(WEST, EAST))
    coarser = Cores("runs/coarser", EAST.tiles([0], tile_id="big", core_y0=100, core_height=200, core_width=300))
    with pytest.raises(
        StorageError, match=r"tile east_[0-7] of runs/east and tile big of runs/coarser own the same pixels"
    ):
        Ownership([*cores(EAST), coarser], grids(EAST))
    crossing = [Cores("a", EAST.tiles([0], core_y0=50, core_height=10, core_width=400)),
                Cores("b", EAST.tiles([0], core_x0=70, core_height=400, core_width=10))]  # fmt: skip
    with pytest.raises(StorageError, match="own the same pixels"):
        Ownership(crossing, grids(EAST))


def test_tiles_that_lie_nobody_knows_where_own_all_that_they_have():
    ra, dec = scattered(np.random.default_rng(8), 500, 0.003, -31.003, 40)
    unknown = Cores("old", WEST.tiles(grid_id=None))
    ownership = Ownership([unknown, *cores(EAST)], grids(EAST))
    assert not ownership.contested
    for run, field in enumerate((WEST, EAST)):
        assert ownership.judge(run, field.rows(ra, dec)[1]).owned.all()
    empty = Ownership([Cores("none", WEST.tiles([])), *cores(EAST)], grids(EAST))
    assert empty.judge(1, EAST.rows(ra, dec)[1]).owned.all()


def test_a_hundred_thousand_tiles_cost_seconds():
    """40 fields of 2500 tiles; twice as many tiles take about twice as long, and no more."""

    def seconds(fields: list[Field]) -> float:
        start = time.process_time()
        ownership = Ownership(cores_of[: len(fields)], grids(*fields))
        assert ownership.contested
        _, table = fields[0].rows(*scattered(np.random.default_rng(0), 30_000, fields[0].ra, fields[0].dec, 700))
        assert 0 < ownership.judge(0, table).owned.mean() < 1
        return time.process_time() - start

    fields = [Field(f"f{k}", 50 + 0.32 * (k % 8), 5 + 0.32 * (k // 8), 2.0 * k, side=50, tile=256) for k in range(40)]
    cores_of = cores(*fields)
    assert sum(run.tiles.num_rows for run in cores_of) == 100_000
    half, whole = seconds(fields[:20]), seconds(fields)
    assert whole < 20 and whole < 4 * half + 1
