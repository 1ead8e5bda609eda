"""Evaluate on densities: errors in dex of pairs that come from anywhere, with intervals over simulations."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from surveybridge.__main__ import main
from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.checkpoint import save_checkpoint
from surveybridge.bridge_core.fitting import fit_endpoint
from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.network import NetworkConfig, UNet
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.problem import Problem
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.translate import window_samples
from surveybridge.jobs import evaluate as job
from surveybridge.jobs.clouds.blocks import clouds_problem
from surveybridge.jobs.evaluating.cutouts import stamp_units
from surveybridge.jobs.translating.request import read_model
from surveybridge.storage.errors import StorageError
from surveybridge.storage.pair_maps import read_maps
from surveybridge.storage.pairs import read_simulations
from surveybridge.storage.problems import read_problem
from tests import tiny
from tests.conftest import ROOT

pytestmark = pytest.mark.long

K = 3
QUICK = ["--samples", str(K), "--steps", "2", "--precision", "float32"]
RNG = np.random.default_rng(11)
HIDDEN = RNG.normal(size=(6, 20, 28))
DENSITY = (10 ** (2.6 + 0.4 * HIDDEN)).astype(np.float32)
COLUMN = (10 ** (21.5 + 0.3 * HIDDEN + 0.05 * RNG.normal(size=HIDDEN.shape))).astype(np.float32)
CLOUDS = ["alpha", "alpha", "beta", "beta", "beta", "gamma"]


def write_store(path: Path, *, density=DENSITY, column=COLUMN, simulation=None, **attributes: Any) -> str:
    """A pair store as docs/howto/clouds.md describes it, by nothing but zarr."""
    said = {"endpoints": ["column", "density"], "units": {"column": "cm-2", "density": "cm-3"}, **attributes}
    group = zarr.open_group(str(path), mode="w", attributes=said)
    group.create_array("column", data=column)
    group.create_array("density", data=density)
    if simulation is not None:
        group.create_array("simulation", shape=(len(simulation),), dtype="string")[:] = np.array(simulation)
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    problem = Problem.from_table(clouds_problem())
    data = {"column": COLUMN, "density": DENSITY}
    ends = [fit_endpoint(end, torch.from_numpy(data[end.name])[:, None], {}) for end in problem.endpoints]
    return tiny.write_checkpoint(tmp_path_factory.mktemp("model"), problem=problem.with_endpoints(ends))


def evaluate(store: str, checkpoint: str, out: Path, *more: str) -> int:
    return main(["evaluate", "--pairs", store, "--checkpoint", checkpoint, "--out", str(out), *QUICK, *more])


def found_in(out: Path) -> dict[str, Any]:
    found = json.loads((out / "metrics.json").read_text())["dex"]["column->density"]
    return {**found, **found["bands"]["n"]}


def test_maps_from_elsewhere_are_judged_pixel_by_pixel_where_both_ends_have_data(tmp_path, checkpoint, capsys):
    density, column = DENSITY.copy(), COLUMN.copy()
    density[0, :5], density[1, 3, :7] = np.nan, 0.0
    column[2, 10:, 20:] = np.nan
    store = write_store(tmp_path / "elsewhere.zarr", density=density, column=column, simulation=CLOUDS)
    assert evaluate(store, checkpoint, tmp_path / "out") == 0
    found = found_in(tmp_path / "out")
    lost = 5 * 28 + 7 + 10 * 8
    assert found["pixels"] == DENSITY.size - lost
    assert found["judged"] == pytest.approx(1 - lost / DENSITY.size, abs=1e-5)
    assert (found["pairs"], found["simulations"], found["resampled"]) == (6, 3, "simulations")
    # the fourth pair has no gap: its sums follow from its own samples, drawn on a window that the network can halve
    model = read_model(checkpoint)
    direction = model.card.problem.direction("column->density")
    padded = np.pad(column[:, None], ((0, 0), (0, 0), (0, 4), (0, 4)), constant_values=np.nan)
    windows = stamp_units(model, direction.observed, torch.from_numpy(padded[3:4]))
    how = Sampling(samples=K, steps=2, precision="float32")
    drawn = window_samples(model, direction, windows, [(0, 3 * 32)], how)[0, :, 0, :20, :28].double().log10()
    r = drawn - torch.from_numpy(density[3]).double().log10()
    row = pq.read_table(tmp_path / "out" / "dex.parquet").to_pylist()[3]
    assert row["simulation"] == "beta" and row["pixels"] == 560 == row["area"]
    assert row["residual"][0] == pytest.approx(float(r[0].sum()), rel=1e-4)
    assert row["residual"][2] == pytest.approx(float(r.sort(0).values[1].sum()), rel=1e-4)
    assert row["residual_squared"][0] == pytest.approx(float((r[0] ** 2).sum()), rel=1e-4)
    assert row["factor_two"][0] == pytest.approx(float((r[0].abs() <= np.log10(2)).sum()), abs=1)
    assert sum(row["ranks"]) == 560 and sum(row["histogram"]) == 3 * 560
    said = capsys.readouterr().out
    assert "column->density n (cm-3), 6 pairs of 3 simulations" in said
    assert "CRPS" in said and "within a factor 2" in said and "energy score" not in said
    names = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert names == {"metrics.json", "dex.parquet", "dex.png"}


def test_blocks_of_any_size_and_parts_of_them_give_one_table(tmp_path, checkpoint, monkeypatch):
    store = write_store(tmp_path / "s.zarr", simulation=CLOUDS)
    assert evaluate(store, checkpoint, tmp_path / "one") == 0
    monkeypatch.setattr(job, "BLOCK", 1)
    monkeypatch.setattr("surveybridge.jobs.evaluating.densities.VALUES", 1)
    assert evaluate(store, checkpoint, tmp_path / "other") == 0
    one, other = (pq.read_table(tmp_path / name / "dex.parquet").to_pylist() for name in ("one", "other"))
    assert [row["object_id"] for row in one] == [row["object_id"] for row in other]
    for a, b in zip(one, other, strict=True):
        for name in ("residual", "residual_squared", "crps"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4)


def test_intervals_are_of_the_simulations(tmp_path, checkpoint):
    """A cloud whose densities are all ten times higher moves the whole, so the interval reaches from it to the rest."""
    density = DENSITY.copy()
    density[:2] *= 10
    stores = {
        "array": write_store(tmp_path / "array.zarr", density=density, simulation=CLOUDS),
        "names": write_store(tmp_path / "names.zarr", density=density),
        "one": write_store(tmp_path / "one.zarr", density=density),
    }
    zarr.open_group(stores["names"], mode="r+").attrs["simulation"] = CLOUDS
    zarr.open_group(stores["one"], mode="r+").attrs["simulation"] = "alpha"
    bare = write_store(tmp_path / "bare.zarr", density=density)
    found = {}
    for name, store in {**stores, "bare": bare}.items():
        assert evaluate(store, checkpoint, tmp_path / f"out-{name}") == 0
        found[name] = found_in(tmp_path / f"out-{name}")
    bias = {name: of["estimates"]["single"]["bias"] for name, of in found.items()}
    assert bias["array"] == bias["names"]
    low, high = bias["array"]["interval"]
    assert low == pytest.approx(bias["bare"]["value"] - 2 / 3, abs=0.1) and high - low > 0.9  # all alpha, or none
    assert bias["one"]["interval"] == [None, None] and found["one"]["simulations"] == 1
    assert found["bare"]["resampled"] == "pairs" and found["bare"]["simulations"] is None
    inner_low, inner_high = bias["bare"]["interval"]
    assert inner_high - inner_low < high - low
    assert {of["value"] for of in bias.values()} == {bias["bare"]["value"]}


def test_fields_are_judged_from_maps_of_a_store_that_states_no_endpoints(tmp_path, capsys):
    problem = Problem.from_table(read_problem("clouds-field"))
    psi, sigma_v = HIDDEN % 1.5, 1e5 * (DENSITY / 400) ** 0.3
    psi[0, 0, :9], sigma_v[3, :, 0] = np.nan, 0
    maps: dict[str, Any] = {"column": COLUMN, "psi": psi, "sigma_v": sigma_v, "field": 20 * DENSITY**0.2}
    units = {"column": "cm-2", "psi": "rad", "sigma_v": "cm s-1", "field": "uG"}
    group = zarr.open_group(str(tmp_path / "maps.zarr"), mode="w", attributes={"units": units, "simulation": CLOUDS})
    for name, values in maps.items():
        group.create_array(name, data=values.astype(np.float32))
    seen = {"observables": [maps[name] for name in ("column", "psi", "sigma_v")], "field": [maps["field"]]}
    ends = [fit_endpoint(end, torch.from_numpy(np.stack(seen[end.name], 1)).float(), {}) for end in problem.endpoints]
    network = NetworkConfig(base=8, stem=2, norm="pixel", image_channels=4)
    card = Card("field", "mosaic", problem.with_endpoints(ends), Bridge.brownian(m_min=1e-4), network, Objective("edm"))
    save_checkpoint(card, UNet(network).state_dict(), tmp_path / "field")
    assert evaluate(str(tmp_path / "maps.zarr"), str(tmp_path / "field"), tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["dex"]["observables->field"]
    assert found["simulations"] == 3 and found["bands"]["B"]["unit"] == "uG"
    assert found["bands"]["B"]["pixels"] == DENSITY.size - 9 - 20
    assert "observables->field B (uG)" in capsys.readouterr().out
    del group["psi"]
    assert evaluate(str(tmp_path / "maps.zarr"), str(tmp_path / "field"), tmp_path / "again") == 2
    assert "needs arrays observables (or column, psi, sigma_v) and field" in capsys.readouterr().err


def test_names_of_simulations_that_do_not_fit_are_refused(tmp_path):
    store = write_store(tmp_path / "s.zarr")
    assert read_simulations(store) is None
    zarr.open_group(store, mode="r+").attrs["simulation"] = CLOUDS[:4]
    with pytest.raises(StorageError, match="simulation is 4 names, but the store has 6 pairs"):
        read_simulations(store)
    zarr.open_group(store, mode="r+").attrs["simulation"] = CLOUDS
    assert read_simulations(store, 2, 4) == ["beta", "beta"]


def test_simulated_clouds_are_judged_by_the_simulations_that_their_store_names(tmp_path, checkpoint):
    store = str(tmp_path / "null.zarr")
    simulated = ["--suite", "null", "--cells", "16", "--simulations", "2", "--executor", "serial"]
    assert main(["simulate-clouds", "--out", store, *simulated]) == 0
    assert evaluate(store, checkpoint, tmp_path / "out", "--start", "4", "--limit", "8") == 0
    found = found_in(tmp_path / "out")
    assert (found["pairs"], found["simulations"]) == (8, 2) and found["judged"] == 1


def test_the_example_of_the_page_makes_a_store_that_is_judged(tmp_path, checkpoint, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "clouds.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert evaluate("mine.zarr", checkpoint, tmp_path / "out") == 0
    found = found_in(tmp_path / "out")
    assert (found["pairs"], found["simulations"], found["judged"]) == (6, 2, 1)
    made = read_maps("mine.zarr", ["column", "density", "psi", "sigma_v", "field"])
    assert 5e20 < np.median(made["column"]) < 5e21 and np.abs(made["psi"]).max() <= np.pi / 2


def test_what_cannot_be_judged_is_refused_in_a_line(tmp_path, checkpoint, capsys):
    store = write_store(tmp_path / "s.zarr")
    for more, said in (
        (["--calibrated"], "--calibrated stretches samples of a flux, but density is judged in dex"),
        (["--anomalies", store], "names no catalog"),
        (["--direction", "density->column"], "goes one way, to density"),
    ):
        assert evaluate(store, checkpoint, tmp_path / "out", *more) == 2
        assert said in capsys.readouterr().err.strip().splitlines()[-1]
    other = write_store(tmp_path / "kg.zarr", units={"column": "cm-2", "density": "kg m-3"})
    assert evaluate(other, checkpoint, tmp_path / "out") == 2
    assert "density is in kg m-3 but problem clouds has it in cm-3" in capsys.readouterr().err
    model = read_model(checkpoint)
    ends = [replace(end, kind="asinh") for end in model.card.problem.endpoints]
    flux = tiny.write_checkpoint(tmp_path, "flux", problem=model.card.problem.with_endpoints(ends))
    assert evaluate(store, flux, tmp_path / "out") == 2
    assert "makes maps only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
