"""Problems beside LSST and Euclid, through storage: images, tiles, runs, queries, catalogs and FITS are their own."""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits

from surveybridge.__main__ import main
from surveybridge.storage.astrotables import query_table
from surveybridge.storage.catalogs import Catalog
from surveybridge.storage.errors import StorageError
from surveybridge.storage.evaluation_schemas import colour_columns, evaluated_images_schema, evaluated_scores_schema
from surveybridge.storage.fits_images import read_image
from surveybridge.storage.fits_mosaics import about, mosaic_hdus
from surveybridge.storage.images import MASK_PLANES
from surveybridge.storage.ingest import ingest_field, read_field
from surveybridge.storage.mosaics import TileMosaic
from surveybridge.storage.problems import default_problem, endpoint
from surveybridge.storage.publishing import publish
from surveybridge.storage.query import query, select
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import candidates_schema, mosaic_schema, shown_bands, stamps, thumbnail_names
from surveybridge.storage.tiles import Tile, TileStore
from tests.storage.fits_files import tan_wcs, write_survey_file
from tests.storage.problem_files import GRID, SKY, cloud, problem, rubin_euclid_files, sky_file
from tests.storage.test_runs import RUN, make_header, make_planes
from tests.storage.wcs_headers import true_sky, unusual

# -- images and tiles --


def test_a_problem_of_five_bands_and_one_becomes_tiles_on_the_finer_grid(tmp_path):
    hsc_hst = problem(tmp_path, "hsc-hst")
    hsc = {
        band: sky_file(tmp_path / f"{band}.fits", (100, 104), 0.168, 1000.0 * k)
        for k, band in enumerate(["g", "r", "i", "z", "y"], 1)
    }
    images = {"hsc": hsc, "hst": {"F814W": sky_file(tmp_path / "acs.fits", (280, 300), 0.05, 500.0)}}
    rows = ingest_field(hsc_hst, images, "hst", str(tmp_path / "store"), tile_size=512, halo=0)
    assert [list(row["surveys"]) for row in rows] == [["hsc", "hst"]]
    assert rows[0]["grid_id"].startswith("hst-")
    tile = TileStore.open(tmp_path / "store").read_tile("t0000")
    assert list(tile.images) == ["hsc", "hst"] and tile.shape == (280, 300)
    assert tile.images["hsc"].bands == ("g", "r", "i", "z", "y")
    total = tile.images["hsc"].flux.sum(axis=(1, 2))
    np.testing.assert_allclose(total, 3000.0 * np.arange(1, 6), rtol=2e-3)
    assert tile.images["hsc"].provenance["domain"] == "in"
    assert tile.images["hsc"].provenance["hsc_coverage"].endswith("of the HST grid")


def test_bands_on_grids_of_their_own_are_brought_onto_that_of_the_first(tmp_path):
    rubin_euclid = problem(tmp_path, "rubin-euclid")
    field = read_field(rubin_euclid, rubin_euclid_files(tmp_path), "euclid", noise={"euclid": "auto"})
    rubin, euclid = field.images["rubin"], field.images["euclid"]
    assert euclid.bands == ("VIS", "Y", "J", "H") and field.shape == GRID
    assert len(euclid.psf_fwhm) == len(euclid.noise_correlation) == 4
    np.testing.assert_allclose(euclid.flux.sum(axis=(1, 2)), 3 * np.array([500.0, 700, 1400, 2100]), rtol=5e-3)
    for y, x in SKY.astype(int):  # each source is where it was, in every band
        box = euclid.flux[:, y - 6 : y + 7, x - 6 : x + 7].reshape(4, -1)
        assert (box.argmax(axis=1) == 6 * 13 + 6).all()
    assert euclid.provenance["Y.interpolation"] == "cubic spline x pixel area"
    assert euclid.provenance["Y.native_pixel_scale"] == "0.3" and "interpolation" not in euclid.provenance
    assert {"rubin_coverage", "euclid_Y_coverage", "euclid_H_coverage"} <= set(euclid.provenance)
    # uJy are asked for, nJy are in the files
    assert rubin.unit == "uJy"
    np.testing.assert_allclose(rubin.flux.sum(axis=(1, 2)), 3 * np.arange(1, 7), rtol=2e-3)


