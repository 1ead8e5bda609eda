"""One row a system in every list: leaders, members, kinds, and the same ranks in a run and in a catalog of it."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from surveybridge.__main__ import main
from surveybridge.storage.catalogs import Catalog
from surveybridge.storage.errors import StorageError
from surveybridge.storage.flags import BITS, CUTS, FLAGS, in_words
from surveybridge.storage.mosaics import TileMosaic
from surveybridge.storage.problems import default_problem
from surveybridge.storage.publishing import publish
from surveybridge.storage.query import EVERY_ROW, Listing, query, select
from surveybridge.storage.regions import Cone
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import candidates_schema
from surveybridge.storage.systems import leading
from tests.conftest import ROOT
from tests.storage.test_runs import RUN, make_header, make_planes

# name, right ascension in arcsec from the first, system, kind, score
ROWS = [
    ("lens", 0.0, "lens", "object", 3.0),
    ("arc", 1.5, "lens", "object", 5.0),
    ("counterimage", -1.0, "lens", "object", math.nan),
    ("alone", 60.0, "alone", "object", 4.0),
    ("star", 90.0, "star", "star", 9.0),
    ("beside", 92.0, "star", "object", 1.0),
    ("spike", 122.0, "burnt", "saturated", 7.0),
    ("burnt", 120.0, "burnt", "saturated", 6.0),
    ("blank", 150.0, "blank", "object", math.nan),
    ("lone star", 170.0, "lone star", "star", 8.0),
    ("old", 200.0, None, None, 2.0),
]
SYSTEMS = ["arc", "alone", "old", "beside", "blank"]
"""The list by default: the highest score of each leads, and stars do not."""


def write(run: RunFolder, tile: str, rows) -> None:
    """One tile with some of the rows."""
    mean, std, coverage = make_planes((64, 64))
    row = 64 * int(tile[1:])
    run.write_mosaic(TileMosaic(tile, make_header(row), ("VIS",), mean, std, coverage, (row, 0), "grid"))
    names, places, systems, kinds, scores = zip(*rows, strict=True)
    table = {
        "object_id": names,
        "ra": [53 + place / 3600 for place in places],
        "dec": [0.0] * len(rows),
        "system_id": pa.array(systems, pa.string()),
        "kind": pa.array(kinds, pa.string()),
        "score": scores,
        "run_id": ["r"] * len(rows),
    }
    run.write_candidates(tile, pa.table(table))
    run.commit({"tile_id": tile, "status": "ok", "n_candidates": len(rows)})


@pytest.fixture(scope="module", params=["run", "catalog"])
def url(request, tmp_path_factory):
    """Two tiles, between which the rows of the lens are divided: a run, and a catalog of it."""
    folder = tmp_path_factory.mktemp("systems")
    run = RunFolder.open_or_create(folder / "run", RUN | {"run_id": "r"})
    write(run, "t0", ROWS[::2])
    write(run, "t1", ROWS[1::2])
    if request.param == "run":
        return run.url
    publish([run.url], folder / "catalog", partition_rows=4)
    return str(folder / "catalog")


def names(found: pa.Table) -> list[str]:
    return list(found["object_id"].to_pylist())


def listed(url, *arguments, **listing) -> list[str]:
    return names(query(url, *arguments, thumbnails=False, listing=Listing(**listing)))


def test_a_list_has_one_row_a_system_and_no_star(url):
    found = query(url, thumbnails=False)
    assert names(found) == SYSTEMS
    assert found["rank"].to_pylist() == [1, 2, 3, 4, 5] and found["system_rank"].to_pylist()[0] == 1
    assert found["system_members"].to_pylist() == [3, 1, 1, 2, 1]
    assert names(query(url, top=2, thumbnails=False)) == SYSTEMS[:2]


def test_members_follow_their_leader_by_falling_score(url):
    assert listed(url, members=True)[:4] == ["arc", "lens", "counterimage", "alone"]
    assert listed(url, None, 1, members=True) == ["arc", "lens", "counterimage"]
    found = query(url, thumbnails=False, listing=EVERY_ROW)
    assert found.num_rows == len(ROWS) and found["rank"].to_pylist() == sorted(found["rank"].to_pylist())
    ranks = dict(
        zip(names(found), zip(found["rank"].to_pylist(), found["system_rank"].to_pylist(), strict=True), strict=True)
    )
    assert ranks["counterimage"] == (1, 3) and ranks["beside"] == (4, 1) and ranks["star"] == (4, 2)
    assert names(leading(found)) == SYSTEMS


def test_stars_and_saturated_sources_rank_behind_and_are_listed_on_demand(url):
    assert listed(url, kind="star") == ["star", "lone star"]
    assert listed(url, None, 1, kind="star") == ["star"]
    assert listed(url, kind="saturated") == ["spike"] and listed(url, kind="saturated", members=True) == [
        "spike",
        "burnt",
    ]
    assert listed(url, kind="all") == [*SYSTEMS, "lone star", "spike"]
    with pytest.raises(StorageError, match="kind 'quasar' is none of object, star, saturated, all"):
        Listing(kind="quasar")  # type: ignore[arg-type]


def test_a_region_that_holds_a_member_alone_shows_it_for_its_system(url):
    cone = Cone(53.0, 0.0, 0.5)
    assert listed(url, cone) == ["lens"] and listed(url, cone, members=True) == ["lens"]
    assert listed(url, Cone(53.0, 0.0, 3.0)) == ["arc"]
    assert listed(url, Cone(53 + 91 / 3600, 0.0, 3.0), kind="star") == ["star"]


def test_sql_sees_all_rows_with_their_ranks(url):
    found = select(url, "SELECT count(*) AS n, max(rank) AS systems, sum(system_rank) AS s FROM candidates")
    assert found.to_pylist() == [{"n": 11, "systems": 7, "s": (1 + 2 + 3) + 1 + (1 + 2) + (1 + 2) + 1 + 1 + 1}]


def test_the_command_lists_systems_members_and_kinds(url, capsys):
    def printed(*arguments: str) -> list[str]:
        assert main(["query", "--run", url, "--columns", "rank", "object_id", "--format", "csv", *arguments]) == 0
        return capsys.readouterr().out.replace('"', "").splitlines()[1:]

    assert printed("--top", "1") == ["1,arc"] and printed("--top", "1", "--members") == [
        "1,arc",
        "1,lens",
        "1,counterimage",
    ]
    assert [line.split(",")[1] for line in printed("--kind", "star")] == ["star", "lone star"]
    assert main(["query", "--run", url, "--members", "--sql", "SELECT 1"]) == 2


def test_the_best_of_a_catalog_are_the_rows_of_its_systems(tmp_path):
    run = RunFolder.open_or_create(tmp_path / "run", RUN | {"run_id": "r"})
    write(run, "t0", ROWS)
    publish([run.url], tmp_path / "catalog")
    best = Catalog.open(tmp_path / "catalog").best()
    assert names(best)[:3] == ["arc", "lens", "counterimage"] and best.num_rows == len(ROWS)


def test_flags_in_words_name_every_bit_once_and_only_blending_merely_informs():
    assert in_words(0) == "none" and in_words(None) == "–"
    assert (
        in_words(BITS["SATURATED"] | BITS["EDGE"]) == "saturated, near the edge" and in_words(32768) == "others (32768)"
    )
    assert len({flag.words for flag in FLAGS.values()}) == len(FLAGS) and all(bit & (bit - 1) == 0 for bit in FLAGS)
    assert sum(FLAGS) - 1 - 2048 == CUTS
    described = candidates_schema(default_problem()).field("flags").metadata[b"description"].decode()
    assert all(f"{bit} {flag.words}" in described for bit, flag in FLAGS.items())
    earlier = candidates_schema(default_problem(), 4).field("flags").metadata[b"description"].decode()
    assert described.startswith(earlier) and earlier.endswith("1024 near a bright star")


def test_the_documentation_has_every_flag():
    page = (ROOT / "docs" / "catalogs.md").read_text()
    for bit, flag in FLAGS.items():
        assert f"| {bit} | {flag.name} | {flag.meaning} |" in page
