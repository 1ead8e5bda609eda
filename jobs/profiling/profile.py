"""The profile of a translation: where each millisecond of one worker goes, as a trace for Perfetto and as a table.

Of all tiles it is known when and where each stage worked. The first tiles are looked at closely: `bridge_core.spans`
inside the stages. And a part of one of them is translated under torch's profiler before the run's own tiles, which are
never slowed by it.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from surveybridge.cluster.stages import STAGES
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.diagnosing.machine import described_machine
from surveybridge.jobs.profiling.operators import ABOUT, CLAIM, PROFILER_BYTES, RECORDED, Operators
from surveybridge.jobs.profiling.spans import PARTS, Part, Profiled
from surveybridge.jobs.profiling.stages import profiled_stages
from surveybridge.jobs.profiling.table import describe, profile_of
from surveybridge.jobs.profiling.trace import Trace
from surveybridge.jobs.translating.engine import translate
from surveybridge.jobs.translating.request import Request, todo_of
from surveybridge.jobs.translating.tally import Tally
from surveybridge.storage.objectstore import Folder

CLOSE_TILES = 8
"""Looked at closely: some thousand spans each, 200 kB of trace."""

INTERVALS_AT_MOST = 5000
"""Tiles whose stages are in the trace: three slices each."""

FILES = ("trace.json", "profile.json", "profile.txt")


def translate_profiled(request: Request, url: str) -> tuple[Tally, str]:
    """Translate, and write `FILES` into a folder; returns the table too.

    Raises
    ------
    RequestError
        If something else than a profile stands at `url`; nothing is written then.
    """
    folder = Folder.at(url)
    _check(folder)
    todo = todo_of(request)
    folder.delete_below(PARTS)
    profiled = Profiled(folder.url, tuple(todo[:CLOSE_TILES]))
    receipts: list[Mapping[str, Any]] = []

    def watch(receipt: dict[str, Any]) -> None:
        if len(receipts) < INTERVALS_AT_MOST:
            receipts.append({"tile_id": receipt["tile_id"], "intervals": receipt.get("intervals", {})})

    began = time.time()
    tally = translate(request, functools.partial(profiled_stages, profiled), watch, PROFILER_BYTES)
    if not receipts:
        folder.delete_below(PARTS)
        return tally, "no tile was done, so there is no profile"
    parts, operators = _left_by_workers(folder)
    receipts = _narrowed(receipts, parts)
    config = request.config
    found = profile_of(receipts, parts, operators, began) | {
        "machine": described_machine(),
        "settings": {**request.fingerprint, "batch": config.batch, "executor": config.executor},
    }
    text = describe(found, folder.file_url("trace.json"))
    trace = trace_of(receipts, parts, operators, run=request.run_id)
    for name, content in zip(FILES, (json.dumps(trace), json.dumps(found, indent=1), text), strict=True):
        folder.put(f"{content}\n".encode(), name)
    folder.delete_below(PARTS)
    return tally, text


def _left_by_workers(folder: Folder) -> tuple[list[Part], Operators | None]:
    """The spans of stages and tiles, and the operators where a worker got so far."""
    names = [name for name in folder.names(PARTS) if name != CLAIM]
    data = dict(zip(names, folder.read_many([f"{PARTS}/{name}" for name in names]), strict=True))
    trace = data.pop(RECORDED, b"")
    about = data.pop(ABOUT, None)
    return [Part.from_json(part) for part in data.values()], Operators.of(about, trace) if about else None


def _narrowed(receipts: Sequence[Mapping[str, Any]], parts: Sequence[Part]) -> list[Mapping[str, Any]]:
    """The receipts, their intervals without the time that it took to leave the spans behind."""
    exact = {(part.tile_id, part.stage): part.spans[0] for part in parts}

    def of(tile_id: str, stage: str, interval: Mapping[str, Any]) -> Mapping[str, Any]:
        whole = exact.get((tile_id, stage))
        return {**interval, "start": whole.start, "end": whole.start + whole.seconds} if whole else interval

    return [
        {**receipt, "intervals": {stage: of(receipt["tile_id"], stage, i) for stage, i in receipt["intervals"].items()}}
        for receipt in receipts
    ]


def _check(folder: Folder) -> None:
    """Refuse a folder that holds something else."""
    names = set(folder.names())
    if names and not names & {*FILES, PARTS}:
        raise RequestError(f"--profile {folder.url} is {folder.describe()}, neither empty nor a profile; give another")


def trace_of(
    receipts: Sequence[Mapping[str, Any]], parts: Sequence[Part], operators: Operators | None, **other: Any
) -> dict[str, Any]:
    """The trace: a process for each worker, and in it a row for each stage; torch's operators lie before the tiles."""
    trace = Trace()
    closely = {(part.stage, part.tile_id) for part in parts}
    for part in parts:
        for one in part.spans:
            arguments: dict[str, Any] = {"tile": part.tile_id} if one.depth == 0 else {}
            if one.gpu_seconds is not None:
                arguments["gpu_ms"] = f"{1e3 * one.gpu_seconds:.3f}"
            times = nanoseconds(one.start, one.seconds)
            trace.add(f"worker {part.worker}", part.stage, one.name, *times, **arguments)
    for receipt in receipts:
        for stage, interval in receipt["intervals"].items():
            if (stage, receipt["tile_id"]) not in closely:
                times = nanoseconds(interval["start"], interval["end"] - interval["start"])
                trace.add(f"worker {interval['worker']}", stage, stage, *times, tile=receipt["tile_id"])
    if operators:
        for event in operators.longest():
            process = f"worker {operators.about['worker']}"
            trace.add(process, event["row"], event["name"], event["start"], event["dur"])
    return trace.document(STAGES, **other)


def nanoseconds(start: float, seconds: float) -> tuple[int, int]:
    """Epoch seconds and seconds as `Trace` takes them."""
    return round(1e9 * start), round(1e9 * seconds)
