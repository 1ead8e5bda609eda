"""How many pairs per second a training step takes, and how long a training took to reach a validation score.

    python -m benchmarks.train --pairs ../shared/data/pairs/train_regular.zarr --out benchmarks/results/train.json
    python -m benchmarks.train --pairs ... --log runs/mosaic/loss.csv --energy 0.0155     # of a finished training

Network, objective and recipe are the defaults of `surveybridge train`, on its shards of the pairs. Every row takes
`--steps` steps after some for warming up; the numbers are medians over rounds that go through all rows in turn.
``data`` is the time for drawing and augmenting a batch, which a training does beside the step. Without `--log` a short
training is done here, with `--seconds` of steps, not counting its validation. Its scores say how fast this machine
learns, and nothing about a finished model.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.network import UNet, channels_last
from surveybridge.bridge_core.training import Batch, TrainState, bridge_loss
from surveybridge.cluster.training import Session
from surveybridge.jobs.diagnosing.machine import described_machine
from surveybridge.jobs.train import FIT_PAIRS, RATE, Config
from surveybridge.jobs.training.card import asked_problem, make_card
from surveybridge.jobs.training.worker import Shard, make_recipe, read_shard, validation_energy, validation_loss
from surveybridge.storage.pairs import read_pairs

WARM_UP = 2
CPU = torch.device("cpu")


@dataclass
class Training:
    """A training in this process, as `jobs.training.worker` does it on one worker."""

    card: Card
    shards: list[Shard]
    state: TrainState
    device: torch.device

    @classmethod
    def of(cls, settings: Mapping[str, Any], shards: list[Shard], device: torch.device) -> Training:
        """Start a training with a new network."""
        recipe = make_recipe(dict(settings))
        card = Card.from_json(settings["card"])
        torch.manual_seed(recipe.seed)
        return cls(card, shards, TrainState(channels_last(UNet(card.network).to(device)), recipe), device)

    def batch(self) -> Batch:
        """Return pairs and noise of the next step."""
        return Batch.join([shard.draw(self.card, self.state.recipe, self.state.step) for shard in self.shards])

    def step(self, batch: Batch, progress: float = 0.0) -> None:
        """Do the forward and backward pass, the update and the averages."""
        loss = bridge_loss(self.state.network, self.card, batch.to(self.device), self.state.recipe.bright_weight)
        loss.backward()
        self.state.update(progress)

    def settle(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Print a table and write train.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64], help="pairs a step, multiples of 16")
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=4, help="steps of each row and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--log", type=Path, help="loss.csv of a training")
    parser.add_argument("--seconds", type=float, default=120, help="length of the training without --log; 0 for none")
    parser.add_argument("--energy", type=float, help="validation energy score to reach (default: the best + 2%%)")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    settings = settings_of(arguments.pairs)
    shards = shards_of(settings)
    how = {name: getattr(arguments, name) for name in ("batches", "precisions", "steps", "rounds")}
    rows = rates(settings, shards, device, **how)
    log: list[Mapping[str, Any]] = []
    if arguments.log:
        with arguments.log.open(newline="") as file:
            log = list(csv.DictReader(file))
    elif arguments.seconds:
        log = list(short_training(settings, shards, device, arguments.seconds))
    reached = time_to(log, arguments.energy) if log else None
    if arguments.out:
        machine = described_machine() | {"threads": arguments.threads, "device": arguments.device}
        document: dict[str, Any] = {"machine": machine, "settings": how}
        document |= {"rates": rows, "log": str(arguments.log or "short training"), "time_to_score": reached}
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


def settings_of(pairs: str, **changes: Any) -> dict[str, Any]:
    """Return what `surveybridge train` hands its workers by default, with some changes."""
    settings = Config(pairs=pairs, out="unused", steps=1, **({"learning_rate": RATE} | changes)).model_dump()
    problem = asked_problem(settings["problem"], settings["to"], pairs)
    probe = read_pairs(pairs, settings["grid"], stop=FIT_PAIRS, problem=problem.table)
    card = make_card(settings, problem, probe, asdict(make_recipe(settings)))
    return settings | {"available": probe.stored, "card": card.to_json()}


def shards_of(settings: Mapping[str, Any]) -> list[Shard]:
    """Return all shards of the pairs, as one worker has them."""
    return [read_shard(dict(settings), Card.from_json(settings["card"]), k) for k in range(settings["shards"])]


def rates(
    settings: Mapping[str, Any],
    shards: list[Shard],
    device: torch.device,
    batches: Sequence[int],
    precisions: Sequence[str],
    steps: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """Return the pairs per second of each batch and precision."""
    rows: list[dict[str, Any]] = [{"batch": batch, "precision": p} for p in precisions for batch in batches]
    trainings = [Training.of({**settings, "batch_size": row["batch"]}, shards, device) for row in rows]
    taken: list[list[float]] = [[] for _ in rows]
    drawing: list[list[float]] = [[] for _ in rows]
    for _ in range(rounds):
        for k, (row, training) in enumerate(zip(rows, trainings, strict=True)):
            with arithmetic(row["precision"]):
                batch = training.batch()
                for _ in range(WARM_UP):
                    training.step(batch)
                training.settle()
                began = time.perf_counter()
                for _ in range(steps):
                    training.step(batch)
                training.settle()
                taken[k].append((time.perf_counter() - began) / steps)
            began = time.perf_counter()
            training.batch()
            drawing[k].append(time.perf_counter() - began)
    print("precision  batch | pairs/s | ms a step | data, ms")
    for row, times, data in zip(rows, taken, drawing, strict=True):
        row["seconds_a_step"], row["data_seconds"] = statistics.median(times), statistics.median(data)
        row["pairs_per_second"] = row["batch"] / row["seconds_a_step"]
        print(
            f"{row['precision']:9s} {row['batch']:6d} | {row['pairs_per_second']:7.4g} | "
            f"{1e3 * row['seconds_a_step']:9.1f} | {1e3 * row['data_seconds']:8.1f}",
            flush=True,
        )
    return rows


def arithmetic(precision: str) -> AbstractContextManager[Any]:
    """Return the training's own autocast, or none, since `bridge_loss` always takes bfloat16."""
    return nullcontext() if precision == "bfloat16" else patch("torch.autocast", lambda *_, **__: nullcontext())


