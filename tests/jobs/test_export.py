"""Export: what FITS, MOC, HiPS and pictures say is what the run holds, and samples drawn again are the run's own."""

from __future__ import annotations

import io
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from mocpy import MOC
from PIL import Image

from surveybridge import __version__
from surveybridge.__main__ import main
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.runs import RunFolder
from tests import tiny
from tests.storage.faults import moto_server

pytestmark = pytest.mark.long

QUICK = ["--steps", "2", "--score-samples", "2", "--score-steps", "2", "--executor", "serial", "--batch", "5"]
SAMPLES = 3
TILE = 64
FAILED = "t0008"
"""The last of 3 x 3 tiles has no LSST data."""
CORNER = 2 * TILE
"""Where tiles t0004, t0005 and t0007 meet the failed one."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Checkpoint and store of nine tiles, one of which cannot be translated."""
    folder = tmp_path_factory.mktemp("export")

    def edit(tile):
        if tile.tile_id != FAILED:
            return tile
        return tiny.with_images(tile, lsst=tiny.without_data(tile.images["lsst"]))

    return tiny.write_checkpoint(folder), tiny.write_store(folder / "tiles", tile_size=TILE, edit=edit)


@pytest.fixture(scope="module", params=["lsst->euclid", "euclid->lsst"])
def any_run(request, made, tmp_path_factory):
    """Runs in both directions, one in bfloat16, the other in float32."""
    return translate(tmp_path_factory.mktemp("run") / "run", made, request.param)


@pytest.fixture(scope="module")
def run(made, tmp_path_factory):
    return translate(tmp_path_factory.mktemp("run") / "run", made, "lsst->euclid")


@pytest.fixture(scope="module")
def run_of_large_patches(tmp_path_factory):
    """One tile, seen whole, in patches of 128 pixels."""
    folder = tmp_path_factory.mktemp("large")
    made = tiny.write_checkpoint(folder), tiny.write_store(folder / "tiles", tile_size=tiny.SIDE, halo=120)
    return translate(folder / "run", made, "euclid->lsst", "--patch", "128")


def translate(run, made, direction, *more):
    checkpoint, store = made
    precision = "bfloat16" if direction == "lsst->euclid" else "float32"
    what = ["--store", store, "--run", str(run), "--checkpoint", checkpoint, "--direction", direction, "--seed", "7"]
    code = main(["translate", *what, *QUICK, "--samples", str(SAMPLES), "--precision", precision, *more])
    assert code == (3 if direction == "lsst->euclid" else 0)  # the last tile has Euclid data
    return str(run)


def export(run, out, *more):
    return main(["export", "--run", str(run), "--out", str(out), *map(str, more)])


def place(run, y, x):
    """RA,DEC of a global pixel."""
    first = RunFolder.open(run).mosaic_headers(["t0000"])[0]
    ra, dec = WCS(fits.Header.fromstring(first.wcs_header)).all_pix2world(x, y, 0)
    return f"{float(ra):.9f},{float(dec):.9f}"


def test_an_image_has_checksums_wcs_units_and_says_that_a_model_made_it(any_run, tmp_path):
    assert export(any_run, tmp_path / "all.fits") == 0
    folder = RunFolder.open(any_run)
    mosaic = folder.read_mosaic()
    bands = folder.mosaic_headers(["t0000"])[0].bands
    with fits.open(tmp_path / "all.fits", checksum=True) as hdus:  # a wrong sum is a warning, and so an error
        planes = [f"{plane}_{band.upper()}" for plane in ("MEAN", "STD") for band in bands]
        assert [hdu.name for hdu in hdus] == ["PRIMARY", *planes, "COVERAGE", "TILES"]
        for hdu in hdus[:-1]:
            assert (hdu.header["ORIGIN"], hdu.header["MODELGEN"]) == ("SurveyBridge", True)
            facts = folder.run_json
            for key, name in (("SB_RUN", "run_id"), ("SB_CKPT", "checkpoint_sha256"), ("SB_DIREC", "direction")):
                assert hdu.header[key] == facts[name]
            assert (hdu.header["SB_SEED"], hdu.header["SB_NSAMP"], hdu.header["SB_STEPS"]) == (7, SAMPLES, 2)
            assert hdu.header["SB_VERS"] == __version__
        assert "MODEL-GENERATED" in str(hdus[0].header["COMMENT"])
        for hdu in hdus[1:-2]:
            assert (hdu.header["BUNIT"], hdu.header["MAGZERO"], hdu.compression_type) == ("nJy", 31.4, "RICE_1")
        header = hdus[1].header
        np.testing.assert_array_equal(hdus["COVERAGE"].data, mosaic.coverage)
        ok = folder.ledger().filter(np.array(folder.ledger()["status"].to_pylist()) == "ok")
        assert hdus["TILES"].data["tile_id"].tolist() == ok["tile_id"].to_pylist()
        assert hdus["TILES"].data["content"].tolist() == ok["content"].to_pylist()
    ours, theirs = WCS(fits.Header.fromstring(mosaic.wcs_header)), WCS(header)
    np.testing.assert_allclose(theirs.all_pix2world(5.0, 9.0, 0), ours.all_pix2world(5.0, 9.0, 0), atol=1e-10)


