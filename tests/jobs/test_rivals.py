"""Rivals of the bridge on clouds: one interface, and one table of all of them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from benchmarks import clouds_rivals
from surveybridge.__main__ import main
from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.fitting import fit_endpoint
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.polarisation import IN_SPACE, angle_dispersion, field_strength
from surveybridge.bridge_core.power_laws import PowerLaws
from surveybridge.bridge_core.problem import Problem
from surveybridge.bridge_core.settings import Sampling
from surveybridge.jobs.clouds.blocks import clouds_problem
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.evaluating.rivals.closed_forms import PolarisationRival, PowerLawRival, WidthRival
from surveybridge.jobs.evaluating.rivals.maps import CloudMaps
from surveybridge.jobs.evaluating.rivals.table import Suite, judge
from surveybridge.jobs.evaluating.rivals.trained import TrainedRival
from surveybridge.jobs.translating.request import read_model
from surveybridge.storage.errors import StorageError
from surveybridge.storage.pair_maps import pixel_pc_of, read_maps
from tests import tiny
from tests.jobs.training_runs import quick_energies, without_ray

SUITE = ["--suite", "null", "--cells", "16", "--simulations", "3", "--executor", "serial"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("clouds") / "null.zarr")
    assert main(["simulate-clouds", "--out", out, *SUITE]) == 0
    return out


@pytest.fixture(scope="module")
def laws(store):
    maps = read_maps(store, ["column", "density"])
    return PowerLaws.fit(*(torch.from_numpy(values) for values in maps.values()))


def checkpoint(folder: Path, store: str, name: str, **card) -> str:
    problem = Problem.from_table(clouds_problem())
    maps = read_maps(store, ["column", "density"])
    ends = [fit_endpoint(end, torch.from_numpy(maps[end.name])[:, None], {}) for end in problem.endpoints]
    return tiny.write_checkpoint(folder, name, problem=problem.with_endpoints(ends), **card)


def test_maps_are_read_by_name_and_others_are_refused(store, tmp_path):
    maps = read_maps(store, ["psi", "column"], 2, 5)
    assert list(maps) == ["psi", "column"] and maps["column"].shape == (3, 16, 16)
    assert pixel_pc_of(store) == 0.25
    with pytest.raises(
        StorageError, match=r"there is no map depth .* it has column \[24, 16, 16, 1\], column_observed"
    ):
        read_maps(store, ["depth"])
    np.testing.assert_array_equal(read_maps(store, ["N_H"])["N_H"], read_maps(store, ["column"])["column"])
    with pytest.raises(StorageError, match="not a pair store"):
        read_maps(str(tmp_path / "absent.zarr"), ["column"])


def test_closed_forms_answer_once_in_physical_units(store, laws):
    seen = CloudMaps.read(store, ("column", "psi", "sigma_v"), 0, 6)
    truth = torch.from_numpy(read_maps(store, ["density"], 0, 6)["density"])
    field = read_maps(store, ["field"], 0, 6)["field"]
    for rival in (PowerLawRival(laws), WidthRival()):
        samples = rival.predict(seen, 3)
        assert samples.shape == (3, 6, 16, 16) and (samples[0] == samples[2]).all()
        assert abs(float((samples[0] / truth).log10().mean())) < 0.6
    seen_field = PolarisationRival(laws).predict(seen, 2)[0]
    assert abs(float((seen_field / torch.from_numpy(field)).log10().mean())) < 1
    expected = field_strength(
        laws(seen.values["column"]).double(), seen.values["sigma_v"].double(), angle_dispersion(seen.values["psi"], 11)
    )
    torch.testing.assert_close(PolarisationRival(laws, in_space=True).predict(seen, 2)[1], IN_SPACE * expected)
    beyond, of = PolarisationRival(laws).beyond(seen)
    assert of == 6 * 256 and 0 <= beyond <= of


def test_widths_need_a_pixel(store, laws):
    seen = CloudMaps.read(store, ("column",), 0, 1)
    with pytest.raises(RequestError, match="does not say pixel_pc"):
        WidthRival().predict(CloudMaps(seen.values, float("nan")), 2)
    gap = seen.values["column"].clone()
    gap[0, 3:5, 3:5] = torch.nan
    filled = WidthRival().predict(CloudMaps({"column": gap}, seen.pixel_pc), 1)
    assert torch.isfinite(filled).all()
    twice = WidthRival().predict(CloudMaps(seen.values, 2 * seen.pixel_pc), 1)
    torch.testing.assert_close(2 * twice, WidthRival().predict(seen, 1))


def test_a_regression_is_x1_less_what_the_network_says_once(store, tmp_path):
    path = checkpoint(tmp_path, store, "unet", bridge=Bridge.regression(), objective=Objective("grad"))
    model = read_model(path)
    rival = TrainedRival("U-Net", model, Sampling(precision="float32"))
    assert rival.calls == 1
    seen = CloudMaps.read(store, ("column",), 3, 5)
    samples = rival.predict(seen, 2)
    assert samples.shape == (2, 2, 16, 16) and (samples[0] == samples[1]).all()
    direction = model.card.problem.direction("column->density")
    x1 = direction.observed.forward(seen.values["column"][:, None], 3)
    expected = direction.wanted.inverse(x1 - model.predict(x1, x1, 0, direction))
    torch.testing.assert_close(samples[0], expected[:, 0], rtol=1e-4, atol=0)


def test_a_diffusion_is_sampled_as_ddim_and_samples_do_not_depend_on_the_neighbours(store, tmp_path):
    path = checkpoint(tmp_path, store, "cddpm", bridge=Bridge.diffusion(), objective=Objective("eps"))
    rival = TrainedRival("cDDPM", read_model(path), Sampling(batch=3, precision="float32"), uniform=5)
    assert rival.calls == 5
    both = rival.predict(CloudMaps.read(store, ("column",), 4, 6), 2)
    second = rival.predict(CloudMaps.read(store, ("column",), 5, 6), 2)
    torch.testing.assert_close(both[:, 1:], second, rtol=1e-3, atol=0)
    assert (both[0] != both[1]).any()
    # a network that has learnt nothing would overflow
    (direction,) = rival.model.card.problem.directions
    assert float(direction.wanted.forward(both.flatten(0, 1)[:, None], 1).abs().max()) <= 2.5 + 1e-4


def test_a_rival_that_knows_the_truth_has_no_error_and_bad_pixels_do_not_count(store, tmp_path):
    class Oracle:
        name, calls = "oracle", 0

        def predict(self, seen, samples):
            truth = read_maps(spoilt, ["density"], seen.first, seen.first + len(seen.values["column"]))["density"]
            return torch.from_numpy(2 * truth).expand(samples, *truth.shape)

    spoilt = str(tmp_path / "spoilt.zarr")
    source = zarr.open_group(store, mode="r")
    group = zarr.open_group(spoilt, mode="w", attributes=dict(source.attrs))
    column, density = (np.asarray(source[name])[..., 0] for name in ("column", "density"))
    column[0, :2], density[9, 4:6] = -1.0, np.nan
    group.create_array("column", data=column)
    group.create_array("density", data=density)
    group.create_array("simulation", shape=(24,), dtype="string")[:] = np.array(["a", "b", "c"] * 8)
    row = judge(Oracle(), Suite.of("null", spoilt), ["column"], "density", 2)
    assert row["pixels"] == 24 * 256 - 64 and (row["pairs"], row["simulations"]) == (24, 3)
    single = row["estimates"]["single"]
    assert single["bias"]["value"] == pytest.approx(np.log10(2), abs=1e-5) and single["scatter"]["value"] < 1e-5
    assert single["relative_bias"]["value"] == pytest.approx(1, abs=1e-5)


def with_held_back(store, folder):
    """Copy a store; of the copy the last eight pairs are held back."""
    held = folder / "held.zarr"
    shutil.copytree(store, held)
    zarr.open_group(str(held)).attrs["held_back"] = 8
    return str(held)


def test_the_benchmark_trains_on_what_is_wanted_and_refuses_a_checkpoint_of_another_task(store, tmp_path, monkeypatch):
    """A store of clouds states columns and densities as its endpoints, whatever is wanted of it."""
    train = with_held_back(store, tmp_path)
    asked = ["--train", train, "--suites", f"null={store}", "--runs", str(tmp_path), "--training", "4"]
    asked += [
        "--base",
        "8",
        "--batch-size",
        "16",
        "--steps",
        "2",
        "--samples",
        "2",
        "--limit",
        "4",
        "--rivals",
        "U-Net",
    ]
    monkeypatch.setattr(sys, "argv", ["clouds_rivals", *asked, "--wanted", "field"])
    with without_ray(), quick_energies():
        clouds_rivals.main()
    problem = json.loads((tmp_path / "U-Net" / "U-Net.json").read_text())["problem"]
    assert (problem["name"], problem["wanted"]) == ("clouds-field", "field")
    fields = f"fields={tmp_path / 'U-Net' / 'U-Net'}"
    monkeypatch.setattr(sys, "argv", ["clouds_rivals", *asked[:-1], "3PLF", "--checkpoints", fields])
    with pytest.raises(SystemExit, match="predicts field, and density is wanted"):
        clouds_rivals.main()


def test_the_benchmark_trains_what_is_missing_each_in_its_way_and_once(store, tmp_path, capsys, monkeypatch):
    held = with_held_back(store, tmp_path)
    runs = tmp_path / "runs"
    asked = ["--train", held, "--suites", f"id={held}", "--runs", str(runs), "--training", "4", "--samples", "2"]
    asked += ["--rivals", "U-Net", "DSB-without-M2", "DSB-quarter", "--base", "8", "--batch-size", "16", "--steps", "2"]
    asked += ["--rescale", "0.5", "--problem", "clouds-density"]
    monkeypatch.setattr(sys, "argv", ["clouds_rivals", *asked])
    with without_ray(), quick_energies():
        clouds_rivals.main()
        first = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        cards = {path.name: json.loads((path / f"{path.name}.json").read_text()) for path in runs.iterdir()}
        weights = {path.name: path.read_bytes() for path in runs.glob("*/*.safetensors")}
        clouds_rivals.main()
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    # the last column is a time
    assert [line.split(" | ")[:12] for line in first] == [line.split(" | ")[:12] for line in again]
    names = ["U-Net", "DSB-without-M2", "DSB-quarter"]
    assert [line.split(" | ")[1] for line in first[1:4]] == names
    assert [line.split(" | ")[0][2:] for line in first[4:]] == [
        name
        for title in ("std of r, one sample", "std of r, median", "CRPS (dex)", "68% holds")
        for name in (title, *names)
    ]
    assert {path.name: path.read_bytes() for path in runs.glob("*/*.safetensors")} == weights
    kinds = {
        name: (card["bridge"]["kind"], card.get("end_noise"), card.get("clean_input")) for name, card in cards.items()
    }
    assert kinds == {
        "U-Net": ("regression", None, None),
        "DSB-without-M2": ("schrodinger", 0.1, False),
        "DSB-quarter": ("schrodinger", 0.1, None),
    }
    assert {card["provenance"]["recipe"]["rescale"] for card in cards.values()} == {0.5}
    assert [int(card["provenance"]["log_end"]["step"]) for card in cards.values()].count(1) == 1


def test_the_benchmark_prints_one_table_of_all(store, tmp_path, capsys, monkeypatch):
    path = checkpoint(tmp_path, store, "bridge")
    out = tmp_path / "results" / "table.json"
    asked = ["--train", store, "--suites", f"id={store}", f"again={store}", "--rivals", "3PLF", "MDR"]
    asked += ["--checkpoints", f"DSB={path}", "--samples", "2", "--steps", "2", "--limit", "10", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["clouds_rivals", *asked])
    clouds_rivals.main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[:2] for line in table[1:7]] == [
        [f"| {suite}", rival] for suite in ("id", "again") for rival in ("3PLF", "MDR", "DSB")
    ]
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 6 and rows[0]["pairs"] == 10
    monkeypatch.setattr(
        sys, "argv", ["x", "--train", store, "--suites", f"id={store}", "--wanted", "field", "--rivals", "DCF"]
    )
    clouds_rivals.main()
    assert '"beyond_25_degrees": 0.' in capsys.readouterr().out
