"""What is run on a GPU runs here too, small: a slip must not cost the minutes that a GPU is at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from surveybridge.jobs.translating.config import RECONSTRUCT

ROOT = Path(__file__).parents[1]


@pytest.mark.long  # a process that runs all of it
def test_every_part_of_the_gpu_script_runs_on_a_cpu(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--out", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    parts = {"machine", "tests", "kernels", "sampler", "network", "training", "model_stage", "graph"}
    parts |= {"scoring", "square_degree"}
    assert set(found) == parts | {"date"}
    assert "skipped" in found["tests"]["summary"]
    assert {row["name"] for row in found["kernels"]} >= {"copy", "second order step", "accumulate", "blend"}
    assert found["sampler"]["2"][-1]["times_published"] > 60
    assert [row["way"] for row in found["network"]] == ["operators", "kernels"]
    assert found["network"][1]["rms_off_operators"] < 0.03
    assert found["network"][0]["share"] > 0  # of a rate that is measured: on a busy processor it may be anything
    assert all(found["model_stage"][windows]["core_pixels_per_second"] > 0 for windows in ("tile", "64"))
    assert gpu.RECONSTRUCTED == RECONSTRUCT  # which cannot be imported where pydantic is not
    assert found["scoring"]["seconds_reconstructed"] > found["scoring"]["seconds_lens_score"] > 0
    for windows, hours in found["square_degree"].items():
        rate = found["model_stage"][windows]["core_pixels_per_second"]
        assert hours["hours_translate"] == pytest.approx(36_000**2 / rate / 3600)
        assert hours["hours"] == hours["hours_translate"] + hours["hours_score"]
