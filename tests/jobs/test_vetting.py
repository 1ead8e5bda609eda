"""Lists of the grading page, its summary and its server: what they show, what they write, and whom they refuse."""

from __future__ import annotations

import csv
import datetime
import errno
import io
import signal
import urllib.parse

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from surveybridge.__main__ import main
from surveybridge.jobs.drawing.rendering import candidate_pictures, views
from surveybridge.jobs.vet import Config, open_session
from surveybridge.jobs.vetting.book import Book
from surveybridge.jobs.vetting.listing import Candidates, ListRequest, shuffle_keys
from surveybridge.jobs.vetting.summary import graded_table, summary
from surveybridge.storage.grades import latest_grades, read_grades, write_grade
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.query import query
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.sky import healpix_29
from tests.jobs.vetting_runs import EACH, NASTY, TILES, command, in_thread, make_run, request
from tests.storage.faults import moto_server

pytestmark = pytest.mark.long

TOTAL = TILES * EACH


@pytest.fixture
def run(run_to_grade):
    return run_to_grade


@pytest.fixture
def session(run):
    return open_session(Config(run=run.url), None)


@pytest.fixture
def url(session):
    with in_thread(session) as url:
        yield url


def entry(number: int) -> str:
    return f"{number:032x}"


def grade(url: str, number: int, object_id: str, grade: str | None, grader: str = "ann", **more):
    document = {"entry": entry(number), "object_id": object_id, "grader": grader, "grade": grade}
    return request(f"{url}/api/grades", document | more)


def listed(url: str, **asked):
    answer = request(f"{url}/api/candidates?{urllib.parse.urlencode({'grader': 'ann', 'limit': 200} | asked)}")
    assert answer.status == 200, answer.body
    return answer.json()


def names(found) -> list[str]:
    return [row["object_id"] for row in found["rows"]]


# -- lists --


def test_a_list_is_by_rank_and_comes_in_parts(url):
    whole = listed(url)
    assert (whole["total"], len(whole["rows"])) == (TOTAL, TOTAL)
    assert [row["rank"] for row in whole["rows"]] == list(range(1, TOTAL + 1))
    parts = [listed(url, offset=offset, limit=20, at=whole["at"]) for offset in range(0, TOTAL, 20)]
    assert [name for part in parts for name in names(part)] == names(whole)


def test_sorts_and_filters_are_those_of_the_table(url, run):
    table = query(run.url, thumbnails=False).to_pandas()
    by_flux = table.sort_values("flux_VIS", ascending=False)
    assert names(listed(url, sort="brightest")) == by_flux["object_id"].tolist()
    assert names(listed(url, sort="faintest")) == by_flux["object_id"].tolist()[::-1]
    assert names(listed(url, signal=100)) == table[table["snr_VIS"] >= 100]["object_id"].tolist()
    assert names(listed(url, top=7)) == table["object_id"].tolist()[:7]
    assert names(listed(url, text="j2-1")) == [name for name in table["object_id"] if "J2-1" in name]
    assert names(listed(url, text="ONERROR='alert(1)'>")) == [NASTY]
    assert (
        names(listed(url, text="t1", top=20))
        == table[(table.tile_id == "t1") & (table["rank"] <= 20)].object_id.tolist()
    )


