"""What a network learns from each objective, bridge and network at equal training, judged on pairs it has not seen.

    python -m benchmarks.objectives --pairs ../shared/data/pairs/train_regular.zarr --out benchmarks/results

AS-Bridge's three objectives (`grad`, `maxnll`, `eps`) and ours (`edm`) on the Brownian bridge; two comparators of its
Table 1 on `Bridge.diffusion`: Palette (conditional diffusion from noise, Saharia et al. 2022) and joint diffusion (both
endpoints noised together, the observed one put back at every step, Song et al. 2021, sec. 5); `edm` with a network for
each direction alone; and `edm` with the published layout of the network (no stem, GroupNorm) at equal training *time*.
All see the same pairs in the same order with a batch of 32, and are sampled with second order, `NFE` calls. Intervals
(95%) are from drawing the judged pairs anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.samplers import draws, ends_of, judge, part
from surveybridge.bridge_core.comparators.budget import Budget
from surveybridge.bridge_core.evaluation import image_scores
from surveybridge.bridge_core.model import Card, Model
from surveybridge.bridge_core.network import UNet, channels_last
from surveybridge.bridge_core.problem import Direction, Problem
from surveybridge.bridge_core.sampler import boot, end_then_rho_steps, rho_steps, sample
from surveybridge.bridge_core.training import (
    Batch,
    Recipe,
    TrainState,
    augment,
    bridge_loss,
    step_generator,
    wanted_of,
)
from surveybridge.jobs.evaluating.stages import display_stretch
from surveybridge.jobs.train import FIT_PAIRS, Config
from surveybridge.jobs.training.card import asked_problem, make_card
from surveybridge.storage.pairs import Pairs, read_pairs

NFE = 20
DRAWS = 400


@dataclass(frozen=True)
class Entrant:
    """A network that is trained, and the point from which it is sampled.

    Parameters
    ----------
    objective, bridge, base, stem, norm
        As `surveybridge train` takes them.
    sigma_max
        Highest noise level of the sampler's grid.
    from_end
        Whether a call at the table's end stands before it (only for what predicts x0 there).
    wanted
        The only endpoint that it learns to translate to, or None for both.
    joint
        Noise both endpoints together.
    sigma_data
        Of the preconditioning of `edm`, network units; None for `surveybridge train`'s.
    grid
        Of the pairs.
    equal_time
        Train for as long as the first entrant takes, not for as many steps.
    """

    name: str
    objective: str
    bridge: str = "brownian"
    base: int = 16
    stem: int = 2
    norm: str = "pixel"
    bright_weight: float = 0.0
    sigma_max: float = 3.0
    from_end: bool = False
    wanted: str | None = None
    joint: bool = False
    sigma_data: float | None = None
    grid: str = "mosaic"
    equal_time: bool = False


def entrants(base: int, problem: Problem) -> list[Entrant]:
    """Return all entrants; the first one sets the time for those of equal time."""
    edm = Entrant("edm", "edm", base=base, bright_weight=4.0, sigma_max=2.0, from_end=True)
    noise = Entrant("palette", "eps", bridge="diffusion", base=base, sigma_max=20.0)
    return [
        edm,
        *(Entrant(name, name, base=base) for name in ("grad", "maxnll", "eps")),
        noise,
        replace(noise, name="joint diffusion", joint=True),
        replace(edm, name="edm, all pixels alike", bright_weight=0.0),
        replace(edm, name="edm, sampled as grad is", bright_weight=0.0, sigma_max=3.0, from_end=False),
        *(replace(edm, name=f"edm, sigma_data {s}", bright_weight=0.0, sigma_data=s) for s in (0.1, 0.15, 0.25)),
        *(replace(edm, name="edm, one direction", wanted=way.wanted.name) for way in problem.directions[::-1]),
        replace(edm, name="edm, published network", stem=1, norm="group", equal_time=True),
    ]


def main() -> None:
    """Train and judge each entrant, print a line for each direction, and write objectives.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--base", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--held-out", type=int, default=128, help="pairs at the end of the store that are judged")
    parser.add_argument("--samples", type=int, default=5, help="K")
    parser.add_argument("--only", nargs="+", default=None, help="names of the entrants to run (default: all)")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    problem, held_out = asked_problem(None, None, arguments.pairs), arguments.held_out
    pairs = read_pairs(arguments.pairs, "mosaic", problem=problem.table)
    training, judged = part(pairs, slice(0, -held_out)), part(pairs, slice(-held_out, None))
    everyone = entrants(arguments.base, problem)
    rows: list[dict[str, Any]] = []
    print(f"{len(training)} pairs to learn from, {held_out} to judge, base {arguments.base}, K {arguments.samples}")
    print("                        direction     steps | energy score           | CRPS b. | spread/skill | minutes")
    for one in everyone:
        if arguments.only and one.name not in arguments.only:
            continue
        steps = arguments.steps
        if one.equal_time:
            steps = round(steps * step_seconds(everyone[0], problem, training) / step_seconds(one, problem, training))
        began = time.perf_counter()
        model, _ = train(one, problem, training, Budget(steps=steps))
        minutes = (time.perf_counter() - began) / 60
        for direction in model.card.problem.directions[::-1]:
            row = {"name": one.name, "direction": str(direction), "steps": steps, "minutes": round(minutes, 2)}
            row |= scores(model, one, judged, direction, arguments.samples)
            rows.append(row)
            low, high = row["energy_interval"]
            print(
                f"{one.name:23s} {direction} {steps:6d} | {row['energy_score']:6.3f} [{low:6.3f}, {high:6.3f}] | "
                f"{row['crps_bright']:7.2f} | {row['spread_skill_bright']:5.2f} {row['spread_skill_sky']:5.2f} | "
                f"{minutes:6.1f}",
                flush=True,
            )
    if arguments.out:
        settings = {key: value for key, value in vars(arguments).items() if key not in ("out", "pairs")}
        arguments.out.mkdir(parents=True, exist_ok=True)
        document = {"settings": settings | {"nfe": NFE}, "rows": rows}
        (arguments.out / "objectives.json").write_text(json.dumps(document, indent=1) + "\n")


