"""Translate a tile store: mosaics, uncertainty maps and anomaly candidates, streamed over Ray; resumes by itself."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from jobs import __version__
from jobs.config import JobConfig, RequestError
from jobs.drain import DRAINED, drain_on_sigterm
from jobs.progress import log_context, progress
from jobs.tile_stages import Settings, check_image, tile_stages

if TYPE_CHECKING:
    import pyarrow as pa

    from bridge_core.checkpoint import Model
    from cluster.stages import Stages
    from storage.lease import Lease
    from storage.runs import RunFolder
    from storage.tiles import TileStore

log = logging.getLogger(__name__)

EXAMPLES = """\
surveybridge translate --store field.zarr --run runs/field
surveybridge translate --store field.zarr --run runs/back --direction 'euclid->lsst' --samples 16 --workers 2
surveybridge translate --store s3://bucket/field.zarr --run s3://bucket/runs/field --executor serial"""

SEGMENT_TILES = 1000
"""Tiles whose ledger rows and candidates are taken together into segments while the run goes."""

REPORT_SECONDS = 10.0
"""Between two notes on the run's progress beside its lease, which `surveybridge status` reads."""

FAILURES_SHOWN = 20

Receipts = Generator[dict[str, Any], None, None]

STAGES = ("read", "model", "score", "write")
"""Of a tile's time in the ledger; the score is part of the model's stage on Ray."""


class TranslationConfig(JobConfig):
    """What decides a translation and how it is done, but for where it goes."""

    store: str = Field(description="tile store, local path or URL")
    checkpoint: str | None = Field(None, description="checkpoint path or shipped name (default: the shipped one)")
    direction: Literal["lsst->euclid", "euclid->lsst"] = Field("lsst->euclid", description="what becomes what")
    samples: int = Field(8, ge=2, description="posterior samples K of each patch")
    steps: int = Field(12, ge=1, description="network evaluations a sample")
    score_samples: int = Field(5, ge=2, description="reconstructions K of each source for the anomaly score")
    score_steps: int = Field(8, ge=1, description="network evaluations a reconstruction")
    workers: int = Field(1, ge=1, description="most actors at a time (each on a GPU where there are any)")
    min_workers: int = Field(1, ge=1, description="actors the run begins with and never goes below")
    executor: Literal["ray", "serial"] = Field("ray", description="ray, or serial in this process without Ray")
    seed: int = Field(0, ge=0, description="key of the sky's noise")
    batch: int = Field(16, ge=1, description="patches in one network call")
    precision: Literal["bfloat16", "float32"] = Field("bfloat16", description="arithmetic of the network")
    retry_failed: bool = Field(False, description="do tiles again that failed or were quarantined before")
    minutes: float | None = Field(None, gt=0, description="begin no tile after so many minutes; a rerun goes on")

    @model_validator(mode="after")
    def _pool(self) -> Self:
        if self.min_workers > self.workers:
            raise ValueError(
                f"--min-workers {self.min_workers} is above --workers {self.workers}; give at most as many"
            )
        return self


class Config(TranslationConfig):
    """Arguments of `surveybridge translate`."""

    run: str = Field(description="run folder to write, local path or URL; an unfinished one of the same run is resumed")
    wait: float = Field(0.0, ge=0, description="seconds to wait for another driver of this run to end")


@dataclass(frozen=True)
class Request:
    """A translation that was looked at and found sound; nothing is written yet."""

    config: Config
    model: Model
    store: TileStore
    manifest: pa.Table
    fingerprint: dict[str, Any]

    @property
    def run_id(self) -> str:
        """Short name of everything that decides the result."""
        return hashlib.sha256(repr(sorted(self.fingerprint.items())).encode()).hexdigest()[:12]


