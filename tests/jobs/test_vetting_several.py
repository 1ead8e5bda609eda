"""Grading over several runs, or a published catalog: one list, pictures and grades in the run of each candidate."""

from __future__ import annotations

import csv
import io
import uuid

import pytest
from PIL import Image

from surveybridge.__main__ import main
from surveybridge.jobs.vet import Config, open_session
from surveybridge.storage.grades import read_grades
from surveybridge.storage.publishing import publish
from surveybridge.storage.query import Listing, query
from surveybridge.storage.runs import RunFolder
from tests.jobs.vetting_runs import in_thread, request
from tests.storage.overlaps import write_run
from tests.storage.test_overlapping_runs import objects


@pytest.fixture
def given(tmp_path, request) -> tuple[list[str], list[str]]:
    """Two runs of overlapping fields; what is graded: these, or their catalog."""
    runs = [write_run(tmp_path / f.name, {f: places}, f.name).url for f, places in objects().items()]
    if request.param == "runs":
        return runs, runs
    publish(runs, tmp_path / "catalog")
    return runs, [str(tmp_path / "catalog")]


@pytest.mark.parametrize("given", ["runs", "catalog"], indirect=True)
def test_one_list_with_each_object_once_and_its_pictures_and_grades_in_its_run(given, tmp_path, capsys):
    runs, urls = given
    whole = query(urls, thumbnails=False)
    with in_thread(open_session(Config(run=tuple(urls)), "ann")) as url:
        session = request(f"{url}/api/session").json()
        assert session["candidates"] == whole.num_rows and session["run"] == ", ".join(urls)
        rows = request(f"{url}/api/candidates?limit=240").json()["rows"]
        assert [row["rank"] for row in rows] == list(range(1, 241))
        assert [row["object_id"] for row in rows] == whole["object_id"].to_pylist()[:240]
        chosen = [next(row for row in rows if row["run_id"] == run) for run in ("west", "east")]
        for row, grade in zip(chosen, "AX", strict=True):
            picture = request(f"{url}/api/picture?object={row['object_id'].replace('+', '%2B').replace(' ', '%20')}")
            assert picture.status == 200 and Image.open(io.BytesIO(picture.body)).size == (320, 64)
            entry = {"entry": uuid.uuid4().hex, "object_id": row["object_id"], "grade": grade}
            assert request(f"{url}/api/grades", entry).json()["mine"]["grade"] == grade
        assert request(f"{url}/api/summary").json()["graded"] == 2
    for run, row, grade in zip(runs, chosen, "AX", strict=True):
        (kept,) = read_grades(RunFolder.open(run)).to_pylist()
        assert (kept["object_id"], kept["grade"], kept["rank"]) == (row["object_id"], grade, row["rank"])
    assert open_session(Config(run=tuple(urls)), None).book.counts("ann") == {"A": 1, "X": 1}
    graded = {
        row["object_id"]: row["grades"]
        for row in query(urls, listing=Listing(grades=True), thumbnails=False).to_pylist()
    }
    assert {name: text for name, text in graded.items() if text} == {
        chosen[0]["object_id"]: "A ann",
        chosen[1]["object_id"]: "X ann",
    }
    assert main(["vet", "--run", *urls, "--export", str(tmp_path / "graded.csv")]) == 0
    assert f"graded    2 of {whole.num_rows}" in capsys.readouterr().out
    table = list(csv.DictReader((tmp_path / "graded.csv").read_text().splitlines()))
    assert [row["object_id"] for row in table] == [row["object_id"] for row in chosen]
