"""Problem files: what is filled in, what columns follow, and what is refused in one line."""

from __future__ import annotations

import copy
import json
import tomllib
from typing import Any

import pytest

from surveybridge.storage.errors import StorageError
from surveybridge.storage.problems import (
    band_columns,
    bands_title,
    complete_problem,
    default_problem,
    endpoint,
    image_unit,
    observed_and_wanted,
    other,
    quantity,
    read_problem,
    shipped_problems,
    shown_ends,
    unit_of,
)
from tests.storage.problem_files import HSC_HST, SKY_EYE, TEXTS, problem, write_problem


def test_the_default_problem_ships_and_is_lsst_and_euclid():
    assert "lsst-euclid" in shipped_problems()
    assert read_problem("lsst-euclid") == default_problem()
    lsst, euclid = default_problem()["endpoints"]
    assert (lsst["name"], lsst["bands"], lsst["pixel_scale"], lsst["rgb"]) == ("lsst", [*"gri"], 0.2, ["i", "r", "g"])
    assert (euclid["name"], euclid["bands"], euclid["pixel_scale"], euclid["rgb"]) == ("euclid", ["VIS"], 0.1, None)
    assert default_problem()["objective"] == {"sigma_data": 0.3, "log_sigma_mean": -1.4, "log_sigma_std": 1.5}
    default_problem()["endpoints"][0]["name"] = "changed"
    assert default_problem()["endpoints"][0]["name"] == "lsst"


def test_what_a_file_leaves_out_is_filled_in(tmp_path):
    (tmp_path / "p.toml").write_text(SKY_EYE)
    found = read_problem(tmp_path / "p.toml")
    assert found == {
        "name": "sky-eye",
        "catalog": "eye",
        "wanted": None,
        "endpoints": [
            {
                "name": "sky", "bands": ["u", "w"], "pixel_scale": 0.25, "unit": "nJy", "extensive": True,
                "stretch": "asinh", "title": "sky", "rgb": None,
            },
            {
                "name": "eye", "bands": ["broad"], "pixel_scale": 0.08, "unit": "nJy", "extensive": True,
                "stretch": "asinh", "title": "eye", "rgb": None,
            },
        ],
        "objective": None,
    }  # fmt: skip
    assert complete_problem(found, "again") == found


@pytest.mark.parametrize(
    ("unit", "spelt", "stretch", "extensive"),
    [
        ("uJy", "uJy", "asinh", True),
        ("1/cm2", "cm-2", "log10", False),
        ("pc-3", "pc-3", "log10", False),
        ("g/cm3", "g cm-3", "log10", False),
        ("MJy/sr", "MJy sr-1", "asinh", True),
        ("erg s-1 cm-2", "erg s-1 cm-2", "asinh", True),
        ("deg", "deg", "axial", False),
        ("K", "K", "asinh", True),
    ],
)
def test_the_stretch_follows_from_the_unit_which_has_one_spelling(unit, spelt, stretch, extensive):
    table = tomllib.loads(SKY_EYE)
    table["endpoints"][0]["unit"] = unit
    end = complete_problem(table, "here")["endpoints"][0]
    assert (end["unit"], end["stretch"], end["extensive"]) == (spelt, stretch, extensive)


POLARIMETRY: dict[str, Any] = {
    "name": "dust",
    "wanted": "magnet",
    "endpoints": [
        {
            "name": "seen", "bands": ["N", "psi", "width"], "pixel_scale": 6.0,
            "units": {"N": "1/cm2", "psi": "deg", "width": "km/s"}, "stretches": {"width": "log10"},
        },
        {"name": "magnet", "bands": ["B"], "pixel_scale": 6.0, "unit": "uG", "stretch": "log10"},
    ],
}  # fmt: skip


def test_bands_of_an_observed_end_may_be_several_quantities():
    found = complete_problem(POLARIMETRY, "here")
    seen, magnet = found["endpoints"]
    assert seen["units"] == {"N": "cm-2", "psi": "deg", "width": "km s-1"}
    assert seen["stretches"] == {"N": "log10", "psi": "axial", "width": "log10"}
    assert (seen["unit"], seen["stretch"], seen["extensive"]) == ("", "mixed", False)
    assert [unit_of(seen, band) for band in seen["bands"]] == ["cm-2", "deg", "km s-1"]
    assert "units" not in magnet and unit_of(magnet, "B") == "uG"
    assert complete_problem(json.loads(json.dumps(found)), "again") == found


