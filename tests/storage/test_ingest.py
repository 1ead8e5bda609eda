"""Ingest: tiles partition the field, agree where they overlap, and a wrong request writes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from surveybridge.__main__ import main
from surveybridge.storage.errors import StorageError
from surveybridge.storage.images import MASK_PLANES
from surveybridge.storage.ingest import ingest_field, tile_boxes
from surveybridge.storage.problems import default_problem
from surveybridge.storage.tiles import TileStore
from tests.storage.fits_files import gaussians, tan_wcs, write_mer_file, write_survey_file
from tests.tiny import files_of

EUCLID, LSST = (200, 230), (130, 140)
POSITIONS = np.array([[30.0, 40.0], [100.0, 120.0], [99.0, 128.0], [160.0, 200.0]])


@pytest.fixture
def files(tmp_path):
    """A Euclid file and three LSST files, rotated by 3 degrees, that cover it."""
    rng = np.random.default_rng(0)  # far from the sources they would be exactly 0 otherwise, which is no data
    euclid_wcs, lsst_wcs = tan_wcs(EUCLID, 0.1), tan_wcs(LSST, 0.2, rotation=3.0)
    x, y = lsst_wcs.all_world2pix(*euclid_wcs.all_pix2world(POSITIONS[:, 1], POSITIONS[:, 0], 0), 0)
    vis = gaussians(EUCLID, POSITIONS, 0.9) + rng.normal(0, 1e-3, EUCLID)
    paths = {"VIS": write_survey_file(tmp_path / "vis.fits", vis, euclid_wcs)}
    for k, band in enumerate("gri"):
        image = gaussians(LSST, np.stack([y, x], axis=1), 1.6, 1000.0 * (k + 1)) + rng.normal(0, 1e-3, LSST)
        header = {"BUNIT": "nJy", "FILTER": band, "PSFFWHM": 0.75}
        paths[band] = write_survey_file(tmp_path / f"{band}.fits", image, lsst_wcs, header=header)
    return paths


def ingest(files, url, **how):
    how = {"tile_size": 80, "halo": 16} | how
    images = {"lsst": {band: files[band] for band in "gri"}, "euclid": {"VIS": files["VIS"]}}
    return ingest_field(default_problem(), images, "euclid", str(url), **how)


def test_cores_partition_the_grid_and_halos_end_at_its_edge():
    owned = np.zeros(EUCLID, int)
    for box in tile_boxes(EUCLID, 80, 16):
        y0, y1, x0, x1 = box.core
        owned[y0:y1, x0:x1] += 1
        assert box.outer == (max(y0 - 16, 0), min(y1 + 16, 200), max(x0 - 16, 0), min(x1 + 16, 230))
    assert (owned == 1).all()
    assert [box.tile_id for box in tile_boxes(EUCLID, 80, 16)] == [f"t{k:04d}" for k in range(9)]


def test_tiles_hold_both_surveys_on_one_grid(tmp_path, files):
    rows = ingest(files, tmp_path / "store")
    assert len(rows) == 9
    store = TileStore.open(str(tmp_path / "store"))
    assert store.manifest().num_rows == 9
    grid = tan_wcs(EUCLID, 0.1)
    total = {"lsst": np.zeros(3), "euclid": np.zeros(1)}
    for row in rows:
        tile = store.read_tile(row["tile_id"])
        y0, y1, x0, x1 = tile.core
        for name, image in tile.images.items():
            assert image.flux.shape[1:] == tile.shape
            assert image.pixel_scale == pytest.approx(0.1)
            sky = image.wcs.all_pix2world(0, 0, 0)
            np.testing.assert_allclose(grid.all_world2pix(*sky, 0), tile.origin[::-1], atol=1e-5)
            total[name] += image.flux[:, y0:y1, x0:x1].sum(axis=(1, 2))
        assert tile.images["lsst"].psf_fwhm == (0.75,) * 3
        assert tile.images["lsst"].provenance["domain"] == "in"
        assert 0.4 < tile.images["lsst"].noise_correlation[0] < 0.8
    np.testing.assert_allclose(total["lsst"], 4 * np.array([1000.0, 2000.0, 3000.0]), rtol=1e-3)
    np.testing.assert_allclose(total["euclid"], 4000.0, rtol=1e-3)


def test_neighbouring_tiles_agree_bit_by_bit_where_they_overlap(tmp_path, files):
    ingest(files, tmp_path / "store")
    store = TileStore.open(str(tmp_path / "store"))
    left, right = store.read_tile("t0000"), store.read_tile("t0001")
    shared = right.origin[1]
    width = left.shape[1] - shared
    assert width == 32
    np.testing.assert_array_equal(left.images["lsst"].flux[:, :, shared:], right.images["lsst"].flux[:, :, :width])
    np.testing.assert_array_equal(left.images["euclid"].mask[:, :, shared:], right.images["euclid"].mask[:, :, :width])


def test_ingest_again_gives_the_same_bytes(tmp_path, files):
    for name in ("one", "two", "two"):
        ingest(files, tmp_path / name)
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    assert len(one) > 50 and one.keys() == two.keys()
    for name in one.keys() - {"lease.json"}:
        assert one[name] == two[name], name


def test_a_survey_that_ends_leaves_tiles_of_the_other(tmp_path, files):
    shape = (60, 140)
    for band in "gri":
        lower = tan_wcs(LSST, 0.2, rotation=3.0)[:60]
        write_survey_file(tmp_path / f"{band}.fits", np.ones(shape), lower)
    rows = ingest(files, tmp_path / "store")
    present = {row["tile_id"]: list(row["surveys"]) for row in rows}
    assert present["t0000"] == ["lsst", "euclid"]
    assert present["t0008"] == ["euclid"]
    tile = TileStore.open(str(tmp_path / "store")).read_tile("t0004")
    assert (tile.images["lsst"].mask & MASK_PLANES["NO_DATA"]).any() and tile.images["lsst"].valid.any()


def bad_request(files, tmp_path, case):
    """Change one thing about the files; returns the --lsst arguments."""
    flux, wcs = np.ones(LSST), tan_wcs(LSST, 0.2, rotation=3.0)
    lsst = [files[band] for band in "gri"]
    match case:
        case "missing band":
            return lsst[:2]
        case "missing file":
            return [*lsst[:2], str(tmp_path / "absent.fits")]
        case "no wcs":
            write_survey_file(tmp_path / "r.fits", flux, None)
        case "no euclid wcs":
            write_survey_file(tmp_path / "vis.fits", np.ones(EUCLID), None)
        case "zero point text":
            write_survey_file(tmp_path / "r.fits", flux, wcs, header={"MAGZERO": "27.0"})
        case "zero point in Vega":
            write_survey_file(tmp_path / "r.fits", flux, wcs, header={"MAGZERO": 27.0, "MAGSYS": "Vega"})
        case "no unit":
            write_survey_file(tmp_path / "r.fits", flux, wcs, header={})
        case "no overlap":
            for band in "gri":
                write_survey_file(tmp_path / f"{band}.fits", flux, tan_wcs(LSST, 0.2, ra=53.1))
        case "far side of the sky":
            for band in "gri":
                write_survey_file(tmp_path / f"{band}.fits", flux, tan_wcs(LSST, 0.2, ra=233.0, dec=28.0))
        case "shapes differ":
            write_survey_file(tmp_path / "i.fits", flux[:50], wcs)
        case "bands swapped":
            return lsst[::-1]
        case "not icrs":
            old = tan_wcs(EUCLID, 0.1)
            old.wcs.radesys = "FK4"
            write_survey_file(tmp_path / "vis.fits", np.ones(EUCLID), old)
    return lsst


BAD_REQUESTS = {
    "missing band": ["2 values for bands g,r,i"],
    "missing file": ["absent.fits", "no such file"],
    "no wcs": ["r.fits[IMAGE]", "no celestial WCS", "CTYPE1 absent"],
    "no euclid wcs": ["vis.fits[IMAGE]", "no celestial WCS"],
    "zero point text": ["r.fits[IMAGE]", "MAGZERO is '27.0' (str)", "expected a number"],
    "zero point in Vega": ["r.fits[IMAGE]", "Vega", "expected AB"],
    "no unit": ["r.fits[IMAGE]", "BUNIT absent", "MAGZERO"],
    "no overlap": ["do not overlap", "vis.fits", "g.fits", "RA 53.00000", "RA 53.10000"],
    "far side of the sky": ["do not overlap", "Dec -28.00000", "Dec +28.00000"],
    "shapes differ": ["i.fits[IMAGE]", "50 x 140", "130 x 140"],
    "bands swapped": ["g", "FILTER is i", "given for band g"],
    "not icrs": ["vis.fits[IMAGE]", "RADESYS is FK4", "expected ICRS or FK5"],
    "tile size": ["tile size 8 px", "64 px"],
    "halo": ["halo -1 px"],
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_exits_2_with_one_line_and_writes_nothing(tmp_path, files, capsys, case):
    lsst = bad_request(files, tmp_path, case)
    extra = {"tile size": ["--tile-size", "8"], "halo": ["halo=-1"]}.get(case, ["--tile-size", "80"])
    store = tmp_path / "store"
    assert main(["ingest", "--euclid", files["VIS"], "--lsst", *lsst, "--store", str(store), *extra]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("surveybridge ingest: error: ")
    for words in BAD_REQUESTS[case]:
        assert words in lines[0]
    assert not store.exists()


def test_something_else_at_the_stores_place_is_left_alone(tmp_path, files):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match="neither empty nor a tile store"):
        ingest(files, tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["thesis.tex"]


def test_surveys_that_overlap_only_in_masked_pixels_are_refused(tmp_path, files):
    mask = np.ones(LSST, np.uint8)
    mask[:4] = 0  # a strip south of the Euclid field
    for band in "gri":
        path = tmp_path / f"{band}.fits"
        write_survey_file(path, np.ones(LSST), tan_wcs(LSST, 0.2, rotation=3.0), mask=mask)
    with pytest.raises(StorageError, match="no tile in which both surveys have usable pixels"):
        ingest(files, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_stand_in_bands_are_marked_out_of_domain(tmp_path):
    shape = (100, 100)
    noise = np.random.default_rng(0).normal(size=shape)
    names = {"VIS": 24.6, "HSC_G": 30.0, "MEGACAM_R": 30.0, "HSC_Z": 30.0}
    bands = {name: {"flux": noise, "rms": np.ones(shape), "magzero": zero} for name, zero in names.items()}
    path = write_mer_file(tmp_path / "cutout.fits", bands, tan_wcs(shape, 0.1))
    lsst = [f"{path}[{name}_FLUX]" for name in ("HSC_G", "MEGACAM_R", "HSC_Z")]
    assert main(["ingest", "--euclid", path, "--lsst", *lsst, "--store", str(tmp_path / "store")]) == 0
    tile = TileStore.open(str(tmp_path / "store")).read_tile("t0000")
    domain = tile.images["lsst"].provenance["domain"]
    assert domain.startswith("out: lsst bands are HSC_G as g, MEGACAM_R as r, HSC_Z as i")
    assert 'lsst pixels are 0.1", not 0.2"' in domain
    # already on the grid: copied, not interpolated
    np.testing.assert_allclose(tile.images["lsst"].flux[0], (noise * 10**0.56).astype(np.float32), rtol=1e-5)


def test_zero_points_can_be_given(tmp_path, files, capsys):
    """Of a header that states two, one of them left over."""
    two = {"MAGZERO": 27.0, "ZP": 30.0, "BUNIT": "adu", "FILTER": "r"}
    image = gaussians(LSST, [(60.0, 70.0)], 2.0)
    write_survey_file(tmp_path / "r.fits", image, tan_wcs(LSST, 0.2, rotation=3.0), header=two)
    store, lsst = str(tmp_path / "store"), [files[band] for band in "gri"]
    request = ["ingest", "--euclid", files["VIS"], "--lsst", *lsst, "--store", store, "--tile-size", "256"]
    assert main(request) == 2
    assert "zero points contradict each other, MAGZERO 27 and ZP 30" in capsys.readouterr().err
    for wrong, complaint in {
        "lsst.r": "expected NAME.BAND=MAG",
        "lsst.r=AB": "expected NAME.BAND=MAG, a number",
        "lsst.r=nan": "zero point nan is not a plausible AB zero point (10 to 50 mag)",
        "lsst.z=27": "a zero point for band z, which is not one of its bands",
        "wise.W1=27": "wise",
    }.items():
        assert main([*request, "--zero-point", wrong]) == 2
        error = capsys.readouterr().err
        assert complaint in error and error.count("\n") == 1
    assert not (tmp_path / "store").exists()
    assert main([*request, "--zero-point", "lsst.r=30"]) == 0
    tile = TileStore.open(store).read_tile("t0000")
    flux = np.nan_to_num(tile.images["lsst"].flux[1]).sum(dtype=float)
    assert flux == pytest.approx(1000 * 10**0.56, rel=1e-3)
    assert tile.images["lsst"].provenance["r.zero_point"] == "30 AB (given by the user)"


def test_psf_widths_can_be_given(tmp_path, files):
    lsst = [files[band] for band in "gri"]
    arguments = ["--lsst-psf", "0.8", "0.7", "0.6", "--euclid-psf", "0.2", "--tile-size", "256"]
    store = str(tmp_path / "store")
    assert main(["ingest", "--euclid", files["VIS"], "--lsst", *lsst, "--store", store, *arguments]) == 0
    tile = TileStore.open(store).read_tile("t0000")
    assert tile.images["lsst"].psf_fwhm == (0.8, 0.7, 0.6)
    assert tile.images["euclid"].psf_fwhm == (0.2,)
