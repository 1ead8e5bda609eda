"""Stores as they would be through a worse seeing and with more noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy

from surveybridge.__main__ import main
from surveybridge.storage.field_images import Field
from surveybridge.storage.field_update import Slot, put_field
from surveybridge.storage.fields import FieldGrid
from surveybridge.storage.images import MASK_PLANES, SurveyImage
from surveybridge.storage.ingest import cut_tile, tile_boxes
from surveybridge.storage.psf import Gaussian, Moffat, Psf
from surveybridge.storage.tiles import Tile, TileStore
from tests.storage.fits_files import tan_wcs

galsim = pytest.importorskip("galsim", reason="needs the sim extra: galsim")

pytestmark = pytest.mark.long

SIDE, SCALE, SIGMA = 192, 0.2, 3.0


def sky(profile) -> np.ndarray:
    """Two stars and a galaxy, [H, W] nJy."""
    image = galsim.ImageD(SIDE, SIDE, scale=SCALE)
    for x, y, flux, radius in ((60, 71, 4e4, 0.0), (131, 88, 9e3, 0.0), (97, 140, 3e4, 0.5)):
        body = galsim.Exponential(half_light_radius=radius).shear(g2=0.3) if radius else galsim.DeltaFunction()
        seen = galsim.Convolve(body, profile) * flux
        image.array[...] += seen.drawImage(nx=SIDE, ny=SIDE, scale=SCALE, offset=(x - 95.5, y - 95.5)).array
    return image.array


def noise(correlated: bool, seed: int = 5) -> np.ndarray:
    """Noise of `SIGMA` [H, W], white or with a correlation r^lag along each axis."""
    white = np.random.default_rng(seed).normal(size=(SIDE, SIDE))
    for axis in (0, 1) if correlated else ():
        white = scipy.signal.lfilter([np.sqrt(1 - 0.4**2)], [1, -0.4], white, axis=axis)
    return SIGMA * white / white.std()


def image_of(flux: np.ndarray, psf: Psf | None = None, correlation: float = 0.0) -> SurveyImage:
    psf = psf or Gaussian(0.7)
    planes = np.stack([flux, 2 * flux]).astype(np.float32)
    return SurveyImage(
        "ground", ("g", "r"), planes, np.full_like(planes, SIGMA**2), np.zeros(planes.shape, np.uint8),
        tan_wcs((SIDE, SIDE), SCALE).to_header_string(), SCALE, psf_fwhm=(psf.fwhm,) * 2, zero_point=31.4,
        noise_correlation=(correlation,) * 2, psf_wing=(psf.wing,) * 2, psf_model=(psf,) * 2,
    )  # fmt: skip


def store_of(folder: Path, image: SurveyImage, tile_size: int = 96, halo: int = 64) -> str:
    field, store = Field({"ground": image}, "ground"), TileStore.create(str(folder))
    store.write_manifest([store.write_tile(cut_tile(field, box)) for box in tile_boxes((SIDE, SIDE), tile_size, halo)])
    return str(folder)


def degrade(store: str, out: Path, *more: str) -> dict[str, Tile]:
    assert main(["degrade", "--store", store, "--out", str(out), *more]) == 0
    found = TileStore.open(str(out))
    return {tile: found.read_tile(tile) for tile in found.manifest()["tile_id"].to_pylist()}


def mosaic(tiles: dict[str, Tile], plane: str = "flux") -> np.ndarray:
    """The cores of tiles side by side, [C, H, W]."""
    whole = np.full((2, SIDE, SIDE), np.nan)
    for tile in tiles.values():
        (y, x), (height, width), (y0, y1, x0, x1) = tile.core_origin, tile.core_shape, tile.core
        whole[:, y : y + height, x : x + width] = getattr(tile.images["ground"], plane)[:, y0:y1, x0:x1]
    return whole


def test_the_result_is_what_galsim_draws_through_the_wider_psf(tmp_path):
    store = store_of(tmp_path / "tiles", image_of(sky(galsim.Gaussian(fwhm=0.7))))
    wanted = Moffat(1.1, 3.5)
    seen = mosaic(degrade(store, tmp_path / "worse", "--psf", f"ground.g={wanted}"))
    draws = sky(galsim.Moffat(fwhm=1.1, beta=3.5))
    added = SIGMA * 5  # what is added lies below SIGMA a pixel
    assert np.abs(seen[0] - draws).max() < 0.01 * draws.max() + added
    assert np.abs(seen[0] - draws)[60:85, 50:75].std() < 1.1 * SIGMA
    assert np.array_equal(seen[1], 2 * sky(galsim.Gaussian(fwhm=0.7)).astype(np.float32))  # nothing was asked of r


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_noise_has_the_level_that_is_asked_for_and_the_spectrum_of_before(tmp_path, correlated, factor):
    image = image_of(noise(correlated), correlation=0.4 if correlated else 0.0)
    tiles = degrade(
        store_of(tmp_path / "tiles", image), tmp_path / "worse",
        "--psf", "ground.g=1.2", "--noise", f"ground.g={factor}",
    )  # fmt: skip
    inner = np.s_[32:-32, 32:-32]
    seen = mosaic(tiles)[0][inner]
    assert seen.std() / (factor * SIGMA) == pytest.approx(1, abs=0.04)
    lag = np.mean(seen[:, 1:] * seen[:, :-1]) / seen.var()
    assert lag == pytest.approx(0.4 if correlated else 0.0, abs=0.05)
    # noise on the scale of 16 pixels: blurring takes nothing of it, so there is no more than what is asked for
    blocks = seen.reshape(8, 16, 8, 16).mean((1, 3)).std()
    before = image.flux[0][inner].reshape(8, 16, 8, 16).mean((1, 3)).std()
    assert blocks / before == pytest.approx(factor, rel=0.3)
    assert np.allclose(mosaic(tiles, "variance")[0][inner], (factor * SIGMA) ** 2, rtol=0.01)
    degraded = next(iter(tiles.values())).images["ground"]
    assert degraded.psf_fwhm == pytest.approx((1.2, 0.7)) and degraded.noise_correlation == image.noise_correlation


def test_neighbours_have_the_same_pixels_where_they_overlap(tmp_path):
    flux = sky(galsim.Gaussian(fwhm=0.7)) + noise(False)
    tiles = degrade(store_of(tmp_path / "tiles", image_of(flux)), tmp_path / "worse", "--psf", "ground.r=0.95")
    one, other = (tiles[name].images["ground"] for name in ("t0000", "t0001"))
    (_, left), (_, right) = tiles["t0000"].origin, tiles["t0001"].origin
    common = one.flux.shape[2] - (right - left)
    assert common > 60  # halos of 64 pixels, less what blurring takes, on both sides
    ours, theirs = one.flux[:, :, right - left :], other.flux[:, :, :common]
    assert np.allclose(ours[0], theirs[0], atol=0) and np.abs(ours[1] - theirs[1]).max() < 1e-2
    fields = TileStore.open(str(tmp_path / "worse")).manifest()
    assert set(fields["field"].to_pylist()) == set(
        TileStore.open(str(tmp_path / "tiles")).manifest()["field"].to_pylist()
    )


def test_masks_stay_and_grow_and_no_data_stays_nan(tmp_path):
    image = image_of(sky(galsim.Gaussian(fwhm=0.7)))
    image.mask[0, 40:44, 50:60] = MASK_PLANES["NO_DATA"]
    image.flux[0, 40:44, 50:60] = image.variance[0, 40:44, 50:60] = np.nan
    tiles = degrade(
        store_of(tmp_path / "tiles", image), tmp_path / "worse", "--psf", "ground.g=1", "--noise", "ground.r=2"
    )
    seen, mask = mosaic(tiles), mosaic(tiles, "mask").astype(int)
    assert np.array_equal(np.isnan(seen[0]), image.mask[0] == MASK_PLANES["NO_DATA"])
    assert mask[0, 38, 55] == MASK_PLANES["CLIPPED_EDGE"] and mask[0, 100, 100] == 0
    assert not mask[1].any() and np.isfinite(seen[1]).all()


def test_the_seed_decides_the_noise(tmp_path):
    store = store_of(tmp_path / "tiles", image_of(noise(False)), tile_size=SIDE, halo=0)
    more = ("--noise", "ground.g=1.5")
    first, again, other = (
        mosaic(degrade(store, tmp_path / name, *more, "--seed", seed))
        for name, seed in (("first", "3"), ("again", "3"), ("other", "4"))
    )
    assert np.array_equal(first, again)
    apart = (first - other)[0]
    assert apart.std() == pytest.approx(np.sqrt(2 * (1.5**2 - 1)) * SIGMA, rel=0.03)
    # written once more into the same store, the field takes the place of the one that is there
    assert list(degrade(store, tmp_path / "first", *more)) == ["t0000"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "nothing would change"),
        (("--psf", "ground.g=0.5"), "0.7 arcsec FWHM cannot become gaussian:0.5"),
        (("--psf", "ground.z=1.0"), "ground.z: no tile"),
        (("--psf", "space.g=1.0"), "there are ground.g, ground.r"),
        (("--psf", "ground.g=moffat:1"), "moffat:FWHM,BETA"),
        (("--noise", "ground.g=0.8"), "0.8: noise is added, never taken away"),
        (("--noise", "ground.g=more"), "a number above 0"),
        (("--psf", "ground.g=1.0", "ground.g=1.1"), "given twice"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, capsys, more, said):
    store = store_of(tmp_path / "tiles", image_of(noise(False)))
    assert main(["degrade", "--store", store, "--out", str(tmp_path / "worse"), *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "worse").exists()


def test_a_halo_that_is_too_narrow_and_a_psf_that_is_not_known_are_refused(tmp_path, capsys):
    image = image_of(noise(False))
    narrow = store_of(tmp_path / "narrow", image, halo=8)
    assert main(["degrade", "--store", narrow, "--out", str(tmp_path / "worse"), "--psf", "ground.g=1.2"]) == 2
    assert "8 pixels around them" in capsys.readouterr().err
    unknown = replace(image, psf_fwhm=(np.nan,) * 2, psf_wing=(np.nan,) * 2, psf_model=(None,) * 2)
    store = store_of(tmp_path / "unknown", unknown)
    assert main(["degrade", "--store", store, "--out", str(tmp_path / "worse"), "--psf", "ground.g=1.2"]) == 2
    assert "PSF is not known" in capsys.readouterr().err
    assert main(["degrade", "--store", store, "--out", store, "--noise", "ground.g=2"]) == 2
    assert "is the store that is read" in capsys.readouterr().err


def test_a_store_that_is_degraded_again_has_the_noise_that_it_states(tmp_path):
    store = store_of(tmp_path / "tiles", image_of(noise(False)), tile_size=SIDE, halo=0)
    more = ("--noise", "ground.g=1.5", "ground.r=1.2")
    for number in range(3):
        tiles = degrade(store, tmp_path / f"worse{number}", *more)
        store = str(tmp_path / f"worse{number}")
    stated = np.sqrt(mosaic(tiles, "variance")[0].mean())
    assert stated == pytest.approx(1.5**3 * SIGMA, rel=1e-3)
    assert mosaic(tiles)[0].std() / stated == pytest.approx(1, abs=0.03)
    said = tiles["t0000"].images["ground"].provenance["g.degraded"]
    assert said.count("then noise to x 1.5 of before") == 3


def one_tile(tile: Tile) -> Callable[[FieldGrid], list[Tile]]:
    return lambda _: [tile]


def two_fields(folder: Path) -> str:
    """The fields a and b of one tile each, the same empty image a degree apart."""
    store, (box,) = TileStore.create(str(folder)), tile_boxes((SIDE, SIDE), SIDE, 0)
    for number, name in enumerate("ab"):
        header = tan_wcs((SIDE, SIDE), SCALE, ra=53.0 + number).to_header_string()
        field = Field({"ground": replace(image_of(np.zeros((SIDE, SIDE))), wcs_header=header)}, "ground")
        tile = cut_tile(field, box)
        tile = replace(tile, field=name, tile_id=f"{name}-0")
        put_field(store, FieldGrid("", tile.grid_id, header, (SIDE, SIDE), SIDE, 0), Slot(name), one_tile(tile))
    return str(folder)


def test_fields_have_noise_of_their_own(tmp_path):
    tiles = degrade(two_fields(tmp_path / "tiles"), tmp_path / "worse", "--noise", "ground.g=2")
    one, other = (tiles[name].images["ground"].flux[0].ravel() for name in ("a-0", "b-0"))
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / SIDE  # of 192 x 192 pixels by chance: 1 / 192


def test_a_grid_of_another_name_is_refused_before_any_field_is_written(tmp_path, capsys):
    store = two_fields(tmp_path / "tiles")
    tile = replace(TileStore.open(store).read_tile("b-0"), tile_id="t0000")
    there = TileStore.create(str(tmp_path / "there"))
    there.write_manifest([there.write_tile(replace(tile, field=tile.grid_id))])
    assert main(["degrade", "--store", store, "--out", str(tmp_path / "there"), "--noise", "ground.g=2"]) == 2
    assert "and field b would have the same one" in capsys.readouterr().err
    assert TileStore.open(str(tmp_path / "there")).manifest()["tile_id"].to_pylist() == ["t0000"]


def test_a_psf_that_is_too_wide_for_a_kernel_is_refused_as_that(tmp_path, capsys):
    store = store_of(tmp_path / "tiles", image_of(noise(False)))
    assert main(["degrade", "--store", store, "--out", str(tmp_path / "worse"), "--psf", "ground.g=8"]) == 2
    assert "kernel of 20 pixels, 4 arcsec, to each side; give a PSF that is less wide" in capsys.readouterr().err
