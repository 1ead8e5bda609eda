"""Files that an earlier version wrote open, are read and queried, and a run folder of it is gone on with."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.stretch import Stretch
from surveybridge.storage.pairs import read_pairs
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import TileStore, tile_content
from tests.kept.make import HERE, LEFT, MADE_IN
from tests.tiny import SIGMA, files_of


@pytest.fixture
def kept(tmp_path):
    """A copy of the kept files, in whose run.json stands where they now lie."""
    folder = tmp_path / "v1"
    shutil.copytree(HERE / "v1", folder)
    run_json = folder / "run" / "run.json"
    run_json.write_text(run_json.read_text().replace(MADE_IN.format(1), str(folder)))
    return folder


def test_a_card_of_version_1_opens_with_its_bands_and_stretch(kept):
    assert json.loads((kept / "kept.json").read_text())["card_version"] == 1
    card = load_checkpoint(kept / "kept").card
    assert [(end.name, end.bands, end.pixel_scale) for end in card.problem.endpoints] == [
        ("lsst", ("g", "r", "i"), 0.1),
        ("euclid", ("VIS",), 0.1),
    ]
    for end in card.problem.endpoints:
        assert isinstance(end.stretch, Stretch)
        assert end.stretch.softening == {band: 2 * SIGMA[band] for band in end.bands}
    assert list(map(str, card.problem.directions)) == ["euclid->lsst", "lsst->euclid"]
    assert card.problem.catalog == "euclid"


def test_a_tile_store_of_format_1_opens_with_both_surveys(kept):
    store = TileStore.open(kept / "tiles")
    manifest = store.manifest()
    assert manifest["tile_id"].to_pylist() == ["t0000", "t0001", "t0002", "t0003"]
    tile = store.read_tile("t0002")
    assert {name: image.bands for name, image in tile.images.items()} == {
        "lsst": ("g", "r", "i"),
        "euclid": ("VIS",),
    }
    assert manifest["content"].to_pylist()[2] == tile_content(tile)


def test_a_pair_store_without_the_attribute_endpoints_is_lsst_and_euclid(kept):
    pairs = read_pairs(str(kept / "pairs.zarr"), "cutout")
    assert {end: images.shape for end, images in pairs.ends.items()} == {
        "lsst": (4, 3, 64, 64),
        "euclid": (4, 1, 64, 64),
    }
    assert {end: list(noise) for end, noise in pairs.noise.items()} == {"lsst": ["g", "r", "i"], "euclid": ["VIS"]}


def test_a_run_folder_is_gone_on_with_to_the_same_run_id_and_what_was_done_stays(kept):
    before = files_of(kept / "run")
    run_json = json.loads((kept / "run" / "run.json").read_text())
    arguments = ["--store", str(kept / "tiles"), "--run", str(kept / "run"), "--checkpoint", str(kept / "kept")]
    fast = ["--samples", "2", "--steps", "2", "--score-samples", "2", "--score-steps", "2", "--precision", "float32"]
    assert main(["translate", *arguments, *fast, "--executor", "serial"]) == 0
    after = files_of(kept / "run")
    assert {name: after[name] for name in before} == before
    assert sorted(name for name in after.keys() - before.keys() if name.endswith(".parquet")) == [
        f"{part}/{LEFT}.parquet" for part in ("candidates", "ledger", "mosaics")
    ]
    run = RunFolder.open(kept / "run")
    assert run.ok_tiles() == ["t0000", "t0001", "t0002", "t0003"]
    assert run.run_json["fingerprint"] == run_json["fingerprint"]
    rows = run.read_candidates(LEFT)
    earlier = run.read_candidates("t0000")
    assert rows.schema == earlier.schema
    footers = [pq.read_schema(kept / "run/candidates" / f"{tile}.parquet") for tile in (LEFT, "t0000")]
    assert footers[0].equals(footers[1], check_metadata=False) and "kind" not in footers[0].names
    assert {mosaic.bands for mosaic in map(run.read_tile_mosaic, run.ok_tiles())} == {("VIS",)}


def test_a_run_folder_is_queried_and_exported(kept, capsys):
    assert main(["query", "--run", str(kept / "run"), "--top", "3", "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rank,") or "object_id" in lines[0]
    assert len(lines) == 4
    out = kept / "field.fits"
    assert main(["export", "--run", str(kept / "run"), "--out", str(out), "--lossless"]) == 0
    from astropy.io import fits

    with fits.open(out) as hdus:
        data = next(hdu.data for hdu in hdus if hdu.data is not None)
    assert np.isfinite(data).any()


def test_a_run_of_version_3_writes_files_with_its_own_columns_and_words(kept):
    run = RunFolder.open(kept / "run")
    table = pq.read_table(kept / "run/candidates/t0000.parquet")
    before = (kept / "run/candidates/t0000.parquet").read_bytes()
    run.write_candidates("t0000", run.read_candidates("t0000"))
    assert (run.version, table.num_rows > 0) == (3, True)
    assert (kept / "run/candidates/t0000.parquet").read_bytes() == before
    before = (kept / "run/mosaics/t0000.parquet").read_bytes()
    run.write_mosaic(run.read_tile_mosaic("t0000"))
    assert (kept / "run/mosaics/t0000.parquet").read_bytes() == before
    row = pq.read_table(kept / "run/ledger/t0000.parquet")
    before = (kept / "run/ledger/t0000.parquet").read_bytes()
    run.commit(row.to_pylist()[0])
    assert (kept / "run/ledger/t0000.parquet").read_bytes() == before


def test_a_tile_of_a_run_of_version_3_that_is_done_again_has_the_same_rows(kept):
    run = RunFolder.open(kept / "run")
    before = run.read_candidates("t0000")
    for part in ("candidates", "ledger", "mosaics"):
        (kept / "run" / part / "t0000.parquet").unlink()
    arguments = ["--store", str(kept / "tiles"), "--run", str(kept / "run"), "--checkpoint", str(kept / "kept")]
    fast = ["--samples", "2", "--steps", "2", "--score-samples", "2", "--score-steps", "2", "--precision", "float32"]
    assert main(["translate", *arguments, *fast, "--executor", "serial"]) == 0
    after = run.read_candidates("t0000")
    assert after.num_rows > 0
    for name in set(before.column_names) - {"score", "score_std", "false_alarm", "score_asbridge", "run_id"}:
        if not name.startswith("thumbnail"):  # what the network makes depends on the processor
            assert after[name].equals(before[name]), name
