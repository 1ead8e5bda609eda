"""The figures of a run, on a small synthetic run folder with known arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from astropy.wcs import WCS
from matplotlib.image import imread

from surveybridge.jobs.drawing import panel, rendering
from surveybridge.jobs.drawing import views as panel_views
from surveybridge.storage.errors import StorageError
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.mosaics import TileMosaic
from surveybridge.storage.runs import FINGERPRINT_KEYS, RunFolder
from surveybridge.storage.schema import CANDIDATES
from surveybridge.storage.tiles import Tile, TileStore

pytestmark = pytest.mark.long

SIDE = 96
"""Side of a tile's core, pixels; the field is two tiles wide, and starts at global pixel (1000, 2000)."""
BANDS = {"lsst": ("g", "r", "i"), "euclid": ("VIS",)}


CORNERS = ((1000, 2000), (1000, 2000 + SIDE))
"""Global pixel (y, x) of the corners of tiles a and b."""


def wcs_at(x0: int, y0: int) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [61.2, -48.4]
    wcs.wcs.crpix = [2096.5 - x0, 1048.5 - y0]
    wcs.wcs.cdelt = [-0.1 / 3600, 0.1 / 3600]
    wcs.wcs.cunit = ["deg", "deg"]
    return wcs


def sky_image(survey: str, flux: np.ndarray, mask: np.ndarray, corner: tuple[int, int]) -> SurveyImage:
    n = len(BANDS[survey])
    return SurveyImage(
        survey=survey,
        bands=BANDS[survey],
        flux=flux.astype(np.float32),
        variance=np.ones_like(flux, np.float32),
        mask=mask,
        wcs_header=wcs_at(corner[1], corner[0]).to_header_string(),
        pixel_scale=0.1,
        psf_fwhm=(0.5,) * n,
        zero_point=31.4,
        noise_correlation=(0.0,) * n,
    )


def make_run(folder, *, hole: int = 0, bad_columns: int = 0, candidates=(), bands=("VIS",), corners=CORNERS):
    """Two tiles side by side; `hole` columns of the left tile's mosaic unknown, `bad_columns` of its Euclid masked."""
    rng = np.random.default_rng(0)
    direction = "lsst->euclid" if bands == ("VIS",) else "euclid->lsst"
    store = TileStore.create(folder / "store")
    run = RunFolder.open_or_create(folder / "run", dict.fromkeys(FINGERPRINT_KEYS[1:], "x") | {"direction": direction})
    rows = []
    for number, (tile_id, corner) in enumerate(zip(("a", "b"), corners, strict=True)):
        images = {}
        for survey, names in BANDS.items():
            flux = rng.normal(number * 100, 2, (len(names), SIDE, SIDE))
            mask = np.zeros(flux.shape, np.uint8)
            if survey == "euclid" and number == 0:
                mask[..., :bad_columns] = 1
            images[survey] = sky_image(survey, flux, mask, corner)
        tile = Tile(tile_id, images, (0, SIDE, 0, SIDE), corner, "test")
        rows.append(store.write_tile(tile))
        mean = rng.normal(0, 2, (len(bands), SIDE, SIDE)).astype(np.float32)
        std = np.ones_like(mean)
        if number == 0:
            mean[..., :hole] = std[..., :hole] = np.nan
        header = wcs_at(corner[1], corner[0]).to_header_string()
        run.write_mosaic(
            TileMosaic(tile_id, header, bands, mean, std, np.isfinite(mean[0]).astype("f4"), corner, "test")
        )
        here = [candidate for candidate in candidates if candidate["tile_id"] == tile_id]
        table = CANDIDATES.empty_table()
        if here:
            table = pa.table({key: pa.array([row[key] for row in here], CANDIDATES.field(key).type) for key in here[0]})
        run.write_candidates(tile_id, table)
        run.commit({"tile_id": tile_id, "status": "ok"})
    store.write_manifest(rows)
    return str(folder / "run"), str(folder / "store")


def candidate(number: int, x: float, y: float, **more) -> dict:
    ra, dec = wcs_at(0, 0).pixel_to_world_values(x, y)
    tile_id = "a" if x < 2000 + SIDE else "b"
    row = {
        "object_id": f"o{number}", "ra": float(ra), "dec": float(dec), "_healpix_29": 0, "tile_id": tile_id,
        "score": 10.0 - number, "score_std": 0.5, "flux_VIS": 1000.0, "x": x, "y": y,
    }  # fmt: skip
    return row | more


def stamps(value: float) -> dict:
    sizes = {"lsst": 3, "euclid": 1, "mean": 1, "error": 1}
    return {f"thumbnail_{name}": [value] * (n * 64 * 64) for name, n in sizes.items()}


