"""Homogenisation: bands brought from their PSFs to wanted ones, with variance, correlation and masks."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import NDArray

from surveybridge.storage.coregister import fill_unknown
from surveybridge.storage.images import MASK_PLANES, SurveyImage
from surveybridge.storage.psf import Psf, parse_psf, psf_of
from surveybridge.storage.psf_matching import NOISE_BOUND, Matching, agree, matching
from surveybridge.storage.spline import noise_covariance

GROWTH = {"BAD": 0.1, "SAT": 0.01, "NO_DATA": 0.1, "CLIPPED_EDGE": 0.1}
"""Unusable pixels reach so far that beyond lies this share of a kernel's squared weight, and so of the variance that
what stands in for them can add. Nobody knows the flux of a saturated one: those reach farther."""

FILL_SIGMA = 2.0
"""Pixels: width of the Gaussian mean of known neighbours that stands in for an unusable pixel."""

FILL_REACH = math.ceil(4 * FILL_SIGMA)
"""Pixels beyond which no neighbour counts; farther from any known pixel stands the sky, 0."""

LAGS = 16
"""Pixels to which the noise of an interpolated image is correlated."""


SAID = "homogenised"
"""Key, after band and dot, under which the provenance of an image says what was done."""


@dataclass(frozen=True)
class BandPlan:
    """What is to be done to a band.

    Attributes
    ----------
    band : str
    matching : Matching or None
        None where the band stays as it is.
    said : str
        What is done, or why nothing, in words; "" where nothing is to be done.
    """

    band: str
    matching: Matching | None
    said: str


@dataclass(frozen=True)
class WantedPsfs:
    """The PSFs to which images are brought.

    Parameters
    ----------
    psfs : mapping of str to mapping of str to str
        By endpoint and band: a profile, as `psf.parse_psf` reads it.
    noise : float
        Factor by which the noise of a pixel may grow.
    """

    psfs: Mapping[str, Mapping[str, str]]
    noise: float = NOISE_BOUND

    def targets(self, image: SurveyImage) -> list[Psf | None]:
        """The PSFs for the bands of an image; None where there is none."""
        wanted = self.psfs.get(image.survey, {})
        return [parse_psf(wanted[band]) if band in wanted else None for band in image.bands]

    def plans(self, image: SurveyImage, halo: int | None = None) -> list[BandPlan]:
        """What is done to an image, as `plan_bands`."""
        return plan_bands(image, self.targets(image), self.noise, halo)


def plan_bands(
    image: SurveyImage, targets: Sequence[Psf | None], bound: float = NOISE_BOUND, halo: int | None = None
) -> list[BandPlan]:
    """Find what brings each band to its target; needs no pixels.

    Parameters
    ----------
    image : SurveyImage
        Where only the width of a band's PSF is known, its wings are taken to be those of the target.
    targets : sequence of Psf or None
        By band; None leaves it as it is.
    bound : float
        Factor by which the noise of a pixel may grow; where that is not enough, the PSF comes as near as it allows.
    halo : int, optional
        Pixels that the image has around those that are wanted: a kernel that reaches farther is not used. By default
        there is nothing around that could be missed.
    """
    return [_plan_band(image, band, target, bound, halo) for band, target in enumerate(targets)]


def _plan_band(image: SurveyImage, band: int, target: Psf | None, bound: float, halo: int | None) -> BandPlan:
    name, fwhm = image.bands[band], image.psf_fwhm[band]
    if target is None:
        return BandPlan(name, None, "")
    source = image.psf(band) or psf_of(fwhm, target.wing)
    if source is None:
        return BandPlan(name, None, "as it is: its PSF is not known")
    assumed = "" if image.psf(band) else ", its wings taken to be those"
    if agree(source, target):
        return BandPlan(name, None, "")
    found = matching(source, target, image.pixel_scale, noise_lags(image, band), bound)
    way = f"{_words(source)} to {_words(target)}{assumed}"
    if halo is not None and found.reach + FILL_REACH > halo:
        need = found.reach + FILL_REACH
        return BandPlan(name, None, f"as it is: {way} needs {need} pixels around a tile and there are {halo}")
    short = f", but only {_words(found.reached)} is reached" if found.limited else ""
    return BandPlan(name, found, f"{way}{short}, noise x {found.noise:.2f}, over {found.reach} pixels")


def _words(psf: Psf) -> str:
    wing = f" (1/beta {psf.wing:.2f})" if psf.wing >= 0.005 else ""
    return f'{psf.fwhm:.3g}"{wing}'


def homogenise(image: SurveyImage, plans: Iterable[BandPlan]) -> SurveyImage:
    """Convolve the bands of an image as planned.

    Parameters
    ----------
    image : SurveyImage
        Unusable pixels are filled from their neighbours, and stay unusable. What lies around the image is unknown.
    plans : iterable of BandPlan
        From `plan_bands`, in the order of the bands.

    Returns
    -------
    SurveyImage
        Flux is conserved. The variance is that of each single pixel, correlation of the input included, and
        `noise_correlation` that after. A pixel is unusable where too much of its kernel was (`GROWTH`), by the planes
        of the cause; near what has no data, and the edges of the image, it is CLIPPED_EDGE. The same image with more
        or fewer pixels around it has the same values, if these are at least the kernel and `FILL_REACH` away.
    """
    plans = list(plans)
    if any(plan.matching for plan in plans):
        flux, variance, mask = image.flux.copy(), image.variance.copy(), image.mask.copy()
    else:
        flux, variance, mask = image.flux, image.variance, image.mask
    changed: dict[str, list[object]] = {
        name: list(getattr(image, name)) for name in ("psf_fwhm", "psf_wing", "psf_model", "noise_correlation")
    }
    said = {}
    for band, plan in enumerate(plans):
        if plan.said:
            said[f"{plan.band}.{SAID}"] = plan.said
        if plan.matching is None:
            continue
        flux[band], variance[band], mask[band] = _convolved(image, band, plan.matching)
        reached = plan.matching.reached
        after = (reached.fwhm, reached.wing, reached, plan.matching.correlation)
        for name, value in zip(changed, after, strict=True):
            changed[name][band] = value
    return replace(
        image,
        flux=flux,
        variance=variance,
        mask=mask,
        provenance=image.provenance | said,
        **{name: tuple(values) for name, values in changed.items()},  # type: ignore[arg-type]
    )


def _convolved(
    image: SurveyImage, band: int, how: Matching
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
    """Flux, variance and mask [H, W] of a band after."""
    before = image.mask[band]
    known = before == 0
    planes = [np.nan_to_num(plane[band], nan=0.0) for plane in (image.flux, image.variance)]
    flux, variance = fill_unknown(planes, known, FILL_SIGMA, far=0.0)
    flux = scipy.signal.oaconvolve(flux, how.kernel, mode="same")
    # far out a correlated kernel weighs below 0, where a bright source makes more than it takes
    least = LEAST_VARIANCE * how.variance_kernel.sum() * variance
    variance = np.maximum(scipy.signal.oaconvolve(variance, how.variance_kernel, mode="same"), least)
    mask = _grown(before, how)
    unknown = mask & MASK_PLANES["NO_DATA"] != 0
    return (
        np.where(unknown, np.nan, flux).astype(np.float32),
        np.where(unknown, np.nan, variance).astype(np.float32),
        mask,
    )


LEAST_VARIANCE = 0.01
"""Of a pixel afterwards, in units of what it would be if that of all others were the same."""


def _grown(mask: NDArray[np.uint8], how: Matching) -> NDArray[np.uint8]:
    """The planes of a mask as far as they reach afterwards; what lies outside has no data."""
    after = mask.copy()
    outside = np.pad(mask, 1, constant_values=MASK_PLANES["NO_DATA"])
    for plane, share in GROWTH.items():
        is_set = outside & MASK_PLANES[plane] != 0
        if not is_set.any():
            continue
        near = scipy.ndimage.distance_transform_edt(~is_set)[1:-1, 1:-1] <= how.radius(share)
        becomes = "CLIPPED_EDGE" if plane == "NO_DATA" else plane
        after[near] |= MASK_PLANES[becomes]
    return after


def noise_lags(image: SurveyImage, band: int) -> tuple[float, ...]:
    """Correlation of the noise at 0, 1, 2, ... pixels along an axis.

    That of an image which was interpolated onto a finer grid follows from the spline and the correlation that the noise
    had before; of any other, r^lag.
    """
    correlation = image.noise_correlation[band]
    if correlation <= 0:
        return (1.0,)
    native = native_pixel(image, band)
    if native > 1.01 * image.pixel_scale:
        return _interpolated_lags(round(image.pixel_scale / native, 4), round(correlation, 3))
    return tuple(correlation**lag for lag in range(LAGS if correlation < 0.7 else 3 * LAGS))


def native_pixel(image: SurveyImage, band: int) -> float:
    """Side in arcsec of the pixels that a band was taken with, before it was interpolated; else that of the image."""
    told = image.provenance
    native = told.get(f"{image.bands[band]}.native_pixel_scale", told.get("native_pixel_scale"))
    return image.pixel_scale if native is None else float(native)


@functools.cache
def _interpolated_lags(step: float, correlation: float) -> tuple[float, ...]:
    """Those of a spline at `step` input pixels, whose noise has a correlation at the first."""

    def lag(number: int, before: float) -> float:
        return spline_lags(step, before, number + 1)[number]

    most = 0.9
    before = 0.0
    if lag(1, 0.0) < correlation:
        before = (
            most
            if lag(1, most) < correlation
            else scipy.optimize.brentq(lambda r: lag(1, r) - correlation, 0, most, xtol=1e-2)
        )
    return spline_lags(step, before)


@functools.cache
def spline_lags(step: float, before: float, count: int = LAGS) -> tuple[float, ...]:
    """Correlation at `count` lags of pixels that a spline has at every `step` input pixels.

    `before` is that of neighbouring input pixels, r^|lag|.
    """
    variance = noise_covariance(0.0, before)
    return tuple(noise_covariance(number * step, before) / variance for number in range(count))
