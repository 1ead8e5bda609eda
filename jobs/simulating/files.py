"""Simulated images as FITS files, and the truth about their objects as a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

PSF_PIXELS = 41
"""Side of the image of a PSF."""

if TYPE_CHECKING:
    import pyarrow as pa
    from astropy.io import fits

    from surveybridge.jobs.simulating.observing import Instrument, Observing
    from surveybridge.jobs.simulating.population import Catalogue
    from surveybridge.jobs.simulating.sky import Frame, SkyPositions


def to_hdus(
    frame: Frame,
    instrument: Instrument,
    planes: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]],
    lenses: int,
    seed: int,
    observing: Observing | None = None,
) -> fits.HDUList:
    """FITS of one band: primary header with the instrument, then IMAGE, VARIANCE and MASK, RICE-compressed.

    Parameters
    ----------
    frame : Frame
    instrument : Instrument
    planes : (flux, variance, mask)
        As `simulating.sky.observe` returns them, [ny, nx] in nJy, nJy^2 and bits.
    lenses : int
        How many strong lenses were injected.
    seed : int
        Of everything that was drawn.
    observing : Observing, optional
        The conditions of the pair, which the header states, unless they are the ideal ones.
    """
    from astropy.io import fits

    ideal = observing is None or observing.name == "ideal"

    primary = fits.PrimaryHDU()
    for key, value, comment in (
        ("TELESCOP", instrument.survey, "simulated"),
        ("FILTER", instrument.band, ""),
        ("BUNIT", "nJy", "per pixel"),
        ("MAGZERO", 31.4, "AB"),
        ("PIXSCALE", instrument.pixel_scale, "arcsec"),
        ("PSFFWHM", instrument.psf_fwhm, f"arcsec, {instrument.psf_kind.capitalize()}, without the pixel"),
        ("SKYSIG", instrument.sky_sigma, "nJy per pixel"),
        ("GAIN", instrument.gain, "e- per nJy"),
        ("SATLEVEL", instrument.saturation, "nJy per pixel"),
        ("NLENS", lenses, "injected lenses"),
        ("SEED", seed, ""),
        ("ORIGIN", "surveybridge simulate", "not an observation"),
    ):
        primary.header[key] = (value, comment)
    if observing is not None and not ideal:
        for key, value, comment in _conditions(instrument, observing):
            primary.header[key] = (value, comment)
    hdus: list[fits.hdu.base._BaseHDU] = [primary]
    for name, data, unit in zip(("IMAGE", "VARIANCE", "MASK"), planes, ("nJy", "nJy2", None), strict=True):
        header = _wcs_cards(frame)
        if unit is not None:
            header["BUNIT"] = unit
        if name == "IMAGE":
            header["MAGZERO"] = 31.4
        if name == "MASK":
            header["MP_BAD"] = (0, "bit: bad column")
            header["MP_SAT"] = (1, "bit: saturated")
            header["MP_NODAT"] = (2, "bit: no data")
            if not ideal:
                header["MP_CR"] = (3, "bit: cosmic ray")
        hdus.append(
            fits.CompImageHDU(
                data,
                header,
                name=name,
                compression_type="RICE_1",
                # IMAGE to sigma/16, which adds 0.02% to the noise. VARIANCE to 0.001 nJy2: where it is constant there
                # is no noise to measure, and the codec would fall back on gzip, which writes the time into the file.
                quantize_level=-0.001 if name == "VARIANCE" else 16.0,
                quantize_method=2,  # subtractive dither that keeps exact zeros
                dither_seed=1 + seed % 10_000,
            )
        )
    if not ideal and math.isnan(instrument.beta):
        hdus.append(_psf_hdu(instrument))
    return fits.HDUList(hdus)


def _conditions(instrument: Instrument, observing: Observing) -> list[tuple[str, str | float, str]]:
    """Cards that say under which conditions a band was observed."""
    cards: list[tuple[str, str | float, str]] = [
        ("SKYNAME", observing.name, "observing conditions"),
        ("PSFKIND", instrument.psf_kind, ""),
        ("SKYCORR", instrument.correlation, "noise correlation of neighbouring pixels"),
        ("SKYLEVEL", instrument.sky_residual, "left by sky subtraction, in SKYSIG"),
    ]
    if math.isfinite(instrument.beta):
        cards.append(("PSFBETA", instrument.beta, "Moffat beta of the wings"))
    if instrument.survey == "LSST":
        offset = observing.registration
        cards += [
            ("REGEAST", offset.east, "arcsec, objects stand off their WCS positions"),
            ("REGNORTH", offset.north, "arcsec"),
            ("REGROT", offset.rotation, "deg, north to east"),
        ]
    return cards


def _psf_hdu(instrument: Instrument) -> fits.ImageHDU:
    """Image of a PSF that no profile describes, seen through the pixels."""
    import galsim
    from astropy.io import fits

    from surveybridge.jobs.simulating.point_spread import profile_of

    stamp = galsim.ImageD(PSF_PIXELS, PSF_PIXELS, scale=instrument.pixel_scale)
    # rounded, since the last bits of a Fourier drawing depend on where in memory it lies
    values = np.round(profile_of(instrument).drawImage(stamp).array, 9).astype(np.float32)
    hdu = fits.ImageHDU(values, name="PSF")
    hdu.header["PIXSCALE"] = (instrument.pixel_scale, "arcsec")
    return hdu


def truth_table(catalogue: Catalogue, sky: SkyPositions, euclid: Frame, lsst: Frame) -> pa.Table:
    """One row an object, with units and descriptions in the fields' metadata.

    Parameters
    ----------
    catalogue : Catalogue
    sky : (ra, dec)
        Degrees, [N] each.
    euclid, lsst : Frame
    """
    import pyarrow as pa

    from surveybridge.jobs.simulating.population import BANDS, nanojansky

    x_vis, y_vis = euclid.pixels(*sky)
    x_lsst, y_lsst = lsst.pixels(*sky)
    e = (1 - catalogue["q"]) / (1 + catalogue["q"])
    table: dict[str, tuple[NDArray[Any] | list[str], str, str]] = {
        "id": ([f"sim-{k:05d}" for k in range(len(x_vis))], "", "name"),
        "kind": (catalogue["kind"].tolist(), "", "galaxy, star or lens"),
        "ra": (sky[0], "deg", "right ascension, ICRS"),
        "dec": (sky[1], "deg", "declination, ICRS"),
        "x_vis": (x_vis, "pix", "column in the Euclid image, first pixel 0"),
        "y_vis": (y_vis, "pix", "row in the Euclid image, first pixel 0"),
        "x_lsst": (x_lsst, "pix", "column in the LSST images, first pixel 0"),
        "y_lsst": (y_lsst, "pix", "row in the LSST images, first pixel 0"),
        "z": (catalogue["z"], "", "redshift"),
        "red": (catalogue["red"], "", "an old, red galaxy"),
        "re": (catalogue["re"], "arcsec", "half-light radius in i, circularised, before the PSF"),
        "sersic_n": (catalogue["sersic_n"], "", "Sersic index (of the disc where there is a bulge, whose index is 4)"),
        "bulge_fraction": (catalogue["bulge_fraction"], "", "share of the i flux in the bulge"),
        "q": (catalogue["q"], "", "axis ratio (of the disc where there is a bulge)"),
        "e1": (e * np.cos(2 * catalogue["angle"]), "", "(1-q)/(1+q) along the Euclid pixel axes"),
        "e2": (e * np.sin(2 * catalogue["angle"]), "", "(1-q)/(1+q) at 45 degrees from them"),
        "pa_deg": ((np.rad2deg(catalogue["angle"]) - 90) % 180, "deg", "position angle from north to east"),
    }
    for band in BANDS:
        magnitude = catalogue[f"mag_{band}"]
        table[f"mag_{band}"] = (magnitude, "mag", "AB; of a lens: its deflector alone")
        table[f"flux_{band}"] = (nanojansky(magnitude), "nJy", "of a lens: its deflector alone")
    for name, unit, text in (
        ("z_source", "", "redshift of the source"),
        ("theta_E", "arcsec", "Einstein radius of the SIE"),
        ("gamma1", "", "external shear along the Euclid pixel axes"),
        ("gamma2", "", "external shear at 45 degrees from them"),
        ("magnification", "", "lensed over unlensed flux"),
        ("arc_snr_vis", "", "S/N of the arcs in VIS, in pixels above the sky noise"),
        ("n_images", "", "images of the source's centre"),
    ):
        table[name] = (catalogue[name], unit, text)
    for band in BANDS:
        table[f"lensed_mag_{band}"] = (catalogue[f"lensed_mag_{band}"], "mag", "AB, all images of the source together")
        table[f"lensed_flux_{band}"] = (nanojansky(catalogue[f"lensed_mag_{band}"]), "nJy", "all images of the source")
    arrays = {name: pa.array(values, from_pandas=name != "id") for name, (values, _, _) in table.items()}
    fields = [
        pa.field(name, arrays[name].type, metadata={"unit": unit, "description": text})
        for name, (_, unit, text) in table.items()
    ]
    return pa.table(list(arrays.values()), schema=pa.schema(fields))


def half_of(frame: Frame) -> float:
    """Half the side, in arcsec, of the north-up square that holds the frame."""
    corners = frame.jacobian @ (np.array([[-1, -1, 1, 1], [-1, 1, -1, 1]]) * np.array(frame.shape[::-1])[:, None] / 2)
    return float(np.abs(corners).max())


def _wcs_cards(frame: Frame) -> fits.Header:
    """The WCS as CD-matrix cards, the way both surveys write it."""
    from astropy.io import fits

    wcs, header = frame.wcs.wcs, fits.Header()
    for axis in (1, 2):
        header[f"CTYPE{axis}"] = wcs.ctype[axis - 1]
        header[f"CUNIT{axis}"] = "deg"
        header[f"CRVAL{axis}"] = wcs.crval[axis - 1]
        header[f"CRPIX{axis}"] = wcs.crpix[axis - 1]
        for other in (1, 2):
            header[f"CD{axis}_{other}"] = wcs.cd[axis - 1, other - 1]
    header["RADESYS"] = "ICRS"
    header["EQUINOX"] = 2000.0
    return header
