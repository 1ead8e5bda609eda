"""Maps of molecular clouds on the sky: onto pixels of a physical size, translated, and exported with their unit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.fitting import fit_endpoint
from surveybridge.bridge_core.network import NetworkConfig
from surveybridge.bridge_core.problem import Problem
from surveybridge.storage.celestial import celestial_wcs
from surveybridge.storage.domain import PIXEL_PC
from surveybridge.storage.images import MASK_PLANES, LazyImage, SurveyImage
from surveybridge.storage.manifests import fields_of
from surveybridge.storage.problems import read_problem
from surveybridge.storage.psf import Gaussian
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.smoothing import smoothed
from surveybridge.storage.tiles import TileStore
from tests import tiny
from tests.conftest import ROOT
from tests.storage.fits_files import tan_wcs

pytestmark = pytest.mark.long  # maps are ingested and translated

CENTRE = SkyCoord(158.5, -19.6, unit="deg", frame="galactic")
PC = 0.125
DISTANCE = 250.0
SCALE = np.degrees(np.arctan(PC / DISTANCE)) * 3600
"""Arcsec of a pixel of `PC` at `DISTANCE`."""
QUICK = ["--samples", "2", "--steps", "2", "--precision", "float32", "--executor", "serial"]


def galactic(shape: tuple[int, int], arcsec: float) -> WCS:
    """A grid in galactic coordinates whose columns run along, as IDL wrote them, upside down."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["GLON-TAN", "GLAT-TAN"]
    wcs.wcs.crval = [CENTRE.l.deg + 0.7, CENTRE.b.deg - 0.4]  # the tangent point lies beyond the map
    wcs.wcs.cd = np.diag([arcsec, -arcsec]) / 3600
    wcs.wcs.lonpole = 0.0
    wcs.wcs.crpix = [1, 1]
    x, y = wcs.all_world2pix(CENTRE.l.deg, CENTRE.b.deg, 1)
    wcs.wcs.crpix = [1 - float(x) + shape[1] / 2, 1 - float(y) + shape[0] / 2]
    return wcs


def extinction(place: SkyCoord) -> np.ndarray:
    """A_V of a cloud that is smooth over a degree, in mag, by place."""
    along, across = (angle.to_value(u.deg) for angle in CENTRE.spherical_offsets_to(place.transform_to("galactic")))
    return 1.0 + 3.0 * np.exp(-((along / 0.8) ** 2) - (across / 0.5) ** 2)


def write_map(path: Path, shape: tuple[int, int], arcsec: float, **changes: Any) -> str:
    """A map of that cloud without a unit."""
    wcs = galactic(shape, arcsec)
    y, x = np.indices(shape)
    values = extinction(SkyCoord(*wcs.all_pix2world(x, y, 0), unit="deg", frame="galactic")).astype(np.float32)
    for box, value in changes.pop("boxes", []):
        values[box] = value
    header = wcs.to_header()
    header.update(changes)
    fits.PrimaryHDU(values, header).writeto(path, overwrite=True)
    return str(path)


def ingest(path: str, store: Path, *more: str) -> int:
    where = ["--distance", str(DISTANCE), "--pixel-pc", str(PC), "--tile-size", "64", "--halo", "64"]
    image = ["--problem", "clouds-density", "--image", f"column.N={path}", "--store", str(store)]
    return main(["ingest", *image, *where, *more])


AS_COLUMN = ["--factor", "column.N=2.2e21"]


def whole(store: Path) -> tuple[np.ndarray, np.ndarray, SurveyImage, WCS]:
    """Values and usable pixels [H, W] of a store's field, one of its images, and the WCS of the field."""
    tiles = TileStore.open(str(store))
    manifest = tiles.manifest()
    (field,) = fields_of(manifest).values()
    values, known = np.full(field.shape, np.nan), np.zeros(field.shape, bool)
    for name in manifest["tile_id"].to_pylist():
        tile = tiles.read_tile(name)
        (y, x), (y0, y1, x0, x1), image = tile.origin, tile.core, tile.images["column"]
        there = np.s_[y + y0 : y + y1, x + x0 : x + x1]
        values[there], known[there] = image.flux[0, y0:y1, x0:x1], image.valid[0, y0:y1, x0:x1]
    return values, known, image, celestial_wcs(field.wcs_header)


