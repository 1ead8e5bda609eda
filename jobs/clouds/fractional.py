"""Clouds without physics: fractional Brownian density and velocity, and a field that knows no density."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

SLOPE = 11 / 3
"""Of the power spectrum in three dimensions, as Kolmogorov has it."""
TAIL = 1.5
"""Power of the density above which there is as much gas, in the tail; the distribution of ln rho falls as rho^-1.5."""
TAIL_BEGINS = 1.0
"""Standard deviations of ln rho above its mean at which the tail begins."""


def fractional_cube(mach: float, field: tuple[float, float, float], tail: bool, like: Tensor, seed: int) -> Tensor:
    """Density, velocity and field, [7, n, n, n] for a `like` [n, n, n].

    Parameters
    ----------
    mach : float
        Root mean square velocity; ln rho has the variance ln(1 + (0.4 mach)^2) of turbulence of that velocity.
    field : (float, float, float)
        Mean field; the random one, free of divergence, has a root mean square of 2 as well.
    tail : bool
        Whether dense gas has a power law, as gravity makes one.
    like : Tensor
        Of this shape and dtype, on this device.
    seed : int
    """
    n, rng = like.shape[0], np.random.default_rng(seed)
    noise = torch.from_numpy(rng.standard_normal((7, n, n, n)))
    k = torch.stack(torch.meshgrid(*[torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)] * 3, indexing="ij"))
    square = k.square().sum(0)
    shape = torch.where(square > 0, square.clamp(min=1) ** (-SLOPE / 4), 0 * square)
    spectrum = torch.fft.fftn(noise, dim=(1, 2, 3)) * shape
    magnetic = spectrum[4:]
    spectrum[4:] = magnetic - k * ((k * magnetic).sum(0) / square.clamp(min=1))
    fields = torch.fft.ifftn(spectrum, dim=(1, 2, 3)).real
    gaussian = (fields[0] - fields[0].mean()) / fields[0].std()
    spread = math.sqrt(math.log(1 + (0.4 * mach) ** 2))
    density = torch.exp(spread * (_with_tail(gaussian, spread) if tail else gaussian))
    velocity = fields[1:4] * (mach / fields[1:4].square().sum(0).mean().sqrt())
    random = fields[4:] * (2.0 / fields[4:].square().sum(0).mean().sqrt())
    mean = torch.tensor(field, dtype=torch.float64)[:, None, None, None]
    return torch.cat([(density / density.mean())[None], velocity, random + mean]).to(like)


def _with_tail(gaussian: Tensor, spread: float) -> Tensor:
    """Normal deviates whose upper end is exponential: the same order, another distribution."""
    beyond = torch.from_numpy(norm.logsf(gaussian.numpy()) - norm.logsf(TAIL_BEGINS))
    return torch.where(gaussian > TAIL_BEGINS, TAIL_BEGINS - beyond / (TAIL * spread), gaussian)
