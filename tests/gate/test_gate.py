"""The gate: what a whole tiny run makes is what it made before the house was rebuilt, to the bit."""

from __future__ import annotations

import json

import pytest

from tests.gate import run
from tests.gate.run import digests, processor, record, recorded


@pytest.mark.long
def test_a_whole_tiny_run_makes_the_same_bits_as_before(tmp_path):
    pytest.importorskip("galsim", reason="needs the sim extra: galsim")
    wanted = recorded(processor())
    if wanted is None:  # before a minute is computed that would prove nothing
        pytest.skip(
            f"no digests were recorded on {processor()}: record them at an earlier commit, by python -m tests.gate.run "
            "FOLDER --record"
        )
    found = digests(tmp_path / "gate")
    assert sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)) == []
    assert len(wanted) > 80


def test_what_differs_between_processors_is_recorded_of_each(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RECORDED", tmp_path / "digests.json")
    run.RECORDED.write_text(json.dumps({"one": {"a": "1", "b": "2"}}))
    record({"b": "3", "a": "1"}, "other")
    assert json.loads(run.RECORDED.read_text())["other"] == {"b": "3"}
    assert recorded("one") == {"a": "1", "b": "2"} and recorded("other") == {"a": "1", "b": "3"}
    assert recorded("a third") is None
