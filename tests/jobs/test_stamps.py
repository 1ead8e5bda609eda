"""Stamps say truly where north and east are and how large they are; what is around them is read across tiles."""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from surveybridge.jobs.drawing import views
from surveybridge.jobs.drawing.archives import links
from surveybridge.jobs.drawing.overlay import bar_length, directions, overlay, said
from surveybridge.jobs.drawing.panel import _read_field
from surveybridge.jobs.drawing.rendering import candidate_pictures, channels, shown_plane
from surveybridge.jobs.drawing.rendering import views as candidate_views
from surveybridge.jobs.report import Config as ReportConfig
from surveybridge.jobs.report import run as report
from surveybridge.jobs.vet import Config, open_session
from surveybridge.storage.orientation import Orientation, RunGrids, orientation
from surveybridge.storage.problems import default_problem, shown_ends
from surveybridge.storage.query import query
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.surroundings import SurroundingsReader
from surveybridge.storage.tiles import TileStore
from tests.conftest import ROOT
from tests.jobs.turned_sky import DEC, EAST, NORTH, RA, SCALE, SIDE, make_turned, turned_wcs
from tests.jobs.vetting_runs import in_thread, request
from tests.storage.problem_files import problem

TURNS = [(0.0, False), (37.0, False), (-122.5, False), (160.0, True), (-8.0, True)]


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """A run whose north is 160 degrees from up, with east on the other side than on the sky."""
    return make_turned(tmp_path_factory.mktemp("mirrored"), 160.0, True)


@pytest.mark.parametrize(("turn", "is_mirrored"), TURNS)
def test_directions_are_those_of_the_wcs(turn, is_mirrored):
    found = orientation(turned_wcs(turn, is_mirrored), RA, DEC)
    assert found.north == pytest.approx(turn, abs=1e-3) and found.mirrored is is_mirrored
    assert found.pixel == pytest.approx(SCALE, rel=1e-6)
    vectors = directions(found)
    assert vectors["N"] == pytest.approx((-math.sin(math.radians(turn)), math.cos(math.radians(turn))), abs=1e-4)
    assert np.dot(vectors["N"], vectors["E"]) == pytest.approx(0, abs=1e-9)
    (north_x, north_y), (east_x, east_y) = vectors["N"], vectors["E"]
    assert north_x * east_y - north_y * east_x == pytest.approx(-1 if is_mirrored else 1)


def test_directions_turn_with_the_meridians_beside_a_pole():
    wcs = turned_wcs(0.0, False)
    wcs.wcs.crval = [0.0, 89.99]
    wcs.wcs.set()
    for ra, north in ((0.0, 0.0), (30.0, -30.0), (90.0, -90.0), (180.0, 180.0)):
        found = orientation(wcs, ra, 89.995)
        assert (found.north - north + 180) % 360 - 180 == pytest.approx(0.0, abs=0.01)
        assert found.pixel == pytest.approx(SCALE, rel=1e-4)


def test_an_overlay_has_a_bar_of_the_length_that_it_states_and_arrows_that_point_as_stated():
    for side, found in ((6.4, Orientation(37.0, False, 0.1)), (20.0, Orientation(160.0, True, 0.1))):
        root = ElementTree.fromstring(overlay(found, side))
        texts = {node.text: (float(node.get("x", 0)), float(node.get("y", 0))) for node in root.findall(".//{*}text")}
        assert set(texts) == {"N", "E", f"{bar_length(side):g}″"}
        lines = [[float(n) for n in re.findall(r"-?[\d.]+", node.get("d", ""))] for node in root.findall(".//{*}path")]
        bar = lines[0]
        assert (bar[2] - bar[0]) / 100 * side == pytest.approx(bar_length(side), abs=0.01 * side)
        for x0, y0, x1, y1 in lines[1:2]:
            assert (x1 - x0, y0 - y1) == pytest.approx(tuple(11 * v for v in directions(found)["N"]), abs=0.02)
        assert all(0 < value < 100 for place in texts.values() for value in place)
    assert said(Orientation(160.0, True, 0.1), 20.0) == (
        "20″ × 20″, bar 5″, north 160° left of up, east clockwise (mirrored) of it"
    )
    assert [bar_length(side) for side in (1.0, 6.4, 20.0, 64.0)] == [0.2, 2, 5, 20]


