"""Jobs that need no network, on problems beside LSST and Euclid: command lines, pages and pictures are their own."""

from __future__ import annotations

import io

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from surveybridge.__main__ import main
from surveybridge.jobs.drawing.overview import Overview
from surveybridge.jobs.drawing.panel import draw_candidates, draw_panel
from surveybridge.jobs.drawing.rendering import candidate_pictures, png, sky_picture, views
from surveybridge.jobs.vet import Config, open_session
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.problems import complete_problem, endpoint
from surveybridge.storage.tiles import Tile, TileStore
from tests.jobs.vetting_runs import in_thread, request
from tests.storage.problem_files import problem, rubin_euclid_files, sky_file, write_problem
from tests.storage.test_other_problems import cloud_files, other_run


@pytest.fixture
def rubin_euclid(tmp_path):
    """Arguments that name the problem and its images."""
    files = rubin_euclid_files(tmp_path)
    images = [f"{name}.{band}={path}" for name, bands in files.items() for band, path in bands.items()]
    return ["ingest", "--problem", write_problem(tmp_path, "rubin-euclid"), "--image", *images]


def test_images_are_named_by_endpoint_and_band(tmp_path, rubin_euclid):
    store = str(tmp_path / "store")
    more = ["--noise", "euclid=sky", "rubin=file", "--psf", "rubin.u=0.9", "euclid.H=0.5", "--tile-size", "128"]
    assert main([*rubin_euclid, *more, "--store", store]) == 0
    manifest = TileStore.open(store).manifest()
    assert manifest["grid_id"][0].as_py().startswith("euclid-")  # the end with the objects
    tile = TileStore.open(store).read_tile(manifest["tile_id"][0].as_py())
    assert tile.images["rubin"].psf_fwhm[0] == 0.9 and np.isnan(tile.images["rubin"].psf_fwhm[1])
    assert tile.images["euclid"].psf_fwhm[3] == 0.5
    assert "sky MAD" in tile.images["euclid"].provenance["H.noise"]


@pytest.mark.parametrize("onto", ["hsc", "hst", None])
def test_the_grid_is_the_one_asked_for_or_that_of_the_objects(tmp_path, onto):
    images = [
        f"hsc.{band}={sky_file(tmp_path / f'{band}.fits', (100, 104), 0.168, 1000.0)}"
        for band in ["g", "r", "i", "z", "y"]
    ]
    hst = f"hst.F814W={sky_file(tmp_path / 'acs.fits', (280, 300), 0.05, 500.0)}"
    arguments = ["ingest", "--problem", write_problem(tmp_path, "hsc-hst"), "--image", hst, *images]
    store = tmp_path / "store"
    assert main([*arguments, "--store", str(store), *(["--onto", onto] if onto else [])]) == 0
    assert TileStore.open(store).manifest()["grid_id"][0].as_py().startswith(f"{onto or 'hst'}-")


