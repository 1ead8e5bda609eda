"""Thumbnails of single candidates are those of the run's files, wherever these lie and even if they are moved."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from surveybridge.storage.errors import StorageError
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import THUMBNAILS, stamp_array
from surveybridge.storage.thumbnails import ThumbnailReader
from tests.storage.test_query import add_tile
from tests.storage.test_runs import RUN, make_candidates


@pytest.fixture(params=["local", "s3"])
def run(request, tmp_path):
    if request.param == "local":
        run = RunFolder.open_or_create(tmp_path / "run", RUN)
    else:
        bucket, options = request.getfixturevalue("bucket"), request.getfixturevalue("options")
        run = RunFolder.open_or_create(f"{bucket}/run", RUN, options)
    for seed, tile in enumerate("abc"):
        add_tile(run, tile, make_candidates(tile, 8, seed))
    return run


def test_they_are_the_ones_of_the_objects_asked_for(run):
    reader = ThumbnailReader(run)
    before = {tile: run.read_candidates(tile) for tile in "abc"}
    for _ in range(2):
        for tile, whole in before.items():
            found = reader.read(tile, [f"{tile}-5", f"{tile}-2", "nobody"])
            assert found.column_names == ["object_id", *THUMBNAILS]
            assert found["object_id"].to_pylist() == [f"{tile}-2", f"{tile}-5"]
            wanted = whole.take(pa.array([2, 5]))
            for name in THUMBNAILS:
                np.testing.assert_array_equal(stamp_array(found, name), stamp_array(wanted, name))
        run.compact("abc")  # and again from the segment


def test_only_the_row_group_of_the_tile_is_read(run, monkeypatch):
    run.compact("abc")
    groups: list[int] = []
    plain = pq.ParquetFile.read_row_group

    def noted(self, i, *rest, **more):
        groups.append(i)
        return plain(self, i, *rest, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    ThumbnailReader(run).read("b", ["b-1"])
    assert set(groups) == {1}


def test_a_tile_that_is_gone_says_so(run):
    with pytest.raises(StorageError, match=r"candidates/nowhere\.parquet is not in"):
        ThumbnailReader(run).read("nowhere", ["x"])
