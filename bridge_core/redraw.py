"""The samples behind a translated tile, drawn again: for as little of the network's work as their bits allow."""

from __future__ import annotations

import torch
from torch import Tensor

from surveybridge.bridge_core.conditions import Conditions
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.patches import blend, cut
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.translate import Posterior, Scene, cut_context, look, moments, window_samples


def redraw_tile(
    model: Model,
    direction: Direction,
    scene: Scene,
    how: Sampling,
    region: tuple[int, int, int, int],
    wanted: Conditions | None = None,
) -> tuple[Posterior, Tensor]:
    """The samples that `translate_tile` took its moments of, over a part of the core.

    The network sees the very batches that it saw then, so on the same machine every bit is the same; batches without
    a window of the region are left out.

    Parameters
    ----------
    model, direction, scene, how, wanted
        As `translate_tile` was given them.
    region
        (y0, y1, x0, x1) in array pixels, inside the core.

    Returns
    -------
    Posterior
        As `translate_tile` has it, cut to the region; `windows` are those of the region.
    Tensor
        float32 [K, B, h, w] in the wanted endpoint's unit: each sample, its windows blended by the weights of the mean,
        so that the mean over K is the posterior's. Where windows overlap their samples average, so that the scatter
        over K may lie below the posterior's `std`, which does not shrink.
    """
    seen = look(model, direction, scene, how, wanted=wanted)
    (y0, y1, x0, x1), core, origin = region, scene.core, scene.origin
    touching = set(how.patches.windows((scene.valid.shape[1], scene.valid.shape[2]), origin, region))
    box = (origin[0] + y0, origin[0] + y1, origin[1] + x0, origin[1] + x1)
    coverage = seen.coverage[y0 - core[0] : y1 - core[0], x0 - core[2] : x1 - core[2]]
    corners: list[tuple[int, int]] = []
    drawn = []
    for i in range(0, len(seen.live), how.group):
        group = seen.live[i : i + how.group]
        here = [p for p, corner in enumerate(group) if corner in touching]
        if here:
            corners += [group[p] for p in here]
            size = how.patches.size
            windows, context = cut(seen.x1, group, origin, size), cut_context(seen.context, group, origin, size)
            drawn.append(window_samples(model, direction, windows, group, how, only=here, context=context))
    bands, stretch = direction.wanted.bands, direction.wanted.fitted
    if not drawn:
        nothing = torch.full((how.samples, len(bands), *coverage.shape), torch.nan)
        return Posterior(nothing[0], nothing[0], coverage, 0), nothing
    samples = stretch.averaged(torch.cat(drawn), bands)
    mean, std = stretch.summary(*blend(corners, *moments(samples), how.patches, box), bands)
    flat = samples.flatten(1, 2)  # to the blend a sample is one more band
    blended, _ = blend(corners, flat, flat.new_zeros(()).expand_as(flat), how.patches, box)
    each = blended.unflatten(0, (how.samples, -1))
    each = stretch.summary(each, torch.zeros_like(each), bands)[0].cpu()
    posterior = Posterior.of(mean.cpu(), std.cpu(), coverage, len(corners))
    return posterior, each.masked_fill(coverage <= 0, torch.nan)
