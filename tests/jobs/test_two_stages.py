"""Runs that reconstruct only the sources in front: what catalogs say of the others, and how earlier runs go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.discriminant import Discriminant
from surveybridge.bridge_core.network import UNet
from surveybridge.bridge_core.residuals import columns
from surveybridge.bridge_core.settings import Scoring
from surveybridge.jobs import plan
from surveybridge.jobs.translating.candidates import RunFacts, find_candidates
from surveybridge.jobs.translating.config import Config
from surveybridge.jobs.translating.request import check
from surveybridge.jobs.vet import Config as VetConfig
from surveybridge.jobs.vet import open_session
from surveybridge.storage.query import query
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import CATALOG, THUMBNAILS, stamp_array
from surveybridge.storage.tiles import TileStore
from tests import tiny

SAMPLES, STEPS, DRAWS = 2, 2, 1
QUICK = {"samples": 2, "steps": 1, "score_samples": SAMPLES, "score_steps": STEPS, "executor": "serial"}
MADE = ("score_asbridge", "thumbnail_mean", "thumbnail_error")


class Place(NamedTuple):
    store: str
    checkpoint: str

    def words(self, run: Path, **more: object) -> list[str]:
        settings = {"store": self.store, "checkpoint": self.checkpoint, "run": run} | QUICK | more
        return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]

    def translated(self, run: Path, **more: object) -> RunFolder:
        assert main(["translate", *self.words(run, **more)]) == 0
        return RunFolder.open(run)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """Four tiles, and a lens score that puts about half of their sources among a tenth of ordinary ones."""
    folder = tmp_path_factory.mktemp("place")
    store = tiny.write_store(folder / "tiles")
    count = sum(len(some) for name, some in columns(tiny.PROBLEM).items() if "->" in name)
    weight = tuple(np.random.default_rng(1).normal(size=count))

    def learnt(tail: np.ndarray) -> Discriminant:
        ranges = ((1.0, 4.0), (-1.0, 1.0))
        mean = ((0.0,) * count,) * 6
        return Discriminant(2.0, DRAWS, *ranges, mean, (1.0,) * count, weight, 0.0, 1.0, tuple(tail))

    first = load_checkpoint(tiny.write_checkpoint(folder, "first", discriminant=learnt(np.arange(7.0))))
    tiles = TileStore.open(store)
    found = [
        find_candidates(first, tiles.read_tile(name), Scoring(reconstruct=0.0), RunFacts("r"), torch.device("cpu")).rows
        for name in tiles.manifest()["tile_id"].to_pylist()
    ]
    score = pa.concat_tables(found)["score"].drop_null().to_numpy()
    low, high = np.sort(score)[len(score) // 2 - 1 : len(score) // 2 + 1]
    tail = (low + high) / 2 + (high - low) * (np.arange(7) - 2)  # the third is of the rate 0.1
    return Place(store, tiny.write_checkpoint(folder, discriminant=learnt(tail)))


@pytest.fixture(scope="module")
def run(place, tmp_path_factory) -> RunFolder:
    return place.translated(tmp_path_factory.mktemp("run") / "few")


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory) -> RunFolder:
    return place.translated(tmp_path_factory.mktemp("run") / "all", score_reconstruct=1)


def rows_of(run: RunFolder) -> pa.Table:
    return pa.concat_tables([run.read_candidates(tile) for tile in run.ok_tiles()])


def test_the_catalog_says_which_rows_were_reconstructed_and_is_else_what_it_was(run, whole):
    few, all_of_them = rows_of(run), rows_of(whole)
    made = few["score_asbridge"].is_valid().to_numpy()
    np.testing.assert_array_equal(made, few["false_alarm"].to_numpy() <= 0.1)
    assert 2 <= made.sum() <= len(made) - 2
    for name in set(few.column_names) - {*MADE, "run_id", *THUMBNAILS}:
        np.testing.assert_array_equal(few[name].to_numpy(), all_of_them[name].to_numpy(), err_msg=name)
    for name in set(THUMBNAILS) - {*MADE}:
        np.testing.assert_array_equal(stamp_array(few, name), stamp_array(all_of_them, name))
    assert all_of_them["score_asbridge"].null_count == 0
    for name in MADE[1:]:
        here, there = (stamp_array(rows, name) for rows in (few, all_of_them))
        np.testing.assert_array_equal(here[made], there[made])  # bfloat16 does not depend on the batch
        assert np.isnan(here[~made]).all() and np.isfinite(there[~made]).any()
    assert few["score_asbridge"].filter(made).equals(all_of_them["score_asbridge"].filter(made))
    assert run.run_json["score_reconstruct"] == 0.1 and whole.run_json["score_reconstruct"] == 1.0
    for name in MADE:
        assert b"reconstruct" in few.schema.field(name).metadata[b"description"]


def test_queries_catalogs_pages_and_the_vetting_page_show_what_there_is(run, tmp_path, capsys):
    best = query(run.url)
    made = best["score_asbridge"].is_valid().to_numpy()
    assert (np.diff(made.astype(int)) <= 0).all()  # the list begins with those that were reconstructed
    assert main(["publish", "--run", run.url, "--out", str(tmp_path / "catalog")]) == 0
    published = query(str(tmp_path / "catalog"))
    assert published.schema.field("score_asbridge").metadata == CATALOG.field("score_asbridge").metadata
    assert published["score_asbridge"].null_count == best["score_asbridge"].null_count > 0
    counted = ["query", "--run", str(tmp_path / "catalog"), "--sql"]
    assert main([*counted, "SELECT count(*) AS n FROM candidates WHERE score_asbridge IS NOT NULL"]) == 0
    assert capsys.readouterr().out.split()[-1] == str(made.sum())
    assert main(["report", "--run", run.url, "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("not reconstructed") == page.count("mean of reconstructions: none<") == (~made).sum()
    assert "for sources with a false-alarm rate of at most 0.1;" in page
    session = open_session(VetConfig(run=(run.url,)), "ann")
    assert session.candidates.table["score_asbridge"].null_count == (~made).sum()


def test_plan_counts_what_the_network_is_asked(place, tmp_path, monkeypatch, capsys):
    calls: list[float] = []
    given = UNet.given

    def counted(self, x, emb):
        calls.append(len(x) * x.shape[2] * x.shape[3] / 64**2)
        return given(self, x, emb)

    settings = {"store": place.store, "checkpoint": place.checkpoint, "run": str(tmp_path / "run")} | QUICK
    expected = plan.plan(plan.Config(**settings, calibrate=0.1))
    # eight sources, of which half were reconstructed, are told from the usual share of ten more
    assert 0.1 < expected.rates["reconstructed"] < 0.5
    assert expected.reconstructed == round(expected.sources * expected.rates["reconstructed"])
    assert expected.evaluations["score"] == expected.sources * 2 * DRAWS + expected.reconstructed * SAMPLES * STEPS
    assert f"{expected.reconstructed} of them to reconstruct" in plan.describe(expected, plan.Config(**settings))
    monkeypatch.setattr(UNet, "given", counted)
    rows = rows_of(place.translated(tmp_path / "run"))
    made = int(rows["score_asbridge"].is_valid().to_numpy().sum())
    assert sum(calls) - expected.evaluations["translate"] == len(rows) * 2 * DRAWS + made * SAMPLES * STEPS


def test_a_run_is_resumed_with_the_share_that_it_began_with(place, whole, tmp_path, capsys):
    folder = tmp_path / "begun"
    shutil.copytree(whole.folder.path(), folder)
    assert main(["translate", *place.words(folder, score_reconstruct=0.3)]) == 2
    assert "score_reconstruct 1.0 but this run has 0.3" in capsys.readouterr().err
    before = tiny.files_of(folder, "candidates")
    document = json.loads((folder / "run.json").read_text())
    for stated in (document, document["fingerprint"]):  # as runs before it state nothing
        assert stated.pop("score_reconstruct") == 1.0
    (folder / "run.json").write_text(json.dumps(document))
    for part in ("ledger", "candidates"):
        for one in (folder / part).rglob("*.parquet"):
            one.unlink()
    asked = {"store": place.store, "checkpoint": place.checkpoint, "run": str(folder)} | QUICK
    assert plan.plan(plan.Config(**asked, calibrate=0.1)).rates["reconstructed"] > 0.4
    again = place.translated(folder)
    assert rows_of(again)["score_asbridge"].null_count == 0
    assert tiny.files_of(folder, "candidates") == before != {}
    assert again.run_json == document


def test_a_sweep_goes_on_with_the_run_of_an_earlier_version(place, whole, tmp_path, capsys):
    request = check(Config(store=place.store, checkpoint=place.checkpoint, run=str(tmp_path / "none"), **QUICK))
    assert request.run_id != request.of_all_sources().run_id == whole.run_json["run_id"]
    shutil.copytree(whole.folder.path(), tmp_path / "runs" / whole.run_json["run_id"])
    words = place.words(tmp_path / "runs")
    words[words.index("--run")] = "--runs"
    assert main(["sweep", *words]) == 0
    assert "nothing new in" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "runs").iterdir() if (path / "run.json").exists()] == [
        request.of_all_sources().run_id
    ]