@dataclass
class Tally:
    """What came of a run."""

    todo: int
    manifest: int
    statuses: Counter[str] = field(default_factory=Counter)  # of this run's receipts
    earlier: Counter[str] = field(default_factory=Counter)  # of ledger rows that this run has no receipt for
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    candidates: int = 0
    patches: int = 0
    wall: float = 0.0
    first: float = 0.0  # time.monotonic() of the first receipt and of the last
    last: float = 0.0
    drained: str = ""  # why it ended before its time

    def add(self, receipt: dict[str, Any]) -> None:
        """Count a receipt."""
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.statuses[receipt["status"]] += 1
        self.candidates += receipt.get("n_candidates") or 0
        self.patches += receipt.get("n_patches") or 0
        for stage in STAGES:
            self.seconds[stage] += receipt.get(f"seconds_{stage}") or 0.0
        if receipt["status"] != "ok" and len(self.failures) < FAILURES_SHOWN:
            self.failures.append((receipt["tile_id"], f"{receipt['status']}: {receipt.get('reason')}"))

    def total(self, *statuses: str) -> int:
        """Tiles of the run with one of these statuses."""
        return sum(self.statuses[status] + self.earlier[status] for status in statuses)

    @property
    def exit_code(self) -> int:
        """0 all ok; 1 tiles without even a ledger row; 3 some failed; 143 ended by SIGTERM with work left."""
        if self.statuses["lost"]:
            return 1
        if self.drained == "SIGTERM" and sum(self.statuses.values()) < self.todo:
            return DRAINED
        return 3 if self.total("failed", "quarantined") else 0


def run(config: Config) -> int:
    """Translate all tiles that the ledger does not have; 0 all ok, 3 some failed."""
    request = check(config)
    tally = translate(request)
    print(summary(config.run, tally))
    return tally.exit_code


def check(config: Config) -> Request:
    """Read what the run is about; refuse what cannot work."""
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
        "score_samples": config.score_samples,
        "score_steps": config.score_steps,
        "precision": config.precision,
        "seed": config.seed,
        "grid": model.card.grid,
        "code_schema_version": SCHEMA_VERSION,
        "store": store.url,
    }
    return Request(config, model, store, manifest, fingerprint)


def translate(
    request: Request,
    make_stages: Callable[[Settings], Stages] = tile_stages,
    watch: Callable[[dict[str, Any]], None] = lambda receipt: None,
) -> Tally:
    """Do what the ledger lacks, under the run's lease. SIGTERM ends it early, with the tiles in flight done.

    Parameters
    ----------
    request
        What `check` has looked at.
    make_stages
        Gives the three stages.
    watch
        Called with every receipt: the ledger row and, from Ray, its `intervals`.
    """
    from storage.lease import Lease
    from storage.runs import RunFolder, pending

    config, manifest = request.config, request.manifest
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_context(run=request.run_id))
        if config.executor == "ray":
            stack.enter_context(_cluster(request))
        drain = stack.enter_context(drain_on_sigterm())
        folder = RunFolder.open_or_create(
            config.run,
            request.fingerprint
            | {
                "code_version": __version__,
                "run_id": request.run_id,
                "model": request.model.card.name,
                "config": config.model_dump(),
            },
        )
        lease = stack.enter_context(Lease.acquire(folder.folder, wait=config.wait))
        folder.tidy()
        earlier = folder.ledger()
        todo = pending(manifest, earlier, retry_failed=config.retry_failed)
        tally = _tally(todo, manifest, earlier)
        log.info(
            "%s: %d of %d tiles to do, %s with %s",
            folder.url,
            len(todo),
            manifest.num_rows,
            config.direction,
            request.model.card.name,
        )
        if todo:
            _work(request, make_stages, watch, folder, lease, todo, _attempts(earlier, todo), tally, drain)
            lease.check()
            folder.tidy()
    for tile_id, reason in tally.failures:
        log.warning("tile %s %s", tile_id, reason)
    hidden = tally.total("failed", "quarantined", "lost") - len(tally.failures)
    if hidden > 0:
        log.warning("and %d more; `surveybridge status --run %s` counts them by reason", hidden, config.run)
    return tally


