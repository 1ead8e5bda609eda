"""How good one to four network evaluations per sample are, if the denoiser is taught to draw x0 instead of its mean.

    python -m benchmarks.few_steps --pairs ../shared/data/pairs/train_regular.zarr --minutes 25 --out benchmarks/results

Distributional diffusion (De Bortoli et al., ICML 2025): the network gets noise as one more input, here in the slot of
the end that it does not see (otherwise zero), and learns p(x0 | x_t, x1) by an energy score of `DRAWN` samples, here
of patches at several scales. A few ancestral steps are then enough: x0 is drawn, and x_s follows from x_t and x0
(`transition`, eta 1). The fine-tuning starts from a trained checkpoint and sees only the noise levels of the few steps.
The table compares 1, 2 and 4 steps with the checkpoint's own sampler, on pairs held out from training.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.samplers import SAMPLERS, draws, ends_of, judge, part
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.metrics import patch_energy_score
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.network import channels_last
from surveybridge.bridge_core.problem import Direction, to_channels
from surveybridge.bridge_core.sampler import boot, step_at
from surveybridge.bridge_core.training import Ends, Recipe, TrainState, augment, step_generator, wanted_of
from surveybridge.jobs.evaluating.stages import display_stretch
from surveybridge.storage.pairs import Pairs, read_pairs

DRAWN = 3
"""Samples of x0 a pair sees in training."""
SCALES = (1, 2, 4)
LADDER = {1: (), 2: (0.6,), 4: (1.5, 0.6, 0.2)}
"""Noise levels after the table's end, by number of evaluations."""
OWN = ("dbim2", 6)
"""The checkpoint's own sampler beside it."""


def main() -> None:
    """Fine-tune, judge, print the table and write few_steps.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--checkpoint", default="mosaic-v2", help="one that is told no conditions")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--held-out", type=int, default=128, help="pairs at the end of the store that are not learnt")
    parser.add_argument("--count", type=int, default=40, help="of them, pairs that are judged")
    parser.add_argument("--samples", type=int, default=5, help="K")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    base, model = load_checkpoint(arguments.checkpoint), load_checkpoint(arguments.checkpoint)
    problem = base.card.problem
    store = read_pairs(arguments.pairs, base.card.grid, problem=problem.table)
    held_out = len(store) - arguments.held_out
    steps = teach(model, part(store, slice(held_out)), arguments.minutes, arguments.learning_rate)
    judged, display = part(store, slice(held_out, held_out + arguments.count)), display_stretch(store)
    own = next(one for one in SAMPLERS if one.name == OWN[0])
    base.to("cpu", "bfloat16")
    rows = []
    print(f"{base.card.name}, {steps} steps of fine-tuning, {arguments.count} pairs, K = {arguments.samples}")
    print("direction    sampler        NFE | energy |   CRPS |  spread/skill | 68% interval  ")
    print("                                |  score | bright | bright    sky | bright    sky ")
    for direction in problem.directions[::-1]:
        ways = {f"taught {n}": (n, functools.partial(few_draws, model, direction, n)) for n in LADDER}
        ways[" ".join(map(str, OWN))] = (OWN[1], own.at(base, direction, OWN[1]))
        for name, (nfe, draw) in ways.items():
            drawn = draws(base, judged, direction, arguments.samples, draw)
            row: dict[str, Any] = {"direction": str(direction), "sampler": name, "nfe": nfe}
            row |= judge(drawn, judged, direction.wanted, display[direction.wanted.name])
            rows.append(row)
            print(
                f"{direction} {name:14s} {nfe:3d} | {row['energy_score']:6.3f} | {row['crps_bright']:6.2f} | "
                f"{row['spread_skill_bright']:6.2f} {row['spread_skill_sky']:6.2f} | "
                f"{row['inside_68_bright']:6.1%} {row['inside_68_sky']:6.1%}",
                flush=True,
            )
    if arguments.out:
        document = {"checkpoint": base.card.name, "minutes": arguments.minutes, "steps": steps, "rows": rows}
        (arguments.out / "few_steps.json").write_text(json.dumps(document, indent=1) + "\n")


def teach(model: Model, pairs: Pairs, minutes: float, learning_rate: float) -> int:
    """Fine-tune the model's network in place on all but the last `held_out` pairs; return the number of steps."""
    card = model.card
    first, second = ends_of(card, pairs)
    network = channels_last(model.network.train().requires_grad_(True))
    state = TrainState(network, Recipe(learning_rate=learning_rate, warmup_steps=100, batch_size=16))
    levels = sorted({card.bridge.num_steps - 1, *(step_at(card.bridge, s) for some in LADDER.values() for s in some)})
    wanted, began, losses = wanted_of(card.problem, state.recipe.batch_size), time.monotonic(), []
    while (progress := (time.monotonic() - began) / (60 * minutes)) < 1:
        generator = step_generator(1, state.step, 0)
        rows = torch.randint(0, len(pairs), (state.recipe.batch_size,), generator=generator)
        ends = augment((first[rows], second[rows]), card.problem, generator, roll=card.grid == "mosaic")
        t = torch.tensor(levels)[torch.randint(0, len(levels), (len(rows),), generator=generator)]
        loss = energy_loss(model, ends, wanted, t, generator)
        loss.backward()
        state.update(progress)
        losses.append(float(loss.detach()))
        if state.step % 200 == 0:
            print(
                f"step {state.step}, {60 * minutes * progress:.0f} s, loss {sum(losses[-200:]) / 200:.5f}", flush=True
            )
    network.load_state_dict(state.averages[0.05])
    network.eval().requires_grad_(False)
    return state.step


