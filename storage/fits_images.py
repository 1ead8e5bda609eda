"""Read images from FITS: Rubin-like (image, variance, mask) and Euclid MER-like (MAGZERO, RMS), into a problem's unit.

A path is a local file or any fsspec URL, plain or RICE-compressed, with the extension to read in brackets where a file
holds several images: `cutout.fits[DES_G_BGSUB]`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from astropy.io.fits import Header
from astropy.wcs import WCS
from numpy.typing import NDArray

from surveybridge.storage.celestial import (
    celestial_wcs,
    has_celestial_wcs,
    icrs_wcs,
    image_wcs,
    pixel_area,
    wcs_header_string,
)
from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_checksums import check_sums
from surveybridge.storage.fits_hdus import (
    VARIANCE_NOTE,
    flux_hdu,
    native_pixels,
    open_fits,
    read_mask,
    read_psf_fwhm,
    read_rms_file,
    read_variance,
    split_extension,
    stem_of,
)
from surveybridge.storage.fits_units import calibration, unit_factor
from surveybridge.storage.grids import (
    describe_footprint,
    pixel_areas,
    pixel_scale,
    pixel_to_pixel,
)
from surveybridge.storage.images import MASK_PLANES, SurveyImage
from surveybridge.storage.photometry import sky_statistics
from surveybridge.storage.problems import EndpointTable
from surveybridge.storage.units import njy_per_unit

log = logging.getLogger(__name__)

Noise = Literal["auto", "file", "sky"]
"""Where variances come from; see `read_images`."""

SAME_SCALE = 0.01
"""Bands whose pixel scales differ by less lie on one grid, or should."""

NO_SKY_SCALE = 1.0
"""arcsec per pixel of the WCS that stands in where an endpoint has no place on the sky."""


def read_image(endpoint: EndpointTable, paths: Mapping[str, str], **how: Any) -> SurveyImage:
    """Read the image of an endpoint whose bands share one pixel grid; arguments and refusals as `read_images`."""
    image, *more = read_images(endpoint, paths, **how)
    if more:
        raise StorageError(
            f'{endpoint["name"]}: band {more[0].bands[0]} has pixels of {more[0].pixel_scale:.3g}" but '
            f'{image.bands[0]} of {image.pixel_scale:.3g}"; ingest brings them onto one grid'
        )
    return image


def read_images(
    endpoint: EndpointTable,
    paths: Mapping[str, str],
    *,
    noise: Noise = "auto",
    psf_fwhm: Mapping[str, float] | None = None,
    rms: Mapping[str, str] | None = None,
    filters: Collection[str] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> list[SurveyImage]:
    """Read the images of an endpoint, a file (or extension) per band.

    Parameters
    ----------
    endpoint : EndpointTable
        Bands, unit and the rest.
    paths : mapping of band to path
        Such as {"g": ..., "r": ..., "i": ...}; `FILE[EXT]` names an extension. Without EXT: `IMAGE`, `<BAND>_FLUX`,
        `<BAND>_BGSUB`, or the only image in the file.
    noise : "auto", "file" or "sky"
        Where the variance comes from: "file" = its VARIANCE or RMS extension, "sky" = measured on the image, "auto" =
        VARIANCE where there is one, else the sky, because the RMS maps of ground bands in Euclid's MER products are
        2-5 times the noise that is there. Of what is no flux, "auto" takes an RMS extension too, and none as exact.
    psf_fwhm : mapping of band to arcsec, optional
        Overrides what the files say.
    rms : mapping of band to path, optional
        RMS maps in files of their own, which count unless `noise` is "sky". Default: the extension `<stem>_RMS` or
        `RMS` beside the flux.
    filters : collection of str
        Further names, beside the endpoint's bands, that a file's FILTER must not have if it is given for another band.
    storage_options : mapping, optional
        For fsspec.

    Returns
    -------
    list of SurveyImage
        One image for each pixel grid, that of the first band first: bands with other pixels than the first have an
        image each.

    Raises
    ------
    StorageError
        A band is missing; a file, extension, unit, zero point or WCS is missing or wrong; bands of one pixel scale
        differ in grid.
    """
    bands, psf_fwhm, rms = endpoint["bands"], psf_fwhm or {}, rms or {}
    missing = [band for band in bands if band not in paths]
    if missing:
        raise StorageError(
            f"{endpoint['name']}: no file for band {','.join(missing)}: given {','.join(paths) or 'none'}, needed "
            f"{','.join(bands)}; give one file per band"
        )
    for what, given in (("file", paths), ("PSF width", psf_fwhm), ("RMS map", rms)):
        unknown = [band for band in given if band not in bands]
        if unknown:
            raise StorageError(
                f"{endpoint['name']}: a {what} for band {','.join(unknown)}, which is not one of its bands "
                f"{','.join(bands)}; leave it out"
            )
    known = {*bands, *filters}
    planes = [_read_plane(paths[band], band, endpoint, noise, known, rms.get(band), storage_options) for band in bands]
    scale = pixel_scale(planes[0].wcs_header)
    apart = [plane for plane in planes if abs(pixel_scale(plane.wcs_header) / scale - 1) > SAME_SCALE]
    groups = [[plane for plane in planes if plane not in apart], *([plane] for plane in apart)]
    return [_assemble(endpoint, group, psf_fwhm) for group in groups]


@dataclass(frozen=True, eq=False)
class _Plane:
    """One band as it was read: [H, W] arrays in the endpoint's unit, and the contents of its headers."""

    name: str
    band: str
    flux: NDArray[np.float32]
    variance: NDArray[np.float32]
    mask: NDArray[np.uint8]
    wcs_header: str
    psf_fwhm: float
    zero_point: float
    noise_correlation: float
    provenance: dict[str, str]


