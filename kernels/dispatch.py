"""Choice of a kernel's implementation: the naive reference or Triton."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Impl = Literal["auto", "naive", "triton"]

LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}
"""Launch options of every kernel; a fused multiply-add would change the bits."""


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


def check_launch(kernel: object, device: torch.device) -> None:
    """Refuse a Triton kernel on tensors that it cannot reach; it needs CUDA, or Triton's interpreter.

    Raises
    ------
    ValueError
        If `device` is not CUDA and `kernel` was compiled rather than interpreted.
    """
    from triton.runtime.jit import JITFunction  # late: Triton is absent where there is no GPU

    if device.type != "cuda" and isinstance(kernel, JITFunction):
        raise ValueError(
            f"impl is 'triton' but the tensors are on {device.type}, not cuda; use impl='naive', "
            "or set TRITON_INTERPRET=1 before the first import to interpret the kernel"
        )
