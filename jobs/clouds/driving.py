"""Driving of turbulence: a random acceleration on the largest scales, which follows an Ornstein-Uhlenbeck process."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

REFRESHED = 20
"""Times per correlation time that the acceleration changes."""
GAIN = 4.0
"""How strongly it answers to a velocity that is not the wanted one."""


def _modes() -> NDArray[np.int64]:
    """Wave numbers 1 <= k <= 2, one of each pair of opposite ones, [16, 3]."""
    waves = [k for k in itertools.product(range(-2, 3), repeat=3) if 1 <= sum(n * n for n in k) <= 4]
    return np.array([k for k in waves if k > (0, 0, 0)])


MODES = _modes()


@dataclass
class Driving:
    """A random acceleration of a cubic box.

    Parameters
    ----------
    mach : float
        Wanted root mean square velocity, in speeds of sound.
    solenoidal : float
        Share of the amplitude that is free of divergence, 0 to 1; the rest is free of curl.
    rng : numpy.random.Generator
        What the acceleration follows from, whatever the dtype and device of the gas.
    """

    mach: float
    solenoidal: float
    rng: np.random.Generator
    _amplitudes: NDArray[np.complex128] = field(init=False)

    def __post_init__(self) -> None:
        self._amplitudes = self._normal()

    @property
    def interval(self) -> float:
        """Time between two changes of the acceleration: the correlation time is half a crossing time L / v."""
        return 1.0 / (2 * self.mach) / REFRESHED

    def advance(self) -> None:
        """Go on by `interval`."""
        kept = math.exp(-1.0 / REFRESHED)
        self._amplitudes = kept * self._amplitudes + math.sqrt(1 - kept**2) * self._normal()

    def pattern(self, like: Tensor) -> Tensor:
        """The acceleration, of root mean square 1 in a component, [3, X, Y, Z] for a density `like` [X, Y, Z]."""
        k = MODES / np.linalg.norm(MODES, axis=1, keepdims=True)
        along = (self._amplitudes * k).sum(1, keepdims=True) * k
        mixed = self.solenoidal * (self._amplitudes - along) + (1 - self.solenoidal) * along
        waves = []
        for axis, n in enumerate(like.shape):
            places = (np.arange(n) + 0.5) / like.shape[0]
            waves.append(torch.from_numpy(np.exp(2j * math.pi * MODES[:, axis, None] * places)))
        plane = torch.einsum("mc,mx,my->cxym", torch.from_numpy(mixed), waves[0], waves[1])
        found = (plane @ waves[2]).real
        return (found / found.square().mean().sqrt()).to(like)

    def amplitude(self, velocity: float) -> float:
        """Root mean square of a component of the acceleration while the gas has a root mean square velocity."""
        return max(0.0, self.mach**2 * (1 + GAIN * (self.mach - velocity) / self.mach))

    def _normal(self) -> NDArray[np.complex128]:
        values = self.rng.standard_normal((2, len(MODES), 3))
        return np.asarray(values[0] + 1j * values[1])
