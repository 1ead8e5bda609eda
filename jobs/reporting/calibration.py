"""Check of a run's uncertainty from the run alone: its mosaics against the observations of the wanted endpoint.

Candidates carry the observed pixels around them in their thumbnails. Put back into their places, these are a truth for
the translated mosaic of the same tile, mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from numpy.typing import NDArray

from surveybridge.jobs.drawing.rendering import noise
from surveybridge.jobs.reporting.plots import BLACK, BLUE, GREY, ORANGE, Plot, panel
from surveybridge.storage.problems import wanted_end
from surveybridge.storage.schema import CELL, stamp_array

if TYPE_CHECKING:
    from surveybridge.storage.mosaics import TileMosaic
    from surveybridge.storage.runs import RunFolder

HEADING = "Calibration"
TILES = 12
"""So many tiles are compared, evenly over the list of those with candidates."""
WITHOUT_SAMPLES = 10**6
"""Number of samples as of which a standard deviation is judged that comes from none: it has no scatter of its own."""
LEVELS = np.linspace(0.05, 0.95, 19)
EDGES = np.linspace(-6, 6, 61)
COLOURS = {"sky": "0.45", "bright": BLUE}
SKY, BRIGHT = 1.5, 3.0
"""Regions by the mosaic's mean in units of the sky noise, as `surveybridge evaluate` has them."""


@dataclass(frozen=True)
class Pulls:
    """The pulls of the pixels of one tile.

    Parameters
    ----------
    pixels : dict of int
        How many, by region.
    within : dict of float64 [L]
        Share of them inside the interval of each of `LEVELS`, by region.
    histogram : dict of int64 [B]
        Counts of (observed - mean) / std between `EDGES`, by region; the ends hold what lies beyond.
    """

    pixels: dict[str, int]
    within: dict[str, NDArray[np.float64]]
    histogram: dict[str, NDArray[np.int64]]


def calibration_plot(
    run: RunFolder, rows: pa.Table, evaluation: Mapping[str, Any] | None, heading: str = HEADING
) -> Plot:
    """Plot coverage of the predicted intervals, and pulls, of a run's tiles, next to those that an evaluation found.

    Parameters
    ----------
    run : RunFolder
        The run.
    rows : pyarrow.Table
        Its ledger rows that stand.
    evaluation : mapping, optional
        The metrics.json of `surveybridge evaluate` for the same checkpoint.
    heading : str
        Of the plot.
    """
    direction = str(run.run_json["direction"])
    wanted = wanted_end(run.run_json)["name"]
    judged = evaluation["coverage"].get(direction) if evaluation else None
    pulls = [] if run.maps_only else _read_pulls(run, rows, wanted)
    if not pulls and judged is None:
        return Plot(heading, f"No mosaic of a finished tile has a candidate that shows what {wanted} observed there.")
    said, share = _said(pulls, wanted)
    if judged is not None:
        said += " Diamonds: what surveybridge evaluate found on pairs of its own, with 95% intervals."
    samples = behind_moments(run)
    panels = [
        panel(
            lambda axes: _draw_coverage(axes, pulls, judged),
            f"Coverage of predictive intervals against their nominal probability. {share}",
        )
    ]
    if pulls:
        panels.append(
            panel(
                lambda axes: _draw_pulls(axes, pulls, samples, wanted),
                "Histogram of observed minus mean over standard deviation, beside that of a calibrated Gaussian.",
            )
        )
    return Plot(
        heading,
        "First: share of pixels inside the predictive interval of each probability; on the dotted line the uncertainty "
        f"is right, below it too small, above it too large. {said}",
        tuple(panels),
    )


def behind_moments(run: RunFolder) -> int:
    """Return the number of samples behind mean and standard deviation; of maps without samples, as if of very many."""
    return int(run.run_json["samples"]) or WITHOUT_SAMPLES


