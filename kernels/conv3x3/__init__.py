"""A 3 x 3 convolution with all that follows it: bias, residual, and the next pixel norm, FiLM and SiLU, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from surveybridge.kernels.conv3x3.naive import Norm, Rest, activate_naive, conv3x3_naive, upsampling_weight
from surveybridge.kernels.dispatch import Impl, choose_impl

__all__ = ["WIDTHS", "Norm", "Rest", "conv3x3", "upsampling_weight"]

WIDTHS = (16, 32, 64, 128)
"""Output channels that the fused kernel normalises; of x it takes multiples of 16, or few channels unshuffled."""


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    unshuffle: int = 1,
    shuffle: int = 1,
    rest: Rest | None = None,
    norm: Norm | None = None,
    out: Tensor | None = None,
    keep: bool = True,
    impl: Impl = "auto",
) -> tuple[Tensor | None, Tensor | None]:
    """Convolve with a border of zeros, add what else there is, and prepare what the next convolution reads.

    h = weight * x + bias + rest;  a = silu(norm(h) (1 + scale) + shift), see `pixel_norm_silu`.

    Fused, nothing lies in memory between the two, and h itself is written only if it is kept. Products of bfloat16 are
    summed in float32 and rounded once, so h is within one unit in the last place of bfloat16 of what the naive
    reference gives in float32, but for sums that cancel: there within 2^-17 of the sum of magnitudes. The activation is
    made of the sums before they are rounded. A pixel's bits depend on its own neighbours alone, neither on the number
    of samples nor on their size.

    Parameters
    ----------
    x : Tensor
        bfloat16 [N, Cx, H, W] (naive: or float32). Fused, it is read as it is from channels-last memory or from some
        channels of wider pixels, and copied otherwise.
    weight : Tensor
        Of the type of x, [C, Cx, 3, 3]; or [4, C, Cx, 2, 2] of `upsampling_weight`, then x is doubled first.
    bias : Tensor
        [C].
    stride : {1, 2}
        2 keeps every second pixel of every second row.
    unshuffle, shuffle : int
        Side of the blocks of pixels that become channels before, and of those that channels become after.
    rest : Rest, optional
        Summand of the shape of h, or what a 1 x 1 convolution makes of another tensor.
    norm : Norm, optional
        What follows; without it there is no activation.
    out : Tensor, optional
        Where h is written if it is not shuffled, channels-last or some channels of wider pixels.
    keep : bool
        Whether h is wanted where `out` is not given.
    impl : {"auto", "naive", "triton"}
        "auto" is Triton on CUDA tensors, naive otherwise.

    Returns
    -------
    h, a : Tensor or None
        [N, C, H / stride, W / stride], twice as high and wide after doubling; h shuffled is [N, C / shuffle^2, ...].

    Raises
    ------
    ValueError
        If shapes or devices do not fit, or Triton is asked for what the kernel does not take, or for a gradient.
    """
    if x.ndim != 4 or weight.ndim not in (4, 5) or weight.shape[-2:] != ((3, 3) if weight.ndim == 4 else (2, 2)):
        raise ValueError(
            f"conv3x3: x has shape {list(x.shape)} and weight {list(weight.shape)} but must be [N, Cx, H, W] and "
            "[C, Cx, 3, 3], or [4, C, Cx, 2, 2] of upsampling_weight"
        )
    if weight.ndim == 5 and stride > 1:
        raise ValueError(f"conv3x3: stride is {stride} but weight, of shape {list(weight.shape)}, doubles; take 1")
    if rest is not None and (rest.weight is None) != (rest.bias is None):
        raise ValueError("conv3x3: rest has a weight without a bias or a bias without a weight; give both or neither")
    if any(side % (stride * unshuffle) for side in x.shape[2:]):
        raise ValueError(
            f"conv3x3: x has shape {list(x.shape)} but its sides must be multiples of {stride * unshuffle}; pad it"
        )
    named = {"x": x, "weight": weight, "bias": bias} | _fields("rest", rest) | _fields("norm", norm)
    named |= {} if out is None else {"out": out}
    for name, shapes in _shapes(x, weight, stride, unshuffle, rest).items():
        if name in named and named[name].shape not in shapes:
            raise ValueError(
                f"conv3x3: {name} has shape {list(named[name].shape)} but must be {' or '.join(map(str, shapes))}, "
                f"since x has shape {list(x.shape)} and weight {list(weight.shape)}"
            )
    for name, tensor in named.items():
        if tensor.device != x.device:
            raise ValueError(f"conv3x3: {name} is on {tensor.device} but x on {x.device}; move it there")
    if choose_impl(impl, x.device) == "naive":
        h = conv3x3_naive(x, weight, bias, stride, unshuffle, shuffle, rest)
        a = None if norm is None else activate_naive(h, norm)
        return (out.copy_(h) if out is not None else h if keep else None), a
    _check_fused(named, norm, shuffle)
    from surveybridge.kernels.conv3x3.triton import conv3x3_triton  # late: absent where there is no GPU

    return conv3x3_triton(x, weight, bias, stride, unshuffle, shuffle, rest, norm, out, keep)


def _fields(name: str, of: Rest | Norm | None) -> dict[str, Tensor]:
    return {} if of is None else {f"{name}.{field}": t for field, t in of._asdict().items() if t is not None}


def _shapes(
    x: Tensor, weight: Tensor, stride: int, unshuffle: int, rest: Rest | None
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Which shapes each argument may have."""
    n, channels, *size = x.shape
    c, cx = weight.shape[-4], channels * unshuffle**2
    high, wide = (side // (unshuffle * stride) * (weight.ndim - 3) for side in size)
    cr = c if rest is None or rest.weight is None else rest.weight.shape[1]
    return {
        "weight": ((c, cx, 3, 3), (4, c, cx, 2, 2)),
        "rest.x": ((n, cr, high, wide),), "rest.weight": ((c, cr, 1, 1),),
        "norm.film": ((n, 2 * c), (1, 2 * c)), "out": ((n, c, high, wide),),
    } | dict.fromkeys(("bias", "rest.bias", "norm.weight", "norm.bias"), ((c,),))  # fmt: skip


def _check_fused(named: dict[str, Tensor], norm: Norm | None, shuffle: int) -> None:
    """Refuse what the fused kernel does not take."""
    channels, doubled, gradient = named["weight"].shape[-4], named["weight"].ndim == 5, torch.is_grad_enabled()
    for name, tensor in named.items():
        if tensor.dtype != torch.bfloat16:
            raise ValueError(f"conv3x3: {name} is {tensor.dtype} but the fused kernel needs bfloat16; use impl='naive'")
        if gradient and tensor.requires_grad:
            raise ValueError(f"conv3x3: a gradient is wanted of {name}; use impl='naive', or torch.no_grad()")
    if channels > WIDTHS[-1] or (norm is not None and channels not in WIDTHS):
        raise ValueError(f"conv3x3: {channels} output channels but the fused kernel takes {WIDTHS}; use impl='naive'")
    if "rest.weight" in named and named["rest.weight"].shape[1] % WIDTHS[0]:
        raise ValueError(
            f"conv3x3: rest.x has {named['rest.weight'].shape[1]} channels but must have a multiple of {WIDTHS[0]}"
        )
    if shuffle > 1 and (norm is not None or doubled):
        raise ValueError(f"conv3x3: shuffle is {shuffle}, which needs no norm and no doubling; shuffle afterwards")
