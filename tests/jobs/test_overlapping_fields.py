"""Two overlapping fields on two grids, one of them partly LSST alone: one catalog, however ingested and run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS

from surveybridge.__main__ import main
from surveybridge.storage.catalogs import Catalog
from surveybridge.storage.field_update import Slot, put_field
from surveybridge.storage.fields import FieldGrid
from surveybridge.storage.images import MASK_PLANES
from surveybridge.storage.ingest import Field, cut_tile, tile_boxes
from surveybridge.storage.query import EVERY_ROW, query
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import Tile, TileStore
from tests import tiny
from tests.storage.fits_files import gaussians
from tests.storage.overlaps import Field as Footprint

pytestmark = pytest.mark.long  # four translations

SIDE, TILE, HALO = tiny.SIDE, tiny.SIDE // 2, 32
NORTH = Footprint("north", 210.0, -5.0, 25.0, side=2, tile=TILE)
SOUTH = Footprint("south", 210.0012, -5.0032, 20.0, side=2, tile=TILE)
"""Fields of 19 arcsec, some arcsec from each other."""

EMPTY = TILE + HALO + 2
"""Columns of SOUTH without Euclid data: two of its tiles have none, and the other two have them in a part."""

QUICK = ["--samples", "2", "--steps", "1", "--score-samples", "2", "--score-steps", "1", "--executor", "serial"]


def objects() -> SkyCoord:
    """A lattice of objects over both fields, 1.7 arcsec apart."""
    steps = np.arange(-20, 20, 1.7) / 3600
    east, north = (values.ravel() for values in np.meshgrid(steps, steps))
    return SkyCoord(210.0006 + east / np.cos(np.deg2rad(5.0)), -5.0016 + north, unit="deg")


def ingested(field: Footprint, seed: int) -> Field:
    """What both surveys see of the objects on a field's grid, each with noise of its own."""
    x, y = field.wcs.all_world2pix(objects().ra.deg, objects().dec.deg, 0)
    images = {}
    for name, bands in tiny.SURVEY_BANDS.items():
        image = replace(tiny.make_image(name), wcs_header=field.grid.wcs_header)
        noise = np.array([tiny.SIGMA[band] for band in bands], np.float32)[:, None, None]
        sky = gaussians(field.shape, list(zip(y, x, strict=True)), tiny.SEEING[name] / 2.3548, 600.0)
        flux = (sky + noise * np.random.default_rng([seed, len(bands)]).normal(size=image.flux.shape)).astype(
            np.float32
        )
        variance, mask = np.broadcast_to(noise**2, flux.shape).copy(), np.zeros(flux.shape, np.uint8)
        if field is SOUTH and name == "euclid":
            flux[:, :, :EMPTY] = variance[:, :, :EMPTY] = np.nan
            mask[:, :, :EMPTY] = MASK_PLANES["NO_DATA"]
        images[name] = replace(image, flux=flux, variance=variance, mask=mask)
    return Field(images, "euclid")


def cut(field: Field, named: FieldGrid) -> Iterator[Tile]:
    """The tiles of a field as a store names them."""
    return (cut_tile(field, box, named) for box in tile_boxes(field.shape, TILE, HALO))


def put(store: Path, *fields: Footprint) -> str:
    """Ingest fields into a store, one after the other, without names."""
    for footprint in fields:
        field = ingested(footprint, 1 if footprint is NORTH else 2)
        grid = FieldGrid("", field.grid_id, field.wcs_header, field.shape, TILE, HALO)
        put_field(
            TileStore.create(store),
            grid,
            Slot(),
            functools.partial(cut, field),
        )
    return str(store)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, list[str]]:
    """Runs of one store in which one field was ingested first, or the other; and of two stores with a field each."""
    folder = tmp_path_factory.mktemp("fields")
    checkpoint = tiny.write_checkpoint(folder)
    stores: dict[str, list[tuple[Footprint, ...]]] = {
        "north first": [(NORTH, SOUTH)],
        "south first": [(SOUTH, NORTH)],
        "two runs": [(NORTH,), (SOUTH,)],
    }
    found: dict[str, list[str]] = {}
    for name, parts in stores.items():
        for number, fields in enumerate(parts):
            place = folder / f"{name} {number}".replace(" ", "-")
            store, run = put(place / "tiles", *fields), str(place / "run")
            assert main(["translate", "--store", store, "--run", run, "--checkpoint", checkpoint, *QUICK]) == 0
            found.setdefault(name, []).append(run)
    return found


