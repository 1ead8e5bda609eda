"""How far from 0 the sky of images is whose sky is subtracted, and how small a level `ingest` refuses.

    python -m benchmarks.sky_levels [--data ../shared/data] [--out benchmarks/results/sky_levels.json]

The level is measured on whole images and on windows of 64 pixels of them, which objects may fill, in units of a pixel's
noise (`storage.photometry.sky_statistics`). Then the same windows get a level, and it is counted which are refused.
The last table counts zeros: the largest group of them in quantised noise, by their share of the pixels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from scipy import ndimage

from surveybridge.storage.fits_noise import NO_COVERAGE
from surveybridge.storage.fits_planes import MOST_SKY
from surveybridge.storage.photometry import ZERO_AREA, sky_statistics

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIDE, WINDOWS = 64, 60
LEVELS = (0.3, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0)
SHARES = (0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)


def main() -> None:
    """Measure; print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows, refused = [], {level: [0, 0] for level in LEVELS}
    for path in sorted([*(arguments.data / "field").glob("*.fits"), *(arguments.data / "real").glob("*.fits")]):
        for name, flux in fluxes(path):
            rows.append({"file": path.name, "image": name, **levels(flux, refused)})
            print("{file} {image}: whole {whole:+.2f}, windows {least:+.2f} to {most:+.2f}".format(**rows[-1]))
    counted = {str(level): f"{n} of {of}" for level, (n, of) in refused.items()}
    report: dict[str, Any] = {
        "refused_beyond_sigma": MOST_SKY,
        "farthest_whole": max(abs(row["whole"]) for row in rows),
        "farthest_window": max(max(abs(row["least"]), abs(row["most"])) for row in rows),
        "windows_refused_by_added_sigma": counted,
        "zero_area_pixels": ZERO_AREA,
        "largest_group_of_zeros_by_share": {str(share): largest_group(share) for share in SHARES},
        "images": rows,
    }
    print(json.dumps({key: value for key, value in report.items() if key != "images"}, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def fluxes(path: Path) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Names and pixels of the fluxes of a file, NaN where its RMS map marks no coverage."""
    found = []
    with fits.open(path, memmap=False) as hdus:
        for hdu in hdus:
            stem, _, kind = hdu.name.rpartition("_")
            if hdu.name == "IMAGE" or kind in ("FLUX", "BGSUB"):
                covered = hdus[f"{stem}_RMS"].data < NO_COVERAGE if f"{stem}_RMS" in hdus else True
                found.append((hdu.name, np.where(covered, hdu.data.astype(np.float64), np.nan)))
    return found


def levels(flux: np.ndarray[Any, Any], refused: dict[float, list[int]]) -> dict[str, float]:
    """Level over sigma of an image and of its windows; counts the windows that are refused when a level is added."""
    whole = sky_statistics(flux, np.isfinite(flux))
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(WINDOWS):
        y, x = (rng.integers(0, n - SIDE + 1) for n in flux.shape)
        window = flux[y : y + SIDE, x : x + SIDE]
        sky = sky_statistics(window, np.isfinite(window))
        ratios.append(sky.level / sky.sigma)
        for level, count in refused.items():
            count[0] += abs(ratios[-1] + level * whole.sigma / sky.sigma) > MOST_SKY
            count[1] += 1
    return {
        "whole": round(whole.level / whole.sigma, 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }


def largest_group(share: float, side: int = 2048) -> int:
    """Pixels of the largest group of touching zeros in white noise of which this share is 0."""
    groups, _ = ndimage.label(np.random.default_rng(0).random((side, side)) < share)
    return int(np.bincount(groups.ravel())[1:].max())


if __name__ == "__main__":
    main()
