"""What windows of several sizes cost on the same tiles, how good they are, and how far from a single window.

    python -m benchmarks.windows --store tiles --tiles 2 --out benchmarks/results

The reference is the whole tile with all of its halo as one window. `off` is the distance of the posterior mean from
that of the reference, in posterior standard deviations (rms, and the largest): the noise is that of the sky, hence the
same for all, and only the context differs. Quality is judged against the true image of the wanted endpoint. Times are
processor seconds of a tile, medians of rounds that go through all kinds of windows in turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.metrics import interval_width
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.settings import PatchGrid, Sampling, WholeTile, Windows
from surveybridge.bridge_core.translate import Posterior, translate_tile
from surveybridge.jobs.translating.scene import scene_of
from surveybridge.storage.tiles import Tile, TileStore

GRIDS: tuple[Windows, ...] = (
    PatchGrid(64, 40, 8),
    PatchGrid(64, 32, 16),
    PatchGrid(128, 104, 8),
    PatchGrid(128, 88, 16),
    PatchGrid(256, 232, 8),
    PatchGrid(256, 216, 16),
    WholeTile(16),
    WholeTile(32),
    WholeTile(64),
    WholeTile(96),
)
"""What the network sees at once; whole tiles with as much of their halo as they hold."""


def main() -> None:
    """Print a table per direction and write windows.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--checkpoint", help="shipped name, or path (default: the shipped one)")
    parser.add_argument("--tiles", type=int, default=2, help="number of tiles with both endpoints and a full halo")
    parser.add_argument("--samples", type=int, default=4, help="K")
    parser.add_argument("--rounds", type=int, default=1, help="of timing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    tiles = whole_tiles(arguments.store, arguments.tiles)
    if not tiles:
        parser.error(f"no tile of {arguments.store} has both endpoints and a halo of 64 pixels on every side")
    rows: list[dict[str, Any]] = []
    for direction in model.card.problem.directions[::-1]:
        print(f"{direction}, {len(tiles)} tiles, core {tiles[0].core}, K = {arguments.samples}")
        print("  windows           | pixels computed | seconds | off, sigma  largest | RMSE  s/s  in 68%, bright | sky")
        rows += measure(model, tiles, direction, arguments.samples, arguments.rounds)
    if arguments.out:
        settings = {name: getattr(arguments, name) for name in ("tiles", "samples", "rounds", "threads")}
        document = {"checkpoint": model.card.name, "settings": settings, "rows": rows}
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "windows.json").write_text(json.dumps(document, indent=1) + "\n")


def whole_tiles(url: str, count: int) -> list[Tile]:
    """Read the first tiles of a store that have both endpoints and the halo of a whole tile, `count` at most."""
    store = TileStore.open(url)
    tiles = (store.read_tile(tile_id) for tile_id in store.manifest()["tile_id"].to_pylist())
    suited = (tile for tile in tiles if len(tile.images) == 2 and halo(tile) >= WholeTile.halo)
    return list(itertools.islice(suited, count))