def test_either_end_may_be_the_grid_and_one_end_may_be_alone(tmp_path):
    rubin_euclid, files = problem(tmp_path, "rubin-euclid"), rubin_euclid_files(tmp_path)
    field = read_field(rubin_euclid, files, "rubin", noise={"euclid": "auto"})
    assert field.grid_id.startswith("rubin-") and field.shape == (75, 80)
    assert {image.flux.shape[1:] for image in field.images.values()} == {(75, 80)}
    np.testing.assert_allclose(np.nansum(field.images["euclid"].flux[0]), 1500.0, rtol=5e-3)
    rows = ingest_field(rubin_euclid, {"rubin": files["rubin"]}, "rubin", str(tmp_path / "store"))
    assert [list(row["surveys"]) for row in rows] == [["rubin"]]
    with pytest.raises(StorageError, match="onto euclid: images of rubin are given"):
        read_field(rubin_euclid, {"rubin": files["rubin"]}, "euclid")


def test_a_band_with_the_pixels_of_the_others_must_share_their_grid(tmp_path):
    rubin_euclid, files = problem(tmp_path, "rubin-euclid"), rubin_euclid_files(tmp_path)
    files["rubin"]["z"] = sky_file(tmp_path / "z.fits", (74, 80), 0.2, 1.0)
    with pytest.raises(StorageError, match=r"74 x 80 pixels but .* has 75 x 80; give bands of the same patch"):
        read_field(rubin_euclid, files, "euclid", noise={"euclid": "auto"})
    with pytest.raises(StorageError, match=r'band Y has pixels of 0.3" but VIS of 0.1"'):
        read_image(endpoint(rubin_euclid, "euclid"), files["euclid"])


def cloud_files(folder, column_unit="cm-2", shape=(128, 160), **header):
    paths = {}
    for name, band, unit, seed in (("column", "NH", column_unit, 0), ("density", "nH", "m-3", 1)):
        path = folder / f"{name}.fits"
        fits.PrimaryHDU(cloud(seed, shape), fits.Header({"BUNIT": unit} | header)).writeto(path, overwrite=True)
        paths[name] = {band: str(path)}
    return paths


def test_densities_without_a_sky_become_tiles_in_their_unit_pixel_by_pixel(tmp_path):
    clouds = problem(tmp_path, "clouds")
    rows = ingest_field(clouds, cloud_files(tmp_path), "column", str(tmp_path / "store"), tile_size=96, halo=16)
    assert len(rows) == 4 and rows[0]["grid_id"].startswith("column-")
    tile = TileStore.open(tmp_path / "store").read_tile("t0001")
    column, density = tile.images["column"], tile.images["density"]
    assert (column.unit, column.extensive, density.unit) == ("cm-2", False, "cm-3")
    here = (
        slice(tile.origin[0], tile.origin[0] + tile.shape[0]),
        slice(tile.origin[1], tile.origin[1] + tile.shape[1]),
    )
    np.testing.assert_allclose(column.flux[0], cloud(0)[here], rtol=1e-6)
    np.testing.assert_allclose(density.flux[0], 1e-6 * cloud(1)[here], rtol=1e-6)  # m-3 in the file
    assert column.valid.all() and (column.variance == 0).all() and np.isnan(column.zero_point)
    assert column.provenance["NH.noise"] == "none in the file, taken as exact"
    assert column.provenance["domain"] == "in"


@pytest.mark.parametrize(
    ("bunit", "said"),
    [
        ("mag", "BUNIT mag but endpoint column is in cm-2"),
        ("", "BUNIT absent but endpoint column is in cm-2"),
        ("dex(cm-2)", r"BUNIT dex\(cm-2\) but endpoint column is in cm-2"),
        ("parrots", "BUNIT parrots but"),
        ("cm-3", "BUNIT cm-3 but"),
    ],
)
def test_an_image_whose_unit_is_not_the_endpoints_is_refused(tmp_path, bunit, said):
    clouds, files = problem(tmp_path, "clouds"), cloud_files(tmp_path, bunit)
    with pytest.raises(StorageError, match=said) as caught:
        read_field(clouds, files, "density")
    assert "column.fits" in str(caught.value) and "\n" not in str(caught.value)


