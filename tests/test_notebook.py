"""`import surveybridge as sb`: light to import, and what it offers does what the commands do."""

from __future__ import annotations

import doctest
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.nddata import CCDData

import surveybridge as sb
from surveybridge.__main__ import main
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.problem import Endpoint, Problem
from surveybridge.bridge_core.stretch import Log10Stretch
from surveybridge.storage.errors import StorageError
from surveybridge.storage.regions import Cone
from tests.conftest import ROOT
from tests.pages import run_page
from tests.tiny import write_checkpoint, write_store

pytestmark = pytest.mark.long

LITTLE = ["--samples", "2", "--steps", "2", "--score-samples", "2", "--score-steps", "2"]


def python(code: str, folder: Path = ROOT) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


# -- the import --


def test_the_import_loads_no_package_and_takes_under_0_3_seconds():
    code = """
import sys, time
before, start = set(sys.modules), time.process_time()
import surveybridge
print(time.process_time() - start, *{name.split(".")[0] for name in set(sys.modules) - before})
"""
    runs = [python(code).split() for _ in range(3)]
    assert set(runs[0][1:]) - set(sys.stdlib_module_names) == {"surveybridge"}
    assert min(float(seconds) for seconds, *_ in runs) < 0.3


def test_names_are_listed_and_others_are_refused():
    assert set(sb.__all__) <= set(dir(sb))
    assert all(callable(getattr(sb, name)) and getattr(sb, name).__doc__ for name in sb.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'open_stor'; it offers .*open_store"):
        sb.open_stor  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("used", "without"),
    [
        ("open_run('runs/first').ok_tiles()", ["torch", "ray", "matplotlib", "scipy.ndimage", "scipy.signal"]),
        ("open_store('tiles')", ["torch", "ray"]),
        ("read_catalog('runs/first', top=1)", ["torch", "ray", "matplotlib", "scipy.ndimage", "scipy.signal"]),
        ("load_checkpoint()", ["ray", "zarr", "pyarrow", "astropy", "fsspec"]),
    ],
)
def test_a_name_loads_what_it_needs_only(made, used, without):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import surveybridge as sb; sb.{used}; print(*sys.modules)"
    assert not set(without) & set(python(code, made.folder).split())


# -- what it offers --


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """A folder as the tutorial leaves it: tiles, a run (here with random weights), a catalog."""
    folder = tmp_path_factory.mktemp("notebook")
    tiles, run, checkpoint = (
        write_store(folder / "tiles"),
        folder / "runs" / "first",
        write_checkpoint(folder, patch="tile"),
    )
    command = ["translate", "--store", tiles, "--run", str(run), "--checkpoint", checkpoint, "--executor", "serial"]
    assert main([*command, *LITTLE]) == 0
    assert main(["publish", "--run", str(run), "--out", str(folder / "catalog")]) == 0
    return SimpleNamespace(folder=folder, tiles=tiles, run=run, catalog=folder / "catalog", checkpoint=checkpoint)


def test_a_translated_tile_is_to_the_bit_what_the_command_writes(made):
    model, tile = sb.load_checkpoint(made.checkpoint), sb.open_store(made.tiles).read_tile("t0001")
    before = {name: weights.clone() for name, weights in model.network.state_dict().items()}
    found = sb.translate(model, tile, to="euclid", samples=2, steps=2)
    written = sb.open_run(made.run).read_tile_mosaic("t0001")
    np.testing.assert_array_equal(found.mean, written.mean)
    np.testing.assert_array_equal(found.std, written.std)
    np.testing.assert_array_equal(found.coverage, written.coverage)
    assert found.wcs is not None and found.wcs.to_header_string() == written.wcs_header
    assert (found.header["SB_MODEL"], found.header["SB_DIREC"]) == ("tiny", "lsst->euclid")
    after = model.network.state_dict()
    assert all(torch.equal(weights, after[name]) for name, weights in before.items())


