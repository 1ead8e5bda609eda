"""Whether generated images have the distribution of a source: distances of statistics, their floor, and memorising.

The distances and their averages are those of Holzschuh et al. 2022 (arXiv 2203.11956): Wasserstein-1 of each statistic
in standard deviations of the source, of Fourier amplitudes in dex, and the mean of the means of groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.bridge_core.light import MODES, STATISTICS, amplitudes, colour, light
from surveybridge.bridge_core.morphology import wasserstein

Values = NDArray[np.float64]
BINNED = 4
"""Pixels a side that are averaged before stamps are compared: else the noise of the sky decides."""


@dataclass(frozen=True)
class Measured:
    """What is measured on N stamps: by group and name, float64 [N], NaN where it has no value."""

    morphology: Mapping[str, Values]
    spectrum: Mapping[str, Values]
    colours: Mapping[str, Values]

    @property
    def groups(self) -> dict[str, Mapping[str, Values]]:
        """By name, without those that hold nothing."""
        named = {"morphology": self.morphology, "power spectrum": self.spectrum, "colours": self.colours}
        return {name: group for name, group in named.items() if group}

    def rows(self, index: NDArray[np.int64]) -> Measured:
        """Some of the stamps."""
        return Measured(*({name: values[index] for name, values in group.items()} for group in vars(self).values()))

    def __len__(self) -> int:
        return len(next(iter(self.morphology.values())))


def measure(image: Tensor, pixel_scale: float, blue: Tensor | None = None, red: Tensor | None = None) -> Measured:
    """Measure N stamps.

    Parameters
    ----------
    image
        float32 [N, H, W], the band in which shapes are measured.
    pixel_scale
        Arcsec.
    blue, red
        float32 [N, H, W], bands on the same grid whose colour is measured, of early and of late types by F(G, M20).
    """
    found = {name: values.numpy() for name, values in light(image, pixel_scale).items()}
    modes = amplitudes(image).numpy()
    colours: dict[str, Values] = {}
    if blue is not None and red is not None:
        bulge, index = found["bulge_gm20"], colour(blue, red, pixel_scale).numpy()
        colours = {
            "colour of early types": np.where(bulge >= 0, index, np.nan),
            "colour of late types": np.where(bulge < 0, index, np.nan),
            "F(G, M20)": bulge,
        }
    shapes = {name: found[name] for name in STATISTICS}
    return Measured(shapes, {f"mode {k}": modes[:, k] for k in range(MODES)}, colours)


def distances(made: Measured, source: Measured) -> dict[str, float]:
    """Distance of each statistic, of each group (mean), and `average`, the mean of the groups.

    Those of morphology and colours are in standard deviations of the source, those of the power spectrum in dex. What
    no stamp of either has (NaN), such as a colour of early types where there are none, is in no mean.
    """
    found: dict[str, float] = {}
    means = []
    for group, columns in source.groups.items():
        scaled = {name: wasserstein(made.groups[group][name], values) for name, values in columns.items()}
        if group == "power spectrum":
            scaled = {name: value * float(np.nanstd(columns[name])) for name, value in scaled.items()}
        else:
            found |= scaled
        found[group] = _mean(scaled.values())
        means.append(found[group])
    return found | {"average": _mean(means)}


def _mean(values: Iterable[float]) -> float:
    """Mean of those that are known, NaN if none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def halves(
    made: Measured, source: Measured, count: int, seed: int
) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Distances of random halves, `count` times: of as many made as a half of the source, and of its other half.

    The second is the floor, what a perfect generator has; both are of the same number of stamps.
    """
    rng = np.random.default_rng(seed)
    half = len(source) // 2
    if len(made) < half:
        raise ValueError(f"{len(made)} stamps were made, but half of the source are {half}; make as many")
    for _ in range(count):
        order = rng.permutation(len(source))
        one, other = source.rows(order[:half]), source.rows(order[half : 2 * half])
        yield distances(made.rows(rng.permutation(len(made))[:half]), one), distances(other, one)


def gaussian_fields(images: Tensor, seed: int) -> Tensor:
    """Gaussian random fields with the mean power spectrum of images [N, C, H, W], as many, and their bands in phase."""
    modes = torch.fft.fft2(images.double())
    root = (modes.abs() ** 2).mean(0).sqrt()
    height, width = images.shape[-2:]
    white = torch.randn(
        len(images), 1, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return torch.fft.ifft2(torch.fft.fft2(white) / math.sqrt(height * width) * root).real.float()


def nearest(stamps: Tensor, training: Tensor) -> Tensor:
    """Distance of each stamp to the nearest of the training, turned and mirrored in all eight ways, float32 [N].

    Parameters
    ----------
    stamps, training
        [N, H, W] and [M, H, W] in network units; pixels are averaged in blocks of `BINNED` before.

    Returns
    -------
    Tensor
        Root mean square difference of the blocks.
    """
    few, known = (
        torch.nn.functional.avg_pool2d(images[:, None].float(), BINNED)[:, 0] for images in (stamps, training)
    )
    best = torch.full((len(few),), math.inf)
    for turn in range(4):
        for mirrored in (False, True):
            other = torch.rot90(known, turn, (1, 2))
            other = other.flip(2) if mirrored else other
            best = torch.minimum(best, torch.cdist(few.flatten(1), other.flatten(1)).amin(1))
    return best / math.sqrt(few[0].numel())


def frechet(one: Tensor, other: Tensor) -> float:
    """Frechet distance of two sets of features [N, D] as normal distributions: Heusel et al. 2017, eq. (6)."""
    (mean, cov), (mean_other, cov_other) = ((x.double().mean(0), torch.cov(x.double().T)) for x in (one, other))
    values, vectors = torch.linalg.eigh(cov)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # the root of a product has the eigenvalues of this symmetric one
    cross = torch.linalg.eigvalsh(root @ cov_other @ root).clamp(min=0).sqrt().sum()
    return float(((mean - mean_other) ** 2).sum() + cov.trace() + cov_other.trace() - 2 * cross)


def kernel_distance(one: Tensor, other: Tensor) -> float:
    """Squared maximum mean discrepancy of features [N, D] and [M, D], unbiased: kernel (x y / D + 1)^3.

    Binkowski et al. 2018, eq. (4).
    """
    first, second = one.double(), other.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = [(kernel(x, x).sum() - kernel(x, x).diagonal().sum()) / (len(x) * (len(x) - 1)) for x in (first, second)]
    return float(sum(within) - 2 * kernel(first, second).mean())


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Central interval of some values."""
    low, high = np.quantile(np.asarray(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
