"""Fields of a tile store: added and replaced while readers go on, whole or not at all, with ids that stay."""

from __future__ import annotations

import itertools
import json
import pickle

import numpy as np
import pytest
import zarr

from surveybridge.storage.celestial import celestial_wcs
from surveybridge.storage.errors import StorageError, StorageUnavailable
from surveybridge.storage.field_update import Slot, put_field
from surveybridge.storage.fields import FieldGrid, grid_id_of, named_among
from surveybridge.storage.grids import shifted_header
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.ingest import Field, cut_tile, tile_boxes
from surveybridge.storage.lease import Lease, LeaseHeld
from surveybridge.storage.manifests import fields_of, store_id_of
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.tiles import TileStore
from tests.kept.make import HERE
from tests.storage.fits_files import tan_wcs
from tests.tiny import files_of

SHAPE = (70, 130)


def image(seed: int, ra: float = 40.0, shape: tuple[int, int] = SHAPE) -> SurveyImage:
    """An image of noise, one band, on a grid of its own for each right ascension."""
    flux = np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)
    return SurveyImage(
        survey="euclid",
        bands=("VIS",),
        flux=flux,
        variance=np.ones_like(flux),
        mask=np.zeros(flux.shape, np.uint8),
        wcs_header=tan_wcs(shape, 0.1, ra=ra).to_header_string(),
        pixel_scale=0.1,
        psf_fwhm=(0.16,),
        zero_point=24.6,
        noise_correlation=(0.0,),
        provenance={"domain": "in"},
    )


def put(url, seed: int, name: str | None = None, *, ra: float = 40.0, tile_size: int = 64, wait: float = 0.0) -> list:
    """Put a field of noise into a store; returns the rows."""
    field = Field({"euclid": image(seed, ra)}, "euclid")
    grid = FieldGrid("", field.grid_id, field.wcs_header, field.shape, tile_size, 8)
    boxes = list(tile_boxes(field.shape, tile_size, 8))
    slot = Slot(name, wait)
    return put_field(TileStore.create(url), grid, slot, lambda named: (cut_tile(field, box, named) for box in boxes))


def sky(url) -> dict[str, bytes]:
    """Pixels by tile, as a new reader sees them."""
    store = TileStore.open(url)
    return {
        tile: store.read_tile(tile).images["euclid"].flux.tobytes() for tile in store.manifest()["tile_id"].to_pylist()
    }


def groups(url) -> set[str]:
    return {path for path in Folder.at(url).names("tiles") if path != "zarr.json"}


def test_the_first_field_has_plain_tile_ids_and_those_of_the_next_begin_with_its_name(tmp_path):
    put(tmp_path, 1)
    put(tmp_path, 2, ra=41.0)
    put(tmp_path, 3, "tract9", ra=42.0)
    manifest = TileStore.open(tmp_path).manifest()
    fields = fields_of(manifest)
    first, second = (grid_id_of("euclid", image(0, ra).wcs_header, SHAPE) for ra in (40.0, 41.0))
    assert manifest["tile_id"].to_pylist() == sorted(
        f"{prefix}t{k:04d}" for prefix in ("", f"{second}-", "tract9-") for k in range(6)
    )
    assert set(fields) == {first, second, "tract9"} == set(manifest["field"].to_pylist())
    assert fields["tract9"].shape == SHAPE and fields["tract9"].tile_size == 64 and fields["tract9"].halo == 8


def test_a_named_field_has_the_same_tiles_whatever_was_there_before(tmp_path):
    for place, order in (("one", ("a", "b")), ("two", ("b", "a"))):
        for name in order:
            put(tmp_path / place, ord(name), name, ra={"a": 40.0, "b": 40.002}[name])
    assert sky(tmp_path / "one") == sky(tmp_path / "two")
    one, two = (TileStore.open(tmp_path / place).manifest() for place in ("one", "two"))
    assert one.equals(two)


