"""From a tile store to a pair store: plan the windows of all tiles, write their table, then their pixels.

The table is the plan, so a cutting that was stopped goes on where it was: it reads its table, and cuts the blocks of
pairs that are not there.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveybridge.jobs.config import RequestError
from surveybridge.jobs.cutting.stamps import stamps_of
from surveybridge.jobs.cutting.windows import windows_of
from surveybridge.storage.covered_cells import core_coverage
from surveybridge.storage.errors import StorageError
from surveybridge.storage.field_cores import Grid
from surveybridge.storage.held_back import cell_arcsec
from surveybridge.storage.manifests import content_digest, fields_of, store_id_of, tiles_with
from surveybridge.storage.ownership import Cores, Ownership
from surveybridge.storage.pair_labels import (
    failed_tiles,
    pair_labels_schema,
    read_pair_labels,
    with_failed_tiles,
    write_pair_labels,
)
from surveybridge.storage.pair_writer import PairLayout, PairWriter, store_name
from surveybridge.storage.problems import ProblemTable, complete_problem, default_problem, end_names

if TYPE_CHECKING:
    from surveybridge.jobs.cutting.windows import Cutting
    from surveybridge.storage.tiles import Tile, TileStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A tile store to cut from.

    Parameters
    ----------
    store : TileStore
        The store.
    manifest : pyarrow.Table
        Its tiles that have both ends.
    problem : ProblemTable
        What its images are.
    scale : float
        Pixel scale of its grids, arcsec.
    """

    store: TileStore
    manifest: pa.Table
    problem: ProblemTable
    scale: float

    @property
    def pixel_arcsec(self) -> float:
        """Pixel scale as the problem has it: 0 where its grids are not on the sky."""
        return self.scale if any(end["pixel_scale"] for end in self.problem["endpoints"]) else 0.0

    @property
    def identity(self) -> dict[str, Any]:
        """The store and its content, JSON-like."""
        return {"store": store_id_of(self.manifest)[:16], "tiles": content_digest(self.manifest)[:16]}


@dataclass
class Cut:
    """What was cut.

    Parameters
    ----------
    pairs, held_back : int
        Pairs in all, and how many of them are held back.
    failed : list of str
        Tiles that could not be read, each with the reason.
    """

    pairs: int
    held_back: int
    failed: list[str] = field(default_factory=list)


