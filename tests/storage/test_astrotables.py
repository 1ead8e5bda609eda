"""Tables for astronomers: units and UCDs in astropy, and every file read back by its usual reader."""

from __future__ import annotations

import io
import json

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import votable
from astropy.table import QTable, Table

from surveybridge.storage.astrotables import ENDINGS, KINDS, file_bytes, query_table, to_qtable
from surveybridge.storage.errors import StorageError
from surveybridge.storage.query import query, select
from surveybridge.storage.regions import Cone
from surveybridge.storage.schema import CANDIDATES
from tests.storage.skies import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("tables") / "run", side=2, rows=20)


@pytest.fixture(scope="module")
def found(run):
    return query(run.url, Cone(0.0, 0.0, 60.0), thumbnails=False)


def test_a_qtable_has_units_descriptions_and_ucds(run):
    table = query_table(run.url, Cone(0.0, 0.0, 60.0))
    assert isinstance(table, QTable) and len(table) > 5
    assert table["flux_VIS"].unit == u.nJy and table["flux_VIS"].dtype == np.float32
    assert table["separation"].unit == u.arcsec and (table["separation"] <= 1 * u.arcmin).all()
    assert np.isnan(table["flux_g"]).all()  # null in the run
    for field in CANDIDATES:
        if field.name in table.colnames:
            info = table[field.name].info
            assert info.description == field.metadata[b"description"].decode()
            assert info.meta["ucd"] == field.metadata[b"ucd"].decode()
    sky = SkyCoord(table["ra"], table["dec"])
    assert sky.separation(SkyCoord(0 * u.deg, 0 * u.deg)).arcsec == pytest.approx(table["separation"].value, abs=1e-6)


def test_thumbnails_have_their_shape_and_unit(run):
    table = query_table(run.url, top=3, columns=["object_id", "thumbnail_lsst", "thumbnail_euclid"])
    assert table["thumbnail_lsst"].shape == (3, 3, 64, 64) and table["thumbnail_euclid"].unit == u.nJy
    assert table["thumbnail_euclid"][0, 0].argmax() in (0, 32 * 64 + 32)


def test_integers_and_texts_with_nulls_are_masked():
    table = to_qtable(pa.table({"n": pa.array([1, None], pa.int32()), "t": pa.array(["a", None]), "b": [True, False]}))
    assert table["n"].mask.tolist() == [False, True] and table["t"].mask.tolist() == [False, True]
    assert table["n"].dtype == np.int32 and table["b"].dtype == bool


def test_a_table_of_sql_is_a_table_too(run):
    table = to_qtable(select(run.url, "SELECT tile_id, finished_at, [1, 2] AS pair FROM ledger ORDER BY 1"))
    assert len(table) == 4 and table["tile_id"][0] == "t0000"


@pytest.mark.parametrize("kind", ["votable", "fits"])
def test_units_come_back_from_files(found, kind):
    table = QTable.read(io.BytesIO(file_bytes(found, kind)), format=kind)
    assert table["flux_VIS"].unit == u.nJy and table["ra"].unit == u.deg and table["separation"].unit == u.arcsec
    assert [str(name).strip() for name in table["object_id"]] == found["object_id"].to_pylist()
    np.testing.assert_array_equal(np.asarray(table["rank"]), found["rank"].to_numpy())
    np.testing.assert_array_equal(np.asarray(table["score"]), found["score"].to_numpy())


def test_a_votable_says_its_frame_and_its_ucds(found):
    document = votable.parse(io.BytesIO(file_bytes(found, "votable")))
    assert document.resources[0].coordinate_systems[0].system == "ICRS"
    fields = {field.name: field for field in document.get_first_table().fields}
    assert fields["ra"].ucd == "pos.eq.ra;meta.main" and fields["ra"].ref == "icrs"
    assert fields["flux_VIS"].ucd == "phot.flux.density;em.opt" and fields["separation"].ucd == "pos.angDistance"


def test_parquet_is_a_voparquet(found):
    data = file_bytes(found, "parquet")
    table = Table.read(io.BytesIO(data), format="parquet.votable")
    assert table["flux_VIS"].unit == u.nJy and table["separation"].unit == u.arcsec
    assert pq.read_table(io.BytesIO(data)).num_rows == found.num_rows


def test_missing_integers_stay_missing_in_votable_and_fits():
    table = pa.table({"n": pa.array([5, None], pa.int32()), "name": ["a", None]})
    for kind in ("votable", "fits"):
        back = Table.read(io.BytesIO(file_bytes(table, kind)), format=kind)
        assert back["n"].mask.tolist() == [False, True] and back["n"][0] == 5


def test_names_beyond_ascii_come_back_and_fits_which_has_none_spells_them_out():
    table = pa.table({"grades": ["A Zoë ☃", None, "X Bob"]})
    for kind, form in (("csv", "ascii.csv"), ("votable", "votable"), ("parquet", "parquet")):
        assert Table.read(io.BytesIO(file_bytes(table, kind)), format=form)["grades"][0] == "A Zoë ☃"
    back = Table.read(io.BytesIO(file_bytes(table, "fits")))["grades"]
    assert [back[0], back[2], bool(back.mask[1])] == [r"A Zo\xeb \u2603", "X Bob", True]


@pytest.mark.filterwarnings("ignore:It is strongly recommended that column names")  # astropy, before it refuses
@pytest.mark.parametrize(
    ("kind", "column"), [("fits", {"é": [1]}), ("csv", {"d": pa.array([(0, 1, 0)], pa.month_day_nano_interval())})]
)
def test_what_a_format_cannot_hold_is_refused_with_a_remedy(kind, column):
    with pytest.raises(StorageError, match=f"{kind} cannot hold this table: .*; cast or rename") as error:
        file_bytes(pa.table(column), kind)
    assert "\n" not in str(error.value)


def test_csv_and_json_have_all_but_arrays(run):
    found = query(run.url, top=3)
    rows = json.loads(file_bytes(found, "json"))
    assert [row["rank"] for row in rows] == [1, 2, 3] and "thumbnail_lsst" not in rows[0]
    assert rows[0]["flux_g"] is None
    table = Table.read(io.BytesIO(file_bytes(found, "csv")), format="ascii.csv")
    assert table["rank"].tolist() == [1, 2, 3] and "thumbnail_lsst" not in table.colnames


def test_regions_are_circles_in_icrs_with_rank_and_name(found):
    lines = file_bytes(found, "reg").decode().splitlines()
    assert lines[:2] == ["# Region file format: DS9 version 4.1", "icrs"]
    first = found.slice(0, 1).to_pylist()[0]
    assert lines[2] == (
        f'circle({first["ra"]:.7f},{first["dec"]:.7f},1") # text={{{first["rank"]} {first["object_id"]}}}'
    )
    assert len(lines) == 2 + found.num_rows
    with pytest.raises(StorageError, match="need ra and dec, the table has rank"):
        file_bytes(found.select(["rank"]), "reg")


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_table_is_a_file_too(found, kind):
    assert file_bytes(found.slice(0, 0), kind)


def test_every_kind_of_file_has_an_ending():
    assert set(ENDINGS.values()) == set(KINDS)
