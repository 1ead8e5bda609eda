"""The checkpoint of a generator, loaded once in a process that makes stamps."""

from __future__ import annotations

import functools

import torch

from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.generate import generation_of
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.settings import Precision
from surveybridge.jobs.config import RequestError


def read_generator(checkpoint: str) -> Model:
    """Load a generator, a path or a shipped name; BridgeError if it is none."""
    model = load_checkpoint(checkpoint)
    generation_of(model)
    return model


@functools.lru_cache(maxsize=1)
def ready_generator(checkpoint: str, sha256: str, precision: Precision) -> Model:
    """Load a generator onto the device of this process; RequestError if it is not the one with that hash any more."""
    model = read_generator(checkpoint)
    if model.sha256 != sha256:
        raise RequestError(
            f"checkpoint {checkpoint} has the hash {model.sha256[:12]}, but this store was begun with {sha256[:12]}; "
            "put that one back, or give another --out"
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu", precision)
