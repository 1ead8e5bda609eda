"""The engine of a translation: it does the tiles that the ledger lacks, on Ray or here, and counts every receipt."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from surveybridge.jobs.running.drain import drain_on_sigterm
from surveybridge.jobs.running.progress import log_context, progress
from surveybridge.jobs.translating.request import Request, left_of, settings_of
from surveybridge.jobs.translating.stages import Settings, tile_stages
from surveybridge.jobs.translating.tally import Tally, tally_of
from surveybridge.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

    from surveybridge.cluster.stages import Stages
    from surveybridge.storage.lease import Lease
    from surveybridge.storage.runs import RunFolder

log = logging.getLogger(__name__)

SEGMENT_TILES = 1000
"""Number of tiles whose ledger rows and candidates are gathered into segments while the run proceeds."""

REPORT_SECONDS = 10.0
"""Between two notes on the run's progress beside its lease, which `surveybridge status` reads."""

Receipts = Generator[dict[str, Any], None, None]


class Executor(NamedTuple):
    """The place where the stages run: receipts as they come, items in flight, and where compactions go."""

    receipts: Receipts
    in_flight: Callable[[], list[dict[str, Any]]]
    background: Callable[[Callable[[], Any]], None]


def translate(
    request: Request,
    make_stages: Callable[[Settings], Stages] = tile_stages,
    watch: Callable[[dict[str, Any]], None] = lambda receipt: None,
    model_bytes: int = 0,
) -> Tally:
    """Do the tiles that the ledger lacks, under the run's lease. SIGTERM ends it early, after the tiles in flight.

    Parameters
    ----------
    request
        What `check` has looked at.
    make_stages
        Gives the three stages.
    watch
        Called with every receipt: the ledger row and its `intervals`.
    model_bytes
        Memory that the model stage of `make_stages` needs beyond that of `tile_stages`.
    """
    from surveybridge.storage.lease import Lease
    from surveybridge.storage.manifests import fields_of
    from surveybridge.storage.runs import RunFolder

    config, manifest = request.config, request.manifest
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_context(run=request.run_id))
        drain = stack.enter_context(drain_on_sigterm())
        on_ray = config.executor == "ray" and not drain.is_set()
        memory = stack.enter_context(_cluster(request, model_bytes)) if on_ray else {}
        folder = RunFolder.open_or_create(
            config.run,
            request.document
            | {
                "code_version": __version__,
                "run_id": request.run_id,
                "model": request.model.card.name,
                "config": config.model_dump(exclude={"to"}),
            },
        )
        lease = stack.enter_context(Lease.acquire(folder.folder, wait=config.wait))
        folder.tidy()
        earlier = folder.ledger()
        todo = left_of(request, folder, earlier)
        folder.note_store(request.store.url, fields_of(manifest).values())
        tally = tally_of(todo, manifest, earlier)
        log.info(
            "%s: %d of %d tiles to do, %s with %s",
            folder.url,
            len(todo),
            manifest.num_rows,
            config.direction,
            request.model.card.name,
        )
        if request.others:
            log.info(
                "%s: %d more tiles have no %s, and are no work of this run",
                request.store.url,
                request.others,
                request.direction.observed.name,
            )
        if todo and not drain.is_set():
            stages = make_stages(settings_of(request, _attempts(earlier, todo), early=on_ray and _has_gpus()))
            with _budget(config.minutes, tally, drain):
                _work(_executor(request, stages, todo, drain, memory), watch, folder, lease, todo, tally, drain)
            lease.check()
            if not tally.full:  # the next run does it
                folder.tidy()
        if drain.is_set():
            tally.drained = tally.drained or "SIGTERM"
    for tile_id, reason in tally.failures:
        log.warning("tile %s %s", tile_id, reason)
    if tally.full:
        log.error("stopped early: %s", tally.drained)
    hidden = 0 if tally.full else tally.total("failed", "quarantined", "lost") - len(tally.failures)
    if hidden > 0:
        log.warning("and %d more; `surveybridge status --run %s` groups them by reason", hidden, config.run)
    return tally


def _work(
    executor: Executor,
    watch: Callable[[dict[str, Any]], None],
    folder: RunFolder,
    lease: Lease,
    todo: list[str],
    tally: Tally,
    drain: threading.Event,
) -> None:
    """Stream the tiles, count their receipts, and compact ledger rows as they become many."""
    from surveybridge.storage.segments import loose_tiles

    start = time.monotonic()
    # What earlier runs, too short for a segment, have left; not tiles that are about to be written again.
    committed = sorted(set(loose_tiles(folder.folder)).difference(todo))
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            contextlib.closing(executor.receipts)
        )  # what ends the loop below ends the stream before Ray
        stack.enter_context(_report(lease, tally, start, executor.in_flight))
        for receipt in progress(executor.receipts, "translate", total=len(todo)):
            lease.check()
            tally.add(receipt)
            if tally.full:
                drain.set()
            watch(receipt)
            if receipt["status"] != "lost":
                committed.append(receipt["tile_id"])
            if len(committed) >= SEGMENT_TILES:
                executor.background(functools.partial(_compact, folder, committed))
                committed = []
    tally.wall = time.monotonic() - start


def _compact(folder: RunFolder, tile_ids: list[str]) -> None:
    """Compact tiles; if that fails, on a full disk say, they stay as they are, and can be read all the same."""
    try:
        folder.compact(tile_ids)
    except Exception as error:
        log.warning(
            "%s: %d tiles were not compacted (%s: %s); a later run will do it",
            folder.url,
            len(tile_ids),
            type(error).__name__,
            error,
        )


def _executor(
    request: Request, stages: Stages, todo: list[str], drain: threading.Event, memory: dict[str, int]
) -> Executor:
    """Ray, or this process."""
    config = request.config
    if config.executor == "serial":
        from surveybridge.cluster.stages import serially

        return Executor(serially(todo, stages, drain=drain, intervals=True), list, lambda function: function())
    from surveybridge.cluster.background import Background
    from surveybridge.cluster.stream import Stream

    background = Background()
    stream = Stream(
        todo,
        stages,
        workers=(config.min_workers, config.workers),
        memory=memory,
        drain=drain,
        intervals=True,
    )

    def receipts() -> Receipts:
        yield from stream
        background.wait()

    return Executor(receipts(), stream.in_flight, background.submit)


def _has_gpus() -> bool:
    """Whether the models of a cluster that has been started have GPUs."""
    from surveybridge.cluster.stream import gpus_of_model

    return gpus_of_model(None) > 0


@contextlib.contextmanager
def _cluster(request: Request, model_bytes: int) -> Iterator[dict[str, int]]:
    """Ray, with room for this run; refused before anything is written. Gives the heap of a process of each stage."""
    from surveybridge.cluster.connect import start_ray, stop_ray
    from surveybridge.cluster.preflight import check_cluster
    from surveybridge.cluster.stream import gpus_of_model
    from surveybridge.jobs.translating.memory import stage_memory

    config = request.config
    started = start_ray(config.workers)
    try:
        memory = stage_memory(request.model, request.manifest, config, gpus_of_model(None))
        memory["model"] += model_bytes
        check_cluster(workers=config.min_workers, memory=memory)
        yield memory
    finally:
        if started:
            stop_ray()


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
    """Return how often the tiles to do were tried before, if they were."""
    import pyarrow as pa
    import pyarrow.compute as pc

    again = earlier.filter(pc.is_in(earlier["tile_id"], pa.array(todo, pa.string())))
    return dict(zip(again["tile_id"].to_pylist(), again["attempt"].to_pylist(), strict=True))
