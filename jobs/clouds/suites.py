"""Suites of simulated clouds: which simulations there are in each, and when they are looked at."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from surveybridge.jobs.clouds.gravity import free_fall, strength

VIEWS = 8
"""Directions from which a snapshot is seen: three axes, the others random."""

STREAM = 5.0
"""Speed of each of two colliding streams."""


@dataclass(frozen=True)
class Plan:
    """One simulation.

    Attributes
    ----------
    name : str
        Its id.
    seed : tuple of int
        What all its random numbers follow from.
    mach : float
        Wanted root mean square velocity while it is driven.
    field : float
        Strength of the mean field.
    direction : (float, float, float)
        Unit vector along it.
    solenoidal : float
        Share of the driving that is free of divergence.
    before : float
        Time that turbulence has, in L / c_s, before anything else begins.
    snapshots : tuple of float
        Times after that at which it is looked at.
    virial : float
        Virial parameter, where gravity acts then; infinite without.
    stream : float
        Speed of two streams that then collide; the driving ends.
    fractional : bool
        A fractional Brownian cube, no simulation.
    tail : bool
        Whether that has a power-law tail.
    """

    name: str
    seed: tuple[int, ...]
    mach: float
    field: float
    direction: tuple[float, float, float]
    solenoidal: float = 0.7
    before: float = 0.0
    snapshots: tuple[float, ...] = (0.0,)
    virial: float = math.inf
    stream: float = 0.0
    fractional: bool = False
    tail: bool = False

    @property
    def g4(self) -> float:
        """Strength of gravity, see `gravity.strength`."""
        return 0.0 if math.isinf(self.virial) else strength(self.mach, self.virial)

    @property
    def mean_field(self) -> tuple[float, float, float]:
        """Mean field, as a vector."""
        x, y, z = (self.field * component for component in self.direction)
        return x, y, z


@dataclass(frozen=True)
class Suite:
    """A family of simulations.

    Attributes
    ----------
    plan : callable
        Plan of a simulation from its name, seed and number.
    simulations, snapshots : int
        Number of simulations by default, and of snapshots of each.
    held_back : float
        Share of the simulations, at the end, that are for validation.
    """

    plan: Callable[[str, tuple[int, ...], int], Plan]
    simulations: int
    snapshots: int
    held_back: float = 0.0


def plan_of(suite: str, seed: int, number: int) -> Plan:
    """The plan of a simulation of a suite."""
    entropy = (seed, list(SUITES).index(suite), number)
    return SUITES[suite].plan(f"{suite}-{seed}-{number:04d}", entropy, number)


def _in_distribution(name: str, seed: tuple[int, ...], number: int) -> Plan:
    """Driven turbulence without gravity, from one crossing time L / v on to 2.25 of them."""
    rng = np.random.default_rng((*seed, 0))
    mach, field = [(mach, field) for mach in (3.0, 4.0, 5.0) for field in (1.0, 3.0)][number % 6]
    times = tuple(n / 4 / mach for n in range(6))
    solenoidal = float(rng.uniform(0.3, 1.0))
    return Plan(name, seed, mach, field, _direction(rng), solenoidal, 1 / mach, times)


def _other_fields(name: str, seed: tuple[int, ...], number: int) -> Plan:
    """The same with fields that are much stronger or weaker."""
    rng = np.random.default_rng((*seed, 0))
    mach, field = [(mach, field) for mach in (3.0, 5.0) for field in (9.0, 0.3)][number % 4]
    return Plan(name, seed, mach, field, _direction(rng), 0.7, 1 / mach, tuple(n / 4 / mach for n in range(6)))


def _with_gravity(name: str, seed: tuple[int, ...], number: int) -> Plan:
    """Turbulence of one crossing time that then collapses."""
    rng = np.random.default_rng((*seed, 0))
    virial, field = [(virial, field) for virial in (0.5, 1.0) for field in (1.0, 3.0)][number % 4]
    fall = free_fall(strength(5.0, virial))
    times = tuple(share * fall for share in (0.2, 0.3, 0.4))
    return Plan(name, seed, 5.0, field, _direction(rng), 0.7, 0.2, times, virial)


def _collision(name: str, seed: tuple[int, ...], number: int) -> Plan:
    """Two turbulent streams along x that run into each other, along the field or across it."""
    rng = np.random.default_rng((*seed, 0))
    turn = float(rng.uniform(0, 2 * math.pi))
    direction = (1.0, 0.0, 0.0) if number % 2 == 0 else (0.0, math.cos(turn), math.sin(turn))
    return Plan(name, seed, 3.0, 2.0, direction, 0.7, 1 / 3, (0.04, 0.06, 0.08, 0.1), stream=STREAM)


def _null(name: str, seed: tuple[int, ...], number: int) -> Plan:
    """Fractional Brownian density, velocity and field, every second with a tail of dense gas."""
    rng = np.random.default_rng((*seed, 0))
    return Plan(name, seed, 4.0, 2.0, _direction(rng), fractional=True, tail=number % 2 == 1)


def _direction(rng: np.random.Generator) -> tuple[float, float, float]:
    x, y, z = (v := rng.standard_normal(3)) / np.linalg.norm(v)
    return float(x), float(y), float(z)


SUITES = {
    "id": Suite(_in_distribution, 30, 6, 0.2),
    "ood-field": Suite(_other_fields, 4, 6),
    "ood-gravity": Suite(_with_gravity, 4, 3),
    "ood-collision": Suite(_collision, 4, 4),
    "null": Suite(_null, 12, 1),
}
"""By name; seeds hold the number of a suite, so new ones are appended."""
