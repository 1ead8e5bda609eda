"""Pair stores: both grids hold the same sky, in the same units, and what is no pair store is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from surveybridge.storage.errors import StorageError
from surveybridge.storage.pairs import read_pairs
from tests.tiny import SIGMA, write_pairs


@pytest.fixture
def store(tmp_path):
    return write_pairs(tmp_path / "pairs.zarr", 6)


def test_cutout_grid_holds_the_stamps_as_they_are(store):
    pairs = read_pairs(store, "cutout")
    group: Any = zarr.open_group(store, mode="r")
    np.testing.assert_array_equal(pairs.ends["lsst"].transpose(0, 2, 3, 1), group["lsst"][...])
    np.testing.assert_array_equal(pairs.ends["euclid"][:, 0], group["euclid"][...])
    assert pairs.pixel_scale == {"lsst": 0.2, "euclid": 0.1}
    assert pairs.noise == {
        "lsst": pytest.approx({band: 4 * SIGMA[band] for band in "gri"}),
        "euclid": pytest.approx({"VIS": SIGMA["VIS"]}),
    }
    assert (pairs.name, pairs.stored) == ("pairs.zarr", 6)


def test_mosaic_grid_is_the_central_half_with_the_same_flux(store):
    cutout, mosaic = read_pairs(store, "cutout"), read_pairs(store, "mosaic")
    assert mosaic.ends["lsst"].shape == (6, 3, 64, 64) and mosaic.ends["lsst"].dtype == np.float32
    assert mosaic.pixel_scale == {"lsst": 0.1, "euclid": 0.1}
    np.testing.assert_array_equal(mosaic.ends["euclid"], cutout.ends["euclid"])
    # A 12 x 12 LSST pixel box is 24 x 24 here; the galaxy (FWHM 4.7 LSST pixels) is inside it.
    wide, fine = (
        cutout.ends["lsst"][:, :, 26:38, 26:38].sum((2, 3)),
        mosaic.ends["lsst"][:, :, 20:44, 20:44].sum((2, 3)),
    )
    np.testing.assert_allclose(fine, wide, rtol=0.01, atol=3 * 12 * max(cutout.noise["lsst"].values()) * 0.2)
    # Centre of the stamp stays centre of the stamp.
    weight = mosaic.ends["lsst"].sum((0, 1))
    y, x = np.indices(weight.shape)
    assert abs((weight * y).sum() / weight.sum() - 31.5) < 0.3
    assert abs((weight * x).sum() / weight.sum() - 31.5) < 0.3


def test_noise_is_scaled_by_pixel_area(store):
    noise = read_pairs(store, "mosaic").noise
    assert noise["lsst"] | noise["euclid"] == pytest.approx(SIGMA)


def test_a_range_holds_its_pairs_and_tells_how_many_there_are(store):
    some, every = read_pairs(store, start=1, stop=3), read_pairs(store, stop=100)
    assert (len(some.ends["lsst"]), some.stored, len(every.ends["lsst"]), every.stored) == (2, 6, 6, 6)
    np.testing.assert_array_equal(some.ends["lsst"], every.ends["lsst"][1:3])
    np.testing.assert_array_equal(some.ends["euclid"], every.ends["euclid"][1:3])


def test_a_range_is_read_without_the_chunks_of_others(store):
    group: Any = zarr.open_group(store, mode="a")
    for name in ("lsst", "euclid"):
        stamps = group[name][...]
        del group[name]
        group.create_array(name, data=stamps, chunks=(2, *stamps.shape[1:]))
    wanted = read_pairs(store, start=2, stop=4)
    chunks = [path for path in Path(store).glob("*/c/**/*") if path.is_file()]
    damaged = [path for path in chunks if path.relative_to(store).parts[2] != "1"]  # lsst/c/1/0/0/0 is wanted
    assert len(damaged) == 4
    for path in damaged:
        path.write_bytes(b"damaged")
    np.testing.assert_array_equal(read_pairs(store, start=2, stop=4).ends["lsst"], wanted.ends["lsst"])
    with pytest.raises(Exception, match=r"(?i)zstd|decompress|unknown"):
        read_pairs(store, start=1, stop=4)


def break_store(path, case):
    match case:
        case "nothing":
            return str(path / "absent.zarr")
        case "a file":
            (path / "pairs.fits").write_bytes(b"SIMPLE")
            return str(path / "pairs.fits")
    store = write_pairs(path / "broken.zarr", 4)
    group: Any = zarr.open_group(store, mode="a")
    match case:
        case "no euclid":
            del group["euclid"]
        case "bands first":
            del group["lsst"]
            group.create_array("lsst", data=np.zeros((4, 3, 64, 64), np.float32))
        case "lengths differ":
            del group["euclid"]
            group.create_array("euclid", data=np.zeros((3, 64, 64), np.float32))
        case "no bands":
            del group.attrs["bands"]
        case "no noise":
            bands = group.attrs["bands"]
            del bands["i"]["sigma_noise"]
            group.attrs["bands"] = bands
        case "odd scale":
            bands = group.attrs["bands"]
            bands["g"]["pixel_arcsec"] = 0.263
            group.attrs["bands"] = bands
        case "NaN":
            group["lsst"][2, 5, 5, 1] = np.nan
    return store


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("nothing", ["absent.zarr", "not a pair store"]),
        ("a file", ["pairs.fits", "not a pair store"]),
        ("no euclid", ["broken.zarr", "not a pair store", "euclid"]),
        ("bands first", ["(4, 3, 64, 64)", "[N, H, W, 3]"]),
        ("lengths differ", ["(4, 64, 64, 3)", "(3, 64, 64)"]),
        ("no bands", ["bands", "for g"]),
        ("no noise", ["sigma_noise", "for i"]),
        ("odd scale", ['0.263"', '0.1"', "cutout"]),
        ("NaN", ["NaN"]),
    ],
)
def test_what_is_no_pair_store_is_refused(tmp_path, case, said):
    with pytest.raises(StorageError) as caught:
        read_pairs(break_store(tmp_path, case))
    assert "\n" not in str(caught.value)
    for words in said:
        assert words in str(caught.value)


def test_unknown_grid_is_refused(store):
    with pytest.raises(StorageError, match="'sky' is not one of"):
        read_pairs(store, "sky")


def test_the_shared_pairs_have_the_same_sky_in_both_surveys(shared_data):
    pairs = read_pairs(str(shared_data / "pairs" / "test_regular.zarr"), stop=64)
    assert pairs.stored == 1000
    # Bright stamps: the i and VIS images of one object correlate when they are on one grid.
    flux_i, flux_vis = (
        images[:, :, 24:40, 24:40].sum((1, 2, 3)) for images in (pairs.ends["lsst"][:, 2:], pairs.ends["euclid"])
    )
    bright = flux_vis > np.median(flux_vis)
    assert np.corrcoef(flux_i[bright], flux_vis[bright])[0, 1] > 0.9
    assert np.std(pairs.ends["lsst"][:, 0, :6, :6]) < 3 * pairs.noise["lsst"]["g"]
