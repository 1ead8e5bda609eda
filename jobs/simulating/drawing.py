"""Draw scenes of Gaussians: each on the coarsest of a set of grids that still samples it, summed as spectra.

A scene is a square whose opposite sides are neighbours. All Gaussians are widened by one node of the finest grid, which
limits their band; the transfer function of the PSF is divided by that. So an image is exact wherever the PSF passes no
frequencies near Nyquist's of the finest grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLED = 1.3
"""Least standard deviation, in nodes, of a Gaussian on a coarser grid."""

REACH = (4.5, 6.5)
"""Half side of a Gaussian's stamp in standard deviations: of light that is spread out, and of points."""

HALF_SIDES = (6, 7, 9, 11, 14, 18, 23, 30, 40, 54, 72, 96, 128)
"""Half sides of stamps in nodes; Gaussians of one half side are drawn together."""

AT_ONCE = 4_000_000
"""Nodes of stamps that are held at a time."""


@dataclass(frozen=True)
class Grid:
    """The finest grid of some scenes: their number, nodes along a side, a power of 2, and the distance in arcsec."""

    scenes: int
    nodes: int
    spacing: float

    @property
    def side(self) -> float:
        """Side of a scene, arcsec."""
        return self.nodes * self.spacing


def spectra(grid: Grid, scene: Tensor, places: Tensor, covariance: Tensor, flux: Tensor) -> Tensor:
    """Spectra of scenes, widened by a Gaussian of one node.

    Parameters
    ----------
    grid : Grid
    scene : Tensor [N] int64
        The scene that a Gaussian belongs to.
    places : Tensor [N, 2] float32
        x and y from the first node, arcsec; scenes repeat.
    covariance : Tensor [N, 3] float32
        xx, xy, yy, arcsec^2.
    flux : Tensor [N, B] float32
        By band.

    Returns
    -------
    Tensor [scenes, B, nodes, nodes // 2 + 1] complex64
        Of `torch.fft.rfft2`; its zero frequency is the flux.
    """
    bands = flux.shape[1]
    point = covariance[:, 0] == 0
    wide = covariance + grid.spacing**2 * torch.tensor([1.0, 0.0, 1.0], device=covariance.device)
    mean, half_difference = (wide[:, 0] + wide[:, 2]) / 2, (wide[:, 0] - wide[:, 2]) / 2
    least = torch.sqrt((mean - torch.hypot(half_difference, wide[:, 1])).clamp(min=1e-12))
    coarsest = int(math.log2(grid.nodes)) - 5
    level = torch.floor(torch.log2(least / (SAMPLED * grid.spacing))).clamp(0, coarsest).to(torch.int64)
    reach = torch.where(point, REACH[1], REACH[0])
    extent = reach * torch.sqrt(torch.maximum(wide[:, 0], wide[:, 2])) / (grid.spacing * 2.0**level)
    halves = torch.tensor(HALF_SIDES, device=flux.device)
    size = torch.searchsorted(halves, extent.ceil().to(torch.int64)).clamp(max=len(HALF_SIDES) - 1)
    total = None
    for number in range(coarsest, -1, -1):
        nodes = grid.nodes >> number
        canvas = torch.zeros(bands, grid.scenes * nodes * nodes, device=flux.device)
        for kind, half in enumerate(HALF_SIDES):
            chosen = torch.nonzero((level == number) & (size == kind))[:, 0]
            for part in chosen.split(max(1, AT_ONCE // (2 * half + 1) ** 2)):
                _stamp(canvas, nodes, grid.side / nodes, half, scene[part], places[part], wide[part], flux[part])
        spectrum = torch.fft.rfft2(canvas.view(bands, grid.scenes, nodes, nodes)).transpose(0, 1)
        total = spectrum if total is None else _finer(total, spectrum)
    assert total is not None
    return total


def images(spectrum: Tensor, transfer: Tensor, grid: Grid, every: int) -> Tensor:
    """Images at each `every`-th node, flux per pixel of the side of `every` nodes, [scenes, B, n, n].

    `transfer` [scenes, B, ...] is that of PSF and pixel, see `optics.transfer_functions`.
    """
    k = [torch.fft.fftfreq(grid.nodes, grid.spacing, device=spectrum.device)[:, None]]
    k.append(torch.fft.rfftfreq(grid.nodes, grid.spacing, device=spectrum.device))
    widened = [torch.exp(2 * (math.pi * grid.spacing * axis) ** 2) for axis in k]
    image = torch.fft.irfft2(spectrum * transfer * (widened[0] * widened[1]), s=(grid.nodes, grid.nodes))
    return image[..., ::every, ::every] * every**2


def _stamp(
    canvas: Tensor,
    nodes: int,
    spacing: float,
    half: int,
    scene: Tensor,
    places: Tensor,
    covariance: Tensor,
    flux: Tensor,
) -> None:
    """Add Gaussians to a canvas [B, scenes * nodes * nodes], each in a stamp of 2 half + 1 nodes a side."""
    if not len(scene):
        return
    at = places / spacing
    middle = torch.round(at)
    steps = torch.arange(-half, half + 1, device=canvas.device)
    dx, dy = (steps - (at - middle)[:, axis, None] for axis in (0, 1))
    xx, xy, yy = (covariance / spacing**2).unbind(1)
    determinant = xx * yy - xy**2
    # exp of a sum, factor by factor as far as it is one: along x, along y, and the rest where the axes are turned
    along_x = -0.5 * (yy / determinant)[:, None] * dx**2
    along_y = -0.5 * (xx / determinant)[:, None] * dy**2
    crossed = (xy / determinant)[:, None] * dx
    light = torch.exp(along_y[:, :, None] + along_x[:, None, :] + dy[:, :, None] * crossed[:, None, :])
    light *= (0.5 / math.pi / torch.sqrt(determinant))[:, None, None]
    columns = torch.remainder(middle[:, 0].to(torch.int64)[:, None] + steps, nodes)
    rows = torch.remainder(middle[:, 1].to(torch.int64)[:, None] + steps, nodes) + scene[:, None] * nodes
    places_flat = (rows[:, :, None] * nodes + columns[:, None, :]).flatten()
    for band, plane in enumerate(canvas):
        plane.index_add_(0, places_flat, (light * flux[:, band, None, None]).flatten())


def _finer(coarse: Tensor, fine: Tensor) -> Tensor:
    """`fine` plus the spectrum of a grid of half as many nodes, whose highest frequencies are empty."""
    half = coarse.shape[-2] // 2
    fine[..., :half, :half] += coarse[..., :half, :half]
    fine[..., 1 - half :, :half] += coarse[..., 1 - half :, :half]
    return fine
