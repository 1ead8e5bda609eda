"""A trained bridge on disk: safetensors weights and a JSON card beside them, `NAME.safetensors` and `NAME.json`.

The card says everything a user of the weights must know: bridge, network, objective, stretch, bands, pixel scales,
grid, clamp and how the weights were made. No pickle is ever executed: AS-Bridge's `.pth` goes through
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.discriminant import Discriminant
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.network import NetworkConfig, UNet, for_bfloat16
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.prediction import Predictor
from surveybridge.bridge_core.stretch import Stretch

CARD_VERSION = 1
Precision = Literal["bfloat16", "float32"]
DIRECTIONS = ("euclid->lsst", "lsst->euclid")  # index = direction embedding and head, as published
DEFAULT_CHECKPOINT = "mosaic-v2"


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


def save_checkpoint(card: Card, weights: dict[str, Tensor], path: str | Path) -> Path:
    """Write NAME.safetensors and NAME.json; `path` is either of them or the name without ending."""
    base = Path(path).with_suffix("") if Path(path).suffix in (".safetensors", ".json") else Path(path)
    base.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().float().contiguous().cpu() for k, v in weights.items()}, f"{base}.safetensors")
    Path(f"{base}.json").write_text(json.dumps(card.to_json(), indent=1) + "\n")
    return Path(f"{base}.safetensors")


def load_checkpoint(path: str | Path | None = None) -> Model:
    """Load a checkpoint by path, or one that ships with the package by its name (default: `mosaic-v2`).

    Raises
    ------
    BridgeError
        Where there is no such checkpoint, card and weights disagree, or the file is no safetensors.
    """
    base = _resolve(path)
    weights_file, card_file = Path(f"{base}.safetensors"), Path(f"{base}.json")
    for file in (weights_file, card_file):
        if not file.is_file():
            raise BridgeError(f"checkpoint {base}: {file} does not exist; shipped checkpoints: {shipped_checkpoints()}")
    try:
        card = Card.from_json(json.loads(card_file.read_text()))
        weights = load_file(weights_file)
    except BridgeError:
        raise
    except Exception as error:
        raise BridgeError(
            f"checkpoint {base}: cannot be read ({type(error).__name__}: {error}); save it again"
        ) from error
    digest = hashlib.sha256(weights_file.read_bytes() + card_file.read_bytes()).hexdigest()
    return make_model(card, weights, digest)


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


def import_asbridge(path: str | Path, objective: str = "eps") -> Model:
    """Import a checkpoint of the published AS-Bridge program (`{"model": state_dict, "epoch"}`).

    Its layout: the U-Net under ``denoise_fn.``, the schedule as buffers beside it; gri and VIS in cutout mode, images
    in [-1, 1]. The stretch to that range is not in the file, so the card has none.

    Raises
    ------
    BridgeError
        Where the file is absent, holds anything but tensors and numbers, or is of another program.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "empty"
        raise BridgeError(f"{path}: cannot be read as weights alone ({type(error).__name__}: {reason})") from error
    state = content.get("model", content) if isinstance(content, dict) else {}
    prefix = "denoise_fn."
    weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if "init_conv.weight" not in weights:
        raise BridgeError(
            f"{path}: no {prefix}init_conv.weight among its {len(state)} tensors; not an AS-Bridge checkpoint"
        )
    base, channels = weights["init_conv.weight"].shape[0], weights["init_conv.weight"].shape[1] // 3
    stages = 1 + max(int(k.split(".")[1]) for k in weights if k.startswith("down_blocks."))
    blocks = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("down_blocks."))
    multipliers = tuple(weights[f"down_blocks.{i}.0.conv1.weight"].shape[0] // base for i in range(stages))
    network = NetworkConfig(
        base, multipliers, blocks, time_dim=weights["dir_embed.weight"].shape[1], image_channels=channels
    )
    m = state["m_t"]
    bridge = Bridge.brownian(len(m), max_var=float(state["variance_t"][0] / (2 * (m[0] - m[0] ** 2))))
    card = Card(
        name=Path(path).stem,
        grid="cutout",
        bridge=bridge,
        network=network,
        objective=Objective(objective),
        stretch=None,
        bands={"lsst": ("g", "r", "i"), "euclid": ("VIS",)},
        pixel_scale={"lsst": 0.2, "euclid": 0.1},
        clamp=(-1.0, 1.0),
        provenance={"imported_from": Path(path).name, "epoch": content.get("epoch") if "model" in content else None},
    )
    return make_model(card, weights, hashlib.sha256(Path(path).read_bytes()).hexdigest())


def shipped_checkpoints() -> list[str]:
    """Names of the checkpoints inside the package."""
    folder = resources.files("surveybridge.bridge_core") / "checkpoints"
    return (
        sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".safetensors"))
        if folder.is_dir()
        else []
    )


def check_shipped(name: str) -> None:
    """Compare the files of a shipped checkpoint with the sums that ship with them (`checkpoints/SHA256SUMS`).

    Raises
    ------
    BridgeError
        Where a file is not the one that was shipped, or has no sum.
    """
    folder = Path(str(resources.files("surveybridge.bridge_core") / "checkpoints"))
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    sums = {file: digest for digest, file in (line.split() for line in lines)}
    for file in (folder / f"{name}.safetensors", folder / f"{name}.json"):
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != sums.get(file.name):
            raise BridgeError(
                f"{file} has SHA-256 {found[:12]} but {sums.get(file.name, 'no sum')[:12]} was shipped; install "
                "surveybridge again (pip install --force-reinstall --no-deps surveybridge)"
            )


def _resolve(path: str | Path | None) -> Path:
    name = str(path or DEFAULT_CHECKPOINT)
    if name in shipped_checkpoints():
        return Path(str(resources.files("surveybridge.bridge_core") / "checkpoints" / name))
    return Path(name).with_suffix("") if name.endswith((".safetensors", ".json")) else Path(name)
