"""Where the maps are wrong, in a figure: a star, masked pixels, the brightest galaxy, blends.

    python -m benchmarks.limits --out docs/limits.png

Stars and masks come from the shared field, in windows as large as whole tiles have around them, and the rest from the
first of the shared test pairs: the pair with the brightest core, and the pair whose samples have lost most of the
sources that LSST blends. One line each: LSST, VIS, posterior mean and std, one sample, and (VIS - mean) / std. How many
clear sources are lost and made up in all of those pairs is printed.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.detection import Sources, detect
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.scene import observed_units, tell
from surveybridge.bridge_core.settings import Sampling, WholeTile
from surveybridge.bridge_core.translate import window_samples
from surveybridge.jobs import ingest
from surveybridge.jobs.drawing.rendering import lupton_rgb
from surveybridge.jobs.evaluating.cutouts import pair_views, stamp_units, stamps_of
from surveybridge.jobs.translating.scene import prepared, scene_of, wanted_conditions
from surveybridge.storage.pairs import read_ids, read_labels, read_pairs
from surveybridge.storage.tiles import TileStore

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
OBSERVED, WANTED = "lsst", "euclid"
SIZE = 64
TILE = 2048
"""Side of the field, pixels."""
SIGMA = 2.022
"""Noise of VIS, nJy per pixel."""
NOISE = np.array([0.33, 0.34, 0.53], np.float32)
"""Noise of co-registered LSST, nJy per pixel."""


@dataclass(frozen=True)
class Case:
    """A window: LSST [3, S, S] and VIS [S, S] in nJy, the pixels usable in LSST [S, S], and what it shows.

    What the network sees, [C, H, W], may be larger, with the window in its middle; it is told the context, if any.
    """

    title: str
    gri: NDArray[np.float32]
    vis: NDArray[np.float32]
    valid: NDArray[np.bool_]
    units: Tensor
    context: Context | None


def main() -> None:
    """Find the cases, translate them, print their numbers and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--checkpoint", help="shipped name, or path (default: the shipped one)")
    parser.add_argument("--pairs", type=int, default=200, help="number of test pairs to look through")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("docs/limits.png"))
    arguments = parser.parse_args()
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    how = Sampling(samples=arguments.samples)
    cases = field_cases(model, arguments.data / "field") + pair_cases(
        model, arguments.data / "pairs", arguments.pairs, how
    )
    figure = Figure(figsize=(12.5, 2.15 * len(cases)), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(cases), 6)
    for line, case in zip(axes, cases, strict=True):
        drawn = translate_case(model, case, how)
        draw(line, case, drawn)
        mean, std = drawn.mean(0), np.maximum(drawn.std(0, ddof=1), 1e-6)
        pull = np.abs(case.vis - mean)[case.valid] / std[case.valid]
        inside = circle(10.0)
        print(
            f"{case.title.replace(chr(10), ' '):58s} peak {case.vis.max():8.1f} nJy, of the mean {mean.max():8.1f}; "
            f'flux within 1" {mean[inside].sum() / case.vis[inside].sum():5.2f} of the truth; '
            f"{np.mean(pull[inside[case.valid]] < 1):4.0%} of its pixels within 1 std, worst {pull.max():5.1f} std"
        )
    for axis, title in zip(axes[0], ("LSST", "VIS", "mean", "std", "one sample", "(VIS − mean) / std"), strict=True):
        axis.set_title(title, fontsize=10)
    figure.savefig(arguments.out, metadata={"Software": "surveybridge"})


def field_cases(model: Model, folder: Path) -> list[Case]:
    """Find a star of 20 mag, and the part of the field with the most masked pixels around a bright object."""
    truth = pd.read_parquet(folder / "field_truth.parquet")
    direction = model.card.problem.to(WANTED)
    with tempfile.TemporaryDirectory() as scratch:
        store = str(Path(scratch) / "tiles.zarr")
        bands = tuple(str(folder / f"field_lsst_{band}.fits") for band in "gri")
        vis = str(folder / "field_euclid_vis.fits")
        ingest.run(ingest.Config(euclid=vis, lsst=bands, store=store, tile_size=TILE, halo=0))
        (tile_id,) = TileStore.open(store).manifest()["tile_id"].to_pylist()
        tile = prepared(model.card, TileStore.open(store).read_tile(tile_id))
    scene, wanted = scene_of(tile, OBSERVED, torch.device("cpu")), wanted_conditions(model.card, tile, direction)
    height, width = scene.valid.shape[-2:]
    usable = scene.valid.all(0).numpy()

    def part_of(x: float, y: float) -> tuple[slice, slice]:
        top, left = round(float(y)) - tile.origin[0] - SIZE // 2, round(float(x)) - tile.origin[1] - SIZE // 2
        return slice(top, top + SIZE), slice(left, left + SIZE)

    def case(title: str, x: float, y: float) -> Case:
        part = part_of(x, y)
        (top, bottom), (left, right) = ((edges.start, edges.stop) for edges in part)
        window = replace(scene, core=(top, bottom, left, right))
        # with the halo of a whole tile, which is what `translate` shows
        window = window.framed(WholeTile(multiple=1).box(window.core_box))
        return Case(
            title,
            scene.flux[:, *part].numpy(),
            tile.images[WANTED].flux[0][part],
            usable[part],
            observed_units(model, direction.observed, window.flux, window.valid),
            tell(model, direction, window, wanted),
        )

    inner = truth.x_vis.between(40, width - 40) & truth.y_vis.between(40, height - 40)
    stars = truth[inner & (truth.kind == "star")]
    star = stars.iloc[int((stars.mag_i - 20).abs().to_numpy().argmin())]
    bright = truth[inner & (truth.kind != "star") & (truth.mag_i < 22.5)]
    masked = [np.mean(~usable[part_of(x, y)]) for x, y in zip(bright.x_vis, bright.y_vis, strict=True)]
    hidden = bright.iloc[int(np.argmax(masked))]
    return [
        case(f"a star, i = {star.mag_i:.1f}", star.x_vis, star.y_vis),
        case(f"masked pixels ({max(masked):.0%})", hidden.x_vis, hidden.y_vis),
    ]


