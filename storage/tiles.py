"""The tile store: co-registered images of two surveys, a Zarr v3 group per tile and a Parquet manifest.

Layout below the store's URL::

    zarr.json                                   attributes: what this is, format version
    tiles/zarr.json                             a group, so that any Zarr reader finds the tiles from the root
    tiles/<name>/                               a tile; attributes: core, origin, field, grid_id, format version; and
                                                the metadata of all below: one request, and one for each array
    tiles/<name>/<survey>/                      attributes: WCS header, bands, PSF, pixel scale, mask planes, provenance
    tiles/<name>/<survey>/{flux,variance,mask}  [C, H, W], one shard each: one read of a worker
    manifest.parquet                            the tiles, each with its group; in the footer the fields with their
                                                grids, and what the store is known by wherever it lies. Written last:
                                                a store without it is an ingest that did not finish
    lease.json                                  who ingests into it

Readers go by the manifest alone. <name> is the tile's id; a tile that takes the place of one that the manifest lists
has another, so that the previous manifest stays true until it is replaced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from surveybridge.storage.errors import DamagedData, StorageError, StorageUnavailable
from surveybridge.storage.fields import FieldGrid
from surveybridge.storage.grids import shifted_header
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.manifests import (
    TILES,
    Place,
    content_digest,
    footer_of,
    implied_field,
    manifest_table,
    of_one_grid,
    places_of,
    store_id_of,
    with_footer,
)
from surveybridge.storage.mosaics import header_from
from surveybridge.storage.objectstore import Folder, check_name
from surveybridge.storage.parquet import parquet_bytes, read_parquet
from surveybridge.storage.psf import PsfImage
from surveybridge.storage.schema import MANIFEST, conform
from surveybridge.storage.sky import healpix_29
from surveybridge.storage.tile_arrays import (
    check_pixels,
    crop_image,
    image_of,
    read_group,
    stated_noise,
    tile_files,
)

FORMAT = "surveybridge-tiles"
FORMAT_VERSION = 2
"""1: all tiles of one grid, which each of them states. 2: fields with a grid each, as the manifest says."""

MANIFEST_FILE = "manifest.parquet"


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
    field : str
        The field of the store that it belongs to; by default named after its grid.
    seen : mapping of str to SurveyImage
        What a network is shown instead of the image of that survey, such as a homogenised one; never stored.
    registration : float
        Typical offset between the surveys along one axis, arcsec, as measured for a network; NaN where it was not;
        never stored.
    """

    tile_id: str
    images: Mapping[str, SurveyImage]
    core: tuple[int, int, int, int]
    origin: tuple[int, int]
    grid_id: str
    field: str = ""
    seen: Mapping[str, SurveyImage] = dataclasses.field(default_factory=dict)
    registration: float = math.nan

    def __post_init__(self) -> None:
        """Refuse a tile whose parts do not fit together."""
        check_name(self.tile_id, "tile id")
        if not self.field:
            object.__setattr__(self, "field", self.grid_id)
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
    def shown(self) -> dict[str, SurveyImage]:
        """The images by survey, as a network is shown them."""
        return {**self.images, **self.seen}

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

    @property
    def domain(self) -> str | None:
        """Whether its images are what models are trained on ("in", or "out: " and why); None where not stated."""
        said = dict.fromkeys(image.provenance.get("domain") for image in self.images.values())
        return "; ".join(text for text in said if text is not None) or None

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
            seen={name: crop_image(image, box) for name, image in self.seen.items()},
            core=(core[0] - y0, core[1] - y0, core[2] - x0, core[3] - x0),
            origin=(self.origin[0] + y0, self.origin[1] + x0),
        )


