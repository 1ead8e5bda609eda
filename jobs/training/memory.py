"""The memory that a worker of a training needs, by arithmetic."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surveybridge.bridge_core.model import Card

PROCESS_BYTES = 700 << 20
"""A worker that has loaded Ray Train, torch and zarr, and done nothing yet."""

READ_COPIES = 3.0
"""Copies of a shard while it is read, beside what is kept of it: decoded, in the order of the network, in its units."""

WEIGHT_COPIES = 9
"""Weights, gradients, both moments of AdamW, the averages, and one more while it validates."""

ALIVE = 60
"""Planes of the first stage's width that are alive at the widest place of a backward pass."""


def worker_bytes(card: Card, config: dict[str, Any], size: int, workers: int) -> int:
    """Largest heap of one of so many workers, which holds its share of the pairs, of `size` pixels a side.

    The constants are measured by `python -m benchmarks.training_memory`, which shows projected and measured.
    """
    from surveybridge.bridge_core.network import UNet

    planes = sum(end.planes for end in card.problem.endpoints)
    planes += sum(len(end.bands) for end in card.problem.endpoints) if card.network.conditions else 0
    pair = 4 * size**2 * planes
    shards = math.ceil(config["shards"] / workers)
    share = config["available"] / config["shards"]
    weights = 4 * sum(p.numel() for p in UNet(card.network).parameters())
    passes = config["batch_size"] / config["accumulate"] / workers
    seen = config.get("crop") or size
    activations = passes * (seen // card.network.stem) ** 2 * 4 * card.network.base * ALIVE
    return int(PROCESS_BYTES + share * pair * (shards + READ_COPIES) + WEIGHT_COPIES * weights + activations)
