"""Writing of pair stores (layout: `storage.pairs`): blocks of rows, in any order and by any number of processes.

A block counts once its names are there, which are written last; a writer that is started again writes the blocks that
are left. The store itself counts once `finish` has written the attributes of its group: until then nobody reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from surveybridge.storage.errors import StorageError
from surveybridge.storage.objectstore import Folder, json_bytes, zarr_store
from surveybridge.storage.problems import ProblemTable, end_names, endpoint

BLOCK = 256
"""Rows that are written at a time, where a layout does not say: a chunk of each array."""

QUANTITIES = ("noise", "fwhm", "wing", "correlation")
"""Conditions of an end, float32 [N, B]: arrays `<end>_<quantity>`."""

LATER: Mapping[str, Any] = {
    "own_pixels": {},
    "maps": {},
    "conditions": True,
    "simulations": False,
    "block": 0,
    "noise": {},
}
"""Fields of `PairLayout` that earlier layouts do not state, and what they were."""

UNFINISHED = "unfinished.json"
"""What a store that is being written is to hold."""

Rows = Mapping[str, NDArray[Any]]
"""Arrays of a block by name, those of `PairLayout.arrays`."""


@dataclass(frozen=True)
class PairLayout:
    """What a pair store is to hold.

    Parameters
    ----------
    problem : ProblemTable
        Its ends name the arrays.
    count : int
        Pairs N.
    shape : (int, int)
        Height and width of a stamp, pixels of the network's grid.
    pixel_arcsec : float
        Of that grid; 0 if it is not on the sky.
    name : str
        Of the store.
    held_back : int
        Pairs at the end of the store that are for validation: no other one shows their part of the sky.
    sigma, gain : tuple of str
        Ends with an array `<end>_sigma` (noise of each pixel) or `<end>_gain` (electrons per unit).
    registration : bool
        Whether there is an array of offsets between the ends.
    attributes : mapping
        Further attributes of the store, JSON-like: where its pairs come from. A store with others is another store.
    own_pixels : mapping of str to float
        Pixel scale of each end, arcsec, where they have stamps on their own pixels: complete ones of LSST and Euclid.
    maps : mapping of str to str
        Further maps of each pair on the same grid, arrays [N, H, W], and their units.
    conditions : bool
        Whether there are the arrays of `QUANTITIES`.
    simulations : bool
        Whether there is an array `simulation`, the name of the simulation of each pair.
    block : int
        Rows that are written at a time; 0 for `BLOCK`.
    noise : mapping of str to mapping of str to float
        Standard deviation of the sky by end and band, in their units, where it is the same for all pairs.
    """

    problem: ProblemTable
    count: int
    shape: tuple[int, int]
    pixel_arcsec: float
    name: str
    held_back: int = 0
    sigma: tuple[str, ...] = ()
    gain: tuple[str, ...] = ()
    registration: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)
    own_pixels: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, str] = field(default_factory=dict)
    conditions: bool = True
    simulations: bool = False
    block: int = 0
    noise: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Shape of a row of each array of numbers, all float32."""
        found: dict[str, tuple[int, ...]] = {}
        for name in end_names(self.problem):
            bands = len(endpoint(self.problem, name)["bands"])
            found[name] = self.shape if self.own_pixels and bands == 1 else (*self.shape, bands)
            if self.conditions:
                found |= {f"{name}_{quantity}": (bands,) for quantity in QUANTITIES}
            if name in self.sigma:
                found[f"{name}_sigma"] = (*self.shape, bands)
            if name in self.gain:
                found[f"{name}_gain"] = (bands,)
        found |= dict.fromkeys(self.maps, self.shape)
        return found | ({"registration": ()} if self.registration else {})

    @property
    def names(self) -> tuple[str, ...]:
        """Arrays of text, a name of each pair; the last is written last."""
        return ("simulation", "id") if self.simulations else ("id",)

    @property
    def rows_of_a_block(self) -> int:
        """Rows that are written at a time."""
        return self.block or BLOCK

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.count // self.rows_of_a_block)

    def rows(self, block: int) -> range:
        """Rows of a block."""
        return range(block * self.rows_of_a_block, min((block + 1) * self.rows_of_a_block, self.count))

    def document(self) -> dict[str, Any]:
        """Everything, JSON-like."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for name, usual in LATER.items():
            if document[name] == usual:  # earlier stores do not say so
                del document[name]
        return document


class PairWriter:
    """A pair store that is being written; picklable, so that several processes may write blocks of it.

    Parameters
    ----------
    folder : Folder
        Of the store.
    layout : PairLayout
        What it is to hold.
    """

    def __init__(self, folder: Folder, layout: PairLayout) -> None:
        self.folder, self.layout = folder, layout

    @classmethod
    def open(cls, url: str, layout: PairLayout, storage_options: Mapping[str, Any] | None = None) -> PairWriter:
        """Begin a store, or go on with one of the same layout, finished or not.

        Raises
        ------
        StorageError
            If there is anything else at `url`.
        """
        folder = Folder.at(url, storage_options)
        writer = cls(folder, layout)
        if not folder.names():
            folder.put(json_bytes(layout.document()), UNFINISHED)
            folder.put_many(writer._array_documents())
            return writer
        found = layout_at(folder)
        if found != layout.document():
            raise StorageError(
                f"{folder.url} is {folder.describe()}, no pair store of {layout.count} such pairs; give another "
                "place, or delete it"
                if found is None
                else f"{folder.url} holds a pair store of {_difference(found, layout.document())}; give another place, "
                "or delete it"
            )
        if not writer.finished:
            folder.put_many(writer._array_documents())  # whoever began may have been killed before that
        return writer

    @property
    def finished(self) -> bool:
        """Return whether all of it is there."""
        return self.folder.exists("zarr.json")

    def missing(self) -> list[int]:
        """Blocks that are not there yet."""
        if self.finished:
            return []
        there = set(self.folder.names("id", "c"))
        return [block for block in range(self.layout.blocks) if str(block) not in there]

    def write(self, block: int, ids: Sequence[str], rows: Rows, simulations: Sequence[str] = ()) -> None:
        """Write a block; it replaces what is there.

        Parameters
        ----------
        block : int
            Number of the block, below `PairLayout.blocks`.
        ids : sequence of str
            Names of its pairs.
        rows : mapping of str to float array
            All of `PairLayout.arrays` by name, a row for each pair: NaN is no data in fluxes, and else not known.
        simulations : sequence of str
            The simulation of each, if the layout has them.

        Raises
        ------
        StorageError
            If arrays are missing, too many, of another shape, or hold infinite values.
        """
        wanted = self.layout.rows(block)
        shapes = {name: (len(wanted), *shape) for name, shape in self.layout.arrays.items()}
        found = {name: np.shape(values) for name, values in rows.items()}
        if len(simulations) != (len(wanted) if self.layout.simulations else 0):
            raise StorageError(
                f"{self.folder.url}: block {block} has {len(simulations)} simulations for {len(wanted)} pairs; give "
                + ("one for each" if self.layout.simulations else "none, or a layout with simulations")
            )
        if found != shapes or len(ids) != len(wanted):
            wrong = [
                f"{name} {found.get(name, 'missing')} instead of {shapes.get(name, 'none')}"
                for name in {**shapes, **found}
                if found.get(name) != shapes.get(name)
            ]
            raise StorageError(
                f"{self.folder.url}: block {block} has {len(ids)} names for {len(wanted)} pairs, and "
                f"{', '.join(wrong) or 'all arrays'}; give every array of the layout"
            )
        for name, values in rows.items():
            if np.isinf(values).any():
                raise StorageError(
                    f"{self.folder.url}: block {block} has {np.isinf(values).sum()} infinities in {name}; give NaN "
                    "where nothing is known"
                )
        store = zarr_store(self.folder, read_only=False)
        some = slice(wanted.start, wanted.stop)
        for name, values in rows.items():
            zarr.open_array(store, path=name, mode="r+")[some] = np.asarray(values, np.float32)
        for name, texts in zip(self.layout.names, ([simulations] if simulations else []) + [ids], strict=True):
            zarr.open_array(store, path=name, mode="r+")[some] = np.array(list(texts), dtype=object)

    def finish(self) -> None:
        """Write what makes it a pair store: from then on it can be read.

        Raises
        ------
        StorageError
            If blocks are missing.
        """
        if self.finished:
            return
        left = self.missing()
        if left:
            raise StorageError(
                f"{self.folder.url}: {len(left)} of {self.layout.blocks} blocks are missing, the first is {left[0]}; "
                "write them first"
            )
        self.folder.put_json({"zarr_format": 3, "node_type": "group", "attributes": self._attributes()}, "zarr.json")
        self.folder.delete(UNFINISHED)

    def _attributes(self) -> dict[str, Any]:
        """The attributes of the finished store."""
        layout, bands = self.layout, {}
        for name in end_names(layout.problem):
            noise = np.full((1, len(endpoint(layout.problem, name)["bands"])), np.nan)
            if layout.conditions:
                noise = np.asarray(zarr.open_array(zarr_store(self.folder), path=f"{name}_noise", mode="r")[...])
            for k, band in enumerate(endpoint(layout.problem, name)["bands"]):
                known = noise[np.isfinite(noise[:, k]), k]
                same = {"sigma_noise": layout.noise[name][band]} if band in layout.noise.get(name, {}) else {}
                sigma = {"sigma_noise": float(np.median(known))} if len(known) else same
                scale = layout.own_pixels.get(name, layout.pixel_arcsec)
                bands[band if layout.own_pixels else f"{name}.{band}"] = {"pixel_arcsec": scale, **sigma}
        one_grid = {
            "endpoints": list(end_names(layout.problem)),
            "units": {**{end["name"]: end["unit"] for end in layout.problem["endpoints"]}, **layout.maps},
            "problem": layout.problem,
        }
        return {
            **layout.attributes,
            "name": layout.name,
            **({} if layout.own_pixels else one_grid),
            "bands": bands,
            "held_back": layout.held_back,
            "layout": layout.document(),
        }

    def _array_documents(self) -> dict[str, bytes]:
        """The zarr.json of all arrays, by path."""
        contents: dict[str, Buffer] = {}
        group, count = zarr.create_group(MemoryStore(contents)), self.layout.count
        rows = self.layout.rows_of_a_block
        zstd = ZstdCodec(level=3)
        for name, shape in self.layout.arrays.items():
            group.create_array(
                name,
                shape=(count, *shape),
                chunks=(rows, *shape),
                dtype=np.float32,
                fill_value=np.nan,
                compressors=zstd,
            )
        for name in self.layout.names:
            group.create_array(name, shape=(count,), chunks=(rows,), dtype=str, compressors=zstd)
        return {path: data.to_bytes() for path, data in contents.items() if path != "zarr.json"}


def store_name(url: str) -> str:
    """Name that a pair store at a path or URL states: its last part, without .zarr."""
    return url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".zarr")


def layout_at(folder: Folder) -> dict[str, Any] | None:
    """What a pair store holds that a `PairWriter` has written or begun; None where there is none."""
    for name in (UNFINISHED, "zarr.json"):
        try:
            document: dict[str, Any] = json.loads(folder.read(name))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            continue
        found = document if name == UNFINISHED else document.get("attributes", {}).get("layout")
        return found if isinstance(found, dict) else None
    return None


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In which way two layouts differ, in the words of a message."""
    there, here = _flat(found), _flat(wanted)
    keys = [key for key in sorted({**there, **here}) if there.get(key) != here.get(key)]
    texts = (", ".join(f"{key} {str(values.get(key))[:60]}" for key in keys[:3]) for values in (there, here))
    return ", but this one would have ".join(texts)


def _flat(layout: Mapping[str, Any]) -> dict[str, Any]:
    """A layout whose attributes stand beside what else it has, as its problem's, by themselves."""
    flat = dict(layout)
    for name in ("attributes", "problem"):
        flat |= {f"{name}.{key}": value for key, value in flat.pop(name, {}).items()}
    return flat
