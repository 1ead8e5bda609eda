"""Which HDU of a file holds the flux of a band, and which masks and noise maps belong to it.

What cannot be told is refused with a list of the HDUs, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np

from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_hdus import EXTTYPES, Extension, Role, listed, names_planes

SCIENCE_NAMES = ("IMAGE", "SCI", "SCIENCE")
"""Names of the one image of a file. Where there is none: `<BAND>_FLUX`, `SCI_<BAND>`, `<BAND>`, else the only one."""

FILTERS = frozenset({"U", "G", "R", "I", "Z", "Y", "J", "H", "K", "KS", "VIS"})
"""Names of filters that, as a word of an EXTNAME, say of which band an image is."""


def split_extension(path: str) -> tuple[str, str | None]:
    """`FILE[EXT]` -> (FILE, EXT); EXT is None where none is given."""
    match = re.fullmatch(r"(.+)\[([^\[\]/]+)\]", path)
    return (match[1], match[2]) if match else (path, None)


def flux_extension(found: Sequence[Extension], file: str, selector: str | None, band: str) -> Extension:
    """Return the HDU with the flux of a band.

    Parameters
    ----------
    found : sequence of Extension
        All images of the file.
    file : str
        For messages.
    selector : str or None
        What the user put in brackets: EXTNAME, `EXTNAME,EXTVER` or the number of the HDU.
    band : str
        Name of the band.

    Raises
    ------
    StorageError
        None is named, and it cannot be told which it is; or the one named holds something else.
    """
    if selector is not None:
        chosen = named_extension(found, file, selector)
        _check_is_flux(chosen, found, file)
        return chosen
    candidates = [ext for ext in found if ext.is_plane and ext.role in ("flux", None)]
    tiers = [
        [ext for ext in candidates if ext.name in SCIENCE_NAMES or (not ext.name and ext.role == "flux")],
        [ext for ext in candidates if ext.stem == band.upper()],
        # what is named after another band is none of this one's
        [ext for ext in candidates if not _is_of_another_band(ext, band, len(candidates) == 1)],
    ]
    for tier in tiers:
        by_type = [ext for ext in tier if not ext.integer]
        chosen_of = tier if len(tier) == 1 or not by_type else by_type
        if len(chosen_of) == 1:
            _check_is_flux(chosen_of[0], found, file)
            return chosen_of[0]
        if chosen_of:
            break
    raise StorageError(
        f"{file}: which HDU is the flux of band {band}? It has {listed(found)}; name it as {file}[EXTNAME], "
        f"{file}[EXTNAME,EXTVER] or {file}[number]"
    )


def named_extension(found: Sequence[Extension], file: str, selector: str) -> Extension:
    """Return the HDU that is named as EXTNAME, `EXTNAME,EXTVER` or by number; StorageError unless there is one."""
    name, _, version = (text.strip() for text in selector.upper().partition(","))
    same = [ext for ext in found if name in (ext.name, str(ext.hdu.name).upper())]
    same = same or [ext for ext in found if not ext.name and ext.role and EXTTYPES.get(name) == ext.role]
    if name.isdigit() and not version:
        same += [ext for ext in found if ext.number == int(name) and ext not in same]
    elif version:
        same = [ext for ext in same if version == str(ext.version)]
    if len(same) != 1:
        raise StorageError(
            f"{file}: {len(same) or 'no'} image extension{'s' if same else ''} {selector}; it has {listed(found)}; "
            f"name one as {file}[EXTNAME], {file}[EXTNAME,EXTVER] or {file}[number]"
        )
    if not same[0].is_plane:
        raise StorageError(f"{file}[{selector}]: {len(same[0].shape)} axes {same[0].shape}, not one image; cut one out")
    return same[0]


def partners(
    found: Sequence[Extension], flux: Extension, roles: Collection[Role], file: str
) -> tuple[list[Extension], str]:
    """Return the HDUs that say something about the flux, and what was left aside, in words.

    They have the stem and the EXTVER of the flux. A mask of more than 31 planes goes on in MASK,2 (`MSKN` cards).

    Raises
    ------
    StorageError
        One has another EXTVER and no flux of its own, other pixels, or might belong to another flux.
    """
    fluxes = [ext for ext in found if ext.is_plane and ext.role in ("flux", None)]
    alone = all(ext is flux for ext in fluxes)
    ours = [ext for ext in found if ext.role in roles and ext.stem == flux.stem]
    if not ours and alone:
        # of one image a number behind MASK1 says nothing more
        ours = [ext for ext in found if ext.role in roles and (not ext.stem or ext.stem.isdigit())]
    if not ours:
        stems = {ext.stem for ext in fluxes}
        others = [ext for ext in found if ext.role in roles and ext.size == flux.size]
        others = [ext for ext in others if ext.stem not in stems or not ext.stem]
        return [], f"{'; '.join(map(str, others))}: cannot be told whose" if others else ""
    owned = {ext.version for ext in fluxes if ext.stem == flux.stem}
    same = [ext for ext in ours if ext.version == flux.version]
    if same and all(names_planes(ext.hdu.header) for ext in ours):
        same += [ext for ext in ours if ext.version not in owned]
    likeness = (flux.stem, flux.version, flux.size)
    rivals = [ext for ext in fluxes if ext is not flux and (ext.stem, ext.version, ext.size) == likeness]
    first = (same or ours)[0]
    if same and rivals:
        raise StorageError(
            f"{file}[{flux.label}]: {first} may also belong to {rivals[0]}; say whose it is by --{_flag(first)} "
            f"NAME.BAND={file}[{first.number}]"
        )
    if not same:
        if all(ext.version in owned for ext in ours):
            return [], f"{', '.join(ext.label for ext in ours)} has another EXTVER"
        raise StorageError(
            f"{file}[{flux.label}]: EXTVER {flux.version}, but {first.name} has EXTVER {first.version}; if it belongs "
            f"to it, say so by --{_flag(first)} NAME.BAND={file}[{first.number}]"
        )
    for ext in same:
        if ext.size != flux.size:
            raise StorageError(
                f"{file}[{ext.label}]: {ext.size} pixels but the flux has {flux.size}; give maps of the same image"
            )
    return same, ""


def unclaimed(found: Sequence[Extension], flux: Extension) -> list[Extension]:
    """Return the HDUs of the flux's size of which the file does not say what they are, and which are not used."""
    return [ext for ext in found if ext is not flux and ext.role is None and ext.size == flux.size and ext.is_plane]


