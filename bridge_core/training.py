"""One optimisation step of a bridge, its running average and its state on disk. No data loading, no cluster.

The pairs are cut into virtual shards, and everything random in a step is a function of (seed, step, shard): a resumed
run draws what the undisturbed one would, on however many workers the shards are spread.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.network import UNet, network_input
from surveybridge.bridge_core.patches import fill_masked
from surveybridge.bridge_core.problem import Problem


@dataclass(frozen=True)
class Recipe:
    """The settings of the optimisation of a bridge.

    Parameters
    ----------
    learning_rate
        Peak of AdamW's learning rate, reached after `warmup_steps`, then a half cosine down to 0.
    batch_size
        Pairs a step over all workers; half of them in each direction, where there are two.
    shards
        Virtual shards of the data; each gives ``batch_size / shards`` pairs to every step.
    bright_weight
        Weight of a pixel in the loss: 1 + so much per network unit of the observed endpoint's brightest band. The
        optimum E[x0 | x_t, x1] does not move, because the weight depends on x1 alone; bright pixels are few and need
        the help.
    crop
        Side in pixels of the part of each pair that a step sees, anywhere in a pair that was rolled and near the middle
        of one that was not; None for all of it. Most of a stamp is sky, and of that less is enough.
    rescale
        Width in decades of a random common factor of each pair, even in its logarithm and 1 in the middle, for problems
        whose ends state how they scale with it (`Endpoint.scaling`).
    ema_widths
        Relative widths of the power-law averages that are kept (EDM2, Karras et al. 2024, eq. (124)): 0.05 = the last
        5% or so. Which of them is taken is chosen afterwards.
    """

    learning_rate: float = 4e-4
    warmup_steps: int = 300
    batch_size: int = 32
    shards: int = 8
    gradient_clip: float = 1.0
    weight_decay: float = 0.0
    bright_weight: float = 4.0
    crop: int | None = None
    rescale: float = 0.0
    ema_widths: tuple[float, ...] = (0.02, 0.05, 0.1)
    seed: int = 0

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Learning rate at a step, progress = share of the budget used, 0..1."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def step_generator(seed: int, step: int, shard: int) -> torch.Generator:
    """The generator of everything random in one step of one shard."""
    # torch's CPU generator keeps the low 32 bits only; multiples of 2^32 / golden ratio spread the shards over them
    # as evenly as can be: 8 shards stay apart for 3e8 steps, 1024 for 1.6e6
    return torch.Generator().manual_seed((seed * 1_000_003 + shard * 2_654_435_769 + step) % 2**63)


Ends = tuple[Tensor, Tensor]
"""Images of both endpoints, float32 [N, C, H, W] each, in network units; NaN where there is no data."""


def augment(ends: Ends, problem: Problem, generator: torch.Generator, *, roll: bool, crop: int | None = None) -> Ends:
    """Apply the same random dihedral transform to each pair and, if asked, roll half of them around the window's edge.

    The stamps are centred on an object but a mosaic is not: rolling puts objects everywhere in the window. It needs
    both ends on one grid. Angles, which are measured from an axis of the image, turn along with it. Planes beyond the
    problem's channels, such as maps of the noise, follow their image. See `Recipe.crop` for `crop`, pixels.
    """
    channels = ends[0].shape[1]
    part = torch.zeros(2, channels, dtype=torch.long)
    for row, end in zip(part, problem.endpoints, strict=True):
        row[: problem.channels] = end.flips(problem.channels)
    stacked = moved_about(torch.cat(ends, dim=1), part.flatten(), generator, roll=roll, crop=crop)
    return stacked[:, :channels], stacked[:, channels:]


def moved_about(
    images: Tensor, part: Tensor, generator: torch.Generator, *, roll: bool, crop: int | None = None
) -> Tensor:
    """Apply a random dihedral transform to each of N images [N, C, H, W], and as `augment` says roll and crop.

    `part` int64 [C] says which planes hold an angle, as `Endpoint.flips`.
    """
    # a quarter turn adds pi / 2 to psi, so cos 2psi and sin 2psi change sign; a flip takes psi to -psi
    turned, flipped = (1.0 - 2.0 * sign[:, None, None] for sign in (part > 0, part == 2))
    axial = bool((part > 0).any())
    n, _, height, width = images.shape
    draws = torch.randint(0, 2**30, (n, 5), generator=generator)
    crop = crop or height
    corners = torch.rand(n, 2, generator=generator) if crop < height else torch.full((n, 2), 0.5)
    out = []
    for image, (turn, flip, rolled, dy, dx), corner in zip(images, draws.tolist(), corners.tolist(), strict=True):
        image = torch.rot90(image, turn % 4, (1, 2))
        image = image.flip(2) if flip % 2 else image
        if axial:
            image = image * (turned if turn % 2 else 1.0) * (flipped if flip % 2 else 1.0)
        moved = roll and rolled % 2 == 1
        image = image.roll((dy % height, dx % width), (1, 2)) if moved else image
        # a middle that is known to the pixel would teach the network where to expect an object
        top, left = (
            round(space * (part if moved else (1 + part) / 3))
            for space, part in zip((height - crop, width - crop), corner, strict=True)
        )
        out.append(image[:, top : top + crop, left : left + crop])
    return torch.stack(out)


def rescaled(ends: Ends, problem: Problem, generator: torch.Generator, width: float) -> Ends:
    """Multiply the values of each pair by powers of a common factor, see `Recipe.rescale`; width in decades."""
    first, second = ends
    powers = width * (torch.rand(len(first), 1, 1, 1, generator=generator) - 0.5)
    one, other = (end.scaled(first.shape[1]).view(-1, 1, 1) for end in problem.endpoints)
    return first + powers * one, second + powers * other


@dataclass(frozen=True)
class Batch:
    """Pairs with all that is random about them already drawn, N of them.

    Parameters
    ----------
    first, second
        float32 [N, C, H, W] network units, the endpoints of the problem in their order; pixels without data are filled
        from their neighbours, as translation does it.
    known
        bool [N, C, H, W], where the wanted endpoint has data: the loss is taken there.
    index
        int64 [N], the wanted endpoint of each.
    t
        int64 [N], index into the bridge's tables.
    eps
        float32 [N, C, H, W], standard normal.
    maps, vector
        As `Context` has them, of no width where the network is told nothing: [N, 2C, H, W] and [N, V].
    end_eps
        float32 [N, C, H, W], standard normal, of no width where the bridge's end is the observed endpoint itself
        (`Card.end_noise`).
    """

    first: Tensor
    second: Tensor
    known: Tensor
    index: Tensor
    t: Tensor
    eps: Tensor
    maps: Tensor
    vector: Tensor
    end_eps: Tensor

    @classmethod
    def draw(
        cls, card: Card, ends: Ends, index: Tensor, generator: torch.Generator, context: Context | None = None
    ) -> Batch:
        """Draw t and eps of these pairs from a CPU generator.

        Without a context, a network that is told conditions is told only which pixels are known.
        """
        first, second = ends
        known = torch.isfinite(torch.where(index.view(-1, 1, 1, 1).bool(), second, first))
        t = card.objective.draw_steps(card.bridge, len(index), generator)
        eps = torch.randn(first.shape, generator=generator)
        end_eps = torch.randn(first.shape, generator=generator) if card.end_noise else first[:, :0]
        maps, vector = first[:, :0], first.new_zeros(len(first), 0)
        if card.network.conditions:
            context = context or Context.blank(observed_pixels(ends, index))
        if context is not None:
            maps, vector = context.maps, context.vector
        return cls(filled(first), filled(second), known, index, t, eps, maps, vector, end_eps)

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """One batch of all, in order."""
        return cls(*(torch.cat([getattr(batch, f.name) for batch in batches]) for f in fields(cls)))

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on a device."""
        return Batch(*(getattr(self, f.name).to(device) for f in fields(self)))

    def __len__(self) -> int:
        return len(self.t)


