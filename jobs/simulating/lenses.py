"""Strong lenses of a simulated sky: SIE deflectors and the arcs they make of a blue source, by ray shooting.

A bright red elliptical (its light a Sersic profile, its mass a singular isothermal ellipsoid, Kormann, Schneider and
Bartelmann 1994, with external shear) stands before a small blue disc. The lens equation beta = theta - alpha(theta) is
evaluated with lenstronomy; surface brightness is conserved along each ray.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surveybridge.jobs.simulating.population import (
    BANDS,
    Catalogue,
    columns,
    concatenate,
    galaxy_magnitudes,
    nanojansky,
)

MIN_ARC_SNR = 30.0
"""A lens is kept when its arcs reach this S/N in VIS: lenses that can be seen."""
LENS_MARGIN = 10.0
"""Lenses stay this far inside the Euclid frame, arcsec: clear of its edge and of the part without data."""
VIS_SIGMA = 2.022
RAY_SPACING = 0.025
"""Grid of the rays, arcsec: six a VIS seeing disc."""


@dataclass(frozen=True)
class Arc:
    """The lensed images of one source.

    Attributes
    ----------
    u, v : float
        Centre of the grid (the deflector) on the tangent plane, arcsec.
    shape : ndarray [S, S] float64
        Light, of sum 1, before the PSF; axis 0 along v (north), axis 1 along u (west), `RAY_SPACING` apart.
    flux : dict of float
        Total flux of the images in each band, nJy.
    """

    u: float
    v: float
    shape: NDArray[np.float64]
    flux: dict[str, float]


@dataclass(frozen=True)
class SourceRange:
    """The range from which sources are drawn, uniformly, and the limits for keeping them.

    Attributes
    ----------
    mag_i, re, offset : (float, float)
        Range of the i magnitude before lensing, of the half-light radius in arcsec, of the distance from the lens in
        Einstein radii.
    min_snr, min_magnification : float
        What the images must reach: S/N in VIS, and magnification.
    """

    mag_i: tuple[float, float]
    re: tuple[float, float]
    offset: tuple[float, float]
    min_snr: float
    min_magnification: float


SEEN = SourceRange((24.3, 25.6), (0.14, 0.32), (0.03, 0.45), MIN_ARC_SNR, 3.0)
"""Sources of the lenses of a simulated sky."""


@dataclass(frozen=True)
class LensedImages:
    """Images of one source: the source as `shoot` takes it, their light of sum 1, flux in nJy by band, and numbers."""

    source: dict[str, float]
    shape: NDArray[np.float64]
    flux: dict[str, float]
    magnification: float
    snr: float
    z: float


def draw_lenses(rng: np.random.Generator, n: int, half_size: float) -> tuple[Catalogue, list[Arc]]:
    """Draw `n` lenses with visible arcs inside |u|, |v| < `half_size` arcsec, at least 12 arcsec from each other.

    Parameters
    ----------
    rng : numpy.random.Generator
    n : int
    half_size : float
        Half the side of the square that holds the deflectors, arcsec.

    Returns
    -------
    Catalogue, list of Arc
        The deflectors' rows (their `mag_*` are the deflector's alone, `lensed_mag_*` the arcs') and the arcs.

    Raises
    ------
    RuntimeError
        If the square has no room for so many (callers refuse such a request before).
    """
    places = _places(rng, n, half_size)
    drawn = [_draw_lens(rng, u, v) for u, v in places]
    if not drawn:
        return columns("lens", {"u": np.zeros(0), "v": np.zeros(0)}), []
    return concatenate(*(row for row, _ in drawn)), [arc for _, arc in drawn]


def room_for_lenses(half_size: float) -> int:
    """Return how many lenses 12 arcsec apart surely fit into a square of half side `half_size` arcsec."""
    return max(1, int(0.35 * (2 * half_size / 12.0) ** 2))


def shoot(lens: dict[str, float], source: dict[str, float], half_width: float) -> NDArray[np.float64]:
    """Surface brightness of the lensed source, per square arcsec for a source of flux 1.

    Parameters
    ----------
    lens : dict
        theta_E (arcsec), q, angle (rad, from u towards v), gamma1, gamma2; the deflector is at the origin.
    source : dict
        beta_u, beta_v, re (arcsec), q, angle: an exponential disc (Sersic n = 1).
    half_width : float
        Half the side of the ray grid, arcsec.

    Returns
    -------
    ndarray [S, S] float64
    """
    model, parameters = _lens_model(lens)
    n = 2 * int(np.ceil(half_width / RAY_SPACING)) + 1
    axis = (np.arange(n) - n // 2) * RAY_SPACING
    theta_u, theta_v = np.meshgrid(axis, axis)
    beta_u, beta_v = model.ray_shooting(theta_u.ravel(), theta_v.ravel(), parameters)
    du, dv = beta_u.reshape(n, n) - source["beta_u"], beta_v.reshape(n, n) - source["beta_v"]
    cos, sin, root = np.cos(source["angle"]), np.sin(source["angle"]), np.sqrt(source["q"])
    radius = np.hypot((cos * du + sin * dv) * root, (cos * dv - sin * du) / root) / source["re"]
    b = 1.678347  # exponential disc: gammainc(2, b) = 1/2
    return np.asarray(b**2 / (2 * np.pi * source["re"] ** 2) * np.exp(-b * radius))


def _draw_lens(rng: np.random.Generator, u: float, v: float) -> tuple[Catalogue, Arc]:
    """One deflector at (u, v) with a source that makes arcs of the wanted S/N."""
    theta_e = 0.8 + rng.exponential(0.4) % 1.2
    z = float(np.clip(rng.normal(0.6, 0.14), 0.3, 0.9))
    mag_i = np.array([20.6 - 4.1 * np.log10(theta_e) + 4.0 * (z - 0.65) + 0.3 * rng.normal()])
    q, angle = rng.uniform(0.62, 0.95), rng.uniform(0, np.pi)
    gamma, gamma_angle = 0.03 * np.sqrt(rng.exponential()), rng.uniform(0, np.pi)
    lens = {
        "theta_E": theta_e, "q": 1 - 0.8 * (1 - q), "angle": angle + 0.1 * rng.normal(),
        "gamma1": gamma * np.cos(2 * gamma_angle), "gamma2": gamma * np.sin(2 * gamma_angle),
    }  # fmt: skip
    images = draw_images(rng, lens, SEEN)
    source, flux = images.source, images.flux
    row = {
        "u": u, "v": v, "z": z, "red": True, "re": 0.55 * theta_e**0.6 * np.exp(0.25 * rng.normal()),
        "sersic_n": rng.choice([3.5, 4.0, 4.5]), "q": q, "angle": angle, "bulge_fraction": 0.0, "z_source": images.z,
        "theta_E": theta_e, "gamma1": lens["gamma1"], "gamma2": lens["gamma2"], "magnification": images.magnification,
        "arc_snr_vis": images.snr, "n_images": _count_images(lens, source),
        **{f"lensed_mag_{band}": 31.4 - 2.5 * np.log10(flux[band]) for band in BANDS},
    }  # fmt: skip
    row["main_re"] = row["re"]
    arrays = {name: np.atleast_1d(value) for name, value in row.items()}
    arrays |= galaxy_magnitudes(rng, mag_i, np.array([z]), np.ones(1, bool))
    return columns("lens", arrays), Arc(u, v, images.shape, flux)


def draw_images(
    rng: np.random.Generator, lens: dict[str, float], sources: SourceRange, sigma: float = VIS_SIGMA
) -> LensedImages:
    """Draw blue discs behind a lens until one makes arcs that are bright enough (the last of 200 tries, if none does).

    Parameters
    ----------
    rng : numpy.random.Generator
    lens : dict
        As `shoot` takes it.
    sources : SourceRange
    sigma : float
        Sky noise of VIS, nJy per pixel of 0.1 arcsec.
    """
    theta_e = lens["theta_E"]
    half_width = 2.2 * theta_e + 1.5
    for _ in range(200):
        radius, direction = theta_e * rng.uniform(*sources.offset), rng.uniform(0, 2 * np.pi)
        source = {
            "beta_u": radius * np.cos(direction), "beta_v": radius * np.sin(direction),
            "re": rng.uniform(*sources.re), "q": rng.uniform(0.4, 0.95), "angle": rng.uniform(0, np.pi),
        }  # fmt: skip
        z = np.array([rng.uniform(1.3, 2.8)])
        mags = galaxy_magnitudes(rng, rng.uniform(*sources.mag_i, 1), z, np.zeros(1, bool))
        light = shoot(lens, source, half_width) * RAY_SPACING**2
        magnification = float(light.sum())
        flux = {band: float(nanojansky(mags[f"mag_{band}"])[0]) * magnification for band in BANDS}
        snr = _arc_snr(light * flux["VIS"] / magnification, sigma)
        if snr >= sources.min_snr and magnification >= sources.min_magnification:
            break
    return LensedImages(source, light / magnification, flux, magnification, snr, float(z[0]))


def _arc_snr(light: NDArray[np.float64], sigma: float) -> float:
    """S/N of the pixels (0.1 arcsec) where the arcs exceed the sky noise of VIS."""
    block = round(0.1 / RAY_SPACING)
    n = len(light) // block * block
    pixels = light[:n, :n].reshape(n // block, block, n // block, block).sum((1, 3))
    seen = pixels[pixels > sigma]
    return float(seen.sum() / (sigma * np.sqrt(len(seen)))) if len(seen) else 0.0


def _count_images(lens: dict[str, float], source: dict[str, float]) -> float:
    """Number of images of the source's centre (those of a point source)."""
    from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver

    model, parameters = _lens_model(lens)
    images, _ = LensEquationSolver(model).image_position_from_source(
        source["beta_u"], source["beta_v"], parameters, min_distance=0.04, search_window=6 * lens["theta_E"],
        magnification_limit=0.02,  # the singular centre is no image
    )  # fmt: skip
    return float(len(images))


