"""The image of one endpoint of a problem (a survey, or a physical field) on one pixel grid, in physical units."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from surveybridge.storage.celestial import celestial_wcs
from surveybridge.storage.errors import StorageError
from surveybridge.storage.psf import Psf, psf_of
from surveybridge.storage.readings import BandReading

MASK_PLANES: dict[str, int] = {"BAD": 1, "SAT": 2, "NO_DATA": 4, "CLIPPED_EDGE": 8}
"""Bit values of `SurveyImage.mask`. A pixel with any of them set is not usable."""


@dataclass(frozen=True)
class SurveyImage:
    """Flux (or whatever the pixels hold), variance and mask of one survey, all bands on one grid.

    Parameters
    ----------
    survey : str
        Name of the endpoint.
    bands : tuple of str
        Band names, in the order of the first axis.
    flux : float32 [C, H, W]
        `unit` per pixel, sky subtracted. NaN where the mask says NO_DATA, and only there.
    variance : float32 [C, H, W]
        unit^2 per pixel, of this pixel alone (see `noise_correlation`). NaN where NO_DATA.
    mask : uint8 [C, H, W]
        Bits of `MASK_PLANES`; 0 = usable.
    wcs_header : str
        Celestial WCS as a FITS header string (`WCS.to_header_string()`); `flux[:, 0, 0]` is FITS pixel (1, 1).
    pixel_scale : float
        arcsec.
    psf_fwhm : tuple of float
        arcsec per band; NaN where unknown.
    zero_point : float
        AB zero point of the *input file* (fluxes in nJy have zero point 31.4, whatever it was); NaN where the pixels
        are no fluxes.
    noise_correlation : tuple of float
        Correlation of the noise of neighbouring pixels (lag 1, mean of x and y) per band; 0 = white.
    provenance : dict of str to str
        Where the pixels come from and what was assumed.
    unit : str
        Unit of `flux`, as FITS writes it.
    extensive : bool
        Whether values add up over pixels, as fluxes do: a finer grid then divides them.
    readings : tuple of BandReading
        What was understood of the file of each band; empty where the image was not read from FITS.
    psf_wing : tuple of float
        1 / beta per band, of the Moffat profile with the PSF's wings; 0 is a Gaussian, NaN unknown (all by default).
    psf_model : tuple of Psf or None
        Per band the PSF as it was given, by profile or image; None where no more than width and wings are known (all by
        default).

    Raises
    ------
    StorageError
        If shapes or lengths contradict each other.
    """

    survey: str
    bands: tuple[str, ...]
    flux: NDArray[np.float32]
    variance: NDArray[np.float32]
    mask: NDArray[np.uint8]
    wcs_header: str
    pixel_scale: float
    psf_fwhm: tuple[float, ...]
    zero_point: float
    noise_correlation: tuple[float, ...]
    provenance: dict[str, str] = field(default_factory=dict)
    unit: str = "nJy"
    extensive: bool = True
    readings: tuple[BandReading, ...] = ()
    psf_wing: tuple[float, ...] = ()
    psf_model: tuple[Psf | None, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an image whose parts do not fit together."""
        for name, unknown in (("psf_wing", math.nan), ("psf_model", None)):
            if not getattr(self, name):
                object.__setattr__(self, name, (unknown,) * len(self.bands))
        for name in ("flux", "variance", "mask"):
            shape = getattr(self, name).shape
            if len(shape) != 3 or shape != self.flux.shape or shape[0] != len(self.bands):
                raise StorageError(
                    f"{self.survey} image: {name} has shape {shape} but flux {self.flux.shape} with bands "
                    f"{','.join(self.bands)} is [C,H,W]; give one plane per band, all of one size"
                )
        for name in ("psf_fwhm", "noise_correlation", "psf_wing", "psf_model"):
            if len(getattr(self, name)) != len(self.bands):
                raise StorageError(
                    f"{self.survey} image: {name} has {len(getattr(self, name))} values for {len(self.bands)} bands; "
                    "give one value per band"
                )

    @property
    def wcs(self) -> WCS:
        """Celestial WCS of the grid."""
        return celestial_wcs(self.wcs_header)

    def psf(self, band: int) -> Psf | None:
        """PSF of a band by its number: as it was given, else the Moffat of its width and wings; None if unknown."""
        return self.psf_model[band] or psf_of(self.psf_fwhm[band], self.psf_wing[band])

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Usable pixels, bool [C, H, W]."""
        return np.asarray(self.mask == 0)

    @functools.cached_property
    def sky_noise(self) -> tuple[float, ...]:
        """`sky_noise` of all of it; it takes a look at every pixel, and travels with the image once that is done."""
        return sky_noise(self)


Box = tuple[int, int, int, int]
"""(y0, y1, x0, x1), half-open, pixels."""


@dataclass(frozen=True)
class LazyImage:
    """The image of one endpoint of which parts are read when they are wanted, because all of it is too large.

    Parameters
    ----------
    head : SurveyImage
        Everything but the pixels: its arrays have the shape [C, 0, 0].
    shape : (int, int)
        Height and width, pixels.
    read : callable
        Gives flux, variance and mask [C, h, w] of a box inside.
    """

    head: SurveyImage
    shape: tuple[int, int]
    read: Callable[[Box], tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]] = field(repr=False)

    @classmethod
    def of(cls, image: SurveyImage) -> LazyImage:
        """An image that is in memory, as such a one."""
        height, width = image.flux.shape[1:]

        def read(box: Box) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
            y0, y1, x0, x1 = box
            return image.flux[:, y0:y1, x0:x1], image.variance[:, y0:y1, x0:x1], image.mask[:, y0:y1, x0:x1]

        return cls(without_pixels(image), (int(height), int(width)), read)

    def section(self, box: Box) -> SurveyImage:
        """The pixels of a box; the WCS stays that of the whole grid."""
        flux, variance, mask = self.read(box)
        return replace(self.head, flux=flux, variance=variance, mask=mask)

    def strip(self, start: int, stop: int) -> SurveyImage:
        """Rows start..stop; the WCS stays that of the whole grid."""
        return self.section((start, stop, 0, self.shape[1]))

    def whole(self) -> SurveyImage:
        """All pixels."""
        return self.strip(0, self.shape[0])


def without_pixels(image: SurveyImage) -> SurveyImage:
    """The same image with arrays of the shape [C, 0, 0]."""
    none = np.s_[:, :0, :0]
    return replace(image, flux=image.flux[none], variance=image.variance[none], mask=image.mask[none])


LEAST_SKY = 50
"""Pixels of the sky from which they say its noise."""

HIGHEST_VARIANCE = 10.0
"""Times the median variance: above, a pixel does not count for the noise of the sky."""

SKY_SIGMA = 3.0
"""A pixel is of the sky if its flux is below so many standard deviations of its noise."""


def sky_noise(image: SurveyImage) -> tuple[float, ...]:
    """Standard deviation of the noise of the sky, the root of its mean variance, by band, in the image's unit.

    To two digits, so that neighbouring tiles mostly say the same. Where there is no sky, all usable pixels count; NaN
    where there are none. Variances count, not the scatter of the pixels.
    """
    return noise_in(image, [np.s_[:, :]])[0]


def noise_in(image: SurveyImage, boxes: Sequence[tuple[slice, slice]]) -> list[tuple[float, ...]]:
    """`sky_noise` of parts of an image, which may overlap, by their rows and columns."""
    planes = []
    for flux, variance, mask in zip(image.flux, image.variance, image.mask, strict=True):
        usable = mask == 0
        with np.errstate(invalid="ignore"):
            sky = usable & (np.abs(flux) < SKY_SIGMA * np.sqrt(variance))
            planes.append((variance, sky, usable & (variance > 0)))
    return [tuple(_noise_of(*(plane[box] for plane in of_band)) for of_band in planes) for box in boxes]


def _noise_of(variance: NDArray[np.float32], sky: NDArray[np.bool_], usable: NDArray[np.bool_]) -> float:
    """Noise of a part of a band."""
    known = variance[sky]
    if known.size < LEAST_SKY:
        known = variance[usable]
    if not known.size:
        return math.nan
    # in double precision, because the variance of columns in cm-2 is as large as single precision goes
    known = known.astype(np.float64)
    if known.max() > HIGHEST_VARIANCE * known.min():  # else none is as far above the median
        known = known[known <= HIGHEST_VARIANCE * np.median(known)]  # single pixels of a map may say anything
    return float(f"{math.sqrt(known.mean()):.2g}")


def seeing(image: SurveyImage) -> float:
    """Widest PSF FWHM of the bands, arcsec; the pixel scale where no band's is known."""
    known = [fwhm for fwhm in image.psf_fwhm if fwhm == fwhm]  # NaN is unknown
    return max(known, default=image.pixel_scale)
