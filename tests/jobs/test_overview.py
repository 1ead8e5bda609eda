"""The picture of a whole mosaic: means of blocks, whatever tiles they come in, in the memory of a tile."""

from __future__ import annotations

import importlib
import tracemalloc

import numpy as np
import pytest

from surveybridge.jobs.drawing.overview import Overview
from surveybridge.jobs.drawing.rendering import sky_picture
from surveybridge.jobs.exporting.folder import export_folder
from surveybridge.storage.mosaics import TileMosaic
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.problems import default_problem, endpoint
from surveybridge.storage.runs import RunFolder
from tests.jobs.test_export_field import RUN
from tests.storage.test_runs import make_candidates, make_header


@pytest.mark.parametrize("end", ["euclid", "lsst"])
@pytest.mark.parametrize("side", [10, 37, 100])
def test_tiles_give_the_means_of_blocks_that_the_whole_has(end, side):
    end = endpoint(default_problem(), end)
    bands = len(end["bands"])
    rng = np.random.default_rng(0)
    height, width, y0, x0 = 70, 93, 1000, -50
    mean = rng.normal(5, 2, (bands, height, width)).astype(np.float32)
    mean[0, 20:40, 10:30] = np.nan
    std = np.abs(rng.normal(1, 0.1, mean.shape)).astype(np.float32)
    overview = Overview((y0, y0 + height, x0, x0 + width), end, side)
    for rows in (slice(0, 33), slice(33, 70)):
        for columns in (slice(0, 50), slice(50, 93)):
            part = (slice(None), rows, columns)
            overview.add(mean[part], std[part], (y0 + rows.start, x0 + columns.start))
    block = -(-93 // side)
    known = np.isfinite(mean).all(axis=0)

    def binned(values):
        padded = np.full((bands, -(-height // block) * block, -(-width // block) * block), np.nan)
        padded[:, :height, :width] = np.where(known, values, np.nan)
        blocks = padded.reshape(bands, padded.shape[1] // block, block, -1, block)
        count = np.isfinite(blocks).sum(axis=(2, 4))
        with np.errstate(invalid="ignore"):
            return np.nansum(blocks, axis=(2, 4)) / count

    sigma = np.nanmedian(binned(std), axis=(1, 2))
    expected = sky_picture(binned(mean), sigma, end)
    assert overview.block == block
    assert expected.shape == overview.picture().shape
    difference = np.abs(overview.picture().astype(int) - expected)
    assert difference.max() <= 1  # float32 sums


@pytest.mark.long
def test_a_folder_of_tiles_needs_the_memory_of_a_tile_not_of_the_mosaic(tmp_path):
    run = RunFolder.open_or_create(tmp_path / "run", RUN)
    side, across = 256, 4
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(1, side, side)).astype(np.float32)
    for y in range(across):
        for x in range(across):
            tile, corner = f"t{y}{x}", (y * side, x * side)
            run.write_mosaic(
                TileMosaic(
                    tile,
                    make_header(*corner),
                    ("VIS",),
                    plane,
                    np.abs(plane),
                    (plane[0] > 0).astype("f4"),
                    corner,
                    "grid",
                )
            )
            run.write_candidates(tile, make_candidates(tile, 1))
            run.commit({"tile_id": tile, "status": "ok"})
    whole = 3 * plane.nbytes * across**2
    # modules that are imported meanwhile would be counted, and are larger than a tile
    importlib.import_module("mocpy")
    tracemalloc.start()
    export_folder(run, run.ledger(), Folder.at(tmp_path / "out"), {"fits", "moc"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(list((tmp_path / "out" / "fits").glob("*.fits"))) == across**2
    assert peak < whole / 2, (peak, whole)
