"""How far the wanted survey lies from the posterior mean, counted by predicted signal, and the factor that this asks.

The factor is that of split conformal prediction (Lei et al. 2018, "Distribution-free predictive inference for
regression"): the 68% quantile of |observed - mean| / std over the half width of a 68% interval. Neighbouring pixels are
not independent, so its error is that between blocks of the sky, and a factor that few blocks support
is shrunk towards 1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveybridge.bridge_core.metrics import interval_width
from surveybridge.bridge_core.recalibration import StdScale

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

LEVEL = 0.68
"""Probability of the interval that is brought to hold its share."""
KNOTS = (-np.inf, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 32.0, 50.0, 80.0, 130.0, np.inf)
"""Edges of the predicted S/N between which a knot lies."""
PARTS = 4
"""Finer bins between two edges, so that the slope of the factor within them is known."""
BLOCK = 32
"""Side in pixels of blocks of the sky that count as independent: 3.2" on Euclid's grid, larger than most objects."""
GROUPS = 16
"""Groups of blocks, whose scatter gives the error."""
FEWEST_BLOCKS, FEWEST_PIXELS = 8, 200
"""A knot with fewer is joined to its neighbour."""
LOW, HIGH, STEP = np.log(1e-2), np.log(1e2), 0.02
"""ln |pull| is counted in steps between these; what lies beyond counts as at the edge."""
TYPICAL = 0.3
"""Prior scatter of ln(factor) around 0."""
BLOCK_ERROR = 1.0
"""Error of ln(factor) from a single block; of n blocks, whose scatter is not known well, it is at least this over n."""
ROUNDS = 8
"""Rounds in which knots are brought to their level while the factor is interpolated between them."""

_FINE = np.concatenate(
    [
        [-np.inf, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0],
        *(np.linspace(a, b, PARTS + 1)[1:] for a, b in itertools.pairwise(KNOTS[1:-1])),
        [200.0, 350.0, 700.0, np.inf],
    ]
)
_PLACES = np.arcsinh(np.concatenate([[-1.5], (_FINE[1:-2] + _FINE[2:-1]) / 2, [1000.0]]))
_KNOT_OF = np.searchsorted(KNOTS[1:-1], np.sinh(_PLACES), "right")
_SIZES = np.arange(LOW, HIGH, STEP) + STEP / 2