def test_rice_changes_pixels_by_a_small_part_of_the_uncertainty_and_keeps_what_is_unknown(any_run, tmp_path):
    assert export(any_run, tmp_path / "rice.fits") == export(any_run, tmp_path / "exact.fits", "--lossless") == 0
    mosaic = RunFolder.open(any_run).read_mosaic()
    with fits.open(tmp_path / "rice.fits") as rice, fits.open(tmp_path / "exact.fits") as exact:
        for index, hdu in enumerate(rice[1 : 1 + len(mosaic.mean)]):
            least = np.nanpercentile(mosaic.std[index], 1)
            for plane, values in ((hdu, mosaic.mean), (rice[hdu.name.replace("MEAN", "STD")], mosaic.std)):
                np.testing.assert_array_equal(np.isnan(plane.data), np.isnan(values[index]))
                assert 0 < np.nanmax(np.abs(plane.data - values[index])) < 1.01 * least / 32
            scatter = least / 16 / 12**0.5 * np.isfinite(hdu.data).sum() ** 0.5  # of a sum, if pixels err alone
            assert np.nansum(hdu.data) == pytest.approx(np.nansum(mosaic.mean[index]), abs=4 * scatter)
            np.testing.assert_array_equal(exact[hdu.name].data, mosaic.mean[index])
            np.testing.assert_array_equal(exact[hdu.name.replace("MEAN", "STD")].data, mosaic.std[index])
    assert (tmp_path / "rice.fits").stat().st_size < (tmp_path / "exact.fits").stat().st_size


@pytest.mark.parametrize("side", [40, 41, 1])
def test_a_cutout_over_four_tiles_is_the_stitched_mosaic_bit_for_bit(run, tmp_path, side):
    out = tmp_path / "cut.fits"
    at = place(run, TILE - 0.5, TILE - 0.5) if side == 40 else place(run, TILE, TILE)
    assert export(run, out, "--cutout", f"{at},{side / 10}", "--lossless") == 0
    mosaic = RunFolder.open(run).read_mosaic()
    low = TILE - side // 2
    there = slice(low, low + side)
    with fits.open(out) as hdus:
        np.testing.assert_array_equal(hdus["MEAN_VIS"].data, mosaic.mean[0, there, there])
        np.testing.assert_array_equal(hdus["STD_VIS"].data, mosaic.std[0, there, there])
        np.testing.assert_array_equal(hdus["COVERAGE"].data, mosaic.coverage[there, there])
        tiles = hdus["TILES"].data["tile_id"].tolist()
        wcs = WCS(hdus["MEAN_VIS"].header)
    assert tiles == (["t0004"] if side == 1 else ["t0000", "t0001", "t0003", "t0004"])
    ra, dec = map(float, at.split(","))
    np.testing.assert_allclose(wcs.all_world2pix(ra, dec, 0), (side - 1) / 2, atol=1e-4)


