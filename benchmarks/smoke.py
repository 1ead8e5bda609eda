"""Smoke that rises in a closed box around obstacles: a small solver, and the scenes that it is run on.

A state is float32 [N, 3, H, W]: smoke in the cells, and the velocity through their left and their lower faces in cells
per unit of time (the staggered grid of Harlow & Welch 1965). Rows go upwards. Walls are free of friction, and so are
obstacles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 32
X, Y = -1, -2

LIFT = 0.07
"""Acceleration of a cell full of smoke, cells per unit of time squared."""
SUBSTEPS = 2
"""Of a call of the solver: smoke may cross half a cell in each."""
INFLOW = 8
"""Units of time for which a source makes smoke before the start."""


@dataclass(frozen=True)
class Smoke:
    """Advection of smoke and velocity, lift, and the pressure that keeps the flow free of divergence.

    Smoke moves by fluxes through the faces of cells (van Leer 1974), so that none is lost; velocity by looking back
    along itself (Stam 1999). A negative dt does the same with the flow and its lift turned round: it is no exact
    inverse, but it is as stable.

    Parameters
    ----------
    fluid
        [M, 1, H, W], 1 in cells that are free and 0 in obstacles. Of N states the first N / M are in the first scene.
    inverse
        [M, H W, H W], of the Laplacian of each scene (`inverse_laplacian`).
    """

    fluid: Tensor
    inverse: Tensor

    @classmethod
    def around(cls, fluid: Tensor) -> Smoke:
        """The solver for scenes [M, 1, H, W]."""
        return cls(fluid, torch.stack([inverse_laplacian(scene) for scene in fluid]))

    def scenes(self, rows: Tensor) -> Smoke:
        """The solver for some of the scenes."""
        return Smoke(self.fluid[rows], self.inverse[rows])

    def log_transfer(self, shape: tuple[int, int]) -> None:
        """Nothing: it is not linear."""
        return

    def forward(self, x: Tensor, dt: float | Tensor) -> Tensor:
        """Return states [N, 3, H, W] after a time dt, or before it; noise that fell into obstacles is dropped."""
        fluid = self.fluid.repeat_interleave(len(x) // len(self.fluid), 0)
        step = dt / SUBSTEPS
        smoke, u, v = (x[:, c : c + 1] for c in range(3))
        smoke = smoke * fluid
        u, v = self.projected(u, v, fluid)
        for _ in range(SUBSTEPS):
            smoke = carried(smoke, step * u, step * v, fluid)
            u, v = (
                looked_up(u, step * u, step * 0.5 * (mid(v, X, -1) + mid(after(v, Y), X, -1))),
                looked_up(v, step * 0.5 * (mid(u, Y, -1) + mid(after(u, X), Y, -1)), step * v),
            )
            v = v + step * LIFT * mid(smoke, Y, -1)
            u, v = self.projected(u, v, fluid)
        return torch.cat([smoke, u, v], 1)

    def projected(self, u: Tensor, v: Tensor, fluid: Tensor) -> tuple[Tensor, Tensor]:
        """The part of a velocity that has no divergence and goes through no wall."""
        u, v = u * open_faces(fluid, X), v * open_faces(fluid, Y)
        scenes, cells = len(self.fluid), SIDE * SIDE
        sources = divergence(u, v).reshape(scenes, -1, cells)
        pressure = (sources @ self.inverse.mT).reshape(u.shape)
        slope_x, slope_y = pressure - before(pressure, X), pressure - before(pressure, Y)
        return u - slope_x * open_faces(fluid, X), v - slope_y * open_faces(fluid, Y)


def before(x: Tensor, axis: int) -> Tensor:
    """The value in the cell to the left, or below; 0 beyond the wall."""
    return F.pad(x, (1, 0) if axis == X else (0, 0, 1, 0)).narrow(axis, 0, SIDE)


def after(x: Tensor, axis: int) -> Tensor:
    """The value in the cell to the right, or above; 0 beyond the wall."""
    return F.pad(x, (0, 1) if axis == X else (0, 0, 0, 1)).narrow(axis, 1, SIDE)


def mid(x: Tensor, axis: int, way: int) -> Tensor:
    """Mean of a value and that before (-1) or after it (1)."""
    return 0.5 * (x + (before(x, axis) if way < 0 else after(x, axis)))


def open_faces(fluid: Tensor, axis: int) -> Tensor:
    """1 where the left or lower face of a cell has fluid to both sides."""
    return fluid * before(fluid, axis)


def divergence(u: Tensor, v: Tensor) -> Tensor:
    """What flows out of each cell less what flows in."""
    return after(u, X) - u + after(v, Y) - v


def carried(smoke: Tensor, u: Tensor, v: Tensor, fluid: Tensor) -> Tensor:
    """Smoke after it went u, v cells: in second order where it is smooth, in first at edges."""
    for axis, courant in ((X, u), (Y, v)):
        difference = (smoke - before(smoke, axis)) * open_faces(fluid, axis)
        other = after(difference, axis)
        product = difference * other
        same = product > 0  # else a largest or smallest value, which stays flat
        slope = torch.where(same, 2 * product / torch.where(same, difference + other, 1.0), 0.0)
        left = before(smoke, axis) + 0.5 * (1 - courant) * before(slope, axis)
        right = smoke - 0.5 * (1 + courant) * slope
        flux = courant * torch.where(courant > 0, left, right)
        smoke = smoke - (after(flux, axis) - flux)
    return smoke


def looked_up(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Values u, v cells upstream, by linear interpolation."""
    rows = torch.arange(SIDE, dtype=x.dtype)
    grid = torch.stack([rows[None, :] - u[:, 0], rows[:, None] - v[:, 0]], -1) * (2 / (SIDE - 1)) - 1
    return F.grid_sample(x, grid, padding_mode="border", align_corners=True)


