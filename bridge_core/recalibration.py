"""Recalibration of a model on the sky on which it is used: what `surveybridge calibrate --store` puts into its card.

A model that looks at a sky unlike that of its training states standard deviations that are too small or too large. Held
against what the wanted survey observed, they get a factor by which 68% of the pixels lie inside the 68% interval, by
direction, band and predicted signal. Rates of false alarms are measured anew too (`bridge_core.false_alarms`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.false_alarms import FalseAlarms
from surveybridge.bridge_core.problem import Direction

VERSION = 1
"""Of the JSON form."""


@dataclass(frozen=True)
class StdScale:
    """Factor of the posterior standard deviation of one band, a function of the posterior mean.

    Parameters
    ----------
    noise
        What the mean is divided by, in the unit of the band: the sky noise of a pixel on the sky of the calibration.
    snr
        Knots, increasing: posterior mean over `noise`. Beyond the first and the last the factor is that of the end.
    factor
        Of the standard deviation at each knot, after shrinkage towards 1.
    error
        Standard error of the factor's logarithm at each knot, before shrinkage, from blocks of the sky.
    pixels, blocks
        Numbers of pixels behind each knot, and of blocks of the sky that they come from.
    """

    noise: float
    snr: tuple[float, ...]
    factor: tuple[float, ...]
    error: tuple[float, ...]
    pixels: tuple[int, ...]
    blocks: tuple[int, ...]

    def of(self, mean: NDArray[Any]) -> NDArray[np.float64]:
        """Factor for each posterior mean, float64 of the same shape; ln(factor) is linear in arcsinh(mean / noise)."""
        at = np.arcsinh(np.asarray(mean, np.float64) / self.noise)
        return np.exp(np.interp(at, np.arcsinh(self.snr), np.log(self.factor)))

    def raw(self, mean: NDArray[Any], std: NDArray[Any]) -> NDArray[np.float32]:
        """Undo the calibration of a standard deviation, but for the rounding of float32."""
        return np.asarray(np.asarray(std, np.float64) / self.of(mean), np.float32)

    @property
    def card(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> StdScale:
        """Read what `card` wrote."""
        lists = {name: tuple(card[name]) for name in ("snr", "factor", "error", "pixels", "blocks")}
        return cls(noise=float(card["noise"]), **lists)


@dataclass(frozen=True)
class Recalibration:
    """All that a calibration on a sky has measured.

    Parameters
    ----------
    intervals
        By direction and band.
    false_alarms
        The rate at which ordinary objects of that sky have a lens score; None where that was not measured.
    provenance
        Checkpoint and store that it was measured with, numbers of tiles, samples and steps.
    """

    intervals: Mapping[str, Mapping[str, StdScale]]
    false_alarms: FalseAlarms | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def card(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "version": VERSION,
            "intervals": {
                direction: {band: scale.card for band, scale in bands.items()}
                for direction, bands in self.intervals.items()
            },
            "false_alarms": self.false_alarms.card if self.false_alarms else None,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Recalibration:
        """Read what `card` wrote; an unknown version is refused."""
        if card.get("version") != VERSION:
            raise BridgeError(
                f"recalibration of version {card.get('version')!r} but this code reads {VERSION}; use a newer "
                "surveybridge, or calibrate again"
            )
        return cls(
            {
                direction: {band: StdScale.from_card(scale) for band, scale in bands.items()}
                for direction, bands in card["intervals"].items()
            },
            FalseAlarms.from_card(card["false_alarms"]) if card["false_alarms"] else None,
            card["provenance"],
        )

    def scales(self, direction: Direction) -> list[StdScale]:
        """The factors of the wanted bands, in their order.

        Raises
        ------
        BridgeError
            Where the direction was not calibrated.
        """
        found = self.intervals.get(str(direction))
        if found is None:
            raise BridgeError(
                f"{direction} was not calibrated, only {', '.join(self.intervals) or 'nothing'}; run `surveybridge "
                f"calibrate --store` with --to {direction.wanted.name}"
            )
        return [found[band] for band in direction.wanted.bands]

    def factors(self, mean: NDArray[Any], direction: Direction) -> NDArray[np.float64]:
        """Factors of the standard deviation for posterior means [B, H, W], of the same shape."""
        return np.stack([scale.of(plane) for scale, plane in zip(self.scales(direction), mean, strict=True)])

    def summary(self, direction: Direction) -> dict[str, Any]:
        """What run.json and mosaics say of a run's recalibration: factors by band, and where they come from."""
        scales = dict(zip(direction.wanted.bands, self.scales(direction), strict=True))
        return {
            "version": VERSION,
            "bands": {
                band: {"noise": scale.noise, "snr": list(scale.snr), "factor": list(scale.factor)}
                for band, scale in scales.items()
            },
            "false_alarms": self.false_alarms is not None,
            **self.provenance,
        }
