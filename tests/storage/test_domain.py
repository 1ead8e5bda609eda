"""The domain of a problem's models: filters by their names, and tiles counted by what their images are."""

from __future__ import annotations

import pyarrow as pa
import pytest

from surveybridge.storage.domain import count_domains, is_filter_of, say_domains


@pytest.mark.parametrize("name", ["g", "G", "g_6", "lsst_g", "LSST_G"])
def test_a_filter_is_a_bands_by_its_own_name_and_by_those_of_the_survey(name):
    assert is_filter_of(name, "lsst", "g")
    assert not is_filter_of(name, "lsst", "i")


@pytest.mark.parametrize("name", ["", "DES_g", "gri", "hsc-g"])
def test_filters_of_others_are_none(name):
    assert not is_filter_of(name, "lsst", "g")


def test_tiles_are_counted_by_what_they_say_and_the_reasons_follow_most_first():
    seen = 'out: lsst pixels are 0.263", not 0.2"'
    tiles = pa.table({"domain": ["in", seen, None, "out: euclid bands are J as VIS", seen]})
    counts = count_domains(tiles)
    assert counts == {seen: 2, "in": 1, "out: euclid bands are J as VIS": 1}
    assert say_domains(counts) == (
        '3 of 4 tiles out (2: lsst pixels are 0.263", not 0.2"; 1: euclid bands are J as VIS)'
    )
    assert say_domains({"in": 7}) == "7 tiles in"


def test_tiles_of_earlier_versions_say_nothing():
    assert count_domains(pa.table({"tile_id": ["t0"]})) == {}
    assert say_domains({}) == ""