def test_the_manifest_says_where_each_core_is_in_the_grid_that_it_states(tmp_path):
    put(tmp_path, 1, "a")
    manifest = TileStore.open(tmp_path).manifest()
    field = fields_of(manifest)["a"]
    assert field.grid_id == grid_id_of("euclid", field.wcs_header, field.shape)
    owned = np.zeros(SHAPE, int)
    for row in manifest.to_pylist():
        y, x = row["core_y0"], row["core_x0"]
        owned[y : y + row["core_height"], x : x + row["core_width"]] += 1
        ra, dec = celestial_wcs(field.wcs_header).all_pix2world(
            x + (row["core_width"] - 1) / 2, y + (row["core_height"] - 1) / 2, 0
        )
        assert (row["ra"], row["dec"]) == pytest.approx((float(ra), float(dec)), abs=1e-9)
        assert row["domain"] == "in"
    assert (owned == 1).all()


def test_a_field_takes_the_place_of_its_namesake_and_leaves_the_others_alone(tmp_path):
    put(tmp_path, 1, "a")
    put(tmp_path, 2, "b", ra=41.0)
    before = sky(tmp_path)
    put(tmp_path, 3, "a", tile_size=100)
    after = sky(tmp_path)
    assert sorted(after) == ["a-t0000", "a-t0001", *(f"b-t{k:04d}" for k in range(6))]
    assert {tile: data for tile, data in after.items() if tile[0] == "b"} == {
        t: d for t, d in before.items() if t[0] == "b"
    }
    assert after["a-t0000"] != before["a-t0000"]
    assert len(groups(tmp_path)) == 8, "groups of tiles that are gone went with them"


def test_without_a_name_a_field_takes_the_place_of_the_one_on_its_grid(tmp_path):
    put(tmp_path, 1, "a")
    put(tmp_path, 2)
    assert sorted(sky(tmp_path)) == [f"a-t{k:04d}" for k in range(6)]
    with pytest.raises(
        StorageError, match="as field a, and field b would have the same one; name it a, which replaces that one"
    ):
        put(tmp_path, 3, "b")


def test_the_same_again_writes_no_tile(tmp_path):
    put(tmp_path, 1, "a")
    before = files_of(tmp_path)
    put(tmp_path, 1, "a")
    after = files_of(tmp_path)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {"lease.json"}


