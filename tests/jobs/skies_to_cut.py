"""A tile store to cut pairs from: two fields on turned grids that share a part of the sky, with masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surveybridge.storage.fields import FieldGrid
from surveybridge.storage.images import MASK_PLANES
from surveybridge.storage.ingest import Field, cut_tile, tile_boxes
from surveybridge.storage.tiles import TileStore
from tests import tiny
from tests.storage.fits_files import gaussians
from tests.storage.overlaps import Field as Footprint

TILE = 128
EAST = Footprint("east", 210.0, -5.0, 25.0, side=3, tile=TILE)
WEST = Footprint("west", 209.9945, -5.001, -10.0, side=3, tile=TILE)
"""Fields of 38 arcsec, 20 arcsec from each other."""

DEPTH = {"east": 1.0, "west": 2.0}
"""Factor of the noise."""

WING = 0.21
"""1 / beta of the PSFs of WEST; those of EAST are not stated."""


def objects() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions (ra, dec) of objects over both fields, 5 to 9 arcsec apart."""
    rng = np.random.default_rng(5)
    steps = np.arange(-40, 40, 7.0)
    east, north = (v.ravel() + rng.uniform(-1, 1, v.size) for v in np.meshgrid(steps, steps))
    return 209.997 + east / 3600 / np.cos(np.deg2rad(5.0)), -5.0 + north / 3600


def field_of(footprint: Footprint) -> Field:
    """What both surveys see of it: the noise differs between fields and from left to right, some pixels are masked."""
    x, y = footprint.wcs.all_world2pix(*objects(), 0)
    side = footprint.shape[0]
    near = (np.abs(x - side / 2) < side) & (np.abs(y - side / 2) < side)
    images = {}
    for name, bands in tiny.SURVEY_BANDS.items():
        noise = DEPTH[footprint.name] * np.array([tiny.SIGMA[band] for band in bands])[:, None, None]
        noise = noise * np.linspace(1.0, 1.5, side)
        sky = gaussians(footprint.shape, np.stack([y[near], x[near]], 1), tiny.SEEING[name] / 2.3548, 600.0)
        rng = np.random.default_rng([ord(footprint.name[0]), len(bands)])
        shape = (len(bands), *footprint.shape)
        flux = (sky + noise * rng.normal(size=shape)).astype(np.float32)
        variance = np.broadcast_to(noise**2, shape).astype(np.float32)
        mask = np.zeros(shape, np.uint8)
        mask[:, :, 70 if name == "lsst" else 200] = MASK_PLANES["BAD"]
        mask[-1, 150:152, 20:30] = MASK_PLANES["SAT"]
        mask[:, :40, :50] = MASK_PLANES["NO_DATA"]
        flux[:, :40, :50] = variance[:, :40, :50] = np.nan
        wing = tuple(WING if footprint is WEST else np.nan for _ in bands)
        images[name] = replace(
            tiny.make_image(name),
            psf_wing=wing,
            flux=flux,
            variance=variance,
            mask=mask,
            wcs_header=footprint.grid.wcs_header,
        )
    return Field(images, "euclid")


def write_sky(path: Path, *footprints: Footprint, halo: int = 32) -> str:
    """Write the tile store of some fields and return its path."""
    store, rows, grids = TileStore.create(str(path)), [], []
    for footprint in footprints:
        field = field_of(footprint)
        grid = FieldGrid(footprint.name, field.grid_id, field.wcs_header, field.shape, TILE, halo, f"{footprint.name}-")
        rows += [store.write_tile(cut_tile(field, box, grid)) for box in tile_boxes(field.shape, TILE, halo)]
        grids.append(grid)
    store.write_manifest(rows, grids)
    return str(path)
