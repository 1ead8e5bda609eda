"""The PSF of a band: as headers state it, as an image beside the flux, or as the user gives it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from astropy.io import fits

from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_checksums import check_sums
from surveybridge.storage.fits_files import open_fits
from surveybridge.storage.fits_hdus import Extension, extensions, listed
from surveybridge.storage.fits_selection import named_extension, split_extension
from surveybridge.storage.psf import LARGEST_BETA, Gaussian, Kolmogorov, Moffat, Psf, PsfImage, parse_psf

WIDEST = 10.0
"""arcsec; a larger FWHM in a header is in other units."""

PROFILE = re.compile(r"(gaussian|moffat|kolmogorov):", re.IGNORECASE)
"""How a profile begins that is given as text; anything else is a file."""


@dataclass(frozen=True)
class PsfReading:
    """What is known of the PSF of a band.

    Attributes
    ----------
    fwhm : float
        arcsec, NaN where unknown.
    source : str
        Where it was found, in words.
    model : Psf or None
        Profile or image; None where only the width is known.
    """

    fwhm: float
    source: str
    model: Psf | None = None

    @property
    def wing(self) -> float:
        """1 / beta of the Moffat with the PSF's wings; NaN where unknown."""
        return math.nan if self.model is None else self.model.wing


def psf_beside(
    extension: Extension, headers: Sequence[fits.Header], found: Sequence[Extension], scale: float
) -> PsfReading:
    """Find the PSF of an image: what the headers state, an image of it beside the flux, or the beam of a radio map.

    Parameters
    ----------
    extension : Extension
        The flux.
    headers : sequence of Header
        Its own, then that of the primary HDU: `PSFFWHM` in arcsec, `PSFKIND` (gaussian, moffat or kolmogorov) and
        `PSFBETA` of a Moffat profile. Width and shape in headers count before an image, and an image before the beam:
        `BMAJ` and `BMIN`, FWHM in degrees along both axes.
    found : sequence of Extension
        All images of the file.
    scale : float
        arcsec per pixel of the flux, and of the image of the PSF if it does not state its own.

    Raises
    ------
    StorageError
        A beta that no Moffat has, or a beam without a width.
    """
    stamps = [
        ext for ext in found if ext.role == "psf" and (ext.stem, ext.version) == (extension.stem, extension.version)
    ]
    stamp = stamps[0] if len(stamps) == 1 and extension.stem and stamps[0].is_plane else None
    fwhm = _number(_stated(headers, "PSFFWHM"), WIDEST)
    if fwhm is not None:
        profile, source = _profile(headers, fwhm)
        if profile is not None or stamp is None:
            return PsfReading(fwhm, source, profile)
    if stamp is not None:
        image = _image_of(stamp, scale, stamp.name)
        if fwhm is not None:
            return PsfReading(fwhm, f"PSFFWHM of the header, shape of {stamp.name}", image)
        return PsfReading(image.fwhm, f"{stamp.name}, without the pixel", image)
    return _beam(headers) or PsfReading(math.nan, "not stated")


def given_psf(text: str, scale: float, options: Mapping[str, Any] | None = None) -> PsfReading:
    """Read a PSF that a user gives: `moffat:0.8,3.5` and the like (`psf.parse_psf`), or `FILE[HDU]` with an image."""
    if PROFILE.match(text):
        profile = parse_psf(text)
        return PsfReading(profile.fwhm, "given by the user", profile)
    file, selector = split_extension(text)
    with open_fits(file, options) as hdus:
        found = extensions(hdus)
        planes = [ext for ext in found if ext.is_plane]
        named = [ext for ext in planes if ext.role == "psf"] or planes
        if selector is not None:
            named = [named_extension(found, file, selector)]
        if len(named) != 1:
            raise StorageError(
                f"{file}: which HDU is the PSF? It has {listed(found)}; name it as {file}[EXTNAME] or {file}[number]"
            )
        check_sums(named[0].hdu, f"{file}[{named[0].label}]")
        image = _image_of(named[0], scale, f"{file}[{named[0].label}]")
    return PsfReading(image.fwhm, f"{text}, without the pixel", image)


def _image_of(extension: Extension, scale: float, where: str) -> PsfImage:
    header = extension.hdu.header
    own = _number(header.get("PIXSCALE"), WIDEST)
    if own is None and "CTYPE1" in header:
        step = [header.get(f"CD{axis}_1", 0.0) for axis in (1, 2)]
        side = 3600 * (math.hypot(*step) or abs(float(header.get("CDELT1", 0.0)) * float(header.get("PC1_1", 1.0))))
        own = _number(side, WIDEST)
    return PsfImage.of(extension.pixels, own or scale, where)


def _profile(headers: Sequence[fits.Header], fwhm: float) -> tuple[Psf | None, str]:
    """The profile that headers state for a width, and where it was found."""
    beta, kind = _stated(headers, "PSFBETA"), str(_stated(headers, "PSFKIND") or "").strip().lower()
    if kind not in ("", "gaussian", "moffat", "kolmogorov"):
        return None, f"PSFFWHM of the header; no profile is known for its PSFKIND {kind}"
    if kind == "gaussian":
        return Gaussian(fwhm), "PSFFWHM and PSFKIND of the header"
    if kind == "kolmogorov":
        return Kolmogorov(fwhm), "PSFFWHM and PSFKIND of the header"
    if beta is None:
        return None, "PSFFWHM of the header"
    number = _number(beta, LARGEST_BETA)
    if number is None or number <= 1:
        raise StorageError(
            f"PSFBETA {beta} of the header: a Moffat profile has a beta above 1 and up to {LARGEST_BETA:g}; correct "
            "it, or take it out and give the PSF apart"
        )
    return Moffat(fwhm, number), "PSFFWHM and PSFBETA of the header"


def _beam(headers: Sequence[fits.Header]) -> PsfReading | None:
    """The Gaussian beam of a radio map; of an elliptical one the round one of the same area. None if none is stated."""
    major = _stated(headers, "BMAJ")
    if major is None:
        return None
    minor = _stated(headers, "BMIN")
    widths = [width for axis in (major, major if minor is None else minor) if (width := _number(axis, 360.0))]
    if len(widths) < 2:
        raise StorageError(
            f"BMAJ {major} and BMIN {minor} of the header: FWHM of a beam are above 0 and in degrees; correct them, or "
            "take them out and give the PSF apart"
        )
    fwhm = 3600 * math.sqrt(widths[0] * widths[1])
    axes = "x".join(f"{3600 * width:.4g}" for width in widths)
    return PsfReading(fwhm, f'beam of the header, {axes}"', Gaussian(fwhm))


def _stated(headers: Sequence[fits.Header], keyword: str) -> Any:
    return next((header[keyword] for header in headers if keyword in header), None)


def _number(value: Any, most: float) -> float | None:
    """A number above 0 and below `most`, or at it; None for anything else."""
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most else None
    )