def measure(model: Model, tiles: list[Tile], direction: Direction, samples: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each kind of windows; the reference translates all tiles first."""
    whole = WholeTile(min(map(halo, tiles)))
    grids = [grid for grid in GRIDS if isinstance(grid, PatchGrid) or grid.halo < whole.halo]
    references = [translate(model, tile, direction, whole, samples) for tile in tiles]
    seconds: dict[Windows, list[float]] = {grid: [] for grid in grids}
    found: dict[Windows, list[Posterior]] = {whole: references}
    for _ in range(rounds):
        for grid in grids:
            began = time.process_time()
            found[grid] = [translate(model, tile, direction, grid, samples) for tile in tiles]
            seconds[grid].append((time.process_time() - began) / len(tiles))
    rows = []
    for grid in (*grids, whole):
        posteriors = found[grid]
        row: dict[str, Any] = {"direction": str(direction), "windows": named(grid)}
        row["pixels_computed"] = sum(map(computed, posteriors, tiles, [grid] * len(tiles))) / sum(
            posterior.coverage.numel() for posterior in posteriors
        )
        row["seconds"] = statistics.median(seconds[grid]) if grid in seconds else None
        off = [(p.mean - r.mean) / r.std for p, r in zip(posteriors, references, strict=True)]
        row["off"] = float(torch.stack([each.square().nanmean() for each in off]).mean().sqrt())
        row["largest_off"] = float(max(each.abs().nan_to_num(0).max() for each in off))
        row |= quality(tiles, posteriors, direction.wanted.name, samples)
        rows.append(row)
        print(
            f"  {row['windows']:17} | {row['pixels_computed']:15.2f} | {row['seconds'] or np.nan:7.1f} | "
            f"{row['off']:10.3f} {row['largest_off']:8.1f} | {row['rmse_bright']:4.2f} "
            f"{row['spread_skill_bright']:6.2f} {row['inside_68_bright']:17.1%} | "
            f"{row['rmse_sky']:.3f} {row['spread_skill_sky']:.3f} {row['inside_68_sky']:.1%}",
            flush=True,
        )
    return rows


def named(grid: Windows) -> str:
    """Return how the table calls some windows."""
    if isinstance(grid, WholeTile):
        return f"tile, halo {grid.halo}"
    return f"{grid.size} {grid.stride} {grid.margin}"


def computed(posterior: Posterior, tile: Tile, grid: Windows) -> float:
    """Return the pixels that went through the network for a sample and step."""
    (y, x), (height, width) = tile.core_origin, tile.core_shape
    windows, pixels = grid.count((y, y + height, x, x + width))
    return pixels * posterior.windows / windows


def halo(tile: Tile) -> int:
    """Return the number of pixels around the core on its narrowest side."""
    y0, y1, x0, x1 = tile.core
    return min(y0, x0, tile.shape[0] - y1, tile.shape[1] - x1)


def translate(model: Model, tile: Tile, direction: Direction, grid: Windows, samples: int) -> Posterior:
    """Return the posterior over the tile's core."""
    scene = scene_of(tile, direction.observed.name, torch.device("cpu"))
    return translate_tile(model, direction, scene, Sampling(samples=samples, patches=grid))


def quality(
    tiles: list[Tile], posteriors: list[Posterior], wanted: str, samples: int, brightest: float = np.inf
) -> dict[str, float]:
    """Return RMSE in the observed noise, spread/skill and coverage of bright and sky pixels, bands and tiles pooled.

    Bright ones are predicted to be up to `brightest` times the noise.
    """
    error, spread, bright = [], [], []
    for tile, posterior in zip(tiles, posteriors, strict=True):
        y0, y1, x0, x1 = tile.core
        image = tile.images[wanted]
        flux, valid = image.flux[:, y0:y1, x0:x1], image.valid[:, y0:y1, x0:x1]
        sigma = np.sqrt(np.median(image.variance[:, y0:y1, x0:x1], axis=(1, 2), keepdims=True))
        mean, std = posterior.mean.numpy(), posterior.std.numpy()
        known = valid & np.isfinite(mean)
        error.append(((flux - mean) / sigma)[known])
        spread.append((std / sigma)[known])
        bright.append((mean / sigma)[known])
    e, s, m = (np.concatenate(parts) for parts in (error, spread, bright))
    row = {}
    for name, where in (("bright", (m > 3) & (m < brightest)), ("sky", m < 1.5)):
        row[f"rmse_{name}"] = float(np.sqrt(np.mean(e[where] ** 2)))
        row[f"spread_skill_{name}"] = float(
            np.sqrt((1 + 1 / samples) * np.mean(s[where] ** 2) / np.mean(e[where] ** 2))
        )
        row[f"inside_68_{name}"] = float(np.mean(np.abs(e[where]) <= interval_width(0.68, samples) * s[where]))
    return row


if __name__ == "__main__":
    main()
