"""The state of an isothermal magnetised gas in a periodic box: densities and momenta of cells, field through faces.

Units: the box is 1 along its first axis, the mean density 1, the speed of sound 1, and the magnetic pressure B^2 / 2,
so that pressure is density and the Alfven speed B / sqrt(rho).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-3
"""Least density."""


@dataclass(frozen=True, eq=False)
class State:
    """A gas at one time.

    Attributes
    ----------
    gas : Tensor [4, X, Y, Z] float
        Density and the three components of momentum, means of cells.
    field : Tensor [3, X, Y, Z] float
        Component d of the field, mean over the left face of each cell along axis d.
    """

    gas: Tensor
    field: Tensor

    @property
    def cell(self) -> float:
        """Side of a cell."""
        return 1.0 / self.gas.shape[1]

    @property
    def density(self) -> Tensor:
        """Density of cells, [X, Y, Z]."""
        return self.gas[0]

    @property
    def velocity(self) -> Tensor:
        """Velocity of cells, [3, X, Y, Z]."""
        return self.gas[1:] / self.gas[0]


def uniform(shape: tuple[int, int, int], field: tuple[float, float, float], like: Tensor) -> State:
    """Gas of density 1 at rest in a uniform field, with the dtype and on the device of `like`."""
    gas = like.new_zeros((4, *shape))
    gas[0] = 1.0
    return State(gas, like.new_tensor(field)[:, None, None, None].expand(3, *shape).clone())


def centred_field(field: Tensor) -> Tensor:
    """Field of cells, the mean of that through two faces, [3, X, Y, Z]."""
    return torch.stack([(field[d] + torch.roll(field[d], -1, d)) / 2 for d in range(3)])


def divergence(state: State) -> Tensor:
    """Divergence of the field in each cell, [X, Y, Z]."""
    faces = [torch.roll(state.field[d], -1, d) - state.field[d] for d in range(3)]
    return (faces[0] + faces[1] + faces[2]) / state.cell


def rms_velocity(state: State) -> float:
    """Root mean square velocity, weighted by mass."""
    return float(torch.sqrt((state.gas[1:].square().sum(0) / state.gas[0]).mean() / state.gas[0].mean()))