def _read_plane(
    path: str,
    band: str,
    endpoint: EndpointTable,
    noise: Noise,
    filters: Collection[str],
    rms_path: str | None,
    storage_options: Mapping[str, Any] | None,
) -> _Plane:
    unit, njy_of_unit = endpoint["unit"], njy_per_unit(endpoint["unit"])
    file, extension = split_extension(path)
    with open_fits(file, storage_options) as hdus:
        hdu = flux_hdu(hdus, file, extension, band)
        where = f"{file}[{hdu.name or 0}]"
        check_sums(hdu, where)
        header = hdus[0].header.copy(strip=True)
        header.update(hdu.header)
        wcs_header, wcs_note = _wcs_header(hdu.header, hdus[0].header, endpoint, where)
        factor: float | NDArray[np.float64]
        if njy_of_unit is not None:
            middle = [np.array((n - 1) / 2) for n in hdu.shape]
            area = float(pixel_area(celestial_wcs(wcs_header), *middle))
            scale = calibration(hdu.header, hdus[0].header, where, area)
            factor, zero_point = scale.njy / njy_of_unit, scale.zero_point
            if scale.per_steradian:
                factor = factor * pixel_areas(wcs_header, hdu.shape)
            units = {"zero_point": f"{zero_point:g} AB"}
        else:
            factor, zero_point = unit_factor(header, unit, endpoint["name"], where), math.nan
            units = {"unit": f"BUNIT {header.get('BUNIT', 'absent')}, {factor:g} {unit}"}
        flux = native_pixels(hdu.data) * factor
        mask, mask_note = read_mask(hdus, hdu.name, flux.shape, file)
        variance, noise_note = read_variance(hdus, hdu.name, flux.shape, factor, file)
        psf, psf_note = read_psf_fwhm(hdus, hdu.name, header, pixel_scale(wcs_header))
    if rms_path is not None:
        variance, noise_note = read_rms_file(rms_path, flux.shape, factor, storage_options)
    filter_name = str(header.get("FILTER", "not stated")).strip()
    if filter_name in filters and filter_name != band:
        raise StorageError(
            f"{where}: its FILTER is {filter_name} but it is given for band {band}; put the files in band order"
        )
    mask[~np.isfinite(flux)] |= MASK_PLANES["NO_DATA"]
    if (mask != 0).all():
        raise StorageError(f"{where}: 0 of {mask.size} pixels are usable (NaN or masked); give another image")
    exact = variance is None and noise == "auto" and njy_of_unit is None
    trusted = noise_note == VARIANCE_NOTE or rms_path is not None or njy_of_unit is None
    sky = sky_statistics(flux, mask == 0)
    correlation_note = f"{sky.correlation:.3f}, measured on {sky.pixels} sky pixels"
    if exact:
        sky, correlation_note = sky._replace(correlation=0.0), "0, taken as exact"
        noise_note, variance = "none in the file, taken as exact", np.zeros(flux.shape)
    elif noise == "sky" or (noise == "auto" and not trusted):
        noise_note = (
            f"sky MAD of {sky.pixels} pixels, sigma {sky.sigma:.4g} {unit} (in the file: {noise_note}, not used)"
        )
        variance = np.full(flux.shape, sky.sigma**2)
    if variance is None:
        raise StorageError(
            f"{where}: no noise map (looked for VARIANCE, {stem_of(hdu.name)}_RMS, RMS); give one in the file or apart"
        )
    unknown = mask & MASK_PLANES["NO_DATA"] != 0
    noiseless = ~(np.isfinite(variance) & ((variance > 0) | exact)) & ~unknown
    mask[noiseless] |= MASK_PLANES["BAD"]
    # a bad pixel still needs a finite variance: the store keeps NaN for NO_DATA alone
    variance = np.where(noiseless, sky.sigma**2, variance)
    return _Plane(
        name=where,
        band=band,
        flux=np.where(unknown, np.nan, flux).astype(np.float32),
        variance=np.where(unknown, np.nan, variance).astype(np.float32),
        mask=mask,
        wcs_header=wcs_header,
        psf_fwhm=psf,
        zero_point=zero_point,
        noise_correlation=sky.correlation,
        provenance={
            f"{band}.file": where,
            f"{band}.filter": filter_name,
            **{f"{band}.{key}": note for key, note in units.items()},
            f"{band}.noise": noise_note,
            f"{band}.noise_correlation": correlation_note,
            f"{band}.psf_fwhm": psf_note,
            f"{band}.mask": mask_note,
            **({f"{band}.wcs": wcs_note} if wcs_note else {}),
        },
    )


