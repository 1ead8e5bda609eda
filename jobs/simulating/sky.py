"""From a catalogue of objects to the pixels of both surveys: grids, drawing, noise and defects.

Galaxies are Sersic profiles convolved with the survey's PSF and pixel by GalSim (Rowe et al. 2015); stars are the PSF.
"""

from __future__ import annotations

from dataclasses import dataclass

import galsim
import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from surveybridge.jobs.running.progress import progress
from surveybridge.jobs.simulating.lenses import RAY_SPACING, Arc
from surveybridge.jobs.simulating.noise import correlated, cosmic_rays, trails
from surveybridge.jobs.simulating.observing import Instrument, Registration
from surveybridge.jobs.simulating.point_spread import GALAXY_PARAMETERS, draw, draw_star, profile_of, reach
from surveybridge.jobs.simulating.population import Catalogue, bulge_fraction, nanojansky

SkyPositions = tuple[NDArray[np.float64], NDArray[np.float64]]
"""ra and dec, [N] each, ICRS degrees."""
BAD, SATURATED, NO_DATA, COSMIC_RAY = 1, 2, 4, 8
"""Bits of the mask."""
TRUNCATION = 8.0
"""Sersic profiles end at this many half-light radii, and hold their whole flux within."""


@dataclass(frozen=True)
class Frame:
    """A pixel grid on the sky: a TAN WCS with a constant CD matrix, and its shape (ny, nx)."""

    wcs: WCS
    shape: tuple[int, int]

    @property
    def jacobian(self) -> NDArray[np.float64]:
        """d(u, v)/d(x, y) in arcsec a pixel, with u west and v north."""
        return np.asarray(self.wcs.wcs.cd * 3600.0 * np.array([[-1.0], [1.0]]))

    def pixels(self, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> SkyPositions:
        """Zero-based pixel coordinates (x, y) of sky positions in degrees."""
        x, y = self.wcs.world_to_pixel_values(ra, dec)
        return np.asarray(x), np.asarray(y)


def euclid_frame(centre: tuple[float, float], size: int) -> Frame:
    """`size` x `size` pixels of 0.1 arcsec, north up, centred on (ra, dec) in degrees."""
    return _tan_frame(centre, 0.1, (size, size), 0.0)


def lsst_frame(centre: tuple[float, float], size: int, rotation: float, offset: tuple[float, float]) -> Frame:
    """The LSST grid (0.2 arcsec) that covers the Euclid frame of `size` pixels with 5 arcsec to spare.

    Parameters
    ----------
    centre : (float, float)
        ra, dec of the Euclid frame, degrees.
    size : int
        Side of the Euclid frame, pixels of 0.1 arcsec.
    rotation : float
        Rotation on the sky, degrees (positive turns the y axis from north to east).
    offset : (float, float)
        Offset of the grid's centre towards east and north, arcsec.
    """
    angle = np.deg2rad(rotation)
    side = (0.1 * size + 2 * 5.0) * (abs(np.cos(angle)) + abs(np.sin(angle))) + 2 * np.hypot(*offset)
    n = 32 * int(np.ceil(side / 0.2 / 32))
    shifted = (centre[0] + offset[0] / 3600 / np.cos(np.deg2rad(centre[1])), centre[1] + offset[1] / 3600)
    return _tan_frame(shifted, 0.2, (n, n), rotation)


def displaced(frame: Frame, registration: Registration) -> Frame:
    """The grid as it really lies on the sky where the WCS of `frame` states it with an error of registration."""
    ra, dec = frame.wcs.wcs.crval
    dec_true = dec - registration.north / 3600
    ra_true = ra - registration.east / 3600 / np.cos(np.deg2rad(dec))
    cos, sin = np.cos(np.deg2rad(registration.rotation)), np.sin(np.deg2rad(registration.rotation))
    wcs = frame.wcs.deepcopy()
    wcs.wcs.crval = [ra_true, dec_true]
    # rows are west-to-east and south-to-north; objects shown turned from north to east lie turned back
    wcs.wcs.cd = np.array([[cos, -sin], [sin, cos]]) @ frame.wcs.wcs.cd
    wcs.wcs.set()
    return Frame(wcs, frame.shape)


def sky_positions(frame: Frame, u: NDArray[np.float64], v: NDArray[np.float64]) -> SkyPositions:
    """ra, dec in degrees of offsets (u west, v north, arcsec) on the tangent plane of `frame`."""
    x, y = np.linalg.solve(frame.jacobian, np.stack([u, v])) + (frame.wcs.wcs.crpix - 1)[:, None]
    ra, dec = frame.wcs.pixel_to_world_values(x, y)
    return np.asarray(ra), np.asarray(dec)


def render(
    frame: Frame,
    instrument: Instrument,
    catalogue: Catalogue,
    arcs: list[Arc],
    sky: SkyPositions,
    arcs_sky: SkyPositions,
) -> NDArray[np.float64]:
    """The noise-free image of a catalogue.

    Parameters
    ----------
    frame : Frame
    instrument : Instrument
    catalogue : Catalogue
        Objects; see `simulated_population.columns`.
    arcs : list of Arc
    sky, arcs_sky : (ndarray, ndarray)
        ra, dec in degrees of the objects and of the arcs' centres.

    Returns
    -------
    ndarray [ny, nx] float64
        nJy per pixel.
    """
    image = np.zeros(frame.shape)
    psf = profile_of(instrument)
    jacobian = galsim.JacobianWCS(*frame.jacobian.ravel())
    unit: dict[float, galsim.GSObject] = {}
    xs, ys = frame.pixels(*sky)
    flux = nanojansky(catalogue[f"mag_{instrument.band}"])
    bulges = bulge_fraction(catalogue, instrument.band)
    for k in progress(range(len(flux)), f"simulate {instrument.survey} {instrument.band}", unit="objects"):
        if catalogue["kind"][k] == "star":
            draw_star(image, xs[k], ys[k], flux[k], instrument, jacobian)
            continue
        e = (1 - catalogue["q"][k]) / (1 + catalogue["q"][k])
        angle = catalogue["angle"][k]
        profile = _sersic(unit, catalogue["sersic_n"][k]).dilate(catalogue["main_re"][k]) * (flux[k] * (1 - bulges[k]))
        if bulges[k] > 0:
            bulge = _sersic(unit, 4.0).dilate(catalogue["bulge_re"][k]) * (flux[k] * bulges[k])
            rounder = 0.5 * e  # a bulge is rounder than its disc
            bulge = bulge.shear(g1=rounder * np.cos(2 * angle), g2=rounder * np.sin(2 * angle))
            profile = profile.shear(g1=e * np.cos(2 * angle), g2=e * np.sin(2 * angle)) + bulge
        else:
            profile = profile.shear(g1=e * np.cos(2 * angle), g2=e * np.sin(2 * angle))
        half = TRUNCATION * catalogue["main_re"][k] / np.sqrt(catalogue["q"][k]) + reach(instrument, flux[k])
        draw(image, galsim.Convolve(profile, psf), xs[k], ys[k], half / instrument.pixel_scale, jacobian)
    for arc, x, y in zip(arcs, *frame.pixels(*arcs_sky), strict=True):
        grid = galsim.Image(np.ascontiguousarray(arc.shape), scale=RAY_SPACING)
        light = (
            galsim.InterpolatedImage(grid, normalization="flux", gsparams=GALAXY_PARAMETERS) * arc.flux[instrument.band]
        )
        half = len(arc.shape) * RAY_SPACING * 0.75 + reach(instrument, arc.flux[instrument.band])
        draw(image, galsim.Convolve(light, psf), x, y, half / instrument.pixel_scale, jacobian)
    # The Fourier drawing leaves -1e-4 here and there, and photons are not negative. Its last bits depend on where in
    # memory the arrays lie; rounding keeps that out of the Poisson draws, so that equal seeds give equal files.
    return np.asarray(np.round(np.maximum(image, 0.0), 4), np.float64)


def observe(
    model: NDArray[np.float64], instrument: Instrument, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
    """Noise, saturation, bad columns, a part without data, and what else the instrument's conditions say.

    Parameters
    ----------
    model : ndarray [ny, nx] float64
        Noise-free image, nJy per pixel.
    instrument : Instrument
    rng : numpy.random.Generator

    Returns
    -------
    flux : ndarray [ny, nx] float32
        nJy per pixel; NaN without data.
    variance : ndarray [ny, nx] float32
        nJy^2: sky and the Poisson noise of the sources; NaN without data.
    mask : ndarray [ny, nx] uint8
        `BAD`, `SATURATED`, `NO_DATA`, `COSMIC_RAY`.
    """
    electrons = rng.poisson(model * instrument.gain)
    exact = electrons / instrument.gain + instrument.sky_sigma * rng.normal(size=model.shape)
    sigma = np.sqrt(instrument.sky_sigma**2 + model / instrument.gain)
    if instrument.correlation > 0:  # of the noise in units of its own width, so that its width stays as it is
        exact = model + sigma * correlated((exact - model) / sigma, instrument.correlation)
    flux = (exact + instrument.sky_residual * instrument.sky_sigma).astype(np.float32)
    variance = (instrument.sky_sigma**2 + model / instrument.gain).astype(np.float32)
    mask = np.zeros(model.shape, np.uint8)
    saturated = model >= instrument.saturation
    flux[saturated], mask[saturated] = instrument.saturation, SATURATED
    ny, nx = model.shape
    for _ in range(1 + int(nx * instrument.pixel_scale > 150.0)):
        start, width = int(rng.integers(nx // 8, nx - nx // 8)), int(rng.integers(1, 3))
        column = np.s_[:, start : start + width]
        flux[column] += (rng.uniform(20, 40) * instrument.sky_sigma * rng.uniform(0.5, 1.5, (ny, width))).astype("f4")
        mask[column] |= BAD
    for marks, bit, draw_marks in (
        (instrument.cosmic_rays, COSMIC_RAY, cosmic_rays),
        (instrument.trails, BAD, trails),
    ):
        if marks.count > 0:
            light, touched = draw_marks((ny, nx), instrument, rng)
            flux += light.astype(np.float32)
            mask[touched & marks.masked] |= bit
    missing = _missing(model.shape, instrument)
    flux[missing], variance[missing], mask[missing] = np.nan, np.nan, NO_DATA
    return flux, variance, mask


def _tan_frame(centre: tuple[float, float], scale: float, shape: tuple[int, int], rotation: float) -> Frame:
    """TAN grid with its reference pixel in the middle, rotated on the sky."""
    cos, sin = np.cos(np.deg2rad(rotation)), np.sin(np.deg2rad(rotation))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.crval = centre
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    wcs.wcs.cd = scale / 3600 * np.array([[-cos, sin], [sin, cos]])
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.equinox = 2000.0
    wcs.wcs.set()
    return Frame(wcs, shape)


def _missing(shape: tuple[int, int], instrument: Instrument) -> NDArray[np.bool_]:
    """Pixels without data: the end of a detector in Euclid, a slanted corner in LSST outside the Euclid frame."""
    ny, nx = shape
    y, x = np.mgrid[:ny, :nx]
    if instrument.survey == "Euclid":
        return np.asarray((x >= nx - max(4, nx // 51)) & (y < 0.35 * ny))
    return np.asarray(x + 20 * y < 20 * 12)


def _sersic(unit: dict[float, galsim.GSObject], n: float) -> galsim.GSObject:
    """Sersic profile of half-light radius 1 and flux 1, kept by index: its lookup table is what costs."""
    if n not in unit:
        unit[n] = galsim.Sersic(n=float(n), half_light_radius=1.0, trunc=TRUNCATION, gsparams=GALAXY_PARAMETERS)
    return unit[n]
