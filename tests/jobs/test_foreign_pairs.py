"""Pair stores of clouds that were written elsewhere: `evaluate` takes them, or says in a line what to mend."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from zarr.errors import UnstableSpecificationWarning

from surveybridge.__main__ import main
from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.checkpoint import load_checkpoint, save_checkpoint
from surveybridge.bridge_core.fitting import fit_endpoint
from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.network import NetworkConfig, UNet
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.problem import Problem
from surveybridge.storage.errors import StorageError
from surveybridge.storage.map_names import CLOUD_MAPS
from surveybridge.storage.pair_maps import read_maps
from surveybridge.storage.pairs import problem_of_pairs, read_ids, read_simulations
from surveybridge.storage.problems import read_problem

pytestmark = pytest.mark.long  # two dozen evaluations

RNG = np.random.default_rng(23)
HIDDEN = RNG.normal(size=(5, 50, 70))
MAPS: dict[str, Any] = {
    "column": 10 ** (21.6 + 0.3 * HIDDEN),
    "psi": HIDDEN % 1.4,
    "sigma_v": 1e5 * 10 ** (0.2 * HIDDEN),
    "density": 10 ** (2.7 + 0.4 * HIDDEN),
    "field": 15 * 10 ** (0.3 * HIDDEN),
}
"""Maps in the documented units, odd in size."""

NEEDED = {"density": ["column", "density"], "field": ["column", "psi", "sigma_v", "field"]}
AS_THE_FIELD_WRITES = {"column": "N_H", "density": "n_H", "field": "B"}
CLOUDS = ["alpha", "alpha", "beta", "beta", "gamma"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A tiny network for each of the four problems of clouds."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    for task in ("density", "field", "density-observed", "field-observed"):
        problem = Problem.from_table(read_problem(f"clouds-{task}"))
        ends = []
        for end in problem.endpoints:
            names = [end.name] if end.name in CLOUD_MAPS else list(end.bands)
            planes = np.stack([MAPS[name.removesuffix("_observed")] for name in names], 1)
            ends.append(fit_endpoint(end, torch.from_numpy(planes.astype(np.float32)), {}))
        problem = problem.with_endpoints(ends)
        network = NetworkConfig(base=8, stem=2, norm="pixel", image_channels=problem.channels)
        card = Card(task, "mosaic", problem, Bridge.brownian(m_min=1e-4), network, Objective("edm"))
        torch.manual_seed(3)
        save_checkpoint(card, UNet(network).state_dict(), folder / task)
        found[task] = str(folder / task)
    return found


def write(path: Path, maps: dict[str, Any], units: dict[str, Any] | None = None, **how: Any) -> str:
    """A store by nothing but zarr; `units` None for those that are documented, under any name of a map."""
    plain = {**{other: name for name, other in AS_THE_FIELD_WRITES.items()}, "NH": "column", "nH": "density"}
    known = {key: CLOUD_MAPS[plain.get(key, key)] for key in maps if plain.get(key, key) in CLOUD_MAPS}
    attributes = {"units": known if units is None else units, **how.pop("attributes", {})}
    layout = how.pop("zarr_format", 3)
    group = zarr.open_group(str(path), mode="w", zarr_format=layout, attributes=attributes)
    for name, values in maps.items():
        group.create_array(name, data=np.asarray(values), **how)
    return str(path)


def evaluate(store: str, checkpoint: str, out: Path) -> int:
    quick = ["--samples", "2", "--steps", "2", "--precision", "float32"]
    return main(["evaluate", "--pairs", store, "--checkpoint", checkpoint, "--out", str(out), *quick])


def judged(out: Path) -> dict[str, Any]:
    (found,) = json.loads((out / "metrics.json").read_text())["dex"].values()
    (band,) = found["bands"].values()
    return {**found, **band}


def score(out: Path) -> tuple[int, float]:
    found = judged(out)
    return found["pixels"], found["crps"]["value"]


@pytest.mark.parametrize("task", ["density", "field", "density-observed", "field-observed"])
def test_the_fields_own_names_and_any_unit_of_the_quantity_are_the_documented_layout(tmp_path, checkpoints, task):
    base, _, seen = task.partition("-")
    maps = {name: MAPS[name] for name in NEEDED[base]}
    last = NEEDED[base][-1]
    observed = {name: f"{name}_observed" if seen and name != last else name for name in maps}
    store = write(tmp_path / "ours.zarr", {observed[name]: values for name, values in maps.items()})
    assert evaluate(store, checkpoints[task], tmp_path / "ours") == 0
    expected = score(tmp_path / "ours")
    assert expected[0] == HIDDEN.size
    # the same in SI or whatever is usual, under the field's names, in double precision, in other chunks
    other = {"column": (1e-4, "m**-2"), "psi": (np.pi / 180, "degrees"), "sigma_v": (1e5, "km/s")}
    other |= {"density": (1e-6, "1/m^3"), "field": (1e3, "mG")}
    written, units = {}, {}
    for name, values in maps.items():
        factor, unit = other[name]
        theirs = observed[name].replace(name, AS_THE_FIELD_WRITES.get(name, name))
        written[theirs], units[theirs] = (values / factor)[..., None], unit
    store = write(tmp_path / "theirs.zarr", written, units, chunks=(2, 13, 70, 1))
    assert evaluate(store, checkpoints[task], tmp_path / "theirs") == 0
    pixels, crps = score(tmp_path / "theirs")
    assert pixels == expected[0] and crps == pytest.approx(expected[1], rel=1e-4)
    # rivals read the same maps
    for name in maps:
        np.testing.assert_allclose(read_maps(store, [observed[name]])[observed[name]], maps[name], rtol=1e-5)


@pytest.mark.parametrize("layout", [2, 3])
def test_both_versions_of_zarr_and_any_kind_of_number_are_read(tmp_path, checkpoints, layout):
    maps = {"NH": MAPS["column"].astype(">f8"), "nH": np.rint(MAPS["density"]).astype(np.int32)}
    store = write(tmp_path / "s.zarr", maps, zarr_format=layout)
    group = zarr.open_group(store, mode="r+")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnstableSpecificationWarning)  # bytes have no specification yet
        group.create_array("simulation", data=np.array([name.encode() for name in CLOUDS]))
    assert evaluate(store, checkpoints["density"], tmp_path / "out") == 0
    found = judged(tmp_path / "out")
    assert (found["pixels"], found["simulations"]) == (HIDDEN.size, 3)
    table = read_problem("clouds-density")
    assert read_simulations(store, 1, 3, table) == ["alpha", "beta"]
    assert read_ids(store, 4, None, table) == ["gamma-000004"]


def test_units_may_be_attributes_of_the_arrays_and_endpoints_any_name_of_them(tmp_path, checkpoints):
    store = write(tmp_path / "s.zarr", {"N_H": MAPS["column"] / 1e21, "n_H": MAPS["density"]}, {})
    group: Any = zarr.open_group(store, mode="r+")
    group["N_H"].attrs["units"], group["n_H"].attrs["unit"] = "1e21 cm^-2", "cm$^{-3}$"
    del group.attrs["units"]
    assert evaluate(store, checkpoints["density"], tmp_path / "out") == 0
    group.attrs["endpoints"] = ["N_H", "n_H"]
    assert evaluate(store, checkpoints["density"], tmp_path / "again") == 0
    assert score(tmp_path / "out") == score(tmp_path / "again")
    group["N_H"].attrs["units"] = "cm^-2"
    said = problem_of_pairs(store)["endpoints"]
    assert [(end["name"], end["unit"]) for end in said] == [("column", "cm-2"), ("density", "cm-3")]


def test_what_has_no_data_does_not_count_and_nothing_else_is_lost(tmp_path, checkpoints):
    maps = {name: MAPS[name].copy() for name in ("column", "psi", "sigma_v", "field")}
    maps["column"][0, :10] = 0
    maps["column"][1, 0, :7] = -3e20
    maps["psi"][2, 4] = np.nan
    maps["field"][3] = np.nan
    store = write(tmp_path / "s.zarr", maps)
    assert evaluate(store, checkpoints["field"], tmp_path / "out") == 0
    found = judged(tmp_path / "out")
    assert found["pixels"] == HIDDEN.size - 700 - 7 - 70 - 3500
    assert found["resampled"] == "pairs" and found["simulations"] is None
    store = write(tmp_path / "empty.zarr", {"column": MAPS["column"], "density": np.full(HIDDEN.shape, np.nan)})
    assert evaluate(store, checkpoints["density"], tmp_path / "empty") == 0
    assert judged(tmp_path / "empty")["pixels"] == 0


def test_a_single_map_smaller_than_a_window_is_judged(tmp_path, checkpoints):
    store = write(tmp_path / "s.zarr", {name: MAPS[name][:1, :5, :3] for name in NEEDED["density"]})
    assert evaluate(store, checkpoints["density"], tmp_path / "out") == 0
    assert judged(tmp_path / "out")["pixels"] == 15


def changed(**changes: Any) -> dict[str, Any]:
    """The maps of the field task under the field's names, some of them other ones, or none."""
    maps = {AS_THE_FIELD_WRITES.get(name, name): MAPS[name] for name in NEEDED["field"]}
    return {name: values for name, values in (maps | changes).items() if values is not None}


