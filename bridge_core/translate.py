"""Translate a tile: windows -> K samples each -> posterior mean and standard deviation in nJy, blended."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import DIRECTIONS, Model
from surveybridge.bridge_core.network import Precision
from surveybridge.bridge_core.patches import PatchGrid, any_within, blend, cut, fill_masked, local_coverage
from surveybridge.bridge_core.sampler import boot, draw, end_then_rho_steps, rho_steps, sample
from surveybridge.bridge_core.spans import span
from surveybridge.bridge_core.stretch import Stretch
from surveybridge.kernels.accumulate import accumulate
from surveybridge.kernels.sky_noise import SkyNoise

# one stream of the noise generator for each use, so that no two draws of a run coincide
TRANSLATION_STREAM = {"euclid->lsst": 0, "lsst->euclid": 1}
# windows in one call of the network that keep a device busy; 512 hold 2 GB of activations
DEFAULT_BATCH = {"cpu": 16, "cuda": 512}
START = 2**16 - 1  # noise step of the start, which no update uses


@dataclass(frozen=True)
class Sampling:
    """How a posterior is sampled.

    Parameters
    ----------
    samples
        K, posterior draws per window; at least 2.
    steps
        Network evaluations a draw.
    sigma_max
        Highest noise level of the steps; with `from_end` one more step stands before them, at the table's end.
    from_end
        Begin at the table's end. What predicts the noise (AS-Bridge's `eps`) is useless there, since x0 then is the
        difference of two large numbers; without it the observed image stands for the unknown one at `sigma_max`.
    order, eta
        Of the sampler: 1 or 2, and 0 (deterministic from its start) .. 1 (new noise at every step).
    seed
        Key of the noise generator.
    batch
        Windows of 64 x 64 pixels in one call of the network, or as many pixels in larger windows; formed within one
        tile only.
    precision
        Of the network.
    """

    samples: int = 8
    steps: int = 6
    sigma_max: float = 2.0
    from_end: bool = True
    order: int = 2
    eta: float = 0.0
    seed: int = 0
    batch: int = 16
    precision: Precision = "bfloat16"
    patches: PatchGrid = field(default_factory=PatchGrid)

    def __post_init__(self) -> None:
        """Refuse numbers that cannot give a standard deviation."""
        if self.samples < 2 or self.steps < 1 or self.batch < 1:
            raise BridgeError(
                f"samples {self.samples}, steps {self.steps}, batch {self.batch}: need at least 2, 1 and 1"
            )

    @property
    def group(self) -> int:
        """Windows whose samples are held at a time, four batches of them: memory does not grow with K."""
        return max(1, 4 * self.windows_a_call(self.patches.size**2) // self.samples)

    def windows_a_call(self, pixels: int) -> int:
        """Windows of so many pixels in one call of the network."""
        return max(1, self.batch * 64**2 // pixels)


@dataclass(frozen=True)
class Posterior:
    """Translated core of a tile.

    Parameters
    ----------
    mean, std
        float32 [C, H, W] nJy per pixel, NaN where the observed survey is masked.
    coverage
        float32 [H, W], share of observed input within the seeing; 0 where masked.
    windows
        Number of windows that were translated.
    """

    mean: Tensor
    std: Tensor
    coverage: Tensor
    windows: int


def translate_tile(
    model: Model,
    direction: str,
    flux: Tensor,
    valid: Tensor,
    *,
    origin: tuple[int, int],
    core: tuple[int, int, int, int],
    psf_fwhm: float,
    how: Sampling = Sampling(),
    corners: Sequence[tuple[int, int]] | None = None,
) -> Posterior:
    """Posterior of the unseen survey over the core of a tile.

    Parameters
    ----------
    model
        Trained on the same grid.
    direction
        ``lsst->euclid`` or ``euclid->lsst``.
    flux
        float32 [C, H, W] nJy per pixel of the observed survey.
    valid
        bool [C, H, W]; what invalid pixels hold is not read.
    origin
        Global (y, x) of the arrays' first pixel; places the windows and the noise.
    core
        (y0, y1, x0, x1) in array pixels.
    psf_fwhm
        Of the observed survey, pixels (for the coverage).
    how
        Samples, steps, seed.
    corners
        Windows in the order to compute them; by default all that touch the core. The result does not depend on it.
    """
    with span("prepare"):
        seen = look(model, direction, flux, valid, origin, core, psf_fwhm, how, corners)
    live, coverage = seen.live, seen.coverage
    if live:
        groups = [live[i : i + how.group] for i in range(0, len(live), how.group)]
        parts = [window_moments(model, direction, seen.x1, group, origin, how) for group in groups]
        with span("blend"):
            mean, std = (
                moment.cpu()
                for moment in blend(
                    live, torch.cat([m for m, _ in parts]), torch.cat([v for _, v in parts]), how.patches, seen.box
                )
            )
    else:
        bands = model.card.bands[direction.split("->")[1]]
        mean = std = torch.full((len(bands), *coverage.shape), torch.nan)
    hole = coverage <= 0
    return Posterior(mean.masked_fill(hole, torch.nan), std.masked_fill(hole, torch.nan), coverage, len(live))


class Seen(NamedTuple):
    """What a tile shows the network: input [3, H, W], windows with anything in them, coverage and box of the core."""

    x1: Tensor
    live: list[tuple[int, int]]
    coverage: Tensor
    box: tuple[int, int, int, int]


def look(
    model: Model,
    direction: str,
    flux: Tensor,
    valid: Tensor,
    origin: tuple[int, int],
    core: tuple[int, int, int, int],
    psf_fwhm: float,
    how: Sampling,
    corners: Sequence[tuple[int, int]] | None = None,
) -> Seen:
    """Prepare a tile for the network; the arguments are those of `translate_tile`."""
    if direction not in DIRECTIONS:
        raise BridgeError(f"direction {direction!r} is not one of {DIRECTIONS}")
    x1 = observed_units(model, direction.split("->")[0], flux, valid)
    corners = list(corners) if corners is not None else how.patches.windows((x1.shape[1], x1.shape[2]), origin, core)
    seen = any_within(valid.all(0), corners, origin, how.patches.size)
    live = [corner for corner, any_valid in zip(corners, seen, strict=True) if any_valid]
    y0, y1, x0, x1_ = core
    box = (origin[0] + y0, origin[0] + y1, origin[1] + x0, origin[1] + x1_)
    return Seen(x1, live, local_coverage(valid, psf_fwhm)[y0:y1, x0:x1_].cpu(), box)


def observed_units(model: Model, survey: str, flux: Tensor, valid: Tensor) -> Tensor:
    """nJy [C, H, W] -> the network's input [3, H, W]: masked pixels filled from neighbours, stretched, VIS repeated."""
    filled = fill_masked(flux, valid)
    return to_channels(stretch_of(model).forward(filled, model.card.bands[survey]), model.card.network.image_channels)