def on_sky(wcs: WCS, shape: tuple[int, ...]) -> np.ndarray:
    """What the cloud has at the pixels of a grid, in mag."""
    y, x = np.indices(shape)
    return extinction(SkyCoord(*wcs.all_pix2world(x, y, 0), unit="deg", frame="icrs"))


@pytest.mark.parametrize(("shape", "factor"), [((70, 90), 1.7), ((90, 130), 1.0), ((170, 230), 0.31)])
def test_a_map_in_galactic_coordinates_comes_onto_pixels_of_a_physical_size(tmp_path, shape, factor):
    """Of any own pixels, upside down and beside its tangent point: the same cloud, and no pixel of it is lost."""
    path = write_map(tmp_path / "av.fits", shape, factor * SCALE)
    assert ingest(path, tmp_path / "store", *AS_COLUMN) == 0
    values, known, image, wcs = whole(tmp_path / "store")
    assert values.shape == tuple(int(np.ceil(n * factor - 1e-6)) for n in shape)
    assert image.pixel_scale == pytest.approx(SCALE, rel=1e-3) and image.unit == "cm-2"
    sides = np.abs(np.linalg.eigvals(wcs.pixel_scale_matrix)) * 3600
    np.testing.assert_allclose(sides, SCALE, rtol=1e-9)
    assert float(image.provenance[PIXEL_PC]) == PC
    y, x = np.indices(values.shape)
    inside = (y + 0.5 < shape[0] * factor) & (x + 0.5 < shape[1] * factor)
    assert known[inside].all()
    away = known & (np.minimum(y, x) > 2) & (y < shape[0] * factor - 3) & (x < shape[1] * factor - 3)
    np.testing.assert_allclose(values[away], 2.2e21 * on_sky(wcs, values.shape)[away], rtol=0.01)
    assert ("N.smoothed" in image.provenance) == (factor < 1)


def test_what_has_no_data_stays_without_and_holes_below_the_beam_close(tmp_path):
    """Of a map three times finer: a corner of zeros is empty, a dead pixel is filled from around it, NaN likewise."""
    boxes = [(np.s_[:60, :45], 0.0), (np.s_[100, 100], 0.0), (np.s_[130, 40], np.nan)]
    path = write_map(tmp_path / "av.fits", (180, 180), SCALE / 3, boxes=boxes)
    assert ingest(path, tmp_path / "store", *AS_COLUMN, "--no-data", "column.N=0") == 0
    values, known, _, wcs = whole(tmp_path / "store")
    assert not known[:19, :14].any() and known[21:].all() and known[:, 16:].all()
    np.testing.assert_allclose(values[known], 2.2e21 * on_sky(wcs, values.shape)[known], rtol=0.03)
    # who does not say so has clouds of no column there
    assert ingest(path, tmp_path / "other", *AS_COLUMN) == 0
    values, known, *_ = whole(tmp_path / "other")
    assert known.all() and np.abs(values[:18, :13]).max() < 1e19


