"""Pair stores joined into one."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import pytest

from surveybridge.jobs.config import RequestError
from surveybridge.jobs.cutting.joining import interleaved, join_pairs
from surveybridge.storage.pairs import read_ids, read_pairs
from tests import tiny


def quietly(items: Iterable[int], what: str, count: int) -> Iterable[int]:
    return items


def test_pairs_of_several_stores_take_turns_and_those_held_back_come_last():
    order = interleaved([(6, 2), (3, 1)])
    assert order[:, 0].tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0]
    for store, count in enumerate((8, 4)):
        assert order[order[:, 0] == store, 1].tolist() == list(range(count))


def test_a_joined_store_holds_the_pairs_of_all_and_their_conditions(tmp_path):
    urls = [tiny.write_pairs(tmp_path / f"{name}.zarr", count) for name, count in (("one", 5), ("two", 300))]
    out = str(tmp_path / "both.zarr")
    assert join_pairs(urls, out, quietly) == 305
    order = interleaved([(5, 0), (300, 0)])
    joined, parts = read_pairs(out, conditions=True), [read_pairs(url, conditions=True) for url in urls]
    ids = read_ids(out)
    for row in (0, 30, 260, 304):
        store, place = order[row]
        for end, values in joined.ends.items():
            assert np.array_equal(values[row], parts[store].ends[end][place])
            assert joined.conditions is not None and parts[store].conditions is not None
            for name in ("noise", "fwhm", "wing", "correlation", "gain"):
                there = getattr(parts[store].conditions.ends[end], name)[place]
                assert np.array_equal(getattr(joined.conditions.ends[end], name)[row], there, equal_nan=True)
        assert ids[row] == read_ids(urls[store])[place]
    assert joined.pixel_scale == {"lsst": 0.1, "euclid": 0.1}
    assert join_pairs(urls, out, quietly) == 305  # nothing is left to do


def test_stores_of_stamps_of_different_sizes_are_not_joined(tmp_path):
    urls = [tiny.write_pairs(tmp_path / "one.zarr", 3)]
    joined = str(tmp_path / "there.zarr")
    join_pairs(urls, joined, quietly)
    head = tmp_path / "there.zarr" / "zarr.json"
    stated = json.loads(head.read_text())
    for band in stated["attributes"]["bands"].values():
        band["pixel_arcsec"] = 0.2
    head.write_text(json.dumps(stated))
    with pytest.raises(RequestError, match=r'pixels of 0\.2"'):
        join_pairs([urls[0], joined], str(tmp_path / "out.zarr"), quietly)
