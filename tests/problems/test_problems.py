"""Problems that nobody built the house for, from images to catalog, with nothing of LSST and Euclid in them.

`hsc-hst` has five bands and one, on pixels of 0.168" and 0.05"; `rubin-euclid` has six and four, of which three lie on
a coarser grid than the fourth; `clouds` goes one way, from column to volume density, and makes maps only.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.stretch import Log10Stretch, Stretch
from surveybridge.storage.problems import band_columns, read_problem
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import TileStore
from tests.jobs.training_runs import quick_energies, without_ray
from tests.problems.skies import HERE, Band, blob_pairs, cloud_pairs, write_field, write_pairs
from tests.storage.fits_files import tan_wcs, write_survey_file
from tests.storage.problem_files import SKY_EYE
from tests.tiny import files_of

pytestmark = pytest.mark.long

FAST = ["--samples", "2", "--steps", "2", "--score-samples", "2", "--score-steps", "2", "--executor", "serial"]
SHORT = ["--steps", "3", "--base", "8", "--batch-size", "8", "--shards", "2", "--validation", "4"]

HSC_HST = {
    ("hsc", band): Band(0.168, 0.3, sigma, flux)
    for band, sigma, flux in zip(
        "grizy", (2.0, 2.5, 3.0, 5.0, 9.0), (900.0, 1500.0, 2000.0, 2300.0, 2500.0), strict=True
    )
} | {("hst", "F814W"): Band(0.05, 0.05, 0.5, 2000.0)}
RUBIN_EUCLID = {
    ("rubin", band): Band(0.2, 0.3, sigma, flux)
    for band, sigma, flux in zip(
        "ugrizy", (4.0, 1.3, 1.4, 2.1, 4.0, 8.0), (300.0, 900.0, 1500.0, 2000.0, 2300.0, 2500.0), strict=True
    )
} | {
    ("euclid", "VIS"): Band(0.1, 0.07, 2.0, 1800.0),
    ("euclid", "Y"): Band(0.3, 0.2, 9.0, 2600.0),
    ("euclid", "J"): Band(0.3, 0.2, 9.0, 2900.0),
    ("euclid", "H"): Band(0.3, 0.2, 9.0, 3100.0),
}
PROBLEMS = {"hsc-hst": (HSC_HST, 0.05), "rubin-euclid": (RUBIN_EUCLID, 0.1)}


@pytest.fixture(scope="module", params=PROBLEMS)
def run(request, tmp_path_factory):
    """A run of the problem, with what it was made of: problem, folder, end of the catalog and the other one."""
    folder = tmp_path_factory.mktemp(request.param)
    file = HERE / f"{request.param}.toml"
    problem = read_problem(file)
    bands, pixel = PROBLEMS[request.param]
    side = 160 * pixel
    objects = [(0.21 * side, 0.17 * side), (-0.3 * side, 0.05 * side), (0.02 * side, -0.28 * side)]
    images = write_field(folder, problem, bands, side, objects)
    store, checkpoint = folder / "tiles", folder / "trained" / "bridge"
    wanted = str(problem["catalog"])
    tiling = ["--tile-size", "80", "--halo", "16"]
    assert (
        main(["ingest", "--problem", str(file), "--image", *images, "--onto", wanted, "--store", str(store), *tiling])
        == 0
    )
    # noise on the pixels of the network
    noise = {band: seen.noise * (pixel / seen.pixel) ** 2 for (_, band), seen in bands.items()}
    pairs = write_pairs(folder / "pairs.zarr", problem, blob_pairs(problem, noise), noise, pixel)
    trained = ["train", "--problem", str(file), "--pairs", pairs, "--out", str(checkpoint.parent), *SHORT]
    with without_ray(), quick_energies():
        assert main(trained) == 0
    translate = ["translate", "--store", str(store), "--checkpoint", str(checkpoint), *FAST]
    assert main([*translate, "--to", wanted, "--run", str(folder / "run")]) == 0
    return problem, folder, translate


def ends_of(problem):
    wanted = str(problem["catalog"])
    return next(e for e in problem["endpoints"] if e["name"] != wanted), next(
        e for e in problem["endpoints"] if e["name"] == wanted
    )


def test_tiles_hold_all_bands_of_both_ends_on_one_grid(run):
    problem, folder, _ = run
    tile = TileStore.open(folder / "tiles").read_tile("t0000")
    observed, wanted = ends_of(problem)
    assert {name: list(image.bands) for name, image in tile.images.items()} == {
        end["name"]: end["bands"] for end in (observed, wanted)
    }
    assert {image.flux.shape[1:] for image in tile.images.values()} == {(96, 96)}
    scales = {round(image.pixel_scale, 6) for image in tile.images.values()}
    assert scales == {wanted["pixel_scale"]}


def test_flux_survives_the_resampling_of_every_band(run):
    problem, folder, _ = run
    bands, _ = PROBLEMS[problem["name"]]
    store = TileStore.open(folder / "tiles")
    totals: dict[tuple[str, str], float] = {}
    for tile_id in store.manifest()["tile_id"].to_pylist():
        tile = store.read_tile(tile_id, halo=0)
        for name, image in tile.images.items():
            for band, flux in zip(image.bands, image.flux, strict=True):
                totals[name, band] = totals.get((name, band), 0.0) + float(np.nansum(flux))
    for key, total in totals.items():
        noise = bands[key].noise * 160 * 1.5
        assert total == pytest.approx(3 * bands[key].flux, rel=0.03, abs=5 * noise), key


def test_the_card_carries_the_problem_with_its_stretch(run):
    problem, folder, _ = run
    card = load_checkpoint(folder / "trained" / "bridge").card
    assert card.problem.name == problem["name"]
    assert card.network.image_channels == max(len(end["bands"]) for end in problem["endpoints"])
    assert all(isinstance(end.stretch, Stretch) for end in card.problem.endpoints)
    assert 0 < card.objective.sigma_data != 0.3  # measured, for no file states it


def test_maps_and_catalog_have_the_bands_of_the_problem(run, capsys):
    problem, folder, _ = run
    observed, wanted = ends_of(problem)
    folder_of_run = RunFolder.open(folder / "run")
    assert folder_of_run.run_json["problem"]["name"] == problem["name"]
    mosaic = folder_of_run.read_tile_mosaic("t0000")
    assert list(mosaic.bands) == wanted["bands"]
    # the other end, seen by pixels of its own, stops short of the edge
    known = np.asarray(np.isfinite(mosaic.mean).all(axis=0))
    assert known[12:, 12:].all() and (mosaic.std[:, known] > 0).all()
    assert main(["query", "--run", str(folder / "run"), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) >= 3
    columns = band_columns(problem)
    assert {end for end, _ in columns} == {observed["name"], wanted["name"]}
    for column in columns.values():
        assert f"flux_{column}" in rows[0] and f"snr_{column}" in rows[0]
    first = wanted["name"], wanted["bands"][0]
    flux = f"flux_{columns[first]}"
    bands, _ = PROBLEMS[problem["name"]]
    for row in sorted(rows, key=lambda row: -float(row[flux]))[:3]:
        assert float(row[flux]) == pytest.approx(bands[first].flux, rel=0.1)


def test_the_way_back_has_the_bands_of_the_other_end(run):
    problem, folder, translate = run
    observed, _ = ends_of(problem)
    back = folder / "back"
    shutil.rmtree(back, ignore_errors=True)
    assert main([*translate, "--to", observed["name"], "--run", str(back)]) == 0
    assert list(RunFolder.open(back).read_tile_mosaic("t0001").bands) == observed["bands"]


def test_an_export_names_bands_and_unit(run):
    problem, folder, _ = run
    _, wanted = ends_of(problem)
    out = folder / "field.fits"
    assert main(["export", "--run", str(folder / "run"), "--out", str(out), "--png", "--overwrite"]) == 0
    with fits.open(out) as hdus:
        images = [hdu for hdu in hdus if hdu.data is not None]
        assert {str(hdu.header["BUNIT"]) for hdu in images if "BUNIT" in hdu.header} == {"nJy"}
        text = "\n".join(repr(hdu.header) for hdu in images)
        assert all(band in text for band in wanted["bands"])
    assert out.with_suffix(".png").stat().st_size > 0


def test_plan_and_report_speak_of_the_problem(run, capsys):
    problem, folder, translate = run
    observed, wanted = ends_of(problem)
    arguments = [word for word in translate[1:] if word not in ("--executor", "serial")]
    planned = ["plan", *arguments, "--to", wanted["name"], "--run", str(folder / "planned"), "--calibrate", "1"]
    assert main(planned) == 0
    assert f"{observed['name']}->{wanted['name']}" in capsys.readouterr().out
    assert main(["report", "--run", str(folder / "run"), "--out", str(folder / "report")]) == 0
    page = (folder / "report" / "report.html").read_text()
    assert wanted["title"] in page and "Euclid" not in page.replace(wanted["title"], "").replace("rubin-euclid", "")


def test_an_evaluation_has_the_bands_of_the_problem(run):
    problem, folder, _ = run
    observed, wanted = ends_of(problem)
    pairs, out = str(folder / "pairs.zarr"), folder / "evaluation"
    few = ["--limit", "4", "--samples", "2", "--steps", "2", "--score-samples", "2", "--score-steps", "2"]
    checkpoint = ["--checkpoint", str(folder / "trained" / "bridge")]
    assert main(["evaluate", "--pairs", pairs, "--anomalies", pairs, *checkpoint, *few, "--out", str(out)]) == 0
    found = json.loads((out / "metrics.json").read_text())
    columns = band_columns(problem)
    for end, other in ((wanted, observed), (observed, wanted)):
        judged = found["photometry"][f"{other['name']}->{end['name']}"]
        assert set(judged) == {columns[end["name"], band] for band in end["bands"]}
    assert found["anomaly"]["anomalous"] == 4


def test_a_lost_tile_is_done_again_and_what_was_there_stays(run):
    problem, folder, translate = run
    _, wanted = ends_of(problem)
    again = folder / "again"
    shutil.rmtree(again, ignore_errors=True)
    shutil.copytree(folder / "run", again)
    before = files_of(again)
    for part in ("ledger", "mosaics", "candidates"):
        (again / part / "t0002.parquet").unlink()
    assert main([*translate, "--to", wanted["name"], "--run", str(again)]) == 0
    after = files_of(again)
    changed = {name for name in before if after[name] != before[name] and name.endswith(".parquet")}
    assert changed <= {"ledger/t0002.parquet", "candidates/t0002.parquet"}  # other moments, and another run's id
    assert after["mosaics/t0002.parquet"] == before["mosaics/t0002.parquet"]


# ---- clouds


@pytest.fixture(scope="module")
def clouds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clouds")
    file = HERE / "clouds.toml"
    problem = read_problem(file)
    images = cloud_pairs()
    images["density"][:, :, 5:9, 20:30] = np.nan  # no data there
    pairs = write_pairs(folder / "gmc.zarr", problem, images, {}, 0.0)
    train = ["train", "--problem", str(file), "--pairs", pairs, "--bridge", "schrodinger"]
    with without_ray(), quick_energies():
        assert main([*train, "--to", "density", "--out", str(folder / "trained"), *SHORT]) == 0
    column = np.concatenate([np.concatenate(list(cloud_pairs()["column"][k : k + 2, 0]), 1) for k in (0, 2)], 0)
    path = folder / "map.fits"
    variance = np.full(column.shape, (1e19) ** 2)
    write_survey_file(path, column, tan_wcs(column.shape, 10.0), variance=variance, header={"BUNIT": "cm-2"})
    store = folder / "tiles"
    ingest = [
        "ingest",
        "--problem",
        str(file),
        "--image",
        f"column.N={path}",
        "--onto",
        "column",
        "--store",
        str(store),
    ]
    assert main([*ingest, "--tile-size", "64", "--halo", "16"]) == 0
    translate = ["translate", "--store", str(store), "--checkpoint", str(folder / "trained" / "bridge"), *FAST]
    assert main([*translate, "--run", str(folder / "run")]) == 0
    return folder, column, translate


def test_a_density_is_learnt_one_way_in_its_logarithm(clouds):
    folder, _, _ = clouds
    card = load_checkpoint(folder / "trained" / "bridge").card
    assert [str(direction) for direction in card.problem.directions] == ["column->density"]
    column, density = (end.stretch for end in card.problem.endpoints)
    assert isinstance(column, Log10Stretch) and isinstance(density, Log10Stretch)
    assert density.offset["n"] == pytest.approx(3.0, abs=0.15)


def test_columns_are_taken_as_they_are_and_not_as_fluxes(clouds):
    folder, column, _ = clouds
    tile = TileStore.open(folder / "tiles").read_tile("t0000", halo=0)
    image = tile.images["column"]
    assert (image.unit, image.extensive) == ("cm-2", False)
    np.testing.assert_allclose(image.flux[0], column[:64, :64], rtol=1e-5)


def test_a_map_of_density_has_its_unit_and_is_positive(clouds):
    folder, _, _ = clouds
    out = folder / "density.fits"
    assert main(["export", "--run", str(folder / "run"), "--out", str(out), "--lossless", "--overwrite"]) == 0
    with fits.open(out) as hdus:
        images = {hdu.name: hdu for hdu in hdus if hdu.data is not None}
        units = {name: hdu.header.get("BUNIT") for name, hdu in images.items()}
        assert "cm-3" in units.values() and "nJy" not in units.values()
        mean = next(hdu.data for name, hdu in images.items() if "MEAN" in name.upper())
    assert np.isfinite(mean).all() and (mean > 0).all()
    assert 1.5 < np.log10(np.median(mean)) < 4.5


def test_maps_only_means_no_catalog_and_says_so(clouds, capsys):
    folder, _, _ = clouds
    run = RunFolder.open(folder / "run")
    assert run.ok_tiles() == ["t0000", "t0001", "t0002", "t0003"]
    assert main(["query", "--run", str(folder / "run")]) == 2
    assert "maps only" in capsys.readouterr().err
    assert main(["publish", "--run", str(folder / "run"), "--out", str(folder / "catalog")]) == 2
    assert "maps only" in capsys.readouterr().err
    assert main(["report", "--run", str(folder / "run"), "--out", str(folder / "report")]) == 0


def test_the_other_way_is_refused(clouds, capsys):
    folder, _, translate = clouds
    assert main([*translate, "--to", "column", "--run", str(folder / "back")]) == 2
    assert "one way, to density" in capsys.readouterr().err


# ---- bad problems: exit 2 and one line


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('["u", "w"]', "[]", "bands"),
        ('name = "eye"', 'name = "sky"', "name sky"),
        ('["u", "w"]', '["u", "u"]', "u"),
        ('["broad"]', '["broad"]\nunit = "mag"', "mag"),
        ('["broad"]', '["broad"]\nunit = "parrots"', "parrots"),
        ('["broad"]', '["broad"]\nunit = "cm-3"\nstretch = "axial"\nextensive = false', "axial"),
        ('catalog = "eye"', 'catalog = "ear"', "ear"),
    ],
)
def test_a_bad_problem_is_refused_in_one_line_before_anything_is_written(tmp_path, capsys, old, new, said):
    file = tmp_path / "bad.toml"
    assert old in SKY_EYE
    file.write_text(SKY_EYE.replace(old, new))
    store = tmp_path / "tiles"
    assert (
        main(["ingest", "--problem", str(file), "--image", "sky.u=u.fits", "--onto", "eye", "--store", str(store)]) == 2
    )
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0] and lines[0].startswith("surveybridge ingest: error:")
    assert not store.exists()


def test_a_checkpoint_of_another_problem_is_refused(run, clouds, capsys):
    _, folder, _ = run
    cloud_folder, _, _ = clouds
    checkpoint = str(cloud_folder / "trained" / "bridge")
    arguments = ["--store", str(folder / "tiles"), "--run", str(folder / "other"), "--checkpoint", checkpoint]
    assert main(["translate", *arguments, *FAST]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "column" in error
    assert not (folder / "other").exists()


def test_an_image_in_another_unit_than_the_endpoints_is_refused(tmp_path, capsys):
    image = np.ones((64, 64))
    path = write_survey_file(tmp_path / "map.fits", image, tan_wcs(image.shape, 10.0), header={"BUNIT": "K km/s"})
    file = str(HERE / "clouds.toml")
    arguments = [
        "--problem",
        file,
        "--image",
        f"column.N={path}",
        "--onto",
        "column",
        "--store",
        str(tmp_path / "tiles"),
    ]
    assert main(["ingest", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "K km/s" in error and "cm-2" in error


def test_training_pairs_of_another_problem_are_refused(tmp_path, clouds, capsys):
    folder, _, _ = clouds
    problem = str(HERE / "hsc-hst.toml")
    arguments = ["--problem", problem, "--pairs", str(folder / "gmc.zarr"), "--out", str(tmp_path / "out")]
    assert main(["train", *arguments, *SHORT]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "column" in error and "hsc" in error
    assert not (tmp_path / "out").exists() or not list(Path(tmp_path / "out").iterdir())


def test_run_json_states_the_problem_of_a_run_and_no_survey(run):
    _, folder, _ = run
    document = (folder / "run" / "run.json").read_text()
    problem = json.loads(document)["problem"]
    assert {end["name"] for end in problem["endpoints"]} == {
        end.name for end in load_checkpoint(folder / "trained" / "bridge").card.problem.endpoints
    }
    assert "lsst" not in document
