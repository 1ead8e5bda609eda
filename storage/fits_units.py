"""The value of one count of a FITS image, from its header: in nJy, or in the unit of an endpoint that is not a flux."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import astropy.units as u
from astropy.io.fits import Header

from surveybridge.storage.errors import StorageError
from surveybridge.storage.photometry import AB_ZERO_POINT, njy_per_count

COUNT_UNITS = {
    "adu", "adus", "dn", "count", "counts", "ct", "cts", "electron", "electrons", "e-", "e", "photon", "photons",
}  # fmt: skip
"""BUNIT values, in lower case, that need a zero point; each also per second or per pixel."""

NANOMAGGIES = {"nanomaggy", "nanomaggies", "nanomaggie", "nmgy"}
"""In lower case: AB zero point 22.5."""

ANY_CASE = {
    "njy": 1.0, "nanojy": 1.0, "nanojansky": 1.0, "ujy": 1e3, "microjy": 1e3, "microjansky": 1e3, "millijy": 1e6,
    "millijansky": 1e6, "jy": 1e9, "jansky": 1e9, "megajy": 1e15, "megajansky": 1e15,
}  # fmt: skip
"""Flux densities, in nJy, that no change of case turns into another one; mJy and MJy do."""

ACCEPTED = (
    "nJy, uJy, mJy, Jy or MJy (case matters) per pixel or sr, nanomaggy, or adu, DN, count or electron (also per s) "
    "with a zero point"
)

ZERO_POINT_KEYWORDS = ("MAGZERO", "MAGZPT", "MAGZP", "ZEROPNT", "PHOTZP", "ZPT", "ZP", "ABZP", "FLUXMAG0")
"""AB zero point in magnitudes, which Euclid MER writes as MAGZERO; FLUXMAG0 is the counts of magnitude 0."""

PLAUSIBLE_ZERO_POINT = (10.0, 50.0)

SAME_ZERO_POINT = 0.01
"""Magnitudes. Euclid writes 23.9 for uJy, others 23.8999: a hundredth is a real contradiction."""

_PER_PIXEL = re.compile(r"((\s*/\s*|\s+per\s+)pix(el)?s?|[\s.*]+pix(el)?s?\s*(\*\*|\^)?\s*\(?-1\)?)$", re.IGNORECASE)
_PER_SECOND = re.compile(
    r"((\s*/\s*|\s+per\s+)s(ec(ond)?s?)?|[\s.*]+s(ec(ond)?s?)?\s*(\*\*|\^)?\s*\(?-1\)?)$", re.IGNORECASE
)
_SAID_PER_SECOND = re.compile(
    r"per\s+s(ec|\b)|/\s*s(ec\w*)?\b|\bs(ec\w*)?\s*(\*\*|\^)?-1|1\s?s(ec\w*)?\b", re.IGNORECASE
)


class Calibration(NamedTuple):
    """What a count is worth.

    Attributes
    ----------
    njy : float
        nJy of one count, or nJy per steradian.
    zero_point : float
        AB magnitude of one count.
    per_steradian : bool
        Whether counts are of the sky's area, and not of the pixel's.
    source : str
        Where it was found.
    """

    njy: float
    zero_point: float
    per_steradian: bool
    source: str


class _Stated(NamedTuple):
    """A zero point of a header: its keyword, AB magnitude, whether of counts per second, and which header's."""

    keyword: str
    value: float
    per_second: bool
    whose: str

    def __str__(self) -> str:
        return f"{self.keyword} {self.value:.6g}{' per second' if self.per_second else ''}{self.whose}"


class _Unit(NamedTuple):
    """A BUNIT: nJy of one (None: counts), whether per second, whether per steradian."""

    njy: float | None
    per_second: bool = False
    per_steradian: bool = False


def calibration(
    header: Header, primary: Header, where: str, pixel_area: float, given: float | None = None
) -> Calibration:
    """Read the photometric calibration of an image.

    Parameters
    ----------
    header, primary : Header
        Of the image, and of the file's first HDU, whose unit and zero point count where the image has none of its own
        and the primary HDU has no pixels.
    where : str
        File and extension, for messages.
    pixel_area : float
        Of a typical pixel, in steradian.
    given : float, optional
        AB zero point that counts instead of all that the headers say.

    Raises
    ------
    StorageError
        No unit and no zero point, an unknown unit, a zero point that is not a number, not AB or not plausible, zero
        points that contradict each other, or a unit and a zero point that do.
    """
    if given is not None:
        _check_plausible("zero point", given, where)
        return Calibration(njy_per_count(given), given, False, "given by the user")
    inherits = primary.get("NAXIS") == 0 and header.get("INHERIT") is not False
    headers = [(header, "")] + ([(primary, " of the primary header")] if inherits and primary is not header else [])
    for each, _ in headers:
        _check_system(each, where)
    text, whose = next(((_bunit(each), whose) for each, whose in headers if _bunit(each)), ("", ""))
    unit = parse_unit(text) if text else _Unit(None)
    if unit is None:
        raise StorageError(f"{where}: BUNIT '{text}'{whose} is not known; expected {ACCEPTED}; convert the image")
    stated = _stated(header, "", where)
    if unit.njy is not None:
        factor = unit.njy * (pixel_area if unit.per_steradian else 1.0)
        expected = AB_ZERO_POINT - 2.5 * math.log10(factor)
        for one in stated:
            if abs(one.value - expected) > SAME_ZERO_POINT:
                raise StorageError(
                    f"{where}: BUNIT {text}{whose} means a zero point of {expected:.4g} but {one.keyword} is "
                    f"{one.value:g}; correct the header, or give --zero-point"
                )
        return Calibration(unit.njy, expected, unit.per_steradian, f"BUNIT {text}{whose}")
    if not stated and len(headers) == 2:
        stated = _stated(primary, " of the primary header", where)
    if not stated:
        raise StorageError(
            f"{where}: BUNIT {text or 'absent'} and no zero point (looked for {', '.join(ZERO_POINT_KEYWORDS)}); set "
            f"{ZERO_POINT_KEYWORDS[0]} to the AB zero point, or give --zero-point"
        )
    seconds = next((each[key] for each, _ in headers for key in ("EXPTIME", "EXPOSURE") if key in each), None)
    zero_point, source = _decided(stated, unit.per_second if text else None, seconds, where)
    return Calibration(njy_per_count(zero_point), zero_point, False, source)


