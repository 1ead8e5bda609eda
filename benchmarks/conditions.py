"""What each condition that a network is told is worth to it.

    python -m benchmarks.conditions --pairs runs/sky.zarr --checkpoint runs/mosaic-v3/mosaic-v3 --out benchmarks/results

Pairs that no training saw (the last of the store) are translated both ways: told everything, nothing, and everything
but one. The network was trained with each of them missing now and then, so it knows what to do without. The table has
the loss of the denoiser (mean over noise levels), and of samples the fair energy score of patches, the share of bright
pixels within the 68% interval, and spread over skill in bright pixels; ratios are to being told everything.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.conditions import QUANTITIES
from surveybridge.bridge_core.context import Context, PairConditions
from surveybridge.bridge_core.metrics import interval_width, patch_energy_score
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Direction, from_channels
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.training import Batch, Ends, bridge_loss, observed_pixels, step_generator
from surveybridge.bridge_core.translate import window_samples
from surveybridge.jobs.training.images import Images
from surveybridge.storage.pairs import Pairs, read_pairs

BRIGHT = 3.0
"""Sigma above which the posterior mean counts as bright."""
NOISES = 4
"""Noise levels a pair at which the loss is taken."""


def main() -> None:
    """Judge, print the table and write conditions.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--count", type=int, default=96, help="pairs at the end of the store, of which the whole count")
    parser.add_argument("--samples", type=int, default=4, help="K")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(arguments.checkpoint)
    stored = read_pairs(arguments.pairs, stop=1).stored
    pairs = read_pairs(arguments.pairs, start=stored - arguments.count, conditions=True)
    found = {}
    for name, hide in hidden().items():
        found[name] = judge(model, pairs, hide, arguments.samples)
        print(f"{name:24s} " + "  ".join(f"{key} {value:.4f}" for key, value in found[name].items()), flush=True)
    print(table(found))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        document = {"checkpoint": model.card.name, "pairs": pairs.name, "count": arguments.count, "told": found}
        (arguments.out / "conditions.json").write_text(json.dumps(document, indent=1) + "\n")


Hide = Callable[[PairConditions], PairConditions]


def hidden() -> dict[str, Hide]:
    """Return what is kept from the network, by name."""
    return {
        "everything": lambda told: told,
        **{f"all but {name}": without((name,)) for name in QUANTITIES},
        "all but registration": lambda told: replace(told, registration=told.registration * torch.nan),
        "nothing": lambda told: without(QUANTITIES)(replace(told, registration=told.registration * torch.nan)),
    }


def without(names: tuple[str, ...]) -> Hide:
    """Return a function that makes quantities of both ends unknown."""
    rows = [QUANTITIES.index(name) for name in names]

    def hide(told: PairConditions) -> PairConditions:
        first, second = (table.clone() for table in told.tables)
        for end in (first, second):
            end[:, rows] = torch.nan
        return replace(told, tables=(first, second))

    return hide


def judge(model: Model, pairs: Pairs, hide: Hide, samples: int) -> dict[str, float]:
    """Return the measures of both directions together; pairs with a masked pixel only count for the loss."""
    card = model.card
    ends, told = Images.of(card, pairs).rows(card, slice(None))
    assert told is not None
    measures: dict[str, list[float]] = {}
    for direction in card.problem.directions:
        wanted = torch.full((len(pairs),), direction.index)
        context = hide(told).context(card.problem, wanted, observed_pixels(ends, wanted))
        measures.setdefault("loss", []).append(loss_of(model, ends, wanted, context))
        whole = torch.isfinite(ends[0]).flatten(1).all(1) & torch.isfinite(ends[1]).flatten(1).all(1)
        rows = torch.nonzero(whole)[:, 0]
        of_samples = judge_samples(
            model,
            direction,
            (ends[0][rows], ends[1][rows]),
            context.rows(rows),
            samples,
            pairs_noise(pairs, direction, rows),
        )
        for name, value in of_samples.items():
            measures.setdefault(f"{name} {direction.wanted.name}", []).append(value)
    return {name: float(np.mean(values)) for name, values in measures.items()}


def loss_of(model: Model, ends: Ends, wanted: Tensor, context: Context) -> float:
    """Return the loss at a few noise levels, the same at every call."""
    losses = []
    with torch.inference_mode():
        for first in range(0, len(wanted), 32):
            some = slice(first, first + 32)
            for level in range(NOISES):
                batch = Batch.draw(
                    model.card,
                    (ends[0][some], ends[1][some]),
                    wanted[some],
                    step_generator(7, first, level),
                    context.rows(some),
                )
                losses.append(float(bridge_loss(model.network, model.card, batch)))
    return float(np.mean(losses))


def pairs_noise(pairs: Pairs, direction: Direction, rows: Tensor) -> Tensor:
    """Return the sky noise of the wanted end of some pairs, [N, B, 1, 1]."""
    assert pairs.conditions is not None
    noise = pairs.conditions.ends[direction.wanted.name].noise
    return torch.from_numpy(noise)[rows][:, :, None, None]


def judge_samples(
    model: Model, direction: Direction, ends: Ends, context: Context, count: int, sigma: Tensor
) -> dict[str, float]:
    """Return energy score, coverage and spread over skill of samples."""
    observed, truth_units = ends[1 - direction.index], from_channels(ends[direction.index], direction.wanted.planes)
    corners = [(0, 64 * k) for k in range(len(observed))]
    drawn = window_samples(model, direction, observed, corners, Sampling(samples=count, seed=1), context=context)
    samples = drawn.transpose(0, 1)
    wanted = direction.wanted
    units = wanted.fitted.forward(samples, wanted.bands)
    truth = wanted.fitted.inverse(truth_units, wanted.bands)
    mean, std = samples.mean(0), samples.std(0)
    bright = mean > BRIGHT * sigma
    pull = ((truth - mean).abs() / std)[bright]
    skill = (units.mean(0) - truth_units)[bright].square().mean()
    return {
        "energy": float(torch.stack(patch_energy_score(units, truth_units)).mean()),
        "68%": float((pull <= interval_width(0.68, count)).float().mean()),
        # a mean of K samples errs by a K-th of the variance more
        "spread/skill": float((units.var(0)[bright].mean() * (1 + 1 / count) / skill).sqrt()),
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table, losses and energies over those of being told everything."""
    best = found["everything"]
    names = list(best)
    lines = ["| told | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for told, of in found.items():
        cells = [f"{of[n] / best[n]:.3f}" if n.startswith(("loss", "energy")) else f"{of[n]:.3f}" for n in names]
        lines.append(f"| {told} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
