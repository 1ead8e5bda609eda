"""Masks of FITS files: what their bits mean, and which of them make a pixel unusable.

The planes of a mask are named by cards of its header: `MP_<NAME>` = bit (Rubin's afw) or `MSKNnnnn` = name beside
`MSKMnnnn` = value (Rubin's `lsst.images`). The flag maps of Euclid VIS have the documented bits of that product. Masks
of which nobody names the planes are read only if they have no more than one value beside 0, or if they are a `DQ`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from astropy.io.fits import Header
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_hdus import Extension
from surveybridge.storage.images import MASK_PLANES

_SAME_PLANE = {
    "BAD": "BAD BADPIX BADPIXEL BADCOLUMN BADCLUSTER HOT HOTPIX COLD DEAD DEADPIX DEFECT INVALID DONOTUSE CR COSMIC "
    "COSMICRAY CRREGION OVRCOL CHARINJ ADCMAX VIGNETTED",
    "SAT": "SAT SATUR SATURATED SATURATEDPIXEL SATURATION",
    "NO_DATA": "NODATA NODAT NOCOVERAGE OUTSIDE OFFIMAGE UNMASKEDNAN NAN",
    "CLIPPED_EDGE": "EDGE DETECTIONEDGE CLIPPEDEDGE",
}
UNUSABLE = {name: plane for plane, names in _SAME_PLANE.items() for name in names.split()}
"""Names of planes that make a pixel unusable, without anything but letters and digits, and what they are called here.

Both sets of Rubin's names, those of Euclid VIS, and what others write. Planes of any other name (DETECTED, INTRP or
INTERPOLATED, CLIPPED, REJECTED, INEXACT_PSF, SUSPECT, ...) describe pixels that a coadd still measures."""

VIS_FLAGS = {
    0: "INVALID", 1: "HOT", 2: "COLD", 3: "SAT", 4: "COSMIC", 5: "GHOST", 6: "QUADEDGE", 7: "BAD_COLUMN",
    8: "BAD_CLUSTER", 9: "CR_REGION", 12: "OVRCOL", 13: "EXTOBJ", 14: "SCATLIGHT", 15: "CHARINJ",
    17: "SATXTALKGHOST", 18: "STARSIGNAL", 19: "SATURATEDSTAR", 20: "CTICORRECTION", 21: "ADCMAX", 22: "NO_DATA",
    23: "STITCHBLOCK", 24: "OBJECTS",
}  # fmt: skip
"""Bits of Euclid VIS flag maps (Data Product Description Document, "VIS Flag Map Product")."""

VIS_FLAG_FILE = re.compile(r"EUC_(MER|VIS)_.*VIS.*FLAG", re.IGNORECASE)
"""Names of files that hold VIS flags, such as EUC_MER_MOSAIC-VIS-FLAG_TILE102018665-...fits."""


@dataclass(frozen=True, eq=False)
class MaskReading:
    """A mask as it was read.

    Attributes
    ----------
    mask : uint8 [H, W]
        Bits of `MASK_PLANES`.
    source : str
        Where it comes from, and what was not used of it.
    shares : tuple of (str, float)
        Planes of the file that are set somewhere, those that leave a pixel usable in brackets, and their share of the
        pixels.
    """

    mask: NDArray[np.uint8]
    source: str
    shares: tuple[tuple[str, float], ...] = ()


def no_mask(shape: tuple[int, ...], why: str = "") -> MaskReading:
    """Return the mask of an image that has none."""
    return MaskReading(np.zeros(shape, np.uint8), f"none in the file{f' ({why})' if why else ''}")


def read_mask(parts: Sequence[Extension], file: str, source: str, headers: Sequence[Header] = ()) -> MaskReading:
    """Read a mask.

    Parameters
    ----------
    parts : sequence of Extension
        One HDU; several where the planes of a mask do not fit into one.
    file, source : str
        The file, and what to call the mask.
    headers : sequence of Header
        Of the image, where cards that name planes may be if the mask has none.

    Raises
    ------
    StorageError
        The mask is not of whole numbers, or its bits have no meaning that the file or its format states.
    """
    mask = np.zeros(parts[0].extent, np.uint8)
    shares: dict[str, float] = {}
    for part in parts:
        where = f"{file}[{part.label}]"
        bits, unknown = mask_bits(part.data, where)
        mask[unknown] |= MASK_PLANES["NO_DATA"]
        if unknown.any():
            shares["NaN"] = float(unknown.mean())
        names = next((found for header in (part.hdu.header, *headers) if (found := plane_names(header, where))), {})
        names = names or _names_of_product(part, file)
        if names:
            shares |= _set_planes(mask, bits, names)
        else:
            bad = _plain(bits, part, where)
            mask[bad] |= MASK_PLANES["BAD"]
            shares["BAD"] = float(bad.mean())
    usable = [name[1:-1] for name in shares if name.startswith("(")]
    said = f"; planes that leave a pixel usable: {','.join(usable)}" if usable else ""
    return MaskReading(mask, source + said, tuple(shares.items()))


def mask_bits(data: NDArray[Any], where: str) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the bits of a mask, exact up to the 64th, and where they are unknown (NaN).

    Raises
    ------
    StorageError
        Pixels that are not whole numbers, or too large to be exact.
    """
    if data.dtype.kind in "iu":
        native = np.ascontiguousarray(data.astype(data.dtype.newbyteorder("=")))
        return native.view(f"u{native.dtype.itemsize}").astype(np.uint64), np.zeros(data.shape, bool)
    unknown = ~np.isfinite(data)
    values = np.where(unknown, 0.0, data).astype(np.float64)
    wrong = (values != np.round(values)) | (values < 0) | (values >= 2.0**53)
    if wrong.any():
        raise StorageError(
            f"{where}: a mask of real numbers ({data.dtype.name}) with {int(wrong.sum())} pixels such as "
            f"{values[wrong][0]:g} that are not whole numbers from 0 up; save it as integers"
        )
    return values.astype(np.uint64), unknown