BAD = {
    "no images": (["--problem", "lsst-euclid"], "--image is required"),
    "nothing": ([], "--euclid is required; --lsst is required"),
    "both ways": (["--euclid", "a.fits", "--image", "lsst.g=b.fits"], "--euclid is a short form for"),
    "no band": (["--image", "lsst=a.fits"], "--image lsst=a.fits: expected NAME.BAND=FILE"),
    "no file": (["--image", "lsst.g="], "--image lsst.g=: expected NAME.BAND=FILE"),
    "a band twice": (["--image", "lsst.g=a.fits", "lsst.g=b.fits"], "lsst.g is given twice"),
    "an unknown end": (["--image", "lsst.g=a.fits", "hst.g=b.fits", "--onto", "lsst"], "has no endpoint 'hst'"),
    "an unknown grid": (["--image", "lsst.g=a.fits", "--onto", "hst"], "has no endpoint 'hst'"),
    "noise that is none": (["--image", "lsst.g=a.fits", "--noise", "lsst=none"], "lsst=none: expected NAME=auto"),
    "a PSF that is none": (["--image", "lsst.g=a.fits", "--psf", "lsst.g=-1"], "lsst.g=-1: expected NAME.BAND=PSF"),
    "no such problem": (["--problem", "hsc", "--image", "a.b=c.fits"], "problem hsc: No such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_exits_2_with_one_line(tmp_path, capsys, case):
    arguments, said = BAD[case]
    assert main(["ingest", *arguments, "--store", str(tmp_path / "store")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "store").exists()


def test_an_image_in_another_unit_exits_2_with_both(tmp_path, capsys):
    files = cloud_files(tmp_path, "K")
    images = [f"{name}.{band}={path}" for name, bands in files.items() for band, path in bands.items()]
    arguments = ["ingest", "--problem", write_problem(tmp_path, "clouds"), "--image", *images]
    assert main([*arguments, "--store", str(tmp_path / "store")]) == 2
    assert "BUNIT K but endpoint column is in cm-2" in capsys.readouterr().err
    cloud_files(tmp_path)
    assert main([*arguments, "--store", str(tmp_path / "store")]) == 0


# -- what is made of runs --


def test_query_prints_the_fluxes_of_the_problem(tmp_path, capsys):
    run = other_run(tmp_path, problem(tmp_path, "rubin-euclid"))
    assert main(["query", "--run", run.url]) == 0
    head = capsys.readouterr().out.splitlines()[0].split()
    fluxes = [*(f"flux_{band}" for band in "ugriz"), "flux_rubin_y", "flux_VIS"]
    fluxes += [f"flux_{band}" for band in ("euclid_Y", "J", "H")]
    assert head == ["rank", "object_id", "ra", "dec", "score", "score_std", "false_alarm", *fluxes,
                    "snr_rubin_y", "snr_VIS", "system_members", "flags"]  # fmt: skip


def test_export_writes_units_and_bands_and_a_picture_in_the_problems_colours(tmp_path):
    for name, direction, unit, bands in (
        ("clouds", "column->density", "cm-3", ["nH"]),
        ("rubin-euclid", "rubin->euclid", "nJy", ["VIS", "Y", "J", "H"]),
    ):
        run = other_run(tmp_path, problem(tmp_path, name), name=name, direction=direction)
        assert main(["export", "--run", run.url, "--out", str(tmp_path / f"{name}.fits"), "--png"]) == 0
        with fits.open(tmp_path / f"{name}.fits") as hdus:
            assert [hdus[f"MEAN_{band}"].header["BUNIT"] for band in bands] == [unit] * len(bands)
            assert "MODEL-GENERATED" in str(hdus[0].header["COMMENT"])
        with Image.open(tmp_path / f"{name}.png") as file:
            picture = np.asarray(file).astype(int)
        assert (np.ptp(picture, axis=-1).max() > 20) == (name == "rubin-euclid")  # H, Y, VIS as red, green, blue


@pytest.mark.parametrize("name", ["hsc-hst", "rubin-euclid"])
def test_candidates_have_the_pictures_of_their_problem(tmp_path, name):
    table = problem(tmp_path, name)
    run = other_run(tmp_path, table)
    headings = views(table)
    if name == "hsc-hst":
        assert headings["hsc"] == "HSC grizy" and headings["hst"] == "HST F814W"
        assert headings["residual"] == "HST − reconstruction"
    pictures = candidate_pictures(run.read_candidates("a").to_pylist()[0], table)
    assert list(pictures) == list(headings)
    coloured = {view for view, picture in pictures.items() if np.ptp(picture.astype(int), axis=-1).max() > 20}
    assert coloured - {"residual", "error"} == ({"hsc"} if name == "hsc-hst" else {"euclid", "mean"})
    draw_candidates(run.url, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_angles_have_one_colour_half_a_turn_on_and_are_averaged_across_it(tmp_path):
    table = problem(tmp_path, "clouds")
    table["endpoints"][1] |= {"unit": "deg", "stretch": "axial", "extensive": False}
    end = endpoint(complete_problem(table, "here"), "density")
    angle = np.full((1, 4, 4), 30.0)
    np.testing.assert_array_equal(sky_picture(angle, np.ones(1), end), sky_picture(angle - 180, np.ones(1), end))
    mixed = np.full((1, 4, 4), 89.0, np.float32)
    mixed[0, ::2] = -89.0
    overview = Overview((0, 4, 0, 4), end, side=2)
    overview.add(mixed, np.ones_like(mixed), (0, 0))
    np.testing.assert_array_equal(overview.picture(), sky_picture(np.full((1, 2, 2), 90.0), np.ones(1), end))


def test_the_grading_page_has_the_words_and_pictures_of_the_problem(tmp_path):
    table = problem(tmp_path, "rubin-euclid")
    run = other_run(tmp_path, table)
    with in_thread(open_session(Config(run=run.url), "ann")) as url:
        session = request(f"{url}/api/session").json()
        assert session["views"] == views(table) and session["signal"] == "snr_VIS" and session["band"] == "VIS"
        assert [(end["name"], end["zero_point"]) for end in session["ends"]] == [
            ("rubin", pytest.approx(23.9)),
            ("euclid", pytest.approx(31.4)),
        ]
        assert session["ends"][0]["fluxes"][-1] == "flux_rubin_y"
        rows = request(f"{url}/api/candidates?sort=brightest").json()["rows"]
        fluxes = [row["flux_VIS"] for row in rows]
        assert fluxes == sorted(fluxes, reverse=True) and len(fluxes) == 4
        picture = request(f"{url}/api/picture?object={rows[0]['object_id']}")
        assert np.asarray(Image.open(io.BytesIO(picture.body))).shape == (64, 64 * 5, 3)
        head = request(f"{url}/api/graded.csv").body.decode().splitlines()[0]
        assert '"flux_rubin_y"' in head and "flux_i" in head


@pytest.mark.parametrize("name", ["hsc-hst", "clouds"])
def test_the_report_shows_the_candidates_of_the_problem_or_says_that_there_are_maps_only(tmp_path, name):
    run = other_run(tmp_path, problem(tmp_path, name))
    assert main(["report", "--run", run.url, "--out", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report/report.html").read_text()
    if name == "clouds":
        assert "This run makes maps only" in text and "Scores" not in text
    else:
        assert "Pictures of HST and of its reconstruction" in text and "HSC grizy of candidate 1" in text
        assert '<th scope="row">F814W</th>' in text


@pytest.mark.parametrize("name", ["hsc-hst", "rubin-euclid", "clouds"])
def test_the_field_is_drawn_in_five_views(tmp_path, name):
    table = problem(tmp_path, name)
    run = other_run(tmp_path, table, tiles=("a",))
    store = TileStore.create(tmp_path / "store")
    mosaic = run.read_tile_mosaic("a")
    images = {end["name"]: seen(end, mosaic) for end in table["endpoints"]}
    store.write_manifest([store.write_tile(Tile("a", images, (0, 100, 0, 130), (0, 0), "grid"))])
    draw_panel(run.url, store.url, tmp_path / "panel.png")
    with Image.open(tmp_path / "panel.png") as picture:
        assert picture.size[0] > 2000


def seen(end, mosaic):
    shape = (len(end["bands"]), *mosaic.coverage.shape)
    flux = np.random.default_rng(0).uniform(1, 9, shape).astype(np.float32)
    return SurveyImage(
        survey=end["name"],
        bands=tuple(end["bands"]),
        flux=flux,
        variance=np.ones_like(flux),
        mask=np.zeros(shape, np.uint8),
        wcs_header=mosaic.wcs_header,
        pixel_scale=0.1,
        psf_fwhm=(0.5,) * shape[0],
        zero_point=float("nan"),
        noise_correlation=(0.0,) * shape[0],
        unit=end["unit"],
        extensive=end["extensive"],
    )


def test_a_picture_is_a_png_that_says_what_it_is(tmp_path):
    end = problem(tmp_path, "clouds")["endpoints"][0]
    picture = sky_picture(np.full((1, 8, 8), 1e21), np.ones(1), end)
    assert Image.open(io.BytesIO(png(picture, "made up"))).text["Description"] == "made up"  # type: ignore[attr-defined]
