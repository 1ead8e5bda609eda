"""One update of a bridge sampler in plain PyTorch: the truth that the fused kernel repeats bit for bit."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StepCoefficients(NamedTuple):
    """The eight numbers of one step, from whatever bridge, grid and sampler; see `bridge_step`.

    x0  = clamp(p (x_t + r x1) + q pred)     the network's output read as the wanted image
    x0h = x0 + h (x0 - x0_prev)              second order (DPM++2M, DBIM-2); h = 0 is first order
    x_s = a x_t + b x0h + c x1 + d z         the next state
    """

    p: float
    q: float
    r: float
    h: float
    a: float
    b: float
    c: float
    d: float


def bridge_step_naive(
    x_t: Tensor,
    pred: Tensor,
    x1: Tensor,
    k: StepCoefficients,
    z: Tensor | None,
    clamp: tuple[float, float] | None,
    x0_prev: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return (x_s, x0), float32 [N, C, H, W].

    Every product and sum is rounded to float32 on its own, from left to right:
    (p (x_t + (r x1))) + (q pred), and (((a x_t) + (b x0h)) + (c x1)) + (d z); a coefficient is rounded to float32
    first, a bfloat16 `pred` is widened first. No fused multiply-add. NaN stays NaN through the clamp.
    """
    x_t = x_t.contiguous()  # the results take its layout
    # x_t and x1 nearly cancel where a bridge begins, and p is large there: subtract first, then scale
    x0 = (x1 * k.r).add_(x_t).mul_(k.p).add_(pred.float() * k.q)
    if clamp is not None:
        x0.clamp_(*clamp)
    wanted = x0 if x0_prev is None else ((x0 - x0_prev) * k.h).add_(x0)
    x_s = (x_t * k.a).add_(wanted * k.b).add_(x1 * k.c)
    if z is not None:
        x_s.add_(z * k.d)
    return x_s, x0