def plane_names(header: Header, where: str) -> dict[int, str]:
    """Return the names of a mask's planes by bit, from the cards of its header; empty where it has none.

    Raises
    ------
    StorageError
        A card that names no bit.
    """
    names: dict[int, str] = {}
    values: dict[str, int] = {}
    for key in header:
        if key.upper().startswith("MP_"):
            names[_whole(header[key], key, where)] = key[3:].upper()
        elif re.fullmatch(r"MSKN\d{4}", key):
            values[str(header[key]).strip().upper()] = _whole(header.get(f"MSKM{key[4:]}"), f"MSKM{key[4:]}", where)
    if values:
        # lsst.images writes 1, 2, 4, ...; whoever counts bits writes a 0 or numbers that are no powers of two
        masks = all(value > 0 and value & (value - 1) == 0 for value in values.values())
        names = {(value.bit_length() - 1 if masks else value): name for name, value in values.items()}
    outside = [f"{name} = {bit}" for bit, name in names.items() if not 0 <= bit < 64]
    if outside:
        raise StorageError(f"{where}: mask plane {outside[0]} is no bit from 0 to 63; correct the header")
    return names


def _whole(value: object, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise StorageError(f"{where}: {key} is {value!r}, expected the bit of a mask plane; correct the header")
    # int32 has its highest bit as a negative number
    return int(value) if value >= 0 else int(value) + (1 << 32 if value >= -(1 << 31) else 1 << 64)


def _set_planes(mask: NDArray[np.uint8], bits: NDArray[np.uint64], names: dict[int, str]) -> dict[str, float]:
    """Set the planes that make pixels unusable, and return the shares of all that are set."""
    shares = {}
    some = int(np.bitwise_or.reduce(bits, axis=None)) if bits.size else 0
    for bit in range(some.bit_length()):
        if not some >> bit & 1:
            continue
        here = (bits >> np.uint64(bit)) & np.uint64(1) != 0
        name = names.get(bit, f"bit {bit} without a name")
        # nobody says what a bit without a name means: it may be saturation
        plane = UNUSABLE.get(re.sub(r"[^A-Z0-9]", "", name)) if bit in names else "BAD"
        if plane is not None:
            mask[here] |= MASK_PLANES[plane]
        shares[name if plane is not None else f"({name})"] = float(here.mean())
    shares |= {f"({name})": 0.0 for bit, name in names.items() if not some >> bit & 1 and _is_usable(name)}
    return shares


def _is_usable(name: str) -> bool:
    return re.sub(r"[^A-Z0-9]", "", name) not in UNUSABLE


def _names_of_product(part: Extension, file: str) -> dict[int, str]:
    """Bits of a product that documents them: VIS flags, known by the names of the file, or of the HDU."""
    by_name = part.stem.endswith("VIS") and "FLAG" in part.name
    return VIS_FLAGS if by_name or VIS_FLAG_FILE.search(PurePosixPath(file).name) else {}


def _plain(bits: NDArray[np.uint64], part: Extension, where: str) -> NDArray[np.bool_]:
    """Bad pixels of a mask without names of planes."""
    values = np.unique(bits[bits != 0])
    if values.size > 1 and "DQ" not in part.name.split("_"):
        some = int(np.bitwise_or.reduce(values))
        set_bits = [str(bit) for bit in range(some.bit_length()) if some >> bit & 1]
        raise StorageError(
            f"{where}: a mask with {values.size} values beside 0 (bits {','.join(set_bits)}), and no card MP_<NAME> or "
            "MSKNnnnn names its planes; add cards, or give a mask of 0 and one other value by --mask NAME.BAND=FILE"
        )
    return bits != 0
