"""The maps that belong to an image, in its file or in files of their own: mask, variance, RMS, weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from surveybridge.storage.celestial import celestial_wcs, has_celestial_wcs, icrs_wcs, image_wcs, wcs_header_string
from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_checksums import check_sums
from surveybridge.storage.fits_files import open_fits
from surveybridge.storage.fits_hdus import Extension, Role, extensions, listed
from surveybridge.storage.fits_masks import MaskReading, no_mask, read_mask
from surveybridge.storage.fits_noise import PRIORITY, NoiseMap, check_positive, read_noise
from surveybridge.storage.fits_selection import named_extension, partners, split_extension
from surveybridge.storage.fits_units import ZERO_POINT_KEYWORDS
from surveybridge.storage.grids import describe_footprint, pixel_to_pixel

MAPS: tuple[Role, ...] = ("mask", "variance", "rms", "weight")
"""Maps that may be given in files of their own."""

SAME_GRID = 0.1
"""Pixels by which the WCS of a map may be off that of its image."""


@dataclass(frozen=True, eq=False)
class Flux:
    """What the maps of an image must fit: its HDU and file, its WCS, and what a count is worth.

    Attributes
    ----------
    extension : Extension
        HDU of the flux.
    file : str
        Path or URL.
    headers : tuple of Header
        Its own, and that of the primary HDU.
    wcs_header : str
        Celestial WCS; "" where the image has no place on the sky.
    factor : float, or float64 [H, W]
        What a count is worth in the unit of the endpoint.
    unit : str
        Unit of the endpoint.
    checked : bool
        Whether sums and places of the maps are known to be right: this is but a part of an image.
    """

    extension: Extension
    file: str
    headers: tuple[fits.Header, ...]
    wcs_header: str
    factor: float | NDArray[np.float64]
    unit: str
    checked: bool = False

    @property
    def where(self) -> str:
        """File and HDU, for messages."""
        return f"{self.file}[{self.extension.label}]"

    @property
    def bunit(self) -> str:
        """Unit of the file, as written."""
        return next((str(header["BUNIT"]).strip() for header in self.headers if header.get("BUNIT")), "")


def mask_of(
    flux: Flux, found: list[Extension], given: Mapping[str, str], options: Mapping[str, Any] | None
) -> MaskReading:
    """Read the mask of an image: of its own file in `given`, else the one beside the flux.

    Raises
    ------
    StorageError
        It does not belong to the image, or has bits whose meaning nobody states.
    """
    if "mask" in given:
        file, selector = split_extension(given["mask"])
        with open_fits(file, options) as hdus:
            part, grid = _map_in(hdus, file, selector, "mask", flux)
            return read_mask([part], file, f"mask of {given['mask']}{grid}")
    parts, aside = partners(found, flux.extension, MAPS[:1], flux.file)
    if not parts:
        return no_mask(flux.extension.extent, aside)
    for part in parts:
        _check_map(part, flux.headers[-1], flux.file, flux)
    source = ", ".join(part.name or f"HDU {part.number}" for part in parts[:1])
    return read_mask(parts, flux.file, source, flux.headers)


def noise_of(
    flux: Flux,
    found: list[Extension],
    given: Mapping[str, str],
    *,
    needed: bool,
    options: Mapping[str, Any] | None,
) -> tuple[NoiseMap | None, str]:
    """Read the noise map of an image, of its own file in `given`, else beside the flux; and what was left aside.

    Where the noise is measured anyway (not `needed`), a map of which it cannot be told whose it is is left aside.

    Raises
    ------
    StorageError
        Several files are given, or the map does not belong to the image.
    """
    roles: list[Role] = [role for role in PRIORITY if role in given]
    if len(roles) > 1:
        raise StorageError(f"{flux.where}: --{roles[0]} and --{roles[1]} are given for one band; give one noise map")
    if roles:
        file, selector = split_extension(given[roles[0]])
        with open_fits(file, options) as hdus:
            part, grid = _map_in(hdus, file, selector, roles[0], flux)
            _check_noise(part, f"{file}[{part.label}]", flux)
            name = {"rms": "RMS map", "weight": "weight map"}.get(roles[0], roles[0])
            source, where = f"{name} {given[roles[0]]}{grid}", f"{file}[{part.label}]"
            return replace(read_noise(part, where, source, flux.factor, flux.bunit), trusted=True), ""
    try:
        parts, aside = partners(found, flux.extension, PRIORITY, flux.file)
    except StorageError as error:
        if needed:
            raise
        return None, str(error)
    for kind in PRIORITY:
        these = [part for part in parts if part.role == kind]
        if len(these) > 1:
            raise StorageError(
                f"{flux.where}: {listed(these)} may each be its noise; name one by --{kind} NAME.BAND=FILE"
            )
        if these:
            where = f"{flux.file}[{these[0].label}]"
            _check_map(these[0], flux.headers[-1], flux.file, flux)
            _check_noise(these[0], where, flux)
            source = f"{these[0].name or f'HDU {these[0].number}'}{' of the file' if kind == 'variance' else ''}"
            return read_noise(these[0], where, source, flux.factor, flux.bunit), aside
    return None, aside


def grid_offset(first: str, second: str, shape: tuple[int, ...]) -> float:
    """Largest distance, pixels, between the corners of two grids."""
    y, x = np.meshgrid([0.0, shape[0] - 1], [0.0, shape[1] - 1], indexing="ij")
    there_y, there_x = pixel_to_pixel(celestial_wcs(first), celestial_wcs(second), y, x)
    return float(np.hypot(there_y - y, there_x - x).max())


def _map_in(hdus: fits.HDUList, file: str, selector: str | None, role: Role, flux: Flux) -> tuple[Extension, str]:
    """The map of a file of its own, and what to say of its grid."""
    found = extensions(hdus, flux.unit)
    if selector is not None:
        part = named_extension(found, file, selector)
    else:
        planes = [ext for ext in found if ext.is_plane]
        these = [ext for ext in planes if ext.role == role] or planes
        if len(these) != 1:
            raise StorageError(
                f"{file}: which HDU is the {role}? It has {listed(found)}; name it as {file}[EXTNAME] or {file}[number]"
            )
        part = these[0]
    if part.role in MAPS and part.role != role:
        raise StorageError(
            f"{file}[{part.label}]: is {part.role} by its name, type or unit, but given as {role}; give it as "
            f"--{part.role} NAME.BAND={file}"
        )
    if part.size != flux.extension.size:
        raise StorageError(
            f"{file}[{part.label}]: {part.size} pixels but {flux.where} has {flux.extension.size}; give a {role} of "
            "the same image"
        )
    checked = _check_map(part, hdus[0].header, file, flux)
    return replace(
        part, role=role, boxes=flux.extension.boxes
    ), "" if checked else ", which has no WCS: only its shape was checked"


def _check_noise(part: Extension, where: str, flux: Flux) -> None:
    """Refuse a noise map that is a flux, or whose zero point is not that of its image."""
    if flux.checked:
        return
    check_positive(part, where)
    for keyword in ZERO_POINT_KEYWORDS:
        theirs = part.hdu.header.get(keyword)
        ours = next((header[keyword] for header in flux.headers if keyword in header), None)
        if theirs is not None and ours is not None and theirs != ours:
            raise StorageError(
                f"{where}: {keyword} is {theirs} but {ours} in {flux.where}; convert the map to the counts of its image"
            )


def _check_map(part: Extension, primary: fits.Header, file: str, flux: Flux) -> bool:
    """Refuse a damaged map, and one of another place on the sky; False where no places can be compared."""
    if flux.checked:
        return True
    where = f"{file}[{part.label}]"
    check_sums(part.hdu, where)
    in_primary = "CTYPE1" not in part.hdu.header and primary.get("NAXIS") == 0
    if not flux.wcs_header or not has_celestial_wcs(primary if in_primary else part.hdu.header):
        return False
    theirs = wcs_header_string(icrs_wcs(image_wcs(part.hdu.header, primary, where), where).wcs)
    shape = flux.extension.size
    off = grid_offset(flux.wcs_header, theirs, shape)
    if not off < SAME_GRID:
        here, there = (
            describe_footprint(celestial_wcs(text), (shape[0], shape[1])) for text in (theirs, flux.wcs_header)
        )
        raise StorageError(
            f"{where}: its grid is {off:.3g} px off that of {flux.where} ({here} against {there}); give a map of the "
            "same image"
        )
    return True
