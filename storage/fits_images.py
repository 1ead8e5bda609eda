"""Read images from FITS: what each HDU is, its unit, mask and noise, into a problem's unit.

A path is a local file or any fsspec URL, plain or compressed, with the HDU to read in brackets where a file
holds several images: `cutout.fits[DES_G_BGSUB]`, `chips.fits[SCI,2]` (EXTVER), `old.fits[1]` (number).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from surveybridge.storage.celestial import (
    celestial_wcs,
)
from surveybridge.storage.cosmic_rays import check_astroscrappy
from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_files import open_fits
from surveybridge.storage.fits_hdus import extensions
from surveybridge.storage.fits_maps import MAPS, grid_offset
from surveybridge.storage.fits_planes import Noise, Plane, Planes, Request, plane_wcs, read_plane
from surveybridge.storage.fits_selection import flux_extension, split_extension
from surveybridge.storage.grids import describe_footprint, pixel_scale
from surveybridge.storage.images import Box, LazyImage, SurveyImage
from surveybridge.storage.problems import EndpointTable, image_unit, quantity, unit_of
from surveybridge.storage.readings import STRICT, Allowances
from surveybridge.storage.units import njy_per_unit

log = logging.getLogger(__name__)

NUMBERS = {
    "psf": "PSF",
    "zero_point": "zero point",
    "factor": "factor",
    "no_data": "value of no data",
    "cosmic_rays": "search for cosmic rays",
}
"""What a user may say of a band, and how messages call it."""

SAME_SCALE = 0.01
"""Bands whose pixel scales differ by less lie on one grid, or should."""


def read_image(endpoint: EndpointTable, paths: Mapping[str, str], **how: Any) -> SurveyImage:
    """Read the image of an endpoint whose bands share one pixel grid; arguments and refusals as `read_images`."""
    image, *more = read_images(endpoint, paths, **how)
    if more:
        raise StorageError(
            f'{endpoint["name"]}: band {more[0].bands[0]} has pixels of {more[0].pixel_scale:.3g}" but '
            f'{image.bands[0]} of {image.pixel_scale:.3g}"; ingest brings them onto one grid'
        )
    return image


def read_images(endpoint: EndpointTable, paths: Mapping[str, str], **how: Any) -> list[SurveyImage]:
    """Read the images of an endpoint, a file (or HDU) per band; arguments and refusals as `open_images`."""
    return [image.whole() for image in open_images(endpoint, paths, **how)]


def open_images(
    endpoint: EndpointTable,
    paths: Mapping[str, str],
    *,
    noise: Noise = "auto",
    numbers: Mapping[str, Mapping[str, Any]] | None = None,
    maps: Mapping[str, Mapping[str, str]] | None = None,
    filters: Collection[str] = (),
    allow: Allowances = STRICT,
    storage_options: Mapping[str, Any] | None = None,
) -> list[LazyImage]:
    """Open the images of an endpoint, a file (or HDU) per band, and log a line for each.

    Of images of more than `fits_hdus.WHOLE_PIXELS` what is measured, such as sky and noise, is measured on a sample,
    and pixels are read when they are asked for; others are in memory.

    Parameters
    ----------
    endpoint : EndpointTable
        Bands, unit and the rest.
    paths : mapping of band to path
        Such as {"g": ..., "r": ..., "i": ...}; `FILE[EXTNAME]`, `FILE[EXTNAME,EXTVER]` or `FILE[number]` names an HDU.
        Otherwise it must be clear which one is the flux (`fits_selection.flux_extension`). Mask and noise are those
        beside it, with its EXTVER.
    noise : "auto", "file", "scaled" or "sky"
        Where the variance comes from: "file" = the file's variance, RMS or weight map, "scaled" = the same, multiplied
        so that it agrees with what the pixels of the sky scatter by, "sky" = measured on the image,
        "auto" = a variance or error map where there is one, else the sky, because the RMS maps of ground bands in
        Euclid's MER products are 2-5 times the noise that is there; weights count if they agree with the sky within a
        factor of `fits_planes.WEIGHT_SCALE`. Of what is no flux, "auto" takes any map, and none as exact. What a map
        marks as not covered stays unusable with all of them.
    numbers : mapping of "psf", "zero_point", "factor", "no_data" or "cosmic_rays" to mapping of band to value, optional
        FWHM in arcsec or a text as `fits_psf.given_psf` reads it, AB magnitude of one count, the value of one in the
        unit of an endpoint that is no flux, and the value in the file that means no data; they count instead of what
        the files say. And whether cosmic rays are found in the pixels of the file, and masked.
    maps : mapping of "mask", "variance", "rms" or "weight" to mapping of band to path, optional
        Maps in files of their own, on the pixels of the image. They count instead of those in the image's file, for
        the noise unless `noise` is "sky". A weight is an inverse variance.
    filters : collection of str
        Further names, beside the endpoint's bands, that a file's FILTER must not have if it is given for another band.
    allow : Allowances
        What is allowed of files that are not as they should be.
    storage_options : mapping, optional
        For fsspec.

    Returns
    -------
    list of LazyImage
        One image for each pixel grid, that of the first band first: bands with other pixels than the first have an
        image each.

    Raises
    ------
    StorageError
        A band is missing; a file, HDU, unit, zero point or WCS is missing, wrong, or cannot be told; a map is not the
        image's; the sky of a flux is not subtracted (`fits_planes.MOST_SKY`); bands of one pixel scale differ in grid.
    """
    bands, numbers, maps = endpoint["bands"], numbers or {}, maps or {}
    missing = [band for band in bands if band not in paths]
    if missing:
        raise StorageError(
            f"{endpoint['name']}: no file for band {','.join(missing)}: given {','.join(paths) or 'none'}, needed "
            f"{','.join(bands)}; give one file per band"
        )
    for what, given in {
        "file": paths,
        **{NUMBERS[what]: by_band for what, by_band in numbers.items()},
        **{f"{role} map": maps.get(role, {}) for role in MAPS},
    }.items():
        unknown = [band for band in given if band not in bands]
        if unknown:
            raise StorageError(
                f"{endpoint['name']}: a {what} for band {','.join(unknown)}, which is not one of its bands "
                f"{','.join(bands)}; leave it out"
            )
    for band in bands:
        unit = unit_of(endpoint, band)
        is_flux = njy_per_unit(unit) is not None
        if band in numbers.get("zero_point", {}) and not is_flux:
            raise StorageError(f"{endpoint['name']}: a zero point, but it is in {unit}, no flux; leave it out")
        if band in numbers.get("factor", {}) and is_flux:
            raise StorageError(f"{endpoint['name']}: a factor, but it is a flux; give a zero point instead")
        if band in numbers.get("cosmic_rays", {}):
            if not (is_flux and quantity(endpoint, band)["extensive"]):
                raise StorageError(
                    f"{endpoint['name']}: a search for cosmic rays, but it is in {unit}, no flux; leave it out"
                )
            check_astroscrappy()
    names = frozenset({*bands, *filters})
    planes = []
    for band in bands:
        beside: dict[str, str] = {role: maps[role][band] for role in MAPS if band in maps.get(role, {})}
        request = Request(quantity(endpoint, band), noise, names, numbers, allow, storage_options)
        plane = read_plane(paths[band], band, beside, request)
        log.info("%s %s", endpoint["name"], plane.reading.line())
        planes.append(plane)
    scale = pixel_scale(planes[0].wcs_header)
    apart = [plane for plane in planes if abs(pixel_scale(plane.wcs_header) / scale - 1) > SAME_SCALE]
    groups = [[plane for plane in planes if plane not in apart], *([plane] for plane in apart)]
    return [_assemble(endpoint, group) for group in groups]


def stated_grid(
    endpoint: EndpointTable, band: str, path: str, storage_options: Mapping[str, Any] | None = None
) -> tuple[str, tuple[int, int]]:
    """WCS header, ICRS, and height and width of the image of a band, as `open_images` would read them."""
    file, selector = split_extension(path)
    with open_fits(file, storage_options) as hdus:
        extension = flux_extension(extensions(hdus, unit_of(endpoint, band)), file, selector, band)
        where = f"{file}[{extension.label}]"
        height, width = extension.size
        return plane_wcs(extension.hdu.header, hdus[0].header, endpoint, where)[0], (height, width)


def _assemble(endpoint: EndpointTable, planes: list[Plane]) -> LazyImage:
    """Put bands together, which must share one grid."""
    first = planes[0]
    names = [plane.reading.file for plane in planes]
    for plane, name in zip(planes[1:], names[1:], strict=True):
        if plane.shape != first.shape:
            raise StorageError(
                f"{name}: {plane.shape[0]} x {plane.shape[1]} pixels but {names[0]} has "
                f"{first.shape[0]} x {first.shape[1]}; give bands of the same patch"
            )
        off = grid_offset(plane.wcs_header, first.wcs_header, first.shape)
        if not off < 0.01:
            raise StorageError(
                f"{name}: its grid is {off:.3g} px off that of {names[0]} "
                f"({_footprint(plane)} against {_footprint(first)}); give bands of the same patch"
            )
        if names.count(name) > 1:
            raise StorageError(f"{name}: given for {names.count(name)} bands; give one file per band")
    readings = tuple(plane.reading for plane in planes)
    head = SurveyImage(
        survey=endpoint["name"],
        bands=tuple(reading.band for reading in readings),
        flux=np.zeros((len(planes), 0, 0), np.float32),
        variance=np.zeros((len(planes), 0, 0), np.float32),
        mask=np.zeros((len(planes), 0, 0), np.uint8),
        wcs_header=first.wcs_header,
        pixel_scale=pixel_scale(first.wcs_header),
        psf_fwhm=tuple(reading.psf_fwhm for reading in readings),
        zero_point=readings[0].zero_point,
        noise_correlation=tuple(plane.noise_correlation for plane in planes),
        provenance={key: text for reading in readings for key, text in reading.provenance().items()},
        unit=image_unit(endpoint),
        extensive=endpoint["extensive"],
        readings=readings,
        psf_wing=tuple(reading.psf_wing for reading in readings),
        psf_model=tuple(plane.psf for plane in planes),
    )
    readers = [plane.read for plane in planes]

    def read(box: Box) -> Planes:
        flux, variance, mask = zip(*(one(box) for one in readers), strict=True)
        return np.stack(flux), np.stack(variance), np.stack(mask)

    return LazyImage(head, first.shape, read)


def _footprint(plane: Plane) -> str:
    return describe_footprint(celestial_wcs(plane.wcs_header), plane.shape)
