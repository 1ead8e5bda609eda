"""Maps of a cube of gas seen from some direction: sums along lines of sight, and the physical maps that they make.

A cube is a tensor [7, n, n, n] of density, velocity and field at the centres of cells. Rows of a map lie along the
first axis of the cube, columns along the second, lines of sight along the third.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.jobs.clouds.state import State, centred_field
from surveybridge.jobs.clouds.units import SOUND, CloudUnits

AXES: tuple[NDArray[np.float64], ...] = tuple(np.roll(np.eye(3), shift, axis=0) for shift in range(3))
"""Views along z, y and x."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Means along lines of sight [n, n], weighted by density; all but `mass` and `densest` add up over a beam.

    Attributes
    ----------
    mass : Tensor
        Density.
    momentum, energy : Tensor
        Velocity along the line of sight, and its square.
    stokes_q, stokes_u : Tensor
        Polarised emission of dust as if along the field in the plane of the sky: cos 2 psi and sin 2 psi, times the
        square of the cosine of the field's inclination to it.
    square : Tensor
        Density.
    field, field_total : Tensor
        Field strength in the plane of the sky, and in space.
    densest : Tensor
        Greatest density along the line.
    """

    mass: Tensor
    momentum: Tensor
    energy: Tensor
    stokes_q: Tensor
    stokes_u: Tensor
    square: Tensor
    field: Tensor
    field_total: Tensor
    densest: Tensor


def cube_of(state: State) -> Tensor:
    """Density, velocity and field at the centres of cells, [7, n, n, n]."""
    return torch.cat([state.density[None], state.velocity, centred_field(state.field)])


def turn(cube: Tensor, rotation: NDArray[np.float64]) -> Tensor:
    """The cube in turned axes: periodic trilinear interpolation, vectors turn as well.

    Parameters
    ----------
    cube : Tensor [7, n, n, n] float
    rotation : float64 [3, 3]
        Its rows are the new axes in the old ones.
    """
    n = cube.shape[1]
    matrix = torch.from_numpy(np.ascontiguousarray(rotation)).to(cube)
    centred = torch.arange(n, dtype=cube.dtype, device=cube.device) - (n - 1) / 2
    new = torch.stack(torch.meshgrid(centred, centred, centred, indexing="ij"), -1)
    places = torch.remainder(new @ matrix + (n - 1) / 2, n)
    padded = F.pad(cube[None], (0, 1, 0, 1, 0, 1), mode="circular")
    grid = (2 * places / n - 1).flip(-1)[None]  # which takes x, the last axis, first
    found = F.grid_sample(padded, grid, mode="bilinear", padding_mode="border", align_corners=True)[0]
    vectors = torch.einsum("ab,vbxyz->vaxyz", matrix, found[1:].reshape(2, 3, n, n, n))
    return torch.cat([found[:1], vectors.reshape(6, n, n, n)])


def project(cube: Tensor) -> Sums:
    """Sums along the third axis."""
    density, velocity, (b_rows, b_columns, b_sight) = cube[0], cube[3], cube[4:]
    across = b_rows.square() + b_columns.square()
    total = (across + b_sight.square()).clamp(min=1e-12)
    return Sums(
        mass=density.mean(-1),
        momentum=(density * velocity).mean(-1),
        energy=(density * velocity.square()).mean(-1),
        stokes_q=(density * (b_columns.square() - b_rows.square()) / total).mean(-1),
        stokes_u=(density * 2 * b_rows * b_columns / total).mean(-1),
        square=density.square().mean(-1),
        field=(density * across.sqrt()).mean(-1),
        field_total=(density * total.sqrt()).mean(-1),
        densest=density.amax(-1),
    )


def angle(stokes_q: Tensor, stokes_u: Tensor) -> Tensor:
    """Angle psi of the field in the plane of the sky, from columns towards rows, rad in [-pi/2, pi/2]."""
    return torch.atan2(stokes_u, stokes_q) / 2


def dispersion(mass: Tensor, momentum: Tensor, energy: Tensor) -> Tensor:
    """Standard deviation of the velocity along lines of sight, in units of the speed of sound."""
    return (energy / mass - (momentum / mass).square()).clamp(min=0).sqrt()


def physical_maps(sums: Sums, units: CloudUnits, resolved: float = float("inf")) -> dict[str, Tensor]:
    """What there is: maps in the units of `storage.map_names.CLOUD_MAPS`, [n, n].

    Densities and fields are NaN where the line of sight meets gas denser than `resolved`.
    """
    unresolved = sums.densest > resolved
    wanted = {
        "density": sums.square / sums.mass * units.density,
        "field": sums.field / sums.mass * units.field,
        "field_total": sums.field_total / sums.mass * units.field,
    }
    return {
        "column": sums.mass * units.column,
        "psi": angle(sums.stokes_q, sums.stokes_u),
        "sigma_v": dispersion(sums.mass, sums.momentum, sums.energy) * SOUND,
        **{name: values.masked_fill(unresolved, float("nan")) for name, values in wanted.items()},
    }


def random_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """A rotation, all equally likely (Shoemake 1992), [3, 3]."""
    w, x, y, z = (q := rng.standard_normal(4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
