r"""Mean and deviation from one evaluation and a small head: whether the intervals hold, and what they cost.

    surveybridge simulate-pairs --out other-skies.zarr --count 640 --seed 772
    python -m benchmarks.variance --pairs other-skies.zarr ../shared/data/pairs/test_regular.zarr \
        ../shared/data/pairs/test_lens.zarr --out benchmarks/results

The head (`bridge_core.maps`) lies beside the checkpoint; `surveybridge calibrate --maps` fits one. It is judged on the
first `--count` pairs of each store, and the first `--sampled` of these are sampled as well, as by `translate`. Bins are
those of the posterior mean over the sky noise, each method by its own. `rmse` is that of the head's mean over that of
the samples' mean on the pixels of the bin, `median error` the same of the median absolute error, and `std` the median
ratio of the standard deviations. Both are timed in turns on the same pairs, in processor seconds; `time` is the median
of the ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surveybridge.bridge_core.checkpoint import head_file, load_checkpoint
from surveybridge.bridge_core.maps import MapsHead, flux_moments, load_head
from surveybridge.bridge_core.metrics import interval_width
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.translate import moments, window_samples, with_shared_start
from surveybridge.jobs.calibrating.maps import Block, asked, blocks, read
from surveybridge.storage.pairs import Pairs

BINS = {
    "sky": (-math.inf, 1.5), "1.5-3": (1.5, 3.0), "3-10": (3.0, 10.0), "10-30": (10.0, 30.0), "30-100": (30.0, 100.0),
    "100-300": (100.0, 300.0), "bright": (3.0, 100.0),
}  # fmt: skip
"""Posterior mean over the sky noise."""
LEVEL = 0.68
BLOCK = 16
"""Pairs in one call of the network."""


def main() -> None:
    """Judge, print and write variance.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", required=True, help="pair stores that no fit has seen")
    parser.add_argument("--checkpoint", help="shipped name, or path (default: the shipped one)")
    parser.add_argument("--count", type=int, default=480, help="pairs of each store")
    parser.add_argument("--sampled", type=int, default=64, help="of these, pairs that are sampled")
    parser.add_argument("--out", type=Path, help="folder for variance.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(arguments.checkpoint)
    head = load_head(model, head_file(arguments.checkpoint))
    model = model.to("cpu", "bfloat16")
    report: dict[str, Any] = {}
    for url in arguments.pairs:
        pairs = read(model.card, url, 0, arguments.count)
        report[pairs.name] = {
            str(direction): judged(model, head, direction, pairs, arguments.sampled)
            for direction in model.card.problem.directions
        }
        print("\n".join(lines(pairs.name, report[pairs.name])), flush=True)
    if arguments.out:
        settings = {name: getattr(arguments, name) for name in ("count", "sampled")}
        document = {"checkpoint": model.card.name, "settings": settings, "stores": report}
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "variance.json").write_text(json.dumps(rounded(document), indent=1) + "\n")


def judged(model: Model, head: MapsHead, direction: Direction, pairs: Pairs, sampled: int) -> dict[str, Any]:
    """Numbers of one store in one direction, by bin, and the ratio of the times."""
    noise = noise_of(pairs, direction)
    mapped, drawn, seconds = [], [], []
    for block in blocks(model.card, direction, pairs, BLOCK, slice(sampled)):
        began = time.process_time()
        mapped.append(maps_of(model, head, direction, block))
        between = time.process_time()
        drawn.append(samples_of(model, direction, block))
        seconds.append((between - began, time.process_time() - between))
    for block in blocks(model.card, direction, pairs, BLOCK, slice(sampled, None)):
        mapped.append(maps_of(model, head, direction, block))
    truth = truth_of(direction, pairs)
    maps, samples = joined(mapped), joined(drawn)
    some, samples_k = len(samples[0]), Sampling.samples
    result: dict[str, Any] = {"pairs": len(truth), "sampled": some}
    result["time"] = statistics.median(one / other for one, other in seconds)
    for name, bounds in BINS.items():
        inside = within(maps, truth, noise, bounds, interval_width(LEVEL, 10**6))
        inside_samples = within(samples, truth[:some], noise[:some], bounds, interval_width(LEVEL, samples_k))
        chosen = chosen_pixels(samples[0], truth[:some], noise[:some], bounds)
        off, off_samples = ((truth[:some] - means[:some]).abs()[chosen].double() for means in (maps[0], samples[0]))
        result[name] = {
            "inside_68": inside[0],
            "pixels": inside[1],
            "inside_68_samples": inside_samples[0],
            "pixels_samples": inside_samples[1],
            "rmse": float((off.square().mean() / off_samples.square().mean()).sqrt()),
            "median_error": float(off.median() / off_samples.median()) if len(off) else math.nan,
            "std": float((maps[1][:some] / samples[1])[chosen].median()) if len(off) else math.nan,
        }
    return result


