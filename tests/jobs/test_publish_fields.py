"""Acceptance of a published catalog by its readers: on the shared field, and on 25 simulated tiles across RA 0.

The simulated ones go through ingest and translate as commands, with a network of random weights, since a catalog is
one of any scores; the shared field has the scores of the shipped one (`shared_field_run`).
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import QTable, Table, vstack

from surveybridge.__main__ import main
from surveybridge.storage import hats
from surveybridge.storage.catalogs import Catalog
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import CATALOG, THUMBNAILS
from surveybridge.storage.sky import healpix_29
from tests import tiny

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore"),  # of hats, lsdb and dask
]

PARTITIONS = 12
"""About so many, so that cones and matches go across borders."""

QUICK = ["--samples", "2", "--steps", "1", "--score-samples", "2", "--score-steps", "1", "--executor", "serial"]


@dataclass(frozen=True)
class Published:
    """A run, its catalog, and what there is to find: rows as the run's tiles hold them, and a table of true objects."""

    run: RunFolder
    catalog: str
    rows: pa.Table
    objects: pd.DataFrame

    @property
    def sky(self) -> SkyCoord:
        """Places of the rows."""
        return SkyCoord(self.rows["ra"].to_numpy(), self.rows["dec"].to_numpy(), unit="deg")

    @property
    def names(self) -> np.ndarray:
        """Names of the rows."""
        return np.array(self.rows["object_id"].to_pylist())

    @property
    def leaves(self) -> list[str]:
        """Parquet files of the table."""
        return sorted(glob.glob(f"{Catalog.open(self.catalog).table_url}/dataset/*/*/*.parquet"))


