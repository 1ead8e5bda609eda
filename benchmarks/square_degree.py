"""What a square degree costs, from rates measured here: hours of a core or GPU, and dollars, at several settings.

    python -m benchmarks.square_degree --store TILES --out benchmarks/results/square_degree.json    # --device cuda

The stages themselves are timed on tiles of the store, as `surveybridge plan` does (`jobs.planning.rates`), and
multiplied by the work of a square degree, as `plan` does (`jobs.planning.projection`), all of which has data::

    hours = (B read + W V translate + H detect + N E score + T write_tile + P write_pixel) / 3600

for B bytes of tiles with H pixels (halos included), W windows of 64 x 64 pixels (larger ones count by their pixels) of
V evaluations (K samples of S steps each: K S, or K (S - 1) + 1 where they share the first), N sources of E evaluations
(on average: those of the lens score, and of reconstructions for the share of sources that has them), T tiles, P pixels.
On a CPU the stages share the core, so everything counts; a GPU is paid for while its model works, and reading and
writing go on beside it. Other windows change W, and the time of one: they are timed in turns with those asked for.
What the settings mean for quality is in docs/results.md and docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.gpu import PIXEL_ARCSEC, SOURCES
from surveybridge.bridge_core.settings import DEFAULT_BATCH, WINDOW_PIXELS, PatchGrid, Sampling, WholeTile, Windows
from surveybridge.bridge_core.translate import translate_tile, with_shared_start
from surveybridge.jobs.diagnosing.machine import described_machine
from surveybridge.jobs.planning.projection import evaluations_of, project, work_of
from surveybridge.jobs.planning.rates import Rates, calibrate
from surveybridge.jobs.translating.config import Config
from surveybridge.jobs.translating.request import Request, check, settings_of, todo_of
from surveybridge.jobs.translating.scene import scene_of
from surveybridge.jobs.translating.stages import TileTranslator
from surveybridge.storage.tiles import Tile, part_of

SMALL, LARGE = PatchGrid(), PatchGrid.of(128)


@dataclass(frozen=True)
class Setting:
    """A row of the table: samples, network evaluations per sample, the windows, and which sources count."""

    name: str
    samples: int
    steps: int
    grid: Windows
    all_sources: bool = False
    """Whether every source is reconstructed."""
    own_starts: bool = False
    """Whether samples share no start where they could."""


def settings_around(samples: int, steps: int, asked: Windows, whole: Windows) -> list[Setting]:
    """Return the rows, starting with the setting that was asked for; `whole` are whole tiles."""
    half = max(2, samples // 2)
    return [
        Setting("asked (by default: the default)", samples, steps, asked),
        Setting("half the samples", half, steps, asked),
        Setting("4 steps", samples, 4, asked),
        Setting("half the samples, 4 steps", half, 4, asked),
        Setting("a start for each sample", samples, steps, asked, own_starts=True),
        Setting("whole tiles", samples, steps, whole),
        Setting("patches of 64 pixels", samples, steps, SMALL),
        Setting("patches of 128 pixels", samples, steps, LARGE),
        Setting("all sources reconstructed", samples, steps, asked, all_sources=True),
        Setting("as published: 200 steps, K = 5", 5, 200, asked),
    ]


def main() -> None:
    """Measure, print a table, and write square_degree.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="tiles with both endpoints")
    parser.add_argument("--checkpoint")
    parser.add_argument("--direction", help="such as 'lsst->euclid' (default: the one in which objects are scored)")
    parser.add_argument("--samples", type=int, default=8, help="K")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument(
        "--sources", type=float, default=SOURCES, help=f"a square degree (default: {SOURCES}, Euclid Q1)"
    )
    parser.add_argument("--tile-size", type=int, default=512, help="core of a tile, pixels")
    parser.add_argument("--halo", type=int, default=64, help="smallest halo, pixels")
    parser.add_argument("--core-price", type=float, default=0.085,
                        help="dollars an hour (default: Amazon EC2 c5 on demand, two vCPUs a core)")  # fmt: skip
    parser.add_argument("--gpu-price", type=float, default=4.92,
                        help="dollars an hour (default: an H100, Amazon EC2 Capacity Blocks, end of 2024)")  # fmt: skip
    parser.add_argument("--device", default="cpu", choices=list(DEFAULT_BATCH))
    parser.add_argument("--batch", type=int, help=f"windows in one network call (default: {DEFAULT_BATCH})")
    parser.add_argument("--calibrate", type=float, default=30, help="seconds for measuring the rates")
    parser.add_argument("--rounds", type=int, default=3, help="rounds in which the windows are timed in turn")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; see `surveybridge doctor`")
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            store=arguments.store,
            run=f"{folder}/run",
            checkpoint=arguments.checkpoint,
            direction=arguments.direction,
            samples=arguments.samples,
            steps=arguments.steps,
            batch=arguments.batch or DEFAULT_BATCH[arguments.device],
            # who pays for a GPU reads beside the model, and on a core one thing is done after another
            executor="ray" if arguments.device == "cuda" else "serial",
        )
        request = check(config)
        rates, tile, times = measured(request, arguments.calibrate, arguments.rounds)
        asked, whole = request.sampling.patches, whole_of(request)
    rates = replace(rates, live=1.0, sources_per_pixel=arguments.sources * (PIXEL_ARCSEC / 3600) ** 2)
    price = arguments.gpu_price if rates.gpus else arguments.core_price
    rows = []
    for setting in settings_around(arguments.samples, arguments.steps, asked, whole):
        if setting.grid not in times:  # of a network that takes statistics of its window
            continue
        # tiles must hold all that their windows look at
        manifest = square_degree(tile, arguments.tile_size, max(arguments.halo, setting.grid.reach))
        at = replace(rates, translate=times[setting.grid] / times[asked] * rates.translate)
        row = row_of(setting, request, manifest, tile, at)
        rows.append(row | {"dollars": price * row["hours"]})
    show(rows, rates, config, price)
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name not in ("store", "out")}
        settings |= {"direction": str(request.direction), "batch": config.batch, "patch": asked.stated}
        document: dict[str, Any] = {"machine": described_machine(), "settings": settings}
        seconds = {str(grid.stated): taken for grid, taken in times.items()}
        document |= {"rates": asdict(rates), "seconds_an_evaluation": seconds, "rows": rows}
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


