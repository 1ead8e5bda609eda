"""Translate with one start for all samples of a tile: which runs do, what they state, and runs that began without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from surveybridge.__main__ import main
from surveybridge.bridge_core import translate as core
from surveybridge.bridge_core.objective import Objective
from surveybridge.jobs import plan
from surveybridge.storage.runs import RunFolder
from tests import tiny
from tests.jobs.test_export import place
from tests.jobs.test_sweep import list_only, sweep, the_run
from tests.jobs.test_translate import ledger, results, translate

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def knowing(tmp_path_factory) -> str:
    """A tiny network that has learnt to begin with nothing of the wanted image, in whole tiles."""
    objective = Objective("edm", sigma_data=0.3, log_sigma_mean=-1.2, log_sigma_std=1.4, end_share=0.1)
    return tiny.write_checkpoint(tmp_path_factory.mktemp("knowing"), objective=objective, patch="tile")


@pytest.fixture(scope="module")
def shared(tmp_path_factory, store, knowing) -> Path:
    run = tmp_path_factory.mktemp("run") / "shared"
    assert translate(store, run, knowing) == 0
    return run


@pytest.fixture(scope="module")
def own(tmp_path_factory, store, knowing) -> Path:
    """A run as earlier versions began it."""
    run = tmp_path_factory.mktemp("run") / "own"
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr(core, "shares_start", lambda card, how: False)
        assert translate(store, run, knowing) == 0
    return run


def interrupted(run: Path, to: Path, tile: str) -> Path:
    """Copy a run that was interrupted before a tile."""
    shutil.copytree(run, to)
    for name in ("ledger", "candidates", "mosaics"):
        (to / name / f"{tile}.parquet").unlink()
    return to


def stated(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def test_a_run_that_begins_now_states_it_and_others_nothing(shared, own, whole, in_patches):
    for part in (stated(shared), stated(shared)["fingerprint"]):
        assert part["shared_start"] is True
    for other in (own, Path(whole), Path(in_patches)):  # of a network that has not learnt such a start
        assert "shared_start" not in stated(other)


def test_it_says_something_else_than_with_starts_of_their_own_by_less_than_it_is_unsure(shared, own):
    one, other = (RunFolder.open(str(run)).read_mosaic() for run in (shared, own))
    known = np.isfinite(one.mean)
    np.testing.assert_array_equal(known, np.isfinite(other.mean))
    assert 0 < np.median(np.abs(one.mean - other.mean)[known]) < np.nanmedian(one.std)


@pytest.mark.parametrize("which", ["shared", "own"])
def test_a_run_goes_on_as_it_began_to_the_bytes_of_one_that_was_not_interrupted(
    tmp_path, store, knowing, which, request
):
    complete = request.getfixturevalue(which)
    run = interrupted(complete, tmp_path / "run", "t0002")
    before = stated(run)
    assert translate(store, run, knowing) == 0
    assert results(run) == results(complete) and stated(run) == before


def test_a_sweep_goes_on_with_the_run_that_it_began(tmp_path, knowing, monkeypatch):
    runs, store = tmp_path / "runs", tiny.write_store(tmp_path / "tiles")
    list_all = list_only(store, "t0000", "t0001")
    with monkeypatch.context() as earlier:
        earlier.setattr(core, "shares_start", lambda card, how: False)
        assert sweep(store, runs, knowing) == 0
    list_all()
    assert sweep(store, runs, knowing) == 0
    begun = the_run(runs)
    assert len(ledger(begun.url)) == 4 and "shared_start" not in begun.run_json
    for _ in range(2):  # one that begins now
        assert sweep(store, tmp_path / "new", knowing) == 0
    assert the_run(tmp_path / "new").run_json["shared_start"] is True


@pytest.mark.parametrize("which", ["shared", "own"])
def test_samples_are_drawn_again_to_the_bit(tmp_path, which, request):
    run = request.getfixturevalue(which)
    out = tmp_path / "cut.fits"
    words = ["export", "--run", str(run), "--out", str(out), "--cutout", f"{place(str(run), 90, 100)},2"]
    assert main([*words, "--samples", "2"]) == 0
    assert fits.getheader(out, "SAMPLES_VIS")["SB_SAME"] is True


def test_patches_share_a_start_too(tmp_path, store, knowing):
    assert translate(store, tmp_path / "run", knowing, "--patch", "64") == 0
    assert stated(tmp_path / "run")["shared_start"] is True and stated(tmp_path / "run")["patch"] == 64


@pytest.mark.parametrize("which", ["shared", "own"])
def test_plan_counts_what_the_run_will_do(tmp_path, store, knowing, which, request):
    began = interrupted(request.getfixturevalue(which), tmp_path / "run", "t0002")
    words = {"samples": 2, "steps": 2, "score_samples": 2, "score_steps": 2, "precision": "float32"}
    found = plan.plan(
        plan.Config(store=store, run=str(began), checkpoint=knowing, executor="serial", calibrate=0.1, **words)
    )
    assert found.evaluations["translate"] == round(224**2 / 64**2) * (3 if which == "shared" else 4)
