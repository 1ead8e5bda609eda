"""Everything that shines in a scene as one table of Gaussians: galaxies, their bulges and arms, and stars."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from surveybridge.jobs.simulating.population import BANDS, Catalogue, bulge_fraction, nanojansky
from surveybridge.jobs.simulating.profiles import WIDTHS, mixture

Values = NDArray[np.float64]

FAINTEST = 0.02
"""nJy: a Gaussian of less flux, and less than 0.2% of its profile, is left out; the others take its flux over."""


@dataclass(frozen=True)
class Components:
    """Gaussians on the sky.

    Attributes
    ----------
    u, v : float64 [N]
        Centres, arcsec.
    covariance : float64 [N, 3]
        uu, uv and vv elements, arcsec^2; 0 of a point.
    flux : float64 [N, 4]
        nJy in `BANDS`.
    """

    u: Values
    v: Values
    covariance: Values
    flux: Values

    def __len__(self) -> int:
        return len(self.u)

    @classmethod
    def join(cls, *parts: Components) -> Components:
        """All of them in one table."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def components_of(catalogue: Catalogue) -> Components:
    """Gaussians of galaxies and stars, with the ellipticities that `population` gives them.

    A galaxy's column `arms`, where there is one, is the share of the disc's flux in each band that `spirals` draws.
    """
    flux = np.stack([nanojansky(catalogue[f"mag_{band}"]) for band in BANDS], -1)
    bulge = np.stack([bulge_fraction(catalogue, band) for band in BANDS], -1)
    galaxy = catalogue["kind"] != "star"
    q = catalogue["q"]
    e = (1 - q) / (1 + q)
    rounder = (1 - 0.5 * e) / (1 + 0.5 * e)  # a bulge is rounder than its disc
    disc_flux = flux * (1 - bulge) * (1 - catalogue.get("arms", np.zeros_like(flux)))
    angle, index = catalogue["angle"], catalogue["sersic_n"]
    with_bulge = galaxy & (bulge[:, 2] > 0)
    at = {"u": catalogue["u"], "v": catalogue["v"]}
    parts = [
        _profiles({key: value[galaxy] for key, value in at.items()}, index[galaxy],
                  ellipses(catalogue["main_re"], q, angle)[galaxy], disc_flux[galaxy]),
        _profiles({key: value[with_bulge] for key, value in at.items()}, np.full(with_bulge.sum(), 4.0),
                  ellipses(catalogue["bulge_re"], rounder, angle)[with_bulge], (flux * bulge)[with_bulge]),
    ]  # fmt: skip
    star = ~galaxy
    parts.append(Components(catalogue["u"][star], catalogue["v"][star], np.zeros((star.sum(), 3)), flux[star]))
    return Components.join(*parts)


def ellipses(radius: Values, q: Values, angle: Values) -> Values:
    """Covariances [N, 3] of Gaussians of standard deviation `radius`, sheared to the axis ratio q at equal area."""
    cos, sin = np.cos(angle), np.sin(angle)
    major, minor = radius**2 / q, radius**2 * q
    return np.stack([major * cos**2 + minor * sin**2, (major - minor) * sin * cos, major * sin**2 + minor * cos**2], -1)


def _profiles(at: dict[str, Values], index: Values, ellipse: Values, flux: Values) -> Components:
    """Sersic profiles as Gaussians; `ellipse` is the covariance that a width of one half-light radius would have."""
    weights = mixture(index)
    strongest = flux.max(-1, initial=0.0)[:, None]
    kept = weights * strongest > np.minimum(FAINTEST, 0.002 * strongest)
    weights = np.where(kept, weights, 0.0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    which, width = np.nonzero(kept)
    return Components(
        at["u"][which],
        at["v"][which],
        ellipse[which] * WIDTHS[width, None] ** 2,
        flux[which] * weights[which, width, None],
    )
