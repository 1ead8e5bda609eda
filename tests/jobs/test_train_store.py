"""Training on a tile store and from a checkpoint: its windows, its held-back sky, and that it goes on to the bit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.conditions import ConditionRanges
from surveybridge.jobs.training.data import VALIDATION, split_of
from surveybridge.jobs.training.images import joined_ranges
from surveybridge.jobs.training.memory import worker_bytes
from surveybridge.jobs.training.worker import read_shard
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.pairs import read_ids, read_pairs
from tests import tiny
from tests.jobs.skies_to_cut import EAST, write_sky
from tests.jobs.training_runs import LocalSession, losses, quick_energies, same_weights, without_ray

SMALL = ["--batch-size", "4", "--shards", "2", "--validation", "3", "--report-steps", "4"]
CELLS = ["--hold-back", "0.3", "--hold-back-order", "14"]
NEW = [*SMALL, *CELLS, "--base", "8", "--learning-rate", "0.002"]
STEPS = 8


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> str:
    return write_sky(tmp_path_factory.mktemp("sky") / "tiles", EAST)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint"), seed=3)


def train(out: Path | str, *more: str, steps: int = STEPS) -> int:
    with without_ray(), quick_energies():
        return main(["train", "--out", str(out), "--steps", str(steps), *more])


@pytest.fixture(scope="module")
def trained(tiles, tmp_path_factory) -> Path:
    """An undisturbed training on the tile store."""
    out = tmp_path_factory.mktemp("trained") / "out"
    assert train(out, "--store", tiles, *NEW) == 0
    return out


def test_it_trains_on_windows_of_the_store_and_validates_on_sky_of_its_own(trained, tiles):
    url = str(trained / "pairs.zarr")
    table = pq.read_table(trained / "pairs.parquet")
    held = table["held_back"].to_numpy(zero_copy_only=False).astype(bool)
    assert read_ids(url) == table["id"].to_pylist()
    split = split_of(url, None, 3, 2)
    free = int((~held).sum())
    assert split == {"available": free + 3, "validation": 3, "validation_start": free}

    card = load_checkpoint(trained / "bridge").card
    assert card.problem.catalog == "euclid" and card.provenance["pairs"] == "pairs"
    # noise, PSF and masks are in the store, so the network is told them, and the card says what it has seen
    assert card.network.conditions and card.conditions is not None
    low, high = card.conditions.ranges["euclid"]["noise"]["VIS"]
    assert tiny.SIGMA["VIS"] <= low < high <= 1.5 * tiny.SIGMA["VIS"] * 1.001
    assert losses(trained)[-1]["step"] == STEPS


def test_workers_read_the_training_rows_and_the_held_back_ones(trained):
    url = str(trained / "pairs.zarr")
    card = load_checkpoint(trained / "bridge").card
    split = split_of(url, None, 3, 2)
    config = {"pairs": url, "grid": "mosaic", "shards": 2, "seed": 0, **split}
    shards = [read_shard(config, card, index) for index in range(2)]
    pairs = read_pairs(url, problem=card.problem.table)
    first, _ = card.problem.endpoints
    everything = first.fitted.forward(torch.from_numpy(pairs.ends["lsst"]), first.bands)
    free = split["validation_start"]
    training = torch.cat([shard.training.planes[0] for shard in shards])
    validation = torch.cat([shard.validation.planes[0] for shard in shards])
    np.testing.assert_array_equal(training, everything[:free])
    np.testing.assert_array_equal(validation, everything[free : free + 3])


@pytest.fixture
def bucket(monkeypatch) -> Iterator[str]:
    """A bucket that this process finds through the environment."""
    moto_server = pytest.importorskip("moto.server", reason="needs the dev extra: moto[server]")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    Folder.at("s3://skies").filesystem.mkdir("skies")
    yield "s3://skies"
    server.stop()


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.long
def test_in_object_storage_stopped_while_it_cuts_and_while_it_trains_it_ends_with_the_same_bits(
    trained, tiles, bucket, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # what stands in for Ray Train has its checkpoints here
    store, out = Folder.at(f"{bucket}/tiles"), Folder.at(f"{bucket}/runs/one")
    for name, content in tiny.files_of(tiles).items():
        store.put(content, *name.split("/"))
    with monkeypatch.context() as patch:
        patch.setattr("surveybridge.storage.pair_writer.PairWriter.write", interrupted)
        assert train(out.url, "--store", store.url, *NEW) == 130
    assert out.names() == ["pairs.parquet", "pairs.zarr"]
    with monkeypatch.context() as patch:
        reported = LocalSession.report

        def once(self: LocalSession, metrics: Any, save: Any = None) -> None:
            reported(self, metrics, save)
            raise KeyboardInterrupt

        patch.setattr(LocalSession, "report", once)
        assert train(out.url, "--store", store.url, *NEW) == 130
    assert train(out.url, "--store", store.url, *NEW) == 0
    first, second = losses(out.url)[:2]
    assert (first["step"], second["step"]) == (STEPS / 2, STEPS)
    assert same_weights(out.url, trained)
    for name, content in tiny.files_of(trained / "pairs.zarr").items():
        assert out.read("pairs.zarr", *name.split("/")) == content
    # and once more: nothing is left to do
    capsys.readouterr()
    assert train(out.url, "--store", store.url, *NEW) == 0
    assert f"{STEPS} steps" in capsys.readouterr().out


# -- from a checkpoint --


def test_it_goes_on_from_weights_and_card_of_a_checkpoint(tiles, checkpoint, tmp_path):
    out = tmp_path / "out"
    more = ["--store", tiles, "--checkpoint", checkpoint, "--limit", "14", "--learning-rate", "1e-9", "--name", "tuned"]
    assert train(out, *more, *SMALL, *CELLS, steps=4) == 0
    before, after = load_checkpoint(checkpoint), load_checkpoint(out / "tuned")
    for name, value in before.network.state_dict().items():
        now = after.network.state_dict()[name]
        now = now if now.shape == value.shape else now[:, : value.shape[1]]  # beside what it is newly told
        torch.testing.assert_close(now, value, rtol=0, atol=1e-6)
    said = after.card.provenance
    assert said["from"]["sha256"] == before.sha256 and said["recipe"]["warmup_steps"] == 30
    assert after.card.problem == before.card.problem
    # so many windows, those for validation included
    assert len(read_ids(str(out / "pairs.zarr"))) == 14


def test_a_few_steps_lower_the_loss_on_sky_it_was_not_shown(tiles, checkpoint, tmp_path):
    out = tmp_path / "out"
    assert train(out, "--store", tiles, "--checkpoint", checkpoint, *SMALL, *CELLS, "--learning-rate", "2e-3") == 0
    curve = losses(out)
    assert curve[-1]["validation_loss"] < curve[0]["validation_loss"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--checkpoint", "{checkpoint}", "--base", "16"], "brings its own problem and network, but --base 16"),
        (
            ["--checkpoint", "{checkpoint}", "--grid", "cutout"],
            "checkpoint tiny is for the mosaic grid, but --grid is cutout",
        ),
        (["--checkpoint", "{cutout}"], "checkpoint round is for the cutout grid, but --grid is mosaic"),
        (["--checkpoint", "{cutout}", "--grid", "cutout"], "--grid is cutout, but .* holds tiles of the mosaic grid"),
        (["--checkpoint", "{coarse}"], 'lsst pixel scale 0.100" but checkpoint coarse expects 0.300"'),
        (["--checkpoint", "{rubin}"], "0 of its 9 tiles, which are of euclid and lsst, have both rubin and euclid"),
        (["--checkpoint", "{published}"], "has no stretch"),
        (["--pairs", "{pairs}"], "give either --pairs or --store"),
        (["--limit", "100000"], "100000 windows are wanted, but there are"),
        (["--validation", "500"], "but 2 for training and 500 for validation are needed"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_named(tiles, checkpoint, shared_data, tmp_path, capsys, more, message):
    checkpoints = {
        "{checkpoint}": lambda: checkpoint,
        "{cutout}": lambda: tiny.write_checkpoint(tmp_path, "round", grid="cutout"),
        "{coarse}": lambda: tiny.write_checkpoint(
            tmp_path, "coarse", problem=tiny.problem_with(lsst={"pixel_scale": 0.3}, euclid={"pixel_scale": 0.3})
        ),
        "{rubin}": lambda: tiny.write_checkpoint(tmp_path, "rubin", problem=tiny.problem_with(lsst={"name": "rubin"})),
        "{published}": lambda: str(shared_data / "golden" / "asbridge_base32.pth"),
        "{pairs}": lambda: "pairs.zarr",
    }
    words = [checkpoints[word]() if word in checkpoints else word for word in more]
    sizes = SMALL if "--validation" not in more else SMALL[:4]
    out = tmp_path / "out"
    capsys.readouterr()
    assert train(out, "--store", tiles, *sizes, *CELLS, *words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(said) == 1 and re.search(message, said[0]), said
    assert not out.exists()


def test_a_folder_whose_tiles_have_changed_is_another_training(trained, tiles, tmp_path, capsys):
    other = write_sky(tmp_path / "tiles", EAST, halo=16)
    before = tiny.files_of(trained)
    assert train(trained, "--store", other, *NEW) == 2
    assert "holds model bridge with" in capsys.readouterr().err
    assert tiny.files_of(trained) == before


# -- rows and memory --


def test_rows_for_validation_are_those_at_the_end_where_none_are_held_back(tmp_path):
    url = tiny.write_pairs(tmp_path / "tiny.zarr", 40)
    assert split_of(url, None, 9, 4) == {"available": 40, "validation": 9}
    assert split_of(url, 20, 9, 4) == {"available": 20, "validation": 9}
    held = tiny.write_pairs(tmp_path / "held.zarr", 40, held_back=10)
    assert split_of(held, None, None, 4) == {"available": 40, "validation": 10, "validation_start": 30}
    assert split_of(held, 20, 4, 4) == {"available": 20, "validation": 4, "validation_start": 30}
    assert VALIDATION == 128


def test_ranges_of_both_trainings_are_stated():
    old = ConditionRanges({"lsst": {"fwhm": {"g": (0.7, 0.8), "r": (0.6, 0.6)}}}, {"lsst": {"fwhm": {"g": 0.75}}})
    new = ConditionRanges({"lsst": {"fwhm": {"g": (0.9, 1.0)}, "noise": {"g": (1.0, 2.0)}}}, {"lsst": {}})
    found = joined_ranges(old, new)
    assert found.ranges == {"lsst": {"fwhm": {"g": (0.7, 1.0), "r": (0.6, 0.6)}, "noise": {"g": (1.0, 2.0)}}}
    assert found.nominal == {"lsst": {}} and joined_ranges(None, new) == new


def test_memory_is_that_of_the_pairs_and_is_shared_by_workers(trained):
    card = load_checkpoint(trained / "bridge").card
    config = {"available": 200_000, "shards": 8, "batch_size": 32, "accumulate": 1}
    # 4 bands of both ends and the noise of each pixel, float32
    data = 200_000 * 4 * 64**2 * 8
    one, four = (worker_bytes(card, config, 64, workers) for workers in (1, 4))
    assert data < one < 1.5 * data and data / 4 < four < one / 2
    assert worker_bytes(card, config | {"available": 400_000}, 64, 1) > one + 0.9 * data
