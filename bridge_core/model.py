"""A trained bridge in memory: its card, which says everything a user of the weights must know, and its network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.discriminant import Discriminant
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.network import NetworkConfig, Precision, UNet, for_bfloat16
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.prediction import Predictor
from surveybridge.bridge_core.stretch import Stretch

CARD_VERSION = 1
DIRECTIONS = ("euclid->lsst", "lsst->euclid")  # index = direction embedding and head, as published


@dataclass(frozen=True)
class Card:
    """What the weights are.

    Parameters
    ----------
    name
        Model id, written into every candidate row.
    grid
        ``mosaic`` (LSST co-registered onto the Euclid pixels) or ``cutout`` (each survey on its own pixels).
    bands
        Bands by survey, in channel order.
    pixel_scale
        Arcsec per pixel by survey, as the network sees it.
    clamp
        Bounds of x0 in network units during sampling, or None.
    provenance
        Command, data, steps, loss, versions.
    discriminant
        What makes the lens score of this model's residuals, or None where it has not been calibrated.
    """

    name: str
    grid: str
    bridge: Bridge
    network: NetworkConfig
    objective: Objective
    stretch: Stretch | None
    bands: dict[str, tuple[str, ...]]
    pixel_scale: dict[str, float]
    clamp: tuple[float, float] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    discriminant: Discriminant | None = None

    def check_image(self, survey: str, bands: Sequence[str], pixel_scale: float, tile_id: str) -> None:
        """Refuse an image of a tile whose pixels (arcsec) or bands the weights do not know."""
        expected = self.pixel_scale[survey]
        if abs(pixel_scale / expected - 1) > 0.01:
            raise BridgeError(
                f'tile {tile_id}: {survey} pixel scale {pixel_scale:.3f}" but checkpoint {self.name} expects '
                f'{expected:.3f}"; re-ingest onto that grid or choose another checkpoint'
            )
        if tuple(bands) != self.bands[survey]:
            raise BridgeError(
                f"tile {tile_id}: {survey} bands {','.join(bands)} but checkpoint {self.name} expects "
                f"{','.join(self.bands[survey])}; re-ingest with those bands"
            )

    def to_json(self) -> dict[str, Any]:
        """JSON form of the card."""
        return {
            "card_version": CARD_VERSION,
            "name": self.name,
            "grid": self.grid,
            "bridge": self.bridge.card,
            "network": self.network.card,
            "objective": asdict(self.objective),
            "stretch": self.stretch.card if self.stretch else None,
            "bands": {survey: list(bands) for survey, bands in self.bands.items()},
            "pixel_scale": self.pixel_scale,
            "clamp": list(self.clamp) if self.clamp else None,
            "provenance": self.provenance,
            "discriminant": self.discriminant.card if self.discriminant else None,
        }

    @classmethod
    def from_json(cls, card: dict[str, Any]) -> Card:
        """Read what `to_json` wrote; an unknown version is refused."""
        if card.get("card_version") != CARD_VERSION:
            raise BridgeError(
                f"card version {card.get('card_version')!r} but this code reads {CARD_VERSION}; "
                "use a checkpoint saved by it"
            )
        return cls(
            name=card["name"],
            grid=card["grid"],
            bridge=Bridge.from_card(card["bridge"]),
            network=NetworkConfig.from_card(card["network"]),
            objective=Objective.from_card(card["objective"]),
            stretch=Stretch.from_card(card["stretch"]) if card["stretch"] else None,
            bands={survey: tuple(bands) for survey, bands in card["bands"].items()},
            pixel_scale=dict(card["pixel_scale"]),
            clamp=(card["clamp"][0], card["clamp"][1]) if card["clamp"] else None,
            provenance=card["provenance"],
            discriminant=Discriminant.from_card(card["discriminant"]) if card.get("discriminant") else None,
        )


@dataclass(frozen=True, eq=False)
class Model:
    """A network with its card, ready to predict.

    Parameters
    ----------
    card
        What the weights are.
    network
        In evaluation mode.
    sha256
        Hash of weights and card, the model's identity in run folders.
    """

    card: Card
    network: UNet
    sha256: str

    def predictor(self, x1: Tensor, direction: str, times: Sequence[int], precision: Precision) -> Predictor:
        """The network on a batch x1 at some table indices; see `Predictor`."""
        return Predictor(self.network, x1, DIRECTIONS.index(direction), times, precision)

    def predict(self, x_t: Tensor, x1: Tensor, t: int, direction: str, precision: Precision = "float32") -> Tensor:
        """Network output of the wanted head, [N, 3, H, W], at table index t."""
        predictor = self.predictor(x1, direction, [t], precision)
        u, v = self.card.objective.input_table(self.card.bridge)
        predictor.input.copy_(x_t * float(u[t]) + x1 * float(v[t]))
        return predictor(0, x_t)

    def to(self, device: str | torch.device, precision: Precision) -> Model:
        """Move the network; for bfloat16 in NHWC memory and with rounded weights, which is final; returns self."""
        self.network.to(device)
        if precision == "bfloat16":
            for_bfloat16(self.network)
        return self


def make_model(card: Card, weights: dict[str, Tensor], sha256: str) -> Model:
    """Build the network and put the weights in; names or shapes that differ are refused."""
    network = UNet(card.network)
    own = network.state_dict()
    wrong = sorted(set(own) ^ set(weights)) + [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if wrong:
        raise BridgeError(
            f"checkpoint {card.name}: {len(wrong)} tensors differ from its card's network, first {wrong[0]}"
        )
    network.load_state_dict(weights)
    return Model(card, network.eval().requires_grad_(False), sha256)
