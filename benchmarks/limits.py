"""Where the maps are wrong, in a figure: a star, the brightest galaxy, masked pixels, blends lost or made up.

    python -m benchmarks.limits --out docs/limits.png

Stars and masks come from the shared field, and the rest from the first of the shared test pairs: the pair with the
brightest core, the pair whose samples have lost most of the sources that LSST blends, and the pair whose samples have
the most spurious sources. One line each: LSST, VIS, posterior mean and std, one sample, and (VIS - mean) / std.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
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

from benchmarks.field_measures import read_images
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.detection import detect
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.scene import observed_units
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.translate import window_samples
from surveybridge.jobs import ingest
from surveybridge.jobs.drawing.rendering import lupton_rgb
from surveybridge.storage.pairs import read_ids, read_labels, read_pairs

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
OBSERVED, WANTED = "lsst", "euclid"
SIZE = 64
SIGMA = 2.022
"""Noise of VIS, nJy per pixel."""
NOISE = np.array([0.33, 0.34, 0.53], np.float32)
"""Noise of co-registered LSST, nJy per pixel."""


@dataclass(frozen=True)
class Case:
    """A window: LSST [3, S, S] and VIS [S, S] in nJy, the pixels usable in LSST [S, S], and what it shows."""

    title: str
    gri: NDArray[np.float32]
    vis: NDArray[np.float32]
    valid: NDArray[np.bool_]


def main() -> None:
    """Find the cases, translate them, print their numbers and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--checkpoint", default="mosaic-v2", help="one that is told no conditions")
    parser.add_argument("--pairs", type=int, default=200, help="number of test pairs to look through")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("docs/limits.png"))
    arguments = parser.parse_args()
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    how = Sampling(samples=arguments.samples)
    cases = field_cases(arguments.data / "field") + pair_cases(model, arguments.data / "pairs", arguments.pairs, how)
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


def field_cases(folder: Path) -> list[Case]:
    """Find a star of 20 mag, and the part of the field with the most masked pixels around a bright object."""
    truth = pd.read_parquet(folder / "field_truth.parquet")
    with tempfile.TemporaryDirectory() as scratch:
        store = str(Path(scratch) / "tiles.zarr")
        bands = tuple(str(folder / f"field_lsst_{band}.fits") for band in "gri")
        ingest.run(ingest.Config(euclid=str(folder / "field_euclid_vis.fits"), lsst=bands, store=store))
        gri, vis = read_images(store, OBSERVED), read_images(store, WANTED)

    def window(title: str, x: float, y: float) -> Case:
        top, left = round(float(y)) - vis.origin[0] - SIZE // 2, round(float(x)) - vis.origin[1] - SIZE // 2
        part = (slice(top, top + SIZE), slice(left, left + SIZE))
        usable = np.isfinite(gri.flux).all(0) & gri.valid
        return Case(title, gri.flux[:, *part], vis.flux[0][part], usable[part])

    height, width = vis.valid.shape
    inner = truth.x_vis.between(40, width - 40) & truth.y_vis.between(40, height - 40)
    stars = truth[inner & (truth.kind == "star")]
    star = stars.iloc[int((stars.mag_i - 20).abs().to_numpy().argmin())]
    bright = truth[inner & (truth.kind != "star") & (truth.mag_i < 22.5)]
    masked = [np.mean(~window("", row.x_vis, row.y_vis).valid) for row in bright.itertuples()]
    hidden = bright.iloc[int(np.argmax(masked))]
    return [
        window(f"a star, i = {star.mag_i:.1f}", star.x_vis, star.y_vis),
        window(f"masked pixels ({max(masked):.0%})", hidden.x_vis, hidden.y_vis),
    ]


def pair_cases(model: Model, folder: Path, count: int, how: Sampling) -> list[Case]:
    """Find the brightest core, and blends that the samples lose or make up."""
    url = str(folder / "test_regular.zarr")
    ends, ids, labels = read_pairs(url, "mosaic", 0, count).ends, read_ids(url, 0, count), read_labels(url)
    seen = np.ones((SIZE, SIZE), bool)
    stamps = zip(ids, ends[OBSERVED], ends[WANTED], strict=True)
    all_cases = [Case(name, gri, vis[0], seen) for name, gri, vis in stamps]
    true = np.array([count_sources(case.vis) for case in all_cases])
    found = np.array([[count_sources(one) for one in translate_case(model, case, how)] for case in all_cases])
    blended = np.array([bool(labels[name][f"blended_{OBSERVED}"]) for name in ids])
    lost = np.where(blended, true - found.mean(1), -np.inf)
    chosen = {
        "the brightest core": int(np.argmax([case.vis.max() for case in all_cases])),
        "sources lost": int(lost.argmax()),
        "sources made up": int((found.mean(1) - true).argmax()),
    }
    return [
        Case(
            f"{title}\n{true[k]} in VIS, {found[k].mean():.1f} in samples" if "sources" in title else title,
            all_cases[k].gri, all_cases[k].vis, seen,
        )
        for title, k in chosen.items()
    ]  # fmt: skip


def translate_case(model: Model, case: Case, how: Sampling) -> NDArray[np.float32]:
    """Return samples of VIS, [K, S, S] nJy."""
    direction = model.card.problem.to(WANTED)
    flux = torch.from_numpy(np.nan_to_num(case.gri))
    valid = torch.from_numpy(np.broadcast_to(case.valid, flux.shape).copy())
    window: Tensor = observed_units(model, direction.observed, flux, valid)[None]
    return window_samples(model, direction, window, [(0, 0)], how)[0, :, 0].numpy()


def count_sources(image: NDArray[np.float32]) -> int:
    """Count the sources of a VIS image [S, S]."""
    return len(detect(image, np.full(image.shape, SIGMA**2, np.float32), np.ones(image.shape, bool)))


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
