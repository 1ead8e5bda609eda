"""`translate --samples 0`: mosaics of mean and standard deviation from one evaluation, and what needs samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import head_file, load_checkpoint, save_checkpoint
from surveybridge.bridge_core.maps import MapsHead, load_head, map_tile, save_head
from surveybridge.bridge_core.network import NetworkConfig
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.settings import Sampling, WholeTile
from surveybridge.jobs import plan
from surveybridge.jobs.reporting.calibration import WITHOUT_SAMPLES, behind_moments
from surveybridge.jobs.translating.scene import prepared, scene_of, wanted_conditions
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import TileStore
from tests import tiny
from tests.jobs.test_export import place
from tests.jobs.test_translate import candidates, results, translate

pytestmark = pytest.mark.long

QUICK = ["--samples", "0", "--score-samples", "2", "--score-steps", "2", "--precision", "float32"]
LEARNT = Objective("edm", sigma_data=0.3, log_sigma_mean=-1.2, log_sigma_std=1.4, end_share=0.1)


def maps(store: str, run: Path, checkpoint: str, *more: str, executor: str = "serial") -> int:
    what = ["--store", store, "--run", str(run), "--checkpoint", checkpoint, "--executor", executor]
    return main(["translate", *what, *QUICK, *more])


def write_head(checkpoint: str, seed: int = 1) -> None:
    model = load_checkpoint(checkpoint)
    torch.manual_seed(seed)
    save_head(MapsHead(model.card.network), model, head_file(checkpoint))


def stated(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


@pytest.fixture(scope="module")
def headed(tmp_path_factory) -> str:
    """A tiny network that has learnt to begin with nothing of the wanted image, and a head beside it."""
    path = tiny.write_checkpoint(tmp_path_factory.mktemp("headed"), objective=LEARNT, patch="tile")
    write_head(path)
    return path


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, store, headed) -> Path:
    run = tmp_path_factory.mktemp("run") / "mapped"
    assert maps(store, run, headed) == 0
    return run


def test_a_run_of_maps_says_so_and_has_a_mean_and_a_deviation_of_every_observed_pixel(mapped):
    for part in (stated(mapped), stated(mapped)["fingerprint"]):
        assert part["samples"] == 0 and len(part["maps_head"]) == 64 and "shared_start" not in part
    mosaic = RunFolder.open(str(mapped)).read_mosaic()
    known = np.isfinite(mosaic.mean)
    assert known.mean() > 0.9 and (mosaic.std[known] > 0).all()
    np.testing.assert_array_equal(known, np.isfinite(mosaic.std))
    assert behind_moments(RunFolder.open(str(mapped))) == WITHOUT_SAMPLES


def test_a_tile_is_what_its_head_says_of_one_evaluation_of_the_network(mapped, store, headed):
    model = load_checkpoint(headed)
    tile = prepared(model.card, TileStore.open(store).read_tile("t0001"))
    direction = model.card.problem.to("euclid")
    calls: list[int] = []
    model.network.final_conv.register_forward_hook(lambda _, given, out: calls.append(len(out)))
    found = map_tile(
        model,
        load_head(model, head_file(headed)),
        direction,
        scene_of(tile, "lsst", torch.device("cpu"), model.card),
        Sampling(samples=0, precision="float32", patches=WholeTile(multiple=model.card.network.window_multiple)),
        wanted_conditions(model.card, tile, direction),
    )
    assert calls == [1]
    written = RunFolder.open(str(mapped)).read_tile_mosaic("t0001")
    np.testing.assert_array_equal(found.mean.numpy(), written.mean)
    np.testing.assert_array_equal(found.std.numpy(), written.std)


def test_the_catalog_is_that_of_a_run_with_samples(tmp_path, mapped, store, headed):
    assert translate(store, tmp_path / "run", headed) == 0
    one, other = candidates(mapped), candidates(tmp_path / "run")
    assert one.num_rows > 0
    # pandas takes NaN for equal to NaN
    pd.testing.assert_frame_equal(*(rows.drop_columns(["run_id"]).to_pandas() for rows in (one, other)))


@pytest.mark.parametrize("patch", ["64", "tile"])
def test_patches_are_blended_and_their_batch_decides_nothing(tmp_path, mapped, store, headed, patch):
    assert maps(store, tmp_path / "run", headed, "--patch", patch, "--batch", "3") == 0
    one, other = (RunFolder.open(str(run)).read_mosaic() for run in (mapped, tmp_path / "run"))
    near = {"tile": 1e-4, "64": 0.3}[patch]  # patches see less around them
    off = np.abs(one.mean - other.mean) / one.std
    assert np.nanmedian(off) < near and np.nanmedian(np.abs(one.std / other.std - 1)) < near


def test_a_run_goes_on_to_the_bytes_of_one_that_was_not_interrupted(tmp_path, mapped, store, headed):
    from tests.jobs.test_shared_start import interrupted

    run = interrupted(mapped, tmp_path / "run", "t0002")
    assert maps(store, run, headed) == 0
    assert results(run) == results(mapped) and stated(run) == stated(mapped)


def test_another_head_is_another_run(tmp_path, store, mapped, capsys):
    path = tiny.write_checkpoint(tmp_path, objective=LEARNT, patch="tile")
    write_head(path, seed=2)
    assert maps(store, mapped, path) == 2
    assert "maps_head" in capsys.readouterr().err


def test_plan_counts_one_evaluation(tmp_path, store, headed):
    words = {"samples": 0, "score_samples": 2, "score_steps": 2, "precision": "float32"}
    run = str(tmp_path / "run")
    found = plan.plan(plan.Config(store=store, run=run, checkpoint=headed, executor="serial", calibrate=0.1, **words))
    assert found.evaluations["translate"] == round(4 * 224**2 / 64**2)  # of four tiles with their halos


def test_what_needs_samples_is_refused(tmp_path, store, headed, mapped, capsys):
    def refused(code: int, *parts: str) -> None:
        said = capsys.readouterr().err.strip()
        assert code == 2 and len(said.splitlines()) == 1 and all(part in said for part in parts), said

    run = tmp_path / "run"
    refused(maps(store, run, headed, "--calibrated"), "--calibrated", "--samples 0")
    refused(maps(store, run, headed, "--samples", "1"), "--samples 1", "at least 2")
    refused(maps(store, run, headed, "--profile", str(tmp_path / "profile")), "--profile", "--samples 0")
    words = ["export", "--run", str(mapped), "--out", str(tmp_path / "cut.fits")]
    cutout = ["--cutout", f"{place(str(mapped), 90, 100)},2"]
    refused(main([*words, *cutout, "--samples", "2"]), "without samples")
    assert not run.exists()
    assert main([*words, *cutout]) == 0


def test_a_checkpoint_without_a_fitting_head_is_refused(tmp_path, store, checkpoint, capsys):
    run = tmp_path / "run"
    assert maps(store, run, checkpoint) == 2
    assert "has not learnt to begin with nothing" in capsys.readouterr().err
    path = tiny.write_checkpoint(tmp_path, objective=LEARNT, patch="tile")
    assert maps(store, run, path) == 2
    assert "maps.safetensors does not exist" in capsys.readouterr().err
    write_head(path)
    model = load_checkpoint(path)
    weights = {name: 1.1 * value for name, value in model.network.state_dict().items()}
    save_checkpoint(model.card, weights, path)
    assert maps(store, run, path) == 2
    said = capsys.readouterr().err.strip()
    assert "fit a head of it" in said and len(said.splitlines()) == 1
    assert not run.exists()


def test_calibrate_fits_a_head_and_leaves_the_checkpoint_as_it_was(tmp_path, store, monkeypatch, capsys):
    from surveybridge.jobs.calibrating import maps as fitting

    monkeypatch.setattr(fitting, "STEPS", 3)
    network = NetworkConfig(base=4, blocks=1, stem=2, norm="pixel", conditions=True)
    path = tiny.write_checkpoint(tmp_path, objective=LEARNT, network=network, patch="tile")
    pairs = tmp_path / "pairs.zarr"
    assert main(["simulate-pairs", "--out", str(pairs), "--count", "16", "--executor", "serial"]) == 0
    out = tmp_path / "calibrated"
    words = ["calibrate", "--pairs", str(pairs), "--maps", "--checkpoint", path, "--out", str(out)]
    assert main([*words, "--sigma", "2"]) == 2
    assert "--sigma is not for --maps" in capsys.readouterr().err
    assert main([*words, "--start", "16"]) == 2
    assert "has 16 pairs but --start is 16" in capsys.readouterr().err
    assert main(words) == 0
    assert load_checkpoint(out / "tiny").sha256 == load_checkpoint(path).sha256
    assert maps(store, tmp_path / "run", str(out / "tiny")) == 0
