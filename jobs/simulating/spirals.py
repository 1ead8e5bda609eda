"""Arms and clumps of late galaxies, as Gaussians in the plane of the disc."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from surveybridge.jobs.simulating.components import Components
from surveybridge.jobs.simulating.population import BANDS, Catalogue, nanojansky

Values = NDArray[np.float64]

FAINTEST = 23.5
"""Galaxies fainter than this in i are smooth."""

BLUER = np.array([1.0, 0.75, 0.62, 0.68])
"""Share of the light of arms over that in g, in `BANDS`: young stars are bluer than the disc."""


def with_arms(rng: np.random.Generator, catalogue: Catalogue, often: float) -> tuple[Catalogue, Components]:
    """Give a share of the late galaxies spiral arms or clumps.

    Parameters
    ----------
    rng : numpy.random.Generator
    catalogue : Catalogue
    often : float
        Share of the late galaxies that are large and bright enough.

    Returns
    -------
    Catalogue, Components
        The catalogue with the column `arms` [N, 4], the share of each disc's flux in its arms, and the arms.
    """
    n = len(catalogue["u"])
    shares = np.zeros((n, len(BANDS)))
    late = (catalogue["kind"] != "star") & (catalogue["sersic_n"] < 2.2) & (catalogue["mag_i"] < FAINTEST)
    chosen = np.flatnonzero(late & (catalogue["main_re"] > 0.3) & (rng.random(n) < often))
    parts = [Components(np.zeros(0), np.zeros(0), np.zeros((0, 3)), np.zeros((0, len(BANDS))))]
    for k in chosen:
        shares[k] = rng.uniform(0.12, 0.5) * BLUER
        grand = catalogue["mag_i"][k] < 22 and rng.random() < 0.75
        x, y, width, weight = _spiral(rng) if grand else _clumps(rng)
        q, angle, radius = catalogue["q"][k], catalogue["angle"][k], catalogue["main_re"][k]
        cos, sin = np.cos(angle), np.sin(angle)
        axes = radius * np.array([[cos / np.sqrt(q), -sin * np.sqrt(q)], [sin / np.sqrt(q), cos * np.sqrt(q)]])
        u, v = axes @ np.stack([x, y])
        shape = axes @ axes.T  # lumps lie in the disc
        flux = np.array([nanojansky(catalogue[f"mag_{band}"][k]) for band in BANDS])
        flux = flux * (1 - catalogue["bulge_fraction"][k]) * shares[k]
        parts.append(
            Components(
                catalogue["u"][k] + u,
                catalogue["v"][k] + v,
                width[:, None] ** 2 * shape[[0, 0, 1], [0, 1, 1]],
                weight[:, None] * flux,
            )
        )
    return catalogue | {"arms": shares}, Components.join(*parts)


def _spiral(rng: np.random.Generator) -> tuple[Values, Values, Values, Values]:
    """Two to four logarithmic arms of lumps: places and widths in half-light radii, and shares of the light."""
    arms, pitch = int(rng.choice([2, 2, 2, 3, 4])), np.deg2rad(rng.uniform(10, 32))
    per_arm, turns = int(rng.integers(50, 110)), rng.uniform(0.6, 1.4)
    winding = np.repeat(rng.uniform(0, 2 * np.pi * turns, per_arm)[None], arms, 0)
    winding = winding + 0.12 * rng.normal(size=winding.shape)
    radius = rng.uniform(0.25, 0.45) * np.exp(np.tan(pitch) * winding)
    radius = radius * np.exp(0.07 * rng.normal(size=radius.shape))
    angle = rng.choice([-1.0, 1.0]) * winding + 2 * np.pi * np.arange(arms)[:, None] / arms
    weight = np.exp(-radius / 0.6) * rng.exponential(1.0, radius.shape) * radius
    width = 0.09 * np.exp(0.35 * rng.normal(size=radius.shape)) * np.sqrt(radius / 0.6)
    keep = radius < 3.2
    radius, angle, weight, width = (values[keep] for values in (radius, angle, weight, width))
    return radius * np.cos(angle), radius * np.sin(angle), width, weight / weight.sum()


def _clumps(rng: np.random.Generator) -> tuple[Values, Values, Values, Values]:
    """Three to twelve clumps anywhere in the disc, as `_spiral`."""
    count = int(rng.integers(3, 13))
    radius, angle = 0.6 * rng.gamma(2.0, 0.6, count), rng.uniform(0, 2 * np.pi, count)
    weight = rng.exponential(1.0, count)
    return radius * np.cos(angle), radius * np.sin(angle), rng.uniform(0.06, 0.25, count), weight / weight.sum()
