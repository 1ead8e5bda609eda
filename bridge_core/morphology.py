"""Shapes of the object in the middle of a stamp, measured in the same way on samples and on the truth.

What counts is whether generated images have the distribution of true ones (Holzschuh et al. 2022, arXiv 2203.11956,
who compare such statistics by their Wasserstein distances), so the definitions are plain and need no segmentation:
everything is measured in fixed circles, noise included in both.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.bridge_core.apertures import aperture

RADIUS_ARCSEC = 1.0
"""Radius of the circle in which everything is measured."""
CORE_ARCSEC = 0.3
"""Radius of the inner circle of the bulge statistic."""
WEIGHT_ARCSEC = 0.5
"""Standard deviation of the Gaussian weight of the moments."""

STATISTICS = ("size", "ellipticity", "bulge", "gini", "asymmetry")


def shapes(images: Tensor, pixel_scale: float) -> dict[str, Tensor]:
    """Statistics of images [..., H, W] in any linear flux unit, each float64 [...].

    Parameters
    ----------
    images
        Stamps centred on their object.
    pixel_scale
        Arcsec.

    Returns
    -------
    dict
        `size`: arcsec, sqrt of the trace of the second moments weighted by a Gaussian. `ellipticity`: of the same
        moments, |e| = sqrt((Qxx - Qyy)^2 + 4 Qxy^2) / (Qxx + Qyy). `bulge`: share of the flux within 0.3" of that
        within 1". `gini`: Gini coefficient of the |flux| of the pixels within 1" (Lotz et al. 2004, eq. (6)).
        `asymmetry`: sum of |I - I turned by 180 degrees| over twice the sum of |I| within 1", about the middle of the
        stamp and with its noise (after Conselice et al. 2000). NaN where the weighted flux is not positive (size,
        ellipticity).
    """
    height, width = images.shape[-2:]
    image = images.double()
    y = (torch.arange(height, dtype=torch.float64) - (height - 1) / 2) * pixel_scale
    x = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2) * pixel_scale
    weight = torch.exp(-0.5 * (y[:, None] ** 2 + x**2) / WEIGHT_ARCSEC**2)
    total = (image * weight).sum((-2, -1))
    xx, yy, xy = ((image * weight * m).sum((-2, -1)) / total for m in (x**2, y[:, None] ** 2, y[:, None] * x))
    trace = xx + yy
    positive = (total > 0) & (trace > 0)
    circle = aperture((height, width), RADIUS_ARCSEC / pixel_scale).double()
    core = aperture((height, width), CORE_ARCSEC / pixel_scale).double()
    turned = image.flip((-2, -1))
    return {
        "size": torch.where(positive, trace.clamp(min=0).sqrt(), torch.nan),
        "ellipticity": torch.where(positive, ((xx - yy) ** 2 + 4 * xy**2).sqrt() / trace, torch.nan),
        "bulge": (image * core).sum((-2, -1)) / (image * circle).sum((-2, -1)),
        "gini": gini(image[..., circle > 0.5]),
        "asymmetry": ((image - turned).abs() * circle).sum((-2, -1)) / (2 * (image.abs() * circle).sum((-2, -1))),
    }


def gini(values: Tensor) -> Tensor:
    """Gini coefficient of |values| along the last axis: 0 all equal, 1 all in one. Lotz et al. 2004, eq. (6)."""
    n = values.shape[-1]
    ordered = values.abs().sort(-1).values
    rank = 2 * torch.arange(1, n + 1, dtype=values.dtype, device=values.device) - n - 1
    return (ordered * rank).sum(-1) / (ordered.mean(-1) * n * (n - 1))


def power_spectrum(images: Tensor, bins: int = 16) -> Tensor:
    """Azimuthal mean of the power at `bins` spatial frequencies up to Nyquist's, float64 [..., bins].

    The stamps are square and are multiplied by a Hann window, so that their edges do not leak.
    """
    side = images.shape[-1]
    hann = torch.hann_window(side, periodic=False, dtype=torch.float64)
    power = torch.fft.fft2(images.double() * hann[:, None] * hann).abs() ** 2 / side**2
    frequency = torch.fft.fftfreq(side, dtype=torch.float64)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt()
    place = (radius / 0.5 * bins).floor().long().clamp(max=bins)  # beyond Nyquist's in the corners: left out
    flat = power.flatten(-2)
    sums = torch.zeros(*flat.shape[:-1], bins + 1, dtype=torch.float64)
    sums.index_add_(-1, place.flatten(), flat)
    return sums[..., :bins] / torch.bincount(place.flatten(), minlength=bins + 1)[:bins]


def wasserstein(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Wasserstein-1 distance of two sets of numbers, in standard deviations of `other`; NaN values are left out."""
    from scipy.stats import wasserstein_distance  # slow to import, and no translation needs it

    first, second = (values[~np.isnan(values)] for values in (one, other))
    spread = float(second.std()) if len(second) else 0.0
    return float(wasserstein_distance(first, second)) / spread if len(first) and spread > 0 else math.nan
