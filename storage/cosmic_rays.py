"""Cosmic rays in one image: found by edges sharper than the PSF leaves any object, by L.A.Cosmic (van Dokkum 2001).

The implementation is astroscrappy's. It works in fixed blocks of an image's pixels, so that what is found does not
depend on the part that is read, on fluxes and variances in units of the noise, so that it does not on their unit. Its
limit of contrast is that at which it takes no star of the image's PSF, at any place in a pixel, for a ray.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy
from numpy.typing import NDArray

from surveybridge.storage.coregister import fill_unknown
from surveybridge.storage.errors import StorageError
from surveybridge.storage.images import MASK_PLANES, Box
from surveybridge.storage.psf import Gaussian

SIGNIFICANCE, BESIDE = 5.0, 0.2
"""Laplacian in units of the noise from which a pixel may be of a ray, and the share of it that does beside one."""

LEAST_CONTRAST, MOST_CONTRAST = 2.0, 6.0
"""Limits of L.A.Cosmic's contrast (Laplacian over fine structure): below, noise on galaxies is taken for rays; an image
whose stars need more is too coarse for its PSF."""

TOUCHING_CONTRAST = 1.0
"""Contrast that is enough beside pixels of a ray."""

CONTRAST_MARGIN = 1.3
"""Factor above the contrast of stars without noise, for those with noise."""

DOUBTED, REFUSED = 0.01, 0.1
"""Shares of the usable pixels above which one doubts that all are rays, and above which they cannot be."""

BLOCK, MARGIN = 512, 48
"""Pixels: side of a block, and what is seen around it, farther than four iterations reach (10 pixels each)."""

LEAST_SIDE, EDGE = 16, 8
"""Pixels of a side below which nothing can be told, and by which an image is mirrored at its edges, where
astroscrappy takes no medians."""

PHASES, STAR_SIDE, STAR_FLUX = 5, 32, 3000.0
"""Places of a star in a pixel along an axis, pixels to the next star, and flux in units of the noise of a pixel."""

AROUND = np.ones((3, 3), bool)
"""A pixel and those that touch it."""

RAY = np.uint8(MASK_PLANES["BAD"])
"""The plane of the mask for rays, which is also that of rays that a file's mask shows."""

Planes = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]


def check_astroscrappy() -> None:
    """Refuse to begin without `astroscrappy`."""
    if importlib.util.find_spec("astroscrappy") is None:
        raise StorageError(
            "finding cosmic rays needs the package astroscrappy, which is not installed; "
            "pip install 'surveybridge[cosmic-rays]'"
        )


