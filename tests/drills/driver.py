"""`surveybridge translate` with faults built in, as the plan in the environment says: python -m tests.drills.driver.

The product knows nothing of this: the command's stages are wrapped before they travel to the workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from surveybridge.cluster.stages import Outcome, Stages

PLAN = "SURVEYBRIDGE_DRILL"
SEGMENT_TILES = 5
"""Tiles of a segment, so that a few tiles are compacted several times while a run goes."""
TILES = 25
"""Of the store."""
SLICE = 3
"""Tiles of a read task."""
HOLD_SECONDS = 300.0


@dataclass(frozen=True)
class Plan:
    """What goes wrong. Stages by tile: read, model or write."""

    folder: str
    """Journal and markers, on a disk that all processes see."""
    seconds: float = 0.0
    """Added to the model of each tile, so that there is a middle to hit."""
    holding: Mapping[str, str] = field(default_factory=dict)
    """The first process to begin this waits there, to be killed or released."""
    raising: Mapping[str, str] = field(default_factory=dict)
    dying: Mapping[str, str] = field(default_factory=dict)
    """Every process that begins this is killed, as the kernel does it when memory is short."""
    holding_tidy: int = 0
    """The driver waits in its n-th tidy: 2 is after all tiles, before the end."""
    file_limit: int = 0
    """Longest file in bytes that a writer can write: EFBIG beyond it, as ENOSPC on a full disk."""
    temporary: str = ""
    """TMPDIR of all processes."""

    def to_json(self) -> str:
        """For the environment."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Begun:
    """A stage that began a tile."""

    stage: str
    tile: str
    pid: int
    node: str
    time: float


def journal(folder: Path) -> list[Begun]:
    """All that was begun so far, in order."""
    file = folder / "journal"
    return [Begun(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def main() -> int:
    """Run the command under the plan."""
    from surveybridge.__main__ import main as surveybridge
    from surveybridge.cluster import stream
    from surveybridge.jobs.translating import engine
    from surveybridge.storage.runs import RunFolder

    plan = Plan(**json.loads(os.environ[PLAN]))
    _use_temporary(plan)
    engine.SEGMENT_TILES = SEGMENT_TILES
    stream.READ_TASKS = TILES // SLICE
    stream.IO_PER_MODEL = 1  # of each kind; a process takes two seconds of a core to start
    vars(engine)["translate"] = partial(engine.translate, make_stages=partial(stages, plan))
    vars(engine)["_compact"] = partial(_compact, plan, engine._compact)
    tidy, tidied = RunFolder.tidy, iter(range(1, 1000))

    def held_tidy(self: RunFolder) -> None:
        if next(tidied) == plan.holding_tidy:
            _note(plan, "driver", "tidy")
            _hold(plan, "tidy of driver")
        tidy(self)

    RunFolder.tidy = held_tidy  # type: ignore[method-assign]
    return surveybridge()


def stages(plan: Plan, settings: Any) -> Stages:
    """The command's stages with the faults of the plan."""
    from surveybridge.jobs.translating.stages import tile_stages

    real = tile_stages(settings)
    return Stages(
        make_read=partial(_make, plan, "read", real.make_read),
        make_model=partial(_make, plan, "model", real.make_model),
        make_write=partial(_make, plan, "write", real.make_write),
    )


def _make(plan: Plan, stage: str, make_real: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    _use_temporary(plan)
    work = make_real()

    def one(*arguments: Any) -> Any:
        first = arguments[0]
        failed = isinstance(first, Outcome) and first.failure is not None
        tile = first.item if isinstance(first, Outcome) else first
        _begin(plan, stage, tile, harmless=failed)
        with _limited(plan.file_limit if stage == "write" else 0):
            return work(*arguments)

    return one


def _compact(plan: Plan, compact: Callable[..., None], *arguments: Any) -> None:
    _use_temporary(plan)
    compact(*arguments)


def _begin(plan: Plan, stage: str, tile: str, *, harmless: bool) -> None:
    held = not harmless and plan.holding.get(tile) == stage and _first(plan, stage, tile)
    _note(plan, stage, tile)  # whoever waits for this may kill the process at once
    if harmless:  # the writer of a failure
        return
    if held:
        _hold(plan, f"{stage} of {tile}")
    if stage == "model":
        time.sleep(plan.seconds)
    if plan.raising.get(tile) == stage:
        raise RuntimeError(f"drill: {tile} cannot be done")
    if plan.dying.get(tile) == stage:
        os.kill(os.getpid(), signal.SIGKILL)


def _note(plan: Plan, stage: str, tile: str) -> None:
    import ray

    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    line = json.dumps(asdict(Begun(stage, tile, os.getpid(), node, time.time()))) + "\n"
    handle = os.open(Path(plan.folder) / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line.encode())  # one write: lines of several processes do not mix
    os.close(handle)


@contextlib.contextmanager
def _limited(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes meanwhile; Ray's logs have room again afterwards."""
    if not size:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _first(plan: Plan, stage: str, tile: str) -> bool:
    try:
        os.close(os.open(Path(plan.folder) / f"held-{stage}-{tile}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _hold(plan: Plan, what: str) -> None:
    deadline = time.monotonic() + HOLD_SECONDS
    while not (Path(plan.folder) / "release").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"drill: nobody came to kill {what}")
        time.sleep(0.05)


def _use_temporary(plan: Plan) -> None:
    if plan.temporary:
        import tempfile

        os.environ["TMPDIR"] = tempfile.tempdir = plan.temporary


if __name__ == "__main__":
    sys.exit(main())
