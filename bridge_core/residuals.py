"""Residuals of each end around an object: how it departs from what the model expects, given the other end.

Far above the noise of an image the denoiser's answer is the posterior mean E[x0 | x1] itself, so one network call a
direction predicts each end from the other; best at the bridge's end, where a network can learn to begin with nothing.
The residual, observed minus predicted in network units, is averaged in rings around the object: signed by band (arcs
put light, and blue light, where none was expected; a core is fainter than the blend seen by LSST promised) and squared
over the bands; and of each ring the highest and lowest place is taken after smoothing, since an arc fills a part of it.
`bridge_core.discriminant` makes the lens score of all that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from surveybridge.bridge_core.apertures import aperture
from surveybridge.bridge_core.batches import balanced
from surveybridge.bridge_core.context import Context, Views, row_numbers, told_conditions
from surveybridge.bridge_core.correlate import gaussian_blur
from surveybridge.bridge_core.discriminant import Measured
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Direction, Problem
from surveybridge.bridge_core.sampler import begin, denoise, draw, starts_without_x0, step_at, window_noise
from surveybridge.bridge_core.settings import Precision
from surveybridge.kernels.transfer import to_device

RINGS_ARCSEC = (0.0, 0.3, 0.7, 1.3, 2.2, 3.2)
"""Edges of the rings; the third and fourth hold the arcs of most galaxy-scale lenses."""
SMOOTHING_ARCSEC = 0.15
"""Standard deviation of the Gaussian before the highest and the lowest place are looked for: the width of an arc."""
FLUX_ARCSEC = 1.0
"""Radius of the circle in which flux and colour are measured, on the end that is not the catalog's (LSST)."""
MIN_SHARE = 0.25
"""A ring with a smaller share of usable pixels is not known (NaN)."""
RESIDUAL_STREAM = 4
_RINGS = len(RINGS_ARCSEC) - 1
_KINDS = ("signed", "squared", "highest", "lowest")


class Asked(NamedTuple):
    """The noise level and number of noises for the network, as in `Discriminant`: 2 ``draws`` calls per object."""

    sigma: float
    draws: int
    seed: int = 0
    batch: int = 16
    precision: Precision = "bfloat16"


class Cutouts(NamedTuple):
    """Both ends around N sources, in network units.

    x1, x0: float32 [N, C, H, W], the observed end and the one on which objects are found; valid: bool [N, 1, H, W],
    usable in both; corners: global (y, x) of each cutout's first pixel, for the noise; views: what the network is told
    of them in each direction, if anything.
    """

    x1: Tensor
    x0: Tensor
    valid: Tensor
    corners: Sequence[tuple[int, int]]
    views: Views | None = None

    def context(self, direction: Direction, index: Sequence[int] | slice | Tensor) -> Context | None:
        """What the network is told of some of the cutouts in a direction."""
        return None if self.views is None else self.views[direction.index].rows(index)

    def rows(self, index: Sequence[int]) -> Cutouts:
        """Return some of the cutouts."""
        some = row_numbers(index, self.x1.device)
        views = None if self.views is None else self.views.rows(some)
        return Cutouts(self.x1[some], self.x0[some], self.valid[some], [self.corners[i] for i in some], views)


def columns(problem: Problem) -> dict[str, list[int]]:
    """Columns of `measure` by direction and by kind."""
    directions = _both(problem)
    found: dict[str, list[int]] = {name: [] for name in (*map(str, directions), *_KINDS)}
    first = 0
    for direction in directions:
        for kind in _KINDS:
            some = range(first, first + _RINGS * (1 if kind == "squared" else len(direction.wanted.bands)))
            found[str(direction)] += some
            found[kind] += some
            first = some.stop
    return found


