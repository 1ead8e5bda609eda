"""Parquet schemas of a run: manifest, mosaics, candidates, ledger, with units, UCDs and descriptions on every column.

Those with columns for bands follow from the problem (`candidates_schema` and the like); the constants of the same names
are these of the default problem.

Field metadata: `unit` (VOUnit), `ucd` (UCD1+), `description`, and `shape` where a list column is a flattened array.
How files of them are written: `storage.parquet`.

Thumbnails are plain `fixed_size_list` columns, since astropy does not read Arrow's tensor extension type;
mosaics are `fixed_shape_tensor`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from surveybridge.storage.errors import StorageError
from surveybridge.storage.flags import NEAR_ARCSEC, legend
from surveybridge.storage.problems import EndpointTable, ProblemTable, band_columns, default_problem, endpoint, other
from surveybridge.storage.units import njy_per_unit, vo_unit

SCHEMA_VERSION = 4
"""Of the runs that are started now. Raised when a column or a file changes its meaning; files of every version that was
ever released stay readable.

1: a ledger row says ok or failed. 2: it may say quarantined, names the failing stage and the content of the tile, and
rows and candidates of many tiles may lie in one segment. 3: a candidate's score is the lens score where the checkpoint
has one, with its false-alarm rate beside it, and AS-Bridge's has a column of its own. 4: rows say which field they are
of and whether their images lie in the checkpoint's domain, a ledger row says which part of the sky the tile owns;
candidates are at least `bridge_core.detection.SIGNIFICANCE` above the noise, whose correlation their signal to noise
knows, and have systems, kinds, magnitudes, extents and more flags.
"""

RESUMED_VERSIONS = (3, 4)
"""Versions whose runs are gone on with; the rows of a run all have the columns of its own version."""

VERSION_KEY = b"surveybridge.schema_version"
"""Footer entry of a file, and metadata of a schema that may be that of an earlier version."""

CELL = 64
"""Side of a mosaic cell and of a thumbnail, pixels."""


def _field(
    name: str, kind: pa.DataType, description: str, unit: str = "", ucd: str = "", shape: Sequence[int] = ()
) -> pa.Field:
    metadata = {"description": description, "unit": unit, "ucd": ucd, "shape": ",".join(map(str, shape))}
    return pa.field(name, kind, metadata={key: value for key, value in metadata.items() if value})


def _stated(version: int) -> dict[bytes, bytes]:
    """Metadata by which the files of a schema state their version."""
    return {VERSION_KEY: str(version).encode()}


def _stamp(name: str, description: str, end: EndpointTable) -> pa.Field:
    """Thumbnails of all bands of an endpoint, in its unit."""
    shape = (len(end["bands"]), CELL, CELL)
    kind = pa.list_(pa.float32(), shape[0] * CELL * CELL)
    return _field(name, kind, description, vo_unit(end["unit"]), _ucd(end["unit"]), shape)


def _ucd(unit: str, *more: str) -> str:
    """UCD of values in a unit: a flux density, or just a value."""
    return ";".join(["phot.flux.density" if njy_per_unit(unit) else "stat.value", *more])


def _of_bands(problem: ProblemTable) -> list[tuple[str, str, EndpointTable]]:
    """For each band of both endpoints: what columns are called after it, what it is called in words, its endpoint."""
    return [
        (column, band if column == band else f"{band} of {endpoint(problem, name)['title']}", endpoint(problem, name))
        for (name, band), column in band_columns(problem).items()
    ]


def _catalog_end(problem: ProblemTable) -> EndpointTable:
    """The endpoint with the objects; StorageError where there is none."""
    if problem["catalog"] is None:
        raise StorageError(
            f"problem {problem['name']} makes maps only: it has no catalog; name the endpoint with the objects"
        )
    return endpoint(problem, problem["catalog"])


_F32, _F64, _I32, _I64, _TEXT = pa.float32(), pa.float64(), pa.int32(), pa.int64(), pa.string()

_RA = _field("ra", _F64, "Right ascension, ICRS", "deg", "pos.eq.ra;meta.main")
_DEC = _field("dec", _F64, "Declination, ICRS", "deg", "pos.eq.dec;meta.main")
_HEALPIX = _field("_healpix_29", _I64, "HEALPix index, NESTED, order 29, ICRS", "", "pos.healpix")
_TILE = _field("tile_id", _TEXT, "Tile whose core holds this", "", "meta.id")
_GRID = _field("grid_id", _TEXT, "Global pixel grid", "", "meta.id")
_FIELD = _field("field", _TEXT, "Field: a named region of the sky on one pixel grid", "", "meta.id;obs.field")
_DOMAIN = _field(
    "domain",
    _TEXT,
    "Whether the images are such as the checkpoint was trained on: in, or out: reason; reason",
    "",
    "meta.code.qual",
)
_CORE_CORNER = (
    _field("core_y0", _I64, "First row that the tile owns, in the global pixel grid", "pix", "pos.cartesian.y"),
    _field("core_x0", _I64, "First column that the tile owns, in the global pixel grid", "pix", "pos.cartesian.x"),
)
_CORE_SHAPE = (
    _field("core_height", _I32, "Rows that the tile owns", "pix", "meta.number"),
    _field("core_width", _I32, "Columns that the tile owns", "pix", "meta.number"),
)

MANIFEST: pa.Schema = pa.schema(
    [
        _field("tile_id", _TEXT, "Tile", "", "meta.id;meta.main"),
        _RA,
        _DEC,
        _HEALPIX,
        _field("height", _I32, "Rows stored: core and halo", "pix", "meta.number"),
        _field("width", _I32, "Columns stored: core and halo", "pix", "meta.number"),
        *_CORE_SHAPE,
        _field("surveys", pa.list_(_TEXT), "Surveys present", "", "meta.id;instr"),
        _field("bytes", _I64, "Size of all arrays in memory, uncompressed", "byte", "phys.size;meta.file"),
        _field("content", _TEXT, "SHA-256 of all pixels: other content, another value", "", "meta.checksum"),
        _GRID,
        _FIELD,
        *_CORE_CORNER,
        _DOMAIN,
        _field("group", _TEXT, "Zarr group of the tile, relative to the store", "", "meta.ref.uri"),
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
    catalog, bands = _catalog_end(problem), _of_bands(problem)
    reconstructed = ",".join(catalog["bands"])
    since_4 = version >= 4
    noise = "with the noise's correlation" if since_4 else "noise taken as white"
    return pa.schema(
        [
            _field("object_id", _TEXT, "Object, unique within the run", "", "meta.id;meta.main"),
            _RA,
            _DEC,
            _HEALPIX,
            *((_FIELD,) if since_4 else ()),
            _TILE,
            *((_DOMAIN,) if since_4 else ()),
            _field(
                "score",
                _F64,
                "Anomaly score: larger = harder to reconcile; NaN where too much is masked",
                "",
                "stat.value",
            ),
            _field("score_std", _F64, "Standard error of the score over the sampler's noises", "", "stat.stdev"),
            _field("false_alarm", _F64, "Share of regular objects alike that score higher", "", "stat.probability"),
            _field("score_asbridge", _F64, "AS-Bridge's score: smallest squared error over flux", "", "stat.value"),
            *(_systems("filled by queries, null on disk") if since_4 else (_RANK_BEFORE_4,)),
            *(
                _field(f"flux_{column}", _F32, f"Flux in {band}", vo_unit(end["unit"]), _ucd(end["unit"], "em.opt"))
                for column, band, end in bands
            ),
            *(
                _field(f"snr_{column}", _F32, f"Signal to noise in {band} ({noise})", "", "stat.snr;em.opt")
                for column, band, _ in bands
            ),
            *(_magnitudes(bands) if since_4 else ()),
            *(_conditions(bands, catalog) if since_4 else (_FLAGS_BEFORE_4,)),
            _field("x", _F64, "Column of the centre in the global pixel grid, 0-based", "pix", "pos.cartesian.x"),
            _field("y", _F64, "Row of the centre in the global pixel grid, 0-based", "pix", "pos.cartesian.y"),
            _field("a", _F32, "Semi-major axis (rms)", "pix", "phys.size.smajAxis"),
            _field("b", _F32, "Semi-minor axis (rms)", "pix", "phys.size.sminAxis"),
            _field("theta", _F32, "Position angle of the major axis from +x towards +y", "rad", "pos.posAng"),
            _field("model_id", _TEXT, "Model that scored it", "", "meta.id;meta.modelled"),
            _field("run_id", _TEXT, "Run that wrote it", "", "meta.id"),
            *(
                _stamp(
                    f"thumbnail_{end['name']}",
                    f"{end['title']} {','.join(end['bands'])} around the object"
                    + ("" if end is catalog else ", on the run's grid"),
                    end,
                )
                for end in problem["endpoints"]
            ),
            _stamp("thumbnail_mean", f"Mean of the reconstructions of {reconstructed} (model-generated)", catalog),
            _stamp(
                "thumbnail_error",
                "Residual of the reconstructions that the score sums (model-generated)",
                catalog,
            ),
        ],
        metadata=_stated(version),
    )


def _systems(filled: str) -> tuple[pa.Field, ...]:
    """Columns of ranks and systems."""
    return (
        _field(
            "rank", _I32, f"1 = system with the highest score, the same for all its rows; {filled}", "", "meta.number"
        ),
        _field(
            "system_id",
            _TEXT,
            f'System, such as a lens and its arcs: the brightest object within {NEAR_ARCSEC:g}", maybe itself',
            "",
            "meta.id.parent",
        ),
        _field(
            "system_rank", _I32, f"1 = highest score of its system, the row that leads; {filled}", "", "meta.number"
        ),
        _field("system_members", _I32, f"Rows of its system; {filled}", "", "meta.number"),
        _field(
            "kind",
            _TEXT,
            f'object; star (point-like); saturated (or within {NEAR_ARCSEC:g}" of a saturated source)',
            "",
            "src.class",
        ),
    )


def _magnitudes(bands: Sequence[tuple[str, str, EndpointTable]]) -> list[pa.Field]:
    """AB magnitudes and their errors, in bands whose values are flux densities."""
    found = []
    for column, band, end in bands:
        if njy_per_unit(end["unit"]):
            said = f"AB magnitude in {band} of the same flux; NaN where that is not positive"
            found.append(_field(f"mag_{column}", _F32, said, "mag", "phot.mag;em.opt"))
            found.append(
                _field(
                    f"mag_err_{column}", _F32, f"Standard error of mag_{column}", "mag", "stat.error;phot.mag;em.opt"
                )
            )
    return found


def _conditions(bands: Sequence[tuple[str, str, EndpointTable]], catalog: EndpointTable) -> tuple[pa.Field, ...]:
    """Columns to cut on: flags, masked share, extent."""
    band = next(words for _, words, end in bands if end is catalog)
    return (
        _field("flags", _I32, f"0 = ordinary, alone and whole; sum of: {legend()}", "", "meta.code"),
        _field(
            "masked", _F32, "Share of the aperture that is masked, in any band of either end", "", "stat.proportion"
        ),
        _field(
            "extent", _F32, f"Width in {band} over that of the PSF, 1 = point source; NaN: not known", "", "phys.size"
        ),
        _field("extent_err", _F32, "Standard error of extent", "", "stat.error;phys.size"),
    )


_RANK_BEFORE_4 = _field(
    "rank", _I32, "1 = highest score of the run; filled by queries, null on disk", "", "meta.number"
)
_FLAGS_BEFORE_4 = _field(
    "flags", _I32, "SExtractor's bits: 1 neighbours, 2 deblended, 4 saturated, 8 edge", "", "meta.code"
)


def shown_bands(problem: ProblemTable) -> list[str]:
    """Columns that a list of candidates shows: all fluxes, and two signals to noise, of the bands by which one judges.

    These are the last band of the one endpoint and the first of the other, on which objects are found.
    """
    catalog, columns = _catalog_end(problem), band_columns(problem)
    seen = other(problem, catalog["name"])
    judged = ((seen["name"], seen["bands"][-1]), (catalog["name"], catalog["bands"][0]))
    return [f"flux_{column}" for column in columns.values()] + [f"snr_{columns[key]}" for key in judged]


def detection_column(problem: ProblemTable) -> str:
    """Return the suffix of columns for the band on which objects are found."""
    catalog = _catalog_end(problem)
    return band_columns(problem)[catalog["name"], catalog["bands"][0]]


def thumbnail_names(schema: pa.Schema) -> tuple[str, ...]:
    """Columns of candidates that hold pictures."""
    return tuple(name for name in schema.names if name.startswith("thumbnail_"))


def catalog_schema(problem: ProblemTable) -> pa.Schema:
    """Rows of a published catalog: candidates with their ranks; thumbnails, 98 kB a row, stay in the run."""
    schema = candidates_schema(problem)
    left_out = thumbnail_names(schema)
    filled = {field.name: field for field in _systems("over the whole catalog")}
    return pa.schema([filled.get(field.name, field) for field in schema if field.name not in left_out])


CANDIDATES: pa.Schema = candidates_schema(default_problem())
"""Candidates of the default problem."""

THUMBNAILS = thumbnail_names(CANDIDATES)

CATALOG: pa.Schema = catalog_schema(default_problem())
"""Rows of a published catalog of the default problem."""


def ledger_schema(version: int = SCHEMA_VERSION) -> pa.Schema:
    """Ledger rows of a run of some schema version."""
    later = () if version >= 4 else _LEDGER_SINCE_4
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

LEDGER: pa.Schema = pa.schema(
    [
        _field("tile_id", _TEXT, "Tile", "", "meta.id;meta.main"),
        _field(
            "status", _TEXT, "ok, failed, or quarantined: it killed its process again and again", "", "meta.code.status"
        ),
        _field("stage", _TEXT, "Where it failed: read, model or write", "", "meta.id"),
        _field("reason", _TEXT, "Why it failed, one line", "", "meta.note"),
        _field("traceback_hash", _TEXT, "Equal for failures of one cause", "", "meta.id"),
        _field("attempt", _I32, "How often the tile was tried, 1 = once", "", "meta.number"),
        _field("n_candidates", _I32, "Candidates written", "", "meta.number"),
        _field("n_patches", _I32, "Network windows", "", "meta.number"),
        _field("content", _TEXT, "The manifest's content of the tile when it was done", "", "meta.checksum"),
        *(
            _field(f"seconds_{s}", _F64, f"Wall time: {s}", "s", "time.duration")
            for s in ("read", "model", "score", "write")
        ),
        _field("host", _TEXT, "Machine that did it", "", "meta.id"),
        _field("finished_at", pa.timestamp("us", tz="UTC"), "When it was committed", "", "time.end"),
        _field("mosaic_path", _TEXT, "Mosaic, relative to the run folder", "", "meta.ref.uri"),
        _field("candidates_path", _TEXT, "Candidates, relative to the run folder", "", "meta.ref.uri"),
        _FIELD,
        _GRID,
        *_CORE_CORNER,
        *_CORE_SHAPE,
        _field(
            "catalogued", pa.bool_(), "Both ends were there, so that its objects are candidates", "", "meta.code.status"
        ),
        _field(
            "covered_cells",
            pa.list_(pa.int8()),
            "Cells of 64 x 64 pixels of the core, row by row: 2 has data of both ends throughout, 1 partly, 0 nowhere; "
            "null: 2 in all",
            "",
            "meta.code",
        ),
        _DOMAIN,
    ],
    metadata=_stated(SCHEMA_VERSION),
)

GRADES: pa.Schema = pa.schema(
    [
        _field("entry", _TEXT, "One act of grading; no two of a grader have the same", "", "meta.id;meta.main"),
        _field("object_id", _TEXT, "Candidate, as the run names it", "", "meta.id"),
        _field("grader", _TEXT, "Who graded", "", "meta.id"),
        _field(
            "grade", _TEXT, "A lens, B probable, C possible, X none; null: no grade, or none any more", "", "meta.code"
        ),
        _field("comment", _TEXT, "What the grader wrote", "", "meta.note"),
        _field("graded_at", pa.timestamp("us", tz="UTC"), "When", "", "time.creation"),
        _field("rank", _I32, "Rank of the candidate when it was graded", "", "meta.number"),
        _field("model_id", _TEXT, "Model that scored it", "", "meta.id;meta.modelled"),
        _field("run_id", _TEXT, "Run that wrote it", "", "meta.id"),
    ]
)
"""Grades of candidates: a row for each act of grading, never changed."""

_OBJECT = _field("object_id", _TEXT, "Object, as the pair store names it", "", "meta.id;meta.main")
_DIRECTION = _field("direction", _TEXT, "What became what", "", "meta.id")


def colour_columns(problem: ProblemTable) -> dict[tuple[str, str, str], str]:
    """Columns of colours, by (endpoint, band, next band): between neighbouring bands that are fluxes."""
    columns = band_columns(problem)
    found = {}
    for end in problem["endpoints"]:
        bands = end["bands"] if njy_per_unit(end["unit"]) else []
        for blue, red in itertools.pairwise(bands):
            names = columns[end["name"], blue], columns[end["name"], red]
            between = "" if max(map(len, names)) == 1 else "_"
            found[end["name"], blue, red] = f"colour_{between.join(names)}"
    return found


def evaluated_images_schema(problem: ProblemTable) -> pa.Schema:
    """Scores of whole images: a row for each pair and direction."""
    blended = problem["endpoints"][0] if problem["catalog"] is None else other(problem, problem["catalog"])
    colours = colour_columns(problem).items()
    measured = (
        *((name, f"Colour {blue} - {red} within 1 arcsec (mag)") for (_, blue, red), name in colours),
        ("size", "Size from weighted second moments (arcsec)"),
        ("ellipticity", "Ellipticity from weighted second moments"),
        ("bulge", "Flux within 0.3 arcsec over that within 1 arcsec"),
        ("gini", "Gini coefficient within 1 arcsec"),
        ("asymmetry", "Rotational asymmetry within 1 arcsec"),
        ("sources", "Sources detected in the stamp"),
    )
    return pa.schema(
        [
            _OBJECT,
            _DIRECTION,
            _field("energy_score", _F64, "Energy score as AS-Bridge defines it, on [0, 1]", "", "stat.value"),
            _field("energy_score_fair", _F64, "The same over different samples only", "", "stat.value"),
            *(
                _field(
                    f"patch_energy_{s}", _F64, f"Fair energy score of 8 x 8 patches, {s} px averaged", "", "stat.value"
                )
                for s in (1, 2, 4, 8)
            ),
            *(
                _field(
                    f"flux_{column}{suffix}",
                    _F64,
                    f"Flux in {band} within 1 arcsec: {what}",
                    vo_unit(end["unit"]),
                    _ucd(end["unit"]),
                )
                for column, band, end in _of_bands(problem)
                for suffix, what in (("", "truth"), ("_mean", "mean of samples"), ("_std", "std of samples"))
            ),
            *(
                field
                for name, what in measured
                for field in (
                    _field(name, _F64, f"{what}: truth", "", "stat.value"),
                    _field(f"{name}_samples", pa.list_(_F64), f"{what}: each sample", "", "stat.value"),
                )
            ),
            _field(
                "sources_matched_samples",
                pa.list_(_F64),
                "Sources of each sample that the truth has",
                "",
                "meta.number",
            ),
            _field("power", pa.list_(_F64), "Power by spatial frequency up to Nyquist's: truth", "", "stat.value"),
            _field("power_samples", pa.list_(_F64), "The same, mean of samples", "", "stat.value"),
            _field(
                f"blended_{blended['name']}",
                pa.bool_(),
                f"Blended in {blended['title']}, where the store's table says",
                "",
                "meta.code",
            ),
        ]
    )


EVALUATED_IMAGES: pa.Schema = evaluated_images_schema(default_problem())
"""Scores of whole images of the default problem."""

EVALUATED_PIXELS: pa.Schema = pa.schema(
    [
        _OBJECT,
        _DIRECTION,
        _field("band", _TEXT, "Band of the wanted survey", "", "meta.id;instr.bandpass"),
        _field("region", _TEXT, "Which pixels: all, sky, bright, bright_truth", "", "meta.id"),
        _field("pixels", _F64, "Pixels in the region", "", "meta.number"),
        _field("squared_error", _F64, "Summed squared error of the mean, in the sky's variance", "", "stat.error"),
        _field("variance", _F64, "Summed variance over samples, in the sky's variance", "", "stat.variance"),
        _field("crps", _F64, "Summed fair CRPS, in the sky's standard deviation", "", "stat.value"),
        _field(
            "squared_error_display", _F64, "Summed squared error of the mean, AS-Bridge's display", "", "stat.error"
        ),
        _field("variance_display", _F64, "Summed variance over samples, AS-Bridge's display", "", "stat.variance"),
        _field("within", pa.list_(_F64), "Pixels inside the 50, 68, 90 and 95% intervals", "", "meta.number"),
        _field("ranks", pa.list_(_F64), "Pixels by rank of the truth among the samples", "", "meta.number"),
    ]
)
"""Sums over pixels: a row for each pair, direction, band and region."""


def evaluated_scores_schema(problem: ProblemTable) -> pa.Schema:
    """Anomaly scores: a row for each object; StorageError if the problem makes maps only."""
    catalog = _catalog_end(problem)
    seen = other(problem, catalog["name"])
    central, total = seen["bands"][-1], catalog["bands"][0]
    unit, ucd = vo_unit(seen["unit"]), _ucd(seen["unit"])
    return pa.schema(
        [
            _OBJECT,
            _field("anomalous", pa.bool_(), "From the store of anomalies", "", "meta.code"),
            _field(
                "central_class", _TEXT, "Class of the central object, where the store's table says", "", "src.class"
            ),
            _field("score", _F64, "Anomaly score: larger = harder to reconcile", "", "stat.value"),
            _field("score_std", _F64, "Standard error of the score over the sampler's noises", "", "stat.stdev"),
            _field("false_alarm", _F64, "Share of regular objects alike that score higher", "", "stat.probability"),
            _field("score_asbridge", _F64, "AS-Bridge's score: smallest squared error over flux", "", "stat.value"),
            _field("central_flux", _F64, f"Flux in {central} within 1 arcsec, a score without a model", unit, ucd),
            _field(
                "total_flux",
                _F64,
                f"Flux of the stamp in {total}, a score without a model",
                vo_unit(catalog["unit"]),
                _ucd(catalog["unit"]),
            ),
            _field("inverse_flux", _F64, "central_flux with the other sign: ranks as 1/flux", unit, ucd),
            _field(
                "smooth_residual",
                _F64,
                f"What a Gaussian leaves of {total}, mean square in sigma^2",
                "",
                "stat.value",
            ),
        ]
    )


EVALUATED_SCORES: pa.Schema = evaluated_scores_schema(default_problem())
"""Anomaly scores of the default problem."""

WALL_CLOCK = ("seconds_read", "seconds_model", "seconds_score", "seconds_write", "host", "finished_at")
"""Ledger columns that differ between equal runs."""

CATALOG_LEDGER: pa.Schema = pa.schema(
    [*(f for f in LEDGER if f.name != "candidates_path"), _field("run_id", _TEXT, "Run that did it", "", "meta.id")]
)
"""Ledger rows of the tiles of a published catalog."""

RUNS: pa.Schema = pa.schema(
    [
        _field("run_id", _TEXT, "Run", "", "meta.id;meta.main"),
        _field("url", _TEXT, "Run folder", "", "meta.ref.url"),
        _field("tiles", _I64, "Tiles that count", "", "meta.number"),
        _field("published", _TEXT, "Snapshot of sweep that lists them", "", "meta.ref.uri"),
        _field("model", _TEXT, "Checkpoint", "", "meta.id;meta.modelled"),
        _field("checkpoint_sha256", _TEXT, "SHA-256 of its weights and card", "", "meta.checksum"),
        _field("direction", _TEXT, "What became what", "", "meta.id"),
        _field("samples", _I64, "Posterior samples", "", "meta.number"),
        _field("steps", _I64, "Network evaluations a sample", "", "meta.number"),
        _field("seed", _I64, "Seed of the noise", "", "meta.number"),
        _field("store", _TEXT, "Tile store", "", "meta.ref.url"),
        _field("code_version", _TEXT, "Version that wrote it", "", "meta.version"),
    ]
)
"""Schema of the runs in a query."""


def mosaic_schema(bands: Sequence[str], unit: str) -> pa.Schema:
    """Schema of one tile's mosaic in a unit: a row per cell of `CELL` x `CELL` pixels, a plane per band."""
    n_bands = len(bands)
    cube = pa.fixed_shape_tensor(_F32, [n_bands, CELL, CELL])
    plane = pa.fixed_shape_tensor(_F32, [CELL, CELL])
    unit, value = vo_unit(unit), _ucd(unit, "meta.modelled")
    sigma = f"stat.stdev;{value}" if value.startswith("phot") else "stat.stdev;meta.modelled"
    return pa.schema(
        [
            _TILE,
            _field("x", _I64, "Column of the cell's first pixel in the global grid", "pix", "pos.cartesian.x"),
            _field("y", _I64, "Row of the cell's first pixel in the global grid", "pix", "pos.cartesian.y"),
            _field("height", _I32, "Rows in use; the rest is padding", "pix", "meta.number"),
            _field("width", _I32, "Columns in use; the rest is padding", "pix", "meta.number"),
            _RA,
            _DEC,
            _HEALPIX,
            _field("mean", cube, "Posterior mean (model-generated)", unit, value, (n_bands, CELL, CELL)),
            _field("std", cube, "Posterior standard deviation", unit, sigma, (n_bands, CELL, CELL)),
            _field("coverage", plane, "Share of each pixel with observed input, 0..1", "", "obs.field", (CELL, CELL)),
        ]
    )


MOSAIC: pa.Schema = mosaic_schema(("VIS",), "nJy")
"""Mosaic of one band, a flux (Euclid VIS)."""


def conform(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """`table` with exactly the columns, order, types and metadata of `schema`.

    Columns that the table lacks become null (thumbnails NaN, since readers choke on null arrays); a column that the
    schema does not know is a StorageError.
    """
    extra = sorted(set(table.column_names) - set(schema.names))
    if extra:
        raise StorageError(
            f"{what} have the unknown column(s) {', '.join(extra)}; schema version {SCHEMA_VERSION} "
            f"has {', '.join(schema.names)}"
        )
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(_absent(field.type, table.num_rows))
            continue
        try:
            columns.append(table.column(field.name).cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            found = table.schema.field(field.name).type
            raise StorageError(
                f"{what}: column {field.name} is {found} but the schema has {field.type}: {error}"
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
