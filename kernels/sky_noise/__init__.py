"""Noise that belongs to the sky: the same normal deviate at the same global pixel, on any machine and in any order."""

from __future__ import annotations

import torch
from torch import Tensor

from surveybridge.kernels.dispatch import Impl, choose_impl
from surveybridge.kernels.sky_noise.naive import GROUP, GROUP_STREAM, MAX_BANDS, SkyNoise, sky_noise_naive

__all__ = ["MAX_BANDS", "SkyNoise", "sky_noise"]


def sky_noise(
    noise: SkyNoise,
    step: int,
    shape: tuple[int, int, int],
    impl: Impl = "auto",
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the standard normal deviates of every window of `noise` at one sampler step.

    Windows may have any size, even that of a whole tile. Where two windows overlap, their deviates agree bit for bit,
    across implementations and devices too.

    Parameters
    ----------
    noise : SkyNoise
        Seed, stream and, for each of N windows, sample and corner.
    step : int
        The sampler's step, 0 <= step < 2^16.
    shape : tuple of int
        (C, H, W) of a window, C <= 1024; with C > 4 the stream must be below 2^24.
    impl : {"auto", "naive", "triton"}
        "auto" is Triton on CUDA, naive elsewhere; both give the same bits.
    device : torch.device or str, optional
        Where to draw; by default on the device of `noise`.

    Returns
    -------
    Tensor
        float32 [N, C, H, W], no unit, |z| <= 5.77.

    Raises
    ------
    ValueError
        If `step` or `shape` is out of range, or "triton" is asked for on a CPU outside Triton's interpreter.
    """
    check_bands(noise, step, shape[0])
    if min(shape) < 0:
        raise ValueError(f"sky noise: shape is {shape} but no side may be negative")
    device = torch.device(device) if device is not None else noise.sample.device
    if choose_impl(impl, device) == "naive":
        return sky_noise_naive(noise, step, shape, device)
    from surveybridge.kernels.sky_noise.triton import sky_noise_triton  # late: Triton is absent where there is no GPU

    return sky_noise_triton(noise, step, shape, device)


def check_bands(noise: SkyNoise, step: int, bands: int) -> None:
    """Refuse a step or a number of bands that the 128-bit counter has no room for."""
    if not 0 <= step < 1 << 16:
        raise ValueError(f"sky noise: step is {step} but must be in [0, 65536); number the sampler's steps from 0")
    if bands > MAX_BANDS:
        raise ValueError(f"sky noise: {bands} bands but a stream has {MAX_BANDS}; draw the others under another seed")
    if bands > GROUP and noise.stream >= GROUP_STREAM:
        raise ValueError(
            f"sky noise: {bands} bands of stream {noise.stream}, but only streams below {GROUP_STREAM} have more than "
            f"{GROUP}; number the streams from 0"
        )