class Killed(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("when", ["first tile", "last tile", "manifest", "cleaning"])
def test_a_killed_ingest_leaves_the_state_of_before_or_after_and_the_next_one_cleans_up(tmp_path, monkeypatch, when):
    put(tmp_path / "store", 1, "a")
    put(tmp_path / "store", 2, "b", ra=41.0)
    put(tmp_path / "after", 3, "a", tile_size=100)
    put(tmp_path / "after", 2, "b", ra=41.0)
    before, after = sky(tmp_path / "store"), sky(tmp_path / "after")
    reader = TileStore.open(tmp_path / "store")
    reader.manifest()
    with monkeypatch.context() as fatal:
        calls = itertools.count(1)
        write, put_manifest = TileStore.write_tile, TileStore.write_manifest

        def die(*_, **__):
            raise Killed

        def write_some(store, tile):
            if next(calls) > {"first tile": 0, "last tile": 1}[when]:
                raise Killed
            return write(store, tile)

        if when == "manifest":
            fatal.setattr(TileStore, "write_manifest", die)
        elif when == "cleaning":
            fatal.setattr(
                TileStore, "write_manifest", lambda *a: [put_manifest(*a), fatal.setattr(Folder, "delete_below", die)]
            )
        else:
            fatal.setattr(TileStore, "write_tile", write_some)
        with pytest.raises(Killed):
            put(tmp_path / "store", 3, "a", tile_size=100)
    assert sky(tmp_path / "store") == (after if when == "cleaning" else before)
    put(tmp_path / "store", 4, "c", ra=42.0)
    assert len(groups(tmp_path / "store")) == len(sky(tmp_path / "store"))
    put(tmp_path / "store", 3, "a", tile_size=100)
    assert {tile: data for tile, data in sky(tmp_path / "store").items() if tile[0] != "c"} == after


def test_a_reader_that_began_before_a_field_was_replaced_is_told_so_and_never_given_another_tile(tmp_path):
    put(tmp_path, 1, "a")
    reader = TileStore.open(tmp_path)
    old = reader.read_tile("a-t0001").images["euclid"].flux
    put(tmp_path, 1, "a")
    np.testing.assert_array_equal(reader.read_tile("a-t0001").images["euclid"].flux, old)
    put(tmp_path, 5, "a", tile_size=100)
    with pytest.raises(StorageUnavailable, match="was ingested into meanwhile; run the same command again"):
        reader.read_tile("a-t0001")
    assert pickle.loads(pickle.dumps(reader)).read_tile("a-t0001").core_shape == (70, 30)


def test_two_ingests_at_once_are_refused_in_one_line_or_wait(tmp_path):
    put(tmp_path, 1, "a")
    with Lease.acquire(Folder.at(tmp_path)):
        with pytest.raises(LeaseHeld, match=r"wait for it, stop it, or give another store$"):
            put(tmp_path, 2, "b", ra=41.0)
        assert set(fields_of(TileStore.open(tmp_path).manifest())) == {"a"}
    put(tmp_path, 2, "b", ra=41.0, wait=5.0)
    assert set(fields_of(TileStore.open(tmp_path).manifest())) == {"a", "b"}


def test_a_store_keeps_its_id_through_every_change_and_equal_ones_share_it(tmp_path):
    put(tmp_path / "x", 1, "a")
    put(tmp_path / "y", 1, "a")
    put(tmp_path / "z", 2, "a")
    known = [store_id_of(TileStore.open(tmp_path / name).manifest()) for name in "xyz"]
    assert known[0] == known[1] != known[2]
    put(tmp_path / "x", 2, "b", ra=41.0)
    put(tmp_path / "x", 3, "a", tile_size=100)
    assert store_id_of(TileStore.open(tmp_path / "x").manifest()) == known[0]


def test_a_store_of_format_1_is_one_field_and_others_are_added_to_it(tmp_path):
    for name, data in files_of(HERE / "v1/tiles").items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    old = TileStore.open(tmp_path).manifest()
    (field,) = fields_of(old).values()
    assert (field.name, field.prefix, field.shape, field.tile_size) == (field.grid_id, "", (144, 144), 72)
    assert list(zip(old["core_y0"].to_pylist(), old["core_x0"].to_pylist(), strict=True)) == [
        (0, 0),
        (0, 72),
        (72, 0),
        (72, 72),
    ]
    tile = TileStore.open(tmp_path).read_tile("t0003")
    corner = celestial_wcs(shifted_header(field.wcs_header, *tile.origin)).all_pix2world(3, 5, 0)
    np.testing.assert_allclose(corner, tile.images["lsst"].wcs.all_pix2world(3, 5, 0), rtol=0, atol=1e-10)
    put(tmp_path, 1, ra=41.0)
    new = TileStore.open(tmp_path).manifest()
    assert new.slice(6).drop_columns(["domain"]).equals(old.drop_columns(["domain"]))
    assert store_id_of(new) == store_id_of(old)
    assert json.loads((tmp_path / "zarr.json").read_text())["attributes"]["format_version"] == 2


def test_any_zarr_reader_finds_the_tiles_from_the_root(tmp_path):
    put(tmp_path, 1, "a")
    root = zarr.open_group(tmp_path, mode="r")
    with pytest.warns(
        UserWarning, match="not recognized as a component of a Zarr hierarchy"
    ):  # the manifest, the lease
        members = [path for path, _ in root.members(max_depth=None)]
    assert {"tiles", *(f"tiles/a-t{k:04d}/euclid/flux" for k in range(6))} <= set(members)


@pytest.mark.parametrize("name", ["../up", "a b", "", ".hidden"])
def test_a_name_that_cannot_be_a_path_is_refused(name):
    field = FieldGrid("", "g", "", (1, 1), 64, 0)
    with pytest.raises(StorageError, match="cannot be part of a path"):
        named_among(field, name, [], "store")
