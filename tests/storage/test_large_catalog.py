"""A catalog of a million rows: published in bounded memory, and asked in no time."""

from __future__ import annotations

import pytest

from benchmarks.catalogs import measure


@pytest.mark.long  # a million rows are made, published and asked, each in a process of its own
def test_a_million_rows_are_published_in_bounded_memory_and_asked_at_once(tmp_path):
    found = measure(1_000_000, tmp_path, "top_100", "cone_30arcsec")
    assert found["partitions"] > 4
    assert found["peak_rss_mb"] < 900  # 0.61 GB, of which 0.24 are the program
    assert found["top_100_s"]["warm"] < 1
    assert found["cone_30arcsec_s"]["warm"] < 0.5  # 0.1 s, but for whoever else has the processor meanwhile
