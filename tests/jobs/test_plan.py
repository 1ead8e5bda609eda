"""Plan: it says before a run what the run then takes, counts only what is left, and writes nothing."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from statistics import median

import pytest

from surveybridge.__main__ import main
from surveybridge.bridge_core.network import UNet
from surveybridge.jobs import plan
from surveybridge.jobs.translating.config import Config
from surveybridge.jobs.translating.engine import translate
from surveybridge.jobs.translating.request import check
from surveybridge.jobs.translating.tally import Tally
from surveybridge.storage.runs import RunFolder
from tests import tiny
from tests.jobs.test_bad_requests import TRANSLATE, refused, translate_request

QUICK = {"samples": 2, "steps": 2, "score_samples": 2, "score_steps": 2, "precision": "float32"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint"), network=tiny.LARGER, patch="tile")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("store") / "tiles", tile_size=48)


def request(store, run, checkpoint, **settings):
    """Arguments of both jobs."""
    return {"store": store, "run": str(run), "checkpoint": checkpoint, "executor": "serial"} | QUICK | settings


def words(settings) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def planned(settings, seconds=0.1):
    return plan.plan(plan.Config(**settings, calibrate=seconds))


def test_plan_writes_nothing_and_says_what_there_is_to_do(tmp_path, store, checkpoint, capsys):
    before = tiny.files_of(store)
    settings = words(request(store, tmp_path / "runs" / "field", checkpoint))
    assert main(["plan", *settings, "--calibrate", "0.1", "--patch", "64"]) == 0
    shown = capsys.readouterr().out
    for said in ("16 tiles to do, 0 done", "81 windows", "evaluations", "CPU-hours", "a square degree", "read", "MiB"):
        assert said in shown
    assert tiny.files_of(store) == before
    assert list(tmp_path.iterdir()) == []


def test_json_holds_the_numbers(tmp_path, store, checkpoint, capsys):
    asked = words(request(store, tmp_path / "run", checkpoint, patch=64))
    assert main(["plan", *asked, "--calibrate", "0.1", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tiles"], found["patches"]) == (16, 81)
    assert found["evaluations"]["translate"] == 81 * 2 * 2
    assert found["requests"]["write"] == 48
    assert set(found["memory"]) == {"read", "model", "write"}
    assert 0 < found["bytes_read"] < 16 * 36 * 192**2
    assert found["wall_seconds"] > 0


@pytest.mark.parametrize("patch", ["64", "tile"])
def test_the_network_is_called_as_often_as_planned(tmp_path, monkeypatch, patch):
    store = tiny.write_store(tmp_path / "tiles")
    settings = request(store, tmp_path / "run", tiny.write_checkpoint(tmp_path), patch=patch)
    expected = planned(settings, seconds=20.0)
    calls = []
    given = UNet.given

    def count(self, x, emb):
        calls.append(len(x) * x.shape[2] * x.shape[3] / 64**2)
        return given(self, x, emb)

    monkeypatch.setattr(UNet, "given", count)
    tally = run(settings)
    assert tally.statuses == {"ok": 4}
    # windows of tiles are counted exactly, sources by their density in the tiles that were looked at
    assert sum(calls) - tally.candidates * 2 * 2 == expected.evaluations["translate"]
    # cores of 96 pixels and 64 around
    assert expected.evaluations["translate"] == tally.patches * (224 / 64 if patch == "tile" else 1) ** 2 * 2 * 2
    assert expected.evaluations["score"] == pytest.approx(tally.candidates * 2 * 2, rel=0.3)


def test_only_what_the_ledger_lacks_is_planned(tmp_path, store, checkpoint, capsys):
    settings = request(store, tmp_path / "run", checkpoint)
    wanted = check(Config(**settings))
    folder = RunFolder.open_or_create(settings["run"], wanted.fingerprint)
    ids = wanted.manifest["tile_id"].to_pylist()
    for tile_id in ids[:12]:
        folder.commit({"tile_id": tile_id, "status": "failed", "reason": "for the test"})
    before = tiny.files_of(tmp_path)
    found = planned(settings)
    assert (found.tiles, found.tiles_done, found.patches) == (4, 12, 4)
    assert planned(settings | {"run": str(tmp_path / "other"), "patch": "64"}).patches == 81
    assert planned(settings | {"retry_failed": True}).tiles == 16
    for tile_id in ids[12:]:
        folder.commit({"tile_id": tile_id, "status": "failed", "reason": "for the test"})
    assert main(["plan", *words(settings)]) == 0
    assert "nothing to do, all 16 tiles are in the ledger" in capsys.readouterr().out
    assert set(tiny.files_of(tmp_path)) == set(before) | {f"run/ledger/{tile_id}.parquet" for tile_id in ids[12:]}


# ---- the projection holds


def run(settings) -> Tally:
    return translate(check(Config(**settings)))


# Other programs take their share of the processors, another one from minute to minute. So what was planned and what was
# used are compared in seconds of processor time: planned wall time times the share of a processor that the measuring
# process had, and what the process with the model used. Both have one thread: on a machine that does nothing else these
# are seconds of the clock. What counts is the median: a round in which caches were fought over is forgotten.


def planned_busy(settings, seconds) -> tuple[float, int]:
    """Seconds of processor time that a plan expects after the start, and its tiles."""
    used, clock = time.process_time(), time.monotonic()
    expected = planned(settings, seconds)
    share = (time.process_time() - used) / (time.monotonic() - clock)
    return (expected.wall_seconds - expected.start_seconds) * share, expected.tiles


ROUNDS = 5


def agreed(ratios: list[float]) -> bool:
    """Whether the median round took what was planned within a quarter, of two rounds both of them."""
    decisive = ratios if len(ratios) == 2 else [median(ratios)]
    return len(ratios) > 1 and all(ratio == pytest.approx(1.0, rel=0.25) for ratio in decisive)


@pytest.mark.long  # calibrations and runs that are long enough to be measured
def test_a_serial_run_takes_what_was_planned(tmp_path, store, checkpoint):
    ratios = []
    for number in range(ROUNDS):
        settings = request(store, tmp_path / f"run{number}", checkpoint, samples=3, steps=4, score_samples=3)
        busy, tiles = planned_busy(settings, 1.5)
        used = time.process_time()
        assert run(settings).statuses == {"ok": tiles}
        ratios.append(busy / (time.process_time() - used))
        if agreed(ratios):
            return
    pytest.fail(f"planned over used: {ratios}")


@pytest.mark.slow  # Ray's actors import torch
def test_a_run_on_ray_takes_what_was_planned(tmp_path, store, checkpoint, ray_cluster):
    ratios = []
    for number in range(ROUNDS):
        more = {"executor": "ray", "samples": 4, "steps": 6}
        settings = request(store, tmp_path / f"run{number}", checkpoint, **more)
        busy, tiles = planned_busy(settings, 2.5)
        seen: list[tuple[float, float, dict]] = []

        def watch(receipt, seen=seen):
            interval = receipt["intervals"]["model"]
            seen.append((time.time(), processor_seconds(int(interval["worker"].rpartition(":")[2])), interval))

        asked = check(Config(**settings))
        assert translate(asked, watch=watch).statuses == {"ok": tiles}
        # from the first receipt on, when the actor had loaded everything and done some tiles, in part or whole
        (begin, before, _), (_, after, _) = seen[0], seen[-1]
        left = [(i["end"] - max(i["start"], begin)) / (i["end"] - i["start"]) for _, _, i in seen if i["end"] > begin]
        assert len(left) > tiles / 3
        ratios.append(busy * sum(left) / tiles / (after - before))
        if agreed(ratios):
            return
    pytest.fail(f"planned over used: {ratios}")


def processor_seconds(pid: int) -> float:
    """What a process of this machine has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- wrong requests


