"""Mean and standard deviation of the posterior without samples: one evaluation of the network, and a small head.

Where a network has learnt to begin at the bridge's end with nothing of the wanted image, it says E[x0 | x1] there. The
head reads what the network's own heads read, and the embedding of the step, which holds the conditions, and says how
far the truth lies from that: the half width of the interval that holds 68% of the pixels like this one, which for a
Gaussian is the standard deviation. It is fitted on a network that does not change, whose samples stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from surveybridge.bridge_core.conditions import Conditions
from surveybridge.bridge_core.consistency import Consistency
from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import Card, Model
from surveybridge.bridge_core.network import NetworkConfig
from surveybridge.bridge_core.patches import blend, cut
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.sampler import begin, draw, starts_without_x0, window_noise, x0_of
from surveybridge.bridge_core.scene import Scene, cut_context, look
from surveybridge.bridge_core.settings import Precision, Sampling, WholeTile
from surveybridge.bridge_core.spans import span
from surveybridge.bridge_core.stretch import Stretch
from surveybridge.bridge_core.translate import START, Posterior, agreement_of, grown

INSIDE = 0.6827
"""Share of a Gaussian within its standard deviation."""
HIDDEN = 32
"""Width of the head's hidden layer."""
LEAST = 1e-5
"""Smallest error, in the units of the width, that the loss tells from none: its logarithm has to exist."""


class MapsHead(nn.Module):
    """Says the logarithm of the width of every pixel of both ends, as `Stretch.moments` takes it.

    Parameters
    ----------
    config
        Of the network whose features it reads.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Conv2d(config.base * config.multipliers[0], HIDDEN, 3, padding=1)
        # the mean hardly depends on the noise of the wanted end, so that the features say little of it
        self.film = nn.Linear(config.time_dim, 2 * HIDDEN)
        self.last = nn.Conv2d(HIDDEN, 2 * config.image_channels * config.stem**2, 1)

    def forward(self, features: Tensor, emb: Tensor) -> Tensor:
        """Map `UNet.features` and the embedding [N, time_dim] or [1, time_dim] to [N, 2C, H, W], end 0 first."""
        # the head is small, and stays in its own precision whatever that of the network is
        features, emb = features.to(self.film.weight.dtype), emb.to(self.film.weight.dtype)
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.last(F.silu(self.first(features) * (1 + scale) + shift)).float()
        # about a third of the derivative of the stretch: the noise of a sky, whose softening is twice that
        return F.pixel_shuffle(h, self.config.stem) - 1 if self.config.stem > 1 else h - 1


class Evaluated(NamedTuple):
    """What one evaluation says of N windows.

    mean: float32 [N, C, H, W], E[x0 | x1] in network units; features: [N, F, h, w] of `UNet.features`; emb: embeddings
    [N, time_dim].
    """

    mean: Tensor
    features: Tensor
    emb: Tensor

    def rows(self, index: Tensor | slice) -> Evaluated:
        """The same of some of the windows."""
        return Evaluated(self.mean[index], self.features[index], self.emb[index])


def check_maps(card: Card) -> None:
    """Refuse a checkpoint of which one evaluation says no mean, or whose fluxes have no moments in closed form.

    Raises
    ------
    BridgeError
        Where it has not learnt to begin with nothing of the wanted image, or a stretch is none of asinh without bounds.
    """
    if card.end_noise or not starts_without_x0(card, card.bridge.num_steps - 1):
        raise BridgeError(
            f"checkpoint {card.name} has not learnt to begin with nothing of the wanted image, so that one evaluation "
            "says no mean; train with --end-share, or draw samples"
        )
    for end in card.problem.endpoints:
        if not isinstance(end.stretch, Stretch) or end.stretch.clip:
            raise BridgeError(
                f"checkpoint {card.name}: {end.name} has no asinh stretch without bounds, of which mean and standard "
                "deviation are known; draw samples"
            )


def evaluate_once(
    model: Model,
    direction: Direction,
    windows: Tensor,
    corners: Sequence[tuple[int, int]],
    *,
    seed: int = 0,
    precision: Precision = "float32",
    context: Context | None = None,
) -> Evaluated:
    """Ask the network at the bridge's end, from the noise with which the first sample of each window begins.

    Parameters
    ----------
    windows
        float32 [N, C, H, W], the observed endpoint in network units.
    corners
        Global (y, x) of each window's first pixel, for the noise.
    seed
        Key of the noise.
    context
        What the network is told of the windows.
    """
    card = model.card
    last = card.bridge.num_steps - 1
    noise = window_noise(seed, direction.index, [(row, 0) for row in range(len(corners))], corners, windows.device)
    state = begin(card, windows, last, draw(noise, START, windows))
    predictor = model.ready(state, windows, last, direction, precision, context)
    answer, features, emb = predictor.with_features(0)
    return Evaluated(x0_of(card, state, windows, last, answer), features, emb.expand(len(windows), -1).clone())


def flux_moments(head: MapsHead, direction: Direction, seen: Evaluated) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in the wanted endpoint's unit, float32 [N, B, H, W]."""
    wanted, channels = direction.wanted, seen.mean.shape[1]
    stretch = wanted.fitted
    assert isinstance(stretch, Stretch)
    said = head(seen.features, seen.emb)[:, direction.index * channels : (direction.index + 1) * channels]
    return stretch.moments(wanted.planes_in(seen.mean), wanted.planes_in(said), wanted.bands)


