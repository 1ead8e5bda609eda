"""The anomaly candidates of one tile: detect on the end that has the catalog, score, and make rows of the catalog."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from surveybridge.jobs.translating.scene import scene_of
from surveybridge.storage.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

    from surveybridge.bridge_core.model import Card, Model
    from surveybridge.bridge_core.settings import Scoring
    from surveybridge.jobs.translating.sources import Found
    from surveybridge.storage.problems import ProblemTable
    from surveybridge.storage.star_lists import StarList
    from surveybridge.storage.tiles import Tile

APERTURE_ARCSEC = 1.0
"""Radius of the circle in which the catalog's fluxes are measured."""


class RunFacts(NamedTuple):
    """What rows say of their run, its schema version, on which the columns depend, and what it was asked.

    calibrated: false-alarm rates are those of the recalibration; stars: those that are known.
    """

    run_id: str
    version: int = SCHEMA_VERSION
    calibrated: bool = False
    stars: StarList | None = None


@dataclass(frozen=True)
class Objects:
    """The N objects centred in a tile's core, and all of their rows that needs no network.

    Parameters
    ----------
    line, column : int64 [N]
        The pixels of the tile's arrays in which they are centred.
    asked : bool [N]
        Whether they may be lenses, and are to be scored.
    columns : dict of str to array
        Of the catalog, without what a network says; thumbnails as `thumbnails` cuts them.
    listed : (int, int, int)
        As in `Candidates`.
    """

    line: NDArray[np.int64]
    column: NDArray[np.int64]
    asked: NDArray[np.bool_]
    columns: dict[str, Any]
    listed: tuple[int, int, int]


@dataclass(frozen=True)
class Candidates:
    """The objects of a tile with their scores, which whoever writes them makes into rows; no tensors.

    Parameters
    ----------
    schema : pyarrow.Schema
        Of the run's catalog.
    columns : dict of str to array
        By name, of one length; none where nothing was found.
    listed : (int, int, int)
        Of the list of stars: those in the core, those matched, and those too wide for stars.
    """

    schema: pa.Schema
    columns: Mapping[str, Any]
    listed: tuple[int, int, int] = (0, 0, 0)

    @functools.cached_property
    def rows(self) -> pa.Table:
        """Rows of the catalog."""
        import pyarrow as pa

        from surveybridge.storage.schema import stamps, thumbnail_names

        if not self.columns:
            return self.schema.empty_table()
        packed = {name: stamps(name, self.columns[name], self.schema) for name in thumbnail_names(self.schema)}
        columns = {**self.columns, **packed}
        return pa.table({name: columns[name] for name in self.schema.names if name in columns})


def find_candidates(model: Model, tile: Tile, how: Scoring, run: RunFacts, device: torch.device) -> Candidates:
    """Detect on the endpoint with the catalog, keep objects centred in the core, and score them."""
    return score_objects(model, tile, find_objects(model.card, tile, run), how, run, device)


def find_objects(card: Card, tile: Tile, run: RunFacts) -> Objects | None:
    """Detect on the endpoint with the catalog, and measure what is centred in the core.

    None where a tile lacks one of the ends, or the problem makes maps only. It needs no network, so that those who read
    tiles do it while others' networks work.
    """
    import numpy as np

    from surveybridge.bridge_core.spans import span
    from surveybridge.jobs.translating.domain import object_domains
    from surveybridge.jobs.translating.sources import find_sources, may_be_lenses
    from surveybridge.storage.flags import BITS
    from surveybridge.storage.problems import described
    from surveybridge.storage.sky import healpix_29, rounded_sky_name, sky_name
    from surveybridge.storage.thumbnails import thumbnails

    direction = card.problem.scored
    if direction is None or not is_scored(card, tile):
        return None
    found_on = tile.images[direction.wanted.name]
    with span("detection"):
        found = find_sources(found_on, tile.core, run.version, run.stars)
    sources = found.sources
    line, column = np.floor(sources.y + 0.5).astype(int), np.floor(sources.x + 0.5).astype(int)
    if len(sources) == 0:
        return Objects(line, column, np.zeros(0, np.bool_), {}, found.listed)
    columns = found.columns | measured(tile, found, described(card.problem.table), run.version)
    asked = np.ones(len(sources), np.bool_)
    domains: list[str | None] = [found_on.provenance.get("domain")] * len(sources)
    if run.version >= 5:
        asked = may_be_lenses(found, columns["masked"], columns["flags"])
        domains = object_domains(card, tile, sources.x, sources.y)
        out = np.array([domain is not None and domain != "in" for domain in domains])
        columns["flags"] = columns["flags"] | BITS["OUT_OF_DOMAIN"] * out.astype(np.int32)
    ra, dec = found_on.wcs.all_pix2world(sources.x, sources.y, 0)
    heads = found_on.wcs.all_pix2world(found.head_x, found.head_y, 0)
    name = sky_name if run.version >= 4 else rounded_sky_name
    columns |= {
        "object_id": [name(r, d) for r, d in zip(ra, dec, strict=True)],
        "system_id": [sky_name(r, d) for r, d in zip(*heads, strict=True)],
        "ra": ra,
        "dec": dec,
        "_healpix_29": healpix_29(ra, dec),
        "field": [tile.field] * len(sources),
        "tile_id": [tile.tile_id] * len(sources),
        "domain": domains,
        "x": tile.origin[1] + sources.x,
        "y": tile.origin[0] + sources.y,
        "a": sources.a,
        "b": sources.b,
        "theta": sources.theta,
        "run_id": [run.run_id] * len(sources),
    }
    with span("thumbnails"):
        for end in card.problem.endpoints:
            columns[f"thumbnail_{end.name}"] = thumbnails(tile.images[end.name], column, line)
    return Objects(line, column, asked, columns, found.listed)


