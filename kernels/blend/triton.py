"""Blending as a gather: each pixel of the tile reads the windows over it, in the order of their corners."""

# mypy: disable-error-code="no-untyped-def"
# (a jitted function's arguments are Triton's blocks, pointers and scalars, which have no static types)

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from surveybridge.kernels.dispatch import LAUNCH, check_launch
from surveybridge.kernels.transfer import to_device

BLOCK = 256


def blend_triton(
    mean: Tensor,
    variance: Tensor,
    corners: Sequence[tuple[int, int]],
    taper: Tensor,
    box: tuple[int, int, int, int],
    stride: int,
) -> tuple[Tensor, Tensor]:
    """Return the same bits as `blend_naive`."""
    check_launch(blend_kernel, mean.device)
    y0, y1, x0, x1 = box
    c, size, (h, w) = mean.shape[1], len(taper), (y1 - y0, x1 - x0)
    out = [torch.empty((c, h, w), dtype=torch.float32, device=mean.device) for _ in range(2)]
    if not out[0].numel():
        return out[0], out[1]
    # row and column of the first windows that can reach the box, and how many rows and columns of windows can
    first = ((y0 - size) // stride + 1, (x0 - size) // stride + 1)
    rows, columns = (last // stride - n + 1 for last, n in zip((y1 - 1, x1 - 1), first, strict=True))
    index = torch.full((rows, columns), -1, dtype=torch.int32)
    at = torch.tensor(corners, dtype=torch.int64).view(-1, 2) // stride - torch.tensor(first)
    window = ((at >= 0) & (at < torch.tensor((rows, columns)))).all(1).nonzero()[:, 0]
    index[at[window, 0], at[window, 1]] = window.int()
    with torch.cuda.device_of(mean):  # Triton launches on the current device, not on that of its tensors
        blend_kernel[(triton.cdiv(h * w, BLOCK), c)](
            *out, mean.contiguous(), variance.contiguous(), to_device(index, mean.device), taper,
            y0 - first[0] * stride, x0 - first[1] * stride, rows, columns, h * w, w, stride,
            SIZE=size, REACH=triton.cdiv(size, stride), BLOCK=BLOCK, **LAUNCH,
        )  # fmt: skip
    return out[0], out[1]


@triton.jit
def blend_kernel(
    p_mean, p_std, p_m, p_v, p_index, p_taper, from_y, from_x, rows, columns, HW, W, stride,
    SIZE: tl.constexpr, REACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Blend BLOCK pixels of the box in one band: the work of one program.

    `from_y` and `from_x` are the offset of the box from the corner of the first window.
    """
    i_c = tl.program_id(1)
    o_i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_i = o_i < HW
    b_y = from_y + o_i // W
    b_x = from_x + o_i % W
    b_total = tl.zeros((BLOCK,), tl.float64)
    b_first = tl.zeros((BLOCK,), tl.float64)
    b_second = tl.zeros((BLOCK,), tl.float64)
    for j in tl.static_range(REACH):
        b_row = b_y // stride - (REACH - 1) + j
        b_wy = b_y - b_row * stride
        for i in tl.static_range(REACH):
            b_column = b_x // stride - (REACH - 1) + i
            b_wx = b_x - b_column * stride
            m_w = m_i & (b_wy < SIZE) & (b_wx < SIZE) & (b_row >= 0) & (b_column >= 0)
            m_w = m_w & (b_row < rows) & (b_column < columns)
            b_window = tl.load(p_index + b_row * columns + b_column, mask=m_w, other=-1)
            m_w = m_w & (b_window >= 0)
            b_weight = tl.load(p_taper + b_wy, mask=m_w, other=0.0) * tl.load(p_taper + b_wx, mask=m_w, other=0.0)
            o_w = (b_window.to(tl.int64) * tl.num_programs(1) + i_c) * SIZE * SIZE + b_wy * SIZE + b_wx
            b_m = tl.load(p_m + o_w, mask=m_w, other=0.0).to(tl.float64)
            b_v = tl.load(p_v + o_w, mask=m_w, other=0.0).to(tl.float64)
            b_total += b_weight
            b_first += b_weight * b_m
            b_second += b_weight * (b_v + b_m * b_m)
    m_reached = b_total > 0
    b_total = tl.where(m_reached, b_total, 1.0)
    b_mean = b_first / b_total
    b_variance = b_second / b_total - b_mean * b_mean
    b_variance = tl.where(b_variance < 0, 0.0, b_variance)  # comparisons with NaN are false, so NaN stays
    o_out = i_c.to(tl.int64) * HW + o_i
    b_std = tl.sqrt(b_variance)
    tl.store(p_mean + o_out, tl.where(m_reached, b_mean, float("nan")).to(tl.float32), mask=m_i)
    tl.store(p_std + o_out, tl.where(m_reached, b_std, float("nan")).to(tl.float32), mask=m_i)
