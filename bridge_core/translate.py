"""Translate a tile: windows -> K samples each -> posterior mean and standard deviation in its unit, blended.

A tile that is one window has nothing to blend; then a batch of samples is drawn after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from surveybridge.bridge_core.conditions import Conditions
from surveybridge.bridge_core.consistency import Agreement, Consistency
from surveybridge.bridge_core.context import Context, row_numbers
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import Card, Model
from surveybridge.bridge_core.patches import blend, cut
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.sampler import (
    begin,
    bridge_end,
    draw,
    end_then_rho_steps,
    rho_steps,
    sample,
    starts_without_x0,
    window_noise,
)
from surveybridge.bridge_core.scene import Scene, Seen, cut_context, look
from surveybridge.bridge_core.settings import PatchGrid, Sampling, WholeTile
from surveybridge.bridge_core.sharpening import about_both_means, sharp_samples
from surveybridge.bridge_core.spans import span
from surveybridge.bridge_core.stretch import departure
from surveybridge.kernels.accumulate import accumulate
from surveybridge.kernels.sky_noise import SkyNoise

START = 2**16 - 1  # noise step of the start, which no update uses


@dataclass(frozen=True)
class Posterior:
    """Translated core of a tile.

    Parameters
    ----------
    mean, std
        float32 [B, H, W] in the wanted endpoint's unit, NaN where the observed one is masked.
    coverage
        float32 [H, W], share of observed input within the seeing; 0 where masked.
    windows
        Number of windows that were translated.
    """

    mean: Tensor
    std: Tensor
    coverage: Tensor
    windows: int

    @classmethod
    def of(cls, mean: Tensor, std: Tensor, coverage: Tensor, windows: int) -> Posterior:
        """Mask what nothing was observed of."""
        hole = coverage <= 0
        return cls(mean.masked_fill(hole, torch.nan), std.masked_fill(hole, torch.nan), coverage, windows)


@dataclass(frozen=True)
class Opening:
    """The first step of some windows, which all samples of a window have in common.

    state: float32 [P, C, H, W], where they start; answer: [P, C, H, W], what the network says of it.
    """

    state: Tensor
    answer: Tensor

    def rows(self, index: Tensor) -> Opening:
        """The same of windows by their number, int64 [N], which may come again; of a single one it is no copy."""
        if len(self.state) == 1:
            return Opening(*(one.expand(len(index), -1, -1, -1) for one in (self.state, self.answer)))
        return Opening(self.state[index], self.answer[index])


def translate_tile(
    model: Model,
    direction: Direction,
    scene: Scene,
    how: Sampling = Sampling(),
    corners: Sequence[tuple[int, int]] | None = None,
    wanted: Conditions | None = None,
    consistency: Consistency | None = None,
) -> Posterior:
    """Posterior of the wanted endpoint over the core of a tile.

    Parameters
    ----------
    model
        Trained on the same grid.
    direction
        Of the model's problem.
    scene
        The observed endpoint.
    how
        Samples, steps, seed, and through which windows the network sees the tile.
    corners
        Patches in the order to compute them; by default all that touch the core. The result does not depend on it.
    wanted
        How the wanted endpoint is to be observed; by default as those of the training typically were.
    consistency
        How its light is brought to agree with what was observed, on a tile that is seen as one window; by default it
        stays as the samples have it.

    Raises
    ------
    BridgeError
        If a network with statistics of the window is to see a whole tile, the model is a generator, or no samples are
        asked for; or light is to agree in patches.
    """
    if how.samples == 0:
        raise BridgeError("samples 0: a translation by samples needs at least 2; maps without are of `maps.map_tile`")
    if model.card.generation is not None:
        raise BridgeError(
            f"checkpoint {model.card.name} makes images from noise and translates none; choose another checkpoint"
        )
    with span("prepare"):
        seen = look(model, direction, scene, how, corners, wanted)
    coverage, end = seen.coverage, direction.wanted
    if not seen.live:
        mean = std = torch.full((len(end.bands), *coverage.shape), torch.nan)
        return Posterior.of(mean, std, coverage, 0)
    agreement = agreement_of(seen, how, consistency, scene)
    if isinstance(how.patches, WholeTile):
        mean, std = _whole_moments(model, direction, seen, how, agreement)
    else:
        mean, std = _blended_moments(model, direction, seen, how)
    mean, std = torch.stack(end.fitted.summary(mean, std, end.bands)).cpu()  # the device is waited for once
    return Posterior.of(mean, std, coverage, len(seen.live))


def agreement_of(seen: Seen, how: Sampling, consistency: Consistency | None, scene: Scene) -> Agreement | None:
    """Return what the light of a tile is to agree with; None where it stays as the network has it.

    Raises
    ------
    BridgeError
        If the windows are patches, or a tile does not reach so far beyond its core.
    """
    if consistency is None:
        return None
    margin, windows = consistency.margin, how.patches
    if not isinstance(windows, WholeTile):
        raise BridgeError("light is brought to agree in whole tiles, not in patches; leave consistency out")
    if margin > windows.halo:
        raise BridgeError(
            f"light that is to agree needs {margin} pixels around a core, and a window has {windows.halo}; leave "
            "consistency out"
        )
    with span("consistency"):
        return consistency.to(scene.flux.device).observe(scene.framed(grown(seen.box, margin)))


def grown(box: tuple[int, int, int, int], margin: int) -> tuple[int, int, int, int]:
    """Return a box (y0, y1, x0, x1) with a margin around it."""
    y0, y1, x0, x1 = box
    return y0 - margin, y1 + margin, x0 - margin, x1 + margin


def _blended_moments(model: Model, direction: Direction, seen: Seen, how: Sampling) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the core, of what the stretch averages, from all live patches."""
    assert isinstance(how.patches, PatchGrid)
    groups = [seen.live[i : i + how.group] for i in range(0, len(seen.live), how.group)]
    tile = (seen.origin, how, seen.context)
    parts = [window_moments(model, direction, seen.x1, group, *tile) for group in groups]
    with span("blend"):
        mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
        return blend(seen.live, mean, variance, how.patches, seen.box)