def test_maps_in_galactic_coordinates_keep_their_pixels_and_are_kept_in_icrs(tmp_path):
    shape, size = (96, 80), {"NAXIS": 2}
    header, wcs, frame = unusual(shape, 12.0, (83.6, -5.4), "GALACTIC", swap=True)
    column = np.random.default_rng(5).lognormal(50, 1, shape)
    files = {"column": {"NH": str(tmp_path / "column.fits")}, "density": {"nH": str(tmp_path / "density.fits")}}
    for name, unit in (("column", "cm-2"), ("density", "cm-3")):
        fits.PrimaryHDU(column, fits.Header({**size, **dict(header), "BUNIT": unit})).writeto(tmp_path / f"{name}.fits")
    ingest_field(problem(tmp_path, "clouds"), files, "column", str(tmp_path / "store"), tile_size=96, halo=0)
    tile = TileStore.open(tmp_path / "store").read_tile("t0000")
    np.testing.assert_array_equal(tile.images["column"].flux[0], column.astype(np.float32))
    y, x = (v.ravel() for v in np.mgrid[0:96:19, 0:80:19])
    here = SkyCoord(*tile.images["density"].wcs.all_pix2world(x, y, 0), unit="deg")
    assert here.separation(true_sky(wcs, frame, y, x)).arcsec.max() < 1e-5


def test_grids_without_a_sky_must_have_one_size(tmp_path):
    files = cloud_files(tmp_path)
    fits.PrimaryHDU(cloud(1, (64, 64)), fits.Header({"BUNIT": "cm-3"})).writeto(tmp_path / "small.fits")
    files["density"] = {"nH": str(tmp_path / "small.fits")}
    with pytest.raises(StorageError, match="density: 64 x 64 pixels but column has 128 x 160"):
        read_field(problem(tmp_path, "clouds"), files, "column")


def test_a_density_is_interpolated_and_a_flux_divided_among_finer_pixels(tmp_path):
    table = problem(tmp_path, "hsc-hst")
    flat = {
        "hsc": write_survey_file(
            tmp_path / "hsc.fits",
            np.full((50, 50), 7.0),
            tan_wcs((50, 50), 0.168, rotation=5),
            variance=np.full((50, 50), 9.0),
        ),
        "hst": write_survey_file(tmp_path / "hst.fits", np.ones((80, 80)), tan_wcs((80, 80), 0.05)),
    }
    for extensive, expected in ((True, 7 * (0.05 / 0.168) ** 2), (False, 7.0)):
        table["endpoints"][0] |= {"bands": ["g"], "extensive": extensive, "rgb": None}
        field = read_field(table, {"hsc": {"g": flat["hsc"]}, "hst": {"F814W": flat["hst"]}}, "hst")
        np.testing.assert_allclose(field.images["hsc"].flux, expected, rtol=1e-4)
    assert field.images["hsc"].provenance["interpolation"] == "cubic spline"


def test_angles_are_copied_from_the_same_pixels_and_turn_onto_others(tmp_path):
    table = problem(tmp_path, "hsc-hst")
    table["endpoints"][0] |= {"bands": ["psi"], "unit": "deg", "extensive": False, "stretch": "axial", "rgb": None}
    hst = {"F814W": write_survey_file(tmp_path / "hst.fits", np.ones((80, 80)), tan_wcs((80, 80), 0.05))}
    angles = np.random.default_rng(0).uniform(-90, 90, (80, 80))
    same = write_survey_file(tmp_path / "same.fits", angles, tan_wcs((80, 80), 0.05), header={"BUNIT": "deg"})
    field = read_field(table, {"hsc": {"psi": same}, "hst": hst}, "hst")
    np.testing.assert_array_equal(field.images["hsc"].flux[0], angles.astype(np.float32))
    turned = tan_wcs((80, 80), 0.05, rotation=30)
    steady = np.full((80, 80), 80.0)
    other = write_survey_file(tmp_path / "turned.fits", steady, turned, header={"BUNIT": "deg"})
    found = read_field(table, {"hsc": {"psi": other}, "hst": hst}, "hst").images["hsc"]
    seen = found.flux[found.valid]
    assert found.bands == ("psi",) and found.valid.mean() > 0.7
    np.testing.assert_allclose(seen, seen[0], atol=0.01)
    assert min(abs(seen[0] - 50), abs(seen[0] + 70)) < 0.01  # by 30 degrees, through the seam at 90 the other way