def _flag(extension: Extension) -> str:
    return extension.role or "mask"


def _is_of_another_band(ext: Extension, band: str, alone: bool) -> bool:
    """Whether it is `<X>_FLUX` or `<X>_BGSUB` of something else; of one that is alone, X may have the band in it.

    With one of `FILTERS` in its name it is that filter's, whatever the rest of the name.
    """
    words, ours = set(ext.stem.split("_")), set(re.split(r"[^A-Z0-9]+", band.upper()))
    if words & FILTERS and not words & ours:
        return True
    named = bool(ext.stem) and ext.name.endswith(("_FLUX", "_BGSUB"))
    return named and not (alone and band.upper() in ext.stem.split("_"))


def _check_is_flux(chosen: Extension, found: Sequence[Extension], file: str) -> None:
    """Refuse what is named, or what is alone, but cannot be a flux."""
    if chosen.role not in ("flux", None):
        raise StorageError(
            f"{file}[{chosen.label}]: is {chosen.role}, not flux, by its name, type, unit or place; it has "
            f"{listed(found)}; name the flux"
        )
    if not chosen.integer or chosen.role == "flux":
        return
    pixels = chosen.pixels
    beside = [ext for ext in found if ext is not chosen and ext.size == chosen.size and not ext.integer]
    if beside or np.median(np.abs(pixels - np.median(pixels))) == 0:
        raise StorageError(
            f"{file}[{chosen.label}]: whole numbers ({chosen.kind}), most of them equal or beside an image of real "
            f"numbers: a mask, not flux; it has {listed(found)}; name the flux, or call its EXTNAME SCI"
        )
