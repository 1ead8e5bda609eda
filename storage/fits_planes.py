"""One band of a survey's FITS file as pixels: what each HDU is, its unit, mask and noise, and the level of its sky."""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from astropy.io.fits import Header
from numpy.typing import NDArray

from surveybridge.storage.celestial import (
    celestial_wcs,
    has_celestial_wcs,
    icrs_wcs,
    image_wcs,
    pixel_area,
    wcs_header_string,
)
from surveybridge.storage.cosmic_rays import DOUBTED, REFUSED, RayFinder, contrast_for
from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_checksums import check_sums
from surveybridge.storage.fits_files import open_fits
from surveybridge.storage.fits_hdus import Extension, Role, by_header, extensions
from surveybridge.storage.fits_maps import Flux, mask_of, noise_of
from surveybridge.storage.fits_noise import NoiseMap
from surveybridge.storage.fits_psf import PsfReading, given_psf, psf_beside
from surveybridge.storage.fits_selection import flux_extension, split_extension, unclaimed
from surveybridge.storage.fits_units import calibration, unit_factor
from surveybridge.storage.grids import no_sky_header, pixel_areas, pixel_scale
from surveybridge.storage.images import MASK_PLANES, Box
from surveybridge.storage.photometry import NOTHING, ZERO_AREA, Sky, sky_statistics, zero_areas, zeros_are_frequent
from surveybridge.storage.problems import EndpointTable
from surveybridge.storage.psf import Psf
from surveybridge.storage.readings import Allowances, BandReading
from surveybridge.storage.units import njy_per_unit

log = logging.getLogger(__name__)

Noise = Literal["auto", "file", "scaled", "sky"]
"""Where variances come from; see `fits_images.open_images`."""

MOST_SKY = 2.5
"""Sigma of a pixel by which the level of the sky may differ from 0 if it is to count as subtracted.

Whole images of real surveys are within 1.3 and crowded windows of 64 pixels within 2.3 (`benchmarks/sky_levels.py`)."""

LOW, FILL_SHARE = 5.0, 1e-3
"""Sigma below the sky and share of the pixels from where on one lowest value is a mark of no data, such as -99."""

WEIGHT_SCALE = 3.0
"""Factor by which the sigma of a weight map may differ from that of the sky if the weights are inverse variances."""


@dataclass(frozen=True)
class Request:
    """What holds for all bands of an endpoint; see `fits_images.open_images`."""

    endpoint: EndpointTable
    noise: Noise
    filters: Collection[str]
    numbers: Mapping[str, Mapping[str, Any]]
    allow: Allowances
    storage_options: Mapping[str, Any] | None

    def given(self, quantity: str, band: str) -> Any | None:
        """What the user says of a band: its psf, zero_point, factor, no_data or cosmic_rays; None if nothing."""
        return self.numbers.get(quantity, {}).get(band)

    @property
    def is_flux(self) -> bool:
        """Whether the pixels are flux densities that add up: what has a sky that can be subtracted."""
        return njy_per_unit(self.endpoint["unit"]) is not None and self.endpoint["extensive"]


Planes = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]
"""Flux, variance and mask [H, W], in the endpoint's unit."""


@dataclass(frozen=True, eq=False)
class Plane:
    """One band: what was understood of its file, and how its pixels are had."""

    shape: tuple[int, int]
    read: Callable[[Box], Planes]
    wcs_header: str
    noise_correlation: float
    psf: Psf | None
    reading: BandReading


@dataclass(frozen=True)
class _Settled:
    """What was found out on a sample of a large image, and holds for all parts of it.

    Attributes
    ----------
    band : str
        Its name.
    roles : mapping of int to Role
        By number of the HDU; that of the flux is `number`.
    factor, per_steradian : float, bool
        What a count is worth, and whether by steradian.
    frequent_zeros : bool
        As in `zero_areas`.
    variance : float or None
        Of every pixel; None where the file's map says it.
    map_scale : float
        What the variances of the map are multiplied by.
    level, sigma : float
        What is subtracted from the flux, and the noise of the sky.
    """

    band: str
    number: int
    roles: Mapping[int, Role | None]
    factor: float
    per_steradian: bool
    frequent_zeros: bool
    variance: float | None
    map_scale: float
    level: float
    sigma: float


