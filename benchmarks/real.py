"""What becomes of real Euclid Q1 stamps with ground images: a figure, to check behaviour; it is no metric.

    python -m benchmarks.real [--data ../shared/data/real] [--out docs/real.png] [--samples 16] [--steps 16]

The ground bands stand in for LSST gri and are out of the domain of the checkpoint; see docs/real.md.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from benchmarks.field_measures import Field, read_field
from surveybridge.jobs import ingest, translate
from surveybridge.jobs.drawing.rendering import GREY, lupton_rgb
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.photometry import sky_statistics
from surveybridge.storage.query import query
from surveybridge.storage.tiles import TileStore

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "real"
GROUND, VIS = "lsst", "euclid"
GROUND_ZERO_POINT = 30.0
"""AB, of all ground bands."""


@dataclass(frozen=True)
class Stamp:
    """A file of `DATA`, and the extensions that stand in for VIS and for LSST g, r and i."""

    file: str
    vis: str
    ground: tuple[str, str, str]
    title: str


STAMPS = (
    Stamp(
        "EUCLJ174517.55+655612.5.fits",
        "VIS_FLUX",
        ("HSC_G_FLUX", "MEGACAM_R_FLUX", "HSC_Z_FLUX"),
        "EUCL J174517.55+655612.5\nHSC g, MegaCam r, HSC z",
    ),
    Stamp(
        "102018665_NEG570040238507752998.fits",
        "VIS_BGSUB",
        ("DES_G_BGSUB", "DES_R_BGSUB", "DES_I_BGSUB"),
        "102018665 NEG570040238507752998\nDES g, r, i",
    ),
)


def main() -> None:
    """Print the measurements of each stamp as JSON, and draw all stamps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path("docs/real.png"))
    parser.add_argument("--checkpoint")
    parser.add_argument("--red", type=float, default=1.0, help="factor on the third ground band, as of another colour")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=translate.Config.model_fields["steps"].default)
    arguments = parser.parse_args()
    figure = Figure(figsize=(19.5, 3.1 * len(STAMPS) + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(STAMPS), 6)
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        for line, stamp in zip(axes, STAMPS, strict=True):
            store = str(Path(folder) / stamp.file)
            run = f"{store}-run"
            ingest_stamp(arguments.data, stamp, store, arguments.red)
            config = translate.Config(
                store=store, run=run, checkpoint=arguments.checkpoint, samples=arguments.samples,
                steps=arguments.steps, executor="serial",
            )  # fmt: skip
            code = translate.run(config)
            images = TileStore.open(store).read_tile("t0000", halo=0).images
            ground, vis = images[GROUND], images[VIS]
            field = read_field(run, store)
            report[stamp.file] = {"exit code": code} | describe(field, ground, vis) | ranked(run, field)
            draw(line, field, ground, stamp)
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title, fontsize=11)
    figure.suptitle(CREDIT, fontsize=9, y=0.0, va="bottom", color="0.35")
    figure.savefig(arguments.out, metadata={"Software": "surveybridge"})
    print(json.dumps(report, indent=1))


def ingest_stamp(data: Path, stamp: Stamp, store: str, red: float) -> None:
    """Make a tile store of a stamp in a folder, the third ground band times a factor."""
    path = data / stamp.file
    ground = tuple(f"{path}[{name}]" for name in stamp.ground)
    zero_point = () if red == 1 else (f"{GROUND}.i={GROUND_ZERO_POINT - 2.5 * math.log10(red)}",)
    # their RMS maps allow for correlated noise: a single pixel scatters by less
    ingest.run(
        ingest.Config(
            euclid=f"{path}[{stamp.vis}]", lsst=ground, store=store, euclid_noise="scaled", zero_point=zero_point
        )
    )


TITLES = (
    "ground stand-ins for LSST gri",
    "Euclid VIS, true",
    "translated VIS: posterior mean",
    "posterior std",
    "(true − mean) / std",
    "its distribution",
)
CREDIT = (
    "Euclid Q1 (ESA Euclid); DES; CFIS / UNIONS (MegaCam); HSC. Ground bands resampled onto VIS pixels. Out of the "
    "checkpoint's domain. Mean and std are model-generated."
)