def share(png, colour) -> float:
    """Share of the figure's pixels that have this colour, but for rounding."""
    return float((np.abs(imread(png)[..., :3] - np.array(colour)) < 1.5 / 255).all(axis=-1).mean())


def hex_colour(text: str) -> tuple[float, ...]:
    return tuple(int(text[k : k + 2], 16) / 255 for k in (1, 3, 5))


def test_panel_has_two_rows_of_five_views(tmp_path):
    run, store = make_run(tmp_path)
    panel.draw_panel(run, store, tmp_path / "panel.png")
    height, width = imread(tmp_path / "panel.png").shape[:2]
    assert 2000 < width < 4000
    assert 0.2 < height / width < 0.6


def test_unknown_pixels_of_the_mosaic_are_grey(tmp_path):
    for name, hole in (("whole", 0), ("holed", SIDE)):
        run, store = make_run(tmp_path / name, hole=hole)
        panel.draw_panel(run, store, tmp_path / f"{name}.png")
    image = imread(tmp_path / "whole.png")
    view = 5.0 * 110 * (5.0 * 110 * SIDE / (2 * SIDE))  # pixels of one view in the upper row: half as tall as wide
    added = (share(tmp_path / "holed.png", rendering.GREY) - share(tmp_path / "whole.png", rendering.GREY)) * image[
        ..., 0
    ].size
    # Half of mean and of std above; the 9.6 arcsec square below is centred, so half of it is in the left tile too.
    assert added == pytest.approx(0.5 * 2 * view + 0.5 * 2 * (5.0 * 110) ** 2, rel=0.05)


def test_masked_pixels_of_a_survey_are_grey(tmp_path):
    for name, bad in (("good", 0), ("bad", 30)):
        run, store = make_run(tmp_path / name, bad_columns=bad)
        panel.draw_panel(run, store, tmp_path / f"{name}.png")
    assert share(tmp_path / "bad.png", rendering.GREY) > share(tmp_path / "good.png", rendering.GREY) + 0.005


def test_candidates_and_true_lenses_are_marked_where_there_are_any(tmp_path):
    ra, dec = wcs_at(0, 0).pixel_to_world_values([2050.0, 2050.0, 9000.0], [1050.0, 1020.0, 1050.0])
    truth = pa.table({"kind": ["lens", "galaxy", "lens"], "ra": ra, "dec": dec})
    marked = make_run(tmp_path / "marked", candidates=[candidate(1, 2050, 1050), candidate(2, 2150, 1030)])
    bare = make_run(tmp_path / "bare")
    panel.draw_panel(marked[0], marked[1], tmp_path / "marked.png", truth)
    panel.draw_panel(bare[0], bare[1], tmp_path / "bare.png")
    for colour in (panel_views.CANDIDATE, panel_views.TRUE_LENS):
        # The key of candidates is always there; marks are much more.
        assert share(tmp_path / "marked.png", hex_colour(colour)) > 3 * share(tmp_path / "bare.png", hex_colour(colour))
        assert share(tmp_path / "marked.png", hex_colour(colour)) > 1e-4
    assert share(tmp_path / "bare.png", hex_colour(panel_views.TRUE_LENS)) == 0


def test_surveys_and_marks_lie_on_the_pixels_of_the_mosaic(tmp_path):
    ra, dec = wcs_at(0, 0).pixel_to_world_values([2110.0, 9000.0], [1050.0, 1050.0])
    truth = pa.table({"kind": ["lens", "lens"], "ra": ra, "dec": dec})
    run, store = make_run(tmp_path, candidates=[candidate(2, 2150, 1030), candidate(1, 2050, 1050)])
    field = panel._read_field(run, store, truth, top=10)
    assert field.shape == (SIDE, 2 * SIDE) == field.mean.shape[1:]
    assert field.images[1][0][:, :SIDE].mean() == pytest.approx(0, abs=1)
    assert field.images[1][0][:, SIDE:].mean() == pytest.approx(100, abs=1)
    np.testing.assert_allclose(field.candidates, [[50, 50], [150, 30]])  # by rank
    np.testing.assert_allclose(field.lenses, [[110, 50]], atol=1e-6)  # the other is outside
    tile = TileStore.open(store).read_tile("b")
    np.testing.assert_array_equal(field.images[0][2, :, SIDE:], tile.images["lsst"].flux[2])


