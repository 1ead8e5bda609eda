"""The value of one count of a FITS image, from its header: in nJy, or in the unit of an endpoint that is not a flux."""

from __future__ import annotations

import math

import astropy.units as u
from astropy.io.fits import Header

from surveybridge.storage.errors import StorageError
from surveybridge.storage.photometry import AB_ZERO_POINT, njy_per_count

FLUX_UNITS = {"njy": 1.0, "ujy": 1e3, "mjy": 1e6, "jy": 1e9}
"""BUNIT values (lower case) that are flux densities per pixel, in nJy."""

COUNT_UNITS = {"adu", "count", "counts", "electron", "electrons", "dn"}

ZERO_POINT_KEYWORDS = ("MAGZERO", "MAGZPT", "ZEROPNT", "PHOTZP")
"""AB zero point in magnitudes; Euclid MER writes MAGZERO."""

PLAUSIBLE_ZERO_POINT = (10.0, 50.0)


def calibration(header: Header, where: str) -> tuple[float, float]:
    """Read the photometric calibration of an image.

    Parameters
    ----------
    header : Header
        Of the image, merged over the primary header.
    where : str
        File and extension, for messages.

    Returns
    -------
    njy_per_count, zero_point : float
        Factor to nJy per pixel and the AB zero point (mag) it stands for: 31.4 for nJy.

    Raises
    ------
    StorageError
        No unit and no zero point, an unknown unit, a zero point that is not a number, not AB or not plausible, or a
        unit and a zero point that contradict each other.
    """
    unit = str(header.get("BUNIT") or "").strip()
    keyword, zero_point = _zero_point(header, where)
    _check_system(header, where)
    if unit.lower() in FLUX_UNITS:
        factor = FLUX_UNITS[unit.lower()]
        expected = AB_ZERO_POINT - 2.5 * math.log10(factor)
        # Euclid writes 23.9 for uJy, others 23.8999: a hundredth of a magnitude is a real contradiction
        if zero_point is not None and abs(zero_point - expected) > 0.01:
            raise StorageError(
                f"{where}: BUNIT {unit} means a zero point of {expected:.4g} but {keyword} is {zero_point:g}; "
                "correct the header"
            )
        return factor, expected
    if unit and unit.lower() not in COUNT_UNITS:
        raise StorageError(
            f"{where}: unit BUNIT '{unit}' is not known; expected nJy, or adu with {ZERO_POINT_KEYWORDS[0]}; "
            "convert the image"
        )
    if zero_point is None:
        raise StorageError(
            f"{where}: BUNIT {unit or 'absent'} and no zero point (looked for {', '.join(ZERO_POINT_KEYWORDS)}, "
            f"FLUXMAG0); set {ZERO_POINT_KEYWORDS[0]} to the AB zero point"
        )
    return njy_per_count(zero_point), zero_point


def unit_factor(header: Header, unit: str, endpoint: str, where: str) -> float:
    """Return the value of one count in the unit of an endpoint that is not a flux density.

    Parameters
    ----------
    header : Header
        Of the image, merged over the primary header.
    unit, endpoint : str
        The endpoint's unit and name.
    where : str
        File and extension, for messages.

    Raises
    ------
    StorageError
        If the image's BUNIT is not the endpoint's unit, nor can be converted to it.
    """
    given = str(header.get("BUNIT") or "").strip()
    try:
        found = u.Unit(given)
        if isinstance(found, u.UnitBase) and (given or not unit):  # no logarithm, whose values would need no factor
            return float(found.to(u.Unit(unit)))
    except (ValueError, TypeError):  # not a unit, or of something else
        pass
    raise StorageError(
        f"{where}: BUNIT {given or 'absent'} but endpoint {endpoint} is in {unit or 'no unit'}; convert the image, or "
        "correct its header"
    )


def _zero_point(header: Header, where: str) -> tuple[str, float | None]:
    """Keyword and AB zero point, None where the header has none."""
    for keyword in ZERO_POINT_KEYWORDS:
        if keyword in header:
            value = _number(header[keyword], keyword, where)
            low, high = PLAUSIBLE_ZERO_POINT
            if not low <= value <= high:
                raise StorageError(
                    f"{where}: {keyword} {value:g} is not a plausible AB zero point ({low:g} to {high:g}); "
                    "correct the header"
                )
            return keyword, value
    if "FLUXMAG0" in header:
        counts = _number(header["FLUXMAG0"], "FLUXMAG0", where)
        if counts <= 0:
            raise StorageError(f"{where}: FLUXMAG0 {counts:g} must be positive (counts of magnitude 0); correct it")
        return "FLUXMAG0", 2.5 * math.log10(counts)
    return "", None


def _number(value: object, keyword: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise StorageError(
            f"{where}: {keyword} is {value!r} ({type(value).__name__}), expected a number in AB magnitudes; "
            "correct the header"
        )
    return float(value)


def _check_system(header: Header, where: str) -> None:
    for keyword in ("MAGSYS", "PHOTSYS", "ZPTYPE", "MAGTYPE"):
        system = str(header.get(keyword, "AB")).strip()
        if system.upper() not in {"AB", "ABMAG", ""}:
            raise StorageError(f"{where}: {keyword} is {system}, expected AB; convert the zero point to AB magnitudes")
