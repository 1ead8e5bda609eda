"""`ingest --cosmic-rays`: what it is given, what it writes and says, and what it refuses in one line."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from surveybridge.__main__ import main
from surveybridge.jobs.simulating.noise import cosmic_rays
from surveybridge.jobs.simulating.observing import INSTRUMENTS, Marks
from surveybridge.storage import cosmic_rays as module
from surveybridge.storage import fits_hdus, ingest
from surveybridge.storage.images import MASK_PLANES
from surveybridge.storage.tiles import TileStore
from tests import tiny
from tests.storage.fits_files import gaussians, tan_wcs, write_survey_file
from tests.storage.problem_files import write_problem

pytest.importorskip("astroscrappy", reason="needs the cosmic-rays extra")

pytestmark = pytest.mark.long  # images are searched again and again

SHAPE = (330, 150)
PLACES = np.array([[40.0, 50.0], [120.0, 110.0], [300.0, 60.0]])
SOUGHT = ["--cosmic-rays", "euclid.VIS"]


def vis_file(path, scale=0.1, fwhm: float | str = 0.16, band="VIS") -> str:
    """An image with galaxies and 15 rays, and noise of 2 nJy."""
    rng = np.random.default_rng(8)
    image = gaussians(SHAPE, PLACES, 2.0, 3000.0) + 2 * rng.normal(size=SHAPE)
    vis = replace(INSTRUMENTS[3], sky_sigma=2.0, cosmic_rays=Marks(110.0))
    image += cosmic_rays(SHAPE, vis, rng)[0]
    header = {"BUNIT": "nJy", "FILTER": band, "PSFFWHM": fwhm, "PSFKIND": "gaussian"}
    return write_survey_file(path, image, tan_wcs(SHAPE, scale), variance=np.full(SHAPE, 4.0), header=header)


def lsst_files(folder) -> list[str]:
    shape, rng = (200, 110), np.random.default_rng(9)
    return [
        write_survey_file(
            folder / f"{band}.fits",
            rng.normal(size=shape),
            tan_wcs(shape, 0.2, rotation=3.0),
            header={"BUNIT": "nJy", "FILTER": band, "PSFFWHM": 0.75},
        )
        for band in "gri"
    ]


def run_ingest(store, *arguments: str) -> int:
    return main(["ingest", "--store", str(store), "--tile-size", "100", "--halo", "20", "--no-align", *arguments])


def masked(store) -> int:
    opened = TileStore.open(str(store))
    tiles = [opened.read_tile(name, halo=0) for name in opened.manifest()["tile_id"].to_pylist()]
    return sum(int((tile.images["euclid"].mask == MASK_PLANES["BAD"]).sum()) for tile in tiles)


def test_tiles_have_the_rays_masked_and_say_so_and_ingesting_again_without_is_another_content(tmp_path, caplog):
    vis, store = vis_file(tmp_path / "vis.fits"), tmp_path / "tiles"
    files = ["--euclid", vis, "--lsst", *lsst_files(tmp_path)]
    assert run_ingest(store, *files) == 0
    plain = TileStore.open(store).manifest()["content"].to_pylist()
    assert masked(store) == 0
    with caplog.at_level("INFO"):
        assert run_ingest(store, *files, *SOUGHT) == 0
    opened = TileStore.open(store)
    said = opened.read_tile(opened.manifest()["tile_id"][0].as_py()).images["euclid"].provenance["VIS.cosmic_rays"]
    assert said.startswith(f"{masked(store)} of {SHAPE[0] * SHAPE[1]} usable pixels (")
    assert 50 < masked(store) < 1500 and f"cosmic rays {said}" in caplog.text
    assert opened.manifest()["content"].to_pylist() != plain
    assert run_ingest(store, *files) == 0
    assert TileStore.open(store).manifest()["content"].to_pylist() == plain


def test_images_that_are_read_in_parts_give_the_same_tiles_to_the_bit(tmp_path, monkeypatch):
    vis = vis_file(tmp_path / "vis.fits")
    monkeypatch.setattr(module, "BLOCK", 90)
    grid = ["--grid", "53,-28,20"]  # interpolated too
    assert run_ingest(tmp_path / "whole", "--euclid", vis, *grid, *SOUGHT) == 0
    monkeypatch.setattr(ingest, "STRIP_PIXELS", 1)
    assert run_ingest(tmp_path / "strips", "--euclid", vis, *grid, *SOUGHT) == 0
    whole, strips = (tiny.files_of(tmp_path / name) for name in ("whole", "strips"))
    assert [name for name in whole if whole[name] != strips.get(name) and name != "lease.json"] == []
    boxes = ((0, 150, 0, 150), (150, 330, 0, 150))
    monkeypatch.setattr(fits_hdus, "sample_boxes", lambda shape: boxes)
    assert run_ingest(tmp_path / "parts", "--euclid", vis, *grid, *SOUGHT) == 0
    stores = [TileStore.open(tmp_path / name) for name in ("whole", "parts")]
    contents = [store.manifest()["content"].to_pylist() for store in stores]
    assert contents[0] == contents[1]
    said = stores[1].read_tile("t0000").images["euclid"].provenance["VIS.cosmic_rays"]
    assert f"of {SHAPE[0] * SHAPE[1]} usable pixels of a sample (" in said


def test_another_problem_names_its_own_band(tmp_path, capsys):
    toml, acs = write_problem(tmp_path, "hsc-hst"), vis_file(tmp_path / "acs.fits", scale=0.05, fwhm=0.09, band="F814W")
    arguments = ["--problem", toml, "--image", f"hst.F814W={acs}", "--cosmic-rays"]
    assert run_ingest(tmp_path / "tiles", *arguments, "hst.F814W") == 0
    store = TileStore.open(tmp_path / "tiles")
    image = store.read_tile(store.manifest()["tile_id"][0].as_py()).images["hst"]
    assert "masked, at a contrast" in image.provenance["F814W.cosmic_rays"]
    assert (image.mask == MASK_PLANES["BAD"]).any()
    assert run_ingest(tmp_path / "none", *arguments, "euclid.VIS") == 2
    assert "euclid" in capsys.readouterr().err and not (tmp_path / "none").exists()


BAD = {
    "an endpoint alone": (["euclid"], ["--cosmic-rays euclid: expected NAME.BAND", "endpoint and band"]),
    "a value": (["euclid.VIS=5"], ["--cosmic-rays euclid.VIS=5: expected NAME.BAND alone"]),
    "twice": (["euclid.VIS", "euclid.VIS"], ["--cosmic-rays euclid.VIS: is given twice; keep one"]),
    "no such band": (["euclid.H"], ["euclid", "search for cosmic rays for band H", "not one of its bands VIS"]),
    "no images": (["lsst.g"], ["cosmic rays are sought in images of lsst", "only those of euclid"]),
    "no such endpoint": (["hst.VIS"], ["hst", "lsst", "euclid"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_one_line_and_writes_nothing(tmp_path, capsys, case):
    values, words = BAD[case]
    assert run_ingest(tmp_path / "tiles", "--euclid", vis_file(tmp_path / "vis.fits"), "--cosmic-rays", *values) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words), line
    assert not (tmp_path / "tiles").exists()


def test_a_psf_that_is_not_known_can_be_given_as_the_message_says(tmp_path, capsys):
    arguments = ["--euclid", vis_file(tmp_path / "vis.fits", fwhm=""), *SOUGHT]
    assert run_ingest(tmp_path / "tiles", *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "its PSF is not known" in line and "(or --euclid-psf, --lsst-psf)" in line
    assert run_ingest(tmp_path / "tiles", *arguments, "--euclid-psf", "0.16") == 0


def test_without_the_package_the_command_says_how_to_install_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "astroscrappy", None)
    assert run_ingest(tmp_path / "tiles", "--euclid", vis_file(tmp_path / "vis.fits"), *SOUGHT) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "astroscrappy, which is not installed; pip install 'surveybridge[cosmic-rays]'" in line
    assert not (tmp_path / "tiles").exists()
    assert run_ingest(tmp_path / "tiles", "--euclid", str(tmp_path / "vis.fits")) == 0, "it is needed for nothing else"
