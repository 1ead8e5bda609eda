"""Report: one page that holds everything it shows, of a run in any state, and in which any text is only text."""

from __future__ import annotations

import datetime
import html
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from astropy.wcs import WCS
from scipy.stats import norm

from surveybridge.__main__ import main
from surveybridge.jobs.drawing.archives import links
from surveybridge.jobs.report import PAGE
from surveybridge.jobs.reporting.calibration import LEVELS, observed_planes, tile_pulls
from surveybridge.jobs.reporting.cards import brightness
from surveybridge.jobs.reporting.sky import middle, tile_corners, tile_grid, tile_statuses
from surveybridge.jobs.reporting.timeline import worked_minutes
from surveybridge.storage.grades import write_grade
from surveybridge.storage.mosaics import TileMosaic
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.parquet import parquet_bytes
from surveybridge.storage.published import standing_rows
from surveybridge.storage.publishing import publish
from surveybridge.storage.query import query
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import LEDGER, MANIFEST, conform, stamps, table_from_rows
from surveybridge.storage.tiles import TileStore
from tests.jobs.test_status import held
from tests.storage.faults import moto_server
from tests.storage.overlaps import write_run
from tests.storage.test_overlapping_runs import objects
from tests.storage.test_runs import RUN, make_header

pytestmark = pytest.mark.long  # 15 s in all

CORE = 128
"""Side of a tile's core, pixels."""
EVIL = "../../../etc/passwd\"><img src=http://evil.test/x onerror=alert('1')>&amp;"
REASON = "ValueError: <script>alert(1)</script> {{ 7 * 7 }} in tile t2"


def make_store(url: str, tiles: int, columns: int = 3) -> TileStore:
    """A store that lists tiles t0, t1, ... row by row on one grid, and holds none."""
    store = TileStore.create(url)
    places = np.arange(tiles)
    centre = (CORE - 1) / 2
    x, y = places % columns * CORE + centre, places // columns * CORE + centre
    ra, dec = WCS(make_header()).all_pix2world(x, y, 0)
    table = {
        "tile_id": [f"t{i}" for i in places],
        "content": [f"c{i}" for i in places],
        **{"ra": ra, "dec": dec},
        **dict.fromkeys(("core_height", "core_width"), np.full(tiles, CORE, np.int32)),
    }
    store.folder.put(parquet_bytes(conform(pa.table(table), MANIFEST, "tiles")), "manifest.parquet")
    return store


def make_run(url: str, store: TileStore, **more: object) -> RunFolder:
    document = {"run_id": "r1", "model": "<b>mosaic</b>", "code_version": "0.2", "store": store.url}
    return RunFolder.open_or_create(url, RUN | document | more)


def write_tile(run: RunFolder, number: int, names: list[str], columns: int = 3) -> None:
    """A finished tile with a candidate for each name, on a flat sky of unit noise."""
    rng = np.random.default_rng(number)
    y, x = number // columns * CORE, number % columns * CORE
    mean, std = np.zeros((1, CORE, CORE), np.float32), np.ones((1, CORE, CORE), np.float32)
    coverage = np.ones((CORE, CORE), np.float32)
    run.write_mosaic(TileMosaic(f"t{number}", make_header(y, x), ("VIS",), mean, std, coverage, (y, x), "grid"))
    n = len(names)
    at = np.array([[y + 40 + 9 * i, x + 50 + 11 * i] for i in range(n)]).reshape(-1, 2)
    ra, dec = WCS(make_header()).all_pix2world(at[:, 1], at[:, 0], 0)
    score = 5.0 - np.arange(n) + number / 10
    table = {
        "object_id": names,
        **{"ra": ra, "dec": dec, "x": at[:, 1].astype(float), "y": at[:, 0].astype(float)},
        **{"score": score, "score_std": np.full(n, 0.1), "false_alarm": norm.sf(score)},
        **{f"flux_{band}": np.full(n, 3631.0) for band in ("g", "r", "i")},
        **{f"snr_{band}": np.full(n, 20.0) for band in ("g", "r", "i")},
        "flux_VIS": np.full(n, -10.0),
        "snr_VIS": np.full(n, -2.0),
        "flags": np.full(n, 5, np.int32),
        **{
            f"thumbnail_{name}": stamps(f"thumbnail_{name}", rng.normal(size=(n, 3 if name == "lsst" else 1, 64, 64)))
            for name in ("lsst", "euclid", "mean", "error")
        },
    }
    run.write_candidates(f"t{number}", pa.table(table))
    run.commit({"tile_id": f"t{number}", "content": f"c{number}", "status": "ok", "n_candidates": n} | seconds(1.0))