def _work(
    request: Request,
    make_stages: Callable[[Settings], Stages],
    watch: Callable[[dict[str, Any]], None],
    folder: RunFolder,
    lease: Lease,
    todo: list[str],
    attempts: dict[str, int],
    tally: Tally,
    drain: threading.Event,
) -> None:
    """Stream the tiles, count their receipts, and take ledger rows together as they become many."""
    from storage.segments import loose_tiles

    config = request.config
    start = time.monotonic()
    # What earlier runs, too short for a segment, have left; not tiles that are about to be written again.
    committed = sorted(set(loose_tiles(folder.folder)).difference(todo))
    with contextlib.ExitStack() as stack:
        receipts, in_flight, background = _executor(request, make_stages(settings_of(request, attempts)), todo, drain)
        stack.enter_context(contextlib.closing(receipts))  # what ends the loop below ends the stream before Ray
        stack.enter_context(_report(lease, tally, start, in_flight))
        stack.enter_context(_budget(config.minutes, tally, drain))
        for receipt in progress(receipts, "translate", total=len(todo)):
            lease.check()
            tally.add(receipt)
            watch(receipt)
            if receipt["status"] != "lost":
                committed.append(receipt["tile_id"])
            if len(committed) >= SEGMENT_TILES:
                background(functools.partial(_compact, folder, committed))
                committed = []
    if drain.is_set() and not tally.drained:
        tally.drained = "SIGTERM"
    tally.wall = time.monotonic() - start


def _compact(folder: RunFolder, tile_ids: list[str]) -> None:
    """Take tiles together; where that fails, on a full disk say, they stay as they are, and are read all the same."""
    try:
        folder.compact(tile_ids)
    except Exception as error:
        log.warning(
            "%s: %d tiles not compacted (%s: %s); a later run does it",
            folder.url,
            len(tile_ids),
            type(error).__name__,
            error,
        )


def settings_of(request: Request, attempts: dict[str, int]) -> Settings:
    """What the stages of this request need to know; `attempts` of the tiles that were tried before."""
    from storage.objectstore import configured

    config = request.config
    return Settings(
        **config.model_dump(include=set(Settings.__dataclass_fields__)),
        run_id=request.run_id,
        threads=int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // config.workers)),
        attempts=attempts,
        filesystems=configured(),
    )


def _executor(
    request: Request, stages: Stages, todo: list[str], drain: threading.Event
) -> tuple[Receipts, Callable[[], list[dict[str, Any]]], Callable[[Callable[[], Any]], None]]:
    """Receipts as they come, what is in flight, and where compactions run."""
    config = request.config
    if config.executor == "serial":
        from cluster.stages import serially

        return serially(todo, stages, drain=drain), list, lambda function: function()
    from cluster.background import Background
    from cluster.stream import Stream

    background = Background()
    stream = Stream(
        todo,
        stages,
        workers=(config.min_workers, config.workers),
        memory=_memory(request),
        drain=drain,
        intervals=True,
    )

    def receipts() -> Receipts:
        yield from stream
        background.wait()

    return receipts(), stream.in_flight, background.submit


@contextlib.contextmanager
def _cluster(request: Request) -> Iterator[None]:
    """Ray, with room for this run; refused before anything is written."""
    from cluster.connect import start_ray, stop_ray
    from cluster.preflight import check_cluster

    config = request.config
    started = start_ray(config.workers)
    try:
        check_cluster(workers=config.min_workers, memory=_memory(request))
        yield
    finally:
        if started:
            stop_ray()


def _memory(request: Request) -> dict[str, int]:
    """Heap of a process of each stage on the cluster that Ray is connected to."""
    from cluster.stream import gpus_of_model
    from jobs.projection import stage_memory

    return stage_memory(request.model, request.manifest, request.config, gpus_of_model(None))