def test_detail_below_the_beam_is_averaged_and_not_sampled():
    """A chess board of single pixels is its mean, whatever part of it is read; an image at the beam stays."""
    board = 1e21 * (1.0 + (np.indices((40, 56)).sum(0) % 2))
    image = SurveyImage(
        survey="column",
        bands=("N",),
        flux=board[None].astype(np.float32),
        variance=np.full((1, 40, 56), 1e30, np.float32),
        mask=np.zeros((1, 40, 56), np.uint8),
        wcs_header=tan_wcs((40, 56), 10.0).to_header_string(),
        pixel_scale=10.0,
        psf_fwhm=(float("nan"),),
        zero_point=float("nan"),
        noise_correlation=(0.0,),
        unit="cm-2",
        extensive=False,
    )
    mean = smoothed(LazyImage.of(image), 40.0)
    found = mean.whole()
    np.testing.assert_allclose(found.flux, 1.5e21, rtol=0.015)  # at the edges one colour has the more
    assert found.psf_fwhm == (40.0,) and found.psf_model == (Gaussian(40.0),)
    # noise of a Gaussian of so many pixels: sigma / (2 sqrt(pi) width)
    width = np.sqrt(40.0**2 - 10.0**2) / 10 / 2.3548
    np.testing.assert_allclose(np.sqrt(found.variance[0, 20, 28]), 1e15 / (2 * np.sqrt(np.pi) * width), rtol=0.01)
    assert 0.9 < found.noise_correlation[0] < 1
    for box in ((3, 17, 5, 30), (0, 40, 41, 56)):
        part = mean.section(box)
        y0, y1, x0, x1 = box
        for name in ("flux", "variance", "mask"):
            np.testing.assert_array_equal(getattr(part, name), getattr(found, name)[:, y0:y1, x0:x1])
    # what is bad is left out of the means, and stays bad
    bad = replace(image, flux=image.flux.copy(), mask=image.mask.copy())
    bad.flux[0, 20, 20], bad.mask[0, 20, 20] = 1e30, MASK_PLANES["BAD"]
    found = smoothed(LazyImage.of(bad), 40.0).whole()
    assert found.flux.max() < 2e21 and (found.mask != 0).sum() == 1 == (found.mask[0, 20, 20] != 0)
    lazy = LazyImage.of(image)
    assert smoothed(lazy, 10.05) is lazy and smoothed(lazy, 9.0) is lazy


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "BUNIT absent but endpoint column is in cm-2"),
        ([*AS_COLUMN, "--pixel-scale", "30"], "--pixel-scale 30, but --distance and --pixel-pc say the pixel"),
        ([*AS_COLUMN, "--grid", "other.fits"], "--grid other.fits states its pixels, but --distance and --pixel-pc do"),
        (["--factor", "column.N=0"], "--factor column.N=0: expected NAME.BAND=NUMBER, a number above 0"),
        (["--factor", "column.n=2"], "a factor for band n, which is not one of its bands N"),
        ([*AS_COLUMN, "--no-data", "column.N=none"], "--no-data column.N=none: expected NAME.BAND=NUMBER, a number"),
    ],
)
def test_a_wrong_request_exits_2_with_one_line_and_writes_nothing(tmp_path, capsys, more, said):
    path = write_map(tmp_path / "av.fits", (70, 80), SCALE)
    assert ingest(path, tmp_path / "store", *more) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line and not (tmp_path / "store").exists()


def test_a_physical_pixel_needs_both_numbers_and_a_place_on_the_sky(tmp_path, capsys):
    fits.PrimaryHDU(np.ones((70, 80), np.float32)).writeto(tmp_path / "nowhere.fits")
    nowhere = str(tmp_path / "nowhere.fits")
    assert ingest(nowhere, tmp_path / "store", *AS_COLUMN) == 2
    assert "nowhere.fits says no place on the sky, so --distance does not say its pixels" in capsys.readouterr().err
    image = ["--problem", "clouds-density", "--image", f"column.N={nowhere}", *AS_COLUMN]
    assert main(["ingest", *image, "--pixel-pc", "0.2", "--store", str(tmp_path / "store")]) == 2
    assert "--pixel-pc 0.2 without a distance" in capsys.readouterr().err
    assert main(["ingest", *image, "--distance", "250", "--store", str(tmp_path / "store")]) == 2
    assert "says no place on the sky" in capsys.readouterr().err
    flux = ["--image", f"lsst.g={nowhere}", "--factor", "lsst.g=2", "--store", str(tmp_path / "store")]
    assert main(["ingest", *flux]) == 2
    capsys.readouterr()
    assert not (tmp_path / "store").exists()


