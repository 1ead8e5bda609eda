"""The sampler's update in one pass: reads the state, the prediction and the observed image, writes the next state."""

from __future__ import annotations

import torch
from torch import Tensor

from surveybridge.kernels.bridge_step.naive import StepCoefficients, StepTable, bridge_step_naive
from surveybridge.kernels.dispatch import Impl, choose_impl
from surveybridge.kernels.sky_noise import SkyNoise, check_bands, sky_noise

__all__ = ["StepCoefficients", "StepTable", "bridge_step"]


def bridge_step(
    x_t: Tensor,
    pred: Tensor,
    x1: Tensor,
    table: StepTable,
    step: int,
    *,
    noise: Tensor | SkyNoise | None,
    clamp: tuple[float, float] | None = None,
    x0_prev: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
    next_input: Tensor | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Take one step of a bridge sampler.

    x0 = clamp(p (x_t + r x1) + q pred);  x0h = x0 + h (x0 - x0_prev);  x_s = a x_t + b x0h + c x1 + d z;
    next_input = u x_s + v x1, in float32 and in the order that `bridge_step_naive` states, so that every implementation
    gives the same bits. Fused, a value moves 20 to 28 bytes: x_t, x1, pred and, at second order, x0_prev are read once,
    and x_s, x0 and the next input are written once. Noise of the sky takes no memory traffic at all.

    Parameters
    ----------
    x_t, x1 : Tensor
        float32 [N, C, H, W], state and observed image in network units; any strides.
    pred : Tensor
        float32 or bfloat16 [N, C, H, W], the network's output (a view of one of its heads will do).
    table : StepTable
        Coefficients p, q, r, h, a, b, c, d, u, v of every step.
    step : int
        The sampler's step: the row of `table`, and the step of a `SkyNoise`, 0 <= step < 2^16.
    noise : Tensor, SkyNoise or None
        z itself, float32 [N, C, H, W]; or noise of the sky, drawn within the pass. It may be None if d = 0, where it is
        not read.
    clamp : tuple of float, optional
        Bounds of x0. NaN stays NaN.
    x0_prev : Tensor, optional
        float32 [N, C, H, W], x0 of the previous step. It is needed if h != 0, and not read if h = 0.
    out : tuple of Tensor, optional
        Contiguous float32 [N, C, H, W] into which x_s and x0 are written; they may be x_t and x0_prev themselves.
    next_input : Tensor, optional
        float32 or bfloat16 [N, C, H, W] into which the network's next input is written: a view of its first channels,
        whose pixels have one common stride.
    impl : {"auto", "naive", "triton"}
        "auto" is Triton on CUDA tensors, naive otherwise.

    Returns
    -------
    tuple of Tensor
        x_s and x0, float32 [N, C, H, W], contiguous: `out`, or new tensors.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices differ, noise or x0_prev is needed but absent, or a number is out of range.
    """
    if not 0 <= step < len(table.rows):
        raise ValueError(f"bridge step: step is {step} but the table has {len(table.rows)} rows; number them from 0")
    k = table.rows[step]
    _check("x_t", x_t, x_t)
    _check("pred", pred, x_t, (torch.float32, torch.bfloat16))
    _check("x1", x1, x_t)
    if clamp is not None and not clamp[0] <= clamp[1]:
        raise ValueError(f"bridge step: clamp is {clamp} but its low bound must not exceed its high one")
    if k.h != 0 and x0_prev is None:
        raise ValueError(f"bridge step: h is {k.h} but x0_prev is None; pass the x0 of the previous step, or h = 0")
    if k.d != 0 and noise is None:
        raise ValueError(f"bridge step: d is {k.d} but noise is None; pass a tensor or a SkyNoise, or d = 0")
    if k.h == 0:
        x0_prev = None
    if k.d == 0:
        noise = None
    if x0_prev is not None:
        _check("x0_prev", x0_prev, x_t)
    if isinstance(noise, Tensor):
        _check("noise", noise, x_t)
    if isinstance(noise, SkyNoise):
        check_bands(noise, step, x_t.shape[1])
        if noise.sample.numel() != x_t.shape[0]:
            raise ValueError(
                f"bridge step: noise has {noise.sample.numel()} windows but x_t {x_t.shape[0]}; give one per window"
            )
    if next_input is not None:
        _check("next_input", next_input, x_t, (torch.float32, torch.bfloat16))
    for name, tensor in zip(("out x_s", "out x0"), out or (), strict=False):
        _check(name, tensor, x_t)
        if not tensor.is_contiguous():
            raise ValueError(f"bridge step: {name} has strides {tensor.stride()} but must be contiguous; copy it")
    if out is None:
        new = (torch.empty(x_t.shape, dtype=torch.float32, device=x_t.device) for _ in range(2))
        out = (next(new), next(new))

    if choose_impl(impl, x_t.device) == "naive":
        if isinstance(noise, SkyNoise):
            _, c, h, w = x_t.shape
            noise = sky_noise(noise, step, (c, h, w), impl="naive", device=x_t.device)
        bridge_step_naive(x_t, pred, x1, k, noise, clamp, x0_prev, out, next_input)
        return out
    from surveybridge.kernels.bridge_step.triton import (
        bridge_step_triton,  # late: Triton is absent where there is no GPU
    )

    bridge_step_triton(x_t, pred, x1, table, step, noise, clamp, x0_prev, out, next_input)
    return out


def _check(name: str, tensor: Tensor, like: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> None:
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"bridge step: {name} is {tensor.dtype} but must be {names}; convert it")
    if tensor.ndim != 4 or tensor.shape != like.shape:
        raise ValueError(
            f"bridge step: {name} has shape {list(tensor.shape)} but x_t {list(like.shape)}; both must be [N, C, H, W]"
        )
    if tensor.device != like.device:
        raise ValueError(f"bridge step: {name} is on {tensor.device} but x_t on {like.device}; move it there")
