"""Stamps of a pair store as a model looks at them: in network units, masked pixels filled, with what it is told."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surveybridge.bridge_core.anomaly import scored_direction
from surveybridge.bridge_core.context import Views
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Endpoint
from surveybridge.bridge_core.residuals import Cutouts
from surveybridge.bridge_core.scene import observed_units
from surveybridge.jobs.training.images import views_of
from surveybridge.storage.pairs import Pairs


def pair_cutouts(model: Model, pairs: Pairs, corners: Sequence[tuple[int, int]], device: torch.device) -> Cutouts:
    """Both ends of pairs on the model's grid, to be scored; `corners` place them in the noise."""
    direction = scored_direction(model)
    observed, wanted = (stamps_of(pairs, end, device) for end in (direction.observed, direction.wanted))
    valid = torch.isfinite(observed).all(1, keepdim=True) & torch.isfinite(wanted).all(1, keepdim=True)
    x1, x0 = stamp_units(model, direction.observed, observed), stamp_units(model, direction.wanted, wanted)
    return Cutouts(x1, x0, valid, corners, pair_views(model, pairs, device))


def stamps_of(pairs: Pairs, end: Endpoint, device: torch.device) -> Tensor:
    """Stamps of an end, float32 [N, B, H, W]; NaN where there is no data."""
    return torch.from_numpy(pairs.ends[end.name]).to(device)


def stamp_units(model: Model, end: Endpoint, flux: Tensor) -> Tensor:
    """Stamps [N, B, H, W] of an end as the network sees them, [N, C, H, W]; pixels without data are filled."""
    return torch.stack([observed_units(model, end, stamp, torch.isfinite(stamp)) for stamp in flux])


def pair_views(model: Model, pairs: Pairs, device: torch.device) -> Views | None:
    """What the network is told of pairs in both directions; None if it is told nothing."""
    views = views_of(model.card, pairs)
    return None if views is None else views.to(device)