def test_arrays_give_what_a_tile_of_them_gives(made):
    model, tile = sb.load_checkpoint(made.checkpoint), sb.open_store(made.tiles).read_tile("t0001")
    image = tile.images["lsst"]
    whole = replace(tile, core=(0, tile.shape[0], 0, tile.shape[1]), origin=(0, 0))
    expected = sb.translate(model, whole, to="euclid", samples=2, steps=2)
    seen = image.valid.all(0)
    assert 0 < seen.mean() < 1
    kept = np.where(image.valid, image.flux, np.nan)
    for arrays, valid in (
        (image.flux, image.valid),
        (kept, None),
        (np.ma.MaskedArray(image.flux, ~image.valid), None),
        (image.flux.astype(">f4"), image.valid),
    ):
        found = sb.translate(model, arrays, to="euclid", valid=valid, samples=2, steps=2)
        np.testing.assert_array_equal(found.mean, expected.mean)
        np.testing.assert_array_equal(found.std, expected.std)
        np.testing.assert_array_equal(found.coverage > 0, seen)
    some = sb.translate(
        model, image.flux, to="euclid", valid=seen & (np.arange(seen.shape[1]) > 40), samples=2, steps=2
    )
    np.testing.assert_array_equal(np.isfinite(some.mean[0]), seen & (np.arange(seen.shape[1]) > 40))
    converted = sb.translate(model, (kept * u.nJy).to("uJy"), to="euclid", samples=2, steps=2)
    np.testing.assert_allclose(converted.mean, expected.mean, rtol=0.1, atol=0.3)


def test_an_end_of_one_band_takes_a_plain_image(made):
    model = sb.load_checkpoint(made.checkpoint)
    vis = np.random.default_rng(1).normal(0, 2, (70, 50))
    found = sb.translate(model, vis, to="lsst", samples=2, steps=2)
    assert (found.bands, found.mean.shape, found.wcs) == (("g", "r", "i"), (3, 70, 50), None)
    assert np.isfinite(found.mean).all() and (found.std > 0).all()


def test_the_unit_is_that_of_the_wanted_end(tmp_path):
    def end(name: str, unit: str, middle: float) -> Endpoint:
        band = name[0]
        stretch = Log10Stretch({band: middle}, {band: 0.5}, {band: 1.0})
        return Endpoint(name, (band,), 10.0, unit, extensive=False, kind="log10", stretch=stretch)

    clouds = Problem("clouds", (end("column", "cm-2", 21.0), end("density", "cm-3", 3.0)), wanted="density")
    path = write_checkpoint(tmp_path, "clouds", problem=clouds)
    found = sb.translate(sb.load_checkpoint(path), np.full((64, 64), 1e21), to="density", samples=2, steps=2)
    assert found["d"].unit == u.cm**-3 and (found.mean > 0).all()
    with pytest.raises(BridgeError, match="goes one way, to density"):
        sb.translate(sb.load_checkpoint(path), np.full((64, 64), 1e3), to="column")


def test_a_mosaic_is_that_of_the_run_and_a_band_of_it_is_ccddata(made, tmp_path):
    whole = sb.read_mosaic(made.run)
    run = sb.open_run(made.run)
    np.testing.assert_array_equal(whole.mean, run.read_mosaic().mean)
    assert (whole.bands, whole.unit, whole.mean.shape) == (("VIS",), u.nJy, (1, 192, 192))
    image = whole["VIS"]
    assert isinstance(image, CCDData) and image.unit == u.nJy
    np.testing.assert_array_equal(image.mask, whole.coverage <= 0)
    np.testing.assert_array_equal(image.uncertainty.array, whole.std[0])
    image.write(tmp_path / "vis.fits")
    again = CCDData.read(tmp_path / "vis.fits")
    np.testing.assert_array_equal(again.data, image.data)
    np.testing.assert_array_equal(again.mask, image.mask)
    assert (again.unit, again.header["MODELGEN"], again.header["FILTER"]) == (u.nJy, True, "VIS")
    with pytest.raises(KeyError, match="no band 'g'; there are VIS"):
        whole["g"]


