"""Maps of physical fields brought to a beam before they are resampled to coarser pixels, which else would alias."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import scipy
from numpy.typing import NDArray

from surveybridge.storage.images import MASK_PLANES, Box, LazyImage, SurveyImage
from surveybridge.storage.psf import Gaussian

FWHM_OF_SIGMA = 2 * math.sqrt(2 * math.log(2))

REACH = 4.0
"""Standard deviations of the kernel beyond which no pixel counts."""

SAME = 1.01
"""Beams whose widths differ by less are one."""

LEAST_DATA = 0.5
"""Share of the beam that must have data in a pixel without: holes smaller than the beam close, edges stay."""


def smoothed(image: LazyImage, fwhm: float) -> LazyImage:
    """Bring the bands of an image to a Gaussian beam, those that are finer.

    Parameters
    ----------
    image : LazyImage
        Of values that are averaged, not added up. A band whose PSF is not known is as wide as a pixel.
    fwhm : float
        Of the beam, arcsec.

    Returns
    -------
    LazyImage
        Values are means over the pixels that have data. Any part of it has the values that all of it has.
    """
    head = image.head
    native = [own if math.isfinite(own) else head.pixel_scale for own in head.psf_fwhm]
    finer = [own if own * SAME < fwhm else fwhm for own in native]
    sigmas = [math.sqrt(fwhm**2 - own**2) / FWHM_OF_SIGMA / head.pixel_scale for own in finer]
    if not any(sigmas):
        return image
    told = {
        f"{band}.smoothed": f'from {own:.4g}" to {fwhm:.4g}"'
        for band, own, sigma in zip(head.bands, native, sigmas, strict=True)
        if sigma
    }

    correlation = [math.exp(-0.25 / sigma**2) if sigma else 0.0 for sigma in sigmas]
    new_head = replace(
        head,
        psf_fwhm=tuple(fwhm if sigma else old for old, sigma in zip(head.psf_fwhm, sigmas, strict=True)),
        psf_wing=tuple(0.0 if sigma else old for old, sigma in zip(head.psf_wing, sigmas, strict=True)),
        psf_model=tuple(Gaussian(fwhm) if sigma else old for old, sigma in zip(head.psf_model, sigmas, strict=True)),
        # of noise that was white; a map that is taken as exact has none
        noise_correlation=tuple(map(max, head.noise_correlation, correlation)),
        provenance=head.provenance | told,
    )
    reach = max(math.ceil(REACH * sigma) for sigma in sigmas)

    def read(box: Box) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
        (y0, y1, x0, x1), (height, width) = box, image.shape
        top, left = max(y0 - reach, 0), max(x0 - reach, 0)
        section = image.section((top, min(y1 + reach, height), left, min(x1 + reach, width)))
        planes = [_averaged(section, band, sigma) for band, sigma in enumerate(sigmas)]
        part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        values, variance, mask = (np.stack([plane[part] for plane in of]) for of in zip(*planes, strict=True))
        return values, variance, mask

    return LazyImage(new_head, image.shape, read)


def _averaged(
    image: SurveyImage, band: int, sigma: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
    """Values, variance and mask [H, W] of a band whose kernel has a width of `sigma` pixels."""
    values, variance, mask = image.flux[band], image.variance[band], image.mask[band]
    if not sigma:
        return values, variance, mask
    known = mask == 0
    steps = np.arange(-math.ceil(REACH * sigma), math.ceil(REACH * sigma) + 1)
    kernel = np.exp(-0.5 * (steps / sigma) ** 2)
    kernel /= kernel.sum()

    def spread(plane: NDArray[np.floating], kernel: NDArray[np.float64]) -> NDArray[np.float64]:
        there = np.where(known, plane, 0).astype(np.float64)
        along = scipy.ndimage.correlate1d(there, kernel, 0, mode="constant")
        return np.asarray(scipy.ndimage.correlate1d(along, kernel, 1, mode="constant"))

    share = spread(np.ones(values.shape), kernel)
    filled = known | ((share >= LEAST_DATA) & (mask & ~np.uint8(MASK_PLANES["NO_DATA"]) == 0))
    bits = np.where(filled, np.uint8(0), mask)
    unknown = bits & MASK_PLANES["NO_DATA"] != 0
    weight = np.maximum(share, 1e-12)
    mean = np.where(unknown, np.nan, spread(values, kernel) / weight)
    noise = np.where(unknown, np.nan, spread(variance, kernel**2) / weight**2)
    return mean.astype(np.float32), noise.astype(np.float32), bits