def seconds(scale: float) -> dict[str, float]:
    return {"seconds_read": scale, "seconds_model": 9 * scale, "seconds_score": 2 * scale, "seconds_write": scale / 2}


def make_scene(folder: str) -> RunFolder:
    """A run of six tiles: three ok, one without sources, one failed, one quarantined, one pending."""
    run = make_run(f"{folder}/runs/r1", make_store(f"{folder}/tiles", 6))
    write_tile(run, 0, ["SB J0332-2800", "SB J0332-2801"])
    write_tile(run, 1, [EVIL, "SB J0332-2802", "SB J0332-2803"])
    write_tile(run, 4, [])
    failure = {"stage": "read", "reason": REASON, "traceback_hash": "aaa"}
    run.commit({"tile_id": "t2", "content": "c2", "status": "failed", **failure})
    killed = {"stage": "model", "reason": "ProcessDied: signal 9, 3 times", "traceback_hash": "kkk"}
    run.commit({"tile_id": "t3", "content": "c3", "status": "quarantined", **killed})
    return run


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> RunFolder:
    return make_scene(str(tmp_path_factory.mktemp("report")))


@pytest.fixture(scope="module")
def reported(scene, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "deep" / "report"
    assert main(["report", "--run", scene.url, "--out", str(out)]) == 0
    return out / PAGE


def text_of(page: str) -> str:
    """What a reader sees, roughly: without style, tags and line breaks."""
    bare = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(bare).split())


def test_the_page_says_what_ran_what_failed_and_what_was_found(reported):
    text = text_of(reported.read_text())
    assert "3 ok 1 failed 1 quarantined 1 left of 6 tiles 5 sources scored" in text
    assert "state interrupted" in text and "lsst->euclid" in text and "model <b>mosaic</b> (c0ffee)" in text
    assert f"1 failed read {REASON} t2 aaa" in text
    assert "1 quarantined model ProcessDied: signal 9, 3 times t3 kkk" in text
    assert "score 5.1 ± 0.1 false alarms 1.7e-07" in text
    assert "g 22.50 20 r 22.50 20 i 22.50 20 VIS > 28.46 -2" in text
    assert "flags deblended, deblending incomplete" in text and "in the picture candidate 1 at 1.4″" in text
    assert [int(rank) for rank in re.findall(r'id="rank-(\d+)"', reported.read_text())] == [1, 2, 3, 4, 5]


def test_grades_stand_on_the_cards(tmp_path):
    run = make_run(str(tmp_path / "run"), make_store(str(tmp_path / "tiles"), 1))
    write_tile(run, 0, ["SB J0332-2800", "SB J0332-2801"])
    for grader, grade in (("Bob <b>", "X"), ("Ada", "A")):
        write_grade(run, grader, "SB J0332-2800", grade)
    assert main(["report", "--run", run.url, "--out", str(tmp_path / "out")]) == 0
    text = text_of((tmp_path / "out" / PAGE).read_text())
    assert "1 SB J0332-2800 grade A Ada; X Bob <b> " in text
    assert "2 SB J0332-2801 grade LSST" in text


def test_the_page_names_no_file_or_host_that_it_would_load(reported):
    page = reported.read_text()
    loaded = re.findall(r"""(?:src|srcset|data|poster)\s*=\s*["']([^"']*)|url\(([^)]*)|<link[^>]*href="([^"]*)""", page)
    kinds = {re.split("[,;]", "".join(each))[0] for each in loaded}
    assert kinds == {"data:", "data:image/png", "data:image/svg+xml"}
    assert "default-src 'none'" in page and "<script" not in page
    for url in re.findall(r'<a href="([^"#][^"]*)"', page):
        assert url.startswith("https://")


