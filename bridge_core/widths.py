"""Depth of a cloud along the line of sight from widths of its structure on the sky: the density without any training.

Constrained diffusion (Li 2022) takes a map apart by scale: peaks diffuse, valleys stay, so no channel is negative. The
width at a pixel is the mean of the channels' scales, weighted by what they hold (Zhao et al. 2025, MDR); a structure is
as deep as it is wide.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from surveybridge.bridge_core.correlate import gaussian_blur

PARSEC = 3.0857e18
"""cm."""
RATIO = math.sqrt(2)
"""Of the scales of neighbouring channels."""
STEP = 0.05
"""Of the diffusion time, as a share of it."""
SHORTEST = 0.25
"""Of those steps, pixel^2."""
DEPTH = 2 * math.sqrt(math.pi) / math.sqrt(8 * math.log(2))
"""Depth over width, as published: that of a Gaussian whose full width at half maximum is the width. (Of a Gaussian on
the sky the width comes out as about its standard deviation, so that its density is 2.4 times too high.)"""


def channels(image: Tensor) -> tuple[Tensor, list[float]]:
    """Take maps apart by scale.

    Parameters
    ----------
    image
        float [N, H, W], not negative and without gaps.

    Returns
    -------
    Tensor
        [S, N, H, W], not negative, sum of all is the map: of the smallest scale first, and what no diffusion has moved
        with the largest.
    list of float
        Scale of each, pixels.
    """
    half = min(image.shape[-2:]) / 2
    scales = [RATIO**n for n in range(max(1, math.floor(math.log(half, RATIO)) + 1))]
    rest, time, found = image[:, None], 0.0, []
    for scale in scales:
        before, end = rest, (RATIO * scale) ** 2 / 2  # a Gaussian kernel of this scale, which spreads as sqrt(2 t)
        while time < end - 1e-9:
            step = min(max(STEP * time, SHORTEST), end - time)
            rest = torch.minimum(rest, gaussian_blur(rest, math.sqrt(2 * step)))
            time += step
        found.append(before - rest)
    found[-1] = found[-1] + rest
    return torch.stack(found)[:, :, 0], scales


def depth(column: Tensor) -> Tensor:
    """Depth along the line of sight in pixels, float64 [N, H, W], of columns that are not negative and have no gaps."""
    parts, scales = channels(column.double() / column.double().amax((-2, -1), keepdim=True))
    logs = torch.tensor([math.log2(scale) for scale in scales], dtype=torch.float64)
    width = 2 ** (torch.einsum("snyx,s->nyx", parts, logs) / parts.sum(0).clamp(min=1e-300))
    return width * DEPTH
