"""Checkpoints of the published AS-Bridge program, read as weights alone: no pickle is ever executed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import Card, Model, make_model
from surveybridge.bridge_core.network import NetworkConfig
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.problem import Endpoint, Problem


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
        problem=Problem(
            "lsst-euclid",
            (Endpoint("lsst", ("g", "r", "i"), 0.2), Endpoint("euclid", ("VIS",), 0.1)),
            catalog="euclid",
        ),
        bridge=bridge,
        network=network,
        objective=Objective(objective),
        clamp=(-1.0, 1.0),
        provenance={"imported_from": Path(path).name, "epoch": content.get("epoch") if "model" in content else None},
    )
    return make_model(card, weights, hashlib.sha256(Path(path).read_bytes()).hexdigest())
