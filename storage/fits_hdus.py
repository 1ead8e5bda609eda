"""The HDUs of a survey's FITS file, and what each of them holds.

What an HDU is follows from what the file says, in this order: EXTTYPE (Rubin's afw), the words of EXTNAME, cards that
name mask planes, BUNIT. Three HDUs without a name are image, mask and variance if their pixels can be that, as in
files of afw and KBMOD. Which of them is the flux of a band, and what belongs to it, `storage.fits_selection` says.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import astropy.units as u
import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from surveybridge.storage.images import Box

Role = Literal["flux", "mask", "variance", "rms", "weight", "psf", "other"]
"""What an HDU holds: `rms` is a standard deviation, `weight` an inverse variance; `other` is none of these."""

EXTTYPES: dict[str, Role] = {"IMAGE": "flux", "MASK": "mask", "VARIANCE": "variance"}
"""Values of EXTTYPE, which afw writes beside or instead of EXTNAME."""

UTYPES: dict[str, Role] = {"STDDEVUNCERTAINTY": "rms", "VARIANCEUNCERTAINTY": "variance", "INVERSEVARIANCE": "weight"}
"""Values of UTYPE, by which astropy's CCDData says what its UNCERT holds."""

WORDS: dict[Role, frozenset[str]] = {
    "psf": frozenset({"PSF", "KERNEL"}),
    "mask": frozenset(
        {"MASK", "MASKS", "MASKBITS", "MSK", "DQ", "FLAG", "FLAGS", "FLG", "BPM", "QUALITY", "BADPIX", "BITMASK"}
    ),
    "variance": frozenset({"VARIANCE", "VAR"}),
    "rms": frozenset(
        {"RMS", "ERR", "ERROR", "ERRORS", "SIGMA", "STD", "STDDEV", "STDEV", "UNCERT", "UNCERTAINTY", "NOISE"}
    ),
    "weight": frozenset({"WHT", "WEIGHT", "WEIGHTS", "WGT", "WT", "IVAR", "INVVAR", "IVM"}),
    "other": frozenset(
        {"BACKGROUND", "BKG", "BGMOD", "BKGD", "EXPOSURE", "EXP", "EXPMAP", "EXPTIME", "TIME", "COVERAGE", "COV"}
        | {"NEXP", "NIMAGE", "NIMAGES", "DEPTH", "CON", "CTX", "CONTEXT", "AREA", "SEG", "SEGM", "SEGMAP", "MODEL"}
        | {"SEGMENTATION", "RESIDUAL", "CHI", "CHI2", "SKY", "WAVELENGTH", "POISSON", "RNOISE", "FLAT", "DARK", "BIAS"}
    ),
    "flux": frozenset({"FLUX", "BGSUB", "SCI", "SCIENCE", "IMAGE", "IMG", "DATA", "SIGNAL"}),
}
"""Words of an EXTNAME, taken apart at everything but letters and digits, that say what the HDU holds."""

_ALL_WORDS = frozenset().union(*WORDS.values())

_SAY_NOTHING = WORDS["flux"] | {"MAP", "MAPS", "ARRAY", "PLANE"}
"""Words that do not tell two stems apart: RMS_MAP is the RMS of IMAGE."""

WHOLE_PIXELS = 1 << 24
"""Images of more pixels are read in parts; what is measured on them, such as the sky, is measured on a sample."""

SAMPLES, SAMPLE_SIDE = 16, 128
"""Boxes of a sample along each axis, and their side in pixels: 4 million pixels know a median to 0.001 sigma."""

FPACK_NAME = "COMPRESSED_IMAGE"
"""EXTNAME that fpack gives to images without one."""

PLANE_CARDS = re.compile(r"^(MP_.+|MSKN\d{4})$")
"""Cards that name planes of a mask: afw's and those of Rubin's newer files."""


