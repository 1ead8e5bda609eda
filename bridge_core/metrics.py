"""Scores of a probabilistic translation."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_range(u: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Network units clipped to `bounds` and scaled to [0, 1]; AS-Bridge's bounds are (-1, 1)."""
    low, high = bounds
    return (u.clamp(low, high) - low) / (high - low)


def energy_score(samples: Tensor, truth: Tensor, bounds: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Energy score as AS-Bridge defines it (it calls it CRPS): mean |X - y| - mean |X - X'| / 2 over all K^2 pairs.

    Parameters
    ----------
    samples
        [K, N, C, H, W] in network units.
    truth
        [N, C, H, W].
    bounds
        Network units that map to [0, 1].

    Returns
    -------
    Tensor
        [N]; the norm is over all pixels and channels. The K pairs of a sample with itself count, so it is biased high.
    """
    x, y = unit_range(samples, bounds).flatten(2), unit_range(truth, bounds).flatten(1)
    to_truth = torch.linalg.vector_norm(x - y, dim=-1).mean(0)
    among = torch.linalg.vector_norm(x[:, None] - x[None], dim=-1).mean((0, 1))
    return to_truth - 0.5 * among


def coverage_within(mean: Tensor, std: Tensor, truth: Tensor, where: Tensor, widths: tuple[float, ...]) -> list[float]:
    """Share of the pixels `where` whose truth lies within each of `widths` standard deviations of the mean."""
    pull = ((truth - mean) / std)[where].abs()
    return [float((pull <= width).double().mean()) for width in widths]
