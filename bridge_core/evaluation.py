"""The quantities that an evaluation adds up over pairs, so that any split of the work gives the same result.

Pixels are judged by band in units of the band's sky noise, everywhere and in regions: `bright` where the posterior
mean is above 3 sigma, `sky` where it is below 1.5 sigma (neither looks at the truth, whose noise would choose pixels
that it has raised), and `bright_truth` where the observed pixel itself is above 3 sigma.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.bridge_core.apertures import aperture
from surveybridge.bridge_core.correlate import gaussian_blur
from surveybridge.bridge_core.detection import detect
from surveybridge.bridge_core.metrics import crps, energy_score, interval_width, patch_energy_score, ranks
from surveybridge.bridge_core.morphology import STATISTICS, power_spectrum, shapes
from surveybridge.bridge_core.problem import to_channels
from surveybridge.bridge_core.stretch import Stretch

REGIONS = ("all", "sky", "bright", "bright_truth")
LEVELS = (0.50, 0.68, 0.90, 0.95)
PATCH_SCALES = (1, 2, 4, 8)
PUBLISHED_CHANNELS = 3
"""Channels of the image in which AS-Bridge takes its energy score, with one band repeated."""
PIXEL_SUMS = ("pixels", "squared_error", "variance", "crps", "squared_error_display", "variance_display")
"""The single numbers among `PixelSums`."""
APERTURE_ARCSEC = 1.0
"""Radius of the circle around a stamp's centre in which fluxes are measured."""

MATCH_ARCSEC = 0.3
"""A source of a sample this near to one of the truth is that source: twice VIS's PSF sigma, a third of LSST's."""

Floats = NDArray[np.float64]
Columns = dict[str, Floats]


@dataclass(frozen=True)
class PixelSums:
    """Sums over the pixels of each pair, by band and region.

    Parameters
    ----------
    pixels, squared_error, variance, crps
        float64 [N, C, R]: count, squared error of the mean, unbiased variance over samples, fair CRPS; in units of the
        sky noise.
    squared_error_display, variance_display
        float64 [N, C, R]: the same two in the display in which the energy score is taken, where a few bright cores do
        not outweigh all other pixels.
    within
        float64 [N, C, R, L]: pixels inside the predictive interval of each of `LEVELS`.
    ranks
        float64 [N, C, R, K + 1]: histogram of the truth's rank among the samples.
    """

    pixels: Tensor
    squared_error: Tensor
    variance: Tensor
    crps: Tensor
    squared_error_display: Tensor
    variance_display: Tensor
    within: Tensor
    ranks: Tensor

    @classmethod
    def of(cls, samples: Tensor, truth: Tensor, sigma: Tensor, bands: tuple[str, ...], display: Stretch) -> PixelSums:
        """Sums of samples [K, N, C, H, W] against a truth [N, C, H, W], nJy, with a sky noise [C]."""
        k = len(samples)
        unit = sigma.double().view(-1, 1, 1)
        x, y = samples.double() / unit, truth.double() / unit
        mean, std = x.mean(0), x.std(0)
        inside = {"all": torch.ones_like(mean, dtype=torch.bool), "sky": mean < 1.5, "bright": mean > 3}
        inside["bright_truth"] = y > 3
        where = torch.stack([inside[region] for region in REGIONS], 2).double()  # [N, C, R, H, W]

        def total(values: Tensor) -> Tensor:
            return torch.einsum("ncrhw,nchw->ncr", where, values.double())

        shown, shown_truth = display.forward(samples, bands).double(), display.forward(truth, bands).double()
        pull = (y - mean).abs() / std
        rank = ranks(x, y)
        return cls(
            pixels=where.sum((3, 4)),
            squared_error=total((y - mean) ** 2),
            variance=total(std**2),
            crps=total(crps(x, y)),
            squared_error_display=total((shown_truth - shown.mean(0)) ** 2),
            variance_display=total(shown.var(0)),
            within=torch.stack([total(pull <= interval_width(level, k)) for level in LEVELS], -1),
            ranks=torch.stack([total(rank == j) for j in range(k + 1)], -1),
        )


