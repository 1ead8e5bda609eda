"""Windows of a tile, and their blend back into one image.

Windows lie on a grid of the *global* pixels, so a tile and its neighbour cut the very same windows where both see the
sky, and the seam between them has nothing to show. Beyond the array a window is filled with empty sky that counts as
masked. What is blended are the moments, not the samples: the variance of a mixture never falls below the mean of
its parts' variances, so blending cannot shrink the uncertainty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bridge_core.errors import BridgeError

FILL_REACH = 8

_Pixel = TypeVar("_Pixel", int, NDArray[np.int64])


@dataclass(frozen=True)
class PatchGrid:
    """Where the windows lie.

    Parameters
    ----------
    size
        Side of a window in pixels.
    stride
        Distance of neighbouring windows.
    margin
        Outer pixels of a window that serve as context and are not used; beyond them the weight ramps up linearly over
        the overlap.
    """

    size: int = 64
    stride: int = 40
    margin: int = 8

    def __post_init__(self) -> None:
        """Refuse a grid that leaves gaps."""
        if not 0 < self.stride <= self.size - 2 * self.margin:
            raise BridgeError(
                f"stride {self.stride} leaves gaps between windows that use {self.size - 2 * self.margin} pixels "
                f"({self.size} less a margin of {self.margin} on each side)"
            )

    def windows(
        self, shape: tuple[int, int], origin: tuple[int, int], core: tuple[int, int, int, int]
    ) -> list[tuple[int, int]]:
        """Global (y, x) corners of all windows whose used part touches the core, row by row.

        Parameters
        ----------
        shape
            Height and width of the tile's arrays (unused beyond a check that the core lies inside).
        origin
            Global pixel of the arrays' first pixel.
        core
            (y0, y1, x0, x1) in array pixels.
        """
        y0, y1, x0, x1 = core
        if not (0 <= y0 < y1 <= shape[0] and 0 <= x0 < x1 <= shape[1]):
            raise BridgeError(f"core {core} is not inside an array of {shape[0]} x {shape[1]} pixels")
        rows = self._corners(origin[0] + y0, origin[0] + y1)
        return [(y, x) for y in rows for x in self._corners(origin[1] + x0, origin[1] + x1)]

    def weight(self) -> Tensor:
        """Blending weight of a window's pixels, float64 [size, size]; positive on the used part only."""
        used = self.size - 2 * self.margin
        overlap = used - self.stride
        distance = torch.arange(used, dtype=torch.float64)
        ramp = torch.minimum(distance, distance.flip(0)) + 1
        line = F.pad(torch.clamp(ramp / (overlap + 1), max=1.0), (self.margin, self.margin))
        return line[:, None] * line[None, :]

    def span(self, start: _Pixel, stop: _Pixel) -> tuple[_Pixel, _Pixel]:
        """First and last n of the windows along one axis whose used part touches global pixels `start` .. `stop` - 1.

        Window n has its corner at n x stride, so last - first + 1 windows touch. Arrays give arrays.
        """
        # used pixels of the window at corner c are c + margin .. c + size - margin - 1
        first = (start - (self.size - self.margin) + 1 + self.stride - 1) // self.stride
        last = (stop - 1 - self.margin) // self.stride
        return first, last

    def _corners(self, start: int, stop: int) -> list[int]:
        first, last = self.span(start, stop)
        return [n * self.stride for n in range(first, last + 1)]


def cut(image: Tensor, corner: tuple[int, int], origin: tuple[int, int], size: int) -> Tensor:
    """Window [..., size, size] of image [..., H, W]; `corner` and `origin` global; 0 (or False) beyond the array."""
    top, left = corner[0] - origin[0], corner[1] - origin[1]
    height, width = image.shape[-2:]
    y0, y1, x0, x1 = max(top, 0), min(top + size, height), max(left, 0), min(left + size, width)
    out = image.new_zeros((*image.shape[:-2], size, size))
    if y0 < y1 and x0 < x1:
        out[..., y0 - top : y1 - top, x0 - left : x1 - left] = image[..., y0:y1, x0:x1]
    return out


