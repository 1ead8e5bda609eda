"""Which sampler is best, and with how many network evaluations: scores and calibration on held-out pairs.

    python -m benchmarks.samplers --pairs ../shared/data/pairs/train_regular.zarr --out benchmarks/results

The pairs are the last of the training store, which `surveybridge train` keeps for validation; test sets stay untouched.
Every sampler sees the same pairs and the same noise in one process. `ancestral` is AS-Bridge's own sampler (from the
observed survey, with steps uniform in the table's m, eta 1). `ancestral eta 0` is the same with the eta of DBIM, which
moves the mean as well as the noise. `dbim1`, `dbim2` and `sde2` go down the rho grid from the table's end: in first and
second order without noise, and in second order with it. `heun` is that of Karras et al. 2022. NFE counts network calls
per sample.

The numbers, printed and written to samplers.json, are: energy score in AS-Bridge's display, as published and fair, CRPS
of bright pixels in sigma, spread/skill of bright pixels (in the display) and of the sky, share of both inside the 68%
interval, and milliseconds per sample. The choice is the cheapest sampler whose fair energy score is within 1% of the
best and whose bright spread/skill is within 0.1 of 1, in both directions. The fair score decides, since the published
one grows with the spread by mean |X - X'| / (2 K), and with K = 5 would choose a sampler that is overconfident.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.evaluation import LEVELS, PIXEL_SUMS, REGIONS, PixelMeasures, PixelSums, image_scores
from surveybridge.bridge_core.model import Card, Model
from surveybridge.bridge_core.problem import Direction, Endpoint
from surveybridge.bridge_core.sampler import boot, bridge_steps, end_then_rho_steps, sample, sample_heun
from surveybridge.bridge_core.stretch import Stretch
from surveybridge.bridge_core.training import Ends
from surveybridge.jobs.evaluating.stages import display_stretch
from surveybridge.storage.pairs import Pairs, read_pairs

BATCH = 40
NFE = (1, 2, 4, 6, 8, 10, 12, 20, 50)
LONG = (200,)
"""Of the published sampler alone, which is made for it."""

Draw = Callable[[Tensor, torch.Generator], Tensor]
"""The observed endpoint [N, C, H, W] and a source of noise -> one sample of the wanted one each, network units."""


@dataclass(frozen=True)
class Sampler:
    """A way from the observed image to samples of the wanted one."""

    name: str
    steps: Callable[[Bridge, int], list[int]]
    order: int = 1
    eta: float = 0.0
    from_observed: bool = False
    heun: bool = False

    def at(self, model: Model, direction: Direction, count: int) -> Draw:
        """Return the function that `draws` calls for each batch."""
        return functools.partial(self.draw, model, direction, count)

    def draw(self, model: Model, direction: Direction, count: int, x1: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one sample of each row of x1 [N, C, H, W] with `count` network evaluations, in network units."""
        steps = self.steps(model.card.bridge, (count + 1) // 2 if self.heun else count)
        z = torch.randn(x1.shape, generator=generator)
        start = x1 if self.from_observed else boot(model.card.bridge, x1, steps[0], z)
        if self.heun:
            return sample_heun(model, x1, direction, steps, start=start, precision="bfloat16")
        return sample(
            model,
            x1,
            direction,
            steps,
            start=start,
            noise=lambda _: torch.randn(x1.shape, generator=generator),
            eta=self.eta,
            order=self.order,
            renoise=not self.from_observed,
            precision="bfloat16",
        )


def from_the_end(bridge: Bridge, count: int) -> list[int]:
    """Return the steps of the published program."""
    return bridge_steps(bridge, bridge.num_steps - 1, count)[:count]


def rho(sigma_max: float) -> Callable[[Bridge, int], list[int]]:
    """Return the rho grid below `sigma_max`, after the end of the table."""
    return lambda bridge, count: end_then_rho_steps(bridge, count, sigma_max)


SAMPLERS = (
    Sampler("ancestral", from_the_end, eta=1.0, from_observed=True),
    Sampler("ancestral eta 0", from_the_end, from_observed=True),
    Sampler("dbim1", rho(2.0)),
    Sampler("dbim2", rho(2.0), order=2),
    Sampler("dbim2 from 0.8", rho(0.8), order=2),
    Sampler("sde2", rho(2.0), order=2, eta=1.0),
    Sampler("heun", rho(2.0), heun=True),
)


def main() -> None:
    """Print a line for each sampler, number of evaluations and direction; write samplers.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--checkpoint", default="mosaic-v2", help="one that is told no conditions")
    parser.add_argument("--start", type=int, default=4992, help="first row, where the pairs kept from training begin")
    parser.add_argument("--count", type=int, default=40, help="pairs")
    parser.add_argument("--samples", type=int, default=5, help="K")
    parser.add_argument("--nfe", type=int, nargs="+", default=NFE)
    parser.add_argument("--long", type=int, nargs="*", default=LONG, help="numbers of evaluations of `ancestral` alone")
    parser.add_argument("--samplers", nargs="+", default=[one.name for one in SAMPLERS])
    parser.add_argument("--out", type=Path, default=None, help="folder for samplers.json")
    arguments = parser.parse_args()
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    problem, first = model.card.problem, arguments.start
    pairs = read_pairs(arguments.pairs, model.card.grid, first, first + arguments.count, problem=problem.table)
    display = display_stretch(pairs)
    rows = []
    print(f"{model.card.name}, {len(pairs)} pairs, K = {arguments.samples}, {torch.get_num_threads()} threads")
    print("direction    sampler          NFE |  energy score  |   CRPS |  spread/skill | 68% interval  |     ms")
    print("                                  | publ.     fair | bright | bright    sky | bright    sky | sample")
    for direction in problem.directions[::-1]:
        for one in SAMPLERS:
            if one.name not in arguments.samplers:
                continue
            for nfe in (*arguments.nfe, *(arguments.long if one.name == "ancestral" else ())):
                if one.heun and nfe % 2 == 0 and nfe > 1:
                    nfe -= 1  # an odd number of calls
                began = time.perf_counter()
                drawn = draws(model, pairs, direction, arguments.samples, one.at(model, direction, nfe))
                seconds = time.perf_counter() - began
                row: dict[str, Any] = {"direction": str(direction), "sampler": one.name}
                row |= {"nfe": nfe, "order": one.order, "eta": one.eta}
                row |= judge(drawn, pairs, direction.wanted, display[direction.wanted.name])
                row["ms_per_sample"] = 1000 * seconds / (arguments.samples * len(pairs))
                rows.append(row)
                print(
                    f"{direction} {one.name:16s} {nfe:3d} | {row['energy_score']:6.3f} "
                    f"{row['energy_score_fair']:7.3f} | {row['crps_bright']:6.2f} | "
                    f"{row['spread_skill_bright']:6.2f} {row['spread_skill_sky']:6.2f} | "
                    f"{row['inside_68_bright']:6.1%} {row['inside_68_sky']:6.1%} | {row['ms_per_sample']:6.1f}",
                    flush=True,
                )
    best = choice(rows)
    print(f"cheapest within 1% of the best: {best}")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        document = {"checkpoint": model.card.name, "sha256": model.sha256, "settings": settings, "choice": best}
        path = arguments.out / "samplers.json"
        path.write_text(json.dumps(document | {"rows": rows}, indent=1) + "\n")


def part(pairs: Pairs, rows: slice) -> Pairs:
    """Return some of the pairs."""
    return replace(pairs, ends={name: images[rows] for name, images in pairs.ends.items()})


def ends_of(card: Card, pairs: Pairs) -> Ends:
    """Return both endpoints as the network sees them, [N, C, H, W]."""
    first, second = (
        end.forward(torch.from_numpy(pairs.ends[end.name]), card.network.image_channels)
        for end in card.problem.endpoints
    )
    return first, second


def draws(model: Model, pairs: Pairs, direction: Direction, samples: int, draw: Draw) -> Tensor:
    """Return samples [K, N, C, H, W] in physical units; the noise depends on the place in the batch alone.

    The noise depends on the place in the batch alone, not on what draws.
    """
    observed, wanted = direction.observed, direction.wanted
    x1 = observed.forward(torch.from_numpy(pairs.ends[observed.name]), model.card.network.image_channels)
    rows = x1.repeat(samples, 1, 1, 1)
    found = []
    for first in range(0, len(rows), BATCH):
        generator = torch.Generator().manual_seed(first)
        found.append(wanted.inverse(draw(rows[first : first + BATCH], generator)))
    return torch.cat(found).unflatten(0, (samples, -1))


def judge(drawn: Tensor, pairs: Pairs, wanted: Endpoint, display: Stretch) -> dict[str, float]:
    """Return the numbers of one line."""
    truth, bands = torch.from_numpy(pairs.ends[wanted.name]), wanted.bands
    sigma = torch.tensor([pairs.noise[wanted.name][band] for band in bands])
    sums = PixelSums.of(drawn, truth, sigma, bands, display)

    def measures(region: str) -> PixelMeasures:
        r = REGIONS.index(region)
        total = {name: getattr(sums, name)[:, :, r].sum((0, 1)).numpy() for name in (*PIXEL_SUMS, "within")}
        return PixelMeasures.of(len(drawn), **total)

    bright, sky = measures("bright"), measures("sky")
    of_images = image_scores(drawn, truth, bands, display)
    return {
        "energy_score": float(of_images["energy_score"].mean()),
        "energy_score_fair": float(of_images["energy_score_fair"].mean()),
        "crps_bright": float(bright.crps),
        "spread_skill_bright": float(bright.spread_skill_display),
        "spread_skill_sky": float(sky.spread_skill_display),
        "inside_68_bright": float(bright.coverage[LEVELS.index(0.68)]),
        "inside_68_sky": float(sky.coverage[LEVELS.index(0.68)]),
    }


def choice(rows: Sequence[dict[str, Any]], tolerance: float = 0.01, off: float = 0.1) -> str | None:
    """Return the cheapest sampler within `tolerance` of the best fair score and `off` of spread/skill 1, both ways."""
    kept: set[tuple[int, str]] | None = None
    for direction in {row["direction"] for row in rows}:
        some = [row for row in rows if row["direction"] == direction]
        best = min(row["energy_score_fair"] for row in some)
        good = {
            (row["nfe"], row["sampler"])
            for row in some
            if row["energy_score_fair"] <= best * (1 + tolerance) and abs(row["spread_skill_bright"] - 1) <= off
        }
        kept = good if kept is None else kept & good
    return "{1}, {0} network evaluations".format(*min(kept)) if kept else None


if __name__ == "__main__":
    main()