@pytest.fixture(scope="module", params=["shared field", "25 simulated tiles"])
def published(request, tmp_path_factory) -> Published:
    """One of the two runs, published in small partitions."""
    folder = tmp_path_factory.mktemp("accepted")
    if request.param == "shared field":
        truth = request.getfixturevalue("shared_data") / "field" / "field_truth.parquet"
        run = request.getfixturevalue("shared_field_run").url
    else:
        store, run = str(folder / "tiles"), str(folder / "run")
        euclid, lsst, truth = simulated_across_ra_zero(folder / "sky")
        images = ["--euclid", str(euclid), "--lsst", *map(str, lsst)]
        assert main(["ingest", *images, "--store", store, "--tile-size", "160"]) == 0
        checkpoint = tiny.write_checkpoint(folder)
        assert main(["translate", "--store", store, "--run", run, "--checkpoint", checkpoint, *QUICK]) == 0
    opened = RunFolder.open(run)
    rows = pa.concat_tables([opened.read_candidates(tile).drop_columns(THUMBNAILS) for tile in opened.ok_tiles()])
    catalog = str(folder / "catalog")
    small = ["--partition-rows", str(rows.num_rows // PARTITIONS)]
    assert main(["publish", "--run", run, "--out", catalog, *small]) == 0
    assert main(["publish", "--run", run, "--out", str(folder / "again"), *small]) == 0
    return Published(opened, catalog, rows, pd.read_parquet(truth))


def simulated_across_ra_zero(folder: Path) -> tuple[Path, list[Path], Path]:
    """A simulated field, turned in right ascension until its middle is at 0: Euclid, LSST, truth."""
    pytest.importorskip("galsim", reason="needs the sim extra")
    assert main(["simulate", "--out", str(folder), "--size", "800", "--lenses", "3", "--seed", "5"]) == 0
    paths = [folder / f"{name}.fits" for name in ("euclid_vis", "lsst_g", "lsst_r", "lsst_i")]
    truth = pd.read_parquet(folder / "truth.parquet")
    middle = truth.ra.mean()
    for path in paths:
        with fits.open(path, mode="update") as hdus:
            for hdu in hdus:
                if "CRVAL1" in hdu.header:
                    hdu.header["CRVAL1"] = (hdu.header["CRVAL1"] - middle) % 360
    truth["ra"] = (truth.ra - middle) % 360
    truth.to_parquet(folder / "truth.parquet")
    return paths[0], paths[1:], folder / "truth.parquet"


def test_hats_finds_it_strictly_valid_and_it_holds_each_row_once(published):
    from hats.io.validation import is_valid_catalog

    assert is_valid_catalog(published.catalog, strict=True)
    assert len(published.leaves) >= PARTITIONS // 2
    assert len(published.run.ok_tiles()) in (16, 25)
    found = Catalog.open(published.catalog).dataset().to_table()
    assert sorted(found["object_id"].to_pylist()) == sorted(published.names)
    assert found.num_rows > 50


def test_lsdb_cones_hold_what_skycoord_measures(published):
    import lsdb

    opened = lsdb.open_catalog(published.catalog)
    rng = np.random.default_rng(2)
    middles = published.sky[rng.integers(0, len(published.sky), 20)]
    healpix = published.rows["_healpix_29"].to_numpy()
    across_borders, across_zero = 0, 0
    for middle, radius in zip(middles, rng.uniform(3, 25, 20), strict=True):
        inside = published.sky.separation(middle).arcsec <= radius
        found = opened.cone_search(middle.ra.deg, middle.dec.deg, radius).compute()
        assert set(found["object_id"]) == set(published.names[inside]) and len(found) == inside.sum()
        touched = [((healpix[inside] >= low) & (healpix[inside] <= high)).any() for low, high in spans(published)]
        across_borders += sum(touched) > 1
        ra = published.sky.ra.deg[inside]
        across_zero += bool((ra > 359).any() and (ra < 1).any())
    assert across_borders >= 3
    assert across_zero >= 1 or published.sky.ra.deg.max() < 350


def test_lsdb_matches_true_objects_within_five_arcsec_as_skycoord_does(published):
    import lsdb

    objects = published.objects.reset_index(drop=True)[["ra", "dec"]].assign(number=range(len(published.objects)))
    left = lsdb.from_dataframe(objects, ra_column="ra", dec_column="dec")
    right = lsdb.open_catalog(published.catalog)
    found = left.crossmatch(right, radius_arcsec=5, suffixes=("_l", "_r"), suffix_method="all_columns").compute()
    index, distance, _ = SkyCoord(objects.ra, objects.dec, unit="deg").match_to_catalog_sky(published.sky)
    # LSDB leaves out whatever lies where the other catalog has no partition, at the edge of a field.
    healpix = healpix_29(objects.ra, objects.dec)
    near = (distance.arcsec <= 5) & np.any([(healpix >= low) & (healpix <= high) for low, high in spans(published)], 0)
    wanted = dict(zip(objects.number[near], published.names[index[near]], strict=True))
    assert dict(zip(found["number_l"], found["object_id_r"], strict=True)) == wanted
    assert len(wanted) > 50


def test_plain_readers_agree(published):
    leaves, count = published.leaves, published.rows.num_rows
    best = published.rows.sort_by([("score", "descending")])["object_id"][0].as_py()
    columns = "object_id, rank, system_rank"
    listed = duckdb.execute(f"SELECT {columns} FROM read_parquet({leaves}) ORDER BY rank, system_rank").fetchall()
    assert listed[0] == (best, 1, 1) and len(set(listed)) == count
    leading = [rank for _, rank, within in listed if within == 1]  # a row for each system
    assert leading == list(range(1, len(leading) + 1)) and {rank for _, rank, _ in listed} == set(leading)
    frame = polars.scan_parquet(leaves, hive_partitioning=False).sort("rank", "system_rank").collect()
    assert (frame["object_id"][0], len(frame)) == (best, count)
    table = ds.parquet_dataset(f"{Catalog.open(published.catalog).table_url}/dataset/_metadata").to_table()
    assert table.num_rows == count and table.schema.field("flux_VIS").metadata[b"unit"] == b"nJy"
    parts = [Table.read(leaf, format="parquet.votable") for leaf in leaves]
    units = QTable(vstack(parts, metadata_conflicts="silent"))
    assert len(units) == count
    for field in CATALOG:
        assert str(units[field.name].unit or "") == field.metadata.get(b"unit", b"").decode()
        assert parts[0][field.name].meta["ucd"] == field.metadata[b"ucd"].decode()


def test_published_again_it_is_the_same_to_the_byte(published):
    once, again = (
        {name: data for name, data in tiny.files_of(where).items() if "lease.json" not in name}
        for where in (published.catalog, Path(published.catalog).with_name("again"))
    )
    assert once == again and len(once) > 10


def spans(published: Published) -> list[tuple[int, int]]:
    """First and last HEALPix index of the catalog's partitions."""
    listed = Catalog.open(published.catalog).folder.read("candidates/partition_info.csv")
    return [pixel.range for pixel in hats.read_partitions(listed)]
