"""The run folder: everything that a translation writes, and the ledger that says which tiles are done.

Layout below the run's URL::

    run.json                      what ran (no secrets), with the fingerprint that a resume must match; written first
    store.json                    where the tile store lies now, if that is elsewhere than when the run began
    grids/<grid_id>.json          a field of the store: name, WCS and shape of its grid; written before its first tile
    mosaics/<tile>.parquet        pixel cells: mean, std, coverage
    candidates/<tile>.parquet     objects of the tile's core, VOParquet (none where the problem makes maps only)
    ledger/<tile>.parquet         one row; written last, so a tile without it never counts
    candidates/segments/, ledger/segments/   candidates and rows of many tiles, once they are compacted (`segments`)

All names are pure functions of the tile, and equal content is equal bytes: doing a tile again changes nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from surveybridge.storage import compaction, mosaics, segments
from surveybridge.storage.errors import StorageError
from surveybridge.storage.fields import FieldGrid
from surveybridge.storage.objectstore import Folder, check_name, json_bytes
from surveybridge.storage.parquet import parquet_bytes
from surveybridge.storage.problems import ProblemTable, default_problem, stated_problem
from surveybridge.storage.schema import (
    LEDGER,
    RESUMED_VERSIONS,
    SCHEMA_VERSION,
    RunSchemas,
    candidates_schema,
    conform,
    ledger_schema,
    table_from_rows,
    thumbnail_names,
)
from surveybridge.storage.sky import healpix_29

FORMAT = "surveybridge-run"
FINGERPRINT_KEYS = (
    "code_schema_version",
    "checkpoint_sha256",
    "direction",
    "samples",
    "steps",
    "score_samples",
    "score_steps",
    "precision",
    "seed",
    "grid",
    "store",
    "patch",
    "stars",
    "score_reconstruct",
)
"""Settings that decide pixels and scores: a run folder is resumed only with the same values.