def test_a_part_of_a_tile_is_a_tile_with_its_core_and_place(tmp_path):
    field = read_field(problem(tmp_path, "clouds"), cloud_files(tmp_path), "column")
    tile = Tile("t", field.images, (16, 100, 16, 140), (1000, -40), field.grid_id)
    part = tile.crop((10, 60, 20, 90))
    assert (part.core, part.origin, part.shape) == ((6, 50, 0, 70), (1010, -20), (50, 70))
    assert part.core_origin == (1016, -20)
    np.testing.assert_array_equal(part.images["density"].flux, tile.images["density"].flux[:, 10:60, 20:90])
    sky = part.images["column"].wcs.all_pix2world(0, 0, 0)
    np.testing.assert_allclose(tile.images["column"].wcs.all_world2pix(*sky, 0), (20, 10), atol=1e-6)
    for box in ((0, 16, 0, 160), (0, 129, 0, 10), (-1, 50, 0, 50)):
        with pytest.raises(StorageError, match="give a box inside that touches the core"):
            tile.crop(box)


def test_what_is_asked_of_ends_that_are_none_is_refused(tmp_path):
    rubin_euclid, files = problem(tmp_path, "rubin-euclid"), rubin_euclid_files(tmp_path)
    with pytest.raises(StorageError, match="has no endpoint 'lsst'; it has rubin and euclid"):
        read_field(rubin_euclid, {"lsst": files["rubin"]}, "euclid")
    with pytest.raises(StorageError, match="a PSF for band K, which is not one of its bands VIS,Y,J,H"):
        read_field(rubin_euclid, files, "euclid", numbers={"psf": {"euclid": {"K": 0.3}}})
    with pytest.raises(StorageError, match="euclid: no file for band J,H"):
        read_field(rubin_euclid, files | {"euclid": {b: files["euclid"][b] for b in ("VIS", "Y")}}, "euclid")


def test_the_noise_of_the_end_with_the_objects_comes_from_its_file(tmp_path):
    hst = tmp_path / "acs.fits"
    header = tan_wcs((280, 300), 0.05).to_header()
    header["BUNIT"] = "nJy"
    rng = np.random.default_rng(0)
    fits.PrimaryHDU(rng.normal(0, 2, (280, 300)).astype(np.float32), header).writeto(hst)
    hsc_hst = problem(tmp_path, "hsc-hst")
    images = {"hst": {"F814W": str(hst)}}
    with pytest.raises(StorageError, match="no noise map"):
        read_field(hsc_hst, images, "hst")
    measured = read_field(hsc_hst, images, "hst", noise={"hst": "sky"}).images["hst"]
    assert np.sqrt(measured.variance[0, 0, 0]) == pytest.approx(2, rel=0.05)
    rms = tmp_path / "rms.fits"
    fits.PrimaryHDU(np.full((280, 300), 3.0, np.float32)).writeto(rms)
    for noise in ("auto", "file"):  # a map that is named counts
        given = read_field(hsc_hst, images, "hst", maps={"rms": {"hst": {"F814W": str(rms)}}}, noise={"hst": noise})
        np.testing.assert_allclose(given.images["hst"].variance, 9.0)
    assert (given.images["hst"].mask & MASK_PLANES["BAD"] == 0).all()


# -- runs, queries, catalogs --


def other_run(folder, table, *, name="run", tiles=("a", "b"), direction=None, seed=0):
    """A run of another problem: mosaics of the wanted end and, if it has a catalog, two candidates a tile."""
    first, second = table["endpoints"]
    direction = direction or f"{first['name']}->{second['name']}"
    wanted = second if direction.endswith(second["name"]) else first
    document = RUN | {"run_id": name, "direction": direction, "problem": table, "samples": 4}
    run = RunFolder.open_or_create(folder / name, document)
    for place, tile in enumerate(tiles):
        mean, std, coverage = make_planes((100, 130), seed=place)
        mean, std = (np.repeat(plane[:1], len(wanted["bands"]), axis=0) for plane in (mean, std))
        corner = (0, 130 * place)
        bands = tuple(wanted["bands"])
        run.write_mosaic(
            TileMosaic(tile, make_header(*corner), bands, mean, std, coverage, corner, "grid", wanted["unit"])
        )
        if run.maps_only:
            run.write_candidates(tile, pa.table({}))
        else:
            run.write_candidates(tile, other_candidates(run, f"{name}-{tile}", seed + place, 130 * place))
        run.commit({"tile_id": tile, "status": "ok", "n_candidates": 0 if run.maps_only else 2, "content": tile})
    return run


