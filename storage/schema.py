"""Parquet schemas of a run: manifest, mosaics, candidates, ledger, with units, UCDs and descriptions on every column.

Those with columns for bands follow from the problem (`candidates_schema` and the like); the constants of the same names
are these of the default problem.

Field metadata: `unit` (VOUnit), `ucd` (UCD1+), `description`, and `shape` where a list column is a flattened array.
How files of them are written: `storage.parquet`. What an evaluation writes: `storage.evaluation_schemas`.

Thumbnails are plain `fixed_size_list` columns, since astropy does not read Arrow's tensor extension type;
mosaics are `fixed_shape_tensor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from surveybridge.storage.candidate_columns import FLAGS_BEFORE_4, RANK_BEFORE_4, conditions, magnitudes, systems
from surveybridge.storage.columns import F32, F64, I32, I64, TEXT, bands_of, catalog_end, column_of, ucd_of
from surveybridge.storage.errors import StorageError
from surveybridge.storage.problems import EndpointTable, ProblemTable, band_columns, default_problem, other
from surveybridge.storage.units import vo_unit

SCHEMA_VERSION = 5
"""Of the runs that are started now. Raised when a column or a file changes its meaning; files of every version that was
ever released stay readable.

1: a ledger row says ok or failed. 2: it may say quarantined, names the failing stage and the content of the tile, and
rows and candidates of many tiles may lie in one segment. 3: a candidate's score is the lens score where the checkpoint
has one, with its false-alarm rate beside it, and AS-Bridge's has a column of its own. 4: rows say which field they are
of and whether their images lie in the checkpoint's domain, a ledger row says which part of the sky the tile owns;
candidates are at least `bridge_core.detection.SIGNIFICANCE` above the noise, whose correlation their signal to noise
knows, and have systems, kinds, magnitudes, extents and more flags. 5: what is no lens for sure (stars, what lies in
their wings, saturated and largely masked sources) has no score; the domain is that of the checkpoint's card too, and
there are flags for it, for stars and for what is sharper than they are; a ledger row says what was done to the PSFs.
AS-Bridge's score may be null, and the pictures of the reconstructions NaN, for objects that were not reconstructed.
"""

RESUMED_VERSIONS = (3, 4, 5)
"""Versions whose runs are resumed; the rows of a run all have the columns of its own version."""

VERSION_KEY = b"surveybridge.schema_version"
"""Footer entry of a file, and metadata of a schema that may be that of an earlier version."""

CELL = 64
"""Side of a mosaic cell and of a thumbnail, pixels."""


def _stated(version: int) -> dict[bytes, bytes]:
    """Metadata by which the files of a schema state their version."""
    return {VERSION_KEY: str(version).encode()}


def _stamp(name: str, description: str, end: EndpointTable) -> pa.Field:
    """Thumbnails of all bands of an endpoint, in its unit."""
    shape = (len(end["bands"]), CELL, CELL)
    kind = pa.list_(pa.float32(), shape[0] * CELL * CELL)
    return column_of(name, kind, description, vo_unit(end["unit"]), ucd_of(end["unit"]), shape)


_RA = column_of("ra", F64, "Right ascension, ICRS", "deg", "pos.eq.ra;meta.main")
_DEC = column_of("dec", F64, "Declination, ICRS", "deg", "pos.eq.dec;meta.main")
_HEALPIX = column_of("_healpix_29", I64, "HEALPix index, NESTED, order 29, ICRS", "", "pos.healpix")
_TILE = column_of("tile_id", TEXT, "Tile whose core holds this", "", "meta.id")
_GRID = column_of("grid_id", TEXT, "Global pixel grid", "", "meta.id")
_FIELD = column_of("field", TEXT, "Field: a named region of the sky on one pixel grid", "", "meta.id;obs.field")
_DOMAIN = column_of(
    "domain",
    TEXT,
    "Whether the images are such as the checkpoint was trained on: in, or out: reason; reason",
    "",
    "meta.code.qual",
)
_CORE_CORNER = (
    column_of("core_y0", I64, "First row that the tile owns, in the global pixel grid", "pix", "pos.cartesian.y"),
    column_of("core_x0", I64, "First column that the tile owns, in the global pixel grid", "pix", "pos.cartesian.x"),
)
_CORE_SHAPE = (
    column_of("core_height", I32, "Rows that the tile owns", "pix", "meta.number"),
    column_of("core_width", I32, "Columns that the tile owns", "pix", "meta.number"),
)

MANIFEST: pa.Schema = pa.schema(
    [
        column_of("tile_id", TEXT, "Tile", "", "meta.id;meta.main"),
        _RA,
        _DEC,
        _HEALPIX,
        column_of("height", I32, "Rows stored: core and halo", "pix", "meta.number"),
        column_of("width", I32, "Columns stored: core and halo", "pix", "meta.number"),
        *_CORE_SHAPE,
        column_of("surveys", pa.list_(TEXT), "Surveys present", "", "meta.id;instr"),
        column_of("bytes", I64, "Size of all arrays in memory, uncompressed", "byte", "phys.size;meta.file"),
        column_of("content", TEXT, "SHA-256 of all pixels: other content, another value", "", "meta.checksum"),
        _GRID,
        _FIELD,
        *_CORE_CORNER,
        _DOMAIN,
        column_of("group", TEXT, "Zarr group of the tile, relative to the store", "", "meta.ref.uri"),
    ]
)


def candidates_schema(problem: ProblemTable, version: int = SCHEMA_VERSION) -> pa.Schema:
    """Rows of candidates: fluxes in all bands, thumbnails of both endpoints, and of what the model made.

    Parameters
    ----------
    problem : ProblemTable
        Its endpoints and bands name columns.
    version : int
        Schema version of the run.

    Raises
    ------
    StorageError
        If the problem makes maps only.
    """
    catalog, bands = catalog_end(problem), bands_of(problem)
    reconstructed = ",".join(catalog["bands"])
    since_4 = version >= 4
    summed, without = ("AS-Bridge's score", "; NaN without them") if version >= 5 else ("the score", "")
    noise = "with the noise's correlation" if since_4 else "noise taken as white"
    return pa.schema(
        [
            column_of("object_id", TEXT, "Object, unique within the run", "", "meta.id;meta.main"),
            _RA,
            _DEC,
            _HEALPIX,
            *((_FIELD,) if since_4 else ()),
            _TILE,
            *((_DOMAIN,) if since_4 else ()),
            column_of(
                "score",
                F64,
                "Anomaly score: larger = harder to reconcile; "
                + ("null for stars and the like, " if version >= 5 else "")
                + "NaN where too much is masked",
                "",
                "stat.value",
            ),
            column_of("score_std", F64, "Standard error of the score over the sampler's noises", "", "stat.stdev"),
            column_of("false_alarm", F64, "Share of regular objects alike that score higher", "", "stat.probability"),
            column_of(
                "score_asbridge",
                F64,
                "AS-Bridge's score: smallest squared error over flux"
                + ("; null for objects that were not reconstructed" if version >= 5 else ""),
                "",
                "stat.value",
            ),
            *(systems("filled by queries, null on disk") if since_4 else (RANK_BEFORE_4,)),
            *(
                column_of(f"flux_{column}", F32, f"Flux in {band}", vo_unit(end["unit"]), ucd_of(end["unit"], "em.opt"))
                for column, band, end in bands
            ),
            *(
                column_of(f"snr_{column}", F32, f"Signal to noise in {band} ({noise})", "", "stat.snr;em.opt")
                for column, band, _ in bands
            ),
            *(magnitudes(bands) if since_4 else ()),
            *(conditions(bands, catalog, version) if since_4 else (FLAGS_BEFORE_4,)),
            column_of("x", F64, "Column of the centre in the global pixel grid, 0-based", "pix", "pos.cartesian.x"),
            column_of("y", F64, "Row of the centre in the global pixel grid, 0-based", "pix", "pos.cartesian.y"),
            column_of("a", F32, "Semi-major axis (rms)", "pix", "phys.size.smajAxis"),
            column_of("b", F32, "Semi-minor axis (rms)", "pix", "phys.size.sminAxis"),
            column_of("theta", F32, "Position angle of the major axis from +x towards +y", "rad", "pos.posAng"),
            column_of("model_id", TEXT, "Model that scored it", "", "meta.id;meta.modelled"),
            column_of("run_id", TEXT, "Run that wrote it", "", "meta.id"),
            *(
                _stamp(
                    f"thumbnail_{end['name']}",
                    f"{end['title']} {','.join(end['bands'])} around the object"
                    + ("" if end is catalog else ", on the run's grid"),
                    end,
                )
                for end in problem["endpoints"]
            ),
            _stamp(
                "thumbnail_mean",
                f"Mean of the reconstructions of {reconstructed} (model-generated){without}",
                catalog,
            ),
            _stamp(
                "thumbnail_error",
                f"Residual of the reconstructions that {summed} sums (model-generated){without}",
                catalog,
            ),
        ],
        metadata=_stated(version),
    )


def shown_bands(problem: ProblemTable) -> list[str]:
    """Columns that a list of candidates shows: all fluxes, and two signals to noise, of the bands by which one judges.

    These are the last band of the one endpoint and the first of the other, on which objects are found.
    """
    catalog, columns = catalog_end(problem), band_columns(problem)
    seen = other(problem, catalog["name"])
    judged = ((seen["name"], seen["bands"][-1]), (catalog["name"], catalog["bands"][0]))
    return [f"flux_{column}" for column in columns.values()] + [f"snr_{columns[key]}" for key in judged]


def detection_column(problem: ProblemTable) -> str:
    """Return the suffix of columns for the band on which objects are found."""
    catalog = catalog_end(problem)
    return band_columns(problem)[catalog["name"], catalog["bands"][0]]


def thumbnail_names(schema: pa.Schema) -> tuple[str, ...]:
    """Columns of candidates that hold pictures."""
    return tuple(name for name in schema.names if name.startswith("thumbnail_"))


def catalog_schema(problem: ProblemTable) -> pa.Schema:
    """Rows of a published catalog: candidates with their ranks; thumbnails, 98 kB a row, stay in the run."""
    schema = candidates_schema(problem)
    left_out = thumbnail_names(schema)
    filled = {field.name: field for field in systems("over the whole catalog")}
    return pa.schema([filled.get(field.name, field) for field in schema if field.name not in left_out])


CANDIDATES: pa.Schema = candidates_schema(default_problem())
"""Candidates of the default problem."""

THUMBNAILS = thumbnail_names(CANDIDATES)

CATALOG: pa.Schema = catalog_schema(default_problem())
"""Rows of a published catalog of the default problem."""


def ledger_schema(version: int = SCHEMA_VERSION) -> pa.Schema:
    """Ledger rows of a run of some schema version."""
    later = (() if version >= 4 else _LEDGER_SINCE_4) + (() if version >= 5 else _LEDGER_SINCE_5)
    return pa.schema([field for field in LEDGER if field.name not in later], metadata=_stated(version))


class RunSchemas(NamedTuple):
    """Of the files that a run writes: ledger rows, and candidates; None where it makes maps only."""

    ledger: pa.Schema
    candidates: pa.Schema | None


_LEDGER_SINCE_4 = (
    "field",
    "grid_id",
    "core_y0",
    "core_x0",
    "core_height",
    "core_width",
    "catalogued",
    "covered_cells",
    "domain",
)
_LEDGER_SINCE_5 = ("psf",)

LEDGER: pa.Schema = pa.schema(
    [
        column_of("tile_id", TEXT, "Tile", "", "meta.id;meta.main"),
        column_of(
            "status", TEXT, "ok, failed, or quarantined: it killed its process again and again", "", "meta.code.status"
        ),
        column_of("stage", TEXT, "Where it failed: read, model or write", "", "meta.id"),
        column_of("reason", TEXT, "Why it failed, one line", "", "meta.note"),
        column_of("traceback_hash", TEXT, "Equal for failures of one cause", "", "meta.id"),
        column_of("attempt", I32, "How often the tile was tried, 1 = once", "", "meta.number"),
        column_of("n_candidates", I32, "Candidates written", "", "meta.number"),
        column_of("n_patches", I32, "Network windows", "", "meta.number"),
        column_of("content", TEXT, "The manifest's content of the tile when it was done", "", "meta.checksum"),
        *(
            column_of(f"seconds_{s}", F64, f"Wall time: {s}", "s", "time.duration")
            for s in ("read", "model", "score", "write")
        ),
        column_of("host", TEXT, "Machine that did it", "", "meta.id"),
        column_of("finished_at", pa.timestamp("us", tz="UTC"), "When it was committed", "", "time.end"),
        column_of("mosaic_path", TEXT, "Mosaic, relative to the run folder", "", "meta.ref.uri"),
        column_of("candidates_path", TEXT, "Candidates, relative to the run folder", "", "meta.ref.uri"),
        _FIELD,
        _GRID,
        *_CORE_CORNER,
        *_CORE_SHAPE,
        column_of(
            "catalogued", pa.bool_(), "Both ends were there, so that its objects are candidates", "", "meta.code.status"
        ),
        column_of(
            "covered_cells",
            pa.list_(pa.int8()),
            "Cells of 64 x 64 pixels of the core, row by row: 2 has data of both ends throughout, 1 partly, 0 nowhere; "
            "null: 2 in all",
            "",
            "meta.code",
        ),
        _DOMAIN,
        column_of(
            "psf",
            TEXT,
            "What was done to the PSFs of the observed images, by band; null: nothing, as they are those of training",
            "",
            "meta.note",
        ),
    ],
    metadata=_stated(SCHEMA_VERSION),
)

GRADES: pa.Schema = pa.schema(
    [
        column_of("entry", TEXT, "One act of grading; no two of a grader have the same", "", "meta.id;meta.main"),
        column_of("object_id", TEXT, "Candidate, as the run names it", "", "meta.id"),
        column_of("grader", TEXT, "Who graded", "", "meta.id"),
        column_of(
            "grade", TEXT, "A lens, B probable, C possible, X none; null: no grade, or none any more", "", "meta.code"
        ),
        column_of("comment", TEXT, "What the grader wrote", "", "meta.note"),
        column_of("graded_at", pa.timestamp("us", tz="UTC"), "When", "", "time.creation"),
        column_of("rank", I32, "Rank of the candidate when it was graded", "", "meta.number"),
        column_of("model_id", TEXT, "Model that scored it", "", "meta.id;meta.modelled"),
        column_of("run_id", TEXT, "Run that wrote it", "", "meta.id"),
    ]
)
"""Grades of candidates: a row for each act of grading, never changed."""

WALL_CLOCK = ("seconds_read", "seconds_model", "seconds_score", "seconds_write", "host", "finished_at")
"""Ledger columns that differ between equal runs."""

CATALOG_LEDGER: pa.Schema = pa.schema(
    [*(f for f in LEDGER if f.name != "candidates_path"), column_of("run_id", TEXT, "Run that did it", "", "meta.id")]
)
"""Ledger rows of the tiles of a published catalog."""

RUNS: pa.Schema = pa.schema(
    [
        column_of("run_id", TEXT, "Run", "", "meta.id;meta.main"),
        column_of("url", TEXT, "Run folder", "", "meta.ref.url"),
        column_of("tiles", I64, "Tiles that count", "", "meta.number"),
        column_of("published", TEXT, "Snapshot of sweep that lists them", "", "meta.ref.uri"),
        column_of("model", TEXT, "Checkpoint", "", "meta.id;meta.modelled"),
        column_of("checkpoint_sha256", TEXT, "SHA-256 of its weights and card", "", "meta.checksum"),
        column_of("direction", TEXT, "What became what", "", "meta.id"),
        column_of("samples", I64, "Posterior samples", "", "meta.number"),
        column_of("steps", I64, "Network evaluations a sample", "", "meta.number"),
        column_of("seed", I64, "Seed of the noise", "", "meta.number"),
        column_of("store", TEXT, "Tile store", "", "meta.ref.url"),
        column_of("code_version", TEXT, "Version that wrote it", "", "meta.version"),
    ]
)
"""Schema of the runs in a query."""


def mosaic_schema(bands: Sequence[str], unit: str) -> pa.Schema:
    """Schema of one tile's mosaic in a unit: a row per cell of `CELL` x `CELL` pixels, a plane per band."""
    n_bands = len(bands)
    cube = pa.fixed_shape_tensor(F32, [n_bands, CELL, CELL])
    plane = pa.fixed_shape_tensor(F32, [CELL, CELL])
    unit, value = vo_unit(unit), ucd_of(unit, "meta.modelled")
    sigma = f"stat.stdev;{value}" if value.startswith("phot") else "stat.stdev;meta.modelled"
    return pa.schema(
        [
            _TILE,
            column_of("x", I64, "Column of the cell's first pixel in the global grid", "pix", "pos.cartesian.x"),
            column_of("y", I64, "Row of the cell's first pixel in the global grid", "pix", "pos.cartesian.y"),
            column_of("height", I32, "Rows in use; the rest is padding", "pix", "meta.number"),
            column_of("width", I32, "Columns in use; the rest is padding", "pix", "meta.number"),
            _RA,
            _DEC,
            _HEALPIX,
            column_of("mean", cube, "Posterior mean (model-generated)", unit, value, (n_bands, CELL, CELL)),
            column_of("std", cube, "Posterior standard deviation", unit, sigma, (n_bands, CELL, CELL)),
            column_of(
                "coverage", plane, "Share of each pixel with observed input, 0..1", "", "obs.field", (CELL, CELL)
            ),
        ]
    )


