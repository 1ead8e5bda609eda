"""How real archive files are read: `python -m tests.storage.archive_files [FOLDER]` prints two tables.

The first is of their headers, the second of their HDUs and pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from surveybridge.storage.celestial import celestial_wcs, icrs_wcs, image_wcs, pixel_area, wcs_header_string
from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_checksums import check_sums
from surveybridge.storage.fits_files import open_fits
from surveybridge.storage.fits_hdus import extensions
from surveybridge.storage.fits_images import read_image
from surveybridge.storage.fits_maps import MAPS
from surveybridge.storage.fits_noise import PRIORITY
from surveybridge.storage.fits_selection import flux_extension, partners, split_extension
from surveybridge.storage.fits_units import calibration
from surveybridge.storage.grids import pixel_scale
from surveybridge.storage.problems import default_problem

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "files"

HEADINGS = ("file", "WCS", "frame", "scale", "zero point", "where from", "checksum")

HDU_HEADINGS = ("image", "flux", "mask", "noise", "read as, or refused")

DATA = FOLDER.parent

IMAGES = {
    "files/afw_exposure-noversion.fits": "ha",
    "files/galsim_pole.fits": "I1",
    "files/galsim_razero.fits": "I1",
    "files/galsim_sipsample.fits": "I1",
    "files/galsim_tanflip.fits": "r",
    "files/galsim_tpv.fits.gz": "I",
    "files/galsim_zpx.fits": "I",
    "files/kbmod_small_0.fits": "r",
    "files/legacy4_z.fits": "z",
    "files/profound_mystery_VIKING_Z.fits": "Z",
    "field/field_lsst_g.fits": "g",
    "real/102018665_NEG570040238507752998.fits": "VIS",
    "real/102018665_NEG570040238507752998.fits[DES_R_BGSUB]": "r",
    "real/102018665_NEG570040238507752998_300px.fits": "VIS",
    "real/102018665_NEG570040238507752998_300px.fits[NIR_H_FLUX]": "H",
    "real/102020057_NEG582019329494705421_300px.fits": "VIS",
    "real/EUCLJ174517.55+655612.5.fits": "VIS",
    "real/EUCLJ174517.55+655612.5.fits[HSC_G_FLUX]": "g",
    "real/EUCLJ174517.55+655612.5.fits[NIR_J_FLUX]": "J",
}
"""Images below the folder of shared data, and the band as which each is read."""

ZERO_POINTS = {"files/kbmod_small_0.fits": 27.0, "files/profound_mystery_VIKING_Z.fits": 30.0}
"""AB magnitudes given by hand for files that state none, to see what else is read."""


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


def hdu_row(name: str, data: Path = DATA) -> tuple[str, ...]:
    """One line of the second table: `HDU_HEADINGS`."""
    band, path = IMAGES[name], str(data / name)
    file, selector = split_extension(path)
    with open_fits(file) as hdus:
        found = extensions(hdus)
        flux = flux_extension(found, file, selector, band)
        mask, _ = partners(found, flux, MAPS[:1], file)
        noise, _ = partners(found, flux, PRIORITY, file)
    said = [str(flux), *(" + ".join(map(str, parts)) or "none" for parts in (mask, noise))]
    given = {"zero_point": {band: ZERO_POINTS[name]}} if name in ZERO_POINTS else {}
    end = default_problem()["endpoints"][0] | {"bands": [band], "rgb": None}
    try:
        image = read_image(end, {band: path}, numbers=given)
    except StorageError as error:
        return name, *said, "refused: " + str(error).removeprefix(f"{file}[{flux.label}]: ").split(" (")[0]
    reading = image.readings[0]
    noise_said = reading.noise_source.split(" of ")[0].split(" (")[0]
    told = f"zero point {ZERO_POINTS[name]:g} given; " if given else ""
    return name, *said, f"{told}noise {noise_said}; sky {reading.sky}; {reading.unusable:.2%} unusable"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows))


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    print(table(HEADINGS, (row(*image) for image in images(folder))), end="\n\n")
    print(table(HDU_HEADINGS, (hdu_row(name, folder.parent) for name in IMAGES)))
