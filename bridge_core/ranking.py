"""How well a score tells anomalies from ordinary objects: areas under curves, rates at a threshold, intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]


def auroc(score: Floats, anomalous: Labels) -> float:
    """Area under the ROC curve: how often an anomaly scores above a regular object, ties counted half.

    Parameters
    ----------
    score : ndarray of float64 [N]
        Larger is more anomalous; if any is NaN, so is the area.
    anomalous : ndarray of bool [N]
        Both kinds are there.
    """
    return np.nan if np.isnan(score).any() else Curve.of(score, anomalous).auroc()


class Curve(NamedTuple):
    """Anomalies found and objects taken at every distinct threshold, from the highest score down, float64 [T].

    All rates at thresholds are read off one curve: to sort the scores takes most of the time.
    """

    true: Floats
    taken: Floats

    @classmethod
    def of(cls, score: Floats, anomalous: Labels) -> Curve:
        """The curve of a score [N] for labels [N] of both kinds."""
        order = np.argsort(-score, kind="stable")
        last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
        return cls(np.cumsum(anomalous[order])[last].astype(np.float64), (last + 1).astype(np.float64))

    def auroc(self) -> float:
        """As `auroc` of the score."""
        false = self.taken - self.true
        found, raised = np.diff(self.true, prepend=0.0), np.diff(false, prepend=0.0)
        above = float(np.sum(found * (false[-1] - false + 0.5 * raised)))  # multiples of a half, so it is exact
        return above / float(self.true[-1] * false[-1])

    def average_precision(self) -> float:
        """Area under the precision-recall curve (AUPR): sum of precision times the step in recall, ties together."""
        recall = self.true / self.true[-1]
        return float(np.sum(np.diff(recall, prepend=0.0) * self.true / self.taken))

    def false_alarms(self, completeness: float) -> float:
        """Share of the regular objects above the threshold at which so large a share of the anomalies is found."""
        return self._rates(completeness)[1]

    def inspection_load(self, prevalence: float, completeness: float) -> float:
        """Objects that a person looks at for each anomaly found, where a share `prevalence` of all is anomalous.

        The lists are looked through down to the score at which `completeness` of the anomalies is found.
        """
        true, false = self._rates(completeness)
        return 1 + false * (1 - prevalence) / (true * prevalence)

    def _rates(self, completeness: float) -> tuple[float, float]:
        """Shares of anomalies and of regular objects above the threshold at which `completeness` is reached."""
        true, taken = self
        place = int(np.searchsorted(true, completeness * true[-1] - 1e-9))
        return float(true[place] / true[-1]), float((taken[place] - true[place]) / (taken[-1] - true[-1]))


def precision_at(score: Floats, anomalous: Labels, count: int) -> float:
    """Share of anomalies among the `count` highest scores; of equal scores each is as likely to be among them."""
    order = np.sort(score)[::-1]
    threshold = order[min(count, len(score)) - 1]
    above, at = score > threshold, score == threshold
    share = (min(count, len(score)) - above.sum()) / at.sum()
    return float((anomalous[above].sum() + share * anomalous[at].sum()) / min(count, len(score)))


def matched_auroc(score: Floats, anomalous: Labels, flux: Floats, neighbours: int = 20) -> float:
    """AUROC at matched flux: each anomaly against the regular objects nearest to it in flux, averaged.

    A score that knows nothing but the flux is worth 0.5 here, up to the distance of the neighbours.
    """
    regular = np.flatnonzero(~anomalous)
    regular = regular[np.argsort(flux[regular], kind="stable")]
    count = min(neighbours, len(regular))
    place = np.searchsorted(flux[regular], flux[anomalous])
    first = np.clip(place - count // 2, 0, len(regular) - count)
    nearest = score[regular][first[:, None] + np.arange(count)]
    own = score[anomalous][:, None]
    return float(((own > nearest) + 0.5 * (own == nearest)).mean())


def bootstrap(
    measures: Callable[[NDArray[np.int64]], Sequence[float]],
    anomalous: Labels,
    *,
    draws: int = 400,
    level: float = 0.95,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Return percentile intervals of measures, by resampling objects within each kind (Efron & Tibshirani 1993).

    Parameters
    ----------
    measures : callable
        Measures of the objects of some rows.
    anomalous : ndarray of bool [N]
        Both kinds are there.
    draws, level, seed
        How often they are drawn, share of the draws that an interval holds, seed of the draws.
    """
    rng = np.random.default_rng(seed)
    kinds = [np.flatnonzero(anomalous), np.flatnonzero(~anomalous)]
    found = []
    for _ in range(draws):
        rows = np.concatenate([rng.choice(kind, len(kind)) for kind in kinds])
        found.append(measures(rows))
    low, high = np.quantile(np.array(found), [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
