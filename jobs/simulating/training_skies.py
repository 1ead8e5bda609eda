"""Distributions of the conditions under which scenes for training are observed.

A share of scenes is `nominal`: the conditions of the simulated pairs, so that a model trained here is at home there.
The others range from LSST's first to its tenth year and from Euclid's wide to its deep survey.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from surveybridge.jobs.simulating.galaxies import Crowd
from surveybridge.jobs.simulating.optics import KOLMOGOROV_WING, TELESCOPES, Psf, measured_telescope

NOMINAL_SHARE = 0.15
NOMINAL_FWHM = (0.77, 0.73, 0.71, 0.16)
"""arcsec, in `population.BANDS`."""
SKY = (1.312, 1.347, 2.123, 2.022)
"""Sky noise of a survey's own pixel (LSST 0.2", Euclid 0.1"), nJy: LSST's ten years, Euclid's wide survey."""
GAIN = (172.6, 339.5, 248.2, 12.1)
"""Electrons a nJy at that depth."""
SATURATION = (115_850.0, 135_490.0, 185_310.0, 66_100.0)
"""nJy per pixel."""

SEEING = (0.45, 1.4)
LSST_DEPTH, EUCLID_DEPTH = (0.85, 3.5), (0.55, 1.7)
"""Noise over that of `SKY`, log-uniform: fewer exposures are more noise and fewer electrons a nJy."""
LSST_CORRELATION, EUCLID_CORRELATION = 0.6, 0.35
"""Highest correlation of neighbouring pixels' noise."""
REGISTRATION = (0.002, 0.05)
"""arcsec, log-uniform: scale of the Rayleigh distribution of offsets between the surveys."""
LONGEST_OFFSET = 0.1
LARGEST_TURN = math.radians(0.1)
GRID_TURN = math.radians(5.0)
"""Largest rotation of LSST's pixel grid against Euclid's."""


@dataclass(frozen=True)
class Observation:
    """How both surveys observe one scene; tuples are in `population.BANDS`.

    Attributes
    ----------
    nominal : bool
    psfs : tuple of Psf
    sky, gain, correlation : tuple of float
        Noise of a survey's own pixel (nJy), electrons a nJy, and correlation of neighbouring pixels' noise, r^|lag|.
    level, slope : tuple of float
        What sky subtraction leaves: in units of `sky`, and its change over a scene, along x and y.
    saturation : tuple of float
        nJy per pixel.
    registration : float
        Scale of the offsets between the surveys, arcsec.
    offset, turn : (float, float), float
        The offset (arcsec) and rotation (rad, about the middle of the scene) that LSST's WCS does not know.
    grid_offset, grid_turn : (float, float), float
        Where LSST's pixel grid lies, which its WCS does know: arcsec, rad.
    cosmic_rays : float
        Expected tracks of a VIS scene.
    masked : bool
        Whether the mask tells of cosmic rays.
    trails, bad_columns : int
        Satellite trails in LSST; bad columns of either survey.
    edges : float
        Share of windows of which one survey has a part only.
    step : tuple of float
        Sky noise beyond a line across the scene, over that before it: where there are more or fewer exposures.
    step_at, step_angle : (float, float), float
        A place on that line, as a share of the side of the scene, and its direction, rad.
    """

    nominal: bool
    psfs: tuple[Psf, ...]
    sky: tuple[float, ...]
    gain: tuple[float, ...]
    correlation: tuple[float, ...]
    level: tuple[float, ...]
    slope: tuple[tuple[float, float], ...]
    saturation: tuple[float, ...]
    registration: float
    offset: tuple[float, float]
    turn: float
    grid_offset: tuple[float, float]
    grid_turn: float
    cosmic_rays: float
    masked: bool
    trails: int
    bad_columns: int
    edges: float
    step: tuple[float, ...] = (1.0,) * 4
    step_at: tuple[float, float] = (0.5, 0.5)
    step_angle: float = 0.0


def draw_observation(rng: np.random.Generator) -> Observation:
    """Draw the conditions of a scene."""
    if rng.random() < NOMINAL_SHARE:
        return nominal(rng)
    depth = np.exp(rng.uniform(*np.log(LSST_DEPTH))) * np.exp(0.12 * rng.normal(size=3))
    depth = np.append(np.clip(depth, *LSST_DEPTH), np.exp(rng.uniform(*np.log(EUCLID_DEPTH))))
    correlated = rng.random(2) < (0.7, 0.5)
    lsst_r = np.clip(rng.uniform(0, LSST_CORRELATION) + 0.03 * rng.normal(size=3), 0, LSST_CORRELATION) * correlated[0]
    euclid_r = rng.uniform(0, EUCLID_CORRELATION) * correlated[1]
    residual = rng.random() < 0.5
    registration = float(np.exp(rng.uniform(*np.log(REGISTRATION))))
    offset = registration * rng.normal(size=2)
    offset *= min(1.0, LONGEST_OFFSET / max(float(np.hypot(*offset)), 1e-9))
    turned = rng.random() < 0.5
    shifted = rng.random() < 0.8
    stepped = rng.random() < 0.1
    return Observation(
        nominal=False,
        psfs=_psfs(rng),
        sky=tuple(np.array(SKY) * depth),
        gain=tuple(np.array(GAIN) / depth**2),
        correlation=(*map(float, lsst_r), float(euclid_r)),
        level=tuple(residual * rng.uniform(-0.3, 0.3, 4)),
        slope=tuple(map(tuple, residual * rng.uniform(-0.15, 0.15, (4, 2)))),
        saturation=tuple(np.array(SATURATION) * np.exp(0.25 * rng.normal(size=4))),
        registration=registration,
        offset=(float(offset[0]), float(offset[1])),
        # the shift that the rotation makes half way to the edge is like the offset
        turn=float(np.clip(registration / 13.0 * rng.normal(), -LARGEST_TURN, LARGEST_TURN) * (rng.random() < 0.5)),
        grid_offset=tuple(rng.uniform(0, 0.2, 2) * shifted),
        grid_turn=float(rng.uniform(-GRID_TURN, GRID_TURN) * turned),
        cosmic_rays=float(rng.choice([0.0, 15.0, 40.0], p=[0.45, 0.4, 0.15])),
        masked=bool(rng.random() < 0.85),
        trails=int(rng.random() < 0.06),
        bad_columns=int(rng.random() < 0.12) * int(rng.integers(1, 4)),
        edges=0.05,
        step=tuple(np.exp(rng.uniform(-0.4, 0.4, 4) * (rng.random(4) < 0.5)) if stepped else np.ones(4)),
        step_at=tuple(rng.uniform(0.25, 0.75, 2)),
        step_angle=float(rng.uniform(0, 2 * np.pi)),
    )