def other_candidates(run, prefix, seed, left):
    schema = run.candidates_schema
    rng = np.random.default_rng(seed)
    columns = {
        "object_id": [f"{prefix}-{k}" for k in range(2)],
        "ra": 53 + rng.random(2) / 100 + seed,
        "dec": -28 + rng.random(2) / 100,
        "score": rng.random(2),
        "x": left + rng.uniform(10, 90, 2),
        "y": rng.uniform(10, 90, 2),
        "run_id": [run.run_json["run_id"]] * 2,
    }
    for field in schema:
        if field.name.startswith(("flux_", "snr_")):
            columns[field.name] = rng.uniform(100, 200, 2).astype(np.float32)
    for name in thumbnail_names(schema):
        channels = schema.field(name).type.list_size // 64**2
        columns[name] = stamps(name, rng.normal(size=(2, channels, 64, 64)), schema)
    return pa.table(columns)


@pytest.mark.parametrize("name", ["hsc-hst", "rubin-euclid"])
def test_columns_follow_the_bands_and_units_of_the_problem(tmp_path, name):
    table = problem(tmp_path, name)
    for schema in (
        candidates_schema(table),
        evaluated_images_schema(table),
        evaluated_scores_schema(table),
        mosaic_schema(("a", "b"), "uJy"),
    ):
        assert len({column.lower() for column in schema.names}) == len(schema.names)
        for field in schema:
            assert field.metadata[b"description"] and field.metadata[b"ucd"], field.name
            u.Unit(field.metadata.get(b"unit", b"").decode(), format="vounit")
    schema = candidates_schema(table)
    if name == "hsc-hst":
        assert schema.field("thumbnail_hsc").metadata[b"shape"] == b"5,64,64"
        assert schema.field("thumbnail_mean").metadata[b"shape"] == b"1,64,64"
        assert shown_bands(table)[-2:] == ["snr_y", "snr_F814W"]
        assert list(colour_columns(table).values()) == ["colour_gr", "colour_ri", "colour_iz", "colour_zy"]
    else:
        assert {"flux_rubin_y", "flux_euclid_Y", "flux_VIS", "snr_g"} <= set(schema.names)
        assert schema.field("flux_g").metadata[b"unit"] == b"uJy"
        assert schema.field("flux_VIS").metadata[b"unit"] == b"nJy"
        assert schema.field("thumbnail_error").metadata[b"shape"] == b"4,64,64"
        assert "colour_VIS_euclid_Y" in colour_columns(table).values()


def test_densities_have_no_magnitudes_and_no_candidates(tmp_path):
    clouds = problem(tmp_path, "clouds")
    assert colour_columns(clouds) == {}
    images = evaluated_images_schema(clouds)
    assert images.field("flux_column_NH").metadata[b"unit"] == b"cm**-2"  # beside flux_density_nH
    assert mosaic_schema(("nH",), "cm-3").field("mean").metadata[b"unit"] == b"cm**-3"
    for schema in (candidates_schema, evaluated_scores_schema, shown_bands):
        with pytest.raises(StorageError, match="problem clouds makes maps only"):
            schema(clouds)


def test_a_run_of_another_problem_is_compacted_queried_and_read_with_units(tmp_path):
    run = other_run(tmp_path, problem(tmp_path, "rubin-euclid"))
    before = query(run.url)
    assert before.schema.names[: len(run.candidates_schema)] == run.candidates_schema.names
    assert run.compact(["a", "b"]) == 2
    run.tidy()
    after = RunFolder.open(run.url)
    assert query(after.url).equals(before)
    assert after.read_candidates("a").num_rows == 2
    found = select(run.url, "SELECT flux_rubin_y, flux_euclid_Y, thumbnail_rubin FROM candidates ORDER BY rank")
    assert found.column_names == ["flux_rubin_y", "flux_euclid_Y", "thumbnail_rubin"]
    table = query_table(run.url, columns=["flux_rubin_y", "flux_VIS", "thumbnail_euclid"])
    assert (table["flux_rubin_y"].unit, table["flux_VIS"].unit) == (u.uJy, u.nJy)
    assert table["thumbnail_euclid"].shape == (4, 4, 64, 64)
    cells = select(run.url, "SELECT tile_id, mean FROM mosaics")
    assert cells.num_rows == 2 * 2 * 3


def test_run_json_states_the_problem_only_where_it_is_not_the_default_one(tmp_path):
    for name, table in (("other", problem(tmp_path, "hsc-hst")), ("default", default_problem())):
        RunFolder.open_or_create(tmp_path / name, RUN | {"problem": table})
        opened = RunFolder.open(tmp_path / name)
        assert opened.problem == table
        assert ("problem" in opened.run_json) == (name == "other")


