"""Windows of a tile, and their blend back into one image.

Windows lie on a grid of the *global* pixels, so a tile and its neighbour cut the very same windows where both see the
sky, and the seam between them has nothing to show. Beyond the array a window is filled with empty sky that counts as
masked. What is blended are the moments, not the samples: the variance of a mixture never falls below the mean of
its parts' variances, so blending cannot shrink the uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from surveybridge.bridge_core.correlate import blur, gaussian_line
from surveybridge.bridge_core.settings import PatchGrid
from surveybridge.kernels.blend import blend as blend_windows
from surveybridge.kernels.transfer import to_device

FILL_REACH = 8


def taper(grid: PatchGrid) -> Tensor:
    """Blending weight along one axis of a window, float64 [size]; positive on the used part only."""
    used = grid.size - 2 * grid.margin
    overlap = used - grid.stride
    distance = torch.arange(used, dtype=torch.float64)
    ramp = torch.minimum(distance, distance.flip(0)) + 1
    return F.pad(torch.clamp(ramp / (overlap + 1), max=1.0), (grid.margin, grid.margin))


def cut(image: Tensor, corners: Sequence[tuple[int, int]], origin: tuple[int, int], size: int) -> Tensor:
    """Windows [P, ..., size, size] of image [..., H, W]; corners and origin global; 0 (or False) beyond the array."""
    height, width = image.shape[-2:]
    corner = torch.tensor(list(corners), dtype=torch.int64).view(-1, 2)
    reach = torch.arange(size)
    ys, xs = ((corner[:, axis] - origin[axis])[:, None] + reach for axis in (0, 1))
    inside = ((ys >= 0) & (ys < height))[:, :, None] & ((xs >= 0) & (xs < width))[:, None, :]
    flat = ys.clamp(0, height - 1)[:, :, None] * width + xs.clamp(0, width - 1)[:, None, :]
    windows = image.flatten(-2)[..., to_device(flat, image.device)].masked_fill(~to_device(inside, image.device), 0)
    return windows.movedim(-3, 0).contiguous()


def any_within(image: Tensor, corners: Sequence[tuple[int, int]], origin: tuple[int, int], size: int) -> list[bool]:
    """Return whether a bool image [H, W] is True anywhere in each window."""
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
    line = gaussian_line(width, FILL_REACH, image)
    known = torch.where(valid, image, torch.zeros_like(image))
    weight = blur(valid.to(image.dtype), line)
    mean = blur(known, line) / weight.clamp(min=1e-6)
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
    line = gaussian_line(max(fwhm / 2.3548, 0.3), FILL_REACH, observed)
    # beyond the array nothing is observed: the padding counts as masked
    return (observed * blur(observed, line / line.sum()))[0].clamp(0, 1)


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
    return blend_windows(mean, variance, corners, taper(grid), box, stride=grid.stride)