@dataclass(frozen=True)
class PixelMeasures:
    """Measures that are computed from summed `PixelSums`, each float64 with the leading axes of the sums."""

    rmse: NDArray[np.float64]
    crps: NDArray[np.float64]
    spread_skill: NDArray[np.float64]
    spread_skill_display: NDArray[np.float64]
    coverage: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        samples: int,
        pixels: NDArray[np.float64],
        squared_error: NDArray[np.float64],
        variance: NDArray[np.float64],
        crps: NDArray[np.float64],
        squared_error_display: NDArray[np.float64],
        variance_display: NDArray[np.float64],
        within: NDArray[np.float64],
    ) -> PixelMeasures:
        """Compute the measures of sums over any pairs and bands; NaN where there are no pixels.

        The mean of K samples misses the truth by sqrt(1 + 1/K) of the posterior's width, so spread/skill is
        sqrt((1 + 1/K) mean variance / mean squared error): 1 where calibrated, for any K (Fortin et al. 2014).
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return cls(
                rmse=np.sqrt(squared_error / pixels),
                crps=crps / pixels,
                spread_skill=np.sqrt((1 + 1 / samples) * variance / squared_error),
                spread_skill_display=np.sqrt((1 + 1 / samples) * variance_display / squared_error_display),
                coverage=within / pixels[..., None],
            )


def image_scores(samples: Tensor, truth: Tensor, bands: tuple[str, ...], display: Stretch) -> Columns:
    """Scores of whole images, each [N]: energy score as published and fair, and by patches at `PATCH_SCALES`.

    Parameters
    ----------
    samples
        [K, N, C, H, W] nJy per pixel.
    truth
        [N, C, H, W].
    display
        AS-Bridge's stretch (`Stretch.asbridge`), whatever the model's own is. Of the energy scores its [-1, 1] is
        [0, 1], with a single band repeated to `PUBLISHED_CHANNELS` as it does; those of patches are in its own units,
        each band once.
    """
    shown, shown_truth = display.forward(samples, bands), display.forward(truth, bands)
    channels = max(PUBLISHED_CHANNELS, len(bands))
    u, y = to_channels(shown, channels), to_channels(shown_truth, channels)
    scores = {
        "energy_score": energy_score(u, y),
        "energy_score_fair": energy_score(u, y, fair=True),
    }
    by_scale = patch_energy_score(shown, shown_truth, PATCH_SCALES)
    scores |= {f"patch_energy_{scale}": score for scale, score in zip(PATCH_SCALES, by_scale, strict=True)}
    return {name: score.double().numpy() for name, score in scores.items()}


def photometry(samples: Tensor, truth: Tensor, bands: tuple[str, ...], pixel_scale: float) -> Columns:
    """Flux in the central aperture, nJy, each [N] by band: of the truth, of the mean, and the samples' std.

    With several bands also their colours, magnitudes, NaN where a flux is not positive: of the truth [N], and
    `.._samples` [N, K].
    """
    circle = aperture((truth.shape[-2], truth.shape[-1]), APERTURE_ARCSEC / pixel_scale).double()
    drawn = torch.einsum("kncyx,yx->knc", samples.double(), circle)
    true = torch.einsum("ncyx,yx->nc", truth.double(), circle)
    columns: Columns = {}
    for c, band in enumerate(bands):
        columns[f"flux_{band}"] = true[:, c].numpy()
        columns[f"flux_{band}_mean"] = drawn.mean(0)[:, c].numpy()
        columns[f"flux_{band}_std"] = drawn.std(0)[:, c].numpy()
    for c, (blue, red) in enumerate(itertools.pairwise(bands)):
        columns[f"colour_{blue}{red}"] = _colour(true[:, c], true[:, c + 1]).numpy()
        columns[f"colour_{blue}{red}_samples"] = _colour(drawn[:, :, c], drawn[:, :, c + 1]).T.numpy()
    return columns


def morphology(samples: Tensor, truth: Tensor, sigma: Tensor, pixel_scale: float) -> Columns:
    """Shape statistics, power and detected sources of the last band: of the truth [N, ...], and `.._samples` of all.

    Parameters
    ----------
    samples, truth
        [K, N, C, H, W] and [N, C, H, W], nJy.
    sigma
        Sky noise by band, nJy.
    """
    true, drawn = shapes(truth[:, -1], pixel_scale), shapes(samples[:, :, -1], pixel_scale)
    columns: Columns = {name: true[name].numpy() for name in STATISTICS}
    columns |= {f"{name}_samples": drawn[name].T.numpy() for name in STATISTICS}
    columns["power"] = power_spectrum(truth[:, -1]).numpy()
    columns["power_samples"] = power_spectrum(samples[:, :, -1]).mean(0).numpy()
    true_places = _source_places(truth[:, -1], float(sigma[-1]))
    places = [_source_places(x[:, -1], float(sigma[-1])) for x in samples]
    reach = MATCH_ARCSEC / pixel_scale
    columns["sources"] = np.array([len(there) for there in true_places], np.float64)
    columns["sources_samples"] = np.array([[len(there) for there in each] for each in places], np.float64).T
    columns["sources_matched_samples"] = np.array(
        [[matches(*two, reach) for two in zip(each, true_places, strict=True)] for each in places], np.float64
    ).T
    return columns


def trivial_scores(observed: Tensor, wanted: Tensor, pixel_scale: float, noise: float) -> Columns:
    """Return anomaly scores that need no model, each [N]; the score of a model has to beat them.

    Parameters
    ----------
    observed, wanted
        [N, B, H, W] each, in their unit per pixel, such as gri and VIS; `wanted` is the catalog's end.
    pixel_scale
        Arcsec a pixel of `observed`.
    noise
        Sky noise of the first band of `wanted`, per pixel.

    Returns
    -------
    dict
        `central_flux`: the last observed band (i) in the central aperture; `total_flux`: all of the first wanted band
        (VIS); `inverse_flux`: -central_flux, which ranks as 1/flux does; `smooth_residual`: what a Gaussian of 3 pixels
        (FWHM 0.7") leaves of the first wanted band, mean square in sigma^2.
    """
    central = torch.einsum(
        "nyx,yx->n",
        observed[:, -1].double(),
        aperture((observed.shape[-2], observed.shape[-1]), APERTURE_ARCSEC / pixel_scale).double(),
    )
    first = wanted[:, :1]
    residual = (first - gaussian_blur(first, 3.0)) / noise
    return {
        "central_flux": central.numpy(),
        "total_flux": first.double().sum((1, 2, 3)).numpy(),
        "inverse_flux": -central.numpy(),
        "smooth_residual": (residual.double() ** 2).mean((1, 2, 3)).numpy(),
    }


def matches(found: Floats, true: Floats, reach: float) -> int:
    """Pairs of a found and a true place within `reach`, each place in one pair at most, as many as can be.

    Parameters
    ----------
    found, true
        float64 [F, 2] and [T, 2], pixels.
    reach
        Pixels.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and no translation needs it

    near = np.linalg.norm(found[:, None] - true[None], axis=-1) <= reach
    return int(near[linear_sum_assignment(near, maximize=True)].sum())


def _source_places(images: Tensor, sigma: float) -> list[Floats]:
    """Centres [S, 2] of the sources that `detect` finds in each of [N, H, W]."""
    noise = np.full(images.shape[1:], sigma**2, np.float32)
    valid = np.ones(images.shape[1:], bool)
    found = [detect(image, noise, valid) for image in images.numpy()]
    return [np.stack([sources.x, sources.y], 1) for sources in found]


def _colour(blue: Tensor, red: Tensor) -> Tensor:
    known = (blue > 0) & (red > 0)
    return torch.where(known, -2.5 * torch.log10(torch.where(known, blue / red, 1.0)), torch.nan)
