"""Translate a tile store: mosaics, uncertainty maps and anomaly candidates, streamed over Ray; resumes by itself."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs import __version__
from jobs.config import JobConfig, RequestError
from jobs.progress import progress
from jobs.tile_worker import Settings, TileWorker, check_image

if TYPE_CHECKING:
    import pyarrow as pa

    from bridge_core.checkpoint import Model
    from storage.runs import RunFolder
    from storage.tiles import TileStore

log = logging.getLogger(__name__)

EXAMPLES = """\
surveybridge translate --store field.zarr --run runs/field
surveybridge translate --store field.zarr --run runs/back --direction 'euclid->lsst' --samples 16 --workers 2
surveybridge translate --store s3://bucket/field.zarr --run s3://bucket/runs/field --executor serial"""


class Config(JobConfig):
    """Arguments of `surveybridge translate`."""

    store: str = Field(description="tile store, local path or URL")
    run: str = Field(description="run folder to write, local path or URL; an unfinished one of the same run is resumed")
    checkpoint: str | None = Field(None, description="checkpoint path or shipped name (default: the shipped one)")
    direction: Literal["lsst->euclid", "euclid->lsst"] = Field("lsst->euclid", description="what becomes what")
    samples: int = Field(8, ge=2, description="posterior samples K of each patch")
    steps: int = Field(12, ge=1, description="network evaluations a sample")
    score_samples: int = Field(5, ge=2, description="reconstructions K of each source for the anomaly score")
    score_steps: int = Field(8, ge=1, description="network evaluations a reconstruction")
    workers: int = Field(1, ge=1, description="actors (each on a GPU where there are any)")
    executor: Literal["ray", "serial"] = Field("ray", description="ray, or serial in this process without Ray")
    seed: int = Field(0, ge=0, description="key of the sky's noise")
    batch: int = Field(16, ge=1, description="patches in one network call")
    precision: Literal["bfloat16", "float32"] = Field("bfloat16", description="arithmetic of the network")
    retry_failed: bool = Field(False, description="do tiles again that failed before")


def run(config: Config) -> int:
    """Translate all tiles that the ledger does not have; 0 all ok, 3 some failed."""
    from storage.runs import RunFolder, pending
    from storage.schema import SCHEMA_VERSION
    from storage.tiles import TileStore

    model = read_model(config.checkpoint)
    store = TileStore.open(config.store)
    manifest = store.manifest()
    check_request(model, store, manifest, config.direction)
    fingerprint = {
        "checkpoint_sha256": model.sha256,
        "direction": config.direction,
        "samples": config.samples,
        "steps": config.steps,
        "seed": config.seed,
        "grid": model.card.grid,
        "code_schema_version": SCHEMA_VERSION,
        "store": f"{store.url}#{content_of(manifest)}",
    }
    folder = RunFolder.open_or_create(
        config.run, fingerprint | {"code_version": __version__, "model": model.card.name, "config": config.model_dump()}
    )
    check_resume(folder, config)
    earlier = folder.ledger()
    todo = pending(manifest, earlier, retry_failed=config.retry_failed)
    log.info(
        "%s: %d of %d tiles to do, %s with %s",
        folder.url,
        len(todo),
        manifest.num_rows,
        config.direction,
        model.card.name,
    )
    settings = Settings(
        **config.model_dump(include=set(Settings.__dataclass_fields__)),
        run_id=hashlib.sha256(repr(sorted(fingerprint.items())).encode()).hexdigest()[:12],
        threads=int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // config.workers)),
        attempts={row["tile_id"]: row["attempt"] for row in earlier.select(["tile_id", "attempt"]).to_pylist()},
    )
    start = time.monotonic()
    rows = list(progress(execute(todo, settings, config), "translate", total=len(todo)))
    wall = time.monotonic() - start
    ledger = folder.ledger().to_pylist()
    failed = [row for row in ledger if row["status"] != "ok"]
    for row in failed:
        log.warning("tile %s failed: %s", row["tile_id"], row["reason"])
    print(summary(folder.url, rows, ledger, wall))
    return 3 if failed else 0


def execute(todo: list[str], settings: Settings, config: Config) -> Iterator[dict[str, Any]]:
    """One ledger row for every tile, from Ray actors or from this process."""
    make_worker = functools.partial(TileWorker, settings)
    if config.executor == "serial":
        worker = make_worker()
        for tile_id in todo:
            yield worker(tile_id)
        return
    from cluster.connect import start_ray, stop_ray
    from cluster.stream import stream

    started = start_ray(config.workers)
    try:
        yield from stream(todo, make_worker, workers=config.workers)
    finally:
        if started:
            stop_ray()


def content_of(manifest: pa.Table) -> str:
    """Short hash of what the tiles hold: a store that was ingested anew is another store."""
    pairs = zip(manifest["tile_id"].to_pylist(), manifest["content"].to_pylist(), strict=True)
    return hashlib.sha256(repr(list(pairs)).encode()).hexdigest()[:12]


def read_model(path: str | None) -> Model:
    """Load a checkpoint; AS-Bridge's `.pth` is imported, so that `check_request` can say why it does not fit."""
    from bridge_core.checkpoint import import_asbridge, load_checkpoint

    return import_asbridge(path) if path and path.endswith(".pth") else load_checkpoint(path)


def check_resume(folder: RunFolder, config: Config) -> None:
    """Refuse to go on with a run whose candidates were made otherwise; the fingerprint holds what makes the mosaics."""
    before = folder.run_json.get("config", {})
    for key in ("score_samples", "score_steps", "precision"):
        now = getattr(config, key)
        if before.get(key, now) != now:
            raise RequestError(
                f"run folder {folder.url} has {key} {before[key]!r} but this run has {now!r}; give another --run URL "
                f"or --{key.replace('_', '-')} {before[key]}"
            )


def check_request(model: Model, store: TileStore, manifest: pa.Table, direction: str) -> None:
    """Refuse, before anything is written, a store that the checkpoint was not made for."""
    card = model.card
    if card.grid != "mosaic":
        raise RequestError(
            f"checkpoint {card.name} is for the {card.grid} grid but {store.url} holds mosaic tiles; "
            "choose a mosaic checkpoint"
        )
    if manifest.num_rows == 0:
        raise RequestError(f"{store.url} has 0 tiles; ingest some first")
    observed = direction.split("->")[0]
    lacking = [
        row["tile_id"] for row in manifest.select(["tile_id", "surveys"]).to_pylist() if observed not in row["surveys"]
    ]
    if len(lacking) == manifest.num_rows:
        raise RequestError(
            f"{store.url}: none of its {len(lacking)} tiles has {observed}, which {direction} needs; ingest it"
        )
    for tile_id in manifest["tile_id"].to_pylist():
        try:
            tile = store.read_tile(tile_id, halo=0)
        except Exception:
            continue  # whatever is wrong with this tile, it becomes a ledger row later
        for image in tile.images.values():
            check_image(model, image, tile_id)
        return


def summary(url: str, rows: list[dict[str, Any]], ledger: list[dict[str, Any]], wall: float) -> str:
    """What was done and where the time went, for a person."""
    ok = sum(row["status"] == "ok" for row in ledger)
    stages = {s: sum(row.get(f"seconds_{s}") or 0.0 for row in rows) for s in ("read", "model", "score", "write")}
    spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages.items())
    found = sum(row["n_candidates"] or 0 for row in ledger)
    return (
        f"{url}: {ok} of {len(ledger)} tiles ok, {len(ledger) - ok} failed; {found} sources scored\n"
        f"this run: {len(rows)} tiles in {wall:.1f} s; summed over workers: {spent}"
    )
