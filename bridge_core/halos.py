"""The wings of bright stars: how far they reach, and which sources are pieces of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

LEAST_SIGMA = 0.5
"""Wings end where the median of a ring falls below so many standard deviations of a pixel's noise."""
SPIKES = 3.0
"""Diffraction spikes are seen out to so many times the radius at which the wings end."""
LARGEST_PIECE = 0.002
SPIKE_PIECE = 0.02
"""Share of the star's flux, within an aperture of 1 arcsec, that a piece of its wings has at most, wherever it is, and
at 1 arcsec from the star; it falls with the square of the distance, as spikes do. Spikes of a telescope of 1.2 m with
three struts have half of it (`benchmarks/stars.py`)."""


def wing_radius(
    flux: NDArray[np.float32],
    noise: NDArray[np.floating],
    usable: NDArray[np.bool_],
    centre: tuple[float, float],
    reach: int,
) -> float:
    """Radius at which the wings of a star are lost in the noise, pixels; `reach` where they are not.

    Parameters
    ----------
    flux, noise
        [H, W], and the standard deviation of a pixel.
    usable
        bool [H, W].
    centre
        (y, x) of the star, array pixels.
    reach
        Largest radius to look at.
    """
    y, x = (round(value) for value in centre)
    box = (slice(max(y - reach, 0), y + reach + 1), slice(max(x - reach, 0), x + reach + 1))
    rows, columns = np.ogrid[
        box[0].start : box[0].start + flux[box].shape[0], box[1].start : box[1].start + flux[box].shape[1]
    ]
    ring = np.rint(np.hypot(rows - centre[0], columns - centre[1])).astype(np.int32)
    ring[~usable[box]] = -1
    found = np.unique(ring[(ring >= 0) & (ring <= reach)])
    with np.errstate(invalid="ignore", divide="ignore"):
        height = ndimage.median(np.where(ring >= 0, flux[box] / noise[box], 0.0), ring, found)
    below = found[(np.asarray(height) < LEAST_SIGMA)]
    return float(below[0]) if len(below) else float(reach)


def pieces_of_wings(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    flux: NDArray[np.floating],
    stars: NDArray[np.int64],
    radii: NDArray[np.float64],
    pixel_scale: float,
) -> NDArray[np.bool_]:
    """Which sources lie in the wings or spikes of a star, and are as faint as pieces of them, bool [N].

    Parameters
    ----------
    x, y
        float64 [N], pixels.
    flux
        [N] within one aperture.
    stars
        int64 [S], indices of the bright stars.
    radii
        float64 [S], of `wing_radius`.
    pixel_scale
        arcsec.
    """
    piece = np.zeros(len(x), np.bool_)
    for star, radius in zip(stars, radii, strict=True):
        apart = np.hypot(x - x[star], y - y[star])
        with np.errstate(divide="ignore"):
            most = np.minimum(LARGEST_PIECE, SPIKE_PIECE / (apart * pixel_scale) ** 2) * flux[star]
        piece |= (apart <= SPIKES * radius) & (flux <= most)
    return piece