class TileStore:
    """Tiles at a URL. Make one with `create` or `open`; it is picklable and opens its files where it is used."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._places: dict[str, Place] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the folder only: another process reads the manifest for itself."""
        return (type(self), (self.folder,))

    @property
    def url(self) -> str:
        """Return the URL of the store."""
        return self.folder.url

    @classmethod
    def create(cls, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> TileStore:
        """Start a store, or open the one that is there to change it.

        Raises
        ------
        StorageError
            If something else stands at `url`, or a newer format.
        """
        folder = Folder.at(url, storage_options)
        if cls.may_be_at(folder) is None:
            _put_root(folder)
        return cls(folder)

    @classmethod
    def may_be_at(cls, folder: Folder) -> TileStore | None:
        """Return the store at a place, or None where one can be made; StorageError as `create`."""
        if _format_version(folder) is not None:
            return cls(folder)
        names = folder.names()
        begun = names == [TILES] and folder.names(TILES) in ([], ["zarr.json"])  # by who was killed in `_put_root`
        if (names and not begun) or (folder.is_local and os.path.isfile(folder.path())):
            raise StorageError(
                f"{folder.url} is {folder.describe()}, neither empty nor a tile store; give another place"
            )
        return None

    @classmethod
    def open(cls, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> TileStore:
        """Open a store for reading.

        Raises
        ------
        StorageError
            If `url` holds something else (the message says what), or a newer format.
        """
        folder = Folder.at(url, storage_options)
        if _format_version(folder) is None:
            raise StorageError(
                f"{folder.url} is not a tile store: found {folder.describe()}; make one with `surveybridge ingest`"
            )
        return cls(folder)

    def write_tile(self, tile: Tile) -> dict[str, Any]:
        """Write one tile, and return its manifest row; it counts once a manifest lists it.

        A tile of the same id that the manifest of now lists stays as it is: the new one gets a group of its own, or
        none where both are the same to the byte.

        Raises
        ------
        StorageError
            If it has flux that is not finite where the mask says there is data.
        """
        for image in tile.images.values():
            check_pixels(tile.tile_id, image)
        attributes = {
            "format_version": FORMAT_VERSION,
            "core": list(tile.core),
            "origin": list(tile.origin),
            "field": tile.field,
            "grid_id": tile.grid_id,
            "surveys": list(tile.images),
        }
        files = tile_files(tile.images, attributes)
        row = manifest_row(tile)
        group = f"{TILES}/{tile.tile_id}"
        listed = (self._listed() or {}).get(tile.tile_id)
        if listed is not None and listed.content == row["content"] and self._holds(listed.group, files):
            return row | {"group": listed.group}
        if listed is not None and listed.group == group:
            digest = hashlib.sha256(files["zarr.json"] + row["content"].encode())
            group = f"{group}.{digest.hexdigest()[:12]}"
        head = files.pop("zarr.json")
        if self.folder.names(group):
            self.folder.delete(group, "zarr.json")  # first: a tile is there whole, or not at all
            self.folder.delete_below(group)
        self.folder.put_many({f"{group}/{path}": data for path, data in files.items()})
        self.folder.put(head, group, "zarr.json")
        return row | {"group": group}

    def _holds(self, group: str, files: Mapping[str, bytes]) -> bool:
        """Return whether a group consists of these files."""
        wanted = {f"{group}/{path}": data for path, data in files.items()}
        return self.folder.read_existing(list(wanted)) == wanted

    def read_tile(self, tile_id: str, halo: int | None = None) -> Tile:
        """Read a tile.

        Parameters
        ----------
        tile_id : str
            As in the manifest; of a store that has none yet, one that was written.
        halo : int or None
            Pixels around the core; None = all that is stored. Never more than is stored.

        Raises
        ------
        StorageError
            If there is no such tile, or a chunk is missing or fails its checksum.
        StorageUnavailable
            If another tile has taken its place since this object read the manifest.
        """
        check_name(tile_id, "tile id")
        places = self._listed()
        if places is not None and tile_id not in places:
            raise StorageError(f"tile {tile_id}: not in {self.url}; ingest it again")
        group = f"{TILES}/{tile_id}" if places is None else places[tile_id].group
        try:
            tile = self._read(tile_id, group)
        except DamagedData:
            tile = self._read(tile_id, group)  # the damage may have happened on the way
        if halo is None:
            return tile
        (y0, y1, x0, x1), (height, width) = tile.core, tile.shape
        return tile.crop((max(y0 - halo, 0), min(y1 + halo, height), max(x0 - halo, 0), min(x1 + halo, width)))

    def stated(self, tile_ids: Sequence[str]) -> dict[str, dict[str, tuple[SurveyImage, tuple[float, ...]]]]:
        """The images by tile and survey without pixels, and their noise: one request a tile, many at a time.

        Tiles that cannot be read, and those of a store from before 0.2, whose attributes lie elsewhere, are left out.
        """
        places = self._listed() or {}
        paths = {f"{places[tile].group}/zarr.json": tile for tile in tile_ids if tile in places}
        found = {}
        for path, data in self.folder.read_existing(list(paths)).items():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                head = json.loads(data)
                metadata = head["consolidated_metadata"]["metadata"]
                stated = {name: metadata[name]["attributes"] for name in head["attributes"]["surveys"]}
                found[paths[path]] = {name: (image_of(name, a), stated_noise(a)) for name, a in stated.items()}
        return found

    def _listed(self) -> dict[str, Place] | None:
        """Where the tiles are, as the manifest said when this object first asked; None where there is none yet."""
        if self._places is None:
            self._places = self._read_places()
        return self._places

    def _read_places(self) -> dict[str, Place] | None:
        try:
            return places_of(read_parquet(self.folder.read(MANIFEST_FILE)))
        except FileNotFoundError:
            return None

    def _read(self, tile_id: str, group: str) -> Tile:
        """A tile of a group, whole."""
        try:
            attributes, images = read_group(self.folder, group, tile_id)
        except FileNotFoundError as error:
            now = (self._read_places() or {}).get(tile_id)
            if self._places is not None and (now is None or now.group != group):
                raise StorageUnavailable(
                    f"tile {tile_id}: {self.url} was ingested into meanwhile; run the same command again"
                ) from error
            raise StorageError(f"tile {tile_id}: not in {self.url}; ingest it again") from error
        y0, y1, x0, x1 = (int(n) for n in attributes["core"])
        y, x = (int(n) for n in attributes["origin"])
        field = str(attributes.get("field", ""))
        return Tile(tile_id, images, (y0, y1, x0, x1), (y, x), str(attributes["grid_id"]), field)

    def manifest(self) -> pa.Table:
        """The tiles, schema `MANIFEST`, sorted by tile_id; `storage.manifests` says what else its footer tells.

        Raises
        ------
        StorageError
            If no ingest has finished.
        """
        table = self._read_manifest()
        if table is None:
            raise StorageError(
                f"{self.url} has no manifest: its ingest did not finish; run `surveybridge ingest` again"
            )
        return table

    def _read_manifest(self) -> pa.Table | None:
        """The manifest in today's form, or None if there is none yet."""
        try:
            table = read_parquet(self.folder.read(MANIFEST_FILE))
        except FileNotFoundError:
            return None
        if "field" in table.column_names or not table.num_rows:
            return conform(table, MANIFEST, MANIFEST_FILE).replace_schema_metadata(table.schema.metadata)
        tile = self._any_of(table.to_pylist())
        header = _grid_header(tile)
        table = of_one_grid(table, tile.grid_id, header)
        field = implied_field(table.to_pylist(), header, _halo(tile))
        return with_footer(table, [field], content_digest(table))

    def write_manifest(self, rows: Sequence[Mapping[str, Any]], fields: Iterable[FieldGrid] | None = None) -> None:
        """Write the manifest, atomically and last: from then on these are the tiles of the store.

        Parameters
        ----------
        rows : sequence of mapping
            From `write_tile`, and those of the previous manifest that stay.
        fields : iterable of FieldGrid, optional
            Their fields; by default as the tiles say.
        """
        if fields is None:
            names = dict.fromkeys(str(row["field"]) for row in rows)
            fields = [self._implied([row for row in rows if row["field"] == name]) for name in names]
        before = self._read_manifest()
        table = manifest_table(rows)
        table = with_footer(table, fields, content_digest(table) if before is None else store_id_of(before))
        if _format_version(self.folder) != FORMAT_VERSION:
            _put_root(self.folder)  # earlier versions of this program refuse a store of many fields by it
        self.folder.put(parquet_bytes(table, footer_of(table)), MANIFEST_FILE)
        self._places = None

    def _implied(self, rows: Sequence[Mapping[str, Any]]) -> FieldGrid:
        """The field of some tiles, as they say."""
        tile = self._any_of(rows)
        return implied_field(rows, _grid_header(tile), _halo(tile))

    def _any_of(self, rows: Sequence[Mapping[str, Any]]) -> Tile:
        """The first of some tiles that can be read."""
        for row in rows:
            with contextlib.suppress(StorageError):
                return self._read(str(row["tile_id"]), row.get("group") or f"{TILES}/{row['tile_id']}")
        raise StorageError(f"{self.url}: none of its {len(rows)} tiles can be read; ingest it again")


def _grid_header(tile: Tile) -> str:
    """WCS header of the global grid."""
    y, x = tile.origin
    return header_from(next(iter(tile.images.values())).wcs_header, -y, -x)


def _halo(tile: Tile) -> int:
    """Widest margin around the core."""
    (y0, y1, x0, x1), (height, width) = tile.core, tile.shape
    return max(y0, height - y1, x0, width - x1)


def manifest_row(tile: Tile) -> dict[str, Any]:
    """The tile's row of `MANIFEST` but its group; ra and dec are the centre of the core, ICRS deg."""
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
        "surveys": list(tile.images),
        "bytes": sum(int(array.nbytes) for array in _arrays(tile)),
        "content": tile_content(tile),
        **tile_place(tile),
    }


PLACE = ("field", "grid_id", "core_y0", "core_x0", "core_height", "core_width", "domain")
"""Columns of manifest and ledger that say which part of the sky a tile owns, and in which domain its images lie."""


def tile_place(tile: Tile) -> dict[str, Any]:
    """The columns `PLACE` of a tile."""
    return {
        "field": tile.field,
        "grid_id": tile.grid_id,
        "core_y0": tile.core_origin[0],
        "core_x0": tile.core_origin[1],
        "core_height": tile.core_shape[0],
        "core_width": tile.core_shape[1],
        "domain": tile.domain,
    }


def tile_content(tile: Tile) -> str:
    """SHA-256 over the shapes and bytes of all arrays of a tile read whole, and its PSFs if their shape is known."""
    digest = hashlib.sha256()
    for array in _arrays(tile):
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).data)
    for image in tile.images.values():
        known = [image.psf(band) for band in range(len(image.bands))]
        if any(known):  # tiles of earlier versions keep their content
            digest.update(repr([psf and str(psf) for psf in known]).encode())
            digest.update(b"".join(psf.values.tobytes() for psf in known if isinstance(psf, PsfImage)))
    return digest.hexdigest()


def _arrays(tile: Tile) -> list[NDArray[Any]]:
    return [array for image in tile.images.values() for array in (image.flux, image.variance, image.mask)]


def _put_root(folder: Folder) -> None:
    """Say what the store is, at its root, and that all below is Zarr."""
    attributes = {"format": FORMAT, "format_version": FORMAT_VERSION}
    for path, said in (((TILES,), {}), ((), attributes)):
        folder.put_json({"zarr_format": 3, "node_type": "group", "attributes": said}, *path, "zarr.json")


def _format_version(folder: Folder) -> int | None:
    """Return the format of a store, None if there is no tile store; StorageError for a newer one."""
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
    return version


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
