"""Translate in whole tiles: where that is the default, what a run says of it, and runs that began otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.network import NetworkConfig
from surveybridge.jobs import plan
from surveybridge.storage.runs import RunFolder
from tests import tiny
from tests.bridge_core.models import TO_EUCLID
from tests.jobs.test_sweep import list_only, sweep, the_run
from tests.jobs.test_translate import assert_close, ledger, results, translate


def stated(run) -> tuple[object, int]:
    """The windows in run.json, and the largest number of a tile."""
    folder = RunFolder.open(str(run))
    return folder.run_json["patch"], max(row["n_patches"] for row in ledger(run).values())


def test_a_tile_is_one_window_where_the_store_has_the_halo_and_the_network_no_statistics(whole, in_patches):
    assert stated(whole) == ("tile", 1)
    assert RunFolder.open(whole).run_json["config"]["patch"] == "tile"
    assert stated(in_patches)[0] == 64 and stated(in_patches)[1] > 1


@pytest.mark.parametrize("why", ["halo", "norm", "card"])
def test_else_it_is_seen_in_patches(tmp_path, checkpoint, why):
    store = tiny.write_store(tmp_path / "tiles", halo=63 if why == "halo" else 64)
    network = NetworkConfig(base=8, multipliers=(1, 2), blocks=1, stem=2, norm="group")
    cards: dict[str, dict[str, Any]] = {"halo": {"patch": "tile"}, "norm": {"network": network}, "card": {}}
    other = tiny.write_checkpoint(tmp_path, "other", **cards[why])
    assert translate(store, tmp_path / "run", other) == 0
    assert stated(tmp_path / "run")[0] == 64


def test_a_card_cannot_say_so_of_a_network_with_statistics_of_its_window():
    network = NetworkConfig(base=8, multipliers=(1, 2), blocks=1, stem=2, norm="group")
    with pytest.raises(BridgeError, match=r"^card other states windows 'tile', but .* \(norm group\); .* such as 64$"):
        replace(load_checkpoint().card, name="other", network=network, patch="tile")


def test_a_calibration_in_whole_tiles_states_them_in_the_card_and_new_runs_take_them(tmp_path, store, capsys):
    before = tiny.write_checkpoint(tmp_path, "mine")
    asked = [
        "--store",
        store,
        "--checkpoint",
        before,
        "--to",
        "euclid",
        "--tiles",
        "2",
        "--samples",
        "2",
        "--steps",
        "1",
    ]
    for patch in ("tile", "64"):
        assert main(["calibrate", *asked, "--no-arcs", "--out", str(tmp_path / patch), "--patch", patch]) == 0
    whole, patches = (load_checkpoint(tmp_path / patch / "mine") for patch in ("tile", "64"))
    assert (whole.card.patch, patches.card.patch) == ("tile", 64)
    scales = [model.card.calibrated(TO_EUCLID).scales(TO_EUCLID) for model in (whole, patches)]
    assert scales[0] != scales[1]  # measured through other windows
    assert translate(store, tmp_path / "run", str(tmp_path / "tile" / "mine"), "--calibrated") == 0
    assert stated(tmp_path / "run") == ("tile", 1)
    capsys.readouterr()
    assert main(["calibrate", *asked, "--out", str(tmp_path / "no"), "--patch", "63"]) == 2
    assert "--patch" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_both_say_the_same_of_the_sky(whole, in_patches):
    one, other = (RunFolder.open(run).read_mosaic() for run in (whole, in_patches))
    np.testing.assert_array_equal(one.coverage, other.coverage)
    known = np.isfinite(one.mean)
    np.testing.assert_array_equal(known, np.isfinite(other.mean))
    # they differ by what the random network sees beyond a patch's margin, below what it is unsure of
    assert 0 < np.median(np.abs(one.mean - other.mean)[known]) < 0.5 * np.nanmedian(one.std)
    assert np.nanmedian(one.std) == pytest.approx(np.nanmedian(other.std), rel=0.1)


def forget(run: Path, tile: str) -> None:
    """Let a run look as one of an earlier version that was interrupted before a tile."""
    document = json.loads((run / "run.json").read_text())
    for part in (document, document["fingerprint"], document["config"]):
        part.pop("patch")
    (run / "run.json").write_text(json.dumps(document))
    for name in ("ledger", "candidates", "mosaics"):
        (run / name / f"{tile}.parquet").unlink()


def copied(run: str, to: Path) -> Path:
    for name, data in tiny.files_of(run).items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes(data)
    return to


def test_a_run_in_patches_goes_on_with_them_and_ends_with_the_bytes_of_one_that_was_not_interrupted(
    tmp_path, store, checkpoint, in_patches, capsys
):
    run = copied(in_patches, tmp_path / "run")
    forget(run, "t0002")
    before = json.loads((run / "run.json").read_text())
    assert translate(store, run, checkpoint) == 0
    assert results(run) == results(in_patches)
    assert json.loads((run / "run.json").read_text()) == before
    capsys.readouterr()
    assert translate(store, run, checkpoint, "--patch", "tile") == 2
    assert "patch 64 but this run has 'tile'" in capsys.readouterr().err


def test_a_run_in_whole_tiles_goes_on_with_them(tmp_path, store, checkpoint, whole):
    run = copied(whole, tmp_path / "run")
    for name in ("ledger", "candidates", "mosaics"):
        (run / name / "t0001.parquet").unlink()
    assert translate(store, run, checkpoint) == 0
    assert results(run) == results(whole)


def test_a_sweep_goes_on_with_the_run_in_patches_that_it_began(tmp_path, store, checkpoint):
    runs = tmp_path / "runs"
    own = tiny.write_store(tmp_path / "tiles")
    list_all = list_only(own, "t0000", "t0001")
    assert sweep(own, runs, checkpoint, "--patch", "64") == 0
    list_all()
    assert sweep(own, runs, checkpoint) == 0
    assert len(ledger(the_run(runs).url)) == 4 and the_run(runs).run_json["patch"] == 64
    # one that begins now begins in whole tiles, and another sweep goes on with that
    for _ in range(2):
        assert sweep(own, tmp_path / "new", checkpoint) == 0
    assert the_run(tmp_path / "new").run_json["patch"] == "tile"


def test_the_batch_does_not_matter(tmp_path, store, checkpoint, whole):
    assert translate(store, tmp_path / "run", checkpoint, "--batch", "200") == 0
    assert_close(whole, tmp_path / "run")


def test_plan_counts_tiles_and_the_pixels_of_their_windows(tmp_path, store, checkpoint, capsys):
    settings = {"store": store, "run": str(tmp_path / "run"), "checkpoint": checkpoint, "executor": "serial"}
    quick = {"samples": 2, "steps": 3, "score_samples": 2, "score_steps": 2, "calibrate": 0.1}
    found = plan.plan(plan.Config(**settings, **quick))
    assert (found.tiles, found.patches, found.seen_in) == (4, 4, "whole tiles")
    # cores of 96 pixels and 64 around
    assert found.evaluations["translate"] == round(4 * 224**2 / 64**2) * 2 * 3
    words = [word for name, value in (settings | quick).items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["plan", *words]) == 0
    assert "4 whole tiles, 4 of them with data" in capsys.readouterr().out
    assert main(["plan", *words, "--patch", "64"]) == 0
    assert "49 windows, 49 of them with data" in capsys.readouterr().out
