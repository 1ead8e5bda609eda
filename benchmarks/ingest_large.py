"""How much memory and time the ingest of a whole Euclid MER tile with its ground bands takes.

    python -m benchmarks.ingest_large --out benchmarks/results/ingest_large.json         # 19200 x 19200 pixels
    python -m benchmarks.ingest_large --side 4800        # as small as what is read in parts

The tile is made up: VIS and three ground bands, each with its RMS map, in files as large as MER's (3 GB a band), with
noise, stars, bad pixels in the RMS maps and a border without data. A process of its own ingests them by the command;
its largest resident set (VmHWM) is measured. The files and the store go to `--work` (24 GB for the whole tile).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from benchmarks.high_water import high_water

ROWS = 512
"""Rows that are made at a time."""
BANDS = {"VIS": 24.6, "DECAM_G": 30.0, "DECAM_R": 30.0, "DECAM_I": 30.0}
"""Bands and their AB zero points."""
SIGMA = 0.004
"""Noise of a pixel in VIS, counts; 30 times as much in the ground bands."""


def main() -> None:
    """Make the files, ingest them in a child, print and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=19200, help="of the tile, pixels of 0.1 arcsec")
    parser.add_argument("--tile-size", type=int, default=512)
    parser.add_argument("--work", type=Path, help="folder for files and store (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--ingest", nargs="+", help=argparse.SUPPRESS)  # what the child does
    arguments = parser.parse_args()
    if arguments.ingest:
        print(json.dumps(ingest(arguments.ingest)))
        return
    with tempfile.TemporaryDirectory(prefix="ingest-large", dir=arguments.work) as folder:
        files = {band: write_band(Path(folder), band, arguments.side) for band in BANDS}
        store = str(Path(folder, "store"))
        euclid, lsst = files["VIS"], [path for band, path in files.items() if band != "VIS"]
        command = ["--euclid", euclid, "--lsst", *lsst, "--store", store, "--tile-size", str(arguments.tile_size)]
        child = [sys.executable, "-m", "benchmarks.ingest_large", "--ingest", json.dumps(command)]
        done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        report |= {"side": arguments.side, "tile_size": arguments.tile_size}
    print(
        f"{report['side']} x {report['side']} pixels, {len(BANDS)} bands: {report['tiles']} tiles in "
        f"{report['seconds']:.0f} s ({report['cpu_seconds']:.0f} s of CPU), peak {report['peak_bytes'] / 2**30:.2f} GiB"
    )
    if arguments.out:
        from surveybridge.jobs.diagnosing.machine import described_machine

        arguments.out.write_text(json.dumps({"machine": described_machine(), **report}, indent=1) + "\n")


def ingest(command: list[str]) -> dict[str, Any]:
    """Run the command; return what it took."""
    from surveybridge.__main__ import main as surveybridge
    from surveybridge.storage.tiles import TileStore

    words: list[str] = json.loads(command[0])
    start, cpu = time.perf_counter(), time.process_time()
    if surveybridge(["ingest", *words]):
        raise SystemExit("the ingest failed")
    taken = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    manifest = TileStore.open(words[words.index("--store") + 1]).manifest()
    return {**taken, "peak_bytes": high_water(), "tiles": manifest.num_rows}


def write_band(folder: Path, band: str, side: int) -> str:
    """Write the image of a band and its RMS map, row by row."""
    random = np.random.default_rng(len(band))
    sigma = SIGMA if band == "VIS" else 30 * SIGMA
    path = folder / f"{band}.fits"
    border = side // 40
    fits.HDUList([fits.PrimaryHDU()]).writeto(path)
    size = side * side * 4
    for name in (f"{band}_FLUX", f"{band}_RMS"):
        header = wcs_header(side)
        header.update({"EXTNAME": name, "MAGZERO": BANDS[band], "FILTER": band})
        with path.open("ab") as file:
            file.write(header.tostring().encode())
            for start in range(0, side, ROWS):
                rows = min(ROWS, side - start)
                plane: NDArray[np.float32]
                if name.endswith("RMS"):
                    plane = np.full((rows, side), sigma, np.float32)
                    plane[random.integers(rows, size=20), random.integers(side, size=20)] = 1e16
                else:
                    plane = np.float32(sigma) * random.standard_normal((rows, side), np.float32)
                    add_stars(plane, random, sigma)
                if start < border:
                    plane[: border - start] = np.nan
                file.write(plane.astype(">f4").tobytes())
            file.write(b"\0" * (-size % 2880))
    return f"{path}[{band}_FLUX]"


def add_stars(plane: NDArray[np.float32], random: np.random.Generator, sigma: float) -> None:
    """Add a star in every 300 x 300 pixels or so."""
    y, x = np.mgrid[-8:9, -8:9]
    stamp = np.exp(-(y**2 + x**2) / (2 * 2.0**2)).astype(np.float32)
    height, width = plane.shape
    for _ in range(height * width // 300**2):
        top, left = random.integers(0, height - 17), random.integers(0, width - 17)
        plane[top : top + 17, left : left + 17] += np.float32(sigma * random.pareto(1.0) * 20) * stamp


def wcs_header(side: int) -> fits.Header:
    """TAN at the centre, 0.1 arcsec, as MER's."""
    cards = {
        "XTENSION": "IMAGE", "BITPIX": -32, "NAXIS": 2, "NAXIS1": side, "NAXIS2": side, "PCOUNT": 0, "GCOUNT": 1,
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 53.0, "CRVAL2": -28.0, "CRPIX1": (side + 1) / 2,
        "CRPIX2": (side + 1) / 2, "CDELT1": -0.1 / 3600, "CDELT2": 0.1 / 3600, "RADESYS": "ICRS",
    }  # fmt: skip
    return fits.Header(list(cards.items()))


if __name__ == "__main__":
    main()
