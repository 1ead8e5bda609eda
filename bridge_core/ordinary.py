"""How a number of ordinary objects depends on what they look like and on how they were observed.

A number, such as a score, has a location and a scale that are linear in some terms: a quadratic form in flux and colour
of the object, and conditions such as PSF and noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Range = tuple[float, float]

OUTLYING = 4.0
"""Objects further from the location, in standard deviations, do not enter it: a sky has some lenses."""
RIDGE = 1.0
"""Strength of the penalty on coefficients, in objects: terms are scaled to -1..1."""
VARIES = 0.02
"""Conditions that vary by a smaller share over the objects are left out."""
_MEAN_LOG = -0.635
"""Mean of ln |x| of a standard normal variable: -(gamma + ln 2) / 2."""


def location_and_scale(x: Floats, values: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Learn where a number of ordinary objects lies and how it scatters.

    Parameters
    ----------
    x
        [N, T], terms of which the first is 1.
    values
        [N], the number; outliers do not enter.

    Returns
    -------
    location, scale
        Coefficients of the location, and of the logarithm of the scale, T each.
    """
    near = np.abs(values - np.median(values)) < 20 * (np.quantile(values, 0.84) - np.quantile(values, 0.16) + 1e-12)
    location, spread = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for _ in range(4):
        location = _ridge(x[near], values[near], np.exp(-2 * (x[near] @ spread)))
        away = values - x @ location
        size = np.log(np.maximum(np.abs(away), 1e-6 * np.abs(away).max() + 1e-12)) - _MEAN_LOG
        spread = _ridge(x[near], size[near], np.ones(near.sum()))
        near = np.abs(away) < OUTLYING * np.exp(x @ spread)
    found = [tuple(float(f"{value:.6g}") for value in coefficients) for coefficients in (location, spread)]
    return found[0], found[1]


def as_columns(conditions: Mapping[str, Floats], names: Sequence[str], number: int) -> Floats:
    """Conditions of `number` objects as [N, C], in the order of some names; NaN where they are not given."""
    unknown = np.full(number, np.nan)
    return np.stack([conditions.get(name, unknown) for name in names], -1) if names else np.empty((number, 0))


def object_terms(
    flux: Floats, colour: Floats, conditions: Floats, edges: tuple[Range, Range], ranges: Sequence[Range]
) -> Floats:
    """Terms of what depends on an object, [N, 6 + C]: a quadratic form in flux and colour, and scaled conditions."""
    return np.concatenate([quadratic_terms(flux, colour, *edges), scaled(conditions, ranges)], 1)


def scaled(conditions: Floats, ranges: Sequence[Range]) -> Floats:
    """Conditions [N, C] scaled to -1..1 over their ranges; 0 where they are unknown or one throughout."""
    columns = np.zeros(conditions.shape)
    for k, (low, high) in enumerate(ranges):
        if high - low > VARIES * abs(high):
            columns[:, k] = 2 * (np.clip(conditions[:, k], low, high) - low) / (high - low) - 1
    return np.asarray(np.nan_to_num(columns, nan=0.0))


def quadratic_terms(
    flux: Floats, colour: Floats, flux_range: tuple[float, float], colour_range: tuple[float, float]
) -> Floats:
    """The six terms of a quadratic form in flux and colour, each scaled to -1..1 over its range; [N, 6]."""
    f, c = (
        2 * (np.clip(values, *edges) - edges[0]) / (edges[1] - edges[0]) - 1
        for values, edges in ((flux, flux_range), (colour, colour_range))
    )
    return np.stack([np.ones_like(f), f, f**2, c, c**2, f * c], -1)


def range_of(values: Floats, left_out: float = 0.0) -> Range:
    """Lowest and highest but for a share at either end; both 0 where nothing is known."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 0.0
    return float(np.quantile(known, left_out)), float(np.quantile(known, 1 - left_out))


def _ridge(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Weighted least squares with a penalty on all coefficients but the first (Hoerl & Kennard 1970)."""
    weights = weights / weights.mean()
    penalty = RIDGE * np.eye(x.shape[1])
    penalty[0, 0] = 0.0
    return np.asarray(np.linalg.solve((x.T * weights) @ x + penalty, (x.T * weights) @ y))
