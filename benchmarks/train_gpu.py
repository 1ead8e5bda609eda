"""Train on a GPU on scenes that are drawn there: nothing is read but a checkpoint and parameters.

    python -m benchmarks.train_gpu --minutes 9 --out benchmarks/results/gpu-mosaic     # no Ray, Zarr or Astropy needed
    python -m benchmarks.train_gpu --device cpu --quick --out /tmp/gpu-mosaic          # the same code, small

New scenes go into a reservoir of pairs, from which batches are drawn at random, so that the windows of a scene do not
meet in a batch; after a few uses they make room for others. It writes NAME.safetensors, NAME.json and NAME.loss.csv.
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surveybridge.bridge_core.checkpoint import load_checkpoint, save_checkpoint
from surveybridge.bridge_core.conditions import QUANTITIES, ConditionRanges
from surveybridge.bridge_core.context import PairConditions, observed_noise
from surveybridge.bridge_core.model import Card, Model, start_weights
from surveybridge.bridge_core.network import UNet, channels_last
from surveybridge.bridge_core.problem import to_channels
from surveybridge.bridge_core.training import (
    Batch,
    Ends,
    Recipe,
    TrainState,
    bridge_loss,
    filled,
    observed_pixels,
    wanted_of,
)
from surveybridge.jobs.simulating.scenes import ScenePairs, SceneSpec, draw_pairs

VALIDATION_SEED = 9_000_001
"""Seed of the scenes by which the training is judged."""


@dataclass(frozen=True)
class Sizes:
    """Pairs held, pairs of a batch, scenes drawn at a time, how often a pair is used, and scenes for validation."""

    reservoir: int = 65_536
    batch: int = 512
    scenes: int = 64
    uses: float = 4.0
    validation: int = 64
    report_seconds: float = 30.0


QUICK = Sizes(reservoir=64, batch=16, scenes=2, uses=2.0, validation=2, report_seconds=5.0)


def main() -> None:
    """Train, and write checkpoint and log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="mosaic-v2", help="weights to begin with")
    parser.add_argument("--name", default="mosaic-v3")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and its log")
    arguments = parser.parse_args()
    sizes, device = QUICK if arguments.quick else Sizes(), torch.device(arguments.device)
    start = load_checkpoint(arguments.checkpoint)
    recipe = Recipe(learning_rate=arguments.learning_rate, batch_size=sizes.batch, shards=1, seed=arguments.seed)
    card = card_of(start, arguments, recipe)
    state, rows, seen = train(start, card, recipe, sizes, arguments.minutes, device)
    best = float(rows[-1]["ema_width"])
    card = replace(card, conditions=seen, provenance=card.provenance | {"log_end": rows[-1]})
    arguments.out.mkdir(parents=True, exist_ok=True)
    weights = save_checkpoint(card, state.averages[best], arguments.out / arguments.name)
    with (arguments.out / f"{arguments.name}.loss.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{weights}: {rows[-1]['step']} steps, {rows[-1]['pairs']} pairs, validation {rows[-1]['validation_loss']}")


def card_of(start: Model, arguments: argparse.Namespace, recipe: Recipe) -> Card:
    """Return the card of a network that is told conditions and goes on from a checkpoint."""
    return replace(
        start.card,
        name=arguments.name,
        network=replace(start.card.network, conditions=True),
        provenance={
            "command": f"python -m benchmarks.train_gpu --checkpoint {arguments.checkpoint} --name {arguments.name} "
            f"--minutes {arguments.minutes:g} --learning-rate {arguments.learning_rate:g} --seed {arguments.seed}",
            "pairs": "scenes drawn on the device",
            "recipe": asdict(recipe),
            "from": {"name": start.card.name, "sha256": start.sha256},
        },
        discriminant=None,
        conditions=None,
    )


