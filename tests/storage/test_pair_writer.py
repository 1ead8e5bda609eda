"""Writing of pair stores: blocks in any order, going on where a writer was stopped, and what is refused."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zarr

from surveybridge.storage.errors import StorageError
from surveybridge.storage.pair_writer import BLOCK, PairLayout, PairWriter
from surveybridge.storage.pairs import problem_of_pairs, read_ids, read_pairs
from surveybridge.storage.problems import default_problem
from tests import tiny
from tests.storage.problem_files import problem

COUNT = BLOCK + 7


def layout_of(table: Any, count: int = COUNT, **more: Any) -> PairLayout:
    settings: dict[str, Any] = {"shape": (8, 6), "pixel_arcsec": 0.1, "name": "some", "registration": True}
    return PairLayout(table, count, **(settings | {"sigma": (table["endpoints"][1]["name"],)} | more))


def rows_of(layout: PairLayout, block: int) -> dict[str, Any]:
    """Numbers that depend on array, row and place only."""
    rows = layout.rows(block)
    found = {}
    for k, (name, shape) in enumerate(layout.arrays.items()):
        places = np.arange(int(np.prod(shape))).reshape(shape) / 100
        found[name] = (k + np.array(rows).reshape(-1, *[1] * len(shape)) + places).astype(np.float32)
    return found


def names_of(layout: PairLayout, block: int) -> list[str]:
    return [f"pair {row}" for row in layout.rows(block)]


def write(layout: PairLayout, url: str, *blocks: int) -> PairWriter:
    writer = pickle.loads(pickle.dumps(PairWriter.open(url, layout)))
    for block in blocks:
        writer.write(block, names_of(layout, block), rows_of(layout, block))
    return writer


@pytest.mark.parametrize("name", ["lsst-euclid", "hsc-hst", "clouds"])
def test_what_is_written_in_any_order_is_read_as_it_was(tmp_path, name):
    table = default_problem() if name == "lsst-euclid" else problem(tmp_path, name)
    layout = layout_of(table, attributes={"seed": 3})
    url = str(tmp_path / "pairs.zarr")
    write(layout, url, 1, 0).finish()
    pairs = read_pairs(url)
    assert (len(pairs), pairs.stored, pairs.name) == (COUNT, COUNT, "some")
    for end in table["endpoints"]:
        whole = np.concatenate([rows_of(layout, block)[end["name"]] for block in (0, 1)])
        np.testing.assert_array_equal(pairs.ends[end["name"]], whole.transpose(0, 3, 1, 2))
        noise = np.concatenate([rows_of(layout, block)[f"{end['name']}_noise"] for block in (0, 1)])
        for k, band in enumerate(end["bands"]):
            assert pairs.noise[end["name"]][band] == pytest.approx(np.median(noise[:, k]))
        assert pairs.units[end["name"]] == end["unit"] and pairs.pixel_scale[end["name"]] == 0.1
    assert read_ids(url, 255, 258) == ["pair 255", "pair 256", "pair 257"]
    # catalog, one-way and titles come along
    assert problem_of_pairs(url) == table
    group: Any = zarr.open_group(url, mode="r")
    assert group.attrs["seed"] == 3 and group[f"{end['name']}_sigma"].chunks[0] == BLOCK
    np.testing.assert_array_equal(group["registration"][:3], rows_of(layout, 0)["registration"][:3])


def test_a_stopped_writer_goes_on_with_the_blocks_that_are_left(tmp_path):
    layout, url = layout_of(default_problem()), str(tmp_path / "pairs.zarr")
    first = write(layout, url, 1)
    assert first.missing() == [0] and not first.finished
    with pytest.raises(StorageError, match="1 of 2 blocks are missing, the first is 0"):
        first.finish()
    with pytest.raises(StorageError, match="not a pair store"):
        read_pairs(url)  # half a store is none
    again = write(layout, url, *PairWriter.open(url, layout).missing())
    again.finish()
    once = str(tmp_path / "once.zarr")
    write(layout, once, 0, 1).finish()
    assert tiny.files_of(url) == tiny.files_of(once)
    assert PairWriter.open(url, layout).missing() == []  # a finished one is left as it is


def test_maps_of_simulations_have_their_units_and_names(tmp_path):
    table = problem(tmp_path, "clouds")
    layout = layout_of(
        table, 9, maps={"psi": "rad"}, conditions=False, simulations=True, block=3, sigma=(), registration=False
    )
    assert list(layout.arrays) == ["column", "density", "psi"] and layout.blocks == 3
    url = str(tmp_path / "some.zarr")
    writer = PairWriter.open(url, layout)
    for block in (2, 0):
        writer.write(block, names_of(layout, block), rows_of(layout, block), [f"run {block}"] * 3)
    with pytest.raises(StorageError, match="block 1 has 0 simulations for 3 pairs; give one for each"):
        writer.write(1, names_of(layout, 1), rows_of(layout, 1))
    assert PairWriter.open(url, layout).missing() == [1]
    writer.write(1, names_of(layout, 1), rows_of(layout, 1), ["run 1"] * 3)
    writer.finish()
    group: Any = zarr.open_group(url, mode="r")
    assert [str(name) for name in group["simulation"][...]] == [f"run {k // 3}" for k in range(9)]
    assert group["psi"].shape == (9, 8, 6) and group["psi"].chunks[0] == 3
    assert group.attrs["units"] == {"column": "cm-2", "density": "cm-3", "psi": "rad"}
    np.testing.assert_array_equal(read_pairs(url).ends["column"][3:6, 0], rows_of(layout, 1)["column"][..., 0])


def test_a_layout_without_simulations_takes_none(tmp_path):
    layout = layout_of(default_problem())
    writer = PairWriter.open(str(tmp_path / "some.zarr"), layout)
    with pytest.raises(StorageError, match="7 simulations for 7 pairs; give none"):
        writer.write(1, names_of(layout, 1), rows_of(layout, 1), ["run"] * 7)


def test_a_block_whose_names_are_not_there_does_not_count(tmp_path):
    layout, url = layout_of(default_problem()), str(tmp_path / "pairs.zarr")
    writer = write(layout, url, 0, 1)
    (tmp_path / "pairs.zarr" / "id" / "c" / "0").unlink()
    assert writer.missing() == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop("lsst_fwhm"), r"lsst_fwhm missing instead of \(7, 3\)"),
        (lambda rows: rows.update(extra=np.zeros(7)), r"extra \(7,\) instead of none"),
        (lambda rows: rows.update(euclid=rows["euclid"][:-1]), r"euclid \(6, 8, 6, 1\) instead of \(7, 8, 6, 1\)"),
        (lambda rows: rows["lsst"].__setitem__((0, 0, 0, 0), np.inf), "1 infinities in lsst"),
    ],
)
def test_rows_that_are_not_those_of_the_layout_are_refused(tmp_path, change, message):
    layout = layout_of(default_problem())
    rows = rows_of(layout, 1)
    change(rows)
    writer = write(layout, str(tmp_path / "pairs.zarr"))
    with pytest.raises(StorageError, match=message):
        writer.write(1, names_of(layout, 1), rows)
    assert writer.missing() == [0, 1]


def test_another_store_or_other_files_in_the_place_are_refused(tmp_path):
    layout, url = layout_of(default_problem()), str(tmp_path / "pairs.zarr")
    write(layout, url, 0, 1).finish()
    before = tiny.files_of(url)
    with pytest.raises(StorageError, match="holds a pair store of count 263, but this one would have count 12"):
        PairWriter.open(url, replace(layout, count=12))
    assert tiny.files_of(url) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"is a folder with notes\.txt, no pair store"):
        PairWriter.open(str(tmp_path / "other"), layout)
