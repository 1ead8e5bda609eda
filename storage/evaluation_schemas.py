"""Parquet schemas of what `surveybridge evaluate` writes: scores of images, sums over pixels, anomaly scores."""

from __future__ import annotations

import itertools

import pyarrow as pa

from surveybridge.storage.columns import F64, I32, TEXT, bands_of, catalog_end, column_of, ucd_of
from surveybridge.storage.problems import ProblemTable, band_columns, default_problem, other
from surveybridge.storage.units import njy_per_unit, vo_unit

_OBJECT = column_of("object_id", TEXT, "Object, as the pair store names it", "", "meta.id;meta.main")
_DIRECTION = column_of("direction", TEXT, "What became what", "", "meta.id")


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
            column_of("energy_score", F64, "Energy score as AS-Bridge defines it, on [0, 1]", "", "stat.value"),
            column_of("energy_score_fair", F64, "The same over different samples only", "", "stat.value"),
            *(
                column_of(
                    f"patch_energy_{s}", F64, f"Fair energy score of 8 x 8 patches, {s} px averaged", "", "stat.value"
                )
                for s in (1, 2, 4, 8)
            ),
            *(
                column_of(
                    f"flux_{column}{suffix}",
                    F64,
                    f"Flux in {band} within 1 arcsec: {what}",
                    vo_unit(end["unit"]),
                    ucd_of(end["unit"]),
                )
                for column, band, end in bands_of(problem)
                for suffix, what in (("", "truth"), ("_mean", "mean of samples"), ("_std", "std of samples"))
            ),
            *(
                field
                for name, what in measured
                for field in (
                    column_of(name, F64, f"{what}: truth", "", "stat.value"),
                    column_of(f"{name}_samples", pa.list_(F64), f"{what}: each sample", "", "stat.value"),
                )
            ),
            column_of(
                "sources_matched_samples",
                pa.list_(F64),
                "Sources of each sample that the truth has",
                "",
                "meta.number",
            ),
            column_of("power", pa.list_(F64), "Power by spatial frequency up to Nyquist's: truth", "", "stat.value"),
            column_of("power_samples", pa.list_(F64), "The same, mean of samples", "", "stat.value"),
            column_of(
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
        column_of("band", TEXT, "Band of the wanted survey", "", "meta.id;instr.bandpass"),
        column_of("region", TEXT, "Which pixels: all, sky, bright, bright_truth", "", "meta.id"),
        column_of("pixels", F64, "Pixels in the region", "", "meta.number"),
        column_of("squared_error", F64, "Summed squared error of the mean, in the sky's variance", "", "stat.error"),
        column_of("variance", F64, "Summed variance over samples, in the sky's variance", "", "stat.variance"),
        column_of("crps", F64, "Summed fair CRPS, in the sky's standard deviation", "", "stat.value"),
        column_of(
            "squared_error_display", F64, "Summed squared error of the mean, AS-Bridge's display", "", "stat.error"
        ),
        column_of("variance_display", F64, "Summed variance over samples, AS-Bridge's display", "", "stat.variance"),
        column_of("within", pa.list_(F64), "Pixels inside the 50, 68, 90 and 95% intervals", "", "meta.number"),
        column_of("ranks", pa.list_(F64), "Pixels by rank of the truth among the samples", "", "meta.number"),
    ]
)
"""Sums over pixels: a row for each pair, direction, band and region."""


EVALUATED_DEX: pa.Schema = pa.schema(
    [
        _OBJECT,
        column_of("simulation", TEXT, "Simulation that it was cut from, where the store says", "", "meta.id"),
        _DIRECTION,
        column_of("band", TEXT, "Band of the wanted end", "", "meta.id;instr.bandpass"),
        column_of("pixels", F64, "Pixels in which both ends have data", "", "meta.number"),
        column_of("area", F64, "Pixels in all", "", "meta.number"),
        column_of("crps", F64, "Summed fair CRPS (dex)", "", "stat.value"),
        column_of("variance", F64, "Summed variance over samples (dex^2)", "", "stat.variance"),
        column_of("within", pa.list_(F64), "Pixels inside the 50, 68, 90 and 95% intervals", "", "meta.number"),
        column_of("ranks", pa.list_(F64), "Pixels by rank of the truth among the samples", "", "meta.number"),
        *(
            column_of(name, pa.list_(F64), f"{what}; of one sample, the mean and the median", "", ucd)
            for name, what, ucd in (
                ("residual", "Summed r = log10 (predicted / true)", "stat.error"),
                ("residual_squared", "Summed r^2", "stat.error"),
                ("relative", "Summed (predicted - true) / true", "stat.error"),
                ("relative_squared", "Summed square of that", "stat.error"),
                ("factor_two", "Pixels within a factor of two of the truth", "meta.number"),
            )
        ),
        column_of(
            "histogram",
            pa.list_(I32),
            "Pixels by r, 1600 bins from -4 to 4 with one more at each end; of one sample, the mean and the median",
            "",
            "meta.number",
        ),
    ]
)
"""Sums over pixels of densities and other positive quantities: a row for each pair, direction and band."""


def evaluated_scores_schema(problem: ProblemTable) -> pa.Schema:
    """Anomaly scores: a row for each object; StorageError if the problem makes maps only."""
    catalog = catalog_end(problem)
    seen = other(problem, catalog["name"])
    central, total = seen["bands"][-1], catalog["bands"][0]
    unit, ucd = vo_unit(seen["unit"]), ucd_of(seen["unit"])
    return pa.schema(
        [
            _OBJECT,
            column_of("anomalous", pa.bool_(), "From the store of anomalies", "", "meta.code"),
            column_of(
                "central_class", TEXT, "Class of the central object, where the store's table says", "", "src.class"
            ),
            column_of("score", F64, "Anomaly score: larger = harder to reconcile", "", "stat.value"),
            column_of("score_std", F64, "Standard error of the score over the sampler's noises", "", "stat.stdev"),
            column_of("false_alarm", F64, "Share of regular objects alike that score higher", "", "stat.probability"),
            column_of("score_asbridge", F64, "AS-Bridge's score: smallest squared error over flux", "", "stat.value"),
            column_of("central_flux", F64, f"Flux in {central} within 1 arcsec, a score without a model", unit, ucd),
            column_of(
                "total_flux",
                F64,
                f"Flux of the stamp in {total}, a score without a model",
                vo_unit(catalog["unit"]),
                ucd_of(catalog["unit"]),
            ),
            column_of("inverse_flux", F64, "central_flux with the other sign: ranks as 1/flux", unit, ucd),
            column_of(
                "smooth_residual",
                F64,
                f"What a Gaussian leaves of {total}, mean square in sigma^2",
                "",
                "stat.value",
            ),
        ]
    )


EVALUATED_SCORES: pa.Schema = evaluated_scores_schema(default_problem())
"""Anomaly scores of the default problem."""
