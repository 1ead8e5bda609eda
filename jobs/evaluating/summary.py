"""The summary of an evaluation, from its tables alone: scores, calibration, ranking, with 95% bootstrap intervals.

Pairs are resampled, not pixels, because the pixels of one image are not independent. An unknown number is null.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveybridge.bridge_core.evaluation import LEVELS, PATCH_SCALES, PIXEL_SUMS, REGIONS, PixelMeasures
from surveybridge.bridge_core.metrics import interval_width
from surveybridge.bridge_core.morphology import STATISTICS, wasserstein
from surveybridge.jobs.evaluating.ranking import DRAWS, Floats, Found, floats, number, ranking
from surveybridge.storage.pairs import DEFLECTOR_LIKE


def summarise(images: pa.Table, pixels: pa.Table, scores: pa.Table | None, samples: int) -> Found:
    """The measures of metrics.json.

    Parameters
    ----------
    images, pixels, scores
        Tables `EVALUATED_IMAGES`, `EVALUATED_PIXELS` and, where anomalies were scored, `EVALUATED_SCORES`.
    samples
        K of the translation.
    """
    pixel_measures = ("crps", "rmse", "coverage", "spread_skill", "spread_skill_display", "ranks")
    of_objects = ("photometry", "morphology", "power", "sources")
    found: Found = {name: {} for name in ("energy_score", "patch_energy", *pixel_measures, *of_objects)}
    for direction in images["direction"].unique().to_pylist():
        of_images = images.filter(pc.equal(images["direction"], direction))
        found["energy_score"][direction] = {
            name: _mean(floats(of_images, column))
            for name, column in (("published", "energy_score"), ("fair", "energy_score_fair"))
        }
        found["patch_energy"][direction] = {
            str(scale): _mean(floats(of_images, f"patch_energy_{scale}")) for scale in PATCH_SCALES
        }
        found["photometry"][direction] = _photometry(of_images, samples)
        found["morphology"][direction] = _morphology(of_images)
        power, drawn = (lists(of_images, name) for name in ("power", "power_samples"))
        found["power"][direction] = [number(ratio) for ratio in drawn.mean(0) / power.mean(0)]
        found["sources"][direction] = _sources(of_images)
        of_pixels = pixels.filter(pc.equal(pixels["direction"], direction))
        for name, value in _pixel_measures(of_pixels, samples).items():
            found[name][direction] = value
    if scores is not None:
        found["anomaly"] = ranking(scores)
    return found


def _pixel_measures(pixels: pa.Table, samples: int) -> Found:
    """Measures over all bands and by band, for each region."""
    bands = pixels["band"].unique().to_pylist()
    shape = (-1, len(bands), len(REGIONS))  # as the rows follow each other
    sums: dict[str, Floats] = {name: floats(pixels, name).reshape(shape) for name in PIXEL_SUMS}
    for name in ("within", "ranks"):
        sums[name] = lists(pixels, name).reshape(*sums["pixels"].shape, -1)

    def measures(total: Callable[[Floats], Floats], region: int) -> PixelMeasures:
        return PixelMeasures.of(samples, **{name: total(sums[name][:, :, region]) for name in (*PIXEL_SUMS, "within")})

    def drawn_total(values: Floats) -> Floats:
        return np.tensordot(choices, values.sum(1), 1)

    choices = draws(len(sums["pixels"]))
    plain = ("crps", "rmse", "spread_skill", "spread_skill_display")
    found: Found = {name: {} for name in (*plain, "coverage", "ranks")}
    for r, region in enumerate(REGIONS):
        whole = measures(_total, r)
        drawn = measures(drawn_total, r)
        by_band = {band: measures(functools.partial(_total, band=b), r) for b, band in enumerate(bands)}
        count = float(sums["pixels"][:, :, r].sum())
        for name in plain:
            found[name][region] = {
                **with_interval(getattr(whole, name), getattr(drawn, name)),
                "by_band": {band: number(getattr(of_band, name)) for band, of_band in by_band.items()},
                "pixels": count,
            }
        found["coverage"][region] = {
            f"{level:.2f}": {
                **with_interval(whole.coverage[j], drawn.coverage[:, j]),
                "by_band": {band: number(of_band.coverage[j]) for band, of_band in by_band.items()},
            }
            for j, level in enumerate(LEVELS)
        }
        histogram = sums["ranks"][:, :, r].sum((0, 1))
        found["ranks"][region] = [number(share) for share in histogram / max(histogram.sum(), 1.0)]
    return found


def _total(values: Floats, band: int | None = None) -> Floats:
    """Sum over pairs [N, C, ...], and over bands unless one is named."""
    return np.asarray(values.sum((0, 1)) if band is None else values[:, band].sum(0))


def bands_of(images: pa.Table) -> list[str]:
    """Bands whose fluxes a table has, as its columns name them."""
    names = images.column_names
    return [name.removeprefix("flux_") for name in names if name.startswith("flux_") and f"{name}_mean" in names]


def _photometry(images: pa.Table, samples: int) -> Found:
    """Flux within the aperture: median ratio of the mean to the truth, its scatter, and whether its error is right."""
    found: Found = {}
    for band in bands_of(images):
        true, mean, std = (floats(images, f"flux_{band}{suffix}") for suffix in ("", "_mean", "_std"))
        if np.isnan(true).all():
            continue
        ratio = mean[true > 0] / true[true > 0]
        if not len(ratio):
            continue
        low, middle, high = np.quantile(ratio, [0.16, 0.5, 0.84])
        drawn = [np.median(ratio[rows]) for rows in _rows(len(ratio))]
        inside = np.abs(true - mean) <= interval_width(0.68, samples) * std
        found[band] = {
            "median_ratio": with_interval(middle, np.array(drawn)),
            "scatter": number((high - low) / 2),
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
    colours = [n for n in images.column_names if n.startswith("colour_") and not n.endswith("_samples")]
    for name in (*STATISTICS, *colours):
        true = floats(images, name)
        if np.isnan(true).all():
            continue
        drawn = lists(images, f"{name}_samples")
        perfect = [wasserstein(np.delete(drawn, k, 1).ravel(), drawn[:, k]) for k in range(drawn.shape[1])]
        found[name] = {
            "wasserstein": number(wasserstein(drawn.ravel(), true)),
            "perfect": number(float(np.mean(perfect))),
            "median": _median(drawn),
            "true_median": _median(true),
        }
    return found


def _sources(images: pa.Table) -> Found:
    """Sources detected in samples and truths, of all pairs and of those that are blended, matched by position."""
    true, drawn, matched = floats(images, "sources"), *(lists(images, f"sources{s}_samples") for s in ("", "_matched"))
    label = next(name for name in images.column_names if name.startswith("blended_"))
    blended = np.array([flag is True for flag in images[label].to_pylist()], bool)
    found: Found = {}
    for name, rows in (("all", np.ones(len(true), bool)), (label, blended)):
        if rows.any():
            found[name] = {
                "true_mean": number(true[rows].mean()),
                "mean": number(drawn[rows].mean()),
                "same_count": number((drawn[rows] == true[rows, None]).mean()),
                "completeness": _ratio(matched[rows].sum(), true[rows].sum() * drawn.shape[1]),
                "purity": _ratio(matched[rows].sum(), drawn[rows].sum()),
                "pairs": int(rows.sum()),
            }
    return found


def _ratio(part: float, whole: float) -> float | None:
    return number(part / whole) if whole else None


def _mean(values: Floats) -> Found:
    return with_interval(values.mean(), draws(len(values)) @ values / len(values))


def with_interval(value: float | np.floating[Any], drawn: Floats) -> Found:
    """Return a measure with the interval of its values on resampled pairs."""
    known = drawn[np.isfinite(drawn)]
    interval = [number(edge) for edge in np.quantile(known, [0.025, 0.975])] if len(known) else [None, None]
    return {"value": number(value), "interval": interval}


def _rows(count: int) -> Sequence[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, count, count) for _ in range(DRAWS)]


@functools.lru_cache(maxsize=4)  # nearly every measure of a table asks for the same
def draws(count: int) -> Floats:
    """Return how often each of `count` pairs is drawn, float64 [DRAWS, count]."""
    return np.stack([np.bincount(rows, minlength=count) for rows in _rows(count)]).astype(np.float64)


def lists(table: pa.Table, name: str) -> Floats:
    """A column of lists of one length, float64 [N, length]; null as NaN."""
    flat = np.asarray(table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False), np.float64)
    return flat.reshape(table.num_rows, -1)


def _median(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return number(np.median(known)) if len(known) else None


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """The measures that matter most, for a person."""
    lines = []
    for direction, scores in found["energy_score"].items():
        lines.append(
            f"{direction}: energy score {in_words(scores['published'])} as published, {in_words(scores['fair'])} fair"
        )
        for region in ("bright", "sky"):
            coverage = found["coverage"][direction][region]
            lines.append(
                f"  {region:6} pixels: CRPS {in_words(found['crps'][direction][region])} sigma, "
                f"spread/skill {in_words(found['spread_skill'][direction][region])} "
                f"({in_words(found['spread_skill_display'][direction][region])} in the display), "
                + ", ".join(f"{float(level):.0%} interval holds {_share(c)}" for level, c in coverage.items())
            )
        for band, flux in found["photometry"][direction].items():
            lines.append(
                f'  {band:3} flux in 1": {in_words(flux["median_ratio"])} of the truth, '
                f"scatter {_plain(flux['scatter'])}, 68% interval holds {_share(flux['coverage_0.68'])}"
            )
        shapes = ", ".join(
            f"{name} {_plain(row['wasserstein'])} ({_plain(row['perfect'])})"
            for name, row in found["morphology"][direction].items()
        )
        lines.append(f"  Wasserstein distance from the truth, sigma (of a perfect posterior): {shapes}")
        for name, row in found["sources"][direction].items():
            found_share, true_share = percent(row["completeness"]), percent(row["purity"])
            lines.append(
                f"  sources, {name}: {_plain(row['mean'])} in samples, {_plain(row['true_mean'])} in truth; "
                f"by position {found_share} of the true are found, {true_share} of the found are true"
            )
    for name, part in (("all", found.get("anomaly")), ("deflector-like", found.get("anomaly", {}).get(DEFLECTOR_LIKE))):
        if part is None:
            continue
        lines.append(f"anomalies: {part['anomalous']} against {part['regular']} regular ({name})")
        for score, row in {"score": part["score"], **part["baselines"]}.items():
            lines.append(
                f"  {score:16} AUROC {in_words(row['auroc'])}, at matched flux {in_words(row['matched_flux_auroc'])}, "
                f"AUPR {in_words(row['aupr'])}, FPR at 5% TPR {_share(row['fpr_at_tpr']['0.05'])}"
            )
    return lines


def _plain(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def in_words(found: Mapping[str, Any]) -> str:
    """A measure with its interval, three digits."""
    low, high = found["interval"]
    if found["value"] is None:
        return "unknown"
    return f"{found['value']:.3f} [{low:.3f}, {high:.3f}]" if low is not None else f"{found['value']:.3f} [unknown]"


def _share(found: Mapping[str, Any]) -> str:
    return percent(found["value"])


def percent(value: float | None) -> str:
    """A share in percent."""
    return "unknown" if value is None else f"{value:.1%}"
