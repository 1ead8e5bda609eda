"""How fast all kernels are: naive on this CPU and, with CUDA, naive and fused on the GPU side by side.

    python -m benchmarks.kernels [--windows 512] [--size 64] [--repeats 30] [--out benchmarks/results]

All variants are timed in turn, round after round in one process, so that a machine that slows down slows all of them.
A time is that of the median round, and a ratio is that of two medians. GB/s counts the bytes that a fused kernel must
move (see the docstrings of `kernels`), and is compared with a plain copy of one tensor into another in the same rounds.
Where the C++ norm was built, the CPU has rows for it, and for evaluations of the network with and without it; and on
processors without instructions for bfloat16 one of the network with PyTorch's own convolutions of that type.
On a GPU, a round is 20 calls between two events, so that the device works while the host prepares the next call; of
what takes longer than 20 ms, it is one call. Tensors lie in memory as they do in the sampler.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from surveybridge.bridge_core import network
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.patches import taper
from surveybridge.bridge_core.prediction import Predictor
from surveybridge.bridge_core.settings import PatchGrid, Precision
from surveybridge.kernels.accumulate import accumulate
from surveybridge.kernels.blend import blend
from surveybridge.kernels.bridge_step import StepCoefficients, StepTable, bridge_step
from surveybridge.kernels.conv3x3 import Norm, conv3x3
from surveybridge.kernels.dispatch import Impl
from surveybridge.kernels.pixel_norm import cpp, pixel_norm_silu
from surveybridge.kernels.sky_noise import SkyNoise, sky_noise

BANDS = 3
SAMPLES = 8
CHANNELS = 32  # of the network at its highest resolution, half that of the window
CALLS, LONG = 20, 0.02  # calls between two events on a GPU, but of a call that takes longer than so many seconds one
NORM = ((CHANNELS,), (CHANNELS,), (1, 2 * CHANNELS))  # weight, bias and FiLM
WARM = 3  # rounds that compile, count the calls and warm up
FIRST = StepCoefficients(p=1.3, q=-0.5, r=0.2, h=0.0, a=0.3, b=0.4, c=0.2, d=0.3, u=1.1, v=-0.3)
SECOND = FIRST._replace(h=0.2)


@dataclass(frozen=True)
class Variant:
    """A call that is timed, and the bytes that it must move."""

    name: str
    impl: str
    call: partial[Any]
    bytes: int


def main() -> None:
    """Print one table per device; write kernels.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("windows", 32), ("size", 64), ("repeats", 20), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{arguments.windows} windows of {arguments.size} pixels, {arguments.repeats} rounds; torch {torch.__version__}"
    )
    tables = {platform.machine(): report("cpu", ("naive",), arguments)}
    if torch.cuda.is_available():
        tables[torch.cuda.get_device_name()] = report("cuda", ("naive", "triton"), arguments)
    else:
        print("no CUDA device: the rates of the fused kernels cannot be measured here")
    if arguments.out:
        settings = {name: getattr(arguments, name) for name in ("windows", "size", "repeats", "threads")}
        document = {"torch": torch.__version__, "settings": settings, "devices": tables}
        (arguments.out / "kernels.json").write_text(json.dumps(document, indent=1) + "\n")