def tile_pulls(mosaic: TileMosaic, observed: NDArray[np.floating[Any]], samples: int) -> Pulls:
    """Compare a tile's mosaic, of K = `samples`, with the observed planes [C, H, W], NaN where unknown."""
    from surveybridge.bridge_core.metrics import interval_width

    sigma = np.array([noise(plane) for plane in observed])[:, None, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        pull = (observed - mosaic.mean) / mosaic.std
        known = np.isfinite(pull)
        inside = {"sky": known & (mosaic.mean < SKY * sigma), "bright": known & (mosaic.mean > BRIGHT * sigma)}
    widths = np.array([interval_width(float(level), samples) for level in LEVELS])
    pixels, within, histogram = {}, {}, {}
    for region, where in inside.items():
        size = np.sort(np.abs(pull[where]))
        pixels[region] = len(size)
        within[region] = np.searchsorted(size, widths, "right") / max(len(size), 1)
        histogram[region] = np.histogram(np.clip(pull[where], EDGES[0], EDGES[-1]), EDGES)[0]
    return Pulls(pixels, within, histogram)


def observed_planes(mosaic: TileMosaic, candidates: pa.Table, survey: str) -> NDArray[np.float32]:
    """The candidates' thumbnails of one survey in their places, float32 [C, H, W]; NaN where there is none."""
    planes = np.full_like(mosaic.mean, np.nan)
    height, width = mosaic.coverage.shape
    # the pixel that holds the centre is at CELL / 2 of the thumbnail
    corners = [
        (np.floor(candidates[axis].to_numpy() + 0.5) - origin - CELL // 2).astype(int)
        for axis, origin in zip("yx", mosaic.core_origin, strict=True)
    ]
    for y, x, stamp in zip(*corners, stamp_array(candidates, f"thumbnail_{survey}"), strict=True):
        y0, y1, x0, x1 = max(y, 0), min(y + CELL, height), max(x, 0), min(x + CELL, width)
        planes[:, y0:y1, x0:x1] = stamp[:, y0 - y : y1 - y, x0 - x : x1 - x]
    return planes


def _read_pulls(run: RunFolder, rows: pa.Table, survey: str) -> list[Pulls]:
    """Return the pulls of the compared tiles that have pixels to compare."""
    full = rows.filter(pc.and_(pc.equal(rows["status"], "ok"), pc.greater(rows["n_candidates"], 0)))
    places = np.unique(np.linspace(0, full.num_rows - 1, TILES).round().astype(int)) if full.num_rows else ()
    found = []
    for place in places:
        tile_id = full["tile_id"][int(place)].as_py()
        try:
            mosaic, candidates = run.read_tile_mosaic(tile_id), run.read_candidates(tile_id)
        except FileNotFoundError:  # the catalog may have been kept without the mosaics
            continue
        candidates = candidates.filter(pc.and_(pc.is_finite(candidates["x"]), pc.is_finite(candidates["y"])))
        found.append(tile_pulls(mosaic, observed_planes(mosaic, candidates, survey), behind_moments(run)))
    return [pulls for pulls in found if sum(pulls.pixels.values())]


def _draw_coverage(axes: Axes, pulls: list[Pulls], judged: Mapping[str, Any] | None) -> None:
    axes.plot([0, 1], [0, 1], ":", color=BLACK, lw=0.9)
    for region, colour in COLOURS.items():
        of_tiles = [tile.within[region] for tile in pulls if tile.pixels[region]]
        if of_tiles:
            axes.fill_between(LEVELS, np.min(of_tiles, 0), np.max(of_tiles, 0), color=colour, alpha=0.2, lw=0)
            axes.plot(LEVELS, _pooled(pulls, region), color=colour, lw=1.7, label=f"{region} pixels of the run")
        if judged is None:
            continue
        for level, found in judged.get(region, {}).items():
            if found["value"] is not None:
                ends = [found["value"] if end is None else end for end in found["interval"]]
                bar = [[found["value"] - ends[0]], [ends[1] - found["value"]]]
                axes.errorbar(float(level), found["value"], bar, fmt="D", ms=4, color=colour, mec=BLACK, mew=0.6)
    axes.set(xlabel="probability of the interval", ylabel="share of pixels inside", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left")


def _draw_pulls(axes: Axes, pulls: list[Pulls], samples: int, survey: str) -> None:
    from scipy.stats import t

    for region, colour in COLOURS.items():
        counts = np.sum([tile.histogram[region] for tile in pulls], 0)
        if counts.sum():
            axes.stairs(counts / counts.sum() / np.diff(EDGES), EDGES, color=colour, lw=1.4, label=f"{region} pixels")
    spread = np.sqrt(1 + 1 / samples)
    x = np.linspace(EDGES[0], EDGES[-1], 300)
    axes.plot(x, t.pdf(x / spread, samples - 1) / spread, "--", color=ORANGE, lw=1.2, label="calibrated, Gaussian")
    axes.axvline(0, color=GREY, lw=0.7, ls=":")
    axes.set(yscale="log", ylim=(1e-4, 30), xlim=(EDGES[0], EDGES[-1]))
    axes.set(xlabel=f"(observed {survey} − mean) / std", ylabel="density")
    axes.legend(loc="upper right", fontsize=8)


def _pooled(pulls: list[Pulls], region: str) -> NDArray[np.float64]:
    weights = [tile.pixels[region] for tile in pulls]
    return np.asarray(np.average([tile.within[region] for tile in pulls], axis=0, weights=weights))


def _said(pulls: list[Pulls], survey: str) -> tuple[str, str]:
    """Say in words how the run was compared, and its coverage at 90%."""
    if not pulls:
        return f"This run has no observed {survey} to compare with.", ""
    at = int(np.argmin(np.abs(LEVELS - 0.9)))
    parts = [
        f"{_pooled(pulls, region)[at]:.1%} of {sum(tile.pixels[region] for tile in pulls)} {region} pixels"
        for region in COLOURS
        if any(tile.pixels[region] for tile in pulls)
    ]
    share = f"90% intervals hold {' and '.join(parts)}."
    said = (
        f"Compared are observed {survey} pixels around the candidates of {len(pulls)} tile(s) with the translated "
        f"mosaic; the shades span these tiles. Bright is a mean above {BRIGHT:g} sigma of the sky, sky one below "
        f"{SKY:g}. {share} Second: the pulls; beyond ±6 counts as at the edge."
    )
    return said, share
