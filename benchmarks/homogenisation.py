"""What PSF homogenisation buys: flux and intervals of galaxies in skies of other PSFs, with it and without.

    python -m benchmarks.homogenisation [--size 1200] [--seeds 11] [--skies seeing-0.9 moffat-2.5 ...]

Each sky is simulated, ingested and, in windows around the galaxies brighter than i = 24.5, translated to VIS with the
same noise twice: as it is, and homogenised as `translate` does. Printed, and written to `benchmarks/results/`: flux of
the mean within 0.5" over that of the VIS image, share of the pixels of VIS above 3 sigma in the 68% interval, spread
over skill in the display stretch, and what homogenisation did.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.metrics import interval_width
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.scene import observed_units
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.translate import window_samples
from surveybridge.jobs import ingest, simulate
from surveybridge.jobs.running.progress import quiet
from surveybridge.jobs.translating.config import NOISE_BOUND
from surveybridge.jobs.translating.homogenising import Homogenisation, words
from surveybridge.storage.tiles import Tile, TileStore

SKIES = (
    "training", "seeing-0.5", "seeing-0.6", "seeing-0.9", "seeing-1.1", "i-seeing-1.1", "moffat-3.5", "moffat-2.5",
    "kolmogorov", "year10", "year1",
)  # fmt: skip
HALF, INNER, EDGE = 32, 20, 60
"""Pixels: half a window, half of the part that counts, and how far from the field's edge the galaxies are."""
FAINTEST = 24.5
APERTURE = 5.0
"""Radius, pixels."""


