"""Sampling of generators (`bridge_core.generation`): stamps from noise, each a function of the seed and its number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.generation import Generation
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Direction, Problem
from surveybridge.bridge_core.sampler import rho_steps, sample
from surveybridge.bridge_core.settings import Precision
from surveybridge.kernels.sky_noise import SkyNoise, sky_noise
from surveybridge.kernels.transfer import to_device

STEPS = 20
"""Network evaluations of a stamp."""
SIGMA_MAX = 20.0
"""Noise level, network units, at which sampling begins: images, whose spread is below 1, are nothing beside it."""
PASS = 32
"""Stamps in one call of the network, always: how many others are asked for changes no bit of a stamp."""
STREAM = 2
"""Of the sky noise; those of translations are 0 and 1, the indices of the ends."""


def generator_direction(problem: Problem) -> Direction:
    """The direction that stands for a generator: its head is the first."""
    first, second = problem.endpoints
    return Direction(second, first, 0)


def generate(
    model: Model,
    rows: Sequence[int],
    values: Tensor,
    seed: int,
    steps: int = STEPS,
    precision: Precision = "float32",
) -> dict[str, Tensor]:
    """Draw stamps: each follows from the seed, its own number and its properties, whatever else is drawn with it.

    Parameters
    ----------
    model
        A generator.
    rows
        Numbers of the stamps, N of them.
    values
        float32 [N, P], properties as `Generation.told` takes them.
    seed
        0 to 2^64 - 1.
    steps
        Network evaluations of a stamp: noise levels from `SIGMA_MAX` down, DPM-Solver++(2M).
    precision
        Of the network.

    Returns
    -------
    dict
        By end: float32 [N, B, H, W] in its unit.

    Raises
    ------
    BridgeError
        If the model is no generator, or the properties are not those of its card.
    """
    problem, generation = model.card.problem, generation_of(model)
    if values.shape != (len(rows), len(generation.properties)):
        raise BridgeError(
            f"properties are {list(values.shape)}, but {len(rows)} stamps of {model.card.name} have "
            f"{len(generation.properties)} each ({', '.join(generation.properties) or 'none'})"
        )
    parts = []
    for first in range(0, len(rows), PASS):
        part = list(rows[first : first + PASS])
        some = values[first : first + PASS]
        lacking = PASS - len(part)
        full = torch.cat([some, some.new_full((lacking, some.shape[1]), math.nan)])
        images = _drawn(model, generation, part + [0] * lacking, full, (seed, steps, precision))
        parts.append(images[: len(part)].cpu())
    side = generation.side
    images = torch.cat(parts) if parts else torch.zeros(0, generation.planes(problem), side, side)
    return generation.separated(problem, images)


def generation_of(model: Model) -> Generation:
    """What a generator makes; BridgeError if the model is none."""
    if model.card.generation is None:
        raise BridgeError(
            f"checkpoint {model.card.name} translates images and makes none of its own; train a generator with "
            "`surveybridge train --generate`"
        )
    return model.card.generation


def _drawn(
    model: Model, generation: Generation, rows: list[int], values: Tensor, how: tuple[int, int, Precision]
) -> Tensor:
    """One batch of images [N, C, H, W], network units."""
    seed, count, precision = how
    card, device, side = model.card, next(model.network.parameters()).device, generation.side
    steps = rho_steps(card.bridge, count, SIGMA_MAX)
    zero = torch.zeros(len(rows), dtype=torch.int64, device=device)
    noise = SkyNoise(seed, STREAM, zero, to_device(torch.tensor(rows) * side, device), zero)
    z = sky_noise(noise, 0, (card.network.image_channels, side, side))
    context = generation.told(values).to(device) if generation.properties else None
    nothing = torch.zeros_like(z)
    start = float(card.bridge.s[steps[0]]) * z
    direction = generator_direction(card.problem)
    return sample(model, nothing, direction, steps, start=start, precision=precision, context=context)
