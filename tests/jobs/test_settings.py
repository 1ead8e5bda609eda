"""The settings of a run: one carrier from the command line to the sampler, to run.json and back."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from surveybridge.bridge_core.network import NetworkConfig
from surveybridge.bridge_core.settings import PatchGrid, Sampling, Scoring, WholeTile
from surveybridge.jobs import evaluate
from surveybridge.jobs.translate import Config
from surveybridge.jobs.translating.config import TranslationConfig
from surveybridge.jobs.translating.request import check, decisions, sampling_of, settings_of
from surveybridge.storage.runs import FINGERPRINT_KEYS, RunFolder
from tests import tiny
from tests.bridge_core.models import make_card
from tests.conftest import ROOT

# What says where and how fast, and decides no pixel; store, direction and calibrated are keys of their own.
DECIDE_NOTHING = {
    "storage_options", "store", "checkpoint", "to", "direction", "workers", "min_workers", "executor", "batch",
    "retry_failed", "minutes", "calibrated",
    "stars", "stars_radius",  # by the digest of the list
    "homogenise", "psf_noise",  # by what they ask for: `test_homogenised_runs`
    "wanted_noise", "wanted_psf",  # likewise: `test_wishes`
    "consistency",  # likewise: `test_consistency`
}  # fmt: skip
OTHER = {
    "samples": 9, "steps": 7, "score_samples": 6, "score_steps": 9, "seed": 1, "patch": "tile", "precision": "float32",
    "score_reconstruct": 0.25,
}  # fmt: skip
USUAL = {"samples": 8, "steps": 6, "score_samples": 5, "score_steps": 8, "precision": "bfloat16", "seed": 0}
BEGUN = USUAL | {"score_reconstruct": 0.1}  # by runs that begin now


def test_a_run_states_the_settings_that_every_run_states():
    config = TranslationConfig(store="s")
    assert decisions(config.sampling, config.scoring) == BEGUN
    assert list(decisions(config.sampling, config.scoring)) == list(BEGUN)


@pytest.mark.parametrize("name", sorted(TranslationConfig.model_fields.keys() - DECIDE_NOTHING))
def test_every_setting_that_decides_pixels_or_scores_makes_another_run(name):
    config = TranslationConfig(store="s", **{name: OTHER[name]})
    assert decisions(config.sampling, config.scoring) == BEGUN | {name: OTHER[name]}
    assert name in FINGERPRINT_KEYS


def test_a_knob_of_sampler_or_score_enters_the_run_by_itself_where_it_is_not_the_default():
    assert decisions(Sampling(eta=0.5), Scoring(midpoint=0.6)) == USUAL | {"eta": 0.5, "score_midpoint": 0.6}
    assert decisions(Sampling(batch=3), Scoring(batch=5)) == USUAL


@pytest.mark.parametrize("patches", [PatchGrid.of(128), WholeTile()])
def test_the_sampling_of_a_run_is_read_back_from_it(patches):
    how = Sampling(samples=3, steps=2, seed=5, precision="float32", patches=patches, order=1, eta=1.0)
    card = make_card(network=NetworkConfig(stem=2))
    assert sampling_of({"format": "x", "config": {}, **decisions(how, Scoring())}, card) == how
    assert sampling_of(USUAL, card) == Sampling()  # earlier runs state no patch


@pytest.mark.parametrize(("given", "found"), [("64", 64), ("128", 128), (128, 128), ("tile", "tile"), (None, None)])
def test_windows_are_given_in_words_or_numbers(given, found):
    assert TranslationConfig(store="s", patch=given).patch == found


def test_a_run_sees_tiles_in_windows_that_its_network_can_take(tmp_path):
    store = tiny.write_store(tmp_path / "tiles")
    network = NetworkConfig(base=4, multipliers=(1, 1, 1, 1), blocks=1, stem=2, norm="pixel")
    for its_network, patch, windows in (
        (replace(network, multipliers=(1, 2, 4)), "tile", WholeTile(64, 8)),
        (network, "tile", WholeTile(64, 16)),
        (replace(network, norm="group"), 64, PatchGrid()),
    ):
        checkpoint = tiny.write_checkpoint(tmp_path, network=its_network, patch=patch)
        request = check(Config(store=store, run=str(tmp_path / "run"), checkpoint=checkpoint))
        assert request.sampling.patches == settings_of(request, attempts={}).sampling.patches == windows


def test_an_evaluation_samples_and_scores_as_it_is_told():
    told = evaluate.Config(
        pairs="p", out="o", samples=3, steps=2, order=1, eta=1.0, sigma_max=5.0, from_end=False, score_samples=4,
        score_steps=3, seed=9, batch=7, precision="float32",
    )  # fmt: skip
    assert told.sampling == Sampling(3, 2, 5.0, False, 1, 1.0, 9, 7, "float32")
    assert told.scoring == Scoring(samples=4, steps=3, seed=9, batch=7, precision="float32")


CHILD = """
import pickle, sys
import numpy as np
from surveybridge.cluster.stages import Failure, Outcome
from surveybridge.jobs.translating.candidates import Candidates
from surveybridge.jobs.translating.stages import Translation, tile_stages
from surveybridge.storage.mosaics import TileMosaic
from surveybridge.storage.schema import CANDIDATES, CELL, thumbnail_names
from surveybridge.storage.tiles import core_header, tile_content, tile_place

stages = tile_stages(pickle.loads(sys.stdin.buffer.read()))
tile = stages.make_read()("t0000")
write, zeros = stages.make_write(), np.zeros((1, *tile.core_shape), np.float32)
mosaic = TileMosaic("t0000", core_header(tile), ("VIS",), zeros, zeros, zeros[0], tile.core_origin, tile.grid_id)
planes = {name: CANDIDATES.field(name).type.list_size // CELL**2 for name in thumbnail_names(CANDIDATES)}
cut = {name: np.zeros((2, number, CELL, CELL), np.float32) for name, number in planes.items()}
assert Candidates(CANDIDATES, cut | {"object_id": ["a", "b"]}).rows["object_id"].to_pylist() == ["a", "b"]
none = Candidates(CANDIDATES, {})
done = Translation("t0000", tile_content(tile), tile_place(tile), mosaic, 1, none, 0.1)
row = write(Outcome("t0000", done, None, {"read": 0.1, "model": 0.2}))
assert row["status"] == "ok", row
assert write(Outcome("t0001", None, Failure("model", "no", ""), {}))["status"] == "failed"
print(sorted(name for name in sys.modules if name in ("torch", "triton")))
"""


def test_processes_that_read_and_write_do_without_torch(tmp_path):
    tiny.write_store(tmp_path / "tiles")
    checkpoint = tiny.write_checkpoint(tmp_path, patch="tile")
    config = Config(store=str(tmp_path / "tiles"), run=str(tmp_path / "run"), checkpoint=checkpoint, samples=3)
    request = check(config)
    RunFolder.open_or_create(config.run, request.document)
    settings = settings_of(request, attempts={})
    assert settings.sampling == replace(Sampling(), samples=3, patches=WholeTile())
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=pickle.dumps(settings), capture_output=True, timeout=120, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() == "[]"
