"""Which windows are cut from a tile: a lattice over its core, and windows centred on its objects."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from surveybridge.storage.pair_labels import pair_labels_schema
from surveybridge.storage.schema import SCHEMA_VERSION, conform
from surveybridge.storage.sky import healpix_29

if TYPE_CHECKING:
    from surveybridge.storage.held_back import HeldBack
    from surveybridge.storage.problems import ProblemTable
    from surveybridge.storage.tiles import Tile


@dataclass(frozen=True)
class Cutting:
    """How windows are cut.

    Parameters
    ----------
    held_back : HeldBack
        The part of the sky for validation.
    size : int
        Side of a window, pixels.
    stride : int
        Pixels between the windows of the lattice.
    count : int or None
        Windows that are taken in all; by default those of the lattice, and of the objects their share.
    objects : float
        Share of the windows that are centred on objects, as far as there are objects.
    snr : float
        Least signal to noise of these objects, in the band on which they are found.
    complete : float
        Least share of a window's pixels with data in all bands of both ends.
    seed : int
        Of the lattice's phase in each tile, of the choice, and of the order of tiles.
    """

    held_back: HeldBack
    size: int = 64
    stride: int = 64
    count: int | None = None
    objects: float = 0.5
    snr: float = 10.0
    complete: float = 0.5
    seed: int = 0

    @property
    def document(self) -> dict[str, Any]:
        """Everything, JSON-like."""
        return asdict(self)


def windows_of(tile: Tile, problem: ProblemTable, how: Cutting) -> pa.Table:
    """The windows that lie wholly in the core of a tile: rows of `pair_labels_schema`.

    Those on both sides of the border of what is held back are left out, and so are those with too little data.
    """
    schema = pair_labels_schema(problem)
    lattice = _lattice(tile, how)
    parts = [_columns(tile, lattice, lattice + (how.size - 1) / 2, centred=False)]
    if problem["catalog"] is not None and how.objects > 0:
        parts.append(_on_objects(tile, problem, how))
    image = next(iter(tile.images.values()))
    usable = np.logical_and.reduce([image.valid.all(0) for image in tile.images.values()])
    tables = []
    for columns in parts:
        y0, x0 = columns["y0"] - tile.origin[0], columns["x0"] - tile.origin[1]
        share = _box_means(usable, y0, x0, how.size)
        held, free = how.held_back.windows(image.wcs, y0, x0, how.size)
        columns |= {"complete": share.astype(np.float32), "held_back": held}
        keep = pa.array((held | free) & (share >= how.complete) & (share > 0))
        tables.append(conform(pa.table(columns), schema, "windows").filter(keep))
    return pa.concat_tables(tables)


def _lattice(tile: Tile, how: Cutting) -> NDArray[np.int64]:
    """First pixels (y, x) of a lattice of windows in the core, in the tile's arrays, int64 [N, 2], of a drawn phase."""
    rng = np.random.default_rng((how.seed, zlib.crc32(tile.tile_id.encode())))
    y0, y1, x0, x1 = tile.core
    axes = []
    for first, stop in ((y0, y1), (x0, x1)):
        room = stop - first - how.size
        phase = int(rng.integers(0, room % how.stride + 1)) if room >= 0 else 0
        axes.append(np.arange(first + phase, stop - how.size + 1, how.stride, dtype=np.int64))
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def _on_objects(tile: Tile, problem: ProblemTable, how: Cutting) -> dict[str, Any]:
    """Columns of the windows centred on objects, with what is measured on them."""
    from surveybridge.jobs.translating.candidates import measured
    from surveybridge.jobs.translating.sources import find_sources
    from surveybridge.storage.schema import detection_column

    found = find_sources(tile.images[str(problem["catalog"])], tile.core, SCHEMA_VERSION)
    columns: dict[str, Any] = found.columns | measured(tile, found, problem, SCHEMA_VERSION)
    centre = np.stack([found.sources.y, found.sources.x], axis=1)
    corner = np.floor(centre + 0.5).astype(np.int64) - how.size // 2
    y0, y1, x0, x1 = tile.core
    inside = ((corner >= (y0, x0)) & (corner + how.size <= (y1, x1))).all(1)
    with np.errstate(invalid="ignore"):
        keep = inside & (np.asarray(columns[f"snr_{detection_column(problem)}"]) >= how.snr)
    known = set(pair_labels_schema(problem).names)
    chosen = {name: np.asarray(values)[keep] for name, values in columns.items() if name in known}
    return chosen | _columns(tile, corner[keep], centre[keep], centred=True)


def _columns(tile: Tile, corner: NDArray[np.int64], centre: NDArray[Any], *, centred: bool) -> dict[str, Any]:
    """Columns of where windows are; `corner` and `centre` (y, x) in the tile's arrays, [N, 2]."""
    count = len(corner)
    ra, dec = next(iter(tile.images.values())).wcs.all_pix2world(centre[:, 1], centre[:, 0], 0) if count else ([], [])
    (y0, x0), (y, x) = (values.T + np.array(tile.origin)[:, None] for values in (corner, centre))
    return {
        "id": [f"{tile.tile_id}-{line}-{column}" for line, column in zip(y0, x0, strict=True)],
        "tile_id": pa.array([tile.tile_id] * count, pa.string()),
        "field": pa.array([tile.field] * count, pa.string()),
        "ra": np.asarray(ra, np.float64),
        "dec": np.asarray(dec, np.float64),
        "_healpix_29": healpix_29(ra, dec),
        "x": np.asarray(x, np.float64),
        "y": np.asarray(y, np.float64),
        "x0": x0,
        "y0": y0,
        "centred": np.full(count, centred),
    }


def _box_means(values: NDArray[np.bool_], y0: NDArray[np.int64], x0: NDArray[np.int64], size: int) -> NDArray[Any]:
    """Mean of an array over squares, by their first pixels, from its sums to the left and above."""
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    sums[1:, 1:] = values.cumsum(0).cumsum(1)
    y1, x1 = y0 + size, x0 + size
    return np.asarray((sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]) / size**2)
