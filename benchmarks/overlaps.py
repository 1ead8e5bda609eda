"""What a catalog of overlapping fields costs, beside one of as many fields apart from each other: time and memory.

    python -m benchmarks.overlaps [--fields 3] [--rows 500000] [--folder DIR] [--out FILE]

Writes a run of `fields` x `fields` pixel grids of 8 x 8 tiles, each turned by another angle, whose neighbours share a
quarter of their width, with objects that each field measures a few hundredths of an arcsec elsewhere; and one with the
same number of rows in fields that do not touch. Publishes each in a process of its own, whose peak memory is printed.
Everything is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from astropy.wcs import WCS

from benchmarks.catalogs import Floats, in_process, publish_and_measure, write_tile
from surveybridge.storage.catalogs import Catalog
from surveybridge.storage.runs import FINGERPRINT_KEYS, RunFolder

TILES, TILE_PIXELS, SCALE = 8, 512, 0.35
"""Tiles of a field each way, and their pixels of so many arcsec."""

SIDE_DEG = TILES * TILE_PIXELS * SCALE / 3600


def main() -> None:
    """Make the runs, measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=3)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = measure(args.fields, args.rows, args.folder)
    print(json.dumps(results, indent=1))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


def measure(fields: int, rows: int, folder: Path | None) -> dict[str, Any]:
    """Return the measurements of both runs."""
    found: dict[str, Any] = {"fields": fields**2, "tiles": (fields * TILES) ** 2}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for name, spacing in (("overlapping", 0.75), ("apart", 1.5)):
            make_run(f"{place}/{name}", fields, rows, spacing)
            measured = in_process(publish_and_measure, f"{place}/{name}", f"{place}/{name}-catalog")
            facts = Catalog.open(f"{place}/{name}-catalog").facts
            found[name] = measured | {key: facts[key] for key in ("rows", "rows_of_others")}
    return found


def make_run(where: str, fields: int, rows: int, spacing: float) -> None:
    """Write a run of `fields` x `fields` fields, `spacing` of their width from each other, with about `rows` rows."""
    run = RunFolder.open_or_create(where, dict.fromkeys(FINGERPRINT_KEYS[1:], "benchmark") | {"run_id": "benchmark"})
    rng = np.random.default_rng(0)
    extent = SIDE_DEG * (spacing * (fields - 1) + 1.5)
    count = int(rows / fields**2 * (extent / SIDE_DEG) ** 2)
    objects = rng.uniform(-extent / 2, extent / 2, (2, count))
    for number in range(fields**2):
        centre = (np.array(divmod(number, fields)) - (fields - 1) / 2) * spacing * SIDE_DEG
        write_field(
            run, f"f{number}", field_wcs(*centre, 3.0 * number), objects + rng.normal(0, 0.03 / 3600, (2, count))
        )


def write_field(run: RunFolder, name: str, wcs: WCS, objects: Floats) -> None:
    """Write the tiles of a field with those of the objects (ra, dec) [2, N] that lie in them."""
    side = TILES * TILE_PIXELS
    grid = {"field": name, "grid_id": f"grid-{name}", "wcs": wcs.to_header_string(), "shape": [side, side]}
    run.folder.put_json(
        grid | {"tile_size": TILE_PIXELS, "halo": 0, "prefix": f"{name}-"}, "grids", f"grid-{name}.json"
    )
    ra, dec = objects[0] % 360, objects[1]
    x, y = (np.floor(v + 0.5).astype(int) for v in wcs.all_world2pix(ra, dec, 0))
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    tile = np.where(inside, y // TILE_PIXELS * TILES + x // TILE_PIXELS, -1)
    for number in range(TILES**2):
        own = np.flatnonzero(tile == number)
        row, column = divmod(number, TILES)
        place = {"core_y0": row * TILE_PIXELS, "core_x0": column * TILE_PIXELS, "grid_id": f"grid-{name}"}
        size = {"core_height": TILE_PIXELS, "core_width": TILE_PIXELS, "field": name, "catalogued": True}
        names = [f"SB {a:.6f}{d:+.6f}" for a, d in zip(ra[own], dec[own], strict=True)]
        write_tile(run, f"{name}-t{number:04d}", ra[own], dec[own], names, **place, **size)


def field_wcs(ra: float, dec: float, turn: float) -> WCS:
    """TAN grid with its middle at (ra, dec) deg, turned by so many degrees."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(TILES * TILE_PIXELS + 1) / 2] * 2
    cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    wcs.wcs.cd = SCALE / 3600 * np.array([[-cos, sin], [sin, cos]])
    wcs.wcs.set()
    return wcs


if __name__ == "__main__":
    main()
