"""Bridges whose coefficients differ by Fourier mode: x_t(k) = a_t(k) x0(k) + s_t(k) eps, and their noise of the sky.

Blurring diffusion (Rissanen et al. 2022; Hoogeboom & Salimans 2022) with the end state of a survey: a = A(k)^m is the
blur of a `physics.Seeing` for a share m of the way, and s^2 = m N(k) that share of the noise power of the observed
image. So the observed image is a state of the process at m = 1, and the reverse process that starts at it samples what
it was before. In the terms of an SDE the drift is ln A x and the forcing g^2 = N - 2 ln|A| m N by mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from surveybridge.bridge_core.bridge import extrapolation, state_and_noise
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.physics import filtered
from surveybridge.kernels.sky_noise import SkyNoise, sky_noise

REACH = 12
"""Pixels that the filter of the noise reaches to each side."""

DEVIATE_STEP, WEIGHT_STEP = 2.0**-16, 2.0**-22
"""Deviates and weights are whole multiples of these: then all sums of their products are exact in float64, whatever
the order, so that a pixel has the same bits in every window."""


@dataclass(frozen=True, eq=False)
class Physics:
    """What lies between a sharp sky and its observed image, of N windows, or of 1 that stands for all.

    Parameters
    ----------
    log_transfer
        [N, C, G, G // 2 + 1], ln A of the whole way (`physics.Operator.log_transfer` of one unit of time).
    power
        float, of that shape: noise power of the observed image in network units squared, whose mean over all modes is
        the variance of a pixel.
    """

    log_transfer: Tensor
    power: Tensor

    def rows(self, index: Sequence[int] | slice | Tensor) -> Physics:
        """That of some of the windows."""
        return self if len(self.power) == 1 else Physics(self.log_transfer[index], self.power[index])

    def to(self, device: torch.device) -> Physics:
        """The same on a device."""
        return Physics(self.log_transfer.to(device), self.power.to(device))


class SpectralTransition(NamedTuple):
    """Factors of x_u = k x_t + p x0 + w z by mode, [..., H, W // 2 + 1]."""

    k: Tensor
    p: Tensor
    w: Tensor


@dataclass(frozen=True, eq=False)
class SpectralBridge:
    """The table of a bridge by mode.

    Parameters
    ----------
    share
        float64 [T], rising: m of each step, the time over the whole time.
    log_transfer
        [..., H, W // 2 + 1], ln A of the whole way (`Operator.log_transfer` of one unit of time).
    power
        float64, shape as `log_transfer`: noise power N at m = 1, the mean of which over all modes is the variance of a
        pixel.
    """

    share: Tensor
    log_transfer: Tensor
    power: Tensor

    def a(self, t: int | Tensor) -> Tensor:
        """Weights of x0 at a step, or at one for each row of the table's first axis."""
        return (self._share(t) * self.log_transfer).exp()

    def s(self, t: int | Tensor) -> Tensor:
        """Weights of the unit normal deviate, as `a`."""
        return (self._share(t) * self.power).sqrt()

    def forcing(self, t: int | Tensor) -> Tensor:
        """g^2 by mode of the SDE dx = ln A x dm + g dW that has these states."""
        return self.power - 2 * self.log_transfer.real * self._share(t) * self.power

    def log_sigma(self, t: int) -> Tensor:
        """ln (s / |a|) of the modes at a step."""
        return 0.5 * (self.share[t] * self.power).log() - self.share[t] * self.log_transfer.real

    def q_sample(self, x0: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
        """Draw x_t of images x0 [..., H, W] whose opposite sides are neighbours; eps unit normal of that shape."""
        return filtered(x0, self.a(t)) + filtered(eps, self.s(t))

    def transition(self, t: int, u: int, eta: float = 1.0) -> SpectralTransition:
        """Posterior p(x_u | x_t, x0) for u < t, mode by mode as `Bridge.transition`."""
        if not 0 <= u < t < len(self.share):
            raise BridgeError(f"transition {t} -> {u} is not a step down within 0..{len(self.share) - 1}")
        a_t, a_u = self.a(t), self.a(u)
        k, w = state_and_noise((a_t, self.s(t)), (a_u, self.s(u)), eta)
        return SpectralTransition(k, a_u - k * a_t, w)

    def extrapolation(self, before: int, t: int, u: int, eta: float) -> Tensor:
        """Weight by mode of (x0 - x0_before) in a step t -> u of second order; see `bridge.extrapolation`."""
        at = [self.log_sigma(step) for step in (before, t, u)]
        return extrapolation(at[1] - at[2], at[0] - at[1], eta)

    def wiener(self, t: int | Tensor, prior: Tensor) -> Tensor:
        """The factor of x_t in E[x0 | x_t] of a Gaussian field with the power `prior`, [..., H, W // 2 + 1]."""
        a = self.a(t)
        return a.conj() * prior / (a.abs() ** 2 * prior + self.s(t) ** 2)

    def _share(self, t: int | Tensor) -> Tensor:
        share = self.share[t]
        return share.view(-1, *[1] * (self.power.ndim - 1)) if isinstance(t, Tensor) and t.ndim else share


def sample_spectral(
    bridge: SpectralBridge,
    denoise: Callable[[Tensor, int], Tensor],
    x: Tensor,
    steps: list[int],
    noise: Callable[[int, Tensor], Tensor] | None,
    *,
    eta: float = 1.0,
    order: int = 2,
    apply: Callable[[Tensor, Tensor], Tensor] = filtered,
) -> Tensor:
    """Draw x0 from the state x [..., H, W] at steps[0], which may be the observed image itself.

    Parameters
    ----------
    bridge
        The table.
    denoise
        E[x0 | x_t] from x_t and t.
    steps
        Falling; one call of `denoise` each, the last of which is the result.
    noise
        Noise with the spectrum w^2 for the update after step i, ``noise(i, w)``; None where eta is 0.
    eta
        1 draws from the posterior; 0 has one answer, that of the probability flow.
    order
        1, or 2 for the multistep correction from the x0 of the step before, mode by mode.
    apply
        How factors of modes are applied to images; by default to such whose opposite sides are neighbours.
    """
    previous: Tensor | None = None
    for i, t in enumerate(steps[:-1]):
        x0 = denoise(x, t)
        k, p, w = bridge.transition(t, steps[i + 1], eta)
        ahead = apply(x0, p)
        # the last update is of first order, as in `sampler`
        if order == 2 and previous is not None and i < len(steps) - 2:
            ahead = ahead + apply(x0 - previous, p * bridge.extrapolation(steps[i - 1], t, steps[i + 1], eta))
        x = apply(x, k) + ahead
        if eta and noise is not None:
            x = x + noise(i, w)
        previous = x0
    return denoise(x, steps[-1])


def mean_power(modes: Tensor, width: int | None = None) -> Tensor:
    """Mean over all modes of real images, of whose modes [..., H, W // 2 + 1] half are kept; W is even, or `width`."""
    width = 2 * (modes.shape[-1] - 1) if width is None else width
    twice = torch.full((modes.shape[-1],), 2.0, dtype=modes.dtype, device=modes.device)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    return (modes * twice).sum((-2, -1)) / (modes.shape[-2] * width)


def finite_kernel(factor: Tensor, width: int, reach: int = REACH) -> Tensor:
    """The kernel that multiplies modes by a factor, cut off at a reach, so that it means the same in every window.

    Parameters
    ----------
    factor
        [..., H, W // 2 + 1].
    width
        W; it and H are at least 2 reach + 1.
    reach
        Pixels to each side.

    Returns
    -------
    Tensor
        float64 [..., 2 reach + 1, 2 reach + 1], whose sum is the factor of k = 0: a flux is kept.
    """
    height = factor.shape[-2]
    if min(height, width) < 2 * reach + 1:
        raise BridgeError(
            f"kernel of {2 * reach + 1} pixels from modes of {height} x {width} pixels; give more modes, or less reach"
        )
    whole = torch.fft.irfft2(factor, s=(height, width)).roll((reach, reach), (-2, -1))
    kernel = whole[..., : 2 * reach + 1, : 2 * reach + 1].double()
    return kernel * (factor[..., 0, 0].real / kernel.sum((-2, -1)))[..., None, None]


def convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve with a finite kernel, bit for bit the same for a pixel in whichever array it lies.

    Parameters
    ----------
    x
        [..., H + 2 r, W + 2 r]; rounded to `DEVIATE_STEP` of its unit, and below 2^10 of it.
    kernel
        float64 [..., 2 r + 1, 2 r + 1], with leading axes that broadcast; rounded to `WEIGHT_STEP` of its largest.

    Returns
    -------
    Tensor
        float32 [..., H, W], without the r outer pixels.
    """
    side = kernel.shape[-1]
    largest = kernel.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    # that of a round PSF is the same upside down but for rounding, and rows may be added before they are multiplied
    folded = bool(((kernel - kernel.flip(-2)).abs() <= 1e-9 * largest).all())
    kernel = 0.5 * (kernel + kernel.flip(-2)) if folded else kernel
    weights = (kernel / largest / WEIGHT_STEP).round().mul(WEIGHT_STEP)
    values = (x.double() / DEVIATE_STEP).round().mul(DEVIATE_STEP)
    height, width = x.shape[-2] - side + 1, x.shape[-1] - side + 1
    # a convolution of lines is the product with a matrix that has the line on its diagonals
    lines = F.pad(weights.flip((-2, -1)), (0, width))
    bands = lines.repeat(*[1] * (lines.ndim - 1), width)[..., : width * (width + side - 1)]
    matrices = bands.unflatten(-1, (width, width + side - 1)).mT
    total = torch.zeros(*np.broadcast_shapes(x.shape[:-2], kernel.shape[:-2]), height, width, dtype=torch.float64)
    total = total.to(x.device)
    for dy in range(side // 2 + 1 if folded else side):
        rows = values[..., dy : dy + height, :]
        if folded and dy < side // 2:
            rows = rows + values[..., side - 1 - dy : side - 1 - dy + height, :]
        total += rows @ matrices[..., dy, :, :]
    return (total * largest).float()


def coloured_noise(noise: SkyNoise, step: int, factor: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The sky's own noise with a spectrum, float32 [N, C, H, W]: its white noise through a finite kernel.

    Parameters
    ----------
    noise
        Of N windows.
    step
        As of `sky_noise`.
    factor
        Root of the power by mode, [C, H', W' // 2 + 1] or with N before, of an even W'; its kernel reaches `REACH`.
    shape
        (C, H, W) of the windows.

    Returns
    -------
    Tensor
        On the device of the windows. Where two windows overlap they have the same bits.
    """
    white = white_around(noise, step, shape, REACH)
    return convolved(white, finite_kernel(factor, 2 * (factor.shape[-1] - 1)).to(white.device))


def noise_of_power(noise: SkyNoise, step: int, power: Tensor, shape: tuple[int, int, int], reach: int) -> Tensor:
    """The sky's own noise with a power spectrum, float32 [N, C, H, W], through kernels that keep the variance.

    Parameters
    ----------
    noise, step, shape
        As of `coloured_noise`, which keeps the power at k = 0 instead; here that may be 0.
    power
        float64 [C, H', W' // 2 + 1] of an even W', on a grid on which white noise of unit variance has 1.
    reach
        Pixels to each side of the kernels; H' and W' are at least 2 reach + 1.

    Returns
    -------
    Tensor
        Its variance is the mean of `power` over all modes. Where two windows overlap they have the same bits.
    """
    whole = torch.fft.irfft2(power.sqrt(), s=(power.shape[-2], 2 * (power.shape[-1] - 1)))
    kernel = whole.roll((reach, reach), (-2, -1))[..., : 2 * reach + 1, : 2 * reach + 1]
    kept = kernel.square().sum((-2, -1)).clamp(min=torch.finfo(torch.float64).tiny)
    kernel = kernel * (whole.square().sum((-2, -1)) / kept).sqrt()[..., None, None]
    return convolved(white_around(noise, step, shape, reach), kernel)


def white_around(noise: SkyNoise, step: int, shape: tuple[int, int, int], reach: int) -> Tensor:
    """White noise of the sky in windows of `shape` and `reach` pixels around them."""
    wider = SkyNoise(noise.seed, noise.stream, noise.sample, noise.y0 - reach, noise.x0 - reach)
    channels, height, width = shape
    return sky_noise(wider, step, (channels, height + 2 * reach, width + 2 * reach), device=noise.sample.device)