Moments = tuple[Tensor, Tensor]


def maps_of(model: Model, head: MapsHead, direction: Direction, block: Block) -> Moments:
    """Mean and standard deviation [N, B, H, W] from one evaluation."""
    with torch.inference_mode():
        return flux_moments(head, direction, asked(model, direction, block))


def samples_of(model: Model, direction: Direction, block: Block) -> Moments:
    """Mean and standard deviation [N, B, H, W] from samples, as runs draw them."""
    how = with_shared_start(model.card, Sampling())
    drawn = window_samples(model, direction, block.observed, block.corners, how, context=block.context)
    mean, variance = moments(drawn)
    return mean, variance.sqrt()


def joined(parts: list[Moments]) -> Moments:
    """Moments of all blocks."""
    means, deviations = zip(*parts, strict=True)
    return torch.cat(means), torch.cat(deviations)


def truth_of(direction: Direction, pairs: Pairs) -> Tensor:
    """The wanted images [N, B, H, W] in their unit."""
    return torch.from_numpy(pairs.ends[direction.wanted.name])


def noise_of(pairs: Pairs, direction: Direction) -> Tensor:
    """The sky noise of the wanted end, [N, B, 1, 1]."""
    name = direction.wanted.name
    if pairs.conditions is not None:
        return torch.from_numpy(pairs.conditions.ends[name].noise)[:, :, None, None]
    return torch.tensor(list(pairs.noise[name].values()))[None, :, None, None].expand(len(pairs), -1, 1, 1)


def chosen_pixels(mean: Tensor, truth: Tensor, noise: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Pixels with a mean in a bin and a known truth, bool [N, B, H, W]."""
    return (mean >= bounds[0] * noise) & (mean < bounds[1] * noise) & truth.isfinite()


def within(
    found: Moments, truth: Tensor, noise: Tensor, bounds: tuple[float, float], width: float
) -> tuple[float, int]:
    """Share of the pixels of a bin that lie inside the interval, and their number."""
    mean, std = found
    chosen = chosen_pixels(mean, truth, noise, bounds)
    inside = ((truth - mean).abs() <= width * std)[chosen]
    return (float(inside.float().mean()) if len(inside) else math.nan), len(inside)


def lines(name: str, found: dict[str, dict[str, Any]]) -> list[str]:
    """A table for each direction."""
    text = []
    for direction, row in found.items():
        text.append(
            f"\n{name}, {direction}: {row['pairs']} pairs, {row['sampled']} sampled; maps take "
            f"{row['time']:.3f} of the samples' time"
        )
        text.append("| mean over noise | 68% holds, maps | samples | rmse | median error | std | pixels |")
        text.append("|---|---|---|---|---|---|---|")
        for bin_ in BINS:
            of = row[bin_]
            text.append(
                f"| {bin_} | {of['inside_68']:.1%} | {of['inside_68_samples']:.1%} | {of['rmse']:.2f} | "
                f"{of['median_error']:.2f} | {of['std']:.2f} | {of['pixels']} |"
            )
    return text


def rounded(value: Any) -> Any:
    """JSON with four significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
