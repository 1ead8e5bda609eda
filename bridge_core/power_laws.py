"""Three power laws end to end, fitted to pairs of positive quantities: the astronomer's density from a column density.

log10 y is continuous and linear in each of three ranges of x = log10 of the observed quantity (Bisbas et al. 2019 and
Hsu et al. 2023 use two and three): basis 1, x, (x - b1)+, (x - b2)+, by least squares over all pairs b1 < b2 of a grid
of percentiles of x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError

GRID = 40
"""Percentiles of x, from the 2nd to the 98th, that may be breaks."""
MOST = 1_000_000
"""Pixels that are fitted at most, evenly from all."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PowerLaws:
    """log10 y = c0 + c1 x + c2 (x - b1)+ + c3 (x - b2)+, of x = log10 of what is observed.

    Parameters
    ----------
    breaks
        b1 < b2.
    coefficients
        c0 .. c3: the slopes are c1, c1 + c2 and c1 + c2 + c3.
    """

    breaks: tuple[float, float]
    coefficients: tuple[float, float, float, float]

    @classmethod
    def fit(cls, observed: Tensor, wanted: Tensor) -> PowerLaws:
        """Fit all pixels in which both are above 0; tensors of one shape, in any units.

        Raises
        ------
        BridgeError
            If fewer than ten pixels are, or their observed values do not differ.
        """
        known = torch.isfinite(observed) & torch.isfinite(wanted) & (observed > 0) & (wanted > 0)
        x, y = (values[known].double().log10().numpy() for values in (observed, wanted))
        if len(x) < 10 or np.ptp(x) == 0:
            raise BridgeError(
                f"three power laws need ten pixels with different observed values, but {len(x)} of {known.numel()} "
                "have both values; give other pairs"
            )
        some = np.linspace(0, len(x) - 1, min(len(x), MOST)).astype(np.int64)
        x, y = x[some], y[some]
        order = np.argsort(x, kind="stable")
        middle, level = float(x.mean()), float(y.mean())
        x, y = x[order] - middle, y[order] - level
        breaks = np.unique(np.quantile(x, np.linspace(0.02, 0.98, GRID)))
        if len(breaks) < 2:
            breaks = np.array([x[0], x[-1]])
        # moments of the pixels above each break, and of all: the normal equations follow from them
        above = np.searchsorted(x, breaks, side="right")
        tails = np.stack([_tails(values, above) for values in (np.ones_like(x), x, x * x, y, x * y)], 1)
        whole = np.array([len(x), x.sum(), (x * x).sum(), y.sum(), (x * y).sum()])
        first, second = np.triu_indices(len(breaks), 1)
        gram, right = _normal_equations(whole, tails, breaks, first, second)
        # a break near the end of few pixels may leave a basis function out: least squares of smallest norm
        found = np.einsum("nij,nj->ni", np.linalg.pinv(gram, rcond=1e-12, hermitian=True), right)
        best = int(np.argmax(np.einsum("ni,ni->n", found, right)))
        c0, c1, c2, c3 = found[best].tolist()
        b1, b2 = (float(breaks[index[best]]) + middle for index in (first, second))
        return cls((b1, b2), (c0 + level - c1 * middle, c1, c2, c3))

    def __call__(self, observed: Tensor) -> Tensor:
        """Predict the wanted quantity, of the observed one's shape; NaN where that is not above 0."""
        x = torch.where(observed > 0, observed, torch.nan).double().log10()
        c0, c1, c2, c3 = self.coefficients
        b1, b2 = self.breaks
        log = c0 + c1 * x + c2 * (x - b1).clamp(min=0) + c3 * (x - b2).clamp(min=0)
        return (10**log).to(observed.dtype)


def _tails(values: Floats, above: NDArray[np.intp]) -> Floats:
    """Sums of values[i:] for each i of `above`."""
    total = np.concatenate([[0.0], np.cumsum(values[::-1])])
    return np.asarray(total[len(values) - above])


def _normal_equations(
    whole: Floats, tails: Floats, breaks: Floats, first: NDArray[np.intp], second: NDArray[np.intp]
) -> tuple[Floats, Floats]:
    """Gram matrices [P, 4, 4] and right-hand sides [P, 4] of all pairs of breaks.

    `whole` and `tails` [B, 5] are the sums of 1, x, x^2, y and xy over all pixels, and over those above each break.
    """
    count, x, xx, y, xy = tails.T
    hinge = x - breaks * count  # sum of (x - b)+
    hinge_x = xx - breaks * x
    hinge_y = xy - breaks * y
    square = xx - 2 * breaks * x + breaks**2 * count
    both = xx[second] - (breaks[first] + breaks[second]) * x[second] + breaks[first] * breaks[second] * count[second]
    gram = np.zeros((len(first), 4, 4))
    gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1] = whole[0], whole[1], whole[2]
    for column, index in ((2, first), (3, second)):
        gram[:, 0, column], gram[:, 1, column] = hinge[index], hinge_x[index]
        gram[:, column, column] = square[index]
    gram[:, 2, 3] = both
    upper = np.triu(gram, 1)
    right = np.stack([np.full(len(first), whole[3]), np.full(len(first), whole[4]), hinge_y[first], hinge_y[second]], 1)
    return gram + upper.transpose(0, 2, 1), right