@dataclass(frozen=True)
class RayFinder:
    """The cosmic rays of an image, found block by block as parts of it are asked for.

    Parameters
    ----------
    read : callable
        Gives flux, variance (squared unit) and mask [h, w] of a box of the image.
    shape : (int, int)
        Height and width of the image, pixels.
    sigma : float
        Noise of a pixel, in the unit of the flux.
    contrast : float
        From `contrast_for`.
    """

    read: Callable[[Box], Planes] = field(repr=False)
    shape: tuple[int, int]
    sigma: float
    contrast: float
    _found: dict[tuple[int, int], tuple[NDArray[np.intp], NDArray[np.intp]]] = field(default_factory=dict, repr=False)

    def masked(self, box: Box) -> Planes:
        """Flux, variance and mask of a box, with the rays in the mask."""
        flux, variance, mask = self.read(box)
        return flux, variance, np.where(self.rays(box), mask | RAY, mask)

    def rays(self, box: Box) -> NDArray[np.bool_]:
        """Usable pixels of rays, and those beside them, in a box, bool [h, w]."""
        y0, y1, x0, x1 = box
        rays = np.zeros((y1 - y0, x1 - x0), bool)
        for row in range(y0 // BLOCK, -(-y1 // BLOCK)):
            columns = range(x0 // BLOCK, -(-x1 // BLOCK))
            self._look(row, [column for column in columns if (row, column) not in self._found])
            for column in columns:
                y, x = self._found[row, column]
                inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
                rays[y[inside] - y0, x[inside] - x0] = True
        return rays

    def look_at(self, planes: Planes) -> NDArray[np.bool_]:
        """Pixels of rays in flux, variance and mask of a part, by itself."""
        return find_rays(*planes, self.sigma, self.contrast)

    def _look(self, row: int, columns: list[int]) -> None:
        """Find the rays of blocks of a row."""
        if not columns:
            return
        (height, width), top = self.shape, row * BLOCK
        first, last = max(top - MARGIN, 0), min(top + BLOCK + MARGIN, height)
        left = max(columns[0] * BLOCK - MARGIN, 0)
        right = min((columns[-1] + 1) * BLOCK + MARGIN, width)
        planes = self.read((first, last, left, right))
        for column in columns:
            start, stop = max(column * BLOCK - MARGIN, 0), min((column + 1) * BLOCK + MARGIN, width)
            part = np.s_[:, start - left : stop - left]
            y, x = np.nonzero(self.look_at((planes[0][part], planes[1][part], planes[2][part])))
            y, x = y + first, x + start
            own = (y // BLOCK == row) & (x // BLOCK == column)
            self._found[row, column] = y[own], x[own]


def find_rays(
    flux: NDArray[np.float32], variance: NDArray[np.float32], mask: NDArray[np.uint8], sigma: float, contrast: float
) -> NDArray[np.bool_]:
    """Find usable pixels of cosmic rays, and take those beside them along.

    Parameters
    ----------
    flux, variance : float32 [H, W]
        In any unit, and squared; what is not usable does not count.
    mask : uint8 [H, W]
        Bits of `MASK_PLANES`.
    sigma : float
        Noise of a pixel in that unit.
    contrast : float
        What L.A.Cosmic calls objlim.

    Returns
    -------
    bool [H, W]
    """
    usable = (mask == 0) & np.isfinite(flux) & np.isfinite(variance)
    # astroscrappy takes medians of the usable pixels that touch no others: there must be some
    if min(flux.shape) < LEAST_SIDE or not scipy.ndimage.binary_erosion(usable, AROUND).any():
        return np.zeros(flux.shape, bool)
    # a saturated value is too low, but nearer the truth than a fill from outside the core
    known = ((mask & ~np.uint8(MASK_PLANES["SAT"])) == 0) & np.isfinite(flux) & np.isfinite(variance)
    filled = fill_unknown((flux / np.float32(sigma), variance / np.float32(sigma) ** 2), known)
    flux_in_noise, variance_in_noise = (np.pad(plane.astype(np.float32), EDGE, "symmetric") for plane in filled)
    usable = np.pad(usable, EDGE, "symmetric")
    rays = _lacosmic(flux_in_noise, variance_in_noise, usable, contrast)
    if rays.any():
        # a pixel that a star could have too is of the ray that it touches
        tracks, _ = scipy.ndimage.label(_lacosmic(flux_in_noise, variance_in_noise, usable, TOUCHING_CONTRAST), AROUND)
        rays |= np.isin(tracks, np.unique(tracks[rays & (tracks > 0)]))
    return np.asarray(scipy.ndimage.binary_dilation(rays, AROUND) & usable)[EDGE:-EDGE, EDGE:-EDGE]


def _lacosmic(
    flux: NDArray[np.float32], variance: NDArray[np.float32], usable: NDArray[np.bool_], contrast: float
) -> NDArray[np.bool_]:
    from astroscrappy import detect_cosmics

    rays, _ = detect_cosmics(
        flux,
        inmask=~usable,
        invar=variance,
        sigclip=SIGNIFICANCE,
        sigfrac=BESIDE,
        objlim=contrast,
        gain=1.0,
        readnoise=0.0,
        satlevel=np.inf,
        sepmed=False,  # separable medians take the cores of all bright stars for rays
    )
    return np.asarray(rays)


def contrast_for(fwhm: float, pixel_scale: float, where: str) -> float:
    """Return the contrast above which a pixel is of no star.

    Parameters
    ----------
    fwhm, pixel_scale : float
        arcsec; of the PSF, which is taken for a Gaussian, the sharpest of its width.
    where : str
        The image, for messages.

    Raises
    ------
    StorageError
        The PSF is not known, or stars are as sharp as rays.
    """
    if math.isnan(fwhm):
        raise StorageError(
            f"{where}: its PSF is not known, so stars cannot be told from cosmic rays; give it as --psf NAME.BAND=PSF "
            "(or --euclid-psf, --lsst-psf), or leave out --cosmic-rays"
        )
    contrast = CONTRAST_MARGIN * star_contrast(fwhm, pixel_scale)
    if contrast > MOST_CONTRAST:
        raise StorageError(
            f'{where}: with a PSF of {fwhm:.3g}" in pixels of {pixel_scale:.3g}", stars are as sharp as cosmic '
            f"rays and would be masked (contrast above {MOST_CONTRAST:g}, expected below); leave out --cosmic-rays, "
            "and give a mask"
        )
    return max(contrast, LEAST_CONTRAST)


@functools.lru_cache(maxsize=32)
def star_contrast(fwhm: float, pixel_scale: float) -> float:
    """Least contrast, to 0.05, at which no star is taken for a ray, wherever in a pixel it lies; infinite above 6."""
    stars = STAR_FLUX * _stars(Gaussian(fwhm), pixel_scale)
    variance, mask = np.ones(stars.shape, np.float32), np.zeros(stars.shape, np.uint8)

    def safe(contrast: float) -> bool:
        return not find_rays(stars, variance, mask, 1.0, contrast).any()

    low, high = 0.1, MOST_CONTRAST
    if not safe(high):
        return math.inf
    while high - low > 0.05:
        middle = (low + high) / 2
        low, high = (low, middle) if safe(middle) else (middle, high)
    return high


def _stars(psf: Gaussian, pixel_scale: float) -> NDArray[np.float32]:
    """Stars of flux 1 without noise, one for each place in a pixel, float32 [PHASES * STAR_SIDE, the same]."""
    frequency = np.fft.fftfreq(STAR_SIDE, pixel_scale)
    offsets = (np.linspace(-0.5, 0.5, PHASES) + STAR_SIDE // 2) * pixel_scale
    spectrum = np.zeros((PHASES, PHASES, STAR_SIDE, STAR_SIDE), complex)
    aliases = frequency + np.arange(-2, 3)[:, None] / pixel_scale  # a pixel samples more than Nyquist's frequencies
    for v in aliases:
        for u in aliases:
            pixel = np.sinc(u * pixel_scale) * np.sinc(v * pixel_scale)[:, None]
            transfer = psf.transfer(u[None, :], v[:, None]) * pixel
            down, across = (np.exp(-2j * np.pi * offsets[:, None] * along) for along in (v, u))
            spectrum += down[:, None, :, None] * across[None, :, None, :] * transfer
    stamps = np.fft.ifft2(spectrum).real
    return np.ascontiguousarray(stamps.transpose(0, 2, 1, 3).reshape((PHASES * STAR_SIDE,) * 2), np.float32)
