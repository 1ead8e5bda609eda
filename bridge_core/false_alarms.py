"""Rates of false alarms of the lens score on the sky at hand: how ordinary objects there score, by what they look like.

On a sky unlike that of training ordinary objects score higher or lower, and not all alike. Their score is described by
a location and a scale, which depend on flux and colour of the object and on PSF and noise of its tile; what is left has
one distribution, whose upper tail gives the share of ordinary objects alike that score higher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveybridge.bridge_core.discriminant import rate_above
from surveybridge.bridge_core.ordinary import Floats, Range, location_and_scale, object_terms, range_of

RATES = (0.99, 0.95, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
"""Rates at which the tail is tabulated, as far as there are objects for them."""
FEWEST = 50
"""Ordinary objects that a calibration needs."""
FOLDS = 5


@dataclass(frozen=True)
class FalseAlarms:
    """The share of ordinary objects that score higher, for objects of a sky; made by `fit_false_alarms`.

    Parameters
    ----------
    flux, colour
        Ranges seen: log10 of the flux and colour in mag, as of the catalog's columns; objects beyond count as at the
        edge.
    conditions
        Ranges seen of PSF FWHM (arcsec) and noise (unit of the end) by name, such as ``lsst i fwhm``, in the order in
        which `rate` takes them.
    location, scale
        Coefficients of the score's location, and of the logarithm of its scale: quadratic form in flux and colour,
        then conditions.
    rates, tail
        Standardised scores at some rates, from objects that the fit had not seen.
    objects
        Number of ordinary objects behind it.
    """

    flux: tuple[float, float]
    colour: tuple[float, float]
    conditions: Mapping[str, tuple[float, float]]
    location: tuple[float, ...]
    scale: tuple[float, ...]
    rates: tuple[float, ...]
    tail: tuple[float, ...]
    objects: int

    @property
    def card(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> FalseAlarms:
        """Read what `card` wrote."""
        lists = {name: tuple(card[name]) for name in ("flux", "colour", "location", "scale", "rates", "tail")}
        conditions = {name: (float(low), float(high)) for name, (low, high) in card["conditions"].items()}
        return cls(**{**card, **lists, "conditions": conditions})

    def rate(self, score: Floats, flux: Floats, colour: Floats, conditions: Floats) -> Floats:
        """Return the share of ordinary objects alike that score higher, float64 [N]; NaN where the score is NaN.

        Parameters
        ----------
        score, flux, colour
            Lens score, log10 of the flux, and colour in mag, each [N].
        conditions
            [N, C], in the order of the attribute; NaN, unknown, counts as in the middle of the range.
        """
        return rate_above(self._standardised(score, flux, colour, conditions), self.tail, self.rates)

    def _standardised(self, score: Floats, flux: Floats, colour: Floats, conditions: Floats) -> Floats:
        x = object_terms(flux, colour, conditions, (self.flux, self.colour), list(self.conditions.values()))
        return np.asarray((score - x @ np.array(self.location)) / np.exp(x @ np.array(self.scale)))


def fit_false_alarms(
    score: Floats, flux: Floats, colour: Floats, conditions: Mapping[str, Floats], groups: NDArray[np.int64]
) -> FalseAlarms:
    """Learn how ordinary objects score.

    Parameters
    ----------
    score, flux, colour
        As `FalseAlarms.rate` takes them, [N], all finite, N at least `FEWEST`.
    conditions
        PSF FWHM and noise by name, [N] each.
    groups
        int64 [N]: objects that share pixels have one number, and stay in one fold.
    """
    columns = np.stack(list(conditions.values()), -1)
    _, number = np.unique(groups, return_inverse=True)
    fold = number % FOLDS
    left = np.empty(len(score))
    for one in range(FOLDS):
        inside = fold == one
        learnt = _fit(score[~inside], flux[~inside], colour[~inside], columns[~inside], tuple(conditions))
        left[inside] = learnt._standardised(score[inside], flux[inside], colour[inside], columns[inside])
    whole = _fit(score, flux, colour, columns, tuple(conditions))
    rates = tuple(rate for rate in RATES if min(rate, 1 - rate) * len(score) >= 2)
    tail = np.quantile(left, 1 - np.array(rates))
    return FalseAlarms(
        flux=whole.flux,
        colour=whole.colour,
        conditions=whole.conditions,
        location=whole.location,
        scale=whole.scale,
        rates=rates,
        tail=tuple(float(f"{value:.5g}") for value in tail),
        objects=len(score),
    )


def held_out_rates(
    score: Floats, flux: Floats, colour: Floats, conditions: Mapping[str, Floats], groups: NDArray[np.int64]
) -> Floats:
    """Rates of each half of the objects by what the other teaches, float64 [N]; arguments as `fit_false_alarms`."""
    _, number = np.unique(groups, return_inverse=True)
    rates = np.empty(len(score))
    for half in (number % 2 == 0, number % 2 == 1):
        learnt = fit_false_alarms(
            score[~half], flux[~half], colour[~half], {name: v[~half] for name, v in conditions.items()}, groups[~half]
        )
        columns = np.stack([values[half] for values in conditions.values()], -1)
        rates[half] = learnt.rate(score[half], flux[half], colour[half], columns)
    return rates


def _fit(score: Floats, flux: Floats, colour: Floats, conditions: Floats, names: tuple[str, ...]) -> FalseAlarms:
    """Location and scale of some objects; without a tail."""
    edges: list[Range] = [(float(np.quantile(v, 0.005)), float(np.quantile(v, 0.995))) for v in (flux, colour)]
    ranges = [range_of(column) for column in conditions.T]
    location, spread = location_and_scale(object_terms(flux, colour, conditions, (edges[0], edges[1]), ranges), score)
    return FalseAlarms(edges[0], edges[1], dict(zip(names, ranges, strict=True)), location, spread, (), (), 0)