def observed_pixels(ends: Ends, index: Tensor) -> Tensor:
    """Where the observed endpoint of each pair has data, bool [N, C, H, W]; index of the wanted one, int64 [N]."""
    first, second = ends
    return torch.isfinite(torch.where(index.view(-1, 1, 1, 1).bool(), first, second))


def wanted_of(problem: Problem, count: int) -> Tensor:
    """Wanted endpoints int64 [count]: the first half 1, the second 0; of a one-way problem its own throughout."""
    indices = [direction.index for direction in problem.directions]
    if len(indices) == 1:
        return torch.full((count,), indices[0])
    return (torch.arange(count) < count // 2).long()


def bridge_loss(network: nn.Module, card: Card, batch: Batch, bright_weight: float = 0.0) -> Tensor:
    """Mean of the weighted squared error over a batch, a scalar; `network` may be a data-parallel wrapper.

    Pixels in which the wanted endpoint has no data are left out.
    """
    c, device, t = card.network.image_channels, batch.first.device, batch.t
    second_wanted = batch.index.view(-1, 1, 1, 1).bool()
    x0 = torch.where(second_wanted, batch.second, batch.first)
    x1 = torch.where(second_wanted, batch.first, batch.second)
    without = card.objective.without_x0(card.bridge, t).view(-1, 1, 1, 1)
    end = x1 + card.end_noise * batch.end_eps if card.end_noise else x1
    x_t = card.bridge.q_sample(x0.masked_fill(without, 0.0), end, t, batch.eps)
    target, weight = card.objective.target(card.bridge, t, x_t, x0, end, batch.eps)
    u, v = (k.to(device, x0.dtype)[t][:, None, None, None] for k in card.objective.input_table(card.bridge))
    told = card.network.told > 0
    seen = x1 if card.clean_input else torch.zeros_like(x1)
    inputs = network_input(u * x_t + v * end, seen, batch.index, batch.maps if told else None)
    with torch.autocast(device.type, torch.bfloat16):
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        heads = network(inputs, t, batch.index, *([batch.vector] if told else []))
    pred = torch.where(second_wanted, heads[:, c:], heads[:, :c]).float()
    slopes = [bright_weight if end.kind == "asinh" else 0.0 for end in card.problem.endpoints]
    slope = slopes[0] if slopes[0] == slopes[1] else torch.tensor(slopes, device=device)[1 - batch.index]
    error = weight * brightness_weight(x1, slope) * (pred - target) ** 2
    return (error * batch.known).sum() / batch.known.sum().clamp(min=1)


def filled(images: Tensor) -> Tensor:
    """Images [N, C, H, W] without NaN: missing pixels take the mean of those near them (`fill_masked`)."""
    known = torch.isfinite(images)
    if bool(known.all()):
        return images
    return fill_masked(images.flatten(0, 1), known.flatten(0, 1)).view_as(images)


def brightness_weight(x1: Tensor, slope: float | Tensor) -> Tensor:
    """Weight of each pixel from the observed endpoint alone, float32 [N, 1, H, W]; slope of all, or [N] of each.

    See `Recipe.bright_weight`; only a flux has a sky that is 0, so for other endpoints all pixels have the same weight.
    """
    slope = slope.view(-1, 1, 1, 1) if isinstance(slope, Tensor) else slope
    return 1 + slope * x1.amax(1, keepdim=True).clamp(min=0)


class TrainState:
    """Network, optimiser, running average and counters; saved as safetensors only.

    Parameters
    ----------
    network
        The network being trained (not its data-parallel wrapper).
    recipe
        How.
    """

    def __init__(self, network: UNet, recipe: Recipe) -> None:
        self.network = network
        self.recipe = recipe
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
        )
        self.averages = {
            width: {k: v.detach().clone() for k, v in network.state_dict().items()} for width in recipe.ema_widths
        }
        self.step = 0
        self.seconds = 0.0

    def update(self, progress: float) -> float:
        """Take one step along the gradients gathered since the last; returns their norm before clipping."""
        lr = self.recipe.learning_rate_at(self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        with torch.no_grad():
            for width, average in self.averages.items():
                beta = (1 - 1 / self.step) ** (power_of_width(width) + 1)
                for name, value in self.network.state_dict().items():
                    average[name].lerp_(value, 1 - beta)
        return float(norm)

    def save(self, folder: str | Path) -> None:
        """Write `state.safetensors`: network, averages, both moments of AdamW, counters."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"ema.{width}.{k}": v for width, average in self.averages.items() for k, v in average.items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{name}.{key}"] = value
        tensors["step"] = torch.tensor(self.step)
        tensors["seconds"] = torch.tensor(self.seconds, dtype=torch.float64)
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, Path(folder) / "state.safetensors")

    def load(self, folder: str | Path) -> None:
        """Continue from what `save` wrote."""
        tensors = load_file(Path(folder) / "state.safetensors")
        self.optimizer.state.clear()
        self.network.load_state_dict(
            {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        )
        for width, average in self.averages.items():
            for name, value in average.items():
                value.copy_(tensors[f"ema.{width}.{name}"])
        for name, parameter in self.network.named_parameters():
            keys = ("exp_avg", "exp_avg_sq", "step")
            if f"adam.{name}.step" in tensors:
                moments = {k: tensors[f"adam.{name}.{k}"] for k in keys}
                # AdamW keeps its step count on the CPU, the moments beside the parameter
                self.optimizer.state[parameter] = {
                    k: v if k == "step" else v.to(parameter.device) for k, v in moments.items()
                }
        self.step = int(tensors["step"])
        self.seconds = float(tensors["seconds"])


@functools.cache
def power_of_width(width: float) -> float:
    """Exponent gamma of the power-law average of relative width, EDM2 eq. (126): the largest real root."""
    # sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), falling in gamma, solved by bisection
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = 0.5 * (low + high)
        if math.sqrt((middle + 1) / ((middle + 2) ** 2 * (middle + 3))) > width:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
