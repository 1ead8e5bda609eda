"""`surveybridge ingest --dry-run`: everything is read and refused as by ingest, said, and nothing is written."""

from __future__ import annotations

import numpy as np
import pytest

from surveybridge.__main__ import main
from tests.storage.fits_files import tan_wcs, write_survey_file


@pytest.fixture
def arguments(tmp_path):
    """A Euclid image, and LSST images that cover its left two thirds."""
    random = np.random.default_rng(21)
    header = {"BUNIT": "nJy", "PSFFWHM": 0.7}
    euclid = write_survey_file(
        tmp_path / "vis.fits",
        random.normal(0, 1, (150, 300)),
        tan_wcs((150, 300), 0.1),
        header=header | {"FILTER": "VIS"},
    )
    wcs = tan_wcs((90, 100), 0.2)
    wcs.wcs.crpix = [100.5, 45.5]  # its right edge is half way between the middle and the right edge of the other
    lsst = [
        write_survey_file(
            tmp_path / f"{band}.fits", random.normal(0, 1, (90, 100)), wcs, header=header | {"FILTER": band}
        )
        for band in "gri"
    ]
    return ["ingest", "--euclid", euclid, "--lsst", *lsst, "--tile-size", "100", "--halo", "10"]


def said(capsys) -> dict[str, str]:
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}


def test_it_says_what_would_be_written_and_writes_nothing(tmp_path, arguments, capsys, caplog):
    store = tmp_path / "tiles"
    assert main([*arguments, "--store", str(store), "--dry-run"]) == 0
    lines = said(capsys)
    assert lines["store"] == f"{store}; nothing has been written"
    assert lines["field"].endswith(", new")
    assert lines["grid"].startswith("150 x 300 pixels of 0.1 arcsec, RA 53.0")
    assert lines["tiles"] == "6 of 100 pixels and a halo of 10: 2 with euclid, 4 with lsst and euclid"
    assert lines["domain"] == "in"
    assert not store.exists()


def test_a_field_that_is_there_would_be_replaced_and_stays_as_it_is(tmp_path, arguments, capsys):
    arguments += ["--store", str(tmp_path / "tiles")]
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tiles").rglob("*")}
    capsys.readouterr()
    assert main([*arguments, "--dry-run"]) == 0
    assert "in the place of the one of this name" in said(capsys)["field"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tiles").rglob("*")} == before
    assert main([*arguments, "--dry-run", "--field", "north"]) == 2
    assert "field north would have the same" in capsys.readouterr().err


def test_what_ingest_refuses_is_refused(tmp_path, arguments, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("dear all")
    assert main([*arguments, "--store", str(tmp_path / "taken"), "--dry-run"]) == 2
    assert "neither empty nor a tile store" in capsys.readouterr().err
    assert main([*arguments, "--store", str(tmp_path / "tiles"), "--tile-size", "32", "--dry-run"]) == 2
    assert "tile size 32 px is below 64 px" in capsys.readouterr().err
