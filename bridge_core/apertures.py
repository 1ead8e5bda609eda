"""Circles around the centre of a stamp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def aperture(shape: Sequence[int], radius: float, oversample: int = 5) -> Tensor:
    """Share of each pixel inside a circle around the image's centre, float32 [H, W]."""
    places = [
        (torch.arange(n * oversample, dtype=torch.float64) + 0.5) / oversample - n / 2 for n in shape
    ]  # sub-pixels from the centre
    inside = (places[0][:, None] ** 2 + places[1][None] ** 2 <= radius**2).float()
    return torch.nn.functional.avg_pool2d(inside[None, None], oversample)[0, 0]
