"""Everything that only a GPU can tell, in one command of a few minutes: first whether it is right, then how fast it is.

    python -m benchmarks.gpu --out benchmarks/results                 # on the GPU; no Ray, Zarr or Astropy needed
    python -m benchmarks.gpu --device cpu --quick --out /tmp          # the same code, small, to see that it runs

Every part is tried by itself: if it fails, its error is written down, and the others go on. The document is
``gpu.json``, with machine, tests, kernels, sampler, network, training, model stage, graph, scoring and square degree:
what a square degree costs is what the model stage and the scoring take for its pixels and sources.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import kernels, sampler
from surveybridge.bridge_core.anomaly import score_sources
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.fused import FusedUNet
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.network import UNet, channels_last
from surveybridge.bridge_core.sampler import Trajectory, begin, draw, window_noise
from surveybridge.bridge_core.scene import Scene
from surveybridge.bridge_core.settings import DEFAULT_BATCH, PatchGrid, Sampling, Scoring, WholeTile
from surveybridge.bridge_core.training import Batch, Recipe, TrainState, bridge_loss, step_generator, wanted_of
from surveybridge.bridge_core.translate import START, sampler_steps, translate_tile

SIDE = 64
SOURCES_APART = 39
"""Pixels between the sources of a tile: a deep field has one in 1500 pixels."""
RECONSTRUCTED = 0.1
"""Share of ordinary sources that `translate` reconstructs (`jobs.translating.config.RECONSTRUCT`)."""
PIXEL_ARCSEC = 0.1
SOURCES = 475_000
"""A square degree of Euclid Q1, 30 million in 63.1 (arXiv 2503.15302)."""
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Bench:
    """The device, and the sizes."""

    device: torch.device
    batches: tuple[int, ...]
    rounds: int
    tile: int
    samples: int = Sampling.samples
    """Of a translated tile."""

    def settle(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object]) -> float:
        """Return the median seconds of a call, after one call to compile and warm up."""
        taken = []
        for _ in range(self.rounds + 1):
            self.settle()
            began = time.perf_counter()
            call()
            self.settle()
            taken.append(time.perf_counter() - began)
        return sorted(taken[1:])[self.rounds // 2]


def main() -> None:
    """Run all parts, print each as it is done, and write gpu.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    bench = Bench(device, (2,), 1, 32, 2) if arguments.quick else Bench(device, (16, 128, 512, 2048), 5, 1024)
    parts: dict[str, Callable[[Bench], Any]] = {
        "machine": machine, "tests": run_tests, "kernels": kernel_rates, "sampler": sampler_rates,
        "network": network_rate, "training": training_rates, "model_stage": model_stage, "graph": graph,
        "scoring": scoring, "square_degree": lambda _: square_degree(document["model_stage"], document["scoring"]),
    }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"date": time.strftime("%Y-%m-%d")}
    failed = []
    for name, part in parts.items():
        began = time.monotonic()
        try:
            document[name] = part(bench)
        except Exception as error:
            traceback.print_exc()
            document[name] = {"error": f"{type(error).__name__}: {error}"}
            failed.append(name)
        print(f"{name} ({time.monotonic() - began:.1f} s): {json.dumps(document[name])}", flush=True)
        (arguments.out / "gpu.json").write_text(json.dumps(document, indent=1) + "\n")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def machine(bench: Bench) -> dict[str, Any]:
    """Describe the device and the versions."""
    found: dict[str, Any] = {"device": platform.processor() or platform.machine(), "torch": torch.__version__}
    if bench.device.type == "cuda":
        import triton

        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "memory": properties.total_memory, "triton": triton.__version__}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found | {"python": platform.python_version()}


