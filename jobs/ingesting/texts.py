"""Settings of an ingest that are texts, NAME.BAND=VALUE or a list, as values by endpoint and band."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from surveybridge.jobs.config import RequestError

Value = TypeVar("Value")


def by_end(texts: Sequence[str], flag: str, what: str, convert: Callable[[str], Value]) -> dict[str, dict[str, Value]]:
    """Return texts NAME.BAND=VALUE by endpoint and band, or raise RequestError."""
    found: dict[str, dict[str, Value]] = {}
    for text in texts:
        key, _, value = text.partition("=")
        name, _, band = key.partition(".")
        if not (name and band and value):
            raise RequestError(f"{flag} {text}: expected NAME.BAND={what}, endpoint and band of the problem")
        if band in found.setdefault(name, {}):
            raise RequestError(f"{flag} {text}: {key} is given twice; keep one")
        try:
            found[name][band] = convert(value)
        except ValueError:
            forms: dict[object, str] = {
                psf_of_text: PSF_FORMS,
                profile_of_text: PROFILE_FORMS,
                positive: "a number above 0",
            }
            wanted = forms.get(convert, "a number")
            raise RequestError(f"{flag} {text}: expected NAME.BAND={what}, {wanted}") from None
    return found


def bands_named(texts: Sequence[str], flag: str) -> dict[str, dict[str, bool]]:
    """Return texts NAME.BAND as True by endpoint and band, or raise RequestError."""
    for text in texts:
        if "=" in text:
            raise RequestError(f"{flag} {text}: expected NAME.BAND alone, endpoint and band of the problem")
        if text.count(".") == 0 or not all(text.partition(".")[::2]):
            raise RequestError(f"{flag} {text}: expected NAME.BAND, endpoint and band of the problem")
        if texts.count(text) > 1:
            raise RequestError(f"{flag} {text}: is given twice; keep one")
    return by_end([f"{text}=yes" for text in texts], flag, "yes", bool)


def positive(text: str) -> float:
    """Return a number above 0; ValueError if it is none."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


PROFILE_FORMS = "a FWHM in arcsec above 0, gaussian:FWHM, moffat:FWHM,BETA or kolmogorov:FWHM"
PSF_FORMS = PROFILE_FORMS.replace(" or ", ", ") + " or a FITS file"


def psf_of_text(text: str) -> str | float:
    """Return a FWHM in arcsec, or the text of a profile or file; ValueError if it is none of them."""
    from surveybridge.storage.errors import StorageError
    from surveybridge.storage.fits_psf import PROFILE
    from surveybridge.storage.psf import parse_psf

    try:
        value = float(text)
    except ValueError:
        if PROFILE.match(text):
            try:
                parse_psf(text)
            except StorageError as error:
                raise ValueError(str(error)) from None
        elif "." not in text:  # no profile, and no name of a file
            raise
        return text
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def profile_of_text(text: str) -> str:
    """Return a profile as `psf.parse_psf` reads it, a number being the FWHM of a Gaussian; ValueError if it is none."""
    from surveybridge.storage.errors import StorageError
    from surveybridge.storage.psf import Gaussian, parse_psf

    value = psf_of_text(text)
    try:
        return str(Gaussian(value) if isinstance(value, float) else parse_psf(value))
    except StorageError as error:
        raise ValueError(str(error)) from None


def checked_psf(text: str, flag: str) -> str | float:
    """Return the same, or raise RequestError."""
    try:
        return psf_of_text(text)
    except ValueError:
        raise RequestError(f"{flag} {text}: expected {PSF_FORMS}") from None


def by_band(values: Sequence[Value], bands: Sequence[str], flag: str) -> dict[str, Value]:
    """Return one value per band, or raise RequestError."""
    if len(values) != len(bands) or len(set(bands)) != len(bands):
        given = " ".join(map(str, values))
        raise RequestError(
            f"{flag} {given}: {len(values)} values for bands {','.join(bands)}; give one per band, or say with "
            "--lsst-bands which bands these are"
        )
    return dict(zip(bands, values, strict=True))
