"""Fit the head that makes maps without samples (`bridge_core.maps`) on pairs, beside a network that does not change."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.maps import Evaluated, MapsHead, check_maps, evaluate_once, width_loss
from surveybridge.bridge_core.model import Card, Model
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.settings import Precision
from surveybridge.bridge_core.training import filled, observed_pixels
from surveybridge.jobs.training.images import Images
from surveybridge.storage.pairs import Pairs, read_pairs

log = logging.getLogger(__name__)

PAIRS = 2048
"""Pairs of a store that are used where nothing else is asked for; what is kept of one takes 320 kB."""
STEPS, WARMUP = 1600, 50
"""Steps of the fit, and those in which its learning rate rises."""
RATE = 3e-3
BATCH = 32
"""Pairs of a step in each direction, all from one store: the stores take turns."""


@dataclass(frozen=True)
class Block:
    """Some pairs in one direction: what is observed, where its noise lies, what is told, and what was wanted."""

    observed: Tensor
    corners: list[tuple[int, int]]
    context: Context | None
    truth: Tensor


def fit_head(model: Model, stores: Sequence[Pairs], seed: int = 0, batch: int = 16) -> MapsHead:
    """Fit a head on all pairs of some stores, whose features are computed once, as runs in bfloat16 see them.

    Parameters
    ----------
    model
        Its network is rounded to bfloat16, which is final.
    seed
        Of the initial weights and the order of the pairs.
    batch
        Pairs in one call of the network.

    Raises
    ------
    BridgeError
        Where one evaluation of the network says no mean (`check_maps`).
    """
    check_maps(model.card)
    directions = model.card.problem.directions
    seen = {
        (number, direction.index): seen_pairs(model.to("cpu", "bfloat16"), direction, pairs, batch)
        for (number, pairs), direction in itertools.product(enumerate(stores), directions)
    }
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = MapsHead(model.card.network)
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE)
    total = 0.0
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        loss = torch.zeros(())
        for direction in directions:
            evaluated, truth = seen[step % len(stores), direction.index]
            rows = torch.randint(0, len(truth), (BATCH,), generator=generator)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss + width_loss(head, direction, evaluated.rows(rows), truth[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
        if step % 200 == 199:
            log.info("step %d of %d: loss %.4f", step + 1, STEPS, total / 200)
            total = 0.0
    return head.eval().requires_grad_(False)


def seen_pairs(model: Model, direction: Direction, pairs: Pairs, batch: int) -> tuple[Evaluated, Tensor]:
    """What one evaluation says of all pairs, and the wanted images [N, C, H, W] in network units."""
    parts = [(asked(model, direction, block), block.truth) for block in blocks(model.card, direction, pairs, batch)]
    evaluated = Evaluated(*(torch.cat(of) for of in zip(*(part for part, _ in parts), strict=True)))
    log.info("%s: %d pairs of %s seen", direction, len(evaluated.mean), pairs.name)
    return evaluated, torch.cat([truth for _, truth in parts])


def read(card: Card, url: str, start: int, count: int) -> Pairs:
    """Some pairs of a store, with the conditions that are known of them."""
    told = card.network.conditions
    return read_pairs(url, card.grid, start, start + count, problem=card.problem.table, conditions=told)


def blocks(card: Card, direction: Direction, pairs: Pairs, size: int, rows: slice = slice(None)) -> Iterator[Block]:
    """Pairs of some rows as the network sees them, `size` at a time."""
    images = Images.of(card, pairs)
    first, last, _ = rows.indices(len(pairs))
    for start in range(first, last, size):
        ends, told = images.rows(card, slice(start, min(start + size, last)))
        ways = torch.full((len(ends[0]),), direction.index)
        context = None if told is None else told.context(card.problem, ways, observed_pixels(ends, ways))
        observed = filled(ends[1 - direction.index])
        corners = [(0, observed.shape[-1] * row) for row in range(start, start + len(ways))]
        yield Block(observed, corners, context, ends[direction.index])


def asked(model: Model, direction: Direction, block: Block, precision: Precision = "bfloat16") -> Evaluated:
    """What one evaluation says of a block."""
    return evaluate_once(model, direction, block.observed, block.corners, precision=precision, context=block.context)
