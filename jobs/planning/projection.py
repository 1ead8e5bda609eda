"""Arithmetic for what a translation will take: windows from geometry, everything else from `planning.rates`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from surveybridge.bridge_core.settings import WHOLE, WINDOW_PIXELS

if TYPE_CHECKING:
    import pyarrow as pa

    from surveybridge.bridge_core.model import Model
    from surveybridge.bridge_core.problem import Direction
    from surveybridge.bridge_core.settings import Sampling, Scoring, Windows
    from surveybridge.jobs.planning.rates import Rates
    from surveybridge.jobs.translating.config import Config
    from surveybridge.storage.tiles import Tile


RAY_START_SECONDS = 12.0
"""From the first tile handed to a started Ray until a model takes it: processes start and load torch."""

TILE_REQUESTS = {"read": 7, "write": 3, "compact": 2}
"""S3 requests of a tile: its metadata and six shards; mosaic, candidates, ledger row; two reads of its compaction."""

RUN_REQUESTS = 25
"""S3 requests of a run however small: store, manifest, run.json, lease, ledger's listings."""

HEARTBEAT_SECONDS = 15.0
"""Between two requests of the lease's heartbeat."""


@dataclass(frozen=True)
class Work:
    """The work to do, from the manifest alone.

    `windows` are those through which the network sees the tiles, and `pixels` theirs; of tiles with masked parts fewer
    are translated. Of tiles with both ends, `scored_pixels` are those of the cores, and `detect_pixels` all.
    """

    direction: Direction
    tiles: int
    windows: int
    pixels: int
    core_pixels: int
    scored_pixels: int
    detect_pixels: int
    bytes: int
    square_degrees: float


@dataclass(frozen=True)
class Projection:
    """Predicted cost of a run. Seconds by stage are summed over workers; `wall_seconds` is the elapsed time."""

    tiles: int
    tiles_done: int
    direction: str = ""
    observed: str = ""
    other_tiles: int = 0
    domains: Mapping[str, int] = field(default_factory=dict)
    seen_in: str = ""
    """What the windows are."""
    patches: int = 0
    patches_translated: int = 0
    sources: int = 0
    reconstructed: int = 0
    evaluations: Mapping[str, int] = field(default_factory=dict)
    square_degrees: float = 0.0
    workers: int = 0
    device: str = ""
    threads: int = 0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    start_seconds: float = 0.0
    wall_seconds: float = 0.0
    device_hours: float = 0.0
    device_hours_per_square_degree: float = 0.0
    memory: Mapping[str, int] = field(default_factory=dict)
    gpu_memory: int | None = None
    bytes_read: int = 0
    bytes_written: int = 0
    requests: Mapping[str, int] = field(default_factory=dict)
    rates: Mapping[str, Any] = field(default_factory=dict)


def work_of(manifest: pa.Table, direction: Direction, tile: Tile, grid: Windows) -> Work:
    """Count the work in a manifest, in its tiles with the observed end; `tile` is any tile of the store, as read."""
    from surveybridge.storage.manifests import tiles_with

    numbers = ("core_height", "core_width", "core_y0", "core_x0", "bytes")
    manifest = manifest.select(["surveys", *numbers, "height", "width"])
    manifest = tiles_with(manifest, direction.observed.name)
    height, width, y, x, size = (manifest[name].to_numpy().astype(np.int64) for name in numbers)
    windows, seen = grid.count((y, y + height, x, x + width))
    both = tiles_with(manifest, direction.wanted.name)
    pixels = height * width
    scale = next(iter(tile.images.values())).pixel_scale / 3600

    def area(tiles: pa.Table, *sides: str) -> int:
        """Return the sum over tiles of the product of two columns."""
        height, width = (tiles[side].to_numpy().astype(np.int64) for side in sides)
        return int((height * width).sum())

    return Work(
        direction=direction,
        tiles=manifest.num_rows,
        windows=int(windows.sum()),
        pixels=int(seen.sum()),
        core_pixels=int(pixels.sum()),
        scored_pixels=area(both, "core_height", "core_width"),
        detect_pixels=area(both, "height", "width"),
        bytes=int(size.sum()),
        square_degrees=float(pixels.sum()) * scale**2,
    )


