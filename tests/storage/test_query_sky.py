"""Questions to runs and catalogs: boxes, MOCs and cross-matches as astropy measures them, the same rows from both."""

from __future__ import annotations

import csv
import gzip
import io

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import Latitude, Longitude, SkyCoord
from astropy.io import fits
from astropy.table import Column, Table
from mocpy import MOC

from surveybridge.storage.astrotables import file_bytes
from surveybridge.storage.catalogs import BEST
from surveybridge.storage.crossmatch import read_targets
from surveybridge.storage.errors import StorageError
from surveybridge.storage.mocs import read_moc
from surveybridge.storage.parquet import parquet_bytes
from surveybridge.storage.publishing import publish
from surveybridge.storage.query import query, select
from surveybridge.storage.regions import Box, Cone, Coverage, coarse
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import CANDIDATES, CATALOG, THUMBNAILS
from tests.storage.skies import make_run
from tests.storage.test_query import add_tile
from tests.storage.test_runs import RUN, make_candidates

pytestmark = pytest.mark.long  # 15 s in all


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("asked") / "run", side=6, rows=20)


@pytest.fixture(scope="module")
def catalog(run, tmp_path_factory):
    url = str(tmp_path_factory.mktemp("asked") / "catalog")
    publish([run.url], url, partition_rows=100)
    return url


@pytest.fixture(scope="module")
def truth(run):
    return query(run.url, thumbnails=False)


@pytest.fixture(params=["run", "catalog"])
def where(request, run, catalog):
    return run.url if request.param == "run" else catalog


def names(table: pa.Table) -> list[str]:
    return list(table["object_id"].to_pylist())


def inside(truth: pa.Table, mask) -> list[str]:
    return names(truth.filter(pa.array(np.asarray(mask))))


@pytest.mark.parametrize("centre", [(0.0, 0.0), (0.01, 0.02), (359.99, -0.03), (40.0, 40.0)])
def test_a_cone(where, truth, centre):
    sky = SkyCoord(truth["ra"].to_numpy(), truth["dec"].to_numpy(), unit="deg")
    distance = sky.separation(SkyCoord(*centre, unit="deg")).arcsec
    found = query(where, Cone(centre[0], centre[1], 90.0), thumbnails=False)
    assert names(found) == inside(truth, distance <= 90)
    assert found["separation"].to_pylist() == pytest.approx(distance[distance <= 90], abs=1e-6)
    assert found["rank"].to_pylist() == truth.filter(pa.array(distance <= 90))["rank"].to_pylist()
    assert found.schema.field("separation").metadata[b"unit"] == b"arcsec"


@pytest.mark.parametrize("pole", [90.0, -90.0])
def test_around_a_pole_run_and_catalog_find_what_astropy_finds(tmp_path, pole):
    run = RunFolder.open_or_create(tmp_path / "run", RUN)
    rng = np.random.default_rng(int(pole) % 7)
    for tile in "abcd":
        table = make_candidates(tile, 40, ord(tile))
        places = {"ra": rng.uniform(0, 360, 40), "dec": np.sign(pole) * (90 - rng.uniform(0, 120, 40) / 3600)}
        for name, values in places.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        add_tile(run, tile, table)
    publish([run.url], tmp_path / "catalog", partition_rows=20)
    everything = query(run.url, thumbnails=False)
    sky = SkyCoord(everything["ra"].to_numpy(), everything["dec"].to_numpy(), unit="deg")
    for ra, dec, radius in ((0.0, pole, 60.0), (200.0, pole, 5.0), (45.0, pole - np.sign(pole) / 60, 70.0)):
        wanted = inside(everything, sky.separation(SkyCoord(ra, dec, unit="deg")).arcsec <= radius)
        assert len(wanted) > 2
        for place in (run.url, tmp_path / "catalog"):
            assert names(query(place, Cone(ra, dec, radius), thumbnails=False)) == wanted
    cap = Box(0, 360, *sorted([pole, pole - np.sign(pole) / 60]))
    assert 40 < query(tmp_path / "catalog", cap, thumbnails=False).num_rows < 120