def measure(model: Model, cutouts: Cutouts, asked: Asked) -> Measured:
    """Residuals of both directions around the objects in the middle of some cutouts."""
    bridge, problem = model.card.bridge, model.card.problem
    scored = problem.scored
    assert scored is not None, "objects are measured where a problem has a catalog"
    valid, corners, batch = cutouts.valid, cutouts.corners, asked.batch
    images = {scored.observed.name: cutouts.x1, scored.wanted.name: cutouts.x0}
    shape = (cutouts.x1.shape[-2], cutouts.x1.shape[-1])
    t, n = step_at(bridge, asked.sigma), len(corners)
    found = []
    for sample in range(asked.draws):
        columns = []
        for step, direction in enumerate(_both(problem)):
            wanted = direction.wanted
            rings = to_device(ring_masks(shape, wanted.pixel_scale), cutouts.x1.device)
            parts = []
            for some in balanced(n, batch):
                x0, x1 = images[wanted.name][some], images[direction.observed.name][some]
                rows = [(window, sample) for window in range(some.start, some.stop)]
                noise = window_noise(asked.seed, RESIDUAL_STREAM, rows, corners, x0.device)
                z = draw(noise, step, x0)
                if starts_without_x0(model.card, t):
                    x_t = begin(model.card, x1, t, z)
                else:
                    x_t = bridge.q_sample(x0, x1, torch.full((len(x0),), t, device=x0.device), z)
                context = cutouts.context(direction, some)
                residual = x0 - denoise(model, x_t, x1, t, direction, asked.precision, context)
                of_bands = wanted.planes_in(residual).double()
                smoothing = SMOOTHING_ARCSEC / wanted.pixel_scale
                parts.append(ring_features(of_bands, valid[some], rings, smoothing))
            columns.append(torch.cat(parts) if parts else torch.zeros(0, 0))
        found.append(torch.cat(columns, 1))
    flux = scored.observed.inverse(cutouts.x1).double() * valid
    circle = aperture(shape, FLUX_ARCSEC / scored.observed.pixel_scale).double()
    inside = (flux * to_device(circle, flux.device)).sum((2, 3)).clamp(min=1.0).cpu().numpy()  # in the end's unit, nJy
    colour = -2.5 * np.log10(inside[:, 0] / inside[:, -1])
    told = {} if cutouts.views is None else told_conditions(problem, cutouts.views, n)
    # a device is waited for once, not for each of them
    values = torch.stack(list(told.values())).double().cpu().numpy() if told else ()
    conditions = dict(zip(told, values, strict=True))
    return Measured(torch.stack(found).cpu().numpy(), np.log10(inside[:, -1]), colour, conditions)


def _both(problem: Problem) -> tuple[Direction, Direction]:
    """Both directions, in the order of their index: the lens score looks both ways."""
    first, second = problem.endpoints
    return problem.to(first.name), problem.to(second.name)


def ring_masks(shape: tuple[int, int], pixel_scale: float) -> Tensor:
    """Pixels of each ring of `RINGS_ARCSEC` around the middle, float64 [R, H, W] of 0 and 1."""
    height, width = shape
    y = (torch.arange(height, dtype=torch.float64) - (height - 1) / 2) * pixel_scale
    x = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2) * pixel_scale
    radius = torch.hypot(y[:, None], x[None])
    edges = torch.tensor(RINGS_ARCSEC, dtype=torch.float64)[:, None, None]
    return ((radius >= edges[:-1]) & (radius < edges[1:])).double()


def ring_features(residual: Tensor, valid: Tensor, rings: Tensor, smoothing: float) -> Tensor:
    """Mean residual of each band and ring, log mean square of each ring over the bands, and its extremes by band.

    Parameters
    ----------
    residual
        float64 [N, C, H, W].
    valid
        bool [N, 1, H, W].
    rings
        float64 [R, H, W].
    smoothing
        Standard deviation of the Gaussian before the extremes, pixels.

    Returns
    -------
    Tensor
        float64 [N, (3 C + 1) R], in the order of `columns`; NaN for a ring with too few usable pixels.
    """
    usable = valid[:, 0].double()
    count = torch.einsum("rhw,nhw->nr", rings, usable)
    known = count >= MIN_SHARE * rings.sum((1, 2)).clamp(min=1)
    count = count.where(known, torch.nan)
    kept = residual * usable[:, None]
    signed = torch.einsum("rhw,nchw->ncr", rings, kept) / count[:, None]
    squared = torch.einsum("rhw,nhw->nr", rings, (kept**2).sum(1)) / count
    smooth = gaussian_blur(kept.flatten(0, 1)[:, None], smoothing).view_as(kept)
    inside = (rings[None] * usable[:, None]).bool()[:, None]  # [N, 1, R, H, W]
    highest = smooth[:, :, None].where(inside, -torch.inf).amax((3, 4)).where(known[:, None], torch.nan)
    lowest = smooth[:, :, None].where(inside, torch.inf).amin((3, 4)).where(known[:, None], torch.nan)
    parts = (signed.flatten(1), torch.log(squared + 1e-12), highest.flatten(1), lowest.flatten(1))
    return torch.cat(parts, 1)