Watch = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Wrapped around tiles and blocks with what they are called and how many there are: a progress bar."""


def open_source(url: str, asked: ProblemTable | None) -> Source:
    """Open a tile store to cut from.

    Parameters
    ----------
    url : str
        Of the tile store.
    asked : ProblemTable or None
        What the images are to be of; by default LSST and Euclid if they are theirs, else what the tiles say.

    Raises
    ------
    RequestError, StorageError
        If it is no tile store, no tile has both ends, or its images are of another problem.
    """
    from surveybridge.storage.tiles import TileStore

    store = TileStore.open(url)
    listed = store.manifest()
    surveys = sorted({name for row in listed["surveys"].to_pylist() for name in row or []})
    if asked is not None:
        names = list(end_names(asked))
    elif len(surveys) == 2:
        names = surveys
    else:
        raise RequestError(
            f"{store.url}: its tiles have {len(surveys)} surveys ({', '.join(surveys) or 'none'}), but a pair has 2; "
            "name them with --problem, or ingest the other one"
        )
    manifest = functools.reduce(tiles_with, names, listed)
    if manifest.num_rows == 0:
        raise RequestError(
            f"{store.url}: 0 of its {listed.num_rows} tiles, which are of {' and '.join(surveys) or 'nothing'}, have "
            f"both {' and '.join(names)}; ingest fields in which both are"
        )
    tile = _first_readable(store, manifest["tile_id"].to_pylist())
    return Source(store, manifest, _problem_of(tile, asked, store.url), next(iter(tile.images.values())).pixel_scale)


def cut_pairs(
    source: Source, out: str, how: Cutting, least: tuple[int, int] = (1, 1), watch: Watch = lambda items, *_: items
) -> Cut:
    """Cut a pair store and write its table beside it; goes on with what a stopped cutting left.

    Parameters
    ----------
    source : Source
        Where to cut.
    out : str
        URL of the pair store, NAME.zarr; the table is NAME.parquet.
    how : Cutting
        Which windows.
    least : (int, int)
        Pairs that are needed for training, and on sky that is held back.
    watch : callable
        A progress bar.

    Raises
    ------
    RequestError, StorageError
        If there are too few windows, or another store in the place.
    """
    cut = {"cutting": how.document, **source.identity}
    table = read_pair_labels(out, cut)
    if table is None:
        table = _planned(source, how, watch)
        _check_split(table, source.store.url, how, least)
        write_pair_labels(out, table, cut)
    _check_split(table, source.store.url, how, least)
    found = Cut(table.num_rows, pc.sum(table["held_back"]).as_py(), failed_tiles(table))
    layout = PairLayout(
        problem=source.problem,
        count=found.pairs,
        shape=(how.size, how.size),
        pixel_arcsec=source.pixel_arcsec,
        name=store_name(out),
        held_back=found.held_back,
        sigma=end_names(source.problem),
        attributes={"cut": cut},
    )
    writer = PairWriter.open(out, layout)
    reader = _Reader(source.store)
    for block in watch(writer.missing(), "cut", len(writer.missing())):
        rows = table.slice(layout.rows(block).start, len(layout.rows(block)))
        writer.write(block, rows["id"].to_pylist(), _block(reader, rows, how.size))
    writer.finish()
    return found


def _problem_of(tile: Tile, asked: ProblemTable | None, url: str) -> ProblemTable:
    """The problem of a tile's images, as asked for; RequestError if they are of another one."""
    ends = [
        {"name": name, "bands": list(image.bands), "pixel_scale": image.pixel_scale, "unit": image.unit}
        | {"extensive": image.extensive}
        for name, image in tile.images.items()
    ]
    said = complete_problem({"name": "-".join(tile.images), "endpoints": ends}, url)
    if asked is None:
        default = default_problem()
        return default if _ends(said) == _ends(default) else said
    if _ends(said) != _ends(asked):
        there, here = ("; ".join(" ".join(end) for end in _ends(one)) for one in (said, asked))
        raise RequestError(
            f"{url} holds {there}, but problem {asked['name']} is of {here}; give the problem of these images"
        )
    return asked


def _ends(problem: ProblemTable) -> list[tuple[str, str, str]]:
    """Names, bands and units of the ends, by name."""
    return sorted((end["name"], ",".join(end["bands"]), end["unit"]) for end in problem["endpoints"])


def _planned(source: Source, how: Cutting, watch: Watch) -> pa.Table:
    """The table of all windows that are to be cut, those for validation last."""
    order = np.random.default_rng((how.seed, 0)).permutation(source.manifest.num_rows)
    rows = source.manifest.take(pa.array(order)).to_pylist()
    ends, parts, failed, cells = _ends(source.problem), [], [], {}
    reader = _Reader(source.store, [row["tile_id"] for row in rows])
    for row in watch(rows, "plan", len(rows)):
        tile_id = row["tile_id"]
        try:
            tile = reader.tile(tile_id)
            found = _ends(_problem_of(tile, None, f"tile {tile_id}"))
            if found != ends:
                raise StorageError(f"tile {tile_id}: is of {found}, but the others are of {ends}; ingest it again")
        except StorageError as error:
            log.warning("%s; it is left out", error)
            failed.append(tile_id)
            continue
        parts.append(windows_of(tile, source.problem, how))
        cells[tile_id] = core_coverage(tile.images.values(), tile.core)
    table = pa.concat_tables(parts) if parts else pair_labels_schema(source.problem).empty_table()
    table = _chosen(table.filter(pa.array(_owned(source, table, cells))), source.store.url, how)
    return with_failed_tiles(table, failed)


def _owned(source: Source, table: pa.Table, cells: Mapping[str, list[int] | None]) -> NDArray[np.bool_]:
    """Whether a window is of the field that owns its centre: sky that several fields show is cut from one of them."""
    tiles = source.manifest.filter(pc.is_in(source.manifest["tile_id"], pa.array(list(cells), pa.string())))
    if len(set(tiles["grid_id"].to_pylist())) < 2:
        return np.ones(table.num_rows, bool)
    covered = pa.array([cells[tile] for tile in tiles["tile_id"].to_pylist()], pa.list_(pa.int8()))
    grids = {one.grid_id: Grid(one.wcs_header, one.shape) for one in fields_of(source.manifest).values()}
    cores = Cores(source.store.url, tiles.append_column("covered_cells", pa.chunked_array([covered])))
    return Ownership([cores], grids).judge(0, table).owned


