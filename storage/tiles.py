"""The tile store: co-registered images of two surveys, a Zarr v3 group per tile and a Parquet manifest.

Layout below the store's URL::

    zarr.json                                   attributes: what this is, format version, grid_id
    tiles/<tile_id>/                            attributes: core, origin, grid_id, format version; the metadata of all
                                                below (consolidated): one request, and one for each array
    tiles/<tile_id>/<survey>/                   attributes: WCS header, bands, PSF, pixel scale, mask planes, provenance
    tiles/<tile_id>/<survey>/{flux,variance,mask}   [C, H, W], one shard each: one read of a worker
    manifest.parquet                            written last: a store without it is an ingest that did not finish
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from surveybridge.storage.errors import DamagedData, StorageError
from surveybridge.storage.grids import shifted_header
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.objectstore import Folder, check_name
from surveybridge.storage.parquet import parquet_bytes, read_parquet
from surveybridge.storage.schema import MANIFEST, conform, table_from_rows
from surveybridge.storage.shards import SHARD_KEY
from surveybridge.storage.sky import healpix_29
from surveybridge.storage.tile_arrays import array_paths, check_pixels, crop_image, read_image, write_image

FORMAT = "surveybridge-tiles"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Tile:
    """A survey cell: core and halo of the surveys on one pixel grid.

    Parameters
    ----------
    tile_id : str
        Letters, digits and `_ . + -`.
    images : mapping of str to SurveyImage
        By survey, the problem's endpoints in their order: same [H, W], same WCS. A survey without data here is left
        out.
    core : (y0, y1, x0, x1)
        What the tile owns, half-open, in pixels of these arrays.
    origin : (y, x)
        Global pixel, in grid `grid_id`, of array pixel [0, 0].
    grid_id : str
        The global pixel grid.
    """

    tile_id: str
    images: Mapping[str, SurveyImage]
    core: tuple[int, int, int, int]
    origin: tuple[int, int]
    grid_id: str

    def __post_init__(self) -> None:
        """Refuse a tile whose parts do not fit together."""
        check_name(self.tile_id, "tile id")
        if not self.images:
            raise StorageError(f"tile {self.tile_id}: no survey has an image; give at least one")
        for name, image in self.images.items():
            if name != image.survey:
                raise StorageError(
                    f"tile {self.tile_id}: the image of {image.survey} is given as {name}; give each its own name"
                )
        shapes = [(name, image.flux.shape[1:]) for name, image in self.images.items()]
        for name, shape in shapes[1:]:
            if shape != shapes[0][1]:
                raise StorageError(
                    f"tile {self.tile_id}: {shapes[0][0]} is {shapes[0][1]} but {name} {shape} pixels; "
                    "co-register both onto one grid"
                )
        y0, y1, x0, x1 = self.core
        height, width = self.shape
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise StorageError(
                f"tile {self.tile_id}: core {self.core} (y0,y1,x0,x1) does not lie inside the array of "
                f"{height} x {width} pixels"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the arrays: core and halo."""
        height, width = next(iter(self.images.values())).flux.shape[1:]
        return int(height), int(width)

    @property
    def core_origin(self) -> tuple[int, int]:
        """Global pixel (y, x) of the core's corner."""
        return self.origin[0] + self.core[0], self.origin[1] + self.core[2]

    @property
    def core_shape(self) -> tuple[int, int]:
        """Height and width of the core."""
        y0, y1, x0, x1 = self.core
        return y1 - y0, x1 - x0

    def crop(self, box: tuple[int, int, int, int]) -> Tile:
        """Return the pixels `box` = (y0, y1, x0, x1) as a tile, which owns the part of the core inside it.

        Raises
        ------
        StorageError
            If the box reaches beyond the arrays, or holds nothing of the core.
        """
        height, width = self.shape
        y0, y1, x0, x1 = box
        core = (max(self.core[0], y0), min(self.core[1], y1), max(self.core[2], x0), min(self.core[3], x1))
        inside = min(y0, x0) >= 0 and y1 <= height and x1 <= width
        if not (inside and core[0] < core[1] and core[2] < core[3]):
            raise StorageError(
                f"tile {self.tile_id}: the part {box} (y0,y1,x0,x1) of {height} x {width} pixels with core "
                f"{self.core}; give a box inside that touches the core"
            )
        return replace(
            self,
            images={name: crop_image(image, box) for name, image in self.images.items()},
            core=(core[0] - y0, core[1] - y0, core[2] - x0, core[3] - x0),
            origin=(self.origin[0] + y0, self.origin[1] + x0),
        )