def test_a_cutout_is_centred_on_its_place_and_a_region_is_of_global_pixels(made):
    best = sb.read_catalog(made.run, top=1)[0]
    cutout = sb.read_mosaic(made.run, cutout=(best["ra"], best["dec"], 4.0))
    assert cutout.mean.shape == (1, 40, 40) and cutout.wcs is not None
    x, y = cutout.wcs.all_world2pix(best["ra"].value, best["dec"].value, 0)
    assert abs(float(x) - 19.5) <= 0.51 and abs(float(y) - 19.5) <= 0.51
    whole = sb.read_mosaic(made.run)
    part = sb.read_mosaic(made.run, region=(10, 50, 20, 90))
    np.testing.assert_array_equal(part.mean, whole.mean[:, 10:50, 20:90])
    with pytest.raises(StorageError, match="a cutout and a region are given"):
        sb.read_mosaic(made.run, cutout=(1.0, 2.0, 3.0), region=(0, 1, 0, 1))
    with pytest.raises(StorageError, match="does not lie on the run's grid"):
        sb.read_mosaic(made.run, cutout=(200.0, 60.0, 4.0))


def test_a_catalog_has_units_from_a_run_and_as_published(made):
    run, published = sb.read_catalog(made.run), sb.read_catalog(made.catalog)
    assert len(run) == len(published) > 3
    for table in (run, published):
        assert (table["ra"].unit, table["flux_VIS"].unit) == (u.deg, u.nJy)
        assert not [name for name in table.colnames if name.startswith("thumbnail")]
    cone = sb.read_catalog(made.run, cone=(run["ra"][0], run["dec"][0], 0.1 * u.arcsec))
    assert list(cone["object_id"]) == [run["object_id"][0]]
    written = f"{run['ra'][0].value / 15}h {run['dec'][0].value}d 0.1arcsec"
    assert list(sb.read_catalog(made.run, cone=written)["object_id"]) == [run["object_id"][0]]
    assert list(sb.read_catalog(made.run, top=2)["rank"]) == [1, 2]
    with pytest.raises(StorageError, match="a cone and another region are given"):
        sb.read_catalog(made.run, cone=(1.0, 2.0, 3.0), region=Cone(1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"to": "hst"}, "'hst' is not an endpoint of lsst-euclid, which joins lsst and euclid"),
        ({"observed": np.zeros((2, 64, 64))}, r"lsst is \(2, 64, 64\) but the model takes 3 band\(s\), g,r,i"),
        ({"observed": np.zeros((3, 64, 64)) * u.mag}, "lsst is in mag but the model takes nJy; convert it"),
        ({"observed": np.full((3, 64, 64), np.nan)}, "lsst: 0 of 4096 pixels are usable in all of g,r,i"),
        ({"observed": np.zeros((3, 64, 64)), "valid": np.ones((3, 9, 9))}, r"valid is \(3, 9, 9\) but lsst \(3, 64"),
        ({"observed": np.zeros((3, 64, 64)), "samples": 1}, "samples 1, steps 6, batch .*need at least 2"),
        ({"valid": True}, "tile t0000 has a mask of its own"),
        ({"lacks": "lsst"}, "tile t0000 has euclid but no lsst, which lsst->euclid needs"),
        ({"grid": "cutout"}, "checkpoint tiny is for the cutout grid"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line_that_names_the_remedy(made, tmp_path, asked, said):
    asked = dict(asked)
    model = sb.load_checkpoint(write_checkpoint(tmp_path, grid=asked.pop("grid", "mosaic")))
    tile = sb.open_store(made.tiles).read_tile("t0000")
    lacks = asked.pop("lacks", None)
    tile = replace(tile, images={name: image for name, image in tile.images.items() if name != lacks})
    with pytest.raises(BridgeError, match=said) as caught:
        sb.translate(model, **{"observed": tile, "to": "euclid"} | asked)
    assert "\n" not in str(caught.value)


# -- what the documents show --


def test_the_examples_of_the_docstrings_hold(made, monkeypatch):
    monkeypatch.chdir(made.folder)
    import surveybridge.notebook

    done = doctest.testmod(surveybridge.notebook)
    assert done.attempted > 20 and done.failed == 0


def test_the_page_on_python_runs_and_prints_what_it_shows(made, tmp_path):
    for name in ("tiles", "runs", "catalog"):
        (tmp_path / name).symlink_to(made.folder / name)
    assert len(run_page(ROOT / "docs" / "reference" / "python.md", tmp_path)) >= 6
