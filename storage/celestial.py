"""Celestial WCS of FITS headers: what a header says, right ascension first and in ICRS, or one line on why not."""

from __future__ import annotations

import functools
import math
import re
import warnings
from typing import NamedTuple

import astropy.units as u
import numpy as np
from astropy.coordinates import FK5, ICRS, Galactic, SkyCoord, SphericalRepresentation
from astropy.io.fits import Header
from astropy.io.fits.verify import VerifyError
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS, Sip
from astropy.wcs.utils import proj_plane_pixel_scales, wcs_to_celestial_frame
from numpy.typing import ArrayLike, NDArray

from surveybridge.storage.errors import StorageError

FRAMES = ("ICRS", "FK5")
"""Values of RADESYS that are read. Each is a rotation of the other; FK4 is none (terms of aberration, 0.3 arcsec)."""

SAME_MATRIX = 2e-6
"""Relative difference of two matrices that are one, written with six digits: 0.04 pixels across 19200."""

_LINEAR = re.compile(r"(CRPIX|CRVAL|CDELT|CROTA)[12]|(CD|PC)[12]_[12]|(CD|PC)00[12]00[12]|LONPOLE|LATPOLE")
_SIP = re.compile(r"(A|B|AP|BP)_(ORDER|DMAX|\d_\d)")
_OLD_MATRIX = re.compile(r"(CD|PC)00([12])00([12])")


class StatedWCS(NamedTuple):
    """A WCS and what was noticed while it was read.

    Attributes
    ----------
    wcs : WCS
        Two celestial axes in degrees, longitude first.
    frame : str
        Of these longitudes and latitudes, as astropy names it: icrs, fk5 or galactic.
    notes : tuple of str
        One line for each thing in the header that does not count, or that had to be changed.
    """

    wcs: WCS
    frame: str
    notes: tuple[str, ...] = ()


def celestial_wcs(header: Header | str, where: str = "image") -> WCS:
    """Celestial WCS of a FITS header, longitude first, in the frame that the header states.

    Raises
    ------
    StorageError
        If there is none, or it cannot be read; `where` names the file.
    """
    return stated_wcs(header, where).wcs


def stated_wcs(header: Header | str, where: str = "image") -> StatedWCS:
    """Celestial WCS of a FITS header and what there is to say about it; arguments and errors as `celestial_wcs`.

    Text is read once: headers of tiles and mosaics are asked for again and again, and to copy what was read takes a
    fiftieth of the time.
    """
    if not isinstance(header, str):
        return _read(header, where)
    stated = _read_text(header, where)
    wcs = stated.wcs.deepcopy()
    wcs.wcs.set()
    return stated._replace(wcs=wcs)


@functools.lru_cache(maxsize=512)
def _read_text(text: str, where: str) -> StatedWCS:
    """The WCS of a header's text; whoever takes it from here leaves it as it is."""
    return _read(Header.fromstring(text), where)


def _read(header: Header, where: str) -> StatedWCS:
    try:
        _check_axes(header, where)
        _check_numbers(header, where)
        _check_matrix(header, where)
        header, notes = _standard_header(header, where)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # repairs such as "RADECSYS is deprecated" or dates in another form say nothing about the pixels
            warnings.simplefilter("ignore", AstropyWarning)
            warnings.filterwarnings("ignore", "cdelt will be ignored", RuntimeWarning)
            wcs = WCS(header)
            if wcs.naxis > 2:
                wcs = wcs.sub([1, 2])
            wcs.wcs.set()
            if wcs.wcs.lng == 1:
                wcs = _longitude_first(wcs)
            scales = proj_plane_pixel_scales(wcs)
            frame = wcs_to_celestial_frame(wcs).name
    except StorageError:
        raise
    except (ValueError, LookupError, MemoryError, AssertionError, AttributeError, TypeError, VerifyError) as error:
        raise StorageError(
            f"{where}: unreadable WCS ({_one_line(error)}); give an image with a valid celestial WCS"
        ) from error
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise StorageError(
            f"{where}: its WCS has pixels of {scales[0] * 3600:g} x {scales[1] * 3600:g} arcsec; correct its matrix"
        )
    return StatedWCS(wcs, frame, tuple(notes))


