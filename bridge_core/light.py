"""How the light of the object in the middle of a stamp is distributed, in fixed circles (see `morphology`).

The statistics of CAS (Conselice 2003), of Lotz et al. 2004 and of Rodriguez-Gomez et al. 2019 in the form that needs no
segmentation: all within the circle of `morphology.RADIUS_ARCSEC`, noise included, alike in what is compared.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from surveybridge.bridge_core.apertures import aperture
from surveybridge.bridge_core.morphology import RADIUS_ARCSEC, shapes

BOX_ARCSEC = 0.25
"""Side of the box with which an image is smoothed, and radius of the middle that smoothness leaves out."""
BRIGHTEST = 0.2
"""Share of the flux in the pixels of which M20 is the moment."""
RADII = 40
"""Circles of the curve of growth."""
MODES = 15
"""Frequencies of the power spectrum of `amplitudes`."""

STATISTICS = ("asymmetry", "smoothness", "concentration", "gini", "m20", "size", "ellipticity")
"""Those of the table of Holzschuh et al. 2022 (arXiv 2203.11956) that need no fit and no angle."""


def light(images: Tensor, pixel_scale: float) -> dict[str, Tensor]:
    """`STATISTICS` and the bulge statistic of images [..., H, W] in any linear flux unit, each float64 [...].

    Parameters
    ----------
    images
        Stamps centred on their object.
    pixel_scale
        Arcsec.

    Returns
    -------
    dict
        `asymmetry`, `gini`, `size` and `ellipticity` of `morphology.shapes`; `m20`, `concentration` and `smoothness` of
        the functions below; `bulge_gm20`: F(G, M20) = -0.693 M20 + 4.95 G - 3.96, 0 or more of early types
        (Rodriguez-Gomez et al. 2019, eq. (4)). NaN where an object has no positive flux.
    """
    found = shapes(images, pixel_scale)
    found = {name: found[name] for name in STATISTICS if name in found}
    found |= {
        "m20": m20(images, pixel_scale),
        "concentration": concentration(images, pixel_scale),
        "smoothness": smoothness(images, pixel_scale),
    }
    return found | {"bulge_gm20": -0.693 * found["m20"] + 4.95 * found["gini"] - 3.96}


def m20(images: Tensor, pixel_scale: float) -> Tensor:
    """Second moment of the brightest pixels that hold 20% of the flux, relative to all: Lotz et al. 2004, eq. (8).

    M20 = log10(sum of f r^2 over them / sum of f r^2 over all), about the centre that minimises the latter, which is
    the centroid of the circle. NaN where flux or moment are not positive.
    """
    height, width = images.shape[-2:]
    inside = aperture((height, width), RADIUS_ARCSEC / pixel_scale) > 0.5
    flux = images.double()[..., inside]
    places = torch.nonzero(inside).double() - torch.tensor([(height - 1) / 2, (width - 1) / 2], dtype=torch.float64)
    total = flux.sum(-1, keepdim=True)
    centre = (flux[..., None] * places).sum(-2) / total
    moments = flux * ((places - centre[..., None, :]) ** 2).sum(-1)
    bright, order = flux.sort(-1, descending=True)
    # the pixel that crosses the share is in
    chosen = bright.cumsum(-1) - bright < BRIGHTEST * total
    of_bright = (moments.gather(-1, order) * chosen).sum(-1)
    all_of_it = moments.sum(-1)
    known = (total[..., 0] > 0) & (all_of_it > 0) & (of_bright > 0)
    return torch.where(known, (of_bright / all_of_it).log10(), torch.nan)


def concentration(images: Tensor, pixel_scale: float) -> Tensor:
    """C = 5 log10(r80 / r20), radii that hold these shares of the flux of the circle: Conselice 2003, eq. (10).

    The curve of growth is linear between circles; the first crossing counts. NaN where the flux is not positive.
    """
    shape, edge = images.shape[-2:], RADIUS_ARCSEC / pixel_scale
    radii = torch.linspace(0, edge, RADII + 1, dtype=torch.float64)
    circles = torch.stack([aperture(shape, float(radius)).double() for radius in radii[1:]])
    growth = (images.double().flatten(-2) @ circles.flatten(-2).T).clamp(min=-1e300)
    growth = torch.cat([torch.zeros_like(growth[..., :1]), growth], -1)
    total = growth[..., -1:]
    r20, r80 = (_crossing(growth / total, radii, share) for share in (0.2, 0.8))
    return torch.where(total[..., 0] > 0, 5 * (r80 / r20).log10(), torch.nan)


def _crossing(growth: Tensor, radii: Tensor, share: float) -> Tensor:
    """Radius at which a curve of growth [..., R], whose end is 1, first reaches a share."""
    after = (growth >= share).double().argmax(-1, keepdim=True).clamp(min=1)
    low, high = growth.gather(-1, after - 1)[..., 0], growth.gather(-1, after)[..., 0]
    part = ((share - low) / (high - low)).clamp(0, 1)
    inner, outer = radii[after[..., 0] - 1], radii[after[..., 0]]
    return inner + part * (outer - inner)


def smoothness(images: Tensor, pixel_scale: float) -> Tensor:
    """Share of the flux in structure finer than a box: Conselice 2003, eq. (11), with the noise of the sky taken off.

    S = sum of the positive part of I - I_box over the circle without its middle, less as much for each pixel as there
    is outside of the circle, over the flux of the circle. NaN where that is not positive.
    """
    image = images.double()
    side = 2 * math.floor(BOX_ARCSEC / pixel_scale / 2) + 1
    flat = image.reshape(-1, 1, *image.shape[-2:])
    padded = F.pad(flat, (side // 2,) * 4, mode="replicate")
    fine = (flat - F.avg_pool2d(padded, side, stride=1)).view_as(image).clamp(min=0)
    shape = image.shape[-2:]
    circle, middle = (aperture(shape, radius / pixel_scale).double() for radius in (RADIUS_ARCSEC, BOX_ARCSEC))
    ring, outside = circle - middle, 1 - circle
    of_the_sky = (fine * outside).sum((-2, -1)) / outside.sum()
    total = (image * circle).sum((-2, -1))
    return torch.where(total > 0, ((fine * ring).sum((-2, -1)) - of_the_sky * ring.sum()) / total, torch.nan)


def colour(blue: Tensor, red: Tensor, pixel_scale: float) -> Tensor:
    """Magnitude of one band less that of another in the circle, [..., H, W] each; NaN where a flux is not positive."""
    circle = aperture(blue.shape[-2:], RADIUS_ARCSEC / pixel_scale).double()
    one, other = ((image.double() * circle).sum((-2, -1)) for image in (blue, red))
    return torch.where((one > 0) & (other > 0), -2.5 * (one / other).log10(), torch.nan)


def amplitudes(images: Tensor) -> Tensor:
    """Mean log10 amplitude of Fourier modes in rings one frequency wide, float64 [..., MODES], dex.

    |FFT| / N^2 is averaged over each ring of integer radius, the mean flux first, as in the published table.
    """
    side = images.shape[-1]
    amplitude = torch.fft.fft2(images.double()).abs() / side**2
    frequency = torch.fft.fftfreq(side, dtype=torch.float64) * side
    ring = (frequency[:, None] ** 2 + frequency**2).sqrt().round().long().flatten()
    wanted = ring < MODES
    flat = amplitude.flatten(-2)[..., wanted]
    sums = torch.zeros(*flat.shape[:-1], MODES, dtype=torch.float64).index_add_(-1, ring[wanted], flat)
    return (sums / torch.bincount(ring[wanted], minlength=MODES)).log10()
