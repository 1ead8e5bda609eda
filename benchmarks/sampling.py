"""Which sampler setting is calibrated: spread, error and coverage on pairs that training did not see.

    python benchmarks/sampling.py --pairs ../shared/data/pairs/train_regular.zarr --checkpoint mosaic-v1

The pairs are the last of the training store, which `surveybridge train` keeps for validation; test sets stay untouched.
Every setting starts from the same noise. Sky pixels are those whose mean is below 1.5 sigma, bright ones above 3 sigma
of the wanted survey. A mean over K samples misses the truth by sqrt(1 + 1/K) of the posterior's width, and
`spread/error` is corrected for that: 1 is calibrated, below 1 overconfident.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from bridge_core.checkpoint import Model, load_checkpoint
from bridge_core.metrics import coverage_within
from bridge_core.sampler import boot, end_then_rho_steps, sample
from bridge_core.translate import from_channels, stretch_of, to_channels
from storage.pairs import read_pairs

SETTINGS = [  # steps, order, eta, sigma_max
    (8, 1, 0.0, 5.0),
    (8, 1, 1.0, 5.0),
    (12, 1, 0.5, 3.0),
    (12, 1, 1.0, 5.0),
    (20, 1, 1.0, 5.0),
    (6, 2, 0.0, 5.0),
    (8, 2, 0.0, 5.0),
    (12, 2, 0.0, 5.0),
    (6, 2, 1.0, 5.0),
    (8, 2, 0.7, 5.0),
    (8, 2, 1.0, 3.0),
    (8, 2, 1.0, 5.0),
    (12, 2, 1.0, 5.0),
    (20, 2, 1.0, 5.0),
]


def main() -> None:
    """Print a line for each setting and direction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--checkpoint", default=None)
    parser.add_argument("--count", type=int, default=16, help="pairs")
    parser.add_argument("--samples", type=int, default=8, help="K")
    parser.add_argument("--direction", default="lsst->euclid")
    arguments = parser.parse_args()
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    pairs = read_pairs(arguments.pairs, model.card.grid)
    images = {
        "lsst": torch.from_numpy(pairs.lsst[-arguments.count :]),
        "euclid": torch.from_numpy(pairs.euclid[-arguments.count :]),
    }
    observed, wanted = arguments.direction.split("->")
    bands = model.card.bands[wanted]
    sigma = torch.tensor([pairs.noise[band] for band in bands])[:, None, None]
    stretch = stretch_of(model)
    x1 = to_channels(stretch.forward(images[observed], model.card.bands[observed]), model.card.network.image_channels)
    print(f"{model.card.name}, {arguments.direction}, {arguments.count} pairs, K = {arguments.samples}")
    print("                          |     spread/error |     68% coverage |  bright |  flux |        s")
    print("steps order eta sigma_max |     sky   bright |     sky   bright |     rms | ratio | a window")
    for steps, order, eta, sigma_max in SETTINGS:
        start = time.perf_counter()
        mean, std = posterior(model, x1, arguments.direction, arguments.samples, steps, order, eta, sigma_max)
        seconds = (time.perf_counter() - start) / (arguments.count * arguments.samples)
        truth = images[wanted]
        sky, bright = mean.abs() < 1.5 * sigma, mean > 3 * sigma
        ratios = [ratio(mean, std, truth, where, arguments.samples) for where in (sky, bright)]
        shares = [coverage_within(mean, std, truth, where, (1.0,))[0] for where in (sky, bright)]
        error = float(((truth - mean)[bright] ** 2).mean().sqrt())
        flux_ratio = aperture_ratio(mean, truth)
        print(
            f"{steps:5d} {order:5d} {eta:3.1f} {sigma_max:9.1f} | {ratios[0]:7.2f} {ratios[1]:8.2f} | "
            f"{shares[0]:7.2f} {shares[1]:8.2f} | {error:7.2f} | {flux_ratio:5.3f} | {seconds:8.4f}",
            flush=True,
        )


def posterior(
    model: Model, x1: Tensor, direction: str, samples: int, steps: int, order: int, eta: float, sigma_max: float
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the samples, nJy, each [N, C, H, W]."""
    generator = torch.Generator().manual_seed(0)
    conditions = x1.repeat_interleave(samples, 0)
    table = end_then_rho_steps(model.card.bridge, steps, sigma_max)
    z = torch.randn(conditions.shape, generator=generator)
    start = boot(model.card.bridge, conditions, table[0], z)
    draws = []
    for i in range(0, len(conditions), 16):
        part = slice(i, i + 16)
        u = sample(
            model,
            conditions[part],
            direction,
            table,
            start=start[part],
            noise=lambda _, shape=start[part].shape: torch.randn(shape, generator=generator),
            eta=eta,
            order=order,
            precision="bfloat16",
        )
        draws.append(u)
    bands = model.card.bands[direction.split("->")[1]]
    flux = stretch_of(model).inverse(from_channels(torch.cat(draws), len(bands)), bands).unflatten(0, (-1, samples))
    return flux.mean(1), flux.std(1)


def aperture_ratio(mean: Tensor, truth: Tensor) -> float:
    """Median over pairs of translated over true flux in the central 2 arcsec (radius 10 pixels), first band."""
    size = mean.shape[-1]
    offset = torch.arange(size) - (size - 1) / 2
    inside = (offset[:, None] ** 2 + offset[None, :] ** 2 < 100).float()
    return float(((mean[:, 0] * inside).sum((1, 2)) / (truth[:, 0] * inside).sum((1, 2))).median())


def ratio(mean: Tensor, std: Tensor, truth: Tensor, where: Tensor, samples: int) -> float:
    """Rms spread over rms error, corrected for the finite number of samples."""
    spread = (std[where] ** 2).mean() * (1 + 1 / samples)
    return float((spread / ((truth - mean)[where] ** 2).mean()).sqrt())


if __name__ == "__main__":
    main()
