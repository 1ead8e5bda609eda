"""docs/catalogs.md: every block of the page runs, in its order, and prints what the page shows."""

from __future__ import annotations

import pytest

from surveybridge.storage.query import query
from tests.conftest import ROOT
from tests.pages import run_page
from tests.storage.skies import TILE_DEG, make_run

LENSCAT = """name,RA [deg],DEC [deg],zlens,type,grading,ref
L1,{},{},0.41,galaxy,confirmed,https://example.org
SL2SJ0212-0555,33.1,-5.92,-,galaxy,probable,https://example.org
"""


@pytest.mark.long
def test_every_block_of_the_page_runs_and_prints_what_it_shows(tmp_path):
    make_run(tmp_path / "runs/north", side=4, rows=25, centre=(53.1, -28.0))
    make_run(tmp_path / "runs/south", side=3, rows=25, centre=(53.1, -28.0 - 5 * TILE_DEG), seed=1)
    lens = query(tmp_path / "runs/north", top=1, thumbnails=False).to_pylist()[0]
    (tmp_path / "lenscat.csv").write_text(LENSCAT.format(lens["ra"], lens["dec"] + 0.5 / 3600))
    seconds = run_page(ROOT / "docs" / "catalogs.md", tmp_path)
    assert len(seconds) >= 11
