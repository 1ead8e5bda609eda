"""Pixel grids that tiles are cut from, where no image lies on the wanted one: from a header, a place, or an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.io.fits import Header
from astropy.wcs import WCS

from surveybridge.storage.celestial import celestial_wcs, icrs_wcs, image_wcs, sky_to_pixel, wcs_header_string
from surveybridge.storage.errors import StorageError
from surveybridge.storage.fields import grid_id_of
from surveybridge.storage.objectstore import file_at

TEXT_HEADERS = (".hdr", ".head", ".txt")
"""Endings of files that hold a header as lines of text, as Montage and SWarp take them."""

MAX_PIXELS = 1 << 31
"""A grid of more pixels is a slip of the units: a MER tile has 2^28.5."""


@dataclass(frozen=True)
class TargetGrid:
    """A pixel grid that images are brought onto.

    Parameters
    ----------
    endpoint : str
        The endpoint whose pixels it has.
    wcs_header : str
        Celestial WCS, ICRS, a FITS header string; FITS pixel (1, 1) is the first one.
    shape : (int, int)
        Height and width, pixels.
    where : str
        Where it comes from, for messages.
    pixel_pc : float
        Side of a pixel in pc, of a grid on a cloud whose distance is known; else NaN.
    beam : float
        FWHM in arcsec to which maps that are finer are smoothed before; 0 for none.
    """

    endpoint: str
    wcs_header: str
    shape: tuple[int, int]
    where: str
    pixel_pc: float = math.nan
    beam: float = 0.0

    @property
    def grid_id(self) -> str:
        """Name of the grid."""
        return grid_id_of(self.endpoint, self.wcs_header, self.shape)

    @property
    def wcs(self) -> WCS:
        """Celestial WCS of the grid."""
        return celestial_wcs(self.wcs_header)


def grid_at(endpoint: str, ra: float, dec: float, side: float, scale: float) -> TargetGrid:
    """TAN with north up around a place.

    Parameters
    ----------
    endpoint : str
        The endpoint whose pixels it has.
    ra, dec : float
        Tangent point and centre, ICRS deg.
    side : float
        Height and width, arcsec.
    scale : float
        Side of a pixel, arcsec.

    Raises
    ------
    StorageError
        If it would have no pixel, or very many.
    """
    size = math.ceil(side / scale - 1e-6)
    tangent = _Tangent(endpoint, ra, dec, scale, f"the grid of {side:g} arcsec at ra {ra:g} dec {dec:g} deg")
    return tangent.grid(((size + 1) / 2, (size + 1) / 2), (size, size))


def grid_like(endpoint: str, wcs: WCS, shape: tuple[int, int], scale: float, where: str) -> TargetGrid:
    """The area and the projection of an image, its axes and its edges, with square pixels of another side.

    Parameters
    ----------
    endpoint : str
        The endpoint whose pixels it has.
    wcs : WCS
        Of the image, ICRS.
    shape : (int, int)
        Its height and width, pixels.
    scale : float
        Side of a pixel of the grid, arcsec. The last row and column may reach beyond the image.
    where : str
        Name of the image, for messages.

    Raises
    ------
    StorageError
        If the projection of the image is not linear, or it would have no pixel, or very many.
    """
    if wcs.has_distortion:
        raise StorageError(f"{where}: its WCS has distortions; give a grid by --grid")
    matrix = wcs.pixel_scale_matrix
    sides = np.hypot(*matrix) * 3600  # of a pixel along x and y
    ratio = sides / scale
    width, height = (math.ceil(n * r - 1e-6) for n, r in zip(shape[::-1], ratio, strict=True))
    if not 0 < height * width <= MAX_PIXELS:
        raise StorageError(
            f"{where}: {height} x {width} pixels of {scale:g} arcsec; give another distance or pixel size"
        )
    new = wcs.deepcopy()
    if new.wcs.has_cd():
        del new.wcs.cd
    new.wcs.pc, new.wcs.cdelt = matrix / sides * 3600, [scale / 3600] * 2
    new.wcs.crpix = (wcs.wcs.crpix - 0.5) * ratio + 0.5
    new.wcs.set()
    return TargetGrid(endpoint, wcs_header_string(new), (height, width), where)


def grid_around(endpoint: str, wcs: WCS, shape: tuple[int, int], scale: float, where: str) -> TargetGrid:
    """TAN with north up that holds all of an image, with the tangent point of the image where that has one.

    The tangent point is the corner of four pixels, so that the grids of all patches of a tract are parts of one.

    Parameters
    ----------
    endpoint : str
        The endpoint whose pixels it has.
    wcs : WCS
        Of the image, ICRS.
    shape : (int, int)
        Its height and width, pixels.
    scale : float
        Side of a pixel of the grid, arcsec.
    where : str
        Name of the image, for messages.
    """
    height, width = shape
    plain = wcs.wcs.ctype[0].endswith("-TAN") and wcs.sip is None
    middle = wcs.all_pix2world((width - 1) / 2, (height - 1) / 2, 0)
    ra, dec = (float(v) for v in (wcs.wcs.crval if plain else middle))
    tangent = _Tangent(endpoint, ra, dec, scale, f"the grid around {where}")
    edge = np.linspace(-0.5, 0.5, 65)
    ends = np.array([(v, s) for v in edge for s in (-0.5, 0.5)])
    y, x = np.concatenate([ends, ends[:, ::-1]]).T
    outline = wcs.all_pix2world(x * width + (width - 1) / 2, y * height + (height - 1) / 2, 0)
    there = np.stack(sky_to_pixel(tangent.grid((0.5, 0.5), (1, 1)).wcs, *outline))
    if not np.isfinite(there).all():
        raise StorageError(f"{where}: spans more of the sky than one plane holds; give a grid by --grid")
    low, high = np.floor(there.min(axis=1) + 0.5 + 1e-6), np.ceil(there.max(axis=1) - 0.5 - 1e-6)
    size = int(high[0] - low[0]) + 1, int(high[1] - low[1]) + 1
    corner = float(0.5 - low[0]), float(0.5 - low[1])
    return tangent.grid(corner, size)


def grid_of_file(endpoint: str, path: str, storage_options: Mapping[str, Any] | None = None) -> TargetGrid:
    """The grid of a FITS image, or of a header as text (`.hdr`, `.head`, `.txt`), which need no pixels.

    Raises
    ------
    StorageError
        If there is no header with a celestial WCS and a shape of two axes.
    """
    from surveybridge.storage.fits_files import open_fits
    from surveybridge.storage.fits_hdus import by_header
    from surveybridge.storage.fits_selection import named_extension, split_extension

    file, selector = split_extension(path)
    if file.lower().endswith(TEXT_HEADERS):
        folder, name = file_at(file, storage_options)
        try:
            text = folder.read(name).decode("ascii")
        except FileNotFoundError as error:
            raise StorageError(f"{path}: no such file; check the path") from error
        except UnicodeDecodeError as error:
            raise StorageError(f"{path}: not a header as text ({error}); give a FITS file or a header") from error
        header = Header.fromstring(text, sep="\n")
        return _of_headers(endpoint, header, header, (header.get("NAXIS2"), header.get("NAXIS1")), path)
    with open_fits(file, storage_options) as hdus:
        found = by_header(hdus, "nJy")
        images = [ext for ext in found if ext.is_plane]
        if selector is not None:
            images = [named_extension(found, file, selector)]
        if not images:
            raise StorageError(f"{path}: no image of two axes; give a file whose header says a grid")
        return _of_headers(endpoint, images[0].hdu.header, hdus[0].header, images[0].size, path)


def _of_headers(endpoint: str, header: Header, primary: Header, shape: tuple[Any, ...], path: str) -> TargetGrid:
    if not all(isinstance(n, int) and n > 0 for n in shape):
        raise StorageError(f"{path}: NAXIS1 {shape[1]} and NAXIS2 {shape[0]}; expected the shape of the grid in pixels")
    stated = icrs_wcs(image_wcs(header, primary, path), path)
    return TargetGrid(endpoint, wcs_header_string(stated.wcs), (int(shape[0]), int(shape[1])), path)


@dataclass(frozen=True)
class _Tangent:
    """Where a plane touches the sky, ICRS deg, with square pixels of `scale` arcsec and north up."""

    endpoint: str
    ra: float
    dec: float
    scale: float
    where: str

    def grid(self, at: tuple[float, float], shape: tuple[int, int]) -> TargetGrid:
        """The grid of some shape whose FITS pixel `at` (y, x) is the tangent point."""
        if not 0 < shape[0] * shape[1] <= MAX_PIXELS:
            raise StorageError(
                f"{self.where}: {shape[0]} x {shape[1]} pixels of {self.scale:g} arcsec; give another size or scale"
            )
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval, wcs.wcs.crpix = (self.ra, self.dec), at[::-1]
        wcs.wcs.cdelt = [-self.scale / 3600, self.scale / 3600]
        wcs.wcs.radesys = "ICRS"
        return TargetGrid(self.endpoint, wcs_header_string(wcs), shape, self.where)
