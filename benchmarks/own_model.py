"""What a checkpoint gains on another sky than that of its training if it is trained further and calibrated there.

    python -m benchmarks.own_model [--sky seeing-0.9] [--steps 300] [--rates 1e-4,3e-4] [--keep FOLDER]

One field of a simulated survey is to train on, another one to judge by; both are ingested as a user would. The table
has the checkpoint as it is, calibrated on the part of the first field that no training sees, trained further on the
rest of it (once for each learning rate), and trained and calibrated. Everything is judged on the second field, LSST ->
VIS, against the VIS image, whose noise is part of the posterior: flux within 0.5" of the galaxies of i < 24.5 over that
of the image; the share of the pixels of predicted S/N above 3 that the 68% interval holds; spread/skill of these
pixels. Errors are those between blocks of 64 pixels.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from surveybridge.__main__ import main as surveybridge
from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT
from surveybridge.bridge_core.metrics import interval_width
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import TileStore

SAMPLES = 8
RADIUS = 5.0
"""Pixels: 0.5 arcsec."""
BLOCK = 64
HOLD_BACK = ["--hold-back", "0.25", "--hold-back-order", "13"]
"""Share of the first field that is kept from training, for validation and for calibration."""


def main() -> None:
    """Make the fields and the checkpoints; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sky", default="seeing-0.9")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="shipped name, or path")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rates", default="1e-4", help="learning rates, joined by commas")
    parser.add_argument("--sides", default="2048,1024", help="pixels of the two fields, joined by a comma")
    parser.add_argument("--keep", type=Path, help="folder to work in, where an earlier run goes on")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report = measured(asked, asked.keep or Path(scratch))
    if asked.out:
        asked.out.write_text(json.dumps(report, indent=2) + "\n")


