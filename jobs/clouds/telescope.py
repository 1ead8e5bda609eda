"""Maps as telescopes would see them: through a beam, with noise in column, Stokes parameters and line widths."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from surveybridge.bridge_core.correlate import gaussian_line
from surveybridge.jobs.clouds.projection import Sums, angle, dispersion
from surveybridge.jobs.clouds.units import SOUND, CloudUnits

COLUMN_SHARE, COLUMN_FLOOR = 0.05, 3e20
"""Noise of column densities: a share of them, and cm^-2."""
STOKES_SHARE = 0.05
"""Noise of Stokes Q and U, as a share of the median polarised intensity of a map: that of psi is half of it over P."""
WIDTH_SHARE = 0.05
"""Noise of velocity dispersions, a share of them."""
BEAMS = (1.0, 3.0)
"""Least and greatest FWHM of the beam, pixels."""


@dataclass(frozen=True)
class Telescope:
    """A beam, and the random numbers of the noise.

    Parameters
    ----------
    beam : float
        FWHM, pixels.
    rng : numpy.random.Generator
        What the noise follows from.
    """

    beam: float
    rng: np.random.Generator

    def observe(self, sums: Sums, units: CloudUnits) -> dict[str, Tensor]:
        """Observed maps `column`, `psi` and `sigma_v`, [n, n]; column densities that are not above 0 are NaN."""
        planes = torch.stack([sums.mass, sums.momentum, sums.energy, sums.stokes_q, sums.stokes_u])
        mass, momentum, energy, q, u = smooth(planes, self.beam)
        column = mass * units.column
        column = column * (1 + COLUMN_SHARE * self._normal(column)) + COLUMN_FLOOR * self._normal(column)
        noise = STOKES_SHARE * torch.hypot(q, u).median()
        psi = angle(q + noise * self._normal(q), u + noise * self._normal(u))
        width = dispersion(mass, momentum, energy) * SOUND
        return {
            "column": column.masked_fill(column <= 0, float("nan")),
            "psi": psi,
            "sigma_v": width * torch.exp(WIDTH_SHARE * self._normal(width)),
        }

    def _normal(self, like: Tensor) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(tuple(like.shape))).to(like)


def smooth(planes: Tensor, fwhm: float) -> Tensor:
    """Planes [P, H, W] through a Gaussian beam, FWHM in pixels; the sky beyond their edges is their mirror image."""
    sigma = fwhm / math.sqrt(8 * math.log(2))
    reach = min(math.ceil(4 * sigma), min(planes.shape[1:]) - 1)
    kernel = gaussian_line(sigma, reach, planes)
    kernel = kernel / kernel.sum()
    wide = F.pad(planes[:, None], (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(wide, kernel[None, None, None]), kernel[None, None, :, None])[:, 0]
