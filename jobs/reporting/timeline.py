"""The speed of runs: tiles per minute and seconds of each stage, over the time in which somebody worked."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from numpy.typing import NDArray

from surveybridge.jobs.reporting.plots import BLACK, BLUE, GREEN, ORANGE, PALE, PURPLE, Plot, panel
from surveybridge.jobs.reporting.state import PAUSE
from surveybridge.jobs.translating.tally import STAGES

HEADING = "Throughput"
COLOURS = dict(zip(STAGES, (BLUE, BLACK, ORANGE, GREEN), strict=True))
MARKERS = dict(zip(STAGES, "osd^", strict=True))
BINS = 60
GROUPS = 100
"""Points of a stage's line at most; each is the median of as many tiles as need be."""

Floats = NDArray[np.float64]


def timeline_plot(ledger: pa.Table) -> Plot:
    """Plot tiles a minute and seconds a stage of the ledger's rows, in the order in which they were finished."""
    ledger = ledger.filter(pc.is_valid(ledger["finished_at"])).sort_by("finished_at")
    if ledger.num_rows == 0:
        return Plot(HEADING, "No tile is finished yet.")
    finished = ledger["finished_at"].to_numpy().astype("datetime64[us]").astype(np.int64) / 1e6
    seconds = {stage: ledger[f"seconds_{stage}"].to_numpy().astype(np.float64) for stage in STAGES}
    minutes, pauses = worked_minutes(finished, np.nansum(list(seconds.values()), 0))
    failed = np.array([status != "ok" for status in ledger["status"].to_pylist()])
    first, last = (str(np.datetime64(int(second), "s")).replace("T", " ") for second in (finished[0], finished[-1]))
    paused = f" Dashed lines: {len(pauses)} pause(s) without a finished tile, left out." if len(pauses) else ""
    medians = ", ".join(f"{stage} {_median(values)}" for stage, values in seconds.items())
    return Plot(
        HEADING,
        f"Tiles finished from {first} to {last} UTC: {_span(minutes[-1])} of work, the first tile's own time included. "
        "Second, each point is the median of the tiles that were finished around then; workers do their stages at the "
        f"same time.{paused}",
        (
            panel(
                lambda axes: _draw_rate(axes, minutes, pauses, failed),
                f"Tiles finished a minute over {_span(minutes[-1])} of work; {int(failed.sum())} of {len(minutes)} "
                "without a result.",
            ),
            panel(
                lambda axes: _draw_seconds(axes, minutes, pauses, seconds),
                f"Seconds a tile spent in each stage, over the time worked. Median over all tiles: {medians}.",
            ),
        ),
    )


def worked_minutes(finished: Floats, took: Floats) -> tuple[Floats, Floats]:
    """Minutes of work until each tile was finished, without the pauses between two drivers.

    Parameters
    ----------
    finished : float64 [N]
        Seconds since 1970, ascending.
    took : float64 [N]
        Seconds that each tile took itself: what the first tile after a pause counts for.

    Returns
    -------
    tuple of float64
        Minutes [N], ascending and above 0; and the minutes at which there was a pause.
    """
    gaps = np.diff(finished)
    limit = max(PAUSE, 20 * float(np.median(gaps))) if len(gaps) else PAUSE
    after_pause = np.concatenate([[True], gaps > limit])
    steps = np.where(after_pause, np.clip(took, 1.0, PAUSE), np.concatenate([[0.0], gaps]))
    minutes = np.cumsum(steps) / 60
    return minutes, (minutes - steps / 60)[after_pause][1:]


def _draw_rate(axes: Axes, minutes: Floats, pauses: Floats, failed: NDArray[np.bool_]) -> None:
    edges = np.linspace(0, minutes[-1], int(np.clip(len(minutes) // 5, 1, BINS)) + 1)
    rate, bad = (np.histogram(part, edges)[0] / (edges[1] - edges[0]) for part in (minutes, minutes[failed]))
    axes.stairs(rate, edges, fill=True, color=PALE, label="all tiles")
    axes.stairs(rate, edges, color=BLUE)
    if failed.any():
        axes.stairs(bad, edges, fill=True, color=ORANGE, label="failed or quarantined")
    _finish(axes, pauses, "tiles / min")
    axes.set(ylim=(0, 1.1 * rate.max()), xlim=(0, minutes[-1]))


def _draw_seconds(axes: Axes, minutes: Floats, pauses: Floats, seconds: dict[str, Floats]) -> None:
    groups = np.array_split(np.arange(len(minutes)), min(len(minutes), GROUPS))
    for stage, values in seconds.items():
        points = np.array([[np.median(minutes[g]), np.median(v)] for g in groups if len(v := _known(values[g]))])
        if len(points):
            axes.plot(*points.T, marker=MARKERS[stage], ms=3, lw=1, color=COLOURS[stage], label=stage)
    _finish(axes, pauses, "seconds / tile")
    axes.set(yscale="log", xlim=(0, 1.03 * minutes[-1]))


def _finish(axes: Axes, pauses: Floats, label: str) -> None:
    for pause in pauses:
        axes.axvline(pause, color=PURPLE, lw=0.9, ls="--")
    axes.set(xlabel="time worked (min)", ylabel=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2, columnspacing=1, handlelength=1.5
        )


def _known(values: Floats) -> Floats:
    """Return the values that a logarithmic axis can show."""
    return values[np.isfinite(values) & (values > 0)]


def _median(values: Floats) -> str:
    known = _known(values)
    return f"{np.median(known):.3g}" if len(known) else "unknown"


def _span(minutes: float) -> str:
    return f"{minutes:.1f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