@contextlib.contextmanager
def _report(lease: Lease, tally: Tally, start: float, in_flight: Callable[[], list[dict[str, Any]]]) -> Iterator[None]:
    """Keep a note on the progress beside the lease while the run goes."""
    ended = threading.Event()

    def note() -> None:
        lease.publish(
            {
                "todo": tally.todo,
                "done": dict(tally.statuses),
                "patches": tally.patches,
                "seconds": time.monotonic() - start,
                "in_flight": in_flight(),
            }
        )

    def repeat() -> None:
        note()
        while not ended.wait(REPORT_SECONDS):
            note()

    thread = threading.Thread(target=repeat, name="progress-report", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _budget(minutes: float | None, tally: Tally, drain: threading.Event) -> Iterator[None]:
    """Begin no tile after `minutes`."""
    if minutes is None:
        yield
        return

    def end() -> None:
        tally.drained = f"{minutes:g} minutes are over"
        drain.set()

    timer = threading.Timer(60 * minutes, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _tally(todo: list[str], manifest: pa.Table, earlier: pa.Table) -> Tally:
    """The tally before the first receipt: what earlier runs left that this one does not do again."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from storage.published import standing_rows

    tally = Tally(todo=len(todo), manifest=manifest.num_rows)
    standing = standing_rows(manifest, earlier)
    standing = standing.filter(pc.invert(pc.is_in(standing["tile_id"], pa.array(todo, pa.string()))))
    tally.earlier.update(standing["status"].to_pylist())
    tally.candidates = pc.sum(standing["n_candidates"]).as_py() or 0
    failed = standing.filter(pc.not_equal(standing["status"], "ok")).slice(0, FAILURES_SHOWN)
    tally.failures = [
        (row["tile_id"], f"{row['status']}: {row['reason']}")
        for row in failed.select(["tile_id", "status", "reason"]).to_pylist()
    ]
    return tally


def _attempts(earlier: pa.Table, todo: list[str]) -> dict[str, int]:
    """How often the tiles to do were tried before, of those that were."""
    import pyarrow as pa
    import pyarrow.compute as pc

    again = earlier.filter(pc.is_in(earlier["tile_id"], pa.array(todo, pa.string())))
    return dict(zip(again["tile_id"].to_pylist(), again["attempt"].to_pylist(), strict=True))


def read_model(path: str | None) -> Model:
    """Load a checkpoint; AS-Bridge's `.pth` is imported, so that `check_request` can say why it does not fit."""
    from bridge_core.checkpoint import import_asbridge, load_checkpoint

    return import_asbridge(path) if path and path.endswith(".pth") else load_checkpoint(path)


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
    if not any(observed in surveys for surveys in manifest["surveys"].to_pylist()):
        raise RequestError(
            f"{store.url}: none of its {manifest.num_rows} tiles has {observed}, which {direction} needs; ingest it"
        )
    for tile_id in manifest["tile_id"].slice(0, 100).to_pylist():
        try:
            tile = store.read_tile(tile_id, halo=0)
        except Exception:
            continue  # whatever is wrong with this tile, it becomes a ledger row later
        for image in tile.images.values():
            check_image(model, image, tile_id)
        return


def summary(url: str, tally: Tally) -> str:
    """What was done and where the time went, for a person."""
    done, failed = tally.total("ok"), tally.total("failed", "quarantined")
    left = tally.manifest - done - failed
    spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in tally.seconds.items())
    lines = [f"{url}: {done} of {tally.manifest} tiles ok, {failed} failed; {tally.candidates} sources scored"]
    if left:
        why = tally.drained or f"{tally.statuses['lost']} could not be committed"
        lines.append(f"{left} tiles are left ({why}): run the same command again")
    lines.append(f"this run: {sum(tally.statuses.values())} tiles in {tally.wall:.1f} s; summed over workers: {spent}")
    return "\n".join(lines)