MOSAIC: pa.Schema = mosaic_schema(("VIS",), "nJy")
"""Mosaic of one band, a flux (Euclid VIS)."""


def conform(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """`table` with exactly the columns, order, types and metadata of `schema`.

    Columns that the table lacks become null (thumbnails NaN, since readers choke on null arrays); a column that the
    schema does not know is a StorageError.
    """
    present = dict(zip(table.column_names, table.columns, strict=True))  # to look one up in a table, it lists them all
    extra = sorted(present.keys() - set(schema.names))
    if extra:
        raise StorageError(
            f"{what} have the unknown column(s) {', '.join(extra)}; schema version {SCHEMA_VERSION} "
            f"has {', '.join(schema.names)}"
        )
    columns = []
    for field in schema:
        column = present.get(field.name)
        if column is None:
            columns.append(_absent(field.type, table.num_rows))
            continue
        try:
            columns.append(column if column.type.equals(field.type) else column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise StorageError(
                f"{what}: column {field.name} is {column.type} but the schema has {field.type}: {error}"
            ) from error
    return pa.Table.from_arrays(columns, schema=schema)


def _absent(kind: pa.DataType, rows: int) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(
            pa.array(np.full(rows * kind.list_size, np.nan, np.float32)), kind.list_size
        )
    return pa.nulls(rows, kind)


def stamps(name: str, array: ArrayLike, schema: pa.Schema = CANDIDATES) -> pa.Array:
    """Return thumbnails [N, C, H, W] as the column `name` of a candidates table; NaN where there are no data."""
    field = schema.field(name)
    shape = _shape(field)
    data = np.ascontiguousarray(array, np.float32)
    if data.shape[1:] != shape:
        raise StorageError(
            f"{name}: stamps of shape {data.shape[1:]} but the schema has {shape}; cut {CELL} px windows"
        )
    return pa.FixedSizeListArray.from_arrays(pa.array(data.ravel()), field.type.list_size)


def stamp_array(table: pa.Table, name: str) -> NDArray[np.float32]:
    """Inverse of `stamps`: thumbnails float32 [N, C, H, W] of a candidates table."""
    column = table.column(name).combine_chunks()
    flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32)
    return flat.reshape((table.num_rows, column.type.list_size // CELL**2, CELL, CELL))


def _shape(field: pa.Field) -> tuple[int, ...]:
    return tuple(int(n) for n in (field.metadata or {}).get(b"shape", b"").decode().split(",") if n)


def table_from_rows(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, what: str) -> pa.Table:
    """Table of `schema` from dictionaries; missing keys become null, unknown keys are a StorageError."""
    unknown = sorted({key for row in rows for key in row} - set(schema.names))
    if unknown:
        raise StorageError(f"{what} have the unknown column(s) {', '.join(unknown)}; known: {', '.join(schema.names)}")
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)
