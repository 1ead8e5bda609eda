"""Errors of positive quantities in dex, r = log10(predicted / true), as sums that add up over any split of the work.

A density or a field strength spans decades, and an error of it is a factor. Pixels are judged for three estimates that
K samples give: a single sample, as published; their mean; their median. Their logarithms make the predictive
distribution, whose CRPS, intervals and ranks are those of `bridge_core.metrics`.

What needs the whole distribution of r (quantiles, the core) is read off histograms of it, whose bins are narrower than
any error of interest; means and standard deviations come from sums, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.bridge_core.evaluation import LEVELS
from surveybridge.bridge_core.metrics import crps, interval_width, ranks

ESTIMATES = ("single", "mean", "median")
"""What stands for the posterior: its first sample, or mean or median of all; of the mean it is that of the values."""
FACTOR = math.log10(2)
"""A factor of two, dex."""
FARTHEST = 39.0
"""log10 of what is more than float32 holds."""
REACH, BINS = 4.0, 1600
"""Histograms of r have so many bins from -REACH to REACH dex; one more at each end holds what lies beyond."""
CORE = 3.0
"""Standard deviations around the core's mean that count for the core."""
ROUNDS = 100
"""The core is refitted so often at most."""

Floats = NDArray[np.float64]

_EDGES = np.linspace(-REACH, REACH, BINS + 1)
_CENTRES = np.concatenate([[-REACH], (_EDGES[1:] + _EDGES[:-1]) / 2, [REACH]])
_WITHIN = 1 - 2 * CORE * math.exp(-(CORE**2) / 2) / (math.sqrt(2 * math.pi) * math.erf(CORE / math.sqrt(2)))
"""Variance of a normal deviate that is known to lie within `CORE`."""