def train(one: Entrant, problem: Problem, pairs: Pairs, budget: Budget) -> tuple[Model, int]:
    """Return weights averaged over the end of a training, and its steps.

    Pairs, noise and start follow from the budget's seed, the same for every entrant.
    """
    torch.manual_seed(budget.seed)
    card = card_of(one, problem, pairs)
    network = channels_last(UNet(card.network))
    state = TrainState(network, Recipe(bright_weight=one.bright_weight, seed=budget.seed))
    next_batch = batches(card, pairs, state.recipe)
    loss_of = joint_loss if one.joint else bridge_loss
    began = time.process_time()
    while (progress := budget.progress(state.step, time.process_time() - began)) < 1:
        loss_of(network, card, next_batch(state.step), one.bright_weight).backward()
        state.update(progress)
    network.load_state_dict(state.averages[0.05])
    return Model(card, network.eval(), ""), state.step


def card_of(one: Entrant, problem: Problem, pairs: Pairs) -> Card:
    """Return the card that `surveybridge train` would write."""
    names = ("name", "grid", "bridge", "objective", "base", "stem", "norm")
    asked = Config(pairs=pairs.name, out=one.name, **{name: getattr(one, name) for name in names})
    settings = asked.model_dump() | {"conditions": False}
    problem = problem if one.wanted is None else replace(problem, wanted=one.wanted)
    card = make_card(settings, problem, part(pairs, slice(FIT_PAIRS)), {})
    if one.sigma_data is None:
        return card
    return replace(card, objective=replace(card.objective, sigma_data=one.sigma_data))


def batches(card: Card, pairs: Pairs, recipe: Recipe) -> Callable[[int], Batch]:
    """Return the batch of a step, a function of the step alone: pairs drawn with replacement, augmented; t; noise."""
    first, second = ends_of(card, pairs)
    wanted = wanted_of(card.problem, recipe.batch_size)

    def of(step: int) -> Batch:
        generator = step_generator(recipe.seed, step, 0)
        rows = torch.randint(0, len(pairs), (recipe.batch_size,), generator=generator)
        ends = augment((first[rows], second[rows]), card.problem, generator, roll=card.grid == "mosaic")
        return Batch.draw(card, ends, wanted, generator)

    return of


