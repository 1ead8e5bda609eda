"""Whether a depth that is asked for is the depth of what comes out: `--wanted-noise` against images simulated so.

    python -m benchmarks.depth [--checkpoint mosaic-v3] [--noise 2.4] [--factors 0.5,1,1.4]

One field is simulated, its LSST once and its VIS at several noise levels; windows around galaxies are translated as
`translate --wanted-noise VIS=...` does, and each is compared with the VIS image of that level. Printed for pixels of
the sky and for bright ones (posterior mean below 0.5 and above 3 times the noise), with the 95% intervals of a
bootstrap over the windows: the standard deviation over the noise that was asked for, that of the residuals over the
same, and the share of pixels in the 68% interval.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.skies import field, images, observed_tile, rounded
from benchmarks.sky_measures import SAMPLES, covering, translate_windows
from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from surveybridge.bridge_core.metrics import interval_width
from surveybridge.bridge_core.model import Model
from surveybridge.jobs.simulating.field import noise_stream
from surveybridge.jobs.simulating.shipped_skies import TRAINING
from surveybridge.jobs.simulating.sky import observe
from surveybridge.jobs.translating.wishes import Wishes
from surveybridge.storage.tiles import Tile

SKY, BRIGHT = 0.5, 3.0
"""Posterior means, over the noise, below which pixels are sky, and above which they are bright."""
USED = 16
"""Pixels from the middle of a window that count: as far as windows of a run do, they do not overlap."""
RESAMPLES = 500
Values = NDArray[np.float64]


def main() -> None:
    """Simulate, translate at each level, compare; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="one that is told conditions")
    parser.add_argument("--noise", type=float, default=2.4, help="nJy a pixel of VIS")
    parser.add_argument("--factors", default="0.5,1,1.4", help="of that noise, joined by commas")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--seed", type=int, default=300)
    parser.add_argument("--out", type=Path, help="JSON (default: benchmarks/results/depth-CHECKPOINT.json)")
    asked = parser.parse_args()
    started = time.process_time()
    torch.set_num_threads(1)
    model = load_checkpoint(asked.checkpoint).to("cpu", "bfloat16")
    levels = [round(asked.noise * float(factor), 4) for factor in asked.factors.split(",")]
    wishes = {level: read(model, level) for level in levels}  # refused before anything is simulated
    sky = TRAINING.changed("Euclid", lambda one: replace(one, sky_sigma=asked.noise))
    with tempfile.TemporaryDirectory() as scratch:
        tile = observed_tile(Path(scratch), sky, asked.seed)
    centres = chosen(tile, asked.seed, asked.windows)
    rows = {}
    for level in levels:
        drawn = translate_windows(model, tile, centres, wishes[level])
        rows[level] = compared(drawn, centres, vis(asked.seed, level), level)
        print(line(level, rows[level]), flush=True)
    seconds = time.process_time() - started
    print(f"{len(centres)} windows, {SAMPLES} samples, {seconds:.0f} processor seconds")
    out = asked.out or Path(__file__).with_name("results") / f"depth-{model.card.name}.json"
    report = {"checkpoint": model.card.name, "checkpoint_sha256": model.sha256, "seed": asked.seed,
              "windows": len(centres), "samples": SAMPLES, "noise": rows, "processor_seconds": seconds}  # fmt: skip
    out.write_text(json.dumps(rounded(report), indent=1) + "\n")


def read(model: Model, level: float) -> Wishes:
    """Read the request as `translate` does, which refuses what the checkpoint was not trained on."""
    wishes = Wishes.read(model.card, model.card.problem.to("euclid"), [f"VIS={level:g}"], [])
    assert wishes is not None
    return wishes


def chosen(tile: Tile, seed: int, count: int) -> NDArray[np.int64]:
    """Middles (y, x) of windows with galaxies, all of whose pixels are known."""
    drawn = field(seed, None)
    x, y = drawn.euclid.pixels(*drawn.sky(drawn.galaxies))
    known = np.logical_and.reduce([image.valid.all(axis=0) for image in tile.images.values()])
    bright = drawn.galaxies["mag_i"] < 24.5
    middles, _ = covering(np.stack([drawn.galaxies["mag_i"], x, y], 1)[bright][:, 1:])
    middles = middles[(middles >= 32).all(1)]  # objects lie beyond the edges too
    inside = [known[my - 32 : my + 32, mx - 32 : mx + 32] for my, mx in middles]
    whole = [part.shape == (64, 64) and bool(part.all()) for part in inside]
    return middles[np.array(whole)][:count]


def vis(seed: int, level: float) -> NDArray[np.float32]:
    """VIS of the field at a noise level, nJy; NaN where it is masked."""
    instrument = replace(TRAINING.band("VIS"), sky_sigma=level)
    model = images(seed, instrument, TRAINING.registration, None)
    flux, _, mask = observe(model, instrument, noise_stream(seed, instrument))
    return np.where(mask == 0, flux, np.nan).astype(np.float32)


def compared(drawn: NDArray[np.float32], centres: NDArray[np.int64], image: Any, level: float) -> dict[str, Any]:
    """Measures of sky and bright pixels, each with its interval."""
    half = drawn.shape[-1] // 2
    inner = np.s_[half - USED : half + USED]
    parts = drawn[:, :, inner, inner].astype(np.float64)
    true = np.stack([image[y - USED : y + USED, x - USED : x + USED] for y, x in centres]).astype(np.float64)
    mean, std = parts.mean(1), parts.std(1, ddof=1)
    found = {}
    for name, here in (("sky", mean < SKY * level), ("bright", mean > BRIGHT * level)):
        counted = here & np.isfinite(true)
        error = np.where(counted, true - mean, 0.0)
        inside = counted & (np.abs(error) <= interval_width(0.68, SAMPLES) * std)
        sums = np.stack([counted, counted * std**2, error**2, inside], -1).sum((1, 2)).astype(np.float64)

        def spread(s: Values) -> float:
            return float(np.sqrt(s[:, 1].sum() / s[:, 0].sum()) / level)

        def residual(s: Values) -> float:
            # a mean of K samples errs by a K-th of the variance more
            return float(np.sqrt(s[:, 2].sum() / s[:, 0].sum() / (1 + 1 / SAMPLES)) / level)

        found[name] = {
            "std": boot(sums, spread),
            "residual": boot(sums, residual),
            "inside_68": boot(sums, lambda s: float(s[:, 3].sum() / s[:, 0].sum())),
        }
    return found


def boot(sums: Values, statistic: Callable[[Values], float]) -> list[float]:
    """A statistic of windows, and its 95% interval over resampled windows."""
    rng = np.random.default_rng(0)
    drawn = [statistic(sums[rng.integers(0, len(sums), len(sums))]) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return [statistic(sums), float(low), float(high)]


def line(level: float, row: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [
        f"{where} {name} {value:.2f} [{low:.2f}, {high:.2f}]"
        for where, of in row.items()
        for name, (value, low, high) in of.items()
    ]
    return f"VIS={level:g}: " + "  ".join(cells)


if __name__ == "__main__":
    main()
