"""The lens score of residuals: they are compared with similar ordinary objects, weighted, and given a false-alarm rate.

A bright object has larger residuals than a faint one, so each number of `bridge_core.residuals` is compared with those
of regular objects of the same flux and colour, in units of their scatter. A linear discriminant (logistic regression,
in the spirit of Fisher 1936) against simulated lenses weighs the numbers. The score is its value in standard deviations
of regular objects; the false-alarm rate is the share of them above it. Where the network is told the observing
conditions, objects are compared with those under like conditions, and each weight is linear in the conditions: behind a
wide PSF a ring says something else than behind a narrow one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from surveybridge.bridge_core.ordinary import (
    Floats,
    Range,
    as_columns,
    location_and_scale,
    object_terms,
    range_of,
    scaled,
)

CLIP = 5.0
"""Bound of a standardised number, in standard deviations: one star must not fill the list."""
TAIL = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
"""False-alarm rates at which the score of regular objects is tabulated."""
LEFT_OUT = 0.002
"""Share of the objects at either end of a range that lie beyond it."""
STRENGTH, STRENGTH_TOLD = 0.05, 0.02
"""Of the data against the penalty on weights, and where there are more weights, which depend on conditions."""
BY_CONDITIONS = ("conditions", "location", "spread")
"""What cards have of scores that depend on conditions alone."""
NOT_TOLD: Mapping[str, Floats] = MappingProxyType({})
"""Of a network that is told no conditions."""


class Measured(NamedTuple):
    """Measurements of N objects.

    features: residuals float64 [draws, N, F]; flux: log10 of the i flux [N]; colour: g - i [N]; conditions: what the
    network is told of them, by name [N], NaN where unknown.
    """

    features: Floats
    flux: Floats
    colour: Floats
    conditions: Mapping[str, Floats] = NOT_TOLD

    @classmethod
    def join(cls, parts: Sequence[Measured]) -> Measured:
        """All objects, in order."""
        return cls(
            np.concatenate([part.features for part in parts], 1),
            np.concatenate([part.flux for part in parts]),
            np.concatenate([part.colour for part in parts]),
            {name: np.concatenate([part.conditions[name] for part in parts]) for name in parts[0].conditions},
        )

    def rows(self, index: NDArray[np.bool_]) -> Measured:
        """Those of some objects."""
        conditions = {name: values[index] for name, values in self.conditions.items()}
        return Measured(self.features[:, index], self.flux[index], self.colour[index], conditions)


@dataclass(frozen=True)
class Discriminant:
    """The function from residuals to the lens score; made by `fit`, and kept in the checkpoint's card.

    Parameters
    ----------
    sigma
        Noise level at which the network is asked, network units.
    draws
        Independent noises of which the residuals are averaged; their scatter is the score's own error.
    flux, colour
        Ranges that the fit has seen: log10 of the i flux in nJy, and g - i in mag. Objects beyond count as at the edge.
    mean
        [T + C, F]: what regular objects show, as a quadratic form in flux and colour with T = 6 terms, and linear in C
        conditions.
    scale
        [F]: their scatter.
    weight
        [(1 + C) F]: the discriminant's weights, and by how much each condition changes them.
    centre, width
        Median of regular objects' weighted sum, and half the distance between its 16th and 84th percentile.
    tail
        Score of regular objects at each rate of `TAIL`, from folds that had not seen them.
    conditions
        Ranges that the fit has seen, by name.
    location, spread
        [1 + 2 C]: of regular objects' weighted sum, and of the logarithm of its scale, by conditions and their squares;
        where there are conditions they count instead of `centre` and `width`.
    """

    sigma: float
    draws: int
    flux: tuple[float, float]
    colour: tuple[float, float]
    mean: tuple[tuple[float, ...], ...]
    scale: tuple[float, ...]
    weight: tuple[float, ...]
    centre: float
    width: float
    tail: tuple[float, ...]
    conditions: Mapping[str, Range] = field(default_factory=dict)
    location: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()

    @property
    def card(self) -> dict[str, Any]:
        """JSON form; `from_card` reads it."""
        card = asdict(self)
        return card if self.conditions else {name: value for name, value in card.items() if name not in BY_CONDITIONS}

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Discriminant:
        """Read what `card` wrote."""
        lists = {name: tuple(value) for name, value in card.items() if isinstance(value, list | tuple)}
        conditions = {name: (float(low), float(high)) for name, (low, high) in card.get("conditions", {}).items()}
        mean = tuple(tuple(row) for row in card["mean"])
        return cls(**{**card, **lists, "mean": mean, "conditions": conditions})

    def standardise(
        self, features: Floats, flux: Floats, colour: Floats, conditions: Mapping[str, Floats] = NOT_TOLD
    ) -> Floats:
        """Return residuals [..., N, F] in standard deviations of ordinary objects alike, clipped."""
        columns = as_columns(conditions, tuple(self.conditions), len(flux))
        ranges = tuple(self.conditions.values())
        expected = object_terms(flux, colour, columns, (self.flux, self.colour), ranges) @ np.array(self.mean)
        z = (features - expected) / np.array(self.scale)
        return np.asarray(np.nan_to_num(np.clip(z, -CLIP, CLIP), nan=0.0))

    def inputs(
        self, features: Floats, flux: Floats, colour: Floats, conditions: Mapping[str, Floats] = NOT_TOLD
    ) -> Floats:
        """Return the numbers [..., N, (1 + C) F] that are weighted: standardised residuals, and times conditions."""
        z = self.standardise(features, flux, colour, conditions)
        with_each = [z * column[:, None] for column in self._scaled(conditions, len(flux)).T]
        return np.concatenate([z, *with_each], -1)

    def score(
        self, features: Floats, flux: Floats, colour: Floats, conditions: Mapping[str, Floats] = NOT_TOLD
    ) -> Floats:
        """Lens score of residuals [..., N, F], float64 [..., N]: larger is more like a lens."""
        weighted = self.inputs(features, flux, colour, conditions) @ np.array(self.weight)
        if not self.conditions:
            return np.asarray((weighted - self.centre) / self.width)
        x = self._terms(conditions, len(flux))
        return np.asarray((weighted - x @ np.array(self.location)) / np.exp(x @ np.array(self.spread)))

    def _terms(self, conditions: Mapping[str, Floats], number: int) -> Floats:
        """Of location and spread, [N, 1 + 2 C]."""
        columns = self._scaled(conditions, number)
        return np.concatenate([np.ones((number, 1)), columns, columns**2], 1)

    def _scaled(self, conditions: Mapping[str, Floats], number: int) -> Floats:
        """Conditions of objects as -1..1, [N, C]."""
        return scaled(as_columns(conditions, tuple(self.conditions), number), tuple(self.conditions.values()))

    def false_alarm(self, score: Floats) -> Floats:
        """Return the share of ordinary objects that score higher, by the table, and exponentially beyond its ends."""
        return rate_above(score, self.tail)


def rate_above(score: Floats, tail: Sequence[float], rates: Sequence[float] = TAIL) -> Floats:
    """Return the share of objects above a score, from the scores `tail` at some `rates`, exponentially beyond them."""
    rate = np.log10(rates)
    slope = (rate[-1] - rate[-2]) / (tail[-1] - tail[-2])
    inside = np.interp(score, tail, rate)
    beyond = rate[-1] + slope * (score - tail[-1])
    first = (rate[1] - rate[0]) / (tail[1] - tail[0])
    below = np.minimum(rate[0] + first * (score - tail[0]), 0.0)
    return np.asarray(10 ** np.where(score > tail[-1], beyond, np.where(score < tail[0], below, inside)))


def fit(
    measured: Measured, anomalous: NDArray[np.bool_], groups: NDArray[np.int64], *, sigma: float, folds: int = 5
) -> tuple[Discriminant, Floats]:
    """Learn the residuals of ordinary objects, and the weights that tell lenses from them.

    Parameters
    ----------
    measured
        Of regular objects and lenses.
    anomalous
        bool [N], which are lenses.
    groups
        int64 [N]: objects that share pixels (a galaxy, and the same galaxy with arcs) have one number and stay in one
        fold.
    sigma
        As `measure` was asked.
    folds
        Parts of which each is scored by what the others teach.

    Returns
    -------
    Discriminant, ndarray
        Learnt from all; and each object's score from the folds that had not seen it, float64 [N].
    """
    held_out = np.empty(len(anomalous))
    _, number = np.unique(groups, return_inverse=True)
    for fold in range(folds):
        inside = number % folds == fold
        asked = measured.rows(inside)
        held_out[inside] = _fit(measured.rows(~inside), anomalous[~inside], sigma).score(
            asked.features.mean(0), asked.flux, asked.colour, asked.conditions
        )
    whole = _fit(measured, anomalous, sigma)
    tail = np.quantile(held_out[~anomalous], 1 - np.array(TAIL))
    return replace(whole, tail=tuple(float(f"{value:.5g}") for value in tail)), held_out


def _fit(measured: Measured, anomalous: NDArray[np.bool_], sigma: float) -> Discriminant:
    """Learn from all objects; the tail is that of a normal distribution."""
    regular = ~anomalous
    features = measured.features.mean(0)
    flux_range, colour_range = (range_of(values[regular], LEFT_OUT) for values in (measured.flux, measured.colour))
    ranges = {name: range_of(values[regular], LEFT_OUT) for name, values in measured.conditions.items()}
    columns = as_columns(measured.conditions, tuple(ranges), len(measured.flux))
    edges = (flux_range, colour_range)
    terms = object_terms(measured.flux, measured.colour, columns, edges, tuple(ranges.values()))
    filled = np.where(np.isnan(features), np.nanmedian(features[regular], 0), features)
    mean = np.linalg.lstsq(terms[regular], filled[regular], rcond=None)[0]
    scale = (filled[regular] - terms[regular] @ mean).std(0)
    start = Discriminant(
        sigma=sigma,
        draws=len(measured.features),
        flux=flux_range,
        colour=colour_range,
        mean=tuple(tuple(float(f"{v:.6g}") for v in row) for row in mean),
        scale=tuple(float(f"{v:.6g}") for v in scale),
        weight=(0.0,) * len(scale) * (1 + len(ranges)),
        centre=0.0,
        width=1.0,
        tail=(0.0, 0.84, 1.28, 1.64, 2.05, 2.33, 2.58),
        conditions=ranges,
    )
    z = start.inputs(features, measured.flux, measured.colour, measured.conditions)
    strength = STRENGTH_TOLD if ranges else STRENGTH
    weight = np.array([float(f"{w:.6g}") for w in logistic_weights(z, anomalous, strength)])
    weighted = z[regular] @ weight
    low, centre, high = np.quantile(weighted, [0.16, 0.5, 0.84])
    found = replace(start, weight=tuple(weight.tolist()), centre=float(centre), width=float((high - low) / 2))
    if not ranges:
        return found
    alike = measured.rows(regular)
    location, spread = location_and_scale(found._terms(alike.conditions, len(alike.flux)), weighted)
    return replace(found, location=location, spread=spread)


def surprise(measured: Measured, regular: NDArray[np.bool_]) -> Floats:
    """Return the squared Mahalanobis distance of objects from similar ordinary ones, float64 [N]."""
    z = _fit(measured, ~regular, 0.0).standardise(measured.features.mean(0), *measured[1:])
    away = z - z[regular].mean(0)
    return np.asarray(np.einsum("nf,fg,ng->n", away, np.linalg.pinv(np.cov(z[regular].T)), away))


def logistic_weights(z: Floats, anomalous: NDArray[np.bool_], strength: float = STRENGTH) -> Floats:
    """Weights [F] of a logistic regression with an intercept: |w|^2 / 2 + strength x the summed log loss, minimised."""
    from scipy.optimize import minimize  # slow to import, and no translation needs it

    labels = anomalous.astype(np.float64)
    inputs = np.c_[z, np.ones(len(z))]

    def loss(w: Floats) -> tuple[float, Floats]:
        margin = inputs @ w
        value = 0.5 * w[:-1] @ w[:-1] + strength * (np.logaddexp(0, margin) - labels * margin).sum()
        slope = strength * inputs.T @ (1 / (1 + np.exp(-margin)) - labels)
        slope[:-1] += w[:-1]
        return float(value), slope

    return np.asarray(minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B").x[:-1])
