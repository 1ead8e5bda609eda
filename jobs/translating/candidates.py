"""The anomaly candidates of one tile: detect on the end that has the catalog, score, and make rows of the catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from surveybridge.jobs.translating.scene import scene_of
from surveybridge.storage.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from surveybridge.bridge_core.model import Model
    from surveybridge.bridge_core.settings import Scoring
    from surveybridge.jobs.translating.sources import Found
    from surveybridge.storage.problems import ProblemTable
    from surveybridge.storage.tiles import Tile

APERTURE_ARCSEC = 1.0
"""Radius of the circle in which the catalog's fluxes are measured."""


class RunFacts(NamedTuple):
    """What rows say of their run, its schema version, on which the columns depend, and whether it is recalibrated."""

    run_id: str
    version: int = SCHEMA_VERSION
    calibrated: bool = False


def find_candidates(model: Model, tile: Tile, how: Scoring, run: RunFacts, device: torch.device) -> pa.Table:
    """Detect on the endpoint with the catalog, keep objects centred in the core, score them, and make catalog rows.

    Empty where a tile lacks one of the ends, or the problem makes maps only.
    """
    import numpy as np
    import pyarrow as pa

    from surveybridge.bridge_core.anomaly import score_sources
    from surveybridge.bridge_core.spans import span
    from surveybridge.jobs.translating.rates import rate_inputs
    from surveybridge.jobs.translating.sources import find_sources
    from surveybridge.storage.problems import described
    from surveybridge.storage.schema import candidates_schema, stamps
    from surveybridge.storage.sky import healpix_29, rounded_sky_name, sky_name
    from surveybridge.storage.thumbnails import thumbnails

    problem = model.card.problem
    direction = problem.scored
    if direction is None:
        return _no_candidates()
    table = described(problem.table)
    schema = candidates_schema(table, run.version)
    if not is_scored(model, tile):
        return schema.empty_table()
    found_on = tile.images[direction.wanted.name]
    with span("detection"):
        found = find_sources(found_on, tile.core, run.version)
    sources = found.sources
    if len(sources) == 0:
        return schema.empty_table()
    column, line = np.floor(sources.x + 0.5).astype(int), np.floor(sources.y + 0.5).astype(int)
    centres = [(tile.origin[0] + int(y), tile.origin[1] + int(x)) for y, x in zip(line, column, strict=True)]
    with span("scoring"):
        observed, wanted = (scene_of(tile, end.name, device) for end in (direction.observed, direction.wanted))
        scores = score_sources(model, observed, wanted, centres, how)
    ra, dec = found_on.wcs.all_pix2world(sources.x, sources.y, 0)
    name = sky_name if run.version >= 4 else rounded_sky_name
    columns: dict[str, Any] = {
        "object_id": [name(r, d) for r, d in zip(ra, dec, strict=True)],
        "ra": ra,
        "dec": dec,
        "_healpix_29": healpix_29(ra, dec),
        "field": [tile.field] * len(sources),
        "tile_id": [tile.tile_id] * len(sources),
        "domain": [found_on.provenance.get("domain")] * len(sources),
        "score": scores.score.numpy(),
        "score_std": scores.score_std.numpy(),
        "false_alarm": scores.false_alarm.numpy(),
        "score_asbridge": scores.published.numpy(),
        "x": tile.origin[1] + sources.x,
        "y": tile.origin[0] + sources.y,
        "a": sources.a,
        "b": sources.b,
        "theta": sources.theta,
        "model_id": [f"{model.card.name}-{model.sha256[:12]}"] * len(sources),
        "run_id": [run.run_id] * len(sources),
        "thumbnail_mean": stamps("thumbnail_mean", scores.mean.numpy(), schema),
        "thumbnail_error": stamps("thumbnail_error", scores.error.numpy(), schema),
    }
    heads = found_on.wcs.all_pix2world(found.head_x, found.head_y, 0)
    columns["system_id"] = [sky_name(r, d) for r, d in zip(*heads, strict=True)]
    columns |= found.columns | measured(tile, found, table, run.version)
    rates = model.card.recalibration.false_alarms if model.card.recalibration else None
    if run.calibrated and rates is not None:
        inputs = rate_inputs(columns, tile, direction, table)
        conditions = np.array([[inputs.conditions[name] for name in rates.conditions]] * len(sources))
        columns["false_alarm"] = rates.rate(columns["score"], inputs.flux, inputs.colour, conditions)
    for end in problem.endpoints:
        thumbnail = f"thumbnail_{end.name}"
        columns[thumbnail] = stamps(thumbnail, thumbnails(tile.images[end.name], column, line), schema)
    return pa.table({name: columns[name] for name in schema.names if name in columns})


def measured(tile: Tile, found: Found, table: ProblemTable, version: int) -> dict[str, Any]:
    """Columns of what is measured in the aperture: fluxes and magnitudes in all bands, masked share, flags."""
    import numpy as np

    from surveybridge.bridge_core.detection import aperture_flux
    from surveybridge.jobs.translating.sources import conditions
    from surveybridge.storage.photometry import magnitude_error, magnitude_from_flux
    from surveybridge.storage.problems import band_columns
    from surveybridge.storage.units import njy_per_unit

    columns: dict[str, Any] = {}
    suffix = band_columns(table)
    detected = 0
    for name, image in tile.images.items():
        radius = APERTURE_ARCSEC / image.pixel_scale
        correlation = image.noise_correlation if version >= 4 else ()
        fluxes, errors, bits = aperture_flux(
            image.flux, image.variance, image.valid, found.sources, radius, correlation
        )
        if name == table["catalog"]:
            detected = bits[0]
        njy = njy_per_unit(image.unit)
        for band, flux, error in zip(image.bands, fluxes, errors, strict=True):
            column = suffix[name, band]
            columns[f"flux_{column}"] = flux
            columns[f"snr_{column}"] = flux / error
            if njy:
                columns[f"mag_{column}"] = magnitude_from_flux(flux * njy).astype(np.float32)
                columns[f"mag_err_{column}"] = magnitude_error(flux, error)
    flags, masked = conditions(tile, found, APERTURE_ARCSEC)
    columns["flags"] = found.sources.flags | detected | flags if version >= 4 else found.sources.flags
    columns["masked"] = masked
    return columns


def is_scored(model: Model, tile: Tile) -> bool:
    """Return whether the objects of a tile are scored: both ends are there, and one of them has objects."""
    problem = model.card.problem
    return problem.scored is not None and {end.name for end in problem.endpoints} <= set(tile.images)


def catalogued_part(model: Model, tile: Tile) -> dict[str, Any]:
    """Return the columns of the ledger that say where in its core a tile has a catalog: where both ends have data."""
    import numpy as np

    from surveybridge.storage.covered_cells import cell_coverage
    from surveybridge.storage.images import MASK_PLANES

    if not is_scored(model, tile):
        return {"catalogued": False, "covered_cells": None}
    y0, y1, x0, x1 = tile.core
    masks = [image.mask[:, y0:y1, x0:x1] for image in tile.images.values()]
    lacking = np.logical_or.reduce([mask & MASK_PLANES["NO_DATA"] != 0 for mask in np.concatenate(masks)])
    return {"catalogued": True, "covered_cells": cell_coverage(~lacking)}


def _no_candidates() -> pa.Table:
    """A table without rows, which takes the columns of its run when it is written."""
    import pyarrow as pa

    return pa.table({name: pa.array([], pa.string() if name == "object_id" else pa.float64()) for name in _NEEDED})


_NEEDED = ("object_id", "ra", "dec")