def measured(request: Request, seconds: float, rounds: int) -> tuple[Rates, Tile, dict[Windows, float]]:
    """Return rates of the stages, a tile of the store, and the seconds of an evaluation by the windows."""
    settings = settings_of(request, attempts={})
    todo = todo_of(request)
    each = evaluations_of(request.model, request.sampling, request.config.scoring)
    rates, tile = calibrate(request.store, todo, settings, request.document, each, seconds)
    translator = TileTranslator(settings)
    # large enough for whole batches of any
    part = part_of(tile, 4 * LARGE.stride)
    scene = scene_of(part, request.direction.observed.name, translator.device)
    how = Sampling(samples=2, steps=2, batch=translator.sampling.batch, precision=settings.sampling.precision)
    whole = [whole_of(request)] if request.model.card.bound_to_a_size is None else []
    grids = dict.fromkeys((settings.sampling.patches, *whole, SMALL, LARGE))
    taken: dict[Windows, list[float]] = {grid: [] for grid in grids}
    (y, x), (height, width) = part.core_origin, part.core_shape
    for measuring in [False, *[True] * rounds]:
        for grid, times in taken.items():
            began = time.perf_counter()
            found = translate_tile(translator.model, request.direction, scene, replace(how, patches=grid))
            found.mean.cpu()  # waits for a GPU
            windows, pixels = grid.count((y, y + height, x, x + width))
            if measuring:
                times.append((time.perf_counter() - began) * windows * WINDOW_PIXELS / pixels / found.windows)
    return rates, tile, {grid: statistics.median(times) for grid, times in taken.items()}