def test_a_name_of_markup_and_path_is_text_and_leads_nowhere(scene, reported):
    page = reported.read_text()
    assert EVIL not in page and EVIL in text_of(page)
    assert os.listdir(reported.parent) == [PAGE]
    assert os.listdir(reported.parent.parent) == ["report"]
    assert sorted(os.listdir(Path(scene.url).parent)) == ["r1"]


def test_a_run_in_object_storage_gives_the_page_of_a_local_one(reported, monkeypatch):
    with moto_server() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        Folder.at("s3://reports").filesystem.mkdir("reports")
        run = make_scene("s3://reports")
        assert main(["report", "--run", run.url, "--out", "s3://reports/reports/r1"]) == 0
        page = Folder.at("s3://reports/reports/r1").read(PAGE).decode()
        assert Folder.at("s3://reports/reports").names("r1") == [PAGE]
    local = reported.read_text()
    assert re.findall('<article class="card".*?</article>', page, re.DOTALL) == re.findall(
        '<article class="card".*?</article>', local, re.DOTALL
    )
    assert "3 ok 1 failed 1 quarantined 1 left of 6 tiles 5 sources scored" in text_of(page)


def test_a_run_without_a_finished_tile_has_a_page(tmp_path):
    run = make_run(str(tmp_path / "r1"), make_store(str(tmp_path / "tiles"), 4))
    assert main(["report", "--run", run.url, "--out", str(tmp_path / "out")]) == 0
    text = text_of((tmp_path / "out" / PAGE).read_text())
    for said in ("No tile is finished yet.", "No source is scored yet.", "No tile failed.", "no candidates to show"):
        assert said in text
    assert "0 ok 0 failed 0 quarantined 4 left of 4 tiles" in text


def test_a_run_at_work_says_who_does_it_and_how_long_it_takes(tmp_path):
    run = make_run(str(tmp_path / "r1"), make_store(str(tmp_path / "tiles"), 12))
    now = datetime.datetime.now(datetime.UTC)
    rows = [
        {
            "tile_id": f"t{i}",
            "content": f"c{i}",
            "status": "failed",
            "stage": "read",
            "reason": REASON,
            "attempt": 1,
            "finished_at": now - datetime.timedelta(minutes=9 - i),
            **seconds(1.0),
        }
        for i in range(8)
    ]
    run.folder.put(parquet_bytes(table_from_rows(rows, LEDGER, "ledger")), "ledger/segments/0-8-t0.parquet")
    with held(run, todo=12, done={"failed": 8}, in_flight=[]):
        assert main(["report", "--run", run.url, "--out", str(tmp_path), "--top", "0"]) == 0
    text = text_of((tmp_path / PAGE).read_text())
    assert re.search(r"state running on \S+ since \S+, done in about \d", text)
    assert "no candidates to show" in text


def test_a_store_that_is_gone_costs_only_the_map(tmp_path):
    run = make_scene(str(tmp_path))
    (tmp_path / "tiles" / "manifest.parquet").unlink()
    assert main(["report", "--run", run.url, "--out", str(tmp_path / "out"), "--top", "1"]) == 0
    page = (tmp_path / "out" / PAGE).read_text()
    assert "The tile store cannot be read" in text_of(page) and "has no manifest" in text_of(page)
    assert page.count('class="card"') == 1


def test_mosaics_that_were_removed_cost_only_the_calibration(tmp_path):
    run = make_scene(str(tmp_path))
    for mosaic in (tmp_path / "runs" / "r1" / "mosaics").iterdir():
        mosaic.unlink()
    assert main(["report", "--run", run.url, "--out", str(tmp_path / "out"), "--top", "1"]) == 0
    text = text_of((tmp_path / "out" / PAGE).read_text())
    assert "No mosaic of a finished tile has a candidate" in text and "drawn as 0.1″ pixels" in text