def _wcs_header(header: Header, primary: Header, endpoint: EndpointTable, where: str) -> tuple[str, str]:
    """The celestial WCS in ICRS and a note; a stand-in for an endpoint that is not on the sky, if its file has none."""
    if endpoint["pixel_scale"] == 0 and not has_celestial_wcs(header):
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval, wcs.wcs.crpix = [0, 0], [1, 1]
        wcs.wcs.cdelt = [-NO_SKY_SCALE / 3600, NO_SKY_SCALE / 3600]
        wcs.wcs.radesys = "ICRS"
        return wcs_header_string(wcs), ""
    stated = icrs_wcs(image_wcs(header, primary, where), where)
    for note in stated.notes:
        log.info("%s: %s", where, note)
    return wcs_header_string(stated.wcs), "; ".join(stated.notes)


def _assemble(endpoint: EndpointTable, planes: list[_Plane], psf_fwhm: Mapping[str, float]) -> SurveyImage:
    """Put bands together, which must share one grid."""
    first = planes[0]
    names = [plane.name for plane in planes]
    for plane in planes[1:]:
        if plane.flux.shape != first.flux.shape:
            raise StorageError(
                f"{plane.name}: {plane.flux.shape[0]} x {plane.flux.shape[1]} pixels but {first.name} has "
                f"{first.flux.shape[0]} x {first.flux.shape[1]}; give bands of the same patch"
            )
        off = _grid_offset(plane.wcs_header, first.wcs_header, first.flux.shape)
        if not off < 0.01:
            raise StorageError(
                f"{plane.name}: its grid is {off:.3g} px off that of {first.name} "
                f"({_footprint(plane)} against {_footprint(first)}); give bands of the same patch"
            )
        if names.count(plane.name) > 1:
            raise StorageError(f"{plane.name}: given for {names.count(plane.name)} bands; give one file per band")
    provenance = {key: value for plane in planes for key, value in plane.provenance.items()}
    provenance |= {f"{plane.band}.psf_fwhm": "given by the user" for plane in planes if plane.band in psf_fwhm}
    return SurveyImage(
        survey=endpoint["name"],
        bands=tuple(plane.band for plane in planes),
        flux=np.stack([plane.flux for plane in planes]),
        variance=np.stack([plane.variance for plane in planes]),
        mask=np.stack([plane.mask for plane in planes]),
        wcs_header=first.wcs_header,
        pixel_scale=pixel_scale(first.wcs_header),
        psf_fwhm=tuple(float(psf_fwhm.get(plane.band, plane.psf_fwhm)) for plane in planes),
        zero_point=first.zero_point,
        noise_correlation=tuple(plane.noise_correlation for plane in planes),
        provenance=provenance,
        unit=endpoint["unit"],
        extensive=endpoint["extensive"],
    )


def _grid_offset(first: str, second: str, shape: tuple[int, ...]) -> float:
    """Largest distance, pixels, between the corners of two grids."""
    y, x = np.meshgrid([0.0, shape[0] - 1], [0.0, shape[1] - 1], indexing="ij")
    there_y, there_x = pixel_to_pixel(celestial_wcs(first), celestial_wcs(second), y, x)
    return float(np.hypot(there_y - y, there_x - x).max())


def _footprint(plane: _Plane) -> str:
    height, width = plane.flux.shape
    return describe_footprint(celestial_wcs(plane.wcs_header), (height, width))