def whole_of(request: Request) -> WholeTile:
    """Return whole tiles as the network of a request can take them."""
    return WholeTile(multiple=request.model.card.network.window_multiple)


def row_of(setting: Setting, request: Request, manifest: pa.Table, tile: Tile, rates: Rates) -> dict[str, Any]:
    """Return the hours of a square degree at one setting, by the projection of `plan`."""
    config = request.config.model_copy(update={"samples": setting.samples, "steps": setting.steps})
    rates = replace(rates, reconstructed=1.0) if setting.all_sources else rates
    work = work_of(manifest, request.direction, tile, setting.grid)
    how = replace(request.sampling, samples=setting.samples, steps=setting.steps, shared_start=False)
    how = how if setting.own_starts else with_shared_start(request.model.card, how)
    each = evaluations_of(request.model, how, config.scoring)
    found = project(work, each, rates, config, {}, tiles_done=0, cpus=None)
    grid, area = setting.grid, found.square_degrees
    return {
        "name": setting.name,
        "samples": config.samples,
        "steps": config.steps,
        "windows": grid.stated,
        "evaluations": {stage: round(count / area) for stage, count in found.evaluations.items()},
        "sources": round(found.sources / area),
        "reconstructed": round(found.reconstructed / area),
        "stage_hours": {stage: seconds / 3600 / area for stage, seconds in found.stage_seconds.items()},
        "hours": (found.wall_seconds - found.start_seconds) * (1 if rates.gpus else rates.threads) / 3600 / area,
    }


def square_degree(tile: Tile, tile_size: int, halo: int) -> pa.Table:
    """Return the manifest of the tiles of a square degree, as many at each place in the lattice of windows.

    As the tiles of a field they begin at multiples of 8 pixels.
    """
    count = round((3600 / PIXEL_ARCSEC / tile_size) ** 2)
    spread = np.outer((0.7548776662466927, 0.5698402909980532), np.arange(count)) % 1  # evenly over the unit square
    y, x = np.floor(spread * tile_size * 8).astype(np.int64) * 8
    planes = sum(len(image.bands) for image in tile.images.values())
    columns: dict[str, Any] = {
        "ra": np.full(count, np.nan),
        "dec": np.full(count, np.nan),
        "core_y0": y,
        "core_x0": x,
        "surveys": [list(tile.images)] * count,
        "bytes": np.full(count, (tile_size + 2 * halo) ** 2 * planes * (4 + 4 + 1)),  # flux, variance, mask
    }
    sides = dict.fromkeys(("core_height", "core_width"), tile_size)
    sides |= dict.fromkeys(("height", "width"), tile_size + 2 * halo)
    return pa.table(columns | {name: np.full(count, side) for name, side in sides.items()})


def show(rows: list[dict[str, Any]], rates: Rates, config: Config, price: float) -> None:
    """Print the rates and the table."""
    unit = "GPU" if rates.gpus else "core"
    print(
        f"{rates.device}, {rates.threads} threads, {config.precision}, batch {config.batch}: "
        f"{1 / rates.translate:.4g} evaluations/s to translate, {1 / rates.score:.4g} to score, detect "
        f"{1e-6 / max(rates.detect, 1e-12):.2f} million pixels/s, read "
        f"{1e-6 / rates.read:.0f} MB/s, write {1e3 * rates.write_tile:.0f} ms a tile; ${price:g} a {unit}-hour"
    )
    stages = list(rows[0]["stage_hours"])
    print(f"{'a square degree':32}{'K':>3}{'steps':>6}  " + "".join(f"{stage:>11}" for stage in stages), end="")
    print(f"{unit + '-hours':>12}{'dollars':>9}")
    for row in rows:
        spent = "".join(f"{row['stage_hours'][stage]:11.3f}" for stage in stages)
        print(f"{row['name']:32}{row['samples']:3d}{row['steps']:6d}  {spent}{row['hours']:12.3f}{row['dollars']:9.2f}")


if __name__ == "__main__":
    main()
