"""Timing of a tile: the notes that a worker of a profiled run takes of each stage."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from surveybridge.bridge_core.spans import listening, span
from surveybridge.cluster.stages import this_worker
from surveybridge.storage.objectstore import Folder

log = logging.getLogger(__name__)

PARTS = "parts"
"""Below the profile's folder: one file for each stage of each tile that is looked at closely, until they are merged."""


@dataclass(frozen=True)
class Profiled:
    """The destination of a run's profile, and the tiles that are profiled in detail."""

    url: str
    tiles: tuple[str, ...]


class Span(NamedTuple):
    """A stretch of time: depth 0 is the stage itself; epoch seconds, seconds, and seconds of the GPU's stream."""

    name: str
    depth: int
    start: float
    seconds: float
    gpu_seconds: float | None


@dataclass
class Part:
    """The notes on one stage of one tile, in the order of the spans' starts."""

    stage: str
    tile_id: str
    worker: str
    spans: list[Span] = field(default_factory=list)

    def to_json(self) -> bytes:
        """Return the content of its file."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Part:
        """Read the content of its file."""
        document: dict[str, Any] = json.loads(data)
        return cls(**(document | {"spans": [Span(*values) for values in document["spans"]]}))


@contextlib.contextmanager
def recorded(profiled: Profiled, stage: str, tile_id: str, *, gpu: bool = False) -> Iterator[None]:
    """Note the spans of a stage down, where this tile is looked at; the file is written after the stage has ended."""
    if tile_id not in profiled.tiles:
        yield
        return
    recorder = Recorder(gpu)
    try:
        with listening(recorder), span(stage):
            yield
    finally:
        try:
            part = Part(stage, tile_id, this_worker(), recorder.spans())
            Folder.at(profiled.url).put_many({f"{PARTS}/{stage}-{tile_id}.json": part.to_json()})
        except Exception as error:  # a profile is no reason for a tile to fail
            log.warning("profile of %s of tile %s not written (%s: %s)", stage, tile_id, type(error).__name__, error)


class Recorder:
    """A listener that records the spans with clock times and, on a GPU, with events in its stream (without waiting)."""

    def __init__(self, gpu: bool = False) -> None:
        self.gpu = gpu
        self.depth = 0
        self.epoch = time.time() - time.perf_counter()
        self._open: list[tuple[str, int, float, float, Any]] = []

    def __call__(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Keep one span."""
        return self._span(name)

    @contextlib.contextmanager
    def _span(self, name: str) -> Iterator[None]:
        place = len(self._open)
        events = self._events()
        start = time.perf_counter()
        self._open.append((name, self.depth, start, start, events))
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            if events:
                events[1].record()
            self._open[place] = (name, self.depth, start, time.perf_counter(), events)

    def _events(self) -> Any:
        """Begin and end on the GPU's stream; None without one, and while a CUDA graph is captured."""
        if not self.gpu:
            return None
        import torch

        if torch.cuda.is_current_stream_capturing():
            return None
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        return events

    def spans(self) -> list[Span]:
        """All of them; waits for the GPU."""
        if self.gpu:
            import torch

            torch.cuda.synchronize()
        return [
            Span(
                name,
                depth,
                self.epoch + start,
                end - start,
                events[0].elapsed_time(events[1]) / 1e3 if events else None,
            )
            for name, depth, start, end, events in self._open
        ]


class TimedFolder(Folder):
    """A folder whose requests are spans."""

    @classmethod
    def of(cls, folder: Folder) -> TimedFolder:
        """Return the same folder, timed."""
        return cls(folder.url, folder.storage_options)

    def read(self, *parts: str) -> bytes:
        """Time `Folder.read`."""
        with span("storage get"):
            return super().read(*parts)

    def read_existing(self, names: Sequence[str]) -> dict[str, bytes]:
        """Time `Folder.read_existing`."""
        with span("storage get"):
            return super().read_existing(names)

    def put(self, data: bytes, *parts: str) -> None:
        """Time `Folder.put`."""
        with span("storage put"):
            super().put(data, *parts)
