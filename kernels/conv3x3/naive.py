"""A 3 x 3 convolution and what follows it in plain PyTorch: the reference that the fused kernel approximates."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from surveybridge.kernels.pixel_norm.naive import pixel_norm_silu_naive


class Norm(NamedTuple):
    """The pixel norm, FiLM and SiLU that follow; see `pixel_norm_silu`."""

    weight: Tensor
    bias: Tensor
    film: Tensor | None = None


class Rest(NamedTuple):
    """What is added: x of the result's shape, or its 1 x 1 convolution with weight [C, Cx, 1, 1] and bias [C]."""

    x: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None


def conv3x3_naive(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, unshuffle: int, shuffle: int, rest: Rest | None
) -> Tensor:
    """Return the sum that `conv3x3` keeps, of any memory format; each operation rounds to the type of x."""
    if unshuffle > 1:
        x = F.pixel_unshuffle(x, unshuffle)
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    h = F.conv2d(x, weight, bias, stride, 1) if weight.ndim == 4 else four_phases(x, weight, bias)
    if rest is not None:
        added = rest.x
        if rest.weight is not None and rest.bias is not None:
            added = F.conv2d(added, rest.weight.to(x.dtype), rest.bias.to(x.dtype))
        h = h + added
    return F.pixel_shuffle(h, shuffle) if shuffle > 1 else h


def activate_naive(h: Tensor, norm: Norm) -> Tensor:
    """Return the activation that `conv3x3` makes of its sum."""
    return pixel_norm_silu_naive(h, *norm)


def upsampling_weight(weight: Tensor) -> Tensor:
    """Sum a 3 x 3 weight to that of the same convolution after nearest-neighbour doubling, without the doubling.

    An output pixel at (2 y + p, 2 x + q) sees only 2 x 2 of the small pixels, some of them under several of its nine
    weights. Sums are of float32, and are rounded once to the type of the weight.

    Parameters
    ----------
    weight : Tensor
        [C, Cx, 3, 3].

    Returns
    -------
    Tensor
        [4, C, Cx, 2, 2], one for each phase 2 p + q; the channels Cx are neighbours in memory.
    """
    rows = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float32)
    summed = torch.einsum("pab,qcd,oibd->pqoaci", rows, rows, weight.float())
    return summed.flatten(0, 1).to(weight.dtype).contiguous().permute(0, 1, 4, 2, 3)


def four_phases(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve with `upsampling_weight`: [N, Cx, H, W] -> [N, C, 2H, 2W]."""
    phases = [
        F.conv2d(F.pad(x, (1 - q, q, 1 - p, p)), weight[2 * p + q], bias) for p in (0, 1) for q in (0, 1)
    ]  # fmt: skip
    return F.pixel_shuffle(torch.stack(phases, 2).flatten(1, 2), 2)