def test_candidates_of_a_checkpoint_without_a_lens_score_have_cards(tmp_path):
    run = make_run(str(tmp_path / "r1"), make_store(str(tmp_path / "tiles"), 1))
    write_tile(run, 0, ["a", "b"])
    bare = run.read_candidates("t0").select(["object_id", "ra", "dec", "score", "thumbnail_lsst"])
    run.write_candidates("t0", bare)
    assert main(["report", "--run", run.url, "--out", str(tmp_path / "out")]) == 0
    text = text_of((tmp_path / "out" / PAGE).read_text())
    assert "There is no reference" in text and "No mosaic of a finished tile has a candidate" in text
    assert "VIS – –" in text and "flags –" in text


def test_ten_thousand_ledger_rows_with_pauses_take_seconds_and_a_small_page(tmp_path):
    tiles = 10_000
    run = make_run(str(tmp_path / "r1"), make_store(str(tmp_path / "tiles"), tiles, columns=100))
    begin = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
    rng = np.random.default_rng(0)
    rows = [
        {
            "tile_id": f"t{i}",
            "content": f"c{i}",
            "status": "failed" if i % 100 == 7 else "quarantined" if i % 1000 == 13 else "ok",
            "stage": "read",
            "reason": f"OSError: chunk {i} is damaged" if i % 200 == 7 else f"OSError: strange {i}" * 100,
            "traceback_hash": f"h{i}",
            "attempt": 1,
            "n_candidates": 0,
            "finished_at": begin + datetime.timedelta(seconds=3 * i, hours=30 if i > 6000 else 0),
            **seconds(float(rng.lognormal())),
        }
        for i in range(1, tiles - 500)
    ]
    run.folder.put(parquet_bytes(table_from_rows(rows, LEDGER, "ledger")), "ledger/segments/0-9499-t1.parquet")
    write_tile(run, 0, ["a"], columns=100)  # today: after a second pause
    start = time.monotonic()
    assert main(["report", "--run", run.url, "--out", str(tmp_path / "out")]) == 0
    assert time.monotonic() - start < 60
    page = (tmp_path / "out" / PAGE).read_text()
    assert len(page) < 2e6
    text = text_of(page)
    assert "500 left of 10000 tiles" in text and "2 pause(s)" in text
    assert "more causes" in text


def metrics(**more: object) -> dict[str, object]:
    levels = {f"{level:.2f}": {"value": level - 0.02, "interval": [level - 0.03, None]} for level in (0.5, 0.68, 0.9)}
    coverage = {"lsst->euclid": {"sky": levels, "bright": levels}}
    return {"checkpoint": {"name": "mosaic", "sha256": "c0ffee"}, "coverage": coverage} | more


