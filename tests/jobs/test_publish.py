"""The commands `publish` and `query` on a catalog: what they print, write and refuse."""

from __future__ import annotations

import json

import pytest
from astropy.table import Table

from surveybridge.__main__ import main
from surveybridge.storage.catalogs import Catalog
from surveybridge.storage.objectstore import Folder
from tests.storage.skies import make_run
from tests.tiny import files_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("command") / "run", side=2, rows=10)


@pytest.fixture(scope="module")
def catalog(run):
    assert main(["publish", "--run", run.url]) == 0
    return f"{run.url}/catalog"


def test_a_run_is_published_beside_its_files_and_said_so(run, catalog, capsys):
    assert Catalog.open(catalog).facts["rows"] == 40
    assert main(["publish", "--run", run.url]) == 0
    assert capsys.readouterr().out.startswith(f"published before: {catalog}: 40 candidates of 4 tiles\n")
    assert main(["query", "--run", run.url, "--top", "1"]) == 0  # the run is still a run


def test_through_ray_it_is_the_same_catalog(run, tmp_path, ray_cluster):
    for name, more in (("serial", []), ("ray", ["--executor", "ray", "--workers", "2"])):
        arguments = ["--run", run.url, "--out", str(tmp_path / name), "--partition-rows", "15"]
        assert main(["publish", *arguments, *more]) == 0
    serial, ray = (files_of(tmp_path / name) for name in ("serial", "ray"))
    assert {k: v for k, v in ray.items() if "lease" not in k} == {k: v for k, v in serial.items() if "lease" not in k}
    assert sum("dataset/Norder" in name for name in serial) > 2  # partitions, for two workers to share


@pytest.mark.parametrize("ending", ["csv", "json", "parquet", "vot", "fits", "reg"])
def test_a_file_by_its_ending(catalog, tmp_path, capsys, ending):
    out = tmp_path / f"found.{ending}"
    assert main(["query", "--run", catalog, "--box", "359,1,-1,1", "--top", "6", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 6 rows\n"
    if ending == "json":
        assert len(json.loads(out.read_text())) == 6
    elif ending == "reg":
        assert out.read_text().count("circle") == 6
    else:
        form = {"vot": "votable", "csv": "ascii.csv"}.get(ending, ending)
        assert len(Table.read(out, format=form)) == 6


def test_columns_and_a_match_in_a_printed_table(catalog, tmp_path, capsys):
    best = json.loads(run_query(capsys, "--run", catalog, "--top", "1", "--format", "json"))[0]
    lenses = tmp_path / "catalog.csv"
    lenses.write_text(f"name,RA [deg],DEC [deg],zlens\nthe lens,{best['ra']},{best['dec']},0.3\n")
    printed = run_query(capsys, "--run", catalog, "--match", str(lenses)).splitlines()
    assert len(printed) == 2 and "the lens" in printed[1] and "match_separation" in printed[0]
    printed = run_query(capsys, "--run", catalog, "--columns", "rank", "tile_id", "--top", "2").splitlines()
    assert printed[0].split() == ["rank", "tile_id"] and len(printed) == 3


def run_query(capsys, *arguments: str) -> str:
    assert main(["query", *arguments]) == 0
    return str(capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--cone", "1,99,1"], "declination 99 is 99 deg, outside -90..90"),
        (["--box", "1,2,3"], "--box 1 2 3: has 3 value(s) but needs 4"),
        (["--box", "1,2,5,3"], "DECMIN 5 and DECMAX 3"),
        (["--moc", "somewhere"], "neither a file in FITS"),
        (["--cone", "1,2,3", "--moc", "3/4"], "--cone and --moc are given"),
        (["--top", "3000000000"], "top 3000000000 lies outside 0..2147483647"),
        (["--columns", "score", "score"], "score are named twice"),
        (["--sql", "SELECT ra AS a, dec AS a FROM candidates"], "two columns the name a"),
        (["--top", "1", "--out", "/proc/x.csv"], "/proc/x.csv cannot be written"),
        (["--columns", "flux_z"], "unknown column(s) flux_z; known: object_id"),
        (["--sql", "SELECT flux_z FROM candidates"], "candidates has object_id"),
        (["--sql", "SELECT 1", "--box", "1,2,3,4"], "--sql is given with"),
        (["--match", "absent.csv"], "absent.csv does not exist"),
        (["--out", "found.docx"], "ends in none of .csv"),
        (["--format", "fits"], "is binary; give --out"),
        (["--format", "table", "--out", "x.csv"], "leave out one of them"),
    ],
)
def test_a_wrong_question_is_one_line_and_exit_2_and_writes_nothing(
    catalog, tmp_path, monkeypatch, capsys, arguments, complaint
):
    monkeypatch.chdir(tmp_path)
    assert main(["query", "--run", catalog, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and complaint in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ([], "--run is required"),
        (["--run", "nowhere"], "is not a run folder"),
        (["--run", "RUN", "other"], "2 runs are given but no --out"),
        (["--run", "RUN", "--keep", "1", "--out", "new"], "--keep 1"),
        (["--run", "RUN", "--name", "a b", "--out", "new"], "name 'a b'"),
        (["--run", "RUN", "--moc", "29/0", "--out", "new"], "nothing to publish"),
        (["--run", "RUN", "--out", "RUN"], "neither empty nor a catalog"),
        (["--run", "RUN", "--out", "/proc/catalog"], "cannot be written"),
    ],
)
def test_a_wrong_publication_is_one_line_and_exit_2(run, tmp_path, monkeypatch, capsys, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    before = Folder.at(run.url).names()
    assert main(["publish", *(run.url if item == "RUN" else item for item in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and complaint in err and len(err.splitlines()) == 1
    assert Folder.at(run.url).names() == before
