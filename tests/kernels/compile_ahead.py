"""Compile all kernels for the GPUs named (80 90 100) without one; print, as one JSON line, what the machine code does.

A process of its own: Triton decides when a kernel is decorated whether to interpret or to compile it.
"""

from __future__ import annotations

import bisect
import itertools
import json
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from surveybridge.kernels.accumulate.triton import accumulate_kernel
from surveybridge.kernels.blend.triton import BLOCK as BLEND_BLOCK
from surveybridge.kernels.blend.triton import blend_kernel
from surveybridge.kernels.bridge_step.naive import StepCoefficients
from surveybridge.kernels.bridge_step.triton import bridge_step_kernel
from surveybridge.kernels.conv3x3.triton import UNIT, chunk, conv3x3_kernel, launch_options, tile_sizes
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

CODE = "code"
"""Name of a variant's cubin, until it has been read."""


def inspect(
    kernel: triton.JITFunction,
    constexprs: Mapping[str, object],
    types: dict[str, str],
    target: int,
    options: Mapping[str, object] = LAUNCH,
) -> dict[str, object]:
    """Compile as a launch on contiguous aligned tensors would, and count what matters in PTX."""
    signature = {name: "constexpr" if name in constexprs else types.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, parameter in enumerate(kernel.params)
        if signature[parameter.name].startswith(("*", "i32")) and not parameter.do_not_specialize
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    ptx = compiled.asm["ptx"]
    found: dict[str, object] = {
        "fma": len(re.findall(r"\bfma\.rn\S*\.?f(?:32|64)", ptx)),
        "wide": len(re.findall(r"ld\.global\S*\.v4", ptx)) + len(re.findall(r"st\.global\S*\.v4", ptx)),
        "sqrt": len(re.findall(r"\bsqrt\.rn\.f(?:32|64)", ptx)),
        "divide": len(re.findall(r"\bdiv\.rn\.f(?:32|64)", ptx)),
        "approximate": len(re.findall(r"\.approx|div\.full", ptx)),
        "cubin": len(compiled.asm["cubin"]),
        "shared": compiled.metadata.shared,
        "threads": 32 * compiled.metadata.num_warps,
        "matrix": next(iter(re.findall(r"\b(?:wgmma\.mma_async|tcgen05\.mma|mma\.sync)\S*", ptx)), ""),
        "copies": len(copies := re.findall(r"cp\.async\.c[ag]\.shared\.global.*?\], \[.*?\], (\w+)", ptx)),
        "narrow_copies": sum(int(size, 0) < 16 for size in copies),
    }
    return found | {CODE: compiled.asm["cubin"]}


def with_machine_code(report: dict[str, dict[str, object]], target: int) -> dict[str, dict[str, object]]:
    """Read registers a thread, bytes of stack and local memory (spills), and FFMA in SASS, with Triton's own tools.

    One disassembler reads the code of all variants, one after the other: it takes 0.2 s to start.
    """
    cubins: dict[str, Any] = {variant: counts.pop(CODE) for variant, counts in report.items()}
    usage_of, code_of = (
        Path(triton.__file__).parent / "backends/nvidia/bin" / name for name in ("cuobjdump", "nvdisasm")
    )
    if not (usage_of.exists() and code_of.exists()):
        return report
    ends = list(itertools.accumulate(len(code(cubin)) for cubin in cubins.values()))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:

        def read_by(*command: str | Path, content: bytes) -> str:
            Path(file.name).write_bytes(content)
            return subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout

        for variant, cubin in cubins.items():
            usage = read_by(usage_of, "-res-usage", content=cubin)
            found = re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)
            report[variant] |= {name.lower(): int(count) for name, count in found} | {"ffma": 0}
        everything = b"".join(map(code, cubins.values()))
        # without an analysis of the flow of data, which takes longer than all else
        sass = read_by(code_of, "-ndf", "-b", f"SM{target}{'a' * (target >= 90)}", content=everything)
    fused = Counter(bisect.bisect(ends, int(at, 16)) for at in re.findall(r"/\*(\w+)\*/[^;]*\bFFMA\b[^;]*;", sass))
    for index, variant in enumerate(report):
        report[variant]["ffma"] = fused[index]
    return report


