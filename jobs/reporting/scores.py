"""The distribution of a run's scores, next to that of the ordinary objects on which the score was calibrated.

The reference needs no file: `false_alarm` of a row is the share of regular objects that score higher, so the rows
together hold the reference's distribution, and over regular objects `false_alarm` itself is even between 0 and 1.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.stats import binom

from surveybridge.bridge_core.discriminant import TAIL
from surveybridge.jobs.reporting.plots import BLUE, GREY, ORANGE, PALE, Plot, panel

HEADING = "Scores"
BINS = 40

Floats = NDArray[np.float64]


def scores_plot(candidates: pa.Table) -> Plot:
    """Plot the distribution of `score` and of `false_alarm`, columns of all of a run's candidates."""
    score, false_alarm = (candidates[name].to_numpy().astype(np.float64) for name in ("score", "false_alarm"))
    scored = np.isfinite(score)
    rest = (
        f" {int((~scored).sum())} more have no score, since too much around them is masked." if not scored.all() else ""
    )
    if not scored.any():
        return Plot(HEADING, f"No source is scored yet.{rest}")
    score, false_alarm = score[scored], false_alarm[scored]
    known = np.isfinite(false_alarm)
    quantiles = ", ".join(f"{value:.3g}" for value in np.quantile(score, [0.5, 0.9, 1.0]))
    histogram = panel(
        lambda axes: _draw_scores(axes, score, score[known], false_alarm[known]),
        f"Histogram of the scores of {len(score)} sources: median, 90th percentile and highest are {quantiles}.",
    )
    if not known.any():
        return Plot(
            HEADING,
            f"{len(score)} scored sources.{rest} There is no reference: the run's checkpoint has no calibrated lens "
            "score, and the score is AS-Bridge's. Calibrate it to have one.",
            (histogram,),
        )
    low = min(TAIL)
    seen, expected = int((false_alarm[known] <= low).sum()), low * known.sum()
    return Plot(
        HEADING,
        f"{len(score)} scored sources.{rest} First: how many have a score, and how many would if all were regular "
        "objects of the calibration sample, of which the upper half is tabulated. Second: the share of sources up to a "
        "false-alarm rate; regular objects lie in the grey band (95% of samples of this size), lenses and whatever the "
        f"calibration sample lacks above it. Rates are tabulated between {max(TAIL):g} and {low:g} and extrapolated "
        f"beyond the dotted lines. Sources at {low:g} and below: {seen}; of regular objects {expected:.2g} are "
        "expected.",
        (
            histogram,
            panel(
                lambda axes: _draw_rates(axes, false_alarm[known]),
                "Share of sources up to each false-alarm rate, beside that of regular objects. Sources at "
                f"{low:g} and below: {seen}; {expected:.2g} are expected.",
            ),
        ),
    )


def _draw_scores(axes: Axes, score: Floats, reference: Floats, false_alarm: Floats) -> None:
    low, high = (score.min(), score.max()) if np.ptp(score) > 0 else (score[0] - 0.5, score[0] + 0.5)
    edges = np.linspace(low, high, min(BINS, 5 + len(score) // 5) + 1)
    axes.stairs(np.histogram(score, edges)[0], edges, fill=True, color=PALE, label="this run")
    axes.stairs(np.histogram(score, edges)[0], edges, color=BLUE)
    if len(reference):
        order = np.argsort(reference)
        rate = np.interp(edges, reference[order], false_alarm[order])
        expected = -len(reference) * np.diff(rate)
        tabulated, beyond = rate[:-1] <= max(TAIL), rate[1:] < min(TAIL)
        solid, dotted = (np.where(tabulated & part, expected, np.nan) for part in (~beyond, beyond))
        axes.stairs(solid, edges, color=ORANGE, lw=1.8, label="regular objects", baseline=None)
        axes.stairs(dotted, edges, color=ORANGE, lw=1.4, ls=":", baseline=None)
    axes.set(yscale="log", ylim=(0.5, None), xlabel="score", ylabel=f"sources / {edges[1] - edges[0]:.2g}")
    axes.legend(loc="upper right")


def _draw_rates(axes: Axes, false_alarm: Floats) -> None:
    count = len(false_alarm)
    start = min(1 / count, min(TAIL)) / 2
    rates = np.geomspace(start, 1, 200)
    low, high = (binom.ppf(q, count, rates) / count for q in (0.025, 0.975))
    axes.fill_between(rates, np.maximum(low, start), high, color=GREY, alpha=0.35, lw=0, label="regular objects, 95%")
    axes.plot(rates, rates, color=GREY, lw=0.8)
    rank = np.arange(1, count + 1) / count
    axes.step(np.maximum(np.sort(false_alarm), start), rank, where="post", color=BLUE, lw=1.6, label="this run")
    for edge in (min(TAIL), max(TAIL)):
        axes.axvline(edge, color=GREY, lw=0.8, ls=":")
    axes.set(xscale="log", yscale="log", xlim=(start, 1), ylim=(start, 1.3))
    axes.set(xlabel="false-alarm rate", ylabel="share of sources up to it")
    axes.legend(loc="upper left")