def test_a_box_across_ra_zero_and_one_beside_it(where, truth):
    ra, dec = truth["ra"].to_numpy(), truth["dec"].to_numpy()
    across = ((ra >= 359.98) | (ra <= 0.01)) & (dec >= -0.02) & (dec <= 0.03)
    assert 50 < across.sum() < 500
    assert names(query(where, Box(359.98, 0.01, -0.02, 0.03), thumbnails=False)) == inside(truth, across)
    assert names(query(where, Box(-0.02, 0.01, -0.02, 0.03), thumbnails=False)) == inside(truth, across)
    assert names(query(where, Box(-180, 180, -0.02, 0.03), thumbnails=False)) == inside(
        truth, (dec >= -0.02) & (dec <= 0.03)
    )
    beside = (ra >= 0.01) & (ra <= 0.02) & (dec >= -0.02) & (dec <= 0.03)
    assert names(query(where, Box(0.01, 0.02, -0.02, 0.03), thumbnails=False)) == inside(truth, beside)


@pytest.mark.parametrize("kind", ["fits", "json", "ascii", "text"])
def test_a_moc_from_a_file_of_any_kind_or_written_out(where, truth, tmp_path, kind):
    moc = MOC.from_cone(Longitude(0.01 * u.deg), Latitude(0.0 * u.deg), radius=0.03 * u.deg, max_depth=14)
    if kind == "text":
        given = moc.serialize("str")
        given = given.decode() if isinstance(given, bytes) else str(given)
    else:
        given = str(tmp_path / f"moc.{kind}")
        moc.save(given, format=kind)
    wanted = moc.contains_lonlat(truth["ra"].to_numpy() * u.deg, truth["dec"].to_numpy() * u.deg)
    assert 50 < wanted.sum() < 500
    assert names(query(where, read_moc(given), thumbnails=False)) == inside(truth, wanted)


def test_a_moc_of_very_many_cells_is_read_in_few_ranges_and_answered_exactly(where, truth):
    rng = np.random.default_rng(0)
    first = np.unique(truth["_healpix_29"].to_numpy() + rng.integers(-2, 2, truth.num_rows))[::2]
    region = Coverage(np.stack([first, first + 1], axis=1)[np.diff(first, append=first[-1] + 9) > 2])
    wanted = region.holds(truth["_healpix_29"].to_numpy())
    assert len(region.ranges) > 100 and 20 < wanted.sum() < 500
    assert len(coarse(region.ranges)) == 64
    assert Coverage(coarse(region.ranges)).holds(region.ranges).all()
    assert names(query(where, region, thumbnails=False)) == inside(truth, wanted)


def test_top_with_a_region_columns_and_thumbnails(where, truth):
    found = query(where, Box(359, 1, 0, 1), 5, columns=["rank", "thumbnail_euclid", "flux_VIS"])
    assert found.column_names == ["rank", "thumbnail_euclid", "flux_VIS"]
    north = truth.filter(pa.array(truth["dec"].to_numpy() >= 0))
    assert found["rank"].to_pylist() == north["rank"].to_pylist()[:5]
    assert found.schema.field("flux_VIS").equals(CANDIDATES.field("flux_VIS"), check_metadata=True)
    assert np.isfinite(found["thumbnail_euclid"].combine_chunks().flatten().to_numpy()).all()


def test_run_and_catalog_have_the_same_best_with_the_same_thumbnails(run, catalog):
    for top in (0, 7, BEST + 1):
        ours, theirs = query(run.url, top=top), query(catalog, top=top)
        assert parquet_bytes(ours.select(theirs.column_names)) == parquet_bytes(theirs.combine_chunks())
    assert set(THUMBNAILS) < set(query(catalog, top=3).column_names)
    assert query(catalog, top=3, thumbnails=False).column_names == CATALOG.names


def test_unknown_columns_are_refused_with_those_there_are(where):
    with pytest.raises(StorageError, match=r"unknown column\(s\) flux_z; known: object_id, ra, .*thumbnail_error"):
        query(where, columns=["ra", "flux_z"])
    with pytest.raises(StorageError, match=r'"flux_z" not found.*candidates has object_id, ra.*run_id'):
        select(where, "SELECT flux_z FROM candidates")
    with pytest.raises(StorageError, match=r"ledger has tile_id, status"):
        select(where, "SELECT nothing FROM ledger")
    with pytest.raises(StorageError, match=r"the views are candidates, ledger, runs, grades, mosaics"):
        select(where, "SELECT * FROM galaxies")


