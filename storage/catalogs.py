"""A published catalog: a HATS collection whose snapshots never change, and one small file that names the current one.

Layout below the catalog's URL::

    collection.properties              what HATS readers open: names the tables of the current snapshot; written last
    snapshots/<key>/                   a snapshot, by itself a HATS collection; what a paper cites
        candidates/                    the table: a row an object, without thumbnails
        margin/                        rows within 10" of each partition, as a cross-match needs them
        best.parquet                   the rows of the 10 000 best systems, by rank
        ledger.parquet                 the ledger rows of its tiles
        snapshot.json                  which runs, and all that decides the content; the key is its hash
        collection.properties
    lease.json                         who publishes now

A reader that started from `collection.properties` sees one snapshot, whatever is published meanwhile. The snapshots
that a publication keeps are the current one and those before it that `collection.properties` lists; all others are
removed at its end, what a killed publication left among them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError
from surveybridge.storage.hats import property_file, read_partitions, read_properties
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.parquet import read_parquet
from surveybridge.storage.problems import ProblemTable, stated_problem
from surveybridge.storage.schema import CATALOG_LEDGER, catalog_schema, conform

FORMAT = "surveybridge-catalog"
FORMAT_VERSION = 1
POINTER = "collection.properties"
TABLE, MARGIN = "candidates", "margin"

BEST = 10_000
"""The rows of so many systems are also in `best.parquet`: the top of the list is one small file."""

_CURRENT, _BEFORE = "surveybridge_snapshot", "surveybridge_before"


@dataclass(frozen=True)
class Catalog:
    """A snapshot of a catalog, open for reading.

    Parameters
    ----------
    folder : Folder
        The snapshot.
    facts : mapping
        Its snapshot.json: name, runs, rows, partitions.
    """

    folder: Folder
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Catalog:
        """Open a catalog's current snapshot, or the one that stands at `url`.

        Raises
        ------
        StorageError
            If `url` is not a catalog of ours (what was found is said).
        """
        folder = Folder.at(url, storage_options)
        while True:
            found = read_pointer(folder)
            if found is None:
                raise StorageError(
                    f"{folder.url} is not a published catalog: found {folder.describe()}; make one with "
                    "`surveybridge publish`"
                )
            snapshot = found.snapshot(folder)
            try:
                return cls(snapshot, read_facts(snapshot))
            except FileNotFoundError:
                if read_pointer(folder) == found:  # else others were published meanwhile, and this one removed
                    raise

    @property
    def problem(self) -> ProblemTable:
        """The problem of its runs, which a catalog of the default one does not state."""
        return stated_problem(self.facts)

    @property
    def schema(self) -> pa.Schema:
        """Schema of the table."""
        return catalog_schema(self.problem)

    @property
    def table_url(self) -> str:
        """Return where the table is, for readers that open Parquet by themselves."""
        return self.folder.file_url(TABLE)

    def dataset(self, ranges: NDArray[np.int64] | None = None) -> ds.Dataset:
        """The table, read when and as far as it is needed.

        Parameters
        ----------
        ranges : int64 [N, 2], optional
            First and last HEALPix indices of order 29: only partitions that these touch.
        """
        filesystem = self.folder.filesystem
        if ranges is None:
            path = self.folder.path(TABLE, "dataset/_metadata")
            return ds.parquet_dataset(path, schema=self.schema, filesystem=filesystem)
        pixels = read_partitions(self.folder.read(TABLE, "partition_info.csv"))
        spans = np.array([pixel.range for pixel in pixels], np.int64).reshape(-1, 2)
        # The first range that ends in or after a partition is the first that may touch it.
        place = np.searchsorted(ranges[:, 1], spans[:, 0])
        touched = np.append(ranges[:, 0], np.iinfo(np.int64).max)[place] <= spans[:, 1]
        paths = [self.folder.path(TABLE, "dataset", pixels[i].path) for i in np.flatnonzero(touched)]
        return ds.dataset(paths, schema=self.schema, format="parquet", filesystem=filesystem)

    def best(self) -> pa.Table:
        """The rows of the first `BEST` systems by rank."""
        return conform(read_parquet(self.folder.read("best.parquet")), self.schema, "best.parquet")

    def ledger(self) -> pa.Table:
        """Ledger rows of its tiles, schema `CATALOG_LEDGER`."""
        return conform(read_parquet(self.folder.read("ledger.parquet")), CATALOG_LEDGER, "ledger.parquet")


class Pointer(NamedTuple):
    """The contents of `collection.properties`: the current snapshot, where it is, and which others are kept."""

    key: str
    path: str
    before: tuple[str, ...]

    def snapshot(self, folder: Folder) -> Folder:
        """The folder of the snapshot."""
        return Folder(folder.file_url(self.path).rstrip("/"), folder.storage_options)


def read_pointer(folder: Folder) -> Pointer | None:
    """Read where a catalog, or a snapshot by itself, points to; None if neither of ours is there."""
    try:
        entries = read_properties(folder.read(POINTER))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None
    if _CURRENT not in entries:
        return None
    path = entries["hats_primary_table_url"].removesuffix(TABLE)
    return Pointer(entries[_CURRENT], path, tuple(entries.get(_BEFORE, "").split()))


def pointer_bytes(name: str, key: str, before: Sequence[str] = (), *, within: bool = False) -> bytes:
    """Content of `collection.properties`.

    Parameters
    ----------
    name : str
        The collection's name.
    key : str
        The snapshot.
    before : sequence of str
        Keys of the snapshots that are kept beside it, the latest first.
    within : bool
        For the file in the snapshot itself.
    """
    root = "" if within else f"{snapshot_path(key)}/"
    return property_file(
        {
            "obs_collection": name,
            "hats_primary_table_url": f"{root}{TABLE}",
            "all_margins": f"{root}{MARGIN}",
            "default_margin": f"{root}{MARGIN}",
            _CURRENT: key,
            _BEFORE: " ".join(before),
        }
    )


def snapshot_path(key: str) -> str:
    """Path of a snapshot, relative to the catalog."""
    return f"snapshots/{key}"


def read_facts(snapshot: Folder) -> dict[str, Any]:
    """snapshot.json of a snapshot."""
    where = snapshot.file_url("snapshot.json")
    try:
        document: dict[str, Any] = json.loads(snapshot.read("snapshot.json"))
    except ValueError as error:
        raise StorageError(f"{where} is not JSON ({error}); publish again") from error
    if document.get("format") != FORMAT or document["format_version"] > FORMAT_VERSION:
        raise StorageError(
            f"{where} is {document.get('format')!r} version {document.get('format_version')} but this program reads "
            f"{FORMAT!r} up to {FORMAT_VERSION}; update surveybridge"
        )
    return document
