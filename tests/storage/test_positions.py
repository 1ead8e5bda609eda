"""Positions as people write them: every spelling as astropy measures it, what is none refused in one line."""

from __future__ import annotations

import pytest
from astropy.coordinates import Angle

from surveybridge.storage.errors import StorageError
from surveybridge.storage.positions import arcseconds, bounds, declination, position_and_angle, right_ascension


@pytest.mark.parametrize(
    "text",
    [
        "09:41:07.25",
        "9h41m7.25s",
        "9h 41m 7.25s",
        "09 41 07.25",
        "9h41.5m",
        "9.5h",
        "9:41",
        "-00:00:30",
        "9hr41min7sec",
    ],
)
def test_right_ascension_with_colons_or_an_h_is_in_hours(text):
    plain = text.replace("hr", "h").replace("min", "m").replace("sec", "s")
    assert right_ascension(text) == pytest.approx(Angle(plain, "hourangle").deg, abs=1e-12)


@pytest.mark.parametrize(
    "text", ["-00:30:07.5", "-0d30m07.5s", "+41 16 09", "-41°16′09″", "41d16'9\"", "-7d", "-0:59.5", "12deg30arcmin"]
)
def test_declination_is_in_degrees_and_its_sign_holds_for_minutes_too(text):
    plain = text.replace("°", "d").replace("′", "m").replace("″", "s").replace("'", "m").replace('"', "s")
    plain = plain.replace("arcmin", "m").replace("deg", "d")
    assert declination(text) == pytest.approx(Angle(plain, "deg").deg, abs=1e-12)
    assert right_ascension("213d30m") == 213.5


def test_plain_numbers_are_degrees_and_a_minus_of_a_paper_is_one():
    assert right_ascension("150.125") == 150.125 and right_ascension("-3.5") == -3.5
    assert declination("\N{MINUS SIGN}27.8") == -27.8 and declination(" +.5 ") == 0.5 and declination("1.5e1") == 15


def test_angles_are_arcsec_or_say_their_unit():
    given = {"12": 12, '12"': 12, "2'": 120, "2.5arcmin": 150, "1arcsec": 1, "0.25deg": 900, "3''": 3, "4″": 4}
    assert {text: arcseconds(text) for text in given} == given


@pytest.mark.parametrize(
    "given",
    ["9:41:06 -7:30:00 12", "9:41:06,-7:30:00,12", "145.275, -7.5, 12", "9 41 06 -7 30 00 12",
     "9h41m06s -7d30m00s 0.2'", "9h 41m 06s -7d 30m 00s 12\"",
     (145.275, -7.5, 12), ["9:41:06", "-7:30:00", 12], ["145.275", "-7.5 12"]],
)  # fmt: skip
def test_a_position_and_an_angle_in_any_spelling(given):
    assert position_and_angle(given) == pytest.approx((145.275, -7.5, 12.0), abs=1e-12)


def test_a_box_in_any_spelling():
    wanted = pytest.approx((-0.25, 0.5, -7.5, -7.25), abs=1e-12)
    for given in ("-0.25,0.5,-7.5,-7.25", "-0:01:00 0:02:00 -7:30:00 -7:15:00", "-0 1 0 0 2 0 -7 30 0 -7 15 0"):
        assert bounds(given) == wanted


@pytest.mark.parametrize(
    "given, complaint",
    [
        ("9:41:06 12", "has 2 value(s) but needs 3; give RA,DEC,ARCSEC"),
        (7, "has 1 value(s) but needs 3"),
        ("9:61:06,-7:30:00,12", "61 minutes"),
        ("9:41:60,-7:30:00,12", "60 seconds"),
        ("9.5:41:06,-7:30:00,12", "'9.5:41:06' is no angle"),
        ("9h41.5m06s,-7:30:00,12", "only the last"),
        ("24:00:01,-7:30:00,12", "360.004 deg, outside -360..360"),
        ("9:41:06,-90:00:01,12", "-90.0003 deg, outside -90..90"),
        ("9:41:06,-7h30m,12", "-7h30m is in hours"),
        ("nan,-7.5,12", "'nan' is no angle"),
        ("145.2,inf,12", "'inf' is no angle"),
        ("M31,-7.5,12", "'M31' is no angle; write it as 150.1, 10:00:24 or 10h00m24s"),
        ("145.2,-7.5,12pc", "'12pc' is no angle; give arcsec"),
        ("9h30s5m,-7.5,12", "is no angle"),
    ],
)
def test_what_is_no_position_is_refused_with_an_example(given, complaint):
    with pytest.raises(StorageError) as error:
        position_and_angle(given)
    assert complaint in str(error.value) and "\n" not in str(error.value)
