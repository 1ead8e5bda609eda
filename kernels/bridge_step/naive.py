"""One update of a bridge sampler in plain PyTorch: the reference that the fused kernel repeats bit for bit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from surveybridge.kernels.transfer import to_device


class StepCoefficients(NamedTuple):
    """The ten numbers of one step, for any bridge, grid and sampler; see `bridge_step`.

    x0  = clamp(p (x_t + r x1) + q pred)     the network's output, read as the wanted image
    x0h = x0 + h (x0 - x0_prev)              second order (DPM++2M, DBIM-2); h = 0 is first order
    x_s = a x_t + b x0h + c x1 + d z         the next state
    x_n = u x_s + v x1                       the state as the network expects it at the next step
    """

    p: float
    q: float
    r: float
    h: float
    a: float
    b: float
    c: float
    d: float
    u: float = 1.0
    v: float = 0.0


@dataclass(frozen=True, eq=False)
class StepTable:
    """The coefficients of all steps of a sampler, on the host and where the kernel reads them; made by `of`.

    rows: one per step; values: the same as float32 [S, 10] on the device.
    """

    rows: tuple[StepCoefficients, ...]
    values: Tensor

    @classmethod
    def of(cls, rows: Iterable[StepCoefficients], device: torch.device | str = "cpu") -> StepTable:
        """Round the coefficients to float32 and put them on `device`, once for a trajectory."""
        rows = tuple(StepCoefficients(*map(float, row)) for row in rows)
        return cls(rows, to_device(torch.tensor(rows, dtype=torch.float32), device))


def bridge_step_naive(
    x_t: Tensor,
    pred: Tensor,
    x1: Tensor,
    k: StepCoefficients,
    z: Tensor | None,
    clamp: tuple[float, float] | None,
    x0_prev: Tensor | None,
    out: tuple[Tensor, Tensor],
    next_input: Tensor | None,
) -> None:
    """Write x_s and x0 into `out`, float32 [N, C, H, W], and the network's next input into `next_input`.

    Every product and sum is rounded to float32 separately, from left to right:
    (p (x_t + (r x1))) + (q pred), (((a x_t) + (b x0h)) + (c x1)) + (d z), and (u x_s) + (v x1). Coefficients are
    rounded to float32 first, and a bfloat16 `pred` is widened first. No multiply-add is fused. The clamp keeps NaN.
    """
    # x_t and x1 nearly cancel where a bridge begins, and p is large there: subtract first, then scale
    x0 = (x1 * k.r).add_(x_t).mul_(k.p).add_(pred.float() * k.q)
    if clamp is not None:
        x0.clamp_(*clamp)
    wanted = x0 if x0_prev is None else ((x0 - x0_prev) * k.h).add_(x0)
    x_s = (x_t * k.a).add_(wanted * k.b).add_(x1 * k.c)
    if z is not None:
        x_s.add_(z * k.d)
    if next_input is not None:
        next_input.copy_((x_s * k.u).add_(x1 * k.v))
    # last, because `out` may be x_t and x0_prev themselves
    out[0].copy_(x_s)
    out[1].copy_(x0)
