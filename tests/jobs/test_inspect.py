"""`surveybridge inspect`: words on the command line, exit codes, and JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits

from surveybridge.__main__ import main
from tests.storage.fits_files import tan_wcs, write_survey_file


@pytest.fixture
def files(tmp_path):
    sky = np.random.default_rng(8).normal(0, 2, (64, 80))
    return [
        write_survey_file(
            tmp_path / f"{band}.fits", sky, tan_wcs(sky.shape, 0.2), header={"FILTER": band, "BUNIT": "nJy"}
        )
        for band in ("g", "r")
    ]


def test_files_stand_alone_on_the_command_line_before_and_after_flags(files, capsys):
    assert main(["inspect", files[0], "--format", "json", files[1]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["band"] for one in found] == ["g", "r"]
    assert found[0]["reading"]["psf_fwhm"] is None  # not stated
    assert found[0]["domain"] == "in"


def test_a_refused_file_is_shown_beside_the_others_and_the_exit_code_is_2(files, tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "absent.fits"), files[1]]) == 2
    said = capsys.readouterr()
    assert "no such file" in said.out
    assert "r of lsst" in said.out
    assert said.err == ""


def test_a_map_in_other_counts_is_read_with_what_one_is_worth(tmp_path, capsys):
    counts = np.full((40, 48), 3.0)
    counts[:4] = -1.0
    path = tmp_path / "av.fits"
    header = tan_wcs(counts.shape, 60.0).to_header()
    header["BUNIT"] = "mag"
    fits.PrimaryHDU(counts, header).writeto(path)
    asked = ["inspect", "--problem", "clouds-density", f"column.N={path}", "--format", "json"]
    assert main(asked) == 2
    assert "mag" in json.loads(capsys.readouterr().out)[0]["refused"]
    assert main([*asked, "--factor", "column.N=1.8e21", "--no-data", "column.N=-1"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert "1.8e+21 cm-2, given by the user" in json.dumps(found["reading"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "FILE ... is required"),
        (["a.fits", "--checkpoint", "c", "--problem", "p"], "--checkpoint c has a problem of its own"),
        (["a.fits", "--colour"], "unknown setting '--colour'"),
        (["a.fits", "--factor", "lsst.z=2"], "--factor lsst.z: lsst has no band z; it has g,r,i"),
        (["a.fits", "--no-data", "hst.g=0"], "has no endpoint 'hst'"),
        (["a.fits", "--factor", "lsst.g=-2"], "expected NAME.BAND=NUMBER, a number above 0"),
    ],
)
def test_wrong_requests_are_one_line(arguments, complaint, capsys):
    assert main(["inspect", *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