@pytest.mark.parametrize(("turn", "is_mirrored"), TURNS[1::2])
def test_the_objects_to_the_north_and_east_lie_where_the_arrows_of_the_page_point(tmp_path, turn, is_mirrored):
    run = make_turned(tmp_path, turn, is_mirrored)
    with in_thread(open_session(Config(run=run.url), "ann")) as url:
        rows = request(f"{url}/api/candidates").json()["rows"]
        lead = next(row for row in rows if row["object_id"] == "lead")
        assert lead["stamp"]["side"] == pytest.approx(6.4) and lead["stamp"]["said"].startswith("6.4″ × 6.4″, bar 2″")
        asked = dict(part.split("=") for part in lead["stamp"]["overlay"].partition("?")[2].split("&"))
        vectors = directions(Orientation(float(asked["north"]), asked["mirrored"] == "1", SCALE))
        assert b"<svg" in request(f"{url}/{lead['stamp']['overlay']}&text=12").body
        assert [member["object_id"] for member in lead["members"]] == ["lead", "north", "east"]
        for member, offset in zip(lead["members"][1:], ((NORTH, "N"), (EAST, "E")), strict=True):
            wanted = [offset[0] / SCALE * v for v in vectors[offset[1]]]
            assert (member["dx"], member["dy"]) == pytest.approx(wanted, abs=0.02)
        for side, pixels, place in ((0, 64, 1), (10, 100, 1), (20, 200, 2)):
            strip = request(f"{url}/api/picture?object=lead&side={side}&stretch=0.2").body
            picture = np.asarray(Image.open(io.BytesIO(strip)).convert("L"), float)
            shown = picture[:, place * pixels : (place + 1) * pixels]
            for name, distance in (("N", NORTH), ("E", EAST)):
                right, up = (distance / SCALE * v for v in vectors[name])
                y, x = round(pixels / 2 - 1 - up), round(pixels / 2 + right)
                around = shown[y - 2 : y + 3, x - 2 : x + 3]
                beside = shown[pixels - 1 - y - 2 : pixels - 1 - y + 3, pixels - 1 - x - 2 : pixels - 1 - x + 3]
                assert around.mean() > beside.mean() + 30


def test_surroundings_across_tiles_are_the_field_itself(mirrored):
    run = mirrored
    reader = SurroundingsReader(run, RunGrids(run))
    found = reader.read("t0003", RA, DEC, 20.0)
    assert found.missing == "" and found.side == pytest.approx(20.0) and found.box == (60, 260, 60, 260)
    tiles = [TileStore.open(run.store_url).read_tile(f"t000{k}", halo=0) for k in range(4)]
    whole = {}
    for name in found.observed:
        flux = [tile.images[name].flux for tile in tiles]
        whole[name] = np.block([flux[:2], flux[2:]])
    for name, image in found.observed.items():
        np.testing.assert_array_equal(image, whole[name][:, 60:260, 60:260])
    np.testing.assert_array_equal(found.mean, np.float32(0.9) * whole["euclid"][:, 60:260, 60:260])
    corner = turned_wcs(160.0, True).all_pix2world(20, 25, 0)
    edge = reader.read("t0000", float(corner[0]), float(corner[1]), 10.0)
    assert edge.box == (-25, 75, -30, 70) and np.isnan(edge.mean[0, :25]).all() and np.isnan(edge.mean[0, :, :30]).all()
    np.testing.assert_array_equal(edge.observed["lsst"][:, 25:, 30:], whole["lsst"][:, :75, :70])


def test_without_its_store_a_page_shows_the_translated_map_and_says_what_is_missing(mirrored, tmp_path):
    with in_thread(open_session(Config(run=mirrored.url, store=str(tmp_path / "gone")), "ann")) as url:
        found = request(f"{url}/api/surroundings?object=lead&side=20").json()
        assert found["missing"].startswith("no images of the surveys: ") and str(tmp_path / "gone") in found["missing"]
        assert "translated" not in found["missing"] and found["side"] == pytest.approx(20)
        picture = np.asarray(Image.open(io.BytesIO(request(f"{url}/api/picture?object=lead&side=20").body)))
        assert picture.shape == (200, 800, 3) and np.ptp(picture[:, :400].reshape(-1, 3), axis=0).max() == 0
        assert picture[:, 400:600].std() > 5
        for wrong, reason in (("side=21", "less than or equal to 20"), ("channel=3", "0..2"), ("stretch=60", "50")):
            answer = request(f"{url}/api/picture?object=lead&{wrong}")
            assert answer.status == 400 and reason in answer.json()["error"]


