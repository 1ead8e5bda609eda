"""The interpolation kernel: cubic splines, as weights on the input pixels.

The value of an interpolating cubic spline at position p is sum_n eta(p - n) f_n with eta the *cardinal* spline
(B-spline times the inverse filter; Unser, IEEE Signal Processing Magazine 16, 22, 1999). Noise follows from eta alone.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import scipy
from numpy.typing import NDArray

TAPS = np.arange(-2, 4)
"""Input pixels, relative to floor(position), whose squared weight is counted: the rest is 1e-4 of the variance."""


def interpolation_matrix(size: int, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic-spline interpolation as a matrix, float64 [len(positions), size]; rows sum to 1.

    `positions` are in pixels of the input, 0 = centre of the first; mirrored at the ends.
    """
    coefficients = scipy.ndimage.spline_filter1d(np.eye(size), order=3, axis=0, mode="mirror")
    columns = [
        scipy.ndimage.map_coordinates(coefficients[:, k], positions[None], order=3, mode="mirror", prefilter=False)
        for k in range(size)
    ]
    return np.stack(columns, axis=1)


def tap_weights(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cardinal-spline weights of the pixels `TAPS` at positions `offset` in [0, 1), float64 [len(TAPS), *offset.shape].

    Each is one cubic polynomial on that interval, so this is exact.
    """
    polynomials = _tap_polynomials().reshape(4, len(TAPS), *[1] * offset.ndim)
    return np.asarray(((polynomials[3] * offset + polynomials[2]) * offset + polynomials[1]) * offset + polynomials[0])


def correlated_gain(offset: NDArray[np.float64], correlation: float) -> NDArray[np.float64]:
    """Variance at `offset` in [0, 1) of noise with correlation r^|lag|, over that of white noise; along one axis."""
    phase = np.linspace(0.0, 1.0, 65)
    weights = tap_weights(phase)
    shared = correlation ** np.abs(TAPS[:, None] - TAPS)
    gain = np.einsum("ip,ij,jp->p", weights, shared, weights) / np.einsum("ip,ip->p", weights, weights)
    return np.asarray(np.interp(offset, phase, gain))


@cache
def noise_covariance(lag: float, correlation: float = 0.0, phases: int = 32) -> float:
    """Covariance of interpolated unit noise at two positions `lag` apart, averaged over pixel phase; along one axis.

    Input noise has correlation r^|lag| between pixels; r = 0 is white.
    """
    size = 48
    positions = size / 2 - lag / 2 + np.arange(phases) / phases
    first, second = interpolation_matrix(size, positions), interpolation_matrix(size, positions + lag)
    pixel = np.arange(size)
    shared = np.eye(size) if correlation == 0 else correlation ** np.abs(pixel[:, None] - pixel)
    return float(np.einsum("pi,ij,pj->p", first, shared, second).mean())


def noise_on_finer_pixels(sigma: float, correlation: float, ratio: float) -> tuple[float, float]:
    """Noise of fluxes that are interpolated onto pixels along the same axes, and the correlation of neighbours there.

    Parameters
    ----------
    sigma, correlation
        Of a pixel, and of neighbours, before.
    ratio
        Side of the new pixels over that of the old ones; 1: nothing is interpolated.
    """
    if ratio == 1:
        return sigma, correlation
    gain = noise_covariance(0.0, correlation)
    return sigma * ratio**2 * gain, noise_covariance(ratio, correlation) / gain


@cache
def _tap_polynomials() -> NDArray[np.float64]:
    """Coefficients [4 powers, len(TAPS)] of the weights on [0, 1), from four exact samples."""
    nodes = np.array([0.0, 1 / 3, 2 / 3, 1.0])
    size = 65
    weights = interpolation_matrix(size, size // 2 + nodes)[:, size // 2 + TAPS]
    return np.asarray(np.linalg.solve(np.vander(nodes, 4, increasing=True), weights))
