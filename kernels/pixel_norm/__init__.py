"""Layer norm over the channels of each pixel, FiLM and SiLU in one pass: what lies between two convolutions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from surveybridge.kernels.dispatch import Impl, choose_impl
from surveybridge.kernels.pixel_norm import cpp
from surveybridge.kernels.pixel_norm.naive import film_silu, pixel_norm_silu_naive

__all__ = ["film_silu", "pixel_norm_silu"]

TYPES = (torch.float32, torch.bfloat16)


def pixel_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, film: Tensor | None = None, *, impl: Impl | Literal["cpp"] = "auto"
) -> Tensor:
    """Normalise each pixel over its channels, modulate it, and apply SiLU.

    y = (x - mean) / sqrt(variance + 1e-5) weight + bias;  z = y (1 + scale) + shift;  out = z / (1 + exp(-z)), with the
    mean and the (biased) variance of the C channels of one pixel (Ba et al. 2016; FiLM: Perez et al. 2018).

    Fused, a value is read once and written once: 4 bytes in bfloat16. All is computed in float32 and rounded once, so
    the result is within one unit in the last place of bfloat16 (within 1e-5 of the largest value in float32) of what
    the naive reference gives in float32; in bfloat16 the naive reference rounds after each of its operations and is
    further off. A pixel's bits depend neither on the other pixels nor on the number of samples.

    Parameters
    ----------
    x : Tensor
        float32 or bfloat16 [N, C, H, W]; fused, it is read as it is from channels-last memory, and copied otherwise.
    weight, bias : Tensor
        float32 or bfloat16 [C].
    film : Tensor, optional
        float32 or bfloat16 [N, 2C], or [1, 2C] for all samples: the scale, then the shift, of each channel.
    impl : {"auto", "naive", "triton", "cpp"}
        "auto" is Triton on CUDA tensors where no gradient is wanted, naive otherwise. "cpp" has the bits of "naive" on
        the CPU in one pass; "auto" takes it under `torch.no_grad` or in inference mode where `cpp.refusal` has nothing
        against it, which includes that its library was built.

    Returns
    -------
    Tensor
        [N, C, H, W] in the type of x; channels-last if fused or if x is.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices do not fit, or Triton or C++ is asked for what a gradient is wanted of, or C++ for
        what it cannot do.
    """
    given = {"x": x, "weight": weight, "bias": bias} | ({} if film is None else {"film": film})
    if x.ndim != 4:
        raise ValueError(f"pixel norm: x has shape {list(x.shape)} but must be [N, C, H, W]; reshape it")
    n, c = x.shape[:2]
    for name, tensor in given.items():
        if tensor.dtype not in TYPES:
            raise ValueError(f"pixel norm: {name} is {tensor.dtype} but must be float32 or bfloat16; convert it")
        if tensor.device != x.device:
            raise ValueError(f"pixel norm: {name} is on {tensor.device} but x on {x.device}; move it there")
    if weight.shape != (c,) or bias.shape != (c,):
        raise ValueError(
            f"pixel norm: weight has shape {list(weight.shape)} and bias {list(bias.shape)} but x has {c} channels; "
            f"both must be [{c}]"
        )
    if film is not None and film.shape not in ((n, 2 * c), (1, 2 * c)):
        raise ValueError(
            f"pixel norm: film has shape {list(film.shape)} but {n} samples of {c} channels need [{n}, {2 * c}] or "
            f"[1, {2 * c}]"
        )
    gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given.values())
    if impl in ("triton", "cpp") and gradient:
        raise ValueError(f"pixel norm: impl is {impl!r} but a gradient is wanted; use impl='auto', or torch.no_grad()")
    if impl == "cpp":
        if (reason := cpp.refusal(x, film)) is not None:
            raise ValueError(f"pixel norm: impl is 'cpp' but {reason}; use impl='auto'")
        return cpp.pixel_norm_silu_cpp(x, weight, bias, film)
    if impl == "auto" and x.device.type == "cpu" and not torch.is_grad_enabled() and cpp.refusal(x, film) is None:
        return cpp.pixel_norm_silu_cpp(x, weight, bias, film)
    if gradient or choose_impl(impl, x.device) == "naive":
        return pixel_norm_silu_naive(x, weight, bias, film)
    from surveybridge.kernels.pixel_norm.triton import pixel_norm_silu_triton  # late: absent where there is no GPU

    return pixel_norm_silu_triton(x, weight, bias, film)