def measured(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rows of the table, each printed as soon as it is there."""
    sides = [int(side) for side in asked.sides.split(",")]
    here, there = (
        field(folder, asked.sky, name, side, seed) for name, side, seed in zip("ab", sides, (11, 12), strict=True)
    )
    print(f"{asked.sky}, trained on {sides[0]}^2 and judged on {sides[1]}^2 pixels, {asked.steps} steps")
    print(f"{'checkpoint':40s} {'flux':>12s} {'68% holds':>14s} {'spread/skill':>14s}")
    rows: list[dict[str, Any]] = []

    def add(name: str, checkpoint: str, *more: str) -> None:
        row = judged(folder, there, folder / f"run-{name.replace(' ', '-')}", checkpoint, more)
        rows.append({"checkpoint": name, **row})
        print(
            f"{name:40s} {row['flux'][0]:6.3f} +-{row['flux'][1]:.3f} {100 * row['held'][0]:7.1f} +-"
            f"{100 * row['held'][1]:.1f}% {row['spread'][0]:8.2f} +-{row['spread'][1]:.2f}",
            flush=True,
        )

    add("as it is", asked.checkpoint)
    add("calibrated", calibrated(folder, here, asked.checkpoint, "shipped"), "--calibrated")
    curves = {}
    for rate in asked.rates.split(","):
        out = folder / f"tuned-{rate}"
        work("train", "--store", here, "--checkpoint", asked.checkpoint, "--out", out, "--steps", asked.steps,
             *HOLD_BACK, "--learning-rate", rate, "--validation", 32, "--report-steps", 100,
             "--report-seconds", 1e6)  # fmt: skip
        curves[rate] = list(csv.DictReader((out / "loss.csv").open()))
        add(f"{asked.steps} steps at {rate}", str(out / "bridge"))
        learnt = calibrated(folder, here, str(out / "bridge"), rate)
        add(f"{asked.steps} steps at {rate} calibrated", learnt, "--calibrated")
    return {"sky": asked.sky, "sides": sides, "steps": asked.steps, "rows": rows, "curves": curves}


def work(job: str, *words: object) -> None:
    """Run a job of the command line, which must end well."""
    code = surveybridge([job, *map(str, words)])
    if code != 0:
        raise SystemExit(f"surveybridge {job} ended with {code}")


def field(folder: Path, sky: str, name: str, side: int, seed: int) -> str:
    """Simulate a field and ingest it; the tile store."""
    files, store = folder / name, folder / f"tiles_{name}"
    if not (files / "truth.parquet").exists():
        work("simulate", "--out", files, "--sky", sky, "--size", side, "--seed", seed, "--lenses", 0, "--overwrite")
    if not (store / "manifest.parquet").exists():
        lsst = [files / f"lsst_{band}.fits" for band in "gri"]
        work("ingest", "--euclid", files / "euclid_vis.fits", "--lsst", *lsst, "--store", store)
    return str(store)


def calibrated(folder: Path, store: str, checkpoint: str, name: str) -> str:
    """Calibrate on the first field; the new checkpoint."""
    out = folder / f"calibrated-{name}"
    stem = Path(checkpoint).name
    if not (out / f"{stem}.json").exists():
        work("calibrate", "--store", store, "--checkpoint", checkpoint, "--to", "euclid", "--out", out, "--no-arcs",
             *HOLD_BACK)  # fmt: skip
    return str(out / stem)


def judged(folder: Path, store: str, run: Path, checkpoint: str, more: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Flux, coverage and spread/skill of a translation, each with its standard error."""
    work("translate", "--store", store, "--run", run, "--checkpoint", checkpoint, "--to", "euclid",
         "--samples", SAMPLES, "--score-samples", 2, "--score-steps", 1, "--executor", "serial", *more)  # fmt: skip
    stitched = RunFolder.open(run).read_mosaic()
    mean, std = stitched.mean, stitched.std
    observed, sigma = image_of(store)
    usable = np.isfinite(observed) & np.isfinite(mean[0])
    signal = usable & (mean[0] > 3 * sigma)
    within = np.abs(observed - mean[0]) <= interval_width(0.68, SAMPLES) * std[0]
    near = usable & galaxies(folder / "b" / "truth.parquet", observed.shape)
    spread, error = ratio(signal * std[0] ** 2 * (1 + 1 / SAMPLES), signal * (observed - mean[0]) ** 2)
    return {
        "flux": ratio(near * mean[0], near * observed),
        "held": ratio(within & signal, signal),
        "spread": (float(np.sqrt(spread)), float(error / 2 / np.sqrt(spread))),
    }


def galaxies(truth: Path, shape: tuple[int, ...]) -> Any:
    """Pixels within `RADIUS` of the galaxies of i < 24.5, bool [H, W]."""
    table = pq.read_table(truth)
    x, y, magnitude = (table[name].to_numpy() for name in ("x_vis", "y_vis", "mag_i"))
    chosen = (np.array(table["kind"].to_pylist()) == "galaxy") & (magnitude < 24.5)
    lines, columns = np.indices(shape)
    near = np.zeros(shape, bool)
    for y0, x0 in zip(y[chosen], x[chosen], strict=True):
        near |= np.hypot(lines - y0, columns - x0) <= RADIUS
    return near


def ratio(above: Any, below: Any) -> tuple[float, float]:
    """Ratio of two sums over an image, and its standard error from the jackknife over blocks."""
    sums = []
    for values in (above, below):
        values = np.nan_to_num(np.asarray(values, np.float64))
        height, width = (n // BLOCK * BLOCK for n in values.shape)
        blocks = values[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
        sums.append(blocks.sum((1, 3)).ravel())
    (top, bottom), count = sums, len(sums[0])
    without = (top.sum() - top) / (bottom.sum() - bottom)
    return float(top.sum() / bottom.sum()), float(np.sqrt((count - 1) * without.var()))


def image_of(store: str) -> tuple[Any, Any]:
    """VIS and its noise over the field, NaN where masked."""
    tiles = TileStore.open(store)
    rows = tiles.manifest().to_pylist()
    height = max(row["core_y0"] + row["core_height"] for row in rows)
    shape = (height, max(row["core_x0"] + row["core_width"] for row in rows))
    flux, sigma = np.full(shape, np.nan), np.full(shape, np.nan)
    for row in rows:
        tile = tiles.read_tile(row["tile_id"], halo=0)
        image, (y, x) = tile.images["euclid"], tile.core_origin
        where = np.s_[y : y + tile.core_shape[0], x : x + tile.core_shape[1]]
        flux[where] = np.where(image.valid[0], image.flux[0], np.nan)
        sigma[where] = np.sqrt(np.median(image.variance[0][image.valid[0]]))
    return flux, sigma


if __name__ == "__main__":
    main()