def test_a_map_that_was_edited_after_its_sums_were_written_is_taken_when_that_is_said(tmp_path, capsys):
    path = write_map(tmp_path / "av.fits", (70, 80), SCALE)
    with fits.open(path, mode="update", checksum=True) as hdus:
        hdus[0].add_checksum()
    content = bytearray(Path(path).read_bytes())
    content[2880 * 2 + 400] ^= 1
    Path(path).write_bytes(content)
    assert ingest(path, tmp_path / "store", *AS_COLUMN) == 2
    assert "the file is damaged or was edited" in capsys.readouterr().err
    assert ingest(path, tmp_path / "store", *AS_COLUMN, "--stale-sums") == 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network for maps of 0.2 pc a pixel."""
    problem = Problem.from_table(read_problem("clouds-density"))
    values = 10 ** (21.5 + 0.4 * torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(2)))
    ends = [fit_endpoint(end, values if end.name == "column" else values / 1e19, {}) for end in problem.endpoints]
    folder = tmp_path_factory.mktemp("model")
    return tiny.write_checkpoint(folder, "clouds", problem=problem.with_endpoints(ends), pixel_pc=0.2, patch="tile")


def test_every_pixel_with_data_is_translated_in_any_tiling_and_exported_with_unit_and_place(tmp_path, checkpoint):
    path = write_map(tmp_path / "av.fits", (80, 100), SCALE, boxes=[(np.s_[40:50, 60:75], 0.0)])
    found = {}
    for size in ("64", "96"):
        store, run = tmp_path / f"store-{size}", tmp_path / f"run-{size}"
        assert ingest(path, store, *AS_COLUMN, "--no-data", "column.N=0", "--tile-size", size) == 0
        translated = ["translate", "--store", str(store), "--run", str(run), "--checkpoint", checkpoint]
        assert main([*translated, *QUICK]) == 0
        assert main(["export", "--run", str(run), "--out", str(tmp_path / f"{size}.fits")]) == 0
        with fits.open(tmp_path / f"{size}.fits") as hdus:
            mean, std = hdus["MEAN_N"], hdus["STD_N"]
            assert mean.header["BUNIT"] == std.header["BUNIT"] == "cm-3"
            found[size] = mean.data, std.data
            place = WCS(mean.header).all_pix2world(75, 30, 0)
    values, known, _, wcs = whole(tmp_path / "store-64")
    np.testing.assert_allclose(place, wcs.all_pix2world(75, 30, 0), atol=1e-8)
    assert values.shape == (80, 100) == found["64"][0].shape and (~known).sum() == 150
    for size in found:
        for plane in found[size]:
            np.testing.assert_array_equal(np.isfinite(plane), known)
        assert (found[size][0][known] > 0).all()
    # the noise is the sky's, so tiles do not matter; FITS is compressed
    np.testing.assert_allclose(found["64"][0], found["96"][0], rtol=0.02)
    np.testing.assert_allclose(found["64"][1], found["96"][1], rtol=0.02, atol=5)
    domains = set(RunFolder.open(str(tmp_path / "run-64")).ledger()["domain"].to_pylist())
    assert domains == {"out: column pixels 0.125 pc (trained on 0.2)"}


def test_tiles_for_a_checkpoint_have_its_problem_and_the_pixels_of_its_training(tmp_path, checkpoint, capsys):
    path, store = write_map(tmp_path / "av.fits", (70, 90), SCALE), tmp_path / "store"
    image = ["ingest", "--image", f"column.N={path}", *AS_COLUMN, "--store", str(store), "--tile-size", "64"]
    assert main([*image, "--checkpoint", checkpoint, "--distance", str(DISTANCE)]) == 0
    image_of_store = whole(store)[2]
    assert float(image_of_store.provenance[PIXEL_PC]) == 0.2
    assert image_of_store.pixel_scale == pytest.approx(SCALE * 0.2 / PC, rel=1e-3)
    other = [*image[:-4], "--store", str(tmp_path / "other"), "--distance", str(DISTANCE), "--pixel-pc", "0.1"]
    assert main([*other, "--checkpoint", checkpoint]) == 0
    assert float(whole(tmp_path / "other")[2].provenance[PIXEL_PC]) == 0.1
    capsys.readouterr()
    for more, said in {
        ("--problem", "clouds-density"): "has a problem of its own; leave out --problem clouds-density",
        ("--distance", "250"): "checkpoint mosaic-v2 says no size of the pixels of its training",
    }.items():
        which = checkpoint if "--problem" in more else "mosaic-v2"
        assert main([*image[:-4], "--store", str(tmp_path / "not"), "--checkpoint", which, *more]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "not").exists()


def test_a_run_of_maps_only_can_be_planned(tmp_path, checkpoint, capsys):
    assert ingest(write_map(tmp_path / "av.fits", (64, 64), SCALE), tmp_path / "store", *AS_COLUMN) == 0
    planned = ["plan", "--store", str(tmp_path / "store"), "--run", str(tmp_path / "run"), "--checkpoint", checkpoint]
    assert main([*planned, *QUICK, "--calibrate", "0.01", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tiles"], found["evaluations"]["score"], found["sources"]) == (1, 0, 0)
    assert found["evaluations"]["translate"] == (64 + 2 * 64) ** 2 / 64**2 * 2 * 2  # one tile with 64 pixels around
    assert not (tmp_path / "run").exists()


def test_the_pixel_of_the_training_is_in_the_card(checkpoint, tmp_path):
    card = load_checkpoint(checkpoint).card
    assert card.pixel_pc == 0.2 and card.from_json(card.to_json()).pixel_pc == 0.2
    assert "pixel_pc" not in replace(card, pixel_pc=None).to_json()


FIELD_UNITS = {"column": ("cm-2", 1.0), "psi": ("deg", 1.0), "sigma_v": ("km/s", 1.0)}


def field_maps(folder: Path, shape: tuple[int, int], arcsec: float, *, turned: float = 0.0) -> list[str]:
    """Column, angle and dispersion of a cloud whose field turns across it, as images for `ingest`.

    The angle is from the columns of the map towards its rows; `turned` turns the map on the sky, deg.
    """
    wcs = galactic(shape, arcsec)
    turn = np.radians(turned)
    wcs.wcs.cd = wcs.wcs.cd @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    x, y = wcs.all_world2pix(CENTRE.l.deg, CENTRE.b.deg, 1)
    wcs.wcs.crpix += [shape[1] / 2 - float(x), shape[0] / 2 - float(y)]
    y, x = np.indices(shape)
    place = SkyCoord(*wcs.all_pix2world(x, y, 0), unit="deg", frame="galactic")
    values = {"column": 2e21 * extinction(place), "sigma_v": 0.5 + 0.2 * extinction(place)}
    # of the field on the sky, from galactic longitude towards latitude, through the seam at 90 deg
    on_sky = 90 + 40 * CENTRE.spherical_offsets_to(place)[0].to_value("deg")
    # along columns longitude grows, along rows latitude falls; then the map is turned
    values["psi"] = (-on_sky - turned + 90) % 180 - 90
    images = []
    for name, plane in values.items():
        header = wcs.to_header()
        header["BUNIT"] = FIELD_UNITS[name][0]
        fits.PrimaryHDU(plane.astype(np.float32), header).writeto(folder / f"{name}.fits", overwrite=True)
        images.append(f"observables.{name}={folder / f'{name}.fits'}")
    return images


def ingest_field(images: list[str], store: Path, *more: str) -> int:
    tiling = ["--tile-size", "64", "--halo", "64"]
    return main(["ingest", "--problem", "clouds-field", "--image", *images, "--store", str(store), *tiling, *more])


def apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Difference of angles, rad, by the shorter way."""
    return np.abs((first - second + np.pi / 2) % np.pi - np.pi / 2)


