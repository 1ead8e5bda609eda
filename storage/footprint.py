"""Footprints of tiles: their cores as boxes of the global pixel grid, squares on the sky in it, and MOCs of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from astropy.io import fits
from astropy.wcs import WCS

from surveybridge.storage.celestial import celestial_wcs, sky_to_pixel
from surveybridge.storage.errors import StorageError
from surveybridge.storage.grids import pixel_scale
from surveybridge.storage.mosaics import MosaicHeader, header_from
from surveybridge.storage.sky import check_cone

if TYPE_CHECKING:
    from mocpy import MOC

Box = tuple[int, int, int, int]
"""(y0, y1, x0, x1), half-open, pixels of the global grid."""

MOC_ORDER = 18
"""Cells of 0.8 arcsec: a MOC reaches up to so far beyond the pixels that it is made of."""

POLYGONS_AT_ONCE = 1000


def core_boxes(tiles: pa.Table) -> dict[str, Box]:
    """Box of every tile's core in the grid of its field, by tile id; of tiles that do not say where they are none.

    Parameters
    ----------
    tiles : pyarrow.Table
        A manifest or ledger, or its columns tile_id, core_y0, core_x0, core_height and core_width.
    """
    names = ("tile_id", "core_y0", "core_x0", "core_height", "core_width")
    rows = zip(*(tiles[name].to_pylist() for name in names), strict=True)
    return {tile: (y, y + height, x, x + width) for tile, y, x, height, width in rows if y is not None}


def header_box(header: MosaicHeader) -> Box:
    """Box of a tile's mosaic."""
    (y, x), (height, width) = header.core_origin, header.shape
    return y, y + height, x, x + width


def around(boxes: Iterable[Box]) -> Box:
    """Return the smallest box that holds all of some boxes."""
    y0, y1, x0, x1 = zip(*boxes, strict=True)
    return min(y0), max(y1), min(x0), max(x1)


def overlap(box: Box, region: Box) -> Box | None:
    """Return the box that two boxes share, or None if they do not overlap."""
    y0, y1, x0, x1 = (
        max(box[0], region[0]),
        min(box[1], region[1]),
        max(box[2], region[2]),
        min(box[3], region[3]),
    )
    return (y0, y1, x0, x1) if y0 < y1 and x0 < x1 else None


def square(header: MosaicHeader, ra: float, dec: float, side: float) -> Box:
    """Global pixels of a square on the sky: ICRS deg, `side` in arcsec, at least one pixel, whole pixels."""
    check_cone(ra, dec, side)
    y, x = sky_to_pixel(global_wcs(header), ra, dec)
    if not (np.isfinite(x) and np.isfinite(y)):
        raise StorageError(
            f"ra {ra:g} dec {dec:g} deg does not lie on the run's grid (near {_centre(header)}); give another place"
        )
    n = max(1, round(side / pixel_scale(header.wcs_header)))
    # the nearest whole pixel; 1e-3 settles ties, which rounded degrees would
    top, left = (int(np.floor(float(v) - (n - 1) / 2 + 0.5 + 1e-3)) for v in (y, x))
    return top, top + n, left, left + n


def global_wcs(header: MosaicHeader) -> WCS:
    """WCS of the global grid: its pixel (0, 0) is FITS pixel (1, 1)."""
    return celestial_wcs(header_from(header.wcs_header, -header.core_origin[0], -header.core_origin[1]))


def moc_of(boxes: Iterable[Box], wcs: WCS) -> MOC:
    """MOC of boxes of the global grid, ICRS; corners are joined by great circles, as pixel edges are in TAN."""
    from mocpy import MOC  # it imports matplotlib and networkx: half a second

    listed = np.array(list(boxes), float).reshape(-1, 4)
    y0, y1, x0, x1 = listed.T - 0.5
    x, y = np.stack([x0, x1, x1, x0], axis=1), np.stack([y0, y0, y1, y1], axis=1)
    moc = MOC.new_empty(MOC_ORDER)
    for start in range(0, len(listed), POLYGONS_AT_ONCE):
        part = slice(start, start + POLYGONS_AT_ONCE)
        ra, dec = wcs.all_pix2world(x[part].ravel(), y[part].ravel(), 0)
        polygons = [line for pair in zip(ra.reshape(-1, 4), dec.reshape(-1, 4), strict=True) for line in pair]
        moc = moc.union(*MOC.from_polygons(polygons, max_depth=MOC_ORDER, n_threads=1))
    return moc


def moc_hdus(moc: MOC, cards: Mapping[str, Any], comments: Sequence[str]) -> fits.HDUList:
    """The MOC as FITS (IVOA MOC 2.0), with further header cards."""
    hdus = moc.serialize("fits")
    for name, value in cards.items():
        hdus[1].header[name] = value
    for comment in comments:
        hdus[1].header.add_comment(comment)
    return hdus


def _centre(header: MosaicHeader) -> str:
    height, width = header.shape
    ra, dec = celestial_wcs(header.wcs_header).all_pix2world((width - 1) / 2, (height - 1) / 2, 0)
    return f"ra {float(ra):.5f} dec {float(dec):+.5f} deg, the centre of tile {header.tile_id}"