def test_a_catalog_has_the_columns_of_its_runs_and_problems_are_not_mixed(tmp_path):
    table = problem(tmp_path, "hsc-hst")
    runs = [other_run(tmp_path, table, name=name, seed=10 * k) for k, name in enumerate(("one", "two"))]
    done = publish([run.url for run in runs], str(tmp_path / "catalog"))
    assert done.facts["rows"] == 8 and done.facts["problem"] == table
    catalog = Catalog.open(tmp_path / "catalog")
    assert catalog.problem == table and "flux_F814W" in catalog.schema.names
    found = query(tmp_path / "catalog", top=8)
    assert set(found.column_names) == set(candidates_schema(table).names)
    assert sorted(found["object_id"].to_pylist()) == sorted(
        name for run in runs for name in query(run.url)["object_id"].to_pylist()
    )
    other = other_run(tmp_path, problem(tmp_path, "rubin-euclid"), name="three", seed=50)
    with pytest.raises(StorageError, match=r"one is of problem hsc-hst but .*three of rubin-euclid") as caught:
        publish([runs[0].url, other.url], str(tmp_path / "mixed"))
    assert "\n" not in str(caught.value) and not (tmp_path / "mixed").exists()


def test_a_run_that_makes_maps_only_has_mosaics_and_no_candidates(tmp_path):
    run = other_run(tmp_path, problem(tmp_path, "clouds"))
    assert run.maps_only and run.ok_tiles() == ["a", "b"]
    assert not (tmp_path / "run/candidates").exists()
    assert run.ledger()["candidates_path"].to_pylist() == [None, None]
    assert run.compact(["a", "b"]) == 2
    run.tidy()
    assert run.ok_tiles() == ["a", "b"] and run.read_mosaic().unit == "cm-3"
    for ask in (
        lambda: query(run.url),
        lambda: select(run.url, "SELECT 1"),
        lambda: run.read_candidates("a"),
        lambda: publish([run.url], str(tmp_path / "catalog")),
    ):
        with pytest.raises(StorageError, match="makes maps only: problem clouds names no catalog end") as caught:
            ask()
        assert "\n" not in str(caught.value)
    with pytest.raises(StorageError, match="makes maps only"):
        run.write_candidates("a", pa.table({"object_id": ["x"], "ra": [1.0], "dec": [2.0]}))


@pytest.mark.parametrize("job", ["query", "publish", "vet"])
def test_jobs_about_candidates_refuse_such_a_run_in_one_line(tmp_path, capsys, job):
    run = other_run(tmp_path, problem(tmp_path, "clouds"))
    assert main([job, "--run", run.url, *(["--port", "0"] if job == "vet" else [])]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "makes maps only" in lines[0]


# -- FITS --


def test_fits_says_unit_and_bands_of_the_mosaic(tmp_path):
    clouds = other_run(tmp_path, problem(tmp_path, "clouds"), name="clouds")
    rubin_euclid = problem(tmp_path, "rubin-euclid")
    back = other_run(tmp_path, rubin_euclid, name="back", direction="euclid->rubin")
    for run, bands, unit, zero_point in (
        (clouds, ["nH"], "cm-3", None),
        (back, ["u", "g", "r", "i", "z", "y"], "uJy", 23.9),
    ):
        mosaic = run.read_mosaic()
        hdus = mosaic_hdus(mosaic, bands, run.run_json, run.ledger())
        names = [hdu.name for hdu in hdus[1:]]
        assert names == [f"{plane}_{b}".upper() for plane in ("MEAN", "STD") for b in bands] + ["COVERAGE", "TILES"]
        for hdu in hdus[1 : 1 + 2 * len(bands)]:
            assert hdu.header["BUNIT"] == unit and u.Unit(hdu.header["BUNIT"], format="fits")
            assert hdu.header.get("MAGZERO") == (None if zero_point is None else pytest.approx(zero_point))
    assert "of density, given column pixels. Nothing here was observed." in about(clouds.run_json)
    assert "what rubin would see, given euclid pixels" in about(back.run_json)


def test_tiles_of_different_units_are_not_stitched(tmp_path):
    run = other_run(tmp_path, problem(tmp_path, "clouds"), tiles=("a",))
    mean, std, coverage = make_planes((100, 130))
    run.write_mosaic(TileMosaic("b", make_header(0, 130), ("nH",), mean, std, coverage, (0, 130), "grid", "m-3"))
    run.commit({"tile_id": "b", "status": "ok"})
    with pytest.raises(StorageError, match="in cm-3 and m-3"):
        run.read_mosaic()
