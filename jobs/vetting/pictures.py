"""Pictures of candidates for pages: all views side by side in one PNG, made when asked for and kept for a while."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np

from surveybridge.jobs.drawing.rendering import candidate_pictures, png, views
from surveybridge.storage.catalog_sources import run_of
from surveybridge.storage.problems import ProblemTable
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import stamp_array, thumbnail_names
from surveybridge.storage.thumbnails import ThumbnailReader

KEPT_THUMBNAILS = 1500
"""98 kB each."""
KEPT_STRIPS = 4000
"""About 30 kB each."""

Key = TypeVar("Key", bound=Hashable)


class Pictures:
    """Strips of pictures, one PNG a candidate: those of `jobs.drawing.rendering.views` from left to right."""

    def __init__(self, runs: Sequence[RunFolder], threads: int = 4) -> None:
        self._runs = runs
        self._problem = runs[0].problem
        self._reader = functools.cache(ThumbnailReader)
        # Two pools, because a strip waits for a read.
        self._reading = ThreadPoolExecutor(threads, "thumbnails")
        self._drawing = ThreadPoolExecutor(threads, "pictures")
        self._thumbnails = _Kept[str](KEPT_THUMBNAILS)
        self._strips = _Kept[tuple[str, float]](KEPT_STRIPS)

    def prefetch(self, objects: Iterable[tuple[str, str, str | None]]) -> None:
        """Begin to read thumbnails of (object, tile, run_id); one read a tile, those that come first in front."""
        tiles: dict[tuple[str, str | None], dict[str, Future[Any]]] = defaultdict(dict)
        for object_id, tile_id, run_id in objects:
            future, new = self._thumbnails.get(object_id)
            if new:
                tiles[tile_id, run_id][object_id] = future
        for (tile_id, run_id), futures in tiles.items():
            self._reading.submit(self._read, tile_id, run_id, futures)

    def strip(self, object_id: str, tile_id: str, run_id: str | None, stretch: float) -> Future[bytes]:
        """PNG of 64 x 320 pixels; KeyError in the future if the tile does not hold the object."""
        future, new = self._strips.get((object_id, stretch))
        if new:
            self.prefetch([(object_id, tile_id, run_id)])
            row, _ = self._thumbnails.get(object_id)
            row.add_done_callback(
                lambda row: self._drawing.submit(_settle, future, lambda: _draw(row, self._problem, stretch))
            )
            future.add_done_callback(lambda done: self._strips.drop_failed((object_id, stretch), done))
        return future

    def close(self) -> None:
        """Stop: finish what is being read, and drop what has not begun."""
        for pool in (self._reading, self._drawing):
            pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, tile_id: str, run_id: str | None, futures: dict[str, Future[Any]]) -> None:
        try:
            table = self._reader(run_of(self._runs, run_id)).read(tile_id, list(futures))
            stamps = {name: stamp_array(table, name) for name in thumbnail_names(table.schema)}
            names = table["object_id"].to_pylist()
            found = {name: {key: stamp[k] for key, stamp in stamps.items()} for k, name in enumerate(names)}
        except Exception as error:
            for object_id, future in futures.items():
                future.set_exception(error)
                self._thumbnails.drop_failed(object_id, future)
            return
        for object_id, future in futures.items():
            _settle(future, lambda object_id=object_id: found[object_id])
            self._thumbnails.drop_failed(object_id, future)


class _Kept(Generic[Key]):
    """The futures that were asked for last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._futures: OrderedDict[Key, Future[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> tuple[Future[Any], bool]:
        """The future of a key, and whether it is new, so that the caller has to see to its result."""
        with self._lock:
            new = key not in self._futures
            if new:
                self._futures[key] = Future()
                while len(self._futures) > self._most:
                    self._futures.popitem(last=False)
            self._futures.move_to_end(key)
            return self._futures[key], new

    def drop_failed(self, key: Key, future: Future[Any]) -> None:
        """Forget a failure, so that the next request tries again."""
        if future.exception() is not None:
            with self._lock:
                self._futures.pop(key, None)


def _settle(future: Future[Any], make: Any) -> None:
    try:
        result = make()
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _draw(row: Future[Any], problem: ProblemTable, stretch: float) -> bytes:
    pictures = candidate_pictures(row.result(), problem, stretch)
    return png(np.concatenate([pictures[name] for name in views(problem)], axis=1))
