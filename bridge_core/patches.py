"""Windows of a tile, and their blend back into one image.

Windows lie on a grid of the *global* pixels, so a tile and its neighbour cut the very same windows where both see the
sky, and the seam between them has nothing to show. Beyond the array a window is filled with empty sky that counts as
masked. What is blended are the moments, not the samples: the variance of a mixture never falls below the mean of
its parts' variances, so blending cannot shrink the uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.kernels.blend import blend as blend_windows

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

    @classmethod
    def of(cls, size: int) -> PatchGrid:
        """The grid of windows of a size with the default's margin and overlap: 40 pixels apart at 64, 104 at 128."""
        return cls(size, size - (cls.size - cls.stride), cls.margin)

    @property
    def reach(self) -> int:
        """Pixels beyond a core that its windows can show the network."""
        return self.size - self.margin - 1

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

    def taper(self) -> Tensor:
        """Blending weight along one axis of a window, float64 [size]; positive on the used part only."""
        used = self.size - 2 * self.margin
        overlap = used - self.stride
        distance = torch.arange(used, dtype=torch.float64)
        ramp = torch.minimum(distance, distance.flip(0)) + 1
        return F.pad(torch.clamp(ramp / (overlap + 1), max=1.0), (self.margin, self.margin))

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


def cut(image: Tensor, corners: Sequence[tuple[int, int]], origin: tuple[int, int], size: int) -> Tensor:
    """Windows [P, ..., size, size] of image [..., H, W]; corners and origin global; 0 (or False) beyond the array."""
    height, width = image.shape[-2:]
    corner = torch.tensor(list(corners), dtype=torch.int64).view(-1, 2)
    reach = torch.arange(size)
    ys, xs = ((corner[:, axis] - origin[axis])[:, None] + reach for axis in (0, 1))
    inside = ((ys >= 0) & (ys < height))[:, :, None] & ((xs >= 0) & (xs < width))[:, None, :]
    flat = ys.clamp(0, height - 1)[:, :, None] * width + xs.clamp(0, width - 1)[:, None, :]
    windows = image.flatten(-2)[..., flat.to(image.device)].masked_fill(~inside.to(image.device), 0)
    return windows.movedim(-3, 0).contiguous()


def any_within(image: Tensor, corners: Sequence[tuple[int, int]], origin: tuple[int, int], size: int) -> list[bool]:
    """Whether a bool image [H, W] is True anywhere in each window."""
    ones = F.pad(image.to(torch.int32), (1, 0, 1, 0))
    below = ones.cumsum_(0).cumsum_(1).cpu()  # pixels that are True above and left of each one
    limit = torch.tensor(image.shape)
    low = torch.tensor(list(corners), dtype=torch.int64).view(-1, 2) - torch.tensor(origin)
    (y0, x0), (y1, x1) = (torch.minimum((low + add).clamp(min=0), limit).T for add in (0, size))
    count = below[y1, x1] - below[y0, x1] - below[y1, x0] + below[y0, x0]
    return (count > 0).tolist()


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
    corners: Sequence[tuple[int, int]],
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
    return blend_windows(mean, variance, corners, grid.taper(), box, stride=grid.stride)


def _blur(image: Tensor, line: Tensor) -> Tensor:
    """Separable correlation of [C, H, W] with a line of odd length, zeros beyond the array."""
    reach = len(line) // 2
    x = F.conv2d(image[:, None], line.view(1, 1, -1, 1), padding=(reach, 0))
    return F.conv2d(x, line.view(1, 1, 1, -1), padding=(0, reach))[:, 0]
