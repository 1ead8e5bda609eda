"""What cubic-spline interpolation onto pixels of half the side does to noise, with numpy alone.

The cardinal cubic spline in closed form (Unser, IEEE Signal Processing Magazine 16, 22, 1999); `storage.spline` and
`storage.grids` state the same numbers for ingested images.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

POLE = np.sqrt(3.0) - 2.0
TAPS = np.arange(-2, 4)
"""Pixels, relative to floor(position), whose squared weight counts."""
PHASES = 65
"""Positions between two pixels, from 0 to 1, at which the gain is tabled."""


def noise_gain(correlation: float) -> NDArray[np.float64]:
    """Variance of interpolated unit noise of correlation r^|lag|, along one axis, at `PHASES` positions."""
    return _noise_gain(round(correlation, 4))


def noise_correlation(correlation: float, turn: float) -> float:
    """Lag-1 correlation on pixels of half the side, mean over x and y, averaged over pixel phase.

    `turn` is the angle between the grids, rad.
    """
    none, near, across = (_covariance(correlation, 0.5 * abs(lag)) for lag in (0.0, np.cos(turn), np.sin(turn)))
    return near * across / none**2


@cache
def _noise_gain(correlation: float) -> NDArray[np.float64]:
    weights = _cardinal(np.linspace(0, 1, PHASES)[:, None] - TAPS)
    return np.asarray(np.einsum("pi,ij,pj->p", weights, correlation ** np.abs(TAPS[:, None] - TAPS), weights))


def _covariance(correlation: float, lag: float) -> float:
    """Covariance of interpolated unit noise at two positions, averaged over pixel phase; along one axis."""
    pixel = np.arange(-9, 11)
    phase = np.arange(8)[:, None] / 8
    first, second = _cardinal(phase - lag / 2 - pixel), _cardinal(phase + lag / 2 - pixel)
    return float(np.einsum("pi,ij,pj->p", first, correlation ** np.abs(pixel[:, None] - pixel), second).mean())


def _cardinal(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cardinal cubic spline: 1 at 0, 0 at all other whole numbers."""
    shifts = np.arange(-13, 14)
    coefficients = -6 * POLE / (1 - POLE**2) * POLE ** np.abs(shifts)
    y = np.abs(x[..., None] - shifts)
    spline = np.where(y < 1, 2 / 3 - y**2 + y**3 / 2, np.clip(2 - y, 0, None) ** 3 / 6)
    return np.asarray(spline @ coefficients)
