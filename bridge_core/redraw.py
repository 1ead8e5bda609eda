"""The samples behind a translated tile, drawn again: for as little of the network's work as their bits allow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from surveybridge.bridge_core.conditions import Conditions
from surveybridge.bridge_core.consistency import Agreement, Consistency
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.patches import blend, cut
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.scene import Scene, Seen, cut_context, look
from surveybridge.bridge_core.settings import PatchGrid, Sampling, WholeTile
from surveybridge.bridge_core.translate import Posterior, agreement_of, moments, whole_samples, window_samples


def redraw_tile(
    model: Model,
    direction: Direction,
    scene: Scene,
    how: Sampling,
    region: tuple[int, int, int, int],
    wanted: Conditions | None = None,
    consistency: Consistency | None = None,
) -> tuple[Posterior, Tensor]:
    """The samples that `translate_tile` took its moments of, over a part of the core.

    The network sees the very batches that it saw then, so on the same machine every bit is the same. Batches without
    a patch of the region are left out; of a tile that is one window the network sees all again, and only the region is
    kept.

    Parameters
    ----------
    model, direction, scene, how, wanted, consistency
        As `translate_tile` was given them.
    region
        (y0, y1, x0, x1) in array pixels, inside the core.

    Returns
    -------
    Posterior
        As `translate_tile` has it, cut to the region; `windows` are those of the region.
    Tensor
        float32 [K, B, h, w] in the wanted endpoint's unit: each sample, its patches blended by the weights of the mean,
        so that the mean over K is the posterior's. Where patches overlap their samples average, so that the scatter
        over K may lie below the posterior's `std`, which does not shrink.
    """
    seen = look(model, direction, scene, how, wanted=wanted)
    (y0, y1, x0, x1), core, origin = region, scene.core, scene.origin
    box = (origin[0] + y0, origin[0] + y1, origin[1] + x0, origin[1] + x1)
    coverage = seen.coverage[y0 - core[0] : y1 - core[0], x0 - core[2] : x1 - core[2]]
    bands, stretch = direction.wanted.bands, direction.wanted.fitted
    if not (coverage > 0).any():
        nothing = torch.full((how.samples, len(bands), *coverage.shape), torch.nan)
        return Posterior(nothing[0], nothing[0], coverage, 0), nothing
    # where light agrees, what lies around the core decides too, whatever the region is
    agreement = agreement_of(seen, how, consistency, scene)
    if isinstance(how.patches, WholeTile):
        found = _of_whole(model, direction, seen, how, box, agreement)
    else:
        found = _of_patches(model, direction, seen, how, box)
    mean, std = torch.stack(stretch.summary(found.mean, found.std, bands)).cpu()
    each = stretch.summary(found.samples, torch.zeros_like(found.samples), bands)[0].cpu()
    posterior = Posterior.of(mean, std, coverage, found.windows)
    return posterior, each.masked_fill(coverage <= 0, torch.nan)


class _Found(NamedTuple):
    """What the stretch averages, over a region: mean and std [M, h, w], samples [K, M, h, w]; and number of windows."""

    mean: Tensor
    std: Tensor
    samples: Tensor
    windows: int


def _of_whole(
    model: Model,
    direction: Direction,
    seen: Seen,
    how: Sampling,
    box: tuple[int, int, int, int],
    agreement: Agreement | None,
) -> _Found:
    """Of the tile as one window: after some steps a pixel has seen all of it, so nothing of it can be left out."""
    (y0, y1, x0, x1), (top, _, left, _) = box, seen.box
    there = np.s_[..., y0 - top : y1 - top, x0 - left : x1 - left]
    samples = torch.cat([part[there].clone() for part in whole_samples(model, direction, seen, how, agreement)], 1)
    mean, variance = moments(samples)
    return _Found(mean[0], variance[0].sqrt(), samples[0], 1)


def _of_patches(
    model: Model, direction: Direction, seen: Seen, how: Sampling, box: tuple[int, int, int, int]
) -> _Found:
    """Of the patches that touch the region, blended."""
    grid, (y0, y1, x0, x1) = how.patches, box
    assert isinstance(grid, PatchGrid)
    touching = set(grid.windows((y1 - y0, x1 - x0), (y0, x0), (0, y1 - y0, 0, x1 - x0)))
    corners: list[tuple[int, int]] = []
    drawn = []
    for i in range(0, len(seen.live), how.group):
        group = seen.live[i : i + how.group]
        here = [p for p, corner in enumerate(group) if corner in touching]
        if here:
            corners += [group[p] for p in here]
            windows = cut(seen.x1, group, seen.origin, grid.size)
            context = cut_context(seen.context, group, seen.origin, grid.size)
            drawn.append(window_samples(model, direction, windows, group, how, only=here, context=context))
    samples = direction.wanted.fitted.averaged(torch.cat(drawn), direction.wanted.bands)
    mean, std = blend(corners, *moments(samples), grid, box)
    flat = samples.flatten(1, 2)  # to the blend a sample is one more band
    blended, _ = blend(corners, flat, flat.new_zeros(()).expand_as(flat), grid, box)
    return _Found(mean, std, blended.unflatten(0, (how.samples, -1)), len(corners))
