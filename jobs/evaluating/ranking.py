"""The ranking of anomalies in an evaluation: a model's score next to model-free ones, with bootstrap intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import rankdata

from surveybridge.bridge_core.ranking import Curve, bootstrap, matched_auroc, precision_at
from surveybridge.storage.pairs import DEFLECTOR_LIKE

DRAWS = 400
"""Number of resamplings of the objects for an interval."""
TPR = (0.01, 0.05)
PRECISION_AT = (100, 500)
PREVALENCE = 1e-3
"""Lenses among the objects that a search looks at: an assumption, for the expected inspection load alone."""
COMPLETENESS = (0.1, 0.3, 0.5, 0.7, 0.9)
BASELINES = ("score_asbridge", "central_flux", "total_flux", "inverse_flux", "smooth_residual")

Floats = NDArray[np.float64]
Found = dict[str, Any]


def ranking(scores: pa.Table) -> Found:
    """The score and the baselines, on all regular objects and on those like deflectors."""
    anomalous = np.asarray(scores["anomalous"].to_numpy(zero_copy_only=False), bool)
    found = _kinds(scores, anomalous)
    found["prevalence"] = PREVALENCE
    flux, own = (floats(scores, name)[~anomalous] for name in ("central_flux", "score"))
    known = np.isfinite(own)
    ranks = [rankdata(values[known]) for values in (flux, own)]
    if known.any() and all(np.ptp(values) > 0 for values in ranks):
        found["rank_correlation_with_flux"] = number(np.corrcoef(ranks[0], ranks[1])[0, 1])
    rate = floats(scores, "false_alarm")[~anomalous]
    if np.isfinite(rate).any():  # a rate that is right is below 5% for 5% of the regular objects
        found["false_alarms_below"] = {str(share): number(np.mean(rate < share)) for share in (0.1, 0.05, 0.01)}
    like = np.array([kind == DEFLECTOR_LIKE for kind in scores["central_class"].to_pylist()], bool)
    some = anomalous | like
    if like[~anomalous].any():
        found[DEFLECTOR_LIKE] = _kinds(scores.filter(pa.array(some)), anomalous[some])
    return found


def _kinds(scores: pa.Table, anomalous: NDArray[np.bool_]) -> Found:
    flux = floats(scores, "central_flux")
    return {
        "anomalous": int(anomalous.sum()),
        "regular": int((~anomalous).sum()),
        "score": ranked(floats(scores, "score"), anomalous, flux),
        "baselines": {name: ranked(floats(scores, name), anomalous, flux) for name in BASELINES},
    }


def ranked(score: Floats, anomalous: NDArray[np.bool_], flux: Floats) -> Found:
    """All measures of one score, over the objects that have it; `unscored` counts the others."""
    known = np.isfinite(score)
    found: Found = {
        "unscored": {"anomalous": int((~known & anomalous).sum()), "regular": int((~known & ~anomalous).sum())}
    }
    score, anomalous, flux = score[known], anomalous[known], flux[known]
    names: list[tuple[str, ...]] = [("auroc",), ("matched_flux_auroc",), ("aupr",)]
    names += [("fpr_at_tpr", str(tpr)) for tpr in TPR] + [("precision_at", str(n)) for n in PRECISION_AT]
    names += [("inspection_load", str(share)) for share in COMPLETENESS]

    def all_of(rows: NDArray[np.int64]) -> list[float]:
        some, kinds = score[rows], anomalous[rows]
        curve = Curve.of(some, kinds)
        values = [curve.auroc(), matched_auroc(some, kinds, flux[rows]), curve.average_precision()]
        values += [curve.false_alarms(tpr) for tpr in TPR]
        values += [precision_at(some, kinds, n) if n <= len(some) else np.nan for n in PRECISION_AT]
        return values + [curve.inspection_load(PREVALENCE, share) for share in COMPLETENESS]

    if anomalous.all() or not anomalous.any():  # nothing to rank
        whole, intervals = [np.nan] * len(names), [(np.nan, np.nan)] * len(names)
    else:
        whole, intervals = all_of(np.arange(len(score))), bootstrap(all_of, anomalous, draws=DRAWS)
    for path, value, interval in zip(names, whole, intervals, strict=True):
        where = found
        for key in path[:-1]:
            where = where.setdefault(key, {})
        where[path[-1]] = {"value": number(value), "interval": [number(edge) for edge in interval]}
    return found


def floats(table: pa.Table, name: str) -> Floats:
    """A column of numbers, null as NaN."""
    return np.asarray(table[name].to_numpy(zero_copy_only=False), np.float64)


def number(value: float | np.floating[Any]) -> float | None:
    """Return a number for JSON: six digits, null for none."""
    return float(f"{value:.6g}") if np.isfinite(value) else None
