"""Say what a translation will take before it runs: work, time, memory, bytes and requests; writes nothing.

The settings are those of `translate`. The rates are measured here and now, on a few tiles of the store or parts of
them, so plan on a machine like those that will do the work. If `--run` exists, only tiles that its ledger lacks count.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from surveybridge.jobs.translating.config import Config as TranslateConfig

if TYPE_CHECKING:
    from surveybridge.jobs.planning.projection import Projection

EXAMPLES = """\
surveybridge plan --store field.zarr --run runs/field
surveybridge plan --store s3://survey/tiles --run s3://survey/runs/dr1 --workers 64 --calibrate 60
surveybridge plan --store field.zarr --run runs/field --samples 16 --format json"""


class Config(TranslateConfig):
    """Settings of `surveybridge plan`: those of `translate`, and how to measure and print."""

    calibrate: float = Field(20.0, gt=0, description="seconds for measuring the rates; at least one tile is measured")
    format: Literal["text", "json"] = Field("text", description="lines for a person, or one JSON object")


def run(config: Config) -> int:
    """Print the projection."""
    found = plan(config)
    print(json.dumps(asdict(found), indent=1) if config.format == "json" else describe(found, config))
    return 0


def plan(config: Config) -> Projection:
    """Project a translation; refuse what `translate` would refuse.

    Raises
    ------
    RequestError, StorageError, BridgeError
        Those that `translate` would raise, before anything is measured.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from surveybridge.jobs.planning.projection import Projection, evaluations_of, project, work_of
    from surveybridge.jobs.planning.rates import calibrate
    from surveybridge.jobs.translating.domain import foreseen_domains
    from surveybridge.jobs.translating.memory import stage_memory
    from surveybridge.jobs.translating.request import check, settings_of, todo_of
    from surveybridge.storage.domain import count_domains

    request = check(config)
    resolved = {name: getattr(request.config, name) for name in ("score_reconstruct", "patch")}
    config = config.model_copy(update=resolved)
    todo = todo_of(request)
    manifest = request.manifest.filter(pc.is_in(request.manifest["tile_id"], pa.array(todo, pa.string())))
    done = request.manifest.num_rows - len(todo)
    if not todo:
        return Projection(tiles=0, tiles_done=done, other_tiles=request.others)
    each = evaluations_of(request.model, request.sampling, config.scoring)
    settings = settings_of(request, attempts={})
    rates, tile = calibrate(request.store, todo, settings, request.document, each, config.calibrate)
    projection = project(
        work_of(manifest, request.direction, tile, settings.sampling.patches),
        each,
        rates,
        config,
        stage_memory(request.model, manifest, config),
        tiles_done=done,
        cpus=None if os.environ.get("RAY_ADDRESS") else os.cpu_count(),
    )
    domains = count_domains(foreseen_domains(request.model.card, request.store, manifest, settings.homogenisation))
    return replace(projection, other_tiles=request.others, domains=domains)


def describe(found: Projection, config: Config) -> str:
    """Format the projection for a person."""
    if found.tiles == 0:
        return f"{config.run}: nothing to do, all {found.tiles_done} tiles are in the ledger"
    from surveybridge.bridge_core.settings import DEFAULT_BATCH
    from surveybridge.storage.domain import say_domains

    unit = "GPU" if found.rates["gpus"] else "CPU"
    batch = config.batch or DEFAULT_BATCH["cuda" if found.rates["gpus"] else "cpu"]
    rates, seconds, memory = found.rates, found.stage_seconds, found.memory
    speed = 1 / rates["translate"] if rates["translate"] else 0.0
    lines = [
        ("run", f"{config.run}: {found.direction}, {found.tiles} tiles to do, {found.tiles_done} done"),
        ("area", f"{found.square_degrees:.4g} square degrees"),
        ("patches", f"{found.patches} {found.seen_in}, {found.patches_translated} of them with data"),
        ("sources", f"about {found.sources} to score, {found.reconstructed} of them to reconstruct"),
        (
            "network",
            f"{found.evaluations['translate']} evaluations of 64 x 64 pixels to translate, "
            f"{found.evaluations['score']} to score",
        ),
        (
            "rate",
            f"{speed:.4g} evaluations/s a worker: {found.device}, {config.precision}, batch {batch}, "
            f"{found.threads} thread{'s' * (found.threads != 1)}; measured on {rates['tiles']} tiles in "
            f"{rates['seconds']:.1f} s",
        ),
        (
            "stages",
            ", ".join(f"{stage} {_clock(seconds[stage])}" for stage in seconds) + " (summed over workers)",
        ),
        ("wall time", f"{_clock(found.wall_seconds)} with {found.workers} worker{'s' * (found.workers != 1)}"),
        ("cost", f"{found.device_hours:.4g} {unit}-hours, {found.device_hours_per_square_degree:.4g} a square degree"),
        (
            "memory",
            ", ".join(f"{stage} {_size(memory[stage])}" for stage in memory)
            + " a worker"
            + (f"; GPU {_size(found.gpu_memory)}" if found.gpu_memory else ""),
        ),
        ("storage", f"{_size(found.bytes_read)} read, {_size(found.bytes_written)} written"),
        ("requests", ", ".join(f"{name} {count}" for name, count in found.requests.items()) + " (on S3)"),
    ]
    if said := say_domains(found.domains):
        lines.insert(1, ("domain", said))
    if found.other_tiles:
        lines.insert(
            1, ("others", f"{found.other_tiles} tiles of the store have no {found.observed}: no work of this run")
        )
    return "\n".join(f"{name:<10} {text}" for name, text in lines)


def _clock(seconds: float) -> str:
    """Format seconds for a person."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.2f} h"


def _size(count: float) -> str:
    """Format a number of bytes for a person."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
