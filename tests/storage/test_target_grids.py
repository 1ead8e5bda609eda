"""Grids that no image of the wanted survey gives: around an image, around a place, and from a header."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits

from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_images import stated_grid
from surveybridge.storage.grids import pixel_scale, pixel_to_pixel
from surveybridge.storage.target_grids import grid_around, grid_at, grid_of_file
from tests.storage.fits_files import LSST, tan_wcs, write_survey_file


def patch(y: int, x: int, shape=(120, 150), **how):
    """A part of a tract whose tangent point is pixel (2000, 2000)."""
    wcs = tan_wcs(shape, 0.2, **how)
    wcs.wcs.crpix = [2000.5 - x, 2000.5 - y]
    return wcs, shape


def test_a_grid_around_a_patch_holds_all_of_it_and_has_the_tangent_point_of_its_tract():
    wcs, shape = patch(1200, 2900, rotation=20.0)
    grid = grid_around("euclid", wcs, shape, 0.1, "patch")
    np.testing.assert_allclose(grid.wcs.wcs.crval, wcs.wcs.crval, rtol=0, atol=1e-12)
    assert pixel_scale(grid.wcs_header) == pytest.approx(0.1)
    height, width = shape
    edge_y, edge_x = np.meshgrid([-0.5, height / 2, height - 0.5], [-0.5, width / 2, width - 0.5], indexing="ij")
    y, x = pixel_to_pixel(wcs, grid.wcs, edge_y, edge_x)
    for values, size in ((y, grid.shape[0]), (x, grid.shape[1])):
        assert -0.5 - 1e-5 <= values.min() < 0.5 and size - 1.5 < values.max() <= size - 0.5 + 1e-5


def test_grids_around_the_patches_of_a_tract_are_parts_of_one():
    (one, shape), (two, _) = patch(1200, 2900), patch(1700, 3110)
    first, second = (grid_around("euclid", wcs, shape, 0.1, "patch") for wcs in (one, two))
    y, x = pixel_to_pixel(first.wcs, second.wcs, np.array([0.0, 7.0]), np.array([0.0, 31.0]))
    np.testing.assert_allclose([y - np.round(y), x - np.round(x)], 0, atol=1e-6)
    assert abs(round(y[0])) > 500 and first.grid_id != second.grid_id


def test_a_grid_around_an_image_with_distortions_touches_the_sky_in_its_middle():
    wcs, shape = tan_wcs((300, 260), 0.2), (300, 260)
    wcs.wcs.ctype = ["RA---ZEA", "DEC--ZEA"]
    wcs.wcs.crval = [53.4, -28.3]
    grid = grid_around("euclid", wcs, shape, 0.1, "image")
    assert [str(kind) for kind in grid.wcs.wcs.ctype] == ["RA---TAN", "DEC--TAN"]
    np.testing.assert_allclose(grid.wcs.wcs.crval, wcs.all_pix2world(129.5, 149.5, 0), atol=1e-9)


def test_a_grid_at_a_place_is_square_and_centred_there():
    grid = grid_at("euclid", 150.1, -2.2, 64.05, 0.1)
    assert grid.shape == (641, 641)
    centre = SkyCoord(*grid.wcs.all_pix2world(320, 320, 0), unit="deg")
    assert centre.separation(SkyCoord(150.1, -2.2, unit="deg")).arcsec < 1e-6
    north = SkyCoord(*grid.wcs.all_pix2world(320, 330, 0), unit="deg")
    assert centre.position_angle(north).wrap_at("180d").deg == pytest.approx(0, abs=1e-6)
    for side in (0.0, 1e9):
        with pytest.raises(StorageError, match="give another size or scale"):
            grid_at("euclid", 150.1, -2.2, side, 0.1)


@pytest.mark.parametrize("ending", [".fits", ".hdr"])
def test_a_header_gives_the_grid_with_or_without_pixels(tmp_path, ending):
    wcs, shape = tan_wcs((90, 70), 0.1, rotation=5.0), (90, 70)
    path = tmp_path / f"grid{ending}"
    header = wcs.to_header()
    header["NAXIS1"], header["NAXIS2"] = 70, 90
    if ending == ".hdr":
        path.write_text("\n".join(card.image.rstrip() for card in header.cards) + "\nEND\n")
        grid = grid_of_file("euclid", str(path))
    else:
        write_survey_file(path, np.zeros(shape), wcs)
        grid = grid_of_file("euclid", f"{path}[IMAGE]")
    assert grid.shape == shape
    np.testing.assert_allclose(grid.wcs.all_pix2world(3, 8, 0), wcs.all_pix2world(3, 8, 0), rtol=0, atol=1e-10)


def test_headers_that_say_no_grid_are_refused(tmp_path):
    with pytest.raises(StorageError, match="no such file"):
        grid_of_file("euclid", str(tmp_path / "absent.hdr"))
    (tmp_path / "half.hdr").write_text("CTYPE1  = 'RA---TAN'\nCTYPE2  = 'DEC--TAN'\nNAXIS1  = 100\n")
    with pytest.raises(StorageError, match="NAXIS1 100 and NAXIS2 None"):
        grid_of_file("euclid", str(tmp_path / "half.hdr"))
    fits.HDUList([fits.PrimaryHDU()]).writeto(tmp_path / "empty.fits")
    with pytest.raises(StorageError, match="no image of two axes"):
        grid_of_file("euclid", str(tmp_path / "empty.fits"))


def test_the_grid_of_an_image_is_that_which_is_read(tmp_path):
    wcs = tan_wcs((60, 50), 0.2, rotation=3.0)
    path = write_survey_file(tmp_path / "g.fits", np.zeros((60, 50)), wcs)
    header, shape = stated_grid(LSST, "g", path)
    assert shape == (60, 50)
    np.testing.assert_allclose(
        grid_around("lsst", wcs, shape, 0.2, "g").wcs.wcs.crval, wcs.wcs.crval, rtol=0, atol=1e-12
    )
    assert "TAN" in header
