"""docs/howto/own-model.md: from FITS files to a model of one's own, by the commands of the page."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.storage.runs import RunFolder
from tests.conftest import ROOT
from tests.pages import run_page

LESS = {
    "surveybridge train --pairs": f"PYTHONPATH={ROOT} python -m tests.jobs.train_without_ray --pairs",
    "--steps 300 --batch-size 32": "--steps 2 --batch-size 4 --shards 2 --validation 4 --report-seconds 1e6",
    "--out models --no-arcs": "--out models --no-arcs --samples 2 --steps 1 --tiles 2",
    "--to euclid --calibrated": "--to euclid --calibrated --samples 2 --steps 1 --score-samples 2 --score-steps 1",
}
"""What the page says, and what takes less time here."""


@pytest.mark.slow  # processes that simulate, train and translate
def test_the_commands_of_the_page_make_a_model_and_translate_with_it():
    pytest.importorskip("galsim", reason="needs the sim extra")
    folder = Path(tempfile.mkdtemp(prefix="own", dir="/tmp"))  # Ray's sockets need a short path
    try:
        text = (ROOT / "docs" / "howto" / "own-model.md").read_text()
        for said, less in LESS.items():
            assert said in text
            text = text.replace(said, less)
        page = folder / "own-model.md"
        page.write_text(text)
        run_page(page, folder, "--executor serial")
        card = load_checkpoint(folder / "models" / "mine").card
        assert card.provenance["from"]["name"] == "mosaic-v3" and card.network.conditions
        assert card.conditions is not None
        # it knows what the checkpoint knew, and these images are what it now usually sees
        known = load_checkpoint("mosaic-v3").card.conditions
        assert known is not None
        (low, high), (least, most) = (of.ranges["lsst"]["fwhm"]["i"] for of in (card.conditions, known))
        assert low <= least < most <= high
        bands = ("g", "r", "i")
        here, before = (of.nominal_of("lsst", bands).fwhm[2] for of in (card.conditions, known))
        assert 0.85 < here < 1.0 and not 0.85 < before < 1.0
        run = RunFolder.open(str(folder / "runs" / "next"))
        assert set(run.ledger()["status"].to_pylist()) == {"ok"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