def test_sql_sees_runs_mosaics_and_their_pixels(where):
    found = select(where, "SELECT tile_id, count(*) AS cells FROM mosaics GROUP BY 1 ORDER BY 1")
    assert found["cells"].to_pylist() == [1] * 36
    assert "mean" not in select(where, "SELECT * FROM mosaics LIMIT 1").column_names
    pixels = select(where, "SELECT len(mean) AS n, list_max(coverage) AS most FROM mosaics LIMIT 1")
    assert pixels["n"][0].as_py() == 4096 and 0.9 < pixels["most"][0].as_py() <= 1
    joined = select(where, "SELECT r.model, count(*) AS n FROM candidates c JOIN runs r USING (run_id) GROUP BY 1")
    assert joined.to_pylist() == [{"model": "tiny", "n": 720}]


def test_sql_on_a_catalog_reaches_no_files(catalog):
    with pytest.raises(StorageError, match="disabled by configuration"):
        select(catalog, f"SELECT * FROM '{catalog}/snapshots/*/best.parquet'")


@pytest.mark.parametrize(
    "region, complaint",
    [
        (lambda: Cone(1, 99, 1), "dec 99"),
        (lambda: Box(-361, 5, 0, 1), "RAMIN -361 deg lies outside -360..360"),
        (lambda: Box(350, -5, 0, 1), "RAMIN 350 lies above RAMAX -5 deg"),
        (lambda: Box(1, 5, 2, 1), "DECMIN 2 and DECMAX 1"),
        (lambda: read_moc("not/a/moc"), "neither a file"),
        (lambda: read_moc("99/1"), "order 99, above 29"),
        (lambda: read_moc(__file__), "neither a file"),
    ],
)
def test_regions_that_are_none_are_refused(region, complaint):
    with pytest.raises(StorageError, match=complaint) as error:
        region()
    assert "\n" not in str(error.value)


# -- cross-match --


LENSCAT = """name,RA [deg],DEC [deg],zlens,type,grading,ref
{}
SL2SJ0212-0555,33.1,-5.92,0.75,galaxy,confirmed,https://example.org
nowhere,,,-,galaxy,probable,https://example.org
"""


@pytest.fixture(scope="module")
def lenscat(tmp_path_factory, truth):
    """lenscat's layout: three lenses here, of which one 1" off, one elsewhere, one without a position."""
    ra, dec = truth["ra"].to_numpy(), truth["dec"].to_numpy()
    lines = [f"L{i},{ra[i]},{dec[i] + offset / 3600},{z},galaxy,confirmed,x"
             for i, offset, z in ((0, 0, "0.5?"), (11, 1.0, "-"), (40, 5.0, "measured"))]  # fmt: skip
    path = tmp_path_factory.mktemp("lenscat") / "catalog.csv"
    path.write_text(LENSCAT.format("\n".join(lines)))
    return path


def test_known_lenses_of_lenscat_are_found_with_their_columns(where, truth, lenscat):
    found = query(where, targets=read_targets(lenscat, 2.0), thumbnails=False)
    rows = dict(zip(found["object_id"].to_pylist(), found["match_name"].to_pylist(), strict=True))
    assert rows[truth["object_id"][0].as_py()] == "L0" and rows[truth["object_id"][11].as_py()] == "L11"
    assert "L40" not in rows.values()
    separations = dict(zip(rows, found["match_separation"].to_pylist(), strict=True))
    assert separations[truth["object_id"][11].as_py()] == pytest.approx(1.0, abs=1e-5)
    assert found["rank"].to_pylist() == sorted(found["rank"].to_pylist())
    assert found["match_zlens"].to_pylist()[:2] == ["0.5?", "-"]


@pytest.mark.parametrize("ending", ["fits", "vot", "csv.gz", "ecsv", "parquet"])
def test_a_catalog_in_any_format_matches_what_astropy_matches(where, truth, tmp_path, ending):
    rng = np.random.default_rng(1)
    ra, dec = (truth[name].to_numpy() + rng.normal(0, 2 / 3600, truth.num_rows) for name in ("ra", "dec"))
    theirs = Table(
        {"id": np.arange(len(ra)), "RA": ra % 360, "DEC": dec, "mag": np.ma.masked_less(rng.normal(size=len(ra)), 0)}
    )
    path = str(tmp_path / f"theirs.{ending}")
    if ending == "csv.gz":
        theirs.write(tmp_path / "plain.csv")
        (tmp_path / "theirs.csv.gz").write_bytes(gzip.compress((tmp_path / "plain.csv").read_bytes()))
    elif ending == "vot":
        theirs.write(path, format="votable")
    else:
        theirs.write(path)
    found = query(where, targets=read_targets(path, 3.0), thumbnails=False)
    ours = SkyCoord(truth["ra"].to_numpy(), truth["dec"].to_numpy(), unit="deg")
    index, distance, _ = ours.match_to_catalog_sky(SkyCoord(theirs["RA"], theirs["DEC"], unit="deg"))
    near = distance.arcsec <= 3
    assert names(found) == inside(truth, near)
    assert found["match_id"].to_pylist() == index[near].tolist()
    assert 0 < found["match_mag"].null_count < found.num_rows


