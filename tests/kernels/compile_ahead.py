"""Compile all kernels for the GPUs named (80 90 100) without one; print, as one JSON line, what the machine code does.

A process of its own: Triton decides when a kernel is decorated whether to interpret or to compile it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from surveybridge.kernels.accumulate.triton import accumulate_kernel
from surveybridge.kernels.blend.triton import BLOCK as BLEND_BLOCK
from surveybridge.kernels.blend.triton import blend_kernel
from surveybridge.kernels.bridge_step.naive import StepCoefficients
from surveybridge.kernels.bridge_step.triton import bridge_step_kernel
from surveybridge.kernels.dispatch import LAUNCH
from surveybridge.kernels.pixel_norm.naive import EPS
from surveybridge.kernels.pixel_norm.triton import ACCESS, block_sizes, pixel_norm_kernel
from surveybridge.kernels.sky_noise.triton import BLOCK, sky_noise_kernel

FLOATS = (
    *("p_out", "p_xs", "p_x0", "p_next", "p_xt", "p_x1", "p_prev", "p_z", "p_table"),
    *("p_mean", "p_m2", "p_least", "p_samples", "p_target", "p_std", "p_m", "p_v"),
)
TYPES = (
    dict.fromkeys(FLOATS, "*fp32")
    | dict.fromkeys(("p_sample", "p_corner_y", "p_corner_x", "p_index"), "*i32")
    | {"p_taper": "*fp64"}
    | dict.fromkeys(("low", "high"), "fp32")
)


def inspect(
    kernel: triton.JITFunction, constexprs: Mapping[str, object], types: dict[str, str], target: int
) -> dict[str, object]:
    """Compile as a launch on contiguous aligned tensors would, and count what matters in PTX and SASS."""
    signature = {name: "constexpr" if name in constexprs else types.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, parameter in enumerate(kernel.params)
        if signature[parameter.name].startswith(("*", "i32")) and not parameter.do_not_specialize
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=LAUNCH)
    ptx = compiled.asm["ptx"]
    found: dict[str, object] = {
        "fma": len(re.findall(r"\bfma\.rn\S*\.?f(?:32|64)", ptx)),
        "wide": len(re.findall(r"ld\.global\S*\.v4", ptx)) + len(re.findall(r"st\.global\S*\.v4", ptx)),
        "sqrt": len(re.findall(r"\bsqrt\.rn\.f(?:32|64)", ptx)),
        "divide": len(re.findall(r"\bdiv\.rn\.f(?:32|64)", ptx)),
        "approximate": len(re.findall(r"\.approx|div\.full", ptx)),
        "cubin": len(compiled.asm["cubin"]),
    }
    return found | machine_code(compiled.asm["cubin"])


def machine_code(cubin: bytes) -> dict[str, int]:
    """Registers a thread, bytes of stack and local memory (spills), FFMA in SASS, by Triton's own tools."""
    usage_of, code_of = (
        Path(triton.__file__).parent / "backends/nvidia/bin" / name for name in ("cuobjdump", "nvdisasm")
    )
    if not (usage_of.exists() and code_of.exists()):
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout
            # without an analysis of the flow of data, which takes longer than all else
            for command in ((usage_of, "-res-usage"), (code_of, "-ndf", "-c"))
        )
    counts = {name.lower(): int(count) for name, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return counts | {"ffma": len(re.findall(r"\bFFMA\b", sass))}


def main() -> None:
    """Compile every variant that a sampler launches, for every target."""
    print(json.dumps({f"sm_{target}": variants(target) for target in map(int, sys.argv[1:])}))


def variants(target: int) -> dict[str, dict[str, object]]:
    """What each variant does on one target."""
    report = {
        f"sky_noise C={c}": inspect(sky_noise_kernel, {"C": c, "BLOCK": BLOCK}, TYPES, target) for c in (1, 3, 4, 6)
    }
    one_pixel = {"C": 1, "BLOCK": BLOCK, "HW": 1, "W": 1}  # a launch makes constants of arguments that are 1
    report["sky_noise, one pixel"] = inspect(sky_noise_kernel, one_pixel, TYPES, target)
    for name, noise, clamp, second, network in (
        ("first order, sky noise", "sky", True, False, "*fp32"),
        ("second order, sky noise, bf16", "sky", True, True, "*bf16"),
        ("second order, given noise", "given", True, True, "*fp32"),
        ("last step, no clamp, bf16", "none", False, False, "*bf16"),
    ):
        last = name.startswith("last")
        constexprs = {"C": 3, "NOISE": noise, "CLAMP": clamp, "SECOND": second, "NEXT": not last, "BLOCK": BLOCK}
        constexprs |= {"COEFFICIENTS": len(StepCoefficients._fields)}
        constexprs |= {f"{tensor}_i": 1 for tensor in ("xt", "pred", "x1", "prev", "z", "next")}
        report[name] = inspect(bridge_step_kernel, constexprs, TYPES | {"p_pred": network, "p_next": network}, target)
    for target_known, since in ((False, False), (True, False), (False, True)):
        constexprs = {"TARGET": target_known, "SINCE": since, "BLOCK": BLOCK}
        report["accumulate" + ", target" * target_known + ", since" * since] = inspect(
            accumulate_kernel, constexprs, TYPES, target
        )
    constexprs = {"SIZE": 64, "REACH": 2, "BLOCK": BLEND_BLOCK}
    report["blend"] = inspect(blend_kernel, constexprs, TYPES, target)
    for channels, film, dtype in (
        (32, "none", "bf16"),
        (96, "one", "bf16"),
        (256, "each", "bf16"),
        (64, "one", "fp32"),
    ):
        unit = ACCESS // (2 if dtype == "bf16" else 4)
        constexprs = {"C": channels, "STRIDE": channels, "UNIT": unit, "FILM": film, "EPS": EPS}
        types = dict.fromkeys(("p_out", "p_x", "p_weight", "p_bias", "p_film"), f"*{dtype}")
        name = f"pixel_norm C={channels}, {film}, {dtype}"
        report[name] = inspect(pixel_norm_kernel, constexprs | block_sizes(channels), types, target)
    return report


if __name__ == "__main__":
    main()
