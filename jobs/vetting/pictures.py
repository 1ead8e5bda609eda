"""Pictures of candidates for pages: all views side by side in one PNG, made when asked for and kept for a while."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from surveybridge.jobs.drawing.rendering import candidate_pictures, png, views, wide_pictures, wide_views
from surveybridge.storage.catalog_sources import run_of
from surveybridge.storage.orientation import Orientation, RunGrids
from surveybridge.storage.problems import wanted_end
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import stamp_array, thumbnail_names
from surveybridge.storage.surroundings import Surroundings, SurroundingsReader
from surveybridge.storage.thumbnails import ThumbnailReader

KEPT_THUMBNAILS = 1500
"""98 kB each."""
KEPT_STRIPS = 4000
"""About 30 kB each."""
KEPT_SURROUNDINGS = 64
"""About 2 MB each at 20 arcsec."""

Key = TypeVar("Key", bound=Hashable)


class Object(NamedTuple):
    """Which candidate: of which tile of which run, and where, ICRS degrees."""

    object_id: str
    tile_id: str
    run_id: str | None
    ra: float
    dec: float


class Look(NamedTuple):
    """How a candidate is shown.

    `stretch` and `channel` are those of `candidate_pictures`; `side` is that of a square of its surroundings, arcsec,
    0 for the stored thumbnail.
    """

    stretch: float = 1.0
    channel: int | None = None
    side: float = 0.0


class Pictures:
    """Strips of pictures, one PNG a candidate: `views` or `wide_views` of `jobs.drawing.rendering`, from left to right.

    Parameters
    ----------
    runs : sequence of RunFolder
        What the candidates are of.
    store : str, optional
        Where the tile store of the runs lies, which has the surroundings.
    threads : int
        Of each of three kinds.
    """

    def __init__(self, runs: Sequence[RunFolder], store: str | None = None, threads: int = 4) -> None:
        self._runs = runs
        self._reader = functools.cache(ThumbnailReader)
        self._grids = functools.cache(RunGrids)
        self._around = functools.cache(lambda run: SurroundingsReader(run, self._grids(run), store))
        # Pools of their own, because a strip waits for a read.
        self._reading = ThreadPoolExecutor(threads, "thumbnails")
        self._drawing = ThreadPoolExecutor(threads, "pictures")
        self._looking = ThreadPoolExecutor(threads, "surroundings")
        self._thumbnails = _Kept[str](KEPT_THUMBNAILS)
        self._strips = _Kept[tuple[str, Look]](KEPT_STRIPS)
        self._surroundings = _Kept[tuple[str, float]](KEPT_SURROUNDINGS)

    def prefetch(self, objects: Iterable[Object]) -> None:
        """Begin to read thumbnails; one read a tile, those that come first in front."""
        tiles: dict[tuple[str, str | None], dict[str, Future[Any]]] = defaultdict(dict)
        for one in objects:
            future, new = self._thumbnails.get(one.object_id)
            if new:
                tiles[one.tile_id, one.run_id][one.object_id] = future
        for (tile_id, run_id), futures in tiles.items():
            self._reading.submit(self._read, tile_id, run_id, futures)

    def strip(self, one: Object, look: Look) -> Future[bytes]:
        """PNG of squares side by side; KeyError in the future if the tile does not hold the object."""
        key = one.object_id, look
        future, new = self._strips.get(key)
        if new:
            if look.side:
                seen = self.surroundings(one, look.side)
            else:
                self.prefetch([one])
                seen, _ = self._thumbnails.get(one.object_id)
            run = run_of(self._runs, one.run_id)
            seen.add_done_callback(
                lambda seen: self._drawing.submit(_settle, future, lambda: _draw(seen.result(), run, look))
            )
            future.add_done_callback(lambda done: self._strips.drop_failed(key, done))
        return future

    def surroundings(self, one: Object, side: float) -> Future[Surroundings]:
        """The sky around a candidate."""
        key = one.object_id, side
        future, new = self._surroundings.get(key)
        if new:
            reader = self._around(run_of(self._runs, one.run_id))
            self._looking.submit(_settle, future, lambda: reader.read(one.tile_id, one.ra, one.dec, side))
            future.add_done_callback(lambda done: self._surroundings.drop_failed(key, done))
        return future

    def directions(self, one: Object) -> Orientation | None:
        """Directions on the thumbnails of a candidate, where they are known."""
        return self._grids(run_of(self._runs, one.run_id)).directions(one.tile_id, one.ra, one.dec)

    def close(self) -> None:
        """Stop: finish what is being read, and drop what has not begun."""
        for pool in (self._reading, self._drawing, self._looking):
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


def _draw(seen: Any, run: RunFolder, look: Look) -> bytes:
    """Draw thumbnails by name, or surroundings."""
    problem = run.problem
    if isinstance(seen, Surroundings):
        pictures = wide_pictures(seen, problem, wanted_end(run.run_json), look.stretch, look.channel)
        return png(np.concatenate([pictures[name] for name in wide_views(problem)], axis=1))
    pictures = candidate_pictures(seen, problem, look.stretch, look.channel)
    return png(np.concatenate([pictures[name] for name in views(problem)], axis=1))
