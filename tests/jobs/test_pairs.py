"""Pairs cut from a tile store: the pixels are the store's, no sky is on both sides, and it goes on where it stopped."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from astropy.coordinates import SkyCoord

from surveybridge.__main__ import main
from surveybridge.storage.held_back import HeldBack
from surveybridge.storage.pair_labels import PAIR_LABELS
from surveybridge.storage.pair_writer import PairWriter
from surveybridge.storage.pairs import problem_of_pairs, read_ids, read_pairs
from surveybridge.storage.problems import default_problem
from surveybridge.storage.tiles import TileStore
from tests import tiny
from tests.jobs.skies_to_cut import DEPTH, EAST, TILE, WEST, WING, field_of, objects, write_sky
from tests.storage.problem_files import write_problem

pytestmark = pytest.mark.long

SIZE = 32
HOW = ["--size", str(SIZE), "--stride", "16", "--hold-back", "0.2", "--hold-back-order", "14"]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> str:
    return write_sky(tmp_path_factory.mktemp("sky") / "tiles", EAST, WEST)


@pytest.fixture(scope="module")
def cut(tiles, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("cut") / "mine.zarr"
    assert main(["pairs", "--store", tiles, "--out", str(out), *HOW]) == 0
    return str(out)


@pytest.fixture(scope="module")
def labels(cut) -> dict[str, np.ndarray]:
    """Columns of the table."""
    table = pq.read_table(cut.replace(".zarr", ".parquet"))
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def arrays(cut: str) -> dict[str, np.ndarray]:
    group: Any = zarr.open_group(cut, mode="r")
    return {name: np.asarray(group[name][...]) for name in group}


# -- what a pair is --


def test_every_window_is_its_place_in_the_tiles_with_masked_pixels_left_out(cut, labels):
    found = arrays(cut)
    fields = {footprint.name: field_of(footprint) for footprint in (EAST, WEST)}
    assert len(labels["id"]) == len(found["lsst"]) > 256
    assert {name for name in labels["field"]} == {"east", "west"}
    for k in range(0, len(labels["id"]), 7):
        y, x = labels["y0"][k], labels["x0"][k]
        for name, image in fields[labels["field"][k]].images.items():
            where = np.s_[:, y : y + SIZE, x : x + SIZE]
            flux = np.where(image.mask[where] == 0, image.flux[where], np.nan).transpose(1, 2, 0)
            np.testing.assert_array_equal(found[name][k], flux)
            np.testing.assert_allclose(
                found[f"{name}_sigma"][k], np.sqrt(image.variance[where]).transpose(1, 2, 0), rtol=1e-6
            )


def test_conditions_are_those_of_the_window(cut, labels):
    found = arrays(cut)
    x = labels["x0"] + (SIZE - 1) / 2
    for name, bands in tiny.SURVEY_BANDS.items():
        for k, band in enumerate(bands):
            depth = np.array([DEPTH[field] for field in labels["field"]])
            expected = tiny.SIGMA[band] * depth * (1 + 0.5 * x / (3 * TILE - 1))
            np.testing.assert_allclose(found[f"{name}_noise"][:, k], expected, rtol=0.02)
            np.testing.assert_allclose(found[f"{name}_fwhm"][:, k], 0.05 * tiny.SEEING[name], rtol=1e-6)
        west = labels["field"] == "west"
        np.testing.assert_allclose(found[f"{name}_wing"][west], WING, rtol=1e-6)
        assert np.isnan(found[f"{name}_wing"][~west]).all() and (found[f"{name}_correlation"] == 0).all()
    pairs = read_pairs(cut)
    for name, bands in tiny.SURVEY_BANDS.items():
        for k, band in enumerate(bands):
            assert pairs.noise[name][band] == pytest.approx(float(np.median(found[f"{name}_noise"][:, k])))
    assert pairs.pixel_scale == {"lsst": 0.1, "euclid": 0.1}
    assert problem_of_pairs(cut) == default_problem()
    assert read_ids(cut) == labels["id"].tolist()


def test_windows_lie_in_the_cores_once_and_those_of_the_lattice_do_not_depend_on_others(labels):
    for axis in ("y0", "x0"):
        assert (labels[axis] // TILE == (labels[axis] + SIZE - 1) // TILE).all()
    assert len(set(labels["id"])) == len(labels["id"])
    places = list(zip(labels["field"], labels["y0"], labels["x0"], strict=True))
    assert len(set(places)) == len(places)
    assert (labels["complete"] >= 0.5).all() and (labels["complete"] < 1).any()


def test_windows_on_objects_are_centred_on_them_and_measured(labels):
    centred = labels["centred"]
    assert 0 < centred.sum() <= len(centred) / 2
    seen = SkyCoord(labels["ra"][centred], labels["dec"][centred], unit="deg")
    _, apart, _ = seen.match_to_catalog_sky(SkyCoord(*objects(), unit="deg"))
    assert apart.arcsec.max() < 0.1
    for axis in ("x", "y"):
        assert np.abs(labels[axis][centred] - labels[f"{axis}0"][centred] - SIZE / 2).max() <= 0.5
    good = centred & (labels["flags"] == 0)
    np.testing.assert_allclose(labels["flux_VIS"][good], 600, rtol=0.25)
    assert (labels["snr_VIS"][centred] >= 10).all()
    assert np.isnan(labels["flux_VIS"][~centred].astype(float)).all()


def test_the_table_has_every_column_documented(cut):
    schema = pq.read_schema(cut.replace(".zarr", ".parquet"))
    assert schema.names == PAIR_LABELS.names
    assert all(field.metadata[b"description"] for field in schema)


# -- regions --


def test_training_and_validation_share_no_sky_over_both_fields(cut, labels):
    rule = HeldBack(0.2, 14, 0)
    held = labels["held_back"]
    assert 0.05 < held.mean() < 0.5
    # validation comes last, and the store says how many
    assert (np.diff(held.astype(int)) >= 0).all()
    assert zarr.open_group(cut, mode="r").attrs["held_back"] == held.sum()
    steps = np.arange(SIZE)
    for footprint in (EAST, WEST):
        for k in np.flatnonzero(labels["field"] == footprint.name):
            y, x = np.meshgrid(labels["y0"][k] + steps, labels["x0"][k] + steps, indexing="ij")
            assert (rule.at(*footprint.wcs.all_pix2world(x.ravel(), y.ravel(), 0)) == held[k]).all()


def test_sky_that_both_fields_show_is_cut_from_one_of_them(labels):
    ra, dec = labels["ra"], labels["dec"]
    other = {"east": WEST, "west": EAST}
    centre = {one.name: SkyCoord(one.ra, one.dec, unit="deg") for one in (EAST, WEST)}
    both = 0
    for k, name in enumerate(labels["field"]):
        if other[name].tile_at(ra[k : k + 1], dec[k : k + 1])[0] >= 0:
            both += 1
            here = SkyCoord(ra[k], dec[k], unit="deg")
            nearer = here.separation(centre[name]) < here.separation(centre[other[name].name])
            # or the other field has no data there
            y, x = other[name].wcs.all_world2pix(ra[k], dec[k], 0)[::-1]
            assert nearer or (x < 128 and y < 128)
    assert both > 20


# -- choices --


def ids_of(out: Path) -> list[str]:
    return pq.read_table(out.with_suffix(".parquet"))["id"].to_pylist()


def cut_again(tiles: str, out: Path, *more: str) -> int:
    return main(["pairs", "--store", tiles, "--out", str(out), *HOW, *more])


def test_the_same_seed_cuts_the_same_bytes_and_another_one_other_windows(tiles, cut, tmp_path):
    assert cut_again(tiles, tmp_path / "mine.zarr") == 0
    assert tiny.files_of(tmp_path / "mine.zarr") == tiny.files_of(cut)
    assert (tmp_path / "mine.parquet").read_bytes() == Path(cut.replace(".zarr", ".parquet")).read_bytes()
    assert cut_again(tiles, tmp_path / "other.zarr", "--seed", "1") == 0
    assert set(ids_of(tmp_path / "other.zarr")) != set(read_ids(cut))


@pytest.mark.parametrize(("share", "centred"), [("0", 0), ("0.25", 10), ("1", 40)])
def test_a_count_is_met_with_its_share_on_objects(tiles, tmp_path, share, centred):
    out = tmp_path / "some.zarr"
    more = ["--count", "40", "--objects", share, "--snr", "5"]
    if share == "1":  # there are fewer objects than that
        more = ["--count", "12", "--objects", share, "--snr", "5"]
        centred = 12
    assert cut_again(tiles, out, *more) == 0
    table = pq.read_table(out.with_suffix(".parquet"))
    assert (table.num_rows, sum(table["centred"].to_pylist())) == (int(more[1]), centred)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--count", "100000"], r"100000 windows are wanted, but there are \d+ of the lattice and \d+ on objects"),
        (["--hold-back-order", "6"], r"windows lie on the 20% of the sky that are held back"),
        (["--problem", "{clouds}"], "0 of its 18 tiles, which are of euclid and lsst, have both column and density"),
        (["--store", "{nowhere}"], "is not a tile store"),
        (["--out", "{other}"], "is the table of pairs with cutting .*, but these would have cutting"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_a_line_and_nothing_is_written(tiles, cut, tmp_path, capsys, more, message):
    names = {"{clouds}": lambda: write_problem(tmp_path, "clouds"), "{nowhere}": lambda: str(tmp_path / "nowhere")}
    names["{other}"] = lambda: cut
    arguments = {"--store": tiles, "--out": str(tmp_path / "new.zarr"), "--seed": "7", "--hold-back-order": "14"}
    arguments |= {flag: names[value]() if value in names else value for flag, value in [more]}
    before = tiny.files_of(Path(cut).parent)
    capsys.readouterr()
    assert main(["pairs", "--size", "32", "--hold-back", "0.2", *(w for pair in arguments.items() for w in pair)]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("plan: ")]
    assert len(said) == 1 and re.search(message, said[0]), said
    assert tiny.files_of(Path(cut).parent) == before and not list(tmp_path.glob("new*"))


# -- stops and damage --


def test_a_stopped_cutting_goes_on_with_its_table_and_the_blocks_that_are_left(tiles, cut, tmp_path, monkeypatch):
    out, written = tmp_path / "mine.zarr", PairWriter.write

    def once(self: PairWriter, block: int, *rows: Any) -> None:
        if block == 1:
            raise KeyboardInterrupt
        written(self, block, *rows)

    with monkeypatch.context() as patch:
        patch.setattr(PairWriter, "write", once)
        assert cut_again(tiles, out) == 130
    assert (tmp_path / "mine.parquet").exists() and not (out / "zarr.json").exists()
    planned: list[str] = []
    monkeypatch.setattr("surveybridge.jobs.cutting.cut.windows_of", lambda tile, *_: planned.append(tile.tile_id))
    assert cut_again(tiles, out) == 0
    assert planned == []
    assert tiny.files_of(out) == tiny.files_of(cut)


def test_a_damaged_tile_is_left_out_and_said(tmp_path, capsys):
    tiles = write_sky(tmp_path / "tiles", EAST)
    tiny.damage_tile(tiles, "east-t0004")
    assert cut_again(tiles, tmp_path / "mine.zarr") == 3
    assert "1 of 9 tiles cannot be read: east-t0004" in capsys.readouterr().out
    assert cut_again(tiles, tmp_path / "mine.zarr") == 3  # a second run says the same
    found = set(pq.read_table(tmp_path / "mine.parquet")["tile_id"].to_pylist())
    assert found == {f"east-t000{k}" for k in range(9) if k != 4}


def test_tiles_of_one_survey_are_no_pairs(tmp_path):
    tiles = write_sky(tmp_path / "tiles", EAST)
    store = TileStore.open(tiles)
    tile = store.read_tile("east-t0000")
    alone = store.write_tile(replace(tile, images={"lsst": tile.images["lsst"]}))
    store.write_manifest([alone, *(row for row in store.manifest().to_pylist() if row["tile_id"] != "east-t0000")])
    assert cut_again(tiles, tmp_path / "mine.zarr") == 0
    assert "east-t0000" not in pq.read_table(tmp_path / "mine.parquet")["tile_id"].to_pylist()