def image_wcs(header: Header, primary: Header, where: str) -> StatedWCS:
    """Celestial WCS of an image of a file, which may stand in the primary header alone.

    Parameters
    ----------
    header, primary : Header
        Of the image and of the file's first HDU, which may be the same.
    where : str
        File and extension, for messages.
    """
    if "CTYPE1" not in header and "CTYPE1" in primary and primary.get("NAXIS") == 0:
        stated = stated_wcs(primary, where)
        return stated._replace(notes=(*stated.notes, "WCS of the primary header"))
    frame = ("RADESYS", "RADECSYS", "EQUINOX")
    if header.get("INHERIT") is True and not any(keyword in header for keyword in frame):
        header = header.copy()
        header.update({keyword: primary[keyword] for keyword in frame if keyword in primary})
    return stated_wcs(header, where)


def has_celestial_wcs(header: Header) -> bool:
    """Return whether a FITS header says where on the sky its pixels are."""
    try:
        celestial_wcs(header)
    except StorageError:
        return False
    return True


def wcs_header_string(wcs: WCS) -> str:
    """Header string that restores the WCS, distortions included."""
    return str(wcs.to_header_string(relax=True))


def icrs_wcs(stated: StatedWCS, where: str = "image") -> StatedWCS:
    """The same pixels of the same sky, in ICRS.

    Another frame is the same sphere turned, so this is exact: the reference point is moved, and LONPOLE and LATPOLE
    say where the new pole lies in native coordinates (Calabretta & Greisen, A&A 395, 1077, 2002, section 2.4).
    FK5 at J2000 and ICRS are 0.023 arcsec apart.

    Raises
    ------
    StorageError
        The frame is none of ICRS, FK5 and galactic.
    """
    wcs, name, notes = stated
    frame = wcs_to_celestial_frame(wcs)
    if not isinstance(frame, ICRS | FK5 | Galactic):
        raise StorageError(
            f"{where}: celestial frame {name}, expected {', '.join(FRAMES)} or galactic; convert the WCS to ICRS"
        )
    west = not 0 <= wcs.wcs.crval[0] < 360
    if isinstance(frame, ICRS) and not west:
        return stated
    header = wcs.to_header(relax=True)
    header["CRVAL1"] = wcs.wcs.crval[0] % 360
    if not isinstance(frame, ICRS):
        _turn(header, wcs, frame)
        notes = (*notes, f"{_frame_text(frame)} brought to ICRS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        return StatedWCS(WCS(header), "icrs", notes)


def sky_to_pixel(wcs: WCS, lon: ArrayLike, lat: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixel positions (y, x, 0-based) of places on the sky; NaN where the WCS has none.

    Parameters
    ----------
    wcs : WCS
        Longitude first.
    lon, lat : array_like
        Degrees, in the frame of the WCS.

    Notes
    -----
    A SIP polynomial is made for its image. Farther out it turns back, and places there have no pixel, or one that
    belongs to another place. Newton's method solves for each place by itself, so that those leave the others alone.
    """
    x, y = (np.asarray(v, np.float64) for v in wcs.wcs_world2pix(lon, lat, 0))
    return (y, x) if wcs.sip is None else _undistorted(wcs, y, x)


def pixel_area(wcs: WCS, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area on the sky, in steradian, of pixels around the positions (y, x, 0-based)."""

    def direction(y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        lon, lat = (np.radians(v) for v in wcs.all_pix2world(x, y, 0))
        return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)

    along_y = direction(y + 0.5, x) - direction(y - 0.5, x)
    along_x = direction(y, x + 0.5) - direction(y, x - 0.5)
    return np.asarray(np.linalg.norm(np.cross(along_y, along_x), axis=-1))


def _check_axes(header: Header, where: str) -> None:
    """Refuse a header without a longitude and a latitude on its first two axes, or with a lookup table."""
    kinds = [str(header.get(f"CTYPE{axis}", "absent")).strip() for axis in (1, 2)]
    heads = {re.split(r"-+", kind)[0].upper() for kind in kinds}
    if heads not in ({"RA", "DEC"}, {"GLON", "GLAT"}):
        raise StorageError(
            f"{where}: no celestial WCS (CTYPE1 {kinds[0]}, CTYPE2 {kinds[1]}, expected RA---TAN, DEC--TAN or the "
            "like); solve the astrometry first or name the right extension as FILE[EXT]"
        )
    for keyword in ("CPDIS1", "CPDIS2", "D2IMDIS1", "D2IMDIS2"):
        if str(header.get(keyword, "")).strip().upper() == "LOOKUP":
            raise StorageError(
                f"{where}: {keyword} is {header[keyword]}, a distortion in a table of its own, expected SIP, TPV or "
                "none; resample the image to a plain WCS"
            )


def _check_numbers(header: Header, where: str) -> None:
    """Refuse numbers of the WCS that are text, which wcslib would take as absent."""
    for card in header.cards:
        if _LINEAR.fullmatch(card.keyword) or _SIP.fullmatch(card.keyword):
            value = card.value
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise StorageError(
                    f"{where}: {card.keyword} is {value!r} ({type(value).__name__}), expected a number; correct the "
                    "header"
                )


def _check_matrix(header: Header, where: str) -> None:
    """Refuse a header without pixel scale, or with matrices or angles that contradict each other."""
    # drafts of the standard wrote PC001002, which wcslib still reads
    cards = {_OLD_MATRIX.sub(r"\1\2_\3", key): header[key] for key in header if key[:2] in ("CD", "PC")}
    has_cd, has_pc = (any(f"{kind}{i}_{j}" in cards for i in (1, 2) for j in (1, 2)) for kind in ("CD", "PC"))
    if not (has_cd or has_pc or any(f"CDELT{axis}" in header for axis in (1, 2))):
        raise StorageError(f"{where}: its WCS has no pixel scale (no CD, PC or CDELT); solve the astrometry first")
    cd = np.array([[float(cards.get(f"CD{i}_{j}", 0.0)) for j in (1, 2)] for i in (1, 2)])
    if has_cd and np.linalg.det(cd) == 0:
        raise StorageError(f"{where}: its CD matrix {_numbers(cd)} is singular; correct the header")
    if not has_pc:
        return
    steps = [float(header.get(f"CDELT{axis}", 1.0)) for axis in (1, 2)]
    pc = np.array([[float(cards.get(f"PC{i}_{j}", float(i == j))) for j in (1, 2)] for i in (1, 2)])
    product = pc * np.array(steps)[:, None]
    angle = math.radians(float(header.get("CROTA2") or header.get("CROTA1") or 0.0))
    cos, sin = math.cos(angle), math.sin(angle)
    turned = np.array([[steps[0] * cos, -steps[1] * sin], [steps[0] * sin, steps[1] * cos]])
    for name, other in (("CD", cd if has_cd else None), ("CDELT with CROTA", turned if angle and not has_cd else None)):
        if other is not None and np.abs(product - other).max() > SAME_MATRIX * np.abs(other).max():
            raise StorageError(
                f"{where}: two matrices that contradict each other, {name} {_numbers(other)} and PC x CDELT "
                f"{_numbers(product + 0.0)} deg per pixel; remove the one that is left over"
            )


def _standard_header(header: Header, where: str) -> tuple[Header, list[str]]:
    """The header with standard spellings, without what does not belong to its WCS; and a line on each such thing."""
    header, notes = header.copy(), []
    kinds = [str(header[f"CTYPE{axis}"]).strip().upper() for axis in (1, 2)]
    for axis, kind in enumerate(kinds, start=1):
        header[f"CTYPE{axis}"] = kind
    absent = [f"{name}{axis}" for name in ("CRPIX", "CRVAL") for axis in (1, 2) if f"{name}{axis}" not in header]
    if absent:
        notes.append(f"{', '.join(absent)} absent, which the standard takes as 0")
    sip = [keyword for keyword in header if _SIP.fullmatch(keyword)]
    if sip and not any(kind.endswith("-SIP") for kind in kinds):
        order = max(int(header.get(f"{axis}_ORDER", 0) or 0) for axis in "AB")
        for keyword in sip:
            del header[keyword]
        notes.append(
            f"SIP coefficients of order {order} do not count because CTYPE1 {kinds[0]} lacks -SIP (Shupe et al. 2005); "
            f"write {kinds[0]}-SIP if they belong to these pixels"
        )
    with_sip = [kind.endswith("-SIP") for kind in kinds]
    if sip and any(with_sip) and not all(with_sip):
        axis = with_sip.index(False) + 1
        header[f"CTYPE{axis}"] = f"{kinds[axis - 1]}-SIP"
        notes.append(f"CTYPE{axis} {kinds[axis - 1]} lacks -SIP, which the other axis has: SIP counts for both")
    if not sip and any(kind.endswith("-SIP") for kind in kinds):
        notes.append(f"CTYPE1 {kinds[0]} without SIP coefficients means no distortion")
    if kinds[0].startswith(("RA", "DEC")):
        notes += _set_frame(header, where)
    return header, notes


def _set_frame(header: Header, where: str) -> list[str]:
    """Write RADESYS and EQUINOX in their standard form; StorageError if they state no frame that is read."""
    equinox = header.get("EQUINOX", header.get("EPOCH"))
    if isinstance(equinox, str):
        match = re.fullmatch(r"\s*[Jj]?\s*(\d{4}(\.\d*)?)\s*", equinox)
        if match is None and equinox.strip():
            raise StorageError(f"{where}: EQUINOX is {equinox!r}, expected a year such as 2000.0; correct the header")
        equinox = float(match[1]) if match else None
    stated = {key: str(header[key]).strip().upper() for key in ("RADESYS", "RADECSYS") if key in header}
    stated = {key: value for key, value in stated.items() if value}
    for key, value in stated.items():
        if value not in FRAMES:
            raise StorageError(
                f"{where}: {key} is {str(header[key]).strip()}, expected {' or '.join(FRAMES)}; convert the WCS to "
                "ICRS, or correct the header"
            )
    for key in ("RADESYS", "RADECSYS", "EQUINOX", "EPOCH"):
        header.remove(key, ignore_missing=True)
    notes = []
    if len(set(stated.values())) > 1:
        notes.append("RADESYS and RADECSYS are ICRS and FK5, at most 0.023 arcsec apart: ICRS counts")
    # the standard's default: ICRS, or FK5 where an equinox is given (Calabretta & Greisen 2002, section 3.1)
    frame = "ICRS" if "ICRS" in stated.values() else next(iter(stated.values()), "FK5" if equinox else "ICRS")
    if frame == "FK5" and equinox and float(equinox) < 1984 and not stated:
        raise StorageError(
            f"{where}: EQUINOX {equinox:g} without RADESYS means FK4, expected {' or '.join(FRAMES)}; convert the WCS "
            "to ICRS"
        )
    header["RADESYS"] = frame
    if frame == "FK5":
        header["EQUINOX"] = float(equinox) if equinox else 2000.0
    return notes


def _longitude_first(wcs: WCS) -> WCS:
    """The same WCS with its rows exchanged where the latitude comes first; its pixels stay where they are."""
    old, new = wcs.wcs, WCS(naxis=2)
    new.wcs.ctype, new.wcs.crval, new.wcs.cunit = list(old.ctype)[::-1], old.crval[::-1], list(old.cunit)[::-1]
    new.wcs.crpix, new.wcs.pc, new.wcs.cdelt = old.crpix, old.get_pc()[::-1], old.get_cdelt()[::-1]
    new.wcs.lonpole, new.wcs.latpole = old.lonpole, old.latpole
    new.wcs.radesys, new.wcs.equinox = old.radesys, old.equinox
    new.wcs.set_pv([(3 - axis, index, value) for axis, index, value in old.get_pv()])
    if wcs.sip is not None:
        new.sip = Sip(wcs.sip.a, wcs.sip.b, wcs.sip.ap, wcs.sip.bp, wcs.sip.crpix)
    new.wcs.set()
    y, x = np.meshgrid([0.0, 999.0, 1999.0], [0.0, 777.0, 2777.0])
    before, after = wcs.all_pix2world(x, y, 0)[::-1], new.all_pix2world(x, y, 0)
    if not np.allclose(before, after, rtol=0, atol=1e-10, equal_nan=True):
        # wcslib takes TPV's polynomials by the order of the axes
        raise ValueError("declination on axis 1 together with a distortion other than SIP")
    return new


def _turn(header: Header, wcs: WCS, frame: FK5 | Galactic) -> None:
    """Write into `header` the reference point and the poles of a WCS in `frame` after its change to ICRS."""
    reference = SkyCoord(*wcs.wcs.crval, unit="deg", frame=frame).icrs
    pole = SkyCoord(0.0, 90.0, unit="deg", frame="icrs").transform_to(frame).spherical
    lon, lat = _native(wcs, pole)
    header["CRVAL1"], header["CRVAL2"] = reference.ra.deg, reference.dec.deg
    header["LONPOLE"], header["LATPOLE"] = lon, lat
    for axis, (first, length) in enumerate((("RA", 4), ("DEC", 4)), start=1):
        header[f"CTYPE{axis}"] = first.ljust(length, "-") + str(header[f"CTYPE{axis}"])[length:]
    header["RADESYS"] = "ICRS"
    header.remove("EQUINOX", ignore_missing=True)


def _native(wcs: WCS, place: SphericalRepresentation) -> tuple[float, float]:
    """Native longitude and latitude, deg, of a place in the frame of the WCS (Calabretta & Greisen, equation 5)."""
    wcs.wcs.set()
    pole_lon, pole_colat, native_lon = np.radians(wcs.wcs.cel.euler[:3])
    away, lat, pole_lat = place.lon.to_value(u.rad) - pole_lon, place.lat.to_value(u.rad), np.pi / 2 - pole_colat
    along = np.sin(lat) * np.cos(pole_lat) - np.cos(lat) * np.sin(pole_lat) * np.cos(away)
    aside = -np.cos(lat) * np.sin(away)
    up = np.sin(lat) * np.sin(pole_lat) + np.cos(lat) * np.cos(pole_lat) * np.cos(away)
    lon = native_lon + np.arctan2(aside, along)
    return float(np.degrees(lon) % 360), float(np.degrees(np.arctan2(up, np.hypot(aside, along))))


def _frame_text(frame: FK5 | Galactic) -> str:
    return f"FK5 at equinox {frame.equinox.jyear:g}" if isinstance(frame, FK5) else "galactic coordinates"


def _undistorted(
    wcs: WCS, y: NDArray[np.float64], x: NDArray[np.float64], rounds: int = 50
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Solve SIP for pixels (y, x) by Newton's method with steps that are halved until they help; NaN where it fails."""
    target = np.stack([np.ravel(x), np.ravel(y)])
    place, step = target.copy(), np.ones(target.shape[1])
    with np.errstate(all="ignore"):
        miss, slopes = _misfit(wcs, place, target)
        for _ in range(rounds):
            open_ = np.hypot(*miss) > 1e-10
            if not open_.any():
                break
            here = np.flatnonzero(open_)
            trial = place[:, here] - step[here] * _solve(slopes[..., here], miss[:, here])
            trial_miss, trial_slopes = _misfit(wcs, trial, target[:, here])
            better = np.hypot(*trial_miss) < np.hypot(*miss[:, here])
            kept, step[here] = here[better], np.where(better, np.minimum(2 * step[here], 1), step[here] / 4)
            place[:, kept], miss[:, kept] = trial[:, better], trial_miss[:, better]
            slopes[..., kept] = trial_slopes[..., better]
        # beyond the fold of the polynomial the image would be seen in a mirror
        found = (np.hypot(*miss) < 1e-6) & (slopes[0, 0] * slopes[1, 1] - slopes[0, 1] * slopes[1, 0] > 0)
    place[:, ~found] = np.nan
    return place[1].reshape(y.shape), place[0].reshape(y.shape)


def _misfit(
    wcs: WCS, place: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Miss of the undistorted places [2, N] from their targets, and its derivatives [2, 2, N]."""
    here = np.array(wcs.pix2foc(*place, 0))
    slopes = np.stack(
        [(np.array(wcs.pix2foc(place[0] + dx, place[1] + dy, 0)) - here) / 1e-2 for dx, dy in ((1e-2, 0), (0, 1e-2))],
        axis=1,
    )
    return here - target, slopes


def _solve(matrix: NDArray[np.float64], vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve N systems of two equations: [2, 2, N] and [2, N] to [2, N]."""
    (a, b), (c, d) = matrix
    determinant = a * d - b * c
    return np.stack([d * vector[0] - b * vector[1], a * vector[1] - c * vector[0]]) / determinant


def _numbers(matrix: NDArray[np.float64]) -> str:
    return "[" + " ".join(f"{value:.8g}" for value in matrix.ravel()) + "]"


def _one_line(error: BaseException) -> str:
    """The last line of a message, which is where wcslib says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
