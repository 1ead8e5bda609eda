"""Pages of other archives at a position on the sky: plain links, which a browser opens when somebody follows them."""

from __future__ import annotations

from urllib.parse import quote, urlencode

RADIUS_ARCSEC = 10
"""Around the position, for lists of known objects."""


def links(ra: float, dec: float) -> dict[str, str]:
    """Pages of other archives at a position in ICRS deg, by their names: images, then lists of known objects."""
    target = quote(f"{ra:.6f} {dec:+.6f}")
    simbad = {"Coord": f"{ra:.6f} {dec:+.6f}", "CooFrame": "ICRS", "Radius": RADIUS_ARCSEC, "Radius.unit": "arcsec"}
    ned = {
        "search_type": "Near Position Search",
        "in_csys": "Equatorial",
        "in_equinox": "J2000.0",
        "coordinates": f"{ra:.6f}d {dec:+.6f}d",
        "radius": f"{RADIUS_ARCSEC / 60:.3f}",  # arcmin
    }
    return {
        "Aladin Lite": f"https://aladin.cds.unistra.fr/AladinLite/?target={target}&fov=0.01",
        "Legacy Survey": f"https://www.legacysurvey.org/viewer?ra={ra:.6f}&dec={dec:.6f}&layer=ls-dr10&zoom=16"
        f"&mark={ra:.6f},{dec:.6f}",
        "ESASky": f"https://sky.esa.int/esasky/?target={target}&fov=0.01&cooframe=J2000&sci=true",
        "SIMBAD": f"https://simbad.cds.unistra.fr/simbad/sim-coo?{urlencode(simbad, quote_via=quote)}",
        "NED": f"https://ned.ipac.caltech.edu/conesearch?{urlencode(ned, quote_via=quote)}",
    }
