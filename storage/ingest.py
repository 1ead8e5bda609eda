"""Ingest: from the FITS images of a problem's endpoints to a tile store on the pixel grid of one of them.

Everything that can be wrong with the request is found before the first byte is written.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from surveybridge.storage.errors import StorageError
from surveybridge.storage.field_images import Field, Images, OpenField, open_field, read_field
from surveybridge.storage.field_update import Slot, put_field, slot_in
from surveybridge.storage.fields import FieldGrid
from surveybridge.storage.grids import shifted_header
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.problems import ProblemTable
from surveybridge.storage.target_grids import TargetGrid
from surveybridge.storage.tiles import Tile, TileStore

__all__ = [
    "Field",
    "Foreseen",
    "TileBox",
    "check_tiling",
    "cut_tile",
    "foresee_field",
    "ingest_field",
    "read_field",
    "surveys_in",
    "tile_boxes",
]

MIN_TILE_SIZE = 64
"""Pixels: the window that the network sees."""

STRIP_PIXELS = 1 << 24
"""So many pixels of the grid are in memory at a time, if a row of tiles has no more."""


def ingest_field(
    problem: ProblemTable,
    images: Images,
    onto: str | TargetGrid,
    store_url: str,
    *,
    tile_size: int = 512,
    halo: int = 64,
    slot: Slot | None = None,
    watch: Callable[[Iterable[Tile], int], Iterable[Tile]] | None = None,
    **how: Any,
) -> list[dict[str, Any]]:
    """Read, co-register, cut, and write a field of a tile store.

    Parameters
    ----------
    problem, images, onto
        As `field_images.open_field`.
    store_url : str
        The store, local or s3://: absent, or one that keeps its other fields.
    tile_size, halo : int
        Pixels of the grid; tiles at the edge are smaller, halos end at the field's edge.
    slot : Slot, optional
        Name of the field, which takes the place of one of the same name, and how long to wait for another ingest.
    watch : callable (tiles, total) -> tiles, optional
        Wrapped around the tiles as they are written: a progress bar.
    **how
        Passed to `open_field`, but for `aligned`, a function from an OpenField to one whose images lie on each other,
        and `wanted_psfs` (`homogenise.WantedPsfs`): PSFs to which the images are brought.
        `storage_options` hold for the store too.

    Returns
    -------
    list of dict
        Rows of the manifest.

    Raises
    ------
    StorageError
        The request is wrong, or another process ingests into the store; nothing has been written.
    """
    field, strips = _opened(problem, images, onto, (tile_size, halo), how)

    def cut(named: FieldGrid) -> Iterable[Tile]:
        tiles = (cut_tile(strip, box, named) for strip, box in strips.with_data())
        return watch(tiles, strips.count) if watch else tiles

    return put_field(TileStore.create(store_url, how.get("storage_options")), field, slot or Slot(), cut)


@dataclass(frozen=True)
class Foreseen:
    """What an ingest would write.

    Attributes
    ----------
    field : FieldGrid
        The field, its grid and tiling, as it would be named in the store.
    replaces : bool
        Whether the store has a field of this name.
    domain : str
        "in", or "out: " and why, by what the models of the problem are trained on.
    surveys : mapping of tuple of str to int
        Number of tiles by the endpoints that they would have.
    """

    field: FieldGrid
    replaces: bool
    domain: str
    surveys: Mapping[tuple[str, ...], int]


def foresee_field(
    problem: ProblemTable,
    images: Images,
    onto: str | TargetGrid,
    store_url: str,
    *,
    tile_size: int = 512,
    halo: int = 64,
    slot: Slot | None = None,
    **how: Any,
) -> Foreseen:
    """Read and co-register as `ingest_field`, refuse what it would refuse, and write nothing."""
    store = TileStore.may_be_at(Folder.at(store_url, how.get("storage_options")))
    field, strips = _opened(problem, images, onto, (tile_size, halo), how)
    named, replaces = slot_in(store, field, slot or Slot())
    surveys = Counter(tuple(surveys_in(strip, box)) for strip, box in strips.with_data())
    return Foreseen(named, replaces, strips.opened.notes["domain"], surveys)


def _opened(
    problem: ProblemTable, images: Images, onto: str | TargetGrid, tiling: tuple[int, int], how: Mapping[str, Any]
) -> tuple[FieldGrid, _Strips]:
    """The field, still without a name, and its tiles; `tiling` is the size of a core and the halo."""
    check_tiling(*tiling)
    given = dict(how)
    wanted, aligned = given.pop("wanted_psfs", None), given.pop("aligned", None)
    opened = open_field(problem, images, onto, **given)
    if aligned is not None:
        opened = aligned(opened)
    if wanted is not None:
        opened = opened.homogenised(wanted)
    grid = opened.grid
    strips = _Strips.of(opened, list(tile_boxes(grid.shape, *tiling)))
    if len(opened.parts) > 1:
        strips.check_that_some_tile_has_all()
    return FieldGrid("", grid.grid_id, grid.wcs_header, grid.shape, *tiling), strips


@dataclass(frozen=True)
class _Strips:
    """The tiles of a field in strips of rows, of which the last one read stays in memory."""

    opened: OpenField
    boxes: Sequence[Sequence[TileBox]]
    read: Callable[[int], Field]

    @classmethod
    def of(cls, opened: OpenField, boxes: Sequence[TileBox]) -> _Strips:
        width = opened.grid.shape[1]
        strips: list[list[TileBox]] = []
        for _, row in itertools.groupby(boxes, key=lambda box: box.core[0]):
            tiles = list(row)
            if strips and (tiles[0].outer[1] - strips[-1][0].outer[0]) * width <= STRIP_PIXELS:
                strips[-1] += tiles
            else:
                strips.append(tiles)
        bounds = [(tiles[0].outer[0], tiles[-1].outer[1]) for tiles in strips]
        return cls(opened, strips, functools.lru_cache(maxsize=1)(lambda k: opened.strip(*bounds[k])))

    @property
    def count(self) -> int:
        """Number of tiles, with data or, as far as that is not known, without."""
        if len(self.boxes) == 1:
            return sum(1 for _ in self.with_data())
        return sum(map(len, self.boxes))

    def with_data(self) -> Iterator[tuple[Field, TileBox]]:
        """The tiles in which any survey has a usable pixel, each with the strip that it lies in."""
        for number, boxes in enumerate(self.boxes):
            strip = self.read(number)
            for box in boxes:
                if surveys_in(strip, box):
                    yield strip, box

    def check_that_some_tile_has_all(self) -> None:
        """Refuse images of which no two are usable in the same tile; from the middle on, where that is seen first."""
        middle, tiles = len(self.boxes) // 2, 0
        for number in sorted(range(len(self.boxes)), key=lambda number: abs(number - middle)):
            strip = self.read(number)
            for box in self.boxes[number]:
                surveys = surveys_in(strip, box)
                tiles += bool(surveys)
                if len(surveys) == len(self.opened.parts):
                    return
        raise StorageError(
            f"{self.opened.grid.where}: no tile in which both surveys have usable pixels (of {tiles} with any); give "
            "images whose unmasked areas overlap, or each survey alone"
        )


@dataclass(frozen=True)
class TileBox:
    """The place of a tile on the grid, in half-open global pixels: what it owns (core) and what it holds (outer)."""

    tile_id: str
    core: tuple[int, int, int, int]
    outer: tuple[int, int, int, int]


def tile_boxes(shape: tuple[int, int], tile_size: int, halo: int) -> Iterator[TileBox]:
    """Cut a grid into tiles, row-major, t0000 first. Cores partition the grid; halos end at its edge."""
    height, width = shape
    corners = [(y, x) for y in range(0, height, tile_size) for x in range(0, width, tile_size)]
    for number, (y, x) in enumerate(corners):
        core = (y, min(y + tile_size, height), x, min(x + tile_size, width))
        outer = (max(y - halo, 0), min(core[1] + halo, height), max(x - halo, 0), min(core[3] + halo, width))
        yield TileBox(f"t{number:04d}", core, outer)


def surveys_in(field: Field, box: TileBox) -> list[str]:
    """Endpoints that have a pixel in a tile which is usable in all bands: what the network needs."""
    y0, y1, x0, x1 = box.outer
    cut = np.s_[:, y0 - field.top : y1 - field.top, x0:x1]
    return [name for name, image in field.images.items() if (np.bitwise_or.reduce(image.mask[cut]) == 0).any()]


def cut_tile(field: Field, box: TileBox, named: FieldGrid | None = None) -> Tile:
    """Cut one tile, with the endpoints that `surveys_in` it are.

    Parameters
    ----------
    field : Field
        All of the grid, or a strip with all rows of the tile.
    box : TileBox
        Its place on the grid.
    named : FieldGrid, optional
        The field as it is in a store; needed for a strip.
    """
    y0, y1, x0, x1 = box.outer
    core = (box.core[0] - y0, box.core[1] - y0, box.core[2] - x0, box.core[3] - x0)
    header = shifted_header(field.wcs_header, y0, x0)
    cut = np.s_[:, y0 - field.top : y1 - field.top, x0:x1]
    images = {}
    for name in surveys_in(field, box):
        image = field.images[name]
        images[name] = replace(
            image, flux=image.flux[cut], variance=image.variance[cut], mask=image.mask[cut], wcs_header=header
        )
    if named is None:
        return Tile(box.tile_id, images, core, (y0, x0), field.grid_id)
    return Tile(f"{named.prefix}{box.tile_id}", images, core, (y0, x0), named.grid_id, named.name)


def check_tiling(tile_size: int, halo: int) -> None:
    """Refuse a tiling that cannot be translated."""
    if tile_size < MIN_TILE_SIZE:
        raise StorageError(f"tile size {tile_size} px is below {MIN_TILE_SIZE} px, the network's window; enlarge it")
    if halo < 0:
        raise StorageError(f"halo {halo} px is negative; give 0 or more")
