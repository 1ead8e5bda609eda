"""Export of the shared field's own pixels: stars lie where the truth table has them, with the flux it gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from surveybridge.__main__ import main
from surveybridge.storage.grids import shifted_header
from surveybridge.storage.ingest import tile_boxes
from surveybridge.storage.mosaics import TileMosaic
from surveybridge.storage.runs import RunFolder
from tests.storage.fits_files import read_mer

sep = pytest.importorskip("sep")

RADIUS = 10.0
"""Of the aperture, pixels of 0.1 arcsec."""

RUN = {
    "checkpoint_sha256": "0" * 64,
    "direction": "lsst->euclid",
    "samples": 8,
    "steps": 6,
    "score_samples": 5,
    "score_steps": 8,
    "precision": "float32",
    "seed": 1,
    "grid": "mosaic",
    "store": "/nowhere",
}


@pytest.fixture(scope="module")
def exported(shared_data, tmp_path_factory):
    """The field's VIS image as if a model had translated it perfectly: tiles in a run folder, then one FITS image."""
    folder = tmp_path_factory.mktemp("field")
    image = read_mer(str(shared_data / "field" / "field_euclid_vis.fits"))
    run = RunFolder.open_or_create(folder / "run", RUN)
    flux = np.where(image.valid, image.flux, np.nan)
    for box in tile_boxes(image.flux.shape[1:], 512, 64):
        y0, y1, x0, x1 = box.core
        there = (slice(y0, y1), slice(x0, x1))
        planes = flux[:, *there], np.sqrt(image.variance[:, *there]), image.valid[0][there].astype(np.float32)
        run.write_mosaic(
            TileMosaic(
                box.tile_id,
                shifted_header(image.wcs_header, y0, x0),
                image.bands,
                *planes,
                core_origin=(y0, x0),
                grid_id="g",
            )
        )
        run.write_candidates(box.tile_id, run_without_candidates())
        run.commit({"tile_id": box.tile_id, "status": "ok"})
    assert main(["export", "--run", run.url, "--out", str(folder / "field.fits")]) == 0
    truth = pd.read_parquet(shared_data / "field" / "field_truth.parquet")
    return folder / "field.fits", run, truth


def run_without_candidates():
    from surveybridge.storage.schema import CANDIDATES

    return CANDIDATES.empty_table().drop_columns(["tile_id", "_healpix_29"])


def test_stars_lie_within_50_mas_of_the_truth_and_keep_their_flux(exported):
    path, run, truth = exported
    with fits.open(path) as hdus:
        image, wcs = hdus["MEAN_VIS"].data.astype(float), WCS(hdus["MEAN_VIS"].header)
    stored = run.read_mosaic().mean[0].astype(float)
    stars = truth[truth.kind == "star"]
    x, y = wcs.all_world2pix(stars.ra, stars.dec, 0)
    measured = 0
    for ra, dec, sx, sy in zip(stars.ra, stars.dec, x, y, strict=True):
        low, high = np.array([sy, sx]).round().astype(int) - 15, np.array([sy, sx]).round().astype(int) + 16
        if (low < 0).any() or (high > image.shape).any():
            continue
        part = (slice(low[0], high[0]), slice(low[1], high[1]))
        if not np.isfinite(image[part]).all():
            continue  # saturated, or beside a bad column
        cut, before = (np.ascontiguousarray(array[part]) for array in (image, stored))
        cx, cy, flag = sep.winpos(cut, [sx - low[1]], [sy - low[0]], [1.0])
        assert flag[0] == 0
        found_ra, found_dec = wcs.all_pix2world(cx[0] + low[1], cy[0] + low[0], 0)
        offset = 3600 * np.hypot((found_ra - ra) * np.cos(np.radians(dec)), found_dec - dec)
        flux, parquet = (sep.sum_circle(array, [15.0], [15.0], RADIUS)[0][0] for array in (cut, before))
        assert flux == pytest.approx(parquet, rel=0.01)
        if flux > 2000:  # fainter, noise alone moves a centre by so much
            assert offset < 0.05, (ra, dec, offset)
            measured += 1
    assert measured >= 5
    assert np.nanmax(np.abs(image - stored)) < np.nanmin(run.read_mosaic().std) / 16