def train(
    start: Model, card: Card, recipe: Recipe, sizes: Sizes, minutes: float, device: torch.device
) -> tuple[TrainState, list[dict[str, Any]], ConditionRanges]:
    """Train for some minutes of wall time; returns the state, the log and the conditions that were seen."""
    network = UNet(card.network)
    network.load_state_dict(start_weights(start, card.network))
    state = TrainState(channels_last(network.to(device)), recipe)
    reservoir = Reservoir(card, recipe.seed, sizes, device)
    held_out = to_network(card, draw_pairs(SceneSpec(), VALIDATION_SEED, range(sizes.validation), device))
    generator, on_device = torch.Generator().manual_seed(recipe.seed), torch.Generator(device).manual_seed(recipe.seed)
    rows: list[dict[str, Any]] = []
    loss = torch.zeros((), device=device)
    began = reported = time.monotonic()
    last = 0
    while (progress := (time.monotonic() - began) / (60 * minutes)) < 1 or not rows:
        reservoir.refill(state.step * sizes.batch)
        batch = make_batch(card, reservoir.draw(generator), generator, on_device, train=True)
        step_loss = bridge_loss(state.network, card, batch, recipe.bright_weight)
        step_loss.backward()  # type: ignore[no-untyped-call]
        state.update(progress)
        loss += step_loss.detach()
        now = time.monotonic()
        if now - reported > sizes.report_seconds or now - began > 60 * minutes:
            losses = {width: judge(card, average, held_out, device) for width, average in state.averages.items()}
            best = min(losses, key=losses.__getitem__)
            rows.append(
                {
                    "step": state.step,
                    "seconds": round(now - began, 1),
                    "pairs": state.step * sizes.batch,
                    "drawn": reservoir.drawn,
                    "loss": round(float(loss) / (state.step - last), 6),
                    "validation_loss": round(losses[best], 6),
                    "ema_width": best,
                }
            )
            print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
            loss, last, reported = torch.zeros_like(loss), state.step, time.monotonic()
    return state, rows, reservoir.ranges()


@dataclass(frozen=True)
class Pairs:
    """Pairs in network units with what is known of them, N of them; on a device."""

    ends: Ends
    told: PairConditions

    def __len__(self) -> int:
        return len(self.ends[0])

    def rows(self, index: Tensor) -> Pairs:
        """Some of the pairs."""
        told = self.told
        return Pairs(
            (self.ends[0][index], self.ends[1][index]),
            PairConditions(
                (told.tables[0][index], told.tables[1][index]),
                (told.noise[0][index], told.noise[1][index]),
                told.registration[index],
            ),
        )

    @classmethod
    def join(cls, parts: list[Pairs]) -> Pairs:
        """All of them."""

        def both(pairs: list[Ends]) -> Ends:
            return torch.cat([one for one, _ in pairs]), torch.cat([other for _, other in pairs])

        told = [part.told for part in parts]
        return cls(
            both([part.ends for part in parts]),
            PairConditions(
                both([one.tables for one in told]),
                both([one.noise for one in told]),
                torch.cat([one.registration for one in told]),
            ),
        )


def to_network(card: Card, drawn: ScenePairs) -> Pairs:
    """Bring drawn pairs to network units, with what the network is told of them."""
    channels = card.network.image_channels
    planes, tables, noise = [], [], []
    for end in card.problem.endpoints:
        flux = getattr(drawn, end.name)
        planes.append(to_channels(end.fitted.forward(flux, end.bands), channels))
        tables.append(torch.stack([drawn.conditions[f"{end.name}_{name}"] for name in QUANTITIES], 1))
        sigma, gain = getattr(drawn, f"{end.name}_sigma"), drawn.conditions[f"{end.name}_gain"]
        noise.append(observed_noise(end, flux, sigma, gain, channels))
    registration = drawn.conditions["registration"]
    return Pairs((planes[0], planes[1]), PairConditions((tables[0], tables[1]), (noise[0], noise[1]), registration))


