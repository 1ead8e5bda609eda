"""How much each optimisation of the sampler gains, from the published algorithm in plain form to the default.

    python -m benchmarks.sampler --pairs ../shared/data/pairs/train_regular.zarr --out benchmarks/results
    python -m benchmarks.sampler --pairs ../shared/data/pairs/train_regular.zarr --checkpoint mosaic-v2

The published algorithm takes 200 ancestral steps, uniform in m, from the observed survey, in eager float32. Every row
adds one change to the row above, on the same windows in one process; times are medians over rounds that go through all
rows in turn. A row of very many steps is timed over the first of them and scaled, which `timed` says. Only the first
row has another network: AS-Bridge's layout with untrained weights, since only its speed matters. The first and the
last row are scored on pairs held out from training.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.network import NetworkConfig, UNet, channels_last
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.sampler import boot, bridge_steps, draw, end_then_rho_steps, sample, window_noise
from surveybridge.bridge_core.settings import Precision, Sampling
from surveybridge.bridge_core.translate import START
from surveybridge.kernels.sky_noise import SkyNoise

if TYPE_CHECKING:
    from benchmarks.samplers import Draw

SIDE = 64
PUBLISHED_STEPS = 200


@dataclass(frozen=True)
class Way:
    """A row of the table: a network and how it is sampled.

    Parameters
    ----------
    published
        200 ancestral steps from the observed survey; else the default steps, order and start.
    sky
        Noise of the sky, reproducible; else the generator's.
    timed
        Network evaluations that are timed, 0 for all.
    """

    name: str
    model: Model
    published: bool
    precision: Precision = "float32"
    sky: bool = False
    timed: int = 0

    @property
    def steps(self) -> list[int]:
        """Return the steps of the table, all of them."""
        bridge = self.model.card.bridge
        if self.published:
            return bridge_steps(bridge, bridge.num_steps - 1, PUBLISHED_STEPS)[:PUBLISHED_STEPS]
        return end_then_rho_steps(bridge, Sampling().steps, Sampling().sigma_max)

    def run(self, x1: Tensor, direction: Direction, z: Callable[[int], Tensor] | SkyNoise, steps: list[int]) -> Tensor:
        """Return samples of the wanted survey, in network units."""
        how, start = Sampling(), x1
        if not self.published:
            start = boot(
                self.model.card.bridge, x1, steps[0], draw(z, START, x1) if isinstance(z, SkyNoise) else z(START)
            )
        return sample(
            self.model,
            x1,
            direction,
            steps,
            start=start,
            noise=z,
            eta=1.0 if self.published else how.eta,
            order=1 if self.published else how.order,
            renoise=not self.published,
            precision=self.precision,
        )

    def at(self, direction: Direction) -> Draw:
        """Return the function that `draws` calls for each batch."""

        def one(x1: Tensor, generator: torch.Generator) -> Tensor:
            return self.run(x1, direction, lambda _: torch.randn(x1.shape, generator=generator), self.steps)

        return one

    def seconds(self, x1: Tensor) -> float:
        """Return the time of all steps on these windows."""
        rows = [(window, 0) for window in range(len(x1))]
        sky = window_noise(0, 0, rows, [(SIDE * window, 0) for window in range(len(x1))], x1.device)
        steps = self.steps[: self.timed] if self.timed else self.steps
        direction = self.model.card.problem.directions[-1]
        began = time.perf_counter()
        self.run(x1, direction, sky if self.sky else lambda _: torch.randn(x1.shape, device=x1.device), steps)
        if x1.is_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - began) * len(self.steps) / len(steps)


def ways(device: str = "cpu", checkpoint: str | None = None) -> list[Way]:
    """Return the rows, from the published algorithm to the default."""
    precisions: tuple[Precision, ...] = ("float32", "float32", "bfloat16")
    plain, last, ours = (load_checkpoint(checkpoint).to(device, precision) for precision in precisions)
    channels_last(last.network)
    published = Model(plain.card, UNet(NetworkConfig()).eval().requires_grad_(False), "").to(device, "float32")
    return [
        Way("published algorithm and network, float32", published, True, timed=2),
        Way("network: base 32, space to depth, pixel norm", plain, True, timed=10),
        Way("steps: second order, 6 evaluations", plain, False),
        Way("memory: channels last", last, False),
        Way("network in bfloat16", ours, False, "bfloat16"),
        Way("noise of the sky (the default)", ours, False, "bfloat16", sky=True),
    ]


def main() -> None:
    """Print a row for each optimisation and the scores of both ends; write sampler.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--checkpoint", help="shipped name, or path (default: the shipped one)")
    parser.add_argument("--batch", type=int, default=16, help="windows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start", type=int, default=4992, help="first row, where the pairs kept from training begin")
    parser.add_argument("--count", type=int, default=12, help="pairs that are scored")
    parser.add_argument("--samples", type=int, default=5, help="K of the scores")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    all_ways = ways(checkpoint=arguments.checkpoint)
    rows = timings(all_ways, arguments.batch, arguments.rounds)
    shares = profiled(all_ways[-1], arguments.batch)
    scores = scored(all_ways, arguments.pairs, arguments.start, arguments.count, arguments.samples)
    if arguments.out:
        machine = {"processor": processor(), "torch": torch.__version__, "threads": arguments.threads}
        settings = {name: getattr(arguments, name) for name in ("batch", "rounds", "count", "samples")}
        document = {"machine": machine, "settings": settings, "levers": rows, "shares": shares, "scores": scores}
        (arguments.out / "sampler.json").write_text(json.dumps(document, indent=1) + "\n")