def short_training(
    settings: Mapping[str, Any], shards: list[Shard], device: torch.device, seconds: float, reports: int = 5
) -> Iterator[dict[str, Any]]:
    """Train for so many seconds with the release recipe's schedule; return rows like those of a loss.csv."""
    training, session = Training.of(settings, shards, device), Session(0, 1, device)
    spent = 0.0
    for report in range(1, reports + 1):
        while True:  # one step at least
            began = time.perf_counter()
            training.step(training.batch(), min(spent / seconds, 1.0))
            training.settle()
            spent += time.perf_counter() - began
            if spent >= seconds * report / reports:
                break
        bright = training.state.recipe.bright_weight
        losses = {
            width: validation_loss(average, training.card, shards, session, bright)
            for width, average in training.state.averages.items()
        }
        best = min(losses, key=losses.__getitem__)
        energy = validation_energy(training.state.averages[best], training.card, shards, session, len(shards))
        row = {
            "step": training.state.step,
            "seconds": round(spent, 1),
            "pairs": training.state.step * settings["batch_size"],
        }
        row |= {"validation_loss": losses[best], "validation_energy": energy}
        print("  ".join(f"{name} {value:.5g}" for name, value in row.items()), flush=True)
        yield row


def time_to(log: Iterable[Mapping[str, Any]], energy: float | None) -> dict[str, Any]:
    """Return when a training's validation energy score was first as low as asked for."""
    rows = [{name: float(row[name]) for name in ("step", "seconds", "pairs", "validation_energy")} for row in log]
    best = min(row["validation_energy"] for row in rows)
    wanted = 1.02 * best if energy is None else energy
    first = next((row for row in rows if row["validation_energy"] <= wanted), None)
    if first is None:
        print(f"validation energy {wanted:.5g} was not reached; the best of {len(rows)} reports is {best:.5g}")
    else:
        when = f"{first['seconds']:.0f} s, {first['pairs']:.0f} pairs"
        print(f"validation energy {wanted:.5g} after {when}; best {best:.5g}")
    return {"validation_energy": wanted, "best": best, "first": first, "last": rows[-1]}


if __name__ == "__main__":
    main()
