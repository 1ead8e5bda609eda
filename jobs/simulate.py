"""Write FITS images of a small field as the two surveys would deliver it, with its truth table.

Euclid VIS (0.1 arcsec, north up) and LSST g, r, i (0.2 arcsec, rotated and shifted), each with the HDUs IMAGE,
VARIANCE and MASK, RICE-compressed; galaxies in blends, stars, strong lenses; NaN edges, bad columns and saturated
stars. The same seed gives the same files, byte for byte.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError

if TYPE_CHECKING:
    import pyarrow as pa
    from astropy.io import fits

    from surveybridge.jobs.simulating.population import Catalogue
    from surveybridge.jobs.simulating.sky import Frame, Instrument, SkyPositions

EXAMPLES = """\
surveybridge simulate --out sky
surveybridge simulate --out sky --size 2048 --lenses 8 --seed 7
surveybridge simulate --out sky --rotation 12 --overwrite
"""

CENTRE = (61.241, -48.423)
"""ra, dec of the field, degrees: where the Euclid Deep Field South is."""
OFFSET = (3.7, -2.9)
"""Offset of the LSST grid's centre towards east and north, arcsec."""
MIN_SIZE, MAX_SIZE, MAX_ROTATION = 300, 8192, 45.0
FILES = {"VIS": "euclid_vis.fits", "g": "lsst_g.fits", "r": "lsst_r.fits", "i": "lsst_i.fits"}

log = logging.getLogger(__name__)


class Config(JobConfig):
    """What to simulate."""

    out: Path = Field(description="folder for euclid_vis.fits, lsst_{g,r,i}.fits and truth.parquet")
    size: int = Field(1024, description="side of the Euclid image in pixels of 0.1 arcsec, 300 to 8192")
    lenses: int = Field(4, description="number of strong lenses with visible arcs; they stand 12 arcsec apart")
    seed: int = Field(1, description="seed of everything that is drawn")
    rotation: float = Field(-4.5, description="rotation of the LSST grid on the sky, degrees")
    overwrite: bool = Field(False, description="write into a folder that already holds these files")


def run(config: Config) -> int:
    """Draw the sky, observe it with both surveys, write the files.

    Returns
    -------
    int
        Exit code 0.

    Raises
    ------
    RequestError
        If the request is impossible; nothing has been written then.
    """
    _check(config)
    try:
        from surveybridge.jobs.simulating import sky as simulated_sky
    except ModuleNotFoundError as missing:
        raise RequestError(
            f"simulate needs the package {missing.name}, which is not installed; pip install 'surveybridge[sim]'"
        ) from None
    import pyarrow.parquet as pq

    from surveybridge.jobs.simulating.lenses import draw_lenses
    from surveybridge.jobs.simulating.population import concatenate, draw_galaxies, draw_stars, take

    started = time.perf_counter()
    euclid = simulated_sky.euclid_frame(CENTRE, config.size)
    lsst = simulated_sky.lsst_frame(CENTRE, config.size, config.rotation, OFFSET)
    half = 0.05 * config.size
    reach = half_of(lsst) + max(map(abs, OFFSET)) + 4.0

    lenses, arcs = draw_lenses(_stream(config.seed, 0), config.lenses, half - _LENS_MARGIN)
    places = np.stack([lenses["u"], lenses["v"]], axis=-1)
    galaxies = draw_galaxies(_stream(config.seed, 1), reach)
    for u, v in places:  # no bright galaxy on top of a lens: the deflector is one already
        near = np.hypot(galaxies["u"] - u, galaxies["v"] - v) < 2.5
        galaxies = take(galaxies, ~(near & (galaxies["mag_i"] < 23.0)))
    stars = draw_stars(_stream(config.seed, 2), reach, 0.9 * half, places)
    catalogue = concatenate(galaxies, stars, lenses)
    sky = simulated_sky.sky_positions(euclid, catalogue["u"], catalogue["v"])
    arcs_sky = simulated_sky.sky_positions(euclid, lenses["u"], lenses["v"])
    log.info("%d galaxies, %d stars, %d lenses", len(galaxies["u"]), len(stars["u"]), len(arcs))

    config.out.mkdir(parents=True, exist_ok=True)
    for number, instrument in enumerate(simulated_sky.INSTRUMENTS):
        frame = euclid if instrument.survey == "Euclid" else lsst
        model = simulated_sky.render(frame, instrument, catalogue, arcs, sky, arcs_sky)
        planes = simulated_sky.observe(model, instrument, _stream(config.seed, 3 + number))
        path = config.out / FILES[instrument.band]
        to_hdus(frame, instrument, planes, config).writeto(path, overwrite=True)
        log.info("%s: %d x %d pixels", path, *frame.shape[::-1])
    pq.write_table(truth_table(catalogue, sky, euclid, lsst), config.out / "truth.parquet", compression="zstd")
    log.info("%s: %d objects, %.1f s in all", config.out / "truth.parquet", len(sky[0]), time.perf_counter() - started)
    return 0


