"""Sersic profiles as mixtures of Gaussians: the table of `jobs.simulating.profiles`, and how well it fits.

    python -m benchmarks.sersic_mixtures

Each line is a Sersic index, the largest error of the flux within any radius from 0.02 to 8 half-light radii, as a share
of the whole, and the weights in units of 1e-4. The fit is by non-negative least squares to the flux in rings, with the
whole flux and half of it within the half-light radius held. The profiles end at 8 half-light radii.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, nnls
from scipy.special import gammainc

from surveybridge.jobs.simulating.profiles import INDICES, WIDTHS
from surveybridge.jobs.simulating.sky import TRUNCATION

EDGES = np.concatenate([[0.0], np.geomspace(0.01, 12, 90)])


def main() -> None:
    """Print the table."""
    radii = np.geomspace(0.02, TRUNCATION, 60)
    for index in INDICES:
        weights = fit(index)
        error = np.abs(within(radii) @ weights - enclosed(index, radii)).max()
        print(f"{index:5.2f}  {error:.4f}  {', '.join(str(round(1e4 * weight)) for weight in weights)}")


def fit(index: float) -> NDArray[np.float64]:
    """Weights of Gaussians of `WIDTHS`, [K]."""
    if index == INDICES[0]:  # which is a Gaussian
        return np.isclose(WIDTHS, 0.849322, rtol=1e-6).astype(float)
    light = np.diff(enclosed(index, EDGES))
    importance = 1 / np.sqrt(light + 1e-3)
    rows = [np.diff(within(EDGES), axis=0) * importance[:, None], 1e3 * np.ones((1, len(WIDTHS)))]
    rows.append(300 * within(np.ones(1)))
    weights, _ = nnls(np.concatenate(rows), np.concatenate([light * importance, [1e3, 150.0]]))
    weights[weights < 1e-4] = 0
    return np.asarray(weights / weights.sum())


def within(radii: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the flux of each Gaussian within radii in half-light radii, [R, K]."""
    return np.asarray(1 - np.exp(-0.5 * (radii[:, None] / WIDTHS) ** 2))


def enclosed(index: float, radii: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the flux of a truncated Sersic profile within radii in half-light radii."""

    def share(b: float, radius: NDArray[np.float64] | float) -> NDArray[np.float64]:
        return np.asarray(gammainc(2 * index, b * np.minimum(radius, TRUNCATION) ** (1 / index)))

    b = brentq(lambda b: float(share(b, 1.0) - 0.5 * share(b, TRUNCATION)), 0.01, 40)
    return share(b, radii) / share(b, TRUNCATION)


if __name__ == "__main__":
    main()
