"""The gate: what a whole tiny run makes is what it made before the house was rebuilt, to the bit."""

from __future__ import annotations

import json

import pytest

from tests.gate.run import PROCESSORS, RECORDED, digests, processor


@pytest.mark.long
def test_a_whole_tiny_run_makes_the_same_bits_as_before(tmp_path):
    pytest.importorskip("galsim", reason="needs the sim extra: galsim")
    wanted, found = json.loads(RECORDED.read_text()), digests(tmp_path / "gate")
    changed = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if changed and processor() not in PROCESSORS:
        pytest.skip(
            f"digests were recorded on {PROCESSORS}; on {processor()} {len(changed)} of {len(wanted)} differ; compare "
            "with those of an earlier commit: python -m tests.gate.run FOLDER"
        )
    assert changed == []
    assert len(wanted) > 80
