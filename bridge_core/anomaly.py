"""Anomaly scores of sources: how hard the model finds it to reconcile the two ends.

That of AS-Bridge, midpoint fusion: the image of the catalog's end (Euclid) is noised part of the way towards the other
(LSST), x_t at an early t, so that it carries both; then K reconstructions are drawn down to it. What none of them
reproduces is anomalous: per pixel the smallest squared error over K, summed and divided by the flux sum, on the
catalog's side only (AS-Bridge, sec. 3.3).
And the lens score of `bridge_core.residuals` and `bridge_core.discriminant`, where the checkpoint is calibrated for it:
it takes a tenth of the network calls, so all sources get it, and only those that it puts in front are reconstructed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from surveybridge.bridge_core.batches import balanced
from surveybridge.bridge_core.context import Views, row_numbers
from surveybridge.bridge_core.discriminant import Discriminant
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.metrics import unit_range
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.patches import cut
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.residuals import Asked, Cutouts, measure
from surveybridge.bridge_core.sampler import bridge_steps, draw, sample, step_at, window_noise
from surveybridge.bridge_core.scene import Scene, cut_context, observed_units, tell
from surveybridge.bridge_core.settings import Scoring
from surveybridge.bridge_core.spans import span
from surveybridge.bridge_core.stretch import Stretch
from surveybridge.bridge_core.translate import START
from surveybridge.kernels.accumulate import accumulate

MIN_VALID = 0.2
"""A cutout with a smaller share of pixels usable in both surveys has no score (NaN)."""
GROUP = 64
"""Sources whose reconstructions are held at a time, in whole batches: 2 MB each while they are compared."""
SOURCES = "sources"
"""Span in which the network looks at sources, once all is known that a tile's have in common."""
MIDPOINT_STREAM = 2
ANCESTRAL_STREAM = 3


class AnomalyScore(NamedTuple):
    """Score of each of N cutouts.

    err: mean over pixels of the smallest error (over K) of the channels' mean; map: [N, H, W] of the same;
    norm: per channel the summed smallest error over the summed flux, then the channels' mean: the published score.
    """

    err: Tensor
    map: Tensor
    norm: Tensor


def anomaly_score(
    samples: Tensor, truth: Tensor, bounds: tuple[float, float] = (-1.0, 1.0), valid: Tensor | None = None
) -> AnomalyScore:
    """Published anomaly score of reconstructions.

    Parameters
    ----------
    samples
        [K, N, C, H, W] in network units.
    truth
        [N, C, H, W].
    bounds
        Network units that map to [0, 1].
    valid
        bool [N, 1, H, W]; other pixels count neither as error nor as flux.
    """
    x, y = unit_range(samples, bounds), unit_range(truth, bounds)
    weight = torch.ones_like(y[:, :1]) if valid is None else valid.to(y.dtype)
    smallest_map = ((x - y) ** 2 * weight).mean(2).amin(0)
    err = smallest_map.sum((1, 2)) / weight.sum((1, 2, 3)).clamp(min=1)
    least = accumulate(x.transpose(0, 1), y).least
    assert least is not None
    norm = (least * weight).sum((2, 3)) / ((y * weight).sum((2, 3)) + 1e-8)
    return AnomalyScore(err, smallest_map, norm.mean(1))


def jackknife_std(samples: Tensor, truth: Tensor, bounds: tuple[float, float], valid: Tensor | None = None) -> Tensor:
    """Jackknife standard deviation of the score over its K reconstructions, float64 [N]; arguments as `anomaly_score`.

    sqrt((K - 1) / K sum_k (score without k - their mean)^2), Efron & Stein 1981; K at least 2.
    """
    k = len(samples)
    without = torch.stack(
        [
            anomaly_score(torch.cat([samples[:j], samples[j + 1 :]]), truth, bounds, valid).norm.double()
            for j in range(k)
        ]
    )
    return ((k - 1) / k * ((without - without.mean(0)) ** 2).sum(0)).sqrt()


class SourceScores(NamedTuple):
    """Scores of N sources, and the K reconstructions behind them where they were made.

    score, score_std: float64 [N], the lens score and its standard error over the noises, or AS-Bridge's score and its
    jackknife standard deviation where the checkpoint has no discriminant; false_alarm: float64 [N], share of regular
    objects of like flux and colour with a higher lens score, NaN without one; reconstructed: bool [N]; and, NaN for
    sources that were not, published: float64 [N], AS-Bridge's score; mean: float32 [N, B, S, S] in the unit of the
    catalog's end, of the reconstructions; error: likewise, the signed residual of the closest one at each pixel.
    """

    score: Tensor
    score_std: Tensor
    false_alarm: Tensor
    reconstructed: Tensor
    published: Tensor
    mean: Tensor
    error: Tensor


