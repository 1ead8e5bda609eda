"""Physical scale of a simulated cloud: what the units of `state` stand for, at 10 K and for a box of 4 pc."""

from __future__ import annotations

import math
from dataclasses import dataclass

from surveybridge.bridge_core.polarisation import MASS
from surveybridge.bridge_core.widths import PARSEC

SOUND = 1.9e4
"""Speed of sound at 10 K, cm/s."""
GRAVITY = 6.674e-8
"""cm^3 g^-1 s^-2."""
BOX = 4.0
"""Side of the box, pc."""


@dataclass(frozen=True)
class CloudUnits:
    """Physical units of a box.

    Parameters
    ----------
    density : float
        Hydrogen nuclei per cm^3 where the density is 1. Without gravity the equations hold for any.
    """

    density: float = 1000.0

    @property
    def column(self) -> float:
        """Column density of the mean density through the box, cm^-2."""
        return self.density * BOX * PARSEC

    @property
    def field(self) -> float:
        """Microgauss where the field is 1: sqrt(4 pi rho0) c_s."""
        return 1e6 * math.sqrt(4 * math.pi * MASS * self.density) * SOUND


def with_gravity(g4: float) -> CloudUnits:
    """The units in which a box of 4 pc at 10 K has a strength of gravity G4 = 4 pi G rho0 L^2 / c_s^2."""
    return CloudUnits(g4 * SOUND**2 / (4 * math.pi * GRAVITY * MASS * (BOX * PARSEC) ** 2))
