"""Reading survey FITS: units, zero points, masks, noise maps, and what is refused."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest
from astropy.io import fits

from surveybridge.storage.errors import StorageError
from surveybridge.storage.images import MASK_PLANES, SurveyImage
from tests.storage.fits_files import gaussians, read_mer, read_rubin, tan_wcs, write_mer_file, write_survey_file

SHAPE = (40, 48)
WCS = tan_wcs(SHAPE, 0.2)


@pytest.fixture
def noise():
    return np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)


def rubin(tmp_path, image, **how):
    """Write the same file for g, r and i, and read them."""
    paths = {band: write_survey_file(tmp_path / f"{band}.fits", image, WCS, **how) for band in "gri"}
    return read_rubin(paths)


def test_rubin_image_is_native_float32_in_njy(tmp_path, noise):
    image = rubin(tmp_path, noise, variance=np.full(SHAPE, 2.5), header={"BUNIT": "nJy", "PSFFWHM": 0.77})
    assert image.bands == ("g", "r", "i")
    assert image.flux.dtype == np.dtype("=f4") and image.flux.dtype.isnative
    assert image.mask.dtype == np.uint8
    np.testing.assert_array_equal(image.flux[1], noise)
    np.testing.assert_array_equal(image.variance, 2.5)
    assert image.psf_fwhm == (0.77,) * 3
    assert image.pixel_scale == pytest.approx(0.2)
    assert image.zero_point == 31.4
    assert image.valid.all()


@pytest.mark.parametrize(
    ("header", "factor", "zero_point"),
    [
        ({"BUNIT": "nJy", "MAGZERO": 31.4}, 1.0, 31.4),
        ({"BUNIT": "uJy"}, 1e3, 23.9),
        ({"BUNIT": "adu", "MAGZERO": 27.0}, 10**1.76, 27.0),
        ({"BUNIT": "adu", "FLUXMAG0": 10.0 ** (27.0 / 2.5)}, 10**1.76, 27.0),
        ({"MAGZERO": 24}, 10**2.96, 24.0),
    ],
)
def test_counts_are_calibrated(tmp_path, noise, header, factor, zero_point):
    image = rubin(tmp_path, noise, header=header)
    np.testing.assert_allclose(image.flux[0], noise * factor, rtol=1e-5)
    np.testing.assert_allclose(image.variance[0], factor**2, rtol=1e-5)
    assert image.zero_point == pytest.approx(zero_point)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ({}, "no zero point"),
        ({"BUNIT": "adu"}, "BUNIT adu and no zero point"),
        ({"BUNIT": "mjy"}, "BUNIT 'mjy' is not known"),
        ({"MAGZERO": "27.0"}, r"MAGZERO is '27.0' \(str\), expected a number"),
        ({"MAGZERO": True}, "expected a number"),
        ({"MAGZERO": 1.0e5}, "100000 is not a plausible AB zero point"),
        ({"BUNIT": "nJy", "MAGZERO": 27.0}, "means a zero point of 31.4 but MAGZERO is 27"),
        ({"MAGZERO": 27.0, "MAGSYS": "VEGA"}, "MAGSYS is VEGA, expected AB"),
        ({"BUNIT": "adu", "FLUXMAG0": -3.0}, "FLUXMAG0 -3 must be positive"),
    ],
)
def test_a_wrong_calibration_is_refused_in_one_line(tmp_path, noise, header, complaint):
    with pytest.raises(StorageError, match=complaint) as error:
        rubin(tmp_path, noise, header=header)
    assert "g.fits[IMAGE]" in str(error.value)
    assert "\n" not in str(error.value)


def test_mask_planes_are_found_by_name(tmp_path, noise):
    mask = np.zeros(SHAPE, np.int32)
    mask[0, :4] = [1 << 7, 1 << 3, 1 << 5, (1 << 7) | (1 << 5)]
    names = {"MP_BAD": 7, "MP_SAT": 3, "HIERARCH MP_DETECTED": 5, "HIERARCH MP_NO_DATA": 8}
    image = rubin(tmp_path, noise, mask=mask, mask_header=names)
    assert image.mask[0, 0, :4].tolist() == [MASK_PLANES["BAD"], MASK_PLANES["SAT"], 0, MASK_PLANES["BAD"]]
    assert "DETECTED" in image.provenance["g.mask"]


def test_nan_is_no_data_and_lost_variance_is_bad(tmp_path, noise):
    variance = np.ones(SHAPE)
    variance[1, 1], variance[2, 2] = np.nan, 0.0
    noise[3, 3] = np.nan
    image = rubin(tmp_path, noise, variance=variance)
    assert image.mask[0, 1, 1] == image.mask[0, 2, 2] == MASK_PLANES["BAD"]
    assert image.mask[0, 3, 3] == MASK_PLANES["NO_DATA"]
    assert int((image.mask[0] != 0).sum()) == 3
    np.testing.assert_array_equal(np.isnan(image.flux), (image.mask & MASK_PLANES["NO_DATA"]) != 0)
    np.testing.assert_array_equal(np.isnan(image.variance), np.isnan(image.flux))


def test_rice_compressed_is_plain_within_quantisation(tmp_path, noise):
    plain = rubin(tmp_path, noise)
    (tmp_path / "rice").mkdir()
    rice = rubin(tmp_path / "rice", noise, compress=True)
    with fits.open(tmp_path / "rice" / "g.fits") as hdus:
        assert isinstance(hdus["IMAGE"], fits.CompImageHDU)
    np.testing.assert_allclose(rice.flux, plain.flux, atol=0.2)
    assert rice.wcs_header == plain.wcs_header


def test_urls_are_read_through_fsspec(tmp_path, noise):
    local = write_survey_file(tmp_path / "vis.fits", noise, WCS)
    with fsspec.open("memory://sky/vis.fits", "wb") as remote:
        remote.write(Path(local).read_bytes())
    np.testing.assert_array_equal(read_mer("memory://sky/vis.fits").flux[0], noise)


def mer_file(tmp_path, noise, **bands):
    rms = np.full(SHAPE, 0.5)
    rms[0, 0] = 1e16
    both = {
        "VIS": {"flux": noise, "rms": rms, "magzero": 24.6, "psf": gaussians((21, 21), [(10, 10)], 0.85)},
        "DES_G": {"flux": noise, "rms": rms, "magzero": 30.0},
    }
    return write_mer_file(tmp_path / "mer.fits", both | bands, tan_wcs(SHAPE, 0.1))


def test_mer_pixels_become_njy_by_magzero_and_bad_rms_is_masked(tmp_path, noise):
    image = read_mer(mer_file(tmp_path, noise))
    factor = 10 ** ((31.4 - 24.6) / 2.5)
    np.testing.assert_allclose(image.flux[0], noise * factor, rtol=1e-5)
    assert image.variance[0, 5, 5] == pytest.approx((0.5 * factor) ** 2, rel=1e-5)
    assert image.mask[0, 0, 0] == MASK_PLANES["BAD"] and np.isfinite(image.variance[0, 0, 0])
    assert image.zero_point == 24.6
    assert image.psf_fwhm[0] == pytest.approx(2.3548 * (0.085**2 - 0.1**2 / 12) ** 0.5, rel=0.02)


def test_rms_map_may_be_a_file_of_its_own(tmp_path, noise):
    flux, rms = tmp_path / "flux.fits", tmp_path / "rms.fits"
    header = WCS.to_header()
    header["MAGZERO"] = 24.6
    fits.PrimaryHDU(noise, header=header).writeto(flux)
    with pytest.raises(StorageError, match="no noise map"):
        read_mer(str(flux))
    fits.PrimaryHDU(np.full(SHAPE, 2.0, np.float32)).writeto(rms)
    assert read_mer(str(flux), str(rms)).variance[0, 0, 0] == pytest.approx((2 * 10**2.72) ** 2, rel=1e-5)


def test_ground_rms_maps_are_not_trusted(tmp_path, noise):
    rms = np.full(SHAPE, 4.0)
    path = mer_file(
        tmp_path,
        noise,
        DES_R={"flux": noise, "rms": rms, "magzero": 30.0},
        DES_I={"flux": noise, "rms": rms, "magzero": 30.0},
    )
    image = read_rubin({band: f"{path}[DES_{band.upper()}_FLUX]" for band in "gri"})
    factor = 10 ** ((31.4 - 30.0) / 2.5)
    assert np.sqrt(image.variance[1, 5, 5]) == pytest.approx(factor, rel=0.1)
    assert "sky MAD" in image.provenance["r.noise"] and "DES_R_RMS, not used" in image.provenance["r.noise"]
    trusted = read_rubin({band: f"{path}[DES_{band.upper()}_FLUX]" for band in "gri"}, noise="file")
    assert np.sqrt(trusted.variance[1, 5, 5]) == pytest.approx(4 * factor, rel=1e-4)


def test_psf_width_can_be_given(tmp_path, noise):
    assert read_mer(mer_file(tmp_path, noise), psf_fwhm=0.3).psf_fwhm == (0.3,)
    assert np.isnan(rubin(tmp_path, noise).psf_fwhm[0])


def test_unclear_extension_lists_what_there_is(tmp_path, noise):
    path = mer_file(tmp_path, noise)
    with pytest.raises(
        StorageError, match=r"no image extension DES_Z_FLUX; it has 1 VIS_FLUX \(40 x 48 float32, flux\)"
    ):
        read_mer(f"{path}[DES_Z_FLUX]")
    with pytest.raises(
        StorageError, match=r"which HDU is the flux of band g\? It has 1 VIS_FLUX.*name it as .*\[EXTNAME\]"
    ):
        read_rubin({band: path for band in "gri"})


@pytest.mark.parametrize("content", [None, b"", b"not FITS at all" * 500])
def test_unreadable_files_are_named(tmp_path, content):
    path = tmp_path / "broken.fits"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StorageError, match=r"broken\.fits: (no such file|cannot be read as FITS)"):
        read_mer(str(path))


def test_a_truncated_file_is_refused(tmp_path, noise):
    path = write_survey_file(tmp_path / "vis.fits", noise, WCS)
    whole = Path(path).read_bytes()
    (tmp_path / "cut.fits").write_bytes(whole[: len(whole) // 4])
    with pytest.raises(StorageError, match=r"cut\.fits"):
        read_mer(str(tmp_path / "cut.fits"))


@pytest.mark.parametrize("damaged", ["IMAGE", "MASK", "VARIANCE"])
def test_what_is_read_must_be_what_its_checksum_says(tmp_path, noise, damaged):
    path = write_survey_file(tmp_path / "vis.fits", noise, WCS)
    with fits.open(path, mode="update", checksum=True) as hdus:
        for hdu in hdus:
            hdu.add_checksum()
    assert read_mer(path).valid.all()
    with fits.open(path) as hdus:
        start = hdus[damaged].fileinfo()["datLoc"]
    content = bytearray(Path(path).read_bytes())
    content[start + 5] ^= 1
    Path(path).write_bytes(content)
    with pytest.raises(StorageError, match=rf"vis\.fits\[{damaged}\]: DATASUM is \d+ but its data sum to \d+"):
        read_mer(path)


def test_bands_must_share_shape_grid_and_names(tmp_path, noise):
    paths = {band: write_survey_file(tmp_path / f"{band}.fits", noise, WCS) for band in "gri"}
    with pytest.raises(StorageError, match="no file for band i: given g,r, needed g,r,i"):
        read_rubin({"g": paths["g"], "r": paths["r"]})
    with pytest.raises(StorageError, match="given for 2 bands"):
        read_rubin(paths | {"r": paths["g"]})
    small = write_survey_file(tmp_path / "small.fits", noise[:20], WCS)
    with pytest.raises(StorageError, match=r"20 x 48 pixels but .*g\.fits\[IMAGE\] has 40 x 48"):
        read_rubin(paths | {"r": small})
    moved = write_survey_file(tmp_path / "moved.fits", noise, tan_wcs(SHAPE, 0.2, ra=53.001))
    with pytest.raises(StorageError, match="px off that of"):
        read_rubin(paths | {"i": moved})
    swapped = write_survey_file(tmp_path / "s.fits", noise, WCS, header={"BUNIT": "nJy", "FILTER": "r"})
    with pytest.raises(StorageError, match="its FILTER is r but it is given for band g"):
        read_rubin(paths | {"g": swapped})


def test_an_image_without_a_usable_pixel_is_refused(tmp_path, noise):
    with pytest.raises(StorageError, match=r"0 of 1920 pixels are usable"):
        rubin(tmp_path, noise * np.nan)


def test_an_image_whose_parts_do_not_fit_is_refused(tmp_path, noise):
    image = rubin(tmp_path, noise)
    with pytest.raises(StorageError, match=r"mask has shape \(2, 40, 48\)"):
        SurveyImage(**{**image.__dict__, "mask": image.mask[:2]})
    with pytest.raises(StorageError, match="psf_fwhm has 1 values for 3 bands"):
        SurveyImage(**{**image.__dict__, "psf_fwhm": (0.7,)})
