"""What each condition that a network is told is worth to it.

    python -m benchmarks.conditions --pairs runs/fresh.zarr --checkpoint mosaic-v3 --out benchmarks/results

Pairs that no training saw (the last of the store) are translated both ways: told everything, nothing, and everything
but one. The network was trained with each of them missing now and then, so it knows what to do without. The table has
the fair energy score of patches over that of being told everything, the share of bright pixels within the 68% interval,
and spread over skill in bright pixels, with 95% intervals from drawing pairs anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.conditions import QUANTITIES
from surveybridge.bridge_core.context import Context, PairConditions
from surveybridge.bridge_core.metrics import interval_width, patch_energy_score
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Direction, from_channels
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.training import Ends, observed_pixels
from surveybridge.bridge_core.translate import window_samples
from surveybridge.jobs.training.images import Images
from surveybridge.storage.pairs import Pairs, read_pairs

BRIGHT = 3.0
"""Sigma above which the posterior mean counts as bright."""
DRAWS = 400
"""Times that pairs are drawn anew for the intervals."""


def main() -> None:
    """Judge, print the table and write conditions.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--checkpoint", required=True, help="shipped name, or path")
    parser.add_argument(
        "--count", type=int, default=200, help="pairs at the end of the store, of which the whole count"
    )
    parser.add_argument("--samples", type=int, default=4, help="K")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    stored = read_pairs(arguments.pairs, stop=1).stored
    pairs = read_pairs(arguments.pairs, start=stored - arguments.count, conditions=True)
    sums: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name, hide in hidden().items():
        sums[name] = judge(model, pairs, hide, arguments.samples)
        print(f"{name}: judged", flush=True)
    found = {name: measures(of, sums["everything"]) for name, of in sums.items()}
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


def judge(model: Model, pairs: Pairs, hide: Hide, samples: int) -> dict[str, NDArray[np.float64]]:
    """Return what `measures` is made of, by wanted end: float64 [N, 5], of pairs without a masked pixel."""
    card = model.card
    ends, told = Images.of(card, pairs).rows(card, slice(None))
    assert told is not None
    whole = torch.isfinite(ends[0]).flatten(1).all(1) & torch.isfinite(ends[1]).flatten(1).all(1)
    rows = torch.nonzero(whole)[:, 0]
    of_rows = (ends[0][rows], ends[1][rows])
    found = {}
    for direction in card.problem.directions:
        wanted = torch.full((len(pairs),), direction.index)
        context = hide(told).context(card.problem, wanted, observed_pixels(ends, wanted)).rows(rows)
        noise = pairs_noise(pairs, direction, rows)
        found[direction.wanted.name] = judge_samples(model, direction, of_rows, context, samples, noise)
    return found


def pairs_noise(pairs: Pairs, direction: Direction, rows: Tensor) -> Tensor:
    """Return the sky noise of the wanted end of some pairs, [N, B, 1, 1]."""
    assert pairs.conditions is not None
    noise = pairs.conditions.ends[direction.wanted.name].noise
    return torch.from_numpy(noise)[rows][:, :, None, None]


def judge_samples(
    model: Model, direction: Direction, ends: Ends, context: Context, count: int, sigma: Tensor
) -> NDArray[np.float64]:
    """Return, by pair: energy score, bright pixels, those of them inside, their variance and squared error, summed."""
    observed, truth_units = ends[1 - direction.index], from_channels(ends[direction.index], direction.wanted.planes)
    corners = [(0, 64 * k) for k in range(len(observed))]
    drawn = window_samples(model, direction, observed, corners, Sampling(samples=count, seed=1), context=context)
    samples = drawn.transpose(0, 1)
    wanted = direction.wanted
    units = wanted.fitted.forward(samples, wanted.bands)
    truth = wanted.fitted.inverse(truth_units, wanted.bands)
    mean, std = samples.mean(0), samples.std(0)
    bright = mean > BRIGHT * sigma
    inside = ((truth - mean).abs() / std <= interval_width(0.68, count)) & bright
    # a mean of K samples errs by a K-th of the variance more
    spread = units.var(0) * (1 + 1 / count) * bright
    skill = (units.mean(0) - truth_units).square() * bright
    energy = torch.stack(patch_energy_score(units, truth_units)).mean(0)
    sums = [part.double().flatten(1).sum(1) for part in (bright, inside, spread, skill)]
    return torch.stack([energy.double(), *sums], 1).numpy()


def measures(
    sums: Mapping[str, NDArray[np.float64]], best: Mapping[str, NDArray[np.float64]]
) -> dict[str, tuple[float, float, float]]:
    """Return each measure with its 95% interval; `best` are the sums of being told everything."""
    found = {}
    for end, of in sums.items():
        drawn = np.random.default_rng(1).integers(0, len(of), (DRAWS, len(of)))
        rows = np.concatenate([np.arange(len(of))[None], drawn])
        energy, bright, inside, spread, skill = np.moveaxis(of[rows].sum(1), -1, 0)
        values = {
            f"energy {end}": energy / best[end][rows].sum(1)[:, 0],
            f"68% {end}": inside / bright,
            f"spread/skill {end}": np.sqrt(spread / skill),
        }
        for name, value in values.items():
            low, high = np.quantile(value[1:], [0.025, 0.975])
            found[name] = (float(value[0]), float(low), float(high))
    return found


def table(found: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> str:
    """Return the table in Markdown."""
    names = list(found["everything"])
    lines = ["| told | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for told, of in found.items():
        cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*of[name]) for name in names]
        lines.append(f"| {told} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
