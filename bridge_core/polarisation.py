"""Magnetic fields from the scatter of polarisation angles: Davis (1951), Chandrasekhar & Fermi (1953).

Turbulence of a velocity dispersion sigma_v bends a field of strength B against its tension, so that angles scatter by
sigma_psi: B_pos = Q sqrt(4 pi rho) sigma_v / sigma_psi, with Q = 0.5 (Ostriker et al. 2001) where sigma_psi is small.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CORRECTION = 0.5
"""Q."""
LARGEST = math.radians(25)
"""Scatter of angles, rad, up to which the formula is taken to hold."""
LEAST = 0.01
"""Scatter, rad, below which it counts as this: a uniform map is no infinite field."""
MASS = 2.34e-24
"""g per hydrogen nucleus, helium included."""
IN_SPACE = 4 / math.pi
"""Mean of |B| over B in the plane of the sky, where all directions are equally likely."""


def angle_dispersion(psi: Tensor, box: int) -> Tensor:
    """Circular standard deviation of axial angles in a box around each pixel.

    Parameters
    ----------
    psi
        float [N, H, W], rad; NaN where there is no data.
    box
        Its side in pixels, odd; what of it lies beyond the map does not count.

    Returns
    -------
    Tensor
        float [N, H, W], rad: sqrt(-2 ln R) / 2 with R = |mean exp(2 i psi)|, at least `LEAST`; NaN where the box has no
        data (Mardia & Jupp 2000, sec. 2.3).
    """
    known = torch.isfinite(psi)
    double = 2 * torch.where(known, psi, 0.0).double()
    planes = torch.stack([double.cos() * known, double.sin() * known, known.double()], 1)
    cosine, sine, count = F.avg_pool2d(planes, box, stride=1, padding=box // 2).unbind(1)
    length = torch.hypot(cosine, sine) / count
    return (0.5 * (-2 * length.clamp(1e-12, 1).log()).sqrt()).clamp(min=LEAST).masked_fill(count == 0, torch.nan)


def field_strength(density: Tensor, sigma_v: Tensor, dispersion: Tensor) -> Tensor:
    """Field strength in the plane of the sky, uG.

    Parameters
    ----------
    density
        Hydrogen nuclei, cm^-3.
    sigma_v
        Velocity dispersion along the line of sight without thermal motion, cm/s.
    dispersion
        Of the angles, rad.
    """
    return CORRECTION * (4 * math.pi * MASS * density).sqrt() * sigma_v / dispersion * 1e6
