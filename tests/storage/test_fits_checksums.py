"""Damaged bytes are found by CHECKSUM and DATASUM, in plain and in compressed HDUs."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from astropy.io import fits

from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_checksums import check_sums

KINDS = {"plain": fits.ImageHDU, "rice": fits.CompImageHDU}


def summed(path, kind="plain", **cards):
    """A file of two images with sums in every HDU; its bytes."""
    image = np.random.default_rng(4).normal(size=(70, 90)).astype(np.float32)
    hdus = [KINDS[kind](image, header=fits.Header({"BUNIT": "adu", **cards}), name="SCI")]
    hdus.append(fits.ImageHDU((image * 9).astype(np.int16), name="DQ"))
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path, checksum=True)
    return bytearray(path.read_bytes())


def check(path, content, names=("PRIMARY", "SCI", "DQ")):
    packed = path.suffix == ".gz"
    path.write_bytes(gzip.compress(bytes(content)) if packed else bytes(content))
    with open(path, "rb") as stream, fits.open(stream, memmap=False) as hdus:
        for name in names:
            if hdus[name].data is not None:
                assert hdus[name].data.shape == (70, 90)
            check_sums(hdus[name], f"a.fits[{name}]")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a.fits", "a.fits.gz"])
def test_a_flipped_bit_is_found_in_data_and_in_headers(tmp_path, kind, name):
    content = summed(tmp_path / "first.fits", kind)
    check(tmp_path / name, content)
    with fits.open(tmp_path / "first.fits", disable_image_compression=True) as hdus:
        start = hdus[1].fileinfo()["datLoc"]
        stated = hdus[1].header["DATASUM"]
    damaged = content.copy()
    damaged[start + 333] ^= 4
    with pytest.raises(StorageError, match=rf"a.fits\[SCI\]: DATASUM is {stated} but its data sum to \d+") as error:
        check(tmp_path / name, damaged)
    assert "\n" not in str(error.value)
    check(tmp_path / name, damaged, names=["PRIMARY", "DQ"])  # what is not read need not be whole
    edited = content.copy()
    edited[edited.find(b"'adu") + 1] = ord("b")
    with pytest.raises(StorageError, match=r"a.fits\[SCI\]: CHECKSUM is \w{16} but header and data sum to \d+"):
        check(tmp_path / name, edited)


@pytest.mark.parametrize("cards", [{"CHECKSUM": 0}, {"CHECKSUM": "", "DATASUM": ""}, {"DATASUM": "none"}, {}])
def test_what_is_no_sum_of_the_standard_is_not_checked(tmp_path, cards):
    path = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.ones((70, 90)), header=fits.Header(cards), name="SCI")]).writeto(
        path
    )
    check(path, path.read_bytes(), names=["SCI"])