def parse_unit(text: str) -> _Unit | None:
    """Return what a BUNIT means, None if that is not known: case counts where it makes a difference."""
    core, per_second = text.strip(), False
    for _ in range(2):  # electron/s/pixel, or electron/pixel/s
        core = _PER_PIXEL.sub("", core)
        stripped = _PER_SECOND.sub("", core)
        if stripped.lower() in COUNT_UNITS or _PER_PIXEL.search(stripped):
            core, per_second = stripped, per_second or stripped != core
    if core.lower() in COUNT_UNITS:
        return _Unit(None, per_second)
    if core.lower() == "cps":
        return _Unit(None, True)
    if core.lower() in NANOMAGGIES:
        return _Unit(njy_per_count(22.5))
    if core.lower() in ANY_CASE:
        return _Unit(ANY_CASE[core.lower()])
    try:
        unit = u.Unit(core)
    except (ValueError, TypeError):
        return None
    if not isinstance(unit, u.UnitBase):  # a logarithm, whose values would need no factor
        return None
    for per_steradian, wanted in ((False, u.nJy), (True, u.nJy / u.sr)):
        if unit.is_equivalent(wanted):
            return _Unit(float(unit.to(wanted)), False, per_steradian)
    return None


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
    given = _bunit(header)
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


def _bunit(header: Header) -> str:
    return str(header.get("BUNIT") or "").strip()


def _stated(header: Header, whose: str, where: str) -> list[_Stated]:
    """All zero points of a header."""
    found = []
    for keyword in ZERO_POINT_KEYWORDS:
        if keyword not in header:
            continue
        value = _number(header[keyword], keyword, where)
        if keyword == "FLUXMAG0":
            if value <= 0:
                raise StorageError(f"{where}: FLUXMAG0 {value:g} must be positive (counts of magnitude 0); correct it")
            value = 2.5 * math.log10(value)
        _check_plausible(keyword, value, where)
        found.append(_Stated(keyword, value, bool(_SAID_PER_SECOND.search(header.comments[keyword])), whose))
    return found


def _check_plausible(what: str, value: float, where: str) -> None:
    low, high = PLAUSIBLE_ZERO_POINT
    if not low <= value <= high:
        raise StorageError(
            f"{where}: {what} {value:g} is not a plausible AB zero point ({low:g} to {high:g} mag); correct it"
        )


def _decided(stated: list[_Stated], per_second: bool | None, seconds: object, where: str) -> tuple[float, str]:
    """The zero point of the pixels as they are and its source; `per_second` is None where no unit is stated.

    A zero point whose comment says "per second" is that of a rate. It and the zero point of the exposure's counts are
    2.5 log10(EXPTIME) apart.
    """
    rates, plain = ([one for one in stated if one.per_second is kind] for kind in (True, False))
    if per_second is None and not plain:
        raise StorageError(
            f"{where}: {rates[0]} and BUNIT absent, so that nothing says whether its pixels are per second; set BUNIT, "
            "or give --zero-point"
        )
    known = isinstance(seconds, int | float) and 0 < seconds < math.inf
    step = 2.5 * math.log10(seconds) if known and isinstance(seconds, int | float) else math.nan

    def meaning(one: _Stated) -> float:
        """For these pixels; without one of a rate beside it, a zero point is that of the pixels, whatever they are."""
        if one.per_second:
            return one.value if per_second else one.value + step
        return one.value - step if per_second and rates else one.value

    used = rates[0] if per_second and rates else (plain or rates)[0]
    value = meaning(used)
    for other in [used, *stated]:
        same = per_second and not other.per_second and abs(other.value - value) <= SAME_ZERO_POINT
        if not (abs(meaning(other) - value) <= SAME_ZERO_POINT or same):
            raise StorageError(
                f"{where}: zero points contradict each other, {used} and {other} (EXPTIME {seconds or 'absent'}, BUNIT "
                f"{'absent' if per_second is None else 'per second' if per_second else 'not per second'}); correct the "
                "header, or give --zero-point"
            )
    agreeing = ", ".join(str(other) for other in stated if other is not used)
    time = "" if value == used.value else f" and EXPTIME {seconds:g}"
    return value, f"{used}{time}{f' ({agreeing} agrees)' if agreeing else ''}"


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
