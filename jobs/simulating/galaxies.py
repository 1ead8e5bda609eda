"""Galaxies and stars of a scene for training: wider in every respect than the simulated survey's `population`.

Sizes, indices and axis ratios of the COSMOS-like galaxies follow Sersic fits of real ones (Leauthaud et al. 2007;
the samples of GalSim); `python -m benchmarks.cosmos_shapes` fits the numbers. Red galaxies like those that act as
lenses follow the simulated pairs. None is lensed: what a lens looks like must stay unknown to the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveybridge.jobs.simulating.population import (
    Catalogue,
    columns,
    concatenate,
    draw_galaxies,
    galaxy_magnitudes,
    star_magnitudes,
    take,
)

Values = NDArray[np.float64]


@dataclass(frozen=True)
class _Shapes:
    """Shapes of one type: ln half-light radius (arcsec) at i = 22, its slope and scatter; ln index; q as a beta."""

    ln_size: float
    slope: float
    scatter: float
    ln_index: float
    index_scatter: float
    q: tuple[float, float]


COSMOS_DENSITY = 45.0
"""COSMOS-like galaxies per square arcmin to i < 26; their counts go on to `FAINTEST`."""
COUNTS_SLOPE = 0.30
FAINTEST = 27.2

EARLY_SHARE = (0.34, -0.05)
"""Share of galaxies of index above 2.2 at i = 22, and its change a magnitude."""
LATE, EARLY = _Shapes(-0.93, -0.31, 0.36, 0.04, 0.40, (2.2, 1.8)), _Shapes(-1.14, -0.36, 0.50, 1.30, 0.32, (4.5, 2.4))
SIZE_SLOPE_FAINT = -0.12
"""Slope of ln size beyond i = 23.5, where galaxies no longer shrink as fast."""

COMPANIONS = np.array([0.24, 0.36, 0.25, 0.15])
"""Shares of systems with 0 to 3 companions, as in the simulated pairs."""
COMPANION_DISTANCE = (0.4, 4.0)
"""arcsec."""


@dataclass(frozen=True)
class Crowd:
    """How much of everything is in a scene of a side in arcsec.

    Attributes
    ----------
    side : float
        Of the square scene, arcsec; its opposite sides are neighbours.
    nominal : float
        Density of the galaxies of `population`, over that which it states.
    cosmos : float
        Density of the COSMOS-like galaxies, over `COSMOS_DENSITY`.
    systems, deflectors : int
        Galaxies i < 24.5 with companions; red ones like deflectors, with companions.
    bright : int
        Galaxies of i = 14 to 19, up to 30" large.
    stars : float
        Expected number of stars; bright ones are overrepresented.
    """

    side: float
    nominal: float
    cosmos: float
    systems: int
    deflectors: int
    bright: int
    stars: float


def draw_objects(rng: np.random.Generator, crowd: Crowd) -> Catalogue:
    """Objects of a scene: `columns` of the population, and `role`, for which windows are centred on them.

    `role` is field, system, deflector, bright or star.
    """
    side = crowd.side
    field = [draw_galaxies(rng, side / 2, crowd.nominal)] if crowd.nominal > 0 else []
    for part in field:
        part["u"], part["v"] = part["u"] + side / 2, part["v"] + side / 2
    area = (side / 60) ** 2
    n = rng.poisson(COSMOS_DENSITY * crowd.cosmos * area * 10 ** (COUNTS_SLOPE * (FAINTEST - 26.0)))
    field.append(cosmos_like(rng, _counts(rng, n, 17.5, FAINTEST, COUNTS_SLOPE), *rng.uniform(0, side, (2, n))))
    parts = [_role(concatenate(*field), "field")]
    for role, count in (("system", crowd.systems), ("deflector", crowd.deflectors), ("bright", crowd.bright)):
        u, v = rng.uniform(0, side, (2, count))
        galaxies = {"system": _centrals, "deflector": deflector_like, "bright": bright}[role](rng, u, v)
        parts.append(_role(galaxies, role))
        if role != "bright":
            parts.append(_role(_companions(rng, u, v), "field"))
    count = rng.poisson(crowd.stars)
    parts.append(_role(stars(rng, *rng.uniform(0, side, (2, count))), "star"))
    return concatenate(*parts)


def cosmos_like(rng: np.random.Generator, mag_i: Values, u: Values, v: Values) -> Catalogue:
    """Galaxies of given magnitudes whose sizes, indices and axis ratios are distributed as in COSMOS."""
    n = len(mag_i)
    early = rng.random(n) < np.clip(EARLY_SHARE[0] + EARLY_SHARE[1] * (mag_i - 22), 0.1, 0.6)
    size, index, q = np.empty(n), np.empty(n), np.empty(n)
    for which, shape in ((early, EARLY), (~early, LATE)):
        count = int(which.sum())
        bright_part, faint_part = np.minimum(mag_i[which], 23.5) - 22, np.maximum(mag_i[which] - 23.5, 0)
        mean = shape.ln_size + shape.slope * bright_part + SIZE_SLOPE_FAINT * faint_part
        size[which] = np.exp(mean + shape.scatter * rng.normal(size=count))
        index[which] = np.exp(shape.ln_index + shape.index_scatter * rng.normal(size=count))
        q[which] = rng.beta(*shape.q, count)
    # quiescent ones are early more often than not; there are blue spheroids and red discs
    red = rng.random(n) < np.where(early, 0.55, 0.12)
    rows = {"u": u, "v": v, "z": _redshifts(rng, mag_i), "red": red, "re": np.clip(size, 0.03, 6.0)}
    rows |= {"sersic_n": np.clip(index, 0.5, 6.0), "q": np.clip(q, 0.12, 0.99)}
    return _galaxies(rng, mag_i, rows, colour_scatter=0.12)


def deflector_like(rng: np.random.Generator, u: Values, v: Values) -> Catalogue:
    """Galaxies as massive as lenses: three of four old and red, i = 16 to 23, axis ratios near 1."""
    n = len(u)
    mag_i = 23.0 - np.minimum(rng.gamma(1.5, 0.9, n), 7.0)
    red = rng.random(n) < 0.76
    z = np.clip(0.92 + 0.19 * (mag_i - 21.64) + 0.16 * rng.normal(size=n), 0.05, 1.5)
    size = np.exp(np.log(0.45) - 0.13 * np.minimum(mag_i - 21.5, 0) + 0.46 * rng.normal(size=n))
    index = np.where(red, rng.choice([2.5, 3, 3.5, 4, 4.5], n, p=[0.06, 0.16, 0.25, 0.29, 0.24]), 0.0)
    index = np.where(red, index, np.clip(1.1 + 0.4 * rng.normal(size=n), 0.5, 2.5))
    q = np.where(red, 1 - rng.beta(1.7, 9.0, n), rng.beta(3.0, 1.8, n))
    rows = {"u": u, "v": v, "z": z, "red": red, "re": np.clip(size, 0.1, 4.5), "sersic_n": index}
    return _galaxies(rng, mag_i, rows | {"q": np.clip(q, 0.2, 0.99)}, colour_scatter=0.05)


def bright(rng: np.random.Generator, u: Values, v: Values) -> Catalogue:
    """Galaxies of i = 14 to 19 whose light is seen over up to 30 arcsec."""
    n = len(u)
    mag_i = rng.triangular(14.0, 19.0, 19.0, n)
    early = rng.random(n) < 0.4
    size = np.exp(np.log(1.7) - 0.24 * (mag_i - 17) + 0.35 * rng.normal(size=n))
    index = np.where(early, rng.uniform(2.5, 5.0, n), rng.uniform(0.8, 1.8, n))
    q = np.clip(np.where(early, rng.beta(4.5, 2.0, n), rng.beta(2.2, 1.6, n)), 0.12, 0.99)
    rows = {"u": u, "v": v, "z": rng.uniform(0.01, 0.25, n), "red": early, "re": np.clip(size, 0.5, 5.0)}
    return _galaxies(rng, mag_i, rows | {"sersic_n": index, "q": q}, colour_scatter=0.08)


def stars(rng: np.random.Generator, u: Values, v: Values) -> Catalogue:
    """Stars of i = 14 to 26; half of them follow the counts of the sky, the others are spread over magnitudes."""
    n = len(u)
    mag_i = np.where(rng.random(n) < 0.5, _counts(rng, n, 16.0, 26.0, 0.15), rng.uniform(14.5, 24.0, n))
    return columns("star", {"u": u, "v": v, **star_magnitudes(rng, mag_i)})


def _centrals(rng: np.random.Generator, u: Values, v: Values) -> Catalogue:
    """Galaxies i < 24.5 in the middle of systems; half of them as `population` has them, half COSMOS-like."""
    n = len(u)
    mag_i = np.maximum(_counts(rng, n, 17.5, 24.5, 0.33), 17.5)
    if rng.random() < 0.5 or n == 0:
        return cosmos_like(rng, mag_i, u, v)
    pool = draw_galaxies(rng, 30.0, 5.0)
    chosen = np.abs(pool["mag_i"][:, None] - mag_i).argmin(0)
    centrals = take(pool, chosen)
    centrals["u"], centrals["v"] = u, v
    return centrals


def _companions(rng: np.random.Generator, u: Values, v: Values) -> Catalogue:
    """Galaxies beside others, at 0.4 to 4 arcsec."""
    of = np.repeat(np.arange(len(u)), rng.choice(len(COMPANIONS), len(u), p=COMPANIONS))
    distance, direction = rng.uniform(*COMPANION_DISTANCE, len(of)), rng.uniform(0, 2 * np.pi, len(of))
    mag_i = _counts(rng, len(of), 19.5, 26.0, 0.28)
    return cosmos_like(rng, mag_i, u[of] + distance * np.cos(direction), v[of] + distance * np.sin(direction))


def _galaxies(rng: np.random.Generator, mag_i: Values, rows: dict[str, Any], colour_scatter: float) -> Catalogue:
    """Complete rows of galaxies: directions, colours, and bulges of the larger late ones."""
    n, late = len(mag_i), rows["sersic_n"] < 2.2
    with_bulge = late & (mag_i < 22.5) & (rng.random(n) < 0.6)
    fraction = np.where(with_bulge, rng.beta(1.2, 4.0, n), 0.0)
    colours = galaxy_magnitudes(rng, mag_i, rows["z"], rows["red"])
    shift = colour_scatter * rng.normal(size=(2, n))  # dust, age and metals beyond the two tracks
    colours["mag_g"] += shift[0] + shift[1]
    colours["mag_r"] += shift[1]
    colours["mag_VIS"] += 0.3 * shift[1]
    rows = rows | {
        "angle": rng.uniform(0, np.pi, n), "main_re": rows["re"], "bulge_fraction": fraction,
        "bulge_re": np.where(fraction > 0, 0.25 * rows["re"], np.nan),
    }  # fmt: skip
    return columns("galaxy", rows | colours)


def _counts(rng: np.random.Generator, n: int, brightest: float, faintest: float, slope: float) -> Values:
    """Magnitudes whose counts are proportional to 10^(slope m)."""
    return faintest + np.log10(1 - rng.random(n) * (1 - 10 ** (-slope * (faintest - brightest)))) / slope


def _redshifts(rng: np.random.Generator, mag_i: Values) -> Values:
    """p(z) proportional to z^2 exp(-(z/z0)^1.5), its median rising with magnitude, to i = 27."""
    faintness = np.clip(mag_i, 18.5, 26.0) - 22.5
    median = 0.66 + 0.11 * faintness + 0.025 * faintness**2
    return np.clip(median / 1.41 * rng.gamma(2.0, 1.0, len(mag_i)) ** (1 / 1.5), 0.03, 4.5)


def _role(catalogue: Catalogue, role: str) -> Catalogue:
    return catalogue | {"role": np.full(len(catalogue["u"]), role, "U9")}
