"""Noise maps and what they mark, areas without data, and the level of the sky."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from surveybridge.__main__ import main
from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_images import open_images
from surveybridge.storage.images import MASK_PLANES
from surveybridge.storage.photometry import ZERO_AREA, sky_statistics, zero_areas
from surveybridge.storage.readings import Allowances
from surveybridge.storage.tiles import TileStore
from tests.storage.fits_files import gaussians, tan_wcs
from tests.storage.test_fits_hdus import FLUX, LSST, SHAPE, VARIANCE, hdu, read, write
from tests.storage.test_fits_masks import write_map

BAD, NO_DATA = MASK_PLANES["BAD"], MASK_PLANES["NO_DATA"]
MARKS = [np.nan, np.inf, 0.0, -1.0, 1e16, 1e15]
MAPS = {"variance": (VARIANCE, "VARIANCE"), "rms": (np.sqrt(VARIANCE), "RMS"), "weight": (1 / VARIANCE, "WHT")}


@pytest.mark.parametrize("noise", ["auto", "file", "sky"])
@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("place", ["beside", "own file"])
def test_marks_of_no_coverage_stay_whatever_replaces_the_noise(tmp_path, noise, kind, place):
    values, name = MAPS[kind]
    values = values.astype(np.float32).copy()
    values[7, : len(MARKS)] = MARKS
    beside = [hdu(values, name)] if place == "beside" else []
    maps = {} if beside else {kind: {"r": write_map(tmp_path / "map.fits", values)}}
    image = read(write(tmp_path / "a.fits", hdu(FLUX, "SCI"), *beside), noise=noise, maps=maps)
    assert (image.mask[0, 7, : len(MARKS)] == BAD).all() and (image.mask != 0).sum() == len(MARKS)
    assert np.isfinite(image.variance).all()
    assert f"{len(MARKS) / FLUX.size:.2%} not covered" in image.provenance["r.noise"]
    measured = noise == "sky" or (noise == "auto" and kind == "rms" and place == "beside")
    assert ("sky MAD" in image.provenance["r.noise"]) == measured
    if not measured:
        np.testing.assert_allclose(image.variance[0, 8:], VARIANCE[8:], rtol=1e-5)


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("off", [0.4, 1.7])
def test_a_map_is_scaled_to_the_scatter_of_the_sky(tmp_path, kind, off):
    rng = np.random.default_rng(4)
    shape = (150, 160)
    sigma = 2.0 * np.linspace(0.7, 1.3, shape[1]) * np.ones(shape)
    flux = (sigma * rng.normal(size=shape)).astype(np.float32)
    stated = (off * sigma) ** {"variance": 2, "rms": 1, "weight": -2}[kind]
    stated[5, 5] = np.nan
    place = tan_wcs(shape, 0.2).to_header()
    path = write(
        tmp_path / "a.fits", hdu(flux, "SCI", wcs=False, **place), hdu(stated, MAPS[kind][1], wcs=False, **place)
    )
    image = read(path, noise="scaled")
    known = image.valid[0]
    assert np.median(np.sqrt(image.variance[0][known]) / sigma[known]) == pytest.approx(1.0, abs=0.015)
    assert np.ptp(np.sqrt(image.variance[0][known]) / sigma[known]) < 1e-3, "its shape is kept"
    assert image.mask[0, 5, 5] == BAD
    factor = float(image.provenance["r.noise"].split("its sigma times ")[1].split()[0])
    assert factor == pytest.approx(1 / off, rel=0.015)


def test_there_is_nothing_to_scale_without_a_map_or_noise(tmp_path):
    with pytest.raises(StorageError, match="no noise map"):
        read(write(tmp_path / "a.fits", hdu(FLUX, "SCI")), noise="scaled")
    flat = write(tmp_path / "b.fits", hdu(np.ones_like(FLUX), "SCI"), hdu(np.ones_like(FLUX), "VARIANCE"))
    with pytest.raises(StorageError, match="so the map cannot be scaled to it"):
        read(flat, noise="scaled")


def test_maps_of_another_place_shape_or_kind_are_refused(tmp_path):
    image = write(tmp_path / "a.fits", hdu(FLUX, "SCI"))
    sky = tan_wcs(SHAPE, 0.2, ra=201.3, dec=11.0)
    wrong = {
        "rms": (write_map(tmp_path / "far.fits", VARIANCE, sky), r"far\.fits\[0\]: its grid is .* px off .*a\.fits"
                r"\[SCI\] \(RA 201\.30000 .* against RA 201\.00000"),
        "variance": (write_map(tmp_path / "small.fits", VARIANCE[:20]), r"\(20, 44\) pixels but .*has \(36, 44\)"),
        "weight": (write_map(tmp_path / "v.fits", VARIANCE, EXTNAME="VARIANCE"), r"is variance .* as --variance"),
        "mask": (write(tmp_path / "two.fits", hdu(FLUX), hdu(FLUX)), r"which HDU is the mask\? It has 1 unnamed"),
    }  # fmt: skip
    for kind, (path, said) in wrong.items():
        with pytest.raises(StorageError, match=said) as caught:
            read(image, maps={kind: {"r": path}})
        assert "\n" not in str(caught.value)
    shifted = tan_wcs(SHAPE, 0.2, ra=201.0, dec=11.0 + 0.3 * 0.2 / 3600)
    with pytest.raises(StorageError, match=r"its grid is 0\.3 px off"):
        read(image, maps={"mask": {"r": write_map(tmp_path / "s.fits", np.zeros(SHAPE, np.uint8), shifted)}})
    with pytest.raises(StorageError, match="--variance and --rms are given for one band"):
        read(image, maps={kind: {"r": write_map(tmp_path / "x.fits", VARIANCE)} for kind in ("variance", "rms")})


def test_a_map_without_a_place_is_taken_by_its_shape_and_this_is_said(tmp_path):
    image = write(tmp_path / "a.fits", hdu(FLUX, "SCI"))
    given = read(image, maps={"variance": {"r": write_map(tmp_path / "v.fits", VARIANCE, None)}})
    assert "has no WCS: only its shape was checked" in given.provenance["r.noise"]


def test_a_map_in_a_unit_of_its_own_is_converted_or_refused(tmp_path):
    image = write(tmp_path / "a.fits", hdu(FLUX, "SCI", BUNIT="nJy"))
    rms = write_map(tmp_path / "rms.fits", np.sqrt(VARIANCE) / 1e3, BUNIT="uJy")
    given = read(image, maps={"rms": {"r": rms}})
    np.testing.assert_allclose(given.variance[0], VARIANCE, rtol=1e-5)
    variance = write_map(tmp_path / "v.fits", VARIANCE, BUNIT="electron2")
    with pytest.raises(StorageError, match=r"BUNIT electron2 but a variance of an image in nJy is in \(nJy\)2"):
        read(image, maps={"variance": {"r": variance}})


# -- areas without data --


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_exact_zeros_over_an_area_are_no_data_and_the_noise_is_that_of_the_rest(tmp_path, share):
    rng = np.random.default_rng(1)
    sky = rng.normal(0, 2.5, (120, 130)).astype(np.float32)
    sky[:, : int(130 * share)] = 0
    sky[60, 100] = 0  # a pixel that happens to be 0
    image = read(write(tmp_path / "a.fits", hdu(sky, "SCI", wcs=False, **tan_wcs(sky.shape, 0.2).to_header())))
    assert (image.mask[0, :, : int(130 * share)] == NO_DATA).all() and image.valid[0, :, int(130 * share) :].all()
    assert np.sqrt(image.variance[0, 3, -3]) == pytest.approx(2.5, rel=0.04)
    assert image.provenance["r.no_data"] == f"{image.readings[0].zeros:.2%} are exactly 0 over an area"
    assert sky_statistics(sky, np.ones(sky.shape, bool)).sigma == pytest.approx(2.5, rel=0.04)


@pytest.mark.parametrize("quantum", [1 / 16, 1 / 4, 1.0])
def test_zeros_of_quantised_noise_are_data(quantum):
    noise = np.round(np.random.default_rng(0).normal(0, 1 / quantum, (1024, 1024)))
    assert not zero_areas(noise).any()
    noise[300:340, 200:260] = 0
    hole = zero_areas(noise)
    assert hole[300:340, 200:260].all() and hole.sum() < 1.1 * 40 * 60


def test_an_area_is_connected_and_does_not_depend_on_the_strips_it_is_found_in():
    image = np.ones((90, 100))
    image[10:60, 20] = 0  # a dead column
    image[70:75, 50:57] = 0  # 35 pixels: one too few
    image[80:86, 80:86] = 0
    found = zero_areas(image)
    assert found[10:60, 20].all() and found[80:86, 80:86].all() and found.sum() == 50 + ZERO_AREA
    for rows in (7, 40):
        np.testing.assert_array_equal(zero_areas(image, rows), found)


# -- the level of the sky --


@pytest.mark.parametrize("level", [-45.0, -10.5, 10.5, 450.0])
def test_a_sky_that_is_not_subtracted_is_refused_or_subtracted_when_asked(tmp_path, level):
    path = write(tmp_path / "a.fits", hdu(FLUX + np.float32(level), "SCI"))
    with pytest.raises(StorageError, match=r"level of its sky is .* times the noise of .*--subtract-sky") as caught:
        read(path)
    assert f", {level / np.std(FLUX):+.0f}"[:3] in str(caught.value) and "\n" not in str(caught.value)
    image = read(path, allow=Allowances(subtract_sky=True))
    assert np.median(image.flux) == pytest.approx(0, abs=0.3)
    reading = image.readings[0]
    assert reading.sky_subtracted and reading.sky_level == pytest.approx(level, abs=0.3)
    assert image.provenance["r.sky"].endswith("sigma, subtracted")


@pytest.mark.parametrize("level", [-0.9, 0.9, 2.0])
def test_a_faint_residual_passes_and_is_said(tmp_path, level):
    image = read(write(tmp_path / "a.fits", hdu(FLUX + np.float32(level), "SCI")))
    assert image.readings[0].sky_level == pytest.approx(level, abs=0.3)
    assert "sigma, left as it is" in image.provenance["r.sky"]


def test_an_image_that_does_not_vary_is_no_sky_to_measure_noise_on(tmp_path):
    with pytest.raises(StorageError, match="the noise of its sky is 0 nJy"):
        read(write(tmp_path / "a.fits", hdu(np.full(SHAPE, 7, np.float32), "SCI")))


# -- one line a band, and the command --


def test_a_line_for_each_band_says_what_was_understood(tmp_path, caplog):
    mask = np.zeros(SHAPE, np.int32)
    mask[:3] = 2
    path = write(tmp_path / "a.fits", hdu(FLUX, "IMAGE"), hdu(mask, "MASK", MP_SAT=1), hdu(VARIANCE, "VARIANCE"))
    with caplog.at_level(logging.INFO, logger="surveybridge.storage"):
        read(path)
    (line,) = [record.message for record in caplog.records]
    for words in ("lsst r:", "a.fits[IMAGE]", "zero point 31.4 AB", "noise 2.9", "VARIANCE of the file", "sky ",
                  "mask MASK", f"unusable {3 / SHAPE[0]:.2%}"):  # fmt: skip
        assert words in line
    assert "\n" not in line


def test_notes_of_astropy_are_one_line_each(tmp_path, caplog):
    path = Path(write(tmp_path / "a.fits", hdu(FLUX, "IMAGE", OBSERVER="Rene"), hdu(VARIANCE, "VARIANCE")))
    path.write_bytes(path.read_bytes().replace(b"Rene", b"Ren\xe9"))
    with caplog.at_level(logging.WARNING, logger="surveybridge.storage"):
        read(str(path))
    notes = [record.message for record in caplog.records]
    assert len(notes) == 1 and notes[0].startswith(f"{path}: non-ASCII characters are present")
    assert "\n" not in notes[0]


@pytest.mark.parametrize("compression", [None, "RICE_1", "GZIP_1", "HCOMPRESS_1"])
def test_damaged_files_are_read_or_refused_and_never_end_in_a_traceback(tmp_path, compression):
    rng = np.random.default_rng(0)
    hdus = [hdu(FLUX, "IMAGE"), hdu(VARIANCE, "VARIANCE")]
    if compression:
        hdus = [fits.CompImageHDU(one.data, one.header, compression_type=compression) for one in hdus]
    whole = Path(write(tmp_path / "whole.fits", *hdus)).read_bytes()
    # header cards in full, for the damage is to be in the data
    data = whole.index(b"END     ", whole.index(b"XTENSION")) // 2880 * 2880 + 2880
    refused = 0
    for attempt in range(12):
        damaged = bytearray(whole)
        if attempt % 2:
            damaged = damaged[: rng.integers(data, len(whole) - 2880)]
        else:
            start = rng.integers(data, len(whole) - 300)
            damaged[start : start + 300] = rng.integers(0, 256, 300, np.uint8).tobytes()
        (tmp_path / "a.fits").write_bytes(damaged)
        try:
            read(str(tmp_path / "a.fits"))
        except StorageError as error:
            refused += 1
            assert "a.fits" in str(error)
    assert refused >= 4


def test_maps_are_given_on_the_command_line(tmp_path):
    shape, grid = (120, 120), tan_wcs((120, 120), 0.1)
    rng = np.random.default_rng(0)
    vis = (gaussians(shape, [(60, 60)], 1.5, 5000.0) + rng.normal(0, 2, shape)).astype(np.float32)
    header = grid.to_header()
    header["BUNIT"] = "nJy"
    fits.PrimaryHDU(vis, header).writeto(tmp_path / "vis.fits")
    flag = np.zeros(shape, np.uint8)
    flag[10:20, 10:20] = 1
    flags = write_map(tmp_path / "flag.fits", flag, grid)
    rms = write_map(tmp_path / "rms.fits", np.full(shape, 2, np.float32), grid)
    coarse = tan_wcs((70, 70), 0.2)
    lsst, variances, masks = [], [], []
    for band in "gri":
        image = rng.normal(0, 1, (70, 70)).astype(np.float32) + np.float32(40)
        header = coarse.to_header()
        header["BUNIT"] = "nJy"
        fits.PrimaryHDU(image, header).writeto(tmp_path / f"{band}.fits")
        lsst.append(str(tmp_path / f"{band}.fits"))
        variances.append(write_map(tmp_path / f"v{band}.fits", np.full((70, 70), 1.5, np.float32), coarse))
        bad = np.zeros((70, 70), np.uint8)
        bad[30:34] = 1
        masks.append(write_map(tmp_path / f"m{band}.fits", bad, coarse))
    base = ["ingest", "--euclid", str(tmp_path / "vis.fits"), "--euclid-rms", rms, "--euclid-mask", flags]
    base += ["--lsst", *lsst, "--lsst-variance", *variances, "--lsst-mask", *masks, "--store", str(tmp_path / "store")]
    assert main(base) == 2 and not (tmp_path / "store").exists()  # the sky of the LSST images is at 40 sigma
    assert main([*base, "--subtract-sky"]) == 0
    tile = TileStore.open(str(tmp_path / "store")).read_tile("t0000")
    euclid, ground = tile.images["euclid"], tile.images["lsst"]
    assert (euclid.mask[0] != 0).sum() == 100 and euclid.variance[0, 5, 5] == pytest.approx(4)
    assert (ground.mask[:, 60, :] == BAD).all() and np.nanmedian(ground.flux) == pytest.approx(0, abs=0.05)
    assert ground.provenance["g.noise"].startswith("variance ")
    named = [text for band, file, mask in zip("gri", lsst, masks, strict=True)
             for text in ("--image", f"lsst.{band}={file}", "--mask", f"lsst.{band}={mask}")]  # fmt: skip
    weights = [
        "--image",
        f"euclid.VIS={tmp_path / 'vis.fits'}",
        "--weight",
        f"euclid.VIS={rms}",
        "--mask",
        f"euclid.VIS={flags}",
    ]
    assert main(["ingest", *named, *weights, "--subtract-sky", "--store", str(tmp_path / "other")]) == 0
    tile = TileStore.open(str(tmp_path / "other")).read_tile("t0000")
    assert tile.images["euclid"].variance[0, 5, 5] == pytest.approx(0.5)


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_what_arithmetic_leaves_of_zeros_is_no_data_too(tmp_path, share):
    flux = np.random.default_rng(5).normal(0, 4, (90, 100))
    columns = int(100 * share)
    flux[:, :columns] = np.random.default_rng(6).normal(0, 3e-31, (90, columns))
    image = read(write(tmp_path / "a.fits", hdu(flux.astype(np.float32), "SCI", wcs=False, **tan_cards((90, 100)))))
    assert (image.mask[0, :, :columns] == NO_DATA).all() and not image.mask[0, :, columns:].any()
    assert np.sqrt(image.variance[0, 0, -1]) == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(("mark", "share"), [(-99.0, 0.1), (-9999.0, 0.6), (-3.4e38, 0.3), (0.0, 0.05)])
def test_one_value_far_below_the_sky_is_refused_as_a_mark_unless_it_is_masked(tmp_path, mark, share):
    flux = np.random.default_rng(7).normal(0 if mark else 800, 2, (70, 80)).astype(np.float32)
    marked = np.random.default_rng(8).random(flux.shape) < share
    flux[marked] = mark
    cards = tan_cards(flux.shape)
    path = write(tmp_path / "a.fits", hdu(flux, "SCI", wcs=False, **cards))
    with pytest.raises(StorageError, match=rf"{marked.sum()} of {flux.size} usable pixels are exactly .*, its lowest"):
        read(path, allow=Allowances(subtract_sky=True))
    mask = hdu(marked.astype(np.int16), "MASK", wcs=False)
    image = read(
        write(tmp_path / "b.fits", hdu(flux, "SCI", wcs=False, **cards), mask), allow=Allowances(subtract_sky=True)
    )
    assert ((image.mask[0] != 0) == marked).all()


@pytest.mark.parametrize("kind", MAPS)
def test_a_flux_is_no_noise_map(tmp_path, kind):
    image = write(tmp_path / "a.fits", hdu(FLUX, "SCI"))
    given = {kind: {"r": write_map(tmp_path / "map.fits", FLUX)}}
    with pytest.raises(
        StorageError, match=rf"{(FLUX < 0).sum()} of {FLUX.size} pixels are negative, .* a {kind} above"
    ):
        read(image, maps=given)


def tan_cards(shape):
    """WCS of an image of another shape than that of these tests."""
    return dict(tan_wcs(shape, 0.2, ra=201.0, dec=11.0).to_header())


def test_a_noise_map_in_other_counts_than_its_image_is_refused(tmp_path):
    image = write(tmp_path / "a.fits", hdu(FLUX, "SCI", MAGZERO=28.5))
    path = write_map(tmp_path / "map.fits", np.sqrt(VARIANCE), MAGZERO=23.5)
    with pytest.raises(StorageError, match=r"map\.fits\[0\]: MAGZERO is 23\.5 but 28\.5 in .*a\.fits\[SCI\]"):
        read(image, maps={"rms": {"r": path}})


def test_negative_variances_of_one_strip_do_not_stop_a_large_image(tmp_path, monkeypatch):
    monkeypatch.setattr("surveybridge.storage.fits_hdus.WHOLE_PIXELS", 2000)
    flux = np.random.default_rng(9).normal(0, 3, (400, 260)).astype(np.float32)
    variance = np.full(flux.shape, 9, np.float32)
    variance[:10] = -np.random.default_rng(10).random((10, 260))
    cards = tan_cards(flux.shape)
    hdus = [hdu(flux, "SCI", wcs=False, **cards), hdu(variance, "VAR", wcs=False)]
    [image] = open_images(LSST, {"r": write(tmp_path / "a.fits", *hdus)})
    _, _, mask = image.read((0, 20, 0, 260))
    assert (mask[0, :10] == BAD).all() and not mask[0, 10:].any()
