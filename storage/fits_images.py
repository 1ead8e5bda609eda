"""Read survey images from FITS: Rubin-like (image, variance, mask) and Euclid MER-like (MAGZERO, RMS), into nJy.

A path is a local file or any fsspec URL, plain or RICE-compressed, with the extension to read in brackets where a file
holds several images: `cutout.fits[DES_G_BGSUB]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError
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
from surveybridge.storage.fits_units import calibration
from surveybridge.storage.grids import celestial_wcs, describe_footprint, pixel_scale, pixel_to_pixel, wcs_header_string
from surveybridge.storage.images import MASK_PLANES, SURVEY_BANDS, SurveyImage
from surveybridge.storage.photometry import sky_statistics

Noise = Literal["auto", "file", "sky"]
"""Where variances come from; see `read_rubin`."""


def read_rubin(
    paths: Mapping[str, str],
    *,
    noise: Noise = "auto",
    psf_fwhm: Mapping[str, float] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> SurveyImage:
    """Read one ground-based image, a file (or extension) per band.

    Parameters
    ----------
    paths : mapping of band to path
        Such as {"g": ..., "r": ..., "i": ...}; `FILE[EXT]` names an extension.
    noise : "auto", "file" or "sky"
        Where the variance comes from: "file" = its VARIANCE or RMS extension, "sky" = measured on the image, "auto" =
        VARIANCE where there is one, else the sky, because the RMS maps of ground bands in Euclid's MER products are
        2-5 times the noise that is there.
    psf_fwhm : mapping of band to arcsec, optional
        Overrides what the files say.
    storage_options : mapping, optional
        For fsspec.

    Raises
    ------
    StorageError
        A band is missing; a file, extension, unit, zero point or WCS is missing or wrong; bands differ in grid.
    """
    wanted = SURVEY_BANDS["lsst"]
    missing = [band for band in wanted if band not in paths]
    if missing:
        raise StorageError(
            f"lsst: no file for band {','.join(missing)}: given {','.join(paths) or 'none'}, needed "
            f"{','.join(wanted)}; give one file per band"
        )
    return _assemble("lsst", [_read_plane(paths[band], band, noise, storage_options) for band in wanted], psf_fwhm)


def read_mer(
    flux_path: str,
    rms_path: str | None = None,
    *,
    band: str = "VIS",
    noise: Noise = "file",
    psf_fwhm: float | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> SurveyImage:
    """Read a Euclid image: IMAGE / VARIANCE / MASK in nJy, or MER pixels with MAGZERO and an RMS map.

    Parameters
    ----------
    flux_path : str
        File or `FILE[EXT]`. Without EXT: `IMAGE`, `VIS_FLUX`, `VIS_BGSUB`, or the only image in the file.
    rms_path : str, optional
        RMS map in a file of its own. Default: the extension `<stem>_RMS` or `RMS` beside the flux.
    band : str
    noise : "auto", "file" or "sky"
        As `read_rubin`.
    psf_fwhm : float, optional
        arcsec; overrides what the file says.
    storage_options : mapping, optional
        For fsspec.

    Raises
    ------
    StorageError
        As `read_rubin`.
    """
    plane = _read_plane(flux_path, band, noise, storage_options, rms_path)
    return _assemble("euclid", [plane], None if psf_fwhm is None else {band: psf_fwhm})


@dataclass(frozen=True)
class _Plane:
    """One band as read: [H, W] arrays in nJy and what its headers say."""

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
    path: str, band: str, noise: Noise, storage_options: Mapping[str, Any] | None, rms_path: str | None = None
) -> _Plane:
    file, extension = split_extension(path)
    with open_fits(file, storage_options) as hdus:
        hdu = flux_hdu(hdus, file, extension, band)
        where = f"{file}[{hdu.name or 0}]"
        header = hdus[0].header.copy(strip=True)
        header.update(hdu.header)
        njy, zero_point = calibration(header, where)
        wcs_header = wcs_header_string(celestial_wcs(hdu.header, where))
        flux = native_pixels(hdu.data) * njy
        mask, mask_note = read_mask(hdus, hdu.name, flux.shape, file)
        variance, noise_note = read_variance(hdus, hdu.name, flux.shape, njy, file)
        psf, psf_note = read_psf_fwhm(hdus, hdu.name, header, pixel_scale(wcs_header))
    if rms_path is not None:
        variance, noise_note = read_rms_file(rms_path, flux.shape, njy, storage_options)
    filter_name = str(header.get("FILTER", "not stated")).strip()
    _check_filter(filter_name, band, where)
    mask[~np.isfinite(flux)] |= MASK_PLANES["NO_DATA"]
    if (mask != 0).all():
        raise StorageError(f"{where}: 0 of {mask.size} pixels are usable (NaN or masked); give another image")
    sky = sky_statistics(flux, mask == 0)
    if noise == "sky" or (noise == "auto" and noise_note != VARIANCE_NOTE):
        noise_note = f"sky MAD of {sky.pixels} pixels, sigma {sky.sigma:.4g} nJy (in the file: {noise_note}, not used)"
        variance = np.full(flux.shape, sky.sigma**2)
    if variance is None:
        raise StorageError(
            f"{where}: no noise map (looked for VARIANCE, {stem_of(hdu.name)}_RMS, RMS); give one in the file or apart"
        )
    unknown = mask & MASK_PLANES["NO_DATA"] != 0
    noiseless = ~(np.isfinite(variance) & (variance > 0)) & ~unknown
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
            f"{band}.zero_point": f"{zero_point:g} AB",
            f"{band}.noise": noise_note,
            f"{band}.noise_correlation": f"{sky.correlation:.3f}, measured on {sky.pixels} sky pixels",
            f"{band}.psf_fwhm": psf_note,
            f"{band}.mask": mask_note,
        },
    )


def _check_filter(name: str, band: str, where: str) -> None:
    """Refuse a file of one survey band given for another; filters of other telescopes may stand in."""
    known = [b for bands in SURVEY_BANDS.values() for b in bands]
    if name in known and name != band:
        raise StorageError(
            f"{where}: its FILTER is {name} but it is given for band {band}; put the files in band order"
        )


def _assemble(survey: str, planes: list[_Plane], psf_fwhm: Mapping[str, float] | None) -> SurveyImage:
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
    override = psf_fwhm or {}
    provenance = {key: value for plane in planes for key, value in plane.provenance.items()}
    provenance |= {f"{band}.psf_fwhm": "given by the user" for band in override}
    return SurveyImage(
        survey=survey,
        bands=tuple(plane.band for plane in planes),
        flux=np.stack([plane.flux for plane in planes]),
        variance=np.stack([plane.variance for plane in planes]),
        mask=np.stack([plane.mask for plane in planes]),
        wcs_header=first.wcs_header,
        pixel_scale=pixel_scale(first.wcs_header),
        psf_fwhm=tuple(float(override.get(plane.band, plane.psf_fwhm)) for plane in planes),
        zero_point=first.zero_point,
        noise_correlation=tuple(plane.noise_correlation for plane in planes),
        provenance=provenance,
    )


def _grid_offset(first: str, second: str, shape: tuple[int, ...]) -> float:
    """Largest distance, pixels, between the corners of two grids."""
    y, x = np.meshgrid([0.0, shape[0] - 1], [0.0, shape[1] - 1], indexing="ij")
    there_y, there_x = pixel_to_pixel(celestial_wcs(first), celestial_wcs(second), y, x)
    return float(np.hypot(there_y - y, there_x - x).max())


def _footprint(plane: _Plane) -> str:
    height, width = plane.flux.shape
    return describe_footprint(celestial_wcs(plane.wcs_header), (height, width))
