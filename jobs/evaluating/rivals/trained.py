"""Rivals that are checkpoints of this house: a bridge, a regression, or a conditional diffusion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from surveybridge.bridge_core.sampler import begin, bridge_steps, draw, sample, window_noise
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.translate import START, sampler_steps, window_samples
from surveybridge.jobs.evaluating.cutouts import stamp_units
from surveybridge.jobs.evaluating.densities import padded

if TYPE_CHECKING:
    from surveybridge.bridge_core.model import Model
    from surveybridge.bridge_core.problem import Direction, Endpoint
    from surveybridge.jobs.evaluating.rivals.maps import CloudMaps

CLIP = 5
"""Where DDIM's first steps divide by a share of the image of 0.006, the answer of a short training overflows."""


@dataclass(frozen=True, eq=False)
class TrainedRival:
    """Samples of a checkpoint.

    Parameters
    ----------
    name
        What tables call it.
    model
        On its device; its problem goes one way, to what is wanted.
    how
        How samples are drawn.
    uniform
        As DDIM draws them (Song et al. 2021): from the table's end in so many steps, evenly spaced, of first order and
        without further noise, x0 clipped at every step to `CLIP` standard deviations of the training. By default as
        `how` says.
    """

    name: str
    model: Model
    how: Sampling
    uniform: int | None = None

    @property
    def direction(self) -> Direction:
        """The only one of its problem."""
        (direction,) = self.model.card.problem.directions
        return direction

    @property
    def calls(self) -> int:
        """Network evaluations a sample."""
        return len(self._uniform_steps() if self.uniform else sampler_steps(self.model.card, self.how))

    def predict(self, seen: CloudMaps, samples: int) -> Tensor:
        """See `Rival.predict`."""
        direction, how = self.direction, replace(self.how, samples=samples)
        observed = maps_of(direction.observed, seen)
        height, width = observed.shape[-2:]
        device = next(self.model.network.parameters()).device
        windows = stamp_units(
            self.model, direction.observed, padded(observed, self.model.card.network.window_multiple).to(device)
        )
        corners = [(0, windows.shape[-1] * (seen.first + k)) for k in range(len(windows))]
        if self.uniform:
            drawn = self._as_ddim(windows, corners, how)
        else:
            drawn = window_samples(self.model, direction, windows, corners, how)
        return drawn[:, :, 0, :height, :width].cpu().transpose(0, 1)

    def _uniform_steps(self) -> list[int]:
        bridge = self.model.card.bridge
        return bridge_steps(bridge, bridge.num_steps - 1, self.uniform or 1)

    def _as_ddim(self, windows: Tensor, corners: list[tuple[int, int]], how: Sampling) -> Tensor:
        """Samples [N, K, B, H, W] in the wanted unit."""
        card = self.model.card
        bound = CLIP * card.objective.sigma_data
        clipped = replace(self.model, card=replace(card, clamp=(-bound, bound)))
        rows = [(p, k) for p in range(len(corners)) for k in range(how.samples)]
        steps, batch, drawn = self._uniform_steps(), how.windows_a_call(windows.shape[-2] * windows.shape[-1]), []
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            x1 = windows[[p for p, _ in part]]
            noise = window_noise(how.seed, self.direction.index, part, corners, windows.device)
            start = begin(card, x1, steps[0], draw(noise, START, x1))
            u = sample(clipped, x1, self.direction, steps, start=start, order=1, precision=how.precision)
            drawn.append(self.direction.wanted.inverse(u))
        return torch.cat(drawn).unflatten(0, (len(corners), how.samples))


def maps_of(end: Endpoint, seen: CloudMaps) -> Tensor:
    """The bands of an end, float32 [N, B, H, W]: the map of its name, or those of its bands."""
    names = [end.name] if end.name in seen.values else list(end.bands)
    return torch.stack([seen.values[name] for name in names], 1)
