"""Training on clouds: an end made of maps, the switches of Astro-DSB in the card, and samples that begin as trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.scene import observed_units
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.translate import window_samples
from surveybridge.storage.map_names import CLOUD_MAPS
from surveybridge.storage.pairs import read_pairs
from tests.jobs.test_bad_requests import refused
from tests.jobs.training_runs import without_ray
from tests.tiny import write_pairs

COUNT, SIDE = 24, 16
SHORT = ["--steps", "2", "--base", "8", "--batch-size", "4", "--shards", "1", "--validation", "4"]
PUBLISHED = ["--objective", "i2sb", "--bridge", "schrodinger", "--end-noise", "0.1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """Maps of the layout that `simulate-clouds` writes, of numbers of their own; two simulations are held back."""
    rng = np.random.default_rng(5)
    log = {"column": 22.0, "density": 3.4, "sigma_v": 5.0, "field": 1.3, "field_total": 1.5}
    maps = {name: 10 ** (mean + 0.3 * rng.standard_normal((COUNT, SIDE, SIDE))) for name, mean in log.items()}
    maps["psi"] = rng.uniform(-1.5, 1.5, (COUNT, SIDE, SIDE))
    maps |= {f"{name}_observed": maps[name] * 1.02 for name in ("column", "psi", "sigma_v")}
    maps["column_observed"][0, 2:5, 3] = np.nan
    path = tmp_path_factory.mktemp("clouds") / "clouds.zarr"
    attributes: dict[str, Any] = {"endpoints": ["column", "density"], "units": CLOUD_MAPS, "held_back": 4, "bands": {}}
    attributes["pixel_pc"] = 0.3
    group = zarr.open_group(str(path), mode="w", attributes=attributes)
    for name, values in maps.items():
        group.create_array(name, data=np.asarray(values, np.float32))
    return str(path)


def trained(store: str, out: Path, *more: str) -> tuple[Any, dict[str, Any]]:
    """The checkpoint of a short training and its card as it is written."""
    with without_ray():
        assert main(["train", "--pairs", store, "--out", str(out), *SHORT, *more]) == 0
    return load_checkpoint(out / "bridge"), json.loads((out / "bridge.json").read_text())


def test_a_field_is_trained_from_three_observed_quantities_as_published(store, tmp_path):
    model, card = trained(store, tmp_path, "--problem", "clouds-field-observed", *PUBLISHED)
    assert model.card.network.image_channels == 4
    assert (card["end_noise"], card["objective"]["name"], card["bridge"]["kind"]) == (0.1, "i2sb", "schrodinger")
    assert card["pixel_pc"] == 0.3 == model.card.pixel_pc
    assert "clean_input" not in card and not any("spread" in end for end in card["problem"]["endpoints"])
    # its samples are fields in microgauss
    direction = model.card.problem.to("field")
    pairs = read_pairs(store, stop=2, problem=model.card.problem.table)
    maps = torch.from_numpy(pairs.ends["observed"])
    windows = torch.stack([observed_units(model, direction.observed, m, torch.isfinite(m)) for m in maps])
    how = Sampling(samples=3, steps=3, precision="float32")
    drawn = window_samples(model, direction, windows, [(0, 0), (0, SIDE)], how)
    assert drawn.shape == (2, 3, 1, SIDE, SIDE) and bool(torch.isfinite(drawn).all() and (drawn > 0).all())


def test_every_switch_is_in_the_card_and_by_default_none_is(store, tmp_path):
    changed = ["--objective", "i2sb", "--bridge", "schrodinger", "--no-clean-input", "--no-broadcast"]
    model, card = trained(store, tmp_path / "off", "--problem", "clouds-field", *changed)
    assert card["clean_input"] is False and "end_noise" not in card
    assert [end.get("spread") for end in card["problem"]["endpoints"]] == [None, False]
    assert model.card.clean_input is False and model.card.problem["field"].spread is False
    _, card = trained(store, tmp_path / "default", "--problem", "clouds-density")
    assert not {"end_noise", "clean_input"} & card.keys()
    assert not any({"spread", "units", "stretches"} & end.keys() for end in card["problem"]["endpoints"])
    said = json.loads((tmp_path / "default" / "training.json").read_text())
    assert not {"end_noise", "clean_input", "broadcast"} & said.keys()


def test_pairs_are_rescaled_only_if_it_is_asked_for(store, tmp_path):
    _, plain = trained(store, tmp_path / "plain", "--problem", "clouds-field")
    model, card = trained(store, tmp_path / "rescaled", "--problem", "clouds-field", "--rescale", "1.2")
    assert "rescale" not in plain["provenance"]["recipe"] and card["provenance"]["recipe"]["rescale"] == 1.2
    assert plain["problem"] == card["problem"]
    assert model.card.problem["observables"].scaling == (1.0, 0.0, 0.0)
    assert model.card.problem["field"].scaling == (0.5,)
    weights = [load_checkpoint(tmp_path / name / "bridge").network.state_dict() for name in ("plain", "rescaled")]
    assert any(not torch.equal(one, other) for one, other in zip(*(w.values() for w in weights), strict=True))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--no-clean-input"], "--no-clean-input, but with --objective edm"),
        (["--no-clean-input", "--objective", "eps", "--bridge", "diffusion"], "but with --bridge diffusion"),
        (
            ["--end-noise", "0.3"],
            "--end-noise 0.3, but with --objective edm the network sees nothing of the bridge's end",
        ),
        (["--end-noise", "0.1", "--objective", "eps", "--bridge", "diffusion"], "0.1, but with --bridge diffusion"),
        (["--problem", "clouds-density", "--no-broadcast"], "density of problem clouds-density fills all 1 channels"),
        (["--problem", "clouds-field", "--to", "observables"], "clouds-field goes one way, to field"),
        (
            ["--problem", "clouds-density-observed", "--rescale", "1"],
            "clouds-density-observed does not state the scaling of column_observed and density",
        ),
    ],
)
def test_switches_that_nothing_would_come_of_are_refused(store, tmp_path, capsys, more, said):
    assert said in refused(capsys, "train", "--pairs", store, "--out", tmp_path / "out", *SHORT, *more)
    assert not (tmp_path / "out").exists()


def test_a_noisy_end_is_refused_where_objects_are_scored(tmp_path, capsys):
    pairs = write_pairs(tmp_path / "pairs.zarr", 8)
    said = refused(capsys, "train", "--pairs", pairs, "--out", tmp_path / "out", *SHORT, *PUBLISHED)
    assert said.startswith("--end-noise 0.1, but problem lsst-euclid has the catalog euclid")
    assert not (tmp_path / "out").exists()
