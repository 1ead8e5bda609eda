"""A plain training loop for detectors: one loss, Adam, a budget of steps or of processor seconds, weights on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from surveybridge.bridge_core.comparators.budget import Budget
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.training import step_generator

Loss = Callable[[torch.Generator], Tensor]
"""The loss of one step, a scalar; everything random in it comes from the generator."""


def fit(parameters: Iterable[nn.Parameter], loss: Loss, budget: Budget, *, rate: float, decay: float = 0.0) -> int:
    """Minimise a loss with AdamW until the budget is used; returns the steps taken.

    Parameters
    ----------
    parameters
        Those that are changed.
    loss
        Of a step.
    budget
        Steps or processor seconds, and the seed of the generators.
    rate, decay
        Learning rate at the start, which falls to 0 as half a cosine, and weight decay.
    """
    optimizer = torch.optim.AdamW(list(parameters), lr=rate, weight_decay=decay)
    step, began = 0, time.process_time()
    while (progress := budget.progress(step, time.process_time() - began)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = budget.half_cosine(progress) * rate
        optimizer.zero_grad(set_to_none=True)
        loss(step_generator(budget.seed, step, 0)).backward()
        optimizer.step()
        step += 1
    return step


def save_weights(network: nn.Module, card: Mapping[str, Any], path: str | Path) -> None:
    """Write NAME.safetensors and NAME.json; `path` is without ending."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().contiguous().cpu() for k, v in network.state_dict().items()}, f"{path}.safetensors")
    Path(f"{path}.json").write_text(json.dumps(dict(card), indent=1) + "\n")


def load_weights(network: nn.Module, path: str | Path) -> dict[str, Any]:
    """Read what `save_weights` wrote into a network of the same sizes; returns the card."""
    weights, card = read_weights(path)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise BridgeError(f"comparator {path}: the weights are of another network; train it again") from error
    return card


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read NAME.safetensors and NAME.json; `path` is without ending.

    Raises
    ------
    BridgeError
        Where one of the two files is not there, or is damaged.
    """
    for file in (f"{path}.safetensors", f"{path}.json"):
        if not Path(file).is_file():
            raise BridgeError(f"comparator {path}: {file} does not exist; train it first")
    try:
        weights, card = load_file(f"{path}.safetensors"), json.loads(Path(f"{path}.json").read_text())
    except (SafetensorError, ValueError) as error:
        raise BridgeError(f"comparator {path}: a file is damaged ({error}); train it again") from error
    if not isinstance(card, dict):
        raise BridgeError(f"comparator {path}: {path}.json is a {type(card).__name__}, no card; train it again")
    return weights, card
