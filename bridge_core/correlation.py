"""Noise whose neighbouring pixels are correlated, as that of resampled and co-added images is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve1d

NEGLIGIBLE = 1e-3
"""Correlation below which pixels count as independent."""


def error_factor(weights: NDArray[np.floating], correlation: float) -> float:
    """Factor by which the standard error of a weighted sum of pixels exceeds that of white noise.

    The correlation of pixels a distance d apart is taken as correlation^(d^2), that of white noise convolved with a
    Gaussian: sqrt(sum_ij w_i w_j rho_ij / sum_i w_i^2).

    Parameters
    ----------
    weights
        [H, W], weights of the pixels, such as the share of each that lies inside an aperture.
    correlation
        Of neighbouring pixels, 0 (white) to below 1.
    """
    if correlation <= 0:
        return 1.0
    reach = math.ceil(math.sqrt(math.log(NEGLIGIBLE) / math.log(min(correlation, 0.99))))
    line = correlation ** (np.arange(-reach, reach + 1, dtype=np.float64) ** 2)
    padded = np.pad(np.asarray(weights, np.float64), reach)
    shared = convolve1d(convolve1d(padded, line, axis=0, mode="constant"), line, axis=1, mode="constant")
    return math.sqrt(float((padded * shared).sum() / (padded**2).sum()))


def disc(radius: float, oversample: int = 5) -> NDArray[np.float64]:
    """Share of each pixel inside a circle around the middle pixel's centre, float64 [H, W] that just holds it."""
    reach = math.ceil(radius + 0.5)
    places = (np.arange((2 * reach + 1) * oversample) + 0.5) / oversample - reach - 0.5
    inside = (places[:, None] ** 2 + places**2 <= radius**2).astype(np.float64)
    side = 2 * reach + 1
    return inside.reshape(side, oversample, side, oversample).mean((1, 3))
