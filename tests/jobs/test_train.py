"""Train: what a run leaves behind, and that it goes on where it was killed, in object storage."""

from __future__ import annotations

import os
import re
import signal
import uuid

import numpy as np
import pytest

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.problem import Endpoint
from surveybridge.bridge_core.stretch import Stretch
from surveybridge.bridge_core.training import Recipe
from surveybridge.storage.objectstore import Folder
from tests import tiny, warm
from tests.jobs.held_training import Hold
from tests.jobs.training_runs import (
    SMALL,
    STEPS,
    begin,
    command,
    losses,
    same_weights,
    wait_for_hold,
    without_ray,
)
from tests.storage.faults import moto_server

FIRST = 10
"""Steps at the first report."""

# Ray Train takes 20 s to its first step.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return tiny.write_pairs(tmp_path_factory.mktemp("pairs") / "tiny.zarr", 24)


def train(pairs, out, *more) -> int:
    return main(["train", "--pairs", pairs, "--out", str(out), *SMALL, *map(str, more)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pairs):
    """Output of an undisturbed run, without Ray: what Ray Train makes must be the same to the bit."""
    out = tmp_path_factory.mktemp("trained") / "out"
    with without_ray():
        assert train(pairs, out) == 0
    return out


def test_a_run_leaves_a_checkpoint_and_its_losses(trained):
    assert {"bridge.safetensors", "bridge.json", "loss.csv", "loss.png"} <= {path.name for path in trained.iterdir()}
    assert (trained / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    log = losses(trained)
    assert log[-1]["step"] == STEPS and log[-1]["pairs"] == 4 * STEPS
    assert all(np.isfinite(value) for row in log for value in row.values())
    # it learns, if little in so few steps
    for name in ("validation_loss", "validation_energy"):
        assert log[-1][name] < log[0][name]
    assert 0 < log[-1]["validation_energy"] < 1
    assert {row["ema_width"] for row in log} <= set(Recipe().ema_widths)

    card = load_checkpoint(trained / "bridge").card
    assert (card.grid, card.objective.name, card.network.base) == ("mosaic", "edm", 8)
    assert [end.pixel_scale for end in card.problem.endpoints] == [0.1, 0.1]
    softening = {band: s for end in card.problem.endpoints for band, s in softening_of(end).items()}
    assert softening == pytest.approx({band: 2 * sigma for band, sigma in tiny.SIGMA.items()})
    assert card.objective == Objective("edm", sigma_data=0.3, log_sigma_mean=-1.4, log_sigma_std=1.5)
    assert card.provenance["pairs"] == "tiny.zarr"
    assert card.provenance["log_end"]["step"] == str(STEPS)


def test_its_checkpoint_translates(tmp_path, trained):
    store = tiny.write_store(tmp_path / "tiles", tile_size=tiny.SIDE)
    quick = ["--samples", "2", "--steps", "1", "--score-samples", "2", "--score-steps", "1", "--executor", "serial"]
    run = ["--store", store, "--run", str(tmp_path / "run"), "--checkpoint", str(trained / "bridge")]
    assert main(["translate", *run, *quick]) == 0


def test_a_finished_run_is_not_trained_further_and_starts_no_ray(trained, pairs, capsys, monkeypatch):
    monkeypatch.setattr("surveybridge.cluster.connect.start_ray", lambda slots: pytest.fail("Ray is started"))
    before = tiny.files_of(trained)
    assert train(pairs, trained) == 0
    assert f"bridge.safetensors: {STEPS} steps" in capsys.readouterr().out
    assert tiny.files_of(trained) == before


def killed_and_run_again(pairs: str, out: str, folder, environment: dict[str, str]) -> str:
    """Kill the command after its first checkpoint, run it again, and return what it said then."""
    hold = Hold(str(folder), (FIRST,))
    arguments = command(pairs, out, hold)
    driver = begin(arguments, environment, folder / "first.log")
    try:
        wait_for_hold(hold, FIRST, out, driver)
    finally:
        os.kill(warm.fork_of(driver.pid), signal.SIGKILL)
        driver.wait()
    assert not Folder.at(out).exists("bridge.safetensors")

    again = begin(arguments, environment, folder / "second.log")
    code = again.wait(timeout=500)
    said = (folder / "second.log").read_text()
    assert code == 0, said[-5000:]
    steps = [int(step) for step in re.findall(r"\bstep=(\d+) ", said)]
    assert steps == list(range(2 * FIRST, STEPS + 1, FIRST))  # it did not start over
    return said


def curve(out) -> list[tuple[float, ...]]:
    """What the clock has no part in."""
    names = ("step", "pairs", "loss", "validation_loss", "learning_rate", "gradient_norm", "workers")
    return [tuple(row[name] for name in names) for row in losses(out)]


# ---- object storage


@pytest.fixture
def bucket(monkeypatch):
    """A bucket that this process and all it starts find through the environment."""
    pytest.importorskip("moto.server", reason="needs the dev extra: moto[server]")
    with moto_server() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        Folder.at(f"s3://{name}").filesystem.mkdir(name)
        yield f"s3://{name}"


def test_a_run_in_object_storage_goes_on_where_its_driver_was_killed_and_is_the_local_one(
    tmp_path, trained, pairs, bucket
):
    """Pairs, checkpoints and results on S3, the driver killed on the way: weights and curve of an undisturbed run."""
    store = Folder.at(f"{bucket}/pairs.zarr")
    for name, content in tiny.files_of(pairs).items():
        store.put(content, *name.split("/"))
    out = f"{bucket}/runs/one"
    secret = f"key-{uuid.uuid4().hex}"
    environment = os.environ | {"AWS_SECRET_ACCESS_KEY": secret}
    said = killed_and_run_again(store.url, out, tmp_path, environment)
    assert same_weights(trained, out)
    assert curve(out) == curve(trained)
    assert Folder.at(out).names() == [
        "bridge.json",
        "bridge.safetensors",
        "loss.csv",
        "loss.png",
        "ray",
        "training.json",
    ]
    assert "Failed to query Ray Train Controller" not in said
    assert secret not in said and secret not in Folder.at(out).read("bridge.json").decode()


def softening_of(end: Endpoint) -> dict[str, float]:
    assert isinstance(end.stretch, Stretch)
    return end.stretch.softening
