"""How well two images of one sky lie on each other, from the places of the objects that both show."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from surveybridge.bridge_core.detection import Sources

LEAST_SNR = 10.0
"""Signal to noise of an object in either image, so that its centre is known to a small part of a pixel."""
FEWEST = 8
"""Number of objects from which an offset is measured."""
CLIP_SIGMAS, ROUNDS = 3.0, 5
"""Objects further from the fit than this are left out, and how often that is done: blends and objects that move."""
CERTAIN = 3.0
"""Standard errors from which on a turn counts."""
STEP = math.sqrt(2.0)
"""Results are powers of this, so that neighbouring tiles mostly say the same."""


def typical_offset(
    first: Sources, second: Sources, shape: tuple[int, int], reach: float, smallest: float, largest_error: float
) -> float:
    """Measure the offset between two images on one grid, as a shift and a turn.

    Parameters
    ----------
    first, second
        Objects of either image.
    shape
        Of the images, pixels.
    reach
        Pixels within which an object of one may be that of the other.
    smallest
        Offsets, pixels, below this are called this.
    largest_error
        Standard error, pixels, beyond which nothing is said.

    Returns
    -------
    float
        Root of the mean squared offset over the image along one axis, pixels, less what the errors of the fit add;
        NaN where it cannot be measured.
    """
    one, other = (_isolated(sources) for sources in (first, second))
    if min(len(one), len(other)) < FEWEST:
        return math.nan
    apart, index = (np.asarray(found) for found in KDTree(other).query(one))
    back = np.asarray(KDTree(one).query(other)[1])
    mutual = (apart < reach) & (back[index] == np.arange(len(one)))
    middle = (np.array(shape) - 1) / 2
    place, step = one[mutual] - middle, other[index[mutual]] - one[mutual]
    design = np.zeros((len(place), 2, 3))
    design[:, 0, 0] = design[:, 1, 1] = 1.0
    design[:, 0, 2], design[:, 1, 2] = place[:, 1], -place[:, 0]
    fitted = _clipped_fit(design, step)
    if fitted is not None and abs(fitted[0][2]) < CERTAIN * math.sqrt(fitted[1][2]):
        fitted = _clipped_fit(design[:, :, :2], step)
    if fitted is None:
        return math.nan
    fit, variances = fitted
    # over the image, the mean of u^2 + v^2 from its middle, half of it for one axis
    weights = np.array([0.5, 0.5, (shape[0] ** 2 + shape[1] ** 2) / 24])[: len(fit)]
    noise = float(weights @ variances)
    if math.sqrt(noise) > largest_error:
        return math.nan
    found = math.sqrt(max(float(weights @ fit**2) - noise, 0.0))
    return smallest * STEP ** max(0, round(math.log(max(found, smallest) / smallest, STEP)))


def _clipped_fit(
    design: NDArray[np.float64], step: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Fit step = design @ parameters, [N, 2] and [N, 2, P], without outliers: parameters and their variances, [P].

    None where too few objects are left.
    """
    keep: NDArray[np.bool_] = np.ones(len(step), bool)
    for _ in range(ROUNDS):
        if keep.sum() < FEWEST:
            return None
        rows = design[keep].reshape(-1, design.shape[2])
        fit = np.asarray(np.linalg.lstsq(rows, step[keep].reshape(-1), rcond=None)[0], np.float64)
        left = np.abs(step - design @ fit)
        scatter = 1.4826 * float(np.median(left[keep]))
        kept = np.asarray((left <= CLIP_SIGMAS * max(scatter, 1e-6)).all(1))
        if np.array_equal(kept, keep):
            break
        keep = kept
    return fit, scatter**2 * np.diag(np.linalg.inv(rows.T @ rows))


def _isolated(sources: Sources) -> NDArray[np.float64]:
    """Centres (y, x) of the objects that are bright and were not taken apart from others, [N, 2]."""
    good = sources.select((sources.snr >= LEAST_SNR) & (sources.flags == 0))
    return np.stack([good.y, good.x], -1)
