"""A map of a molecular cloud of 1024 x 1024 pixels: its driver is killed half way, and the resumed run is the same."""

from __future__ import annotations

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.io import fits

from surveybridge.__main__ import main
from surveybridge.bridge_core.fitting import fit_endpoint
from surveybridge.bridge_core.problem import Problem
from surveybridge.storage.problems import read_problem
from tests import tiny
from tests.drills.drill import Drill, ahead, count, results
from tests.storage.fits_files import tan_wcs

pytestmark = pytest.mark.slow

SIDE = 1024
TILES = 16
WINDOWS = ["--patch", "128", "--steps", "1"]


def column_map() -> np.ndarray:
    """Column density of a cloud of all scales, with a hole of no data, cm^-2."""
    rng = np.random.default_rng(16)
    waves = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.rfftfreq(SIDE), indexing="ij"))
    waves[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(SIDE, SIDE))) * waves**-1.4, s=(SIDE, SIDE))
    column = 10 ** (21.8 + 0.3 * field / field.std())
    column[300:340, 500:900] = np.nan
    return column.astype(np.float32)


def test_a_map_of_a_million_pixels_is_the_same_to_the_byte_after_its_driver_was_killed(scene):
    folder = scene.folder / "map"
    folder.mkdir()
    column = column_map()
    header = tan_wcs((SIDE, SIDE), 60.0).to_header()
    header["BUNIT"] = "cm-2"
    fits.PrimaryHDU(column, header).writeto(folder / "column.fits")
    image = ["--problem", "clouds-density", "--image", f"column.N={folder / 'column.fits'}"]
    tiling = ["--tile-size", "256", "--halo", "128"]
    assert main(["ingest", *image, *tiling, "--store", str(folder / "tiles")]) == 0
    problem = Problem.from_table(read_problem("clouds-density"))
    some = torch.from_numpy(column[None, None, :256, :256])
    ends = [fit_endpoint(end, some if end.name == "column" else some / 1e19, {}) for end in problem.endpoints]
    checkpoint = tiny.write_checkpoint(folder, problem=problem.with_endpoints(ends))
    place = replace(scene, store=str(folder / "tiles"), checkpoint=checkpoint)

    whole = Drill(place, "a map of 1024 x 1024, undisturbed", workers=1)
    assert whole.finish(*WINDOWS, "--executor", "serial") == 0
    expected = results(whole.run_folder())
    assert len(expected) == TILES and all(tile.ledger["status"] == "ok" for tile in expected.values())
    mosaic = whole.run_folder().read_mosaic()
    for plane in (mosaic.mean, mosaic.std):
        np.testing.assert_array_equal(np.isfinite(plane[0]), np.isfinite(column))  # every pixel, and no other

    place = replace(place, tiles=sorted(expected), reference=expected)
    drill = Drill(place, "a map of 1024 x 1024, killed half way", workers=1)
    driver = drill.start(*WINDOWS, seconds=0.3, holding={sorted(expected)[-1]: "model"})
    driver.until(lambda begun: count("write", TILES // 2)(begun) and ahead(begun) <= 4)
    assert driver.kill(signal.SIGKILL) == -signal.SIGKILL
    done = len(drill.rows())
    assert 0 < done < TILES
    assert drill.finish(*WINDOWS, "--executor", "serial") == 0  # a rerun on Ray: `test_drivers`
    drill.check({"read": TILES, "model": 6, "write": 4})