@pytest.mark.parametrize("factor", [0.4, 1.25])
def test_angles_come_onto_other_pixels_without_a_seam(tmp_path, factor):
    """Column, angle and dispersion, each in its own unit, smoothed or interpolated, are what maps on these pixels."""
    (tmp_path / "own").mkdir()
    shape = (round(70 / factor), round(90 / factor))
    where = ["--distance", str(DISTANCE), "--pixel-pc", str(PC)]
    assert ingest_field(field_maps(tmp_path, shape, factor * SCALE), tmp_path / "store", *where) == 0
    assert ingest_field(field_maps(tmp_path / "own", (70, 90), SCALE), tmp_path / "plain", *where) == 0
    found, expected = (TileStore.open(str(tmp_path / name)).read_tile("t0000") for name in ("store", "plain"))
    image, plain = found.images["observables"], expected.images["observables"]
    assert image.unit == "cm-2,rad,cm s-1" == plain.unit and image.bands == ("column", "psi", "sigma_v")
    assert image.valid.all() and image.flux.shape == plain.flux.shape
    inner = np.s_[4:-4, 4:-4]
    np.testing.assert_allclose(image.flux[0][inner], plain.flux[0][inner], rtol=0.03)
    np.testing.assert_allclose(image.flux[2][inner], plain.flux[2][inner], rtol=0.03)
    assert image.flux[2].min() > 4e4 and image.flux[2].max() < 2e5
    assert apart(image.flux[1], plain.flux[1])[inner].max() < 0.06  # half a pixel of the field's turn is 0.03
    assert np.abs(image.flux[1]).max() > 1.5 and np.ptp(image.flux[1]) > 2.5  # the seam is in it


def test_angles_turn_with_the_map(tmp_path):
    """A map that lies turned on the sky, brought to the pixels of one that does not, has its angles."""
    (tmp_path / "turned").mkdir()
    assert ingest_field(field_maps(tmp_path, (90, 90), SCALE), tmp_path / "plain") == 0
    images = field_maps(tmp_path / "turned", (150, 150), SCALE, turned=35.0)
    assert ingest_field(images, tmp_path / "store", "--grid", str(tmp_path / "column.fits")) == 0
    found, plain = (TileStore.open(str(tmp_path / name)).read_tile("t0000") for name in ("store", "plain"))
    image, expected = found.images["observables"], plain.images["observables"]
    assert image.valid.all()
    assert apart(image.flux[1], expected.flux[1]).max() < 0.02
    np.testing.assert_allclose(image.flux[0], expected.flux[0], rtol=0.01)


