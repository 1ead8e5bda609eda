"""Fluxes between two states of isothermal gas: the HLLD solver of Mignone (2007, J. Comput. Phys. 225, 1427).

States are tensors [6, ...] of density, velocity along the normal, two velocities and two fields across it; fluxes are
those of density, the three momenta and the two fields, in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNED = 1e-4
"""Below this share of 1 + u^2 the fast wave runs with the Alfven wave, and the field is not turned between them."""


def hlld(left: Tensor, right: Tensor, normal: Tensor) -> Tensor:
    """Flux through faces between the states on both sides.

    Parameters
    ----------
    left, right : Tensor [6, ...] float
        States on both sides; densities above 0.
    normal : Tensor [...] float
        Field through the faces.

    Returns
    -------
    Tensor [6, ...] float
    """
    through = normal.square()
    c_left, c_right = fast_speed(left, through), fast_speed(right, through)
    s_left = torch.minimum(left[1] - c_left, right[1] - c_right)
    s_right = torch.maximum(left[1] + c_left, right[1] + c_right)
    u_left, u_right = conserved(left), conserved(right)
    f_left, f_right = flux(left, normal, through), flux(right, normal, through)

    # density and normal velocity are those of HLL in the whole fan (section 3.1)
    width = s_right - s_left
    density = (s_right * right[0] - s_left * left[0] - f_right[0] + f_left[0]) / width
    mass_flux = (s_right * f_left[0] - s_left * f_right[0] + s_left * s_right * (right[0] - left[0])) / width
    speed = mass_flux / density
    to_left, to_right = s_left.clamp(max=0), s_right.clamp(min=0)
    along = (to_right * f_left[:2] - to_left * f_right[:2] + to_left * to_right * (u_right[:2] - u_left[:2])) / (
        to_right - to_left
    )

    # across the normal: two Alfven waves, and a state between them (equations 30 to 36)
    root = torch.sqrt(density)
    alfven = normal.abs() / root
    star_left = _star(left, u_left, s_left, density, speed, normal)
    star_right = _star(right, u_right, s_right, density, speed, normal)
    signed = torch.where(normal < 0, -root, root)
    centre = (star_left + star_right) / 2
    turn = star_right - star_left
    centre = centre + torch.cat([turn[2:] * (signed / 2), turn[:2] / (2 * signed)])

    # from the side that the gas comes from, through the waves that run against it
    from_left = speed >= 0
    outer = torch.where(from_left, to_left, to_right)
    inner = torch.where(from_left, (speed - alfven).clamp(max=0), (speed + alfven).clamp(min=0))
    star = torch.where(from_left, star_left, star_right)
    across = torch.where(from_left, f_left[2:], f_right[2:])
    across = across + outer * (star - torch.where(from_left, u_left[2:], u_right[2:])) + inner * (centre - star)
    return torch.cat([along, across])


def fast_speed(state: Tensor, through: Tensor) -> Tensor:
    """Speed of the fast magnetosonic wave along the normal; `through` is the square of the field there."""
    total = 1 + (through + state[4].square() + state[5].square()) / state[0]
    return torch.sqrt((total + torch.sqrt((total.square() - 4 * through / state[0]).clamp(min=0))) / 2)


def conserved(state: Tensor) -> Tensor:
    """Density, momenta and fields of a state, [6, ...]."""
    return torch.cat([state[:1], state[0] * state[1:4], state[4:]])


def flux(state: Tensor, normal: Tensor, through: Tensor) -> Tensor:
    """Flux of a state along the normal, [6, ...]."""
    density, speed, velocity, field = state[0], state[1], state[2:4], state[4:]
    mass = density * speed
    pressure = density + (field[0].square() + field[1].square() - through) / 2
    return torch.cat(
        [
            mass[None],
            (mass * speed + pressure)[None],
            mass * velocity - normal * field,
            speed * field - velocity * normal,
        ]
    )


def _star(state: Tensor, before: Tensor, wave: Tensor, density: Tensor, speed: Tensor, normal: Tensor) -> Tensor:
    """Momenta and fields across the normal behind the outer wave of a side, [4, ...]."""
    through = normal.square()
    relative = wave - state[1]
    resonance = (wave - speed).square() - through / density
    turned = resonance.abs() > ALIGNED * (1 + speed.square())
    safe = torch.where(turned, resonance, torch.ones_like(resonance))
    field = before[4:]
    momentum = density * state[2:4]
    turn = torch.where(turned, normal * (speed - state[1]) / safe, torch.zeros_like(safe))
    stretch = torch.where(turned, (state[0] * relative.square() - through) / (density * safe), torch.ones_like(safe))
    return torch.cat([momentum - turn * field, stretch * field])