def test_samples_drawn_again_are_the_runs_to_the_bit(any_run, tmp_path):
    at = place(any_run, CORNER - 6, CORNER - 6)
    assert export(any_run, tmp_path / "all.fits", "--cutout", f"{at},3", "--samples", SAMPLES, "--lossless") == 0
    assert export(any_run, tmp_path / "two.fits", "--cutout", f"{at},3", "--samples", 2) == 0
    with fits.open(tmp_path / "all.fits") as hdus, fits.open(tmp_path / "two.fits") as two:
        bands = [hdu.name.split("_")[1] for hdu in hdus if hdu.name.startswith("MEAN")]
        for band in bands:
            samples = hdus[f"SAMPLES_{band}"].data
            # its mean and std, blended over all windows, were compared with those in the run folder
            assert hdus[f"SAMPLES_{band}"].header["SB_SAME"] is True
            assert samples.shape == (SAMPLES, 30, 30)
            mean, std = hdus[f"MEAN_{band}"].data, hdus[f"STD_{band}"].data
            known = np.isfinite(mean)
            assert known.mean() > 0.7
            np.testing.assert_allclose(samples.astype(float).mean(axis=0)[known], mean[known], rtol=1e-6, atol=1e-5)
            # blended samples scatter less than the mixture that std is of, never more
            scatter = samples.std(axis=0, ddof=1)[known]
            assert (scatter < std[known] * (1 + 1e-4) + 1e-4).all()
            assert np.median(scatter / std[known]) > 0.7
            np.testing.assert_array_equal(two[f"SAMPLES_{band}"].data, samples[:2])


def test_samples_of_large_patches_too_are_drawn_again_to_the_bit(run_of_large_patches, tmp_path):
    at = place(run_of_large_patches, 90, 100)
    assert export(run_of_large_patches, tmp_path / "cut.fits", "--cutout", f"{at},2", "--samples", SAMPLES) == 0
    assert fits.getheader(tmp_path / "cut.fits", "SAMPLES_G")["SB_SAME"] is True


def test_samples_that_differ_are_marked_as_such(run, tmp_path):
    changed = tmp_path / "run"
    shutil.copytree(run, changed)
    document = Folder.at(changed)
    facts = RunFolder.open(changed).run_json
    document.put_json({**facts, "seed": 8}, "run.json")
    at = place(run, 20, 20)
    assert export(changed, tmp_path / "cut.fits", "--cutout", f"{at},2", "--samples", 2) == 0
    header = fits.getheader(tmp_path / "cut.fits", "SAMPLES_VIS")
    assert header["SB_SAME"] is False
    assert header["SB_DIFF"] > 0


def test_a_folder_gets_every_tile_footprints_and_one_picture(run, tmp_path, capsys):
    assert export(run, tmp_path / "out", "--moc", "--png", "--lossless") == 0
    folder = RunFolder.open(run)
    assert len(folder.ok_tiles()) == 8
    for tile_id in folder.ok_tiles():
        tile = folder.read_tile_mosaic(tile_id)
        with fits.open(tmp_path / "out" / "fits" / f"{tile_id}.fits") as hdus:
            np.testing.assert_array_equal(hdus["MEAN_VIS"].data, tile.mean[0])
            assert hdus["TILES"].data["tile_id"].tolist() == [tile_id]
    with Image.open(tmp_path / "out" / "overview.png") as picture:
        assert picture.size == (3 * TILE, 3 * TILE)
        assert "MODEL-GENERATED" in picture.info["Description"]
        grey = np.asarray(picture)[::-1]  # the first row of a picture is the last of the mosaic
    known = np.isfinite(folder.read_mosaic().mean[0])
    assert (grey[~known] == (140, 140, 148)).all()
    wcs = WCS(fits.Header.fromstring(folder.read_mosaic().wcs_header))
    y, x = np.mgrid[: 3 * TILE, : 3 * TILE]
    ra, dec = wcs.all_pix2world(x.ravel(), y.ravel(), 0)
    failed = ((y >= CORNER) & (x >= CORNER)).ravel()
    well_outside = ((y >= CORNER + 15) & (x >= CORNER + 15)).ravel()  # cells of the MOC are 8 pixels
    footprint, lost = (MOC.from_fits(tmp_path / "out" / f"{name}.moc.fits") for name in ("footprint", "failed"))
    assert footprint.contains_lonlat(*(degrees(ra[~failed], dec[~failed]))).all()
    assert not footprint.contains_lonlat(*(degrees(ra[well_outside], dec[well_outside]))).any()
    assert lost.contains_lonlat(*(degrees(ra[failed], dec[failed]))).all()
    away = ((y < CORNER - 15) | (x < CORNER - 15)).ravel()
    assert not lost.contains_lonlat(*(degrees(ra[away], dec[away]))).any()
    header = fits.getheader(tmp_path / "out" / "footprint.moc.fits", 1)
    assert (header["ORIGIN"], header["SB_RUN"]) == ("SurveyBridge", folder.run_json["run_id"])
    assert "8 tiles" in capsys.readouterr().out