class Reservoir:
    """Pairs that are drawn as the training goes; each is used a few times, then another takes its place."""

    def __init__(self, card: Card, seed: int, sizes: Sizes, device: torch.device) -> None:
        self.card, self.seed, self.sizes, self.device = card, seed, sizes, device
        self.parts: list[Pairs] = []
        self.next_scene = self.drawn = 0
        self.pairs: Pairs | None = None

    def refill(self, used: int) -> None:
        """Draw scenes until the pairs that were used so far have not been used too often."""
        fewest = min(self.sizes.reservoir, 4 * self.sizes.batch)
        while self.drawn < max(fewest, used / self.sizes.uses):
            numbers = range(self.next_scene, self.next_scene + self.sizes.scenes)
            part = to_network(self.card, draw_pairs(SceneSpec(), self.seed, numbers, self.device))
            self.next_scene, self.drawn = numbers.stop, self.drawn + len(part)
            self.parts.append(part)
            while sum(map(len, self.parts)) > self.sizes.reservoir:
                self.parts.pop(0)
            self.pairs = None

    def draw(self, generator: torch.Generator) -> Pairs:
        """Draw a batch at random."""
        if self.pairs is None:
            self.pairs = Pairs.join(self.parts)
        rows = torch.randint(len(self.pairs), (self.sizes.batch,), generator=generator)
        return self.pairs.rows(rows.to(self.device))

    def ranges(self) -> ConditionRanges:
        """Return the conditions of the pairs that it holds."""
        problem, pairs = self.card.problem, Pairs.join(self.parts)
        values = {
            end.name: {name: table[:, row].cpu().numpy() for row, name in enumerate(QUANTITIES)}
            for end, table in zip(problem.endpoints, pairs.told.tables, strict=True)
        }
        return ConditionRanges.covering(values, {end.name: end.bands for end in problem.endpoints})


def make_batch(
    card: Card, pairs: Pairs, generator: torch.Generator, on_device: torch.Generator, *, train: bool
) -> Batch:
    """Turn the pairs, all in one of the eight ways, and draw the rest of a batch on their device."""
    channels, told, ends = card.network.image_channels, pairs.told, pairs.ends
    if train:
        # windows lie anywhere in a scene already: nothing is rolled
        first, second = turned(
            (torch.cat([ends[0], told.noise[0]], 1), torch.cat([ends[1], told.noise[1]], 1)), generator
        )
        ends = first[:, :channels], second[:, :channels]
        told = replace(told, noise=(first[:, channels:], second[:, channels:]))
    n, device = len(pairs), ends[0].device
    wanted = wanted_of(card.problem, n).to(device)
    known = torch.isfinite(torch.where(wanted.view(-1, 1, 1, 1).bool(), ends[1], ends[0]))
    t = card.objective.draw_steps(card.bridge, n, generator).to(device)
    eps = torch.randn(ends[0].shape, generator=on_device, device=device)
    told = told.dropped(on_device) if train else told
    context = told.context(card.problem, wanted, observed_pixels(ends, wanted))
    return Batch(filled(ends[0]), filled(ends[1]), known, wanted, t, eps, context.maps, context.vector, ends[0][:, :0])


def turned(planes: Ends, generator: torch.Generator) -> Ends:
    """Turn images of fluxes, all in one of the eight ways."""
    turn, flip = torch.randint(0, 4, (1,), generator=generator), torch.randint(0, 2, (1,), generator=generator)
    first, second = (torch.rot90(image, int(turn), (2, 3)) for image in planes)
    return (first.flip(3), second.flip(3)) if int(flip) else (first, second)


def judge(card: Card, weights: dict[str, Tensor], held_out: Pairs, device: torch.device) -> float:
    """Return the loss on scenes that are the same at every call."""
    network = channels_last(UNet(card.network).to(device))
    network.load_state_dict(weights)
    network.eval()
    losses = []
    with torch.inference_mode():
        for first in range(0, len(held_out), 256):
            rows = torch.arange(first, min(first + 256, len(held_out)), device=device)
            generator, on_device = torch.Generator().manual_seed(first), torch.Generator(device).manual_seed(first)
            batch = make_batch(card, held_out.rows(rows), generator, on_device, train=False)
            losses.append(float(bridge_loss(network, card, batch)) * len(rows))
    return sum(losses) / len(held_out)


if __name__ == "__main__":
    main()
