"""The checkpoint of a generator, read once in a process."""

from __future__ import annotations

import functools

from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.generate import generation_of
from surveybridge.bridge_core.model import Model


@functools.lru_cache(maxsize=1)
def read_generator(checkpoint: str) -> Model:
    """Load a generator, a path or a shipped name; BridgeError if it is none."""
    model = load_checkpoint(checkpoint)
    generation_of(model)
    return model