def evaluations_of(model: Model, sampling: Sampling, scoring: Scoring) -> dict[str, int]:
    """Network evaluations after rounding to the table: of a window, and of a source for its lens score and once more.

    "translate", "score" and "reconstruct"; without a lens score every source is reconstructed, for its only score.
    """
    from surveybridge.bridge_core.anomaly import reconstruction_steps
    from surveybridge.bridge_core.translate import sampler_steps

    return {
        "translate": sampling.evaluations(len(sampler_steps(model.card, sampling))),
        "score": 2 * model.card.discriminant.draws if model.card.discriminant else 0,
        "reconstruct": scoring.samples * len(reconstruction_steps(model, scoring)),
    }


def project(
    work: Work,
    each: Mapping[str, int],
    rates: Rates,
    config: Config,
    memory: Mapping[str, int],
    *,
    tiles_done: int,
    cpus: int | None,
) -> Projection:
    """Multiply the work with the rates.

    Parameters
    ----------
    work, each, rates, memory
        Of `work_of`, `evaluations_of`, `jobs.planning.rates.calibrate` and `jobs.translating.memory.stage_memory`.
    config
        The request.
    tiles_done
        Tiles that need not be done.
    cpus
        CPUs that all workers share; None on a cluster, where each brings its own.
    """
    tiles = work.tiles
    translated = round(work.windows * rates.live)
    sources = round(work.scored_pixels * rates.sources_per_pixel)
    reconstructed = round(sources * rates.reconstructed)
    evaluations = {
        "translate": round(work.pixels * rates.live / WINDOW_PIXELS) * each["translate"],
        "score": sources * each["score"] + reconstructed * each["reconstruct"],
    }
    detect = work.detect_pixels * rates.detect
    early = bool(rates.gpus) and config.executor == "ray"  # readers do it, as `stages.Settings.early` has it
    seconds = {
        "read": work.bytes * rates.read + early * detect,
        "translate": evaluations["translate"] * rates.translate,
        "score": evaluations["score"] * rates.score + (not early) * detect,
        "write": tiles * rates.write_tile + work.core_pixels * rates.write_pixel,
    }
    workers = min(config.workers, max(tiles, 1)) if config.executor == "ray" else 1
    if cpus is not None and rates.gpus:
        workers = min(workers, rates.gpus)
    model = seconds["translate"] + seconds["score"]
    other = seconds["read"] + seconds["write"]
    if config.executor == "serial":
        start, wall = rates.load, model + other
    else:
        start = RAY_START_SECONDS
        wall = model / max(tiles, 1) * math.ceil(tiles / workers) + other / max(tiles, 1)
        if cpus is not None:
            wall = max(wall, (other + model * (0 if rates.gpus else rates.threads)) / cpus)
    wall += start
    held = workers * (1 if rates.gpus else rates.threads) * wall / 3600
    written = tiles * (rates.ledger_bytes + rates.candidates_bytes) + sources * rates.source_bytes
    return Projection(
        tiles=work.tiles,
        tiles_done=tiles_done,
        direction=str(work.direction),
        observed=work.direction.observed.name,
        seen_in="whole tiles" if config.patch == WHOLE else "windows",
        patches=work.windows,
        patches_translated=translated,
        sources=sources,
        reconstructed=reconstructed,
        evaluations=evaluations,
        square_degrees=work.square_degrees,
        workers=workers,
        device=rates.device,
        threads=rates.threads,
        stage_seconds=seconds,
        start_seconds=start,
        wall_seconds=wall,
        device_hours=held,
        device_hours_per_square_degree=held / max(work.square_degrees, 1e-12),
        memory=memory,
        gpu_memory=rates.gpu_bytes,
        bytes_read=round(work.bytes * rates.stored),
        bytes_written=round(written + work.core_pixels * rates.mosaic_bytes),
        requests={
            "read": work.tiles * TILE_REQUESTS["read"],
            "write": work.tiles * TILE_REQUESTS["write"],
            "driver": RUN_REQUESTS + work.tiles * TILE_REQUESTS["compact"] + math.ceil(wall / HEARTBEAT_SECONDS),
        },
        rates=asdict(rates),
    )
