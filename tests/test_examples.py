"""examples/: every file runs from top to bottom on a run, and its pictures show something."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from surveybridge.storage.runs import RunFolder
from tests.conftest import ROOT
from tests.storage.test_query import add_tile
from tests.storage.test_runs import RUN, make_candidates


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_the_example_runs_and_draws(example, tmp_path):
    run = RunFolder.open_or_create(tmp_path / "run", RUN)
    table = make_candidates("a", 30, 1)
    for name in ("x", "y"):
        table = table.append_column(name, pa.array([32.0] * 30))
    add_tile(run, "a", table)
    done = subprocess.run(
        [sys.executable, str(example), run.url], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "object_id" in done.stdout
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == example.read_text().count("savefig")
    for picture in pictures:
        assert np.asarray(Image.open(picture)).std() > 5, picture.name