def test_tiles_that_were_ingested_anew_are_named(tmp_path):
    run = make_turned(tmp_path / "one", 10.0, False)
    make_turned(tmp_path / "two", 11.0, False)
    found = SurroundingsReader(run, RunGrids(run), str(tmp_path / "two" / "tiles")).read("t0003", RA, DEC, 5.0)
    assert "t0003" in found.missing


def test_a_run_of_an_earlier_version_has_directions_and_surroundings_too():
    run = RunFolder.open(ROOT / "tests" / "kept" / "v1" / "run")
    row = query(run.url, top=1, thumbnails=False).to_pylist()[0]
    grids = RunGrids(run)
    place = row["tile_id"], row["ra"], row["dec"]
    found = grids.directions(*place)
    assert run.version < 4 and found is not None
    assert (found.north, found.mirrored, found.pixel) == (pytest.approx(0, abs=0.01), False, pytest.approx(0.1))
    around = SurroundingsReader(run, grids, str(ROOT / "tests" / "kept" / "v1" / "tiles")).read(*place, 12.0)
    assert around.missing == "" and np.isfinite(around.mean).mean() > 0.3
    assert all(np.isfinite(image).mean() > 0.3 for image in around.observed.values())


def test_channels_step_through_the_bands_of_any_problem(tmp_path):
    table = default_problem()
    other, catalog = shown_ends(table)
    assert [shown_plane(other, table, k) for k in range(channels(table))] == [0, 1, 2]
    assert [shown_plane(catalog, table, k) for k in range(channels(table))] == [0, 0, 0]
    assert list(candidate_views(table, 1).values())[:2] == ["LSST r", "Euclid VIS"]
    six, four = shown_ends(wide := problem(tmp_path, "rubin-euclid"))
    assert (len(six["bands"]), len(four["bands"]), channels(wide)) == (6, 4, 6)
    assert [shown_plane(four, wide, k) for k in range(6)] == [0, 0, 1, 2, 2, 3]
    rng = np.random.default_rng(0)
    row = {f"thumbnail_{name}": rng.normal(size=(bands, 64, 64)) for name, bands in
           (("lsst", 3), ("euclid", 1), ("mean", 1), ("error", 1))}  # fmt: skip
    shown = [candidate_pictures(row, table, channel=k)["lsst"] for k in range(3)]
    assert all((one[..., 0] == one[..., 2]).all() for one in shown) and not np.array_equal(shown[0], shown[1])
    only = {**row, "thumbnail_lsst": np.roll(row["thumbnail_lsst"], 1, axis=0)}
    np.testing.assert_array_equal(candidate_pictures(only, table, channel=2)["lsst"], shown[1])


def test_figures_and_reports_show_the_same_directions(mirrored, tmp_path):
    field = _read_field(mirrored.url, mirrored.store_url, None, 3)
    axis = Figure().add_subplot()
    views.compass(axis, field)
    places = {text.get_text(): np.array(text.get_position()) for text in axis.texts if text.get_text()}
    start = np.array([0.12 * SIDE, SIDE - 0.12 * SIDE])
    for name, vector in directions(Orientation(160.0, True, SCALE)).items():
        towards = places[name] - start
        assert towards / np.linalg.norm(towards) == pytest.approx(vector, abs=0.01)
    assert report(ReportConfig(run=(mirrored.url,), out=str(tmp_path))) == 0
    page = (tmp_path / "report.html").read_text()
    assert "6.4″ × 6.4″, bar 2″, north 160° left of up, east clockwise (mirrored) of it" in page
    assert page.count('class="over" src="data:image/svg+xml;base64,') == 5 * query(mirrored.url).num_rows


def test_links_are_plain_addresses_at_the_position():
    found = links(210.3, -12.4)
    assert list(found) == ["Aladin Lite", "Legacy Survey", "ESASky", "SIMBAD", "NED"]
    assert all(url.startswith("https://") and "210.300000" in url and "-12.400000" in url for url in found.values())
    assert "%2B12.400000" in links(210.3, 12.4)["SIMBAD"]
