"""Columns of candidates that came with schema version 4, and those of earlier versions in their place."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from surveybridge.storage.columns import F32, I32, TEXT, column_of
from surveybridge.storage.flags import NEAR_ARCSEC, legend
from surveybridge.storage.problems import EndpointTable
from surveybridge.storage.units import njy_per_unit


def systems(filled: str) -> tuple[pa.Field, ...]:
    """Columns of ranks and systems."""
    return (
        column_of(
            "rank", I32, f"1 = system with the highest score, the same for all its rows; {filled}", "", "meta.number"
        ),
        column_of(
            "system_id",
            TEXT,
            f'System, such as a lens and its arcs: the brightest object within {NEAR_ARCSEC:g}", maybe itself',
            "",
            "meta.id.parent",
        ),
        column_of(
            "system_rank", I32, f"1 = highest score of its system, the row that leads; {filled}", "", "meta.number"
        ),
        column_of("system_members", I32, f"Rows of its system; {filled}", "", "meta.number"),
        column_of(
            "kind",
            TEXT,
            f'object; star (point-like); saturated (or within {NEAR_ARCSEC:g}" of a saturated source)',
            "",
            "src.class",
        ),
    )


def magnitudes(bands: Sequence[tuple[str, str, EndpointTable]]) -> list[pa.Field]:
    """AB magnitudes and their errors, in bands whose values are flux densities."""
    found = []
    for column, band, end in bands:
        if njy_per_unit(end["unit"]):
            said = f"AB magnitude in {band} of the same flux; NaN where that is not positive"
            found.append(column_of(f"mag_{column}", F32, said, "mag", "phot.mag;em.opt"))
            found.append(
                column_of(
                    f"mag_err_{column}", F32, f"Standard error of mag_{column}", "mag", "stat.error;phot.mag;em.opt"
                )
            )
    return found


def conditions(
    bands: Sequence[tuple[str, str, EndpointTable]], catalog: EndpointTable, version: int
) -> tuple[pa.Field, ...]:
    """Columns to cut on: flags, masked share, extent, as runs of a schema version have them."""
    band = next(words for _, words, end in bands if end is catalog)
    return (
        column_of("flags", I32, f"0 = ordinary, alone and whole; sum of: {legend(version)}", "", "meta.code"),
        column_of(
            "masked", F32, "Share of the aperture that is masked, in any band of either end", "", "stat.proportion"
        ),
        column_of(
            "extent", F32, f"Width in {band} over that of the PSF, 1 = point source; NaN: not known", "", "phys.size"
        ),
        column_of("extent_err", F32, "Standard error of extent", "", "stat.error;phys.size"),
    )


RANK_BEFORE_4 = column_of(
    "rank", I32, "1 = highest score of the run; filled by queries, null on disk", "", "meta.number"
)
FLAGS_BEFORE_4 = column_of(
    "flags", I32, "SExtractor's bits: 1 neighbours, 2 deblended, 4 saturated, 8 edge", "", "meta.code"
)
