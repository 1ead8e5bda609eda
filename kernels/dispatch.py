"""Which implementation of a kernel runs: the naive truth or Triton."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Impl = Literal["auto", "naive", "triton"]


def choose_impl(impl: Impl, device: torch.device) -> Literal["naive", "triton"]:
    """Resolve `impl` for tensors on `device`: "auto" is Triton on CUDA and naive elsewhere.

    Raises
    ------
    ValueError
        If `impl` is none of "auto", "naive", "triton".
    """
    if impl == "auto":
        return "triton" if device.type == "cuda" else "naive"
    if impl not in get_args(Impl):
        raise ValueError(f"impl is {impl!r} but must be one of {', '.join(map(repr, get_args(Impl)))}; use 'auto'")
    return impl
