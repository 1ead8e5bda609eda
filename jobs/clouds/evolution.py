"""Evolution of a gas: steps of a Runge-Kutta method of second order (Shu & Osher 1988), with driving and gravity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from surveybridge.jobs.clouds.driving import Driving
from surveybridge.jobs.clouds.gravity import acceleration
from surveybridge.jobs.clouds.state import FLOOR, State, centred_field, rms_velocity
from surveybridge.jobs.clouds.transport import Rates, rates

COURANT = 0.4


@dataclass(frozen=True)
class Progress:
    """What a piece of an evolution took.

    Attributes
    ----------
    steps : int
        Steps that were made.
    floored : int
        Cells, summed over steps, whose density was raised to the floor.
    """

    steps: int
    floored: int


def evolve(
    state: State, duration: float, driving: Driving | None = None, g4: float = 0.0, changes: Rates = rates
) -> tuple[State, Progress]:
    """Let a gas evolve for some time.

    Parameters
    ----------
    state : State
        Where it begins.
    duration : float
        In units of L / c_s.
    driving : Driving, optional
        Acceleration of turbulence; it goes on where an earlier call has left it.
    g4 : float
        Strength of its own gravity, see `gravity.strength`; 0 for none.
    changes : callable
        `transport.rates`, or what does its work.
    """
    now, steps, floored = 0.0, 0, 0
    pattern, until = None, duration
    while now < duration * (1 - 1e-9):
        if driving is not None and (pattern is None or now >= until * (1 - 1e-9)):
            if pattern is not None:
                driving.advance()
            pattern = driving.pattern(state.density) * driving.amplitude(rms_velocity(state))
            until = min(duration, now + driving.interval)
        dt = min(time_step(state), until - now)
        state, low = step(state, dt, _force(pattern, g4), changes)
        now, steps, floored = now + dt, steps + 1, floored + low
    if driving is not None:
        driving.advance()
    return state, Progress(steps, floored)


def time_step(state: State) -> float:
    """Longest stable step."""
    speed = torch.sqrt(1 + centred_field(state.field).square().sum(0) / state.density)
    return COURANT * state.cell / float((state.velocity.abs() + speed).max())


def step(
    state: State, dt: float, force: Callable[[Tensor], Tensor] | None = None, changes: Rates = rates
) -> tuple[State, int]:
    """Make one step; returns the number of cells whose density was raised to the floor as well.

    `force` gives the acceleration [3, X, Y, Z] of gas of a density [X, Y, Z].
    """

    def after(begin: State) -> State:
        rate = changes(begin)
        if force is not None:
            push = begin.density * force(begin.density)
            # none of it moves the box as a whole
            push = push - push.mean((1, 2, 3), keepdim=True) * begin.density / begin.density.mean()
            rate.gas[1:] += push
        return State(begin.gas + dt * rate.gas, begin.field + dt * rate.field)

    first, low = _floored(after(state))
    second = after(first)
    last, lower = _floored(State((state.gas + second.gas) / 2, (state.field + second.field) / 2))
    return last, low + lower


def _floored(state: State) -> tuple[State, int]:
    """Gas that is at rest, with the least density, where there was less."""
    low = state.density < FLOOR
    count = int(low.sum())
    if not count:
        return state, 0
    gas = torch.where(low, torch.zeros_like(state.gas), state.gas)
    gas[0] = state.density.clamp(min=FLOOR)
    return State(gas, state.field), count


def _force(pattern: Tensor | None, g4: float) -> Callable[[Tensor], Tensor] | None:
    if pattern is None and not g4:
        return None

    def force(density: Tensor) -> Tensor:
        pulled = acceleration(density, g4) if g4 else torch.zeros_like(density)
        return pulled if pattern is None else pulled + pattern

    return force
