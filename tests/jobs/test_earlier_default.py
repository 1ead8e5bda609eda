"""What was begun with a checkpoint that was the default then goes on with it, without being told so."""

from __future__ import annotations

import json

import pytest

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT, EARLIER_DEFAULTS, shipped_checkpoints
from surveybridge.storage.runs import RunFolder
from tests import tiny
from tests.jobs.test_sweep import list_only, the_run
from tests.jobs.test_translate import QUICK, results

pytestmark = pytest.mark.long

SERIAL = ["--executor", "serial", *QUICK]


@pytest.fixture(params=EARLIER_DEFAULTS)
def earlier(request):
    return request.param


@pytest.fixture
def store(tmp_path):
    return tiny.write_store(tmp_path / "tiles", tile_size=48)


def begun_without_a_name(run, earlier) -> None:
    """Let run.json say what it said when the earlier default was the default: no path, and the name of the model."""
    document = json.loads((run / "run.json").read_text())
    assert document["model"] == document["config"]["checkpoint"] == earlier
    document["config"]["checkpoint"] = None
    (run / "run.json").write_text(json.dumps(document))


def test_they_still_ship():
    assert {DEFAULT_CHECKPOINT, *EARLIER_DEFAULTS} <= set(shipped_checkpoints())
    assert DEFAULT_CHECKPOINT not in EARLIER_DEFAULTS


def test_a_run_goes_on_with_it_and_another_checkpoint_is_refused(tmp_path, store, earlier, capsys):
    run, whole = tmp_path / "run", tmp_path / "whole"
    words = ["translate", "--store", store, *SERIAL]
    list_again = list_only(store, "t0000", "t0015")
    assert main([*words, "--run", str(whole), "--checkpoint", earlier]) == 0
    list_only(store, "t0000")
    assert main([*words, "--run", str(run), "--checkpoint", earlier]) == 0
    begun_without_a_name(run, earlier)
    list_again()
    list_only(store, "t0000", "t0015")
    assert main([*words, "--run", str(run)]) == 0
    assert results(run) == results(whole)
    capsys.readouterr()
    assert main([*words, "--run", str(run), "--checkpoint", DEFAULT_CHECKPOINT]) == 2
    assert "checkpoint_sha256" in capsys.readouterr().err


def test_a_sweep_goes_on_with_the_run_that_it_began(tmp_path, store, earlier):
    runs = tmp_path / "runs"
    words = ["sweep", "--store", store, "--runs", str(runs), *SERIAL]
    list_all = list_only(store, "t0000")
    assert main([*words, "--checkpoint", earlier]) == 0
    list_all()
    list_only(store, "t0000", "t0015")
    assert main(words) == 0
    assert len(the_run(runs).ok_tiles()) == 2
    # one that begins now begins with today's, also where an earlier one would be refused
    for wish in ([], ["--wanted-noise", "VIS=3"]):
        new = tmp_path / f"new{len(wish)}"
        list_only(store, "t0015")
        assert main([*words[:3], "--runs", str(new), *SERIAL, *wish]) == 0
        assert RunFolder.open(the_run(new).url).run_json["model"] == DEFAULT_CHECKPOINT
