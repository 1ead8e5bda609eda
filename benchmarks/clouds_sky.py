"""What a run says of the densities of a molecular cloud on the sky, beside what it was shown.

    python -m benchmarks.clouds_sky --store perseus --run runs/perseus --places NGC1333=52.29,31.35 --out figures

Percentiles of column density and density over all pixels with data; the depth over which the column would have to be
spread to have that density, in pc; how far the density is a power of the column; and the density at the highest column
within 0.2 degrees of each place (ICRS, deg). Printed, and written to clouds_sky.json; clouds_sky.png shows both maps
and the relative standard deviation.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from numpy.typing import NDArray
from PIL import Image

from surveybridge.storage.celestial import celestial_wcs
from surveybridge.storage.manifests import fields_of
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import TileStore

PARSEC = float((1 * u.pc).to_value(u.cm))
SHARES = (5, 50, 95, 99.9)
AROUND = 0.2
"""Degrees around a place within which its peak is looked for."""

Plane = NDArray[np.float64]


def main() -> None:
    """Print the numbers, and draw the maps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="tile store of a column density, one field")
    parser.add_argument("--run", required=True, help="run folder of its translation to a density")
    parser.add_argument("--places", nargs="*", default=[], help="NAME=RA,DEC")
    parser.add_argument("--out", type=Path, required=True, help="folder for clouds_sky.json and clouds_sky.png")
    arguments = parser.parse_args()
    column, wcs = observed(arguments.store)
    mosaic = RunFolder.open(arguments.run).read_mosaic()
    mean, std = (np.asarray(plane[0], np.float64) for plane in (mosaic.mean, mosaic.std))
    found = measures(column, mean, std)
    for text in arguments.places:
        name, _, where = text.partition("=")
        ra, dec = map(float, where.split(","))
        found["places"][name] = at_peak(column, mean, std, wcs, SkyCoord(ra, dec, unit="deg"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "clouds_sky.json").write_text(json.dumps(found, indent=2) + "\n")
    draw(column, mean, std, wcs, arguments.out / "clouds_sky.png")
    for name, value in found.items():
        if name != "places":
            print(f"{name:22} {value}")
    for name, of in found["places"].items():
        print(f"{name:22} {of}")


def observed(url: str) -> tuple[Plane, WCS]:
    """Column density [H, W] of the field of a store, NaN without data, and its WCS."""
    store = TileStore.open(url)
    manifest = store.manifest()
    (field,) = fields_of(manifest).values()
    column = np.full(field.shape, np.nan)
    for name in manifest["tile_id"].to_pylist():
        tile = store.read_tile(name, halo=0)
        (y, x), (y0, y1, x0, x1) = tile.origin, tile.core
        (image,) = tile.images.values()
        column[y + y0 : y + y1, x + x0 : x + x1] = np.where(image.valid, image.flux, np.nan)[0, y0:y1, x0:x1]
    return column, celestial_wcs(field.wcs_header)


def measures(column: Plane, mean: Plane, std: Plane) -> dict[str, Any]:
    """Numbers of the whole map."""
    there = np.isfinite(column) & np.isfinite(mean)
    positive = there & (column > 0)
    x, y = np.log10(column[positive]), np.log10(mean[positive])
    slope, constant = np.polyfit(x, y, 1)

    def shares(values: Plane) -> dict[str, float]:
        return {f"{share:g}%": float(f"{np.percentile(values, share):.3g}") for share in SHARES}

    return {
        "pixels": int(there.sum()),
        "without a prediction": int((np.isfinite(column) & ~np.isfinite(mean)).sum()),
        "column, cm-2": shares(column[there]),
        "density, cm-3": shares(mean[there]),
        "std / mean": shares((std / mean)[there]),
        "column / density, pc": shares(column[positive] / mean[positive] / PARSEC),
        "power of the column": round(float(slope), 3),
        "dex around that power": round(float((y - slope * x - constant).std()), 3),
        "places": {},
    }


def at_peak(column: Plane, mean: Plane, std: Plane, wcs: WCS, place: SkyCoord) -> dict[str, Any]:
    """Numbers of the pixel of the highest column around a place."""
    y, x = np.indices(column.shape)
    near = SkyCoord(*wcs.all_pix2world(x, y, 0), unit="deg").separation(place).deg < AROUND
    known = near & np.isfinite(column) & np.isfinite(mean)
    if not known.any():
        return {"no data": True}
    at = np.unravel_index(np.argmax(np.where(known, column, -np.inf)), column.shape)
    return {"column": f"{column[at]:.2e}", "density": f"{mean[at]:.0f}", "std": f"{std[at]:.0f}"}


def draw(column: Plane, mean: Plane, std: Plane, wcs: WCS, path: Path) -> None:
    """Both maps in logarithms, and the relative standard deviation."""
    with np.errstate(invalid="ignore", divide="ignore"):
        planes = {
            "log N_H, shown (cm$^{-2}$)": np.log10(np.where(column > 0, column, np.nan)),
            "log n_H, mean of the samples (cm$^{-3}$)": np.log10(mean),
            "standard deviation / mean": std / mean,
        }
    height, width = column.shape
    figure, axes = plt.subplots(
        1, 3, figsize=(15, 4.4 * max(1.0, height / width)), layout="constrained", subplot_kw={"projection": wcs}
    )
    for one, (title, plane) in zip(axes, planes.items(), strict=True):
        low, high = np.nanpercentile(plane, (1, 99.9))
        shown = one.imshow(plane, origin="lower", vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
        one.set(title=title, xlabel="RA", ylabel="Dec" if one is axes[0] else " ")
        one.coords[1].set_ticklabel_visible(one is axes[0])
        one.coords.grid(color="white", alpha=0.4, linewidth=0.5)
        figure.colorbar(shown, ax=one, shrink=0.7)
    figure.savefig(path, dpi=70)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(256).save(path)


if __name__ == "__main__":
    main()