def test_a_match_within_a_region_and_of_named_columns(catalog, truth, tmp_path):
    theirs = tmp_path / "positions.csv"
    theirs.write_text("lon,lat\n" + "".join(f"{row['ra']},{row['dec']}\n" for row in truth.to_pylist()))
    targets = read_targets(theirs, 0.1, ("lon", "lat"))
    found = query(catalog, Box(359, 1, 0, 1), targets=targets, top=4, columns=["object_id", "match_lat"])
    assert names(found) == inside(truth, truth["dec"].to_numpy() >= 0)[:4]
    assert all(lat >= 0 for lat in found["match_lat"].to_pylist())


def test_catalogs_to_match_that_are_none_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("ra,dec\n12:30:00,+1:00:00\nNGC 4,1\n")
    (tmp_path / "c.csv").write_text("ra,dec\n1,95\n")
    (tmp_path / "d.fits").write_text("no FITS")
    (tmp_path / "d.csv.gz").write_text("ra,dec\n1,2\n")
    for file, complaint in (
        ("a.csv", "has no columns ra and dec; name two of: x, y"),
        ("b.csv", "column ra does not hold degrees"),
        ("c.csv", "reach beyond 360 and 90"),
        ("d.fits", "cannot be read as fits"),
        ("d.csv.gz", "cannot be read as ascii.csv"),
        ("e.csv", "does not exist"),
        ("f.docx", "give a catalog in one of .csv"),
    ):
        with pytest.raises(StorageError, match=complaint) as error:
            read_targets(tmp_path / file, 1.0)
        assert "\n" not in str(error.value)
    (tmp_path / "g.csv").write_text("ra,dec\n1,2\n")
    with pytest.raises(StorageError, match="radius 0 arcsec"):
        read_targets(tmp_path / "g.csv", 0.0)


def positions_of(path) -> list[tuple[float, float]]:
    targets = read_targets(path, 1.0)
    return list(zip(targets.ra.tolist(), targets.dec.tolist(), strict=True))


@pytest.mark.parametrize(
    "ra, dec",
    [((np.pi, "rad"), (0.1, "radian")), ((12.0, "hourangle"), (5.729577951308232, "Degrees")),
     ((12.0, "h"), (343.77467707849394, "arcmin")), ((180.0, "degree"), (5.729577951308232, "DEG")),
     (("12 00 00.0", "h:m:s"), ("+05 43 46.480624710", "d:m:s")),
     (("12h00m00s", None), ("5d43m46.480624710s", "deg"))],
)  # fmt: skip
def test_positions_are_taken_by_their_unit_however_it_is_spelled(tmp_path, ra, dec):
    pairs = (("RA", ra), ("DEC", dec))
    columns = [fits.Column(name, "20A" if isinstance(value, str) else "D", unit=unit, array=np.array([value]))
               for name, (value, unit) in pairs]  # fmt: skip
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "t.fits")
    assert positions_of(tmp_path / "t.fits") == [pytest.approx((180.0, np.degrees(0.1)), abs=1e-9)]


def test_positions_of_afw_without_a_unit_are_refused_where_they_may_be_radians(tmp_path):
    columns = {"coord_ra": [1.31, 0.97], "coord_dec": [-0.06, 0.04]}
    Table(columns).write(tmp_path / "t.fits")
    with pytest.raises(StorageError, match=r"coord_ra, coord_dec have no unit and reach 1\.31, 0\.06: degrees, or rad"):
        read_targets(tmp_path / "t.fits", 1.0)
    Table({name: np.degrees(values) for name, values in columns.items()}).write(tmp_path / "deg.fits")
    Table(columns, units={"coord_ra": "rad", "coord_dec": "rad"}).write(tmp_path / "rad.fits")
    assert positions_of(tmp_path / "deg.fits") == [
        pytest.approx(place) for place in positions_of(tmp_path / "rad.fits")
    ]
    Table(list(columns.values()), names=("ra", "dec")).write(tmp_path / "near0.fits")
    assert positions_of(tmp_path / "near0.fits") == list(zip(*columns.values(), strict=True))


