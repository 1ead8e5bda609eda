"""Positions on the sky: HEALPix indices at order 29, the ranges that a cone touches, and distances."""

from __future__ import annotations

import math

import astropy.units as u
import cdshealpix.nested
import numpy as np
from astropy.coordinates import Latitude, Longitude, SkyCoord
from numpy.typing import ArrayLike, NDArray

from surveybridge.storage.errors import StorageError

HEALPIX_ORDER = 29
"""Order of `_healpix_29`: NESTED, ICRS, pixels of 0.4 mas, as HATS catalogs have it."""


def healpix_29(ra: ArrayLike, dec: ArrayLike) -> NDArray[np.int64]:
    """HEALPix index (NESTED, order 29) of ICRS positions.

    Parameters
    ----------
    ra, dec : array_like
        Degrees, same shape [N].

    Returns
    -------
    int64 [N]
    """
    lon = Longitude(np.atleast_1d(np.asarray(ra, float)), u.deg)
    lat = Latitude(np.atleast_1d(np.asarray(dec, float)), u.deg)
    if lon.size == 0:
        return np.empty(0, np.int64)
    return np.asarray(cdshealpix.nested.lonlat_to_healpix(lon, lat, HEALPIX_ORDER), np.int64)


def unit_vectors(ra: ArrayLike, dec: ArrayLike) -> NDArray[np.float64]:
    """Directions of positions in degrees [N], as float64 [N, 3]."""
    lon, lat = np.deg2rad(np.asarray(ra, float)), np.deg2rad(np.asarray(dec, float))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def cone_ranges(ra: float, dec: float, radius: float) -> list[tuple[int, int]]:
    """Ranges of order-29 HEALPix indices that cover a cone (a superset: filter by distance afterwards).

    Parameters
    ----------
    ra, dec : float
        Centre, ICRS degrees.
    radius : float
        arcsec, above 0 and up to 180 deg.

    Returns
    -------
    list of (first, last)
        Inclusive, disjoint, ascending.
    """
    check_cone(ra, dec, radius)
    radius_deg = min(radius / 3600.0 * (1 + 1e-9) + 1e-9, 180.0)  # never miss the rim by rounding
    # Cells a few times smaller than the cone keep the superset tight with some tens of ranges.
    depth = int(np.clip(np.floor(np.log2(58.6 / radius_deg)) + 2, 0, HEALPIX_ORDER))
    cells, depths, _ = cdshealpix.nested.cone_search(
        Longitude(ra, u.deg), Latitude(dec, u.deg), radius_deg * u.deg, depth=depth, depth_delta=0
    )
    shift = 2 * (HEALPIX_ORDER - depths.astype(np.int64))
    first = cells.astype(np.int64) << shift
    last = ((cells.astype(np.int64) + 1) << shift) - 1
    ranges: list[tuple[int, int]] = []
    for i in np.argsort(first):
        if ranges and int(first[i]) <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], int(last[i])))
        else:
            ranges.append((int(first[i]), int(last[i])))
    return ranges


def check_cone(ra: float, dec: float, radius: float) -> None:
    """Refuse a cone that is not one: StorageError with the value and its range."""
    for name, value, low, high, unit in (("ra", ra, -360, 360, "deg"), ("dec", dec, -90, 90, "deg")):
        if not low <= value <= high:
            raise StorageError(f"cone {name} {value:g} {unit} lies outside {low}..{high}; give RA,DEC,ARCSEC in ICRS")
    if not 0 < radius <= 180 * 3600:
        raise StorageError(f"cone radius {radius:g} arcsec lies outside 0..648000; give RA,DEC,ARCSEC")


def sky_name(ra: float, dec: float) -> str:
    """IAU name from the ICRS position in degrees: truncated, never rounded, to 0.01 s and 0.1 arcsec.

    >>> sky_name(359.99999, -20.0)
    'SB J235959.99-200000.0'
    """
    # 1e-6 of the last digit is the error of decimal degrees in binary
    ticks = math.floor(ra * 24000 + 1e-6) % 8_640_000
    tenths = math.floor(abs(dec) * 36000 + 1e-6)
    hours, minutes, seconds = ticks // 360_000, ticks // 6000 % 60, ticks % 6000
    degrees, arcmin, arcsec = tenths // 36_000, tenths // 600 % 60, tenths % 600
    return (
        f"SB J{hours:02d}{minutes:02d}{seconds // 100:02d}.{seconds % 100:02d}"
        f"{'-' if dec < 0 else '+'}{degrees:02d}{arcmin:02d}{arcsec // 10:02d}.{arcsec % 10}"
    )


def rounded_sky_name(ra: float, dec: float) -> str:
    """Name of an object in runs from before schema version 4: rounded, and otherwise as `sky_name`."""
    place = SkyCoord(ra, dec, unit="deg")
    hours = place.ra.to_string(unit=u.hourangle, sep="", precision=2, pad=True)
    degrees = place.dec.to_string(sep="", precision=1, alwayssign=True, pad=True)
    return f"SB J{hours}{degrees}"
