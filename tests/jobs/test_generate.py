"""The job generate: a pair store that follows from its seed alone, that is gone on with, and that is trained on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.jobs.generating import blocks
from surveybridge.jobs.generating.checkpoint import ready_generator
from surveybridge.storage.pair_properties import read_properties
from surveybridge.storage.pairs import read_ids, read_pairs
from tests import tiny
from tests.jobs.test_bad_requests import refused
from tests.jobs.training_runs import losses, quick_energies, without_ray

pytestmark = pytest.mark.long

QUICK = ["--base", "8", "--batch-size", "4", "--shards", "2", "--validation", "4", "--learning-rate", "0.002"]


def training(pairs, out, *more):
    return ["train", "--pairs", str(pairs), "--out", str(out), *QUICK, *map(str, more)]


def train(pairs, out, *more):
    with without_ray(), quick_energies():
        return main(training(pairs, out, *more))


def generation(checkpoint, out, *more, count=20):
    wanted = [
        "--checkpoint",
        str(checkpoint),
        "--out",
        str(out),
        "--count",
        str(count),
        "--steps",
        "2",
        "--executor",
        "serial",
    ]
    return ["generate", *wanted, *map(str, more)]


def generate(checkpoint, out, *more, count=20):
    return main(generation(checkpoint, out, *more, count=count))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    store = tiny.write_pairs(tmp_path_factory.mktemp("pairs") / "tiny.zarr", 16)
    ids = read_ids(store)
    rng = np.random.default_rng(0)
    table = {"id": ids, "mag_VIS": rng.normal(23, 1, 16), "re": rng.uniform(0.2, 0.9, 16), "mag_g": [25.0] * 16}
    # one row is missing, and the rows have another order
    pq.write_table(pa.table(table).slice(1).take(list(range(14, -1, -1))), store.replace(".zarr", ".parquet"))
    return store


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pairs):
    """Output of the training of a generator of both ends."""
    out = tmp_path_factory.mktemp("trained") / "out"
    asked = ["--bridge", "diffusion", "--generate", "euclid", "lsst", "--properties", "magnitude", "size"]
    assert train(pairs, out, *asked, "--steps", 24, "--report-steps", 12) == 0
    return out


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "made.zarr"
    assert generate(trained / "bridge", out, "--magnitude", 22.5) == 0
    return out


def stored(store):
    return {name: np.asarray(array[...]) for name, array in zarr.open_group(store, mode="r").arrays()}


def test_training_leaves_a_generator_that_has_learnt(trained, pairs):
    log = losses(trained)
    # it learns, if little in so few steps
    assert log[-1]["validation_loss"] < log[0]["validation_loss"]
    assert 0 < log[-1]["validation_energy"] < 1
    card = load_checkpoint(trained / "bridge").card
    assert card.generation is not None
    assert card.generation.ends == ("lsst", "euclid")  # in the problem's order
    assert card.network.image_channels == 4 and not card.network.conditions
    known = read_properties(pairs, ("magnitude",), 0, 12)
    assert card.generation.properties["magnitude"][0] == pytest.approx(np.nanmean(known), abs=2e-4)
    assert card.generation.noise["lsst"]["g"] == pytest.approx(tiny.SIGMA["g"])
    assert card.objective.noise == card.generation.sky(card.problem) > 0.05


def test_the_store_is_a_pair_store_with_a_table_of_what_was_asked_for(made):
    pairs = read_pairs(str(made))
    assert {end: values.shape for end, values in pairs.ends.items()} == {
        "lsst": (20, 3, 64, 64),
        "euclid": (20, 1, 64, 64),
    }
    assert pairs.pixel_scale == {"lsst": 0.1, "euclid": 0.1}
    assert pairs.noise["euclid"] == pytest.approx({"VIS": tiny.SIGMA["VIS"]})
    table = pq.read_table(str(made).replace(".zarr", ".parquet"))
    assert table["id"].to_pylist() == read_ids(str(made))
    assert set(table["magnitude"].to_pylist()) == {22.5} and set(table["size"].to_pylist()) == {None}
    assert np.isnan(read_properties(str(made), ("redshift",), 0, 3)).all()


def test_a_longer_store_begins_with_the_shorter_one(made, trained, tmp_path):
    longer = tmp_path / "made.zarr"
    assert generate(trained / "bridge", longer, "--magnitude", 22.5, count=33) == 0
    for name, values in stored(made).items():
        assert np.array_equal(stored(longer)[name][:20], values)


def test_a_store_goes_on_where_it_was_killed_and_is_the_same(made, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(blocks, "ROWS", 8)
    whole, broken = tmp_path / "made.zarr", tmp_path / "broken" / "made.zarr"
    assert generate(trained / "bridge", whole, "--magnitude", 22.5) == 0
    draw: Any = vars(blocks)["generate"]
    drawn: list[int] = []

    def killed(model, rows, *rest):
        drawn.append(rows[0])
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(model, rows, *rest)

    monkeypatch.setattr(blocks, "generate", killed)
    assert generate(trained / "bridge", broken, "--magnitude", 22.5) == 130
    assert generate(trained / "bridge", broken, "--magnitude", 22.5) == 0
    assert drawn == [0, 8, 16, 16]
    assert tiny.files_of(broken) == tiny.files_of(whole)
    for name, values in stored(made).items():
        assert np.array_equal(stored(whole)[name], values)
    capsys.readouterr()
    assert generate(trained / "bridge", broken, "--magnitude", 22.5) == 0
    assert "20 pairs, there already" in capsys.readouterr().out
    said = refused(capsys, *generation(trained / "bridge", broken, "--magnitude", 22.5, "--seed", 7))
    assert "attributes.seed 0, but this one would have attributes.seed 7" in said


def test_a_checkpoint_that_has_changed_meanwhile_is_refused(trained):
    with pytest.raises(ValueError, match=r"has the hash \w+, but this store was begun with 000000000000"):
        ready_generator(str(trained / "bridge"), "0" * 64, "float32")


def test_either_precision_may_follow_the_other_in_a_process(made, trained, tmp_path):
    exact = tmp_path / "made.zarr"
    assert generate(trained / "bridge", exact, "--magnitude", 22.5, "--precision", "float32", count=4) == 0
    found, rounded = stored(exact)["euclid"], stored(made)["euclid"][:4]
    assert np.abs(found - rounded).mean() < 0.2 * np.abs(found).mean()
    assert not np.array_equal(found, rounded)


def test_another_seed_makes_other_pairs(made, trained, tmp_path):
    other = tmp_path / "made.zarr"
    assert generate(trained / "bridge", other, "--magnitude", 22.5, "--seed", 1) == 0
    assert not np.array_equal(stored(other)["euclid"], stored(made)["euclid"])


def test_a_bridge_and_a_generator_of_one_end_are_trained_on_what_was_made(made, tmp_path):
    assert train(made, tmp_path / "bridge", "--steps", 1) == 0
    one = ["--bridge", "diffusion", "--generate", "euclid"]
    assert train(made, tmp_path / "one", *one, "--steps", 1) == 0
    assert generate(tmp_path / "one" / "bridge", tmp_path / "one.zarr", count=3) == 0
    found = stored(tmp_path / "one.zarr")
    assert np.isnan(found["lsst"]).all() and np.isfinite(found["euclid"]).all()
    # what it lacks is no hindrance to another of its kind
    assert generate(tmp_path / "one" / "bridge", tmp_path / "many.zarr", count=16) == 0
    assert train(tmp_path / "many.zarr", tmp_path / "again", *one, "--steps", 1) == 0


def test_what_a_generator_cannot_do_is_refused_before_anything_is_written(trained, pairs, tmp_path, capsys):
    out = tmp_path / "out"
    said = refused(capsys, *generation(trained / "bridge", out, "--redshift", 1))
    assert "--redshift 1, but checkpoint bridge was trained with magnitude, size" in said
    said = refused(capsys, *generation(trained / "bridge", out, "--magnitude", 40))
    assert "--magnitude 40, but checkpoint bridge knows what lies within 4 standard deviations" in said
    assert "--size" in refused(capsys, *generation(trained / "bridge", out, "--size", 1e-300))
    assert "less than 18446744073709551616" in refused(capsys, *generation(trained / "bridge", out, "--seed", 2**64))
    table = tmp_path / "out.parquet"
    pq.write_table(pa.table({"precious": [1]}), table)
    assert "its table would replace" in refused(capsys, *generation(trained / "bridge", out))
    assert pq.read_table(table).column_names == ["precious"]
    said = refused(capsys, *generation("mosaic-v2", out))
    assert "mosaic-v2 translates images and makes none of its own" in said
    evaluate = ["evaluate", "--pairs", pairs, "--checkpoint", str(trained / "bridge"), "--out", str(out)]
    assert "makes images from noise and translates none" in refused(capsys, *evaluate)
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--properties", "size"], "--properties size are of generators"),
        (["--generate", "euclid"], "--bridge brownian begins with an observed one"),
        (["--generate", "euclid", "--bridge", "diffusion", "--to", "lsst"], "--to: of translation"),
        (["--generate", "euclid", "--bridge", "diffusion", "--crop", "32"], "--crop: of translation"),
        (["--generate", "vis", "--bridge", "diffusion"], "'vis' is not an endpoint"),
        (["--generate", "lsst", "--bridge", "diffusion", "--properties", "redshift"], "it needs redshift or z"),
        (["--generate", "lsst", "--bridge", "diffusion", "--properties", "colour"], "colour or mag_g and mag_i"),
        (["--generate", "lsst", "--bridge", "diffusion", "--checkpoint", "mosaic-v2"], "brings its own problem"),
    ],
)
def test_a_training_that_asks_for_what_cannot_be_is_refused(pairs, tmp_path, capsys, more, message):
    assert message in refused(capsys, *training(pairs, tmp_path / "out", "--steps", 1, *more))


def test_a_store_without_a_table_has_no_properties(tmp_path):
    store = tiny.write_pairs(tmp_path / "bare.zarr", 3)
    assert read_properties(store, (), 0, 3).shape == (3, 0)
    with pytest.raises(ValueError, match=r"no table .*bare.parquet beside it, which would say size"):
        read_properties(store, ("size",), 0, 3)


def test_properties_follow_the_names_of_pairs_and_not_their_places(pairs):
    known = read_properties(pairs, ("size", "magnitude"), 0, 16)
    assert math.isnan(known[0, 0]) and np.isfinite(known[1:]).all()
    table = {row["id"]: row for row in pq.read_table(pairs.replace(".zarr", ".parquet")).to_pylist()}
    expected = [table[name]["re"] for name in read_ids(pairs)[4:6]]
    assert read_properties(pairs, ("size",), 4, 6)[:, 0] == pytest.approx(expected)
