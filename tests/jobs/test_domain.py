"""What lies outside of a checkpoint's training, and what is no lens, is said before, in and after a run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
from astropy.io import fits
from astropy.table import Table

from surveybridge.__main__ import main
from surveybridge.bridge_core.conditions import ConditionRanges
from surveybridge.jobs.plan import Config as PlanConfig
from surveybridge.jobs.plan import describe, plan
from surveybridge.jobs.report import Config as ReportConfig
from surveybridge.jobs.report import run as report
from surveybridge.jobs.reporting.state import run_status, text
from surveybridge.jobs.translating.config import Config
from surveybridge.jobs.translating.engine import translate
from surveybridge.jobs.translating.request import check
from surveybridge.storage.flags import BITS
from surveybridge.storage.query import EVERY_ROW, query
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import SCHEMA_VERSION
from surveybridge.storage.tiles import TileStore
from tests import tiny
from tests.storage.fits_files import gaussians

pytestmark = pytest.mark.long

QUICK = {"samples": 2, "steps": 2, "score_samples": 2, "score_steps": 2, "precision": "float32", "executor": "serial"}
STAR = (20.3, 70.8)
"""(y, x) of a point source in the first of four tiles."""
NOISY = "t0003"
"""The tile whose VIS is 1.7 times as noisy as the others'."""
SEEN = ConditionRanges(
    {
        "lsst": {"fwhm": {band: (0.5, 0.9) for band in "gri"}, "correlation": {band: (0.0, 0.7) for band in "gri"}},
        "euclid": {"fwhm": {"VIS": (0.16, 0.16)}, "noise": {"VIS": (2.0, 2.1)}},
    }
)
SEEING = (0.7, 1.12, 0.7)
"""Arcsec; r is out."""
REASON = 'lsst r seeing 1.12" (trained on 0.5" to 0.9")'
NOISE = "euclid VIS noise 3.4 nJy (trained on 2 nJy to 2.1 nJy)"


def edited(tile):
    """The tiny field with a star, PSFs that its objects are wider than, and one tile of more noise."""
    images = dict(tile.images)
    y0, x0 = tile.origin
    sigma = float(np.hypot(1.6 / 2.3548, 12**-0.5))
    star = gaussians(tile.shape, [(STAR[0] - y0, STAR[1] - x0)], sigma, 9000.0)
    discs = gaussians(tile.shape, [(y - y0, x - x0) for y, x in tiny.BLOBS], 2.5, 2000.0)
    vis = images["euclid"]
    factor = 1.7 if tile.tile_id == NOISY else 1.0
    images["euclid"] = replace(
        vis,
        flux=(factor * vis.flux + star + discs).astype(np.float32),
        variance=factor**2 * vis.variance,
        psf_fwhm=(0.16,),
    )
    images["lsst"] = replace(images["lsst"], psf_fwhm=SEEING)
    return replace(tile, images=images)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domain")
    checkpoint = tiny.write_checkpoint(folder, conditions=SEEN)
    return folder, {"store": tiny.write_store(folder / "tiles", edit=edited), "checkpoint": checkpoint} | QUICK


@pytest.fixture(scope="module")
def run(made):
    folder, settings = made
    translate(check(Config(run=str(folder / "run"), **settings)))
    return RunFolder.open(folder / "run")


@pytest.fixture(scope="module")
def rows(run):
    return query(run.url, listing=EVERY_ROW)


def nearest(rows, y, x):
    distance = np.hypot(rows["x"].to_numpy() - x, rows["y"].to_numpy() - y)
    assert distance.min() < 1.5
    return rows.slice(int(distance.argmin()), 1).to_pylist()[0]


def test_ledger_and_mosaics_say_which_conditions_lie_outside(run):
    for row in run.ledger().to_pylist():
        expected = f"out: {REASON}" + (f"; {NOISE}" if row["tile_id"] == NOISY else "")
        assert row["domain"] == expected
        assert run.read_tile_mosaic(row["tile_id"]).domain == expected


def test_rows_are_flagged_by_what_is_around_them(rows):
    assert all(flags & BITS["OUT_OF_DOMAIN"] for flags in rows["flags"].to_pylist())
    noisy = nearest(rows, 160.6, 165.0)
    assert noisy["domain"] == f"out: {REASON}; {NOISE}"
    assert nearest(rows, 30.2, 40.1)["domain"] == f"out: {REASON}"


def test_a_star_has_no_score_names_no_system_and_ranks_behind(rows):
    star = nearest(rows, *STAR)
    assert star["kind"] == "star" and star["flags"] & BITS["STAR"]
    assert [star[name] for name in ("score", "score_std", "false_alarm", "score_asbridge")] == [None] * 4
    assert star["extent"] == pytest.approx(1, abs=0.02) and np.isnan(star["thumbnail_mean"]).all()
    assert star["system_id"] == star["object_id"] and star["rank"] == max(rows["rank"].to_pylist())
    others = rows.filter(pc.not_equal(rows["object_id"], star["object_id"]))
    assert others["score"].null_count == 0 and not any(f & BITS["STAR"] for f in others["flags"].to_pylist())


