"""Beside GPUs, tiles are prepared where they are read: the same results, and models that only compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from surveybridge.__main__ import main
from surveybridge.cluster.stages import read_outcome
from surveybridge.cluster.stream import readers_of
from surveybridge.jobs.translating import candidates
from surveybridge.jobs.translating import stages as translating
from surveybridge.jobs.translating.config import Config
from surveybridge.jobs.translating.request import check, settings_of
from surveybridge.jobs.translating.stages import PreparedTile, Translation, tile_stages
from surveybridge.storage.parquet import parquet_bytes
from tests import tiny
from tests.conftest import ray_of
from tests.jobs.test_profile import document

HOW = {"samples": 2, "steps": 2, "score_samples": 2, "score_steps": 2, "precision": "float32"}
PREPARING = {"objects: detection", "digest of the pixels"}
"""Parts of a profile that need no network."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("early")
    checkpoint = tiny.write_checkpoint(folder)
    return Config(store=tiny.write_store(folder / "tiles"), run=str(folder / "run"), checkpoint=checkpoint, **HOW)


def translated(config: Config, tile_id: str, *, early: bool) -> tuple[object, Translation]:
    stages = tile_stages(settings_of(check(config), {}, early=early))
    read = stages.make_read()(tile_id)
    return read, stages.make_model()(tile_id, read)


def test_a_tile_prepared_where_it_is_read_is_translated_to_the_same(config):
    late, early = (translated(config, "t0001", early=early) for early in (False, True))
    assert isinstance(early[0], PreparedTile) and not isinstance(late[0], PreparedTile)
    first, second = late[1], early[1]
    for name in ("mean", "std", "coverage"):
        np.testing.assert_array_equal(getattr(first.mosaic, name), getattr(second.mosaic, name))
    assert first.candidates.rows.num_rows > 0
    assert parquet_bytes(first.candidates.rows) == parquet_bytes(second.candidates.rows)  # NaN is equal to itself
    assert (first.content, first.place, first.windows, first.candidates.listed) == (
        *(second.content, second.place, second.windows, second.candidates.listed),
    )


def test_a_model_that_is_given_a_prepared_tile_finds_nothing_itself(config, monkeypatch):
    stages = tile_stages(settings_of(check(config), {}, early=True))
    read, model = stages.make_read()("t0001"), stages.make_model()

    def refuse(*_: object) -> None:
        raise AssertionError("the GPU waits")

    for name in ("find_objects", "catalogued_part", "prepared", "words"):
        monkeypatch.setattr(translating, name, refuse)
    monkeypatch.setattr(candidates, "measured", refuse)
    assert model("t0001", read).candidates.rows.num_rows == len(read.objects.asked) > 0


def test_a_tile_on_which_the_checkpoint_was_not_trained_fails_where_it_is_prepared(config):
    settings = settings_of(check(config), {}, early=True)
    other = tiny.write_checkpoint(
        Path(config.run).parent, "other", problem=tiny.problem_with(euclid={"pixel_scale": 0.2})
    )
    reader = tile_stages(replace(settings, checkpoint=other)).make_read()
    failure = read_outcome(reader, "t0001").failure
    assert failure is not None and failure.stage == "read"
    assert "pixel scale" in failure.reason and "other expects" in failure.reason


@pytest.mark.slow  # a cluster of its own
def test_readers_prepare_tiles_where_models_have_gpus(config, tmp_path):
    words = [f"--{name.replace('_', '-')}={value}" for name, value in HOW.items()]
    words += ["--store", config.store, "--checkpoint", str(config.checkpoint)]
    assert main(["translate", *words, "--run", str(tmp_path / "serial"), "--executor", "serial"]) == 0
    with ray_of(cpus=3, gpus=1):
        assert (readers_of(1, 1.0), readers_of(1, 0.0), readers_of(3, 0.5)) == (2, 1, 3)
        profile = tmp_path / "profile"
        assert main(["translate", *words, "--run", str(tmp_path / "gpu"), "--profile", str(profile)]) == 0
    folders = ("mosaics", "candidates")
    serial, beside = ({f: tiny.files_of(tmp_path / run, f) for f in folders} for run in ("serial", "gpu"))
    assert serial == beside and all(serial.values())
    rows = document(profile, "profile.json")["rows"]
    parts = {stage: {row["part"] for row in rows if row["stage"] == stage} for stage in ("read", "model")}
    assert parts["read"] >= PREPARING and not parts["model"] & PREPARING
