"""Where the network's estimates are too bright: at the bridge's end, and on parts of pairs and on whole ones.

    python -m benchmarks.starts --pairs ../shared/data/pairs/test_regular.zarr --checkpoint mosaic-v2
    python -m benchmarks.starts --pairs runs/fresh.zarr --checkpoint mosaic-v3

The sampler begins at the highest noise level with the observed image in the place of the wanted one, or with nothing
where the network has learnt that, and takes the network's estimate from there. Noise hides the difference of the two
images in a pixel, but not in all pixels of an object together. Means over pixels in which the observed image is bright,
LSST to VIS, in network units, less the truth's.

A second table has the estimates further down, from the true image, in the middle of the pairs: of whole pairs and of
their middle part alone, by the brightness of the estimate. A network that was trained on parts is right on parts.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.rings import complete, seen
from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Direction, to_channels
from surveybridge.bridge_core.sampler import denoise, starts_without_x0
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.translate import sampler_steps
from surveybridge.storage.pairs import read_pairs

BRIGHT = (0.1, 0.3, 0.6)
"""Network units of the observed image above which pixels count, in bins up to the next."""
ESTIMATED = (0.2, 0.4, 0.7, 1.0)
"""The same of the estimate, in the second table."""
PART, MIDDLE = 32, 16
"""Sides of the part, and of the middle in which its estimates count, pixels."""
BATCH = 32


def main() -> None:
    """Estimate from each start, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="pair store")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="shipped name, or path")
    parser.add_argument("--count", type=int, default=300, help="number of pairs; those with masked pixels do not count")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    pairs = read_pairs(
        arguments.pairs, "mosaic", stop=arguments.count, problem=model.card.problem.table, conditions=True
    )
    direction = model.card.problem.to("euclid")
    rows = np.flatnonzero(complete(pairs))
    x1, told = seen(model, direction, pairs, rows)
    wanted = torch.from_numpy(pairs.ends[direction.wanted.name][rows])
    x0 = to_channels(direction.wanted.fitted.forward(wanted, direction.wanted.bands), x1.shape[1])
    images = Images(direction, x0, x1, told)
    generator = torch.Generator().manual_seed(arguments.seed)
    print("\n".join([*of_starts(model, images, generator), "", *of_parts(model, images, generator)]))


class Images(NamedTuple):
    """Both ends of N pairs, [N, C, H, W] network units, and what the network is told of them."""

    direction: Direction
    x0: Tensor
    x1: Tensor
    told: Context | None

    def middle(self, side: int) -> Images:
        """The part of the images around their middle."""
        edge = (self.x0.shape[-1] - side) // 2
        inside = slice(edge, edge + side)
        told = self.told and Context(self.told.maps[:, :, inside, inside], self.told.vector)
        return Images(self.direction, self.x0[:, :, inside, inside], self.x1[:, :, inside, inside], told)


def of_starts(model: Model, images: Images, generator: torch.Generator) -> list[str]:
    """Markdown: a line for each start."""
    _, x0, x1, _ = images
    last = model.card.bridge.num_steps - 1

    def estimate(stand_in: Tensor) -> Tensor:
        noise = torch.randn(x1.shape, generator=generator)
        return estimated(model, images._replace(x0=stand_in), last, noise)

    if starts_without_x0(model.card, last):
        found = {"nothing": estimate(torch.zeros_like(x1))}
    else:
        first = estimate(x1)
        found = {
            "the true image": estimate(x0),
            "the observed image": first,
            "the estimate from the observed image": estimate(first),
        }
    brightness = x1.amax(1, keepdim=True).expand_as(x1)
    lines = [f"| begun with | {' | '.join(heads(BRIGHT))} |", "|" + "---|" * (len(BRIGHT) + 1)]
    lines += [f"| {name} | {' | '.join(cells(values - x0, brightness, BRIGHT))} |" for name, values in found.items()]
    sigma = float(model.card.bridge.sigma[-1])
    return [*lines, "", f"{len(x0)} pairs, noise level {sigma:.3g} network units"]


def of_parts(model: Model, images: Images, generator: torch.Generator) -> list[str]:
    """Markdown: whole pairs and parts of them, at the first noise levels of the sampler after its start."""
    lines = [f"| noise level | estimated from | {' | '.join(heads(ESTIMATED))} |", "|" + "---|" * (len(ESTIMATED) + 2)]
    noise = torch.randn(images.x0.shape, generator=generator)
    truth = images.middle(MIDDLE).x0
    for t in sampler_steps(model.card, Sampling())[1:4]:
        for name, side in (("whole pairs", images.x0.shape[-1]), (f"{PART} x {PART} pixels", PART)):
            seen_part = images.middle(side)
            edge = (images.x0.shape[-1] - side) // 2
            here = noise[:, :, edge : edge + side, edge : edge + side]
            found = seen_part._replace(x0=estimated(model, seen_part, t, here)).middle(MIDDLE).x0
            values = " | ".join(cells(found - truth, found, ESTIMATED))
            lines.append(f"| {float(model.card.bridge.sigma[t]):.2g} | {name} | {values} |")
    return lines


def heads(edges: Sequence[float]) -> list[str]:
    """Names of the bins that begin at some values."""
    return [f"from {low:g} to {high:g}" for low, high in itertools.pairwise(edges)] + [f"from {edges[-1]:g}"]


def cells(error: Tensor, brightness: Tensor, edges: Sequence[float]) -> list[str]:
    """Mean errors of the pixels in each bin of brightness."""
    bins = itertools.pairwise([*edges, float("inf")])
    return [f"{float(error[(brightness >= low) & (brightness < high)].mean()):+.4f}" for low, high in bins]


def estimated(model: Model, images: Images, t: int, noise: Tensor) -> Tensor:
    """The network's estimate of x0 at step t, [N, C, H, W], with the images' x0 in the state."""
    direction, x0, x1, told = images
    bridge = model.card.bridge
    x_t = bridge.q_sample(x0, x1, torch.full((len(x1),), t), noise)
    parts = []
    for first in range(0, len(x1), BATCH):
        part = slice(first, first + BATCH)
        context = None if told is None else told.rows(torch.arange(len(x1))[part])
        parts.append(denoise(model, x_t[part], x1[part], t, direction, "bfloat16", context))
    return torch.cat(parts)


if __name__ == "__main__":
    main()