def map_tile(
    model: Model,
    head: MapsHead,
    direction: Direction,
    scene: Scene,
    how: Sampling,
    wanted: Conditions | None = None,
    consistency: Consistency | None = None,
) -> Posterior:
    """Posterior of the wanted endpoint over the core of a tile, from one evaluation of each window.

    Parameters
    ----------
    head
        Of the model's network.
    model, direction, scene, how, wanted, consistency
        As of `translate_tile`; of `how`, seed, windows, batch and precision count.
    """
    with span("prepare"):
        seen = look(model, direction, scene, how, wanted=wanted)
    coverage, grid, bands = seen.coverage, how.patches, direction.wanted.bands
    if not seen.live:
        nothing = torch.full((len(bands), *coverage.shape), torch.nan)
        return Posterior.of(nothing, nothing, coverage, 0)

    def asked(x1: Tensor, corners: Sequence[tuple[int, int]], told: Context | None) -> tuple[Tensor, Tensor]:
        with span("network"):
            found = evaluate_once(model, direction, x1, corners, seed=how.seed, precision=how.precision, context=told)
        with span("moments"):
            return flux_moments(head, direction, found)

    if isinstance(grid, WholeTile):
        agreement = agreement_of(seen, how, consistency, scene)
        (top, left) = seen.origin
        y0, y1, x0, x1 = seen.box if agreement is None else grown(seen.box, agreement.how.margin)
        both = torch.cat(asked(seen.x1[None], seen.live, seen.context))
        both = both[..., y0 - top : y1 - top, x0 - left : x1 - left]
        if agreement is not None:
            both = agreement.mean(both)
        mean, std = both.cpu()
        return Posterior.of(mean, std, coverage, 1)
    parts = []
    batch = how.windows_a_call(grid.size**2)
    for first in range(0, len(seen.live), batch):
        corners = seen.live[first : first + batch]
        told = cut_context(seen.context, corners, seen.origin, grid.size)
        parts.append(asked(cut(seen.x1, corners, seen.origin, grid.size), corners, told))
    with span("blend"):
        means, deviations = (torch.cat(of) for of in zip(*parts, strict=True))
        mean, std = blend(seen.live, means, deviations.square(), grid, seen.box)
    return Posterior.of(mean.cpu(), std.cpu(), coverage, len(seen.live))


def width_loss(
    head: MapsHead, direction: Direction, seen: Evaluated, truth: Tensor, bright_weight: float = 4.0
) -> Tensor:
    """Mean pinball loss of the logarithm of the error about that of the standard deviation, a scalar.

    It is least where `INSIDE` of the pixels that look alike lie within the standard deviation of the mean, however far
    the others lie: a few stars that nobody could foresee, or cosmic rays, do not widen the sky's.

    Parameters
    ----------
    truth
        float32 [N, C, H, W], the wanted endpoint in network units; NaN where it has no data.
    bright_weight
        Further weight of a pixel for each network unit of its mean (`Recipe.bright_weight`).
    """
    mean, std = flux_moments(head, direction, seen)
    off = (direction.wanted.inverse(truth) - mean.detach()).abs() / std.detach()
    known = torch.isfinite(off)
    # the standard deviation is in the ratio twice: as a number, and as what is learnt
    distance = (off.nan_to_num() + LEAST).log() + std.detach().log() - std.log()
    loss = torch.maximum(INSIDE * distance, (INSIDE - 1) * distance)
    weight = (1 + bright_weight * direction.wanted.planes_in(seen.mean).clamp(min=0)) * known
    return (loss * weight).sum() / weight.sum().clamp(min=1)


def save_head(head: MapsHead, model: Model, path: str | Path) -> None:
    """Write the weights of a head as safetensors, with the identity of the checkpoint whose features it reads."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().contiguous().cpu() for name, value in head.state_dict().items()}
    save_file(weights, path, {"checkpoint": model.card.name, "checkpoint_sha256": model.sha256})


def load_head(model: Model, path: str | Path) -> MapsHead:
    """Read what `save_head` wrote.

    Raises
    ------
    BridgeError
        Where there is no such file, or one of another checkpoint.
    """
    if not Path(path).is_file():
        raise BridgeError(f"{path} does not exist; fit a head of checkpoint {model.card.name}, or draw samples")
    with safe_open(path, "pt") as file:
        stated = file.metadata() or {}
        if stated.get("checkpoint_sha256") != model.sha256:
            raise BridgeError(
                f"{path} reads features of {stated.get('checkpoint')} {stated.get('checkpoint_sha256', '')[:12]}, but "
                f"checkpoint {model.card.name} is {model.sha256[:12]}; fit a head of it"
            )
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, a handle is no mapping
    head = MapsHead(model.card.network)
    head.load_state_dict(weights)
    return head.eval().requires_grad_(False)
