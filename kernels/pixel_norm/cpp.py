"""The fused norm on the CPU: a small C++ library, which `build` compiles, with the bits of the naive reference."""

from __future__ import annotations

import os
import zlib
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from surveybridge.kernels.pixel_norm.naive import EPS

SOURCE = Path(__file__).with_name("cpu.cpp")
CAPABILITIES = ("AVX2", "AVX512")
"""What torch must find on the processor; on others it sums in another order."""

SWITCH = "SURVEYBRIDGE_CPP"
"""Environment variable; 0 takes the naive reference on every CPU."""

LANES = {torch.float32: 8, torch.bfloat16: 16}
"""Widths must be a multiple of this many channels, and at most 32 times as many."""

GRAIN, VECTOR = 32768, 32
"""Values for which torch takes a thread, and those that its SiLU computes at once in float32, at most."""


def library(folder: Path = SOURCE.parent) -> Path:
    """Return where the library of this source, this torch and this processor lies, if it was built."""
    source = zlib.crc32(SOURCE.read_bytes())
    return folder / f"cpu-{torch.__version__}-{torch.backends.cpu.get_cpu_capability()}-{source:08x}.so"


@cache
def loaded() -> bool:
    """Load the library, once in a process; False if there is none, or it does not load, or the switch is 0."""
    path = library()
    if os.environ.get(SWITCH) == "0" or not path.is_file():
        return False
    if hasattr(torch.ops.surveybridge, "pixel_norm_silu"):
        return True
    try:
        torch.ops.load_library(path)
    except OSError:
        return False  # of another system, or broken
    return True


def refusal(x: Tensor, film: Tensor | None) -> str | None:
    """Return why the library cannot give the bits of the naive reference here, or None if it can."""
    lanes, channels = LANES[x.dtype], x.shape[1]
    if x.device.type != "cpu" or type(x) is not Tensor:
        return "x is no plain tensor on the CPU"
    if not x.permute(0, 2, 3, 1).is_contiguous() or not x.numel():
        return "x is not dense channels-last memory"
    if channels % lanes or channels > 32 * lanes:
        return f"{channels} channels are no multiple of {lanes} up to {32 * lanes}"
    if film is not None and film.dtype != x.dtype:
        return f"film is {film.dtype} but x {x.dtype}"
    if x.dtype == torch.float32 and not whole_vectors(x.numel()):
        return f"threads share {x.numel()} values in parts that are no multiple of {VECTOR}"
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return "autocast or a compiler decides how to compute"
    return None if loaded() else "there is no library for this torch and processor"


def whole_vectors(values: int) -> bool:
    """Whether torch's SiLU in float32 computes all values in vectors; single ones at the end have other bits."""
    share = -(-values // min(torch.get_num_threads(), -(-values // GRAIN)))
    return values % VECTOR == share % VECTOR == 0


def pixel_norm_silu_cpp(x: Tensor, weight: Tensor, bias: Tensor, film: Tensor | None) -> Tensor:
    """Return the same as `pixel_norm_silu_naive`, to the bit except for the payload of NaN; `refusal` is None."""
    scale = shift = None
    if film is not None:
        scale, shift = film.chunk(2, dim=1)
        scale, shift = (1 + scale).contiguous(), shift.contiguous()
    weight, bias = weight.to(x.dtype).contiguous(), bias.to(x.dtype).contiguous()
    out: Tensor = torch.ops.surveybridge.pixel_norm_silu(x, weight, bias, scale, shift, EPS)
    return out
