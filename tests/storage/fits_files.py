"""Small FITS files as the surveys deliver them, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from surveybridge.storage.fits_images import read_image
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.problems import default_problem

LSST, EUCLID = default_problem()["endpoints"]


def tan_wcs(shape, scale: float, *, rotation: float = 0.0, ra: float = 53.0, dec: float = -28.0) -> WCS:
    """TAN WCS centred on an array; scale in arcsec, rotation in degrees."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    c, s = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    wcs.wcs.cd = scale / 3600 * np.array([[-c, s], [s, c]])
    wcs.wcs.radesys = "ICRS"
    return wcs


def gaussians(shape, positions, sigma: float, flux: float = 1000.0) -> NDArray[np.float32]:
    """Sum of round Gaussians at (y, x), each of the given total flux."""
    y, x = np.indices(shape)
    image = np.zeros(shape)
    for cy, cx in positions:
        image += flux / (2 * np.pi * sigma**2) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * sigma**2))
    return image.astype(np.float32)


def write_survey_file(
    path: Path,
    image: NDArray[Any],
    wcs: WCS | None,
    *,
    variance: NDArray[Any] | None = None,
    mask: NDArray[Any] | None = None,
    header: dict[str, Any] | None = None,
    mask_header: dict[str, Any] | None = None,
    compress: bool = False,
) -> str:
    """Write IMAGE, VARIANCE, MASK as the field's files have them, and return the path."""
    kind = fits.CompImageHDU if compress else fits.ImageHDU
    base = wcs.to_header() if wcs is not None else fits.Header()
    hdus = [fits.PrimaryHDU()]
    arrays = {
        "IMAGE": image.astype(np.float32),
        "VARIANCE": np.ones(image.shape, np.float32) if variance is None else variance.astype(np.float32),
        "MASK": np.zeros(image.shape, np.int32) if mask is None else mask,
    }
    extra = {"IMAGE": {"BUNIT": "nJy"} if header is None else header, "VARIANCE": {}, "MASK": mask_header or {}}
    for name, array in arrays.items():
        hdu = kind(array, header=base.copy(), name=name)
        hdu.header.update(extra[name])
        hdus.append(hdu)
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return str(path)


def write_mer_file(path: Path, bands: dict[str, dict[str, Any]], wcs: WCS) -> str:
    """Write a multi-extension MER cutout: per band {"flux", "rms", "magzero", optionally "psf"}."""
    hdus: list[Any] = [fits.PrimaryHDU()]
    for name, band in bands.items():
        header = wcs.to_header()
        header["MAGZERO"], header["FILTER"] = band["magzero"], name
        hdus.append(fits.ImageHDU(band["flux"].astype(np.float32), header=header, name=f"{name}_FLUX"))
        if "psf" in band:
            hdus.append(fits.ImageHDU(band["psf"].astype(np.float32), name=f"{name}_PSF"))
        hdus.append(fits.ImageHDU(band["rms"].astype(np.float32), name=f"{name}_RMS"))
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return str(path)


def read_rubin(paths: dict[str, str], **how: Any) -> SurveyImage:
    """LSST's image of three files, as ingest reads it."""
    return read_image(LSST, paths, filters=EUCLID["bands"], **how)


def read_mer(path: str, rms: str | None = None, psf_fwhm: float | None = None) -> SurveyImage:
    """Euclid's image of a file, as ingest reads it."""
    return read_image(
        EUCLID,
        {"VIS": path},
        noise="file",
        maps={} if rms is None else {"rms": {"VIS": rms}},
        numbers={} if psf_fwhm is None else {"psf": {"VIS": psf_fwhm}},
        filters=LSST["bands"],
    )