def score_objects(
    model: Model, tile: Tile, objects: Objects | None, how: Scoring, run: RunFacts, device: torch.device
) -> Candidates:
    """Score a tile's objects.

    What cannot be a lens, such as a star, has no scores; what is not reconstructed (`Scoring.reconstruct`) lacks
    AS-Bridge's alone.
    """
    import numpy as np
    import pyarrow as pa

    from surveybridge.bridge_core.anomaly import score_sources
    from surveybridge.bridge_core.spans import span
    from surveybridge.jobs.translating.rates import rate_inputs
    from surveybridge.storage.problems import described
    from surveybridge.storage.schema import candidates_schema

    problem = model.card.problem
    direction = problem.scored
    if direction is None:
        return Candidates(schema_of_maps_only(), {})
    table = described(problem.table)
    schema = candidates_schema(table, run.version)
    if objects is None:
        return Candidates(schema, {})
    if len(objects.asked) == 0:
        return Candidates(schema, {}, objects.listed)
    asked = objects.asked
    centres = [
        (tile.origin[0] + int(y), tile.origin[1] + int(x))
        for y, x, is_asked in zip(objects.line, objects.column, asked, strict=True)
        if is_asked
    ]
    with span("scoring"):
        observed, wanted = (scene_of(tile, end.name, device) for end in (direction.observed, direction.wanted))
        scores = score_sources(model, observed, wanted, centres, how)
    reconstructed = np.zeros(len(asked), np.bool_)
    reconstructed[asked] = scores.reconstructed.numpy()

    def filled(values: torch.Tensor, has: NDArray[np.bool_] = asked) -> pa.Array:
        """Return scores for all objects, null for those that have none."""
        whole = np.full(len(asked), np.nan)
        whole[asked] = values.numpy()
        return pa.array(whole, mask=~has, from_pandas=False)  # NaN is not null

    def stamped(images: torch.Tensor) -> NDArray[np.float32]:
        """Return thumbnails for all objects, NaN for those that have none."""
        whole = np.full((len(asked), *images.shape[1:]), np.nan, np.float32)
        whole[asked] = images.numpy()
        return whole

    columns = objects.columns | {
        "score": filled(scores.score),
        "score_std": filled(scores.score_std),
        "false_alarm": filled(scores.false_alarm),
        "score_asbridge": filled(scores.published, reconstructed),
        "model_id": [f"{model.card.name}-{model.sha256[:12]}"] * len(asked),
        "thumbnail_mean": stamped(scores.mean),
        "thumbnail_error": stamped(scores.error),
    }
    rates = model.card.recalibration.false_alarms if model.card.recalibration else None
    if run.calibrated and rates is not None:
        inputs = rate_inputs(columns, tile, direction, table)
        conditions = np.array([[inputs.conditions[name] for name in rates.conditions]] * len(asked))
        rate = rates.rate(columns["score"].to_numpy(zero_copy_only=False), inputs.flux, inputs.colour, conditions)
        columns["false_alarm"] = pa.array(np.asarray(rate, np.float64), mask=~asked, from_pandas=False)
    return Candidates(schema, columns, objects.listed)


def measured(tile: Tile, found: Found, table: ProblemTable, version: int) -> dict[str, Any]:
    """Columns of what is measured in the aperture: fluxes and magnitudes in all bands, masked share, flags."""
    import numpy as np

    from surveybridge.bridge_core.detection import aperture_flux
    from surveybridge.jobs.translating.sources import conditions
    from surveybridge.storage.flags import BITS
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
    if version >= 5:
        kind = np.array(found.columns["kind"], dtype=str)
        columns["flags"] |= BITS["STAR"] * (kind == "star").astype(np.int32)
        columns["flags"] |= BITS["STAR_HALO"] * found.in_wings.astype(np.int32)
    columns["masked"] = masked
    return columns


def is_scored(card: Card, tile: Tile) -> bool:
    """Return whether the objects of a tile are scored: both ends are there, and one of them has objects."""
    problem = card.problem
    return problem.scored is not None and {end.name for end in problem.endpoints} <= set(tile.images)


def catalogued_part(card: Card, tile: Tile) -> dict[str, Any]:
    """Return the columns of the ledger that say where in its core a tile has a catalog: where both ends have data."""
    from surveybridge.storage.covered_cells import core_coverage

    if not is_scored(card, tile):
        return {"catalogued": False, "covered_cells": None}
    return {"catalogued": True, "covered_cells": core_coverage(tile.images.values(), tile.core)}


def schema_of_maps_only() -> pa.Schema:
    """Columns of a table without rows, which takes those of its run when it is written."""
    import pyarrow as pa

    return pa.schema([(name, pa.string() if name == "object_id" else pa.float64()) for name in _NEEDED])


_NEEDED = ("object_id", "ra", "dec")
