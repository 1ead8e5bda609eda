"""Rivals that astronomers use: a power-law fit for densities, polarisation angles for fields, widths of structure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surveybridge.bridge_core.patches import fill_masked
from surveybridge.bridge_core.polarisation import IN_SPACE, LARGEST, angle_dispersion, field_strength
from surveybridge.bridge_core.power_laws import PowerLaws
from surveybridge.bridge_core.widths import PARSEC, depth
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.evaluating.rivals.maps import CloudMaps

BOX = 11
"""Side of the box in which angles scatter, pixels."""


@dataclass(frozen=True)
class PowerLawRival:
    """Density from column density by three power laws.

    Parameters
    ----------
    laws
        Fitted to training pairs.
    column
        Name of the map of columns.
    """

    laws: PowerLaws
    column: str = "column"
    name: str = "3PLF"
    calls: int = 0

    def predict(self, seen: CloudMaps, samples: int) -> Tensor:
        """See `Rival.predict`."""
        return _copies(self.laws(seen.values[self.column]), samples)


@dataclass(frozen=True)
class PolarisationRival:
    """Field strength by the method of Davis, Chandrasekhar and Fermi, with the density from three power laws.

    Parameters
    ----------
    laws
        Of the density.
    names
        Maps of columns, angles and velocity dispersions.
    in_space
        Whether the field in space is wanted, or that in the plane of the sky.
    box
        Side of the box in which angles scatter, pixels, odd.
    """

    laws: PowerLaws
    names: Sequence[str] = ("column", "psi", "sigma_v")
    in_space: bool = False
    box: int = BOX
    name: str = "DCF"
    calls: int = 0

    def predict(self, seen: CloudMaps, samples: int) -> Tensor:
        """See `Rival.predict`."""
        column, psi, sigma_v = (seen.values[name] for name in self.names)
        field = field_strength(self.laws(column).double(), sigma_v.double(), angle_dispersion(psi, self.box))
        return _copies(field * (IN_SPACE if self.in_space else 1.0), samples)

    def beyond(self, seen: CloudMaps) -> tuple[float, float]:
        """Count the pixels whose angles scatter by more than the method allows, 25 degrees, and those with an angle."""
        dispersion = angle_dispersion(seen.values[self.names[1]], self.box)[seen.known]
        return float((dispersion > LARGEST).sum()), float(torch.isfinite(dispersion).sum())


@dataclass(frozen=True)
class WidthRival:
    """Density as column over depth, which is as structure is wide on the sky; nothing is fitted.

    Parameters
    ----------
    column
        Name of the map of columns.
    """

    column: str = "column"
    name: str = "MDR"
    calls: int = 0

    def predict(self, seen: CloudMaps, samples: int) -> Tensor:
        """See `Rival.predict`."""
        if math.isnan(seen.pixel_pc):
            raise RequestError("the store does not say pixel_pc, the side of a pixel in pc, which MDR needs; add it")
        column = seen.values[self.column].double()
        # scaled, since fills are sums of many: 1e22 cm-2 are no problem, their squares would be
        filled = fill_masked(column, torch.isfinite(column) & (column > 0))
        return _copies(filled / (depth(filled) * seen.pixel_pc * PARSEC), samples)


def _copies(answer: Tensor, samples: int) -> Tensor:
    return answer.expand(samples, *answer.shape)
