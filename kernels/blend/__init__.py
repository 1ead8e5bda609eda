"""Blending of overlapping windows into a tile, in an order that does not depend on the order of the windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surveybridge.kernels.blend.naive import blend_naive
from surveybridge.kernels.dispatch import Impl, choose_impl
from surveybridge.kernels.transfer import to_device

__all__ = ["blend"]


def blend(
    mean: Tensor,
    variance: Tensor,
    corners: Sequence[tuple[int, int]],
    taper: Tensor,
    box: tuple[int, int, int, int],
    *,
    stride: int,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute, at each pixel of a box, the moments of the mixture of all windows that reach it.

    Fused, each pixel of the box gathers its windows itself, row by row of corners. No atomic addition is needed, so the
    order of the sum is fixed. A value costs 8 bytes read for each window over it (4 windows on the default grid, in
    float64 registers) and 8 bytes written.

    Parameters
    ----------
    mean, variance : Tensor
        float32 [P, C, S, S], in any unit and its square; finite even in a window's border, where the taper is 0.
    corners : sequence of tuple of int
        Global (y, x) of each window's first pixel, multiples of `stride`, in any order, without repetition.
    taper : Tensor
        float64 [S], weight along one axis, 0 within the margin at both ends; a pixel's weight is the product of two.
    box : tuple of int
        Global (y0, y1, x0, x1) of the pixels that are wanted.
    stride : int
        Pixels between neighbouring windows.
    impl : {"auto", "naive", "triton"}
        "auto" is Triton on CUDA tensors, naive otherwise; both give the same bits.

    Returns
    -------
    tuple of Tensor
        Mean and standard deviation, float32 [C, H, W]; NaN where no window reaches.

    Raises
    ------
    ValueError
        If shapes or dtypes differ, or corners are not on the grid.
    """
    p, size = len(corners), len(taper)
    if mean.ndim != 4 or mean.shape != variance.shape or mean.shape[0] != p or mean.shape[2:] != (size, size):
        raise ValueError(
            f"blend: mean has shape {list(mean.shape)} and variance {list(variance.shape)} but {p} corners and a taper "
            f"of {size} need both [{p}, C, {size}, {size}]"
        )
    if not mean.dtype == variance.dtype == torch.float32 or taper.dtype != torch.float64:
        raise ValueError(
            f"blend: mean, variance, taper are {mean.dtype}, {variance.dtype}, {taper.dtype} but must be float32, "
            "float32, float64; convert them"
        )
    off = [corner for corner in corners if corner[0] % stride or corner[1] % stride]
    if off or len(set(corners)) != p:
        raise ValueError(
            f"blend: {len(off)} of {p} corners are not multiples of the stride {stride}, first {off[:1]}, and "
            f"{p - len(set(corners))} are given twice; take them from one grid"
        )
    taper = to_device(taper, mean.device)
    if choose_impl(impl, mean.device) == "naive":
        return blend_naive(mean, variance, corners, taper, box)
    from surveybridge.kernels.blend.triton import blend_triton  # late: Triton is absent where there is no GPU

    return blend_triton(mean, variance, corners, taper, box, stride)