def test_bands_that_are_one_quantity_after_all_are_written_as_one():
    table = copy.deepcopy(POLARIMETRY)
    table["endpoints"][0] |= {"units": dict.fromkeys(["N", "width"], "1/cm2"), "stretches": {}, "unit": "cm-2"}
    assert complete_problem(table, "here")["endpoints"][0] == {
        "name": "seen", "bands": ["N", "psi", "width"], "pixel_scale": 6.0, "unit": "cm-2", "extensive": False,
        "stretch": "log10", "title": "seen", "rgb": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"units": "cm-2"}, "units 'cm-2'; give a table by band"),
        ({"units": {"N": "cm-2", "phi": "rad"}}, "units: unknown key 'phi'; did you mean psi"),
        ({"units": {"N": "cm-2", "psi": "furlong"}}, "band psi: unit 'furlong' cannot be used"),
        ({"stretches": {"psi": "log10"}}, "band psi: stretch log10 does not fit the unit deg"),
        ({"stretches": {"N": "sqrt"}}, "band N: stretch 'sqrt' is not known"),
        ({"units": {"psi": "deg"}, "unit": "cm-2", "stretch": "mixed"}, "stretch 'mixed' is not known"),
        ({"extensive": True}, "angles do not add up"),
        ({"scaling": 1}, "scaling 1 of band psi, whose stretch is axial"),
        ({"scaling": {"N": "twice"}}, "scaling 'twice' of band N; give a number"),
        ({"scaling": {"n": 1}}, "scaling: unknown key 'n'"),
    ],
)
def test_quantities_that_do_not_fit_are_refused_with_their_band(changes, said):
    table = copy.deepcopy(POLARIMETRY)
    table["endpoints"][0] |= changes
    with pytest.raises(StorageError, match=said) as caught:
        complete_problem(table, "here")
    assert "\n" not in str(caught.value)


def test_how_values_scale_is_stated_by_band_or_for_all_and_read_again():
    table = copy.deepcopy(POLARIMETRY)
    table["endpoints"][0]["scaling"], table["endpoints"][1]["scaling"] = {"N": 2}, -0.5
    stated = complete_problem(table, "here")
    assert [end["scaling"] for end in stated["endpoints"]] == [{"N": 2.0, "psi": 0.0, "width": 0.0}, {"B": -0.5}]
    assert complete_problem(stated, "again") == stated
    assert not any("scaling" in end for end in complete_problem(POLARIMETRY, "here")["endpoints"])


@pytest.mark.parametrize("wanted", [None, "seen"])
def test_an_end_of_several_quantities_is_never_predicted(wanted):
    with pytest.raises(StorageError, match=r'seen has bands of several quantities, .* give wanted = "magnet"'):
        complete_problem(POLARIMETRY | {"wanted": wanted}, "here")


def test_an_image_of_several_quantities_has_the_units_of_all(tmp_path):
    seen, magnet = complete_problem(POLARIMETRY, "here")["endpoints"]
    assert image_unit(seen) == "cm-2,deg,km s-1" and image_unit(magnet) == magnet["unit"]
    assert [quantity(seen, band)["unit"] for band in seen["bands"]] == ["cm-2", "deg", "km s-1"]
    assert quantity(seen, seen["bands"][1])["stretch"] == "axial" and quantity(magnet, "B") == magnet


def test_bands_that_both_ends_have_carry_the_name_of_their_end_whatever_the_case(tmp_path):
    assert set(band_columns(default_problem()).values()) == {"g", "r", "i", "VIS"}
    columns = band_columns(problem(tmp_path, "rubin-euclid"))
    assert columns["rubin", "y"] == "rubin_y" and columns["euclid", "Y"] == "euclid_Y"
    assert columns["rubin", "g"] == "g" and columns["euclid", "VIS"] == "VIS"


def test_ends_are_found_by_name_and_by_direction(tmp_path):
    hsc_hst = problem(tmp_path, "hsc-hst")
    assert endpoint(hsc_hst, "hst")["bands"] == ["F814W"] and other(hsc_hst, "hst")["name"] == "hsc"
    observed, wanted = observed_and_wanted(hsc_hst, "hst->hsc")
    assert (observed["name"], wanted["name"]) == ("hst", "hsc")
    assert [end["name"] for end in shown_ends(hsc_hst | {"catalog": "hsc"})] == ["hst", "hsc"]
    assert bands_title(wanted) == "HSC grizy"
    with pytest.raises(StorageError, match="has no endpoint 'acs'; it has hsc and hst"):
        endpoint(hsc_hst, "acs")
    with pytest.raises(StorageError, match=r"'lsst->hst' is not one of problem hsc-hst: hsc->hst or hst->hsc"):
        observed_and_wanted(hsc_hst, "lsst->hst")


