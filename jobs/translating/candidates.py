"""The anomaly candidates of one tile: detect on Euclid, score, and make rows of the catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from surveybridge.bridge_core.anomaly import Scoring
    from surveybridge.bridge_core.model import Model
    from surveybridge.storage.tiles import Tile

APERTURE_ARCSEC = 1.0
"""Radius of the circle in which the catalog's fluxes are measured."""


def find_candidates(model: Model, tile: Tile, how: Scoring, run_id: str, device: Any) -> pa.Table:
    """Detect on Euclid, keep what is centred in the core, score, and make the rows of `CANDIDATES`."""
    import numpy as np
    import pyarrow as pa
    import torch

    from surveybridge.bridge_core.anomaly import score_sources
    from surveybridge.bridge_core.detection import aperture_flux, detect
    from surveybridge.bridge_core.spans import span
    from surveybridge.storage.schema import CANDIDATES, stamps
    from surveybridge.storage.sky import healpix_29, sky_name
    from surveybridge.storage.thumbnails import thumbnails

    lsst, euclid = tile.lsst, tile.euclid
    if lsst is None or euclid is None:
        return CANDIDATES.empty_table()
    with span("detection"):
        sources = detect(euclid.flux[0], euclid.variance[0], euclid.valid[0])
    y0, y1, x0, x1 = tile.core
    column, line = np.floor(sources.x + 0.5).astype(int), np.floor(sources.y + 0.5).astype(int)
    inside = (column >= x0) & (column < x1) & (line >= y0) & (line < y1)
    sources, column, line = sources.select(inside), column[inside], line[inside]
    if len(sources) == 0:
        return CANDIDATES.empty_table()
    centres = [(tile.origin[0] + int(y), tile.origin[1] + int(x)) for y, x in zip(line, column, strict=True)]
    with span("scoring"):
        scores = score_sources(
            model,
            (torch.from_numpy(lsst.flux).to(device), torch.from_numpy(lsst.valid).to(device)),
            (torch.from_numpy(euclid.flux).to(device), torch.from_numpy(euclid.valid).to(device)),
            centres,
            tile.origin,
            how,
        )
    ra, dec = euclid.wcs.all_pix2world(sources.x, sources.y, 0)
    columns: dict[str, Any] = {
        "object_id": [sky_name(r, d) for r, d in zip(ra, dec, strict=True)],
        "ra": ra,
        "dec": dec,
        "_healpix_29": healpix_29(ra, dec),
        "tile_id": [tile.tile_id] * len(sources),
        "score": scores.score.numpy(),
        "score_std": scores.score_std.numpy(),
        "false_alarm": scores.false_alarm.numpy(),
        "score_asbridge": scores.published.numpy(),
        "flags": sources.flags,
        "x": tile.origin[1] + sources.x,
        "y": tile.origin[0] + sources.y,
        "a": sources.a,
        "b": sources.b,
        "theta": sources.theta,
        "model_id": [f"{model.card.name}-{model.sha256[:12]}"] * len(sources),
        "run_id": [run_id] * len(sources),
        "thumbnail_lsst": stamps("thumbnail_lsst", thumbnails(lsst, column, line)),
        "thumbnail_euclid": stamps("thumbnail_euclid", thumbnails(euclid, column, line)),
        "thumbnail_mean": stamps("thumbnail_mean", scores.mean.numpy()),
        "thumbnail_error": stamps("thumbnail_error", scores.error.numpy()),
    }
    for image in (lsst, euclid):
        radius = APERTURE_ARCSEC / image.pixel_scale
        fluxes, errors = aperture_flux(image.flux, image.variance, image.valid, sources, radius)
        for band, flux, error in zip(image.bands, fluxes, errors, strict=True):
            columns[f"flux_{band}"] = flux
            columns[f"snr_{band}"] = flux / error
    return pa.table(columns)
