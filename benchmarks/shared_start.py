"""What one start for all samples of a tile changes: the time, and the posterior's mean, deviation and coverage.

    python -m benchmarks.shared_start --store tiles --tiles 2 --seeds 3 --out benchmarks/results

Each tile is translated as one window with a start for each sample and with one for all, in turns and by several seeds.
`off` is the distance of the two means of a seed, in standard deviations of the posterior, root mean square. Whether the
samples vary as much and the means are the same is judged beside what another seed changes: `distance` is that of two
means of different seeds, root mean square, over what the deviations of their K samples predict (1 where the samples of
a tile are independent), `flux` and `variance` are ratios of sums over bright pixels, or over the sky, of shared over
own or of one seed over the next, with the standard error over tiles and seeds; bright is 3 to 100 times the noise.
Quality is judged against the true image. Times are processor seconds; their ratio is the median over pairs that were
timed one after the other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.clouds_samplers import mean_and_error
from benchmarks.windows import quality, whole_tiles
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.settings import Sampling, WholeTile
from surveybridge.bridge_core.translate import Posterior, translate_tile, with_shared_start
from surveybridge.jobs.translating.scene import prepared, scene_of, wanted_conditions
from surveybridge.storage.tiles import Tile

WAYS = ("own", "shared")
BRIGHTEST = 100.0
"""Times the noise; without the cores of stars, a handful of which would decide every sum."""
RATIOS = (("flux", "bright"), ("variance", "bright"), ("variance", "sky"))


@dataclass(frozen=True)
class Drawn:
    """A tile's posterior by one seed, of both ways, and their seconds."""

    tile: Tile
    posteriors: dict[str, Posterior]
    seconds: dict[str, float]


def main() -> None:
    """Print a table per direction and write shared_start.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--checkpoint", help="shipped name, or path (default: the shipped one)")
    parser.add_argument("--tiles", type=int, default=2, help="number of tiles with both endpoints and a full halo")
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--samples", type=int, default=Sampling.samples, help="K")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    tiles = whole_tiles(arguments.store, arguments.tiles)
    if not tiles or arguments.seeds < 2:
        parser.error(f"{len(tiles)} tiles of {arguments.store} have both endpoints and a halo of 64; give at least 1, "
                     f"and 2 seeds instead of {arguments.seeds}")  # fmt: skip
    rows = []
    for direction in model.card.problem.directions[::-1]:
        found = [
            drawn(model, direction, prepared(model.card, tile), seed, arguments.samples)
            for tile in tiles
            for seed in range(arguments.seeds)
        ]
        rows.append(compared(found, direction, arguments.samples, arguments.seeds))
        show(rows[-1])
    if arguments.out:
        settings = {name: getattr(arguments, name) for name in ("tiles", "seeds", "samples")}
        document = {"checkpoint": model.card.name, "settings": settings, "rows": rows}
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "shared_start.json").write_text(json.dumps(document, indent=1) + "\n")


def drawn(model: Model, direction: Direction, tile: Tile, seed: int, samples: int) -> Drawn:
    """Translate a tile both ways; which comes first changes with the seed."""
    whole = WholeTile(multiple=model.card.network.window_multiple)
    own = Sampling(samples=samples, seed=seed, patches=whole)
    how = {"own": own, "shared": with_shared_start(model.card, own)}
    scene = scene_of(tile, direction.observed.name, torch.device("cpu"), model.card)
    wanted = wanted_conditions(model.card, tile, direction)
    found, seconds = {}, {}
    for way in WAYS[:: 1 if seed % 2 else -1]:
        began = time.process_time()
        found[way] = translate_tile(model, direction, scene, how[way], wanted=wanted)
        seconds[way] = time.process_time() - began
    return Drawn(tile, found, seconds)


def compared(found: list[Drawn], direction: Direction, samples: int, seeds: int) -> dict[str, Any]:
    """Return the numbers of one direction; `found` has the seeds of a tile one after the other."""
    row: dict[str, Any] = {"direction": str(direction)}
    row["time"] = statistics.median(one.seconds["shared"] / one.seconds["own"] for one in found)
    row["seconds"] = {way: statistics.median(one.seconds[way] for one in found) for way in WAYS}
    for way in WAYS:
        posteriors = [one.posteriors[way] for one in found]
        row[way] = quality([one.tile for one in found], posteriors, direction.wanted.name, samples, BRIGHTEST)
    by_tile = [found[i : i + seeds] for i in range(0, len(found), seeds)]
    following = [pair for seeds_of in by_tile for pair in itertools.pairwise([*seeds_of, seeds_of[0]])]
    pairs = {
        "seed": [(one.posteriors["own"], other.posteriors["own"]) for one, other in following],
        "shared": [(one.posteriors["shared"], other.posteriors["own"]) for one, other in following],
        "both_shared": [(one.posteriors["shared"], other.posteriors["shared"]) for one, other in following],
    }
    row["distance"] = {name: mean_and_error([distance(*pair, samples) for pair in of]) for name, of in pairs.items()}
    same_seed = [(one.posteriors["shared"], one.posteriors["own"]) for one in found]
    off = [((one.mean - other.mean) / other.std).square().nanmean() for one, other in same_seed]
    row["off"] = float(torch.stack(off).mean().sqrt())
    for what, where in RATIOS:
        row[f"{what}_{where}"] = {
            name: mean_and_error([ratio(*pair, what, where) for pair in of])
            for name, of in (("seed", pairs["seed"]), ("shared", same_seed))
        }
    return row


def distance(one: Posterior, other: Posterior, samples: int) -> float:
    """Return the distance of two means over what the deviations of their samples predict, both root mean square.

    Each pixel in units of its own deviation.
    """
    variance = (one.std.square() + other.std.square()).double()
    squared = samples * (one.mean - other.mean).double().square() / variance
    # the ratio follows F(1, freedom), whose mean is freedom / (freedom - 2)
    freedom = 2 * samples - 2
    return float((squared.nanmean() * (freedom - 2) / freedom).sqrt())


def ratio(one: Posterior, other: Posterior, what: str, where: str) -> float:
    """Return the ratio of sums of means, or of variances, over pixels that are bright in the other, or its sky."""
    sky = other.std.flatten(1).nanmedian(1).values[:, None, None]
    low, high = (3.0, BRIGHTEST) if where == "bright" else (-torch.inf, 1.5)
    chosen = (other.mean > low * sky) & (other.mean < high * sky) & one.mean.isfinite()
    sums = [(p.mean if what == "flux" else p.std.square())[chosen].double().sum() for p in (one, other)]
    return float(sums[0] / sums[1])


def show(row: dict[str, Any]) -> None:
    """Print the numbers of one direction."""
    seconds = row["seconds"]
    print(
        f"{row['direction']}: {seconds['own']:.1f} s a tile, shared {seconds['shared']:.1f} s, "
        f"ratio {row['time']:.3f}; off {row['off']:.4f} sigma"
    )
    print("  starts | RMSE  s/s  in 68%, bright | sky")
    for way in WAYS:
        found = row[way]
        print(
            f"  {way:6} | {found['rmse_bright']:5.3f} {found['spread_skill_bright']:5.3f} "
            f"{found['inside_68_bright']:6.1%} | "
            f"{found['rmse_sky']:.3f} {found['spread_skill_sky']:.3f} {found['inside_68_sky']:.1%}"
        )
    for name in ("distance", *map("_".join, RATIOS)):
        print(
            f"  {name:15}: " + ", ".join(f"{which} {m:.4f} +- {e:.4f}" for which, (m, e) in row[name].items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
