"""The objects of a simulated sky: galaxies, stars, their counts, sizes, shapes and colours.

Positions are offsets in arcsec on the tangent plane of the field's centre: ``u`` towards west, ``v`` towards north, so
that (u, v) is right-handed like the pixels (x, y). Ellipticities are reduced shears |e| = (1-q)/(1+q) in that frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveybridge.jobs.simulating.observing import FEW_STARS, StarCounts

BANDS = ("g", "r", "i", "VIS")
Catalogue = dict[str, NDArray[Any]]
"""One array a column, one element an object; `columns` lists them."""

GALAXY_DENSITY = 40.0
"""Galaxies per square arcmin to i < 26."""
BRIGHT_STAR_CLEARANCE = 6.0
"""Bright stars stay this far from lenses, arcsec."""
FAINT_LIMIT = 26.0
BLEND_FRACTION = 0.12
BULGE_LIMIT = 23.5
"""Blue galaxies brighter than this in i have a bulge and a disc; fainter ones are one Sersic profile."""

# Colours (g-r, r-i, VIS-i) of old and star-forming galaxies along redshift: medians of a template population, rounded.
_TRACK_Z = np.array([0.05, 0.22, 0.37, 0.52, 0.67, 0.82, 1.0, 1.25, 1.6, 2.1, 3.0, 4.0])
_TRACKS = {
    True: np.array(
        [
            [0.80, 1.13, 1.36, 1.40, 1.35, 1.30, 1.20, 0.85, 0.50, 0.35, 0.30, 0.50],
            [0.39, 0.48, 0.58, 0.87, 1.10, 1.08, 0.95, 0.92, 0.75, 0.35, 0.15, 0.10],
            [0.10, 0.13, 0.14, 0.20, 0.23, 0.12, 0.00, 0.05, 0.05, 0.00, 0.03, 0.01],
        ]
    ),
    False: np.array(
        [
            [0.42, 0.59, 0.81, 0.79, 0.64, 0.50, 0.44, 0.30, 0.18, 0.20, 0.14, 0.50],
            [0.28, 0.29, 0.28, 0.42, 0.63, 0.69, 0.50, 0.33, 0.26, 0.12, 0.15, 0.06],
            [0.09, 0.09, 0.07, 0.14, 0.19, 0.17, 0.05, 0.00, 0.06, 0.00, 0.06, 0.01],
        ]
    ),
}
_TRACK_SCATTER = {True: np.array([0.15, 0.08, 0.02]), False: np.array([0.15, 0.10, 0.02])}
_BULGE_WEIGHT = {"g": 0.55, "r": 0.8, "i": 1.0, "VIS": 0.93}
"""Bulge fraction in each band relative to i: bulges are redder than their discs."""


def draw_galaxies(rng: np.random.Generator, half_size: float, density: float = 1.0) -> Catalogue:
    """Galaxies to i < 26 over the square |u|, |v| < `half_size` arcsec.

    Parameters
    ----------
    rng : numpy.random.Generator
    half_size : float
        Half the side of the square, arcsec.
    density : float
        Their number, over that of `GALAXY_DENSITY`.

    Returns
    -------
    Catalogue
        Columns of `columns`; bright blue galaxies carry a bulge, and one in eight stands 0.4 to 2 arcsec from another.
    """
    n = int(rng.poisson(density * GALAXY_DENSITY * (2 * half_size / 60) ** 2))
    mag_i = _draw_magnitudes(rng, n)
    z = _draw_redshifts(rng, mag_i)
    red = rng.random(n) < np.clip(0.40 - 0.06 * (mag_i - 20.5), 0.10, 0.6)
    q = np.where(red, np.clip(1 - rng.beta(1.6, 9.0, n), 0.4, 1), np.clip(rng.beta(2.9, 1.9, n), 0.15, 1))
    angle = rng.uniform(0, np.pi, n)
    half_light = np.interp(mag_i, *_SIZES) * np.exp(0.5 * rng.normal(size=n)) * np.where(red, 0.85, 1.0)
    half_light = np.clip(half_light, 0.07, 3.0)
    bulge_fraction = np.where(~red & (mag_i < BULGE_LIMIT), rng.beta(1.2, 4.0, n), 0.0)
    index = np.where(red, rng.choice([2.5, 3.0, 3.5, 4.0, 4.5], n, p=[0.08, 0.12, 0.2, 0.25, 0.35]), 0.0)
    index = np.where(~red, rng.choice([0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0], n, p=_DISC_INDEX), index)
    index = np.where(bulge_fraction > 0, 1.0, index)
    main_re, bulge_re = _component_radii(half_light, bulge_fraction)
    u, v = rng.uniform(-half_size, half_size, (2, n))
    _pair_up(rng, u, v)
    rows = {
        "u": u, "v": v, "z": z, "red": red, "re": half_light, "sersic_n": index, "q": q, "angle": angle,
        "main_re": main_re, "bulge_fraction": bulge_fraction, "bulge_re": bulge_re,
    }  # fmt: skip
    return columns("galaxy", {**rows, **galaxy_magnitudes(rng, mag_i, z, red)})


def draw_stars(
    rng: np.random.Generator,
    half_size: float,
    bright_half_size: float,
    keep_clear: NDArray[np.float64],
    counts: StarCounts = FEW_STARS,
) -> Catalogue:
    """Stars: a power law of counts, and by default a few bright ones of which the brightest saturate.

    Parameters
    ----------
    rng : numpy.random.Generator
    half_size : float
        Half the side of the square that is filled, arcsec.
    bright_half_size : float
        Half the side of the square that holds the bright ones, arcsec, so that they are seen.
    keep_clear : ndarray [L, 2]
        Places (u, v) from which bright stars stay away: the lenses.
    counts : StarCounts

    Returns
    -------
    Catalogue
        Columns of `columns`; sizes are NaN.
    """
    n = int(rng.poisson(counts.density * (2 * half_size / 60) ** 2))
    rarest = 10 ** (-counts.slope * (counts.faintest - counts.brightest))
    faint = counts.faintest + np.log10(1 - rng.random(n) * (1 - rarest)) / counts.slope
    n_bright = 2 + int((2 * bright_half_size / 60) ** 2 / 4) if counts.showpieces else 0
    bright = np.concatenate([[14.0], rng.uniform(15.2, 17.6, n_bright - 1)]) if n_bright else np.zeros(0)
    mag_i = np.concatenate([bright, faint])
    u, v = rng.uniform(-1, 1, (2, len(mag_i))) * np.where(np.arange(len(mag_i)) < n_bright, bright_half_size, half_size)
    for k in range(n_bright):
        while len(keep_clear) and np.hypot(*(keep_clear - [u[k], v[k]]).T).min() < BRIGHT_STAR_CLEARANCE:
            u[k], v[k] = rng.uniform(-bright_half_size, bright_half_size, 2)
    # bright means near and sun-like, and saturated in g too
    return columns("star", {"u": u, "v": v, **star_magnitudes(rng, mag_i, sunlike=n_bright)})


def star_magnitudes(rng: np.random.Generator, mag_i: NDArray[np.float64], sunlike: int = 0) -> dict[str, NDArray[Any]]:
    """AB magnitudes of stars in the four bands along the stellar locus; the first `sunlike` are of r-i = 0.1 to 0.3.

    Returns
    -------
    dict of ndarray [N]
        mag_g, mag_r, mag_i, mag_VIS.
    """
    ri = np.clip(0.1 + rng.gamma(1.6, 0.28, len(mag_i)), 0.1, 1.9)
    ri[:sunlike] = rng.uniform(0.1, 0.3, sunlike)
    gr = np.clip(1.35 - 1.1 * np.exp(-ri / 0.45), 0.3, 1.35) + 0.04 * rng.normal(size=len(mag_i))
    return {"mag_g": mag_i + ri + gr, "mag_r": mag_i + ri, "mag_i": mag_i, "mag_VIS": mag_i + 0.26 * ri}


def galaxy_magnitudes(
    rng: np.random.Generator, mag_i: NDArray[np.float64], z: NDArray[np.float64], red: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """AB magnitudes in the four bands from i, redshift and type, along colour tracks with scatter.

    Parameters
    ----------
    rng : numpy.random.Generator
    mag_i, z, red : ndarray [N]
        AB magnitude, redshift, and whether the galaxy is old.

    Returns
    -------
    dict of ndarray [N]
        mag_g, mag_r, mag_i, mag_VIS.
    """
    scatter = rng.normal(size=(3, len(mag_i)))
    gr, ri, vi = (
        np.where(
            red,
            np.interp(z, _TRACK_Z, _TRACKS[True][k]) + _TRACK_SCATTER[True][k] * scatter[k],
            np.interp(z, _TRACK_Z, _TRACKS[False][k]) + _TRACK_SCATTER[False][k] * scatter[k],
        )
        for k in range(3)
    )
    return {"mag_g": mag_i + ri + gr, "mag_r": mag_i + ri, "mag_i": mag_i, "mag_VIS": mag_i + vi}


def columns(kind: str, rows: dict[str, NDArray[Any]]) -> Catalogue:
    """`rows` with every column of a catalogue: what does not apply to the kind is NaN, False or 0."""
    n = len(rows["u"])
    numbers = (
        "u", "v", "z", "re", "sersic_n", "q", "angle", "main_re", "bulge_fraction", "bulge_re",
        *(f"mag_{band}" for band in BANDS), "z_source", "theta_E", "gamma1", "gamma2", "magnification", "arc_snr_vis",
        "n_images", *(f"lensed_mag_{band}" for band in BANDS),
    )  # fmt: skip
    filled = {name: np.asarray(rows.get(name, np.full(n, np.nan)), np.float64) for name in numbers}
    return {"kind": np.full(n, kind, "U6"), "red": np.asarray(rows.get("red", np.zeros(n, bool)), bool), **filled}


def concatenate(*catalogues: Catalogue) -> Catalogue:
    """The catalogues one after another."""
    return {name: np.concatenate([catalogue[name] for catalogue in catalogues]) for name in catalogues[0]}


def take(catalogue: Catalogue, which: NDArray[np.generic]) -> Catalogue:
    """The objects selected by a boolean or integer index."""
    return {name: column[which] for name, column in catalogue.items()}


def nanojansky(magnitude: NDArray[np.generic] | float) -> NDArray[np.float64]:
    """AB magnitude to nJy: 10^((31.4 - m)/2.5)."""
    return np.asarray(10 ** ((31.4 - np.asarray(magnitude, np.float64)) / 2.5))


def bulge_fraction(catalogue: Catalogue, band: str) -> NDArray[np.float64]:
    """Return the share of the flux in the bulge in `band`, [N]; the magnitude gives the total flux."""
    return np.asarray(np.nan_to_num(catalogue["bulge_fraction"]) * _BULGE_WEIGHT[band])


_SIZES = (
    np.array([17.0, 19.0, 20.5, 21.5, 22.5, 23.5, 24.5, 25.5]),
    np.array([1.5, 0.80, 0.52, 0.44, 0.38, 0.29, 0.25, 0.23]),
)
"""Median half-light radius (arcsec) along i."""
_DISC_INDEX = [0.05, 0.13, 0.25, 0.25, 0.16, 0.1, 0.06]


def _draw_magnitudes(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """i magnitudes; log counts rise by 0.55 a magnitude to i = 21.5, by 0.28 beyond (deep fields)."""
    grid = np.linspace(17.0, FAINT_LIMIT, 901)
    log_counts = np.where(grid < 21.5, 0.55 * (grid - 21.5), 0.28 * (grid - 21.5))
    cumulative = np.cumsum(10**log_counts)
    return np.interp(rng.random(n), cumulative / cumulative[-1], grid)


def _draw_redshifts(rng: np.random.Generator, mag_i: NDArray[np.float64]) -> NDArray[np.float64]:
    """p(z) proportional to z^2 exp(-(z/z0)^1.5), its median rising with magnitude."""
    faintness = np.clip(mag_i, 18.5, None) - 22.5
    median = 0.66 + 0.11 * faintness + 0.025 * faintness**2
    return np.clip(median / 1.41 * rng.gamma(2.0, 1.0, len(mag_i)) ** (1 / 1.5), 0.03, 4.5)


def _component_radii(
    half_light: NDArray[np.float64], fraction: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Radii of disc (n=1) and bulge (n=4, 0.3 of the disc) whose sum has the wanted half-light radius, by bisection."""
    low, high = half_light / 3, half_light * 3
    for _ in range(40):
        disc = (low + high) / 2
        light = fraction * _gamma_share(8, 7.669 * (half_light / (0.3 * disc)) ** 0.25)
        light += (1 - fraction) * _gamma_share(2, 1.678 * half_light / disc)
        low, high = np.where(light > 0.5, disc, low), np.where(light > 0.5, high, disc)
    disc = np.where(fraction > 0, (low + high) / 2, half_light)
    return disc, np.where(fraction > 0, 0.3 * disc, np.nan)


def _gamma_share(order: int, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Regularised lower incomplete gamma function of a whole order: 1 - exp(-x) sum_k<order x^k / k!."""
    term, total = np.ones_like(x), np.ones_like(x)
    for k in range(1, order):
        term = term * x / k
        total = total + term
    return np.asarray(1 - np.exp(-x) * total)


def _pair_up(rng: np.random.Generator, u: NDArray[np.float64], v: NDArray[np.float64]) -> None:
    """Move a share of the objects next to others, in place: blends that the ground does not resolve."""
    moved = np.flatnonzero(rng.random(len(u)) < BLEND_FRACTION)
    still = np.setdiff1d(np.arange(len(u)), moved)
    if len(still) == 0:
        return
    partner = rng.choice(still, len(moved))
    separation, direction = rng.uniform(0.4, 2.0, len(moved)), rng.uniform(0, 2 * np.pi, len(moved))
    u[moved] = u[partner] + separation * np.cos(direction)
    v[moved] = v[partner] + separation * np.sin(direction)