REFUSED = {
    "no bands": ({"bands": []}, "endpoint sky has no bands"),
    "a band twice": ({"bands": ["u", "w", "u"]}, "band u is given twice"),
    "a band twice in another case": ({"bands": ["u", "U"]}, "band U is given twice"),
    "a band that is no name": ({"bands": ["u/w"]}, "band 'u/w'"),
    "bands that are a text": ({"bands": "uw"}, "has no bands"),
    "one name for both": ({"name": "eye"}, "two endpoints have the name eye"),
    "a reserved name": ({"name": "mean"}, "cannot be called mean"),
    "a name with a dot": ({"name": "sky.eye"}, "'sky.eye'"),
    "an unknown key": ({"pixelscale": 0.2}, "unknown key 'pixelscale'; did you mean pixel_scale"),
    "a key like no other": ({"qwerty": 0.2}, "unknown key 'qwerty'; known: name, bands"),
    "no pixel scale": ({"pixel_scale": None}, "sky has no pixel_scale"),
    "a negative pixel scale": ({"pixel_scale": -0.2}, "pixel_scale -0.2"),
    "a pixel scale that is text": ({"pixel_scale": "0.2"}, "pixel_scale '0.2'"),
    "a unit that nobody knows": ({"unit": "furlong"}, "unit 'furlong' cannot be used"),
    "a unit that is a number": ({"unit": 3}, "unit 3 cannot be used"),
    "magnitudes": ({"unit": "mag"}, "no stretch fits the unit mag"),
    "a logarithm": ({"unit": "dex(cm-2)"}, r"no stretch fits the unit dex\(cm-2\)"),
    "an angle's stretch for a flux": ({"stretch": "axial"}, "stretch axial does not fit the unit nJy"),
    "a logarithm's stretch for an angle": ({"unit": "deg", "stretch": "log10"}, "stretch log10 does not fit"),
    "an unknown stretch": ({"stretch": "sqrt"}, "stretch 'sqrt' is not known"),
    "angles that add up": ({"unit": "rad", "extensive": True}, "angles do not add up"),
    "extensive that is a word": ({"extensive": "yes"}, "extensive 'yes'"),
    "colours of a band it lacks": ({"rgb": ["w", "w", "v"]}, "rgb band 'v' is not one of its bands u,w"),
    "two colours": ({"rgb": ["w", "u"]}, "give three bands"),
    "an empty title": ({"title": " "}, "title ' '"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_endpoint_is_refused_in_one_line(tmp_path, case):
    changes, said = REFUSED[case]
    table = tomllib.loads(SKY_EYE)
    table["endpoints"][0] |= changes
    table["endpoints"][0] = {key: value for key, value in table["endpoints"][0].items() if value is not None}
    with pytest.raises(StorageError, match=said) as caught:
        complete_problem(table, "problem here.toml")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("problem here.toml: ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"endpoints": []}, "0 endpoints, but a bridge has 2"),
        ({"endpoints": None}, "0 endpoints"),
        ({"catalog": "nose"}, "catalog 'nose' is not an endpoint; give sky or eye"),
        ({"wanted": "nose"}, "wanted 'nose' is not an endpoint"),
        ({"catalogue": "eye"}, "unknown key 'catalogue'; did you mean catalog"),
        ({"name": "a b"}, "name 'a b'"),
        ({"objective": {"sigma_data": 0.3}}, "log_sigma_mean None"),
        ({"objective": {"sigma_data": -1, "log_sigma_mean": 0, "log_sigma_std": 1}}, "sigma_data -1"),
        ({"objective": {"sigma": 1}}, "unknown key 'sigma'; did you mean sigma_data"),
        ({"objective": 3}, "objective 3"),
    ],
)
def test_a_bad_problem_is_refused_in_one_line(changes, said):
    table = {key: value for key, value in (tomllib.loads(SKY_EYE) | changes).items() if value is not None}
    with pytest.raises(StorageError, match=said) as caught:
        complete_problem(table, "here")
    assert "\n" not in str(caught.value)


def test_bands_whose_columns_would_be_one_are_refused():
    table = tomllib.loads(HSC_HST)
    table["endpoints"][1]["bands"] = ["g", "hsc_g"]
    with pytest.raises(StorageError, match="two bands would both be the column flux_hsc_g"):
        complete_problem(table, "here")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), (b"name = ", "not a TOML file"), (b"\xff\xfe", "not a TOML file")],
)
def test_a_file_that_is_none_is_named_with_the_shipped_ones(tmp_path, content, said):
    path = tmp_path / "p.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StorageError, match=said) as caught:
        read_problem(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TEXTS)
def test_the_problems_of_the_tests_are_read(tmp_path, name):
    found = read_problem(write_problem(tmp_path, name))
    assert found["name"] == name and found["wanted"] == ("density" if name == "clouds" else None)