def pair_cases(model: Model, folder: Path, count: int, how: Sampling) -> list[Case]:
    """Find the brightest core, and a blend that the samples lose; print how much is lost and made up in all pairs."""
    url, direction = str(folder / "test_regular.zarr"), model.card.problem.to(WANTED)
    pairs = read_pairs(url, "mosaic", 0, count, conditions=bool(model.card.network.conditions))
    ids, labels = read_ids(url, 0, count), read_labels(url)
    gri = stamps_of(pairs, direction.observed, torch.device("cpu"))
    units, views = stamp_units(model, direction.observed, gri), pair_views(model, pairs, torch.device("cpu"))
    seen = np.ones((SIZE, SIZE), bool)
    all_cases = [
        Case(name, gri[k].numpy(), pairs.ends[WANTED][k, 0], seen, units[k], views and views[direction.index].rows([k]))
        for k, name in enumerate(ids)
    ]
    drawn = [translate_case(model, case, how) for case in all_cases]
    for what, images in (
        ("in VIS", [(case.vis, samples) for case, samples in zip(all_cases, drawn, strict=True)]),
        ("in samples", [(one, case.vis[None]) for case, ones in zip(all_cases, drawn, strict=True) for one in ones]),
    ):
        absent, clear = np.sum([count_absent(image, other) for image, others in images for other in others], 0)
        print(f"clear sources {what}: {clear}, of which the other image has less than a third: {absent}")
    shown = np.array([len(sources_of(case.vis)) for case in all_cases])
    found = np.array([np.mean([len(sources_of(one)) for one in samples]) for samples in drawn])
    blended = np.array([bool(labels[name][f"blended_{OBSERVED}"]) for name in ids])
    core = int(np.argmax([case.vis.max() for case in all_cases]))
    lost = int(np.argmax(np.where(blended, shown - found, -np.inf)))
    return [
        replace(all_cases[core], title="the brightest core"),
        replace(all_cases[lost], title=f"sources lost\n{shown[lost]} in VIS, {found[lost]:.1f} in samples"),
    ]


def translate_case(model: Model, case: Case, how: Sampling) -> NDArray[np.float32]:
    """Return samples of VIS, [K, S, S] nJy."""
    direction = model.card.problem.to(WANTED)
    drawn = window_samples(model, direction, case.units[None], [(0, 0)], how, context=case.context)[0, :, 0]
    edge = (drawn.shape[-1] - SIZE) // 2
    return drawn[:, edge : edge + SIZE, edge : edge + SIZE].numpy()


def count_absent(image: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[int, int]:
    """Count the clear sources of an image [S, S] of which another holds less than a third within 0.3", and all of them.

    Clear are those with ten times the noise within that circle, all of which is on the image.
    """
    y, x = np.mgrid[:SIZE, :SIZE]
    sources, absent, clear = sources_of(image), 0, 0
    for column, row in zip(sources.x, sources.y, strict=True):
        inside = np.hypot(x - column, y - row) < 3
        flux = image[inside].sum()
        if min(column, row) > 3 and max(column, row) < SIZE - 4 and flux > 10 * SIGMA * np.sqrt(inside.sum()):
            clear += 1
            absent += int(other[inside].sum() < flux / 3)
    return absent, clear


def sources_of(image: NDArray[np.float32]) -> Sources:
    """Detect the sources of a VIS image [S, S], those in the wings of others too."""
    return detect(image, np.full(image.shape, SIGMA**2, np.float32), np.ones(image.shape, bool), clean=False)


def circle(radius: float) -> NDArray[np.bool_]:
    """Return the pixels within a radius of the middle."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    return np.asarray(np.hypot(y, x) < radius)


def draw(axes: Any, case: Case, samples: NDArray[np.float32]) -> None:
    """Draw one line of the figure."""
    mean, std = samples.mean(0), samples.std(0, ddof=1)
    shown = np.where(case.valid, case.gri, np.nan)
    axes[0].imshow(lupton_rgb(shown[::-1], NOISE[::-1]), origin="lower")
    axes[0].set_ylabel(case.title, fontsize=8)
    norm = AsinhNorm(2 * SIGMA, vmin=-2 * SIGMA, vmax=float(np.nanpercentile(case.vis, 99.9)))
    for axis, image in ((axes[1], case.vis), (axes[2], mean), (axes[4], samples[0])):
        axis.imshow(image, origin="lower", cmap="gray", norm=norm)
    axes[3].imshow(std, origin="lower", cmap="magma", norm=AsinhNorm(SIGMA, vmin=0))
    axes[5].imshow((case.vis - mean) / np.maximum(std, 1e-6), origin="lower", cmap="RdBu_r", vmin=-5, vmax=5)
    for axis in axes:
        axis.set(xticks=[], yticks=[])


if __name__ == "__main__":
    main()