def draw(axes: Any, field: Field, ground: SurveyImage, stamp: Stamp) -> None:
    """Draw one line of the figure: ground RGB, true VIS, translated mean, std, and the residual over the std."""
    known = field.known
    sigma = np.array([sky_statistics(f, v).sigma for f, v in zip(ground.flux, ground.valid, strict=True)])
    shown = np.where(ground.valid, ground.flux, np.nan)
    axes[0].imshow(lupton_rgb(shown[::-1], sigma[::-1]), origin="lower")
    axes[0].set_ylabel(stamp.title, fontsize=9)
    true, mean, std = (np.where(known, plane[0], np.nan) for plane in (field.true, field.mean, field.std))
    soft = 2 * sky_statistics(field.true[0], known).sigma
    brightest = float(np.nanpercentile(true, 99.95))
    norm = AsinhNorm(soft, vmin=-soft, vmax=brightest)
    views: tuple[tuple[Any, str, dict[str, Any], str], ...] = (
        (true, "gray", {"norm": norm}, "nJy / pixel"),
        (mean, "gray", {"norm": norm}, "nJy / pixel"),
        (std, "magma", {"vmin": 0, "vmax": float(np.nanpercentile(std, 99))}, "nJy / pixel"),
        ((true - mean) / std, "RdBu_r", {"vmin": -5, "vmax": 5}, "std"),
    )
    for axis, (image, colours, scale, unit) in zip(axes[1:5], views, strict=True):
        drawn = axis.imshow(image, origin="lower", cmap=colormaps[colours].with_extremes(bad=GREY), **scale)
        bar = axis.figure.colorbar(drawn, ax=axis, label=unit, shrink=0.72)
        if isinstance(scale.get("norm"), AsinhNorm):
            bar.set_ticks([tick for tick in (0, 2, 5, 10, 30, 100, 300) if tick <= brightest])
            bar.set_ticks([], minor=True)
            bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axis in axes[:5]:
        axis.set(xticks=[], yticks=[])
    draw_pulls(axes[5], field)


def draw_pulls(axis: Any, field: Field) -> None:
    """Draw a histogram of (true - mean) / std of sky and bright pixels, and what calibrated samples would show."""
    edges = np.linspace(-6, 6, 49)
    middle = 0.5 * (edges[1:] + edges[:-1])
    for name, pull in pulls(field).items():
        axis.hist(np.clip(pull, -5.99, 5.99), edges, density=True, histtype="step", label=f"{name}, {len(pull)} px")
    # with K samples the pull of a calibrated Gaussian posterior follows Student's t, widened by sqrt(1 + 1/K)
    wide = np.sqrt(1 + 1 / field.samples)
    axis.plot(middle, stats.t.pdf(middle / wide, field.samples - 1) / wide, "k:", lw=1, label="calibrated")
    axis.set(yscale="log", ylim=(1e-4, 1), xlabel="(true − mean) / std")
    axis.legend(fontsize=7, frameon=False)


def pulls(field: Field) -> dict[str, NDArray[np.float64]]:
    """Return (true - mean) / std by region; bright pixels have a mean above 3 sigma of the true image's own sky."""
    sigma = sky_statistics(field.true[0], field.known).sigma
    bright = field.known & (field.mean[0] > 3 * sigma)
    pull = (field.true[0].astype(np.float64) - field.mean[0]) / np.maximum(field.std[0], 1e-9)
    return {"sky": pull[field.known & ~bright], "bright": pull[bright]}


def ranked(run: str, field: Field) -> dict[str, Any]:
    """Return lens score and false-alarm rate of the source nearest to the middle, and the spread of the pulls."""
    sources = query(run).to_pandas()
    height, width = field.known.shape
    away = np.hypot(sources.x - field.origin[1] - (width - 1) / 2, sources.y - field.origin[0] - (height - 1) / 2)
    middle = sources.iloc[int(away.to_numpy().argmin())]
    found = {"sources": len(sources), "lens score": round(float(middle.score), 2)}
    found |= {"false-alarm rate": float(f"{middle.false_alarm:.2g}"), "rank": int(middle["rank"])}
    for name, pull in pulls(field).items():
        low, high = np.quantile(pull, [0.16, 0.84])
        found |= {f"pull, {name}: median": round(float(np.median(pull)), 2)}
        found |= {f"pull, {name}: half 16-84%": round(float(high - low) / 2, 2)}
    return found


def describe(field: Field, ground: SurveyImage, vis: SurveyImage) -> dict[str, Any]:
    """Return zero points, units, noise and the quality of the translation, for the reader of docs/real.md."""
    true, mean, std = (plane[0][field.known].astype(np.float64) for plane in (field.true, field.mean, field.std))
    sky = sky_statistics(field.true[0], field.known)
    height, width = field.known.shape
    y, x = np.mgrid[:height, :width]
    middle = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2)[field.known] < 25  # 5" across
    pull = np.abs(true - mean) / std
    numbers = {
        "known share": field.known.mean(),
        "true flux within 2.5 arcsec, nJy": true[middle].sum(),
        "translated over true flux within 2.5 arcsec": mean[middle].sum() / true[middle].sum(),
        "true sky level, nJy": sky.level,
        "true sky sigma, nJy": sky.sigma,
        "translated sky level, nJy": np.median(mean[~middle]),
        "median std outside 2.5 arcsec, nJy": np.median(std[~middle]),
        "peak of the true image, nJy": true.max(),
        "peak of the translated mean, nJy": mean.max(),
        "share within 1 std": np.mean(pull < 1),
        "share within 1 std inside 2.5 arcsec": np.mean(pull[middle] < 1),
    }
    return {
        "zero points": [vis.zero_point, ground.zero_point],
        "domain": vis.provenance["domain"],
        "ground psf fwhm, arcsec": [round(v, 3) for v in ground.psf_fwhm],
        "vis psf fwhm, arcsec": round(vis.psf_fwhm[0], 3),
        "ground noise correlation": [round(v, 3) for v in ground.noise_correlation],
    } | {name: round(float(value), 4) for name, value in numbers.items()}


if __name__ == "__main__":
    main()
