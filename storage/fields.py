"""Fields: parts of the sky on a pixel grid of their own, cut into tiles. A tile store holds one or many."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from surveybridge.storage.errors import StorageError
from surveybridge.storage.objectstore import check_name


@dataclass(frozen=True)
class FieldGrid:
    """A field: its pixel grid, and how that is cut into tiles.

    Parameters
    ----------
    name : str
        Letters, digits and `_ . + -`; unique in a store.
    grid_id : str
        Name of the pixel grid (`grid_id_of`).
    wcs_header : str
        Celestial WCS of the grid, ICRS, a FITS header string; global pixel (0, 0) is FITS pixel (1, 1).
    shape : (int, int)
        Height and width of the grid, pixels.
    tile_size, halo : int
        Side of a tile's core, and pixels around it that a tile also holds.
    prefix : str
        What the ids of its tiles t0000, t0001, ... (row-major) begin with.
    """

    name: str
    grid_id: str
    wcs_header: str
    shape: tuple[int, int]
    tile_size: int
    halo: int
    prefix: str = ""

    def document(self) -> dict[str, Any]:
        """Everything about the field, JSON-like; `of_document` is the inverse."""
        return {
            "field": self.name,
            "grid_id": self.grid_id,
            "wcs": self.wcs_header,
            "shape": list(self.shape),
            "tile_size": self.tile_size,
            "halo": self.halo,
            "prefix": self.prefix,
        }

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> FieldGrid:
        """Field of a `document`."""
        height, width = (int(n) for n in document["shape"])
        return cls(
            name=str(document["field"]),
            grid_id=str(document["grid_id"]),
            wcs_header=str(document["wcs"]),
            shape=(height, width),
            tile_size=int(document["tile_size"]),
            halo=int(document["halo"]),
            prefix=str(document["prefix"]),
        )


def grid_id_of(kind: str, wcs_header: str, shape: tuple[int, int]) -> str:
    """Name of a pixel grid: a digest of its WCS and shape, so that the same grid has the same name anywhere."""
    return f"{kind}-{hashlib.sha256(f'{wcs_header}{shape}'.encode()).hexdigest()[:12]}"


def named_among(field: FieldGrid, name: str | None, present: Iterable[FieldGrid], url: str) -> FieldGrid:
    """The field with the name and the tile ids that it has in a store.

    Parameters
    ----------
    field : FieldGrid
        Its name and prefix do not count.
    name : str or None
        As asked for. None is the field of the same grid where there is one, else a new one named after its grid. Only
        a field without a name of its own in an empty store has tiles t0000, t0001, ...; the ids of all others begin
        with the field's name, so that they do not depend on what is ingested first.
    present : iterable of FieldGrid
        The fields that the store at `url` holds.

    Raises
    ------
    StorageError
        If the name cannot be part of a path, or the grid is there under another name.
    """
    there = list(present)
    same_grid = next((other for other in there if other.grid_id == field.grid_id), None)
    if name is None:
        if same_grid is not None:
            return replace(field, name=same_grid.name, prefix=same_grid.prefix)
        return replace(field, name=field.grid_id, prefix=f"{field.grid_id}-" if there else "")
    check_name(name, "field")
    if same_grid is not None and same_grid.name != name:
        raise StorageError(
            f"{url} holds grid {field.grid_id} as field {same_grid.name}, and field {name} would have the same one; "
            f"name it {same_grid.name}, which replaces that one (ingest --field), or give another store"
        )
    of_name = next((other for other in there if other.name == name), None)
    return replace(field, name=name, prefix=f"{name}-" if of_name is None else of_name.prefix)