class LensScores(NamedTuple):
    """Lens score of N sources, its standard error over the noises (NaN with one), false-alarm rate; float64 [N]."""

    score: Tensor
    error: Tensor
    false_alarm: Tensor


class Reconstructions(NamedTuple):
    """What the reconstructions of N sources say; as in `SourceScores`.

    spread: float64 [N], the jackknife standard deviation of `published`; None where nobody asked.
    """

    published: Tensor
    spread: Tensor | None
    mean: Tensor
    error: Tensor


def score_sources(
    model: Model,
    observed: Scene,
    wanted: Scene,
    centres: list[tuple[int, int]],
    how: Scoring = Scoring(),
) -> SourceScores:
    """Score sources of a tile.

    Parameters
    ----------
    observed, wanted
        Both ends of the direction that is scored (`Problem.scored`), on one grid.
    centres
        Global (y, x) pixel of each source.
    """
    direction = scored_direction(model)
    condition = observed_units(model, direction.observed, observed.flux, observed.valid)
    target = observed_units(model, direction.wanted, wanted.flux, wanted.valid)
    usable = (wanted.valid.all(0) & observed.valid.all(0))[None]
    told = both_ways(model, direction, observed, wanted)
    half = how.size // 2
    corners = [(y - half, x - half) for y, x in centres]

    def cutouts(index: Sequence[int]) -> Cutouts:
        some = [corners[i] for i in index]
        x1, x0, valid = (cut(image, some, observed.origin, how.size) for image in (condition, target, usable))
        return Cutouts(x1, x0, valid, some, cut_views(told, some, observed.origin, how.size))

    with span(SOURCES):
        return _in_two_stages(model, cutouts, len(corners), how)


def score_windows(model: Model, cutouts: Cutouts, how: Scoring) -> SourceScores:
    """Score the sources in the middle of some cutouts."""
    side = cutouts.x0.shape[-1]
    return _in_two_stages(model, cutouts.rows, len(cutouts.corners), replace(how, size=side))


def _in_two_stages(
    model: Model, cutouts: Callable[[Sequence[int]], Cutouts], number: int, how: Scoring
) -> SourceScores:
    """Give every source its lens score, and reconstruct those that it puts in front.

    Which these are is a function of the source alone, so that it does not depend on what else a tile or a run holds.
    `cutouts` returns those of some of the sources, by their numbers.
    """
    direction, discriminant = scored_direction(model), model.card.discriminant
    score, spread, false_alarm, published = (torch.full((number,), torch.nan, dtype=torch.float64) for _ in range(4))
    known = torch.ones(number, dtype=torch.bool)
    chosen = list(range(number))
    if discriminant is not None:
        for some in _groups(chosen, how):
            part = cutouts(some)
            known[some] = _is_known(part)
            score[some], spread[some], false_alarm[some] = lens_score(model, discriminant, part, how)
        if how.reconstruct < 1:
            chosen = torch.nonzero(known & (false_alarm <= how.reconstruct)).flatten().tolist()
    mean = torch.full((number, len(direction.wanted.bands), how.size, how.size), torch.nan)
    error = mean.clone()
    reconstructed = torch.zeros(number, dtype=torch.bool)
    reconstructed[chosen] = True
    for some in _groups(chosen, how):
        part = cutouts(some)
        known[some] = _is_known(part)
        found = reconstruct(model, part, how, spread=discriminant is None)
        published[some], mean[some], error[some] = found.published, found.mean, found.error
        if found.spread is not None:
            score[some], spread[some] = found.published, found.spread
    score, spread, false_alarm, published = (
        values.masked_fill(~known, torch.nan) for values in (score, spread, false_alarm, published)
    )
    return SourceScores(score, spread, false_alarm, reconstructed, published, mean, error)


def _groups(sources: list[int], how: Scoring) -> list[list[int]]:
    """Sources that are held at a time: as many in each group as can be, and no more than fill some batches."""
    return [sources[some] for some in balanced(len(sources), how.batch * math.ceil(GROUP / how.batch))]


def _is_known(cutouts: Cutouts) -> Tensor:
    """Whether enough is seen of sources, bool [N]; with little left the flux sum vanishes, and any score comes out."""
    return (cutouts.valid.float().mean((1, 2, 3)) >= MIN_VALID).cpu()


