"""Publishing: a valid HATS collection of exactly the run's rows, equal bytes for equal runs, whole at every moment."""

from __future__ import annotations

import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord

from surveybridge.storage import hats
from surveybridge.storage.catalogs import Catalog, read_pointer
from surveybridge.storage.errors import StorageError
from surveybridge.storage.mocs import read_moc
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.parquet import parquet_bytes
from surveybridge.storage.published import publish as publish_sweep
from surveybridge.storage.publishing import publish, write_partition
from surveybridge.storage.query import query, select
from surveybridge.storage.regions import Cone
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import CATALOG, MANIFEST, table_from_rows
from tests.storage.skies import TILE_DEG, make_run, write_tile
from tests.tiny import files_of

pytestmark = pytest.mark.long  # 30 s in all

SIDE, ROWS = 8, 25


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("published") / "run", side=SIDE, rows=ROWS)


@pytest.fixture(scope="module")
def catalog(run, tmp_path_factory):
    """About 20 partitions, with borders through (0, 0)."""
    url = str(tmp_path_factory.mktemp("catalog") / "catalog")
    publish([run.url], url, partition_rows=200)
    return url


@pytest.fixture(scope="module")
def truth(run):
    return query(run.url, thumbnails=False)


@pytest.fixture
def small(tmp_path):
    return make_run(tmp_path / "run", side=2, rows=10)


def content(catalog) -> dict[str, bytes]:
    """All files of a catalog but the lease."""
    return {name: data for name, data in files_of(catalog).items() if "lease.json" not in name}


def same(one: pa.Table, other: pa.Table) -> bool:
    """Equal, a score of NaN being equal to itself."""
    return parquet_bytes(one.combine_chunks()) == parquet_bytes(other.combine_chunks())


def test_every_row_of_the_run_is_there_once_with_the_rank_of_the_run(catalog, truth):
    found = Catalog.open(catalog).dataset().to_table().sort_by("rank")
    assert found.num_rows == SIDE * SIDE * ROWS
    assert same(found, truth.select(CATALOG.names).cast(CATALOG))
    assert same(Catalog.open(catalog).best(), found)


def test_runs_of_two_versions_are_one_catalog_with_nulls_where_the_older_says_nothing(tmp_path):
    old = make_run(tmp_path / "old", side=2, rows=5, code_schema_version=3)
    new = make_run(tmp_path / "new", side=2, rows=7, centre=(3.0, 2.0), seed=1)
    publish([old.url, new.url], tmp_path / "catalog")
    found = Catalog.open(tmp_path / "catalog")
    assert found.schema.equals(CATALOG) and found.dataset().to_table().num_rows == 48
    sql = "SELECT run_id, count(*) AS n, count(domain) AS stated FROM candidates GROUP BY 1 ORDER BY 1"
    assert select(tmp_path / "catalog", sql).to_pylist() == [
        {"run_id": "run0", "n": 20, "stated": 0},
        {"run_id": "run1", "n": 28, "stated": 28},
    ]
    assert select(tmp_path / "catalog", "SELECT count(catalogued) AS n FROM ledger").to_pylist() == [{"n": 4}]


def test_partitions_hold_at_most_their_rows_each_of_its_own_sky(catalog):
    opened = Catalog.open(catalog)
    pixels = hats.read_partitions(opened.folder.read("candidates/partition_info.csv"))
    assert len(pixels) > 10
    for pixel in pixels:
        leaf = pq.read_table(opened.folder.path("candidates/dataset", pixel.path), partitioning=None)
        healpix = leaf["_healpix_29"].to_numpy()
        first, last = pixel.range
        assert 0 < len(healpix) <= 200
        assert (np.diff(healpix) >= 0).all() and healpix[0] >= first and healpix[-1] <= last


def test_a_margin_holds_whatever_lies_within_ten_arcsec_of_its_partition(catalog, truth):
    opened = Catalog.open(catalog)
    sky = SkyCoord(truth["ra"].to_numpy(), truth["dec"].to_numpy(), unit="deg")
    healpix = truth["_healpix_29"].to_numpy()
    names = np.array(truth["object_id"].to_pylist())
    crossed = 0
    for pixel in hats.read_partitions(opened.folder.read("candidates/partition_info.csv")):
        inside = (healpix >= pixel.range[0]) & (healpix <= pixel.range[1])
        # Rows near a row of the partition, a part of those near the partition.
        _, distance, _ = sky[~inside].match_to_catalog_sky(sky[inside])
        near = set(names[~inside][distance.arcsec <= hats.MARGIN_ARCSEC])
        path = opened.folder.path("margin/dataset", pixel.path)
        margin = set(pq.read_table(path, partitioning=None)["object_id"].to_pylist())
        assert near <= margin and not margin & set(names[inside])
        crossed += len(near)
    assert crossed > 20


