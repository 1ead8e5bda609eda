"""How well two images of one sky lie on each other, from the places of the objects that both show."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
LEAST_SHARE = 0.3
"""Share of the objects of the image with fewer that must be shifted alike."""
CERTAIN = 3.0
"""Standard errors from which on a turn counts."""
STEP = math.sqrt(2.0)
"""Results are powers of this, so that neighbouring tiles mostly say the same."""


@dataclass(frozen=True)
class Offset:
    """Where one image shows what another has at a place, as a shift and a turn about a middle.

    Parameters
    ----------
    shift : (float, float)
        (y, x), pixels.
    turn : float
        By which a place at x from the middle is too high in y, rad; 0 where it is not certain.
    variances : tuple of float
        Of the shift along y and x, and of the turn where there is one.
    objects : int
        Number of objects from which it is measured.
    """

    shift: tuple[float, float]
    turn: float
    variances: tuple[float, ...]
    objects: int

    def typical(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Root of its mean square over an image, along one axis, less what its errors add, and the error; pixels."""
        # over the image, the mean of u^2 + v^2 from its middle, half of it for one axis
        weights = np.array([0.5, 0.5, (shape[0] ** 2 + shape[1] ** 2) / 24])[: len(self.variances)]
        values = np.array([*self.shift, self.turn])[: len(self.variances)]
        noise = float(weights @ self.variances)
        return math.sqrt(max(float(weights @ values**2) - noise, 0.0)), math.sqrt(noise)


def common_shift(first: Sources, second: Sources, search: float, width: float) -> tuple[float, float] | None:
    """Find the shift that most objects of two images share, however many others lie nearer by chance.

    Parameters
    ----------
    first, second
        Objects of either image.
    search
        Largest shift, pixels.
    width
        Shifts as near to each other as this are the same, pixels.

    Returns
    -------
    (float, float) or None
        (y, x) from the first to the second; None where no shift stands out from what chance gives.
    """
    one, other = (_isolated(sources) for sources in (first, second))
    if min(len(one), len(other)) < FEWEST:
        return None
    near = KDTree(one).sparse_distance_matrix(KDTree(other), search, output_type="coo_matrix")
    shifts = other[near.col] - one[near.row]
    if len(shifts) < FEWEST:
        return None
    tree = KDTree(shifts)
    counts = np.asarray(tree.query_ball_point(shifts, width, return_length=True))
    best = int(np.argmax(counts))
    chance = len(shifts) * (width / search) ** 2
    if counts[best] < max(FEWEST, LEAST_SHARE * min(len(one), len(other))) + chance + CERTAIN * math.sqrt(chance):
        return None
    y, x = np.median(shifts[tree.query_ball_point(shifts[best], width)], axis=0)
    return float(y), float(x)


def measured_offset(first: Sources, second: Sources, middle: tuple[float, float], reach: float) -> Offset | None:
    """Measure the offset of a second image against a first on the same grid; None where too few objects say it.

    Parameters
    ----------
    first, second
        Objects of either image.
    middle
        (y, x) about which it is turned, pixels.
    reach
        Pixels within which an object of one may be that of the other.
    """
    one, other = (_isolated(sources) for sources in (first, second))
    if min(len(one), len(other)) < FEWEST:
        return None
    apart, index = (np.asarray(found) for found in KDTree(other).query(one))
    back = np.asarray(KDTree(one).query(other)[1])
    mutual = (apart < reach) & (back[index] == np.arange(len(one)))
    place, step = one[mutual] - np.array(middle), other[index[mutual]] - one[mutual]
    design = np.zeros((len(place), 2, 3))
    design[:, 0, 0] = design[:, 1, 1] = 1.0
    design[:, 0, 2], design[:, 1, 2] = place[:, 1], -place[:, 0]
    fitted = _clipped_fit(design, step)
    if fitted is not None and abs(fitted[0][2]) < CERTAIN * math.sqrt(fitted[1][2]):
        fitted = _clipped_fit(design[:, :, :2], step)
    if fitted is None:
        return None
    fit, variances, objects = fitted
    turn = float(fit[2]) if len(fit) == 3 else 0.0
    return Offset((float(fit[0]), float(fit[1])), turn, tuple(map(float, variances)), objects)


def typical_offset(
    first: Sources, second: Sources, shape: tuple[int, int], reach: float, smallest: float, largest_error: float
) -> float:
    """Measure how far two images of one shape are typically apart.

    Parameters
    ----------
    first, second, reach
        As `measured_offset`.
    shape
        Of the images, pixels.
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
    offset = measured_offset(first, second, ((shape[0] - 1) / 2, (shape[1] - 1) / 2), reach)
    if offset is None:
        return math.nan
    found, error = offset.typical(shape)
    if error > largest_error:
        return math.nan
    return smallest * STEP ** max(0, round(math.log(max(found, smallest) / smallest, STEP)))


def _clipped_fit(
    design: NDArray[np.float64], step: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int] | None:
    """Fit step = design @ parameters, [N, 2] and [N, 2, P], without outliers: parameters, variances [P], objects.

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
    return fit, scatter**2 * np.diag(np.linalg.inv(rows.T @ rows)), int(keep.sum())


def _isolated(sources: Sources) -> NDArray[np.float64]:
    """Centres (y, x) of the objects that are bright and were not taken apart from others, [N, 2]."""
    good = sources.select((sources.snr >= LEAST_SNR) & (sources.flags == 0))
    return np.stack([good.y, good.x], -1)
