"""CFM (Costanzino et al. 2024): maps between frozen features of two surveys; where both maps fail is anomalous.

Published for colours and points in space; here there is an encoder of images for each survey.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS = 128
"""Tokens of a pair that a step of the training sees."""
SKY_SIGMAS = 2.0
FILTERS = 3
"""Box filters of 3 x 3 tokens that smooth the map."""


class CrossModal(nn.Module):
    """Two perceptrons, from the features of each survey to those of the other; features are [N, D, h, w]."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.to_second, self.to_first = _perceptron(first, second), _perceptron(second, first)

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """1 minus the cosine between mapped and true features of tokens [T, D], both ways, a scalar."""
        there = 1 - F.cosine_similarity(self.to_second(first), second, dim=-1)
        back = 1 - F.cosine_similarity(self.to_first(second), first, dim=-1)
        return there.mean() + back.mean()

    @torch.inference_mode()
    def anomaly_map(self, first: Tensor, second: Tensor, known: Tensor) -> Tensor:
        """Return the product of the distances in both surveys, smoothed, [N, h, w]; 0 where nothing is known."""
        a, b = (x.movedim(1, -1) for x in (first, second))
        apart = [
            (F.normalize(mapped, dim=-1) - F.normalize(true, dim=-1)).norm(dim=-1)
            for mapped, true in ((self.to_first(b), a), (self.to_second(a), b))
        ]
        found = (apart[0] * apart[1] * known)[:, None]
        for _ in range(FILTERS):
            found = F.avg_pool2d(found, 3, 1, padding=1)
        return found[:, 0]

    def score(self, first: Tensor, second: Tensor, known: Tensor) -> Tensor:
        """Largest value of the map over the root of its mean, [N]; 0 where nothing is known."""
        found = self.anomaly_map(first, second, known)
        return found.amax((1, 2)) / found.mean((1, 2)).clamp(min=1e-12).sqrt()


def known_tokens(first: Tensor, second: Tensor) -> Tensor:
    """Tell which tokens of 2 x 2 pixels hold more than sky in a survey, bool [N, S / 2, S / 2].

    Parameters
    ----------
    first, second
        Images in units of their sky noise, [N, P, S, S].
    """
    bright = torch.maximum(first.amax(1, keepdim=True), second.amax(1, keepdim=True))
    return F.max_pool2d(bright, 2)[:, 0] > SKY_SIGMAS


def chosen_tokens(known: Tensor, draws: torch.Generator) -> Tensor:
    """Draw up to `TOKENS` of the known tokens of each pair, int64 [T, 3]: pair, row, column."""
    order = torch.rand(known.shape, generator=draws).masked_fill(~known, 2.0).flatten(1)
    value, place = order.sort(1)
    value, place = value[:, :TOKENS], place[:, :TOKENS]
    pair = torch.arange(len(known))[:, None].expand_as(place)
    kept = value < 1
    width = known.shape[-1]
    return torch.stack([pair[kept], place[kept] // width, place[kept] % width], 1)


def _perceptron(width_in: int, width: int) -> nn.Sequential:
    middle = (width_in + width) // 2
    return nn.Sequential(
        nn.Linear(width_in, middle), nn.GELU(), nn.Linear(middle, middle), nn.GELU(), nn.Linear(middle, width)
    )