def test_units_ucds_and_descriptions_are_in_every_leaf(catalog):
    from astropy.table import Table

    opened = Catalog.open(catalog)
    for table in ("candidates", "margin"):
        pixels = hats.read_partitions(opened.folder.read(table, "partition_info.csv"))
        for pixel in pixels[:3]:
            path = opened.folder.path(table, "dataset", pixel.path)
            assert pq.read_schema(path).equals(CATALOG) and pq.read_schema(path).field("ra").metadata[b"unit"] == b"deg"
            leaf = Table.read(path, format="parquet.votable")
            for field in CATALOG:
                assert str(leaf[field.name].unit or "") == (field.metadata.get(b"unit") or b"").decode()
                assert leaf[field.name].description == field.metadata[b"description"].decode()
                assert leaf[field.name].meta["ucd"] == field.metadata[b"ucd"].decode()


def test_publishing_again_writes_the_same_bytes_elsewhere_and_nothing_here(run, catalog, tmp_path):
    before = content(catalog)
    again = publish([run.url], catalog, partition_rows=200)
    assert not again.new and again.facts["rows"] == SIDE * SIDE * ROWS
    assert content(catalog) == before
    assert publish([run.url], tmp_path / "other", partition_rows=200).new
    assert content(tmp_path / "other") == before


def test_compaction_changes_nothing_that_is_published(small, tmp_path):
    publish([small.url], tmp_path / "loose", partition_rows=15)
    small.compact(small.loose_tiles())
    assert not publish([small.url], tmp_path / "loose", partition_rows=15).new
    publish([small.url], tmp_path / "compacted", partition_rows=15)
    assert content(tmp_path / "loose") == content(tmp_path / "compacted")


def test_a_run_compacted_meanwhile_is_read_again(small, tmp_path):
    calls: list[object] = []

    def each(function, items):
        if not calls:
            small.compact(small.loose_tiles())
        calls.append(function)
        return map(function, items)

    assert publish([small.url], tmp_path / "catalog", each=each).facts["rows"] == 40
    assert len(calls) == 3  # the first pass failed, and both were done again


def test_a_tile_done_again_between_the_passes_is_read_again(small, tmp_path):
    """Its file is new before its ledger row is, and its ranks must not be those of before."""
    calls: list[object] = []

    def each(function, items):
        calls.append(function)
        if calls == [calls[0], write_partition]:
            table = small.read_candidates("t0001")
            small.write_candidates(
                "t0001", table.set_column(table.column_names.index("score"), "score", pc.negate(table["score"]))
            )
        return map(function, items)

    publish([small.url], tmp_path / "catalog", each=each)
    assert len(calls) == 4
    assert same(Catalog.open(tmp_path / "catalog").best(), query(small.url, thumbnails=False).cast(CATALOG))


def test_a_tile_done_again_is_published_as_it_is_now(small, tmp_path):
    publish([small.url], tmp_path / "catalog")
    small.compact(small.loose_tiles())
    row = {"tile_id": "t0001", "status": "ok", "attempt": 2}
    table = select(small.url, "SELECT * EXCLUDE rank FROM candidates WHERE tile_id = 't0001' LIMIT 3")
    small.write_candidates("t0001", table)
    small.commit(row | {"n_candidates": 3})
    done = publish([small.url], tmp_path / "catalog")
    assert done.new and done.facts["rows"] == 33
    found = select(tmp_path / "catalog", "SELECT tile_id, count(*) FROM candidates GROUP BY 1 ORDER BY 1")
    assert found.column(1).to_pylist() == [10, 3, 10, 10]


def test_an_object_in_two_tiles_is_refused_with_both_named(small, tmp_path):
    stray = select(small.url, "SELECT * EXCLUDE (rank, tile_id) FROM candidates WHERE tile_id = 't0001' LIMIT 1")
    add = pa.concat_tables([small.read_candidates("t0002").select(stray.column_names).cast(stray.schema), stray])
    publish([small.url], tmp_path / "catalog")
    before = content(tmp_path / "catalog")
    small.write_candidates("t0002", add)
    small.commit({"tile_id": "t0002", "status": "ok", "n_candidates": 11, "attempt": 2})
    with pytest.raises(StorageError, match=r"object SB .* is in tile t0001 of .* and tile t0002 of .*") as error:
        publish([small.url], tmp_path / "catalog")
    assert stray["object_id"][0].as_py() in str(error.value) and "\n" not in str(error.value)
    assert content(tmp_path / "catalog") == before


