"""A run on a grid that is turned and maybe mirrored: an object, one north and one east of it, in four tiles."""

from __future__ import annotations

from pathlib import Path

import astropy.units as u
import numpy as np
import pyarrow as pa
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS

from surveybridge.storage.images import SurveyImage
from surveybridge.storage.ingest import Field, cut_tile, tile_boxes
from surveybridge.storage.manifests import fields_of
from surveybridge.storage.mosaics import TileMosaic
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import stamps
from surveybridge.storage.thumbnails import thumbnails
from surveybridge.storage.tiles import TileStore, core_header, tile_place
from tests.storage.fits_files import gaussians
from tests.storage.test_runs import RUN
from tests.tiny import SURVEY_BANDS

SIDE, TILE, SCALE = 320, 160, 0.1
RA, DEC = 210.3, -12.4
NORTH, EAST = 2.0, 1.4
"""Distances of the other two objects, arcsec; both lie on the thumbnail."""


def turned_wcs(turn: float, mirrored: bool) -> WCS:
    """TAN with north `turn` degrees anticlockwise from up; the objects' place is a border between four tiles."""
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    east = np.array([cos, sin]) if mirrored else np.array([-cos, -sin])
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [RA, DEC]
    wcs.wcs.crpix = [SIDE / 2 + 1, SIDE / 2 + 1]
    wcs.wcs.cd = SCALE / 3600 * np.linalg.inv(np.column_stack([east, [-sin, cos]]))
    wcs.wcs.set()
    return wcs


def make_turned(parent: Path, turn: float, mirrored: bool) -> RunFolder:
    """The run `parent/run` and its store `parent/tiles`."""
    wcs = turned_wcs(turn, mirrored)
    here = SkyCoord(RA, DEC, unit="deg")
    places = [
        here,
        here.directional_offset_by(0 * u.deg, NORTH * u.arcsec),
        here.directional_offset_by(90 * u.deg, EAST * u.arcsec),
    ]
    x, y = wcs.all_world2pix([p.ra.deg for p in places], [p.dec.deg for p in places], 0)
    images = {name: _image(name, wcs, x, y) for name in SURVEY_BANDS}
    field = Field(images, "euclid")
    store = TileStore.create(str(parent / "tiles"))
    tiles = [cut_tile(field, box) for box in tile_boxes(field.shape, TILE, 16)]
    rows = [store.write_tile(tile) for tile in tiles]
    store.write_manifest(rows)
    run = RunFolder.open_or_create(parent / "run", {**RUN, "run_id": "turned", "store": store.url})
    run.note_store(store.url, fields_of(store.manifest()).values())
    for tile, row in zip(tiles, rows, strict=True):
        y0, y1, x0, x1 = tile.core
        seen = tile.images["euclid"].flux[:, y0:y1, x0:x1]
        run.write_mosaic(
            TileMosaic(
                tile.tile_id,
                core_header(tile),
                ("VIS",),
                0.9 * seen,
                (np.abs(seen) / 9 + 1).astype(np.float32),
                np.ones(seen.shape[1:], np.float32),
                tile.core_origin,
                tile.grid_id,
            )
        )
        owner = tile.core_origin == (TILE, TILE)
        run.write_candidates(
            tile.tile_id, _candidates(images, places, x, y) if owner else run.candidates_schema.empty_table()
        )
        run.commit(
            {
                "tile_id": tile.tile_id,
                "status": "ok",
                "n_candidates": 3 * owner,
                "content": row["content"],
                **tile_place(tile),
            }
        )
    return run


def _image(name: str, wcs: WCS, x: np.ndarray, y: np.ndarray) -> SurveyImage:
    bands = SURVEY_BANDS[name]
    rng = np.random.default_rng(len(bands))
    sky = sum(
        gaussians((SIDE, SIDE), [(y[k], x[k])], 2.0 if name == "euclid" else 3.5, 100.0 * flux)
        for k, flux in enumerate((60, 30, 15))
    )
    # Each band has another brightness, so that single bands can be told apart.
    flux = np.stack([sky * (k + 1) for k in range(len(bands))]) + rng.normal(0, 1, (len(bands), SIDE, SIDE))
    none = tuple(0.0 for _ in bands)
    return SurveyImage(
        name,
        bands,
        flux.astype(np.float32),
        np.ones_like(flux, np.float32),
        np.zeros(flux.shape, np.uint8),
        wcs.to_header_string(),
        SCALE,
        tuple(0.5 for _ in bands),
        31.4,
        none,
    )


def _candidates(images: dict[str, SurveyImage], places: list[SkyCoord], x: np.ndarray, y: np.ndarray) -> pa.Table:
    column, line = np.round(x).astype(int), np.round(y).astype(int)
    seen = {name: thumbnails(image, column, line) for name, image in images.items()}
    pictures = {
        "lsst": seen["lsst"],
        "euclid": seen["euclid"],
        "mean": 0.9 * seen["euclid"],
        "error": 0.1 * seen["euclid"],
    }
    table = {
        "object_id": ["lead", "north", "east"],
        "ra": [p.ra.deg for p in places],
        "dec": [p.dec.deg for p in places],
        "x": x,
        "y": y,
        "score": [3.0, 2.0, 1.0],
        "run_id": ["turned"] * 3,
        "system_id": ["lead"] * 3,
        "kind": ["object"] * 3,
        "flags": pa.array([1 + 512, 0, 0], pa.int32()),
    }
    return pa.table(
        table | {f"thumbnail_{name}": stamps(f"thumbnail_{name}", values) for name, values in pictures.items()}
    )