def for_stamps(observation: Observation) -> Observation:
    """The same conditions for stamps on the surveys' own pixels: with these two by two in line, and nothing masked."""
    return replace(
        observation, grid_offset=(0.0, 0.0), grid_turn=0.0, saturation=(math.inf,) * 4, cosmic_rays=0.0, trails=0,
        bad_columns=0, edges=0.0, step=(1.0,) * 4,
    )  # fmt: skip


def draw_crowd(rng: np.random.Generator, side: float, *, nominal: bool) -> Crowd:
    """Draw what is in a scene of a side in arcsec; a nominal one holds what the simulated pairs hold."""
    if nominal:
        return Crowd(side, nominal=1.0, cosmos=0.0, systems=9, deflectors=6, bright=0, stars=0.0)
    density = float(np.exp(rng.uniform(np.log(0.6), np.log(1.8))))
    share = rng.uniform(0.0, 0.7)
    return Crowd(
        side,
        nominal=density * share,
        cosmos=density * (1 - share),
        systems=int(rng.integers(4, 9)),
        deflectors=int(rng.integers(1, 4)),
        bright=int(rng.random() < 0.3),
        stars=float(np.exp(rng.uniform(np.log(1.5), np.log(12.0)))),
    )


def _psfs(rng: np.random.Generator) -> tuple[Psf, ...]:
    """PSFs of the four bands: one atmosphere for LSST, whose seeing shrinks with wavelength and differs by night."""
    kind = rng.choice(["gaussian", "moffat", "kolmogorov"], p=[0.2, 0.55, 0.25])
    wing = {"gaussian": 0.0, "kolmogorov": KOLMOGOROV_WING}.get(str(kind), rng.uniform(0.2, 0.4))
    seeing = float(np.clip(np.exp(np.log(0.76) + 0.27 * rng.normal()), *SEEING))
    if rng.random() < 0.25:
        seeing = rng.uniform(*SEEING)
    found = []
    for colour in (1.05, 1.0, 0.96):
        fwhm = float(np.clip(seeing * colour * np.exp(0.07 * rng.normal()), *SEEING))
        if rng.random() < 0.08:  # a band of few exposures
            fwhm = float(rng.uniform(*SEEING))
        ellipticity = min(0.06, 0.015 * float(rng.rayleigh()))
        of_band = float(np.clip(wing + 0.03 * rng.normal(), 0.1, 0.4)) if kind == "moffat" else wing
        found.append(
            Psf(fwhm, of_band, "kolmogorov" if kind == "kolmogorov" else "moffat", ellipticity, rng.uniform(0, np.pi))
        )
    return (*found, _vis(rng))


def _vis(rng: np.random.Generator) -> Psf:
    """PSF of VIS."""
    kind = rng.choice(["gaussian", "moffat", "optical"], p=[0.35, 0.25, 0.4])
    ellipticity, angle = min(0.06, 0.015 * float(rng.rayleigh())), float(rng.uniform(0, np.pi))
    if kind == "optical":
        telescope = int(rng.integers(TELESCOPES))
        fwhm, wing = measured_telescope(telescope)
        return Psf(fwhm * float(np.exp(0.05 * rng.normal())), wing, "optical", ellipticity, angle, telescope)
    fwhm = float(rng.uniform(0.135, 0.215))
    return Psf(fwhm, float(rng.uniform(0.15, 0.45)) if kind == "moffat" else 0.0, "moffat", ellipticity, angle)


def nominal(rng: np.random.Generator) -> Observation:
    """The conditions of the simulated pairs; LSST's pixel grid is in line with Euclid's more often than not."""
    nothing = (0.0,) * 4
    shifted = rng.random() < 0.3
    return Observation(
        nominal=True, psfs=tuple(Psf(fwhm) for fwhm in NOMINAL_FWHM), sky=SKY, gain=GAIN, correlation=nothing,
        level=nothing, slope=((0.0, 0.0),) * 4, saturation=(math.inf,) * 4, registration=REGISTRATION[0],
        offset=(0.0, 0.0), turn=0.0, grid_offset=tuple(rng.uniform(0, 0.2, 2) * shifted), grid_turn=0.0,
        cosmic_rays=0.0, masked=True, trails=0, bad_columns=0, edges=0.0,
    )  # fmt: skip
