"""The lens score of residuals: they are compared with similar ordinary objects, weighted, and given a false-alarm rate.

A bright object has larger residuals than a faint one, so each number of `bridge_core.residuals` is compared with those
of regular objects of the same flux and colour, in units of their scatter. A linear discriminant (logistic regression,
in the spirit of Fisher 1936) against simulated lenses weighs the numbers. The score is its value in standard deviations
of regular objects; the false-alarm rate is the share of them above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CLIP = 5.0
"""Bound of a standardised number, in standard deviations: one star must not fill the list."""
TAIL = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
"""False-alarm rates at which the score of regular objects is tabulated."""


class Measured(NamedTuple):
    """Measurements of N objects: residuals float64 [draws, N, F], log10 of the i flux [N], g - i [N]."""

    features: Floats
    flux: Floats
    colour: Floats

    @classmethod
    def join(cls, parts: Sequence[Measured]) -> Measured:
        """All objects, in order."""
        return cls(
            np.concatenate([part.features for part in parts], 1),
            np.concatenate([part.flux for part in parts]),
            np.concatenate([part.colour for part in parts]),
        )


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
        [T, F]: what regular objects show, as a quadratic form in flux and colour with T = 6 terms.
    scale, weight
        [F]: their scatter, and the discriminant's weights.
    centre, width
        Median of regular objects' weighted sum, and half the distance between its 16th and 84th percentile.
    tail
        Score of regular objects at each rate of `TAIL`, from folds that had not seen them.
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

    @property
    def card(self) -> dict[str, Any]:
        """JSON form; `from_card` reads it."""
        return asdict(self)

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Discriminant:
        """Read what `card` wrote."""
        lists = {name: tuple(card[name]) for name in ("flux", "colour", "scale", "weight", "tail")}
        return cls(**{**card, **lists, "mean": tuple(tuple(row) for row in card["mean"])})

    def standardise(self, features: Floats, flux: Floats, colour: Floats) -> Floats:
        """Return residuals [..., N, F] in standard deviations of ordinary objects of like flux and colour, clipped."""
        expected = quadratic_terms(flux, colour, self.flux, self.colour) @ np.array(self.mean)
        z = (features - expected) / np.array(self.scale)
        return np.asarray(np.nan_to_num(np.clip(z, -CLIP, CLIP), nan=0.0))

    def score(self, features: Floats, flux: Floats, colour: Floats) -> Floats:
        """Lens score of residuals [..., N, F], float64 [..., N]: larger is more like a lens."""
        weighted = self.standardise(features, flux, colour) @ np.array(self.weight)
        return np.asarray((weighted - self.centre) / self.width)

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
        part = Measured(measured.features[:, ~inside], measured.flux[~inside], measured.colour[~inside])
        held_out[inside] = _fit(part, anomalous[~inside], sigma).score(
            measured.features[:, inside].mean(0), measured.flux[inside], measured.colour[inside]
        )
    whole = _fit(measured, anomalous, sigma)
    tail = np.quantile(held_out[~anomalous], 1 - np.array(TAIL))
    return replace(whole, tail=tuple(float(f"{value:.5g}") for value in tail)), held_out


def _fit(measured: Measured, anomalous: NDArray[np.bool_], sigma: float) -> Discriminant:
    """Learn from all objects; the tail is that of a normal distribution."""
    regular = ~anomalous
    features = measured.features.mean(0)
    flux_range, colour_range = (
        (float(np.quantile(values[regular], 0.002)), float(np.quantile(values[regular], 0.998)))
        for values in (measured.flux, measured.colour)
    )
    terms = quadratic_terms(measured.flux, measured.colour, flux_range, colour_range)
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
        weight=(0.0,) * len(scale),
        centre=0.0,
        width=1.0,
        tail=(0.0, 0.84, 1.28, 1.64, 2.05, 2.33, 2.58),
    )
    z = start.standardise(features, measured.flux, measured.colour)
    weight = np.array([float(f"{w:.6g}") for w in logistic_weights(z, anomalous)])
    low, centre, high = np.quantile(z[regular] @ weight, [0.16, 0.5, 0.84])
    return replace(start, weight=tuple(weight.tolist()), centre=float(centre), width=float((high - low) / 2))


def surprise(measured: Measured, regular: NDArray[np.bool_]) -> Floats:
    """Return the squared Mahalanobis distance of objects from similar ordinary ones, float64 [N]."""
    z = _fit(measured, ~regular, 0.0).standardise(measured.features.mean(0), measured.flux, measured.colour)
    away = z - z[regular].mean(0)
    return np.asarray(np.einsum("nf,fg,ng->n", away, np.linalg.pinv(np.cov(z[regular].T)), away))


def logistic_weights(z: Floats, anomalous: NDArray[np.bool_], strength: float = 0.05) -> Floats:
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


def quadratic_terms(
    flux: Floats, colour: Floats, flux_range: tuple[float, float], colour_range: tuple[float, float]
) -> Floats:
    """The six terms of a quadratic form in flux and colour, each scaled to -1..1 over its range; [N, 6]."""
    f, c = (
        2 * (np.clip(values, *edges) - edges[0]) / (edges[1] - edges[0]) - 1
        for values, edges in ((flux, flux_range), (colour, colour_range))
    )
    return np.stack([np.ones_like(f), f, f**2, c, c**2, f * c], -1)
