"""The sky around a candidate beyond its thumbnail: images of the tile store and the run's mosaics, across tiles."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveybridge.storage.celestial import sky_to_pixel
from surveybridge.storage.errors import StorageError
from surveybridge.storage.footprint import Box, header_box, overlap
from surveybridge.storage.orientation import Orientation, RunGrids, orientation
from surveybridge.storage.problems import shown_ends, wanted_end
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import Tile, TileStore

LARGEST_PIXELS = 1024
"""Side of what is read, at most, pixels."""

TILES_KEPT = 4

_PLACE = ("grid_id", "core_y0", "core_x0", "core_height", "core_width")

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Surroundings:
    """A square of the sky on the pixel grid of a tile.

    Parameters
    ----------
    observed : dict of str to float32 [C, H, W]
        Both endpoints by name, NaN where masked or not there.
    mean, std : float32 [C, H, W]
        What the run translated, NaN where no tile is done.
    box : Box
        Global pixels of the grid.
    directions : Orientation
        Of the grid, at the middle.
    missing : str
        What could not be read and why, in one line; empty if nothing.
    """

    observed: dict[str, Image]
    mean: Image
    std: Image
    box: Box
    directions: Orientation
    missing: str

    @property
    def side(self) -> float:
        """Side of the square, arcsec."""
        return (self.box[1] - self.box[0]) * self.directions.pixel


class SurroundingsReader:
    """Reads the surroundings of a run's candidates. Threads may share it.

    Parameters
    ----------
    run : RunFolder
        The run.
    grids : RunGrids
        Of the run.
    store : str, optional
        Where its tile store lies; as the run's last driver found it by default. It may be gone: then what it holds is
        missing.
    """

    def __init__(self, run: RunFolder, grids: RunGrids, store: str | None = None) -> None:
        self._run = run
        self._grids = grids
        self._store_url = store
        self._lock = threading.Lock()
        self._read_tile = functools.lru_cache(TILES_KEPT)(self._tile_of_store)

    def read(self, tile_id: str, ra: float, dec: float, side: float) -> Surroundings:
        """Read a square of about `side` arcsec around a position of a tile, ICRS degrees."""
        wcs = self._grids.wcs(tile_id)
        found = orientation(wcs, ra, dec)
        n = min(max(round(side / found.pixel), 1), LARGEST_PIXELS)
        line, column = (int(np.round(float(v))) - n // 2 for v in sky_to_pixel(wcs, ra, dec))  # as thumbnails are cut
        box = line, line + n, column, column + n
        ends, wanted = shown_ends(self._run.problem), wanted_end(self._run.run_json)
        shape = box[1] - box[0], box[3] - box[2]
        observed = {end["name"]: np.full((len(end["bands"]), *shape), np.nan, np.float32) for end in ends}
        mean, std = (np.full((len(wanted["bands"]), *shape), np.nan, np.float32) for _ in range(2))
        missing = []
        with self._lock:  # one request at a time keeps the tiles in memory few
            try:
                changed = self._put_observed(observed, tile_id, box)
                if changed:
                    missing.append(f"ingested anew since this run: {', '.join(changed)}")
            except (OSError, ValueError) as error:
                missing.append(f"no images of the surveys: {_one_line(error)}")
            try:
                self._put_translated(mean, std, tile_id, box)
            except (OSError, ValueError) as error:
                missing.append(f"no translated map: {_one_line(error)}")
        return Surroundings(observed, mean, std, box, found, "; ".join(missing))

    def _put_observed(self, observed: dict[str, Image], tile_id: str, box: Box) -> list[str]:
        """Fill in the images; return the tiles that have other pixels than those that the run translated."""
        changed = []
        for other, core, part in _touching(self._store_boxes, tile_id, box):
            tile = self._read_tile(other)
            here = _within(part, core)
            for name in set(observed) & set(tile.images):
                image = tile.images[name]
                observed[name][:, *_within(part, box)] = np.where(image.valid, image.flux, np.nan)[:, *here]
            if self._translated.get(other) not in (None, self._stored[other]["content"]):
                changed.append(other)
        return changed

    def _put_translated(self, mean: Image, std: Image, tile_id: str, box: Box) -> None:
        for other, core, part in _touching(self._run_boxes, tile_id, box):
            mosaic = self._run.read_tile_mosaic(other)
            for plane, values in ((mean, mosaic.mean), (std, mosaic.std)):
                plane[:, *_within(part, box)] = values[:, *_within(part, core)]

    def _tile_of_store(self, tile_id: str) -> Tile:
        return self._store.read_tile(tile_id, halo=0)

    @functools.cached_property
    def _store(self) -> TileStore:
        return TileStore.open(self._store_url or self._run.store_url)

    @functools.cached_property
    def _stored(self) -> dict[str, dict[str, Any]]:
        """Rows of the manifest."""
        return {row["tile_id"]: row for row in self._store.manifest().to_pylist()}

    @functools.cached_property
    def _store_boxes(self) -> dict[str, tuple[str, Box]]:
        return _boxes(self._stored.values())

    @functools.cached_property
    def _translated(self) -> dict[str, str | None]:
        """Content of the tiles that the run has done."""
        ledger = self._run.ledger(["tile_id", "content"])
        return dict(zip(ledger["tile_id"].to_pylist(), ledger["content"].to_pylist(), strict=True))

    @functools.cached_property
    def _run_boxes(self) -> dict[str, tuple[str, Box]]:
        """Grid and core of every tile that is done; a run from before version 4 says it in its mosaics alone."""
        ledger = self._run.ledger(["tile_id", "status", *_PLACE])
        ok = ledger.filter(pc.equal(ledger["status"], "ok"))
        if not ok["core_y0"].null_count:
            return _boxes(ok.to_pylist())
        headers = self._run.mosaic_headers(ok["tile_id"].to_pylist())
        return {header.tile_id: (header.grid_id, header_box(header)) for header in headers}


def _boxes(rows: Iterable[dict[str, Any]]) -> dict[str, tuple[str, Box]]:
    """Grid and core of tiles, by tile id, from rows of a manifest or a ledger."""
    found = {}
    for row in rows:
        y, x = row["core_y0"], row["core_x0"]
        found[row["tile_id"]] = row["grid_id"], (y, y + row["core_height"], x, x + row["core_width"])
    return found


def _touching(boxes: dict[str, tuple[str, Box]], tile_id: str, box: Box) -> Iterator[tuple[str, Box, Box]]:
    """Tiles on the grid of a tile that touch a box: id, core, and what of it lies in the box."""
    if tile_id not in boxes:
        raise StorageError(f"tile {tile_id} is not there any more")
    grid_id = boxes[tile_id][0]
    for other, (grid, core) in boxes.items():
        part = overlap(core, box) if grid == grid_id else None
        if part is not None:
            yield other, core, part


def _within(part: Box, box: Box) -> tuple[slice, slice]:
    """Rows and columns of a part in an array of the box."""
    return slice(part[0] - box[0], part[1] - box[0]), slice(part[2] - box[2], part[3] - box[2])


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
