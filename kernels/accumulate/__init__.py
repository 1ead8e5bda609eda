"""Mean, scatter and closest sample of a posterior in one pass over its samples."""

from __future__ import annotations

import torch
from torch import Tensor

from surveybridge.kernels.accumulate.naive import Accumulated, accumulate_naive
from surveybridge.kernels.dispatch import Impl, choose_impl

__all__ = ["Accumulated", "accumulate"]


def accumulate(
    samples: Tensor,
    target: Tensor | None = None,
    *,
    since: Accumulated | None = None,
    count: int = 0,
    impl: Impl = "auto",
) -> Accumulated:
    """Reduce K samples to their moments and, given the truth, to the smallest squared error of any of them.

    Fused, a value of the result costs 4 K bytes read (and 4 of `target`) and 8 written (12 with `target`), instead of
    three passes over the samples, and no temporary of their size is made.

    Parameters
    ----------
    samples : Tensor
        float32 [P, K, ...], any unit, K at least 1; a transposed view of [K, P, ...] will do.
    target : Tensor, optional
        float32 [P, ...], the truth in the same unit.
    since : Accumulated, optional
        What was found of the `count` samples before these. All samples in one call, or in several one after the other,
        give the same bits.
    impl : {"auto", "naive", "triton"}
        "auto" is Triton on CUDA tensors, naive otherwise; both give the same bits.

    Returns
    -------
    Accumulated
        mean, m2 (K - 1 times the unbiased variance) and least (None without `target`), float32 [P, ...], contiguous.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices differ, there is no sample, or `since` and `count` contradict each other.
    """
    if samples.ndim < 2 or samples.shape[1] == 0 or samples.dtype != torch.float32:
        raise ValueError(
            f"accumulate: samples are {samples.dtype} {list(samples.shape)} but must be float32 [P, K, ...] with K at "
            "least 1; convert or transpose them"
        )
    shape = (samples.shape[0], *samples.shape[2:])
    if target is not None and (target.shape != shape or target.dtype != torch.float32):
        raise ValueError(
            f"accumulate: target is {target.dtype} {list(target.shape)} but must be float32 {list(shape)}; convert it"
        )
    if target is not None and target.device != samples.device:
        raise ValueError(f"accumulate: target is on {target.device} but samples on {samples.device}; move it there")
    if (since is None) != (count == 0) or count < 0:
        raise ValueError(
            f"accumulate: {count} samples before these, {'un' * (since is None)}known; give since and count"
        )
    if since is not None and (since.mean.shape != shape or (since.least is None) != (target is None)):
        raise ValueError(
            f"accumulate: samples before these have shape {list(since.mean.shape)}, {_least(since.least)}, but these "
            f"{list(shape)}, {_least(target)}; go on with the same values, and with a target or without"
        )
    if choose_impl(impl, samples.device) == "naive":
        return accumulate_naive(samples, target, since, count)
    from surveybridge.kernels.accumulate.triton import accumulate_triton  # late: Triton is absent where there is no GPU

    return accumulate_triton(samples, target, since, count)


def _least(target: Tensor | None) -> str:
    return "no target" if target is None else "a target"