def code(cubin: bytes) -> bytes:
    """Return the instructions of the one kernel in a cubin, which is an ELF file."""
    (start,), (size, number, names) = struct.unpack_from("<Q", cubin, 40), struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, start + n * size) for n in range(number)]
    (found,) = (one for one in sections if cubin.startswith(b".text.", sections[names][4] + one[0]))
    return cubin[found[4] : found[4] + found[5]]


def main() -> None:
    """Compile every variant that a sampler launches, for every target."""
    targets = map(int, sys.argv[1:])
    print(json.dumps({f"sm_{target}": with_machine_code(variants(target), target) for target in targets}))


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
    return report | {f"conv3x3 {name}": convolution(variant, target) for name, variant in CONVOLUTIONS.items()}


CONVOLUTIONS: dict[str, dict[str, int]] = {
    "first": {"CX": 60, "C": 32, "XS": 15, "OS": 32, "UNSHUFFLE": 2, "NORM": 1},
    "32, film": {"CX": 32, "C": 32, "NORM": 2},
    "32, rest": {"CX": 32, "C": 32, "RS": 32, "OS": 32, "NORM": 1},
    "96 to 32, film": {"CX": 96, "C": 32, "NORM": 2},
    "32, rest of 96": {"CX": 32, "C": 32, "CR": 96, "RS": 96, "OS": 32, "NORM": 1},
    "32 to 32, halved": {"CX": 32, "C": 32, "XS": 96, "OS": 32, "STRIDE": 2, "NORM": 1},
    "64, film": {"CX": 64, "C": 64, "NORM": 2},
    "64, rest of 192": {"CX": 64, "C": 64, "CR": 192, "RS": 192, "OS": 64, "NORM": 1},
    "64, doubled": {"CX": 64, "C": 64, "OS": 96, "SIDE": 2},
    "256 to 128, film": {"CX": 256, "C": 128, "NORM": 2},
    "128, rest": {"CX": 128, "C": 128, "RS": 128, "OS": 256, "NORM": 1},
    "128, rest of 256": {"CX": 128, "C": 128, "CR": 256, "RS": 256, "OS": 128, "NORM": 1},
    "128, doubled": {"CX": 128, "C": 128, "OS": 192, "SIDE": 2},
    "16, film": {"CX": 16, "C": 16, "NORM": 2},
    "last": {"CX": 32, "C": 12, "OS": 1, "SHUFFLE": 2},
}
"""Of the shipped networks: what the kernel is compiled for; NORM is 2 with FiLM."""


def convolution(variant: Mapping[str, int], target: int) -> dict[str, object]:
    """Compile a variant as the wrapper would launch it."""
    sizes = {"CR": 0, "RS": 0, "OS": 0, "SIDE": 3, "STRIDE": 1, "UNSHUFFLE": 1, "SHUFFLE": 1, "XS": variant["CX"]}
    given = sizes | dict(variant)
    norm = given.pop("NORM", 0)
    absent = {"p_act": norm, "p_scale": norm, "p_shift": norm, "p_film": norm > 1, "p_rest": given["RS"]}
    absent |= {"p_out": given["OS"], "p_skip": given["CR"], "p_skip_bias": given["CR"]}
    constexprs: dict[str, object] = dict(given) | {name: None for name, there in absent.items() if not there}
    constexprs |= {"EPS": EPS, "UNIT": UNIT, "BX": chunk(given["CX"]), "BR": chunk(given["CR"]), "WIDEN": False}
    pointers = {name: "*bf16" for name in conv3x3_kernel.arg_names if name.startswith("p_")}
    return inspect(conv3x3_kernel, constexprs | tile_sizes(given["C"]), pointers, target, launch_options(given["C"]))


if __name__ == "__main__":
    main()
