"""Queries: only finished tiles, one ranking, cones as astropy measures them, and SQL that can read nothing else."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord
from s3fs.core import S3File

from surveybridge.__main__ import main
from surveybridge.storage.errors import StorageError
from surveybridge.storage.grades import write_grade
from surveybridge.storage.mosaics import TileMosaic
from surveybridge.storage.query import Listing, query, select
from surveybridge.storage.regions import Cone
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import CANDIDATES, THUMBNAILS, stamp_array
from tests.storage.test_runs import RUN, make_candidates, make_header, make_planes

CENTRE = (53.105, -27.995)


def add_tile(run: RunFolder, tile_id: str, table: pa.Table, commit: bool = True) -> None:
    mean, std, coverage = make_planes((64, 64))
    run.write_mosaic(TileMosaic(tile_id, make_header(), ("VIS",), mean, std, coverage, (0, 0), "grid"))
    run.write_candidates(tile_id, table)
    if commit:
        run.commit({"tile_id": tile_id, "status": "ok", "n_candidates": table.num_rows})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = RunFolder.open_or_create(tmp_path_factory.mktemp("query") / "run", RUN)
    add_tile(run, "a", make_candidates("a", 60, 1))
    add_tile(run, "b", make_candidates("b", 40, 2))
    add_tile(run, "empty", CANDIDATES.empty_table())
    add_tile(run, "unfinished", make_candidates("unfinished", 5, 3), commit=False)
    add_tile(run, "bad", make_candidates("bad", 5, 4), commit=False)
    run.commit({"tile_id": "bad", "status": "failed", "reason": "chunk is corrupt"})
    return run


@pytest.fixture(scope="module")
def truth(run):
    return pa.concat_tables([run.read_candidates("a"), run.read_candidates("b")])


def test_all_candidates_of_finished_tiles_by_falling_score(run, truth):
    found = query(run.url)
    assert found.num_rows == 100
    assert found["rank"].to_pylist() == list(range(1, 101))
    scores = found["score"].to_numpy()
    assert (np.diff(scores) <= 0).all()
    assert set(found["object_id"].to_pylist()) == set(truth["object_id"].to_pylist())


def test_top_has_the_thumbnails_of_its_own_objects(run, truth):
    found = query(run.url, top=7)
    assert found.num_rows == 7
    place = truth["object_id"].to_pylist()
    wanted = stamp_array(truth, "thumbnail_euclid")[[place.index(name) for name in found["object_id"].to_pylist()]]
    np.testing.assert_array_equal(stamp_array(found, "thumbnail_euclid"), wanted)
    assert not set(THUMBNAILS) & set(query(run.url, top=7, thumbnails=False).column_names)
    assert query(run.url, top=0).num_rows == 0


@pytest.mark.parametrize("radius", [0.5, 5.0, 15.0, 3600.0])
def test_a_cone_finds_what_astropy_finds_and_keeps_the_rank_of_the_run(run, truth, radius):
    sky = SkyCoord(truth["ra"].to_numpy(), truth["dec"].to_numpy(), unit="deg")
    distance = sky.separation(SkyCoord(*CENTRE, unit="deg")).arcsec
    wanted = dict(zip(truth["object_id"].to_pylist(), distance, strict=True))
    found = query(run.url, Cone(*CENTRE, radius), thumbnails=False)
    assert set(found["object_id"].to_pylist()) == {name for name, d in wanted.items() if d <= radius}
    for name, separation in zip(found["object_id"].to_pylist(), found["separation"].to_pylist(), strict=True):
        assert abs(separation - wanted[name]) < 1e-6
    ranks = dict(zip(*(query(run.url, thumbnails=False)[c].to_pylist() for c in ("object_id", "rank")), strict=True))
    assert found["rank"].to_pylist() == [ranks[name] for name in found["object_id"].to_pylist()]


def test_a_cone_across_ra_zero_and_top_together(tmp_path):
    run = RunFolder.open_or_create(tmp_path, RUN)
    ra = [359.9999, 0.0001, 0.001, 180.0]
    add_tile(run, "a", pa.table({"object_id": list("abcd"), "ra": ra, "dec": [0.0] * 4, "score": [1.0, 2.0, 3.0, 9.0]}))
    assert query(tmp_path, Cone(0.0, 0.0, 1.0))["object_id"].to_pylist() == ["b", "a"]
    assert query(tmp_path, Cone(360.0, 0.0, 5.0), top=1)["object_id"].to_pylist() == ["c"]


def test_equal_scores_rank_by_object_and_missing_scores_last(tmp_path):
    run = RunFolder.open_or_create(tmp_path, RUN)
    scores = [1.0, None, 1.0, float("nan")]
    add_tile(run, "a", pa.table({"object_id": list("dcba"), "ra": [1.0] * 4, "dec": [0.0] * 4, "score": scores}))
    assert query(tmp_path)["object_id"].to_pylist() == ["b", "d", "a", "c"]


def test_sql_sees_candidates_and_ledger(run):
    found = select(run.url, "SELECT tile_id, count(*) AS n, min(rank) AS best FROM candidates GROUP BY 1 ORDER BY 1")
    assert found.select(["tile_id", "n"]).to_pylist() == [{"tile_id": "a", "n": 60}, {"tile_id": "b", "n": 40}]
    assert min(found["best"].to_pylist()) == 1
    failed = select(run.url, "SELECT tile_id, reason FROM ledger WHERE status = 'failed'")
    assert failed.to_pylist() == [{"tile_id": "bad", "reason": "chunk is corrupt"}]


@pytest.mark.parametrize(
    "sql, complaint",
    [
        ("SELEC 1", "Parser Error"),
        ("SELECT nothing FROM candidates", "nothing"),
        ("SELECT 1; SELECT 2", "SELECT, SELECT"),
        ("", "nothing"),
        ("CREATE TABLE t (i int)", "CREATE"),
        ("COPY candidates TO '/tmp/x.csv'", "COPY"),
        ("SET enable_external_access = true", "SET"),
        ("SELECT * FROM read_csv('/etc/hostname')", "disabled by configuration"),
        ("SELECT CAST('a' AS int)", "Conversion Error"),
    ],
)
def test_sql_that_is_wrong_or_reaches_outside_is_refused(run, sql, complaint):
    with pytest.raises(StorageError, match=complaint) as error:
        select(run.url, sql)
    assert "\n" not in str(error.value)


def test_questions_that_cannot_be_are_refused(run):
    with pytest.raises(StorageError, match="top -1"):
        query(run.url, top=-1)
    with pytest.raises(StorageError, match="dec 99"):
        query(run.url, Cone(1, 99, 1))


def test_a_run_without_finished_tiles_is_an_empty_table(tmp_path):
    RunFolder.open_or_create(tmp_path, RUN)
    for found in (query(tmp_path), query(tmp_path, Cone(*CENTRE, 10))):
        assert found.num_rows == 0
        assert set(CANDIDATES.names) <= set(found.column_names)
    found = select(tmp_path, "SELECT * FROM candidates")
    assert (found.num_rows, set(CANDIDATES.names) - set(found.column_names)) == (0, set(THUMBNAILS))


def test_sql_has_the_thumbnails_that_it_names(run, truth):
    assert not set(THUMBNAILS) & set(select(run.url, "SELECT * FROM candidates").column_names)
    found = select(run.url, "SELECT object_id, Thumbnail_Euclid FROM candidates ORDER BY object_id")
    stamps = dict(zip(truth["object_id"].to_pylist(), truth["thumbnail_euclid"].to_pylist(), strict=True))
    assert found.num_rows == truth.num_rows
    for name, stamp in zip(found["object_id"].to_pylist(), found.column(1).to_pylist(), strict=True):
        np.testing.assert_array_equal(stamp, stamps[name])


# -- the command --


def test_sql_over_more_thumbnails_than_memory_holds_is_refused_with_both_numbers(run, monkeypatch):
    monkeypatch.setattr("surveybridge.storage.views.MOST_GIB", 0.001)
    with pytest.raises(StorageError, match=r"thumbnails of 100 candidates of .* takes 0.00153 GiB, at most 0.001 are"):
        select(run.url, "SELECT thumbnail_euclid FROM candidates")
    assert select(run.url, "SELECT count(*) AS n FROM candidates")["n"].to_pylist() == [100]


@pytest.mark.parametrize("compacted", [False, True])
def test_a_search_in_object_storage_fetches_few_thumbnails(bucket, options, monkeypatch, compacted):
    run = RunFolder.open_or_create(f"{bucket}/run", RUN, options)
    for seed, tile in enumerate("abcd"):
        add_tile(run, tile, make_candidates(tile, 20, seed))
    if compacted:
        run.compact("abcd")
    fetched: list[int] = []
    plain = S3File._fetch_range

    def noted(self, start, end):
        fetched.append(end - start)
        return plain(self, start, end)

    monkeypatch.setattr(S3File, "_fetch_range", noted)
    thumbnails = 80 * 64 * 64 * 4  # nearly all bytes of the run
    assert query(run.url, thumbnails=False, storage_options=options).num_rows == 80
    assert 0 < sum(fetched) < thumbnails / 4
    assert select(run.url, "SELECT * FROM candidates", storage_options=options).num_rows == 80
    assert sum(fetched) < thumbnails / 2
    fetched.clear()
    assert query(run.url, top=1, storage_options=options)["thumbnail_euclid"].null_count == 0
    assert sum(fetched) < thumbnails / 2


def test_the_command_prints_a_table_without_thumbnails(run, capsys):
    assert main(["query", "--run", run.url, "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["rank", "object_id", "ra", "dec"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    assert max(map(len, lines)) < 200


def test_a_table_nobody_limited_is_a_screenful_and_says_so(run, capsys):
    assert main(["query", "--run", run.url]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 21
    assert "--top N" in err


def test_csv_and_json_have_every_row_and_all_columns_but_thumbnails(run, capsys):
    assert main(["query", "--run", run.url, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 100
    assert set(rows[0]) == set(CANDIDATES.names) - set(THUMBNAILS)
    assert main(["query", "--run", run.url, "--format", "json", "--cone", f"{CENTRE[0]},{CENTRE[1]},15"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found and all(row["separation"] <= 15 for row in found)


def test_nothing_found_is_an_empty_table_and_no_error(run, capsys):
    assert main(["query", "--run", run.url, "--cone", "10,10,1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sql", "SELEC 1"],
        ["--sql", "SELECT 1", "--top", "3"],
        ["--cone", "10,95,1"],
        ["--run", "/nowhere/run"],
    ],
)
def test_a_wrong_request_is_one_line_and_exit_2(run, capsys, arguments):
    where = [] if "--run" in arguments else ["--run", run.url]
    assert main(["query", *where, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("surveybridge query: error: ") and len(err.splitlines()) == 1


def test_grades_stand_beside_the_candidates_and_in_sql(tmp_path):
    run = RunFolder.open_or_create(tmp_path / "run", RUN)
    add_tile(run, "a", make_candidates("a", 6, 1))
    assert (
        "grades" not in query(run.url, listing=Listing(grades=True), thumbnails=False).column_names
    )  # nobody has graded
    best, second = query(run.url, top=2, thumbnails=False)["object_id"].to_pylist()
    for grader, object_id, grade in (
        ("Bob", best, "X"), ("Ada", best, "C"), ("Ada", best, "A"), ("Bob", second, "B"), ("Bob", second, None),
    ):  # fmt: skip
        write_grade(run, grader, object_id, grade)
    found = query(run.url, listing=Listing(grades=True), thumbnails=False)
    assert found["grades"].to_pylist() == ["A Ada; X Bob", None, None, None, None, None]
    assert query(run.url, columns=["rank", "grades"], top=1).to_pylist() == [{"rank": 1, "grades": "A Ada; X Bob"}]
    graded = select(
        run.url,
        "SELECT candidates.rank, grader, grade FROM grades JOIN candidates USING (object_id) ORDER BY grader",
    )
    assert [tuple(row.values()) for row in graded.to_pylist()] == [(1, "Ada", "A"), (1, "Bob", "X")]