def to_hdus(
    frame: Frame,
    instrument: Instrument,
    planes: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]],
    config: Config,
) -> fits.HDUList:
    """FITS of one band: primary header with the instrument, then IMAGE, VARIANCE and MASK, RICE-compressed.

    Parameters
    ----------
    frame : Frame
    instrument : Instrument
    planes : (flux, variance, mask)
        As `simulated_sky.observe` returns them, [ny, nx] in nJy, nJy^2 and bits.
    config : Config
    """
    from astropy.io import fits

    primary = fits.PrimaryHDU()
    for key, value, comment in (
        ("TELESCOP", instrument.survey, "simulated"),
        ("FILTER", instrument.band, ""),
        ("BUNIT", "nJy", "per pixel"),
        ("MAGZERO", 31.4, "AB"),
        ("PIXSCALE", instrument.pixel_scale, "arcsec"),
        ("PSFFWHM", instrument.psf_fwhm, "arcsec, Gaussian, without the pixel"),
        ("SKYSIG", instrument.sky_sigma, "nJy per pixel"),
        ("GAIN", instrument.gain, "e- per nJy"),
        ("SATLEVEL", instrument.saturation, "nJy per pixel"),
        ("NLENS", config.lenses, "injected lenses"),
        ("SEED", config.seed, ""),
        ("ORIGIN", "surveybridge simulate", "not an observation"),
    ):
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
                dither_seed=1 + config.seed % 10_000,
            )
        )
    return fits.HDUList(hdus)


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


_LENS_MARGIN = 10.0
"""Lenses stay this far inside the Euclid frame, arcsec: clear of its edge and of the part without data."""


def _check(config: Config) -> None:
    """Refuse what cannot be done, before anything is written."""
    from surveybridge.jobs.simulating.lenses import room_for_lenses

    if not MIN_SIZE <= config.size <= MAX_SIZE:
        raise RequestError(f"--size {config.size} pixels is outside {MIN_SIZE} to {MAX_SIZE}; choose one within")
    if abs(config.rotation) > MAX_ROTATION:
        raise RequestError(f"--rotation {config.rotation} deg exceeds {MAX_ROTATION:.0f} either way; choose less")
    if config.seed < 0:
        raise RequestError(f"--seed {config.seed} is below 0; choose 0 or more")
    room = room_for_lenses(0.05 * config.size - _LENS_MARGIN)
    if not 0 <= config.lenses <= room:
        raise RequestError(
            f"--lenses {config.lenses} is outside 0 to {room}, what {config.size} x {config.size} pixels hold "
            "12 arcsec apart; ask for fewer or enlarge --size"
        )
    if config.out.exists() and not config.out.is_dir():
        raise RequestError(f"--out {config.out} is a file, a folder is wanted; choose another path")
    there = sorted(p.name for p in config.out.iterdir()) if config.out.is_dir() else []
    if there and not config.overwrite:
        raise RequestError(
            f"--out {config.out} holds {len(there)} entries ({there[0]}, ...), 0 expected; choose an empty folder or "
            "give --overwrite"
        )


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


def _stream(seed: int, number: int) -> np.random.Generator:
    """An independent generator for each thing that is drawn, so that more lenses leave the galaxies as they were."""
    return np.random.default_rng([seed, number])
