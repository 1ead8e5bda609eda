"""Translate a tile: windows -> K samples each -> posterior mean and standard deviation in its unit, blended."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.bridge_core.conditions import ConditionRanges, Conditions
from surveybridge.bridge_core.context import Context, context_of, slopes
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import Card, Model
from surveybridge.bridge_core.patches import any_within, blend, cut, fill_masked, local_coverage
from surveybridge.bridge_core.physics import Seeing
from surveybridge.bridge_core.problem import Direction, Endpoint, planes_of_channels
from surveybridge.bridge_core.sampler import begin, bridge_end, draw, end_then_rho_steps, rho_steps, sample
from surveybridge.bridge_core.settings import PatchGrid, Sampling
from surveybridge.bridge_core.sharpening import PAD, sharp_samples
from surveybridge.bridge_core.spans import span
from surveybridge.bridge_core.spectral import Physics
from surveybridge.bridge_core.stretch import departure
from surveybridge.kernels.accumulate import accumulate
from surveybridge.kernels.sky_noise import SkyNoise

START = 2**16 - 1  # noise step of the start, which no update uses


@dataclass(frozen=True)
class BandBlur:
    """How a band of an image came from a sharp sky.

    Parameters
    ----------
    seeing
        From the PSF that is wanted to that of the image.
    noise_power
        Power of its noise by mode of a shape, float64 [H, W // 2 + 1], with mean 1.
    """

    seeing: Seeing
    noise_power: Callable[[tuple[int, int]], NDArray[np.float64]]


@dataclass(frozen=True)
class Scene:
    """The image of one endpoint in a tile.

    Parameters
    ----------
    flux
        float32 [B, H, W], values in the endpoint's unit.
    valid
        bool [B, H, W]; what invalid pixels hold is not read.
    origin
        Global (y, x) of the arrays' first pixel; places the windows and the noise.
    core
        (y0, y1, x0, x1) in array pixels: what the tile owns.
    psf_fwhm
        Pixels; over it the coverage is averaged.
    sigma
        float32 [B, H, W], noise of each pixel in the endpoint's unit; None where it is not known.
    conditions
        How the image was observed; None where that is not known.
    blurs
        Of each band, for a bridge of seeing; empty for others.
    """

    flux: Tensor
    valid: Tensor
    origin: tuple[int, int]
    core: tuple[int, int, int, int]
    psf_fwhm: float
    sigma: Tensor | None = None
    conditions: Conditions | None = None
    blurs: tuple[BandBlur, ...] = ()

    @property
    def core_box(self) -> tuple[int, int, int, int]:
        """The core in global pixels."""
        (y, x), (y0, y1, x0, x1) = self.origin, self.core
        return y + y0, y + y1, x + x0, x + x1


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


def translate_tile(
    model: Model,
    direction: Direction,
    scene: Scene,
    how: Sampling = Sampling(),
    corners: Sequence[tuple[int, int]] | None = None,
    wanted: Conditions | None = None,
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
        Samples, steps, seed.
    corners
        Windows in the order to compute them; by default all that touch the core. The result does not depend on it.
    wanted
        How the wanted endpoint is to be observed; by default as those of the training typically were.
    """
    with span("prepare"):
        seen = look(model, direction, scene, how, corners, wanted)
    live, coverage, end = seen.live, seen.coverage, direction.wanted
    if not live:
        mean = std = torch.full((len(end.bands), *coverage.shape), torch.nan)
        return Posterior.of(mean, std, coverage, 0)
    groups = [live[i : i + how.group] for i in range(0, len(live), how.group)]
    tile = (scene.origin, how, seen.context)
    parts = [window_moments(model, direction, seen.x1, group, *tile) for group in groups]
    with span("blend"):
        blended = blend(live, torch.cat([m for m, _ in parts]), torch.cat([v for _, v in parts]), how.patches, seen.box)
        mean, std = (moment.cpu() for moment in end.fitted.summary(*blended, end.bands))
    return Posterior.of(mean, std, coverage, len(live))


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


class Seen(NamedTuple):
    """The network's view of a tile.

    x1: input [C, H, W]; context: of the same size, as one window, or None; live: windows with anything in them;
    coverage and box of the core.
    """

    x1: Tensor
    context: Context | None
    live: list[tuple[int, int]]
    coverage: Tensor
    box: tuple[int, int, int, int]


def cut_context(
    context: Context | None, corners: Sequence[tuple[int, int]], origin: tuple[int, int], size: int
) -> Context | None:
    """The context of windows of a tile; beyond the tile nothing is known."""
    if context is None:
        return None
    return Context(cut(context.maps[0], corners, origin, size), context.vector, context.physics)


def look(
    model: Model,
    direction: Direction,
    scene: Scene,
    how: Sampling,
    corners: Sequence[tuple[int, int]] | None = None,
    wanted: Conditions | None = None,
) -> Seen:
    """Prepare a tile for the network; the arguments are those of `translate_tile`."""
    x1 = observed_units(model, direction.observed, scene.flux, scene.valid)
    origin, core, size = scene.origin, scene.core, how.patches.size
    corners = list(corners) if corners is not None else how.patches.windows((x1.shape[1], x1.shape[2]), origin, core)
    seen = any_within(scene.valid.all(0), corners, origin, size)
    live = [corner for corner, any_valid in zip(corners, seen, strict=True) if any_valid]
    y0, y1, x0, x1_ = core
    coverage = local_coverage(scene.valid, scene.psf_fwhm)[y0:y1, x0:x1_].cpu()
    return Seen(x1, tell(model, direction, scene, wanted, size), live, coverage, scene.core_box)


def tell(
    model: Model, direction: Direction, scene: Scene, wanted: Conditions | None, size: int = PatchGrid.size
) -> Context | None:
    """What the network is told of a tile, as one window of its size; None if it is told nothing.

    Arguments are those of `translate_tile`, and the side of the windows to be cut.
    """
    card = model.card
    if not card.network.conditions:
        return None
    nominal = card.conditions or ConditionRanges({})
    observed, end = direction.observed, direction.wanted
    ends = {
        observed.name: scene.conditions or Conditions.unknown(len(observed.bands)),
        end.name: wanted or nominal.nominal_of(end.name, end.bands),
    }
    channels = card.network.image_channels
    if card.bridge.kind != "seeing":
        return context_of(direction, channels, scene.sigma, scene.valid, ends)
    # the process has one noise for a tile, and no place of which nothing is known
    everywhere, noise = torch.ones_like(scene.valid), ends[observed.name].noise
    sigma = torch.tensor(noise, dtype=scene.flux.dtype, device=scene.flux.device)[:, None, None]
    told = context_of(direction, channels, sigma.expand(scene.flux.shape), everywhere, ends)
    return replace(told, physics=physics_of(card, direction, scene.blurs, noise, size).to(scene.flux.device))


def physics_of(
    card: Card, direction: Direction, blurs: Sequence[BandBlur], noise: Sequence[float], size: int
) -> Physics:
    """What lies between a sharp sky and a tile, for windows of a size.

    Parameters
    ----------
    card
        Of a `Bridge.seeing`.
    blurs
        Of each band.
    noise
        Standard deviation of the sky by band, in the observed endpoint's unit.
    """
    observed, shape = direction.observed, (size + 2 * PAD, size + 2 * PAD)
    if len(blurs) != len(observed.bands) or not all(math.isfinite(sigma) for sigma in noise):
        raise BridgeError(
            f"checkpoint {card.name} goes through the seeing of {observed.name}, but PSF or noise of a band is not "
            "known; state them at ingest, such as with --psf"
        )
    scales = [slope * sigma for slope, sigma in zip(slopes(observed), noise, strict=True)]
    transfers = [blur.seeing.log_transfer(shape) for blur in blurs]
    powers = [scale**2 * torch.from_numpy(blur.noise_power(shape)) for scale, blur in zip(scales, blurs, strict=True)]
    of_channels = planes_of_channels(len(observed.bands), card.network.image_channels)
    return Physics(
        torch.stack([transfers[band] for band in of_channels])[None],
        torch.stack([powers[band] for band in of_channels])[None],
    )


def observed_units(model: Model, observed: Endpoint, flux: Tensor, valid: Tensor) -> Tensor:
    """Values [B, H, W] -> the network's input [C, H, W]: masked pixels filled from neighbours, stretched, spread."""
    return observed.forward(fill_masked(flux, valid), model.card.network.image_channels)


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
    batch = how.windows_a_call(windows.shape[-2] * windows.shape[-1])
    for i in range(0, len(rows), batch):
        part = rows[i : i + batch]
        kept = [n for n, (p, _) in enumerate(part) if p in wanted]
        if not kept:
            continue
        index = [p for p, _ in part]
        x1 = windows[index]
        noise = window_noise(how.seed, direction.index, part, corners, windows.device)
        u = network_units(model, x1, direction, steps, noise, how, context and context.rows(index))
        flux = direction.wanted.inverse(u)
        draws.append(flux if len(kept) == len(part) else flux[kept])
    return torch.cat(draws).unflatten(0, (len(wanted), how.samples))


def network_units(
    model: Model,
    x1: Tensor,
    direction: Direction,
    steps: Sequence[int],
    noise: SkyNoise,
    how: Sampling,
    context: Context | None,
) -> Tensor:
    """One sample of each window x1 [N, C, H, W], in network units; the other arguments are those of `sample`."""
    if model.card.bridge.kind == "seeing":
        return sharp_samples(model, x1, direction.index, steps, noise, context=context, precision=how.precision)
    with span("start"):
        end = bridge_end(model.card, x1, noise)
        start = begin(model.card, end, steps[0], draw(noise, START, x1))
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
    )


def sampler_steps(card: Card, how: Sampling) -> list[int]:
    """Table indices of the network evaluations of a sample."""
    if card.bridge.num_steps == 1:  # a regression
        return [0]
    if card.bridge.kind == "seeing":  # even in the standard deviation of the noise
        return rho_steps(card.bridge, how.steps, 1.0, rho=1.0)
    return (end_then_rho_steps if how.from_end else rho_steps)(card.bridge, how.steps, how.sigma_max)


def window_noise(
    seed: int, stream: int, rows: Sequence[tuple[int, int]], corners: Sequence[tuple[int, int]], device: torch.device
) -> SkyNoise:
    """The sky's noise for a batch whose rows are (window, sample), windows by the global (y, x) of their corners."""

    def column(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return SkyNoise(
        seed=seed,
        stream=stream,
        sample=column([sample for _, sample in rows]),
        y0=column([corners[window][0] for window, _ in rows]),
        x0=column([corners[window][1] for window, _ in rows]),
    )
