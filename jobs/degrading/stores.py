"""Tile stores as they would be through a worse seeing: what is possible, and the tiles of the new store."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from surveybridge.jobs.config import RequestError
from surveybridge.jobs.degrading.worse import Worse, degraded_image
from surveybridge.storage.field_update import Slot, put_field, slot_in
from surveybridge.storage.fields import FieldGrid
from surveybridge.storage.homogenise import FILL_REACH
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.manifests import fields_of
from surveybridge.storage.tiles import Tile, TileStore

Watch = Callable[[Iterable[Tile], str, int], Iterable[Tile]]
"""Wrapped around the tiles of a field as they are written, with its name and how many there are: a progress bar."""

LEFT = 32
"""Pixels around a tile that an error asks for beyond those that blurring takes: translations need some, too."""


@dataclass(frozen=True)
class Degradation:
    """What is to be done to a store, once it is known to be possible.

    Parameters
    ----------
    store : TileStore
    worse : Worse
    fields : mapping of str to FieldGrid
        Those of the store by name.
    tiles : mapping of str to list of str
        Ids by field.
    margins : mapping of str to int
        Pixels at the edges of the tiles of each field whose values depend on what lies beyond.
    """

    store: TileStore
    worse: Worse
    fields: Mapping[str, FieldGrid]
    tiles: Mapping[str, list[str]]
    margins: Mapping[str, int]

    @classmethod
    def of(cls, store: TileStore, worse: Worse) -> Degradation:
        """Find what is to be done; nothing but the tiles' metadata is read, where the store has it.

        Raises
        ------
        RequestError
            If no tile has a band that is asked for, a PSF cannot be reached, or tiles are too narrow.
        """
        manifest = store.manifest()
        tiles: dict[str, list[str]] = {}
        for tile, field in zip(manifest["tile_id"].to_pylist(), manifest["field"].to_pylist(), strict=True):
            tiles.setdefault(field, []).append(tile)
        stated = store.stated(manifest["tile_id"].to_pylist())
        margins, has = dict.fromkeys(tiles, 0), set[str]()
        for field, ids in tiles.items():
            for tile in ids:
                images = [image for image, _ in stated[tile].values()] if tile in stated else images_of(store, tile)
                has |= {f"{image.survey}.{band}" for image in images for band in image.bands}
                margins[field] = max(margins[field], margin_of(images, worse, f"tile {tile}"))
        for name in (f"{end}.{band}" for asked in (worse.psfs, worse.noise) for end in asked for band in asked[end]):
            if name not in has:
                raise RequestError(f"{name}: no tile of {store.url} has it; there are {', '.join(sorted(has))}")
        found = cls(store, worse, fields_of(manifest), tiles, margins)
        for field in tiles:
            found.smaller(field)
        return found

    def smaller(self, name: str) -> FieldGrid:
        """A field whose tiles have the margin less around them; RequestError if they have too few pixels."""
        field, margin = self.fields[name], self.margins[name]
        if margin > field.halo and max(field.shape) > field.tile_size:
            raise RequestError(
                f"field {name}: its tiles have {field.halo} pixels around them and the PSF needs {margin}; ingest with "
                f"--halo {margin + LEFT} or more"
            )
        return replace(field, halo=max(field.halo - margin, 0))

    def put(self, out: TileStore, wait: float, watch: Watch) -> int:
        """Write all fields into another store, one after the other; returns the number of tiles.

        Raises
        ------
        StorageError
            If the store has a grid under another name; before anything is written.
        """
        slots = {name: Slot(None if name == self.fields[name].grid_id else name, wait) for name in self.tiles}
        for name, slot in slots.items():
            slot_in(out, self.smaller(name), slot)
        for name, slot in slots.items():
            put_field(out, self.smaller(name), slot, functools.partial(self._watched, name, watch))
        return sum(map(len, self.tiles.values()))

    def _watched(self, name: str, watch: Watch, named: FieldGrid) -> Iterable[Tile]:
        return watch(self.degraded(name, named), name, len(self.tiles[name]))

    def degraded(self, name: str, named: FieldGrid) -> Iterator[Tile]:
        """The new tiles of a field that is called `named` in the new store."""
        prefix, margin = self.fields[name].prefix, self.margins[name]
        for tile_id in self.tiles[name]:
            tile = self.store.read_tile(tile_id)
            images = {
                survey: degraded_image(image, self.worse, tile.origin, tile.grid_id, f"tile {tile_id}")
                for survey, image in tile.images.items()
            }
            (height, width), (y0, y1, x0, x1) = tile.shape, tile.core
            box = (min(margin, y0), max(height - margin, y1), min(margin, x0), max(width - margin, x1))
            tile = replace(tile, images=images, field=named.name).crop(box)
            yield replace(tile, tile_id=f"{named.prefix}{tile_id.removeprefix(prefix)}")


def images_of(store: TileStore, tile: str) -> list[SurveyImage]:
    """The images of a tile whose metadata lie elsewhere than today."""
    return list(store.read_tile(tile).images.values())


def margin_of(images: Iterable[SurveyImage], worse: Worse, where: str) -> int:
    """The margin that the images of a tile need, without their pixels; RequestError as `Worse.plans`."""
    plans = [plan for image in images if worse.concerns(image) for plan in worse.plans(image, where)]
    return max((plan.matching.reach + FILL_REACH for plan in plans if plan.matching is not None), default=0)