def timings(all_ways: list[Way], batch: int, rounds: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Return the windows per second of every row, with its factors on the row above and on the first."""
    x1 = torch.randn(batch, 3, SIDE, SIDE, device=device)
    taken: dict[str, list[float]] = {way.name: [] for way in all_ways}
    for _ in range(rounds):
        for way in all_ways:
            taken[way.name].append(way.seconds(x1))
    rate = {name: batch / statistics.median(times) for name, times in taken.items()}
    rows: list[dict[str, Any]] = []
    print(" " * 45 + "| evaluations | windows/s |  factor | times the first | the second")
    for above, way in zip([all_ways[0], *all_ways], all_ways, strict=False):
        row = {
            "name": way.name,
            "evaluations": len(way.steps),
            "timed": way.timed,
            "windows_per_second": rate[way.name],
        }
        row["factor"] = rate[way.name] / rate[above.name]
        row["times_published"] = rate[way.name] / rate[all_ways[0].name]
        row["times_same_network"] = rate[way.name] / rate[all_ways[1].name]
        rows.append(row)
        print(
            f"{way.name:44s} | {row['evaluations']:11d} | {row['windows_per_second']:9.3g} | {row['factor']:7.2f} | "
            f"{row['times_published']:15.0f} | {row['times_same_network']:10.0f}",
            flush=True,
        )
    return rows


OPERATIONS = {
    "convolutions": ("mkldnn_convolution", "conv2d", "_convolution"),
    "layer norms": ("native_layer_norm", "surveybridge::pixel_norm_silu"),  # the second with FiLM and SiLU
    "activations, FiLM, sums": ("silu", "mul", "add", "cat"),
    "casts and copies": ("copy_", "_to_copy", "to", "clone", "contiguous"),
    "linear layers": ("addmm", "linear"),
}
"""Names of torch's operators by what they do in the network; all others are noise, update and bookkeeping."""


def profiled(way: Way, batch: int) -> dict[str, float]:
    """Return the shares of a sampler's own time by kind of operation, by torch's profiler."""
    x1 = torch.randn(batch, 3, SIDE, SIDE)
    way.seconds(x1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        way.seconds(x1)
    own = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in recorded.key_averages()}
    total = sum(own.values())
    shares = {kind: sum(own.get(name, 0.0) for name in names) / total for kind, names in OPERATIONS.items()}
    shares["noise, update and the rest"] = 1 - sum(shares.values())
    print("of the default: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items()), flush=True)
    return shares


def scored(all_ways: list[Way], path: str, start: int, count: int, samples: int) -> list[dict[str, Any]]:
    """Score the published algorithm in float32 and the default, on one network: energy score and calibration."""
    from benchmarks.samplers import draws, judge
    from surveybridge.jobs.evaluating.stages import display_stretch
    from surveybridge.storage.pairs import read_pairs

    _, plain, *_, default = all_ways
    card = plain.model.card
    pairs = read_pairs(path, card.grid, start, start + count, problem=card.problem.table)
    display, found = display_stretch(pairs), []
    print(f"{count} pairs, K = {samples}: energy score as published, fair; spread/skill and 68% interval: bright, sky")
    for direction in card.problem.directions[::-1]:
        for name, way in (("published", plain), ("default", default)):
            drawn = draws(plain.model, pairs, direction, samples, way.at(direction))
            row = judge(drawn, pairs, direction.wanted, display[direction.wanted.name])
            found.append({"direction": str(direction), "sampler": name, **row})
            print(f"{direction} {name:9s} " + "  ".join(f"{value:6.3f}" for value in list(row.values())[:2]), end="  ")
            print("  ".join(f"{value:5.2f}" for value in list(row.values())[3:]), flush=True)
    return found


def processor() -> str:
    """Describe the model of this machine's processor, and its instructions for bfloat16."""
    described = dict(line.split("\t", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if "\t" in line)
    fast = [flag for flag in described.get("flags", "").split() if flag in ("amx_bf16", "avx512_bf16")]
    return f"{described.get('model name', platform.machine()).strip(': ')}, {' '.join(fast) or 'no bfloat16'}"


if __name__ == "__main__":
    main()
