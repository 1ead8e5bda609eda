"""Score matching with a drift: learn the score of a process whose drift is physics, and run it backward.

SMDP (Holzschuh, Vegetti & Thuerey 2023, arXiv 2301.10250): dx = P(x) dt + g dW carries the wanted state at t = 0 to
the observed one. Its reverse is dx = [P - g^2 s] dt + g dW with the score s = grad log p_t, and the probability flow
has g^2 s / 2 and no noise. A step down subtracts a step of the solver forward, or is one with negative time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.physics import Operator, filtered

Score = Callable[[Tensor, float], Tensor]
"""Score of states [N, ...] at a time, of their shape."""

Direction = Literal["backward", "forward", "bidirectional"]

SDE, ODE = 1.0, 0.5
"""Factor c of the score in a step down: that of the reverse SDE, and of the probability flow."""


@dataclass(frozen=True)
class Process:
    """A physical process with noise.

    Parameters
    ----------
    operator
        Its drift.
    forcing
        g, or g(t); a Tensor [H, W // 2 + 1] has a value for each Fourier mode.
    negative_time
        Whether a step down is the solver's with -dt, and not its step forward subtracted: for solvers of which the
        latter grows without limit, as of flows.
    """

    operator: Operator
    forcing: float | Callable[[float], float | Tensor]
    negative_time: bool = False

    def g(self, t: float) -> float | Tensor:
        """The forcing at a time."""
        return self.forcing(t) if callable(self.forcing) else self.forcing

    def simulate(self, x0: Tensor, times: Sequence[float], generator: torch.Generator, substeps: int = 1) -> Tensor:
        """Draw trajectories, [M + 1, N, ...] at M + 1 rising times, from states x0 [N, ...] at the first.

        Between two times there are `substeps` steps of the solver, each with noise of variance g^2 dt after it.
        """
        states = [x0]
        for first, last in itertools.pairwise(times):
            x, dt = states[-1], (last - first) / substeps
            for step in range(substeps):
                z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
                x = self.operator.forward(x, dt) + math.sqrt(dt) * scaled(z, self.g(first + step * dt))
            states.append(x)
        return torch.stack(states)

    def step_down(self, x: Tensor, t: float, dt: float, s: Tensor, c: float, z: Tensor | None = None) -> Tensor:
        """The state at t - dt from x at t: x - P_dt(x) + dt c g^2 s, and with z also g sqrt(dt) z.

        P_dt(x) is the solver's step forward less x; with `negative_time`, x less its step backward.

        Parameters
        ----------
        x, s
            [N, ...], the state and its score.
        t, dt
            Time and step, dt > 0.
        c
            `SDE` or `ODE`.
        z
            [N, ...] standard normal, or None for a step without noise.
        """
        g = self.g(t)
        before = self.operator.forward(x, -dt) if self.negative_time else 2 * x - self.operator.forward(x, dt)
        down = before + dt * c * scaled(s, g * g)
        return down if z is None else down + math.sqrt(dt) * scaled(z, g)

    def window_loss(
        self,
        score: Score,
        states: Tensor,
        times: Sequence[float],
        *,
        c: float = ODE,
        direction: Direction = "backward",
    ) -> Tensor:
        """Squared errors of S - 1 steps through a window of S states of trajectories, summed: a scalar.

        Backward, the data's last state is taken down step after step, each from the one before, without noise. With
        S = 2 the optimum is c s = score: with `SDE` the network says the score, with `ODE` twice that. Forward, the
        data's first state is taken up, and the optimum alone is s = 0; the sum of both at `ODE` has the score itself.

        Parameters
        ----------
        score
            The network.
        states
            [S, N, ...], consecutive states of trajectories (`simulate`).
        times
            Of the states, rising.
        c
            `SDE` or `ODE`.
        direction
            ``backward``, ``forward``, or ``bidirectional`` for the sum of both.
        """
        if len(states) < 2 or len(states) != len(times):
            raise BridgeError(f"window of {len(states)} states at {len(times)} times; give 2 or more of each")
        if direction not in ("backward", "forward", "bidirectional"):
            raise BridgeError(f"direction {direction!r} is not 'backward', 'forward' or 'bidirectional'")
        pairs, errors = list(itertools.pairwise(times)), []
        if direction != "forward":
            x = states[-1]
            for state, (low, high) in zip(states[:-1].flip(0), reversed(pairs), strict=True):
                x = self.step_down(x, high, high - low, score(x, high), c)
                errors.append((x - state).square().mean())
        if direction != "backward":
            x = states[0]
            for state, (low, high) in zip(states[1:], pairs, strict=True):
                g = self.g(low)
                x = self.operator.forward(x, high - low) - (high - low) * c * scaled(score(x, low), g * g)
                errors.append((x - state).square().mean())
        return torch.stack(errors).sum()

    def reverse(
        self,
        score: Score,
        x: Tensor,
        times: Sequence[float],
        noise: Callable[[int], Tensor] | None,
        correct: Corrector | None = None,
    ) -> Tensor:
        """Run the process backward from x [N, ...] at the first of falling times to the last.

        With `noise`, z of step i as ``noise(i)``, it is the reverse SDE, which draws from the posterior; without, the
        probability flow, one answer without spread. After each step but the last a corrector may move the state.
        """
        c = ODE if noise is None else SDE
        for step, (high, low) in enumerate(itertools.pairwise(times)):
            x = self.step_down(x, high, high - low, score(x, high), c, None if noise is None else noise(step))
            if correct is not None and low > times[-1]:
                x = correct(score, x, low, step)
        return x


@dataclass(frozen=True)
class Corrector:
    """Langevin steps at one time, x + eps s + sqrt(2 eps) z (Song et al. 2021): they leave p_t as it is.

    Parameters
    ----------
    steps, eps
        Their number and size.
    noise
        z of a corrector step after step i, as ``noise(i, step)``.
    """

    steps: int
    eps: float
    noise: Callable[[int, int], Tensor]

    def __call__(self, score: Score, x: Tensor, t: float, after: int) -> Tensor:
        """Move states x [N, ...] at time t."""
        for step in range(self.steps):
            x = x + self.eps * score(x, t) + math.sqrt(2 * self.eps) * self.noise(after, step)
        return x


def scaled(x: Tensor, factor: float | Tensor) -> Tensor:
    """Multiply a state by a number, or its modes by one each."""
    return filtered(x, factor) if isinstance(factor, Tensor) else x * factor
