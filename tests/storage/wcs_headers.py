"""Headers of every legal kind for tests, and where astropy puts their pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io.fits import Header
from astropy.wcs import WCS, Sip

from tests.storage.fits_files import tan_wcs

FRAMES = {"ICRS": "icrs", "FK5": "fk5", "GALACTIC": "galactic"}


def bent(shape, strength: float, scale: float = 0.2, **how: Any) -> WCS:
    """A WCS with the SIP polynomial r + strength r^3, centred on the array."""
    wcs = tan_wcs(shape, scale, **how)
    a, b = np.zeros((4, 4)), np.zeros((4, 4))
    a[3, 0] = a[1, 2] = b[0, 3] = b[2, 1] = strength
    wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    wcs.wcs.set()
    return wcs


def exchanged(header: Header) -> Header:
    """The same header with the latitude on axis 1."""
    out = header.copy()
    pairs = [("CTYPE1", "CTYPE2"), ("CRVAL1", "CRVAL2"), ("CUNIT1", "CUNIT2"), ("CDELT1", "CDELT2")]
    for a, b in [*pairs, ("PC1_1", "PC2_1"), ("PC1_2", "PC2_2")]:
        out[a], out[b] = header[b], header[a]
    return out


def unusual(
    shape,
    scale: float,
    place: tuple[float, float],
    frame: str = "ICRS",
    *,
    sip: float = 0.0,
    swap: bool = False,
    rotation: float = 75.0,
) -> tuple[Header, WCS, str]:
    """A header centred on an ICRS place, its WCS with the longitude first, and the frame of that."""  # fmt: skip
    centre = SkyCoord(*place, unit="deg").transform_to(FRAMES[frame]).spherical
    wcs = bent(shape, sip, scale, ra=centre.lon.deg, dec=centre.lat.deg, rotation=rotation)
    if sip == 0:
        wcs.sip = None
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    if frame == "GALACTIC":
        wcs.wcs.ctype = [name.replace("RA--", "GLON").replace("DEC-", "GLAT") for name in wcs.wcs.ctype]
        wcs.wcs.radesys = ""
    else:
        wcs.wcs.radesys = frame
    wcs.wcs.set()
    header = wcs.to_header(relax=True)
    return exchanged(header) if swap else header, wcs, FRAMES[frame]


def true_sky(wcs: WCS, frame: str, y, x) -> SkyCoord:
    """ICRS positions of pixels (0-based) of a WCS in `frame`, longitude first."""
    return SkyCoord(*wcs.all_pix2world(x, y, 0), unit="deg", frame=frame).icrs