@dataclass(frozen=True)
class PullCounts:
    """Counts of the pixels of one band; those of several tiles add up in any order.

    Parameters
    ----------
    pixels
        int64 [G, S, P]: by group of blocks, fine bin of predicted S/N, and step of ln |pull|.
    blocks
        int64 [K]: blocks with a pixel between two of `KNOTS`.
    """

    pixels: Counts
    blocks: Counts

    @classmethod
    def zero(cls) -> PullCounts:
        """Count nothing."""
        return cls(np.zeros((GROUPS, len(_PLACES), len(_SIZES)), np.int64), np.zeros(len(KNOTS) - 1, np.int64))

    @classmethod
    def of(
        cls, snr: NDArray[Any], pull: NDArray[Any], usable: NDArray[np.bool_], origin: tuple[int, int]
    ) -> PullCounts:
        """Count the usable pixels of an image whose signal and pull are known.

        Parameters
        ----------
        snr, pull
            Predicted S/N, and (observed - mean) / std, each [H, W].
        usable
            bool [H, W].
        origin
            Global (y, x) of the first pixel, which places the blocks.
        """
        here = usable & np.isfinite(snr) & np.isfinite(pull)
        y, x = np.nonzero(here)
        block_y, block_x = (y + origin[0]) // BLOCK, (x + origin[1]) // BLOCK
        # neighbouring blocks, which may share an object, mostly fall into different groups
        group = (block_y * 5 + block_x) % GROUPS
        size = np.log(np.maximum(np.abs(pull[here]), 1e-30))
        step = np.clip(((size - LOW) / STEP).astype(np.int64), 0, len(_SIZES) - 1)
        fine = np.searchsorted(_FINE[1:-1], snr[here], "right")
        shape = (GROUPS, len(_PLACES), len(_SIZES))
        flat = np.ravel_multi_index((group, fine, step), shape)
        pixels = np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)
        first = [start // BLOCK for start in origin]
        sides = [
            (start + side - 1) // BLOCK + 1 - at for start, side, at in zip(origin, here.shape, first, strict=True)
        ]
        seen = np.zeros((*sides, len(KNOTS) - 1), bool)
        seen[block_y - first[0], block_x - first[1], _KNOT_OF[fine]] = True
        return cls(pixels, seen.sum((0, 1)))

    def __add__(self, other: PullCounts) -> PullCounts:
        """Merge the counts of two images."""
        return PullCounts(self.pixels + other.pixels, self.blocks + other.blocks)

    def part(self, groups: NDArray[np.bool_]) -> PullCounts:
        """Return the counts of some groups of blocks, bool [G]; of the blocks the same share."""
        return PullCounts(self.pixels * groups[:, None, None], (self.blocks * groups.mean()).astype(np.int64))

    def coverage(self, samples: int, scale: StdScale | None = None) -> Coverage:
        """Count the pixels inside the `LEVEL` interval of K = `samples`, widened by the factors of a scale if given."""
        inside = _SIZES[None] - _log_factor(scale)[:, None] <= np.log(interval_width(LEVEL, samples))
        counts = self.pixels.sum(0)
        return Coverage(_by_knot((counts * inside).sum(1)), _by_knot(counts.sum(1)))


@dataclass(frozen=True)
class Coverage:
    """Pixels inside the interval and all pixels, float64 [K] between two of `KNOTS`."""

    inside: Floats
    pixels: Floats

    def __add__(self, other: Coverage) -> Coverage:
        """Merge the counts of other pixels."""
        return Coverage(self.inside + other.inside, self.pixels + other.pixels)

    @property
    def shares(self) -> Floats:
        """Share of the pixels inside, by knot; NaN where there are none."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.inside / self.pixels)

    def between(self, low: float, high: float) -> float:
        """Share inside of all pixels with a predicted S/N between two of `KNOTS`; NaN where there are none."""
        part = slice(KNOTS.index(low), KNOTS.index(high))
        pixels = self.pixels[part].sum()
        return float(self.inside[part].sum() / pixels) if pixels else float("nan")


def fit_scale(counts: PullCounts, noise: float, samples: int, least: float = 0.0) -> StdScale:
    """Learn the factor of a band's standard deviation.

    Parameters
    ----------
    counts
        Of all tiles.
    noise
        What signals were divided by.
    samples
        K behind mean and standard deviation.
    least
        Smallest factor.
    """
    total = counts.pixels.sum(0)
    if not total.any():
        return StdScale(noise, (0.0,), (1.0,), (BLOCK_ERROR,), (0,), (0,))
    bins = _joined(counts)
    width = np.log(interval_width(LEVEL, samples))
    places = np.array([np.average(_PLACES[rows], weights=total[rows].sum(1) + 1e-9) for rows in bins])
    logs = np.zeros(len(bins))
    for _ in range(ROUNDS):
        factor = np.interp(_PLACES, places, logs)
        logs += [_quantile(total[rows], factor[rows]) - width for rows in bins]
    errors = np.array([_error(counts.pixels[:, rows]) for rows in bins])
    blocks = [int(counts.blocks[np.unique(_KNOT_OF[rows])].max()) for rows in bins]
    variance = np.maximum(errors**2, (BLOCK_ERROR / np.maximum(blocks, 1)) ** 2)
    kept = np.maximum(np.exp(logs * TYPICAL**2 / (TYPICAL**2 + variance)), least)
    return StdScale(
        noise=noise,
        snr=tuple(float(f"{value:.5g}") for value in np.sinh(places)),
        factor=tuple(float(f"{value:.5g}") for value in kept),
        error=tuple(float(f"{value:.3g}") for value in np.sqrt(variance)),
        pixels=tuple(int(total[rows].sum()) for rows in bins),
        blocks=tuple(blocks),
    )


def held_out_coverage(counts: PullCounts, noise: float, samples: int, least: float = 0.0) -> Coverage:
    """Coverage of each half of the blocks after calibration by the other: what more of this sky would show."""
    odd = np.arange(GROUPS) % 2 == 1
    one, other = counts.part(odd), counts.part(~odd)
    return one.coverage(samples, fit_scale(other, noise, samples, least)) + other.coverage(
        samples, fit_scale(one, noise, samples, least)
    )


def _joined(counts: PullCounts) -> list[Counts]:
    """Fine bins of each knot; those with too few blocks go to the knot below, the lowest ones to that above."""
    blocks, pixels = counts.blocks, _by_knot(counts.pixels.sum((0, 2)))

    def enough(knots: list[int]) -> bool:
        return bool(blocks[knots].max() >= FEWEST_BLOCKS and pixels[knots].sum() >= FEWEST_PIXELS)

    lists: list[list[int]] = [[]]
    for knot in reversed(range(len(blocks))):
        lists[0].append(knot)
        if enough(lists[0]) and knot:
            lists.insert(0, [])
    if len(lists) > 1 and not enough(lists[0]):
        lists[:2] = [lists[0] + lists[1]]
    return [np.flatnonzero(np.isin(_KNOT_OF, knots)) for knots in lists]


def _quantile(counts: Counts, factor: Floats) -> float:
    """`LEVEL` quantile of ln |pull| - ln(factor), of counts [S, P] and ln(factor) [S]."""
    sizes = (_SIZES[None] - factor[:, None]).ravel()
    order = np.argsort(sizes)
    weights = counts.ravel()[order]
    middle = np.cumsum(weights) - weights / 2
    seen = weights > 0
    return float(np.interp(LEVEL * weights.sum(), middle[seen], sizes[order][seen]))


def _error(counts: Counts) -> float:
    """Error of the quantile of counts [G, S, P], from the scatter of the share below it over the groups of blocks.

    The error of the share over its slope (Woodruff 1952): a quantile itself is too rough a function for a jackknife.
    """
    at = _quantile(counts.sum(0), np.zeros(counts.shape[1]))
    numbers = counts.sum((1, 2)).astype(np.float64)
    groups = np.count_nonzero(numbers)
    if groups < 2:
        return 0.0
    below, lower, upper = (counts[..., at + shift >= _SIZES].sum((1, 2)) for shift in (0.0, -0.2, 0.2))
    slope = (upper - lower).sum() / 0.4
    excess = below - numbers * below.sum() / numbers.sum()
    return float(np.sqrt(groups / (groups - 1) * (excess**2).sum()) / max(slope, 1e-9))


def _by_knot(values: Counts) -> Floats:
    """Sums of fine bins [S] between two of `KNOTS`, float64 [K]."""
    return np.bincount(_KNOT_OF, values, len(KNOTS) - 1).astype(np.float64)


def _log_factor(scale: StdScale | None) -> Floats:
    """ln(factor) in the fine bins."""
    if scale is None:
        return np.zeros(len(_PLACES))
    return np.log(scale.of(np.sinh(_PLACES) * scale.noise))