def test_the_field_starts_at_its_first_pixel_whichever_tile_has_it(tmp_path):
    corners = ((1000 + SIDE, 2000 + SIDE), (1000, 2000))  # a is above and right of b
    here = candidate(1, 2050, 1040, tile_id="b")
    run, store = make_run(tmp_path, corners=corners, candidates=[here])
    field = panel._read_field(run, store, None, top=10)
    assert field.shape == (2 * SIDE, 2 * SIDE) == field.mean.shape[1:]
    assert field.images[1][0][SIDE:, SIDE:].mean() == pytest.approx(0, abs=1)
    assert field.images[1][0][:SIDE, :SIDE].mean() == pytest.approx(100, abs=1)
    np.testing.assert_array_equal(np.isfinite(field.images[1][0]), np.isfinite(field.mean[0]))
    np.testing.assert_allclose(field.candidates, [[50, 40]])


def test_the_enlarged_part_holds_the_best_candidate_that_is_a_lens(tmp_path):
    ra, dec = wcs_at(0, 0).pixel_to_world_values(2150.0, 1040.0)
    truth = pa.table({"kind": ["lens"], "ra": [float(ra)], "dec": [float(dec)]})
    run, store = make_run(tmp_path, candidates=[candidate(1, 2020, 1050), candidate(2, 2152, 1041)])
    field = panel._read_field(run, store, truth, top=10)
    assert panel._interesting(field, 60) == (152 - 30, 41 - 30)
    field = panel._read_field(run, store, None, top=10)
    assert panel._interesting(field, 60) == (0, 20)  # the best candidate, and never beyond the edge


def test_a_translation_to_lsst_is_drawn_in_colour(tmp_path):
    run, store = make_run(tmp_path, bands=("g", "r", "i"))
    panel.draw_panel(run, store, tmp_path / "panel.png")
    assert imread(tmp_path / "panel.png").shape[1] > 2000


@pytest.mark.parametrize("count", [0, 1, 3])
def test_candidate_sheet_grows_with_their_number(tmp_path, count):
    rows = [candidate(k, 2010 + 20 * k, 1040, **stamps(float(k))) for k in range(count)]
    run, _ = make_run(tmp_path, candidates=rows)
    panel.draw_candidates(run, tmp_path / "sheet.png", top=2)
    height, width = imread(tmp_path / "sheet.png").shape[:2]
    assert (width > 2000) == (count > 1)
    assert height > 200


def test_candidates_without_thumbnails_are_grey(tmp_path):
    run, _ = make_run(tmp_path, candidates=[candidate(1, 2050, 1050, **stamps(float("nan")))])
    panel.draw_candidates(run, tmp_path / "sheet.png")
    assert share(tmp_path / "sheet.png", rendering.GREY) > 0.5


def test_colour_depends_on_flux_ratios_and_unknown_is_grey():
    spectrum = np.array([3.0, 2.0, 1.0])
    flux = spectrum[:, None, None] * np.array([[0.5, 5.0], [50.0, np.nan]])
    rgb = rendering.lupton_rgb(flux, np.full(3, 0.1))
    np.testing.assert_allclose(rgb[1, 1], rendering.GREY)
    sky = rendering.lupton_rgb(np.zeros((3, 1, 1)), np.full(3, 0.1))[0, 0]
    np.testing.assert_allclose(sky, sky[0])  # nothing is grey, and dark
    assert sky[0] < 0.1
    np.testing.assert_allclose(rgb[1, 0] / rgb[1, 0, 0], rgb[0, 1] / rgb[0, 1, 0], rtol=0.05)
    assert rgb[1, 0].sum() > rgb[0, 1].sum() > rgb[0, 0].sum() > 0


def test_what_is_not_a_run_is_refused(tmp_path):
    _, store = make_run(tmp_path)
    with pytest.raises(StorageError, match="not a run folder"):
        panel.draw_panel(store, store, tmp_path / "panel.png")
    with pytest.raises(StorageError, match="not a run folder"):
        panel.draw_candidates(store, tmp_path / "sheet.png")
    assert not (tmp_path / "panel.png").exists()


def test_a_field_that_is_too_large_is_refused_before_pixels_are_read(tmp_path, monkeypatch):
    run, store = make_run(tmp_path, corners=((1000, 2000), (21000, 22000)))

    def read(*_, **__):
        raise AssertionError("pixels were read")

    monkeypatch.setattr(TileStore, "read_tile", read)
    monkeypatch.setattr(RunFolder, "read_tile_mosaic", read)
    with pytest.raises(
        StorageError, match=r"^stitching 20096 x 20096 px needs 4621\.\d+ MiB, allowed are 4096\.000 MiB"
    ):
        panel.draw_panel(run, store, tmp_path / "panel.png")
    assert not (tmp_path / "panel.png").exists()
