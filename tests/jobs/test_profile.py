"""`translate --profile`: a trace that Perfetto opens and a table, of a run that is the same to the bit without it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

import pytest

from surveybridge.__main__ import main
from surveybridge.bridge_core.spans import listening, span
from surveybridge.jobs.profiling.operators import KINDS, Operators, covered, kind_of, shares_by_kind
from surveybridge.jobs.profiling.operators import own_times as own_times_of_operators
from surveybridge.jobs.profiling.profile import trace_of
from surveybridge.jobs.profiling.spans import Part, Recorder, Span
from surveybridge.jobs.profiling.table import own_times
from surveybridge.jobs.profiling.trace import Trace
from surveybridge.storage.runs import RunFolder
from tests import tiny
from tests.storage.faults import moto_server

QUICK = ["--samples", "2", "--steps", "2", "--score-samples", "2", "--score-steps", "2", "--precision", "float32"]
STAGES = ("read", "model", "write")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint"), patch="tile")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "tiles"
    tiny.write_store(path)
    tiny.damage_tile(str(path), "t0002")
    return str(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, store, checkpoint):
    """Run folder without a profile; one of its tiles fails."""
    run = tmp_path_factory.mktemp("run") / "plain"
    assert translate(store, run, checkpoint) == 3
    return run


@pytest.fixture(scope="module")
def profiled(tmp_path_factory, store, checkpoint):
    """Run folder and profile of the same."""
    folder = tmp_path_factory.mktemp("profiled")
    assert translate(store, folder / "run", checkpoint, "--profile", str(folder / "profile")) == 3
    return folder


def translate(store, run, checkpoint, *more, executor="serial"):
    what = ["--store", store, "--run", str(run), "--checkpoint", checkpoint, "--executor", executor]
    return main(["translate", *what, *QUICK, *more])


def results(run):
    return tiny.files_of(run, "mosaics") | tiny.files_of(run, "candidates")


def failures(run):
    rows = RunFolder.open(str(run)).ledger().to_pylist()
    return {row["tile_id"]: (row["stage"], row["reason"], row["traceback_hash"]) for row in rows}


def document(folder, name):
    return json.loads(Path(folder, name).read_text())


def check_trace(trace):
    """What the trace event format asks of complete events; those of a row lie within or beside each other."""
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    rows = defaultdict(list)
    for event in trace["traceEvents"]:
        assert event["ph"] in ("X", "M") and isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["ts"] >= 0 and event["dur"] >= 0 and event["name"]
            rows[event["pid"], event["tid"]].append(event)
    assert rows.keys() <= names.keys()
    for events in rows.values():
        around: list[int] = []
        for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
            start, end = round(1e3 * event["ts"]), round(1e3 * event["ts"]) + round(1e3 * event["dur"])
            while around and around[-1] <= start:
                around.pop()
            assert not around or end <= around[-1], event
            around.append(end)
    return {names[row]: events for row, events in rows.items()}


def check_table(found, tiles):
    assert found["close_tiles"] == tiles
    assert math.fsum(row["share"] for row in found["rows"]) == pytest.approx(1)
    for stage in STAGES:
        seconds = math.fsum(row["seconds"] for row in found["rows"] if row["stage"] == stage)
        assert 0 < seconds / tiles == pytest.approx(found["stages"][stage], rel=1e-2)
    parts = {(row["stage"], row["part"]): row for row in found["rows"]}
    for part in (
        ("read", "storage get"),
        ("model", "translate: prepare"),
        ("model", "translate: network"),
        ("model", "translate: update"),
        ("model", "translate: moments"),
        ("model", "objects: detection"),
        ("model", "candidates: scoring: sources: network"),
        ("write", "mosaic: encode"),
        ("write", "ledger row: storage put"),
    ):
        assert parts[part]["seconds"] > 0 and parts[part]["calls"] >= tiles
    for prefix in ("translate", "candidates: scoring"):
        assert sum(row["seconds"] for (_, name), row in parts.items() if name.startswith(prefix)) > 0
    overlap = found["overlap"]
    assert 0 < overlap["model_working"] <= 1 == pytest.approx(overlap["model_working"] + overlap["model_waiting"])
    kinds = found["operators"]["kinds"]
    assert sum(kinds.values()) == pytest.approx(1) and kinds["convolutions"] > 0.1
    assert found["operators"]["network_calls"] > 2


def test_a_profiled_run_writes_the_same_bytes_and_failures(plain, profiled):
    run = profiled / "run"
    assert results(run) == results(plain) and len(results(run)) == 6
    assert failures(run) == failures(plain)
    assert failures(run)["t0002"][0] == "read"
    ids = [RunFolder.open(str(one)).run_json["run_id"] for one in (run, plain)]
    assert ids[0] == ids[1]  # no part of what decides a run


def test_the_trace_has_a_row_for_each_stage_and_torchs_operators_in_the_models(profiled):
    trace = document(profiled / "profile", "trace.json")
    rows = check_trace(trace)
    assert set(rows) >= set(STAGES)
    whole = {stage: [e for e in rows[stage] if e["name"] == stage] for stage in STAGES}
    assert [len(whole[stage]) for stage in STAGES] == [4, 3, 4]  # the damaged tile has no model
    assert {e["args"]["tile"] for e in whole["write"]} == {"t0000", "t0001", "t0002", "t0003"}
    names = {event["name"] for event in rows["model"]}
    assert {"translate", "network", "detection", "scoring", "aten::mkldnn_convolution"} <= names
    assert {"mosaic", "storage put", "ledger row"} <= {event["name"] for event in rows["write"]}
    # torch's profiler looked before the run's own tiles, which it would have slowed
    operators = [event for event in rows["model"] if event["name"].startswith("aten::")]
    assert max(e["ts"] + e["dur"] for e in operators) <= whole["model"][0]["ts"]


def test_the_table_says_where_all_of_the_time_went(profiled):
    check_table(document(profiled / "profile", "profile.json"), tiles=3)
    text = (profiled / "profile" / "profile.txt").read_text()
    assert "objects: detection" in text and "ui.perfetto.dev" in text
    assert sorted(file.name for file in (profiled / "profile").iterdir()) == [
        "profile.json",
        "profile.txt",
        "trace.json",
    ]


def test_a_profile_goes_to_object_storage_like_everything_else(tmp_path, store, checkpoint, monkeypatch):
    pytest.importorskip("moto.server", reason="needs the dev extra: moto[server]")
    from surveybridge.storage.objectstore import Folder

    with moto_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        folder = Folder.at("s3://profiles/one")
        folder.filesystem.mkdir("profiles")
        assert translate(store, tmp_path / "run", checkpoint, "--profile", folder.url, "--patch", "64") == 3
        assert folder.names() == ["profile.json", "profile.txt", "trace.json"]
        found = json.loads(folder.read("profile.json"))
        check_table(found, tiles=3)
        assert {"translate: blend"} <= {row["part"] for row in found["rows"]}


def test_a_profile_replaces_an_earlier_one_and_nothing_else(tmp_path, store, checkpoint, profiled, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    assert translate(store, tmp_path / "run", checkpoint, "--profile", str(other)) == 2
    assert "thesis.tex, neither empty nor a profile" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    # all tiles are done but the failed one, which is done again alone
    more = ["--retry-failed", "--profile", str(profiled / "profile")]
    before = document(profiled / "profile", "profile.json")
    assert translate(store, profiled / "run", checkpoint, *more) == 3
    found = document(profiled / "profile", "profile.json")
    assert before["tiles"] == 3 and found["tiles"] == 0 and found["rows"] == []
    check_trace(document(profiled / "profile", "trace.json"))


def test_a_profile_of_nothing_to_do_says_so(tmp_path, store, checkpoint, plain, capsys):
    assert translate(store, plain, checkpoint, "--profile", str(tmp_path / "profile")) == 3
    assert "no tile was done" in capsys.readouterr().out
    assert not (tmp_path / "profile" / "trace.json").exists()


def test_spans_cost_nothing_to_speak_of_unless_someone_listens():
    assert span("one") is span("other")
    recorder = Recorder()
    with listening(recorder), span("model"), span("network"):
        pass
    assert span("one") is span("other")
    assert [(s.name, s.depth) for s in recorder.spans()] == [("model", 0), ("network", 1)]


def test_own_times_sum_to_the_stage():
    spans = [
        Span("write", 0, 0.0, 10.0, None),
        Span("mosaic", 1, 1.0, 4.0, None),
        Span("storage put", 2, 3.0, 1.5, None),
        Span("ledger row", 1, 6.0, 2.0, None),
    ]
    own = {name: seconds for name, seconds, _ in own_times(Part("write", "t0", "host:1", spans))}
    assert own == {"the rest": 4.0, "mosaic: encode": 2.5, "mosaic: storage put": 1.5, "ledger row": 2.0}


def test_rounding_of_clocks_cannot_make_slices_cross():
    trace = Trace()
    trace.add("worker", "model", "outer", 10**18, 10**9)
    trace.add("worker", "model", "inner", 10**18 + 5 * 10**8, 5 * 10**8 + 240)
    trace.add("worker", "model", "next", 10**18 + 10**9 + 240, 10**6)
    (events,) = check_trace(trace.document(STAGES)).values()
    assert [event["name"] for event in events] == ["outer", "inner", "next"]


def test_on_a_gpu_the_kernels_are_counted_and_how_long_any_of_them_runs():
    def event(name, cat, ts, dur, pid=1, tid=1):
        return {"ph": "X", "name": name, "cat": cat, "ts": ts, "dur": dur, "pid": pid, "tid": tid}

    trace = {
        "baseTimeNanoseconds": 10**18,
        "traceEvents": [
            event("model, under torch.profiler", "user_annotation", 0, 1000),
            event("network", "user_annotation", 10, 50),
            event("cudaLaunchKernel", "cuda_runtime", 12, 3),
            event("autograd thread", "cpu_op", 12, 3, tid=2),
            event("sm90_xmma_fprop_implicit_gemm_bf16", "kernel", 100, 600, pid=0, tid=7),
            event("layer_norm_kernel", "kernel", 700, 100, pid=0, tid=7),
            event("Memcpy DtoH", "gpu_memcpy", 750, 100, pid=0, tid=20),
            event("network", "gpu_user_annotation", 100, 650, pid=0, tid=7),
        ],
    }
    about = {"worker": "host:1", "tile_id": "t0", "core": [64, 64], "gpu": True}
    operators = Operators.of(json.dumps(about).encode(), json.dumps(trace).encode())
    found = operators.summary()
    assert found["gpu_busy"] == pytest.approx(0.75) and found["network_calls"] == 1
    shares = {kind: share for kind, share in found["kinds"].items() if share}
    assert shares == pytest.approx({"convolutions": 0.75, "norms": 0.125, "casts and copies": 0.125})
    rows = check_trace(trace_of([], [], operators))
    assert set(rows) == {
        *("model", "thread 2", "GPU 0, stream 7", "GPU 0, stream 7, spans", "GPU 0, stream 20"),
    }


def test_operators_are_counted_once_and_by_kind():
    def event(name, start, dur, cat="cpu_op"):
        return {"name": name, "cat": cat, "start": start, "dur": dur}

    own = own_times_of_operators(
        [
            event("network", 0, 10, "user_annotation"),
            event("aten::conv2d", 0, 6),
            event("aten::mkldnn_convolution", 1, 4),
            event("aten::silu_", 7, 2),
        ]
    )
    assert own == {"aten::conv2d": 2, "aten::mkldnn_convolution": 4, "aten::silu_": 2}
    shares = shares_by_kind(own)
    assert shares["convolutions"] == 0.75 and sum(shares.values()) == 1
    assert kind_of("aten::native_layer_norm") == "norms" and kind_of("aten::_to_copy") == "casts and copies"
    assert kind_of("surveybridge::pixel_norm_silu") == "norms"
    assert kind_of("aten::addmm") == "linear layers" and kind_of("aten::bitwise_xor") not in KINDS
    assert covered([(0, 2), (1, 3), (5, 6)]) == 4
