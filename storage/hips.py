"""Mosaics as HiPS, the pyramid of HEALPix tiles that Aladin pans and zooms: one a plane, through `reproject`.

However large the mosaic, only what lies under one HiPS tile is in memory.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from astropy.io.fits import Header
from astropy.wcs import WCS
from numpy.typing import NDArray

from surveybridge.storage.celestial import celestial_wcs
from surveybridge.storage.errors import StorageError
from surveybridge.storage.footprint import Box, overlap
from surveybridge.storage.grids import pixel_to_pixel
from surveybridge.storage.mosaics import header_from

MARGIN = 2
"""Pixels beyond a HiPS tile that interpolation looks at."""

LATTICE = 17
"""Points a side by which a HiPS tile's outline is found on the mosaic."""


def write_hips(
    directory: str | os.PathLike[str],
    read: Callable[[Box], NDArray[np.float32]],
    wcs_header: str,
    shape: tuple[int, int],
    properties: Mapping[str, str],
) -> None:
    """Write one plane of a mosaic as a HiPS of FITS tiles, 512 px, ICRS.

    A pixel's value is the mosaic's there, interpolated bilinearly, in the unit of the mosaic's own pixels.

    Parameters
    ----------
    directory : str
        Local; must not exist.
    read : callable
        Gives the float32 [h, w] pixels of a box of the mosaic, NaN where unknown.
    wcs_header : str
        WCS of the mosaic.
    shape : (int, int)
        H, W of the mosaic.
    properties : mapping of str to str
        Further lines of the file `properties`, as IVOA's HiPS 1.0 names them.

    Raises
    ------
    StorageError
        If `reproject` is not installed.
    """
    check_reproject()
    from reproject import reproject_interp
    from reproject.hips import reproject_to_hips

    def interpolate(source: Any, header: Header) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        there = WCS(header)
        size = (int(header["NAXIS2"]), int(header["NAXIS1"]))
        box = overlap(_under(there, size, celestial_wcs(wcs_header)), (0, shape[0], 0, shape[1]))
        if box is None:
            return np.full(size, np.nan), np.zeros(size)
        pixels = read(box)
        if not np.isfinite(pixels).any():
            return np.full(size, np.nan), np.zeros(size)
        here = celestial_wcs(header_from(wcs_header, box[0], box[2]))
        array, _ = reproject_interp((pixels, here), header, shape_out=size, roundtrip_coords=False)
        return array, np.isfinite(array).astype(float)

    # reproject asks its input for nothing but the shape; the pixels come through `read`
    nothing = np.broadcast_to(np.float32(0), shape)
    reproject_to_hips(
        (nothing, celestial_wcs(wcs_header)),
        coord_system_out="equatorial",
        reproject_function=interpolate,
        output_directory=os.fspath(directory),
        properties=dict(properties),
    )


def check_reproject() -> None:
    """Refuse to begin without `reproject`."""
    if importlib.util.find_spec("reproject") is None:
        raise StorageError("HiPS needs the package reproject, which is not installed; pip install 'surveybridge[hips]'")


def _under(there: WCS, size: tuple[int, int], here: WCS) -> Box:
    """Box of the mosaic's pixels under a HiPS tile and its margin; empty if the mosaic's WCS cannot see the tile."""
    y, x = np.meshgrid(*(np.linspace(-0.5, n - 0.5, LATTICE) for n in size), indexing="ij")
    y, x = pixel_to_pixel(there, here, y, x)
    y, x = y[np.isfinite(y)], x[np.isfinite(x)]
    if not (y.size and x.size):
        return 0, 0, 0, 0
    low, high = (
        [int(np.floor(v.min())) - MARGIN for v in (y, x)],
        [int(np.ceil(v.max())) + MARGIN + 1 for v in (y, x)],
    )
    return low[0], high[0], low[1], high[1]
