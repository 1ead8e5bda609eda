"""docs/tutorial.md: a newcomer's commands run in their order, and print what the page says."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.pages import run_page, shows


@pytest.mark.long  # simulates, ingests and translates a field
def test_the_tutorial_runs_and_prints_what_it_shows():
    pytest.importorskip("galsim", reason="needs the sim extra")
    folder = Path(tempfile.mkdtemp(prefix="tut", dir="/tmp"))  # Ray's sockets need a short path
    try:
        # Without the minute that Ray takes a processor: `test_package` runs the demo on Ray. What the page shows are
        # scores, which do not depend on the steps of the maps.
        seconds = run_page(ROOT / "docs" / "tutorial.md", folder, "--executor serial --steps 2")
        print("\n".join(f"{taken:6.1f} s  {text.splitlines()[-1]}" for text, taken in seconds.items()))
        assert sum(seconds.values()) < 600  # ten minutes, on a busy machine too
        assert (folder / "report" / "report.html").is_file() and (folder / "first.png").is_file()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_shown_output_is_compared_word_by_word_but_for_dots():
    assert shows("4 of 4 ok\nrate ... tiles", "4 of 4 ok\nrate   1.4 tiles\n")
    assert not shows("4 of 4 ok", "4 of 5 ok")
    assert not shows("4 of 4", "4 of 4 ok")
    assert not shows("rate ... tiles", "rate 1.4")