def published(runs: list[str], where: Path) -> pa.Table:
    from hats.io.validation import is_valid_catalog

    assert main(["publish", "--run", *runs, "--out", str(where), "--partition-rows", "40"]) == 0
    assert is_valid_catalog(str(where), strict=True)
    return Catalog.open(where).dataset().to_table()


def content(rows: pa.Table) -> set[tuple[object, ...]]:
    """Rows as they are on the sky, whatever their tiles and runs are called."""
    names = ["object_id", "ra", "dec", "score", "flux_VIS", "flux_i", "snr_VIS", "flags", "x", "y", "rank"]
    return set(zip(*(rows[name].to_pylist() for name in names), strict=True))


def covered(place: SkyCoord, footprint: Footprint, margin: float) -> np.ndarray:
    """Whether a field shows positions to both surveys, so many pixels away from where it ends."""
    x, y = WCS(footprint.grid.wcs_header).all_world2pix(place.ra.deg, place.dec.deg, 0)
    low = EMPTY if footprint is SOUTH else 0
    inside = (y >= margin - 0.5) & (y < SIDE - margin - 0.5) & (x >= low + margin - 0.5) & (x < SIDE - margin - 0.5)
    return np.asarray(inside)


@pytest.mark.filterwarnings("ignore")  # of hats
def test_ingested_in_any_order_and_in_one_run_or_two_each_object_is_there_once(runs, tmp_path):
    rows = {name: published(given, tmp_path / name.replace(" ", "-")) for name, given in runs.items()}
    turned = published(runs["two runs"][::-1], tmp_path / "turned")
    assert content(rows["north first"]) == content(rows["south first"]) == content(rows["two runs"]) == content(turned)

    found, true = (
        SkyCoord(rows["two runs"]["ra"].to_numpy(), rows["two runs"]["dec"].to_numpy(), unit="deg"),
        objects(),
    )
    assert found.match_to_catalog_sky(found, nthneighbor=2)[1].arcsec.min() > 1.2, "an object is there twice"
    sure = covered(true, NORTH, 6) | covered(true, SOUTH, 6)
    both = covered(true, NORTH, 6) & covered(true, SOUTH, 6)
    assert sure.sum() > 100 and both.sum() > 8
    assert true[sure].match_to_catalog_sky(found)[1].arcsec.max() < 0.2, "an object is lost"
    counts = rows["two runs"]["run_id"].value_counts().to_pylist()
    assert len(counts) == 2 and min(entry["counts"] for entry in counts) > 15

    # Unpublished, the runs show the same.
    for name, given in runs.items():
        assert content(query(given, thumbnails=False, listing=EVERY_ROW)) == content(rows[name])


def test_the_ledger_says_where_both_ends_have_data(runs):
    ledger = RunFolder.open(runs["two runs"][1]).ledger().to_pylist()
    left, right = [row for row in ledger if row["core_x0"] == 0], [row for row in ledger if row["core_x0"] == TILE]
    assert [row["catalogued"] for row in left] == [False, False] and [row["n_candidates"] for row in left] == [0, 0]
    assert [row["covered_cells"] for row in right] == [[1, 2, 1, 2]] * 2
    north = RunFolder.open(runs["two runs"][0]).ledger()
    assert pc.all(north["catalogued"]).as_py() and north["covered_cells"].null_count == north.num_rows
