"""A store that changes under a run: other tiles are never mixed with it, new fields are gone on with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from mocpy import MOC

from surveybridge.__main__ import main
from surveybridge.storage.field_update import Slot, put_field
from surveybridge.storage.fields import FieldGrid
from surveybridge.storage.ingest import Field, cut_tile, tile_boxes
from surveybridge.storage.manifests import fields_of
from surveybridge.storage.query import query
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import TileStore
from tests import tiny
from tests.kept.make import HERE, MADE_IN

pytestmark = pytest.mark.long  # a dozen translations

QUICK = ["--samples", "2", "--steps", "2", "--score-samples", "2", "--score-steps", "2", "--precision", "float32"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def ingest(store, tile_size: int = 96, *, name: str | None = None, edit=lambda tile: tile, shift: float = 0.0):
    """Put the tiny field into a store; `shift` degrees in right ascension make it another one, on another grid."""
    field = tiny.make_field()
    if shift:
        moved = _moved(field.wcs_header, shift)
        field = replace(field, images={n: replace(i, wcs_header=moved) for n, i in field.images.items()})
    grid = FieldGrid("", field.grid_id, field.wcs_header, field.shape, tile_size, 64)
    boxes = list(tile_boxes(field.shape, tile_size, 64))
    put_field(TileStore.create(store), grid, Slot(name), lambda named: (edit(cut_tile(field, b, named)) for b in boxes))
    return store


def _moved(header: str, degrees: float) -> str:
    wcs = WCS(header)
    wcs.wcs.crval = wcs.wcs.crval + np.array([degrees, 0.0])
    return str(wcs.to_header_string())


def translate(store, run, checkpoint, *more):
    what = ["--store", str(store), "--run", str(run), "--checkpoint", checkpoint, "--executor", "serial"]
    return main(["translate", *what, *QUICK, *more])


def objects(run) -> list[str]:
    return query(str(run), thumbnails=False)["object_id"].to_pylist()


def text_of_status(run, capsys) -> str:
    capsys.readouterr()
    assert main(["status", "--run", str(run)]) == 0
    return capsys.readouterr().out


def test_a_run_refuses_a_field_that_was_cut_into_other_tiles_and_keeps_its_own_objects(tmp_path, checkpoint, capsys):
    store, run = tmp_path / "tiles", tmp_path / "run"
    assert translate(ingest(store), run, checkpoint) == 0
    found = objects(run)
    assert len(found) == len(set(found)) > 4
    capsys.readouterr()
    before = tiny.files_of(run)
    ingest(store, 80)
    for job in ("translate", "plan"):
        arguments = ["--store", str(store), "--run", str(run), "--checkpoint", checkpoint, *QUICK]
        assert main([job, *arguments, "--executor", "serial"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "in tiles of 96 px" in line and "in tiles of 80 px" in line and "give another --run URL" in line
    assert tiny.files_of(run) == before
    assert objects(run) == found
    status = text_of_status(run, capsys)
    assert "4 ok" in status and "in tiles of 80 px" in status
    assert main(["report", "--run", str(run), "--out", str(tmp_path / "report.html")]) == 0
    assert main(["publish", "--run", str(run), "--out", str(tmp_path / "catalog")]) == 0
    again = tmp_path / "again"
    assert translate(store, again, checkpoint) == 0
    assert len(set(objects(again))) == len(found)
    ingest(store)  # as it was
    assert translate(store, run, checkpoint) == 0
    assert objects(run) == found


def test_larger_tiles_are_refused_even_if_the_first_has_the_same_corner(tmp_path, checkpoint, capsys):
    store, run = tmp_path / "tiles", tmp_path / "run"
    assert translate(ingest(store), run, checkpoint) == 0
    ingest(store, tiny.SIDE)
    assert translate(store, run, checkpoint) == 2
    assert "in tiles of 192 px" in capsys.readouterr().err


def test_a_run_of_version_3_refuses_it_too(tmp_path, capsys):
    kept = tmp_path / "v1"
    shutil.copytree(HERE / "v1", kept)
    run_json = kept / "run" / "run.json"
    run_json.write_text(run_json.read_text().replace(MADE_IN.format(1), str(kept)))
    field = {name: tiny.make_image(name, 144) for name in tiny.SURVEY_BANDS}
    again = Field(field, "euclid")
    grid = FieldGrid("", again.grid_id, again.wcs_header, again.shape, 100, 0)
    boxes = list(tile_boxes(again.shape, 100, 0))
    put_field(TileStore.create(kept / "tiles"), grid, Slot(), lambda named: (cut_tile(again, b, named) for b in boxes))
    before = tiny.files_of(kept / "run")
    assert translate(kept / "tiles", kept / "run", str(kept / "kept")) == 2
    assert "in tiles of 72 px" in (line := capsys.readouterr().err) and "in tiles of 100 px" in line
    assert tiny.files_of(kept / "run") == before


def test_a_field_of_the_same_name_on_another_grid_is_refused(tmp_path, checkpoint, capsys):
    store, run = tmp_path / "tiles", tmp_path / "run"
    assert translate(ingest(store, name="a"), run, checkpoint) == 0
    ingest(store, name="a", shift=0.01)
    assert translate(store, run, checkpoint) == 2
    line = capsys.readouterr().err
    old, new = RunFolder.open(str(run)).fields(), fields_of(TileStore.open(store).manifest())
    assert all(grid in line for grid in (*old, new["a"].grid_id))


def test_a_new_field_is_gone_on_with_and_only_its_tiles_are_to_do(tmp_path, checkpoint, capsys):
    store, run = tmp_path / "tiles", tmp_path / "run"
    assert translate(ingest(store), run, checkpoint) == 0
    before = tiny.files_of(run)
    ingest(store, name="east", shift=0.5)
    assert "4 left" in text_of_status(run, capsys)
    assert translate(store, run, checkpoint) == 0
    after = tiny.files_of(run)
    assert {name: after[name] for name in before if name != "lease.json"} == {
        name: data for name, data in before.items() if name != "lease.json"
    }
    folder = RunFolder.open(str(run))
    assert folder.ok_tiles() == [*(f"east-t{k:04d}" for k in range(4)), *(f"t{k:04d}" for k in range(4))]
    stated = {field.name: field for field in folder.fields().values()}
    assert stated == fields_of(TileStore.open(store).manifest())
    rows = {row["tile_id"]: row for row in folder.ledger().to_pylist()}
    listed = {row["tile_id"]: row for row in TileStore.open(store).manifest().to_pylist()}
    for tile, row in rows.items():
        assert row["catalogued"] is True
        # two rows without data in a core of 96 pixels, which is 2 x 2 cells
        assert row["covered_cells"] == ([1, 1, 2, 2] if row["core_y0"] == 0 else None)
        for name in ("field", "grid_id", "core_y0", "core_x0", "core_height", "core_width", "domain", "content"):
            assert row[name] == listed[tile][name], name


def test_fields_of_a_run_are_exported_each_on_its_own_grid(tmp_path, checkpoint, capsys):
    store, run = tmp_path / "tiles", tmp_path / "run"
    ingest(store, name="west")
    assert translate(ingest(store, name="east", shift=0.5), run, checkpoint) == 0
    shutil.rmtree(store)  # the run alone says where its tiles are

    def export(out: str, *more: str) -> int:
        return main(["export", "--run", str(run), "--out", str(tmp_path / out), *more])

    capsys.readouterr()
    assert export("both.fits") == 2
    assert "has fields east, west, each on a grid of its own; give --field NAME" in capsys.readouterr().err
    assert export("none.fits", "--field", "north") == 2
    assert "of east, west; give one of these" in capsys.readouterr().err
    fields = {field.name: field for field in RunFolder.open(str(run)).fields().values()}
    for name in ("east", "west"):
        assert export(f"{name}.fits", "--field", name) == 0
        ra, dec = WCS(fields[name].wcs_header).all_pix2world(95.5, 95.5, 0)
        assert export(f"{name}-cut.fits", "--cutout", f"{float(ra)},{float(dec)},3") == 0
        with fits.open(tmp_path / f"{name}.fits") as hdus:
            whole = WCS(hdus[1].header)
            assert hdus[1].shape == (192, 192)
            np.testing.assert_allclose(whole.all_world2pix(ra, dec, 0), [95.5, 95.5], atol=1e-3)
        with fits.open(tmp_path / f"{name}-cut.fits") as hdus:
            assert hdus[1].shape == (30, 30)
            np.testing.assert_allclose(WCS(hdus[1].header).all_world2pix(ra, dec, 0), [14.5, 14.5], atol=0.51)
    assert export("folder", "--moc", "--png") == 0
    for name in ("east", "west"):
        files = tiny.files_of(tmp_path / "folder" / name)
        assert {"overview.png", "footprint.moc.fits", "fits/" + f"{name}-t0003.fits"} <= files.keys()
        moc = MOC.from_fits(str(tmp_path / "folder" / name / "footprint.moc.fits"))
        centre = SkyCoord(*WCS(fields[name].wcs_header).all_pix2world(95.5, 95.5, 0), unit="deg")
        assert moc.contains_skycoords(centre) and moc.sky_fraction * 41253 * 3600**2 < 25**2


def one_survey(tile):
    """Leave each survey out of one tile."""
    left_out = {"t0001": "lsst", "t0002": "euclid"}.get(tile.tile_id)
    return replace(tile, images={name: image for name, image in tile.images.items() if name != left_out})


@pytest.mark.parametrize(("direction", "lacks", "bare"), [("lsst->euclid", 1, 2), ("euclid->lsst", 2, 1)])
def test_a_tile_without_the_observed_survey_is_no_work_and_one_without_the_other_has_no_catalog(
    tmp_path, checkpoint, capsys, direction, lacks, bare
):
    store, run = ingest(tmp_path / "tiles", edit=one_survey), tmp_path / "run"
    arguments = ["--store", str(store), "--run", str(run), "--checkpoint", checkpoint, *QUICK]
    assert main(["plan", *arguments, "--direction", direction, "--calibrate", "0.1"]) == 0
    plan = capsys.readouterr().out
    assert "3 tiles to do, 0 done" in plan and f"1 tiles of the store have no {direction.partition('->')[0]}" in plan
    assert translate(store, run, checkpoint, "--direction", direction) == 0
    assert "3 of 3 tiles ok" in capsys.readouterr().out
    rows = {row["tile_id"]: row for row in RunFolder.open(str(run)).ledger().to_pylist()}
    assert sorted(rows) == [f"t{k:04d}" for k in range(4) if k != lacks]
    assert {tile for tile, row in rows.items() if not row["catalogued"]} == {f"t{bare:04d}"}
    assert rows[f"t{bare:04d}"]["n_candidates"] == 0 < rows["t0003"]["n_candidates"]
    assert "3 of 3 ok" in (status := text_of_status(run, capsys)) and "finished" in status


def test_a_failed_tile_says_where_it_is(tmp_path, checkpoint):
    store, run = ingest(tmp_path / "tiles"), tmp_path / "run"
    tiny.damage_tile(str(store), "t0002")
    assert translate(store, run, checkpoint) == 3
    row = next(row for row in RunFolder.open(str(run)).ledger().to_pylist() if row["tile_id"] == "t0002")
    assert (row["status"], row["core_y0"], row["core_x0"], row["core_width"]) == ("failed", 96, 0, 96)


def test_a_store_is_known_wherever_it_lies(tmp_path, checkpoint, capsys):
    store, run = ingest(tmp_path / "tiles"), tmp_path / "run"
    tiny.damage_tile(str(store), "t0003")
    assert translate(store, run, checkpoint) == 3
    run_json = (run / "run.json").read_bytes()
    moved = tmp_path / "mounted" / "elsewhere"
    shutil.copytree(store, moved)
    shutil.rmtree(store)
    ingest(moved)  # repairs it
    assert translate(moved, run, checkpoint, "--retry-failed") == 0
    assert (run / "run.json").read_bytes() == run_json
    ids = {
        row["run_id"]
        for tile in ("t0000", "t0003")
        for row in RunFolder.open(str(run)).read_candidates(tile).to_pylist()
    }
    assert ids == {json.loads(run_json)["run_id"]}
    status = text_of_status(run, capsys)
    assert str(moved) in status and "4 of 4 ok" in status


def test_another_store_at_the_same_url_is_refused_and_one_made_again_of_the_same_images_is_not(
    tmp_path, checkpoint, capsys
):
    store, run = ingest(tmp_path / "tiles"), tmp_path / "run"
    assert translate(store, run, checkpoint) == 0
    shutil.rmtree(store)
    ingest(store, edit=lambda tile: tiny.with_images(tile, lsst=_brighter(tile.images["lsst"])))
    assert translate(store, run, checkpoint) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is another store: 0 of 4 tiles that are done are the same there" in line
    shutil.rmtree(store)
    ingest(store)
    assert translate(store, run, checkpoint) == 0


def _brighter(image):
    return replace(image, flux=image.flux * 2)


def test_a_run_of_version_3_is_gone_on_with_from_a_store_that_was_moved(tmp_path):
    kept = tmp_path / "v1"
    shutil.copytree(HERE / "v1", kept)  # run.json names a place where nothing is
    assert translate(kept / "tiles", kept / "run", str(kept / "kept")) == 0
    folder = RunFolder.open(str(kept / "run"))
    assert folder.ok_tiles() == [f"t{k:04d}" for k in range(4)]
    assert folder.store_url == str(kept / "tiles")
    ids = {row["run_id"] for tile in folder.ok_tiles() for row in folder.read_candidates(tile).to_pylist()}
    assert len(ids) == 1