UNITS = {"N_H": "cm-2", "psi": "rad", "sigma_v": "cm/s", "B": "uG"}


@pytest.mark.parametrize(
    ("maps", "how", "said"),
    [
        (changed(column=MAPS["column"]), {}, "column and N_H are two names of one map; keep the one that is meant"),
        (changed(NH=MAPS["column"]), {}, "N_H and NH are two names"),
        (changed(B_pos=MAPS["field"]), {}, "B and B_pos are two names"),
        (changed(psi=None), {}, "it has no psi; it has B [5, 50, 70], N_H [5, 50, 70], sigma_v"),
        (changed(B=None, b=MAPS["field"]), {}, "it has no field; it has N_H"),
        (changed(psi=MAPS["psi"][:4]), {}, "N_H is (5, 50, 70) but psi (4, 50, 70)"),
        (changed(psi=MAPS["psi"][:, :40]), {}, "N_H is (5, 50, 70) but psi (5, 40, 70)"),
        (changed(psi=np.stack([MAPS["psi"]] * 2, -1)), {}, "psi is (5, 50, 70, 2), not [N, H, W] or [N, H, W, 1]"),
        (changed(N_H=MAPS["column"][0]), {}, "N_H is (50, 70), not [N, H, W]"),
        (changed(B=MAPS["field"][:3]), {}, "(5, 50, 70, 3) and field (3, 50, 70)"),
        (changed(psi=MAPS["psi"] > 1), {}, "psi holds bool; write it as numbers"),
        (changed(), {"units": UNITS | {"sigma_v": "K"}}, "sigma_v is in K but problem clouds-field has it in cm s-1"),
        (changed(), {"units": UNITS | {"N_H": "g/cm2"}}, "N_H is in g cm-2 but problem clouds-field has it in cm-2"),
        (changed(), {"units": UNITS | {"N_H": "dex(cm-2)"}}, "unit 'dex(cm-2)' cannot be used"),
        (changed(), {"units": UNITS | {"B": "micro gauss field"}}, "unit 'micro gauss field' cannot be used"),
        (changed(), {"units": {}}, "no unit is stated of N_H, which problem clouds-field has in cm-2; state units.N_H"),
        (changed(), {"units": UNITS | {"B": None}}, "no unit is stated of B"),
        (changed(), {"units": "cgs"}, "no unit is stated of N_H"),
        (changed(), {"attributes": {"simulation": CLOUDS[:2]}}, "simulation is 2 names, but the store has 5 pairs"),
        (changed(simulation=np.arange(4)), {}, "simulation is [4], but the store has 5 pairs; give a name for each"),
        (changed(id=np.arange(10).reshape(5, 2)), {}, "id is [5, 2], but the store has 5 pairs"),
    ],
)
def test_what_cannot_be_taken_is_refused_in_a_line_that_says_what_to_do(tmp_path, checkpoints, capsys, maps, how, said):
    store = write(tmp_path / "s.zarr", maps, **how)
    assert evaluate(store, checkpoints["field"], tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line and "s.zarr" in line
    assert not (tmp_path / "out").exists()


def test_maps_without_a_telescope_are_not_taken_for_observed_ones(tmp_path, checkpoints, capsys):
    store = write(tmp_path / "s.zarr", {name: MAPS[name] for name in NEEDED["density"]})
    assert evaluate(store, checkpoints["density-observed"], tmp_path / "out") == 2
    assert "(if column is as a telescope sees it, call it column_observed)" in capsys.readouterr().err


def test_pixels_of_another_size_than_those_of_the_training_are_said(tmp_path, checkpoints, caplog):
    model = load_checkpoint(checkpoints["density"])
    save_checkpoint(replace(model.card, pixel_pc=0.125), model.network.state_dict(), tmp_path / "told")
    maps = {name: MAPS[name][:1] for name in NEEDED["density"]}
    for pixel, warned in ((0.126, False), (0.2, True)):
        store = write(tmp_path / "s.zarr", maps, attributes={"pixel_pc": pixel})
        caplog.clear()
        assert evaluate(store, str(tmp_path / "told"), tmp_path / "out") == 0
        assert ("pixels of 0.2 pc, but density was trained on 0.125 pc" in caplog.text) == warned


def test_what_is_no_group_of_maps_is_refused(tmp_path, checkpoints, capsys):
    zarr.create_array(str(tmp_path / "array.zarr"), data=MAPS["column"])
    np.savez(tmp_path / "maps.npz", N_H=MAPS["column"])
    for name in ("array.zarr", "maps.npz", "nowhere.zarr"):
        assert evaluate(str(tmp_path / name), checkpoints["density"], tmp_path / "out") == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert name in line and "not a pair store of clouds-density" in line


def test_single_maps_of_two_names_or_of_no_unit_are_refused(tmp_path):
    store = write(tmp_path / "s.zarr", {"column": MAPS["column"], "N_H": MAPS["column"], "sigma_v": MAPS["sigma_v"]})
    with pytest.raises(StorageError, match="column and N_H are two names"):
        read_maps(store, ["column"])
    store = write(tmp_path / "s.zarr", {"sigma_v": MAPS["sigma_v"]}, {})
    with pytest.raises(StorageError, match="no unit is stated of sigma_v, which the layout of clouds has in cm s-1"):
        read_maps(store, ["sigma_v"])