def test_runs_side_by_side_become_one_catalog_and_runs_of_one_sky_are_refused(small, tmp_path):
    east = make_run(tmp_path / "east", side=2, rows=10, centre=(5.0, 1.0), seed=1)
    done = publish([small.url, east.url], tmp_path / "catalog")
    assert done.facts["rows"] == 80
    found = select(tmp_path / "catalog", "SELECT run_id, tiles FROM runs ORDER BY 1").to_pylist()
    assert found == [{"run_id": "run0", "tiles": 4}, {"run_id": "run1", "tiles": 4}]
    counts = select(tmp_path / "catalog", "SELECT run_id, count(*) AS n FROM ledger GROUP BY 1 ORDER BY 1")
    assert counts["n"].to_pylist() == [4, 4]
    assert query(tmp_path / "catalog", Cone(5.0, 1.0, 60.0)).column("run_id").unique().to_pylist() == ["run1"]
    assert query(tmp_path / "catalog", Cone(5.0, 1.0, 60.0))["thumbnail_euclid"].null_count == 0
    same = make_run(tmp_path / "same", side=2, rows=10, run_id="same")
    with pytest.raises(StorageError, match=f"of {small.url} and .* of {same.url}; 39 more"):
        publish([small.url, same.url], tmp_path / "both")
    assert read_pointer(Folder.at(tmp_path / "both")) is None


def test_a_moc_takes_its_part(small, truth, tmp_path):
    moc = read_moc("4/1088 6/19456-19460")
    done = publish([small.url], tmp_path / "part", moc=moc)
    everything = query(small.url, thumbnails=False)
    inside = moc.holds(everything["_healpix_29"].to_numpy())
    assert 0 < inside.sum() < len(inside)
    assert done.facts["rows"] == inside.sum()
    assert (
        query(tmp_path / "part")["object_id"].to_pylist()
        == everything.filter(pa.array(inside))["object_id"].to_pylist()
    )
    with pytest.raises(StorageError, match="no candidate inside the MOC"):
        publish([small.url], tmp_path / "none", moc=read_moc("8/5"))


def test_of_a_run_that_sweep_published_its_tiles_are_taken(small, tmp_path):
    rows = [{"tile_id": f"t{i:04d}", "content": "new pixels" if i == 3 else f"pixels of {i}"} for i in (0, 1, 3)]
    publish_sweep(Folder.at(tmp_path), small, table_from_rows(rows, MANIFEST, "manifest"), small.ledger())
    done = publish([small.url], tmp_path / "catalog")
    assert done.facts["runs"][0]["published"] == "published/000001.json"
    found = query(tmp_path / "catalog", thumbnails=False)
    assert set(found["tile_id"].to_pylist()) == {"t0000", "t0001"} and found["rank"].to_pylist() == list(range(1, 21))


def test_nothing_to_publish_is_refused_and_leaves_no_catalog(tmp_path, small):
    empty = RunFolder.open_or_create(tmp_path / "empty", small.run_json)
    with pytest.raises(StorageError, match=r"nothing to publish: .* 0 finished tiles and no candidate"):
        publish([empty.url], tmp_path / "catalog")
    assert read_pointer(Folder.at(tmp_path / "catalog")) is None
    assert publish([small.url], tmp_path / "catalog").new  # what the refusal left is no obstacle


def test_wrong_requests_are_refused(small, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(StorageError, match=r"a folder with cat.jpg, neither empty nor a catalog"):
        publish([small.url], tmp_path / "photos")
    with pytest.raises(StorageError, match="is not a run folder"):
        publish([str(tmp_path / "photos")], tmp_path / "catalog")
    with pytest.raises(StorageError, match="each once"):
        publish([small.url, small.url], tmp_path / "catalog")
    with pytest.raises(StorageError, match="is not a published catalog"):
        Catalog.open(small.url)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "run"]


# -- snapshots --


def add_tile(run: RunFolder, number: int) -> None:
    write_tile(run, number, 2, 10, (0.0, 3 * TILE_DEG * number), 0)


def test_the_new_snapshot_and_the_one_before_it_stay(small, tmp_path):
    keys = []
    for number in range(4, 8):
        done = publish([small.url], tmp_path / "catalog")
        keys.append(done.key)
        assert list(done.removed) == keys[:-2][-1:]
        assert Folder.at(tmp_path / "catalog").names("snapshots") == sorted(keys[-2:])
        assert Catalog.open(tmp_path / "catalog" / "snapshots" / keys[-1]).facts["rows"] == 10 * number
        add_tile(small, number)


