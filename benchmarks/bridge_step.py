"""Rates of the bridge step and its noise: naive on this CPU and, with CUDA, naive and fused on the GPU side by side.

    python benchmarks/bridge_step.py [--windows 16] [--size 64] [--bands 3] [--repeats 30] [--threads 1]

Every variant is timed in turn, round after round in one process, so that a machine that slows down slows all of them;
a rate is that of the median round, and a ratio is one of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from kernels.bridge_step import StepCoefficients, StepTable, bridge_step
from kernels.sky_noise import SkyNoise, sky_noise

FIRST = StepCoefficients(p=1.3, q=-0.5, r=0.2, h=0.0, a=0.3, b=0.4, c=0.2, d=0.3)


def main() -> None:
    """Print one table a device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("windows", 16), ("size", 64), ("bands", 3), ("repeats", 30), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = (args.windows, args.bands, args.size, args.size)
    print(f"{list(shape)} float32, {args.repeats} rounds; torch {torch.__version__}, {torch.get_num_threads()} threads")
    report("cpu", variants(shape, "cpu", ("naive",)), shape, args.repeats)
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        report(f"cuda ({name})", variants(shape, "cuda", ("naive", "triton")), shape, args.repeats)
    else:
        print("no CUDA device: the fused kernel's rate is not known here")


def variants(shape: tuple[int, int, int, int], device: str, impls: tuple[str, ...]) -> dict[str, Callable[[], object]]:
    """What is timed: the noise alone, a step with noise given, a step that draws it; first order, clamped."""
    x_t, pred, x1, z = (torch.randn(shape, device=device) for _ in range(4))
    window = torch.arange(shape[0], dtype=torch.int32, device=device)
    noise = SkyNoise(1, 0, window, window * 40, window * 50)
    draw = partial(sky_noise, noise, 3, shape[1:], device=device)
    step = partial(bridge_step, x_t, pred, x1, StepTable.of([FIRST] * 4, device), 3, clamp=(-1, 1))
    timed: dict[str, Callable[[], object]] = {}
    for impl in impls:
        timed[f"noise, {impl}"] = partial(draw, impl=impl)
        timed[f"step, noise given, {impl}"] = partial(step, noise=z, impl=impl)
        timed[f"step with sky noise, {impl}"] = partial(step, noise=noise, impl=impl)
    return timed | {"torch.randn (not reproducible)": partial(torch.randn, shape, device=device)}


def report(device: str, timed: dict[str, Callable[[], object]], shape: tuple[int, ...], repeats: int) -> None:
    """Time the variants in turn and print median milliseconds, rate, and ratio to naive of the same name."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for i in range(repeats + 3):
        for name, call in timed.items():
            took = clock(call, device.startswith("cuda"))
            if i >= 3:  # the first rounds compile and warm up
                seconds[name].append(took)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\n{device:<32} {'ms':>9} {'M values/s':>11} {'x naive':>8}")
    for name, value in median.items():
        naive = median.get(name.replace("triton", "naive"), value)
        print(f"{name:<32} {1e3 * value:9.3f} {torch.Size(shape).numel() / value / 1e6:11.1f} {naive / value:8.2f}")


def clock(call: Callable[[], object], cuda: bool) -> float:
    """Seconds of one call, by the GPU's own events where there is one."""
    if not cuda:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


if __name__ == "__main__":
    main()