@dataclass(frozen=True, eq=False)
class Extension:
    """An HDU with an image in it.

    Attributes
    ----------
    number : int
        Its place in the file, 0 = primary.
    name, version : str, int
        EXTNAME in capitals, "" where there is none, and EXTVER.
    shape : tuple of int
        Of the image, as stored.
    kind : str
        Type of the pixels, such as float32.
    role : Role or None
        What it holds; None where the file does not say.
    stem : str
        EXTNAME without the words for the role: `VIS` of `VIS_FLUX`. What has one stem belongs together.
    hdu : ImageHDU, PrimaryHDU or CompImageHDU
        The HDU itself.
    boxes : tuple of Box
        Parts of the image of which the pixels are, one below the other, all of one width; none = all of it.
    """

    number: int
    name: str
    version: int
    shape: tuple[int, ...]
    kind: str
    role: Role | None
    stem: str
    hdu: Any
    boxes: tuple[Box, ...] = ()

    @property
    def label(self) -> str:
        """Name it as a user would: EXTNAME, with EXTVER where that is not 1, or the number."""
        if not self.name:
            return str(self.number)
        return self.name if self.version == 1 else f"{self.name},{self.version}"

    @property
    def size(self) -> tuple[int, ...]:
        """Shape of its only plane; as stored where there are several."""
        return self.shape[-2:] if len(self.shape) >= 2 and all(n == 1 for n in self.shape[:-2]) else self.shape

    @property
    def is_plane(self) -> bool:
        """Whether it is one two-dimensional image."""
        return len(self.size) == 2

    @property
    def integer(self) -> bool:
        """Whether its pixels are whole numbers by type."""
        return "int" in self.kind

    @property
    def extent(self) -> tuple[int, ...]:
        """Shape of the pixels."""
        if not self.boxes:
            return self.size
        return sum(y1 - y0 for y0, y1, _, _ in self.boxes), self.boxes[0][3] - self.boxes[0][2]

    @property
    def data(self) -> NDArray[Any]:
        """Pixels of `extent` as stored, scaled by BSCALE and BZERO."""
        if not self.boxes:
            return np.asarray(self.hdu.data).reshape(self.size)
        above = (0,) * (len(self.shape) - 2)
        parts = [self.hdu.section[(*above, slice(y0, y1), slice(x0, x1))] for y0, y1, x0, x1 in self.boxes]
        return np.concatenate(parts).reshape(self.extent)

    @property
    def pixels(self) -> NDArray[np.float64]:
        """Pixels of `extent`, float64 in this machine's byte order (FITS is big-endian)."""
        return self.data.astype(np.float64)

    def __str__(self) -> str:
        """One entry of a list of HDUs."""
        said = f"{self.number} {self.name or 'unnamed'}"
        version = f",{self.version}" if self.version != 1 else ""
        size = " x ".join(map(str, self.shape))
        return f"{said}{version} ({size} {self.kind}{f', {self.role}' if self.role else ''})"


def extensions(hdus: fits.HDUList, unit: str = "nJy") -> list[Extension]:
    """Return the HDUs with images, and what each holds; `unit` is that of the endpoint, to which BUNIT is compared.

    Of large images the pixels are those of a sample (`sample_boxes`).
    """
    return _image_mask_variance(by_header(hdus, unit))


def by_header(hdus: fits.HDUList, unit: str) -> list[Extension]:
    """Return the same as `extensions`, without a look at pixels: some roles are not known."""
    found = []
    for number, hdu in enumerate(hdus):
        if not hdu.is_image or not hdu.shape:
            continue
        name = str(hdu.header.get("EXTNAME") or "").strip().upper()
        name = "" if name == FPACK_NAME else name
        role, stem = _role(hdu.header, name, unit)
        one = Extension(number, name, _version(hdu), tuple(hdu.shape), _kind(hdu.header), role, stem, hdu)
        found.append(replace(one, boxes=sample_boxes(one.size)) if one.is_plane else one)
    return _mask_by_type(found)


