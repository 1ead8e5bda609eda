"""Units and zero points: what a count is worth, where that was found, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io.fits import Header

from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_units import calibration
from tests.storage.fits_files import gaussians, read_mer, tan_wcs, write_survey_file

AREA = (0.1 / 206264.806) ** 2
EMPTY = Header({"NAXIS": 0})


def read(cards, primary=EMPTY, given=None):
    return calibration(Header(cards) if isinstance(cards, dict) else cards, primary, "night.fits[2]", AREA, given)


@pytest.mark.parametrize(
    ("unit", "njy"),
    [
        ("nJy", 1.0), ("njy", 1.0), ("NJY", 1.0), ("uJy", 1e3), ("UJY", 1e3), ("mJy", 1e6), ("MJy", 1e15), ("Jy", 1e9),
        ("JY", 1e9), ("kJy", 1e12), ("nJy/pix", 1.0), ("nJy/pixel", 1.0), ("nJy pix-1", 1.0), ("uJy.pixel**-1", 1e3),
        ("MJy/pix", 1e15), ("JY/PIXEL", 1e9), ("10**-6 Jy", 1e3), ("nanomaggy", 3630.78), ("nmgy", 3630.78),
        ("Nanomaggies", 3630.78), ("nanomaggy/pixel", 3630.78), ("nanoJy", 1.0),
        ("MICROJY", 1e3), ("MilliJansky per pixel", 1e6), ("megajansky", 1e15),
        ("erg/(s cm2 Hz)", 1e32), ("W m-2 Hz-1", 1e35),
    ],
)  # fmt: skip
def test_flux_densities(unit, njy):
    found = read({"BUNIT": unit})
    assert found.njy == pytest.approx(njy, rel=1e-6) and not found.per_steradian
    assert found.zero_point == pytest.approx(31.4 - 2.5 * np.log10(njy), abs=1e-6)
    assert found.source == f"BUNIT {unit}"


@pytest.mark.parametrize(
    "unit", ["mjy", "MJY", "MjY", "nJy/beam", "mag", "mag/arcsec2", "km", "Kelvin", "flux", "nJy/s"]
)
def test_what_a_unit_may_not_be(unit):
    with pytest.raises(StorageError, match="is not known; expected nJy, uJy, mJy, Jy or MJy") as error:
        read({"BUNIT": unit, "MAGZERO": 27.0})
    assert f"BUNIT '{unit}'" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "unit",
    ["adu", "ADU", "DN", "counts", "ct", "electron", "ELECTRONS", "e-", "electron/s", "ELECTRONS/S", "adu/s", "DN/s",
     "e-/sec", "counts/second", "electron s-1", "electron.s**-1", "ADU s^-1", "cps", "adu/pix", "electron/s/pix",
     "DN / s", "electron/pixel/s"],
)  # fmt: skip
def test_counts_need_a_zero_point(unit):
    assert read({"BUNIT": unit, "ZP": 27.5}).njy == pytest.approx(10**1.56)
    with pytest.raises(StorageError, match=r"and no zero point \(looked for MAGZERO, .*FLUXMAG0\).*--zero-point"):
        read({"BUNIT": unit})


def test_zero_points_and_units_of_the_image_come_before_those_of_the_primary_header():
    primary = Header({"NAXIS": 0, "MAGZERO": 30.0, "BUNIT": "adu"})
    assert read({}, primary)[1:] == (30.0, False, "MAGZERO 30 of the primary header")
    assert read({"ZP": 26.25}, primary).zero_point == 26.25  # another keyword, and left over in the primary
    assert read({"BUNIT": "uJy"}, primary).zero_point == pytest.approx(23.9)
    own = Header({"NAXIS": 2, "MAGZERO": 30.0})
    for image, first in (({}, own), ({"INHERIT": False}, primary)):  # of other pixels
        with pytest.raises(StorageError, match="BUNIT absent and no zero point"):
            read(image, first)


def night(**cards):
    """Zero points with comments, as Header takes them."""
    header = Header()
    for keyword, value in {"EXPTIME": 84.0, **cards}.items():
        header[keyword] = value
    return header


TOTAL, RATE = 28.6, 28.6 - 2.5 * np.log10(84)
PLAIN, PER_SECOND = (TOTAL, "[mag] zero point"), (round(RATE, 3), "[mag] zero point per sec")


@pytest.mark.parametrize(
    ("cards", "zero_point"),
    [
        ({"MAGZERO": PLAIN, "MAGZPT": PER_SECOND}, TOTAL),
        ({"MAGZERO": PER_SECOND, "MAGZPT": PLAIN}, TOTAL),
        ({"MAGZERO": PLAIN, "MAGZPT": PER_SECOND, "BUNIT": "adu"}, TOTAL),
        ({"MAGZERO": PLAIN, "MAGZPT": PER_SECOND, "BUNIT": "adu/s"}, RATE),
        ({"ZP": (28.6, "mag at 1 ADU/s"), "BUNIT": "electron/s"}, TOTAL),
        ({"ZP": (RATE, "at one count/s"), "BUNIT": "count"}, TOTAL),
        ({"MAGZPT": PER_SECOND, "ZP": (RATE, ""), "BUNIT": "electron/s"}, RATE),
        ({"MAGZERO": PLAIN, "ZP": (28.604, ""), "FLUXMAG0": (10 ** (28.6 / 2.5), "")}, TOTAL),
    ],
)
def test_zero_points_of_counts_and_of_rates_are_told_apart(cards, zero_point):
    found = read(night(**cards))
    assert found.zero_point == pytest.approx(zero_point, abs=2e-3)
    assert found.source.endswith("agrees)") == (len({k for k in cards if k != "BUNIT"}) > 1)
    assert ("EXPTIME 84" in found.source) == (cards.get("BUNIT") == "count")


@pytest.mark.parametrize(
    ("cards", "complaint"),
    [
        ({"MAGZERO": 28.6, "MAGZPT": RATE}, "MAGZERO 28.6 and MAGZPT 23.789.*EXPTIME 84.*, BUNIT absent"),
        ({"MAGZERO": PLAIN, "MAGZPT": (24.8, "per sec")}, "MAGZERO 28.6 and MAGZPT 24.8 per second"),
        ({"MAGZERO": PLAIN, "MAGZPT": (28.6, "per sec"), "BUNIT": "adu"}, "contradict each other"),
        ({"MAGZERO": PLAIN, "MAGZPT": PER_SECOND, "EXPTIME": 0.0}, "EXPTIME absent"),
        ({"MAGZERO": 27.0, "FLUXMAG0": 1e12}, "MAGZERO 27 and FLUXMAG0 30"),
        ({"MAGZPT": PER_SECOND}, "MAGZPT 23.789 per second and BUNIT absent"),
        ({"ZP": -25.3}, "ZP -25.3 is not a plausible AB zero point"),
        ({"ZP": 0.0}, "ZP 0 is not a plausible"),
        ({"FLUXMAG0": 3.0}, "FLUXMAG0 1.1928 is not a plausible"),
        ({"MAGZPT": "NaN"}, r"MAGZPT is 'NaN' \(str\), expected a number"),
        ({"MAGZERO": 27.0, "ZP": "27"}, r"ZP is '27' \(str\)"),
        ({"BUNIT": "uJy", "ZP": 27.0}, "BUNIT uJy means a zero point of 23.9 but ZP is 27"),
        ({"BUNIT": "MJy/sr", "MAGZERO": 27.0}, "BUNIT MJy/sr means a zero point of"),
    ],
)
def test_contradictions_are_refused_with_both_values_and_may_be_settled(cards, complaint):
    with pytest.raises(StorageError, match=complaint) as error:
        read(night(**cards))
    assert str(error.value).startswith("night.fits[2]: ") and "\n" not in str(error.value)
    assert read(night(**cards), given=26.0)[1:] == (26.0, False, "given by the user")


def test_surface_brightness_times_the_area_of_each_pixel_is_flux(tmp_path):
    """A gnomonic image far from its tangent point: pixels there see less sky."""
    wcs = tan_wcs((60, 80), 0.1, dec=40.0)
    wcs.wcs.crpix = [600_000.0, -400_000.0]
    image = 2 + gaussians((60, 80), [(30.0, 40.0)], 2.0)
    path = write_survey_file(tmp_path / "vis.fits", image, wcs, header={"BUNIT": "MJy/sr"})
    read_in = read_mer(path)
    corners = np.array([(x, y) for y in (29.5, 30.5) for x in (39.5, 40.5)])
    lon, lat = np.radians(wcs.wcs_pix2world(corners, 0)).T
    area = abs((lon[1] - lon[0]) * (lat[2] - lat[0]) - (lon[2] - lon[0]) * (lat[1] - lat[0])) * np.cos(lat.mean())
    assert area < 0.85 * AREA
    np.testing.assert_allclose(read_in.flux[0, 30, 40], image[30, 40] * 1e15 * area, rtol=1e-4)
    np.testing.assert_allclose(read_in.variance[0, 30, 40], (1e15 * area) ** 2, rtol=1e-4)
    assert read_in.zero_point == pytest.approx(31.4 - 2.5 * np.log10(1e15 * area), abs=0.02)
