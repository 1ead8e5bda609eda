"""The manifest of a tile store: its tiles as a table, and in the footer its fields, each with its grid stated once."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from surveybridge.storage.celestial import celestial_wcs, sky_to_pixel
from surveybridge.storage.errors import StorageError
from surveybridge.storage.fields import FieldGrid
from surveybridge.storage.schema import MANIFEST, conform, table_from_rows

FIELDS = "surveybridge.fields"
"""Entry of the footer: a list of the fields' documents."""

STORE_ID = "surveybridge.store_id"
"""Entry of the footer: what the store is known by."""

TILES = "tiles"
"""Group of a store in which the tiles are."""


class Place(NamedTuple):
    """The group of a tile, relative to the store, and the content that the manifest lists for it."""

    group: str
    content: str | None


def manifest_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """The manifest of some tiles, by tile id; StorageError if two have one id."""
    ordered = sorted(rows, key=lambda row: str(row["tile_id"]))
    for before, after in itertools.pairwise(ordered):
        if before["tile_id"] == after["tile_id"]:
            raise StorageError(f"manifest: tile {after['tile_id']} appears twice; tile ids must be unique")
    return table_from_rows(ordered, MANIFEST, "manifest rows")


def with_footer(manifest: pa.Table, fields: Iterable[FieldGrid], store_id: str) -> pa.Table:
    """Return a manifest that states its fields, and what the store is known by."""
    documents = [field.document() for field in sorted(fields, key=lambda field: field.name)]
    return manifest.replace_schema_metadata({FIELDS: json.dumps(documents, sort_keys=True), STORE_ID: store_id})


def footer_of(manifest: pa.Table) -> dict[str, str]:
    """The entries of `with_footer`."""
    said = manifest.schema.metadata or {}
    return {key: said[key.encode()].decode() for key in (FIELDS, STORE_ID) if key.encode() in said}


def store_id_of(manifest: pa.Table) -> str:
    """What a store is known by wherever it lies: the `content_digest` of its first manifest."""
    return footer_of(manifest).get(STORE_ID) or content_digest(manifest)


def content_digest(manifest: pa.Table) -> str:
    """SHA-256 over ids and contents of a manifest's tiles: the same tiles with the same pixels, the same value."""
    rows = manifest.select(["tile_id", "content"]).sort_by("tile_id")
    columns = [column.to_pylist() for column in rows.columns]
    return hashlib.sha256(repr(list(zip(*columns, strict=True))).encode()).hexdigest()


def fields_of(manifest: pa.Table) -> dict[str, FieldGrid]:
    """The fields of a manifest by name."""
    documents = json.loads(footer_of(manifest).get(FIELDS, "[]"))
    return {str(document["field"]): FieldGrid.of_document(document) for document in documents}


def places_of(manifest: pa.Table) -> dict[str, Place]:
    """Where the tiles of a manifest are, by tile id; in a manifest of format 1 the group has the tile's name."""
    tiles, contents = manifest["tile_id"].to_pylist(), manifest["content"].to_pylist()
    groups = manifest["group"].to_pylist() if "group" in manifest.column_names else [None] * len(tiles)
    return {
        tile: Place(group or f"{TILES}/{tile}", content)
        for tile, group, content in zip(tiles, groups, contents, strict=True)
    }


def of_one_grid(manifest: pa.Table, grid_id: str, wcs_header: str) -> pa.Table:
    """A manifest of format 1, whose tiles are all of one grid, with the columns of today's.

    `wcs_header` is that of the grid. The tiles' centres are the only word of that format on where they are.
    """
    ra, dec, height, width = (manifest[name].to_numpy() for name in ("ra", "dec", "core_height", "core_width"))
    y, x = sky_to_pixel(celestial_wcs(wcs_header), ra, dec)
    columns: Mapping[str, Sequence[Any]] = {
        "field": [grid_id] * len(y),
        "core_y0": np.round(y - (height - 1) / 2).astype(np.int64).tolist(),
        "core_x0": np.round(x - (width - 1) / 2).astype(np.int64).tolist(),
        "group": [place.group for place in places_of(manifest).values()],
    }
    table = conform(manifest, MANIFEST, "manifest")
    for name, values in columns.items():
        index = MANIFEST.get_field_index(name)
        table = table.set_column(index, MANIFEST.field(index), pa.array(values, MANIFEST.field(index).type))
    return table


def implied_field(rows: Sequence[Mapping[str, Any]], wcs_header: str, halo: int) -> FieldGrid:
    """The field that some tiles of one grid make up, where nobody stated it; `rows` of `MANIFEST`."""
    height, width = (max(row[f"core_{axis}0"] + row[f"core_{size}"] for row in rows) for axis, size in _AXES)
    return FieldGrid(
        name=str(rows[0]["field"]),
        grid_id=str(rows[0]["grid_id"]),
        wcs_header=wcs_header,
        shape=(height, width),
        tile_size=max(max(row["core_height"], row["core_width"]) for row in rows),
        halo=halo,
    )


_AXES = (("y", "height"), ("x", "width"))


def tiles_with(manifest: pa.Table, survey: str) -> pa.Table:
    """The tiles that have an endpoint; those of a manifest that does not say what they have count too."""
    surveys = manifest["surveys"].combine_chunks()
    rows = pc.list_parent_indices(surveys).to_numpy()
    found = surveys.is_null().to_numpy(zero_copy_only=False).copy()
    found[rows[pc.equal(pc.list_flatten(surveys), survey).to_numpy(zero_copy_only=False)]] = True
    return manifest.filter(pa.array(found))
