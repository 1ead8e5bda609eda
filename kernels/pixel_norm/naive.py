"""Norm over channels, FiLM and SiLU in plain PyTorch: the reference that the fused kernel approximates in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
"""Added to the variance, as `torch.nn.LayerNorm` does by default."""


def pixel_norm_silu_naive(x: Tensor, weight: Tensor, bias: Tensor, film: Tensor | None) -> Tensor:
    """Return the same as `pixel_norm_silu`, of any memory format; each operation rounds to the type of x."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return film_silu(F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, EPS).permute(0, 3, 1, 2), film)


def film_silu(h: Tensor, film: Tensor | None) -> Tensor:
    """Return silu(h (1 + scale) + shift) of [N, C, H, W] and film = (scale, shift), [N, 2C] or [1, 2C]; or silu(h).

    Where no gradient is wanted, h itself is overwritten: it is what a norm has just made. That gives the same bits, and
    with images of megabytes it takes half of the time, most of which goes into memory that is asked for and given back.
    """
    gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (h, film))
    # a result of the wider of two types has no place in h
    own = not gradient and (film is None or film.dtype == h.dtype)
    if film is not None:
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        h = h.mul_(1 + scale).add_(shift) if own else h * (1 + scale) + shift
    return F.silu(h, inplace=own)
