"""A trained comparator: a network for each direction, drawn from as a bridge is, saved as safetensors and a card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from surveybridge.bridge_core.comparators.fit import read_weights
from surveybridge.bridge_core.comparators.oasis import Oasis
from surveybridge.bridge_core.comparators.pix2pix import Pix2Pix
from surveybridge.bridge_core.comparators.shape import Shape, condition
from surveybridge.bridge_core.comparators.spade import Spade
from surveybridge.bridge_core.comparators.translator import Translator
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.problem import Direction, Problem, to_channels

METHODS: Mapping[str, type[Translator]] = {"pix2pix": Pix2Pix, "spade": Spade, "oasis": Oasis}
WIDTHS = {"pix2pix": 32, "spade": 16, "oasis": 16}
"""Channels of the first stage, so that no generator has more weights than AS-Bridge's network (12 M)."""
BATCH = 32


@dataclass(frozen=True)
class ComparatorCard:
    """What a comparator is.

    Parameters
    ----------
    method
        Name in `METHODS`.
    problem
        Its ends, with stretches that have bounds.
    shapes
        Shape of each direction that was trained, by the direction's name.
    provenance
        How it was trained, for a reader.
    """

    method: str
    problem: Problem
    shapes: Mapping[str, Shape]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an unknown method."""
        if self.method not in METHODS:
            raise BridgeError(f"comparator method {self.method!r} is not one of {', '.join(METHODS)}")

    def to_json(self) -> dict[str, Any]:
        """JSON form; `from_json` reads it."""
        shapes = {direction: shape.card for direction, shape in self.shapes.items()}
        return {
            "method": self.method,
            "problem": self.problem.card,
            "shapes": shapes,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, card: Mapping[str, Any]) -> ComparatorCard:
        """Read what `to_json` wrote."""
        shapes = {direction: Shape.from_card(shape) for direction, shape in card["shapes"].items()}
        return cls(card["method"], Problem.from_table(card["problem"]), shapes, dict(card["provenance"]))


@dataclass(frozen=True, eq=False)
class Comparator:
    """A rival of the bridges.

    Parameters
    ----------
    card
        What it is.
    networks
        The trained network of each direction, by name.
    """

    card: ComparatorCard
    networks: Mapping[str, Translator]

    def sample(self, x1: Tensor, direction: Direction, samples: int, noise: torch.Generator) -> Tensor:
        """Draw images of the wanted end.

        Parameters
        ----------
        x1
            float32 [N, C, H, W], network units of the observed end.
        direction
            One that was trained.
        samples
            K, each with noise of its own.
        noise
            Source of the standard normal deviates. All are drawn first, so that samples do not depend on how many
            images the network sees at a time.

        Returns
        -------
        Tensor
            float32 [K, N, C, H, W], network units of the wanted end.

        Raises
        ------
        BridgeError
            Where the direction was not trained, the images have another size, or no sample is asked for.
        """
        network = self._network(direction)
        side = network.shape.side
        if samples < 1 or x1.ndim != 4:
            raise BridgeError(
                f"{self.card.method}: {samples} samples of images {list(x1.shape)}; give at least 1, of [N, C, H, W]"
            )
        if x1.shape[-2:] != (side, side):
            raise BridgeError(
                f"{self.card.method}: images of {x1.shape[-2]} x {x1.shape[-1]} pixels, but it was trained on {side} x "
                f"{side}; cut them to that"
            )
        seen = condition(x1, direction)
        z = torch.randn(samples, len(x1), network.deviates, generator=noise)
        drawn = []
        with torch.inference_mode(), torch.autocast(x1.device.type, torch.bfloat16):
            for one in z.to(x1.device):
                parts = zip(seen.split(BATCH), one.split(BATCH), strict=True)
                drawn.append(torch.cat([network.generate(*part) for part in parts]))
        return to_channels(torch.stack(drawn), x1.shape[1])

    def _network(self, direction: Direction) -> Translator:
        if str(direction) not in self.networks:
            raise BridgeError(
                f"{self.card.method} was not trained from {direction.observed.name} to {direction.wanted.name}, only "
                f"{', '.join(self.networks)}; train that direction"
            )
        return self.networks[str(direction)]


def new_network(method: str, shape: Shape, seed: int) -> Translator:
    """Return the network of a method with the weights that a seed gives it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return METHODS[method](shape)


def save_comparator(card: ComparatorCard, networks: Mapping[str, Translator], path: str | Path) -> None:
    """Write NAME.safetensors, the generators of all directions, and NAME.json, the card; `path` is without ending."""
    weights = {
        f"{direction}/{name}": value.detach().contiguous().cpu()
        for direction, network in networks.items()
        for name, value in network.generator.state_dict().items()
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, f"{path}.safetensors")
    Path(f"{path}.json").write_text(json.dumps(card.to_json(), indent=1) + "\n")


def load_comparator(path: str | Path) -> Comparator:
    """Read what `save_comparator` wrote; `path` is without ending.

    Raises
    ------
    BridgeError
        Where one of the two files is not there or damaged, or they do not fit each other.
    """
    weights, written = read_weights(path)
    try:
        card = ComparatorCard.from_json(written)
    except (KeyError, TypeError, AttributeError) as error:
        raise BridgeError(f"comparator {path}: {path}.json is no card of a comparator; train it again") from error
    networks = {}
    for direction, shape in card.shapes.items():
        network = METHODS[card.method](shape)
        part = {
            name.removeprefix(f"{direction}/"): v for name, v in weights.items() if name.startswith(f"{direction}/")
        }
        try:
            network.generator.load_state_dict(part)
        except RuntimeError as error:
            raise BridgeError(f"comparator {path}: weights and card disagree on {direction}; save it again") from error
        networks[direction] = network.eval().requires_grad_(False)
    return Comparator(card, networks)
