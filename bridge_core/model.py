"""A trained bridge in memory: its card, which says everything a user of the weights must know, and its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.conditions import ConditionRanges, Conditions
from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.discriminant import Discriminant
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.generation import Generation
from surveybridge.bridge_core.light_relation import LightRelation
from surveybridge.bridge_core.network import NetworkConfig, UNet, for_bfloat16
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.prediction import Predictor
from surveybridge.bridge_core.problem import Direction, Endpoint, Problem
from surveybridge.bridge_core.recalibration import Recalibration
from surveybridge.bridge_core.settings import WHOLE, PatchGrid, Precision, windows_of
from surveybridge.bridge_core.stretch import Stretch

CARD_VERSION = 2


@dataclass(frozen=True)
class Card:
    """The description of the weights.

    Parameters
    ----------
    name
        Model id, written into every candidate row.
    grid
        ``mosaic`` (both ends on one grid) or ``cutout`` (each end on its own pixels).
    problem
        The endpoints with their fitted stretches; pixel scales are those that the network sees. A stretch is None of
        AS-Bridge's weights, whose file does not say what their [-1, 1] is.
    clamp
        Bounds of x0 in network units during sampling, or None.
    provenance
        Command, data, steps, loss, versions.
    discriminant
        What makes the lens score of this model's residuals, or None where it has not been calibrated.
    conditions
        Observing conditions of the training images, or None where they were not stated. Whether the network is told
        those of an image is said by `NetworkConfig.conditions`.
    recalibration
        Factors of standard deviations and rates of false alarms on a sky that it is used on; None where not measured.
    end_noise
        Standard deviation, in network units, of the noise by which the bridge's end differs from the observed endpoint.
    clean_input
        Whether the network sees the observed endpoint in its slot; else only the state of the bridge tells of it.
    pixel_pc
        Side of a pixel of the training maps in pc, of a problem whose pixels have a physical size; None if not stated.
    patch
        Windows through which the results of the weights were measured, as a run states them (`settings.windows_of`):
        new runs see tiles through these. The windows of the training where nothing else was measured.
    generation
        What a generator makes from noise (`bridge_core.generation`); None of a network that translates images.
    consistency
        How the light of either end follows from that of the other, by which new runs bring translations to agree with
        what was observed; None where it was not measured.
    """

    name: str
    grid: str
    problem: Problem
    bridge: Bridge
    network: NetworkConfig
    objective: Objective
    clamp: tuple[float, float] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    discriminant: Discriminant | None = None
    conditions: ConditionRanges | None = None
    recalibration: Recalibration | None = None
    end_noise: float = 0.0
    clean_input: bool = True
    pixel_pc: float | None = None
    patch: int | str = PatchGrid.size
    generation: Generation | None = None
    consistency: LightRelation | None = None

    def __post_init__(self) -> None:
        """Refuse whole tiles of a network whose result depends on the size of its window."""
        if self.patch == WHOLE and (why := self.bound_to_a_size):
            raise BridgeError(
                f"card {self.name} states windows {WHOLE!r}, but {why}; state the side of a patch, such as "
                f"{PatchGrid.size}"
            )

    @property
    def bound_to_a_size(self) -> str | None:
        """Why results depend on the size of a window; None where tiles of any size may be seen as one."""
        if not self.network.local:
            return f"its network takes statistics of a window (norm {self.network.norm})"
        if self.bridge.kind == "seeing":
            return "its bridge is one of modes of a window (seeing)"
        return None

    @property
    def physical(self) -> bool:
        """Return whether physical values can be used, that is, whether both ends have a stretch."""
        return all(end.stretch is not None for end in self.problem.endpoints)

    def calibrated(self, direction: Direction) -> Recalibration:
        """Return the recalibration; BridgeError where there is none, or none of a direction."""
        if self.recalibration is None:
            raise BridgeError(
                f"checkpoint {self.name} has no recalibration; make one with `surveybridge calibrate --store TILES "
                f"--checkpoint {self.name}`, or leave out --calibrated"
            )
        self.recalibration.scales(direction)  # refuses a direction that was not calibrated
        return self.recalibration

    def recalibration_of(self, direction: Direction) -> dict[str, Any]:
        """What runs and mosaics say of the recalibration of a direction; BridgeError as `calibrated`."""
        return self.calibrated(direction).summary(direction)

    def outside(self, conditions: Mapping[str, Conditions]) -> list[str]:
        """Return why conditions, by endpoint, lie outside of the training's; nothing where these are not stated.

        Those of endpoints that are not the problem's, whose images the network does not look at, say nothing.
        """
        if self.conditions is None:
            return []
        ends = {end.name: end for end in self.problem.endpoints}
        return self.conditions.outside(
            {name: seen for name, seen in conditions.items() if name in ends},
            {name: end.bands for name, end in ends.items()},
            {name: end.unit for name, end in ends.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """JSON form of the card."""
        return {
            "card_version": CARD_VERSION,
            "name": self.name,
            "grid": self.grid,
            "problem": self.problem.card,
            "bridge": self.bridge.card,
            "network": self.network.card,
            "objective": self.objective.card,
            "clamp": list(self.clamp) if self.clamp else None,
            "provenance": self.provenance,
            "discriminant": self.discriminant.card if self.discriminant else None,
            **({"conditions": self.conditions.card} if self.conditions else {}),
            **({"recalibration": self.recalibration.card} if self.recalibration else {}),
            **({"end_noise": self.end_noise} if self.end_noise else {}),
            **({} if self.clean_input else {"clean_input": False}),
            **({"pixel_pc": self.pixel_pc} if self.pixel_pc else {}),
            **({"patch": self.patch} if self.patch != PatchGrid.size else {}),
            **({"generation": self.generation.card} if self.generation else {}),
            **({"consistency": self.consistency.card} if self.consistency else {}),
        }

    @classmethod
    def from_json(cls, card: dict[str, Any]) -> Card:
        """Read what `to_json` wrote, or a card of version 1; an unknown version is refused."""
        version = card.get("card_version")
        if version not in (1, CARD_VERSION):
            raise BridgeError(
                f"card version {version!r} but this code reads 1 and {CARD_VERSION}; use a checkpoint saved by it"
            )
        return cls(
            name=card["name"],
            grid=card["grid"],
            problem=_problem_of_version_1(card) if version == 1 else Problem.from_table(card["problem"]),
            bridge=Bridge.from_card(card["bridge"]),
            network=NetworkConfig.from_card(card["network"]),
            objective=Objective.from_card(card["objective"]),
            clamp=(card["clamp"][0], card["clamp"][1]) if card["clamp"] else None,
            provenance=card["provenance"],
            discriminant=Discriminant.from_card(card["discriminant"]) if card.get("discriminant") else None,
            conditions=ConditionRanges.from_card(card["conditions"]) if card.get("conditions") else None,
            recalibration=Recalibration.from_card(card["recalibration"]) if card.get("recalibration") else None,
            end_noise=float(card.get("end_noise", 0.0)),
            clean_input=card.get("clean_input", True),
            pixel_pc=card.get("pixel_pc"),
            patch=windows_of(card.get("patch", PatchGrid.size)).stated,
            generation=Generation.from_card(card["generation"]) if card.get("generation") else None,
            consistency=LightRelation.from_card(card["consistency"]) if card.get("consistency") else None,
        )


def _problem_of_version_1(card: dict[str, Any]) -> Problem:
    """Two surveys in nJy under one stretch; objects were found on the second."""
    stretch = Stretch.from_card(card["stretch"]) if card["stretch"] else None
    endpoints = [
        Endpoint(name, tuple(bands), card["pixel_scale"][name], stretch=stretch.of_bands(bands) if stretch else None)
        for name, bands in card["bands"].items()
    ]
    first, second = endpoints
    return Problem(f"{first.name}-{second.name}", (first, second), catalog=second.name)


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
        Hash of weights and card but for what a run states itself (`checkpoint.STATED`): the model's identity in run
        folders.
    file
        Where it was loaded from, without ending; None for one that was not.
    """

    card: Card
    network: UNet
    sha256: str
    file: Path | None = field(default=None, kw_only=True)

    def predictor(
        self,
        x1: Tensor,
        direction: Direction,
        times: Sequence[int],
        precision: Precision,
        context: Context | None = None,
    ) -> Predictor:
        """The network on a batch x1 at some table indices; see `Predictor`."""
        seen = x1 if self.card.clean_input else torch.zeros_like(x1)
        return Predictor(self.network, seen, direction.index, times, precision, context)

    def predict(
        self,
        x_t: Tensor,
        x1: Tensor,
        t: int,
        direction: Direction,
        precision: Precision = "float32",
        context: Context | None = None,
    ) -> Tensor:
        """Network output of the wanted head, [N, C, H, W], at table index t."""
        return self.ready(x_t, x1, t, direction, precision, context)(0, x_t)

    def ready(
        self,
        x_t: Tensor,
        x1: Tensor,
        t: int,
        direction: Direction,
        precision: Precision = "float32",
        context: Context | None = None,
    ) -> Predictor:
        """The network on a batch x1 at table index t alone, with the state x_t as its input."""
        predictor = self.predictor(x1, direction, [t], precision, context)
        u, v = self.card.objective.input_table(self.card.bridge)
        predictor.input.copy_(x_t * float(u[t]) + x1 * float(v[t]))
        return predictor

    def to(self, device: str | torch.device, precision: Precision) -> Model:
        """Move the network; for bfloat16 in NHWC memory and with rounded weights, which is final; returns self."""
        self.network.to(device)
        if precision == "bfloat16":
            for_bfloat16(self.network)
        return self


def start_weights(model: Model, config: NetworkConfig) -> dict[str, Tensor]:
    """The weights of a network that is to go on from a model: its own, and as initialised what it has not.

    Parameters
    ----------
    model
        Where to begin.
    config
        Of the new network: that of the model, but that it may be told conditions where the model is told none. It
        then says at first what the model says, whatever it is told.

    Raises
    ------
    BridgeError
        If the networks differ otherwise.
    """
    if replace(config, conditions=model.card.network.conditions) != model.card.network or (
        model.card.network.conditions and not config.conditions
    ):
        raise BridgeError(
            f"the network is {config.card}, but that of checkpoint {model.card.name} {model.card.network.card}; go on "
            "with the same, or leave the checkpoint out"
        )
    weights = UNet(config).state_dict()
    for name, value in model.network.state_dict().items():
        if weights[name].shape == value.shape:
            weights[name] = value.float()
        else:  # the first layer, whose last channels are the maps
            weights[name] = torch.zeros_like(weights[name])
            weights[name][:, : value.shape[1]] = value
    return weights


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
