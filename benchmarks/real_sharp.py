"""What becomes of the ground images of real Euclid Q1 stamps that are sharpened through their own PSF and noise.

    python -m benchmarks.real_sharp --checkpoint seeing-v1 [--data ../shared/data/real] [--out docs/real-sharp.png]

VIS lies beside them, and the checkpoint does not look at it. For each band it prints the flux of the sharp mean over
that of the ground image within 2.5", and the scatter of (ground - sharp through the seeing) in units of the noise: 1
where the result explains the image. It is no metric: there are two stamps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.real import CREDIT, DATA, GROUND, STAMPS, VIS, Stamp, ingest_stamp
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.physics import filtered
from surveybridge.jobs import translate
from surveybridge.jobs.drawing.rendering import GREY, lupton_rgb
from surveybridge.jobs.translating.scene import blurs_of
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.mosaics import TileMosaic
from surveybridge.storage.photometry import sky_statistics
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import TileStore

TITLES = ("ground", "sharp: posterior mean", "reddest band: ground", "sharp mean", "sharp std", "Euclid VIS")
EDGE = 12
"""Pixels at the edges of a stamp that are not judged: what lies beyond has shone into them."""
SAMPLE_RADIUS = 25
"""Pixels, 2.5 arcsec."""


def main() -> None:
    """Print the measurements of each stamp as JSON, and draw all stamps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="seeing-v1")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path("docs/real-sharp.png"))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=16)
    arguments = parser.parse_args()
    figure = Figure(figsize=(19.5, 3.1 * len(STAMPS) + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(STAMPS), len(TITLES))
    card, report = load_checkpoint(arguments.checkpoint).card, {}
    with tempfile.TemporaryDirectory() as folder:
        for line, stamp in zip(axes, STAMPS, strict=True):
            store, run = (str(Path(folder) / f"{stamp.file}{what}") for what in ("", "-run"))
            ingest_stamp(arguments.data, stamp, store)
            config = translate.Config(
                store=store, run=run, checkpoint=arguments.checkpoint, to="sharp", samples=arguments.samples,
                steps=arguments.steps, executor="serial",
            )  # fmt: skip
            code = translate.run(config)
            images = TileStore.open(store).read_tile("t0000", halo=0).images
            sharp = RunFolder.open(run).read_tile_mosaic("t0000")
            report[stamp.file] = {"exit code": code} | measured(card, images[GROUND], sharp)
            draw(line, stamp, images[GROUND], images[VIS], sharp)
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title, fontsize=11)
    figure.suptitle(CREDIT, fontsize=9, y=0.0, va="bottom", color="0.35")
    figure.savefig(arguments.out, metadata={"Software": "surveybridge"})
    print(json.dumps(report, indent=1))


def measured(card: Card, ground: SurveyImage, sharp: TileMosaic) -> dict[str, Any]:
    """Flux and agreement of a sharp image with the one that it was made of, by band."""
    height, width = ground.flux.shape[1:]
    y, x = np.indices((height, width))
    disc = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2) < SAMPLE_RADIUS
    inner = np.s_[EDGE:-EDGE, EDGE:-EDGE]
    found: dict[str, Any] = {"psf fwhm, arcsec": [round(v, 2) for v in ground.psf_fwhm]}
    for number, blur in enumerate(blurs_of(ground, card)):
        mean = np.nan_to_num(sharp.mean[number].astype(np.float64))
        again = through(mean, blur.seeing.log_transfer)
        rest = np.where(ground.valid[number], ground.flux[number] - again, np.nan)
        sigma = sky_statistics(ground.flux[number], ground.valid[number]).sigma
        found[f"{ground.bands[number]}: flux within 2.5 arcsec, sharp over ground"] = round(
            float(mean[disc].sum() / np.nansum(ground.flux[number][disc])), 3
        )
        low, high = np.nanquantile(rest[inner], [0.16, 0.84])
        found[f"{ground.bands[number]}: (ground - sharp through the seeing) / noise"] = round(
            float(high - low) / 2 / sigma, 2
        )
        brightest = float(sharp.std[number][disc].max() / mean[disc].max())
        found[f"{ground.bands[number]}: std over peak"] = round(brightest, 2)
    return found


def through(image: NDArray[np.float64], log_transfer: Any) -> NDArray[np.float64]:
    """An image [H, W] through a seeing, with its mirror images around it."""
    padded = np.pad(image, EDGE * 2, mode="symmetric")
    blurred = filtered(torch.from_numpy(padded), log_transfer(padded.shape).exp()).numpy()
    return np.asarray(blurred[2 * EDGE : -2 * EDGE, 2 * EDGE : -2 * EDGE])


def draw(axes: Any, stamp: Stamp, ground: SurveyImage, vis: SurveyImage, sharp: TileMosaic) -> None:
    """Draw one line of the figure."""
    sigma = np.array([sky_statistics(f, v).sigma for f, v in zip(ground.flux, ground.valid, strict=True)])
    axes[0].imshow(lupton_rgb(np.where(ground.valid, ground.flux, np.nan)[::-1], sigma[::-1]), origin="lower")
    axes[1].imshow(lupton_rgb(sharp.mean[::-1], 2 * sigma[::-1]), origin="lower")
    axes[0].set_ylabel(stamp.title, fontsize=9)
    reddest = (ground.flux[-1], sharp.mean[-1], sharp.std[-1], np.where(vis.valid[0], vis.flux[0], np.nan))
    for axis, plane in zip(axes[2:], reddest, strict=True):
        soft = 2 * float(sigma[-1])
        norm = AsinhNorm(soft, vmin=-soft, vmax=float(np.nanpercentile(plane, 99.95)))
        drawn = axis.imshow(plane, origin="lower", norm=norm, cmap=colormaps["gray"].with_extremes(bad=GREY))
        bar = axis.figure.colorbar(drawn, ax=axis, label="nJy / pixel", shrink=0.72)
        bar.set_ticks([tick for tick in (0, 2, 5, 10, 30, 100, 300) if tick <= norm.vmax])
        bar.set_ticks([], minor=True)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axis in axes:
        axis.set(xticks=[], yticks=[])


if __name__ == "__main__":
    main()