def test_a_shuffle_is_the_seeds_alone_and_new_candidates_move_no_others(url):
    first, again, other = (names(listed(url, sort="shuffle", seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == sorted(other) == sorted(names(listed(url)))
    rng = np.random.default_rng(0)
    sky = healpix_29(rng.uniform(50, 51, 5000), rng.uniform(-30, -29, 5000))
    keys = shuffle_keys(sky, 3)
    assert (keys[:100] == shuffle_keys(sky[:100], 3)).all()
    # No trace of the order on the sky in the order of the shuffle.
    assert abs(np.corrcoef(np.argsort(np.argsort(keys)), np.argsort(np.argsort(sky)))[0, 1]) < 0.05


def test_grading_does_not_move_what_is_still_to_come(url):
    before = listed(url, show="ungraded")
    for k, name in enumerate(names(before)[:5]):
        assert grade(url, k, name, "ABCXX"[k]).status == 200
    assert names(listed(url, show="ungraded", at=before["at"])) == names(before)
    assert names(listed(url, show="ungraded")) == names(before)[5:]
    assert names(listed(url, show="lenses")) == names(before)[:2]
    assert names(listed(url, show="X")) == names(before)[3:5]
    assert names(listed(url, sort="recent")) == names(before)[:5][::-1]
    assert listed(url, top=4)["graded"] == 4
    assert listed(url)["counts"] == {"A": 1, "B": 1, "C": 1, "X": 2}


def test_missing_numbers_sort_last_and_pass_no_filter(run):
    table = query(run.url, top=4)
    numbers = {"flux_VIS": [None, 1.0, float("nan"), 5.0], "snr_VIS": [None, 1.0, 9.0, None]}
    for name, values in numbers.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.float32()))
    candidates, book = Candidates(table, run.problem), Book([run])
    assert candidates.listed(ListRequest(sort="brightest"), "ann", book).tolist() == [3, 1, 0, 2]
    assert candidates.listed(ListRequest(signal=0.0), "ann", book).tolist() == [1, 2]


# -- grades --


def test_a_grade_is_on_disk_when_the_answer_comes_with_what_was_seen(url, run):
    sent = datetime.datetime.now(datetime.UTC)
    assert grade(url, 1, NASTY, "A", comment=NASTY).status == 200
    (row,) = read_grades(run).to_pylist()
    rank = next(one["rank"] for one in listed(url)["rows"] if one["object_id"] == NASTY)
    wanted = {"object_id": NASTY, "grader": "ann", "grade": "A", "comment": NASTY, "rank": rank, "model_id": "m1"}
    assert row | wanted == row
    assert abs((row["graded_at"] - sent).total_seconds()) < 30


def test_an_entry_sent_twice_counts_once_and_a_late_one_stands_at_its_time(url, run):
    assert grade(url, 1, "SB J0-00", "A").status == 200
    assert grade(url, 1, "SB J0-00", "A").status == 200
    assert grade(url, 2, "SB J0-00", "X", age=3600).status == 200  # was waiting in another tab
    assert grade(url, 1, "SB J0-01", "A").status == 400  # an entry is of one object
    assert grade(url, 1, "SB J0-00", "B", "bob").status == 200  # and of one grader
    assert read_grades(run)["grader"].to_pylist().count("bob") == 1
    assert read_grades(run).num_rows == 3
    assert latest_grades(read_grades(run))["grade"].to_pylist() == ["A", "B"]
    assert listed(url, limit=1)["rows"][0]["mine"]["grade"] == "A"


def test_graders_do_not_see_each_other_unless_they_ask(url, run):
    grade(url, 1, "SB J0-00", "A", "ann")
    grade(url, 2, "SB J0-00", "X", "bob", comment="a spiral")
    write_grade(run, "cyd", "SB J0-01", "B")
    assert b"bob" not in request(f"{url}/api/candidates?grader=ann").body
    (row,) = listed(url, limit=1, reveal=True)["rows"]
    assert row["mine"]["grade"] == "A"
    assert [(other["grader"], other["grade"], other["comment"]) for other in row["others"]] == [
        ("bob", "X", "a spiral")
    ]
    assert names(listed(url, show="disputed")) == ["SB J0-00"]


def test_what_another_process_writes_is_seen(session, run):
    write_grade(run, "bob", "SB J0-00", "B")
    session.book._read_at = -1e9  # as if some seconds had passed
    session.book.refresh()
    assert session.book.counts("bob") == {"B": 1}


@pytest.mark.parametrize(
    ("document", "status", "said"),
    [
        ({"grade": "D"}, 400, "give one of A, B, C, X"),
        ({"grade": 3}, 400, "grade"),
        ({"entry": "../../etc/x"}, 400, "entry"),
        ({"object_id": "nobody"}, 404, "no candidate 'nobody'"),
        ({"grader": "  "}, 400, "1 to 80 printable"),
        ({"comment": "x" * 2001}, 400, "2001 characters"),
        ({"comment": "x" * 100_000}, 413, ""),
        ({"path": "/etc/passwd"}, 400, "path"),
        ({"age": -5}, 400, "age"),
    ],
)
def test_a_wrong_grade_is_refused_and_writes_nothing(url, run, document, status, said):
    whole = {"entry": entry(1), "object_id": "SB J0-00", "grader": "ann", "grade": "A"}
    answer = request(f"{url}/api/grades", whole | document)
    assert answer.status == status
    assert said in answer.body.decode()
    assert not run.folder.names("grades")


@pytest.mark.parametrize("asked", ["sort=sideways", "limit=9999", "offset=-1", "at=x", "nothing=1", "grader="])
def test_a_wrong_list_is_refused(url, asked):
    assert (
        request(f"{url}/api/candidates?grader=ann&{asked}" if asked != "grader=" else f"{url}/api/candidates").status
        == 400
    )


def test_what_is_no_json_is_refused(url):
    assert request(f"{url}/api/grades", [1, 2]).status == 400
    assert request(f"{url}/api/grades", "text").status == 400
    assert request(f"{url}/api/grades", b'{"entry": ').status == 400


def test_a_run_in_object_storage_is_graded_in_the_same_way(monkeypatch):
    pytest.importorskip("moto.server", reason="needs the dev extra: moto[server]")
    with moto_server() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        Folder.at("s3://vetting").filesystem.mkdir("vetting")
        run = make_run("s3://vetting/runs")
        with in_thread(open_session(Config(run=run.url), None)) as url:
            assert listed(url)["total"] == TOTAL
            assert request(f"{url}/api/picture?object=SB+J0-00").headers["Content-Type"] == "image/png"
            for grader in ("ann", "bob"):
                assert grade(url, 1, NASTY, "A", grader, comment=NASTY).status == 200
        assert latest_grades(read_grades(RunFolder.open(run.url)))["comment"].to_pylist() == [NASTY, NASTY]


def test_a_disk_that_is_full_is_said_and_the_entry_may_come_again(url, run, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Folder, "put", full)
        answer = grade(url, 1, "SB J0-00", "A")
    assert (answer.status, "No space left" in answer.json()["error"]) == (503, True)
    assert listed(url, limit=1)["rows"][0]["mine"] is None
    assert grade(url, 1, "SB J0-00", "A").status == 200
    assert read_grades(run).num_rows == 1


# -- pictures --


def test_a_strip_is_the_pictures_of_its_object_side_by_side(url, run):
    for name in ("SB J2-03", NASTY):
        asked = urllib.parse.urlencode({"object": name, "stretch": 2})
        answer = request(f"{url}/api/picture?{asked}")
        assert (answer.status, answer.headers["Content-Type"]) == (200, "image/png")
        tile = "t2" if name == "SB J2-03" else "t1"
        row = next(row for row in run.read_candidates(tile).to_pylist() if row["object_id"] == name)
        wanted = np.concatenate(list(candidate_pictures(row, run.problem, 2).values()), axis=1)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.body))), wanted)
        assert wanted.shape == (64, 64 * len(views(run.problem)), 3)


