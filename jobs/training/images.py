"""Training images in memory: pairs in network units, and what is known of how they were observed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from surveybridge.bridge_core.conditions import QUANTITIES, ConditionRanges
from surveybridge.bridge_core.context import Context, PairConditions, Views, observed_noise
from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.problem import Endpoint, Problem
from surveybridge.bridge_core.training import Ends, observed_pixels
from surveybridge.storage.pair_conditions import EndConditions, StampConditions
from surveybridge.storage.pairs import Pairs


@dataclass(frozen=True)
class Images:
    """Pairs of a store.

    Parameters
    ----------
    planes
        By end: float32 [N, P, H, W] in network units, NaN where there is no data.
    conditions
        Of the stamps; None where the network is told nothing of them.
    properties
        float32 [N, P], of a generator that is told them: of the objects in the middle, NaN where unknown.
    """

    planes: Ends
    conditions: StampConditions | None = None
    properties: Tensor | None = None

    def __len__(self) -> int:
        return len(self.planes[0])

    @classmethod
    def of(cls, card: Card, pairs: Pairs) -> Images:
        """Bring pairs to the network units of a card."""
        first, second = (
            # an end that a generator does not make is not fitted, and not kept
            end.fitted.forward(torch.from_numpy(pairs.ends[end.name]), end.bands)
            if card.generation is None or end.name in card.generation.ends
            else torch.empty(len(pairs), 0)
            for end in card.problem.endpoints
        )
        return cls((first, second), pairs.conditions)

    def rows(self, card: Card, rows: Tensor | slice) -> tuple[Ends, PairConditions | None]:
        """Some pairs in the channels of the network, [N, C, H, W] each, and what is known of them."""
        channels, ends = card.network.image_channels, card.problem.endpoints
        planes = self.planes[0][rows], self.planes[1][rows]
        first, second = (end.shown(some, channels) for end, some in zip(ends, planes, strict=True))
        if self.conditions is None:
            return (first, second), None
        index = rows if isinstance(rows, slice) else rows.numpy()
        known = [self.conditions.ends[end.name] for end in ends]
        one, other = (table(of, index) for of in known)
        noise, other_noise = (
            noise_of(end, some, of, index, channels) for end, some, of in zip(ends, planes, known, strict=True)
        )
        registration = torch.from_numpy(self.conditions.registration[index])
        return (first, second), PairConditions((one, other), (noise, other_noise), registration)


def views_of(card: Card, pairs: Pairs) -> Views | None:
    """What the network is told of pairs in both directions; None if it is told nothing."""
    if not card.network.conditions:
        return None
    ends, known = Images.of(card, pairs).rows(card, slice(None))
    contexts = []
    for index in range(2):
        wanted = torch.full((len(pairs),), index)
        seen = observed_pixels(ends, wanted)
        contexts.append(Context.blank(seen) if known is None else known.context(card.problem, wanted, seen))
    return Views(*contexts)


Index = slice | np.ndarray


def table(conditions: EndConditions, index: Index) -> Tensor:
    """Quantities of some stamps, float32 [N, Q, B] in the order of `QUANTITIES`."""
    return torch.from_numpy(np.stack([getattr(conditions, name)[index] for name in QUANTITIES], 1))


def noise_of(end: Endpoint, planes: Tensor, conditions: EndConditions, index: Index, channels: int) -> Tensor:
    """What the network is told of the noise of each pixel, float32 [N, C, H, W]; 0 where it is not known."""
    sky = conditions.noise[index][:, :, None, None] if conditions.sigma is None else conditions.sigma[index]
    flux, gain = end.fitted.inverse(planes, end.bands), torch.from_numpy(conditions.gain[index])
    return observed_noise(end, flux, torch.from_numpy(sky), gain, channels)


def ranges_of(problem: Problem, conditions: StampConditions) -> ConditionRanges:
    """The conditions that training images cover, and the median of each."""
    values = {
        end.name: {name: getattr(conditions.ends[end.name], name) for name in QUANTITIES} for end in problem.endpoints
    }
    return ConditionRanges.covering(values, {end.name: end.bands for end in problem.endpoints})


def joined_ranges(old: ConditionRanges | None, new: ConditionRanges) -> ConditionRanges:
    """Conditions that either training has seen; the typical ones are those of the new one."""
    if old is None:
        return new
    ranges: dict[str, dict[str, dict[str, tuple[float, float]]]] = {
        end: {quantity: dict(of) for quantity, of in quantities.items()} for end, quantities in old.ranges.items()
    }
    for end, quantities in new.ranges.items():
        for quantity, bands in quantities.items():
            known = ranges.setdefault(end, {}).setdefault(quantity, {})
            for band, (low, high) in bands.items():
                before = known.get(band, (low, high))
                known[band] = min(low, before[0]), max(high, before[1])
    return replace(new, ranges=ranges)
