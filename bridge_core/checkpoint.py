"""A trained bridge on disk: safetensors weights and a JSON card beside them, `NAME.safetensors` and `NAME.json`."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import Card, Model, make_model

DEFAULT_CHECKPOINT = "mosaic-v3"

HEAD_ENDING = ".maps.safetensors"

STATED = ("conditions", "patch", "consistency")
"""Keys of a card that are no part of a checkpoint's identity. Conditions decide no pixel and no score; windows, and how
light is brought to agree, a run states itself. So a card may state them later, and runs that began before go on."""

EARLIER_DEFAULTS = ("mosaic-v2",)
"""Shipped checkpoints that were the default before; what was begun with them goes on with them."""


def save_checkpoint(card: Card, weights: dict[str, Tensor], path: str | Path) -> Path:
    """Write NAME.safetensors and NAME.json; `path` is either of them or the name without ending."""
    base = Path(path).with_suffix("") if Path(path).suffix in (".safetensors", ".json") else Path(path)
    base.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().float().contiguous().cpu() for k, v in weights.items()}, f"{base}.safetensors")
    Path(f"{base}.json").write_text(_card_text(card.to_json()))
    return Path(f"{base}.safetensors")


def load_checkpoint(path: str | Path | None = None) -> Model:
    """Load a checkpoint by path, or one that ships with the package by its name (default: `DEFAULT_CHECKPOINT`).

    Raises
    ------
    BridgeError
        Where there is no such checkpoint, card and weights disagree, or the file is no safetensors.
    """
    base, weights_file, card_file = _files(path)
    with _readable(base):
        card = Card.from_json(json.loads(card_file.read_text()))
        weights = load_file(weights_file)
    model = make_model(card, weights, _identity(weights_file.read_bytes(), card_file.read_bytes()))
    return replace(model, file=base)


def load_card(path: str | Path | None = None) -> Card:
    """The card of a checkpoint alone, for those who need no network; arguments and errors as of `load_checkpoint`."""
    base, _, card_file = _files(path)
    with _readable(base):
        return Card.from_json(json.loads(card_file.read_text()))


def _files(path: str | Path | None) -> tuple[Path, Path, Path]:
    """A checkpoint's name without ending, its weights and its card, which are there."""
    base = _resolve(path)
    weights_file, card_file = Path(f"{base}.safetensors"), Path(f"{base}.json")
    for file in (weights_file, card_file):
        if not file.is_file():
            raise BridgeError(f"checkpoint {base}: {file} does not exist; shipped checkpoints: {shipped_checkpoints()}")
    return base, weights_file, card_file


@contextlib.contextmanager
def _readable(base: Path) -> Iterator[None]:
    """Whatever cannot be read of a checkpoint is a BridgeError that names it."""
    try:
        yield
    except BridgeError:
        raise
    except Exception as error:
        raise BridgeError(
            f"checkpoint {base}: cannot be read ({type(error).__name__}: {error}); save it again"
        ) from error


def head_file(path: str | Path | None = None) -> Path:
    """Where a checkpoint's head for maps without samples lies (`maps.load_head`), if it has one.

    It is a file of its own, so that a checkpoint stays what it is to runs that have begun with it.
    """
    return Path(f"{_resolve(path)}{HEAD_ENDING}")


def _identity(weights: bytes, card: bytes) -> str:
    """SHA-256 of weights and card as `save_checkpoint` wrote them, without what is `STATED` elsewhere."""
    document = json.loads(card)
    decides = {key: value for key, value in document.items() if key not in STATED}
    if decides != document:
        card = _card_text(decides).encode()
    return hashlib.sha256(weights + card).hexdigest()


def _card_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1) + "\n"


def shipped_checkpoints() -> list[str]:
    """Names of the checkpoints inside the package."""
    folder = resources.files("surveybridge.bridge_core") / "checkpoints"
    return (
        sorted(
            Path(f.name).stem
            for f in folder.iterdir()
            if f.name.endswith(".safetensors") and not f.name.endswith(HEAD_ENDING)
        )
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
    head = folder / f"{name}{HEAD_ENDING}"
    for file in (folder / f"{name}.safetensors", folder / f"{name}.json", *([head] if head.is_file() else [])):
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