def degrees(ra, dec):
    import astropy.units as u
    from astropy.coordinates import Latitude, Longitude

    return Longitude(ra, u.deg), Latitude(dec, u.deg)


def test_hips_shows_the_pixels_of_the_mosaic(run, tmp_path):
    pytest.importorskip("reproject", reason="needs the hips extra")
    assert export(run, tmp_path / "out", "--no-fits", "--hips") == 0
    mosaic = RunFolder.open(run).read_mosaic()
    wcs = WCS(fits.Header.fromstring(mosaic.wcs_header))
    for plane, values in (("mean", mosaic.mean[0]), ("std", mosaic.std[0])):
        root = tmp_path / "out" / "hips" / f"{plane}_VIS"
        lines = (line.split("=", 1) for line in (root / "properties").read_text().splitlines() if "=" in line)
        properties = {key.strip(): value.strip() for key, value in lines}
        assert (properties["hips_order"], properties["hips_frame"]) == ("12", "equatorial")
        assert "MODEL-GENERATED" in properties["obs_description"]
        assert not MOC.from_fits(root / "Moc.fits").empty()
        compared = 0
        for file in sorted((root / "Norder12").rglob("*.fits")):
            tile, header = fits.getdata(file, header=True)
            y, x = np.nonzero(np.isfinite(tile))
            px, py = wcs.all_world2pix(*WCS(header).all_pix2world(x, y, 0), 0)
            inside = (px > 0) & (px < values.shape[1] - 1) & (py > 0) & (py < values.shape[0] - 1)
            expected = bilinear(values, py[inside], px[inside])
            np.testing.assert_allclose(tile[y, x][inside], expected, rtol=1e-3, atol=1e-3)
            compared += inside.sum()
        assert compared > 0.85 * np.isfinite(values).sum()
        assert all(list((root / f"Norder{order}").rglob("*.fits")) for order in range(13))


def test_hips_without_reproject_is_refused_before_anything_is_written(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "reproject", None)
    assert export(run, tmp_path / "out", "--hips") == 2
    assert "pip install 'surveybridge[hips]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def bilinear(values, y, x):
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    fy, fx = y - y0, x - x0
    low = values[y0, x0] * (1 - fx) + values[y0, x0 + 1] * fx
    high = values[y0 + 1, x0] * (1 - fx) + values[y0 + 1, x0 + 1] * fx
    return low * (1 - fy) + high * fy


def test_export_goes_from_s3_to_s3(run, monkeypatch):
    pytest.importorskip("reproject", reason="needs the hips extra")
    with moto_server() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        filesystem = Folder.at("s3://exports").filesystem
        filesystem.mkdir("exports")
        for file in Path(run).rglob("*"):
            if file.is_file():
                Folder.at("s3://exports/run").put(file.read_bytes(), *file.relative_to(run).parts)
        at = place(run, TILE, TILE)
        assert (
            export("s3://exports/run", "s3://exports/out/cut.fits", "--cutout", f"{at},2", "--png", "--lossless") == 0
        )
        assert export("s3://exports/run", "s3://exports/all", "--moc", "--hips", "--no-fits") == 0
        out = Folder.at("s3://exports/out")
        assert out.names() == ["cut.fits", "cut.png"]
        everything = Folder.at("s3://exports/all")
        assert everything.names() == ["failed.moc.fits", "footprint.moc.fits", "hips"]
        assert {"Moc.fits", "Norder0", "Norder12", "properties"} <= set(everything.names("hips", "std_VIS"))
        with fits.open(io.BytesIO(out.read("cut.fits"))) as hdus:
            part = slice(TILE - 9, TILE + 11)
            np.testing.assert_array_equal(hdus["MEAN_VIS"].data, RunFolder.open(run).read_mosaic().mean[0, part, part])


