"""Made-up observations of any problem: the same blobs as FITS images and as pair stores, seen by each band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from surveybridge.storage.problems import EndpointTable, ProblemTable
from tests.storage.fits_files import gaussians, tan_wcs, write_survey_file

HERE = Path(__file__).parent
STAMP = 64
SIZE = 0.15
"""Sigma of an object before the PSF, arcsec: no star."""


@dataclass(frozen=True)
class Band:
    """One band's own pixels: arcsec a pixel, PSF sigma in arcsec, noise, and the flux of an object in it."""

    pixel: float
    psf: float
    noise: float
    flux: float


def write_field(
    folder: Path,
    problem: ProblemTable,
    bands: Mapping[tuple[str, str], Band],
    side: float,
    objects: Sequence[tuple[float, float]],
) -> list[str]:
    """Write an image of every band of a field of `side` arcsec; return the values of ``--image``.

    Objects are (y, x) offsets from the centre, arcsec; all images are centred there.
    """
    rng = np.random.default_rng(3)
    values = []
    for (end, band), seen in bands.items():
        pixels = round(side / seen.pixel)
        places = [((pixels - 1) / 2 + y / seen.pixel, (pixels - 1) / 2 + x / seen.pixel) for y, x in objects]
        image = gaussians((pixels, pixels), places, math.hypot(seen.psf, SIZE) / seen.pixel, seen.flux)
        noisy = image + seen.noise * rng.normal(size=image.shape)
        path = folder / f"{end}_{band}.fits"
        header = {
            "BUNIT": next(e["unit"] for e in problem["endpoints"] if e["name"] == end),
            "PSFFWHM": 2.355 * seen.psf,
        }
        variance = np.full(image.shape, seen.noise**2)
        write_survey_file(path, noisy, tan_wcs(image.shape, seen.pixel), variance=variance, header=header)
        values.append(f"{end}.{band}={path}")
    return values


def write_pairs(
    path: Path,
    problem: ProblemTable,
    images: Mapping[str, NDArray[np.float32]],
    noise: Mapping[str, float],
    pixel: float,
) -> str:
    """Write a pair store that states its endpoints: [N, H, W, B] an end, all on one grid."""
    attributes: dict[str, Any] = {"name": path.stem, "endpoints": [end["name"] for end in problem["endpoints"]]}
    if noise:
        attributes["bands"] = {band: {"pixel_arcsec": pixel, "sigma_noise": sigma} for band, sigma in noise.items()}
    else:
        attributes["units"] = {end["name"]: end["unit"] for end in problem["endpoints"]}
    group = zarr.open_group(str(path), mode="w", attributes=attributes)
    for end in problem["endpoints"]:
        group.create_array(end["name"], data=np.ascontiguousarray(images[end["name"]].transpose(0, 2, 3, 1)))
    return str(path)


def blob_pairs(
    problem: ProblemTable, noise: Mapping[str, float], count: int = 24, width: float = 2.0
) -> dict[str, NDArray[np.float32]]:
    """One round blob in the middle of each pair, with noise: float32 [N, B, 64, 64] by endpoint."""
    rng = np.random.default_rng(1)
    flux = rng.uniform(200, 2000, (count, 1, 1, 1))
    stamp = gaussians((STAMP, STAMP), [(31.5, 31.5)], width, 1.0)
    return {end["name"]: _noisy(flux * stamp, end, noise, rng) for end in problem["endpoints"]}


def _noisy(
    light: NDArray[np.float64], end: EndpointTable, noise: Mapping[str, float], rng: np.random.Generator
) -> NDArray[np.float32]:
    sigma = np.array([noise[band] for band in end["bands"]])[None, :, None, None]
    shape = (len(light), len(end["bands"]), *light.shape[2:])
    return np.asarray(light + sigma * rng.normal(size=shape), np.float32)


def cloud_pairs(count: int = 24) -> dict[str, NDArray[np.float32]]:
    """Log-normal densities, and the columns that they make: cm-3 and cm-2, float32 [N, 1, 64, 64]."""
    rng = np.random.default_rng(2)
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(STAMP), np.fft.fftfreq(STAMP), indexing="ij"))
    spectrum = np.where(k > 0, np.maximum(k, 1 / STAMP) ** -1.5, 0)
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(count, STAMP, STAMP))) * spectrum).real
    logs = 3.0 + 0.6 * field / field.std()
    density = 10 ** logs[:, None]
    column = 3e18 * 0.2 * density * 10 ** (0.1 * rng.normal(size=density.shape))
    return {"column": column.astype(np.float32), "density": density.astype(np.float32)}
