"""Rates of change of a gas: reconstruction, fluxes along the three axes, and constrained transport of the field.

The field changes by the curl of an electric field on the edges of cells, so its divergence stays what it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from surveybridge.jobs.clouds.riemann import hlld
from surveybridge.jobs.clouds.state import FLOOR, State, centred_field

Rates = Callable[[State], State]
"""Rates of change of density, momentum and field."""


def reconstruct(cells: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """States on both sides of the left faces of cells, from slopes limited as van Leer (1974) does.

    Parameters
    ----------
    cells : Tensor [V, X, Y, Z] float
        Means of cells.
    axis : int
        Along which axis of `cells`.
    """
    left = cells - torch.roll(cells, 1, axis)
    right = torch.roll(left, -1, axis)
    product = left * right
    rising = product > 0
    half = torch.where(rising, product / torch.where(rising, left + right, torch.ones_like(left)), 0 * product)
    return torch.roll(cells + half, 1, axis), cells - half


def rates(
    state: State,
    sides: Callable[[Tensor, int], tuple[Tensor, Tensor]] = reconstruct,
    fluxes: Callable[[Tensor, Tensor, Tensor], Tensor] = hlld,
) -> State:
    """Rates of change of density, momentum and field by transport and pressure.

    Parameters
    ----------
    state : State
        Of the gas.
    sides, fluxes : callable, optional
        What does the work of `reconstruct` and `hlld`, where that is not they.
    """
    field = centred_field(state.field)
    velocity = state.velocity
    cells = torch.cat([state.density.clamp(min=FLOOR)[None], velocity, field])
    change = torch.zeros_like(state.gas)
    faces: dict[tuple[int, int], Tensor] = {}
    for d in range(3):
        first, second = (d + 1) % 3, (d + 2) % 3
        order = [0, 1 + d, 1 + first, 1 + second, 4 + first, 4 + second]
        left, right = sides(cells[order], 1 + d)
        through = fluxes(left, right, state.field[d])
        change[[0, 1 + d, 1 + first, 1 + second]] -= torch.roll(through[:4], -1, 1 + d) - through[:4]
        # E = -u x B: the flux of B_t1 along d is -E_t2, that of B_t2 is E_t1
        faces[d, second], faces[d, first] = -through[4], through[5]
    edges = _edges(faces, -torch.linalg.cross(velocity, field, dim=0))
    return State(change / state.cell, -curl(edges) / state.cell)


@functools.cache
def compiled() -> Rates:
    """Return `rates` with its two costly parts compiled, which takes a C++ compiler and a minute; equal to rounding.

    The parts are compiled apart: as one, they take the compiler more than nine minutes, and neighbours could each have
    their own rounding of the flux through the face between them.
    """
    return functools.partial(
        rates,
        sides=torch.compile(reconstruct, fullgraph=True, dynamic=False),
        fluxes=torch.compile(hlld, fullgraph=True, dynamic=False),
    )


def curl(edges: Tensor) -> Tensor:
    """Curl through faces of what is on edges (component d on edges along d), times the side of a cell, [3, X, Y, Z]."""

    def step(component: int, axis: int) -> Tensor:
        return torch.roll(edges[component], -1, axis) - edges[component]

    return torch.stack([step((d + 2) % 3, (d + 1) % 3) - step((d + 1) % 3, (d + 2) % 3) for d in range(3)])


def _edges(faces: dict[tuple[int, int], Tensor], cells: Tensor) -> Tensor:
    """Electric field on edges: twice the mean of four faces less the mean of four cells (Gardiner & Stone 2005)."""
    found = []
    for along in range(3):
        first, second = (along + 1) % 3, (along + 2) % 3
        pairs = cells[along] + torch.roll(cells[along], 1, first)
        around = pairs + torch.roll(pairs, 1, second)
        a, b = faces[first, along], faces[second, along]
        found.append((a + torch.roll(a, 1, second) + b + torch.roll(b, 1, first)) / 2 - around / 4)
    return torch.stack(found)