def test_a_publication_that_dies_changes_nothing_and_the_next_one_cleans_up(small, tmp_path):
    publish([small.url], tmp_path / "catalog", partition_rows=15)
    before = content(tmp_path / "catalog")
    add_tile(small, 4)

    def dying(function, items):
        for number, item in enumerate(items):
            if function is write_partition and number == 2:
                raise KeyboardInterrupt
            yield function(item)

    with pytest.raises(KeyboardInterrupt):
        publish([small.url], tmp_path / "catalog", partition_rows=15, each=dying)
    after = content(tmp_path / "catalog")
    assert len(after) > len(before) and before.items() <= after.items()
    assert query(tmp_path / "catalog").num_rows == 40
    add_tile(small, 5)
    done = publish([small.url], tmp_path / "catalog", partition_rows=15)
    assert len(done.removed) == 1 and done.facts["rows"] == 60


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """Where a run and a catalog may be, with storage options."""
    if request.param == "local":
        return str(tmp_path), {}
    return request.getfixturevalue("bucket"), request.getfixturevalue("options")


def test_a_reader_never_sees_half_of_a_catalog(place):
    where, options = place
    run = make_run(f"{where}/swept", side=2, rows=10, storage_options=options)
    publish([run.url], f"{where}/catalog", partition_rows=15, storage_options=options)
    seen: list[int] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def read():
        while not done.is_set():
            try:
                found = select(f"{where}/catalog", "SELECT rank FROM candidates ORDER BY rank", storage_options=options)
                assert found["rank"].to_pylist() == list(range(1, found.num_rows + 1))
                seen.append(found.num_rows)
                time.sleep(0.03)  # or it would have a core, which those that publish need
            except BaseException as error:
                failures.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in (4, 5):
            add_tile(run, number)
            publish([run.url], f"{where}/catalog", partition_rows=15, storage_options=options)
    finally:
        done.set()
        reader.join()
    assert not failures
    assert len(seen) > 3 and set(seen) <= {40, 50, 60} and seen == sorted(seen)
    assert query(f"{where}/catalog", storage_options=options).num_rows == 60


# -- HATS's own readers --


def is_valid(url) -> bool:
    from hats.io.validation import is_valid_catalog

    return bool(is_valid_catalog(str(url), strict=True))


