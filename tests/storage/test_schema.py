"""Schemas: every column explains itself, and the files open in the readers that astronomers have."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import astropy.units as u
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table

from surveybridge.storage.errors import StorageError
from surveybridge.storage.parquet import parquet_bytes, read_parquet
from surveybridge.storage.schema import (
    CANDIDATES,
    LEDGER,
    MANIFEST,
    MOSAIC,
    THUMBNAILS,
    conform,
    stamp_array,
    stamps,
    table_from_rows,
)
from surveybridge.storage.sky import cone_ranges, healpix_29


def candidates(n: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    ra, dec = 53 + rng.random(n), -28 + rng.random(n)
    columns = {
        "object_id": [f"t{seed}-{i}" for i in range(n)],
        "ra": ra,
        "dec": dec,
        "_healpix_29": healpix_29(ra, dec),
        "tile_id": ["t"] * n,
        "score": rng.random(n),
        "flux_VIS": rng.random(n).astype(np.float32),
        "flags": np.zeros(n, np.int32),
    }
    table = pa.table(columns | {name: stamps(name, _stamp(name, n, rng)) for name in THUMBNAILS})
    return conform(table, CANDIDATES, "candidates")


def _stamp(name, n, rng):
    return rng.normal(size=(n, 3 if name == "thumbnail_lsst" else 1, 64, 64))


@pytest.fixture(params=[3, 0], ids=["three rows", "no rows"])
def file(request, tmp_path):
    path = tmp_path / "candidates.parquet"
    path.write_bytes(parquet_bytes(candidates(request.param), votable=True))
    return path, request.param


@pytest.mark.parametrize("schema", [MANIFEST, MOSAIC, CANDIDATES, LEDGER], ids=["manifest", "mosaic", "cand", "ledger"])
def test_every_column_has_a_description_and_an_ucd_and_units_that_astropy_knows(schema):
    for field in schema:
        assert field.metadata[b"description"] and field.metadata[b"ucd"], field.name
        u.Unit(field.metadata.get(b"unit", b"").decode(), format="vounit")


def test_astropy_reads_units_and_values(file):
    path, n = file
    table = Table.read(path, format="parquet.votable")
    assert len(table) == n
    assert table["ra"].unit == u.deg and table["thumbnail_lsst"].unit == u.nJy
    assert table["score"].description.startswith("Anomaly score")
    if n:
        truth = candidates(n)
        assert table["_healpix_29"].tolist() == truth["_healpix_29"].to_pylist()
        assert list(table["object_id"]) == truth["object_id"].to_pylist()
        lsst = np.asarray(table["thumbnail_lsst"]).reshape(n, 3, 64, 64)
        np.testing.assert_array_equal(lsst, stamp_array(truth, "thumbnail_lsst"))


def test_duckdb_reads_it(file):
    path, n = file
    sql = f"SELECT object_id, ra, len(thumbnail_lsst) FROM '{path}' ORDER BY object_id"
    rows = duckdb.connect().execute(sql).fetchall()
    truth = candidates(n).to_pylist()
    assert rows == [(row["object_id"], row["ra"], 3 * 64 * 64) for row in truth]


def test_pandas_reads_it(file):
    path, n = file
    frame = pd.read_parquet(path)
    assert len(frame) == n
    assert list(frame.columns) == CANDIDATES.names
    assert all(len(stamp) == 64 * 64 for stamp in frame.thumbnail_euclid)


def test_polars_reads_it(file):
    polars = pytest.importorskip("polars", reason="polars is not a dependency; checked where it is installed")
    path, n = file
    assert polars.read_parquet(path).height == n


def test_plain_pyarrow_keeps_the_schema_even_without_rows(file):
    path, _ = file
    found = pq.read_schema(path)
    assert found.equals(CANDIDATES, check_metadata=False)
    for field in CANDIDATES:
        assert field.metadata.items() <= found.field(field.name).metadata.items()


def test_the_votable_header_is_well_formed_and_names_all_columns(file):
    footer = pq.read_schema(file[0]).metadata
    assert footer[b"IVOA.VOTable-Parquet.version"] == b"1.0"
    names = [e.get("name") for e in ET.fromstring(footer[b"IVOA.VOTable-Parquet.content"]).iter() if "FIELD" in e.tag]
    assert names == CANDIDATES.names


def test_equal_tables_are_equal_bytes_however_they_are_chunked():
    table = candidates(5)
    chunked = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    assert parquet_bytes(table, votable=True) == parquet_bytes(chunked, votable=True)


def test_stamps_go_in_and_come_out():
    data = np.random.default_rng(3).normal(size=(4, 3, 64, 64)).astype(np.float32)
    table = pa.table({"thumbnail_lsst": stamps("thumbnail_lsst", data)})
    np.testing.assert_array_equal(stamp_array(table, "thumbnail_lsst"), data)
    np.testing.assert_array_equal(stamp_array(table.slice(1, 2), "thumbnail_lsst"), data[1:3])
    with pytest.raises(StorageError, match=r"\(1, 64, 64\) but the schema has \(3, 64, 64\)"):
        stamps("thumbnail_lsst", data[:, :1])


def test_conform_fills_what_lacks_and_refuses_what_it_does_not_know():
    table = conform(pa.table({"score": [1.0], "object_id": ["a"]}), CANDIDATES, "candidates")
    assert table.schema.equals(CANDIDATES, check_metadata=True)
    assert table["rank"].null_count == 1
    assert np.isnan(stamp_array(table, "thumbnail_error")).all()
    with pytest.raises(StorageError, match=r"unknown column.* scoer"):
        conform(pa.table({"scoer": [1.0]}), CANDIDATES, "candidates")
    with pytest.raises(StorageError, match="column score is string but the schema has double"):
        conform(pa.table({"score": ["high"]}), CANDIDATES, "candidates")
    with pytest.raises(StorageError, match=r"unknown column.* sconds"):
        table_from_rows([{"tile_id": "a", "sconds": 1}], LEDGER, "ledger rows")


def test_a_file_of_an_older_version_that_lacks_a_column_opens():
    old = candidates(2).drop_columns(["theta"])
    table = conform(read_parquet(parquet_bytes(old)), CANDIDATES, "candidates")
    assert table["theta"].null_count == 2


@pytest.mark.parametrize(
    "ra, dec, radius", [(10, -30, 5), (0, 90, 20), (359.9999, 0.1, 30), (45, 41.8, 3600), (1, 0, 3e5)]
)
def test_cone_ranges_cover_the_cone_and_not_much_more(ra, dec, radius):
    rng = np.random.default_rng(1)
    points_dec = np.clip(dec + rng.normal(0, radius / 3600, 5000), -90, 90)
    points_ra = ra + rng.normal(0, radius / 3600, 5000) / max(np.cos(np.radians(dec)), 1e-3)
    sky = SkyCoord(points_ra, points_dec, unit="deg")
    distance = sky.separation(SkyCoord(ra, dec, unit="deg")).arcsec
    index = healpix_29(sky.ra.deg, sky.dec.deg)
    found = np.zeros(5000, bool)
    for first, last in cone_ranges(ra, dec, radius):
        found |= (index >= first) & (index <= last)
    assert found[distance <= radius].all() and (distance <= radius).any()
    assert not found[distance > 4 * radius].any()


def test_cones_that_are_none_are_refused():
    with pytest.raises(StorageError, match=r"dec 95 deg lies outside -90\.\.90"):
        cone_ranges(10, 95, 1)
    with pytest.raises(StorageError, match="radius 0 arcsec"):
        cone_ranges(10, 9, 0)
    with pytest.raises(StorageError, match="ra nan"):
        cone_ranges(float("nan"), 9, 1)