def test_a_declination_in_hours_is_refused(tmp_path):
    Table({"ra": [11.0], "dec": Column([2.0], unit="hourangle")}).write(tmp_path / "t.ecsv")
    with pytest.raises(StorageError, match=r"column dec does not hold degrees \(its unit is hours\)"):
        read_targets(tmp_path / "t.ecsv", 1.0)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_text_with_a_byte_order_mark_and_any_delimiter(tmp_path, encoding, mark):
    path = tmp_path / ("t.tsv" if mark == "\t" else "t.csv")
    text = f"RA{mark}Dec{mark}name\n17.25{mark}-3.5{mark}Zoë\n"
    path.write_bytes(("\ufeff" * encoding.endswith("be") + text).encode(encoding))
    assert positions_of(path) == [(17.25, -3.5)]
    assert read_targets(path, 1.0).columns["name"].to_pylist() == ["Zoë"]


def test_the_first_table_with_positions_of_a_file_is_taken(tmp_path):
    tables = [Table({"key": ["epoch"]}), Table({"RA": [17.25], "DEC": [-3.5]})]
    fits.HDUList([fits.PrimaryHDU(), *map(fits.table_to_hdu, tables)]).writeto(tmp_path / "t.fits")
    assert positions_of(tmp_path / "t.fits") == [(17.25, -3.5)]


HUGE = [2**64 - 3, 2**63 + 11, 41]


@pytest.mark.parametrize("ending", ["fits", "parquet"])
def test_columns_that_differ_by_case_and_ids_above_2_63_come_through_to_every_file(run, truth, tmp_path, ending):
    place = {name: truth[name].to_numpy()[:3] for name in ("ra", "dec")}
    columns = {"specObjID": np.array(HUGE, np.uint64), "B": [20.5, 21.0, 22.5], "b": [-51.0, -52.0, -53.5]}
    theirs = Table(place | columns)
    theirs.write(tmp_path / f"t.{ending}")
    found = query(run.url, targets=read_targets(tmp_path / f"t.{ending}", 0.5), thumbnails=False)
    wanted = {"match_specObjID": HUGE, "match_B": [20.5, 21.0, 22.5], "match_b": [-51.0, -52.0, -53.5]}
    assert {name: found[name].to_pylist() for name in wanted} == wanted
    assert found.schema.field("match_specObjID").type == pa.uint64()
    for kind in ("fits", "votable"):
        back = Table.read(io.BytesIO(file_bytes(found, kind)), format=kind)
        assert [int(value) for value in back["match_specObjID"]] == HUGE
        assert back["match_b"].tolist() == wanted["match_b"] and back["match_B"].tolist() == wanted["match_B"]
    rows = list(csv.DictReader(io.StringIO(file_bytes(found, "csv").decode())))
    assert [int(row["match_specObjID"]) for row in rows] == HUGE
    assert [float(row["match_b"]) for row in rows] == wanted["match_b"]
    assert pq.read_table(io.BytesIO(file_bytes(found, "parquet")))["match_specObjID"].to_pylist() == HUGE


def test_of_two_pairs_of_columns_the_one_that_is_named_is_taken_and_contradictions_are_refused(tmp_path):
    columns = {"RA": [17.25], "DEC": [-3.5], "ra": [17.25], "dec": [-3.5 + 0.5 / 3600]}
    Table(columns).write(tmp_path / "same.csv")
    assert positions_of(tmp_path / "same.csv") == [(17.25, -3.5)]
    Table(columns | {"ra": [80.0]}).write(tmp_path / "other.csv")
    with pytest.raises(StorageError, match="positions in RA, DEC and, elsewhere, in ra, dec; name two columns"):
        read_targets(tmp_path / "other.csv", 1.0)
    for named, ra in ((("ra", "dec"), 80.0), (("RA", "DEC"), 17.25)):
        assert read_targets(tmp_path / "other.csv", 1.0, named).ra.tolist() == [ra]