def read_plane(path: str, band: str, given: Mapping[str, str], request: Request) -> Plane:
    """Read one band; `given` are the maps in files of their own, by what they are. Refusals as `open_images`."""
    endpoint, unit, options = request.endpoint, request.endpoint["unit"], request.storage_options
    njy_of_unit = njy_per_unit(unit)
    file, selector = split_extension(path)
    with open_fits(file, options) as hdus:
        found = extensions(hdus, unit)
        extension = flux_extension(found, file, selector, band)
        where = f"{file}[{extension.label}]"
        if not request.allow.stale_sums:
            check_sums(extension.hdu, where)
            if extension.hdu is not hdus[0]:  # its header may lend a zero point or a WCS
                check_sums(hdus[0], f"{file}[0]")
        header = hdus[0].header.copy(strip=True)
        header.update(extension.hdu.header)
        wcs_header, wcs_note = plane_wcs(extension.hdu.header, hdus[0].header, endpoint, where)
        per_steradian = False
        if njy_of_unit is not None:
            middle = [np.array((n - 1) / 2) for n in extension.size]
            area = float(pixel_area(celestial_wcs(wcs_header), *middle))
            scale = calibration(extension.hdu.header, hdus[0].header, where, area, request.given("zero_point", band))
            factor, zero_point, per_steradian = scale.njy / njy_of_unit, scale.zero_point, scale.per_steradian
            units = ("zero_point", f"{zero_point:g} AB ({scale.source})")
        else:
            given_factor, zero_point = request.given("factor", band), math.nan
            factor = unit_factor(header, unit, endpoint["name"], where) if given_factor is None else given_factor
            by = "" if given_factor is None else ", given by the user"
            units = ("unit", f"BUNIT {header.get('BUNIT', 'absent')}, {factor:g} {unit}{by}")
        on_sky = wcs_header if endpoint["pixel_scale"] or has_celestial_wcs(extension.hdu.header) else ""
        by_pixel = _by_pixel(factor, per_steradian, wcs_header, extension)
        whole = Flux(extension, file, (extension.hdu.header, hdus[0].header), on_sky, by_pixel, unit)
        mask = mask_of(whole, found, given, options)
        noise_map, aside = noise_of(whole, found, given, needed=request.noise != "sky", options=options)
        notes = tuple(f"HDU {other} is not used: nothing says what it is" for other in unclaimed(found, extension))
        notes += (f"noise: {aside}",) if aside else ()
        notes += ("its sums were not checked",) if request.allow.stale_sums else ()
        psf = _psf(whole, found, pixel_scale(wcs_header), request.given("psf", band), options)
        flux = extension.pixels * by_pixel
        marked = _marked(extension, request.given("no_data", band))
    filter_name = str(header.get("FILTER", "not stated")).strip()
    if _is_other_filter(filter_name, band, request.filters):
        raise StorageError(
            f"{where}: its FILTER is {filter_name} but it is given for band {band}; put the files in band order"
        )
    zeros = (zero_areas(flux) if request.is_flux else np.zeros(flux.shape, bool)) | marked
    frequent_zeros = request.is_flux and zeros_are_frequent(flux, zeros)
    bits = _all_bits(flux, mask.mask, noise_map, zeros)
    usable = bits == 0
    if not usable.any():
        raise StorageError(
            f"{where}: 0 of {usable.size} pixels are usable (NaN, masked, exactly 0 or not covered); give another image"
        )
    sky = sky_statistics(flux, usable)
    if request.is_flux:
        _check_fill(flux[usable], sky, where)
    noise_map, map_scale = _scaled(noise_map, flux, usable, where, request)
    variance, noise_note = _variance(noise_map, sky, flux.shape, where, request)
    exact = not variance.any()
    if usable.any() and not np.nanmax(variance[usable]) < np.finfo(np.float32).max:
        largest = float(np.sqrt(np.nanmax(variance[usable])))
        raise StorageError(
            f"{where}: a noise of {largest:.3g} {unit} has a square beyond what tiles hold (float32, up to 3.4e38); "
            "leave out the noise map"
        )
    noise_sigma = float(np.sqrt(np.median(variance[usable])))
    if request.is_flux:
        _check_sky(sky, noise_sigma, where, request)
    level = sky.level if request.is_flux and request.allow.subtract_sky else 0.0
    height, width = extension.size
    finished = functools.partial(_finished, flux - level, variance, bits, sky.sigma)
    read: Callable[[Box], Planes]
    if extension.boxes:
        own_map = noise_map is not None and variance is noise_map.variance
        settled = _Settled(
            band=band,
            number=extension.number,
            roles={ext.number: ext.role for ext in found},
            factor=factor,
            per_steradian=per_steradian,
            frequent_zeros=frequent_zeros,
            variance=None if own_map else float(variance.flat[0]),
            map_scale=map_scale,
            level=level,
            sigma=sky.sigma,
        )
        read = functools.partial(_read_part, file, given, request, wcs_header, settled)
    else:
        read = functools.partial(_part_of, finished())
    rays, unusable = "", float(1 - usable.mean())
    if request.given("cosmic_rays", band):
        contrast = contrast_for(psf.fwhm, pixel_scale(wcs_header), where)
        finder = RayFinder(read, (height, width), noise_sigma, contrast)
        read = finder.masked
        hit = (
            _sample_rays(finder, finished(), extension.boxes) if extension.boxes else finder.rays((0, height, 0, width))
        )
        rays = _ray_words(hit, usable, contrast, bool(extension.boxes), where)
        unusable = float(1 - (usable & ~hit).mean())
    return Plane(
        shape=(height, width),
        read=read,
        wcs_header=wcs_header,
        noise_correlation=0.0 if exact else sky.correlation,
        psf=psf.model,
        reading=BandReading(
            band=band,
            file=where,
            hdu=str(extension),
            filter=filter_name,
            unit=unit,
            calibration=(units,),
            zero_point=zero_point,
            psf_fwhm=psf.fwhm,
            psf_wing=psf.wing,
            psf_source=psf.source,
            noise_source=noise_note,
            noise_sigma=noise_sigma,
            map_sigma=math.nan if noise_map is None else noise_map.sigma,
            uncovered=0.0 if noise_map is None else float(1 - noise_map.covered.mean()),
            sky_level=sky.level,
            sky_sigma=sky.sigma,
            sky_pixels=sky.pixels if request.is_flux else 0,
            sky_subtracted=request.allow.subtract_sky and request.is_flux,
            noise_correlation="0, taken as exact"
            if exact
            else f"{sky.correlation:.3f}, measured on {sky.pixels} sky pixels",
            mask_source=mask.source,
            mask_shares=mask.shares,
            zeros=float(zeros.mean()),
            unusable=unusable,
            wcs=wcs_note,
            cosmic_rays=rays,
            notes=notes,
        ),
    )


