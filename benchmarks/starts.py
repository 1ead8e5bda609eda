"""What stands in for the unknown image at the bridge's end, and how much of it is left in the network's estimate.

    python -m benchmarks.starts --pairs ../shared/data/pairs/test_regular.zarr --checkpoint mosaic-v2
    python -m benchmarks.starts --pairs runs/fresh.zarr --checkpoint mosaic-v3

The sampler begins at the highest noise level with the observed image in the place of the wanted one, or with nothing
where the network has learnt that, and takes the network's estimate from there. Noise hides the difference of the two
images in a pixel, but not in all pixels of an object together. Means over pixels in which the observed image is bright,
LSST to VIS, in network units, less the truth's.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import torch
from torch import Tensor

from benchmarks.rings import complete, seen
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Direction, to_channels
from surveybridge.bridge_core.sampler import denoise, starts_without_x0
from surveybridge.storage.pairs import Pairs, read_pairs

BRIGHT = (0.1, 0.3, 0.6)
"""Network units of the observed image above which pixels count, in bins up to the next."""
BATCH = 32


def main() -> None:
    """Estimate from each start, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="pair store")
    parser.add_argument("--checkpoint", default="mosaic-v2", help="shipped name, or path")
    parser.add_argument("--count", type=int, default=300, help="number of pairs; those with masked pixels do not count")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    pairs = read_pairs(
        arguments.pairs, "mosaic", stop=arguments.count, problem=model.card.problem.table, conditions=True
    )
    print("\n".join(table(model, pairs, torch.Generator().manual_seed(arguments.seed))))


def table(model: Model, pairs: Pairs, generator: torch.Generator) -> list[str]:
    """Markdown: a line for each start."""
    direction = model.card.problem.to("euclid")
    rows = np.flatnonzero(complete(pairs))
    x1, told = seen(model, direction, pairs, rows)
    wanted = torch.from_numpy(pairs.ends[direction.wanted.name][rows])
    x0 = to_channels(direction.wanted.fitted.forward(wanted, direction.wanted.bands), x1.shape[1])

    def estimate(stand_in: Tensor) -> Tensor:
        noise = torch.randn(x1.shape, generator=generator)
        return estimated(model, direction, stand_in, x1, noise, told)

    if starts_without_x0(model.card, model.card.bridge.num_steps - 1):
        found = {"nothing": estimate(torch.zeros_like(x1))}
    else:
        first = estimate(x1)
        found = {
            "the true image": estimate(x0),
            "the observed image": first,
            "the estimate from the observed image": estimate(first),
        }
    brightness = x1.amax(1, keepdim=True).expand_as(x1)
    edges = [*BRIGHT, float("inf")]
    bins = [(low, high, (brightness >= low) & (brightness < high)) for low, high in itertools.pairwise(edges)]
    heads = [f"from {low:g}" + (f" to {high:g}" if high < float("inf") else "") for low, high, _ in bins]
    lines = [f"| begun with | {' | '.join(heads)} |", "|" + "---|" * (len(bins) + 1)]
    for name, values in found.items():
        cells = [f"{float((values - x0)[inside].mean()):+.4f}" for _, _, inside in bins]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sigma = float(model.card.bridge.sigma[-1])
    return [*lines, "", f"{len(rows)} pairs, noise level {sigma:.3g} network units"]


def estimated(
    model: Model, direction: Direction, stand_in: Tensor, x1: Tensor, noise: Tensor, told: Context | None
) -> Tensor:
    """The network's estimate of x0 at the bridge's end, [N, C, H, W], with something in the place of x0."""
    bridge = model.card.bridge
    last = bridge.num_steps - 1
    x_t = bridge.q_sample(stand_in, x1, torch.full((len(x1),), last), noise)
    parts = []
    for first in range(0, len(x1), BATCH):
        part = slice(first, first + BATCH)
        context = None if told is None else told.rows(torch.arange(len(x1))[part])
        parts.append(denoise(model, x_t[part], x1[part], last, direction, "bfloat16", context))
    return torch.cat(parts)


if __name__ == "__main__":
    main()
