"""Observing conditions: what a network is told of the images beside their pixels, and what it was trained on.

Of both ends: the noise of the sky, the width and the wings of the PSF, and how much neighbouring pixels share of their
noise; each by band, and each may be unknown. What varies within a window goes in as maps, the rest as one vector that
joins the embedding of step and direction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTITIES = ("noise", "fwhm", "wing", "correlation")
"""The conditions of an end, in the order in which the network is told them."""

EDGE = 0.002
"""Share of the training images at each end of a range that does not count as having been seen."""

WORDS = {"noise": "noise", "fwhm": "seeing", "wing": "PSF wings (1/beta)", "correlation": "noise correlation"}
SLACK = {"noise": 0.2, "fwhm": 0.05, "wing": 0.05, "correlation": 0.1}
"""How far beyond the range a value may be: a share of the limit (noise, fwhm), or in the quantity itself. By so much
differ the PSFs that two pipelines state of one image, and the noise of pixels that were resampled from one image."""


@dataclass(frozen=True)
class Conditions:
    """How one end was, or is to be, observed; by band in the order of the end's bands, NaN where unknown.

    Parameters
    ----------
    noise
        Standard deviation of the sky noise of a single pixel, in the end's unit, on the network's grid.
    fwhm
        Of the PSF without the pixel, arcsec.
    wing
        1 / beta of the Moffat profile with the PSF's FWHM and wings: 0 is a Gaussian, 0.4 a Moffat profile of beta 2.5.
    correlation
        Of the noise of neighbouring pixels (lag 1), 0 is white.
    registration
        Typical offset of this end's image from the other's, arcsec.
    """

    noise: tuple[float, ...]
    fwhm: tuple[float, ...]
    wing: tuple[float, ...]
    correlation: tuple[float, ...]
    registration: float = math.nan

    @classmethod
    def unknown(cls, bands: int) -> Conditions:
        """Nothing is known of any band."""
        none = (math.nan,) * bands
        return cls(none, none, none, none)


Range = tuple[float, float]
"""Lowest and highest value."""


@dataclass(frozen=True)
class ConditionRanges:
    """The conditions of the images on which a model was trained.

    Parameters
    ----------
    ranges
        By endpoint, quantity and band: lowest and highest value, in the units of `Conditions`. What is not stated was
        not known, and says nothing.
    nominal
        By endpoint, quantity and band: the typical value, which stands in where nothing is asked of the wanted end.
    """

    ranges: Mapping[str, Mapping[str, Mapping[str, Range]]]
    nominal: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    @classmethod
    def covering(
        cls, values: Mapping[str, Mapping[str, NDArray[np.floating]]], bands: Mapping[str, tuple[str, ...]]
    ) -> ConditionRanges:
        """The ranges and the medians of the conditions of training images.

        Parameters
        ----------
        values
            By endpoint and quantity: [N, B] of all images, NaN where unknown. The outermost `EDGE` at each end count as
            never seen.
        bands
            Of each endpoint.
        """
        ranges: dict[str, dict[str, dict[str, Range]]] = {end: {} for end in values}
        nominal: dict[str, dict[str, dict[str, float]]] = {end: {} for end in values}
        for end, quantities in values.items():
            for quantity, columns in quantities.items():
                for band, column in zip(bands[end], columns.T, strict=True):
                    seen = column[np.isfinite(column)]
                    if len(seen):
                        low, middle, high = (float(f"{v:.4g}") for v in np.quantile(seen, [EDGE, 0.5, 1 - EDGE]))
                        ranges[end].setdefault(quantity, {})[band] = (low, high)
                        nominal[end].setdefault(quantity, {})[band] = middle
        return cls(ranges, nominal)

    @property
    def card(self) -> dict[str, Any]:
        """JSON form; `from_card` reads it."""
        ranges = {
            end: {quantity: {band: list(limits) for band, limits in of.items()} for quantity, of in quantities.items()}
            for end, quantities in self.ranges.items()
        }
        return {"ranges": ranges, "nominal": {end: dict(of) for end, of in self.nominal.items()}}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> ConditionRanges:
        """Read what `card` wrote."""
        ranges = {
            end: {
                quantity: {band: (float(limits[0]), float(limits[1])) for band, limits in of.items()}
                for quantity, of in quantities.items()
            }
            for end, quantities in card["ranges"].items()
        }
        return cls(ranges, card.get("nominal", {}))

    def nominal_of(self, end: str, bands: tuple[str, ...]) -> Conditions:
        """Return the typical conditions of an end; what is not stated, and was no single value, is unknown."""
        single = {
            quantity: {band: low for band, (low, high) in of.items() if low == high}
            for quantity, of in self.ranges.get(end, {}).items()
        }
        stated = self.nominal.get(end, {})
        noise, fwhm, wing, correlation = (
            tuple(float({**single.get(quantity, {}), **stated.get(quantity, {})}.get(band, math.nan)) for band in bands)
            for quantity in QUANTITIES
        )
        return Conditions(noise, fwhm, wing, correlation)

    def outside(
        self, conditions: Mapping[str, Conditions], bands: Mapping[str, tuple[str, ...]], units: Mapping[str, str]
    ) -> list[str]:
        """Say which conditions lie outside of what the model was trained on.

        Parameters
        ----------
        conditions
            Of one end or both, by endpoint; unknown ones are not said.
        bands
            Of each endpoint, in the order of its conditions.
        units
            Of the values of each endpoint, for the words about its noise.

        Returns
        -------
        list of str
            One reason for each quantity and band, such as ``lsst g seeing 1.8" (trained on 0.45" to 1.4")``.
        """
        reasons = []
        for end, seen in conditions.items():
            unit_of = {"noise": f" {units[end]}", "fwhm": '"', "wing": "", "correlation": ""}
            for quantity in QUANTITIES:
                for band, value in zip(bands[end], getattr(seen, quantity), strict=True):
                    limits = self.ranges.get(end, {}).get(quantity, {}).get(band)
                    if limits is None or not math.isfinite(value) or _within(quantity, value, limits):
                        continue
                    unit, (low, high) = unit_of[quantity], limits
                    trained = f"{low:.3g}{unit}" if low == high else f"{low:.3g}{unit} to {high:.3g}{unit}"
                    reasons.append(f"{end} {band} {WORDS[quantity]} {value:.3g}{unit} (trained on {trained})")
        return reasons


def _within(quantity: str, value: float, limits: Range) -> bool:
    """Return whether a value is in a range, give or take `SLACK`."""
    low, high = limits
    slack = SLACK[quantity]
    if quantity in ("noise", "fwhm"):
        return low * (1 - slack) <= value <= high * (1 + slack)
    return low - slack <= value <= high + slack
