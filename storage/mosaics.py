"""Mosaics as Parquet: a tile's planes cut into rows of pixel cells, and back."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.wcs import Sip
from numpy.typing import NDArray

from surveybridge.storage.celestial import celestial_wcs, wcs_header_string
from surveybridge.storage.errors import StorageError
from surveybridge.storage.parquet import parquet_bytes, read_parquet
from surveybridge.storage.schema import CELL, SCHEMA_VERSION, VERSION_KEY, mosaic_schema
from surveybridge.storage.sky import healpix_29

_FOOTER = b"surveybridge.mosaic"


@dataclass(frozen=True)
class TileMosaic:
    """The translated core of one tile.

    Parameters
    ----------
    tile_id : str
        The tile.
    wcs_header : str
        WCS of these arrays (the core, not the halo), pixel [0, 0] of `mean` being FITS pixel (1, 1).
    bands : tuple of str
        Bands of the translated survey.
    mean, std : float32 [C, H, W]
        Posterior mean and standard deviation, in `unit`; NaN where unknown.
    coverage : float32 [H, W]
        Share of observed input, 0..1.
    core_origin : (y, x)
        Global pixel, in grid `grid_id`, of array pixel [0, 0].
    grid_id : str
        The global pixel grid.
    unit : str
        Of mean and std, as FITS writes it.
    recalibration : mapping, optional
        What `std` was multiplied by, a function of the mean by band, and where that comes from; None: std is the
        model's own.
    domain : str or None
        Whether the images were such as the checkpoint was trained on: "in", or "out: " and why; None where not stated.
    """

    tile_id: str
    wcs_header: str
    bands: tuple[str, ...]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    coverage: NDArray[np.float32]
    core_origin: tuple[int, int]
    grid_id: str
    unit: str = "nJy"
    recalibration: Mapping[str, Any] | None = None
    domain: str | None = None

    def __post_init__(self) -> None:
        """Refuse planes that do not fit together."""
        shape = (len(self.bands), *self.coverage.shape)
        if self.coverage.ndim != 2 or self.mean.shape != shape or self.std.shape != shape:
            raise StorageError(
                f"mosaic of tile {self.tile_id}: mean {self.mean.shape}, std {self.std.shape} and coverage "
                f"{self.coverage.shape} with bands {','.join(self.bands)}; give [C,H,W], [C,H,W] and [H,W]"
            )


@dataclass(frozen=True)
class MosaicHeader:
    """The footer of a mosaic file: everything but the pixels."""

    tile_id: str
    wcs_header: str
    bands: tuple[str, ...]
    core_origin: tuple[int, int]
    shape: tuple[int, int]
    grid_id: str
    unit: str = "nJy"
    recalibration: Mapping[str, Any] | None = None
    domain: str | None = None


def encode(mosaic: TileMosaic, version: int = SCHEMA_VERSION) -> bytes:
    """Parquet file of a tile's mosaic, as runs of a schema version have it; equal mosaics give equal bytes."""
    height, width = mosaic.coverage.shape
    rows, columns = -(-height // CELL), -(-width // CELL)
    y, x = (grid.ravel() * CELL for grid in np.mgrid[:rows, :columns])
    cell_height, cell_width = np.minimum(CELL, height - y), np.minimum(CELL, width - x)
    ra, dec = celestial_wcs(mosaic.wcs_header).all_pix2world(x + (cell_width - 1) / 2, y + (cell_height - 1) / 2, 0)
    schema = mosaic_schema(mosaic.bands, mosaic.unit)
    table = pa.Table.from_arrays(
        [
            pa.array([mosaic.tile_id] * len(y), pa.string()),
            pa.array(x + mosaic.core_origin[1], pa.int64()),
            pa.array(y + mosaic.core_origin[0], pa.int64()),
            pa.array(cell_height, pa.int32()),
            pa.array(cell_width, pa.int32()),
            pa.array(ra, pa.float64()),
            pa.array(dec, pa.float64()),
            pa.array(healpix_29(ra, dec), pa.int64()),
            _tensors(_cells(mosaic.mean, np.nan), schema.field("mean").type),
            _tensors(_cells(mosaic.std, np.nan), schema.field("std").type),
            _tensors(_cells(mosaic.coverage[None], 0.0)[:, 0], schema.field("coverage").type),
        ],
        schema=schema,
    )
    footer = {
        "tile_id": mosaic.tile_id,
        "wcs_header": mosaic.wcs_header,
        "bands": list(mosaic.bands),
        "core_origin": list(mosaic.core_origin),
        "shape": [height, width],
        "grid_id": mosaic.grid_id,
        **({} if mosaic.unit == "nJy" else {"unit": mosaic.unit}),
        **({} if mosaic.recalibration is None else {"recalibration": mosaic.recalibration}),
        **({} if mosaic.domain is None else {"domain": mosaic.domain}),
    }
    stated = {_FOOTER.decode(): json.dumps(footer, sort_keys=True), VERSION_KEY.decode(): str(version)}
    return parquet_bytes(table, stated)


def decode(data: bytes) -> TileMosaic:
    """Inverse of `encode`."""
    header = decode_header(io.BytesIO(data))
    table = read_parquet(data)
    height, width = header.shape
    x, y = (table.column(name).to_numpy() for name in ("x", "y"))
    y, x = y - header.core_origin[0], x - header.core_origin[1]
    mean, std, coverage = (_planes(table.column(name), y, x, (height, width)) for name in ("mean", "std", "coverage"))
    return TileMosaic(
        header.tile_id,
        header.wcs_header,
        header.bands,
        mean,
        std,
        coverage[0],
        header.core_origin,
        header.grid_id,
        header.unit,
        header.recalibration,
        header.domain,
    )


def decode_header(file: IO[bytes]) -> MosaicHeader:
    """Footer of a mosaic file; StorageError if the file is not a mosaic."""
    metadata = pq.read_schema(file).metadata or {}
    if _FOOTER not in metadata:
        raise StorageError("Parquet file without a SurveyBridge mosaic footer; was it rewritten by another program?")
    footer: dict[str, Any] = json.loads(metadata[_FOOTER])
    return MosaicHeader(
        footer["tile_id"],
        footer["wcs_header"],
        tuple(footer["bands"]),
        (int(footer["core_origin"][0]), int(footer["core_origin"][1])),
        (int(footer["shape"][0]), int(footer["shape"][1])),
        footer["grid_id"],
        footer.get("unit", "nJy"),
        footer.get("recalibration"),
        footer.get("domain"),
    )


class StitchedMosaic(NamedTuple):
    """Several tiles in one array: mean, std [C, H, W] in `unit`, coverage [H, W], and the WCS of these arrays."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    coverage: NDArray[np.float32]
    wcs_header: str
    unit: str = "nJy"


def stitch(
    headers: Sequence[MosaicHeader],
    read: Callable[[str], TileMosaic],
    region: tuple[int, int, int, int] | None = None,
    max_bytes: int = 4 << 30,
) -> StitchedMosaic:
    """Put tiles side by side by their place in the global grid; NaN and coverage 0 where there is none.

    Parameters
    ----------
    headers : sequence of MosaicHeader
        At least one; all of one grid and the same bands.
    read : callable
        Gives the mosaic of a tile id; called for tiles that touch the region only.
    region : (y0, y1, x0, x1), optional
        Global pixels, half-open; default the box around all tiles.
    max_bytes : int
        Refuse before reading if the result would be larger.
    """
    first = headers[0]
    for header in headers:
        if (header.grid_id, header.bands, header.unit) != (first.grid_id, first.bands, first.unit):
            raise StorageError(
                f"tiles {first.tile_id} and {header.tile_id} are of grid {first.grid_id!r} {first.bands} and "
                f"{header.grid_id!r} {header.bands}, in {first.unit} and {header.unit}; stitch runs of one grid"
            )
    y0, y1, x0, x1 = region or (
        min(h.core_origin[0] for h in headers),
        max(h.core_origin[0] + h.shape[0] for h in headers),
        min(h.core_origin[1] for h in headers),
        max(h.core_origin[1] + h.shape[1] for h in headers),
    )
    height, width, n_bands = y1 - y0, x1 - x0, len(first.bands)
    size = 4 * (2 * n_bands + 1) * max(height, 0) * max(width, 0)
    if not 0 < size <= max_bytes:
        raise StorageError(
            f"stitching {height} x {width} px needs {size / 2**20:.3f} MiB, allowed are {max_bytes / 2**20:.3f} MiB; "
            "give a smaller (and not empty) region"
        )
    mean = np.full((n_bands, height, width), np.nan, np.float32)
    std = np.full_like(mean, np.nan)
    coverage = np.zeros((height, width), np.float32)
    for header in headers:
        top, left = header.core_origin[0] - y0, header.core_origin[1] - x0
        bottom, right = top + header.shape[0], left + header.shape[1]
        if bottom <= 0 or right <= 0 or top >= height or left >= width:
            continue
        tile = read(header.tile_id)
        there = (slice(max(top, 0), bottom), slice(max(left, 0), right))
        here = (slice(max(-top, 0), height - top), slice(max(-left, 0), width - left))
        mean[:, *there] = tile.mean[:, *here]
        std[:, *there] = tile.std[:, *here]
        coverage[there] = tile.coverage[here]
    wcs_header = header_from(first.wcs_header, y0 - first.core_origin[0], x0 - first.core_origin[1])
    return StitchedMosaic(mean, std, coverage, wcs_header, first.unit)


def header_from(wcs_header: str, y: int, x: int) -> str:
    """WCS of an array that starts at pixel (y, x) of the array of `wcs_header`, which may be before its beginning."""
    wcs = celestial_wcs(wcs_header)
    wcs.wcs.crpix -= (x, y)
    if wcs.sip is not None:
        wcs.sip = Sip(wcs.sip.a, wcs.sip.b, wcs.sip.ap, wcs.sip.bp, wcs.sip.crpix - (x, y))
    return wcs_header_string(wcs)


def _cells(planes: NDArray[np.float32], padding: float) -> NDArray[np.float32]:
    """Planes [C, H, W] as cells [rows * columns, C, CELL, CELL], row by row."""
    n_bands, height, width = planes.shape
    rows, columns = -(-height // CELL), -(-width // CELL)
    padded = np.full((n_bands, rows * CELL, columns * CELL), padding, np.float32)
    padded[:, :height, :width] = planes
    cells = padded.reshape(n_bands, rows, CELL, columns, CELL).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(cells.reshape(rows * columns, n_bands, CELL, CELL))


def _tensors(cells: NDArray[np.float32], kind: pa.DataType) -> pa.Array:
    storage = pa.FixedSizeListArray.from_arrays(pa.array(cells.ravel()), kind.storage_type.list_size)
    return pa.ExtensionArray.from_storage(kind, storage)


def _planes(
    column: pa.ChunkedArray, y: NDArray[np.int64], x: NDArray[np.int64], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Cells put back in their places: float32 [C, H, W]."""
    cells = column.combine_chunks()
    flat = (cells.chunk(0) if isinstance(cells, pa.ChunkedArray) else cells).storage.flatten().to_numpy()
    stack = flat.reshape(len(y), -1, CELL, CELL)
    rows, columns = -(-shape[0] // CELL), -(-shape[1] // CELL)
    padded = np.full((stack.shape[1], rows * CELL, columns * CELL), np.nan, np.float32)
    for corner_y, corner_x, cell in zip(y, x, stack, strict=True):
        padded[:, corner_y : corner_y + CELL, corner_x : corner_x + CELL] = cell
    return np.ascontiguousarray(padded[:, : shape[0], : shape[1]])