@pytest.mark.parametrize(
    "asked", ["object=nobody", "object=../../run.json", "object=SB+J0-00&stretch=1e9", "object=SB+J0-00&stretch=x"]
)
def test_a_picture_of_nothing_is_refused(url, asked):
    assert request(f"{url}/api/picture?{asked}").status in (400, 404)


@pytest.mark.parametrize(
    "path",
    ["/static/../vet.py", "/static/%2e%2e/vet.py", "/static/server.py", "/static//etc/passwd", "/run.json", "/grades"],
)
def test_no_other_file_is_given_out(url, path):
    assert request(url + path).status == 404


# -- whom the server answers --


def test_a_page_of_another_origin_is_refused(url, run):
    document = {"entry": entry(1), "object_id": "SB J0-00", "grader": "ann", "grade": "A"}
    host = url.removeprefix("http://")
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Content_Type": "text/plain"},
        {"Host": "evil.example"},
        {"Host": ""},
        {"Origin": "http://["},
        {"Host": f"evil.example:{host.split(':')[1]}", "Origin": f"http://evil.example:{host.split(':')[1]}"},
    ):
        answer = request(f"{url}/api/grades", document, **headers)
        assert answer.status == 403, headers
    assert request(f"{url}/api/candidates?grader=ann", Sec_Fetch_Site="cross-site").status == 403
    assert request(f"{url}/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200  # a link
    assert not run.folder.names("grades")
    assert request(f"{url}/api/grades", document, Origin=url, Sec_Fetch_Site="same-origin").status == 200
    assert request(f"{url}/", Host="localhost:9999").status == 200  # through a tunnel


def test_elsewhere_than_on_the_loopback_the_token_is_asked_for(session):
    token = "a-token-of-some-length"
    with in_thread(session, "0.0.0.0", token) as url:
        for path in ("/", "/api/session", "/api/candidates?grader=a", "/static/vet.js", "/api/graded.csv"):
            assert request(url + path).status == 401
            assert request(f"{url}{path}{'&' if '?' in path else '?'}token=wrong").status == 401
            assert request(url + path, Authorization=f"Bearer {token}").status == 200
        first = request(f"{url}/?token={token}")
        cookie = first.headers["Set-Cookie"]
        assert first.status == 200 and "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert request(f"{url}/api/session", Cookie=cookie.split(";")[0]).status == 200
        assert request(f"{url}/?token={token}", Host="evil.example").status == 403


def test_every_answer_forbids_foreign_scripts_frames_and_guesses(url):
    for path in ("/", "/static/vet.js", "/api/session", "/nothing"):
        headers = request(url + path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert (headers["X-Frame-Options"], headers["X-Content-Type-Options"]) == ("DENY", "nosniff")


# -- summary and export --


def test_the_summary_has_progress_agreement_and_purity(session, url):
    top = names(listed(url, limit=10))
    for k, name in enumerate(top):
        grade(url, k, name, "AABBX"[k % 5], "ann")
        if k < 5:
            grade(url, 100 + k, name, "AABBX"[k % 5], "bob")
    grade(url, 200, top[5], "X", "bob")
    found = request(f"{url}/api/summary?grader=ann").json()
    assert (found["graded"], found["candidates"], found["shared"]) == (10, TOTAL, 6)
    assert {row["grader"]: row["A"] for row in found["graders"]} == {"ann": 4, "bob": 2}
    assert 0 < found["alpha"] < 1
    assert found["pairs"][0]["objects"] == 6
    mine, agreed = found["purity"]["ann"][0], found["purity"]["all graders"][0]
    assert (mine["top"], mine["graded"], mine["lenses"], mine["purity"]) == (10, 10, 8, 0.8)
    assert agreed["lenses"] == 7  # A and X is C: halves go to the worse


def test_the_export_is_a_row_an_object_best_first_and_quotes_what_needs_it(url, run, tmp_path, capsys):
    grade(url, 1, NASTY, "B", "ann", comment='says "ring", twice\nover two lines')
    grade(url, 2, NASTY, "A", "bob")
    grade(url, 3, "SB J0-03", "A", "ann")
    grade(url, 4, "SB J0-04", "A", "ann")
    grade(url, 5, "SB J0-04", None, "ann")  # taken back
    answer = request(f"{url}/api/graded.csv")
    assert "attachment" in answer.headers["Content-Disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.body.decode(), newline="")))
    assert [row["object_id"] for row in rows] == ["SB J0-03", NASTY]
    assert (rows[1]["consensus"], rows[1]["mean_grade"], rows[1]["n_A"], rows[1]["n_B"]) == ("B", "2.5", "1", "1")
    assert rows[1]["grades"] == "ann: B; bob: A"
    assert rows[1]["comments"] == 'ann: says "ring", twice\nover two lines'
    assert float(rows[0]["ra"]) > 53
    assert main(["vet", "--run", run.url, "--export", str(tmp_path / "graded.csv")]) == 0
    assert (tmp_path / "graded.csv").read_bytes() == answer.body
    assert "graded    2 of 75 candidates" in capsys.readouterr().out


def test_what_graders_typed_is_no_formula_for_a_spreadsheet(url):
    for number, name in enumerate(("=1+1", "+1", "-1", "@sum", "Ann")):
        grade(url, number, f"SB J0-0{number}", "A", name, comment="=1+1")
    rows = csv.DictReader(io.StringIO(request(f"{url}/api/graded.csv").body.decode(), newline=""))
    written = [(row["grades"], row["comments"]) for row in rows]
    assert written[:4] == [(f"'{name}: A", f"'{name}: =1+1") for name in ("=1+1", "+1", "-1", "@sum")]
    assert written[4] == ("Ann: A", "Ann: =1+1")


def test_nothing_graded_is_an_empty_list_and_no_purity(run):
    table, latest = query(run.url, thumbnails=False), latest_grades(read_grades(run))
    assert graded_table(table, latest).num_rows == 0
    found = summary(table, latest)
    assert (found["graded"], found["alpha"], found["pairs"]) == (0, None, [])
    assert found["purity"]["all graders"][0]["purity"] is None


# -- the command --


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--run", "/nowhere/run"], "is not a run folder"),
        (["--grader", "a\nb"], "1 to 80 printable"),
        (["--host", "203.0.113.7"], "give another --host or --port"),
        (["--cone", "10,10,1"], "no candidate to grade"),
        (["--export", "/proc/x.csv"], "/proc/x.csv cannot be written"),
        (["--export", "/tmp"], "/tmp cannot be written"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_2(run, capsys, arguments, said):
    where = [] if "--run" in arguments else ["--run", run.url]
    assert main(["vet", *where, "--port", "0", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err.splitlines()[-1]
    assert not run.folder.names("grades")


def test_a_short_token_is_refused(run, capsys, monkeypatch):
    monkeypatch.setenv("SURVEYBRIDGE_TOKEN", "short")
    assert main(["vet", "--run", run.url, "--port", "0"]) == 2
    assert "short" not in (err := capsys.readouterr().err) and "at least 16" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_its_address_and_stops_cleanly(run, number):
    with command(run.url, "--port", "0", "--grader", "ann", "--top", "30") as vet:
        found = request(f"{vet.url}api/session").json()
        assert (found["grader"], found["candidates"]) == ("ann", 30)
        assert grade(vet.url.rstrip("/"), 1, "SB J0-00", "A", "somebody else").status == 200
        vet.process.send_signal(number)
        assert vet.process.wait(30) == 0
    assert read_grades(run)["grader"].to_pylist() == ["ann"]  # the server's grader, whatever a page says


def test_entries_keep_their_order_however_long_a_request_takes(run):
    book = Book([run])
    now = datetime.datetime.now(datetime.UTC)
    (name,) = query(run.url, top=1, thumbnails=False)["object_id"].to_pylist()
    late = datetime.timedelta(seconds=2)  # the first request was on its way for so long
    book.add("ann", name, "A", "", "1" * 32, graded_at=now + late)
    book.add("ann", name, None, "", "2" * 32, graded_at=now)
    book.add("ann", name, "X", "", "3" * 32, graded_at=now)
    assert [row["grade"] for row in read_grades(run).to_pylist()] == ["A", None, "X"]
    assert book.of("ann")[name]["grade"] == latest_grades(read_grades(run))["grade"].to_pylist()[0] == "X"
    # What was given hours before, and kept in a browser without a server, does not come after it.
    book.add("ann", name, "C", "", "4" * 32, graded_at=now - datetime.timedelta(hours=2))
    assert book.of("ann")[name]["grade"] == "X"
