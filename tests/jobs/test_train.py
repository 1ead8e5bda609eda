"""Train: what a run leaves behind, that it goes on where it was killed, and that workers share one optimisation."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bridge_core.checkpoint import load_checkpoint
from jobs.__main__ import main
from tests import tiny

# Ray Train takes 20 s to its first step.
pytestmark = pytest.mark.slow

STEPS = 80
SMALL = ["--base", "8", "--batch-size", "4", "--shards", "2", "--validation", "8", "--learning-rate", "0.002"]
SMALL += ["--steps", str(STEPS), "--report-seconds", "0.5"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return tiny.write_pairs(tmp_path_factory.mktemp("pairs") / "tiny.zarr", 24)


def train(pairs, out, *more) -> int:
    return main(["train", "--pairs", str(pairs), "--out", str(out), *SMALL, *map(str, more)])


def losses(out) -> list[dict[str, float]]:
    with (Path(out) / "loss.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def same_weights(one, other) -> bool:
    first, second = (load_file(Path(folder) / "bridge.safetensors") for folder in (one, other))
    assert set(first) == set(second) and len(first) > 50
    return all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pairs, ray_cluster):
    """Output of an undisturbed run of one worker."""
    out = tmp_path_factory.mktemp("trained") / "out"
    assert train(pairs, out) == 0
    return out


def test_a_run_leaves_a_checkpoint_and_its_losses(trained):
    assert {"bridge.safetensors", "bridge.json", "loss.csv", "loss.png"} <= {path.name for path in trained.iterdir()}
    assert (trained / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    log = losses(trained)
    assert log[-1]["step"] == STEPS and log[-1]["pairs"] == 4 * STEPS
    assert all(np.isfinite(value) for row in log for value in row.values())
    assert log[-1]["validation_loss"] < 0.8  # it is 0.85 for a network that has learnt nothing

    card = load_checkpoint(trained / "bridge").card
    assert (card.grid, card.objective.name, card.network.base) == ("mosaic", "edm", 8)
    assert card.pixel_scale == {"lsst": 0.1, "euclid": 0.1}
    assert card.stretch is not None
    assert card.stretch.softening == pytest.approx({band: 2 * sigma for band, sigma in tiny.SIGMA.items()})
    assert card.provenance["pairs"] == "tiny.zarr"
    assert card.provenance["log_end"]["step"] == str(STEPS)


def test_its_checkpoint_translates(tmp_path, trained):
    store = tiny.write_store(tmp_path / "tiles", tile_size=tiny.SIDE)
    quick = ["--samples", "2", "--steps", "1", "--score-samples", "2", "--score-steps", "1", "--executor", "serial"]
    run = ["--store", store, "--run", str(tmp_path / "run"), "--checkpoint", str(trained / "bridge")]
    assert main(["translate", *run, *quick]) == 0


def test_a_finished_run_is_not_trained_further(trained, pairs, capsys):
    before = {name: content for name, content in tiny.files_of(trained).items() if not name.startswith("ray/")}
    assert train(pairs, trained) == 0
    assert f"bridge.safetensors: {STEPS} steps" in capsys.readouterr().out
    after = tiny.files_of(trained)
    assert {name: after[name] for name in before} == before


def test_two_workers_reach_the_loss_of_one(tmp_path, trained, pairs):
    """Each rank draws noise of its own, so the curves differ as those of two seeds do: 10% of the validation loss."""
    assert train(pairs, tmp_path, "--workers", 2) == 0
    one, two = losses(trained)[-1], losses(tmp_path)[-1]
    assert (two["step"], two["pairs"]) == (one["step"], one["pairs"])
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=0.1)
    assert not same_weights(trained, tmp_path)


def test_a_run_goes_on_where_its_driver_was_killed(tmp_path, trained, pairs):
    """SIGKILL, then the same command again: the same weights, bit by bit, as the run that nobody disturbed."""
    command = [sys.executable, "-m", "jobs", "train", "--pairs", pairs, "--out", str(tmp_path), *SMALL]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        committed = wait_for_checkpoint(tmp_path, driver)
    finally:
        driver.kill()
        driver.wait()
    assert not (tmp_path / "bridge.safetensors").exists()

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    said = again.stdout + again.stderr
    assert again.returncode == 0, said
    first = min(int(step) for step in re.findall(r"\bstep=(\d+) ", said))
    assert 0 < committed < first <= STEPS  # it did not start over
    assert same_weights(trained, tmp_path)
    log = losses(tmp_path)
    assert log[-1]["step"] == STEPS and log[0]["step"] <= committed  # one curve, from the start
    assert "Failed to query Ray Train Controller" not in said


def wait_for_checkpoint(out: Path, driver: subprocess.Popen[bytes]) -> int:
    """Step of the first committed checkpoint, as soon as there is one."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for snapshot in out.glob("ray/*/checkpoint_manager_snapshot.json"):
            logs = sorted(snapshot.parent.glob("checkpoint_*/loss.csv"))
            if logs:
                return int(list(csv.DictReader(logs[0].read_text().splitlines()))[-1]["step"])
        assert driver.poll() is None, "the driver ended before its first checkpoint"
        time.sleep(0.05)
    raise AssertionError("no checkpoint within 120 s")
