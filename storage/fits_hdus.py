"""The parts of a survey's FITS file: which extension holds the flux, its mask, its noise map and its PSF."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyWarning
from astropy.utils.exceptions import AstropyUserWarning
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError, StorageUnavailable
from surveybridge.storage.fits_checksums import check_sums
from surveybridge.storage.images import MASK_PLANES
from surveybridge.storage.objectstore import open_filesystem
from surveybridge.storage.photometry import psf_stamp_fwhm

BAD_RMS = 1e15
"""RMS values above this mark bad pixels (Euclid MER writes 1e16)."""

RUBIN_PLANES = {
    "BAD": "BAD",
    "CR": "BAD",
    "SAT": "SAT",
    "NO_DATA": "NO_DATA",
    "NODAT": "NO_DATA",
    "UNMASKEDNAN": "NO_DATA",
    "EDGE": "CLIPPED_EDGE",
}
"""Mask planes of a file (`MP_<name>` in its header) that make a pixel unusable, and what they are called here.

Others (DETECTED, INTRP, CLIPPED, INEXACT_PSF, ...) describe pixels that a coadd still measures."""

VARIANCE_NOTE = "VARIANCE of the file"

PLAIN_PLANES = {0: "BAD", 1: "SAT", 2: "NO_DATA"}
"""Bits of a mask without `MP_*` keywords."""


def split_extension(path: str) -> tuple[str, str | None]:
    """`FILE[EXT]` -> (FILE, EXT); EXT is None where none is given."""
    match = re.fullmatch(r"(.+)\[([^\[\]/]+)\]", path)
    return (match[1], match[2]) if match else (path, None)


@contextmanager
def open_fits(path: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[fits.HDUList]:
    """Open a FITS file at a path or URL; StorageError if it is not there or not FITS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerifyWarning)
        # astropy only warns of a file that ends early, and then reads what is not there
        warnings.filterwarnings("error", message="File may have been truncated", category=AstropyUserWarning)
        try:
            filesystem, inside = open_filesystem(path, storage_options)
            with filesystem.open(inside, "rb") as stream, fits.open(stream, memmap=False) as hdus:
                yield hdus
        except (StorageError, StorageUnavailable):
            raise
        except FileNotFoundError as error:
            raise StorageError(f"{path}: no such file; check the path") from error
        except (OSError, ValueError, TypeError, AstropyUserWarning) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise StorageError(f"{path}: cannot be read as FITS ({reason}); give a complete FITS file") from error


def flux_hdu(hdus: fits.HDUList, file: str, extension: str | None, band: str) -> Any:
    """The image to read: the named extension, else IMAGE, else <band>_FLUX or _BGSUB, else the only image there is."""
    images = {hdu.name or "0": hdu for hdu in hdus if hdu.is_image and len(hdu.shape) == 2}
    if extension is not None and extension.upper() not in images:
        raise StorageError(f"{file}: no image extension {extension}; it has {', '.join(images) or 'no images'}")
    names = [extension.upper()] if extension else ["IMAGE", f"{band.upper()}_FLUX", f"{band.upper()}_BGSUB"]
    for name in names:
        if name in images:
            return images[name]
    if len(images) == 1:
        return next(iter(images.values()))
    raise StorageError(
        f"{file}: which extension is band {band}? Found {', '.join(images) or 'no 2-d images'}, looked for "
        f"{', '.join(names)}; name it as {file}[EXT]"
    )


def read_mask(hdus: fits.HDUList, name: str, shape: tuple[int, ...], file: str) -> tuple[NDArray[np.uint8], str]:
    """Mask of the flux in extension `name`, bits of `MASK_PLANES`, and where it comes from."""
    mask = np.zeros(shape, np.uint8)
    if name != "IMAGE" or "MASK" not in hdus:
        return mask, "none in the file"
    bits = _checked(hdus["MASK"], shape, file).astype(np.int64)
    header = hdus["MASK"].header
    named = {int(header[key]): key[3:].upper() for key in header if key.upper().startswith("MP_")}
    planes = {bit: RUBIN_PLANES.get(plane) for bit, plane in named.items()} if named else dict(PLAIN_PLANES)
    for bit, plane in planes.items():
        if plane is not None:
            mask[(bits >> bit) & 1 != 0] |= MASK_PLANES[plane]
    ignored = [named[bit] for bit, plane in planes.items() if plane is None]
    return mask, "MASK" + (f"; planes that leave a pixel usable: {','.join(ignored)}" if ignored else "")


def read_variance(
    hdus: fits.HDUList, name: str, shape: tuple[int, ...], factor: float | NDArray[np.float64], file: str
) -> tuple[NDArray[np.float64] | None, str]:
    """Variance of the flux in extension `name`, NaN = bad, and where it comes from; None if nowhere.

    `factor` is what a count is worth, in the unit whose square the variance is in.
    """
    if name == "IMAGE" and "VARIANCE" in hdus:
        return _checked(hdus["VARIANCE"], shape, file) * factor**2, VARIANCE_NOTE
    for candidate in (f"{stem_of(name)}_RMS", "RMS"):
        if candidate in hdus:
            return _variance_of_rms(_checked(hdus[candidate], shape, file), factor), candidate
    return None, "none"


def read_rms_file(
    path: str, shape: tuple[int, ...], factor: float | NDArray[np.float64], storage_options: Mapping[str, Any] | None
) -> tuple[NDArray[np.float64], str]:
    """Do the same as `read_variance` with an RMS map in a separate file."""
    file, extension = split_extension(path)
    with open_fits(file, storage_options) as hdus:
        hdu = flux_hdu(hdus, file, extension or ("RMS" if "RMS" in hdus else None), "RMS")
        return _variance_of_rms(_checked(hdu, shape, file), factor), f"RMS map {path}"


def _variance_of_rms(rms: NDArray[np.float64], factor: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(rms < BAD_RMS, (rms * factor) ** 2, np.nan)


def read_psf_fwhm(hdus: fits.HDUList, name: str, header: fits.Header, scale: float) -> tuple[float, str]:
    """PSF FWHM in arcsec and where it was found; NaN if nowhere."""
    stem = f"{stem_of(name)}_PSF"
    stamp = hdus[hdus.index_of(stem)] if stem in hdus else None
    stated = {"PSFFWHM": header.get("PSFFWHM"), "FWHM": stamp.header.get("FWHM") if stamp else None}
    for keyword, value in stated.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 10:
            return float(value), f"{keyword} of the header"
    if stamp is not None:
        return psf_stamp_fwhm(native_pixels(stamp.data), scale), f"area above half maximum of {stem}"
    return float("nan"), "not stated"


def stem_of(name: str) -> str:
    """Return `VIS` for `VIS_FLUX` or `VIS_BGSUB`: the name that the RMS map and the PSF share with the image."""
    return re.sub(r"_(FLUX|BGSUB)$", "", name)


def _checked(hdu: Any, shape: tuple[int, ...], file: str) -> NDArray[np.float64]:
    check_sums(hdu, f"{file}[{hdu.name}]")
    if hdu.shape != shape:
        raise StorageError(
            f"{file}[{hdu.name}]: {hdu.shape} pixels but the flux image has {shape}; give maps of the same image"
        )
    return native_pixels(hdu.data)


def native_pixels(data: NDArray[Any]) -> NDArray[np.float64]:
    """Float64 in this machine's byte order (FITS is big-endian)."""
    return np.asarray(data).astype(np.float64)