def _sample_rays(finder: RayFinder, planes: Planes, boxes: tuple[Box, ...]) -> NDArray[np.bool_]:
    """Cosmic rays in the boxes of a sample, which lie one below the other."""
    ends = np.cumsum([y1 - y0 for y0, y1, _, _ in boxes])[:-1]
    flux, variance, mask = planes
    parts = zip(np.split(flux, ends), np.split(variance, ends), np.split(mask, ends), strict=True)
    return np.concatenate([finder.look_at(part) for part in parts])


def _ray_words(found: NDArray[np.bool_], usable: NDArray[np.bool_], contrast: float, sampled: bool, where: str) -> str:
    """What is said of the cosmic rays that were found; a warning, or a refusal, of more than one believes."""
    pixels = np.count_nonzero(usable)
    share = np.count_nonzero(found) / pixels
    of = f"{pixels} usable pixels{' of a sample' if sampled else ''}"
    doubt = f"{where}: {share:.2%} of {of} are taken for cosmic rays, expected"
    if share > REFUSED:
        raise StorageError(
            f"{doubt} at most {REFUSED:.0%}; is its noise map too low? Scale it by --noise NAME=scaled (or "
            "--euclid-noise scaled), or leave out --cosmic-rays"
        )
    if share > DOUBTED:
        log.warning(
            "%s less than %s unless it is a single exposure; compare noise and PSF with the image, by `surveybridge "
            "inspect`, or leave out --cosmic-rays",
            doubt,
            f"{DOUBTED:.0%}",
        )
    return f"{int(found.sum())} of {of} ({share:.3%}) masked, at a contrast above {contrast:.2f}"


def _psf(
    flux: Flux, found: list[Extension], scale: float, given: str | float | None, options: Mapping[str, Any] | None
) -> PsfReading:
    """What the user says of the PSF, else the file; `given` is a text for `given_psf`, or a FWHM in arcsec."""
    if isinstance(given, str):
        return given_psf(given, scale, options)
    if given is not None:
        return PsfReading(float(given), "given by the user")
    try:
        return psf_beside(flux.extension, flux.headers, found, scale)
    except StorageError as error:
        raise StorageError(f"{flux.where}: {error}") from None