def run_tests(bench: Bench) -> dict[str, Any]:
    """Test every kernel on the device against the naive one on the CPU, with the tests that are marked for it."""
    options = ["-q", "-m", "gpu", "--noconftest", "-p", "no:cacheprovider", "tests/kernels/test_gpu.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)},
        cwd=ROOT, capture_output=True, text=True, timeout=480,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0:
        raise RuntimeError(f"pytest ended with {done.returncode}: {' | '.join(lines[-15:])} {done.stderr[-500:]}")
    return {"summary": lines[-1]}


def kernel_rates(bench: Bench) -> list[dict[str, Any]]:
    """Measure the GB/s of every kernel next to those of a plain copy."""
    size = argparse.Namespace(windows=max(bench.batches), size=SIDE, repeats=4 * bench.rounds)
    return kernels.report(bench.device.type, ("naive", "triton") if bench.device.type == "cuda" else ("naive",), size)


def sampler_rates(bench: Bench) -> dict[str, Any]:
    """Time the rows of `benchmarks.sampler` at each batch; the published network may need more memory than there is."""
    all_ways = sampler.ways(bench.device.type)
    found: dict[str, Any] = {}
    for batch in bench.batches:
        try:
            found[str(batch)] = sampler.timings(all_ways, batch, bench.rounds, bench.device.type)
        except torch.OutOfMemoryError as error:
            found[str(batch)] = {"error": str(error).splitlines()[0]}
    return found


def network_rate(bench: Bench) -> list[dict[str, Any]]:
    """Measure the arithmetic per second of one evaluation, next to that of a large matrix product in bfloat16.

    The network's own operators (cuDNN on a GPU) and the kernels of convolutions, which make one head, take turns. The
    arithmetic is that of the operators, so that rates compare as times do.
    """
    model = load_checkpoint().to(bench.device, "bfloat16")
    network, head = model.network, model.card.problem.directions[-1].index
    kernels_of = FusedUNet(network, head)
    width = 8192 if bench.device.type == "cuda" else 512
    left, right = (torch.randn(width, width, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    peak = 2 * width**3 / bench.seconds(lambda: left @ right)
    rows = []
    for batch in bench.batches:
        shape = (batch, network.config.input_channels, SIDE, SIDE)
        x = torch.randn(shape, device=bench.device, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        emb = torch.randn(batch, network.config.time_dim, device=bench.device, dtype=torch.bfloat16)
        with torch.inference_mode():
            films = kernels_of.films(emb)
            ways = {"operators": partial(network.given, x, emb), "kernels": partial(kernels_of, x, films)}
            with FlopCounterMode(display=False) as counter:
                whole = ways["operators"]().unflatten(1, (2, -1))[:, head].float()
            off = (ways["kernels"]().float() - whole).square().mean().sqrt() / whole.square().mean().sqrt()
            for way, call in ways.items():
                took = bench.seconds(call)
                rate = counter.get_total_flops() / took
                row = {"batch": batch, "way": way, "seconds": took, "tflops": rate / 1e12, "share": rate / peak}
                rows.append(row | {"matmul_tflops": peak / 1e12, "rms_off_operators": float(off)})
    return rows


def training_rates(bench: Bench) -> list[dict[str, Any]]:
    """Measure the pairs per second of a training step with the release recipe."""
    card = load_checkpoint().card
    rows = []
    for batch in bench.batches:
        state = TrainState(channels_last(UNet(card.network).to(bench.device)), Recipe(batch_size=batch))
        images = (torch.randn(batch, 3, SIDE, SIDE), torch.randn(batch, 3, SIDE, SIDE))
        some = Batch.draw(card, images, wanted_of(card.problem, batch), step_generator(0, 0, 0)).to(bench.device)

        def step(state: TrainState = state, some: Batch = some) -> None:
            bridge_loss(state.network, card, some, state.recipe.bright_weight).backward()
            state.update(0.5)

        rows.append({"batch": batch, "pairs_per_second": batch / bench.seconds(step)})
    return rows


def model_stage(bench: Bench) -> dict[str, Any]:
    """Translate one tile with the defaults, as one window and in patches.

    Core pixels per second, and on a GPU the share of time that it is busy.
    """
    model = load_checkpoint().to(bench.device, "bfloat16")
    side, halo = bench.tile, WholeTile.halo
    direction = model.card.problem.directions[-1]
    flux = torch.randn(len(direction.observed.bands), side + 2 * halo, side + 2 * halo, device=bench.device)
    core = (halo, halo + side, halo, halo + side)
    scene = Scene(flux, torch.ones_like(flux, dtype=torch.bool), origin=(0, 0), core=core, psf_fwhm=7.0)
    found: dict[str, Any] = {"core": side}
    for grid in (WholeTile(), PatchGrid()):
        how = Sampling(samples=bench.samples, batch=DEFAULT_BATCH[bench.device.type], patches=grid)
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

        def translate(how: Sampling = how) -> None:
            translate_tile(model, direction, scene, how)

        took = bench.seconds(translate)
        row = {"seconds": took, "core_pixels_per_second": side**2 / took}
        if bench.device.type == "cuda":
            with profile(activities=[ProfilerActivity.CUDA]) as recorded:
                translate()
                bench.settle()
            busy = sum(event.self_device_time_total for event in recorded.key_averages()) / 1e6
            row |= {"busy_seconds": busy, "busy": busy / took, "peak_memory": torch.cuda.max_memory_allocated()}
        found[str(grid.stated)] = row
    return found


def scoring(bench: Bench) -> dict[str, Any]:
    """Time the lens score of the sources of a tile, and their reconstructions, each in seconds a source."""
    model = load_checkpoint().to(bench.device, "bfloat16")
    direction, side = model.card.problem.directions[-1], bench.tile
    places = range(SOURCES_APART // 2, side, SOURCES_APART)
    centres = [(y, x) for y in places for x in places]
    scenes = []
    for end in (direction.observed, direction.wanted):
        flux = torch.randn(len(end.bands), side, side, device=bench.device)
        valid, core = torch.ones_like(flux, dtype=torch.bool), (0, side, 0, side)
        scenes.append(Scene(flux, valid, (0, 0), core, psf_fwhm=7.0, sigma=torch.ones_like(flux)))
    observed, wanted = scenes
    taken = {}
    for name, share in (("lens_score", 0.0), ("with_reconstructions", 1.0)):
        how = Scoring(batch=DEFAULT_BATCH[bench.device.type], reconstruct=share)
        taken[name] = bench.seconds(partial(score_sources, model, observed, wanted, centres, how)) / len(centres)
    reconstructed = max(taken["with_reconstructions"] - taken["lens_score"], 0.0)
    return {"sources": len(centres), "seconds_lens_score": taken["lens_score"], "seconds_reconstructed": reconstructed}


def square_degree(model_stage: dict[str, Any], scoring: dict[str, Any]) -> dict[str, Any]:
    """Return hours of the device for a square degree, by the windows: of its pixels and of its sources.

    What readers and writers do is not in it: that is not done on the device.
    """
    pixels = (3600 / PIXEL_ARCSEC) ** 2
    each = scoring["seconds_lens_score"] + RECONSTRUCTED * scoring["seconds_reconstructed"]
    score = SOURCES * each / 3600
    found = {}
    for windows in (str(WholeTile().stated), str(PatchGrid().stated)):
        translate = pixels / model_stage[windows]["core_pixels_per_second"] / 3600
        found[windows] = {"hours_translate": translate, "hours_score": score, "hours": translate + score}
    return found


def graph(bench: Bench) -> list[dict[str, Any]]:
    """Time a trajectory as it is and as one CUDA graph; on a GPU, anything that waits for the device is an error."""
    model, how = load_checkpoint().to(bench.device, "bfloat16"), Sampling()
    steps = sampler_steps(model.card, how)
    rows = []
    for batch in bench.batches:
        trajectory, start, noise = prepared(model, batch, steps, bench.device)
        expected = trajectory.run(start, noise)
        row: dict[str, Any] = {"batch": batch, "seconds": bench.seconds(lambda: trajectory.run(start, noise))}  # noqa: B023
        if bench.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
            try:
                trajectory.run(start, noise)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            held = torch.cuda.CUDAGraph()
            with torch.cuda.graph(held):
                found = trajectory.run(start, noise)
            row["graph_seconds"] = bench.seconds(held.replay)
            row["same_bits"] = bool(torch.equal(found, expected))
        rows.append(row)
    return rows


def prepared(model: Model, batch: int, steps: list[int], device: torch.device) -> tuple[Trajectory, Any, Any]:
    """Prepare the default trajectory over windows side by side: its start and its noise."""
    x1 = torch.randn(batch, 3, SIDE, SIDE, device=device)
    direction, windows = model.card.problem.directions[-1], range(batch)
    noise = window_noise(0, direction.index, [(w, 0) for w in windows], [(SIDE * w, 0) for w in windows], device)
    start = begin(model.card, x1, steps[0], draw(noise, START, x1))
    how = Sampling()
    predictor = model.predictor(x1, direction, steps, how.precision)
    trajectory = Trajectory(model, x1, predictor, steps, how.eta, how.order, renoise=how.from_end)
    return trajectory, start, noise


if __name__ == "__main__":
    main()
