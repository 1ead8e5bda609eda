"""How headers of real archive files are read: `python -m tests.storage.archive_files [FOLDER]` prints a table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from surveybridge.storage.celestial import celestial_wcs, icrs_wcs, image_wcs, pixel_area, wcs_header_string
from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_checksums import check_sums
from surveybridge.storage.fits_units import calibration
from surveybridge.storage.grids import pixel_scale

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "files"

HEADINGS = ("file", "WCS", "frame", "scale", "zero point", "where from", "checksum")


def images(folder: Path) -> Iterator[tuple[str, Any, fits.Header]]:
    """Name and number of the first image of every file, its HDU, and the primary header."""
    for path in sorted(folder.glob("*.fits*")):
        with open(path, "rb") as stream, fits.open(stream, memmap=False) as hdus:
            number, hdu = next((k, hdu) for k, hdu in enumerate(hdus) if hdu.is_image and len(hdu.shape) == 2)
            yield f"{path.name}[{number}]", hdu, hdus[0].header


def icrs_of(name: str, hdu: Any, primary: fits.Header) -> WCS:
    """The WCS of an image as it is kept with its pixels: a header string in ICRS, read again."""
    return celestial_wcs(wcs_header_string(icrs_wcs(image_wcs(hdu.header, primary, name), name).wcs))


def row(name: str, hdu: Any, primary: fits.Header) -> tuple[str, ...]:
    """One line of the table: `HEADINGS`."""
    stated = image_wcs(hdu.header, primary, name)
    wcs = icrs_of(name, hdu, primary)
    area = float(pixel_area(wcs, *(np.array((n - 1) / 2) for n in hdu.shape)))
    try:
        scale = calibration(hdu.header, primary, name, area)
        units = f"{scale.zero_point:.3f}", scale.source
    except StorageError as error:
        units = "refused", str(error).removeprefix(f"{name}: ").split(" (")[0]
    try:
        check_sums(hdu, name)
        sums = "good" if isinstance(hdu.header.get("DATASUM"), str) else "none"
    except StorageError as error:
        sums = str(error).removeprefix(f"{name}: ").split(";")[0]
    header = hdu.header if "CTYPE1" in hdu.header else primary
    return (
        name,
        f"{header['CTYPE1']} {header['CTYPE2']}",
        stated.frame + ("; " + "; ".join(stated.notes) if stated.notes else ""),
        f'{pixel_scale(wcs_header_string(wcs)):.4f}"',
        *units,
        sums,
    )


if __name__ == "__main__":
    print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|")
    for image in images(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER):
        print("| " + " | ".join(row(*image)) + " |")
