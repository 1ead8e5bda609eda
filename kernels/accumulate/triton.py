"""Moments over samples in one pass: each sample is read once, while mean and scatter stay in registers."""

# mypy: disable-error-code="no-untyped-def"
# (a jitted function's arguments are Triton's blocks, pointers and scalars, which have no static types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from surveybridge.kernels.accumulate.naive import Accumulated
from surveybridge.kernels.dispatch import LAUNCH, check_launch

BLOCK = 512  # values per program: four per thread, hence 128-bit loads


def accumulate_triton(
    samples: Tensor, target: Tensor | None, since: Accumulated | None = None, count: int = 0
) -> Accumulated:
    """Return the same bits as `accumulate_naive`."""
    check_launch(accumulate_kernel, samples.device)
    p, k, *rest = samples.shape
    if samples.numel() and not samples[0, 0].is_contiguous():
        samples = samples.contiguous()
    kept = 3 if target is not None else 2
    out = [torch.empty((p, *rest), dtype=torch.float32, device=samples.device) for _ in range(kept)]
    for one, before in zip(out, since or (), strict=False):
        if before is not None:
            one.copy_(before)
    size = out[0][0].numel() if p else 0
    if size:
        known = samples if target is None else target.contiguous()
        with torch.cuda.device_of(samples):  # Triton launches on the current device, not on that of its tensors
            accumulate_kernel[(p * triton.cdiv(size, BLOCK),)](
                out[0], out[1], out[-1], samples, known, samples.stride(0), samples.stride(1), size, k, count,
                TARGET=target is not None, SINCE=since is not None, BLOCK=BLOCK, **LAUNCH,
            )  # fmt: skip
    return Accumulated(out[0], out[1], out[2] if target is not None else None)


@triton.jit
def accumulate_kernel(
    p_mean, p_m2, p_least, p_samples, p_target, stride_p, stride_k, SIZE, K, COUNT,
    TARGET: tl.constexpr, SINCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Reduce all samples of BLOCK values of one window: the work of one program.

    With SINCE it goes on from the results that stand there of COUNT samples.
    """
    i_p = (tl.program_id(0) // tl.cdiv(SIZE, BLOCK)).to(tl.int64)
    o_i = (tl.program_id(0) % tl.cdiv(SIZE, BLOCK)).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_i = o_i < SIZE
    o_out = i_p * SIZE + o_i
    p_x = p_samples + i_p * stride_p + o_i
    b_mean = tl.load(p_mean + o_out, mask=m_i, other=0.0) if SINCE else tl.zeros((BLOCK,), tl.float32)
    b_m2 = tl.load(p_m2 + o_out, mask=m_i, other=0.0) if SINCE else tl.zeros((BLOCK,), tl.float32)
    b_least = tl.full((BLOCK,), float("inf"), tl.float32)
    if TARGET and SINCE:
        b_least = tl.load(p_least + o_out, mask=m_i, other=0.0)
    b_target = tl.load(p_target + o_out, mask=m_i, other=0.0) if TARGET else b_mean
    b_one = tl.full((1,), 1.0, tl.float32)
    b_count = tl.zeros((1,), tl.float32) + COUNT
    for _ in range(K):
        b_x = tl.load(p_x, mask=m_i, other=0.0)
        p_x += stride_k
        b_count += b_one
        b_delta = b_x - b_mean
        b_mean += b_delta * tl.div_rn(b_one, b_count)
        b_m2 += b_delta * (b_x - b_mean)
        if TARGET:
            b_error = b_x - b_target
            b_least = tl.minimum(b_least, b_error * b_error, propagate_nan=tl.PropagateNan.ALL)
    tl.store(p_mean + o_out, b_mean, mask=m_i)
    tl.store(p_m2 + o_out, b_m2, mask=m_i)
    if TARGET:
        tl.store(p_least + o_out, b_least, mask=m_i)