def joint_loss(network: nn.Module, card: Card, batch: Batch, bright_weight: float) -> Tensor:
    """Return the squared error of both heads' noise, with both ends noised to one step; the slot of x_t is empty."""
    eps = torch.cat([batch.eps, batch.eps.flip(0)], 1)
    both = torch.cat([batch.first, batch.second], 1)
    x_t = card.bridge.q_sample(both, torch.zeros_like(both), batch.t, eps)
    with torch.autocast("cpu", torch.bfloat16):
        heads = network(joint_input(x_t), batch.t, torch.zeros_like(batch.index))
    return ((heads.float() - eps) ** 2).mean()


def joint_input(x_t: Tensor) -> Tensor:
    """Map both noised endpoints, [N, 2 C, H, W], to the network's 3 C channels."""
    empty = torch.zeros_like(x_t[:, : x_t.shape[1] // 2])
    return torch.cat([empty, x_t], 1).contiguous(memory_format=torch.channels_last)


def sample_joint(
    model: Model, x1: Tensor, direction: Direction, steps: list[int], generator: torch.Generator
) -> Tensor:
    """Sample x0 of the wanted end, ancestral, with the observed one noised afresh at every step (replacement)."""
    bridge, wants_first, c = model.card.bridge, direction.index == 0, x1.shape[1]
    x = torch.randn(x1.shape, generator=generator) * float(bridge.s[steps[0]])
    x0 = x
    for i, t in enumerate(steps):
        a, s = float(bridge.a[t]), float(bridge.s[t])
        known = a * x1 + s * torch.randn(x1.shape, generator=generator)
        both = torch.cat([x, known] if wants_first else [known, x], 1)
        times = torch.full((len(x1),), t)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            heads = model.network(joint_input(both), times, torch.zeros_like(times))
        eps = heads[:, :c].float() if wants_first else heads[:, c:].float()
        x0 = (x - s * eps) / a
        if i + 1 < len(steps):
            k, p, _, w = bridge.transition(t, steps[i + 1], 1.0)
            x = k * x + p * x0 + w * torch.randn(x.shape, generator=generator)
    return x0


def scores(model: Model, one: Entrant, pairs: Pairs, direction: Direction, samples: int) -> dict[str, Any]:
    """Return energy score with its interval, CRPS, spread/skill and coverage of the held-out pairs."""
    wanted = direction.wanted
    drawn = drawn_by(model, one, pairs, direction, samples)
    display, truth = display_stretch(pairs)[wanted.name], torch.from_numpy(pairs.ends[wanted.name])
    each = image_scores(drawn, truth, wanted.bands, display)["energy_score"]
    rng = np.random.default_rng(0)
    means = [each[rng.integers(0, len(each), len(each))].mean() for _ in range(DRAWS)]
    row: dict[str, Any] = judge(drawn, pairs, wanted, display)
    return row | {"energy_interval": [float(edge) for edge in np.quantile(means, [0.025, 0.975])]}


def drawn_by(model: Model, one: Entrant, pairs: Pairs, direction: Direction, samples: int) -> Tensor:
    """Return samples of an entrant, [K, N, C, H, W] in the unit of the wanted end."""
    bridge = model.card.bridge
    steps = (end_then_rho_steps if one.from_end else rho_steps)(bridge, NFE, one.sigma_max)

    def draw(x1: Tensor, generator: torch.Generator) -> Tensor:
        if one.joint:
            return sample_joint(model, x1, direction, steps, generator)
        start = boot(bridge, x1, steps[0], torch.randn(x1.shape, generator=generator))
        noise = torch.randn(x1.shape, generator=generator)
        return sample(
            model, x1, direction, steps, start=start, noise=lambda _: noise, order=2, renoise=one.from_end,
            precision="bfloat16",
        )  # fmt: skip

    return draws(model, pairs, direction, samples, draw)


def step_seconds(one: Entrant, problem: Problem, pairs: Pairs) -> float:
    """Return the median time of a training step."""
    card = card_of(one, problem, pairs)
    network = channels_last(UNet(card.network))
    state = TrainState(network, Recipe())
    batch = batches(card, part(pairs, slice(0, 64)), state.recipe)(0)
    times = []
    for _ in range(12):
        began = time.perf_counter()
        bridge_loss(network, card, batch).backward()
        state.update(0.0)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


if __name__ == "__main__":
    main()
