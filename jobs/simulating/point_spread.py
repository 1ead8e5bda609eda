"""PSFs of simulated surveys as GalSim profiles, and stars drawn with them."""

from __future__ import annotations

import functools

import galsim
import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from surveybridge.jobs.simulating.observing import Instrument, PsfKind

GALAXY_PARAMETERS = galsim.GSParams(
    folding_threshold=2e-3, maxk_threshold=3e-4, kvalue_accuracy=1e-6, maximum_fft_size=16384
)
_STAR_PARAMETERS = galsim.GSParams(
    folding_threshold=1e-4, maxk_threshold=1e-7, kvalue_accuracy=1e-9, maximum_fft_size=16384
)
"""A saturated star of 1e7 nJy shows what would be far below the noise of a galaxy: ringing, and light folded back."""

DIFFRACTION, BLUR = 0.75, 0.3130
"""Of the optical PSF in units of its FWHM: lambda over diameter, and the sigma of the Gaussian (jitter, diffusion of
charge) that makes up the rest. Of VIS they are 0.12 and 0.05 arcsec."""
OBSCURATION, STRUTS, STRUT_WIDTH = 0.35, 3, 0.02
"""Of the pupil, in units of its diameter: central obscuration, and number and width of its struts."""

LEAST = 0.02
"""Wings are drawn to where a pixel has so much of the sky noise."""
_WIDEST = 40.0
"""No wings are drawn beyond, arcsec."""


def profile_of(instrument: Instrument, bright: bool = False) -> galsim.GSObject:
    """PSF of flux 1, without the pixel; with `bright` accurate enough for saturated stars."""
    return _profile(instrument.psf_kind, instrument.psf_fwhm, instrument.psf_beta, bright)


@functools.lru_cache(maxsize=64)
def _profile(kind: PsfKind, fwhm: float, beta: float, bright: bool) -> galsim.GSObject:
    accuracy = _STAR_PARAMETERS if bright else GALAXY_PARAMETERS
    if kind == "gaussian":
        return galsim.Gaussian(fwhm=fwhm, gsparams=accuracy)
    if kind == "moffat":
        return galsim.Moffat(beta=beta, fwhm=fwhm, gsparams=accuracy)
    if kind == "kolmogorov":
        return galsim.Kolmogorov(fwhm=fwhm, gsparams=accuracy)
    # Airy wings fall so slowly that their grid, not the accuracy of other profiles, has to say where they end.
    airy = galsim.OpticalPSF(
        lam_over_diam=DIFFRACTION * fwhm, obscuration=OBSCURATION, nstruts=STRUTS, strut_thick=STRUT_WIDTH,
        strut_angle=30 * galsim.degrees, pad_factor=1.5,
        gsparams=galsim.GSParams(folding_threshold=2e-3 if bright else 1e-2, maximum_fft_size=16384),
    )  # fmt: skip
    return galsim.Convolve(airy, galsim.Gaussian(sigma=BLUR * fwhm, gsparams=accuracy), propagate_gsparams=False)


def reach(instrument: Instrument, flux: float) -> float:
    """Radius, arcsec, beyond which a point source of `flux` nJy has less than `LEAST` of the sky noise in a pixel."""
    if instrument.psf_kind == "gaussian":
        return 2 * instrument.psf_fwhm
    radius, brightness = _wings(instrument.psf_kind, instrument.psf_fwhm, instrument.psf_beta)
    seen = brightness * flux * instrument.pixel_scale**2 >= LEAST * instrument.sky_sigma
    return float(max(radius[seen].max(initial=0.0), 2 * instrument.psf_fwhm))


@functools.lru_cache(maxsize=64)
def _wings(kind: PsfKind, fwhm: float, beta: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Radii, arcsec, and an upper envelope of the surface brightness there of a source of flux 1, per square arcsec."""
    radius = np.geomspace(fwhm, _WIDEST, 60)
    if kind == "optical":  # of the mean profile of an obscured Airy pattern, which falls as r^-3, and higher on spikes
        share = 4 * DIFFRACTION * fwhm / (np.pi**3 * (1 - OBSCURATION) * radius**3)
        return radius, share
    profile = _profile(kind, fwhm, beta, bright=True)
    return radius, np.array([profile.xValue(r, 0.0) for r in radius])


def draw_star(
    image: NDArray[np.float64], x: float, y: float, flux: float, instrument: Instrument, jacobian: galsim.JacobianWCS
) -> None:
    """Add a star to the image at pixel (x, y)."""
    if instrument.psf_kind != "gaussian":
        half = reach(instrument, flux) / instrument.pixel_scale
        draw(image, profile_of(instrument, bright=True) * flux, x, y, half, jacobian)
        return
    # In closed form, since a Fourier drawing of a saturated star rings at many sigma; a rotated grid does not matter.
    sigma = instrument.psf_fwhm / 2.354820 / instrument.pixel_scale
    half_side = int(np.ceil(8 * sigma)) + 2
    x0, y0 = int(np.floor(x)) - half_side, int(np.floor(y)) - half_side
    edges = np.arange(2 * half_side + 2) - 0.5
    px, py = (np.diff(0.5 * erf((edges + start - at) / (np.sqrt(2) * sigma))) for start, at in ((x0, x), (y0, y)))
    stamp = flux * np.outer(py, px)
    window, part = overlap(image, stamp, x0, y0)
    image[window] += stamp[part]


def draw(
    image: NDArray[np.float64], profile: galsim.GSObject, x: float, y: float, reach: float, jacobian: galsim.JacobianWCS
) -> None:
    """Add a profile to the image at pixel (x, y), in a stamp of half side `reach` pixels."""
    ny, nx = image.shape
    half = int(np.ceil(reach)) + 2
    x0, y0 = int(np.floor(x)) - half, int(np.floor(y)) - half
    if x0 + 2 * half < 0 or y0 + 2 * half < 0 or x0 >= nx or y0 >= ny:
        return
    bounds = galsim.BoundsI(x0, x0 + 2 * half, y0, y0 + 2 * half)
    stamp = profile.drawImage(galsim.ImageD(bounds), wcs=jacobian, center=galsim.PositionD(x, y)).array
    window, part = overlap(image, stamp, x0, y0)
    image[window] += stamp[part]


def overlap(
    image: NDArray[np.float64], stamp: NDArray[np.float64], x0: int, y0: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return where a stamp at (x0, y0) overlaps the image: slices of the image and of the stamp."""
    ys, ye = np.clip([y0, y0 + stamp.shape[0]], 0, image.shape[0])
    xs, xe = np.clip([x0, x0 + stamp.shape[1]], 0, image.shape[1])
    return (slice(ys, ye), slice(xs, xe)), (slice(ys - y0, ye - y0), slice(xs - x0, xe - x0))