def _chosen(table: pa.Table, url: str, how: Cutting) -> pa.Table:
    """The windows that are taken, each place once, those for validation last."""
    ids = np.array(table["id"].to_pylist(), dtype=object)
    centred = table["centred"].to_numpy(zero_copy_only=False).astype(bool)
    objects = np.flatnonzero(centred)
    lattice = np.flatnonzero(~centred & ~np.isin(ids, ids[objects]))
    rng = np.random.default_rng((how.seed, 1))
    objects, lattice = rng.permutation(objects), rng.permutation(lattice)
    if how.count is None:
        wanted = len(objects) if how.objects == 1 else round(len(lattice) * how.objects / (1 - how.objects))
        objects, lattice = objects[:wanted], lattice[: None if how.objects < 1 else 0]
    else:
        if len(objects) + len(lattice) < how.count:
            raise RequestError(
                f"{url}: {how.count} windows are wanted, but there are {len(lattice)} of the lattice and "
                f"{len(objects)} on objects; give a smaller --stride, or --count {len(objects) + len(lattice)}"
            )
        few = min(len(objects), max(round(how.count * how.objects), how.count - len(lattice)))
        objects, lattice = objects[:few], lattice[: how.count - few]
    table = table.take(pa.array(np.sort(np.concatenate([objects, lattice]))))
    held = table["held_back"].to_numpy(zero_copy_only=False).astype(bool)
    return table.take(pa.array(np.argsort(held, kind="stable")))


def _check_split(table: pa.Table, url: str, how: Cutting, least: tuple[int, int]) -> None:
    """Refuse too few windows on either side."""
    held = int(np.count_nonzero(table["held_back"].to_numpy(zero_copy_only=False)))
    free = table.num_rows - held
    if free >= least[0] and (held >= least[1] or not how.held_back.share):
        return
    order, side = how.held_back.order, cell_arcsec(how.held_back.order)
    raise RequestError(
        f"{url}: {held} of {table.num_rows} windows lie on the {how.held_back.share:.0%} of the sky that are held back "
        f'for validation, in cells of {side:.0f}", but {least[0]} for training and {least[1]} for validation are '
        f'needed; give another --hold-back, or --hold-back-order {order + 1} for cells of {side / 2:.0f}"'
    )


class _Reader:
    """Reads tiles, the next one in the background; only the last one stays in memory."""

    def __init__(self, store: TileStore, order: Sequence[str] = ()) -> None:
        self._store = store
        self._next = dict(itertools.pairwise(order))
        self._thread = ThreadPoolExecutor(1, "tiles")
        self._coming: dict[str, Future[Tile]] = {}
        self._kept: tuple[str, Tile] | None = None

    def tile(self, tile_id: str) -> Tile:
        """A tile's core, without its halo where that is not needed."""
        if self._kept is None or self._kept[0] != tile_id:
            self._kept = None
            coming = self._coming.pop(tile_id, None) or self._read(tile_id)
            following = self._next.get(tile_id)
            self._coming = {following: self._read(following)} if following is not None else {}
            self._kept = tile_id, coming.result()
        return self._kept[1]

    def _read(self, tile_id: str) -> Future[Tile]:
        return self._thread.submit(self._store.read_tile, tile_id)


def _block(reader: _Reader, rows: pa.Table, size: int) -> dict[str, NDArray[np.float32]]:
    """Arrays of a block of the table."""
    places = zip(*(rows[name].to_pylist() for name in ("tile_id", "y0", "x0")), strict=True)
    parts = [
        stamps_of(reader.tile(tile_id), [(y, x) for _, y, x in group], size)
        for tile_id, group in itertools.groupby(places, key=lambda place: place[0])
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _first_readable(store: TileStore, tiles: Iterable[str]) -> Tile:
    """The first tile that can be read."""
    count = 0
    for tile_id in tiles:
        count += 1
        with contextlib.suppress(StorageError):
            return store.read_tile(tile_id, halo=0)
    raise StorageError(f"{store.url}: none of its {count} tiles with both ends can be read; ingest it again")
