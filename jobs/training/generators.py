"""Training of generators (`bridge_core.generation`): batches without an observed image, and how samples are judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from surveybridge.bridge_core.generate import generate
from surveybridge.bridge_core.generation import Generation, forgotten
from surveybridge.bridge_core.metrics import patch_energy_score
from surveybridge.bridge_core.model import Card, Model
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.training import Batch, moved_about
from surveybridge.jobs.training.images import Images
from surveybridge.storage.pair_properties import read_properties

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surveybridge.bridge_core.problem import Problem
    from surveybridge.storage.pairs import Pairs


def fit_generation(
    problem: Problem, ends: Sequence[str], properties: Sequence[str], pairs: Pairs, url: str, count: int
) -> Generation:
    """What a generator of these ends makes, its properties measured on the first `count` pairs of the store at `url`.

    `pairs` are some of them, on the grid of the network.
    """
    known = read_properties(url, properties, 0, count)
    values = {name: torch.from_numpy(known[:, k]) for k, name in enumerate(properties)}
    side = next(iter(pairs.ends.values())).shape[-1]
    return Generation.fit(problem, ends, side, pairs.noise, values)


def properties_of(generation: Generation, url: str, start: int, stop: int) -> Tensor:
    """Properties of pairs `start` to `stop` of a store, float32 [N, P], NaN where unknown."""
    return torch.from_numpy(read_properties(url, tuple(generation.properties), start, stop))


def joint(card: Card, images: Images, rows: Tensor | slice) -> Tensor:
    """Planes of all ends that a generator makes, side by side: float32 [N, C, H, W] in network units."""
    assert card.generation is not None
    made = card.generation.ends
    ends = zip(card.problem.endpoints, images.planes, strict=True)
    return torch.cat([planes[rows] for end, planes in ends if end.name in made], 1)


def joint_batch(card: Card, images: Images, rows: Tensor, generator: torch.Generator, *, varied: bool) -> Batch:
    """Draw a batch of some rows, int64 [N]: the joint image is wanted, and nothing is observed.

    With `varied`, as in training, stamps are turned and some properties forgotten.
    """
    assert card.generation is not None
    planes, values = joint(card, images, rows), images.properties
    context = None
    if varied:
        part = card.generation.flips(card.problem)
        planes = moved_about(planes, part, generator, roll=False)
    if card.generation.properties and values is not None:
        some = forgotten(values[rows], generator) if varied else values[rows]
        context = card.generation.told(some)
    wanted = torch.zeros(len(rows), dtype=torch.int64)
    return Batch.draw(card, (planes, torch.zeros_like(planes)), wanted, generator, context)


def joint_energy(model: Model, images: Images, rows: slice, stream: int, how: Sampling) -> float:
    """Sum over some rows of the energy score of stamps with the same properties: mean of patches, network units.

    `stream` numbers the stamps that are drawn, K after each other for each row.
    """
    truth, values = joint(model.card, images, rows), images.properties
    if not len(truth) or values is None:
        return 0.0
    many = values[rows].repeat_interleave(how.samples, 0)
    first = stream * len(many)
    ends = generate(model, range(first, first + len(many)), many, how.seed, how.steps)
    made = [end.fitted.forward(ends[end.name], end.bands) for end in model.card.problem.endpoints if end.name in ends]
    drawn = torch.cat(made, 1).unflatten(0, (len(truth), how.samples)).transpose(0, 1)
    known = torch.isfinite(truth)
    score = patch_energy_score(drawn.where(known, 0.0), truth.where(known, 0.0))
    return float(torch.stack(score).mean(0).sum())
