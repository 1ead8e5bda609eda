"""Masks: what their bits mean, exactly, and refusal where nobody says it."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from surveybridge.storage.errors import StorageError
from surveybridge.storage.images import MASK_PLANES
from tests.storage.test_fits_hdus import FLUX, SHAPE, VARIANCE, WCS, hdu, read, write

BAD, SAT, NO_DATA, EDGE = (MASK_PLANES[name] for name in ("BAD", "SAT", "NO_DATA", "CLIPPED_EDGE"))


def masked(tmp_path, mask, name="MASK", **cards):
    """Read an image with this mask beside it."""
    return read(write(tmp_path / "m.fits", hdu(FLUX, "IMAGE"), hdu(mask, name, **cards), hdu(VARIANCE, "VARIANCE")))


def pixels(values, dtype=np.int32):
    """A mask with these values at the start of its first row."""
    mask = np.zeros(SHAPE, dtype)
    mask[0, : len(values)] = values
    return mask


AFW = ["DETECTED", "SAT", "CR", "INTRP", "NO_DATA", "EDGE", "BAD", "SUSPECT", "UNMASKEDNAN"]
NEW = [
    "DETECTED",
    "SATURATED",
    "COSMIC_RAY",
    "INTERPOLATED",
    "NO_DATA",
    "DETECTION_EDGE",
    "BAD",
    "SUSPECT",
    "UNMASKED_NAN",
]
MEANT = [0, SAT, BAD, 0, NO_DATA, EDGE, BAD, 0, NO_DATA]


@pytest.mark.parametrize("cards", ["MP_", "MSKM as values", "MSKM as bits"])
def test_planes_of_both_kinds_of_cards_and_both_sets_of_names(tmp_path, cards):
    names, shift = (AFW, 3) if cards == "MP_" else (NEW, 3)
    if cards == "MP_":
        header: dict[str, str | int] = {f"HIERARCH MP_{name}": shift + k for k, name in enumerate(names)}
    else:
        header = {f"MSKN{k:04d}": name for k, name in enumerate(names, 1)} | {
            f"MSKM{k:04d}": 1 << (shift + k - 1) if cards.endswith("values") else shift + k - 1
            for k in range(1, len(names) + 1)
        }
    image = masked(tmp_path, pixels([1 << (shift + k) for k in range(len(names))]), **header)
    assert image.mask[0, 0, : len(names)].tolist() == MEANT
    assert np.isnan(image.flux[0, 0, [4, 8]]).all()
    for name in (names[0], names[3], names[7]):
        assert name in image.provenance["r.mask"]
    share = f"{names[1]} {1 / FLUX.size:.2%}"
    assert share in image.provenance["r.mask"]
    assert dict(image.readings[0].mask_shares)[names[1]] == pytest.approx(1 / FLUX.size)


def test_a_bit_that_no_card_names_makes_a_pixel_unusable(tmp_path):
    image = masked(tmp_path, pixels([1, 2, 64]), MP_INTRP=0, MP_REJ=1)
    assert image.mask[0, 0, :3].tolist() == [0, 0, BAD]
    assert "bit 6 without a name" in image.provenance["r.mask"]


def test_planes_beyond_the_31st_are_in_a_second_mask(tmp_path):
    """lsst.images writes the rest of the planes into MASK,2."""
    first = hdu(pixels([1]), "MASK", MSKN0001="CLIPPED", MSKM0001=1)
    second = hdu(pixels([0, 1, 2]), "MASK", 2, MSKN0001="SATURATED", MSKM0001=1, MSKN0002="DETECTED", MSKM0002=2)
    hdus = [hdu(FLUX, "IMAGE"), first, second, hdu(VARIANCE, "VARIANCE"), hdu(FLUX[:9], "APERTURE_CORRECTION")]
    assert read(write(tmp_path / "m.fits", *hdus)).mask[0, 0, :3].tolist() == [0, SAT, 0]
    # of two images, the second mask is that of the second
    path = write(tmp_path / "two.fits", *hdus, hdu(FLUX, "IMAGE", 2))
    assert read(f"{path}[IMAGE,1]").mask[0, 0, :3].tolist() == [0, 0, 0]
    assert read(f"{path}[IMAGE,2]").mask[0, 0, :3].tolist() == [0, SAT, 0]


@pytest.mark.parametrize(
    ("dtype", "bit"),
    [(np.int32, 31), (np.int64, 40), (np.int64, 62), (np.int64, 63), (np.uint64, 63), (np.uint32, 31), (np.uint16, 15)],
)
def test_high_bits_are_exact(tmp_path, dtype, bit):
    values = np.array([1 << bit, (1 << bit) | 1, 1], np.uint64).astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
    image = masked(tmp_path, pixels(values, dtype), MP_SAT=bit, MP_INTRP=0)
    assert image.mask[0, 0, :4].tolist() == [SAT, SAT, 0, 0]


def test_afws_negative_card_and_value_of_the_last_bit(tmp_path):
    image = masked(tmp_path, pixels([-(1 << 31)]), MSKN0031="SATURATED", MSKM0031=-(1 << 31))
    assert image.mask[0, 0, :2].tolist() == [SAT, 0]


@pytest.mark.parametrize("values", [[1, 2, 4], [8, 16], [3, 5], [1, 512]])
def test_a_mask_of_several_bits_that_nobody_names_is_refused(tmp_path, values):
    with pytest.raises(
        StorageError, match=r"m\.fits\[MASK\]: a mask with \d values beside 0 .*no card MP_<NAME>"
    ) as caught:
        masked(tmp_path, pixels(values))
    assert "\n" not in str(caught.value) and "--mask" in str(caught.value)


@pytest.mark.parametrize("value", [1, 2, 255, 6])
def test_a_mask_of_one_value_is_one_of_bad_pixels(tmp_path, value):
    image = masked(tmp_path, pixels([value, 0, value], np.uint8))
    assert image.mask[0, 0, :4].tolist() == [BAD, 0, BAD, 0]


def test_data_quality_is_usable_only_where_it_is_zero(tmp_path):
    image = masked(tmp_path, pixels([4, 0, 4096, 1]), "DQ")
    assert image.mask[0, 0, :4].tolist() == [BAD, 0, BAD, BAD]


def test_a_mask_of_real_numbers_must_be_whole_and_nan_is_unusable(tmp_path):
    image = masked(tmp_path, pixels([np.nan, 2, 0, 4], np.float32), MP_SAT=1, MP_INTRP=2)
    assert image.mask[0, 0, :4].tolist() == [NO_DATA, SAT, 0, 0]
    assert "NaN" in image.provenance["r.mask"]
    for wrong in (0.5, -1.0, 2.0**60, np.inf):
        mask = pixels([wrong], np.float64)
        if np.isinf(wrong):
            assert masked(tmp_path, mask).mask[0, 0, 0] == NO_DATA
            continue
        with pytest.raises(StorageError, match=r"a mask of real numbers .* are not whole numbers from 0 up"):
            masked(tmp_path, mask)


@pytest.mark.parametrize("value", ["three", 2.5, True, 64])
def test_a_card_that_names_no_bit_is_refused(tmp_path, value):
    with pytest.raises(StorageError, match=r"m\.fits\[MASK\]: .*(MP_SAT is|SAT = 64 is no bit)"):
        masked(tmp_path, pixels([1]), MP_SAT=value)


def write_map(path, data, wcs=WCS, **cards):
    header = fits.Header() if wcs is None else wcs.to_header()
    header.update(cards)
    fits.PrimaryHDU(data, header).writeto(path, overwrite=True)
    return str(path)


def test_euclids_flag_maps_have_their_documented_bits(tmp_path):
    image = write(tmp_path / "vis.fits", hdu(FLUX, "SCI"))
    flags = pixels([1, 1 << 3, 1 << 5, 1 << 22, 1 << 24, 1 << 18, 1 << 4])
    known = write_map(tmp_path / "EUC_MER_MOSAIC-VIS-FLAG_TILE102018665-B260B9_00.00.fits", flags)
    read_as = read(image, maps={"mask": {"r": known}})
    assert read_as.mask[0, 0, :8].tolist() == [BAD, SAT, 0, NO_DATA, 0, 0, BAD, 0]
    assert "GHOST" in read_as.provenance["r.mask"] and "VIS-FLAG" in read_as.provenance["r.mask"]
    # the same bits of a file that nobody knows
    with pytest.raises(StorageError, match="a mask with 7 values beside 0"):
        read(image, maps={"mask": {"r": write_map(tmp_path / "flags.fits", flags)}})


def test_a_mask_in_a_file_of_its_own_counts_instead_of_that_in_the_image(tmp_path):
    path = write(tmp_path / "m.fits", hdu(FLUX, "IMAGE"), hdu(pixels([1, 2, 4]), "MASK"), hdu(VARIANCE, "VARIANCE"))
    own = write_map(tmp_path / "own.fits", pixels([0, 0, 0, 1], np.uint8))
    image = read(path, maps={"mask": {"r": own}})
    assert image.mask[0, 0, :5].tolist() == [0, 0, 0, BAD, 0]
    assert f"mask of {own}" in image.provenance["r.mask"]


def test_the_flag_hdu_of_a_cutout_has_the_bits_of_vis(tmp_path):
    flags = pixels([1 << 3, 1 << 5])
    path = write(tmp_path / "cutout.fits", hdu(FLUX, "VIS_FLUX"), hdu(flags, "VIS_FLAG"), hdu(VARIANCE, "VIS_VAR"))
    assert read(f"{path}[VIS_FLUX]").mask[0, 0, :3].tolist() == [SAT, 0, 0]
    path = write(tmp_path / "ground.fits", hdu(FLUX, "DES_R_FLUX"), hdu(flags, "DES_R_FLAG"))
    with pytest.raises(StorageError, match=r"DES_R_FLAG\]: a mask with 2 values beside 0"):
        read(f"{path}[DES_R_FLUX]")
