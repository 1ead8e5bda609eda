"""The shipped networks for clouds, on clouds of another kind than any that they have seen."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import zarr

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import check_shipped, load_checkpoint
from surveybridge.storage.pair_maps import read_maps

pytestmark = pytest.mark.long  # two evaluations

QUICK = ["--samples", "4", "--steps", "6", "--limit", "8"]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Fractional Brownian clouds in a store as others write it: their own names and units, nothing more."""
    folder = tmp_path_factory.mktemp("clouds")
    made = str(folder / "null.zarr")
    asked = ["--suite", "null", "--cells", "64", "--simulations", "1", "--executor", "serial"]
    assert main(["simulate-clouds", "--out", made, *asked]) == 0
    maps = read_maps(made, ["column", "density", "psi", "sigma_v", "field"])
    names = {"column": "N_H", "density": "n_H", "field": "B"}
    units = {"N_H": "cm^-2", "n_H": "cm^-3", "psi": "degrees", "sigma_v": "km/s", "B": "uG"}
    group = zarr.open_group(str(folder / "foreign.zarr"), mode="w", attributes={"units": units, "pixel_pc": 0.0625})
    scale = {"psi": 180 / np.pi, "sigma_v": 1e-5}
    for name, values in maps.items():
        group.create_array(names.get(name, name), data=values * scale.get(name, 1.0))
    shutil.rmtree(made)
    return str(folder / "foreign.zarr")


@pytest.mark.parametrize(
    ("name", "wanted", "better_than"), [("clouds-density", "density", 0.6), ("clouds-field", "field", 0.9)]
)
def test_shipped_networks_know_more_of_foreign_clouds_than_their_mean(elsewhere, tmp_path, name, wanted, better_than):
    check_shipped(name)
    card = load_checkpoint(name).card
    assert card.pixel_pc == 0.0625 and card.end_noise == 0.1 and card.problem.wanted == wanted
    assert main(["evaluate", "--pairs", elsewhere, "--checkpoint", name, "--out", str(tmp_path), *QUICK]) == 0
    (way,) = json.loads((tmp_path / "metrics.json").read_text())["dex"].values()
    (found,) = way["bands"].values()
    truth = np.log10(read_maps(elsewhere, [wanted])[wanted])
    median = found["estimates"]["median"]
    assert found["judged"] == 1 and abs(median["bias"]["value"]) < 0.3
    assert median["scatter"]["value"] < better_than * float(truth.std())
