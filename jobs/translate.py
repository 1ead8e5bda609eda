"""Translate a tile store: mosaics, uncertainty maps and anomaly candidates, streamed over Ray; resumes by itself."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from surveybridge import __version__
from surveybridge.jobs.running.drain import drain_on_sigterm
from surveybridge.jobs.running.progress import log_context, progress
from surveybridge.jobs.translating.request import Config, Request, check, settings_of
from surveybridge.jobs.translating.stages import Settings, tile_stages
from surveybridge.jobs.translating.tally import Tally, summary, tally_of

if TYPE_CHECKING:
    import pyarrow as pa

    from surveybridge.cluster.stages import Stages
    from surveybridge.storage.lease import Lease
    from surveybridge.storage.runs import RunFolder

log = logging.getLogger(__name__)

EXAMPLES = """\
surveybridge translate --store field.zarr --run runs/field
surveybridge translate --store field.zarr --run runs/back --direction 'euclid->lsst' --samples 16 --workers 2
surveybridge translate --store s3://bucket/field.zarr --run s3://bucket/runs/field --executor serial
surveybridge translate --store field.zarr --run runs/field --profile profiles/field"""

SEGMENT_TILES = 1000
"""Tiles whose ledger rows and candidates are taken together into segments while the run goes."""

REPORT_SECONDS = 10.0
"""Between two notes on the run's progress beside its lease, which `surveybridge status` reads."""

Receipts = Generator[dict[str, Any], None, None]


def run(config: Config) -> int:
    """Translate all tiles that the ledger does not have; 0 all ok, 3 some failed."""
    request = check(config)
    if config.profile is None:
        tally = translate(request)
        print(summary(config.run, tally))
    else:
        from surveybridge.jobs.profiling.profile import translate_profiled

        tally, profile = translate_profiled(request, config.profile)
        print(summary(config.run, tally))
        print(profile)
    return tally.exit_code


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
        Called with every receipt: the ledger row and its `intervals`.
    """
    from surveybridge.storage.lease import Lease
    from surveybridge.storage.runs import RunFolder, pending

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
        tally = tally_of(todo, manifest, earlier)
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
    from surveybridge.storage.segments import loose_tiles

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


def _executor(
    request: Request, stages: Stages, todo: list[str], drain: threading.Event
) -> tuple[Receipts, Callable[[], list[dict[str, Any]]], Callable[[Callable[[], Any]], None]]:
    """Receipts as they come, what is in flight, and where compactions run."""
    config = request.config
    if config.executor == "serial":
        from surveybridge.cluster.stages import serially

        return serially(todo, stages, drain=drain, intervals=True), list, lambda function: function()
    from surveybridge.cluster.background import Background
    from surveybridge.cluster.stream import Stream

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
    from surveybridge.cluster.connect import start_ray, stop_ray
    from surveybridge.cluster.preflight import check_cluster

    config = request.config
    started = start_ray(config.workers)
    try:
        check_cluster(workers=config.min_workers, memory=_memory(request))
        yield
    except RuntimeError as error:  # as LeaseLost; Ray may end this process before its traceback is printed
        log.error("%s: %s", type(error).__name__, error)
        raise
    finally:
        if started:
            stop_ray()


def _memory(request: Request) -> dict[str, int]:
    """Heap of a process of each stage on the cluster that Ray is connected to."""
    from surveybridge.cluster.stream import gpus_of_model
    from surveybridge.jobs.planning.projection import stage_memory
    from surveybridge.jobs.profiling.operators import PROFILER_BYTES

    memory = stage_memory(request.model, request.manifest, request.config, gpus_of_model(None))
    return memory | ({"model": memory["model"] + PROFILER_BYTES} if request.config.profile else {})


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


def _attempts(earlier: pa.Table, todo: list[str]) -> dict[str, int]:
    """How often the tiles to do were tried before, of those that were."""
    import pyarrow as pa
    import pyarrow.compute as pc

    again = earlier.filter(pc.is_in(earlier["tile_id"], pa.array(todo, pa.string())))
    return dict(zip(again["tile_id"].to_pylist(), again["attempt"].to_pylist(), strict=True))
