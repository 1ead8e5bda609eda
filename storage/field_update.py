"""Add a field to a tile store, or put it in the place of the one of its name, while others read the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from surveybridge.storage.fields import FieldGrid, named_among
from surveybridge.storage.lease import Lease
from surveybridge.storage.manifests import TILES, fields_of, places_of
from surveybridge.storage.schema import MANIFEST
from surveybridge.storage.tiles import MANIFEST_FILE, Tile, TileStore


@dataclass(frozen=True)
class Slot:
    """The place that a field takes in a store.

    Parameters
    ----------
    name : str or None
        Name of the field, as `fields.named_among` takes it.
    wait : float
        Seconds to wait for another process that ingests into the store.
    """

    name: str | None = None
    wait: float = 0.0


def slot_in(store: TileStore | None, field: FieldGrid, slot: Slot) -> tuple[FieldGrid, bool]:
    """Return the field as it would be named in a store, and whether it would replace one; refusals as `put_field`."""
    fields = {} if store is None else fields_of(_listed(store))
    named = named_among(field, slot.name, fields.values(), "the store" if store is None else store.url)
    return named, named.name in {one.name for one in fields.values()}


def put_field(
    store: TileStore, field: FieldGrid, slot: Slot, cut: Callable[[FieldGrid], Iterable[Tile]]
) -> list[dict[str, Any]]:
    """Write the tiles of a field, then the manifest that lists them in the place of those of the field's name.

    Until then the previous manifest holds, and all that it lists is there; whatever a killed process has left is
    removed by the next.

    Parameters
    ----------
    store : TileStore
        As `TileStore.create` gives it.
    field : FieldGrid
        Its name and the prefix of its tiles are found as `named_among` says.
    slot : Slot
        Its place in the store.
    cut : callable
        Gives the tiles of the field as it is named in the store.

    Returns
    -------
    list of dict
        The field's rows of the manifest.

    Raises
    ------
    LeaseHeld
        If another process ingests into the store.
    StorageError
        As `named_among`; before anything is written.
    """
    note = {"job": "ingest", "field": slot.name or field.grid_id}
    with Lease.acquire(store.folder, wait=slot.wait, note=note, remedy="give another store") as lease:
        before = _listed(store)
        fields = fields_of(before)
        field = named_among(field, slot.name, fields.values(), store.url)
        _remove_others(store, {place.group for place in places_of(before).values()})
        rows = []
        for tile in cut(field):
            lease.check()
            rows.append(store.write_tile(tile))
        kept = [row for row in before.to_pylist() if row["field"] != field.name]
        lease.check()
        store.write_manifest([*kept, *rows], [*(f for f in fields.values() if f.name != field.name), field])
        _remove_others(store, {row["group"] for row in (*kept, *rows)})
    return rows


def _listed(store: TileStore) -> pa.Table:
    """The manifest of a store; no rows where no ingest has come to its end yet."""
    return store.manifest() if store.folder.exists(MANIFEST_FILE) else MANIFEST.empty_table()


def _remove_others(store: TileStore, groups: set[str]) -> None:
    """Remove the tile groups that no manifest lists."""
    for name in store.folder.names(TILES):
        if f"{TILES}/{name}" not in groups and name != "zarr.json":
            store.folder.delete(TILES, name, "zarr.json")  # first: what is left of a group is none
            store.folder.delete_below(TILES, name)