def fill_masked(image: Tensor, valid: Tensor, width: float = 3.0) -> Tensor:
    """Replace masked pixels by the Gaussian-weighted mean of valid ones within 8 pixels, 0 where there is none.

    Parameters
    ----------
    image
        float32 [C, H, W]; what masked pixels hold is not read (NaN is fine).
    valid
        bool [C, H, W].
    width
        Standard deviation of the weight, pixels.
    """
    reach = torch.arange(-FILL_REACH, FILL_REACH + 1, dtype=image.dtype, device=image.device)
    line = torch.exp(-0.5 * (reach / width) ** 2)
    known = torch.where(valid, image, torch.zeros_like(image))
    weight = _blur(valid.to(image.dtype), line)
    mean = _blur(known, line) / weight.clamp(min=1e-6)
    return torch.where(valid, image, torch.where(weight > 1e-6, mean, torch.zeros_like(mean)))


def local_coverage(valid: Tensor, fwhm: float) -> Tensor:
    """Share of observed input within the seeing, 0 on masked pixels.

    Parameters
    ----------
    valid
        bool [C, H, W]; a pixel counts as observed where every band is valid.
    fwhm
        Of the point-spread function, pixels.

    Returns
    -------
    Tensor
        float32 [H, W], 0..1.
    """
    observed = valid.all(0, keepdim=True).float()
    reach = torch.arange(-FILL_REACH, FILL_REACH + 1, dtype=torch.float32)
    line = torch.exp(-0.5 * (reach / max(fwhm / 2.3548, 0.3)) ** 2).to(valid.device)
    # beyond the array nothing is observed: the padding counts as masked
    return (observed * _blur(observed, line / line.sum()))[0].clamp(0, 1)


def blend(
    corners: list[tuple[int, int]],
    mean: Tensor,
    variance: Tensor,
    grid: PatchGrid,
    box: tuple[int, int, int, int],
) -> tuple[Tensor, Tensor]:
    """Moments of the mixture of all windows at each pixel of a box.

    Parameters
    ----------
    corners
        Global (y, x) of each window.
    mean, variance
        [P, C, size, size].
    box
        Global (y0, y1, x0, x1) wanted.

    Returns
    -------
    tuple of Tensor
        Mean and standard deviation, float32 [C, H, W]; NaN where no window reaches. The order of the windows does not
        matter: they are added in the order of their corners, in float64.
    """
    y0, y1, x0, x1 = box
    c = mean.shape[1]
    total = torch.zeros(y1 - y0, x1 - x0, dtype=torch.float64)
    first = torch.zeros(c, y1 - y0, x1 - x0, dtype=torch.float64)
    second = torch.zeros_like(first)
    weight = grid.weight()
    for index in sorted(range(len(corners)), key=lambda i: corners[i]):
        top, left = corners[index][0] - y0, corners[index][1] - x0
        ys, xs = (slice(max(at, 0), max(at + grid.size, 0)) for at in (top, left))
        h, w = total[ys, xs].shape
        py, px = max(-top, 0), max(-left, 0)
        part = (slice(py, py + h), slice(px, px + w))
        m, v, omega = mean[index].double()[:, *part], variance[index].double()[:, *part], weight[part]
        total[ys, xs] += omega
        first[:, ys, xs] += omega * m
        second[:, ys, xs] += omega * (v + m * m)
    mean_all = first / total
    return mean_all.float(), (second / total - mean_all**2).clamp(min=0).sqrt().float()


def _blur(image: Tensor, line: Tensor) -> Tensor:
    """Separable correlation of [C, H, W] with a line of odd length, zeros beyond the array."""
    reach = len(line) // 2
    x = F.conv2d(image[:, None], line.view(1, 1, -1, 1), padding=(reach, 0))
    return F.conv2d(x, line.view(1, 1, 1, -1), padding=(0, reach))[:, 0]