def inverse_laplacian(fluid: Tensor) -> Tensor:
    """Inverse [H W, H W] of the Laplacian between the free cells of one scene [1, H, W]: at 32 x 32 it takes 4 MB.

    A constant pressure, which the Laplacian does not see, becomes its own image, as does pressure in obstacles.
    """
    cells, fluid = SIDE * SIDE, fluid[None].double()
    unit = torch.eye(cells, dtype=torch.float64).view(cells, 1, SIDE, SIDE)
    slopes = ((unit - before(unit, axis)) * open_faces(fluid, axis) for axis in (X, Y))
    laplacian = divergence(*slopes).view(cells, cells).T
    free = fluid.flatten()
    whole = laplacian - torch.outer(free, free) / free.sum() - torch.diag(1 - free)
    return torch.linalg.inv(whole).float()


def scenes(count: int, generator: torch.Generator) -> Tensor:
    """Free cells [M, 1, H, W] around a box, a disc or both in the upper part, away from the walls."""
    rows = torch.arange(SIDE) + 0.5
    made = []
    for n in range(count):
        fluid = torch.ones(SIDE, SIDE)
        drawn = torch.rand(2, 4, generator=generator)
        for kind in [("box",), ("disc",), ("box", "disc")][n % 3]:
            x, y, a, b = drawn[0 if kind == "box" else 1]
            dx, dy = (rows[None, :] - (10 + 12 * x)).abs(), (rows[:, None] - (14 + 7 * y)).abs()
            inside = (dx < 1.5 + 3 * a) & (dy < 1.5 + 2 * b) if kind == "box" else dx**2 + dy**2 < (2 + 2 * a) ** 2
            fluid[inside] = 0
        made.append(fluid[None])
    return torch.stack(made)


def starts(solver: Smoke, count: int, generator: torch.Generator) -> Tensor:
    """States [M count, 3, H, W]: what a source near the floor has made in `INFLOW` units of time, from rest."""
    states = count * len(solver.fluid)
    drawn = torch.rand(states, 3, 1, 1, generator=generator)
    rows = torch.arange(SIDE) + 0.5
    distance = torch.hypot(rows[None, None, :] - (11 + 10 * drawn[:, 0]), rows[None, :, None] - (3 + 3 * drawn[:, 1]))
    source = torch.sigmoid(4 * (2 + 1.5 * drawn[:, 2] - distance))[:, None]
    x = torch.zeros(states, 3, SIDE, SIDE)
    for _ in range(INFLOW):
        x = torch.cat([torch.maximum(x[:, :1], source), x[:, 1:]], 1)
        x = solver.forward(x, 1.0)
    return x
