"""Whether a run may go on with a tile store: the store that it began with, wherever that lies now, cut as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from surveybridge.storage.errors import StorageError
from surveybridge.storage.footprint import Box, header_box, overlap
from surveybridge.storage.manifests import fields_of, store_id_of
from surveybridge.storage.mosaics import MosaicHeader
from surveybridge.storage.runs import HEADERS_AT_ONCE, RunFolder

_PLACE = ("grid_id", "core_y0", "core_x0", "core_height", "core_width")


class _Core(NamedTuple):
    """What a tile owns."""

    tile_id: str
    grid_id: str
    box: Box


def check_store(run: RunFolder, manifest: pa.Table, url: str, ledger: pa.Table) -> None:
    """Refuse to go on with a run from another store than it began with, or from one that is cut into other tiles.

    A store is known by what is in it: by the id that its first manifest gave it, else by its tiles. A run from before
    version 4, which knows no id, takes the store at the URL that it names.

    Parameters
    ----------
    run : RunFolder
        The run.
    manifest : pyarrow.Table
        The tiles of the store that it would go on with, schema `MANIFEST`.
    url : str
        Where that store is.
    ledger : pyarrow.Table
        Of the run, schema `LEDGER`.

    Raises
    ------
    StorageError
        With both stores, or both tilings.
    """
    ok = ledger.filter(pc.equal(ledger["status"], "ok"))
    row = pc.index_in(ok["tile_id"].combine_chunks(), value_set=manifest["tile_id"].combine_chunks())
    there = manifest["content"].combine_chunks().take(row)
    same = pc.fill_null(pc.equal(ok["content"].combine_chunks(), there), False)
    began, now = run.run_json.get("store_id"), store_id_of(manifest)
    known = began == now if began else run.store_url == url
    if not known and not (ok.num_rows and pc.all(same).as_py()):
        raise StorageError(
            f"run {run.url} was begun with {run.store_url}{_known_as(began)} but {url}{_known_as(now)} is another "
            f"store: {pc.sum(same).as_py() or 0} of {ok.num_rows} tiles that are done are the same there; give that "
            "store, or another --run URL"
        )
    listed = {core.tile_id: core for core in _cores(manifest)}
    for core in _done(run, ok, same):
        now_there = listed.get(core.tile_id) or _owner_of_a_part(core, listed)
        if now_there is not None and now_there != core:
            raise StorageError(_cut_anew(run, url, manifest, core, now_there))


def _known_as(store_id: str | None) -> str:
    return f" ({store_id[:12]})" if store_id else ""


def _cores(rows: pa.Table) -> Iterator[_Core]:
    """Cores of those rows of a manifest or ledger that say where they are."""
    for tile, *place in zip(*(rows[name].to_pylist() for name in ("tile_id", *_PLACE)), strict=True):
        if None not in place:
            grid, y, x, height, width = place
            yield _Core(tile, grid, (y, y + height, x, x + width))


def _done(run: RunFolder, rows: pa.Table, same: pa.Array) -> Iterator[_Core]:
    """Cores of tiles that are done: by the ledger, before version 4 those of changed tiles, by their mosaics."""
    yield from _cores(rows)
    unknown = pc.and_(pc.is_null(rows["core_y0"]), pc.invert(same))
    older: Sequence[str] = rows.filter(unknown)["tile_id"].to_pylist()
    for start in range(0, len(older), HEADERS_AT_ONCE):
        for header in _headers(run, older[start : start + HEADERS_AT_ONCE]):
            yield _Core(header.tile_id, header.grid_id, header_box(header))


def _headers(run: RunFolder, tiles: Sequence[str]) -> list[MosaicHeader]:
    """Footers of those mosaics that are there: where a tile that lost its own was cannot be told."""
    try:
        return run.mosaic_headers(tiles)
    except FileNotFoundError:
        return [header for tile in tiles for header in _headers(run, [tile])] if len(tiles) > 1 else []


def _owner_of_a_part(core: _Core, listed: Mapping[str, _Core]) -> _Core | None:
    """Return a tile of the store that owns a part of what a tile owned that the store has no more."""
    others = (other for other in listed.values() if other.grid_id == core.grid_id)
    return next((other for other in others if overlap(other.box, core.box)), None)


def _cut_anew(run: RunFolder, url: str, manifest: pa.Table, core: _Core, now: _Core) -> str:
    """Say how a store is cut now, and how it was for the run."""
    rows = manifest.filter(pc.equal(manifest["tile_id"], now.tile_id))
    name = rows["field"][0].as_py()
    field = fields_of(manifest).get(name)
    size = field.tile_size if field else max(now.box[1] - now.box[0], now.box[3] - now.box[2])
    before = run.fields().get(core.grid_id)
    was = before.tile_size if before else max(core.box[1] - core.box[0], core.box[3] - core.box[2])
    return (
        f"run {run.url} has done tile {core.tile_id} with {_described(core)}, in tiles of {was} px, but field {name} "
        f"of {url} was ingested anew in tiles of {size} px: tile {now.tile_id} has {_described(now)}; give another "
        "--run URL, or ingest the field again as it was"
    )


def _described(core: _Core) -> str:
    y0, y1, x0, x1 = core.box
    return f"rows {y0}-{y1} and columns {x0}-{x1} of grid {core.grid_id}"
