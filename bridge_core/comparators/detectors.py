"""Detectors that compare both ends, trained on ordinary pairs: their data, their training, and one way to score.

Both ends lie on one grid, in the network units of AS-Bridge's display (`Stretch.asbridge`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from surveybridge.bridge_core.comparators.budget import Budget
from surveybridge.bridge_core.comparators.crossmodal import CrossModal, chosen_tokens, known_tokens
from surveybridge.bridge_core.comparators.decodiff import DecoDiff
from surveybridge.bridge_core.comparators.features import SelfTaught
from surveybridge.bridge_core.comparators.fit import fit
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.metrics import unit_range
from surveybridge.bridge_core.problem import Endpoint, Problem, to_channels
from surveybridge.bridge_core.stretch import Stretch

BATCH = 32
FEATURES_AT_ONCE = 64
"""Images whose features are held at a time."""
SOFTENING_SIGMAS = 3.0
"""AS-Bridge's display bends at so many sigma of the sky noise, so the noise follows from it."""


class Detector(Protocol):
    """Scores pairs; larger is more anomalous."""

    def score(self, first: Tensor, second: Tensor, seed: int) -> Tensor:
        """Score pairs of both ends, float32 [N, C, S, S] network units each; returns [N].

        The detectors here are deterministic, so the seed changes nothing; it is there for those that are not.
        """


@dataclass(frozen=True, eq=False)
class DecoDiffDetector:
    """DeCo-Diff on one end alone, or the sum of its scores on both.

    Parameters
    ----------
    problem
        Of both ends.
    networks
        By the name of the end.
    """

    problem: Problem
    networks: Mapping[str, DecoDiff]

    def score(self, first: Tensor, second: Tensor, seed: int) -> Tensor:
        """Score pairs, as `Detector` says."""
        total = torch.zeros(len(first))
        for end, images in zip(self.problem.endpoints, (first, second), strict=True):
            if end.name in self.networks:
                parts = end.planes_in(images).split(FEATURES_AT_ONCE)
                total += torch.cat([self.networks[end.name].score(part, sky_sigma(end)) for part in parts])
        return total


@dataclass(frozen=True, eq=False)
class CrossModalDetector:
    """CFM with an encoder for each end.

    Parameters
    ----------
    problem
        Of both ends.
    encoders
        Frozen features of the first and the second end: modules from [N, 3, S, S] in [0, 1] to [N, D, S / 2, S / 2].
    maps
        Between the features.
    """

    problem: Problem
    encoders: tuple[nn.Module, nn.Module]
    maps: CrossModal

    def score(self, first: Tensor, second: Tensor, seed: int) -> Tensor:
        """Score pairs, as `Detector` says."""
        found = []
        for pair in zip(first.split(FEATURES_AT_ONCE), second.split(FEATURES_AT_ONCE), strict=True):
            features = [encoder(unit_image(u)) for encoder, u in zip(self.encoders, pair, strict=True)]
            found.append(self.maps.score(features[0], features[1], _known(self.problem, pair)))
        return torch.cat(found)


def train_decodiff(end: Endpoint, images: Tensor, budget: Budget, base: int = 16) -> DecoDiff:
    """Train DeCo-Diff on ordinary images of an end, float32 [N, C, S, S] network units."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        network = DecoDiff(end.planes, base)
    planes = end.planes_in(images)
    fit(network.parameters(), lambda draws: network.loss(_some(planes, draws), draws), budget, rate=1e-4, decay=1e-4)
    return network.eval().requires_grad_(False)


def train_encoder(end: Endpoint, images: Tensor, budget: Budget) -> SelfTaught:
    """Train an encoder on images of an end alone, float32 [N, C, S, S] network units."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        network = SelfTaught()
    noise = float(sky_sigma(end).mean()) / 2  # of [0, 1], which is half as long as network units
    fit(
        network.parameters(),
        lambda draws: network.loss(unit_image(_some(images, draws)), noise, draws),
        budget,
        rate=1e-3,
    )
    return network.eval().requires_grad_(False)


def train_maps(
    problem: Problem, encoders: tuple[nn.Module, nn.Module], ends: tuple[Tensor, Tensor], budget: Budget
) -> CrossModal:
    """Train both maps of CFM on tokens of ordinary pairs that hold more than sky.

    Parameters
    ----------
    problem
        Of both ends.
    encoders
        Frozen.
    ends
        float32 [N, C, S, S] network units each.
    budget
        Of the maps; the features of the tokens, which are computed once, count as well if it is in seconds.
    """
    draws = torch.Generator().manual_seed(budget.seed)
    tokens: tuple[list[Tensor], list[Tensor]] = ([], [])
    for pair in zip(ends[0].split(FEATURES_AT_ONCE), ends[1].split(FEATURES_AT_ONCE), strict=True):
        place = chosen_tokens(_known(problem, pair), draws)
        for side, encoder, u in zip(tokens, encoders, pair, strict=True):
            with torch.no_grad():
                side.append(encoder(unit_image(u)).movedim(1, -1)[place[:, 0], place[:, 1], place[:, 2]])
    first, second = (torch.cat(side).clone() for side in tokens)
    if not len(first):
        raise BridgeError(f"none of {len(ends[0])} pairs holds more than sky, so CFM has nothing to learn; give others")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        maps = CrossModal(first.shape[1], second.shape[1])

    def loss(draws: torch.Generator) -> Tensor:
        rows = torch.randint(0, len(first), (4096,), generator=draws)
        return maps.loss(first[rows], second[rows])

    fit(maps.parameters(), loss, budget, rate=1e-3)
    return maps.eval().requires_grad_(False)


def unit_image(u: Tensor) -> Tensor:
    """Return network units as images in [0, 1] of three channels, float32 [N, 3, S, S]."""
    return to_channels(unit_range(u, (-1.0, 1.0)), 3)


def sky_noise(end: Endpoint) -> Tensor:
    """Return the sky noise of each band in the end's unit, float32 [B, 1, 1]."""
    if not isinstance(end.stretch, Stretch):
        raise BridgeError(f"{end.name} has no asinh stretch, from which comparators know its noise; give AS-Bridge's")
    return torch.tensor([end.stretch.softening[band] / SOFTENING_SIGMAS for band in end.bands]).view(-1, 1, 1)


def sky_sigma(end: Endpoint) -> Tensor:
    """Return the sky noise of each band in network units, float32 [B]."""
    noise = sky_noise(end)
    return (end.fitted.forward(noise, end.bands) - end.fitted.forward(0 * noise, end.bands)).flatten()


def _known(problem: Problem, pair: tuple[Tensor, Tensor]) -> Tensor:
    """Tell which tokens hold more than sky."""
    first, second = (end.inverse(u) / sky_noise(end) for end, u in zip(problem.endpoints, pair, strict=True))
    return known_tokens(first, second)


def _some(images: Tensor, draws: torch.Generator) -> Tensor:
    """Draw a batch with replacement, half of it mirrored."""
    rows = torch.randint(0, len(images), (BATCH,), generator=draws)
    mirrored = torch.rand(BATCH, 1, 1, 1, generator=draws) < 0.5
    return torch.where(mirrored, images[rows].flip(3), images[rows])
