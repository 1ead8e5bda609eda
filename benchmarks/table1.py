"""Who translates best at equal data and time: adversarial networks, diffusion, AS-Bridge's objectives, or ours.

    python -m benchmarks.table1 --train ../shared/data/pairs/train_regular.zarr
        --test ../shared/data/pairs/test_regular.zarr --runs runs/table1 --out benchmarks/results

AS-Bridge's whole table 1: pix2pix, SPADE, OASIS, Palette, joint diffusion, AS-Bridge, and ours.
Each is trained for `--seconds` of processor time a direction, on one thread; a network that learns both directions at
once gets both shares. What is trained stays in `--runs`: run again, it is not trained again. The last row is a shipped
checkpoint, which was trained for hours. Scores are the energy score as published and fair (K samples), CRPS in units of
the sky noise, spread/skill in the display and share of pixels in the 68% interval, with 95% intervals from drawing
the judged pairs anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.objectives import Entrant, drawn_by, entrants, train
from benchmarks.samplers import draws as drawn_in_batches
from benchmarks.samplers import part, rho
from surveybridge.bridge_core.checkpoint import load_checkpoint, save_checkpoint
from surveybridge.bridge_core.comparators.budget import Budget
from surveybridge.bridge_core.comparators.comparator import (
    WIDTHS,
    Comparator,
    ComparatorCard,
    load_comparator,
    new_network,
    save_comparator,
)
from surveybridge.bridge_core.comparators.shape import Shape
from surveybridge.bridge_core.comparators.training import AdversarialRecipe, AdversarialTraining
from surveybridge.bridge_core.evaluation import LEVELS, PIXEL_SUMS, REGIONS, PixelMeasures, PixelSums, image_scores
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Direction, Endpoint, Problem
from surveybridge.bridge_core.sampler import boot, sample
from surveybridge.bridge_core.stretch import Stretch
from surveybridge.jobs.evaluating.stages import display_stretch
from surveybridge.jobs.evaluating.summary import draws, in_words, with_interval
from surveybridge.jobs.training.card import asked_problem
from surveybridge.storage.pairs import Pairs, read_pairs

BRIDGES = {
    "palette": "palette",
    "joint": "joint diffusion",
    "asbridge-eps": "eps",
    "asbridge-grad": "grad",
    "ours": "edm",
}
"""Entrants of `benchmarks.objectives`, by their names here."""
SHIPPED = {"mosaic": "mosaic-v2", "cutout": "cutout-v1"}
"""Checkpoint of each grid that is told no conditions, and has seen such pairs as these."""
VALIDATION = 64
"""Pairs at the end of the training store that adversarial networks are validated on."""
REPORT_STEPS = 100
SHIPPED_STEPS = 6
AT_ONCE = 50
"""Pairs that are judged at a time."""
REGION_MEASURES = ("crps", "spread_skill_display")

Sampler = Callable[[Pairs, Direction], Tensor]
"""Pairs and direction -> samples [K, N, C, H, W] in the unit of the wanted end."""


@dataclass(frozen=True)
class Trained:
    """A rival that can be drawn from, and what it cost."""

    name: str
    sampler: Sampler
    cost: Mapping[str, Any]


def main() -> None:
    """Train what is not trained yet, judge all, print a line for each direction, and write table1.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="pair store to learn from")
    parser.add_argument("--test", required=True, help="pair store to be judged on")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/table1"),
        help="folder of what is trained; another one for another budget",
    )
    parser.add_argument("--rivals", nargs="+", default=[*WIDTHS, *BRIDGES, "shipped"])
    parser.add_argument("--grid", choices=list(SHIPPED), default="mosaic", help="mosaic, or the cutouts of the paper")
    parser.add_argument("--seconds", type=float, default=3600, help="processor seconds of training a direction")
    parser.add_argument("--steps", type=int, help="steps a direction instead")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--base", type=int, default=16, help="channels of the first stage of bridges and diffusion")
    parser.add_argument("--width", type=int, help="the same of the adversarial networks (default: that of each method)")
    parser.add_argument("--limit", type=int, help="pairs that are judged (default: all)")
    parser.add_argument("--samples", type=int, default=5, help="K")
    parser.add_argument("--out", type=Path, help="folder for table1.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problem = asked_problem(None, None, arguments.train)
    training = read_pairs(arguments.train, arguments.grid, problem=problem.table)
    judged = read_pairs(arguments.test, arguments.grid, stop=arguments.limit, problem=problem.table)
    display = display_stretch(judged)
    rows = []
    print(f"{len(training)} pairs to learn from, {len(judged)} to judge, K = {arguments.samples}")
    print("rival         seed direction    | energy score as published, fair | bright: spread/skill | CRPS | in 68%")
    for name in arguments.rivals:
        for seed in arguments.seeds[: 1 if name == "shipped" else None]:
            rival = trained(name, seed, problem, training, arguments)
            for direction in problem.directions[::-1]:
                row = {"rival": name, "seed": seed, "direction": str(direction)} | dict(rival.cost)
                row |= judge(rival.sampler, judged, direction, display[direction.wanted.name])
                rows.append(row)
                print(line_of(row), flush=True)
            if arguments.out:
                write(arguments, rows, "table1.json")


def write(asked: argparse.Namespace, rows: list[dict[str, Any]], name: str) -> None:
    """Write what is judged so far to a file of `--out`."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(asked).items()}
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / name).write_text(json.dumps({"asked": settings, "rows": rows}, indent=1) + "\n")


def trained(name: str, seed: int, problem: Problem, pairs: Pairs, asked: argparse.Namespace) -> Trained:
    """Train a rival, or find it trained."""
    path = asked.runs / f"{name}-{seed}"
    if name == "shipped":
        model = load_checkpoint(SHIPPED[asked.grid]).to("cpu", "bfloat16")
        return Trained(name, lambda some, way: shipped_samples(model, some, way, asked.samples), {})
    if name in WIDTHS:
        if not path.with_suffix(".json").is_file():
            train_adversarial(name, seed, problem, pairs, asked)
        comparator = load_comparator(path)
        cost = comparator.card.provenance
        return Trained(name, lambda some, way: drawn_from(comparator, some, way, asked.samples), cost)
    one = replace(entrant(name, asked.base, problem), grid=asked.grid)
    if not path.with_suffix(".json").is_file():
        # it learns both directions at once
        budget = Budget(steps=2 * asked.steps) if asked.steps else Budget(seconds=2 * asked.seconds)
        model, steps = train(one, problem, split(pairs)[0], replace(budget, seed=seed))
        size = sum(value.numel() for value in model.network.parameters())
        cost = {"steps": steps, "images": 16 * steps, "parameters": size}
        save_checkpoint(replace(model.card, provenance=cost), model.network.state_dict(), path)
    model = load_checkpoint(path)
    return Trained(name, lambda some, way: bridge_samples(model, one, some, way, asked.samples), model.card.provenance)


def entrant(name: str, base: int, problem: Problem) -> Entrant:
    """Return the entrant of `benchmarks.objectives` that goes by another name here."""
    if name not in BRIDGES:
        raise SystemExit(f"{name!r} is not one of {', '.join([*WIDTHS, *BRIDGES, 'shipped'])}")
    return next(one for one in entrants(base, problem) if one.name == BRIDGES[name])


def displayed(problem: Problem, pairs: Pairs) -> Problem:
    """Return the problem in AS-Bridge's display, on the grid of the pairs."""
    display = display_stretch(pairs)
    ends = [
        replace(end, stretch=display[end.name], pixel_scale=pairs.pixel_scale[end.name]) for end in problem.endpoints
    ]
    return problem.with_endpoints(ends)


def units(problem: Problem, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return both ends of pairs in network units, float32 [N, C, H, W]."""
    first, second = (end.forward(torch.from_numpy(pairs.ends[end.name]), problem.channels) for end in problem.endpoints)
    return first, second


def split(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """Return the pairs to train on, and those to validate on, which no rival is trained on."""
    held_out = min(VALIDATION, len(pairs) // 4)
    return part(pairs, slice(0, -held_out)), part(pairs, slice(-held_out, None))


def train_adversarial(name: str, seed: int, problem: Problem, pairs: Pairs, asked: argparse.Namespace) -> None:
    """Train both directions of an adversarial method, with a log of each; an interrupted training goes on."""
    shown = displayed(problem, pairs)
    ends, kept = (units(shown, some) for some in split(pairs))
    side = ends[0].shape[-1]
    budget = Budget(steps=asked.steps, seed=seed) if asked.steps else Budget(seconds=asked.seconds, seed=seed)
    networks, shapes, cost = {}, {}, {"steps": 0, "images": 0, "parameters": 0}
    for direction in shown.directions:
        shape = Shape.of(direction, side, asked.width or WIDTHS[name])
        training = AdversarialTraining(
            new_network(name, shape, seed), AdversarialRecipe(budget, roll=asked.grid == "mosaic")
        )
        state = asked.runs / f"{name}-{seed}-{direction.index}.state.safetensors"
        if state.is_file():
            training.load(state)
        log = state.with_name(f"{name}-{seed}-{direction.index}.log.csv")
        for losses in training.run(shown, direction, ends):
            if losses.step % REPORT_STEPS == 0:
                training.save(state)
                with log.open("a") as file:
                    file.write(f"{losses.step},{losses.generator:.5g},{losses.critic:.5g}")
                    file.write(f",{training.validation(direction, kept):.5g}\n")
        training.save(state)
        networks[str(direction)], shapes[str(direction)] = training.finished(), shape
        cost["steps"] += training.step
        cost["images"] += training.step * training.recipe.batch_size // 2
        cost["parameters"] += sum(value.numel() for value in training.network.generator.parameters())
    save_comparator(ComparatorCard(name, shown, shapes, cost), networks, asked.runs / f"{name}-{seed}")


def drawn_from(comparator: Comparator, pairs: Pairs, direction: Direction, samples: int) -> Tensor:
    """Return samples of a comparator in the unit of the wanted end."""
    problem = comparator.card.problem
    there = problem.direction(str(direction))
    x1 = there.observed.forward(torch.from_numpy(pairs.ends[there.observed.name]), problem.channels)
    drawn = comparator.sample(x1, there, samples, torch.Generator().manual_seed(0))
    return there.wanted.inverse(drawn)


def bridge_samples(model: Model, one: Entrant, pairs: Pairs, direction: Direction, samples: int) -> Tensor:
    """Return samples of a bridge or a diffusion in the unit of the wanted end."""
    return drawn_by(model, one, pairs, model.card.problem.direction(str(direction)), samples)


def shipped_samples(model: Model, pairs: Pairs, direction: Direction, samples: int) -> Tensor:
    """Return samples of the shipped checkpoint as `surveybridge translate` draws them."""
    direction = model.card.problem.direction(str(direction))
    steps = rho(2.0)(model.card.bridge, SHIPPED_STEPS)

    def draw(x1: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(x1.shape, generator=generator)
        start = boot(model.card.bridge, x1, steps[0], noise)
        return sample(
            model, x1, direction, steps, start=start, noise=lambda _: noise, order=2, renoise=True, precision="bfloat16"
        )

    return drawn_in_batches(model, pairs, direction, samples, draw)


def judge(sampler: Sampler, pairs: Pairs, direction: Direction, display: Stretch) -> dict[str, Any]:
    """Return the measures of a rival in one direction, each with its interval."""
    wanted = direction.wanted
    scores: dict[str, list[Any]] = {"energy_score": [], "energy_score_fair": []}
    sums: list[PixelSums] = []
    samples = 0
    for some in batches_of(pairs):
        drawn, truth = sampler(some, direction), torch.from_numpy(some.ends[wanted.name])
        samples = len(drawn)
        found = image_scores(drawn, truth, wanted.bands, display)
        for name, values in scores.items():
            values.append(found[name])
        sums.append(PixelSums.of(drawn, truth, noise_of(pairs, wanted), wanted.bands, display))
    choices = draws(len(pairs))
    row: dict[str, Any] = {}
    for name, values in scores.items():
        each = np.concatenate(values)
        row[name] = with_interval(each.mean(), choices @ each / len(each))
    for region in ("bright", "sky"):
        r = REGIONS.index(region)
        by_pair = {
            name: torch.cat([getattr(one, name)[:, :, r].sum(1) for one in sums]).numpy()
            for name in (*PIXEL_SUMS, "within")
        }
        whole = PixelMeasures.of(samples, **{name: values.sum(0) for name, values in by_pair.items()})
        again = PixelMeasures.of(samples, **{name: np.tensordot(choices, v, 1) for name, v in by_pair.items()})
        for name in REGION_MEASURES:
            row[f"{name}_{region}"] = with_interval(getattr(whole, name), getattr(again, name))
        level = LEVELS.index(0.68)
        row[f"inside_68_{region}"] = with_interval(whole.coverage[level], again.coverage[:, level])
    return row


def batches_of(pairs: Pairs) -> Iterator[Pairs]:
    """Yield the pairs in parts of `AT_ONCE`."""
    for first in range(0, len(pairs), AT_ONCE):
        yield part(pairs, slice(first, first + AT_ONCE))


def noise_of(pairs: Pairs, end: Endpoint) -> Tensor:
    """Return the sky noise of each band."""
    return torch.tensor([pairs.noise[end.name][band] for band in end.bands])


def line_of(row: Mapping[str, Any]) -> str:
    """Write a row for a person; nothing is known of bright pixels where there are none."""
    energies = " ".join(in_words(row[name]) for name in ("energy_score", "energy_score_fair"))
    bright = " | ".join(in_words(row[f"{name}_bright"]) for name in ("spread_skill_display", "crps", "inside_68"))
    return f"{row['rival']:13s} {row['seed']:4d} {row['direction']} | {energies} | {bright}"


if __name__ == "__main__":
    main()
