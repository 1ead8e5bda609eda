"""Tile store: what is written comes back, and what is damaged or something else is said to be so."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import zarr
from astropy.wcs import WCS

from surveybridge.storage.errors import DamagedData, StorageError
from surveybridge.storage.images import MASK_PLANES, SurveyImage
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.schema import MANIFEST
from surveybridge.storage.tiles import Tile, TileStore
from tests.tiny import files_of

BANDS = {"lsst": ("g", "r", "i"), "euclid": ("VIS",)}


def make_header(ny: int, nx: int) -> str:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [53.1, -28.0]
    wcs.wcs.crpix = [nx / 2 + 0.5, ny / 2 + 0.5]
    wcs.wcs.cdelt = [-0.1 / 3600, 0.1 / 3600]
    return str(wcs.to_header_string())


def make_image(survey: str, shape: tuple[int, int], seed: int = 0) -> SurveyImage:
    rng = np.random.default_rng(seed)
    full = (len(BANDS[survey]), *shape)
    mask = np.where(rng.random(full) < 0.01, MASK_PLANES["BAD"], 0).astype(np.uint8)
    flux = rng.normal(0, 2, full).astype(np.float32)
    flux[:, :2] = np.nan
    mask[:, :2] = MASK_PLANES["NO_DATA"]
    variance = np.where(np.isnan(flux), np.nan, np.float32(4)).astype(np.float32)
    return SurveyImage(
        survey=survey,
        bands=BANDS[survey],
        flux=flux,
        variance=variance,
        mask=mask,
        wcs_header=make_header(*shape),
        pixel_scale=0.1,
        psf_fwhm=tuple(0.7 if band != "r" else float("nan") for band in BANDS[survey]),
        zero_point=24.6,
        noise_correlation=tuple(0.3 for _ in BANDS[survey]),
        provenance={"origin": "test"},
    )


def make_tile(tile_id: str = "t0_1", shape: tuple[int, int] = (300, 280), halo: int = 30) -> Tile:
    core = (halo, shape[0] - halo, halo, shape[1] - halo)
    images = {name: make_image(name, shape, seed) for seed, name in enumerate(BANDS, 1)}
    return Tile(tile_id, images, core, (1000, -40), "test-grid")


@pytest.fixture
def store(tmp_path):
    return TileStore.create(tmp_path / "store")


def assert_same_image(found: SurveyImage, wanted: SurveyImage) -> None:
    for name in ("flux", "variance", "mask"):
        array = getattr(found, name)
        assert array.dtype == getattr(wanted, name).dtype
        np.testing.assert_array_equal(array, getattr(wanted, name))
    for name in (
        "survey",
        "bands",
        "wcs_header",
        "pixel_scale",
        "zero_point",
        "noise_correlation",
        "provenance",
        "unit",
        "extensive",
    ):
        assert getattr(found, name) == getattr(wanted, name), name
    np.testing.assert_array_equal(found.psf_fwhm, wanted.psf_fwhm)


def test_a_tile_comes_back_as_it_was_written(store):
    tile = make_tile()
    store.write_manifest([store.write_tile(tile)])
    found = TileStore.open(store.url).read_tile("t0_1")
    assert (found.core, found.origin, found.grid_id) == (tile.core, tile.origin, tile.grid_id)
    assert_same_image(found.images["lsst"], tile.images["lsst"])
    assert_same_image(found.images["euclid"], tile.images["euclid"])


def test_each_array_is_one_shard_of_several_chunks_with_named_dimensions(store, tmp_path):
    store.write_manifest([store.write_tile(make_tile())])
    shards = sorted(p for p in (tmp_path / "store/tiles/t0_1/lsst/flux/c").rglob("*") if p.is_file())
    assert len(shards) == 1
    array = zarr.open_array(tmp_path / "store/tiles/t0_1/lsst/flux", mode="r")
    assert array.metadata.to_dict()["dimension_names"] == ("band", "y", "x")
    assert array.chunks == (1, 256, 256)
    assert array.shards == (3, 512, 512)


@pytest.mark.parametrize("shape", [(300, 280), (256, 512), (40, 600)])
def test_zarr_reads_what_is_written_and_read_without_it(store, tmp_path, shape):
    store.write_manifest([store.write_tile(make_tile(shape=shape, halo=5))])
    found = store.read_tile("t0_1")
    group = zarr.open_group(tmp_path / "store/tiles/t0_1", mode="r", use_consolidated=True)
    for survey in ("lsst", "euclid"):
        for name in ("flux", "variance", "mask"):
            ours = getattr(found.images[survey], name)
            array = group[f"{survey}/{name}"]
            assert isinstance(array, zarr.Array)
            np.testing.assert_array_equal(array[...], ours)
            assert ours.flags.c_contiguous and ours.flags.writeable


def test_stores_without_consolidated_metadata_stay_readable(store, tmp_path):
    tile = make_tile()
    store.write_manifest([store.write_tile(tile)])
    head = tmp_path / "store/tiles/t0_1/zarr.json"
    document = json.loads(head.read_text())
    assert set(document["consolidated_metadata"]["metadata"]) > {"lsst", "euclid/mask"}
    del document["consolidated_metadata"]
    head.write_text(json.dumps(document))
    assert_same_image(store.read_tile("t0_1").images["lsst"], tile.images["lsst"])
    shutil.rmtree(tmp_path / "store/tiles/t0_1/euclid/mask")
    with pytest.raises(StorageError, match=r"tile t0_1: euclid/mask is missing"):
        store.read_tile("t0_1")
    shutil.rmtree(tmp_path / "store/tiles/t0_1/euclid")
    with pytest.raises(StorageError, match=r"tile t0_1: euclid is missing"):
        store.read_tile("t0_1")


@pytest.mark.parametrize("times", [1, 2])
def test_damage_on_the_way_is_read_once_more(store, monkeypatch, times):
    tile = make_tile()
    store.write_manifest([store.write_tile(tile)])
    damaged = iter(range(times))
    read_existing = Folder.read_existing

    def damage_some(folder, names):
        found = read_existing(folder, names)
        if next(damaged, None) is not None:
            found[names[0]] = found[names[0]][:-1] + b"x"
        return found

    monkeypatch.setattr(Folder, "read_existing", damage_some)
    if times == 1:
        assert_same_image(store.read_tile("t0_1").images["lsst"], tile.images["lsst"])
    else:
        with pytest.raises(DamagedData, match="lsst/flux cannot be read"):
            store.read_tile("t0_1")


def test_a_tile_takes_the_place_of_another_only_when_it_is_whole_and_listed(store, monkeypatch):
    tile = make_tile()
    store.write_manifest([store.write_tile(tile)])
    changed = replace(tile, images={"lsst": make_image("lsst", tile.shape, seed=7)})
    with monkeypatch.context() as broken:
        put_many = Folder.put_many

        def put_some(folder, files):
            put_many(folder, dict(list(files.items())[:5]))
            raise OSError("disk full")

        broken.setattr(Folder, "put_many", put_some)
        with pytest.raises(OSError, match="disk full"):
            store.write_tile(changed)
    assert_same_image(TileStore.open(store.url).read_tile("t0_1").images["euclid"], tile.images["euclid"])
    row = store.write_tile(changed)
    assert_same_image(TileStore.open(store.url).read_tile("t0_1").images["euclid"], tile.images["euclid"])
    store.write_manifest([row])
    assert list(TileStore.open(store.url).read_tile("t0_1").images) == ["lsst"]


def test_a_tile_that_is_there_to_the_byte_is_not_written_again_and_a_damaged_one_is(store, tmp_path):
    tile = make_tile()
    row = store.write_tile(tile)
    store.write_manifest([row])
    assert store.write_tile(tile) == row
    assert [path.name for path in (tmp_path / "store/tiles").iterdir() if path.is_dir()] == ["t0_1"]
    shard(tmp_path, "lsst/flux").write_bytes(b"rust")
    again = store.write_tile(tile)
    assert again["group"] != row["group"]
    store.write_manifest([again])
    assert_same_image(store.read_tile("t0_1").images["lsst"], tile.images["lsst"])


@pytest.mark.parametrize("layout", ["gzip", "two shards", "nothing"])
def test_another_layout_is_refused(store, tmp_path, layout):
    store.write_manifest([store.write_tile(make_tile())])
    head = tmp_path / "store/tiles/t0_1/zarr.json"
    document = json.loads(head.read_text())
    array = document["consolidated_metadata"]["metadata"]["lsst/flux"]
    if layout == "gzip":
        array["codecs"][0]["configuration"]["codecs"][1]["name"] = "gzip"
    elif layout == "two shards":
        array["chunk_grid"]["configuration"]["chunk_shape"] = [3, 256, 512]
    else:
        array["codecs"] = []
    head.write_text(json.dumps(document))
    with pytest.raises(StorageError, match=r"lsst/flux cannot be read \(it"):
        store.read_tile("t0_1")


@pytest.mark.parametrize("halo", [0, 7, 30, 100])
def test_halo_crops_pixels_core_origin_and_wcs_together(store, halo):
    tile = make_tile()
    store.write_manifest([store.write_tile(tile)])
    found = store.read_tile("t0_1", halo=halo)
    kept = min(halo, 30)
    assert found.shape == (240 + 2 * kept, 220 + 2 * kept)
    assert found.core == (kept, 240 + kept, kept, 220 + kept)
    assert found.core_origin == tile.core_origin
    cut = slice(30 - kept, 300 - 30 + kept), slice(30 - kept, 280 - 30 + kept)
    np.testing.assert_array_equal(found.images["lsst"].flux, tile.images["lsst"].flux[:, *cut])
    whole, part = tile.images["euclid"].wcs, found.images["euclid"].wcs
    np.testing.assert_allclose(
        part.all_pix2world(5.0, 9.0, 0), whole.all_pix2world(5.0 + 30 - kept, 9.0 + 30 - kept, 0), rtol=0, atol=1e-11
    )


def test_a_tile_may_lack_a_survey(store):
    image = make_image("euclid", (64, 64))
    row = store.write_tile(Tile("alone", {"euclid": image}, (0, 64, 0, 64), (0, 0), "test-grid"))
    assert row["surveys"] == ["euclid"]
    store.write_manifest([row])
    found = store.read_tile("alone")
    assert list(found.images) == ["euclid"]
    assert_same_image(found.images["euclid"], image)


def test_writing_a_tile_again_replaces_it_whole(store):
    store.write_manifest([store.write_tile(make_tile())])
    store.write_manifest(
        [
            store.write_tile(
                Tile("t0_1", {"euclid": make_image("euclid", (64, 64))}, (0, 64, 0, 64), (0, 0), "test-grid")
            )
        ]
    )
    found = store.read_tile("t0_1")
    assert list(found.images) == ["euclid"]
    assert found.shape == (64, 64)


def test_manifest_has_the_schema_and_is_sorted(store):
    rows = [store.write_tile(make_tile(name)) for name in ("b", "a")]
    store.write_manifest(rows)
    manifest = store.manifest()
    assert manifest.schema.equals(MANIFEST, check_metadata=False)
    assert manifest["tile_id"].to_pylist() == ["a", "b"]
    row = manifest.to_pylist()[0]
    assert (row["height"], row["core_width"]) == (300, 220)
    assert row["bytes"] == 4 * 300 * 280 * 9
    assert row["_healpix_29"] >> 58 < 12
    assert abs(row["ra"] - 53.1) < 1e-9 and abs(row["dec"] + 28.0) < 1e-9  # the core is centred on crval
    assert b"deg" in manifest.schema.field("ra").metadata[b"unit"]
    with pytest.raises(StorageError, match="appears twice"):
        store.write_manifest([rows[0], rows[0]])


def test_a_store_without_manifest_is_an_unfinished_ingest(store):
    with pytest.raises(StorageError, match="did not finish"):
        store.manifest()


def test_opening_a_store_to_change_it_changes_nothing(store):
    store.write_manifest([store.write_tile(make_tile())])
    before = files_of(store.url)
    again = TileStore.create(store.url)
    assert files_of(store.url) == before
    assert again.manifest().equals(store.manifest())


def test_opening_something_else_says_what_was_found(tmp_path):
    with pytest.raises(StorageError, match=r"nothing .*surveybridge ingest"):
        TileStore.open(tmp_path / "absent")
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(StorageError, match=r"a folder with photo\.jpg"):
        TileStore.open(tmp_path)
    with pytest.raises(StorageError, match="a file"):
        TileStore.open(tmp_path / "photo.jpg")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StorageError, match=r"not a tile store: found a folder with zarr\.json"):
        TileStore.open(tmp_path / "other.zarr")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/zarr.json").write_text("{")
    with pytest.raises(StorageError, match="not a tile store"):
        TileStore.open(tmp_path / "broken")


def test_a_newer_format_is_refused_with_both_versions(store):
    zarr.open_group(store.url).attrs["format_version"] = 9
    with pytest.raises(StorageError, match=r"version 9 .* up to 2"):
        TileStore.open(store.url)


def test_create_does_not_overwrite_other_data(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/precious.fits").write_bytes(b"x")
    with pytest.raises(StorageError, match=r"precious\.fits"):
        TileStore.create(tmp_path / "data")
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["precious.fits"]


def shard(tmp_path, name: str):
    (path,) = (p for p in (tmp_path / f"store/tiles/t0_1/{name}/c").rglob("*") if p.is_file())
    return path


@pytest.mark.parametrize("name", ["lsst/flux", "lsst/mask", "euclid/variance"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "zero"])
def test_a_damaged_shard_is_an_error_that_names_it(store, tmp_path, name, damage):
    store.write_manifest([store.write_tile(make_tile())])
    path = shard(tmp_path, name)
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[len(data) // 3] ^= 0x10
    else:
        data = bytearray(len(data))
    path.write_bytes(data)
    with pytest.raises(StorageError, match=f"tile t0_1: {name} cannot be read .*ingest the tile again"):
        store.read_tile("t0_1")


@pytest.mark.parametrize("name", ["lsst/flux", "euclid/variance", "lsst/mask"])
def test_a_lost_shard_is_an_error_and_not_an_empty_sky(store, tmp_path, name):
    store.write_manifest([store.write_tile(make_tile())])
    shard(tmp_path, name).unlink()
    with pytest.raises(StorageError, match=f"tile t0_1: {name} has lost its data"):
        store.read_tile("t0_1")


@pytest.mark.parametrize("lost", ["euclid/mask", "euclid"])
def test_a_lost_survey_or_array_is_an_error_that_names_it(store, tmp_path, lost):
    store.write_manifest([store.write_tile(make_tile())])
    shutil.rmtree(tmp_path / "store/tiles/t0_1" / lost)
    with pytest.raises(StorageError, match=r"tile t0_1: euclid/\w+ has lost its data"):
        store.read_tile("t0_1")


def test_unknown_tiles_and_unsafe_names_are_refused(store):
    with pytest.raises(StorageError, match="nope: not in"):
        store.read_tile("nope")
    with pytest.raises(StorageError, match="cannot be part of a path"):
        store.read_tile("../secret")


def test_nan_without_mask_is_not_stored(store):
    image = make_image("euclid", (64, 64))
    image.flux[0, 10, 10] = np.nan
    image.mask[0, 10, 10] = 0
    with pytest.raises(StorageError, match="1 of 4096 pixels"):
        store.write_tile(Tile("t", {"euclid": image}, (0, 64, 0, 64), (0, 0), "test-grid"))


def test_tiles_whose_parts_do_not_fit_are_refused():
    lsst = make_image("lsst", (64, 64))
    with pytest.raises(StorageError, match=r"\(64, 64\) but euclid \(32, 64\)"):
        Tile("t", {"lsst": lsst, "euclid": make_image("euclid", (32, 64))}, (0, 9, 0, 9), (0, 0), "test-grid")
    with pytest.raises(StorageError, match="does not lie inside"):
        Tile("t", {"lsst": lsst}, (0, 65, 0, 64), (0, 0), "test-grid")
    with pytest.raises(StorageError, match="no survey has an image"):
        Tile("t", {}, (0, 64, 0, 64), (0, 0), "test-grid")
    with pytest.raises(StorageError, match="the image of lsst is given as euclid"):
        Tile("t", {"euclid": lsst}, (0, 64, 0, 64), (0, 0), "test-grid")


def test_a_store_travels_to_a_worker(store):
    store.write_manifest([store.write_tile(make_tile())])
    assert pickle.loads(pickle.dumps(store)).read_tile("t0_1").shape == (300, 280)
