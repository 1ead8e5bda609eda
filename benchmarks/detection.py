"""What counts as an object, and what is a star: noise alone, faint sources, stars and galaxies of the shared field.

    python -m benchmarks.detection --out benchmarks/results/detection.json

Prints how often pure noise is detected and how often it counts, the share of sources found by their true signal to
noise (that of a matched filter), the share of stars and galaxies that are called stars by magnitude, and the time that
detection takes with and without what is measured beside fluxes (in turns; the median counts).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from surveybridge.bridge_core.correlation import error_factor
from surveybridge.bridge_core.detection import SIGNIFICANCE, aperture_flux, detect, significance
from surveybridge.jobs.translating.candidates import APERTURE_ARCSEC, measured
from surveybridge.jobs.translating.sources import find_sources
from surveybridge.storage import ingest
from surveybridge.storage.photometry import sky_statistics
from surveybridge.storage.problems import default_problem
from surveybridge.storage.schema import SCHEMA_VERSION
from surveybridge.storage.tiles import Tile

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "field"
PSF_FWHM = 1.6
"""Of the made-up images, pixels: that of VIS."""
SIDE, SPACING = 1024, 32
BRIGHTEST = ((0, 20), (20, 22), (22, 23.5), (23.5, 25), (25, 26.5))
"""Bins of magnitude."""

Image = NDArray[np.float32]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--fields", type=int, default=20, help="fields of noise of each kind")
    parser.add_argument("--rounds", type=int, default=7, help="of the times")
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    found: dict[str, Any] = {
        "significance": SIGNIFICANCE,
        "noise": [pure_noise(width, arguments.fields) for width in (0.0, 0.5, 0.8, 1.2)],
        "found": [completeness(width, noise) for noise in (0.0, 0.8) for width in (0.68, 1.5, 3.0)],
    }
    tile = field_tile(arguments.data)
    truth = pd.read_parquet(arguments.data / "field_truth.parquet")
    found |= {"stars": stars(tile, truth), "seconds": seconds(tile, arguments.rounds)}
    print(json.dumps(found, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def noise(rng: np.random.Generator, width: float) -> Image:
    """Noise of variance 1 by pixel, smoothed with a Gaussian of some width."""
    white = rng.normal(size=(SIDE, SIDE))
    made = gaussian_filter(white, width, mode="wrap") if width else white
    return np.asarray(made / made.std(), np.float32)


def counted(flux: Image, correlation: float, clean: bool = False) -> tuple[NDArray[np.float64], int]:
    """Places of the objects that count, [N, 2], and how many were detected; `clean` as SExtractor does it."""
    variance, valid = np.ones_like(flux), np.ones(flux.shape, bool)
    sources = detect(flux, variance, valid, clean=clean)
    keep = significance(flux, variance, valid, sources, PSF_FWHM, correlation) >= SIGNIFICANCE
    return np.stack([sources.x, sources.y], 1)[keep], len(sources)


def pure_noise(width: float, fields: int) -> dict[str, Any]:
    """Detections in noise alone, and those that count, by field."""
    detected, kept, correlations = 0, 0, []
    for seed in range(fields):
        flux = noise(np.random.default_rng([seed, 1]), width)
        correlations.append(sky_statistics(flux, np.ones(flux.shape, bool)).correlation)
        places, raw = counted(flux, correlations[-1])
        detected, kept = detected + raw, kept + len(places)
    return {
        "correlation": round(float(np.mean(correlations)), 3),
        "fields": fields,
        "detected_per_field": detected / fields,
        "candidates": kept,
    }


def completeness(width: float, smoothing: float) -> dict[str, Any]:
    """Share of Gaussian sources of a width (pixels, PSF included) found, by the signal to noise of a matched filter."""
    rng = np.random.default_rng([int(100 * width), int(100 * smoothing)])
    sky = noise(rng, smoothing)
    correlation = sky_statistics(sky, np.ones(sky.shape, bool)).correlation
    steps = np.arange(-12, 13)
    profile = np.exp(-(steps[:, None] ** 2 + steps**2) / (2 * width**2))
    per_peak = float(np.sqrt((profile**2).sum())) / error_factor(profile, correlation)
    centres = np.arange(SPACING // 2, SIDE, SPACING)
    places = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2) + rng.random((len(centres) ** 2, 2)) - 0.5
    shares: dict[bool, dict[int, float]] = {False: {}, True: {}}
    for snr in (5, 6, 7, 8, 10, 15, 20):
        flux = sky.astype(np.float64)
        for x, y in places:
            column, line = int(x + 0.5), int(y + 0.5)
            rows, columns = np.ogrid[line - 12 : line + 13, column - 12 : column + 13]
            flux[line - 12 : line + 13, column - 12 : column + 13] += (
                snr / per_peak * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2))
            )
        for clean, share in shares.items():
            seen, _ = counted(np.asarray(flux, np.float32), correlation, clean)
            distance, _ = cKDTree(seen).query(places) if len(seen) else (np.full(len(places), np.inf), None)
            share[snr] = round(float((distance < 3).mean()), 3)
    facts = {"width_pixels": width, "correlation": round(correlation, 3)}
    return facts | {"found_by_snr": shares[False], "with_clean": shares[True]}


def field_tile(folder: Path) -> Tile:
    """The shared field as one tile without a halo."""
    images = {
        "lsst": {band: str(folder / f"field_lsst_{band}.fits") for band in "gri"},
        "euclid": {"VIS": str(folder / "field_euclid_vis.fits")},
    }
    field = ingest.read_field(default_problem(), images, "euclid")
    (height, width) = field.shape
    box = (0, height, 0, width)
    return ingest.cut_tile(field, ingest.TileBox("whole", box, box))


def stars(tile: Tile, truth: pd.DataFrame) -> list[dict[str, Any]]:
    """Stars and galaxies of the field that are found, and how many of each are called stars, by magnitude."""
    image = tile.images["euclid"]
    found = find_sources(image, tile.core, SCHEMA_VERSION)
    x, y = image.wcs.all_world2pix(truth.ra, truth.dec, 0)
    distance, match = cKDTree(np.stack([x, y], 1)).query(np.stack([found.sources.x, found.sources.y], 1))
    rows = truth.iloc[match].assign(called=found.columns["kind"])[distance < 5]
    table = []
    for low, high in BRIGHTEST:
        here = rows[(rows.mag_VIS >= low) & (rows.mag_VIS < high)]
        table.append({"mag_VIS": [low, high]} | {
            kind: {"found": int((here.kind == kind).sum()),
                   "called": here[here.kind == kind].called.value_counts().to_dict()}
            for kind in ("star", "galaxy")
        })  # fmt: skip
    return table


def seconds(tile: Tile, rounds: int) -> dict[str, float]:
    """Seconds of detection and aperture fluxes alone, and of all that is measured now; medians of turns."""
    table = default_problem()
    times: dict[str, list[float]] = {"fluxes alone": [], "all": []}
    for _ in range(rounds):
        start = time.perf_counter()
        image = tile.images["euclid"]
        sources = detect(image.flux[0], image.variance[0], image.valid[0])
        for one in tile.images.values():
            aperture_flux(one.flux, one.variance, one.valid, sources, APERTURE_ARCSEC / one.pixel_scale)
        times["fluxes alone"].append(time.perf_counter() - start)
        start = time.perf_counter()
        measured(tile, find_sources(image, tile.core, SCHEMA_VERSION), table, SCHEMA_VERSION)
        times["all"].append(time.perf_counter() - start)
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


if __name__ == "__main__":
    main()