def both_ways(model: Model, direction: Direction, observed: Scene, wanted: Scene) -> Views | None:
    """What the network is told of a tile in both directions; None if it is told nothing."""
    there = tell(model, direction, observed, wanted.conditions)
    back = tell(model, model.card.problem.to(direction.observed.name), wanted, observed.conditions)
    if there is None or back is None:
        return None
    return Views(back, there) if direction.index else Views(there, back)


def cut_views(views: Views | None, corners: list[tuple[int, int]], origin: tuple[int, int], size: int) -> Views | None:
    """The views of windows of a tile."""
    if views is None:
        return None
    first, second = (cut_context(view, corners, origin, size) for view in views)
    assert first is not None and second is not None
    return Views(first, second)


def scored_direction(model: Model) -> Direction:
    """The direction in which objects are scored; refused for a problem that makes maps only."""
    direction = model.card.problem.scored
    if direction is None:
        raise BridgeError(
            f"problem {model.card.problem.name} names no catalog, so it makes maps only; name the end on which objects "
            "are found in its file, and train again"
        )
    return direction


def reconstruct(model: Model, cutouts: Cutouts, how: Scoring, *, spread: bool) -> Reconstructions:
    """Draw K reconstructions of the sources in the middle of some cutouts, and compare them with what is there."""
    direction = scored_direction(model)
    x1, x0, valid, corners, _ = cutouts
    k, n = how.samples, len(corners)
    steps = reconstruction_steps(model, how)
    rows = [(i, j) for i in range(n) for j in range(k)]
    drawn = []
    for some in balanced(len(rows), how.batch):
        part = rows[some]
        index = row_numbers([i for i, _ in part], x0.device)
        times = torch.full((len(part),), steps[0], device=x0.device)
        z = draw(window_noise(how.seed, MIDPOINT_STREAM, part, corners, x0.device), START, x0[index])
        start = model.card.bridge.q_sample(x0[index], x1[index], times, z)
        drawn.append(
            sample(
                model,
                x1[index],
                direction,
                steps,
                start=start,
                noise=window_noise(how.seed, ANCESTRAL_STREAM, part, corners, x0.device),
                eta=how.eta,
                order=how.order,
                precision=how.precision,
                context=cutouts.context(direction, index),
            )
        )
    samples = torch.cat(drawn).unflatten(0, (n, k)).transpose(0, 1)
    bounds = score_bounds(model)
    flux = direction.wanted.inverse(samples)
    signed = direction.wanted.inverse(x0) - flux
    error = signed.gather(0, signed.abs().argmin(0, keepdim=True))[0]
    hole = ~valid
    return Reconstructions(
        anomaly_score(samples, x0, bounds, valid).norm.double().cpu(),
        jackknife_std(samples, x0, bounds, valid).cpu() if spread else None,
        flux.mean(0).masked_fill(hole, torch.nan).cpu(),
        error.masked_fill(hole, torch.nan).cpu(),
    )


def reconstruction_steps(model: Model, how: Scoring) -> list[int]:
    """Steps of a reconstruction, one network call each."""
    return bridge_steps(model.card.bridge, step_at(model.card.bridge, how.midpoint), how.steps)


def lens_score(model: Model, discriminant: Discriminant, cutouts: Cutouts, how: Scoring) -> LensScores:
    """Compare the residuals of both ends around the sources in the middle of some cutouts with ordinary ones."""
    asked = Asked(discriminant.sigma, discriminant.draws, how.seed, how.batch, how.precision)
    measured = measure(model, cutouts, asked)
    each = torch.from_numpy(discriminant.score(*measured))
    score = torch.from_numpy(discriminant.score(measured.features.mean(0), *measured[1:]))
    error = each.std(0) / math.sqrt(len(each)) if len(each) > 1 else torch.full_like(score, torch.nan)
    return LensScores(score, error, torch.from_numpy(discriminant.false_alarm(score.numpy())))


def score_bounds(model: Model) -> tuple[float, float]:
    """Network units that stand for [0, 1] in the score: the clamp of published weights, else sky to 1000 softenings."""
    wanted = scored_direction(model).wanted
    if model.card.clamp is not None or not isinstance(wanted.stretch, Stretch):
        return model.card.clamp or (-1.0, 1.0)
    return 0.0, wanted.stretch.unit(1000.0, wanted.bands[0])
