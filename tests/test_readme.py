"""README.md: its lines of shell, then of Python, run in their order on a smaller field, as in a new user's shell."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.pages import BLOCK, run_page


@pytest.mark.slow  # processes that simulate, ingest and translate a field
def test_the_lines_of_shell_and_of_python_run_in_their_order():
    pytest.importorskip("galsim", reason="needs the sim extra")
    readme = (ROOT / "README.md").read_text()
    chosen = [
        f"```{kind}\n{text}```"
        for kind, text in BLOCK.findall(readme)
        if kind == "python" or "surveybridge simulate" in text
    ]
    assert len(chosen) == 2 and chosen[0].count("surveybridge ") == 5
    assert "--size 1024 --lenses 4" in chosen[0]
    folder = Path(tempfile.mkdtemp(prefix="readme", dir="/tmp"))  # Ray's sockets need a short path
    try:
        page = folder / "README.md"
        text = "\n".join(chosen).replace("--size 1024 --lenses 4", "--size 300 --lenses 1")
        assert "samples=2)" in text
        page.write_text(text.replace("samples=2)", "samples=2, steps=2)"))
        run_page(page, folder, "--executor serial --samples 2 --steps 2 --score-samples 2 --score-steps 2")
        assert {"sky", "tiles", "runs", "field.fits", "field.png"} <= {path.name for path in folder.iterdir()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
