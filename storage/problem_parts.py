"""Parts of a problem's file that are checked alone: names, bands and their quantities, colours and numbers."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from surveybridge.storage.errors import StorageError
from surveybridge.storage.units import fits_unit, stretches_of

STRETCHES = ("asinh", "linear", "log10", "axial")
"""How the values of an endpoint enter the network: `axial` is for angles that repeat after half a turn."""

_BAND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*")


def named_bands(bands: Any, what: str) -> list[str]:
    """Return the bands of an endpoint; refused where there is none, or one twice."""
    if not isinstance(bands, list | tuple) or not bands:
        raise StorageError(f"{what} has no bands; name its planes, such as bands = ['g', 'r']")
    for band in bands:
        if not isinstance(band, str) or not _BAND.fullmatch(band):
            raise StorageError(f"{what}: band {band!r}; give letters, digits and _")
    twice = twice_in(bands)
    if twice:
        raise StorageError(f"{what}: band {twice} is given twice (case does not count); name each band once")
    return list(bands)


def _spelt_unit(text: Any, what: str) -> tuple[str, tuple[str, ...]]:
    """Return the unit in one spelling, and the stretches that fit it."""
    try:
        if not isinstance(text, str):
            raise ValueError(f"it is a {type(text).__name__}")
        stretches = stretches_of(text)
        if stretches:
            return fits_unit(text), stretches
    except ValueError as error:
        said = " ".join(str(error).split())
        raise StorageError(f"{what}: unit {text!r} cannot be used ({said}); give one in the FITS spelling") from error
    raise StorageError(f"{what}: no stretch fits the unit {text}, which is a logarithm; give linear values")


def shown_colours(rgb: Any, bands: Collection[str], what: str) -> list[str] | None:
    """Return the three bands that are shown as red, green and blue; None for grey."""
    if rgb is None:
        return None
    if not isinstance(rgb, list | tuple) or len(rgb) != 3:
        raise StorageError(f"{what}: rgb {rgb!r}; give three bands, for red, green and blue")
    for band in rgb:
        if band not in bands:
            raise StorageError(f"{what}: rgb band {band!r} is not one of its bands {','.join(bands)}")
    return list(rgb)


def quantities(table: Mapping[str, Any], bands: Sequence[str], what: str) -> tuple[list[str], list[str]]:
    """Return unit and stretch of each band: its own, else that of the endpoint."""
    own: dict[str, Mapping[str, Any]] = {}
    for key in ("units", "stretches"):
        by_band = table.get(key, {})
        if not isinstance(by_band, Mapping):
            raise StorageError(f"{what}: {key} {by_band!r}; give a table by band, such as {{{bands[0]} = ...}}")
        check_keys(by_band, bands, f"{what}: {key}")
        own[key] = by_band
    found = []
    for band in bands:
        of = f"{what}: band {band}" if any(band in by_band for by_band in own.values()) else what
        unit, fitting = _spelt_unit(own["units"].get(band, table.get("unit", "nJy")), of)
        stretch = own["stretches"].get(band) or table.get("stretch") or fitting[0]
        if stretch not in STRETCHES:
            raise StorageError(f"{of}: stretch {stretch!r} is not known; give {', '.join(STRETCHES)}")
        if stretch not in fitting:
            raise StorageError(f"{of}: stretch {stretch} does not fit the unit {unit}; give {' or '.join(fitting)}")
        found.append((unit, str(stretch)))
    return [unit for unit, _ in found], [stretch for _, stretch in found]


def scalings(stated: Any, stretches: Mapping[str, str], what: str) -> dict[str, float] | None:
    """Return the power of a common factor by band, 0 where none is stated; None if none is stated at all.

    Parameters
    ----------
    stated : number or mapping
        Of all bands, or by band.
    stretches : mapping
        By band; only what enters as a logarithm can scale.
    what : str
        What to call the endpoint in messages.
    """
    if stated is None:
        return None
    by_band = stated if isinstance(stated, Mapping) else dict.fromkeys(stretches, stated)
    check_keys(by_band, stretches, f"{what}: scaling")
    for band, power in by_band.items():
        if not is_number(power):
            raise StorageError(f"{what}: scaling {power!r} of band {band}; give a number, such as 1")
        if power and stretches[band] != "log10":
            raise StorageError(
                f"{what}: scaling {power:g} of band {band}, whose stretch is {stretches[band]}; give 0, or a quantity "
                "with the stretch log10"
            )
    return {band: float(by_band.get(band, 0)) for band in stretches}


def check_keys(table: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Refuse a key that is not known, with the most similar one that is."""
    known = list(known)
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise StorageError(f"{what}: unknown key '{key}'; {hint}")


def twice_in(names: Iterable[str]) -> str | None:
    """Return a name that occurs twice, whatever its case; None if there is none."""
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            return name
        seen.add(name.lower())
    return None


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
