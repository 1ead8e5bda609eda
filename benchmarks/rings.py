"""Translated over observed flux in rings around the objects of a pair store, by their class: where flux is lost or won.

    python -m benchmarks.rings --pairs runs/sky0.zarr --start 21500 --count 2000
    python -m benchmarks.rings --pairs ../shared/data/pairs/test_regular.zarr --checkpoint mosaic-v2

LSST to VIS, at the middle of each pair, of objects from i = 18 to 24.5 in pairs without masked pixels. A column has the
ratio of the sums over all objects of a class, and the median over objects with half the width that holds 68% of them.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.translate import window_samples
from surveybridge.jobs.evaluating.cutouts import stamp_units
from surveybridge.jobs.training.images import views_of
from surveybridge.storage.pair_labels import labels_url
from surveybridge.storage.pairs import Pairs, read_ids, read_pairs

EDGES = (0.0, 0.2, 0.5, 1.0)
"""Of the rings, arcsec."""
MAGNITUDES = (18.0, 24.5)
FEWEST = 5
"""Objects of a class that are worth a line."""


def main() -> None:
    """Translate the pairs, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="pair store with a table beside it")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="shipped name, or path")
    parser.add_argument("--start", type=int, default=0, help="first pair")
    parser.add_argument("--count", type=int, default=1000, help="number of pairs")
    parser.add_argument("--samples", type=int, default=4, help="K of each pair")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    if model.card.grid != "mosaic":
        raise SystemExit(f"{model.card.name} works on the {model.card.grid} grid; give a checkpoint of the mosaic grid")
    first, stop = arguments.start, arguments.start + arguments.count
    pairs = read_pairs(arguments.pairs, "mosaic", first, stop, problem=model.card.problem.table, conditions=True)
    labels = pd.read_parquet(labels_url(arguments.pairs)).set_index("id")
    known = labels.loc[read_ids(arguments.pairs, first, stop)]
    rows = np.flatnonzero(complete(pairs) & known["mag_i"].between(*MAGNITUDES).to_numpy())
    if not len(rows):
        raise SystemExit(f"{arguments.pairs}: none of pairs {first} to {stop} is complete with an object that counts")
    translated = translations(model, pairs, rows, arguments.samples)
    classes = known["central_class"].to_numpy(str)[rows]
    print("\n".join(table(classes, translated, pairs.ends["euclid"][rows, 0], pairs.pixel_scale["euclid"])))


def translations(model: Model, pairs: Pairs, rows: NDArray[np.int64], samples: int) -> NDArray[np.float32]:
    """Mean translation to VIS of some pairs, [N, H, W] nJy."""
    direction = model.card.problem.to("euclid")
    windows, told = seen(model, direction, pairs, rows)
    corners = [(0, windows.shape[-1] * int(row)) for row in rows]
    drawn = window_samples(model, direction, windows, corners, Sampling(samples=samples), context=told)
    return np.asarray(drawn[:, :, 0].mean(1).numpy())


def seen(
    model: Model, direction: Direction, pairs: Pairs, rows: NDArray[np.int64]
) -> tuple[torch.Tensor, Context | None]:
    """The observed images of some complete pairs, [N, C, H, W] network units, and what the network is told of them."""
    stamps = torch.from_numpy(pairs.ends[direction.observed.name][rows])
    windows = stamp_units(model, direction.observed, stamps)
    views = views_of(model.card, pairs)
    return windows, None if views is None else views[direction.index].rows(torch.from_numpy(rows))


def complete(pairs: Pairs) -> NDArray[np.bool_]:
    """Which pairs have no masked pixels, bool [N]."""
    return np.logical_and.reduce([np.isfinite(images).all((1, 2, 3)) for images in pairs.ends.values()])


def table(
    classes: NDArray[np.str_], translated: NDArray[np.float32], observed: NDArray[np.float32], pixel_arcsec: float
) -> list[str]:
    """Markdown, a line for each class."""
    side = translated.shape[-1]
    line, column = np.indices((side, side)) - (side - 1) / 2
    radius = np.hypot(line, column) * pixel_arcsec
    rings = [(low, high) for low, high in itertools.pairwise(EDGES)] + [(0.0, EDGES[-1])]
    heads = [f'{low:g}" to {high:g}"' for low, high in rings]
    lines = [f"| class | objects | {' | '.join(heads)} |", "|" + "---|" * (len(rings) + 2)]
    for name in sorted(set(classes)):
        of = classes == name
        if of.sum() < FEWEST:
            continue
        cells = []
        for low, high in rings:
            inside = (radius >= low) & (radius < high)
            found, true = (images[of][:, inside].sum(1) for images in (translated, observed))
            ratios = found / true
            low_edge, high_edge = np.percentile(ratios, [16, 84])
            cells.append(f"{found.sum() / true.sum():.2f}, {np.median(ratios):.2f} +- {(high_edge - low_edge) / 2:.2f}")
        lines.append(f"| {name} | {of.sum()} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
