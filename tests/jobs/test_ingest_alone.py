"""One survey alone goes all the way; a field that is partly of one survey; and large images are read in parts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits

from surveybridge.__main__ import main
from surveybridge.storage import fits_hdus, fits_planes, ingest
from surveybridge.storage.fits_hdus import sample_boxes
from surveybridge.storage.fits_images import open_images
from surveybridge.storage.images import MASK_PLANES
from surveybridge.storage.manifests import fields_of
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import TileStore
from tests import tiny
from tests.storage.fits_files import EUCLID, gaussians, tan_wcs, write_survey_file

pytestmark = pytest.mark.long  # images are read again and again

QUICK = ["--samples", "2", "--steps", "2", "--score-samples", "2", "--score-steps", "2", "--precision", "float32"]
SHAPE, COARSE = (170, 200), (130, 180)
PLACES = np.array([[40.0, 50.0], [120.0, 150.0], [95.0, 60.0], [60.0, 140.0]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"), SHAPE, COARSE)


def write_files(folder, fine_shape, coarse_shape):
    """A Euclid file and three of LSST, rotated, which cover it; with noise, bad pixels, and a corner without data."""
    rng = np.random.default_rng(5)
    fine, coarse = tan_wcs(fine_shape, 0.1), tan_wcs(coarse_shape, 0.2, rotation=4.0)
    x, y = coarse.all_world2pix(*fine.all_pix2world(PLACES[:, 1], PLACES[:, 0], 0), 0)
    vis = gaussians(fine_shape, PLACES, 0.9, 3000.0) + 2 * rng.normal(size=fine_shape)
    paths = {"VIS": write_survey_file(folder / "vis.fits", vis, fine, variance=np.full(fine_shape, 4.0))}
    mask = np.zeros(coarse_shape, np.int32)
    mask[30:34, 20:60], mask[70, 70] = 1, 2
    for band in "gri":
        flux = gaussians(coarse_shape, np.stack([y, x], axis=1), 1.6, 3000.0) + rng.normal(size=coarse_shape)
        flux[:12, :12] = np.nan
        header, planes = {"BUNIT": "nJy", "FILTER": band, "PSFFWHM": 0.75}, {"MP_BAD": 0, "MP_SAT": 1}
        path = folder / f"{band}.fits"
        paths[band] = write_survey_file(path, flux, coarse, header=header, mask=mask, mask_header=planes)
    return paths


def lsst(files) -> list[str]:
    return ["--lsst", *(files[band] for band in "gri")]


def run_ingest(store, *arguments: str) -> int:
    return main(["ingest", "--store", str(store), "--tile-size", "100", "--halo", "20", *arguments])


def pixels(store) -> dict[str, dict[str, bytes]]:
    opened = TileStore.open(str(store))
    return {
        tile_id: {
            f"{name}/{plane}": getattr(image, plane).tobytes()
            for name, image in opened.read_tile(tile_id).images.items()
            for plane in ("flux", "variance", "mask")
        }
        for tile_id in opened.manifest()["tile_id"].to_pylist()
    }


def test_lsst_alone_onto_the_grid_of_a_euclid_image_is_what_both_surveys_give(tmp_path, files):
    assert run_ingest(tmp_path / "both", "--euclid", files["VIS"], *lsst(files)) == 0
    assert run_ingest(tmp_path / "alone", *lsst(files), "--grid", files["VIS"]) == 0
    both, alone = pixels(tmp_path / "both"), pixels(tmp_path / "alone")
    assert both.keys() == alone.keys()
    for tile, planes in alone.items():
        assert planes and planes == {name: data for name, data in both[tile].items() if name.startswith("lsst")}
    grids = [set(TileStore.open(tmp_path / name).manifest()["grid_id"].to_pylist()) for name in ("both", "alone")]
    assert grids[0] == grids[1]


def test_euclid_alone_is_what_both_surveys_give(tmp_path, files):
    assert run_ingest(tmp_path / "both", "--euclid", files["VIS"], *lsst(files)) == 0
    assert run_ingest(tmp_path / "alone", "--euclid", files["VIS"]) == 0
    both, alone = pixels(tmp_path / "both"), pixels(tmp_path / "alone")
    for tile, planes in alone.items():
        assert planes == {name: data for name, data in both[tile].items() if name.startswith("euclid")}


def test_lsst_alone_goes_all_the_way_to_mosaics_without_a_catalog(tmp_path, files, checkpoint, capsys):
    store, run = tmp_path / "tiles", tmp_path / "run"
    assert run_ingest(store, *lsst(files)) == 0
    (field,) = fields_of(TileStore.open(store).manifest()).values()
    assert field.shape[0] > 200 and field.shape[1] > 220, "as large as the LSST images, in pixels of 0.1 arcsec"
    arguments = ["--store", str(store), "--run", str(run), "--checkpoint", checkpoint, *QUICK]
    assert main(["plan", *arguments, "--calibrate", "0.1"]) == 0
    assert "tiles of the store have no" not in capsys.readouterr().out
    assert main(["translate", *arguments, "--executor", "serial"]) == 0
    assert main(["status", "--run", str(run)]) == 0
    assert "finished" in capsys.readouterr().out
    ledger = RunFolder.open(str(run)).ledger()
    assert set(ledger["status"].to_pylist()) == {"ok"} and set(ledger["catalogued"].to_pylist()) == {False}
    assert np.isfinite(RunFolder.open(str(run)).read_mosaic().mean).mean() > 0.5
    for job, out in (("export", "field.fits"), ("report", "report.html")):
        assert main([job, "--run", str(run), "--out", str(tmp_path / out)]) == 0
    other = ["--direction", "euclid->lsst", "--run", str(tmp_path / "back")]
    assert main(["translate", "--store", str(store), "--checkpoint", checkpoint, *QUICK, *other]) == 2
    assert "has euclid, which euclid->lsst needs; ingest it" in capsys.readouterr().err


def test_a_grid_at_a_place_with_both_surveys_has_tiles_of_one_and_of_both(tmp_path, files):
    east = tan_wcs(SHAPE, 0.1).all_pix2world(0, 85, 0)
    place = f"{float(east[0])},{float(east[1])},30"
    assert run_ingest(tmp_path / "tiles", "--euclid", files["VIS"], *lsst(files), "--grid", place) == 0
    surveys = {tuple(names) for names in TileStore.open(tmp_path / "tiles").manifest()["surveys"].to_pylist()}
    assert ("lsst", "euclid") in surveys and ("lsst",) in surveys


BAD = {
    "nothing": ([], ["--euclid is required; --lsst is required", "one of them or both"]),
    "no grid there": (["--grid", "absent.fits"], ["absent.fits", "no such file", "RA,DEC,ARCSEC"]),
    "another place": (["--grid", "10,10,30"], ["do not overlap", "RA 10.00000 Dec +10.00000", "RA 53.00000"]),
    "scale of a file": (["--grid", "VIS", "--pixel-scale", "0.2"], ["--pixel-scale 0.2", "states the grid"]),
    "a name": (["--field", "a/b"], ["field 'a/b' cannot be part of a path"]),
    "a huge grid": (["--grid", "53,-28,2000arcmin"], ["1200000 x 1200000 pixels of 0.1 arcsec", "give another size"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_one_line_and_writes_nothing(tmp_path, files, capsys, case):
    arguments, words = BAD[case]
    arguments = [files.get(word, word) for word in arguments]
    assert run_ingest(tmp_path / "tiles", *(lsst(files) if case != "nothing" else []), *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words), line
    assert not (tmp_path / "tiles" / "manifest.parquet").exists()
    if case != "a name":
        assert not (tmp_path / "tiles").exists()


# ---- large images


@pytest.fixture
def in_parts(monkeypatch):
    """Every image is large; samples hold all pixels, so that what is measured is the same as of whole images."""
    monkeypatch.setattr(fits_hdus, "sample_boxes", lambda shape: ((0, shape[0], 0, shape[1]),))
    monkeypatch.setattr(ingest, "STRIP_PIXELS", 1)


@pytest.mark.parametrize(("compress", "noise"), [(False, "auto"), (False, "sky"), (False, "scaled"), (True, "scaled")])
def test_images_that_are_read_in_parts_give_the_same_tiles_to_the_bit(tmp_path, compress, noise, request):
    files = write_files(tmp_path, (700, 150), (390, 120))
    if compress:
        files = {band: compressed(path, tmp_path / f"{band}.fits.fz") for band, path in files.items()}
    arguments = ["--euclid", files["VIS"], *lsst(files), "--lsst-noise", noise, "--subtract-sky"]
    assert run_ingest(tmp_path / "whole", *arguments) == 0
    request.getfixturevalue("in_parts")
    read = []
    part = fits_planes._read_part

    def noted(*arguments):
        read.append(arguments[-1])
        return part(*arguments)

    request.getfixturevalue("monkeypatch").setattr(fits_planes, "_read_part", noted)
    assert run_ingest(tmp_path / "parts", *arguments) == 0
    assert len(set(read)) >= 10, "strips of each survey"
    assert any(y0 > 0 and y1 < 390 and (x0, x1) != (0, 150) for y0, y1, x0, x1 in read)
    whole, parts = (tiny.files_of(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if whole[name] != parts[name] and name != "lease.json"] == []


def compressed(path: str, to) -> str:
    with fits.open(path) as hdus:
        parts = [fits.CompImageHDU(hdu.data, hdu.header, name=hdu.name, quantize_level=32) for hdu in hdus[1:]]
        fits.HDUList([fits.PrimaryHDU(), *parts]).writeto(to)
    return str(to)


def test_a_sample_is_bounded_the_same_each_time_and_measures_what_the_whole_does(tmp_path, monkeypatch):
    assert sample_boxes((4096, 4096)) == ()
    boxes = sample_boxes((19200, 19000))
    assert boxes == sample_boxes((19200, 19000)) and len(boxes) == 256
    assert {(y1 - y0, x1 - x0) for y0, y1, x0, x1 in boxes} == {(128, 128)}
    assert all(min(y0, x0) >= 0 and y1 <= 19200 and x1 <= 19000 for y0, y1, x0, x1 in boxes)
    shape, rng = (700, 900), np.random.default_rng(2)
    flux = 1.5 * rng.normal(size=shape) + gaussians(shape, rng.uniform(50, 650, (20, 2)), 2.0, 500.0)
    flux[:, :200] = 0  # no data there
    path = write_survey_file(tmp_path / "vis.fits", flux, tan_wcs(shape, 0.1))
    (whole,) = open_images(EUCLID, {"VIS": path}, noise="sky")
    monkeypatch.setattr(fits_hdus, "WHOLE_PIXELS", 100)
    (sampled,) = open_images(EUCLID, {"VIS": path}, noise="sky")
    one, other = whole.head.readings[0], sampled.head.readings[0]
    assert other.sky_pixels < one.sky_pixels
    assert other.sky_sigma == pytest.approx(one.sky_sigma, rel=0.02) == pytest.approx(1.5, rel=0.03)
    assert sampled.head.noise_correlation[0] == pytest.approx(whole.head.noise_correlation[0], abs=0.02)
    part = sampled.section((100, 130, 190, 220))
    np.testing.assert_array_equal(part.flux, whole.section((100, 130, 190, 220)).flux)
    assert (part.mask[0, :, :10] == MASK_PLANES["NO_DATA"]).all() and (part.mask[0, :, 10:] == 0).all()


def test_every_band_of_a_survey_counts_for_its_being_there(tmp_path, files):
    """A tile where one band is masked throughout has nothing that the network could use."""
    mask = np.zeros(COARSE, np.int32)
    mask[:, :110] = 1
    with fits.open(files["r"]) as hdus:
        hdus["MASK"].data[:] = mask
        hdus.writeto(tmp_path / "r.fits")
    bands = files | {"r": str(tmp_path / "r.fits")}
    assert run_ingest(tmp_path / "tiles", "--euclid", files["VIS"], *lsst(bands)) == 0
    manifest = TileStore.open(tmp_path / "tiles").manifest().to_pylist()
    assert {tuple(row["surveys"]) for row in manifest} == {("euclid",), ("lsst", "euclid")}


def test_ingest_says_which_field_it_was(tmp_path, files, caplog):
    with caplog.at_level("INFO"):
        assert run_ingest(tmp_path / "tiles", "--euclid", files["VIS"], "--field", "north") == 0
    assert "field north: 4 tiles" in caplog.text
    assert json.loads((tmp_path / "tiles/zarr.json").read_text())["attributes"]["format_version"] == 2
    assert fields_of(TileStore.open(tmp_path / "tiles").manifest())["north"].prefix == "north-"
