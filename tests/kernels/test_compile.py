from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
ROOT = Path(__file__).parents[2]

# A process that compiles everything three times.
pytestmark = pytest.mark.long


TARGETS = ("sm_80", "sm_90", "sm_100")


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, dict[str, int]]]:
    compiled = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_ahead.py")), *(name[3:] for name in TARGETS)],
        env=compiled | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, dict[str, int]]] = json.loads(done.stdout.splitlines()[-1])
    for target, variants in found.items():
        for variant, counts in variants.items():
            print(f"{target}, {variant}: {counts}")
    return found


@pytest.fixture(params=TARGETS)
def report(request, reports) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = reports[request.param]
    return found


def test_every_variant_compiles_down_to_machine_code(report):
    assert len(report) == 17 + 15
    assert all(counts["cubin"] > 0 for counts in report.values())


def test_no_product_and_sum_are_fused_in_ptx_since_that_would_change_the_bits(report):
    assert {variant: counts["fma"] for variant, counts in report.items() if counts["fma"]} == {}


def test_no_operation_is_approximate_but_in_the_norm_whose_result_is_rounded_to_a_tolerance(report):
    approximate = {variant for variant, counts in report.items() if counts["approximate"]}
    norms = {variant for variant in report if variant.startswith(("pixel_norm", "conv3x3"))}
    assert approximate == norms - {"conv3x3 64, doubled", "conv3x3 128, doubled", "conv3x3 last"} != set()


def test_machine_code_fuses_only_within_square_roots_and_divisions(report):
    if "ffma" not in report["sky_noise C=3"]:
        pytest.skip("this Triton ships no cuobjdump")
    assert all(counts["ffma"] > 0 for counts in report.values() if counts["sqrt"])  # they are seen
    for variant, counts in report.items():
        if counts["divide"]:  # of its own many
            continue
        # sqrt.rn is two FFMA on its fast path, and all of them share one slow path of three
        assert counts["ffma"] <= (2 * counts["sqrt"] + 3 if counts["sqrt"] else 0), variant
    assert {variant for variant, counts in report.items() if counts["divide"]} == {
        "accumulate",
        "accumulate, target",
        "accumulate, since",
        "blend",
    }
    assert report["first order, sky noise"]["sqrt"] == report["sky_noise C=3"]["sqrt"] > 0


def test_memory_is_read_and_written_four_floats_at_once(report):
    # of three bands: the inputs that a variant reads, two results and the next input; bfloat16 goes as 64 bits
    assert report["first order, sky noise"]["wide"] == 3 * (3 + 3)
    assert report["second order, given noise"]["wide"] == 3 * (5 + 3)
    assert report["last step, no clamp, bf16"]["wide"] == 3 * (2 + 2)
    # samples one by one in a loop, mean and scatter; or also the target, and the closest sample
    assert report["accumulate"]["wide"] == 3
    assert report["accumulate, target"]["wide"] == 5
    assert report["accumulate, since"]["wide"] == 5
    # 16 values a thread are read and written eight by eight in bfloat16 and four by four in float32; or weights as well
    assert all(report[f"pixel_norm C={kind}, bf16"]["wide"] >= 2 + 2 for kind in ("32, none", "96, one", "256, each"))
    assert report["pixel_norm C=64, one, fp32"]["wide"] >= 4 + 4


def test_nothing_spills_and_half_the_threads_of_a_multiprocessor_fit(report):
    if "reg" not in report["sky_noise C=3"]:
        pytest.skip("this Triton ships no cuobjdump")
    for variant, counts in report.items():
        assert counts["stack"] == counts["local"] == 0, variant
        if not variant.startswith("conv3x3"):
            assert counts["reg"] <= 64, variant  # 65536 registers / 64 = 1024 threads, half of an sm_90's


def convolutions(report) -> dict[str, dict[str, Any]]:
    return {variant: counts for variant, counts in report.items() if variant.startswith("conv3x3")}


def test_two_programs_of_a_convolution_fit_on_a_multiprocessor(report):
    for variant, counts in convolutions(report).items():
        assert 2 * counts["shared"] <= 160 * 1024, variant  # an sm_80 has 164 KiB, of which each program takes one more
        if "reg" in counts:
            assert 2 * counts["threads"] * counts["reg"] <= 65536, variant


def test_convolutions_are_products_of_the_widest_kind(report, request):
    instruction = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}
    target = request.node.callspec.params["report"]
    for variant, counts in convolutions(report).items():
        assert counts["matrix"].startswith(instruction[target]), variant


def test_convolutions_copy_sixteen_bytes_at_once(report):
    found = convolutions(report)
    assert all(counts["copies"] for counts in found.values())
    # pixels of 15 channels allow no more, and weights for 16 output channels are too few for all threads
    narrow = {"conv3x3 first", "conv3x3 16, film", "conv3x3 last"}
    assert {variant for variant, counts in found.items() if counts["narrow_copies"]} == narrow
    # sums and activations, of 16 bytes too
    assert all(counts["wide"] >= 4 for variant, counts in found.items() if variant != "conv3x3 last")