def report(device: str, impls: tuple[Impl, ...], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the variants in turn; print and return a row for each."""
    timed = variants(arguments.windows, arguments.size, device, impls)
    if device == "cpu" and cpp.loaded():
        timed += networks(arguments.windows, arguments.size)
    seconds: list[list[float]] = [[] for _ in timed]
    for _ in range(WARM + arguments.repeats):
        for taken, variant in zip(seconds, timed, strict=True):
            calls = CALLS if device == "cuda" and taken and taken[-1] < LONG else 1
            taken.append(clock(variant.call, device == "cuda", calls))
    median = {(v.name, v.impl): statistics.median(taken[WARM:]) for v, taken in zip(timed, seconds, strict=True)}
    rows = []
    print(f"\n{device:<40} {'ms':>9} {'GB/s':>8} {'of a copy':>9} {'x naive':>8}")
    copy = timed[0].bytes / median["copy", "torch"]
    for variant in timed:
        took = median[variant.name, variant.impl]
        row = {
            "name": variant.name,
            "impl": variant.impl,
            "ms": 1e3 * took,
            "gb_per_second": variant.bytes / took / 1e9,
        }
        row["of_copy"] = variant.bytes / took / copy
        row["times_naive"] = median.get((variant.name, "naive"), took) / took
        rows.append(row)
        print(
            f"{variant.name + ', ' + variant.impl:<40} {row['ms']:9.3f} {row['gb_per_second']:8.1f} "
            f"{row['of_copy']:9.1%} {row['times_naive']:8.2f}",
            flush=True,
        )
    return rows


def variants(windows: int, size: int, device: str, impls: tuple[Impl, ...]) -> list[Variant]:
    """Return a plain copy and the generator's noise, then every kernel in every implementation."""
    shape = (windows, BANDS, size, size)
    values = torch.Size(shape).numel()
    x_t, x1, x0 = (torch.randn(shape, device=device) for _ in range(3))
    # a head as the network's last layer leaves it, the network's input, and what lies between two of its convolutions
    pred = F.pixel_shuffle(channels_last((windows, 4 * 2 * BANDS, size // 2, size // 2), device), 2)[:, BANDS:]
    stacked = channels_last((windows, 3 * BANDS, size, size), device)
    hidden = channels_last((windows, CHANNELS, size // 2, size // 2), device)
    weight, bias, film = (torch.randn(*of, device=device, dtype=torch.bfloat16) for of in NORM)
    kernel = channels_last((CHANNELS, CHANNELS, 3, 3), device)
    target = torch.empty_like(x_t)
    window = torch.arange(windows, dtype=torch.int32, device=device)
    noise = SkyNoise(1, 0, window, window * 40, window * 50)
    found = [
        Variant("copy", "torch", partial(target.copy_, x_t), 8 * values),
        Variant("torch.randn, not reproducible", "torch", partial(torch.randn, shape, device=device), 4 * values),
    ]
    for impl in impls:
        draw = partial(sky_noise, noise, 3, shape[1:], device=device, impl=impl)
        found.append(Variant("sky noise", impl, draw, 4 * values))
        step = partial(bridge_step, x_t, pred, x1, noise=noise, out=(x_t, x0), clamp=(-1, 1), impl=impl)
        step = partial(step, next_input=stacked[:, :BANDS])
        first, second = (StepTable.of([row] * 4, device) for row in (FIRST, SECOND))
        found.append(Variant("first order step", impl, partial(step, table=first, step=3), 20 * values))
        found.append(Variant("second order step", impl, partial(step, table=second, step=3, x0_prev=x0), 24 * values))
        norm = partial(pixel_norm_silu, hidden, weight, bias, film, impl=impl)
        found.append(Variant("norm, FiLM and SiLU", impl, norm, 4 * hidden.numel()))
        conv = partial(conv3x3, hidden, kernel, bias, norm=Norm(weight, bias, film), keep=False, impl=impl)
        found.append(Variant("convolution, norm, FiLM and SiLU", impl, conv, 4 * hidden.numel()))
        found += reductions(windows, size, device, impl)
    return found


def networks(windows: int, size: int) -> list[Variant]:
    """Return the C++ norm, and evaluations of the default network in both types with plain torch's norm and with it."""
    hidden = channels_last((windows, CHANNELS, size // 2, size // 2), "cpu")
    weight, bias, film = (torch.randn(*of, dtype=torch.bfloat16) for of in NORM)

    def norm() -> Tensor:
        with torch.inference_mode():
            return pixel_norm_silu(hidden, weight, bias, film, impl="cpp")

    found = [Variant("norm, FiLM and SiLU", "cpp", partial(norm), 4 * hidden.numel())]
    precisions: tuple[Precision, ...] = ("bfloat16", "float32")
    for precision in precisions:
        model, x1 = load_checkpoint().to("cpu", precision), torch.randn(windows, BANDS, size, size)
        predictor = model.predictor(x1, model.card.problem.directions[-1], [100], precision)
        predictor.input.copy_(x1)
        for impl in ("naive", "cpp"):
            call = partial(evaluate, predictor, x1, impl == "cpp")
            found.append(Variant(f"network in {precision}", impl, call, 2 * x1.numel() * x1.element_size()))
        if precision == "bfloat16" and not network.bfloat16_is_fast():
            call = partial(evaluate, predictor, x1, True, own_sums=False)
            found.append(Variant("network in bfloat16", "torch", call, 2 * x1.numel() * x1.element_size()))
    return found


def evaluate(predictor: Predictor, state: Tensor, fused: bool, own_sums: bool = True) -> Tensor:
    """Return the network's output, with the C++ norm or as if it had not been built.

    Without `own_sums` PyTorch convolves bfloat16 even where the processor has no instructions for it.
    """
    fast = network.bfloat16_is_fast if own_sums else lambda: True
    with patch.object(cpp, "loaded", lambda: fused), patch.object(network, "bfloat16_is_fast", fast):
        return predictor(0, state)


def channels_last(shape: tuple[int, ...], device: str) -> Tensor:
    """Return normal bfloat16 values in the network's memory format."""
    return torch.randn(shape, device=device, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)


def reductions(windows: int, size: int, device: str, impl: Impl) -> list[Variant]:
    """Return the moments over the samples of some windows, and the blend of a square of windows."""
    samples = torch.randn((max(1, windows // SAMPLES), SAMPLES, BANDS, size, size), device=device)
    one = samples[:, 0].numel()
    moments = Variant("accumulate", impl, partial(accumulate, samples, impl=impl), 4 * (SAMPLES + 2) * one)
    grid, across = PatchGrid(size, size * 5 // 8, size // 8), max(4, int(windows**0.5))
    side = grid.stride * (across - 1)
    corners = [(y * grid.stride, x * grid.stride) for y in range(across) for x in range(across)]
    mean: Tensor = torch.rand((len(corners), BANDS, size, size), device=device)
    call = partial(blend, mean, mean, corners, taper(grid), (size, side, size, side), stride=grid.stride, impl=impl)
    pixels = BANDS * (side - size) ** 2
    read = round(8 * (size / grid.stride) ** 2)  # a window's pixels are read for every pixel of the box under them
    return [moments, Variant("blend", impl, call, (read + 8) * pixels)]


def clock(call: Callable[[], object], cuda: bool, calls: int) -> float:
    """Return the seconds of a call, the mean of so many, by the GPU's own events where there is one."""
    if not cuda:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


if __name__ == "__main__":
    main()