def sample_boxes(shape: Sequence[int]) -> tuple[Box, ...]:
    """Boxes all over an image whose pixels stand for it, always the same for one shape; none for what is small."""
    if math.prod(shape) <= WHOLE_PIXELS:
        return ()
    height, width = (min(SAMPLE_SIDE, n) for n in shape)
    random = np.random.default_rng(list(shape))
    many = [max(1, min(SAMPLES, n // SAMPLE_SIDE)) for n in shape]
    found = []
    for cell in np.ndindex(*many):
        corner = [
            int(n * k / count + random.random() * (n / count - side))
            for n, k, count, side in zip(shape, cell, many, (height, width), strict=True)
        ]
        found.append((corner[0], corner[0] + height, corner[1], corner[1] + width))
    return tuple(found)


def listed(found: Sequence[Extension]) -> str:
    """Return the HDUs as a list for messages: number, name, EXTVER, shape, type, role."""
    return "; ".join(map(str, found)) or "no HDU with an image"


def names_planes(header: fits.Header) -> bool:
    """Whether cards of a header name planes of a mask."""
    return any(PLANE_CARDS.match(key) for key in header)


def _version(hdu: Any) -> int:
    """EXTVER; -1 for what is no number, and therefore that of no other HDU."""
    try:
        return int(hdu.header.get("EXTVER", 1))
    except (TypeError, ValueError):
        return -1


def _role(header: fits.Header, name: str, unit: str) -> tuple[Role | None, str]:
    """What an HDU holds by its header, and the rest of its name."""
    by_name, stem = _split_name(name)
    by_type = EXTTYPES.get(_text(header, "EXTTYPE")) or UTYPES.get(_text(header, "UTYPE"))
    by_unit = _role_of_unit(str(header.get("BUNIT") or "").strip(), unit)
    if by_type or by_name:
        # drizzled weights may be seconds of exposure, which are no inverse variances
        timed = by_name == "weight" and by_unit == "other"
        return "other" if timed else by_type or by_name, stem if by_name else ""
    if names_planes(header):
        return "mask", stem
    return by_unit, stem


def _text(header: fits.Header, keyword: str) -> str:
    return str(header.get(keyword) or "").strip().upper()


def _split_name(name: str) -> tuple[Role | None, str]:
    words = [part for word in re.split(r"[^A-Z0-9]+", name.upper()) if word for part in _numbered(word)]
    for role, known in WORDS.items():
        said = [word for word in words if word in known]
        if said:
            # JWST's VAR_POISSON and the like are parts of a variance
            parts = role == "variance" and any(word in WORDS["other"] for word in words)
            rest = [word for word in words if word not in known | _SAY_NOTHING]
            return ("other", name) if parts else (role, "_".join(rest))
    return None, "_".join(words)


def _numbered(word: str) -> list[str]:
    """Take a word that says a role and a number behind it apart: DQ2 as DQ and 2."""
    match = re.fullmatch(r"([A-Z]+)(\d+)", word)
    known = match is not None and word not in _ALL_WORDS and match[1] in _ALL_WORDS
    return list(match.groups()) if match is not None and known else [word]


def _role_of_unit(bunit: str, unit: str) -> Role | None:
    """What a unit says: variances have squared units, weights are one over that, exposure maps are in seconds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", u.UnitsWarning)
            found, wanted = u.Unit(bunit), u.Unit(unit)
        if not bunit or not isinstance(found, u.UnitBase) or found.is_equivalent(wanted):
            return None
        if found.is_equivalent(u.s):
            return "other"
        if found.is_equivalent(wanted**2):
            return "variance"
        if found.is_equivalent(wanted**-2):
            return "weight"
        powers = {str(base): power for base, power in zip(found.bases, found.powers, strict=True)}
    except (ValueError, TypeError):  # no unit that astropy knows: for those who read the zero point to judge
        return None
    counted = {power for base, power in powers.items() if base not in ("s", "pix", "arcsec", "h", "min")}
    if counted == {2}:
        return "variance"
    return "weight" if counted == {-2} else ("other" if counted == {-1} else None)


def _kind(header: fits.Header) -> str:
    """Type of the pixels after BSCALE and BZERO."""
    bits = int(header["BITPIX"])
    if bits < 0 or float(header.get("BSCALE", 1)) != 1:
        return f"float{abs(bits) if bits < 0 else 64}"
    return f"{'uint' if bits == 8 or float(header.get('BZERO', 0)) > 0 else 'int'}{bits}"


def _image_mask_variance(found: list[Extension]) -> list[Extension]:
    """Give three HDUs without a name the roles that afw and KBMOD give them by order, if their pixels can be that."""
    if len(found) != 3 or len({ext.shape for ext in found}) != 1 or any(ext.name for ext in found):
        return found
    order: tuple[Role, ...] = ("flux", "mask", "variance")
    if any(ext.role not in (role, None) for ext, role in zip(found, order, strict=True)):
        return found
    image, mask, variance = (ext.pixels for ext in found)
    known = np.isfinite(mask)
    whole = bool((mask[known] == np.round(mask[known])).all() and (mask[known] >= 0).all())
    if not whole or found[0].integer or (image < 0).sum() == 0 or (variance < 0).any() or not (variance > 0).any():
        return found
    return [replace(ext, role=role) for ext, role in zip(found, order, strict=True)]


def _mask_by_type(found: list[Extension]) -> list[Extension]:
    """Take the only image of whole numbers beside one of real numbers as a mask, if nothing says what it is."""
    unknown = [ext for ext in found if ext.role is None and not ext.name and ext.integer and ext.is_plane]
    if len(unknown) != 1 or any(ext.role == "mask" for ext in found):
        return found
    beside = [ext for ext in found if ext.role in ("flux", None) and not ext.integer and ext.size == unknown[0].size]
    return [replace(ext, role="mask") if beside and ext is unknown[0] else ext for ext in found]