@pytest.mark.parametrize("case", TRANSLATE)
def test_plan_refuses_what_translate_refuses(tmp_path, store, checkpoint, capsys, case):
    bad_store, bad_checkpoint, more = translate_request(case, tmp_path, store, checkpoint)
    before = tiny.files_of(tmp_path)
    what = ["--store", bad_store, "--run", tmp_path / "out" / "run", "--checkpoint", bad_checkpoint]
    line = refused(capsys, "plan", *what, *more)
    for said in TRANSLATE[case]:
        assert said in line
    assert tiny.files_of(tmp_path) == before


def test_plan_refuses_a_run_folder_of_another_run(tmp_path, store, checkpoint, capsys):
    settings = request(store, tmp_path / "run", checkpoint)
    fingerprint = check(Config(**settings)).fingerprint
    RunFolder.open_or_create(settings["run"], fingerprint)
    before = tiny.files_of(tmp_path)
    line = refused(capsys, "plan", *words(settings | {"seed": 7}))
    for said in ("seed 0", "7", "give another --run URL"):
        assert said in line
    assert tiny.files_of(tmp_path) == before


def test_plan_refuses_something_else_at_the_runs_place(tmp_path, store, checkpoint, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    line = refused(capsys, "plan", *words(request(store, tmp_path, checkpoint)))
    assert "thesis.tex" in line and "give another --run URL" in line


def test_a_store_without_a_sound_tile_is_refused(tmp_path, checkpoint, capsys):
    store = tiny.write_store(tmp_path / "tiles")
    for number in range(4):
        tiny.damage_tile(store, f"t{number:04d}")
    line = refused(capsys, "plan", *words(request(store, tmp_path / "run", checkpoint)))
    for said in (str(tmp_path / "tiles"), "0 of 4 tiles tried", "tile t0000", "ingest it again"):
        assert said in line
    assert not (tmp_path / "run").exists()
