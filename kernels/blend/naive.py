"""Blending of overlapping windows in plain PyTorch: the reference that the fused kernel repeats bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def blend_naive(
    mean: Tensor, variance: Tensor, corners: Sequence[tuple[int, int]], taper: Tensor, box: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """Return mean and std of the mixture, float32 [C, H, W]; windows are added in the order of their corners.

    In float64, with one rounding per operation: w = taper(y) taper(x); W += w; A += w m; B += w (v + m m); then
    mean = A / W, std = sqrt(max(B / W - mean mean, 0)).
    """
    y0, y1, x0, x1 = box
    size, c = len(taper), mean.shape[1]
    total = torch.zeros(y1 - y0, x1 - x0, dtype=torch.float64, device=mean.device)
    first = torch.zeros(c, y1 - y0, x1 - x0, dtype=torch.float64, device=mean.device)
    second = torch.zeros_like(first)
    weight = taper[:, None] * taper[None, :]
    for index in sorted(range(len(corners)), key=lambda i: corners[i]):
        top, left = corners[index][0] - y0, corners[index][1] - x0
        ys, xs = (slice(max(at, 0), max(at + size, 0)) for at in (top, left))
        h, w = total[ys, xs].shape
        py, px = max(-top, 0), max(-left, 0)
        part = (slice(py, py + h), slice(px, px + w))
        m, v, omega = mean[index].double()[:, *part], variance[index].double()[:, *part], weight[part]
        total[ys, xs] += omega
        first[:, ys, xs] += omega * m
        second[:, ys, xs] += omega * (v + m * m)
    # in place: at the end of a large tile, this is where its worker needs most memory
    blended = first.div_(total)
    return blended.float(), second.div_(total).sub_(blended * blended).clamp_(min=0).sqrt_().float()
