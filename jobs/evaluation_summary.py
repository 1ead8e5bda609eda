"""What an evaluation says, from its tables alone: scores, calibration and ranking with 95% bootstrap intervals.

Pairs are drawn anew, not pixels: pixels of one image are not independent. A number that is not known is null.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import rankdata

from bridge_core.evaluation import LEVELS, PATCH_SCALES, REGIONS, PixelMeasures
from bridge_core.metrics import interval_width
from bridge_core.morphology import STATISTICS, wasserstein
from bridge_core.ranking import (
    auroc,
    average_precision,
    bootstrap,
    false_alarms,
    inspection_load,
    matched_auroc,
    precision_at,
)

DRAWS = 400
TPR = (0.01, 0.05)
PRECISION_AT = (100, 500)
PREVALENCE = 1e-3
"""Lenses among the objects that a search looks at: an assumption, for the expected inspection load alone."""
COMPLETENESS = (0.1, 0.3, 0.5, 0.7, 0.9)
BASELINES = ("central_flux", "total_flux", "inverse_flux", "smooth_residual")
DEFLECTOR_LIKE = "deflector_like"

Floats = NDArray[np.float64]
Found = dict[str, Any]


def summarise(images: pa.Table, pixels: pa.Table, scores: pa.Table | None, samples: int) -> Found:
    """The measures of metrics.json.

    Parameters
    ----------
    images, pixels, scores
        Tables `EVALUATED_IMAGES`, `EVALUATED_PIXELS` and, where anomalies were scored, `EVALUATED_SCORES`.
    samples
        K of the translation.
    """
    found: Found = {
        name: {} for name in ("energy_score", "patch_energy", "crps", "rmse", "coverage", "spread_skill", "ranks")
    }
    found |= {"photometry": {}, "morphology": {}, "power": {}, "sources": {}}
    for direction in images["direction"].unique().to_pylist():
        of_images = images.filter(pc.equal(images["direction"], direction))
        found["energy_score"][direction] = {
            name: _mean(_floats(of_images, column))
            for name, column in (("published", "energy_score"), ("fair", "energy_score_fair"))
        }
        found["patch_energy"][direction] = {
            str(scale): _mean(_floats(of_images, f"patch_energy_{scale}")) for scale in PATCH_SCALES
        }
        found["photometry"][direction] = _photometry(of_images, samples)
        found["morphology"][direction] = _morphology(of_images)
        power, drawn = (_lists(of_images, name) for name in ("power", "power_samples"))
        found["power"][direction] = [_number(ratio) for ratio in drawn.mean(0) / power.mean(0)]
        found["sources"][direction] = _sources(of_images)
        of_pixels = pixels.filter(pc.equal(pixels["direction"], direction))
        for name, value in _pixel_measures(of_pixels, samples).items():
            found[name][direction] = value
    if scores is not None:
        found["anomaly"] = _anomaly(scores)
    return found


def _pixel_measures(pixels: pa.Table, samples: int) -> Found:
    """Measures over all bands and by band, for each region."""
    bands = pixels["band"].unique().to_pylist()
    shape = (-1, len(bands), len(REGIONS))  # as the rows follow each other
    sums: dict[str, Floats] = {
        name: _floats(pixels, name).reshape(shape) for name in ("pixels", "squared_error", "variance", "crps")
    }
    for name in ("within", "ranks"):
        sums[name] = _lists(pixels, name).reshape(*sums["pixels"].shape, -1)

    def measures(total: Callable[[Floats], Floats], region: int) -> PixelMeasures:
        names = ("pixels", "squared_error", "variance", "crps", "within")
        return PixelMeasures.of(samples, **{name: total(sums[name][:, :, region]) for name in names})

    def drawn_total(values: Floats) -> Floats:
        return np.tensordot(choices, values.sum(1), 1)

    choices = _draws(len(sums["pixels"]))
    found: Found = {name: {} for name in ("crps", "rmse", "spread_skill", "coverage", "ranks")}
    for r, region in enumerate(REGIONS):
        whole = measures(_total, r)
        drawn = measures(drawn_total, r)
        by_band = {band: measures(functools.partial(_total, band=b), r) for b, band in enumerate(bands)}
        count = float(sums["pixels"][:, :, r].sum())
        for name in ("crps", "rmse", "spread_skill"):
            found[name][region] = {
                **_value(getattr(whole, name), getattr(drawn, name)),
                "by_band": {band: _number(getattr(of_band, name)) for band, of_band in by_band.items()},
                "pixels": count,
            }
        found["coverage"][region] = {
            f"{level:.2f}": {
                **_value(whole.coverage[j], drawn.coverage[:, j]),
                "by_band": {band: _number(of_band.coverage[j]) for band, of_band in by_band.items()},
            }
            for j, level in enumerate(LEVELS)
        }
        histogram = sums["ranks"][:, :, r].sum((0, 1))
        found["ranks"][region] = [_number(share) for share in histogram / max(histogram.sum(), 1.0)]
    return found


def _total(values: Floats, band: int | None = None) -> Floats:
    """Sum over pairs [N, C, ...], and over bands unless one is named."""
    return np.asarray(values.sum((0, 1)) if band is None else values[:, band].sum(0))


def _photometry(images: pa.Table, samples: int) -> Found:
    """Flux within the aperture: median ratio of the mean to the truth, its scatter, and whether its error is right."""
    found: Found = {}
    for band in ("g", "r", "i", "VIS"):
        true, mean, std = (_floats(images, f"flux_{band}{suffix}") for suffix in ("", "_mean", "_std"))
        if np.isnan(true).all():
            continue
        ratio = mean[true > 0] / true[true > 0]
        if not len(ratio):
            continue
        low, middle, high = np.quantile(ratio, [0.16, 0.5, 0.84])
        drawn = [np.median(ratio[rows]) for rows in _rows(len(ratio))]
        inside = np.abs(true - mean) <= interval_width(0.68, samples) * std
        found[band] = {
            "median_ratio": _value(middle, np.array(drawn)),
            "scatter": _number((high - low) / 2),
            "coverage_0.68": _mean(inside.astype(np.float64)),
            "objects": len(ratio),
        }
    return found


def _morphology(images: pa.Table) -> Found:
    """Wasserstein distance of samples from truths, in standard deviations of the truths, for each statistic.

    `perfect` is the distance where one sample of each object stands for its truth, mean over the samples: what a
    perfect posterior would show with so many objects and samples.
    """
    found: Found = {}
    for name in (*STATISTICS, "colour_gr", "colour_ri"):
        true = _floats(images, name)
        if np.isnan(true).all():
            continue
        drawn = _lists(images, f"{name}_samples")
        perfect = [wasserstein(np.delete(drawn, k, 1).ravel(), drawn[:, k]) for k in range(drawn.shape[1])]
        found[name] = {
            "wasserstein": _number(wasserstein(drawn.ravel(), true)),
            "perfect": _number(float(np.mean(perfect))),
            "median": _median(drawn),
            "true_median": _median(true),
        }
    return found


def _sources(images: pa.Table) -> Found:
    """Sources detected in samples and truths, of all pairs and of those that LSST blends."""
    true, drawn = _floats(images, "sources"), _lists(images, "sources_samples")
    blended = np.array([flag is True for flag in images["blended_lsst"].to_pylist()], bool)
    found: Found = {}
    for name, rows in (("all", np.ones(len(true), bool)), ("blended_lsst", blended)):
        if rows.any():
            found[name] = {
                "true_mean": _number(true[rows].mean()),
                "mean": _number(drawn[rows].mean()),
                "same_count": _number((drawn[rows] == true[rows, None]).mean()),
                "pairs": int(rows.sum()),
            }
    return found


def _anomaly(scores: pa.Table) -> Found:
    """The score and the baselines, on all regular objects and on those like deflectors."""
    anomalous = np.asarray(scores["anomalous"].to_numpy(zero_copy_only=False), bool)
    found = _kinds(scores, anomalous)
    found["prevalence"] = PREVALENCE
    flux, own = (_floats(scores, name)[~anomalous] for name in ("central_flux", "score"))
    known = np.isfinite(own)
    ranks = [rankdata(values[known]) for values in (flux, own)]
    if known.any() and all(np.ptp(values) > 0 for values in ranks):
        found["rank_correlation_with_flux"] = _number(np.corrcoef(ranks[0], ranks[1])[0, 1])
    like = np.array([kind == DEFLECTOR_LIKE for kind in scores["central_class"].to_pylist()], bool)
    some = anomalous | like
    if like[~anomalous].any():
        found[DEFLECTOR_LIKE] = _kinds(scores.filter(pa.array(some)), anomalous[some])
    return found


def _kinds(scores: pa.Table, anomalous: NDArray[np.bool_]) -> Found:
    flux = _floats(scores, "central_flux")
    return {
        "anomalous": int(anomalous.sum()),
        "regular": int((~anomalous).sum()),
        "score": _ranking(_floats(scores, "score"), anomalous, flux),
        "baselines": {name: _ranking(_floats(scores, name), anomalous, flux) for name in BASELINES},
    }


def _ranking(score: Floats, anomalous: NDArray[np.bool_], flux: Floats) -> Found:
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
        values = [auroc(some, kinds), matched_auroc(some, kinds, flux[rows]), average_precision(some, kinds)]
        values += [false_alarms(some, kinds, tpr) for tpr in TPR]
        values += [precision_at(some, kinds, n) if n <= len(some) else np.nan for n in PRECISION_AT]
        return values + [inspection_load(some, kinds, PREVALENCE, share) for share in COMPLETENESS]

    if anomalous.all() or not anomalous.any():  # nothing to rank
        whole, intervals = [np.nan] * len(names), [(np.nan, np.nan)] * len(names)
    else:
        whole, intervals = all_of(np.arange(len(score))), bootstrap(all_of, anomalous, draws=DRAWS)
    for path, value, interval in zip(names, whole, intervals, strict=True):
        where = found
        for key in path[:-1]:
            where = where.setdefault(key, {})
        where[path[-1]] = {"value": _number(value), "interval": [_number(edge) for edge in interval]}
    return found


def _mean(values: Floats) -> Found:
    return _value(values.mean(), _draws(len(values)) @ values / len(values))


def _value(value: float, drawn: Floats) -> Found:
    """A measure with the interval of its values on pairs drawn anew."""
    known = drawn[np.isfinite(drawn)]
    interval = [_number(edge) for edge in np.quantile(known, [0.025, 0.975])] if len(known) else [None, None]
    return {"value": _number(value), "interval": interval}


def _rows(count: int) -> Sequence[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, count, count) for _ in range(DRAWS)]


def _draws(count: int) -> Floats:
    """How often each of `count` pairs is drawn, float64 [DRAWS, count]."""
    return np.stack([np.bincount(rows, minlength=count) for rows in _rows(count)]).astype(np.float64)


def _floats(table: pa.Table, name: str) -> Floats:
    return np.asarray(table[name].to_numpy(zero_copy_only=False), np.float64)


def _lists(table: pa.Table, name: str) -> Floats:
    """A column of lists of one length, float64 [N, length]; null as NaN."""
    flat = np.asarray(table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False), np.float64)
    return flat.reshape(table.num_rows, -1)


def _median(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return _number(np.median(known)) if len(known) else None


def _number(value: float | np.floating[Any]) -> float | None:
    """A number as JSON has it: six digits, null for none."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """The measures that matter most, for a person."""
    lines = []
    for direction, scores in found["energy_score"].items():
        lines.append(
            f"{direction}: energy score {_text(scores['published'])} as published, {_text(scores['fair'])} fair"
        )
        for region in ("bright", "sky"):
            coverage = found["coverage"][direction][region]
            lines.append(
                f"  {region:6} pixels: CRPS {_text(found['crps'][direction][region])} sigma, "
                f"spread/skill {_text(found['spread_skill'][direction][region])}, "
                + ", ".join(f"{float(level):.0%} interval holds {_share(c)}" for level, c in coverage.items())
            )
        for band, flux in found["photometry"][direction].items():
            lines.append(
                f'  {band:3} flux in 1": {_text(flux["median_ratio"])} of the truth, '
                f"scatter {_plain(flux['scatter'])}, 68% interval holds {_share(flux['coverage_0.68'])}"
            )
        shapes = ", ".join(
            f"{name} {_plain(row['wasserstein'])} ({_plain(row['perfect'])})"
            for name, row in found["morphology"][direction].items()
        )
        lines.append(f"  Wasserstein distance from the truth, sigma (of a perfect posterior): {shapes}")
        for name, row in found["sources"][direction].items():
            lines.append(f"  sources, {name}: {_plain(row['mean'])} in samples, {_plain(row['true_mean'])} in truth")
    for name, part in (("all", found.get("anomaly")), ("deflector-like", found.get("anomaly", {}).get(DEFLECTOR_LIKE))):
        if part is None:
            continue
        lines.append(f"anomalies: {part['anomalous']} against {part['regular']} regular ({name})")
        for score, row in {"score": part["score"], **part["baselines"]}.items():
            lines.append(
                f"  {score:16} AUROC {_text(row['auroc'])}, at matched flux {_text(row['matched_flux_auroc'])}, "
                f"AUPR {_text(row['aupr'])}, FPR at 5% TPR {_share(row['fpr_at_tpr']['0.05'])}"
            )
    return lines


def _plain(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _text(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    if found["value"] is None or low is None:
        return "unknown"
    return f"{found['value']:.3f} [{low:.3f}, {high:.3f}]"


def _share(found: Mapping[str, Any]) -> str:
    return "unknown" if found["value"] is None else f"{found['value']:.1%}"
