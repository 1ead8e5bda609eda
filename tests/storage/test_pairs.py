"""Pair stores: both grids hold the same sky, in the same units, and what is no pair store is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from surveybridge.storage.errors import StorageError
from surveybridge.storage.pairs import problem_of_pairs, read_ids, read_labels, read_pairs
from surveybridge.storage.problems import complete_problem, default_problem
from tests.storage.problem_files import problem
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
    assert {**noise["lsst"], **noise["euclid"]} == pytest.approx(SIGMA)


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


# -- stores that state their endpoints --


def write_store(path: Path, arrays: dict[str, Any], **attributes: Any) -> str:
    group = zarr.open_group(str(path), mode="w", attributes={"endpoints": list(arrays)} | attributes)
    for name, values in arrays.items():
        group.create_array(name, data=np.asarray(values))
    return str(path)


def stamps(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


HSC_HST = {
    **{band: {"pixel_arcsec": 0.05, "sigma_noise": 1.0 + k} for k, band in enumerate("grizy")},
    "F814W": {"pixel_arcsec": 0.05, "sigma_noise": 0.5},
}


@pytest.fixture
def hsc_hst(tmp_path):
    return write_store(
        tmp_path / "hsc_hst.zarr", {"hsc": stamps(4, 32, 32, 5), "hst": stamps(4, 32, 32, seed=1)}, bands=HSC_HST
    )


@pytest.mark.parametrize("grid", ["mosaic", "cutout"])
def test_a_store_that_states_its_ends_is_read_as_it_is_whatever_the_grid_is_called(tmp_path, hsc_hst, grid):
    group: Any = zarr.open_group(hsc_hst, mode="r")
    for table in (None, problem(tmp_path, "hsc-hst")):
        pairs = read_pairs(hsc_hst, grid, 1, 3, problem=table)
        assert (list(pairs.ends), len(pairs), pairs.stored) == (["hsc", "hst"], 2, 4)
        np.testing.assert_array_equal(pairs.ends["hsc"], group["hsc"][1:3].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(pairs.ends["hst"][:, 0], group["hst"][1:3])
        assert all(values.dtype == np.float32 and values.flags.c_contiguous for values in pairs.ends.values())
        assert pairs.bands == {"hsc": ("g", "r", "i", "z", "y"), "hst": ("F814W",)}
        assert pairs.units == {"hsc": "nJy", "hst": "nJy"}
        assert pairs.pixel_scale == {"hsc": 0.05, "hst": 0.05}
        assert pairs.noise == {"hsc": {b: 1.0 + k for k, b in enumerate("grizy")}, "hst": {"F814W": 0.5}}


def test_a_store_says_which_problem_it_is_of(tmp_path, store, hsc_hst):
    assert problem_of_pairs(store) == default_problem()
    said = problem_of_pairs(hsc_hst)
    assert (said["name"], said["catalog"], said["wanted"], said["objective"]) == ("hsc-hst", None, None, None)
    assert [(end["name"], end["bands"], end["pixel_scale"]) for end in said["endpoints"]] == [
        ("hsc", ["g", "r", "i", "z", "y"], 0.05),
        ("hst", ["F814W"], 0.05),
    ]


def test_the_ends_come_in_the_order_of_the_problem(tmp_path):
    turned = write_store(
        tmp_path / "turned.zarr", {"hst": stamps(4, 32, 32), "hsc": stamps(4, 32, 32, 5)}, bands=HSC_HST
    )
    assert list(read_pairs(turned, problem=problem(tmp_path, "hsc-hst")).ends) == ["hsc", "hst"]


def test_densities_have_units_no_noise_and_holes_that_are_passed_on(tmp_path):
    column, density = np.exp(stamps(3, 16, 16)), np.exp(stamps(3, 16, 16, 1, seed=1))
    column[1, 2, 3] = np.nan
    url = write_store(
        tmp_path / "clouds.zarr", {"column": column, "density": density}, units={"column": "1/cm2", "density": "cm-3"}
    )
    for table in (None, problem(tmp_path, "clouds")):
        pairs = read_pairs(url, problem=table)
        assert pairs.units == {"column": "cm-2", "density": "cm-3"}
        assert pairs.pixel_scale == {"column": 0.0, "density": 0.0}
        assert np.isnan(pairs.ends["column"]).sum() == 1 and pairs.ends["density"].shape == (3, 1, 16, 16)
        assert all(np.isnan(sigma) for bands in pairs.noise.values() for sigma in bands.values())
    assert pairs.bands == {"column": ("NH",), "density": ("nH",)}
    said = problem_of_pairs(url)["endpoints"]
    assert [(end["bands"], end["unit"], end["stretch"], end["extensive"]) for end in said] == [
        (["column"], "cm-2", "log10", False),
        (["density"], "cm-3", "log10", False),
    ]


def test_bands_are_named_by_the_store_as_its_own_in_order_or_by_number(tmp_path):
    arrays = {"sky": stamps(2, 16, 16, 2), "eye": stamps(2, 16, 16)}
    cases: list[tuple[dict[str, Any], list[str], list[str]]] = [
        ({"u": {}, "w": {}, "broad": {}}, ["u", "w"], ["broad"]),
        ({"eye.g": {"sigma_noise": 3.0}, "sky.g": {"sigma_noise": 1.0}, "sky.r": {}}, ["g", "r"], ["g"]),
        ({"eye.broad": {}, "u": {}, "w": {}}, ["u", "w"], ["broad"]),
        ({}, ["sky_0", "sky_1"], ["eye"]),
    ]
    for bands, sky, eye in cases:
        url = write_store(tmp_path / "pairs.zarr", arrays, bands=bands)
        ends = problem_of_pairs(url)["endpoints"]
        assert [end["bands"] for end in ends] == [sky, eye]
        if "eye.g" in bands:
            noise = read_pairs(url).noise
            assert (noise["sky"]["g"], noise["eye"]["g"]) == (1.0, 3.0) and np.isnan(noise["sky"]["r"])


def break_stated_store(path: Path, case: str) -> tuple[str, Any]:
    """A store with one thing wrong, and the problem it is read for."""
    hsc, hst = stamps(4, 32, 32, 5), stamps(4, 32, 32)
    arrays: dict[str, Any] = {"hsc": hsc, "hst": hst}
    attributes: dict[str, Any] = {"bands": HSC_HST}
    table: Any = problem(path, "hsc-hst")
    match case:
        case "one endpoint":
            attributes["endpoints"] = ["hsc"]
        case "an array is gone":
            attributes["endpoints"] = ["hsc", "acs"]
        case "other ends":
            table = default_problem()
        case "fewer bands":
            arrays["hsc"] = hsc[..., :4]
        case "another unit":
            attributes["units"] = {"hst": "uJy"}
        case "no unit of a density":
            arrays, attributes, table = {"column": hst, "density": hst}, {}, problem(path, "clouds")
        case "two sizes":
            arrays["hst"] = stamps(4, 64, 64)
        case "two lengths":
            arrays["hst"] = stamps(3, 32, 32)
        case "infinite":
            hsc[1, 2, 3, 4] = np.inf
        case "two grids":
            attributes["bands"] = HSC_HST | {"F814W": {"pixel_arcsec": 0.1}}
        case "two scales in an end":
            attributes["bands"] = HSC_HST | {"r": {"pixel_arcsec": 0.1}}
        case "a band too many":
            arrays["hsc"], table = hsc[..., :1], None
            attributes["bands"] = {"hsc.g": {}, "hsc.r": {}}
        case "a unit that is none":
            attributes["units"], table = {"hst": "parrot"}, None
        case "a unit that is none, for a problem":
            attributes["units"] = {"hst": "parrot"}
        case "a logarithm":
            attributes["units"], table = {"hst": "mag"}, None
    return write_store(path / "broken.zarr", arrays, **attributes), table


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("one endpoint", ["endpoints", "['hsc']", "two arrays"]),
        ("an array is gone", ["not a pair store", "acs"]),
        ("other ends", ["a store of hsc and hst", "lsst-euclid is of lsst and euclid"]),
        ("fewer bands", ["hsc has 4 planes", "5 bands (g,r,i,z,y)"]),
        ("another unit", ["hst is in uJy", "in nJy"]),
        ("no unit of a density", ["no unit is stated of column", "in cm-2", "state units.column"]),
        ("two sizes", ["(4, 32, 32, 5)", "(4, 64, 64)", "one grid"]),
        ("two lengths", ["(4, 32, 32, 5)", "(3, 32, 32)"]),
        ("infinite", ["infinite values of hsc"]),
        ("two grids", ['hsc has pixels of 0.05"', 'hst of 0.1"', "the grid of the network"]),
        ("two scales in an end", ["bands of hsc", 'r 0.1"']),
        ("a band too many", ["hsc has 1 planes", "names 2 (g,r)"]),
        ("a unit that is none", ["broken.zarr", "'parrot'"]),
        ("a unit that is none, for a problem", ["broken.zarr", "'parrot'"]),
        ("a logarithm", ["no stretch fits the unit mag"]),
    ],
)
def test_a_store_of_another_problem_or_of_none_is_refused_with_both_values(tmp_path, case, said):
    url, table = break_stated_store(tmp_path, case)
    with pytest.raises(StorageError) as caught:
        read_pairs(url, problem=table)
    assert "\n" not in str(caught.value)
    for words in said:
        assert words in str(caught.value)


def test_pairs_of_lsst_and_euclid_are_none_of_another_problem(tmp_path, store):
    assert len(read_pairs(store, problem=default_problem())) == 6
    with pytest.raises(StorageError, match="a store of lsst and euclid but problem hsc-hst"):
        read_pairs(store, problem=problem(tmp_path, "hsc-hst"))


# -- ends that are made of maps


QUANTITIES: dict[str, Any] = {
    "name": "dust",
    "wanted": "magnet",
    "endpoints": [
        {"name": "seen", "bands": ["gas", "psi"], "pixel_scale": 0, "units": {"gas": "cm-2", "psi": "rad"}},
        {"name": "magnet", "bands": ["B"], "pixel_scale": 0, "unit": "uG"},
    ],
}
UNITS = {"gas": "1/cm2", "psi": "rad", "magnet": "uG", "column": "cm-2", "density": "cm-3"}


def maps_store(path: Path, units: dict[str, Any] = UNITS, **changed: Any) -> str:
    """A store of column and density with three maps beside them, one of which is written [N, H, W, 1]."""
    arrays = {name: np.exp(stamps(5, 8, 12, seed=k)) for k, name in enumerate(("column", "density"))}
    more = {"gas": stamps(5, 8, 12, 1, seed=7), "psi": stamps(5, 8, 12, seed=8), "magnet": stamps(5, 8, 12, seed=9)}
    every = {name: values for name, values in (arrays | more | changed).items() if values is not None}
    return write_store(path / "maps.zarr", every, endpoints=["column", "density"], units=units)


def test_an_end_of_a_problem_is_made_of_the_maps_that_are_its_bands(tmp_path):
    url = maps_store(tmp_path)
    group: Any = zarr.open_group(url, mode="a")
    group["psi"][2, 3, 4] = np.nan
    pairs = read_pairs(url, problem=complete_problem(QUANTITIES, "here"), start=1, stop=4)
    assert {name: values.shape for name, values in pairs.ends.items()} == {
        "seen": (3, 2, 8, 12),
        "magnet": (3, 1, 8, 12),
    }
    np.testing.assert_array_equal(pairs.ends["seen"][:, 0], group["gas"][1:4, ..., 0])
    np.testing.assert_array_equal(pairs.ends["seen"][:, 1], group["psi"][1:4])
    assert np.isnan(pairs.ends["seen"]).sum() == 1 and pairs.ends["seen"].dtype == np.float32
    np.testing.assert_array_equal(pairs.ends["magnet"][:, 0], group["magnet"][1:4])
    assert pairs.stored == 5 and pairs.pixel_scale == {"seen": 0.0, "magnet": 0.0}
    # what the store says itself is read as ever
    assert list(read_pairs(url).ends) == ["column", "density"]


def test_an_array_of_the_ends_own_name_goes_before_maps(tmp_path):
    own = stamps(5, 8, 12, 2, seed=11)
    units = UNITS | {"seen": {"gas": "cm-2", "psi": "rad"}}
    pairs = read_pairs(maps_store(tmp_path, units, seen=own), problem=complete_problem(QUANTITIES, "here"))
    np.testing.assert_array_equal(pairs.ends["seen"].transpose(0, 2, 3, 1), own)


@pytest.mark.parametrize(
    ("units", "changed", "said"),
    [
        (UNITS, {"psi": None}, r"a store of column and density but problem dust .* or the maps gas, psi\)"),
        (UNITS, {"psi": stamps(4, 8, 12)}, "or the maps gas, psi"),
        (UNITS, {"psi": stamps(5, 8, 12, 2)}, "or the maps gas, psi"),
        (UNITS, {"magnet": stamps(5, 8, 8)}, r"seen is \(5, 8, 12, 2\) and magnet \(5, 8, 8\)"),
        (UNITS | {"psi": "pc"}, {}, "psi is in pc but problem dust has it in rad; .* state units.psi"),
        ({"gas": "cm-2"}, {}, "no unit is stated of psi, which problem dust has in rad; state units.psi"),
        (UNITS | {"seen": {"gas": "cm-2"}}, {"seen": stamps(5, 8, 12, 2)}, "no unit is stated of seen.psi, which"),
        (UNITS, {"seen": stamps(5, 8, 12)}, "seen has 1 planes"),
    ],
)
def test_maps_that_do_not_fit_are_refused_in_one_line(tmp_path, units, changed, said):
    with pytest.raises(StorageError, match=said) as caught:
        read_pairs(maps_store(tmp_path, units, **changed), problem=complete_problem(QUANTITIES, "here"))
    assert "\n" not in str(caught.value)


def test_names_are_the_stores_own_or_its_simulations_or_count(tmp_path, store, hsc_hst):
    assert read_ids(store, 4) == ["pairs.zarr-000004", "pairs.zarr-000005"]
    group: Any = zarr.open_group(hsc_hst, mode="a")
    group.create_array("simulation", data=np.array([7, 7, 8, 9]))
    assert read_ids(hsc_hst, 1) == ["7-000001", "8-000002", "9-000003"]
    group.create_array("id", data=np.array([10, 11, 12, 13]))
    assert read_ids(hsc_hst, 0, 2) == ["10", "11"]


def test_labels_are_those_of_any_endpoint(tmp_path):
    table = pa.table({"id": ["a"], "central_class": ["star"], "blended_hsc": [True], "z": [0.3]})
    pq.write_table(table, tmp_path / "pairs.parquet")
    assert read_labels(str(tmp_path / "pairs.zarr")) == {"a": {"id": "a", "central_class": "star", "blended_hsc": True}}
