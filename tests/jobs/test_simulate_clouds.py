"""The job simulate-clouds: a pair store that follows from its seed alone, and that is gone on with."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch._inductor.config
import zarr

from surveybridge.__main__ import main
from surveybridge.jobs.clouds import blocks, simulation
from surveybridge.storage.errors import StorageError
from surveybridge.storage.map_names import CLOUD_MAPS
from surveybridge.storage.pairs import problem_of_pairs, read_ids, read_pairs, states_conditions
from surveybridge.storage.problems import read_problem, unit_of
from tests.jobs.test_bad_requests import refused
from tests.tiny import files_of

CELLS, COUNT = 16, 64


def simulate(out, *more, suite="ood-collision", simulations=2):
    given = ["--out", out, "--suite", suite, "--cells", CELLS, "--simulations", simulations, "--seed", 4, *more]
    return main(["simulate-clouds", *map(str, given)])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("clouds") / "collision.zarr"
    assert simulate(out, "--executor", "serial") == 0
    return out


def test_the_store_is_a_pair_store_with_all_maps_and_their_units(store):
    pairs = read_pairs(str(store))
    assert {end: values.shape for end, values in pairs.ends.items()} == {
        "column": (COUNT, 1, CELLS, CELLS),
        "density": (COUNT, 1, CELLS, CELLS),
    }
    problem = problem_of_pairs(str(store))
    assert problem["wanted"] == "density" and [end["unit"] for end in problem["endpoints"]] == ["cm-2", "cm-3"]
    assert not states_conditions(str(store))
    group: Any = zarr.open_group(store, mode="r")
    assert dict(group.attrs["units"]) == CLOUD_MAPS and group.attrs["pixel_pc"] == 4 / CELLS
    for name in CLOUD_MAPS:
        values = np.asarray(group[name][...])
        assert values.shape[:3] == (COUNT, CELLS, CELLS) and values.dtype == np.float32
        there = np.isfinite(values)  # noise hides a few of the least columns
        assert there.mean() > 0.99 if name == "column_observed" else there.all()
        assert name.startswith("psi") or (values[there] > 0).all()
    # the observed maps are of the same clouds
    true, observed = (np.log10(np.asarray(group[name][...])).ravel() for name in ("column", "column_observed"))
    assert np.corrcoef(true[np.isfinite(observed)], observed[np.isfinite(observed)])[0, 1] > 0.9


@pytest.mark.parametrize("name", ["clouds-density", "clouds-density-observed", "clouds-field", "clouds-field-observed"])
def test_the_problems_that_ship_read_their_ends_from_its_maps(store, name):
    problem = read_problem(name)
    pairs = read_pairs(str(store), problem=problem)
    group: Any = zarr.open_group(store, mode="r")
    observed, wanted = problem["endpoints"]
    assert problem["wanted"] == wanted["name"] and problem["catalog"] is None
    assert all(band.endswith("_observed") for band in observed["bands"] if observed["name"] == "observed")
    for end in problem["endpoints"]:
        maps = [end["name"]] if end["name"] in CLOUD_MAPS else end["bands"]
        for plane, one in enumerate(maps):
            there = np.asarray(group[one][...]).reshape(COUNT, CELLS, CELLS)
            np.testing.assert_array_equal(pairs.ends[end["name"]][:, plane], there)
            assert unit_of(end, end["bands"][plane]) == CLOUD_MAPS[one]


def test_each_pair_says_which_simulation_it_is_of(store):
    names = [str(name) for name in np.asarray(zarr.open_array(store / "simulation", mode="r")[...])]
    assert names == ["ood-collision-4-0000"] * 32 + ["ood-collision-4-0001"] * 32
    table = pq.read_table(store.with_suffix(".parquet")).to_pydict()
    assert table["id"] == read_ids(str(store)) and len(set(table["id"])) == COUNT
    assert table["simulation"] == names and set(table["stream"]) == {5.0} and set(table["floored"]) == {0}
    assert min(table["density_unit"]) > 10**2.3 and max(table["density_unit"]) < 10**3.7
    assert len(set(table["density_unit"])) == COUNT  # each map has its own


def test_columns_average_to_the_density_unit_of_the_pair(store):
    """Periodic boxes: a view along an axis shows all the mass."""
    column = read_pairs(str(store)).ends["column"]
    table = pq.read_table(store.with_suffix(".parquet")).to_pydict()
    whole = [k for k, view in enumerate(table["view"]) if view < 3]
    expected = np.array(table["density_unit"])[whole] * 4 * 3.0857e18
    np.testing.assert_allclose(column[whole].mean((1, 2, 3)), expected, rtol=1e-5)


def test_validation_has_simulations_of_its_own(tmp_path):
    layout = blocks.begin(str(tmp_path / "id.zarr"), "id", 11, CELLS, 0, "cpu").layout
    assert layout.held_back == 2 * 48 and layout.count == 11 * 48
    # a block, which one task writes, is a simulation: so no simulation is on both sides
    assert [len(layout.rows(block)) for block in range(layout.blocks)] == [48] * 11


def test_a_store_goes_on_where_it_was_stopped_and_is_the_same(tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole.zarr", tmp_path / "other" / "whole.zarr"
    assert simulate(whole, "--executor", "serial", suite="null", simulations=3) == 0
    simulated: Any = simulation.pairs_of

    def stopping(plan, *more):
        if plan.name.endswith("2"):
            raise KeyboardInterrupt
        return simulated(plan, *more)

    monkeypatch.setattr(blocks, "pairs_of", stopping)
    assert simulate(broken, "--executor", "serial", suite="null", simulations=3) == 130
    monkeypatch.undo()
    capsys.readouterr()
    assert simulate(broken, "--executor", "serial", suite="null", simulations=3) == 0
    assert "24 pairs of 3 simulations, 8 of them made" in capsys.readouterr().out
    assert files_of(str(broken)) == files_of(str(whole))
    assert broken.with_suffix(".parquet").read_bytes() == whole.with_suffix(".parquet").read_bytes()
    assert simulate(broken, "--executor", "serial", suite="null", simulations=3) == 0
    assert "there already" in capsys.readouterr().out


def test_a_store_that_an_earlier_version_began_is_gone_on_with(tmp_path):
    """Its file says the problem as it was then, of these keys."""
    writer = blocks.begin(str(tmp_path / "old.zarr"), "null", 2, 16, 0, "cpu")
    said = json.loads((tmp_path / "old.zarr" / "unfinished.json").read_text())["problem"]
    known = {"name", "bands", "pixel_scale", "unit", "extensive", "stretch", "title", "rgb"}
    assert said["name"] == "clouds" and all(set(end) == known for end in said["endpoints"])
    assert writer.missing() == [0, 1]


def test_ray_tasks_write_the_same_bytes(store, tmp_path, ray_cluster):
    out = tmp_path / "collision.zarr"
    assert simulate(out, "--workers", 2) == 0
    assert files_of(str(out)) == files_of(str(store))


def test_a_store_says_whether_its_solver_was_compiled_and_is_gone_on_with_likewise(tmp_path):
    url = str(tmp_path / "compiled.zarr")
    assert blocks.begin(url, "id", 2, 16, 0, "cpu", compiled=True).layout.attributes["compiled"] is True
    with pytest.raises(StorageError, match="compiled"):
        blocks.begin(url, "id", 2, 16, 0, "cpu")
    assert "compiled" not in blocks.begin(str(tmp_path / "plain.zarr"), "id", 2, 16, 0, "cpu").layout.attributes


def test_what_cannot_be_is_refused(store, tmp_path, capsys, monkeypatch):
    new = tmp_path / "new.zarr"
    line = refused(capsys, "simulate-clouds", "--out", store, "--suite", "null", "--cells", 16)
    assert "holds a pair store of" in line and "another place" in line
    line = refused(capsys, "simulate-clouds", "--out", new, "--suite", "rain")
    assert "rain" in line and "ood-gravity" in line
    line = refused(capsys, "simulate-clouds", "--out", new, "--suite", "id", "--cells", 8)
    assert "8" in line and "16" in line
    line = refused(capsys, "simulate-clouds", "--out", new, "--suite", "id", "--device", "cuda", "--executor", "serial")
    assert "no GPU" in line
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    line = refused(capsys, "simulate-clouds", "--out", new, "--suite", "id", "--compile", "--executor", "serial")
    assert "--compile, but torch finds no C++ compiler" in line and "leave it out" in line
    assert not new.exists()