@dataclass(frozen=True, eq=False)
class DexSums:
    """Sums over the valid pixels of each pair, by band.

    Parameters
    ----------
    pixels, crps, variance
        float64 [N, B]: count; fair CRPS in dex; unbiased variance of the samples' logarithms.
    within
        float64 [N, B, L]: pixels inside the predictive interval of each of `LEVELS`.
    ranks
        float64 [N, B, K + 1]: histogram of the truth's rank among the samples.
    residual, residual_squared
        float64 [N, B, E]: r and r^2 of each of `ESTIMATES`.
    relative, relative_squared
        float64 [N, B, E]: (predicted - true) / true and its square.
    factor_two
        float64 [N, B, E]: pixels within a factor of two of the truth.
    histogram
        float64 [N, B, E, BINS + 2] of r.
    """

    pixels: Tensor
    crps: Tensor
    variance: Tensor
    within: Tensor
    ranks: Tensor
    residual: Tensor
    residual_squared: Tensor
    relative: Tensor
    relative_squared: Tensor
    factor_two: Tensor
    histogram: Tensor

    @classmethod
    def of(cls, samples: Tensor, truth: Tensor, valid: Tensor) -> DexSums:
        """Judge samples against a truth.

        Parameters
        ----------
        samples
            float [K, N, B, H, W], K at least 2. What is no number above 0, as of a network that diverged, counts as
            `FARTHEST` from 1.
        truth
            float [N, B, H, W], above 0 where valid.
        valid
            bool [N, B, H, W], the pixels to judge; what the others hold is not read.
        """
        k, where = len(samples), valid.double()
        x = torch.where(valid, samples.double(), 1.0).log10()
        x = torch.nan_to_num(x, nan=FARTHEST, posinf=FARTHEST, neginf=-FARTHEST)
        y = torch.where(valid, truth.double(), 1.0).log10()

        def total(values: Tensor) -> Tensor:
            return (values * where).sum((-2, -1))

        mean, std = x.mean(0), x.std(0)
        pull = torch.where(std > 0, (y - mean).abs() / std, torch.inf)
        rank = ranks(x, y)
        # x - x.max() first: the mean of values that span decades, without their square or a unit
        most = x.amax(0)
        single, linear = x[0], most + (10 ** (x - most)).mean(0).log10()
        middle = x.sort(0).values[[(k - 1) // 2, k // 2]].mean(0)
        r = torch.stack([single - y, linear - y, middle - y], 2)  # [N, B, E, H, W]
        judged = where[:, :, None]
        relative = 10**r - 1

        def each(values: Tensor) -> Tensor:
            return (values * judged).sum((-2, -1))

        return cls(
            pixels=where.sum((-2, -1)),
            crps=total(crps(x, y)),
            variance=total(std**2),
            within=torch.stack([total(pull <= interval_width(level, k)) for level in LEVELS], -1),
            ranks=torch.stack([total(rank == j) for j in range(k + 1)], -1),
            residual=each(r),
            residual_squared=each(r**2),
            relative=each(relative),
            relative_squared=each(relative**2),
            factor_two=each(r.abs() <= FACTOR),
            histogram=_histograms(r, valid),
        )

    def arrays(self) -> dict[str, Floats]:
        """All sums by name."""
        return {field.name: getattr(self, field.name).numpy() for field in fields(self)}


@dataclass(frozen=True, eq=False)
class DexMeasures:
    """Measures of summed `DexSums`, float64 with the leading axes of the sums, [..., E] where they are of an estimate.

    NaN where there is nothing to measure. `bias` and `scatter` are mean and standard deviation of r; `core_bias` and
    `core_scatter` those of the Gaussian that fits its core (`core_of`); `middle` its median, `half_width` half the
    distance of its 16th and 84th percentiles; `factor_two` the share of pixels within a factor of two;
    `relative_bias` and `relative_scatter` mean and standard deviation of (predicted - true) / true; `spread` the root
    mean square of the samples' standard deviation in dex; `coverage` [..., L], `pit` [..., K + 1] shares.
    """

    bias: Floats
    scatter: Floats
    core_bias: Floats
    core_scatter: Floats
    middle: Floats
    half_width: Floats
    factor_two: Floats
    relative_bias: Floats
    relative_scatter: Floats
    crps: Floats
    spread: Floats
    coverage: Floats
    pit: Floats

    @classmethod
    def of(cls, sums: Mapping[str, Floats]) -> DexMeasures:
        """Compute the measures of sums by their names in `DexSums`, added up over any pairs."""
        with np.errstate(invalid="ignore", divide="ignore"):
            share = 1 / np.where(sums["pixels"] > 0, sums["pixels"], np.nan)
            each = share[..., None]
            low, middle, high = quantiles(sums["histogram"], (0.16, 0.5, 0.84))
            core_bias, core_scatter = core_of(sums["histogram"])
            return cls(
                bias=sums["residual"] * each,
                scatter=_deviation(sums["residual"] * each, sums["residual_squared"] * each),
                core_bias=core_bias,
                core_scatter=core_scatter,
                middle=middle,
                half_width=(high - low) / 2,
                factor_two=sums["factor_two"] * each,
                relative_bias=sums["relative"] * each,
                relative_scatter=_deviation(sums["relative"] * each, sums["relative_squared"] * each),
                crps=sums["crps"] * share,
                spread=np.sqrt(sums["variance"] * share),
                coverage=sums["within"] * each,
                pit=sums["ranks"] * each,
            )


def quantiles(histogram: Floats, shares: tuple[float, ...]) -> tuple[Floats, ...]:
    """Values of r, float64 [...], below which these shares of histograms [..., BINS + 2] lie; linear within a bin.

    Beyond the bins there is no place: a quantile there is the last edge.
    """
    total = histogram.sum(-1, keepdims=True)
    below = np.cumsum(histogram, -1)[..., :-1]  # up to each of the edges
    found = []
    for share in shares:
        wanted = share * total
        bin_ = np.sum(below < wanted, -1, keepdims=True)
        right = np.clip(bin_, 1, BINS)
        low, high = (np.take_along_axis(below, right - step, -1) for step in (1, 0))
        with np.errstate(invalid="ignore", divide="ignore"):
            part = np.clip((wanted - low) / (high - low), 0, 1)
        value = _EDGES[right - 1] + np.where(bin_ > BINS, 1.0, part) * (_EDGES[1] - _EDGES[0])
        found.append(np.where(total > 0, value, np.nan)[..., 0])
    return tuple(found)


def core_of(histogram: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the Gaussian core of histograms [..., BINS + 2] of r, float64 [...] each.

    Moments of what lies within `CORE` standard deviations of the core's mean, refitted until it stays; the standard
    deviation is that of the whole Gaussian, of which 2.7% of the variance lies beyond. Wings do not count.
    """
    sums = [np.cumsum(histogram * _CENTRES**power, -1) for power in range(3)]
    sums = [np.concatenate([np.zeros_like(of[..., :1]), of], -1) for of in sums]
    shape = histogram.shape[:-1]
    low, high = np.zeros((*shape, 1), np.int64), np.full((*shape, 1), BINS + 2)
    mean, deviation = np.full(shape, np.nan), np.full(shape, np.nan)
    width = _EDGES[1] - _EDGES[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        for round_ in range(ROUNDS):
            count, first, second = (
                (np.take_along_axis(of, high, -1) - np.take_along_axis(of, low, -1))[..., 0] for of in sums
            )
            mean = first / count
            variance = second / count - mean**2 - width**2 / 12  # what the bins add
            deviation = np.sqrt(np.maximum(variance, 0) / (_WITHIN if round_ else 1))
            reach = np.maximum(CORE * deviation, 1.5 * width)
            edges = np.stack([mean - reach, mean + reach])
            bounds = np.nan_to_num(np.rint((edges + REACH) / width), nan=0.0)
            # bin 0 lies below all edges, so bin 1 begins at the first
            new = (np.clip(bounds, 0, BINS) + 1).astype(np.int64)[..., None]
            if np.array_equal(new[0], low) and np.array_equal(new[1], high):
                break
            low, high = new
    return mean, deviation


def _deviation(mean: Floats, square: Floats) -> Floats:
    return np.sqrt(np.maximum(square - mean**2, 0))


def _histograms(r: Tensor, valid: Tensor) -> Tensor:
    """Histograms of r [N, B, E, H, W] over the valid pixels [N, B, H, W], float64 [N, B, E, BINS + 2]."""
    n, b, e = r.shape[:3]
    scaled = torch.floor((r + REACH) * (BINS / (2 * REACH))).clamp(-1, BINS).long() + 1
    group = torch.arange(n * b * e, device=r.device).view(n, b, e, 1, 1)
    kept = valid[:, :, None].expand_as(r)
    flat = (group * (BINS + 2) + scaled)[kept]
    return torch.bincount(flat, minlength=n * b * e * (BINS + 2)).view(n, b, e, BINS + 2).double()
