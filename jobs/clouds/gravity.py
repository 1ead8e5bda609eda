"""Gravity of the gas itself in a periodic box: grad^2 phi = G4 (rho - 1), solved by Fourier transforms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FREE_FALL = 1.924
"""Free-fall time at mean density times sqrt(G4), where G4 = 4 pi G rho0: sqrt(3 pi / 32 G rho0)."""


def strength(mach: float, virial: float) -> float:
    """G4 = 4 pi G rho0 L^2 / c_s^2 of a box of side L whose virial parameter is 5 v^2 / (6 G rho0 L^2)."""
    return 10.0 * math.pi / 3.0 * mach**2 / virial


def free_fall(g4: float) -> float:
    """Free-fall time at mean density, in units of L / c_s."""
    return FREE_FALL / math.sqrt(g4)


def resolved_density(cells: int, g4: float) -> float:
    """Density at which the Jeans length is four cells of a box; collapse beyond it is not resolved."""
    return math.pi**2 * cells**2 / (4 * g4)


def acceleration(density: Tensor, g4: float) -> Tensor:
    """Acceleration -grad phi by gas of a density [X, Y, Z], [3, X, Y, Z]."""
    shape, like = density.shape, {"dtype": density.dtype, "device": density.device}
    cell = 1.0 / shape[0]
    waves = [torch.fft.fftfreq(n, cell, **like) for n in shape[:2]] + [torch.fft.rfftfreq(shape[2], cell, **like)]
    for wave, n in zip(waves, shape, strict=True):
        if n % 2 == 0:
            wave[n // 2] = 0.0  # the derivative of the highest frequency has no sign
    k = torch.stack(torch.meshgrid(*[2 * math.pi * wave for wave in waves], indexing="ij"))
    square = k.square().sum(0)
    potential = torch.where(square > 0, -g4 / square.clamp(min=1e-12), 0 * square) * torch.fft.rfftn(density)
    return torch.fft.irfftn(-1j * k * potential, s=shape, dim=(1, 2, 3))
