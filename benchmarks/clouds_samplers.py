"""How far the published sampler of Astro-DSB and ours get on clouds, and with how many network evaluations.

    python -m benchmarks.clouds_samplers --pairs clouds.zarr --checkpoint runs/density/density --out benchmarks/results

`published` is Astro-DSB's: from the noisy end of the bridge down any number of its 999 steps, with new noise at each,
to the state at index 0. `ours` is that of `translate`: second order, from the table's end at once to a noise level of
2; `eta 1` has new noise at each step, as the published one has, and `whole` also levels between the end and 2. All see
the same maps in one process, those that the store holds back.

The numbers are of log10 of what is predicted over what is true, in dex: fair CRPS, mean and standard deviation of a
single sample and of the median of K, share of the truths inside the 68% interval of the samples; and milliseconds per
sample of a map. The first two rows look at no maps: the mean of all other pairs, and pixels of theirs drawn at random.
The last column is the difference of a CRPS to that of the first published row, on the same maps, with its standard
error over simulations. All are printed and written to clouds_samplers.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.metrics import coverage_within, crps, interval_width
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.sampler import bridge_end, draw, window_noise
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.training import filled
from surveybridge.bridge_core.translate import window_samples
from surveybridge.storage.pair_store import held_back_of, open_store
from surveybridge.storage.pairs import read_pairs, read_simulations

PUBLISHED, OURS = (999, 250, 50, 10), (6, 8, 10)
"""Network evaluations a sample."""


def main() -> None:
    """Print a line for each sampler and number of evaluations; write clouds_samplers.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="pair store that holds pairs back")
    parser.add_argument("--checkpoint", required=True, help="of a one-way problem, on a Schrodinger bridge")
    parser.add_argument("--count", type=int, default=16, help="maps, evenly from those held back")
    parser.add_argument("--samples", type=int, default=4, help="K")
    parser.add_argument("--published", type=int, nargs="*", default=PUBLISHED, help="evaluations of the published one")
    parser.add_argument("--ours", type=int, nargs="*", default=OURS, help="evaluations of ours")
    parser.add_argument("--out", type=Path, default=None, help="folder for clouds_samplers.json")
    arguments = parser.parse_args()
    model = load_checkpoint(arguments.checkpoint)
    if model.card.bridge.kind != "schrodinger":
        raise SystemExit(f"{model.card.name} is on a {model.card.bridge.kind} bridge; give one on a Schrodinger bridge")
    (direction,) = model.card.problem.directions
    store = open_store(arguments.pairs, None, model.card.problem.table)
    held = held_back_of(store)
    pairs = read_pairs(arguments.pairs, model.card.grid, problem=model.card.problem.table)
    rows = [len(pairs) - held + k * held // arguments.count for k in range(arguments.count)]
    truth = torch.from_numpy(pairs.ends[direction.wanted.name]).log10()
    observed = torch.from_numpy(pairs.ends[direction.observed.name][rows])
    windows = filled(direction.observed.forward(observed, model.card.network.image_channels))
    print(f"{model.card.name}, {len(rows)} maps of {windows.shape[-1]} pixels, K = {arguments.samples}")
    print("sampler     NFE |   CRPS | single mean    std | median mean    std | inside 68% | ms a sample | difference")
    others = truth[: len(pairs) - held]
    known = others[torch.isfinite(others)]
    shape = (arguments.samples, *truth[rows].shape)
    drawn = torch.randint(len(known), shape, generator=torch.Generator().manual_seed(0))
    alike = {"mean": torch.full(shape, float(known.mean())), "no maps": known[drawn]}
    table = [{"sampler": name, "nfe": 0} | scores(said, truth[rows]) | {"ms": 0.0} for name, said in alike.items()]
    simulations = read_simulations(arguments.pairs) or list(map(str, range(len(pairs))))
    groups, first = np.array([simulations[row] for row in rows]), None
    for row in table:
        print_row(row)
    plain = Sampling(samples=arguments.samples, precision="float32")
    noisy = replace(plain, eta=1.0)
    whole = replace(noisy, sigma_max=float(model.card.bridge.sigma[-1]))
    asked = [("published", replace(plain, steps=nfe)) for nfe in arguments.published]
    for sampler, settings in (("ours", plain), ("eta 1", noisy), ("whole", whole)):
        asked += [(sampler, replace(settings, steps=nfe)) for nfe in arguments.ours]
    for name, how in asked:
        began = time.perf_counter()
        samples = published(model, direction, windows, how) if name == "published" else ours(model, windows, how)
        seconds = time.perf_counter() - began
        said = samples.log10()
        by_group = means_by(groups, crps(said, truth[rows]).where(truth[rows].isfinite(), torch.nan))
        first = by_group if first is None else first
        table.append(
            {"sampler": name, "nfe": how.steps}
            | scores(said, truth[rows])
            | {"ms": 1e3 * seconds / (len(rows) * arguments.samples), "difference": mean_and_error(by_group - first)}
        )
        print_row(table[-1])
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        document = {"checkpoint": model.card.name, "maps": len(rows), "samples": arguments.samples, "rows": table}
        (arguments.out / "clouds_samplers.json").write_text(json.dumps(document, indent=1) + "\n")


def published_steps(num_steps: int, nfe: int) -> list[int]:
    """Table indices from the last to 0, rounded as published; the network is not asked at 0."""
    return [round(k * (num_steps - 1) / nfe) for k in range(nfe, -1, -1)]


def published(model: Model, direction: Direction, windows: Tensor, how: Sampling) -> Tensor:
    """K samples of each window [N, C, H, W], [K, N, B, H, W] in the unit: I2SB eq. (4) with its two variances.

    x_p = (delta^2 x0 + sigma_p^2 x_n) / sigma_n^2 and noise of a variance of sigma_p^2 delta^2 / sigma_n^2, where
    delta^2 = sigma_n^2 - sigma_p^2; the result is the state at index 0, in which there is no noise.
    """
    card, steps = model.card, published_steps(model.card.bridge.num_steps, how.steps)
    p, q, r = card.objective.table(card.bridge)
    u, v = card.objective.input_table(card.bridge)
    variance = forward_variance(card.bridge).tolist()
    found = []
    for sample in range(how.samples):
        rows = [(window, sample) for window in range(len(windows))]
        noise = window_noise(how.seed, direction.index, rows, corners_of(windows), windows.device)
        x = end = bridge_end(card, windows, noise)
        predictor = model.predictor(windows, direction, steps[:-1], how.precision)
        for step, (n, m) in enumerate(itertools.pairwise(steps)):
            predictor.input.copy_(float(u[n]) * x + float(v[n]) * end)
            x0 = float(p[n]) * (x + float(r[n]) * end) + float(q[n]) * predictor(step, x).float()
            delta = variance[n] - variance[m]
            x = (delta * x0 + variance[m] * x) / variance[n]
            if m > 0:
                x = x + (variance[m] * delta / variance[n]) ** 0.5 * draw(noise, step, x)
        found.append(direction.wanted.inverse(x))
    return torch.stack(found)


def ours(model: Model, windows: Tensor, how: Sampling) -> Tensor:
    """K samples of each window by the sampler of `translate`, [K, N, B, H, W] in the unit."""
    (direction,) = model.card.problem.directions
    return window_samples(model, direction, windows, corners_of(windows), how).transpose(0, 1)


def forward_variance(bridge: Bridge) -> Tensor:
    """Sum of the betas up to each step of a Schrodinger bridge, float64 [T]."""
    return bridge.s**2 / bridge.a


def corners_of(windows: Tensor) -> list[tuple[int, int]]:
    """Places in the sky for windows that share no noise."""
    return [(0, windows.shape[-1] * k) for k in range(len(windows))]


def scores(samples: Tensor, truth: Tensor) -> dict[str, float]:
    """Scores of samples [K, N, B, H, W] against [N, B, H, W], both log10; pixels without data are left out."""
    known = torch.isfinite(truth)
    single, median = (samples[0] - truth)[known], (samples.median(0).values - truth)[known]
    width = (interval_width(0.68, len(samples)),)
    (inside,) = coverage_within(samples.mean(0), samples.std(0), truth, known, width)
    return {
        "crps": float(crps(samples, truth)[known].mean()),
        "single_mean": float(single.mean()),
        "single_std": float(single.std()),
        "median_mean": float(median.mean()),
        "median_std": float(median.std()),
        "inside_68": inside,
    }


def means_by(groups: NDArray[np.str_], values: Tensor) -> NDArray[np.float64]:
    """Means of maps [N, B, H, W] by their group [N], pixels without data left out; in the groups' order."""
    of_maps = values.flatten(1).double().nanmean(1).numpy()
    return np.array([of_maps[groups == group].mean() for group in np.unique(groups)])


def mean_and_error(values: ArrayLike) -> tuple[float, float]:
    """Mean of some values and its standard error, which is NaN for a single one."""
    found = np.asarray(values, np.float64)
    error = found.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else float("nan")
    return float(found.mean()), float(error)


def print_row(row: dict[str, Any]) -> None:
    """Print the scores of a sampler."""
    single = f"{row['single_mean']:+11.4f} {row['single_std']:.4f}"
    median = f"{row['median_mean']:+11.4f} {row['median_std']:.4f}"
    difference = "{:+.4f} +- {:.4f}".format(*row["difference"]) if "difference" in row else ""
    print(
        f"{row['sampler']:10} {row['nfe']:4d} | {row['crps']:.4f} | {single} | {median} | {row['inside_68']:10.3f} | "
        f"{row['ms']:11.1f} | {difference}",
        flush=True,
    )


if __name__ == "__main__":
    main()