class TileStore:
    """Tiles at a URL. Make one with `create` or `open`; it is picklable and opens its files where it is used."""

    def __init__(self, folder: Folder, grid_id: str) -> None:
        self.folder = folder
        self.grid_id = grid_id

    @property
    def url(self) -> str:
        """Return the URL of the store."""
        return self.folder.url

    @classmethod
    def create(
        cls, url: str | os.PathLike[str], *, grid_id: str, storage_options: Mapping[str, Any] | None = None
    ) -> TileStore:
        """Start a store, or start over in one of the same grid (its manifest goes, its tiles are rewritten).

        Raises
        ------
        StorageError
            If something else stands at `url`, or a store of another grid.
        """
        folder = Folder.at(url, storage_options)
        attributes = _root_attributes(folder)
        if attributes is None and (folder.names() or (folder.is_local and os.path.isfile(folder.path()))):
            raise StorageError(
                f"{folder.url} is {folder.describe()}, neither empty nor a tile store; give another --store URL"
            )
        if attributes is not None and attributes["grid_id"] != grid_id:
            raise StorageError(
                f"{folder.url} holds tiles of grid {attributes['grid_id']!r}, these are of grid {grid_id!r}; "
                "give another --store URL"
            )
        if attributes is not None:
            folder.delete("manifest.parquet")
        else:
            root = {"format": FORMAT, "format_version": FORMAT_VERSION, "grid_id": grid_id}
            folder.put_json({"zarr_format": 3, "node_type": "group", "attributes": root}, "zarr.json")
        return cls(folder, grid_id)

    @classmethod
    def open(cls, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> TileStore:
        """Open a store for reading.

        Raises
        ------
        StorageError
            If `url` holds something else (the message says what), or a newer format.
        """
        folder = Folder.at(url, storage_options)
        attributes = _root_attributes(folder)
        if attributes is None:
            raise StorageError(
                f"{folder.url} is not a tile store: found {folder.describe()}; make one with `surveybridge ingest`"
            )
        return cls(folder, str(attributes["grid_id"]))

    def write_tile(self, tile: Tile) -> dict[str, Any]:
        """Write one tile over whatever has its name, and return its manifest row.

        Raises
        ------
        StorageError
            If the tile is of another grid, or has flux that is not finite where the mask says there is data.
        """
        if tile.grid_id != self.grid_id:
            raise StorageError(
                f"tile {tile.tile_id} is of grid {tile.grid_id!r} but {self.url} of grid {self.grid_id!r}; "
                "use one store per grid"
            )
        for image in tile.images.values():
            check_pixels(tile.tile_id, image)
        files = _tile_files(tile)
        head = files.pop("zarr.json")
        at = f"tiles/{tile.tile_id}"
        if self.folder.names(at):
            self.folder.delete(at, "zarr.json")  # first: a reader finds the old tile, none, or the new one
            self.folder.delete_below(at)
        self.folder.put_many({f"{at}/{path}": data for path, data in files.items()})
        self.folder.put(head, at, "zarr.json")
        return manifest_row(tile)

    def read_tile(self, tile_id: str, halo: int | None = None) -> Tile:
        """Read a tile.

        Parameters
        ----------
        tile_id : str
            As in the manifest.
        halo : int or None
            Pixels around the core; None = all that is stored. Never more than is stored.

        Raises
        ------
        StorageError
            If there is no such tile, or a chunk is missing or fails its checksum.
        """
        check_name(tile_id, "tile id")
        try:
            attributes, images = self._read_images(tile_id)
        except DamagedData:
            attributes, images = self._read_images(tile_id)  # the damage may have happened on the way
        y0, y1, x0, x1 = (int(n) for n in attributes["core"])
        origin_y, origin_x = (int(n) for n in attributes["origin"])
        tile = Tile(tile_id, images, (y0, y1, x0, x1), (origin_y, origin_x), str(attributes["grid_id"]))
        if halo is None:
            return tile
        height, width = tile.shape
        return tile.crop((max(y0 - halo, 0), min(y1 + halo, height), max(x0 - halo, 0), min(x1 + halo, width)))

    def _read_images(self, tile_id: str) -> tuple[dict[str, Any], dict[str, SurveyImage]]:
        """Attributes and surveys of a tile: one request, and then one for each array, concurrently."""
        at = f"tiles/{tile_id}"
        try:
            head = _parse(self.folder.read(at, "zarr.json"), tile_id)
        except FileNotFoundError as error:
            raise StorageError(f"tile {tile_id}: not in {self.url}; ingest it again") from error
        try:
            attributes: dict[str, Any] = head["attributes"]
            surveys = [check_name(str(name), "survey") for name in attributes["surveys"]]
        except KeyError as error:
            raise DamagedData(f"tile {tile_id} lacks {error} in its zarr.json; ingest the tile again") from error
        arrays = [path for survey in surveys for path in array_paths(survey)]
        # Whole shards even for a small halo: one request each, and the chunks' checksums are all looked at.
        wanted = [f"{at}/{path}/{SHARD_KEY}" for path in arrays]
        metadata = (head.get("consolidated_metadata") or {}).get("metadata")
        if metadata is None:  # a store of before 0.2: the metadata lies with each array
            wanted += [f"{at}/{path}/zarr.json" for path in (*surveys, *arrays)]
        found = {path.removeprefix(f"{at}/"): data for path, data in self.folder.read_existing(wanted).items()}
        if metadata is None:
            metadata = {
                path.removesuffix("/zarr.json"): _parse(data, tile_id)
                for path, data in found.items()
                if path.endswith("/zarr.json")
            }
        shards = {path.removesuffix(f"/{SHARD_KEY}"): data for path, data in found.items()}
        return attributes, {name: read_image(metadata, shards, name, tile_id) for name in surveys}

    def manifest(self) -> pa.Table:
        """The tiles, schema `MANIFEST`, sorted by tile_id; StorageError if ingest has not finished.

        Columns that an older store lacks are null.
        """
        try:
            found = read_parquet(self.folder.read("manifest.parquet"))
        except FileNotFoundError as error:
            raise StorageError(
                f"{self.url} has no manifest: its ingest did not finish; run `surveybridge ingest` again"
            ) from error
        return conform(found, MANIFEST, f"manifest of {self.url}")

    def write_manifest(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the manifest, atomically and last, from the rows that `write_tile` returned."""
        ordered = sorted(rows, key=lambda row: str(row["tile_id"]))
        for before, after in itertools.pairwise(ordered):
            if before["tile_id"] == after["tile_id"]:
                raise StorageError(f"manifest: tile {after['tile_id']} appears twice; tile ids must be unique")
        table = table_from_rows(ordered, MANIFEST, "manifest rows")
        self.folder.put(parquet_bytes(table, {"surveybridge.grid_id": self.grid_id}), "manifest.parquet")


def manifest_row(tile: Tile) -> dict[str, Any]:
    """The tile's row of `MANIFEST`; ra and dec are the centre of the core, ICRS deg."""
    y0, y1, x0, x1 = tile.core
    image = next(iter(tile.images.values()))
    ra, dec = (float(v) for v in image.wcs.all_pix2world((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2, 0))
    return {
        "tile_id": tile.tile_id,
        "ra": ra,
        "dec": dec,
        "_healpix_29": int(healpix_29(ra, dec)[0]),
        "height": tile.shape[0],
        "width": tile.shape[1],
        "core_height": tile.core_shape[0],
        "core_width": tile.core_shape[1],
        "surveys": list(tile.images),
        "bytes": sum(int(array.nbytes) for array in _arrays(tile)),
        "content": tile_content(tile),
        "grid_id": tile.grid_id,
    }


def tile_content(tile: Tile) -> str:
    """SHA-256 over the shapes and bytes of all arrays of a tile read whole, hexadecimal."""
    digest = hashlib.sha256()
    for array in _arrays(tile):
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _arrays(tile: Tile) -> list[NDArray[Any]]:
    return [array for image in tile.images.values() for array in (image.flux, image.variance, image.mask)]


def _tile_files(tile: Tile) -> dict[str, bytes]:
    """The files of a tile by path: Zarr encodes in memory, so that storing them is our own (order, retries)."""
    contents: dict[str, Buffer] = {}
    group = zarr.create_group(
        MemoryStore(contents),
        attributes={
            "format_version": FORMAT_VERSION,
            "core": list(tile.core),
            "origin": list(tile.origin),
            "grid_id": tile.grid_id,
            "surveys": list(tile.images),
        },
    )
    for image in tile.images.values():
        write_image(group, image)
    files = {path: data.to_bytes() for path, data in contents.items()}
    below = {
        path.removesuffix("/zarr.json"): json.loads(data)
        for path, data in sorted(files.items())
        if path.endswith("/zarr.json")
    }
    # As zarr.consolidate_metadata writes it; other readers may leave it aside.
    consolidated = {"kind": "inline", "must_understand": False, "metadata": below}
    head = json.loads(files["zarr.json"]) | {"consolidated_metadata": consolidated}
    return files | {"zarr.json": json.dumps(head).encode()}


def _parse(data: bytes, tile_id: str) -> dict[str, Any]:
    """A zarr.json document."""
    try:
        document: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise DamagedData(f"tile {tile_id}: a zarr.json is not JSON ({error}); ingest the tile again") from error
    return document


def _root_attributes(folder: Folder) -> dict[str, Any] | None:
    """Return the attributes of a store's root, None if there is no tile store; StorageError for a newer format."""
    try:
        document = json.loads(folder.read("zarr.json"))
        attributes: dict[str, Any] = dict(document["attributes"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):  # nothing there, or not Zarr's
        return None
    if attributes.get("format") != FORMAT:
        return None
    version = attributes.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise StorageError(
            f"{folder.url} has tile format version {version} but this program reads up to {FORMAT_VERSION}; "
            "update surveybridge"
        )
    return attributes


def part_of(tile: Tile, side: int) -> Tile:
    """Return the middle of a tile, with a core of limited size and the tile's halo around it."""
    y0, y1, x0, x1 = tile.core
    height, width = min(y1 - y0, side), min(x1 - x0, side)
    halo = max(y0, x0, tile.shape[0] - y1, tile.shape[1] - x1)
    top, left = (y0 + y1 - height) // 2, (x0 + x1 - width) // 2
    if (height, width) == tile.core_shape:
        return tile
    box = (
        max(top - halo, 0),
        min(top + height + halo, tile.shape[0]),
        max(left - halo, 0),
        min(left + width + halo, tile.shape[1]),
    )
    # what the part owns is smaller still: around it lies a halo, as around the tile
    core = (top - box[0], top - box[0] + height, left - box[2], left - box[2] + width)
    return replace(tile.crop(box), core=core)


def core_header(tile: Tile) -> str:
    """WCS header of the tile's core."""
    image = next(iter(tile.images.values()))
    return shifted_header(image.wcs_header, tile.core[0], tile.core[2])