def window_moments(
    model: Model, direction: str, x1: Tensor, corners: Sequence[tuple[int, int]], origin: tuple[int, int], how: Sampling
) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over K samples of some windows, each float32 [P, C, size, size] in nJy."""
    windows = cut(x1, corners, origin, how.patches.size)
    return moments(window_samples(model, direction, windows, corners, how))


def moments(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over K of samples, float32 [P, K, ...]."""
    with span("moments"):
        found = accumulate(samples)
        return found.mean, found.m2 / (samples.shape[1] - 1)


def window_samples(
    model: Model,
    direction: str,
    windows: Tensor,
    corners: Sequence[tuple[int, int]],
    how: Sampling,
    only: Collection[int] | None = None,
) -> Tensor:
    """K samples of the unseen survey in some windows.

    Parameters
    ----------
    windows
        float32 [P, 3, H, W], the observed survey in network units.
    corners
        Global (y, x) of each window's first pixel, for the noise.
    only
        Indices of the windows to return, by default all. The network sees the same batches, or none of a batch.

    Returns
    -------
    Tensor
        float32 [P, K, C, H, W] nJy per pixel.
    """
    bands = model.card.bands[direction.split("->")[1]]
    rows = [(p, k) for p in range(len(corners)) for k in range(how.samples)]
    wanted = set(range(len(corners)) if only is None else only)
    draws = []
    grid = end_then_rho_steps if how.from_end else rho_steps
    steps = grid(model.card.bridge, how.steps, how.sigma_max)
    batch = how.windows_a_call(windows.shape[-2] * windows.shape[-1])
    for i in range(0, len(rows), batch):
        part = rows[i : i + batch]
        kept = [n for n, (p, _) in enumerate(part) if p in wanted]
        if not kept:
            continue
        conditions = windows[[p for p, _ in part]]
        noise = window_noise(how.seed, TRANSLATION_STREAM[direction], part, corners, windows.device)
        with span("start"):
            start = boot(model.card.bridge, conditions, steps[0], draw(noise, START, conditions))
        u = sample(
            model,
            conditions,
            direction,
            steps,
            start=start,
            noise=noise,
            eta=how.eta,
            order=how.order,
            renoise=how.from_end,
            precision=how.precision,
        )
        flux = stretch_of(model).inverse(from_channels(u, len(bands)), bands)
        draws.append(flux if len(kept) == len(part) else flux[kept])
    return torch.cat(draws).unflatten(0, (len(wanted), how.samples))


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


def stretch_of(model: Model) -> Stretch:
    """The card's stretch; a checkpoint without one works in network units only."""
    if model.card.stretch is None:
        raise BridgeError(f"checkpoint {model.card.name} has no stretch, so nJy cannot enter it; use one trained here")
    return model.card.stretch


def to_channels(u: Tensor, channels: int) -> Tensor:
    """[..., C, H, W] with C = 1 repeated to the network's channels (as AS-Bridge does with Euclid); gri as it is."""
    return u.expand(*u.shape[:-3], channels, *u.shape[-2:]).contiguous() if u.shape[-3] == 1 else u


def from_channels(u: Tensor, bands: int) -> Tensor:
    """[..., 3, H, W] -> [..., bands, H, W]: the mean of the three copies for a single band."""
    return u.mean(-3, keepdim=True) if bands == 1 else u