def _lens_model(lens: dict[str, float]):  # type: ignore[no-untyped-def]  # lenstronomy has no type hints
    """The lenstronomy model and its parameters."""
    from lenstronomy.LensModel.lens_model import LensModel

    e = (1 - lens["q"]) / (1 + lens["q"])
    sie = {
        "theta_E": lens["theta_E"], "e1": e * np.cos(2 * lens["angle"]), "e2": e * np.sin(2 * lens["angle"]),
        "center_x": 0.0, "center_y": 0.0,
    }  # fmt: skip
    return LensModel(["SIE", "SHEAR"]), [sie, {"gamma1": lens["gamma1"], "gamma2": lens["gamma2"]}]


def _places(rng: np.random.Generator, n: int, half_size: float) -> list[tuple[float, float]]:
    """`n` random places at least 12 arcsec apart."""
    places: list[tuple[float, float]] = []
    for _ in range(20_000):
        if len(places) == n:
            return places
        u, v = rng.uniform(-half_size, half_size, 2)
        if all(np.hypot(u - a, v - b) > 12.0 for a, b in places):
            places.append((float(u), float(v)))
    raise RuntimeError(f"no room for {n} lenses 12 arcsec apart in {2 * half_size:.0f} x {2 * half_size:.0f} arcsec")
