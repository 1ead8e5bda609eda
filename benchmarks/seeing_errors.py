"""Where does a network that sharpens err, and do its samples know: by the brightness of pixels, and by m.

    python -m benchmarks.seeing_errors --checkpoint seeing-v1 [--count 16] [--steps 16]

Of skies without bright stars at a seeing of 0.7" (Moffat, beta 3.5) and the depth of ten years, in units of the noise
of the image, by the S/N of the true pixel: root mean square error of a single answer E[x0 | x_m] at several m, beside
that of the Wiener filter alone; and of the mean of samples from m = 1, beside their scatter.
"""

from __future__ import annotations

import argparse
import itertools
import math

import numpy as np
import torch

from benchmarks.seeing import SEED, observed, skies
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.sharpening import PAD, Linear, SkyBatch, denoiser, tables
from surveybridge.bridge_core.translate import window_samples
from surveybridge.storage.psf import Moffat

EDGES = (-math.inf, 0.3, 3.0, 10.0, 30.0, 100.0, math.inf)
"""Of the S/N of true pixels."""
SHARES = (1.0, 0.75, 0.5, 0.25, 0.1, 0.03)
"""Of the steps of the table, at which single answers are judged."""
BRIGHTEST = 600.0
"""nJy: skies with a brighter pixel are left out, because such stars would decide alone."""
INNER = np.s_[..., 8:-8, 8:-8]


def main() -> None:
    """Print a line for each m, and one for the samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="seeing-v1")
    parser.add_argument("--count", type=int, default=16, help="skies, some of which are left out")
    parser.add_argument("--samples", type=int, default=6, help="K")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(arguments.checkpoint).to("cpu", arguments.precision)
    direction, last = model.card.problem.directions[0], model.card.bridge.num_steps - 1
    sky, _ = skies(arguments.count)
    sky = sky[sky.amax((1, 2, 3)) < BRIGHTEST]
    x1, context, sigma = observed(model, sky, Moffat(0.7, 3.5), 1.0, torch.Generator().manual_seed(SEED))
    scale = sigma[:, None, None]
    truth = sky[..., PAD:-PAD, PAD:-PAD][INNER]
    units = direction.wanted.forward(sky, sky.shape[1])
    print("S/N below " + " ".join(f"{edge:g}" for edge in EDGES[1:]))
    bridge, prior = tables(model.card, context)
    for step in (round(share * last) for share in SHARES):
        generator = torch.Generator().manual_seed(3)
        steps = torch.full((len(sky),), step)
        x = SkyBatch(units, steps, torch.randn(units.shape, generator=generator), context).state(bridge, step)
        answer = denoiser(model, (bridge, prior), context, direction.index, [step], arguments.precision)(x, step)
        errors = [
            by_brightness(((direction.wanted.inverse(one)[INNER] - truth) / scale).square(), truth / scale)
            for one in (answer, Linear.of(bridge, prior, x, step).x0)
        ]
        print(
            f"m {float(bridge.share[step]):.4f}: error {in_words(errors[0])}; Wiener {in_words(errors[1])}", flush=True
        )
    how = Sampling(samples=arguments.samples, steps=arguments.steps, seed=5)
    corners = [(1000 * n, 1000) for n in range(len(sky))]
    drawn = window_samples(model, direction, x1, corners, how, context=context)
    mean, variance = drawn.mean(1)[INNER], drawn.var(1)[INNER] * (1 + 1 / how.samples)
    error = by_brightness(((mean - truth) / scale).square(), truth / scale)
    print(f"samples: error {in_words(error)}; scatter {in_words(by_brightness(variance / scale**2, truth / scale))}")


def by_brightness(squares: torch.Tensor, snr: torch.Tensor) -> list[float]:
    """Root mean squares within `EDGES`."""
    bins = itertools.pairwise(EDGES)
    return [float(squares[(snr >= low) & (snr < high)].mean().sqrt()) for low, high in bins]


def in_words(values: list[float]) -> str:
    """One number after the other."""
    return " ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    main()