def test_a_magnetic_field_is_mapped_from_three_quantities(tmp_path):
    problem = Problem.from_table(read_problem("clouds-field"))
    images = field_maps(tmp_path, (90, 110), SCALE)
    assert ingest_field(images, tmp_path / "store", "--distance", str(DISTANCE)) == 0
    tile = TileStore.open(str(tmp_path / "store")).read_tile("t0000")
    image = tile.images["observables"]
    assert float(image.provenance[PIXEL_PC]) == pytest.approx(PC, rel=1e-3)
    seen = torch.from_numpy(image.flux)[None, :, :64, :64]
    ends = [
        fit_endpoint(end, seen if end.name == "observables" else seen[:, :1] / 1e20, {}) for end in problem.endpoints
    ]
    network = NetworkConfig(base=8, stem=2, norm="pixel", image_channels=problem.channels)
    problem = problem.with_endpoints(ends)
    checkpoint = tiny.write_checkpoint(tmp_path, "field", problem=problem, network=network)
    translated = ["translate", "--store", str(tmp_path / "store"), "--run", str(tmp_path / "run"), *QUICK]
    assert main([*translated, "--checkpoint", checkpoint]) == 0
    assert main(["export", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "b.fits")]) == 0
    with fits.open(tmp_path / "b.fits") as hdus:
        assert hdus["MEAN_B"].header["BUNIT"] == "uG" and hdus["MEAN_B"].data.shape == (90, 110)
        assert np.isfinite(hdus["MEAN_B"].data).all() and (hdus["MEAN_B"].data > 0).all()


CLOUDS = ROOT.parent / "shared" / "data" / "clouds"


@pytest.mark.skipif(not CLOUDS.exists(), reason="needs ../shared/data/clouds")
@pytest.mark.parametrize(
    ("name", "more", "shape"),
    [
        ("PerA_Extn2MASS_F_Gal.fits", [*AS_COLUMN, "--stale-sums"], (536, 372)),
        ("IC348_nh.fits", ["--factor", "column.N=1", "--no-data", "column.N=0"], (27, 53)),
    ],
)
def test_perseus_is_translated_as_a_whole(tmp_path, checkpoint, name, more, shape):
    """Extinction of all of Perseus, and the column density of IC 348, which is 0 where there is no data."""
    distance = ["--distance", "294", "--pixel-pc", "0.125", "--tile-size", "512"]
    assert ingest(str(CLOUDS / name), tmp_path / "store", *more, *distance) == 0
    values, known, _, wcs = whole(tmp_path / "store")
    assert values.shape == shape
    original, header = fits.getdata(CLOUDS / name), fits.getheader(CLOUDS / name)
    if name.startswith("Per"):
        assert known.mean() > 0.995  # but for what the last row and column reach beyond the map
        # NGC 1333, (l, b) = (158.3, -20.5), is the densest part of it
        y, x = np.unravel_index(np.nanargmax(np.where(known, values, np.nan)), shape)
        peak = SkyCoord(*wcs.all_pix2world(x, y, 0), unit="deg")
        y, x = np.unravel_index(np.argmax(original), original.shape)
        there = SkyCoord(*WCS(header).all_pix2world(x, y, 0), unit="deg", frame="galactic")
        assert peak.separation(there).arcmin < 3
        assert np.median(values[known]) == pytest.approx(2.2e21 * np.median(original), rel=0.02)
        return
    assert 0.4 < known.mean() < 0.6 and values[known].min() > 1e20
    assert np.median(values[known]) == pytest.approx(np.median(original[original > 0]), rel=0.1)
    translated = ["translate", "--store", str(tmp_path / "store"), "--run", str(tmp_path / "run"), *QUICK]
    assert main([*translated, "--checkpoint", checkpoint]) == 0
    assert main(["export", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "n.fits")]) == 0
    with fits.open(tmp_path / "n.fits") as hdus:
        np.testing.assert_array_equal(np.isfinite(hdus["MEAN_N"].data), known)
