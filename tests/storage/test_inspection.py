"""What a FITS file would be ingested as: band, unit, noise, sky, WCS in words, or why it would be refused."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from surveybridge.storage.inspection import inspect_file
from surveybridge.storage.problems import complete_problem, default_problem
from tests.storage.fits_files import tan_wcs, write_survey_file

SHAPE = (72, 96)


@pytest.fixture
def sky():
    return np.random.default_rng(5).normal(0, 3, SHAPE)


def inspected(path, problem=None):
    (one,) = inspect_file(str(path), problem or default_problem())
    return one


def test_an_image_in_the_domain_is_described_with_everything_that_ingest_takes_from_it(tmp_path, sky):
    mask = np.zeros(SHAPE, np.int32)
    mask[:9] = 1
    path = write_survey_file(
        tmp_path / "vis.fits",
        sky,
        tan_wcs(SHAPE, 0.1, rotation=-20, ra=11, dec=40),
        variance=np.full(SHAPE, 9.0),
        mask=mask,
        header={"FILTER": "VIS", "BUNIT": "nJy", "PSFFWHM": 0.17},
        mask_header={"MP_BAD": 0},
    )
    one = inspected(path)
    assert (one.endpoint, one.band, one.domain, one.refused) == ("euclid", "VIS", "in", "")
    lines = dict(line.strip().split("  ", 1) for line in one.text().splitlines()[1:])
    said = {key: text.strip() for key, text in lines.items()}
    assert said["HDU"].startswith("1 IMAGE (72 x 96 float32")
    assert said["zero point"].startswith("31.4 AB")
    assert said["PSF"] == '0.17", wings not stated (PSFFWHM of the header)'
    assert said["noise"] == "3 nJy (VARIANCE of the file)"
    assert "sigma, left as it is" in said["sky"]
    assert "BAD 12.50%" in said["mask"]
    assert said["unusable"].startswith("12.50%")
    assert said["WCS"].startswith("RA---TAN/DEC--TAN, icrs, RA 11.00000 Dec +40.00000 deg")
    assert '0.1" per pixel, north is 20.0 deg left of up, east is left of north' in said["WCS"]


def test_a_mirrored_image_has_its_east_on_the_other_side(tmp_path, sky):
    wcs = tan_wcs(SHAPE, 0.1, rotation=15)
    wcs.wcs.cd = wcs.wcs.cd @ np.diag([-1, 1])
    path = write_survey_file(tmp_path / "vis.fits", sky, wcs, header={"FILTER": "VIS", "BUNIT": "nJy"})
    assert inspected(path).wcs.endswith("north is 15.0 deg left of up, east is right of north")


def test_what_is_out_of_the_domain_is_said(tmp_path, sky):
    header = {"FILTER": "HSC-R", "BUNIT": "nJy"}
    path = write_survey_file(tmp_path / "r.fits", sky, tan_wcs(SHAPE, 0.168), header=header)
    one = inspected(path)
    assert (one.endpoint, one.band) == ("lsst", "r")
    assert one.domain == 'out: lsst bands are HSC-R as r; lsst pixels are 0.168", not 0.2"'


def test_a_file_of_several_images_is_shown_image_by_image(tmp_path, sky):
    header = tan_wcs(SHAPE, 0.1).to_header()
    names = {"VIS_FLUX": 24.6, "NIR_J_FLUX": 29.8, "DES_I_FLUX": 30.0}
    hdus = [fits.PrimaryHDU()]
    for name, zero_point in names.items():
        hdus.append(fits.ImageHDU(sky.astype(np.float32), header, name=name))
        hdus[-1].header["MAGZERO"] = zero_point
        hdus.append(fits.ImageHDU(np.ones(SHAPE, np.float32), name=name.replace("FLUX", "RMS")))
    fits.HDUList(hdus).writeto(tmp_path / "cutout.fits")
    found = inspect_file(str(tmp_path / "cutout.fits"), default_problem())
    assert [(one.path.rpartition("[")[2], one.endpoint, one.band) for one in found] == [
        ("VIS_FLUX]", "euclid", "VIS"),
        ("NIR_J_FLUX]", "", ""),
        ("DES_I_FLUX]", "lsst", "i"),
    ]
    assert [one.reading and one.reading.zero_point for one in found] == pytest.approx(list(names.values()))
    assert "euclid.VIS" in found[1].domain  # how to say which band it is
    named = inspected(f"lsst.g={tmp_path / 'cutout.fits'}[NIR_J_FLUX]")
    assert (named.endpoint, named.band, named.refused) == ("lsst", "g", "")


def test_what_ingest_refuses_is_shown_with_the_reason_and_the_images_of_the_file(tmp_path, sky):
    path = write_survey_file(tmp_path / "g.fits", sky, tan_wcs(SHAPE, 0.2), header={"FILTER": "g", "BUNIT": "furlong"})
    one = inspected(path)
    assert one.reading is None
    assert "furlong" in one.refused
    assert "1 IMAGE (72 x 96 float32" in one.text()
    assert "no such file" in inspected(tmp_path / "absent.fits").refused
    assert "has no band u" in inspected(f"lsst.u={path}").refused


def test_bands_are_those_of_the_problem(tmp_path, sky):
    ends = [
        {"name": "sky", "bands": ["u", "Y"], "pixel_scale": 0.25},
        {"name": "eye", "bands": ["broad", "y"], "pixel_scale": 0.08},
    ]
    problem = complete_problem({"name": "sky-eye", "catalog": "eye", "endpoints": ends}, "here")
    for name, place in {"broad": ("eye", "broad"), "y": ("eye", "y"), "Y": ("sky", "Y"), "g": ("", "")}.items():
        path = write_survey_file(
            tmp_path / f"{name}.fits", sky, tan_wcs(SHAPE, 0.08), header={"FILTER": name, "BUNIT": "uJy"}
        )
        one = inspected(path, problem)
        assert (one.endpoint, one.band) == place
