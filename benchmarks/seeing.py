"""Are sharpened skies right in flux and in spread, at every seeing, depth and PSF profile.

    python -m benchmarks.seeing --checkpoint seeing-v1 --count 24
    python -m benchmarks.seeing --checkpoint seeing-v1 --count 24 --brightest 600 --out seeing-no-stars.json

Skies of `simulating.sharp_skies` that no training has seen (other seeds) are observed through the process of the bridge
at `SEEING` x `DEPTHS` x `PROFILES`, sharpened, and held against themselves: median ratio of summed flux within 0.8" of
the objects in the middle; share of pixels whose truth lies in the 68% interval, and spread over error, with standard
deviations of the samples and, where the card has a recalibration, by that. Pixels are those whose posterior mean is
above three times the noise of the image, as in `benchmarks.skies`; and beside them ("true") those whose truth is: who
uses a map cannot choose these, and the mean of a faint pixel tends to miss its truth downwards where that is chosen.
It prints a row for each condition and writes all to benchmarks/results/seeing.json.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.conditions import ConditionRanges, Conditions
from surveybridge.bridge_core.context import Context, context_of
from surveybridge.bridge_core.metrics import interval_width
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.physics import Seeing
from surveybridge.bridge_core.scene import BandBlur, physics_of
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.sharpening import FLOOR, PAD, observed_windows
from surveybridge.bridge_core.translate import window_samples
from surveybridge.jobs.simulating.scenes import SceneSpec
from surveybridge.jobs.simulating.sharp_skies import draw_skies
from surveybridge.jobs.simulating.training_skies import SKY
from surveybridge.jobs.translating.scene import half_noise_power
from surveybridge.storage.homogenise import spline_lags
from surveybridge.storage.psf import Gaussian, Moffat, Psf, parse_psf
from surveybridge.storage.spline import noise_covariance

RESULTS = Path(__file__).parent / "results" / "seeing.json"

SEEING = (0.5, 0.7, 0.9, 1.1)
"""FWHM, arcsec."""
DEPTHS = {"10 years": 1.0, "1 year": 10**0.5}
"""Noise over that of ten years."""
PROFILES = ("gaussian", "moffat 3.5", "moffat 2.5")
NATIVE = 0.2
SEED = 90_210
SIZE = 96
SNR = 3.0
APERTURE = 8
"""Radius in pixels about the middle of a window in which fluxes are summed."""


def profile(kind: str, fwhm: float) -> Psf:
    """A PSF by its name."""
    return Gaussian(fwhm) if kind == "gaussian" else Moffat(fwhm, float(kind.split()[1]))


def skies(count: int, seed: int = SEED) -> tuple[Tensor, Tensor]:
    """Sharp skies [N, 3, 96, 96] nJy, and which of them have an object in the middle, bool [N]."""
    spec = SceneSpec(size=SIZE, windows=12, grid="sharp")
    drawn = draw_skies(spec, seed, list(range(-(-count // 12))))
    return drawn.sharp[:count], torch.from_numpy(drawn.labels["role"][:count] != "sky")


def observed(
    model: Model, sky: Tensor, psf: Psf, depth: float, generator: torch.Generator
) -> tuple[Tensor, Context, Tensor]:
    """Windows [N, C, 64, 64] in network units, what the network is told of them, and the noise by band, nJy."""
    card, direction = model.card, model.card.problem.directions[0]
    end = direction.observed
    lags = spline_lags(end.pixel_scale / NATIVE, 0.0)
    share = noise_covariance(0.0, 0.0) * (end.pixel_scale / NATIVE) ** 2
    sigma = tuple(depth * share * value for value in SKY[: len(end.bands)])
    seeing = Seeing(parse_psf(card.bridge.parameters["sharp"]), psf, end.pixel_scale, (end.pixel_scale, NATIVE))
    blurs = [BandBlur(seeing, lambda shape: half_noise_power(lags, shape))] * len(end.bands)
    physics = physics_of(card, direction, blurs, sigma, SIZE - 2 * PAD)
    conditions = Conditions(sigma, (psf.fwhm,) * 3, (psf.wing,) * 3, (lags[1],) * 3)
    nominal = (card.conditions or ConditionRanges({})).nominal_of(direction.wanted.name, direction.wanted.bands)
    valid = torch.ones(len(end.bands), SIZE - 2 * PAD, SIZE - 2 * PAD, dtype=torch.bool)
    noise = torch.tensor(sigma)[:, None, None].expand(valid.shape)
    told = context_of(
        direction, card.network.image_channels, noise, valid, {end.name: conditions, direction.wanted.name: nominal}
    )
    context = Context(told.maps.expand(len(sky), -1, -1, -1), told.vector, physics)
    units = direction.wanted.forward(sky, card.network.image_channels)
    return observed_windows(card, units, context, generator), context, torch.tensor(sigma)


def judge(model: Model, sky: Tensor, there: Tensor, psf: Psf, depth: float, how: Sampling) -> dict[str, float]:
    """Flux ratio, coverage, and spread over error at one seeing and depth, over all bands."""
    x1, context, sigma = observed(model, sky, psf, depth, torch.Generator().manual_seed(SEED))
    corners = [(1000 * n, 1000) for n in range(len(sky))]
    direction = model.card.problem.directions[0]
    drawn = window_samples(model, direction, x1, corners, how, context=context)
    inner = np.s_[..., 8:-8, 8:-8]
    mean, std, truth = drawn.mean(1)[inner], drawn.std(1)[inner], sky[..., PAD:-PAD, PAD:-PAD][inner]
    stated = {"": std}
    if model.card.recalibration is not None:
        factors = [model.card.recalibration.factors(one.numpy(), direction) for one in mean]
        stated["_calibrated"] = std * torch.from_numpy(np.stack(factors))
    held: dict[str, float] = {}
    for of, image in (("", mean), ("_true", truth)):
        bright = image > SNR * sigma[:, None, None]
        error = (mean - truth)[bright]
        held["pixels" + of] = int(bright.sum())
        for name, deviation in stated.items():
            inside = error.abs() < interval_width(0.68, how.samples) * deviation[bright]
            spread = deviation[bright] * math.sqrt(1 + 1 / how.samples)
            ratio = spread.square().mean() / error.square().mean()
            held[f"inside_68{of}{name}"] = round(float(inside.float().mean()), 4)
            held[f"spread_over_error{of}{name}"] = round(float(ratio.sqrt()), 3)
    y, x = np.indices(truth.shape[-2:]) - (truth.shape[-1] - 1) / 2
    disc = torch.from_numpy(np.hypot(y, x) <= APERTURE)
    fluxes, found = ((image * disc).sum((-2, -1))[there] for image in (truth, mean))
    seen = fluxes > 10 * sigma * disc.sum().sqrt()
    ratio = (found / fluxes)[seen]
    return {
        "flux": round(float(ratio.median()), 4),
        "flux_16_84": round(float((ratio.quantile(0.84) - ratio.quantile(0.16)) / 2), 4),
        **held,
        "objects": int(seen.sum()),
    }


def main() -> None:
    """Judge a checkpoint, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--count", type=int, default=48, help="skies")
    parser.add_argument(
        "--brightest", type=float, default=math.inf, help="nJy: skies with a brighter pixel are left out"
    )
    parser.add_argument("--samples", type=int, default=8, help="K")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    sky, there = skies(arguments.count)
    kept = sky.amax((1, 2, 3)) <= arguments.brightest
    sky, there = sky[kept], there[kept]
    how = Sampling(samples=arguments.samples, steps=arguments.steps, seed=5)
    rows = []
    for fwhm in SEEING:
        for depth, noise in DEPTHS.items():
            for kind in PROFILES:
                found = judge(model, sky, there, profile(kind, fwhm), noise, how)
                rows.append({"seeing": fwhm, "depth": depth, "psf": kind, **found})
                print(rows[-1], flush=True)
    arguments.out.write_text(
        json.dumps({"checkpoint": model.card.name, "skies": len(sky), "floor": FLOOR, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
