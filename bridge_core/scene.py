"""One end of a tile, and what the network sees of it: windows of a grid, or the tile as one window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from surveybridge.bridge_core.patches import any_within, cut, fill_masked, local_coverage
from surveybridge.bridge_core.physics import Seeing
from surveybridge.bridge_core.problem import Direction, Endpoint, planes_of_channels
from surveybridge.bridge_core.settings import PatchGrid, Sampling, WholeTile, check_core
from surveybridge.bridge_core.sharpening import PAD
from surveybridge.bridge_core.spectral import Physics
from surveybridge.kernels.transfer import to_device


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

    def to(self, device: torch.device) -> Scene:
        """Return the same with its images on a device."""
        sigma = None if self.sigma is None else to_device(self.sigma, device)
        return replace(self, flux=to_device(self.flux, device), valid=to_device(self.valid, device), sigma=sigma)

    def framed(self, box: tuple[int, int, int, int]) -> Scene:
        """Return the same sky in arrays of another extent, which hold the core; what is not known there is masked.

        Parameters
        ----------
        box
            Global (y0, y1, x0, x1).
        """
        (y0, y1, x0, x1), (top, left) = box, self.origin
        height, width = self.valid.shape[-2:]
        check_core(self.core, (height, width))
        rows = slice(max(y0, top), min(y1, top + height))
        columns = slice(max(x0, left), min(x1, left + width))

        def at(y: int, x: int) -> tuple[slice, slice]:
            return slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x)

        def frame(image: Tensor) -> Tensor:
            out = image.new_zeros((*image.shape[:-2], y1 - y0, x1 - x0))
            out[..., *at(y0, x0)] = image[..., *at(top, left)]
            return out

        core = self.core_box
        return replace(
            self,
            flux=frame(self.flux),
            valid=frame(self.valid),
            sigma=None if self.sigma is None else frame(self.sigma),
            origin=(y0, x0),
            core=(core[0] - y0, core[1] - y0, core[2] - x0, core[3] - x0),
        )


class Seen(NamedTuple):
    """The network's view of a tile.

    x1: input [C, H, W]; context: of the same size, as one window, or None; origin: global (y, x) of their first pixel;
    live: corners of the windows with anything in them; coverage [h, w] and global box of the core.
    """

    x1: Tensor
    context: Context | None
    origin: tuple[int, int]
    live: list[tuple[int, int]]
    coverage: Tensor
    box: tuple[int, int, int, int]


def look(
    model: Model,
    direction: Direction,
    scene: Scene,
    how: Sampling,
    corners: Sequence[tuple[int, int]] | None = None,
    wanted: Conditions | None = None,
) -> Seen:
    """Prepare a tile for the network; the arguments are those of `translate.translate_tile`.

    Raises
    ------
    BridgeError
        If a network with statistics of the window is to see a whole tile.
    """
    grid, box = how.patches, scene.core_box
    if isinstance(grid, WholeTile):
        if why := model.card.bound_to_a_size:
            raise BridgeError(
                f"checkpoint {model.card.name} cannot see tiles of any size: {why}; use patches of {PatchGrid.size}"
            )
        scene = scene.framed(grid.box(box))
    y0, y1, x0, x1 = scene.core
    coverage = local_coverage(scene.valid, scene.psf_fwhm)[y0:y1, x0:x1].cpu()
    if isinstance(grid, WholeTile):
        live = [scene.origin] if (coverage > 0).any() else []
    else:
        height, width = scene.valid.shape[-2:]
        corners = list(corners) if corners is not None else grid.windows((height, width), scene.origin, scene.core)
        seen = any_within(scene.valid.all(0), corners, scene.origin, grid.size)
        live = [corner for corner, any_valid in zip(corners, seen, strict=True) if any_valid]
    units = observed_units(model, direction.observed, scene.flux, scene.valid)
    size = PatchGrid.size if isinstance(grid, WholeTile) else grid.size
    return Seen(units, tell(model, direction, scene, wanted, size), scene.origin, live, coverage, box)


def tell(
    model: Model, direction: Direction, scene: Scene, wanted: Conditions | None, size: int = PatchGrid.size
) -> Context | None:
    """What the network is told of a tile, as one window of its size; None if it is told nothing.

    Arguments are those of `translate.translate_tile`, and the side of the windows to be cut.
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
    sigma = to_device(torch.tensor(noise, dtype=scene.flux.dtype), scene.flux.device)[:, None, None]
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


def cut_context(
    context: Context | None, corners: Sequence[tuple[int, int]], origin: tuple[int, int], size: int
) -> Context | None:
    """The context of windows of a tile; beyond the tile nothing is known."""
    if context is None:
        return None
    return Context(cut(context.maps[0], corners, origin, size), context.vector, context.physics)