def energy_loss(model: Model, ends: Ends, wanted: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    """Return the fair energy score of `DRAWN` samples of x0 over patches, averaged over pairs and `SCALES`."""
    first, second = ends
    second_wanted = wanted.view(-1, 1, 1, 1).bool()
    x0, x1 = torch.where(second_wanted, second, first), torch.where(second_wanted, first, second)
    x_t = model.card.bridge.q_sample(x0, x1, t, torch.randn(x0.shape, generator=generator))
    repeated = [v.repeat(DRAWN, *[1] * (v.dim() - 1)) for v in (x_t, x1, t, wanted)]
    xi = torch.randn(repeated[0].shape, generator=generator)
    samples = drawn_x0(model, model.network, *repeated, xi).unflatten(0, (DRAWN, -1))
    return torch.stack(patch_energy_score(samples, x0, SCALES)).mean()


def drawn_x0(
    model: Model, network: nn.Module, x_t: Tensor, x1: Tensor, t: Tensor, wanted: Tensor, xi: Tensor
) -> Tensor:
    """Draw one x0 of p(x0 | x_t, x1) for each row, with the noise xi [N, 3, H, W] in the slot of the unseen survey."""
    card = model.card
    c = card.network.image_channels
    u, v = (k.to(x_t.dtype)[t][:, None, None, None] for k in card.objective.input_table(card.bridge))
    p, q, r = (k.to(x_t.dtype)[t][:, None, None, None] for k in card.objective.table(card.bridge))
    second_wanted = wanted.view(-1, 1, 1, 1).bool()
    # one noise for all channels that show one plane
    xi_first, xi_second = (to_channels(xi[:, : end.planes], c) for end in card.problem.endpoints)
    slots = torch.where(second_wanted, x1, xi_first), torch.where(second_wanted, xi_second, x1)
    inputs = torch.cat([u * x_t + v * x1, *slots], 1)
    with torch.autocast("cpu", torch.bfloat16):
        heads = network(inputs.contiguous(memory_format=torch.channels_last), t, wanted)
    return p * (x_t + r * x1) + q * torch.where(second_wanted, heads[:, c:], heads[:, :c]).float()


def few_draws(model: Model, direction: Direction, nfe: int, x1: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one sample of each row of x1 [N, C, H, W] with `nfe` evaluations, in network units."""
    bridge = model.card.bridge
    steps = [bridge.num_steps - 1, *(step_at(bridge, sigma) for sigma in LADDER[nfe])]
    wanted = torch.full((len(x1),), direction.index)

    def noise() -> Tensor:
        return torch.randn(x1.shape, generator=generator)

    x = boot(bridge, x1, steps[0], noise())
    x0 = x
    for i, t in enumerate(steps):
        with torch.inference_mode():
            x0 = drawn_x0(model, model.network, x, x1, torch.full((len(x1),), t), wanted, noise())
        if i + 1 < len(steps):
            k, p, q, w = bridge.transition(t, steps[i + 1], 1.0)
            x = k * x + p * x0 + q * x1 + w * noise()
    return x0


if __name__ == "__main__":
    main()