def test_a_run_without_its_store_still_gives_cutouts_and_says_what_it_cannot(run, made, tmp_path, capsys):
    alone = tmp_path / "run"
    shutil.copytree(run, alone)
    Folder.at(alone).put_json({**RunFolder.open(run).run_json, "store": str(tmp_path / "gone")}, "run.json")
    at = place(run, TILE, TILE)
    assert export(alone, tmp_path / "cut.fits", "--cutout", f"{at},2", "--lossless") == 0
    assert len(fits.getdata(tmp_path / "cut.fits", "TILES")) == 4
    assert export(alone, tmp_path / "found.fits", "--cutout", f"{at},1", "--samples", 2, "--store", made[1]) == 0
    assert export(alone, tmp_path / "more.fits", "--cutout", f"{at},2", "--samples", 2) == 2
    assert "gone is not a tile store" in capsys.readouterr().err and not (tmp_path / "more.fits").exists()
    assert export(alone, tmp_path / "out", "--moc", "--no-fits") == 0  # the ledger says where failed tiles are
    moc = MOC.from_fits(str(tmp_path / "out/failed.moc.fits"))
    ra, dec = (float(text) for text in place(run, CORNER + 30, CORNER + 30).split(","))
    assert moc.contains_skycoords(SkyCoord(ra, dec, unit="deg"))


@pytest.mark.parametrize(
    ("out", "more", "said"),
    [
        ("all.fits", ["--max-gib", "1e-5"], ["192 x 192 px in one image take", "--max-gib allows 1e-05", "--cutout"]),
        ("cut.fits", ["--cutout", "53,-29,10"], ["touches none of the finished tiles", "has no tile there"]),
        ("cut.fits", ["--cutout", "53,-99,10"], ["-99 deg, outside -90..90"]),
        ("cut.fits", ["--cutout", "failed,1"], [f"tile {FAILED} there is failed (", "translate it again"]),
        ("cut.fits", ["--cutout", "here,1", "--samples", "4"], ["--samples 4", "drew 3", "at most as many"]),
        (
            "cut.fits",
            ["--cutout", "here,1", "--samples", "2", "--checkpoint", "mosaic-v2"],
            ["SHA-256", "--checkpoint"],
        ),
        ("out", ["--cutout", "here,1"], ["a --cutout is one file", "FILE.fits"]),
        ("out", ["--samples", "2"], ["--samples 2 without --cutout"]),
        ("out", ["--no-fits"], ["leaves nothing to write"]),
        ("all.fits", ["--moc"], ["give a folder as --out"]),
        ("there.fits", [], ["there.fits exists", "--overwrite"]),
        ("there", [], ["a folder with file", "--overwrite"]),
        ("run", ["--overwrite"], ["a folder with run.json", "give another --out"]),
    ],
)
def test_a_request_that_cannot_be_done_is_refused_with_nothing_written(run, tmp_path, capsys, out, more, said):
    (tmp_path / "there.fits").write_bytes(b"")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_bytes(b"{}")
    before = tiny.files_of(tmp_path)
    places = {"here": place(run, 20, 20), "failed": place(run, CORNER + 30, CORNER + 30)}
    more = [
        places[word] + "," + rest if (word := text.split(",")[0]) in places else text
        for text in more
        for rest in [text.partition(",")[2]]
    ]
    assert export(run, tmp_path / out, *more) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    for words in said:
        assert words in error
    assert tiny.files_of(tmp_path) == before


def test_samples_of_a_tile_that_was_ingested_anew_are_refused(run, tmp_path, capsys):
    other = tmp_path / "tiles"
    tiny.write_store(other, tile_size=TILE, edit=lambda tile: replace(tile, images={"lsst": tile.images["lsst"]}))
    changed = tmp_path / "run"
    shutil.copytree(run, changed)
    Folder.at(changed).put_json({**RunFolder.open(run).run_json, "store": str(other)}, "run.json")
    assert export(changed, tmp_path / "cut.fits", "--cutout", f"{place(run, 20, 20)},1", "--samples", 2) == 2
    assert "the tile was ingested anew" in capsys.readouterr().err
