"""Run on a schedule: translate what is new or changed in a store, then publish a snapshot; safe to start at any time.

The run folder is RUNS/<run id>. The run id stands for all settings that decide the result, so that another checkpoint
or setting makes another folder. The work consists of the tiles in the store's manifest that the run's ledger does not
list with the same content. Failed tiles are skipped until they change, or until --retry-failed is given.

The results are then published: RUNS/published/<number>.json is a snapshot that never changes, and RUNS/published.json
names the latest one. A snapshot leaves out tiles that the manifest no longer lists. Runs that share RUNS also share
published.json, which names the latest snapshot of each run, too.

If another driver is at work on the run, the sweep says who that is and exits with 0, having done nothing. After a
crash, or after nights without a sweep, the next sweep simply continues. If nothing is new, it does not start Ray.

Exit codes: 0 done, nothing new, another driver is at work, or the time is over (the next sweep does what is left); 1
the run failed; 2 the request is wrong; 3 tiles of this sweep failed; 143 stopped by SIGTERM with tiles left, and
nothing was published.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from surveybridge.jobs.running.drain import DRAINED, drain_on_sigterm
from surveybridge.jobs.translating.config import Config as TranslateConfig
from surveybridge.jobs.translating.config import TranslationConfig

if TYPE_CHECKING:
    import pyarrow as pa

    from surveybridge.jobs.translating.request import Request
    from surveybridge.jobs.translating.tally import Tally
    from surveybridge.storage.lease import LeaseHeld
    from surveybridge.storage.objectstore import Folder
    from surveybridge.storage.runs import RunFolder

EXAMPLES = """
  surveybridge sweep --store s3://survey/tiles --runs s3://survey/runs --workers 8
  surveybridge sweep --store s3://survey/tiles --runs s3://survey/runs --minutes 240 --retry-failed
"""


class Config(TranslationConfig):
    """Settings of `surveybridge sweep`: those of translate, with a folder of runs in place of the run."""

    writes = ("runs",)

    runs: str = Field(description="folder for the runs, local path or URL; the run goes to RUNS/<run id>")


def run(config: Config) -> int:
    """Translate what is new, publish it, and report."""
    with drain_on_sigterm():
        return _sweep(config)


def _sweep(config: Config) -> int:
    from surveybridge.jobs.translating.engine import translate
    from surveybridge.jobs.translating.tally import summary
    from surveybridge.storage.lease import LeaseHeld
    from surveybridge.storage.objectstore import Folder

    root = Folder.at(config.runs)
    request = _request(config, root)
    try:
        if not _has_work(request, root):
            return 0
        tally = translate(request)
    except LeaseHeld as held:
        print(f"nothing done: {_other_driver(request, held)}")
        return 0
    print(summary(request.config.run, tally))
    if tally.exit_code == DRAINED:
        return DRAINED
    try:
        with _leased(request) as folder:
            _publish(request, root, folder, folder.ledger())
    except LeaseHeld as held:
        print(f"not published here: {_other_driver(request, held)}; the next sweep will publish these results")
    return _exit_code(tally)


def _request(config: Config, root: Folder) -> Request:
    """Return the translation that this sweep amounts to."""
    from surveybridge.jobs.translating.request import check

    settings = config.model_dump(exclude={"runs"})
    request = check(TranslateConfig(run=root.url, **settings))  # the run id is not known before
    begun = (way for way in _ways(request, settings) if root.exists(way.run_id, "run.json"))
    request = next(begun, request)
    where = request.config.model_copy(update={"run": root.file_url(request.run_id)})
    return dataclasses.replace(request, config=where)


def _ways(request: Request, settings: Mapping[str, Any]) -> Iterator[Request]:
    """Return a request as this version of the code begins it, and then as earlier ones may have begun it."""
    from surveybridge.bridge_core.checkpoint import EARLIER_DEFAULTS
    from surveybridge.bridge_core.errors import BridgeError
    from surveybridge.jobs.config import RequestError
    from surveybridge.jobs.translating.request import check
    from surveybridge.storage.schema import RESUMED_VERSIONS

    ways = [request]
    if settings["consistency"] is None and "consistency" in request.fingerprint:
        ways.append(request.of_light_alone())
    if request.sampling.shared_start:
        ways.append(request.of_own_starts())
    if settings["patch"] is None:
        ways.append(request.of_patches())
    if settings["score_reconstruct"] is None:
        ways += [way.of_all_sources() for way in ways]
    for way in ways:
        for version in reversed(RESUMED_VERSIONS):
            yield way.of_version(version)
    if settings["checkpoint"] is None:
        for name in EARLIER_DEFAULTS:
            named = {**settings, "checkpoint": name}
            with contextlib.suppress(BridgeError, RequestError):  # what it refuses it has not begun
                yield from _ways(check(TranslateConfig(run=request.config.run, **named)), named)


def _has_work(request: Request, root: Folder) -> bool:
    """Return whether there are tiles to do; if not, publish what a killed sweep may have left unpublished."""
    from surveybridge.jobs.translating.request import left_of

    if not root.exists(request.run_id, "run.json"):
        return True
    with _leased(request) as folder:
        ledger = folder.ledger()
        if left_of(request, folder, ledger):
            return True
        print(f"{folder.url}: nothing new in {request.store.url}")
        _publish(request, root, folder, ledger)
        return False


@contextlib.contextmanager
def _leased(request: Request) -> Iterator[RunFolder]:
    """Open the run folder, and hold its lease meanwhile."""
    from surveybridge.storage.lease import Lease
    from surveybridge.storage.runs import RunFolder

    folder = RunFolder.open(request.config.run)
    with Lease.acquire(folder.folder):
        yield folder


def _other_driver(request: Request, refusal: LeaseHeld) -> str:
    """Say who is at work on the run, and since when."""
    from surveybridge.storage.lease import read_holder
    from surveybridge.storage.objectstore import Folder

    holder = read_holder(Folder.at(request.config.run))
    if holder is None:  # it has just ended
        return str(refusal)
    since = datetime.datetime.fromtimestamp(holder.started, datetime.UTC)
    since_when = f"{since:%Y-%m-%d %H:%M:%S} UTC"
    return f"process {holder.pid} on {holder.host} has been at work on {request.config.run} since {since_when}"


def _publish(request: Request, root: Folder, folder: RunFolder, ledger: pa.Table) -> None:
    """Publish a snapshot if there is anything new in it, and print which one is current."""
    from surveybridge.storage.published import publish, published

    new = publish(root, folder, request.manifest, ledger)
    standing = new or published(root, request.run_id)
    if standing is None:
        print(f"{root.url}: nothing was published, because no tile is ok")
        return
    tiles = standing["tiles"]
    print(
        f"{'published' if new else 'published before:'} {root.file_url(standing['path'])}: {tiles['ok']} tiles ok, "
        f"{tiles['failed'] + tiles['quarantined']} failed, {tiles['left']} left of {tiles['manifest']}"
    )


def _exit_code(tally: Tally) -> int:
    """Return the exit code of `translate`, but ignore failures that earlier sweeps have reported already."""
    told_now = tally.statuses["lost"] or tally.statuses["failed"] or tally.statuses["quarantined"]
    return tally.exit_code if told_now else 0
