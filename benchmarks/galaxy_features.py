"""How far the features of generated galaxies are from those of true ones, in a network that has seen neither.

    python -m benchmarks.galaxy_features --source pairs/train_regular.zarr --made diffusion=made.zarr [NAME=STORE ...]
        [--count 1000] [--halves 10] [--out benchmarks/results/galaxy_features.json]

Prints FD-lite0, the Frechet distance of features of EfficientNet-Lite0 (three of its blocks, each pooled over the
stamp), and the unbiased kernel distance of the same. Neither is the FID, whose network is another. VIS is shown in two
ways: each stamp by its own range in the colours of magma, as Holzschuh et al. 2022 do, which does not show flux, and
all by one asinh in grey. Each distance is of `--count` stamps from as many of the source, beside the floor, which is
that of as many others of the source; brackets hold 95% of random halves. Needs the extra `comparators`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.clouds_rivals import named
from benchmarks.galaxies import vis
from surveybridge.bridge_core.comparators.features import EfficientNetFeatures
from surveybridge.bridge_core.likeness import frechet, interval, kernel_distance
from surveybridge.storage.pairs import Pairs, read_pairs

SHOWN_SIGMAS = (-3.0, 300.0)
"""Flux shown black and white by the common asinh, in noise of VIS."""
BATCH = 50
DISTANCES: Mapping[str, Callable[[Tensor, Tensor], float]] = {"FD-lite0": frechet, "kernel distance": kernel_distance}


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--made", nargs="+", required=True, metavar="NAME=STORE")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--halves", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network, count = EfficientNetFeatures(), arguments.count
    source = read_pairs(arguments.source, stop=2 * count)
    made = {name: read_pairs(url, stop=count) for name, url in map(named, arguments.made)}
    for name, pairs in {"source": source.rows(slice(count, None)), **made}.items():
        if len(pairs) < count:
            parser.error(f"--count {count}, but {name} has {len(pairs)} pairs left; give fewer")
    rows = []
    for shown in (by_range, by_asinh):
        features = {name: pooled(network, shown(pairs)) for name, pairs in made.items()}
        rows += rows_of(shown.__name__.removeprefix("by_"), pooled(network, shown(source)), features, arguments.halves)
    print("\n".join(lines_of(rows)))
    if arguments.out:
        asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"asked": asked, "rows": rows}, indent=1) + "\n")


def by_range(pairs: Pairs) -> Tensor:
    """VIS from the minimum to the maximum of each stamp, in the colours of magma, float32 [N, 3, H, W] in 0 to 1."""
    import matplotlib

    image = vis(pairs)[:, 0]
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    levels = ((image - low) / (high - low) * 255).to(torch.uint8).numpy()
    colours = np.asarray(matplotlib.colormaps["magma"](levels))[..., :3]
    return torch.from_numpy(colours).float().permute(0, 3, 1, 2)


def by_asinh(pairs: Pairs) -> Tensor:
    """VIS by one asinh in grey, float32 [N, 3, H, W] in 0 to 1."""
    sigma = next(iter(pairs.noise["euclid"].values()))
    low, high = (float(np.arcsinh(level)) for level in SHOWN_SIGMAS)
    grey = ((torch.asinh(vis(pairs) / sigma) - low) / (high - low)).clamp(0, 1)
    return grey.expand(-1, 3, -1, -1)


def pooled(network: EfficientNetFeatures, images: Tensor) -> Tensor:
    """Features of images, their mean over each, float32 [N, D]."""
    return torch.cat([network(part).mean((2, 3)) for part in images.split(BATCH)])


def rows_of(shown: str, source: Tensor, made: Mapping[str, Tensor], halves: int) -> list[dict[str, Any]]:
    """Rows of the table for one way of showing: each distance of each set, and its floor."""
    half, rng = len(source) // 2, np.random.default_rng(0)
    orders = [torch.from_numpy(rng.permutation(len(source))) for _ in range(halves)]
    rows = []
    for name, distance in DISTANCES.items():
        row: dict[str, Any] = {"shown by": shown, "distance": name}
        row["floor"] = _summary([distance(source[order[half:]], source[order[:half]]) for order in orders])
        for label, features in made.items():
            row[label] = _summary([distance(features, source[order[:half]]) for order in orders])
        rows.append(row)
    return rows


def _summary(values: list[float]) -> dict[str, Any]:
    """Mean and central 95% of some values."""
    return {"mean": float(np.mean(values)), "interval": interval(values)}


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    """The table as Markdown."""
    labels = [key for key in rows[0] if key not in ("shown by", "distance")]
    lines = ["| shown by | distance | " + " | ".join(labels) + " |", "|---|---|" + "---|" * len(labels)]
    for row in rows:
        cells = [
            f"{row[label]['mean']:.3g} [{row[label]['interval'][0]:.3g}, {row[label]['interval'][1]:.3g}]"
            for label in labels
        ]
        lines.append(f"| {row['shown by']} | {row['distance']} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