def _is_other_filter(filter_name: str, band: str, filters: Collection[str]) -> bool:
    """Whether a FILTER such as g, HSC-G or `g DECam` is that of another band."""
    words = {filter_name.casefold(), *re.split(r"[^a-z0-9]+", filter_name.casefold())}
    return band.casefold() not in words and any(other.casefold() in words for other in filters)


def _read_part(
    file: str, given: Mapping[str, str], request: Request, wcs_header: str, settled: _Settled, box: Box
) -> Planes:
    """Pixels of a box of a large image: what all of it would have there, if it were read with what is settled."""
    with open_fits(file, request.storage_options) as hdus:
        found = by_header(hdus, request.endpoint["unit"])
        height, width = next(ext.size for ext in found if ext.number == settled.number)
        y0, y1, x0, x1 = box
        # as far around as connected zeros count
        top, left = max(y0 - ZERO_AREA, 0), max(x0 - ZERO_AREA, 0)
        grown = (top, min(y1 + ZERO_AREA, height), left, min(x1 + ZERO_AREA, width))
        found = [
            replace(ext, role=settled.roles[ext.number], boxes=(grown,) if ext.size == (height, width) else ext.boxes)
            for ext in found
        ]
        extension = next(ext for ext in found if ext.number == settled.number)
        factor = _by_pixel(settled.factor, settled.per_steradian, wcs_header, extension)
        headers = (extension.hdu.header, hdus[0].header)
        part = Flux(extension, file, headers, wcs_header, factor, request.endpoint["unit"], checked=True)
        mask = mask_of(part, found, given, request.storage_options)
        needed = request.noise != "sky"
        noise_map, _ = noise_of(part, found, given, needed=needed, options=request.storage_options)
        flux = extension.pixels * factor
        marked = _marked(extension, request.given("no_data", settled.band))
    zeros = zero_areas(flux, frequent=settled.frequent_zeros) if request.is_flux else np.zeros(flux.shape, bool)
    zeros = zeros | marked
    bits = _all_bits(flux, mask.mask, noise_map, zeros)
    constant = settled.variance
    if constant is None:
        assert noise_map is not None, "the map that was settled on is there"
    if noise_map is not None and constant is None:
        variance = noise_map.variance * settled.map_scale
    else:
        variance = np.full(flux.shape, constant)
    planes = _finished(flux - settled.level, variance, bits, settled.sigma)
    return _part_of(planes, (y0 - top, y1 - top, x0 - left, x1 - left))


def _marked(extension: Extension, no_data: float | None) -> NDArray[np.bool_]:
    """Pixels whose value means, as the user says, that there is no data."""
    if no_data is None:
        return np.asarray(False)
    pixels = extension.pixels
    return np.asarray((pixels == no_data) | (pixels == np.float32(no_data)))  # a file of float32 holds its nearest


def _part_of(planes: Planes, box: Box) -> Planes:
    y0, y1, x0, x1 = box
    flux, variance, mask = planes
    return flux[y0:y1, x0:x1], variance[y0:y1, x0:x1], mask[y0:y1, x0:x1]


def _by_pixel(factor: float, per_steradian: bool, wcs_header: str, extension: Extension) -> float | NDArray[np.float64]:
    """What a count is worth in each pixel that is read."""
    return factor * pixel_areas(wcs_header, extension.size, extension.boxes) if per_steradian else factor


