"""What a header says about the sky: spellings, frames, axes, distortions, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io.fits import Header
from astropy.wcs import WCS

from surveybridge.storage.celestial import (
    celestial_wcs,
    icrs_wcs,
    image_wcs,
    pixel_area,
    sky_to_pixel,
    stated_wcs,
    wcs_header_string,
)
from surveybridge.storage.errors import StorageError

Y, X = (grid.ravel().astype(float) for grid in np.mgrid[0:400:7j, 0:300:5j])


def plain(**cards):
    """A TAN header of 0.2 arcsec pixels turned by 35 degrees, with some cards changed; None takes one away."""
    c, s = 0.2 / 3600 * np.cos(np.radians(35)), 0.2 / 3600 * np.sin(np.radians(35))
    header = Header(
        {
            "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 211.25, "CRVAL2": 12.5,
            "CRPIX1": 130.5, "CRPIX2": 210.0, "CD1_1": -c, "CD1_2": s, "CD2_1": s, "CD2_2": c, "RADESYS": "ICRS",
        }
    )  # fmt: skip
    for keyword, value in cards.items():
        if value is None:
            header.remove(keyword)
        else:
            header[keyword] = value
    return header


def sky(header, frame="icrs"):
    """Where astropy puts the pixels of a header whose first axis is the longitude."""
    return SkyCoord(*WCS(header).wcs_pix2world(X, Y, 0), unit="deg", frame=frame)


def separation(wcs, there):
    """Arcsec between the pixels of a WCS, taken as ICRS, and where they should be."""
    return SkyCoord(*wcs.all_pix2world(X, Y, 0), unit="deg").separation(there.icrs).arcsec.max()


@pytest.mark.parametrize(
    ("cards", "frame"),
    [
        ({"RADESYS": "icrs"}, "icrs"),
        ({"RADESYS": " ICRS  "}, "icrs"),
        ({"RADESYS": "", "RADECSYS": "Icrs"}, "icrs"),
        ({"RADESYS": None}, "icrs"),
        ({"RADESYS": "Fk5", "EQUINOX": 2000.0}, "fk5"),
        ({"RADESYS": "FK5"}, "fk5"),
        ({"RADESYS": None, "EQUINOX": 2000}, "fk5"),
        ({"RADESYS": None, "RADECSYS": "FK5 ", "EQUINOX": "J2000.0"}, "fk5"),
        ({"RADESYS": "FK5", "EQUINOX": 1987.5}, "fk5(1987.5)"),
        ({"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}, "galactic"),
        ({"CTYPE1": "GLON-CAR", "CTYPE2": "GLAT-CAR", "CRVAL2": 0.0}, "galactic"),
        ({"CTYPE1": "ra---tan", "CTYPE2": "dec--tan"}, "icrs"),
        ({"LONPOLE": 205.0, "RADESYS": "FK5"}, "fk5"),
        ({"CTYPE1": "RA---STG", "CTYPE2": "DEC--STG", "LONPOLE": 90.0}, "icrs"),
        ({"CTYPE1": "RA---SFL", "CTYPE2": "DEC--SFL", "CRVAL2": 0.0, "RADESYS": "FK5"}, "fk5"),
        ({"CRVAL2": 89.999, "RADESYS": "FK5"}, "fk5"),
    ],
)
def test_every_frame_becomes_icrs_exactly(cards, frame):
    header = plain(**cards)
    header["CTYPE1"], header["CTYPE2"] = header["CTYPE1"].upper(), header["CTYPE2"].upper()
    for keyword in ("RADESYS", "RADECSYS", "EQUINOX"):
        header.remove(keyword, ignore_missing=True)
    where = sky(
        header, "icrs" if "(" not in frame and frame == "icrs" else "galactic" if frame == "galactic" else "fk5"
    )
    if "(" in frame:
        where = SkyCoord(where.ra, where.dec, frame="fk5", equinox="J1987.5")
    stated = stated_wcs(plain(**cards))
    assert stated.frame == frame.split("(")[0]
    icrs = icrs_wcs(stated)
    assert icrs.frame == "icrs" and next(iter(icrs.wcs.wcs.ctype)).startswith("RA---")
    # of pixels of 0.2 arcsec; wcslib knows the pole of a pseudocylindrical projection no better
    limit = 2e-5 if "SFL" in header["CTYPE1"] else 2e-7
    assert separation(celestial_wcs(wcs_header_string(icrs.wcs)), where) < limit
    assert any("brought to ICRS" in note for note in icrs.notes) == (stated.frame != "icrs")


def test_fk5_is_not_taken_for_icrs():
    as_icrs, as_fk5 = (icrs_wcs(stated_wcs(plain(RADESYS=name))).wcs for name in ("ICRS", "FK5"))
    apart = np.hypot(*np.subtract(sky_to_pixel(as_icrs, *as_fk5.all_pix2world(X, Y, 0)), (Y, X)))
    assert apart.min() > 0.005 and apart.max() < 0.023 / 0.2


@pytest.mark.parametrize(
    ("cards", "complaint"),
    [
        ({"RADESYS": "J2000"}, "RADESYS is J2000, expected ICRS or FK5"),
        ({"RADESYS": "FK4", "EQUINOX": 1950.0}, "RADESYS is FK4, expected"),
        ({"RADESYS": None, "RADECSYS": "GSC2"}, "RADECSYS is GSC2, expected"),
        ({"RADESYS": None, "EQUINOX": 1950.0}, "EQUINOX 1950 without RADESYS means FK4"),
        ({"RADESYS": "FK5", "EQUINOX": "now"}, "EQUINOX is 'now'"),
        ({"CTYPE1": "ELON-TAN", "CTYPE2": "ELAT-TAN"}, "no celestial WCS .CTYPE1 ELON-TAN"),
        ({"CTYPE1": "RA---FOO", "CTYPE2": "DEC--FOO"}, "unreadable WCS .Unrecognized projection code"),
        ({"CTYPE2": "DEC--SIN"}, "unreadable WCS .Inconsistent projection types"),
        ({"CRVAL1": "14:05:00"}, r"CRVAL1 is '14:05:00' \(str\), expected a number"),
        ({"CD1_1": "x"}, r"CD1_1 is 'x' \(str\)"),
        ({"CD1_1": 0.0, "CD1_2": 0.0}, "singular"),
        ({"CD1_1": None, "CD1_2": None, "CD2_1": None, "CD2_2": None}, "no pixel scale"),
        ({"CPDIS1": "Lookup"}, "CPDIS1 is Lookup"),
        ({"D2IMDIS2": "LOOKUP"}, "D2IMDIS2 is LOOKUP"),
        ({"CUNIT1": "pixel"}, "unreadable WCS .In CUNIT1"),
        ({"CD1_1": 1e300}, "its WCS has pixels of inf x"),
        ({"PC1_1": 1.0, "PC2_2": 1.0, "CDELT1": -5e-5, "CDELT2": 5e-5}, r"CD \[-4.55.*PC x CDELT \[-5e-05 0 0 5e-05\]"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(cards, complaint):
    with pytest.raises(StorageError, match=complaint) as error:
        celestial_wcs(plain(**cards), "night.fits[SCI]")
    assert str(error.value).startswith("night.fits[SCI]: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "cards", [{"CROTA2": 12.0}, {"CDELT1": -1.0, "CDELT2": 1.0}, {"WCSAXES": 3}, {"DATE-OBS": "29/02/96"}]
)
def test_cards_that_say_nothing_about_the_pixels_are_left_alone(cards):
    assert separation(celestial_wcs(plain(**cards)), sky(plain())) < 1e-9


def test_a_pc_matrix_that_agrees_with_cd_is_no_contradiction():
    header = plain()
    scale = 0.2 / 3600
    header.update({"CDELT1": scale, "CDELT2": scale})
    header.update({f"PC{k}": header[f"CD{k}"] / scale for k in ("1_1", "1_2", "2_1", "2_2")})
    assert separation(celestial_wcs(header), sky(plain())) < 1e-7


@pytest.mark.parametrize(
    ("cards", "complaint"),
    [
        # drafts of the standard wrote the matrix so, and wcslib lets it win over CD
        ({"PC001001": 0.93, "PC002002": 0.93, "CDELT1": -5e-5, "CDELT2": 5e-5}, "CD .* and PC x CDELT .*-4.65e-05"),
        ({"PC1_1": 1.00001, "CDELT1": -0.2 / 3600, "CDELT2": 0.2 / 3600}, "contradict each other, CD"),
        (
            {"CD1_1": None, "CD1_2": None, "CD2_1": None, "CD2_2": None, "PC1_1": 1.0, "CROTA2": 35.0}
            | {"CDELT1": -0.2 / 3600, "CDELT2": 0.2 / 3600},
            "CDELT with CROTA .* and PC x CDELT",
        ),
        ({"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": "two", "B_ORDER": 2}, "A_ORDER is 'two'"),
    ],
)
def test_a_matrix_that_is_left_over_is_refused_in_every_spelling(cards, complaint):
    with pytest.raises(StorageError, match=complaint) as caught:
        celestial_wcs(plain(**cards))
    assert "\n" not in str(caught.value)


def test_matrices_written_with_seven_digits_agree():
    header = plain()
    for card in [card for card in header.cards if card.keyword.startswith("CD")]:
        header[f"PC{card.keyword[2:]}"] = float(f"{card.value * 18000:.6e}")
    header["CDELT1"] = header["CDELT2"] = 1 / 18000
    assert separation(celestial_wcs(header), sky(plain())) < 1e-3


def test_the_suffix_of_sip_on_one_axis_counts_for_both(capfd, caplog):
    coefficients = {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 3e-5, "B_1_1": -2e-5}
    whole = celestial_wcs(plain(CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", **coefficients))
    found = stated_wcs(plain(CTYPE1="RA---TAN-SIP", **coefficients))
    np.testing.assert_array_equal(found.wcs.all_pix2world(X, Y, 0), whole.all_pix2world(X, Y, 0))
    assert found.notes == ("CTYPE2 DEC--TAN lacks -SIP, which the other axis has: SIP counts for both",)
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_a_reference_that_is_absent_is_said():
    notes = stated_wcs(plain(CRPIX2=None, CRVAL1=None)).notes
    assert notes == ("CRPIX2, CRVAL1 absent, which the standard takes as 0",)


@pytest.mark.parametrize("kind", ["TAN", "TAN-SIP", "SIN", "ZEA"])
def test_declination_on_axis_1_moves_no_pixel(kind):
    sip = {"A_ORDER": 3, "B_ORDER": 3, "A_2_0": 3e-6, "B_1_2": -2e-8, "B_0_2": 1e-6} if kind.endswith("SIP") else {}
    first = plain(CTYPE1=f"RA---{kind}", CTYPE2=f"DEC--{kind}", LONPOLE=170.0, **sip)
    swapped = first.copy()
    for a, b in (("CTYPE1", "CTYPE2"), ("CRVAL1", "CRVAL2"), ("CD1_1", "CD2_1"), ("CD1_2", "CD2_2")):
        swapped[a], swapped[b] = first[b], first[a]
    wcs = celestial_wcs(swapped)
    assert list(wcs.wcs.ctype) == [f"RA---{kind}", f"DEC--{kind}"]
    np.testing.assert_allclose(wcs.all_pix2world(X, Y, 0), WCS(first).all_pix2world(X, Y, 0), rtol=0, atol=1e-11)


def test_tpv_with_declination_on_axis_1_is_refused():
    header = plain(CTYPE1="DEC--TPV", CTYPE2="RA---TPV", PV1_1=1.01, PV2_1=1.0, PV2_4=0.2)
    header["CRVAL1"], header["CRVAL2"] = header["CRVAL2"], header["CRVAL1"]
    with pytest.raises(StorageError, match="declination on axis 1 together with a distortion other than SIP"):
        celestial_wcs(header)


def test_a_third_axis_is_left_out():
    header = plain(WCSAXES=3, CTYPE3="WAVE", CRVAL3=6e-7, CDELT3=1e-8, CRPIX3=1.0)
    wcs = celestial_wcs(header)
    assert wcs.naxis == 2 and separation(wcs, sky(plain())) < 1e-9
    with pytest.raises(StorageError, match="unreadable WCS"):
        celestial_wcs(plain(WCSAXES=3, CTYPE3="WAVE", CRVAL3=6e-7, CD3_3=1e-8, CD3_1=0.1))


def test_sip_counts_with_its_suffix_only(caplog):
    sip = {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 4e-5, "B_0_2": -3e-5}
    meant = stated_wcs(plain(CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", **sip))
    left_over = stated_wcs(plain(**sip))
    assert separation(left_over.wcs, sky(plain())) < 1e-9 and separation(meant.wcs, sky(plain())) > 0.2
    assert meant.notes == () and len(left_over.notes) == 1
    assert "SIP coefficients of order 2 do not count because CTYPE1 RA---TAN lacks -SIP" in left_over.notes[0]
    assert not caplog.records
    bare = stated_wcs(plain(CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP"))
    assert bare.wcs.sip is None and bare.notes == ("CTYPE1 RA---TAN-SIP without SIP coefficients means no distortion",)


def test_the_wcs_may_stand_in_the_primary_header_alone():
    primary = plain(NAXIS=0)
    found = image_wcs(Header({"NAXIS": 2}), primary, "a.fits[SCI]")
    assert separation(found.wcs, sky(plain())) < 1e-9 and found.notes == ("WCS of the primary header",)
    own = plain(CRVAL1=100.0)
    assert image_wcs(own, primary, "a.fits[SCI]").wcs.wcs.crval[0] == 100.0
    with pytest.raises(StorageError, match="no celestial WCS"):  # that of another image
        image_wcs(Header({"NAXIS": 2}), plain(NAXIS=2), "a.fits[SCI]")


def test_a_frame_in_the_primary_header_is_inherited_on_request():
    primary = Header({"NAXIS": 0, "RADESYS": "FK5", "EQUINOX": 2000.0})
    assert image_wcs(plain(RADESYS=None), primary, "a.fits").frame == "icrs"
    assert image_wcs(plain(RADESYS=None, INHERIT=True), primary, "a.fits").frame == "fk5"
    primary["RADECSYS"] = "ICRS"  # as the pipelines of DECam leave it
    both = image_wcs(plain(RADESYS=None, INHERIT=True), primary, "a.fits")
    assert both.frame == "icrs" and "at most 0.023 arcsec apart" in both.notes[0]


def test_right_ascensions_lie_between_0_and_360():
    wcs = icrs_wcs(stated_wcs(plain(CRVAL1=-0.004))).wcs
    ra = wcs.all_pix2world(X, Y, 0)[0]
    assert ra.min() < 1 and ra.max() > 359 and ((ra >= 0) & (ra < 360)).all()
    assert separation(wcs, sky(plain(CRVAL1=-0.004))) < 1e-9


def test_pixels_of_sip_are_found_and_those_beyond_its_fold_are_not():
    """r + k r^3 turns back at r = 1 / sqrt(-3 k), where the image is as far as it ever gets: 2 / 3 of that."""
    k = -6e-6
    cards = {"A_ORDER": 3, "B_ORDER": 3, "A_3_0": k, "A_1_2": k, "B_0_3": k, "B_2_1": k}
    wcs = celestial_wcs(plain(CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", **cards))
    fold = 1 / np.sqrt(-3 * k)
    angle = np.linspace(0, 2 * np.pi, 40)
    for share in (0.1, 0.5, 0.9, 0.999):
        x, y = 129.5 + share * fold * np.cos(angle), 209 + share * fold * np.sin(angle)
        back = sky_to_pixel(wcs, *wcs.all_pix2world(x, y, 0))
        np.testing.assert_allclose(back, (y, x), rtol=0, atol=1e-6)
    focus = WCS(plain())
    for share in (1.001, 1.2, 8.0):
        x, y = 129.5 + share * fold * 2 / 3 * np.cos(angle), 209 + share * fold * 2 / 3 * np.sin(angle)
        assert np.isnan(sky_to_pixel(wcs, *focus.wcs_pix2world(x, y, 0))).all()


def test_pixel_areas_add_up_to_the_sky():
    wcs = celestial_wcs(
        plain(CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", A_ORDER=2, B_ORDER=2, A_2_0=1e-4, B_0_2=0.0)
    )
    area = pixel_area(wcs, *np.indices((9, 201), float))
    expected = (0.2 / 206264.806) ** 2 * (1 + 2e-4 * (np.arange(201) - 129.5))
    np.testing.assert_allclose(area, np.broadcast_to(expected, area.shape), rtol=1e-4)


@pytest.mark.parametrize(
    "cards",
    [
        {},
        {"RADESYS": "FK5", "EQUINOX": 2000.0},
        {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.0, "PV1_7": 3e-3, "PV2_1": 1.0, "PV2_10": -2e-3},
        {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "A_2_0": 2e-6, "B_ORDER": 2, "B_1_1": -3e-6},
        {"CTYPE1": "RA---ZPN", "CTYPE2": "DEC--ZPN", "PV2_1": 1.0, "PV2_3": 40.0},
        {"RADESYS": "", "RADECSYS": "FK5", "CRPIX1": None},
    ],
)
def test_text_that_was_read_before_has_the_same_pixels_and_notes_and_a_wcs_of_its_own(cards):
    text = plain(**cards).tostring()
    fresh, first = stated_wcs(Header.fromstring(text)), stated_wcs(text)
    for changed in (first.wcs, stated_wcs(text).wcs):
        changed.wcs.crval = [10, 20]
        changed.sip = None
    again = stated_wcs(text)
    assert (again.frame, again.notes) == (fresh.frame, fresh.notes)
    np.testing.assert_array_equal(again.wcs.all_pix2world(X, Y, 0), fresh.wcs.all_pix2world(X, Y, 0))
    assert wcs_header_string(again.wcs) == wcs_header_string(fresh.wcs)
    assert (again.wcs.wcs.lng, again.wcs.wcs.lat) == (0, 1)
    assert str(again.wcs) == str(fresh.wcs)