def main() -> None:
    """Print a line for each sky, and write all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skies", nargs="+", default=SKIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[11])
    parser.add_argument("--size", type=int, default=1200)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--bound", type=float, default=NOISE_BOUND)
    parser.add_argument("--checkpoint", default="mosaic-v2", help="one that was trained on one PSF")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/homogenisation.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    how = Homogenisation.of_card(model.card, arguments.bound)
    if how is None:
        parser.error(f"checkpoint {model.card.name} calls for no PSF")
    rows = []
    for name in arguments.skies:
        start = time.monotonic()
        pairs = [
            (tile, how.applied(tile, None), places) for tile, places in fields(name, arguments.seeds, arguments.size)
        ]
        row: dict[str, Any] = {"sky": name, "did": words(pairs[0][1])}
        for what, which in (("as it is", 0), ("homogenised", 1)):
            parts = [measured(model, pair[which], pair[1], pair[2], arguments.samples) for pair in pairs]
            row[what] = together(parts, arguments.samples)
        row["seconds"] = round(time.monotonic() - start)
        rows.append(row)
        said = "   ".join(
            f"{what}: {of['galaxies']} galaxies, flux {of['flux']:.2f}, 68% holds {of['holds']:.0%}, "
            f"spread/skill {of['spread_over_skill']:.2f}"
            for what, of in row.items()
            if isinstance(of, dict)
        )
        print(f"{name:14s} {said}   {row['did']}", flush=True)
        arguments.out.write_text(json.dumps({"settings": vars(arguments) | {"out": None}, "rows": rows}, indent=1))


def fields(sky: str, seeds: list[int], size: int) -> list[tuple[Tile, NDArray[np.float64]]]:
    """The simulated fields as one tile each, and (y, x) of the galaxies that count, in pixels."""
    found = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as scratch, quiet("surveybridge"):
            folder, store = Path(scratch) / "sky", str(Path(scratch) / "tiles")
            simulate.run(simulate.Config(out=folder, size=size, seed=seed, lenses=0, sky=sky))
            lsst = tuple(str(folder / f"lsst_{band}.fits") for band in "gri")
            vis = str(folder / "euclid_vis.fits")
            ingest.run(ingest.Config(euclid=vis, lsst=lsst, store=store, tile_size=size, halo=0))
            tile = TileStore.open(store).read_tile("t0000")
            truth = pq.read_table(folder / "truth.parquet", columns=["kind", "mag_i", "x_vis", "y_vis"]).to_pandas()
        inside = truth.x_vis.between(EDGE, size - EDGE) & truth.y_vis.between(EDGE, size - EDGE)
        chosen = truth[inside & (truth.kind == "galaxy") & (truth.mag_i < FAINTEST)]
        found.append((tile, chosen[["y_vis", "x_vis"]].to_numpy(float)))
    return found


def measured(
    model: Model, tile: Tile, strictest: Tile, places: NDArray[np.float64], samples: int
) -> dict[str, NDArray[np.float64]]:
    """Fluxes by galaxy and, by pixel, pulls above 3 sigma, and variance and squared error in the display stretch.

    Galaxies count that are usable in `strictest`, whose masks have grown.
    """
    direction = model.card.problem.to("euclid")
    image, vis = tile.shown["lsst"], tile.images["euclid"]
    valid, usable = image.valid.all(0), strictest.shown["lsst"].valid.all(0) & vis.valid[0]
    rounded = np.round(places).astype(int)
    boxes = [(slice(y - HALF, y + HALF), slice(x - HALF, x + HALF)) for y, x in rounded]
    near = [usable[y - 6 : y + 7, x - 6 : x + 7].all() for y, x in rounded]
    kept = np.flatnonzero([whole and valid[box].mean() > 0.95 for whole, box in zip(near, boxes, strict=True)])
    windows = [
        observed_units(
            model,
            direction.observed,
            torch.from_numpy(np.nan_to_num(image.flux[:, *boxes[k]])),
            torch.from_numpy(np.broadcast_to(valid[boxes[k]], (len(image.bands), 2 * HALF, 2 * HALF)).copy()),
        )
        for k in kept
    ]
    corners = [(int(rounded[k][0]) - HALF, int(rounded[k][1]) - HALF) for k in kept]
    how = Sampling(samples=samples, seed=1, precision="bfloat16")
    drawn = window_samples(model, direction, torch.stack(windows), corners, how)[:, :, 0].numpy().astype(float)
    found: dict[str, list[Any]] = {name: [] for name in ("flux", "true", "pull", "variance", "error")}
    y, x = np.indices((2 * HALF, 2 * HALF))
    for k, some in zip(kept, drawn, strict=True):
        true, sigma = vis.flux[0][boxes[k]].astype(float), np.sqrt(vis.variance[0][boxes[k]])
        mean, std = some.mean(0), np.maximum(some.std(0, ddof=1), 1e-6)
        at_y, at_x = places[k] - rounded[k] + HALF
        circle = np.hypot(y - at_y, x - at_x) < APERTURE
        found["flux"].append([mean[circle].sum()])
        found["true"].append([true[circle].sum()])
        inner = usable[boxes[k]] & (np.maximum(np.abs(y - HALF), np.abs(x - HALF)) < INNER)
        bright, seen = inner & (true > 3 * sigma), inner & (mean > sigma)
        found["pull"].append(((true - mean) / std)[bright])
        display, shown = np.arcsinh(some / (2 * sigma)), np.arcsinh(true / (2 * sigma))
        found["variance"].append(display.var(0, ddof=1)[seen])
        found["error"].append(((shown - display.mean(0)) ** 2)[seen])
    return {name: np.concatenate(values) for name, values in found.items()}


def together(parts: list[dict[str, NDArray[np.float64]]], samples: int) -> dict[str, float]:
    """The figures of a sky from all of its fields."""
    all_of = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    spread = np.sqrt((1 + 1 / samples) * all_of["variance"].mean() / all_of["error"].mean())
    return {
        "galaxies": len(all_of["flux"]),
        "flux": round(float(all_of["flux"].sum() / all_of["true"].sum()), 3),
        "holds": round(float((np.abs(all_of["pull"]) < interval_width(0.683, samples)).mean()), 3),
        "spread_over_skill": round(float(spread), 3),
    }


if __name__ == "__main__":
    main()