def _all_bits(
    flux: NDArray[np.float64], mask: NDArray[np.uint8], noise_map: NoiseMap | None, zeros: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """The mask, with what flux and noise map mark."""
    bits = mask | np.where(zeros | ~np.isfinite(flux), np.uint8(MASK_PLANES["NO_DATA"]), np.uint8(0))
    if noise_map is not None:
        bits[~noise_map.covered & (bits & MASK_PLANES["NO_DATA"] == 0)] |= MASK_PLANES["BAD"]
    return bits


def _finished(
    flux: NDArray[np.float64], variance: NDArray[np.float64], bits: NDArray[np.uint8], sigma: float
) -> Planes:
    """Flux and variance as they are stored; a bad pixel still needs a finite variance, NaN is for NO_DATA alone."""
    unknown = bits & MASK_PLANES["NO_DATA"] != 0
    variance = np.where(np.isfinite(variance) | unknown, variance, sigma**2)
    return (
        np.where(unknown, np.nan, flux).astype(np.float32),
        np.where(unknown, np.nan, variance).astype(np.float32),
        bits,
    )


def _scaled(
    noise_map: NoiseMap | None, flux: NDArray[np.float64], usable: NDArray[np.bool_], where: str, request: Request
) -> tuple[NoiseMap | None, float]:
    """The noise map in agreement with the sky where that is asked for, and the factor of its variances."""
    if noise_map is None or request.noise != "scaled":
        return noise_map, 1.0
    with np.errstate(invalid="ignore", divide="ignore"):
        pulls = flux / np.sqrt(noise_map.variance)
    factor, _, pixels = sky_statistics(pulls, usable)[1:]
    if not factor > NOTHING:
        raise StorageError(
            f"{where}: the sky of {pixels} pixels scatters by {factor:g} times what {noise_map.source} says, expected "
            "more than 0, so the map cannot be scaled to it; is it the flux?"
        )
    source = f"{noise_map.source}, its sigma times {factor:.3g} as {pixels} pixels of the sky have it"
    return replace(noise_map, variance=noise_map.variance * factor**2, source=source), factor**2


def _variance(
    noise_map: NoiseMap | None, sky: Sky, shape: tuple[int, ...], where: str, request: Request
) -> tuple[NDArray[np.float64], str]:
    """Variance of every pixel, NaN without coverage, and where it comes from; 0 of what is taken as exact."""
    noise, unit, is_flux = request.noise, request.endpoint["unit"], njy_per_unit(request.endpoint["unit"]) is not None
    if noise_map is None and noise == "auto" and not is_flux:
        return np.zeros(shape), "none in the file, taken as exact"
    if noise_map is None and noise in ("file", "scaled"):
        raise StorageError(
            f"{where}: no noise map (looked for a variance, an error or RMS map, a weight map); give one in the file, "
            "or apart by --variance, --rms or --weight NAME.BAND=FILE, or measure the noise on the sky"
        )
    agrees = noise_map is not None and 1 / WEIGHT_SCALE < noise_map.sigma / (sky.sigma or np.nan) < WEIGHT_SCALE
    if noise_map is not None and (
        noise in ("file", "scaled") or (noise == "auto" and (not is_flux or noise_map.counts(agrees)))
    ):
        return noise_map.variance, noise_map.source
    if not sky.sigma > NOTHING:
        raise StorageError(
            f"{where}: the noise of its sky is {sky.sigma:g} {unit} (of {sky.pixels} pixels), expected more than 0; is "
            "it the flux? If so, give a noise map"
        )
    found = "none in the file" if noise_map is None else f"in the file: {noise_map.source}, not used"
    return np.full(shape, sky.sigma**2), f"sky MAD of {sky.pixels} pixels, sigma {sky.sigma:.4g} {unit} ({found})"


def _check_fill(values: NDArray[np.float64], sky: Sky, where: str) -> None:
    """Refuse usable pixels that all have one value far below the sky, or of which most have one value."""
    lowest = float(values.min())
    same = np.count_nonzero(values == lowest)
    far = lowest < sky.level - LOW * sky.sigma if sky.sigma > NOTHING else lowest < 0
    if far and same > max(ZERO_AREA, FILL_SHARE * values.size):
        raise StorageError(
            f"{where}: {same} of {values.size} usable pixels are exactly {lowest:.6g}, its lowest value, and the sky "
            f"is at {sky.level:.4g} with noise of {sky.sigma:.4g}: a mark of no data; set them to NaN, or give a mask"
        )


def _check_sky(sky: Sky, sigma: float, where: str, request: Request) -> None:
    """Refuse an image whose sky is not subtracted; `sigma` is that of its noise, which may be more than the sky's."""
    sigma = max(sky.sigma, sigma)
    if request.allow.subtract_sky or not sigma > 0 or abs(sky.level) <= MOST_SKY * sigma:
        return
    raise StorageError(
        f"{where}: the level of its sky is {sky.level:.4g} {request.endpoint['unit']}, {sky.level / sigma:+.1f} times "
        f"the noise of {sigma:.4g}, expected within {MOST_SKY:g}; subtract the sky, or have it done by --subtract-sky"
    )


def plane_wcs(header: Header, primary: Header, endpoint: EndpointTable, where: str) -> tuple[str, str]:
    """The celestial WCS in ICRS and a note; a stand-in for an endpoint that is not on the sky, if its file has none."""
    if endpoint["pixel_scale"] == 0 and not has_celestial_wcs(header):
        return no_sky_header(), ""
    stated = icrs_wcs(image_wcs(header, primary, where), where)
    return wcs_header_string(stated.wcs), "; ".join(stated.notes)
