"""How the light in one band follows from the bands of the other end: what flux consistency (`consistency`) goes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from surveybridge.bridge_core.errors import BridgeError

if TYPE_CHECKING:
    from surveybridge.bridge_core.problem import Problem

VERSION = 2
"""Of the JSON form, and of how light is compared: in runs of version 1 without a neighbour's light."""


@dataclass(frozen=True)
class LightRelation:
    """How the light in one band follows from the bands of the other end, and how well.

    Parameters
    ----------
    band
        Of the end with the catalog.
    weights
        By band of the other end: F_band = sum of weights_b F_b.
    scatter
        Of that, as a share of the light: of colours, and of the noise of bright objects.
    error
        By direction: typical error of the network's light, as a share of it.
    provenance
        Pairs and checkpoint with which it was measured.
    """

    band: str
    weights: Mapping[str, float]
    scatter: float
    error: Mapping[str, float]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def card(self) -> dict[str, Any]:
        """JSON form; `from_card` reads it."""
        return {
            "version": VERSION,
            "band": self.band,
            "weights": dict(self.weights),
            "scatter": self.scatter,
            "error": dict(self.error),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> LightRelation:
        """Read what `card` wrote; an unknown version is refused."""
        if card.get("version") != VERSION:
            raise BridgeError(
                f"flux consistency of version {card.get('version')!r} but this code knows {VERSION}; go on with the "
                "surveybridge that stated it, or begin the run or `calibrate --consistency` anew"
            )
        return cls(card["band"], card["weights"], float(card["scatter"]), card["error"], card["provenance"])

    def weights_of(self, problem: Problem, name: str) -> list[float]:
        """Weights of the bands of an endpoint by its name, in their order: 0 for those that do not count."""
        end = problem[name]
        if name == problem.catalog:
            return [float(band == self.band) for band in end.bands]
        return [float(self.weights.get(band, 0.0)) for band in end.bands]