def _whole_moments(
    model: Model, direction: Direction, seen: Seen, how: Sampling, agreement: Agreement | None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the core, as `_blended_moments`, a batch of samples after the other."""
    found, count = None, 0
    for samples in whole_samples(model, direction, seen, how, agreement):
        with span("moments"):
            found = accumulate(samples, since=found, count=count)
        count += samples.shape[1]
    assert found is not None
    return found.mean[0], (found.m2[0] / (how.samples - 1)).sqrt()


def whole_samples(
    model: Model,
    direction: Direction,
    seen: Seen,
    how: Sampling,
    agreement: Agreement | None = None,
) -> Iterator[Tensor]:
    """Draw the samples of a tile's core, which is seen as one window, a batch after the other.

    Parameters
    ----------
    seen
        Of `look`, with the one window live.
    agreement
        What the light of each sample is brought to agree with; by default it stays as the network has it.

    Yields
    ------
    Tensor
        float32 [1, k, M, h, w] of what the wanted endpoint's stretch averages (`Stretch.averaged`).
    """
    end, (top, left) = direction.wanted, seen.origin
    y0, y1, x0, x1 = seen.box if agreement is None else grown(seen.box, agreement.how.margin)
    batch = how.windows_a_call(seen.x1.shape[-2] * seen.x1.shape[-1])
    sampler = (how, sampler_steps(model.card, how))
    opening = opening_of(model, direction, seen.x1[None], seen.live, sampler, seen.context)
    for first in range(0, how.samples, batch):
        rows = [(0, sample) for sample in range(first, min(first + batch, how.samples))]
        drawn = _drawn(model, direction, seen.x1[None], rows, seen.live, sampler, seen.context, opening)
        part = drawn[..., y0 - top : y1 - top, x0 - left : x1 - left]
        if agreement is not None:
            with span("consistency"):
                part = agreement.samples(part, first, how.seed, direction.index)
        yield end.fitted.averaged(part, end.bands)[None]


def recalibrated(model: Model, direction: Direction, posterior: Posterior) -> Posterior:
    """Return a posterior with the standard deviations that the recalibration in the card gives; means stay.

    Raises
    ------
    BridgeError
        Where the card has none, or none of this direction.
    """
    factors = model.card.calibrated(direction).factors(posterior.mean.numpy(), direction)
    return replace(posterior, std=(posterior.std.double() * torch.from_numpy(factors)).float())


def recalibrated_samples(model: Model, direction: Direction, mean: Tensor, samples: Tensor) -> Tensor:
    """Return samples [K, B, H, W] that depart from their mean [B, H, W] by the factors of their standard deviation."""
    factors = torch.from_numpy(model.card.calibrated(direction).factors(mean.numpy(), direction)).float()
    stretch = direction.wanted.stretch
    return mean + departure(stretch, factors * departure(stretch, samples - mean))


def window_moments(
    model: Model,
    direction: Direction,
    x1: Tensor,
    corners: Sequence[tuple[int, int]],
    origin: tuple[int, int],
    how: Sampling,
    context: Context | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over K samples of some windows of a tile, each float32 [P, M, size, size].

    They are those of what the wanted endpoint's stretch averages (`Stretch.averaged`): a flux itself. `context` is that
    of the tile.
    """
    assert isinstance(how.patches, PatchGrid)
    size = how.patches.size
    windows, told = cut(x1, corners, origin, size), cut_context(context, corners, origin, size)
    samples = window_samples(model, direction, windows, corners, how, context=told)
    return moments(direction.wanted.fitted.averaged(samples, direction.wanted.bands))


def moments(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over K of samples, float32 [P, K, ...]."""
    with span("moments"):
        found = accumulate(samples)
        return found.mean, found.m2 / (samples.shape[1] - 1)


def window_samples(
    model: Model,
    direction: Direction,
    windows: Tensor,
    corners: Sequence[tuple[int, int]],
    how: Sampling,
    only: Collection[int] | None = None,
    context: Context | None = None,
) -> Tensor:
    """K samples of the wanted endpoint in some windows.

    Parameters
    ----------
    windows
        float32 [P, C, H, W], the observed endpoint in network units.
    corners
        Global (y, x) of each window's first pixel, for the noise.
    only
        Indices of the windows to return, by default all. The network sees the same batches, or none of a batch.
    context
        What the network is told of the windows.

    Returns
    -------
    Tensor
        float32 [P, K, B, H, W] in the wanted endpoint's unit.
    """
    rows = [(p, k) for p in range(len(corners)) for k in range(how.samples)]
    wanted = set(range(len(corners)) if only is None else only)
    draws = []
    steps = sampler_steps(model.card, how)
    opening = opening_of(model, direction, windows, corners, (how, steps), context)
    batch = how.windows_a_call(windows.shape[-2] * windows.shape[-1])
    for i in range(0, len(rows), batch):
        part = rows[i : i + batch]
        kept = [n for n, (p, _) in enumerate(part) if p in wanted]
        if not kept:
            continue
        flux = _drawn(model, direction, windows, part, corners, (how, steps), context, opening)
        draws.append(flux if len(kept) == len(part) else flux[kept])
    drawn = torch.cat(draws).unflatten(0, (len(wanted), how.samples))
    if model.card.bridge.kind != "seeing":
        return drawn
    # windows one by one: then their bits do not depend on which others are wanted
    once = (how, steps[:1])
    answers = [_drawn(model, direction, windows, [(window, 0)], corners, once, context) for window in sorted(wanted)]
    return about_both_means(drawn, torch.cat(answers))


def opening_of(
    model: Model,
    direction: Direction,
    windows: Tensor,
    corners: Sequence[tuple[int, int]],
    sampler: tuple[Sampling, list[int]],
    context: Context | None = None,
) -> Opening | None:
    """The first step of all windows, from the noise of their first sample; None where each sample has its own.

    Arguments are those of `window_samples`, and the sampler's steps.

    Raises
    ------
    BridgeError
        If samples cannot share it with this checkpoint and these steps.
    """
    how, steps = sampler
    if not how.shared_start:
        return None
    if not shares_start(model.card, how):
        raise BridgeError(
            f"checkpoint {model.card.name}: samples of {len(steps)} steps from {steps[0]} of its table cannot share a "
            "start: there is one step alone, or the first transition keeps something of it; leave shared_start out"
        )
    batch = how.windows_a_call(windows.shape[-2] * windows.shape[-1])
    states, answers = [], []
    for i in range(0, len(corners), batch):
        some = slice(i, i + batch)
        rows = [(window, 0) for window in range(len(corners))[some]]
        x1, told = windows[some], context and context.rows(some)
        noise = window_noise(how.seed, direction.index, rows, corners, windows.device)
        with span("start"):
            states.append(begin(model.card, x1, steps[0], draw(noise, START, x1)))
        with span("network"):
            answers.append(model.predict(states[-1], x1, steps[0], direction, how.precision, told))
    return Opening(torch.cat(states), torch.cat(answers))


def shares_start(card: Card, how: Sampling) -> bool:
    """Whether all samples of a window may begin with the same noise.

    So where the start has nothing of x0: what comes of it then is the network's answer alone, E[x0 | x1], whatever the
    noise was, and the first transition adds noise of each sample's own.
    """
    steps = sampler_steps(card, how)
    return how.samples > 0 and len(steps) > 1 and not card.end_noise and starts_without_x0(card, steps[0])


def with_shared_start(card: Card, how: Sampling) -> Sampling:
    """Return how a run that begins now samples: with one start for all samples, where they may share it."""
    return replace(how, shared_start=shares_start(card, how))


def _drawn(
    model: Model,
    direction: Direction,
    windows: Tensor,
    rows: Sequence[tuple[int, int]],
    corners: Sequence[tuple[int, int]],
    sampler: tuple[Sampling, list[int]],
    context: Context | None,
    opening: Opening | None = None,
) -> Tensor:
    """One batch of (window, sample), float32 [N, B, H, W] in the unit; arguments as `window_samples`, and its steps."""
    how, steps = sampler
    index = row_numbers([window for window, _ in rows], windows.device)
    x1 = windows[index]
    noise = window_noise(how.seed, direction.index, rows, corners, windows.device)
    begun = opening and opening.rows(index)
    u = network_units(model, x1, direction, steps, noise, how, context and context.rows(index), begun)
    return direction.wanted.inverse(u)


def network_units(
    model: Model,
    x1: Tensor,
    direction: Direction,
    steps: Sequence[int],
    noise: SkyNoise,
    how: Sampling,
    context: Context | None,
    opening: Opening | None = None,
) -> Tensor:
    """One sample of each window x1 [N, C, H, W], in network units, from its `opening` if it has one.

    The other arguments are those of `sample`.
    """
    if model.card.bridge.kind == "seeing":
        return sharp_samples(model, x1, direction.index, steps, noise, context=context, precision=how.precision)
    with span("start"):
        end = bridge_end(model.card, x1, noise)
        start = opening.state if opening else begin(model.card, end, steps[0], draw(noise, START, x1))
    return sample(
        model,
        x1,
        direction,
        steps,
        start=start,
        noise=noise,
        eta=how.eta,
        order=how.order,
        renoise=how.from_end,
        precision=how.precision,
        context=context,
        end=end,
        answer=opening.answer if opening else None,
    )


def sampler_steps(card: Card, how: Sampling) -> list[int]:
    """Table indices of the network evaluations of a sample."""
    if card.bridge.num_steps == 1:  # a regression
        return [0]
    if card.bridge.kind == "seeing":  # even in the standard deviation of the noise
        return rho_steps(card.bridge, how.steps, 1.0, rho=1.0)
    return (end_then_rho_steps if how.from_end else rho_steps)(card.bridge, how.steps, how.sigma_max)
