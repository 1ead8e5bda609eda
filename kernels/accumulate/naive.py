"""Moments over the samples of a posterior in plain PyTorch: the reference that the fused kernel repeats bit for bit."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Accumulated(NamedTuple):
    """Statistics of K samples, float32 [P, ...]: mean, summed squared deviations, smallest squared error (or None)."""

    mean: Tensor
    m2: Tensor
    least: Tensor | None


def accumulate_naive(
    samples: Tensor, target: Tensor | None, since: Accumulated | None = None, count: int = 0
) -> Accumulated:
    """Run Welford's recurrence (1962) over the second dimension of float32 [P, K, ...], one rounding per operation.

    It goes on from what `count` earlier samples have left.

    delta = x - mean;  mean = mean + delta (1 / k);  m2 = m2 + delta (x - mean), with 1 / k rounded to float32;
    least = min(least, (x - target) (x - target)).
    """
    if since is not None:
        mean, m2, least = (None if one is None else one.clone() for one in since)
        assert mean is not None and m2 is not None
    else:
        mean = torch.zeros_like(samples[:, 0], memory_format=torch.contiguous_format)
        m2 = torch.zeros_like(mean)
        least = None if target is None else torch.full_like(mean, torch.inf)
    for k in range(samples.shape[1]):
        x = samples[:, k]
        delta = x - mean
        mean += delta * (1 / (count + k + 1))
        m2 += delta.mul_(x - mean)
        if least is not None and target is not None:
            error = x - target
            torch.minimum(least, error.mul_(error), out=least)
    return Accumulated(mean, m2, least)
