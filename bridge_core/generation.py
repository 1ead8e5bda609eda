"""Generators: networks that make the stamps of one or both ends of a problem from noise, with no observed image.

A generator is a diffusion (`Bridge.diffusion`) whose x0 is the planes of all its ends on one grid, side by side: the
two stamps of a pair are drawn together. Both slots of observed images are empty, and of the two heads only the first is
used. Beside the noise level the network may be told properties of the object in the middle, each of which may be
unknown; it learns to do without them (classifier-free training, Ho & Salimans 2022, without their guidance).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.problem import Endpoint, Problem

PROPERTIES: Mapping[str, tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "magnitude": ("AB mag", lambda value: value, lambda scaled: scaled),
    "size": ("arcsec", torch.log, torch.exp),
    "colour": ("mag", lambda value: value, lambda scaled: scaled),
    "redshift": ("", torch.log1p, torch.expm1),
}
"""What may be known of the object in the middle: its unit, the scale on which the network is told it, and back."""

LIMIT = 4.0
"""No number that is told exceeds this many standard deviations of the training."""
DROPPED = 0.1
"""Share of training stamps of which the network is not told a property."""
DROPPED_ALL = 0.3
"""Share of training stamps of which it is told none: what it makes unasked, it has seen that often."""


@dataclass(frozen=True)
class Generation:
    """What a generator makes, as its card says it.

    Parameters
    ----------
    ends
        Names of the ends that it makes, in the order of the problem.
    side
        Of a stamp, pixels.
    noise
        Standard deviation of the sky by end and band, in their units, in the images of the training; NaN is not known.
    properties
        Those of `PROPERTIES` that the network may be told: mean and standard deviation, in the training, on the scale
        on which it is told them.
    """

    ends: tuple[str, ...]
    side: int
    noise: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    properties: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        problem: Problem,
        ends: Sequence[str],
        side: int,
        noise: Mapping[str, Mapping[str, float]],
        properties: Mapping[str, Tensor],
    ) -> Generation:
        """Measure how properties are distributed.

        Parameters
        ----------
        problem, ends
            The names of the ends that are wanted, in any order.
        side, noise
            As the attributes.
        properties
            By name, float32 [N], NaN where unknown.

        Raises
        ------
        BridgeError
            If an end is none of the problem's, or named twice; if a property is unknown throughout, or always the same.
        """
        if len(set(ends)) < len(ends) or not ends:
            raise BridgeError(f"ends to generate are {', '.join(ends) or 'none'}; name each once")
        wanted = {problem[name].name for name in ends}
        measured = {}
        for name, values in properties.items():
            scaled = PROPERTIES[name][1](values.double())
            scaled = scaled[torch.isfinite(scaled)]
            spread = float(scaled.std()) if len(scaled) > 1 else 0.0
            if not spread > 0:
                raise BridgeError(
                    f"{name} is known of {len(scaled)} of {len(values)} pairs, and the same in all; leave it out"
                )
            measured[name] = (round(float(scaled.mean()), 4), round(spread, 4))
        kept = {name: {band: of for band, of in bands.items() if math.isfinite(of)} for name, bands in noise.items()}
        return cls(tuple(end.name for end in problem.endpoints if end.name in wanted), side, kept, measured)

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Generation:
        """Read what `card` wrote."""
        properties = {name: (float(mean), float(std)) for name, (mean, std) in card["properties"].items()}
        return cls(tuple(card["ends"]), int(card["side"]), card["noise"], properties)

    @property
    def card(self) -> dict[str, Any]:
        """JSON form; `from_card` reads it."""
        return {
            "ends": list(self.ends),
            "side": self.side,
            "noise": {name: dict(bands) for name, bands in self.noise.items()},
            "properties": {name: list(numbers) for name, numbers in self.properties.items()},
        }

    def of(self, problem: Problem) -> list[Endpoint]:
        """The ends that are made."""
        return [end for end in problem.endpoints if end.name in self.ends]

    def planes(self, problem: Problem) -> int:
        """The number of planes of all its ends, which are the channels of the network's images."""
        return sum(end.planes for end in self.of(problem))

    def flips(self, problem: Problem) -> Tensor:
        """Which planes hold an angle; as `Endpoint.flips`, int64 [planes]."""
        return torch.cat([end.flips(end.planes) for end in self.of(problem)])

    def separated(self, problem: Problem, images: Tensor) -> dict[str, Tensor]:
        """Images [N, C, H, W] in network units as values of each end, float32 [N, B, H, W] in its unit."""
        ends = self.of(problem)
        parts = images.split([end.planes for end in ends], 1)
        return {end.name: end.fitted.inverse(part, end.bands) for end, part in zip(ends, parts, strict=True)}

    def sky(self, problem: Problem) -> float:
        """Standard deviation of the sky of its ends in network units, root mean square of bands; 0 if none is known."""
        levels = []
        for end in self.of(problem):
            known = self.noise.get(end.name, {})
            if end.kind == "asinh" and all(band in known for band in end.bands):
                sigma = torch.tensor([known[band] for band in end.bands])[:, None, None]
                shown = end.fitted.forward(sigma, end.bands) - end.fitted.forward(torch.zeros_like(sigma), end.bands)
                levels.append(shown.square().mean())
        return round(float(torch.stack(levels).mean().sqrt()), 4) if levels else 0.0

    def range_of(self, name: str) -> tuple[float, float]:
        """Least and largest value of a property, in its unit, that is told as it is: `LIMIT` on its scale."""
        mean, std = self.properties[name]
        ends = torch.tensor([mean - LIMIT * std, mean + LIMIT * std], dtype=torch.float64)
        least, most = PROPERTIES[name][2](ends).tolist()
        return least, most

    def told(self, values: Tensor) -> Context:
        """What the network is told of N stamps.

        Parameters
        ----------
        values
            float32 [N, P], the properties in their units, in the order of `properties`; NaN where unknown.

        Returns
        -------
        Context
            Its vector [N, 2P] holds each in standard deviations of the training, then 1 where it is known; no maps.
        """
        scaled = [
            (PROPERTIES[name][1](values[:, k]) - mean) / std
            for k, (name, (mean, std)) in enumerate(self.properties.items())
        ]
        vector = torch.stack(scaled, 1) if scaled else values
        known = torch.isfinite(vector)
        vector = torch.cat([vector.where(known, 0.0).clamp(-LIMIT, LIMIT), known.float()], 1)
        return Context(vector.new_zeros(len(values), 0, self.side, self.side), vector)


def forgotten(values: Tensor, generator: torch.Generator) -> Tensor:
    """Properties [N, P] of which some are not told (`DROPPED`, `DROPPED_ALL`): NaN there."""
    kept = torch.rand(values.shape, generator=generator) >= DROPPED
    kept &= torch.rand(len(values), 1, generator=generator) >= DROPPED_ALL
    return values.masked_fill(~kept, math.nan)