def test_status_and_plan_say_how_many_tiles_and_why_plan_before_anything_is_read(run, made, capsys):
    folder, settings = made
    said = f"4 of 4 tiles out (4: {REASON}; 1: {NOISE})"
    assert f"domain    {said}\n" in text(run_status(run))
    found = plan(PlanConfig(run=str(folder / "another"), calibrate=0.1, **settings))
    assert found.domains == {f"out: {REASON}": 3, f"out: {REASON}; {NOISE}": 1}
    assert f"domain     {said}\n" in describe(found, PlanConfig(run="another", **settings))


def test_fits_headers_and_the_report_say_it(run, tmp_path):
    assert main(["export", "--run", run.url, "--out", str(tmp_path / "one.fits")]) == 0
    with fits.open(tmp_path / "one.fits") as hdus:
        assert hdus[0].header["SB_DOMN"] == f"4 of 4 tiles out (4: {REASON}; 1: {NOISE})"
        assert hdus["MEAN_VIS"].header["SB_DOMN"] == hdus[0].header["SB_DOMN"]
        domains = dict(zip(hdus["TILES"].data["tile_id"], hdus["TILES"].data["domain"], strict=True))
    assert domains["t0000"] == f"out: {REASON}" and domains[NOISY].endswith(NOISE)
    assert report(ReportConfig(run=run.url, out=str(tmp_path / "page"))) == 0
    page = (tmp_path / "page" / "report.html").read_text()
    assert "lsst r seeing 1.12" in page and "out of domain" in page


def test_a_run_of_the_fourth_version_goes_on_as_it_began(made, tmp_path):
    _, settings = made
    request = check(Config(run=str(tmp_path / "old"), **settings)).of_version(4)
    RunFolder.open_or_create(tmp_path / "old", request.document)
    path = tmp_path / "old" / "run.json"
    document = json.loads(path.read_text())
    document["code_schema_version"] = document["fingerprint"]["code_schema_version"] = 4
    path.write_text(json.dumps(document))
    again = check(Config(run=str(tmp_path / "old"), **settings))
    assert again.version == 4 < SCHEMA_VERSION
    translate(again)
    folder = RunFolder.open(tmp_path / "old")
    rows = query(folder.url, listing=EVERY_ROW)
    star = nearest(rows, *STAR)
    assert star["kind"] == "star" and star["score"] is not None and not star["flags"] & ~2047
    assert folder.ledger()["domain"].null_count == 4 and rows["domain"].null_count == rows.num_rows
    assert folder.written.candidates is not None
    flags = folder.written.candidates.field("flags").metadata[b"description"].decode()
    assert flags.endswith("1024 near a bright star")


def test_listed_stars_are_matched_counted_and_part_of_what_a_run_is(made, tmp_path, capsys):
    _, settings = made
    store = TileStore.open(settings["store"])
    wcs = store.read_tile("t0000").images["euclid"].wcs
    places = [(30.2, 40.1), STAR, (48.0, 150.7), (20.0, 20.0)]  # a galaxy, a star, a galaxy, and nothing
    origin = store.read_tile("t0000").origin
    ra, dec = wcs.all_pix2world([x - origin[1] for _, x in places], [y - origin[0] for y, _ in places], 0)
    Table({"ra": [*ra, 10.0], "dec": [*dec, -5.0], "phot_g_mean_mag": [21.0, 18.0, 22.0, 23.0, 15.0]}).write(
        tmp_path / "gaia.ecsv"
    )
    arguments = [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    listed = ["translate", "--run", str(tmp_path / "run"), *arguments, "--stars", str(tmp_path / "gaia.ecsv")]
    assert main(listed) == 0
    said = capsys.readouterr().out
    assert "stars: 3 objects matched the 4 listed stars in these tiles; 2 of them are too wide" in said
    rows = query(str(tmp_path / "run"), listing=EVERY_ROW)
    assert [row["kind"] for row in (nearest(rows, *place) for place in places[:3])] == ["object", "star", "object"]
    # a star without its list, or with another, is another run
    assert main(["translate", "--run", str(tmp_path / "run"), *arguments]) == 2
    assert "has stars" in capsys.readouterr().err
    Table({"ra": [10.0], "dec": [-5.0]}).write(tmp_path / "far.csv")
    assert main([*listed[:-1], str(tmp_path / "far.csv"), "--run", str(tmp_path / "other")]) == 2
    assert "0 of 1 stars lie in or around the 4 tiles" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
