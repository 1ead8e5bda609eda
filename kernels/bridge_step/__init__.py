"""The sampler's update in one pass: read the state, the prediction and the observed survey, write the next state."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.bridge_step.naive import StepCoefficients, bridge_step_naive
from kernels.dispatch import Impl, choose_impl
from kernels.sky_noise import SkyNoise, check_step, sky_noise

__all__ = ["StepCoefficients", "bridge_step"]


def bridge_step(
    x_t: Tensor,
    pred: Tensor,
    x1: Tensor,
    coefficients: StepCoefficients,
    *,
    noise: Tensor | SkyNoise | None,
    step: int = 0,
    clamp: tuple[float, float] | None = None,
    x0_prev: Tensor | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Take one step of a bridge sampler.

    x0 = clamp(p (x_t + r x1) + q pred);  x0h = x0 + h (x0 - x0_prev);  x_s = a x_t + b x0h + c x1 + d z,
    in float32 and in the order that `bridge_step_naive` states, so that every implementation gives the same bits.

    Parameters
    ----------
    x_t, x1 : Tensor
        float32 [N, C, H, W], state and observed survey in network units; any strides.
    pred : Tensor
        float32 or bfloat16 [N, C, H, W], the network's output (a view of one of its heads will do).
    coefficients : StepCoefficients
        p, q, r, h, a, b, c, d.
    noise : Tensor, SkyNoise or None
        z itself, float32 [N, C, H, W]; or the sky's, drawn within the pass; None only where d = 0. Not read if d = 0.
    step : int
        The sampler's step, for a `SkyNoise`, 0 <= step < 2^16.
    clamp : tuple of float, optional
        Bounds of x0. NaN stays NaN.
    x0_prev : Tensor, optional
        float32 [N, C, H, W], x0 of the step before, needed where h != 0. Not read if h = 0.
    impl : {"auto", "naive", "triton"}
        "auto" is Triton on CUDA tensors, naive otherwise.

    Returns
    -------
    tuple of Tensor
        x_s and x0, float32 [N, C, H, W], contiguous and new.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices differ, noise or x0_prev is needed but absent, or a number is out of range.
    """
    k = StepCoefficients(*map(float, coefficients))
    _check("x_t", x_t, x_t)
    _check("pred", pred, x_t, (torch.float32, torch.bfloat16))
    _check("x1", x1, x_t)
    if clamp is not None and not clamp[0] <= clamp[1]:
        raise ValueError(f"bridge step: clamp is {clamp} but its low bound must not exceed its high one")
    if k.h != 0 and x0_prev is None:
        raise ValueError(f"bridge step: h is {k.h} but x0_prev is None; pass the x0 of the step before, or h = 0")
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
        check_step(step, x_t.shape[1])
        if noise.sample.numel() != x_t.shape[0]:
            raise ValueError(
                f"bridge step: noise has {noise.sample.numel()} windows but x_t {x_t.shape[0]}; give one a window"
            )

    if choose_impl(impl, x_t.device) == "naive":
        if isinstance(noise, SkyNoise):
            _, c, h, w = x_t.shape
            noise = sky_noise(noise, step, (c, h, w), impl="naive", device=x_t.device)
        return bridge_step_naive(x_t, pred, x1, k, noise, clamp, x0_prev)
    from kernels.bridge_step.triton import bridge_step_triton  # late: Triton is absent where there is no GPU

    return bridge_step_triton(x_t, pred, x1, k, noise, step, clamp, x0_prev)


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
