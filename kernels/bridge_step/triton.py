"""The fused bridge step: each input is read once, noise is drawn in registers, and each result is written once."""

# mypy: disable-error-code="no-untyped-def"
# (a jitted function's arguments are Triton's blocks, pointers and scalars, which have no static types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from surveybridge.kernels.bridge_step.naive import StepCoefficients, StepTable
from surveybridge.kernels.dispatch import LAUNCH, check_launch
from surveybridge.kernels.sky_noise import SkyNoise
from surveybridge.kernels.sky_noise.triton import BLOCK, key_words, window_normals, windows


def bridge_step_triton(
    x_t: Tensor,
    pred: Tensor,
    x1: Tensor,
    table: StepTable,
    step: int,
    noise: Tensor | SkyNoise | None,
    clamp: tuple[float, float] | None,
    x0_prev: Tensor | None,
    out: tuple[Tensor, Tensor],
    next_input: Tensor | None,
) -> None:
    """Write the same bits as `bridge_step_naive` into `out` and `next_input`, with one launch and no other operator.

    Tensors whose pixels have no common stride, and integers of `noise` that are not int32, are copied first.
    """
    check_launch(bridge_step_kernel, x_t.device)
    n, c, h, w = x_t.shape
    if not x_t.numel():
        return
    kind, z, sky, words = "none", x_t, (x_t, x_t, x_t), (0, 0, 0, step)  # placeholders, which the kernel does not read
    if isinstance(noise, SkyNoise):
        kind, sky, words = "sky", windows(noise, x_t.device), key_words(noise, step)
    elif noise is not None:
        kind, z = "given", noise
    inputs = [_plane(t) for t in (x_t, pred, x1, x_t if x0_prev is None else x0_prev, z)]
    target = x_t if next_input is None else next_input
    if next_input is not None and not _is_plane(next_input):
        raise ValueError(
            f"bridge step: next_input has strides {next_input.stride()} but its pixels need one common stride; copy it"
        )
    strides = [stride for t in (*inputs, target) for stride in (t.stride(0), t.stride(1), t.stride(3))]
    low, high = clamp or (0.0, 0.0)
    with torch.cuda.device_of(x_t):  # Triton launches on the current device, not on that of its tensors
        bridge_step_kernel[(n * triton.cdiv(h * w, BLOCK),)](
            *out, target, *inputs, *sky, table.values, *strides, *words, low, high, h * w, w,
            C=c, NOISE=kind, CLAMP=clamp is not None, SECOND=x0_prev is not None, NEXT=next_input is not None,
            COEFFICIENTS=len(StepCoefficients._fields), BLOCK=BLOCK, **LAUNCH,
        )  # fmt: skip


def _plane(tensor: Tensor) -> Tensor:
    """Return `tensor` if its pixels have one stride (contiguous, channels last, a slice of bands), else a copy."""
    return tensor if _is_plane(tensor) else tensor.contiguous()


def _is_plane(tensor: Tensor) -> bool:
    return tensor.stride(2) == tensor.shape[3] * tensor.stride(3)


@triton.jit(do_not_specialize=["key_lo", "key_hi", "stream", "step"])
def bridge_step_kernel(
    p_xs, p_x0, p_next, p_xt, p_pred, p_x1, p_prev, p_z, p_sample, p_corner_y, p_corner_x, p_table,
    xt_n, xt_c, xt_i, pred_n, pred_c, pred_i, x1_n, x1_c, x1_i, prev_n, prev_c, prev_i, z_n, z_c, z_i,
    next_n, next_c, next_i,
    key_lo, key_hi, stream, step, low, high, HW, W,
    C: tl.constexpr, NOISE: tl.constexpr, CLAMP: tl.constexpr, SECOND: tl.constexpr, NEXT: tl.constexpr,
    COEFFICIENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update BLOCK pixels of one window in all bands: the work of one program. Strides are of window, band and pixel.

    A pixel's inputs are read before its results are written, so x_s may be written over x_t, and x0 over x0_prev.
    """
    p_row = p_table + step * COEFFICIENTS
    p, q, r, h = tl.load(p_row), tl.load(p_row + 1), tl.load(p_row + 2), tl.load(p_row + 3)
    a, b, c, d = tl.load(p_row + 4), tl.load(p_row + 5), tl.load(p_row + 6), tl.load(p_row + 7)
    i_n = (tl.program_id(0) // tl.cdiv(HW, BLOCK)).to(tl.int64)
    o_i = (tl.program_id(0) % tl.cdiv(HW, BLOCK)).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_i = o_i < HW
    for i_c in tl.static_range(C):
        if NOISE == "sky":  # noqa: SIM102  # each is decided when the kernel is compiled
            if i_c % 4 == 0:  # a group of bands, naive.GROUP and GROUP_STREAM
                b_sky = window_normals(
                    p_sample + i_n, p_corner_y + i_n, p_corner_x + i_n, key_lo, key_hi,
                    stream + i_c // 4 * 0x1000000, step, o_i.to(tl.int32), W, C - i_c,
                )  # fmt: skip
        b_xt = tl.load(p_xt + i_n * xt_n + i_c * xt_c + o_i * xt_i, mask=m_i, other=0.0)
        b_pred = tl.load(p_pred + i_n * pred_n + i_c * pred_c + o_i * pred_i, mask=m_i, other=0.0).to(tl.float32)
        b_x1 = tl.load(p_x1 + i_n * x1_n + i_c * x1_c + o_i * x1_i, mask=m_i, other=0.0)
        b_x0 = p * (b_xt + r * b_x1) + q * b_pred
        if CLAMP:  # comparisons with NaN are false, so NaN stays
            b_x0 = tl.where(b_x0 < low, low, b_x0)
            b_x0 = tl.where(b_x0 > high, high, b_x0)
        b_wanted = b_x0
        if SECOND:
            b_prev = tl.load(p_prev + i_n * prev_n + i_c * prev_c + o_i * prev_i, mask=m_i, other=0.0)
            b_wanted = b_x0 + h * (b_x0 - b_prev)
        b_xs = a * b_xt + b * b_wanted + c * b_x1
        if NOISE == "given":
            b_xs = b_xs + d * tl.load(p_z + i_n * z_n + i_c * z_c + o_i * z_i, mask=m_i, other=0.0)
        if NOISE == "sky":
            b_xs = b_xs + d * b_sky[i_c % 4]
        if NEXT:
            b_next = tl.load(p_row + 8) * b_xs + tl.load(p_row + 9) * b_x1
            o_next = i_n * next_n + i_c * next_c + o_i * next_i
            tl.store(p_next + o_next, b_next.to(p_next.dtype.element_ty), mask=m_i)
        o_out = (i_n * C + i_c) * HW + o_i
        tl.store(p_xs + o_out, b_xs, mask=m_i)
        tl.store(p_x0 + o_out, b_x0, mask=m_i)
