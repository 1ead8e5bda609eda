"""Units of endpoints: one spelling for each, its value in nJy, and the stretches that fit it."""

from __future__ import annotations

import functools
import re
import warnings

import astropy.units as u


def fits_unit(text: str) -> str:
    """Return a unit in the FITS spelling: one spelling for each unit, however it was written.

    Raises
    ------
    ValueError
        If astropy does not know it, or FITS cannot say it.
    """
    return _written(text, "fits")


def vo_unit(text: str) -> str:
    """Return a unit in the spelling of VOTable and Parquet columns."""
    return _written(text, "vounit")


@functools.cache
def squared_unit(text: str) -> str:
    """Return the unit of a variance, as `fits_unit` writes it; of several units by comma, those of all."""
    return ",".join(str((_read(unit) ** 2).to_string("fits")) for unit in text.split(","))


@functools.cache
def njy_per_unit(text: str) -> float | None:
    """Return the value of one unit in nJy; None if it is not a unit of flux density."""
    unit = _read(text)
    return float(unit.to(u.nJy)) if unit.is_equivalent(u.nJy) else None


@functools.cache
def radians_of(text: str) -> float:
    """Return the value of one unit of angle in radians."""
    return float(_read(text).to(u.rad))


@functools.cache
def factor_between(text: str, wanted: str) -> float | None:
    """Return the value of one unit in another; None if they are of different quantities.

    Raises
    ------
    ValueError
        If astropy does not know one of them.
    """
    unit, other = _read(text), _read(wanted)
    if isinstance(unit, u.function.FunctionUnitBase) or not unit.is_equivalent(other):
        return None
    return float(unit.to(other))


@functools.cache
def _written(text: str, form: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", u.UnitsWarning)  # VOUnit calls the angstrom deprecated
        return str(_read(text).to_string(form))


_WORDS = {
    r"[${}]": "",  # LaTeX
    r"\b(degree|radian|arcsecond|arcminute)s\b": r"\1",
    r"\bmicro(?=[A-Z])": "u",
    r"(?<=[a-zµμ])Gauss\b": "G",
    r"\bcc\b": "cm3",
}
"""Spellings that are usual and that astropy does not read."""


def _read(text: str) -> u.UnitBase:
    for pattern, word in _WORDS.items():
        text = re.sub(pattern, word, text)
    return u.Unit(text)


def stretches_of(text: str) -> tuple[str, ...]:
    """Return the stretches that fit a unit, the default first; none for a logarithmic unit."""
    unit = _read(text)
    if isinstance(unit, u.function.FunctionUnitBase) or unit.is_equivalent(u.dex):
        return ()
    if unit.is_equivalent(u.rad) and unit != u.dimensionless_unscaled:
        return ("axial", "asinh")
    # a density per area or volume, of matter or of its particles
    si = unit.si
    powers = {str(base): power for base, power in zip(si.bases, si.powers, strict=True)}
    dense = powers.get("m") in (-2, -3) and set(powers) <= {"m", "kg"} and powers.get("kg", 1) == 1
    return ("log10", "asinh", "linear") if dense else ("asinh", "linear", "log10")