`store` is a URL, and that may change: `resuming.check_store` says whether a store is the same, by its `store_id` and
its tiles, and which of them have changed is compared tile by tile (`pending`).
"""
LATER_KEYS = {"patch": 64, "stars": None, "score_reconstruct": 1.0}
"""Those of them that earlier runs do not state, and the values that held for such runs."""

OPTIONAL_KEYS: dict[str, Any] = {
    **{"calibrated": False, "homogenise": None, "wanted": None, "shared_start": False},
    **{"maps_head": None, "consistency": None},
}
"""Further such settings, which a run states only where they differ from these values."""

READ_TRIES = 20
"""Largest number of times that a reader looks for moved files; each compaction that overtakes it costs one."""

HEADERS_AT_ONCE = 16
"""Mosaic footers that are read concurrently."""

STATUSES = ("ok", "failed", "quarantined")
"""Status of a tile in its ledger row; quarantined is a failure that killed the process again and again."""

_SECRET = re.compile(r"secret|token|passw|credential|access_?key|api_?key|storage_options", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


class RunFolder:
    """A run folder at a URL, made by `open_or_create` or `open`; picklable, so every worker may write to it."""

    def __init__(self, folder: Folder, run_json: Mapping[str, Any]) -> None:
        self.folder = folder
        self.run_json = dict(run_json)
        self._written: set[str] = set()  # paths of tiles that are not committed yet: `commit` need not look for them

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the folder and run.json only: another process need not know what this one has written."""
        return (type(self), (self.folder, self.run_json))

    @property
    def url(self) -> str:
        """Return the URL of the run."""
        return self.folder.url

    @property
    def problem(self) -> ProblemTable:
        """The problem of the run: that of run.json, or the default one, which no run.json states."""
        return stated_problem(self.run_json)

    @property
    def maps_only(self) -> bool:
        """Whether the problem has no endpoint with objects, so that the run has mosaics and no candidates."""
        return self.problem["catalog"] is None

    @property
    def version(self) -> int:
        """Schema version of the files that the run writes."""
        return int(self.run_json["fingerprint"]["code_schema_version"])

    @property
    def written(self) -> RunSchemas:
        """Schemas of the files that the run writes, which follow from its version."""
        candidates = None if self.maps_only else candidates_schema(self.problem, self.version)
        return RunSchemas(ledger_schema(self.version), candidates)

    @property
    def candidates_schema(self) -> pa.Schema:
        """Schema of the candidates as they are read, of today's version: columns that the run lacks are null.

        Raises
        ------
        StorageError
            If the run makes maps only.
        """
        if self.maps_only:
            raise StorageError(
                f"run {self.url} makes maps only: problem {self.problem['name']} names no catalog end, so there are no "
                "candidates; export its mosaics"
            )
        return candidates_schema(self.problem)

    @classmethod
    def open_or_create(
        cls, url: str | os.PathLike[str], run_json: Mapping[str, Any], storage_options: Mapping[str, Any] | None = None
    ) -> RunFolder:
        """Start a run, or resume one of the same fingerprint, whose run.json then stays as it is.

        Parameters
        ----------
        url : str
            Local path or s3:// URL: empty, absent, or a run folder.
        run_json : mapping
            What runs; must have every key of `FINGERPRINT_KEYS`, and may have `store_id` (the version, today's, and
            `LATER_KEYS` are filled in). Secrets are left out of the file, and `problem` where it is the default one.
        storage_options : mapping, optional
            Arguments of the fsspec filesystem; never stored.

        Raises
        ------
        StorageError
            If something else is there, or a run with another fingerprint (the message has both values).
        """
        folder = Folder.at(url, storage_options)
        document = {"code_schema_version": SCHEMA_VERSION, **LATER_KEYS, **without_secrets(run_json)}
        if document.get("problem") in (None, default_problem()):
            document.pop("problem", None)
        missing = [key for key in FINGERPRINT_KEYS if key not in document]
        if missing:
            raise StorageError(f"run.json lacks {', '.join(missing)}; a run is known by {', '.join(FINGERPRINT_KEYS)}")
        decisive = [key for key in (*FINGERPRINT_KEYS, *OPTIONAL_KEYS, "store_id") if key in document]
        document |= {"format": FORMAT, "fingerprint": {key: document[key] for key in decisive}}
        existing = _read_run_json(folder)
        if existing is None:
            if folder.names() or (folder.is_local and os.path.isfile(folder.path())):
                raise StorageError(
                    f"{folder.url} is {folder.describe()}, neither empty nor a run folder; give another --run URL"
                )
            if folder.put_new(json_bytes(document), "run.json") is not None:
                return cls(folder, document)
            return cls.open_or_create(url, run_json, storage_options)  # another driver was faster
        wanted = json.loads(json.dumps(document["fingerprint"]))  # tuples and the like in the form that JSON gives them
        version = existing["fingerprint"].get("code_schema_version")
        if version not in RESUMED_VERSIONS:
            raise StorageError(
                f"run folder {folder.url} has schema version {version} but this program writes "
                f"{', '.join(map(str, RESUMED_VERSIONS))}: it is readable but cannot be resumed; give another --run URL"
            )
        defaults = LATER_KEYS | OPTIONAL_KEYS
        for key in (*FINGERPRINT_KEYS[1:], *OPTIONAL_KEYS):  # a run keeps its version
            if key == "store":
                continue
            found, asked = (stated.get(key, defaults.get(key)) for stated in (existing["fingerprint"], wanted))
            if found != asked:
                raise StorageError(
                    f"run folder {folder.url} has {key} {found!r} but this run has "
                    f"{asked!r}; give another --run URL or the same {key}"
                )
        return cls(folder, existing)

    @classmethod
    def open(cls, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> RunFolder:
        """Open a run; StorageError, saying what was found, if `url` is not a run folder."""
        folder = Folder.at(url, storage_options)
        existing = _read_run_json(folder)
        if existing is None:
            raise StorageError(
                f"{folder.url} is not a run folder: found {folder.describe()}; make one with `surveybridge translate`"
            )
        return cls(folder, existing)

    @property
    def store_url(self) -> str:
        """URL of the run's tile store, as the last driver found it."""
        try:
            return str(json.loads(self.folder.read("store.json"))["store"])
        except FileNotFoundError:
            return str(self.run_json["store"])

    def note_store(self, url: str, fields: Iterable[FieldGrid]) -> None:
        """Put down where the tile store lies, if that is news, and the grids of its fields, before tiles are done."""
        if url != self.store_url:
            self.folder.put_json({"store": without_secrets(url)}, "store.json")
        for field in fields if self.version >= 4 else ():
            self.folder.put_json(field.document(), "grids", f"{check_name(field.grid_id, 'grid')}.json")

    def fields(self) -> dict[str, FieldGrid]:
        """The fields whose tiles the run does, by grid_id; a run from before version 4 does not state them."""
        names = [f"grids/{name}" for name in self.folder.names("grids", suffix=".json")]
        found = (FieldGrid.of_document(json.loads(data)) for data in self.folder.read_many(names))
        return {field.grid_id: field for field in found}

    def write_mosaic(self, mosaic: mosaics.TileMosaic) -> None:
        """Write a tile's mosaic."""
        self.folder.put(mosaics.encode(mosaic, self.version), mosaic_path(mosaic.tile_id))
        self._written.add(mosaic_path(mosaic.tile_id))

    def write_candidates(self, tile_id: str, table: pa.Table) -> None:
        """Write a tile's candidates; a tile without any writes an empty table, a run that makes maps only nothing.

        Parameters
        ----------
        tile_id : str
            The tile.
        table : pyarrow.Table
            Columns of `candidates_schema`, in any order, at least object_id, ra, dec; `tile_id` and `_healpix_29` are
            filled in, other columns that lack become null (thumbnails NaN). A run of an earlier version leaves out
            the columns that it does not have.
        """
        if self.maps_only and table.num_rows == 0:
            return
        known, schema = self.candidates_schema, self.written.candidates
        assert schema is not None, "without candidates `candidates_schema` has raised"
        what = f"candidates of tile {tile_id}"
        if "tile_id" not in table.column_names:
            table = table.append_column("tile_id", pa.array([tile_id] * table.num_rows, pa.string()))
        if "_healpix_29" not in table.column_names and {"ra", "dec"} <= set(table.column_names):
            indices = healpix_29(table["ra"].to_numpy(), table["dec"].to_numpy())
            table = table.append_column("_healpix_29", pa.array(indices, pa.int64()))
        later = {*known.names} - {*schema.names}
        table = conform(table.drop_columns([name for name in table.column_names if name in later]), schema, what)
        for name in ("object_id", "ra", "dec", "_healpix_29", "tile_id", *thumbnail_names(schema)):
            if table[name].null_count:
                raise StorageError(
                    f"{what}: {table[name].null_count} of {table.num_rows} rows lack {name}; give it for all"
                )
        self.folder.put(parquet_bytes(table, votable=True), candidates_path(tile_id))
        self._written.add(candidates_path(tile_id))

    def commit(self, ledger_row: Mapping[str, Any]) -> None:
        """Write a tile's ledger row, last and atomically: then the tile is done.

        Parameters
        ----------
        ledger_row : mapping
            Columns of `LEDGER`: at least tile_id and status (one of `STATUSES`); attempt, host, finished_at and, for
            ok tiles, the paths are filled in. A run of an earlier version leaves out the columns that it does not have.

        Raises
        ------
        StorageError
            If the row is not one of `LEDGER`, or says ok of a tile whose files are not written.
        """
        schema = self.written.ledger
        row = {
            "attempt": 1,
            "host": socket.gethostname(),
            "finished_at": datetime.datetime.now(datetime.UTC),
            **ledger_row,
        }
        tile_id = check_name(str(row.get("tile_id", "")), "tile id")
        if row.get("status") not in STATUSES:
            raise StorageError(f"ledger row of tile {tile_id}: status {row.get('status')!r}; give one of {STATUSES}")
        paths = {"mosaic_path": mosaic_path(tile_id)}
        if not self.maps_only:
            paths["candidates_path"] = candidates_path(tile_id)
        if row["status"] == "ok":
            row |= paths
            for path in paths.values():
                if path not in self._written and not self.folder.exists(path):
                    raise StorageError(
                        f"tile {tile_id} cannot be ok: {path} is not in {self.url}; write it before commit"
                    )
        table = table_from_rows([row], LEDGER, f"ledger row of tile {tile_id}")
        self.folder.put(parquet_bytes(conform(table.select(schema.names), schema, "ledger")), ledger_path(tile_id))
        self._written.difference_update(paths.values())

    def ledger(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The committed tiles, one row each, sorted by tile_id; schema `LEDGER`, or some of its columns."""
        return segments.current_rows(self.folder, columns)

    def ok_tiles(self) -> list[str]:
        """Ids of the tiles that are done, sorted."""
        ledger = self.ledger(["tile_id", "status"])
        return [str(tile) for tile in ledger.filter(pc.equal(ledger["status"], "ok"))["tile_id"].to_pylist()]

    def loose_tiles(self) -> list[str]:
        """Ids of the tiles that no compaction has moved yet, sorted."""
        return segments.loose_tiles(self.folder)

    def compact(self, tile_ids: Iterable[str]) -> int:
        """Move rows and candidates of finished tiles into segments; returns how many tiles were moved.

        For the holder of the run's lease, with tiles that no worker has in flight. Readers see the same rows before,
        meanwhile and after; killed at any point it leaves nothing that they could misread, and `tidy` cleans up.
        """
        return compaction.compact(self.folder, tile_ids, self.written)

    def tidy(self) -> None:
        """Leave every row that counts exactly once on disk: after a kill, or after tiles were translated again.

        For the holder of the run's lease, at start and end, while no tile is in flight.
        """
        compaction.tidy(self.folder, self.written)

    def read_tile_mosaic(self, tile_id: str) -> mosaics.TileMosaic:
        """The mosaic of one tile, with its bands and grid."""
        return mosaics.decode(self.folder.read(mosaic_path(tile_id)))

    def read_candidates(self, tile_id: str) -> pa.Table:
        """The candidates of one tile, thumbnails included; of an unfinished tile those that are written."""
        schema = self.candidates_schema
        for _ in range(READ_TRIES):  # a compaction may move them between the look and the read
            path = self._candidates_of(tile_id)
            with contextlib.suppress(FileNotFoundError):
                return segments.read_tile_candidates(self.folder, path, tile_id, schema)
        raise StorageError(f"tile {tile_id}: {path} is not in {self.url}; translate the tile again")

    def _candidates_of(self, tile_id: str) -> str:
        """Return where the candidates of a tile are now."""
        row = segments.read_files(self.folder, [ledger_path(tile_id)], LEDGER).get(ledger_path(tile_id))
        if row is None:  # not committed, or compacted
            ledger = self.ledger(["tile_id", "candidates_path"])
            row = ledger.filter(pc.equal(ledger["tile_id"], tile_id))
        found = row["candidates_path"].drop_null().to_pylist()
        return str(found[0]) if found else candidates_path(tile_id)

    def read_mosaic(
        self,
        region: tuple[int, int, int, int] | None = None,
        max_bytes: int = 4 << 30,
        tiles: Sequence[str] | None = None,
    ) -> mosaics.StitchedMosaic:
        """Stitch ok tiles by their place in the global grid; NaN and coverage 0 where there is none.

        Parameters
        ----------
        region : (y0, y1, x0, x1), optional
            Global pixels to stitch, half-open; default the box around all ok tiles.
        max_bytes : int
            Refuse before reading if the result would be larger.
        tiles : sequence of str, optional
            The ok tiles to look at, where it is known which touch the region; default all.

        Raises
        ------
        StorageError
            If no tile is ok, tiles disagree in grid or bands, or the result would be too large.
        """
        tiles = self.ok_tiles() if tiles is None else tiles
        if not tiles:
            raise StorageError(f"run {self.url} has no finished tile; run `surveybridge translate` first")
        return mosaics.stitch(self.mosaic_headers(tiles), self.read_tile_mosaic, region, max_bytes)

    def mosaic_headers(self, tiles: Sequence[str]) -> list[mosaics.MosaicHeader]:
        """Bands, place and WCS of some tiles' mosaics, from the files' footers alone."""
        with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
            return list(pool.map(self._mosaic_header, tiles))

    def _mosaic_header(self, tile_id: str) -> mosaics.MosaicHeader:
        with self.folder.filesystem.open(self.folder.path(mosaic_path(tile_id)), "rb") as handle:
            return mosaics.decode_header(handle)  # the footer only, not the pixels


def version_at(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> int:
    """Schema version of the run at `url`; today's where there is none, or one that is too old to be resumed."""
    existing = _read_run_json(Folder.at(url, storage_options))
    version = None if existing is None else existing["fingerprint"].get("code_schema_version")
    return version if version in RESUMED_VERSIONS else SCHEMA_VERSION


def mosaic_path(tile_id: str) -> str:
    """Path of a tile's mosaic, relative to the run folder."""
    return f"mosaics/{check_name(tile_id, 'tile id')}.parquet"


def candidates_path(tile_id: str) -> str:
    """Path of a tile's candidates, relative to the run folder."""
    return f"candidates/{check_name(tile_id, 'tile id')}.parquet"


def ledger_path(tile_id: str) -> str:
    """Path of a tile's ledger row until it is compacted, relative to the run folder."""
    return f"ledger/{check_name(tile_id, 'tile id')}.parquet"


def pending(manifest: pa.Table, ledger: pa.Table, *, retry_failed: bool = False) -> list[str]:
    """Return the tiles still to do: those without a finished row of the same content, in the manifest's order.

    Parameters
    ----------
    manifest, ledger : pyarrow.Table
        Schemas `MANIFEST` and `LEDGER`, or at least their columns tile_id, and status of the ledger. A tile of another
        `content` than its row's was ingested anew and is to do; an unknown (null) content counts as the same.
    retry_failed : bool
        Take failed and quarantined tiles as not done; else a resume would repeat every crash.
    """
    done = ledger.filter(pc.equal(ledger["status"], "ok")) if retry_failed else ledger
    tiles = manifest["tile_id"].combine_chunks()
    row = pc.index_in(tiles, value_set=done["tile_id"].combine_chunks())
    finished = pc.is_valid(row)
    if "content" in manifest.column_names and "content" in done.column_names:
        same = pc.equal(manifest["content"].combine_chunks(), done["content"].combine_chunks().take(row))
        finished = pc.and_(finished, pc.fill_null(same, True))
    return [str(tile) for tile in tiles.filter(pc.invert(finished)).to_pylist()]


def without_secrets(value: Any) -> Any:
    """`value` (JSON-like) without entries named like secrets, and URLs without their user:password@ part."""
    if isinstance(value, Mapping):
        return {str(key): without_secrets(item) for key, item in value.items() if not _SECRET.search(str(key))}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return _USERINFO.sub("", value) if isinstance(value, str) else value


def _read_run_json(folder: Folder) -> dict[str, Any] | None:
    """run.json if there is one of ours, None if there is none; StorageError if it is damaged."""
    try:
        document: Any = json.loads(folder.read("run.json"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise StorageError(f"{folder.file_url('run.json')} is not JSON ({error}); give another --run URL") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise StorageError(
            f"{folder.file_url('run.json')} was not written by a SurveyBridge run; give another --run URL"
        )
    return document
