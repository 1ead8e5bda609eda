"""One worker of a training: it reads its own shards, and any number of workers takes the same steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.training import Recipe
from surveybridge.cluster.training import Session
from surveybridge.jobs.training import worker
from surveybridge.jobs.training.card import asked_problem, make_card
from surveybridge.jobs.training.images import Images
from surveybridge.jobs.training.worker import Shard, out_of_patience, read_shard, shard_range
from surveybridge.storage.pairs import read_pairs
from tests import tiny
from tests.bridge_core.models import make_card as make_tiny_card
from tests.jobs.training_runs import TOLERANCE, largest_difference, settings_of, train

PAIRS, HELD_OUT, SHARDS = 27, 9, 4
FEW = 4
"""Held-out pairs where it does not matter how many there are: to judge them takes longer than to train."""
SIZES = {"base": 8, "batch_size": 8, "shards": SHARDS, "validation": HELD_OUT, "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return tiny.write_pairs(tmp_path_factory.mktemp("pairs") / "tiny.zarr", PAIRS)


def settings(pairs: str, **more: Any) -> dict[str, Any]:
    """What the job hands to its workers."""
    return settings_of(pairs, PAIRS, **(SIZES | {"steps": 6, "report_steps": 2} | more))


# ---- shards


@pytest.mark.parametrize(("rows", "shards"), [(18, 4), (7, 7), (1000, 8), (3, 8)])
def test_shards_hold_every_row_once(rows, shards):
    ranges = [shard_range(5, 5 + rows, index, shards) for index in range(shards)]
    assert [row for first, last in ranges for row in range(first, last)] == list(range(5, 5 + rows))
    sizes = [last - first for first, last in ranges]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_own_every_shard_once(world):
    owned = [Session(rank, world, torch.device("cpu")).shards(SHARDS) for rank in range(world)]
    assert sorted(shard for shards in owned for shard in shards) == list(range(SHARDS))
    assert all(shards for shards in owned)


def make_shard(index: int = 0, count: int = 10, seed: int = 0) -> Shard:
    images = torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    return Shard(index, seed, Images((images, images)), Images((images[:0], images[:0])))


@pytest.mark.parametrize("count", [2, 4, 32])
def test_every_epoch_of_a_shard_is_a_permutation_of_its_own(count):
    shard = make_shard()
    rows = torch.cat([shard.rows(step, count) for step in range(max(20, 40 // count))])
    epochs = [rows[first : first + 10].tolist() for first in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # a resume begins in the middle
    assert torch.equal(make_shard().rows(3, count), rows[3 * count : 4 * count])


def test_what_a_shard_gives_depends_on_seed_step_and_shard_only():
    card, recipe = make_tiny_card(Bridge.brownian()), Recipe(batch_size=8, shards=4)
    first, again = (make_shard(1, seed=5).draw(card, recipe, 7) for _ in range(2))
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ("first", "second", "t", "eps"))
    assert first.index.tolist() == [1, 0]
    for shard, step in ((make_shard(2, seed=5), 7), (make_shard(1, seed=6), 7), (make_shard(1, seed=5), 8)):
        assert not torch.equal(shard.draw(card, recipe, step).eps, first.eps)


def test_a_worker_reads_its_own_rows_only(pairs, monkeypatch):
    config = settings(pairs)
    card = make_card(config, asked_problem(None, None, pairs), read_pairs(pairs, stop=4), {})
    seen: list[tuple[int, int]] = []

    def spy(url: str, grid: str, start: int, stop: int, **problem: Any) -> Any:
        seen.append((start, stop))
        return read_pairs(url, grid, start, stop, **problem)

    monkeypatch.setattr(worker, "read_pairs", spy)
    shard = read_shard(config, card, 1)
    assert seen == [(4, 9), (20, 22)]  # of 18 for training, then of 9 for validation
    assert [end.shape for end in shard.training.planes] == [(5, 3, 64, 64), (5, 1, 64, 64)]
    assert [len(end) for end in shard.validation.planes] == [2, 2]


def test_fewer_held_out_pairs_than_shards_are_dealt_too(pairs):
    config = settings(pairs, validation=2)
    card = make_card(config, asked_problem(None, None, pairs), read_pairs(pairs, stop=4), {})
    assert [len(read_shard(config, card, index).validation) for index in range(SHARDS)] == [0, 1, 0, 1]


# ---- ranks: processes of this machine that exchange over gloo as Ray Train's do


@pytest.fixture(scope="module")
def alone(tmp_path_factory, pairs) -> Callable[[int], list[dict[str, float]]]:
    """Curve of one worker, by --accumulate."""
    curves: dict[int, list[dict[str, float]]] = {}

    def curve(accumulate: int) -> list[dict[str, float]]:
        if accumulate not in curves:
            folder = tmp_path_factory.mktemp("alone") / "run"
            curves[accumulate] = train(1, folder, settings(pairs, accumulate=accumulate, validation=FEW))
        return curves[accumulate]

    return curve


@pytest.mark.long
@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (3, SHARDS)])
def test_any_number_of_ranks_has_the_curve_of_one(tmp_path, pairs, alone, world, accumulate):
    curve = train(world, tmp_path / "run", settings(pairs, accumulate=accumulate, validation=FEW))
    assert [row["workers"] for row in curve] == [world] * 3
    difference = largest_difference(alone(accumulate), curve)
    print(f"\n{world} ranks, --accumulate {accumulate}: curves differ by {difference:.1e}")
    assert difference < TOLERANCE


@pytest.mark.long
def test_a_resume_on_another_number_of_ranks_goes_on_with_the_curve(tmp_path, pairs, alone):
    config = settings(pairs, accumulate=SHARDS, validation=FEW)
    train(1, tmp_path / "run", config)
    for late in sorted((tmp_path / "run").glob("*"))[1:]:
        for file in late.iterdir():
            file.unlink()
        late.rmdir()
    curve = train(2, tmp_path / "run", config)
    assert [row["workers"] for row in curve] == [1, 2, 2]
    assert largest_difference(alone(SHARDS), curve) < TOLERANCE


@pytest.mark.long
def test_passes_change_nothing_but_rounding(tmp_path, pairs, alone):
    assert largest_difference(alone(1), alone(SHARDS)) < TOLERANCE


@pytest.mark.long
def test_reports_hold_throughput_and_the_wait_for_data(alone):
    for row in alone(1):
        assert row["pairs"] == 8 * row["step"]
        assert row["pairs_per_second"] > 0 and row["data_seconds"] >= 0
    # the first batch is waited for, the others are drawn meanwhile
    assert sum(row["data_seconds"] for row in alone(1)) < alone(1)[-1]["seconds"]


def test_a_run_repeats_bit_by_bit(tmp_path, pairs):
    config = settings(pairs, steps=4, validation=FEW)
    for name in ("one", "two"):
        train(1, tmp_path / name, config)
    one, two = (load_file(tmp_path / name / "000004" / "state.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one if name != "seconds")


@pytest.mark.parametrize(
    ("energies", "patience", "stop"),
    [
        ([], 1, False),
        ([3.0, 2.0, 1.0], 1, False),
        ([3.0, 2.0, 2.0], 1, True),
        ([3.0, 1.0, 2.0, 2.5], 2, True),
        ([3.0, 1.0, 2.0, 0.5], 2, False),
        ([3.0, 1.0], 2, False),
        ([1.0, 2.0, 3.0], None, False),
    ],
)
def test_training_ends_when_the_validation_energy_has_not_fallen_for_so_many_reports(energies, patience, stop):
    assert out_of_patience([{"validation_energy": energy} for energy in energies], patience) is stop