def test_an_evaluation_of_the_same_checkpoint_stands_in_the_calibration(scene, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(metrics()))
    arguments = ["report", "--run", scene.url, "--out", str(tmp_path / "out"), "--top", "0"]
    assert main([*arguments, "--evaluation", str(tmp_path)]) == 0
    assert "Diamonds: what surveybridge evaluate found" in text_of((tmp_path / "out" / PAGE).read_text())


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (None, "no metrics.json; give what `surveybridge evaluate` wrote"),
        ("[1]", "is no evaluation"),
        (json.dumps({"checkpoint": {}}), "is no evaluation"),
        (json.dumps(metrics(checkpoint={"name": "other", "sha256": "beef"})), "other beef but the run's is"),
        (json.dumps(metrics(coverage={"euclid->lsst": {}})), "is of euclid->lsst but the run of lsst->euclid"),
    ],
)
def test_an_evaluation_of_something_else_is_refused_before_anything_is_written(scene, tmp_path, capsys, document, said):
    if document is not None:
        (tmp_path / "metrics.json").write_text(document)
    out = tmp_path / "out"
    assert main(["report", "--run", scene.url, "--out", str(out), "--evaluation", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_what_is_no_run_or_no_folder_is_refused(scene, tmp_path, capsys):
    assert main(["report", "--run", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text("mine")
    assert main(["report", "--run", scene.url, "--out", str(file)]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err
    assert file.read_text() == "mine"


# -- what the plots are made of --


def test_tiles_lie_on_the_map_where_their_pixels_are(scene):
    manifest = TileStore.open(scene.run_json["store"]).manifest()
    rows = standing_rows(manifest, scene.ledger())
    assert tile_statuses(manifest, rows).tolist() == ["ok", "ok", "failed", "quarantined", "ok", "pending"]
    grid = WCS(make_header())
    edge = CORE - 0.5
    wanted = grid.all_pix2world([[-0.5, -0.5], [edge, -0.5], [edge, edge], [-0.5, edge]], 0)
    for found in (tile_corners(manifest, tile_grid(scene, rows), 0.1)[0], tile_corners(manifest, None, 0.1)[0]):
        assert np.abs((found - wanted) * 3600).max() < 0.05  # arcsec: half a pixel


def test_the_middle_of_tiles_knows_that_the_sky_is_round():
    assert middle(np.array([[359.0, 10.0], [3.0, 10.0]])) == pytest.approx((1.0, 10.0), abs=0.01)
    assert middle(np.array([[0.0, 80.0], [180.0, 80.0]]))[1] == pytest.approx(90)


def test_pauses_between_drivers_are_no_work():
    finished = np.array([0.0, 10, 20, 30, 86400, 86410, 86420])
    minutes, pauses = worked_minutes(finished, np.full(7, 12.0))
    assert minutes * 60 == pytest.approx([12, 22, 32, 42, 54, 64, 74])
    assert pauses * 60 == pytest.approx([42])


@pytest.mark.parametrize("samples", [3, 8])
def test_pixels_drawn_as_the_samples_were_fill_their_intervals(samples):
    rng = np.random.default_rng(0)
    centre = np.where(np.arange(256) % 4 == 0, 20.0, 0.0) * np.ones((1, 256, 256))
    draws, observed = centre + rng.normal(size=(samples, 1, 256, 256)), centre + rng.normal(size=(1, 256, 256))
    mean, std = draws.mean(0).astype(np.float32), draws.std(0, ddof=1).astype(np.float32)
    observed[0, :10] = np.nan
    mosaic = TileMosaic("t", make_header(), ("VIS",), mean, std, np.ones((256, 256), np.float32), (0, 0), "grid")
    pulls = tile_pulls(mosaic, observed, samples)
    assert pulls.pixels["bright"] == 246 * 64
    assert 0.8 < pulls.pixels["sky"] / (246 * 192) <= 1
    for region in ("sky", "bright"):
        assert pulls.within[region] == pytest.approx(LEVELS, abs=0.03)
        assert pulls.histogram[region].sum() == pulls.pixels[region]


@pytest.mark.parametrize(("survey", "bands"), [("euclid", ("VIS",)), ("lsst", ("g", "r", "i"))])
def test_thumbnails_go_back_to_the_pixels_they_were_cut_from(survey, bands):
    scene = np.arange(len(bands) * 200.0 * 180, dtype=np.float32).reshape(-1, 200, 180)
    padded = np.pad(scene, ((0, 0), (32, 32), (32, 32)), constant_values=np.nan)
    y, x = np.array([60.3, 5.0, 190.5]), np.array([70.6, 90.0, 178.4])  # the last two hang over the edges
    rows, columns = np.floor(y + 0.5).astype(int), np.floor(x + 0.5).astype(int)
    cut = np.stack([padded[:, r : r + 64, c : c + 64] for r, c in zip(rows, columns, strict=True)])
    table = pa.table({"x": x + 2000, "y": y + 1000, f"thumbnail_{survey}": stamps(f"thumbnail_{survey}", cut)})
    blank = np.zeros_like(scene)
    mosaic = TileMosaic("t", make_header(), bands, blank, blank, blank[0], (1000, 2000), "grid")
    planes = observed_planes(mosaic, table, survey)
    known = np.isfinite(planes)
    assert 64 * 64 < known[0].sum() < 3 * 64 * 64
    np.testing.assert_array_equal(planes[known], scene[known])


@pytest.mark.parametrize(
    ("flux", "snr", "shown"),
    [
        (3630.78, 50.0, "22.50"),  # AB 31.4 - 2.5 log10 f
        (1.0, 3.0, "31.40"),
        (10.0, 2.0, "> 28.46"),  # 3 sigma, sigma 5 nJy
        (-10.0, -2.0, "> 28.46"),
        (-10.0, 6.0, "> 29.65"),  # whatever is wrong there, no logarithm of it
        (0.0, 0.0, "–"),
        (float("nan"), float("nan"), "–"),
        (None, None, "–"),
    ],
)
def test_magnitudes_are_ab_and_what_is_not_detected_has_an_upper_limit(flux, snr, shown):
    assert brightness(flux, snr) == shown


def test_links_carry_the_position():
    there = links(53.1234567, -28.5)
    assert "target=53.123457%20-28.500000&" in there["Aladin Lite"]
    assert "ra=53.123457&dec=-28.500000&" in there["Legacy Survey"]
    assert "target=53.123457%20-28.500000&" in there["ESASky"]
    assert "%20%2B28.5" in links(1.0, 28.5)["ESASky"]


# -- in a browser --


@pytest.mark.parametrize("width", [1280, 375], ids=["laptop", "phone"])
def test_in_a_browser_the_page_is_whole_asks_for_nothing_and_fits(browser, reported, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    asked: list[str] = []
    said: list[str] = []

    def answer(dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", answer)
    page.goto(reported.as_uri(), wait_until="load")
    images = page.evaluate(LOOK_AT_IMAGES)
    over = page.evaluate("() => [...document.querySelectorAll('img.over')].map(image => image.naturalWidth)")
    wide = page.evaluate(LOOK_FOR_OVERFLOW)
    scroll = page.evaluate("document.documentElement.scrollWidth")
    name = page.locator("#rank-1-name").inner_text()
    page.close()
    assert [url for url in asked if not url.startswith("data:")] == [reported.as_uri()]
    assert said == []
    assert len(images) == 7 + 5 * 5 and len(over) == 5 * 5 and min(over) > 0
    for image in images:
        assert image["alt"] and image["width"] > 0 and image["spread"] > 5, image
    assert scroll == width and wide == []
    assert name == f"1 {EVIL}"


LOOK_FOR_OVERFLOW = """
() => [...document.querySelectorAll("body *")]
    .filter(element => !element.closest(".wide") && element.getBoundingClientRect().right > innerWidth)
    .map(element => element.outerHTML.slice(0, 80))
"""
"""What ends right of the window, but for the table that scrolls by itself."""

LOOK_AT_IMAGES = """
() => Promise.all([...document.querySelectorAll("img:not(.over)")].map(async image => {
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 64;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, 64, 64);
    const values = context.getImageData(0, 0, 64, 64).data.filter((_, i) => i % 4 < 3);
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    const spread = Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length);
    return {alt: image.alt, width: image.naturalWidth, spread};
}))
"""
"""Size of each image, and standard deviation of its values: 0 if it is blank."""


@pytest.mark.parametrize("what", ["runs", "catalog"])
def test_several_runs_and_a_catalog_have_one_list_with_each_object_once(what, tmp_path):
    runs = [write_run(tmp_path / f.name, {f: places}, f.name).url for f, places in objects().items()]
    urls = runs
    if what == "catalog":
        publish(runs, tmp_path / "catalog")
        urls = [str(tmp_path / "catalog")]
    assert main(["report", "--run", *urls, "--out", str(tmp_path / "out"), "--top", "40"]) == 0
    page = (tmp_path / "out" / PAGE).read_text()
    ranked = query(urls, thumbnails=False)
    shown = re.findall(r'<h3 id="rank-\d+-name"><span class="rank">(\d+)</span> ([^<]+)</h3>', page)
    names = ranked["object_id"].to_pylist()
    assert [(int(rank), html.unescape(name)) for rank, name in shown] == list(
        zip(range(1, 41), names[:40], strict=True)
    )
    assert {"west", "east"} == set(ranked["run_id"].to_pylist()[:40])
    text = text_of(page)
    assert f"Report on {', '.join(urls)}" in text and f"The 40 highest scores of {ranked.num_rows}" in text
    for run in ("west", "east"):
        assert f"Run {run}" in text and f"Calibration of run {run}" in text
    assert re.search(r"8\s+ok", text)  # tiles of both
