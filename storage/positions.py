"""Sky positions as astronomers write them: decimal degrees, or sexagesimal such as 10:00:00 -02:10:30 or 10h00m00s."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from surveybridge.storage.errors import StorageError

CONE = "RA,DEC,ARCSEC, such as 150.1,-2.2,10 or 10:00:24,-02:12:00,10"
BOX = "RAMIN,RAMAX,DECMIN,DECMAX, such as 149.9,150.1,-2.3,-2.1"

_NUMBER = r"\d+\.?\d*|\.\d+"
_DECIMAL = re.compile(rf"[+-]?(?:{_NUMBER})(?:e[+-]?\d+)?")
_COLONS = re.compile(rf"(?P<sign>[+-]?)(?P<whole>\d+)(?P<unit>:)(?P<minutes>{_NUMBER})(?::(?P<seconds>{_NUMBER}))?")
_LETTERS = re.compile(
    rf"(?P<sign>[+-]?)(?P<whole>{_NUMBER})(?P<unit>[hd])(?:(?P<minutes>{_NUMBER})(?:m|$))?(?:(?P<seconds>{_NUMBER})s?)?"
)
_UNITS = re.compile(
    r"hours?|hrs?|degrees?|deg|arcminutes?|arcmins?|minutes?|min|arcseconds?|arcsecs?|seconds?|sec|''|[°′″'\"]"
)
_LETTER = {"°": "d", "′": "m", "'": "m", "″": "s", '"': "s", "''": "s"}
_TYPESET = str.maketrans(
    {"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{NO-BREAK SPACE}": " ", "\N{RIGHT SINGLE QUOTATION MARK}": "'"}
)
"""What papers print in place of ASCII."""


def right_ascension(text: str) -> float:
    """Right ascension in degrees: a plain number is in degrees, one with colons or an h in hours.

    Parameters
    ----------
    text : str
        Such as ``150.1``, ``10:00:24.5``, ``10 00 24.5``, ``10h00m24.5s``, ``10h00.4m`` or ``150d06m00s``.

    Returns
    -------
    float
        Degrees, within -360..360.

    Raises
    ------
    StorageError
        If it is none of these, or beyond.
    """
    return _angle(text, "right ascension", 360.0, "150.1, 10:00:24 or 10h00m24s", hours=True)


def declination(text: str) -> float:
    """Declination in degrees, such as ``-2.175``, ``-02:10:30`` or ``-2d10m30s``; otherwise as `right_ascension`."""
    return _angle(text, "declination", 90.0, "-2.2, -02:12:00 or -2d12m00s", hours=False)


def arcseconds(text: str) -> float:
    """Angle in arcsec: a plain number, or one with its unit, such as ``10"``, ``2'``, ``2arcmin`` or ``0.1deg``."""
    match = re.fullmatch(rf"({_DECIMAL.pattern})([dms]?)", _plain(text))
    if match is None:
        raise StorageError(f"{text!r} is no angle; give arcsec, such as 10, or its unit, such as 2arcmin")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "d": 3600}[match[2]]


def position_and_angle(given: Any) -> tuple[float, float, float]:
    """Right ascension and declination in degrees and an angle in arcsec, from text or numbers.

    Parameters
    ----------
    given : str, or sequence of str and numbers
        ``"10:00:24 -02:12:00 10"``, ``"150.1,-2.2,10"`` or ``(150.1, -2.2, 10)``; in text blanks may stand for the
        colons, too: ``"10 00 24 -02 12 00 10"``.

    Raises
    ------
    StorageError
        If it is not three values, or one of them is no angle.
    """
    words = _values(given, (3, 3, 1), CONE)
    return right_ascension(words[0]), declination(words[1]), arcseconds(words[2])


def bounds(given: Any) -> tuple[float, float, float, float]:
    """Right ascensions and declinations of the sides of a box in degrees, from text or numbers.

    Raises
    ------
    StorageError
        If it is not four values, or one of them is no angle.
    """
    words = _values(given, (3, 3, 3, 3), BOX)
    return right_ascension(words[0]), right_ascension(words[1]), declination(words[2]), declination(words[3])


def _values(given: Any, sexagesimal: Sequence[int], example: str) -> list[str]:
    """Return the values in what was given, a word each; `sexagesimal` says how many each has with blanks for colons."""
    parts = given if isinstance(given, list | tuple) else [given]
    words = [word for part in parts for word in re.split(r"[\s,]+", str(part).translate(_TYPESET)) if word]
    if len(words) == sum(sexagesimal):
        rest = iter(words)
        words = [":".join(itertools.islice(rest, count)) for count in sexagesimal]
    if len(words) != len(sexagesimal):
        raise StorageError(f"has {len(words)} value(s) but needs {len(sexagesimal)}; give {example}")
    return words


def _plain(text: str) -> str:
    """Return the text in small ASCII letters, units as d, h, m and s, and colons for blanks."""
    text = _UNITS.sub(_unit_letter, text.translate(_TYPESET).strip().lower())
    return re.sub(r"(?<=[hdms])[\s:]+", "", re.sub(r"\s*:\s*|\s+", ":", text))


def _unit_letter(match: re.Match[str]) -> str:
    name = match[0].removeprefix("arc")
    return _LETTER.get(name, name[0])


def _angle(given: str, what: str, limit: float, examples: str, *, hours: bool) -> float:
    text = _plain(given)
    match = _COLONS.fullmatch(text) or _LETTERS.fullmatch(text)
    if match is not None:
        value = _sexagesimal(match, f"{what} {given}", hours=hours)
    elif _DECIMAL.fullmatch(text):
        value = float(text)
    else:
        raise StorageError(f"{what} {given!r} is no angle; write it as {examples}")
    if not abs(value) <= limit:
        raise StorageError(f"{what} {given} is {value:g} deg, outside -{limit:g}..{limit:g}; write it as {examples}")
    return value


def _sexagesimal(match: re.Match[str], where: str, *, hours: bool) -> float:
    """Degrees of what `_COLONS` or `_LETTERS` found."""
    in_hours = match["unit"] == "h" or (match["unit"] == ":" and hours)
    if in_hours and not hours:
        raise StorageError(f"{where} is in hours; write degrees, such as -2.2, -02:12:00 or -2d12m00s")
    parts = [match[name] for name in ("whole", "minutes", "seconds")]
    given = [part for part in parts if part is not None]
    minutes, seconds = (float(part or 0) for part in parts[1:])
    if minutes >= 60 or seconds >= 60 or any("." in part for part in given[:-1]):
        raise StorageError(
            f"{where} has {minutes:g} minutes and {seconds:g} seconds; both end below 60, and only the last is broken"
        )
    value = (float(parts[0]) * 3600 + minutes * 60 + seconds) * (15 if in_hours else 1) / 3600
    return -value if match["sign"] == "-" else value
