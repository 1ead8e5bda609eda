"""Images as they would be through a worse seeing and with more noise: the process of the seeing, run forward.

An observed image has modes x(k) with noise of the power N(k). Through a wider PSF the same sky has the modes K(k) x(k),
with noise of the power |K|^2 N. An exposure through that PSF with f times the noise has f^2 N. So noise of the power
(f^2 - |K|^2) N is added, independent of the noise that is there.
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from surveybridge.bridge_core.sampler import window_noise
from surveybridge.bridge_core.spectral import mean_power, noise_of_power
from surveybridge.jobs.config import RequestError
from surveybridge.storage.homogenise import BandPlan, homogenise, noise_lags, plan_bands
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.psf import Psf, parse_psf
from surveybridge.storage.psf_matching import MOST_REACH, SUPPORT, Matching, noise_power

REACH = 24
"""Pixels that the filter of the added noise reaches to each side."""

MODES = 128
"""Side of the grid of modes on which the spectrum of the added noise is computed."""

ROUNDING = 0.02
"""By so much more than the wanted noise an approximate kernel may pass of a mode and count as passing no more."""

SAID = "degraded"
"""Key, after band and dot, under which the provenance of an image says what was done; alone, how often."""


@dataclass(frozen=True)
class Worse:
    """What images are to become.

    Parameters
    ----------
    psfs : mapping of str to mapping of str to str
        PSFs by endpoint and band, as `psf.parse_psf` reads them; the others stay.
    noise : mapping of str to mapping of str to float
        Factors, at least 1, by which the noise of a pixel is to be larger, by endpoint and band; 1 by default.
    seed : int
        Of the added noise.
    """

    psfs: Mapping[str, Mapping[str, str]]
    noise: Mapping[str, Mapping[str, float]]
    seed: int = 0

    def targets(self, image: SurveyImage) -> list[Psf | None]:
        """The PSF for each band of an image; None where it stays."""
        wanted = self.psfs.get(image.survey, {})
        return [parse_psf(wanted[band]) if band in wanted else None for band in image.bands]

    def factors(self, image: SurveyImage) -> list[float]:
        """By how much the noise of each band of an image is to be larger."""
        wanted = self.noise.get(image.survey, {})
        return [wanted.get(band, 1.0) for band in image.bands]

    def concerns(self, image: SurveyImage) -> bool:
        """Whether anything of an image is to change."""
        return any(self.targets(image)) or max(self.factors(image)) > 1

    def plans(self, image: SurveyImage, where: str) -> list[BandPlan]:
        """What brings each band to its PSF; needs no pixels.

        Raises
        ------
        RequestError
            If a PSF is not known, is wider than the wanted one, or is so much narrower that no kernel is wide enough.
        """
        targets = self.targets(image)
        plans = plan_bands(image, targets)
        for number, (plan, target, factor) in enumerate(zip(plans, targets, self.factors(image), strict=True)):
            source = image.psf(number)
            if target is None:
                continue
            if plan.matching is None and plan.said:
                raise RequestError(f"{where} {image.survey} {plan.band}: {plan.said}; ingest it with --psf")
            if plan.matching is not None and (
                plan.matching.limited or _passed(plan.matching).max() > factor**2 + ROUNDING
            ):
                has = image.psf_fwhm[number] if source is None else source.fwhm
                way = "by blurring alone; give a PSF that is wider at all radii"
                if has < target.fwhm > MOST_REACH * image.pixel_scale / SUPPORT:
                    reach = MOST_REACH * image.pixel_scale
                    way = (
                        f"through a kernel of {MOST_REACH} pixels, {reach:.3g} arcsec, to each side; "
                        "give a PSF that is less wide, but wider than its own at all radii"
                    )
                raise RequestError(
                    f"{where} {image.survey} {plan.band}: its PSF of {has:.3g} arcsec FWHM cannot become {target} {way}"
                )
        return plans


def degraded_image(image: SurveyImage, worse: Worse, origin: tuple[int, int], grid: str, where: str) -> SurveyImage:
    """Return an image at its wider PSF with its larger noise.

    Parameters
    ----------
    image : SurveyImage
    worse : Worse
    origin : (y, x)
        Global pixel of its corner, to which the added noise belongs: where two images overlap it has the same bits.
    grid : str
        Name of the pixel grid: others have other noise. So has an image that was degraded before.
    where : str
        What it is part of, for errors.

    Returns
    -------
    SurveyImage
        The correlation of the noise is that of before, as of the same survey on a worse night. Where the variance is
        the same all around, it becomes the square of the factor times as large.

    Raises
    ------
    RequestError
        As `Worse.plans`.
    """
    if not worse.concerns(image):
        return image
    plans, factors = worse.plans(image, where), worse.factors(image)
    blurred = homogenise(image, plans)
    flux, variance = blurred.flux.copy(), blurred.variance.copy()
    missing = torch.from_numpy(np.stack([
        missing_power(noise_lags(image, band), plan.matching, factors[band]) for band, plan in enumerate(plans)
    ]))  # fmt: skip
    times = int(image.provenance.get(SAID, 0))
    key = hashlib.sha256(f"degrade {worse.seed} {grid} {times}".encode()).digest()
    noise = noise_of_power(
        window_noise(int.from_bytes(key[:8]), stream_of(image.survey), [(0, 0)], [origin], torch.device("cpu")),
        0,
        missing,
        (len(image.bands), *image.flux.shape[1:]),
        REACH,
    )[0].numpy()
    said = {SAID: str(times + 1)}
    for band, (plan, factor) in enumerate(zip(plans, factors, strict=True)):
        flux[band] += noise[band] * np.sqrt(image.variance[band])
        variance[band] += float(mean_power(missing[band])) * image.variance[band]
        done = f"{plan.said or 'PSF as it was'}, then noise to x {factor:g} of before"
        name = f"{plan.band}.{SAID}"
        said[name] = f"{image.provenance[name]}; {done}" if name in image.provenance else done
    return replace(
        blurred,
        flux=flux,
        variance=variance,
        noise_correlation=image.noise_correlation,
        provenance=blurred.provenance | said,
    )


@functools.lru_cache(maxsize=64)
def missing_power(lags: tuple[float, ...], matching: Matching | None, factor: float) -> NDArray[np.float64]:
    """Power of the noise to be added, [MODES, MODES // 2 + 1], in units of the variance of a pixel before."""
    power = noise_power(lags, (MODES, MODES))[:, : MODES // 2 + 1]
    passed = 1.0 if matching is None else _passed(matching)
    return np.asarray(np.maximum(factor**2 - passed, 0) * power)


def stream_of(survey: str) -> int:
    """Number of the field of noise of a survey."""
    return zlib.crc32(survey.encode()) % (1 << 24)


def _passed(matching: Matching) -> NDArray[np.float64]:
    """|K|^2 by mode, [MODES, MODES // 2 + 1]."""
    reach = matching.reach
    padded = np.zeros((MODES, MODES))
    padded[: 2 * reach + 1, : 2 * reach + 1] = matching.kernel
    return np.asarray(np.abs(np.fft.rfft2(padded)) ** 2)