@pytest.mark.filterwarnings("ignore")
def test_hats_finds_the_collection_strictly_valid(catalog, small, tmp_path):
    assert is_valid(catalog)
    assert is_valid(Catalog.open(catalog).folder.url)
    publish([small.url], tmp_path / "whole")  # one partition: the margin has none
    assert is_valid(tmp_path / "whole")
    leaf = next((tmp_path / "whole/snapshots").rglob("Npix=*.parquet"))
    leaf.unlink()
    assert not is_valid(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore")
def test_hats_and_lsdb_read_it_from_object_storage(bucket, options):
    import lsdb
    from hats.io.validation import is_valid_catalog
    from upath import UPath

    run = make_run(f"{bucket}/run", side=2, rows=10, storage_options=options)
    publish([run.url], f"{bucket}/catalog", partition_rows=15, storage_options=options)
    where = UPath(f"{bucket}/catalog", **options)
    assert is_valid_catalog(where, strict=True)
    assert len(lsdb.open_catalog(where).compute()) == 40


@pytest.mark.filterwarnings("ignore")
def test_hats_reads_the_map_of_counts(catalog):
    import hats as hats_package
    from hats.io.skymap import read_skymap

    opened = hats_package.read_hats(catalog).main_catalog
    counts = read_skymap(opened, None)
    assert counts.sum() == opened.catalog_info.total_rows == SIDE * SIDE * ROWS


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_lsdb_cones_hold_what_astropy_measures(catalog, truth):
    import lsdb

    opened = lsdb.open_catalog(catalog)
    assert opened.margin is not None
    sky = SkyCoord(truth["ra"].to_numpy(), truth["dec"].to_numpy(), unit="deg")
    names = np.array(truth["object_id"].to_pylist())
    rng = np.random.default_rng(3)
    half = SIDE * TILE_DEG / 2
    places = [(0.0, 0.0), (359.9999, 0.01), (0.0001, -0.02), (0.02, 0.02), (0.0, half)]  # borders and RA 0
    places += [(ra % 360, dec) for ra, dec in rng.uniform(-half, half, (15, 2))]
    hits = 0
    for ra, dec in places:
        radius = float(rng.uniform(5, 120))
        found = opened.cone_search(ra, dec, radius).compute()
        inside = sky.separation(SkyCoord(ra, dec, unit="deg")).arcsec <= radius
        assert set(found["object_id"]) == set(names[inside])
        hits += len(found)
    assert hits > 100


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_lsdb_matches_across_partitions_what_astropy_matches(catalog, truth):
    import lsdb
    import pandas as pd

    rng = np.random.default_rng(4)
    ra, dec = truth["ra"].to_numpy(), truth["dec"].to_numpy()
    theirs = pd.DataFrame(
        {
            "name": np.arange(len(ra)),
            "ra": (ra + rng.uniform(-6, 6, len(ra)) / 3600) % 360,
            "dec": dec + rng.uniform(-6, 6, len(ra)) / 3600,
        }
    )
    left = lsdb.from_dataframe(theirs, ra_column="ra", dec_column="dec", drop_empty_siblings=True)
    found = left.crossmatch(
        lsdb.open_catalog(catalog), radius_arcsec=5, suffixes=("_l", "_r"), suffix_method="all_columns"
    ).compute()
    index, distance, _ = SkyCoord(theirs["ra"], theirs["dec"], unit="deg").match_to_catalog_sky(
        SkyCoord(ra, dec, unit="deg")
    )
    near = distance.arcsec <= 5
    names = np.array(truth["object_id"].to_pylist())
    assert dict(zip(found["name_l"], found["object_id_r"], strict=True)) == dict(
        zip(theirs["name"][near], names[index[near]], strict=True)
    )
    assert near.sum() > 500


# -- the layout, by itself --


@pytest.mark.parametrize("limit", [1, 7, 100, 10**6])
def test_partitions_are_the_largest_cells_that_hold_few_enough(limit):
    rng = np.random.default_rng(limit)
    cells = np.unique(rng.integers(0, 12 * 4**hats.CELL_ORDER, 200) >> rng.integers(0, 8, 200))
    counts = rng.integers(1, 8, len(cells))
    rows = {}
    for pixel in hats.partitions(cells, counts, limit):
        shift = 2 * (hats.CELL_ORDER - pixel.order)
        inside = cells >> shift == pixel.number
        rows[pixel] = counts[inside].sum()
        assert rows[pixel] <= limit or pixel.order == hats.CELL_ORDER
        if pixel.order:
            assert counts[cells >> shift + 2 == pixel.number >> 2].sum() > limit
    assert sum(rows.values()) == counts.sum()


def test_what_is_kept_of_a_leaf_does_not_keep_its_rows(truth):
    rows = truth.select(CATALOG.names).cast(CATALOG)
    kept, data = hats.leaf(hats.Pixel(0, 4), rows, {"object_id": 30})
    assert kept.size == len(data) and kept.first.num_rows == 1
    assert kept.first.get_total_buffer_size() < rows.get_total_buffer_size() / 50


@pytest.mark.parametrize("order", [0, 3, 8, hats.CELL_ORDER])
def test_what_lies_within_sixteen_arcsec_of_a_partition_is_in_its_border(order):
    import astropy.units as u
    import cdshealpix.nested

    rng = np.random.default_rng(order)
    for number in rng.integers(0, 12 * 4**order, 4):
        pixel = hats.Pixel(order, int(number))
        lon, lat = cdshealpix.nested.vertices(np.array([pixel.number], np.uint64), order, step=50)
        edge = SkyCoord(lon.ravel(), lat.ravel())
        around = edge.directional_offset_by(rng.uniform(0, 360, len(edge)) * u.deg, hats.MARGIN_ARCSEC * u.arcsec)
        fine = cdshealpix.nested.skycoord_to_healpix(around, hats.MARGIN_ORDER).astype(np.int64)
        outside = fine >> 2 * (hats.MARGIN_ORDER - order) != pixel.number
        assert outside.any() and np.isin(fine[outside], hats.border(pixel)).all()


def test_properties_come_back():
    entries = {"obs_collection": "a", "all_margins": "x/margin", "hats_nrows": 3, "empty": "", "none": None}
    assert hats.read_properties(hats.property_file(entries)) == {
        "obs_collection": "a", "all_margins": "x/margin", "hats_nrows": "3"
    }  # fmt: skip


def test_a_region_opens_only_the_leaves_it_touches(catalog):
    opened = Catalog.open(catalog)
    pixels = hats.read_partitions(opened.folder.read("candidates/partition_info.csv"))
    assert opened.dataset(np.array([[0, 1 << 20]], np.int64)).files == []
    ranges = np.array([pixels[2].range, pixels[7].range], np.int64)
    assert [file.rpartition("dataset/")[2] for file in opened.dataset(ranges).files] == [pixels[2].path, pixels[7].path]
