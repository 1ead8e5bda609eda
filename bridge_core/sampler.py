"""One sampler for every bridge: from either end or from a midpoint, down any decreasing subset of steps.

Network, steps, noise and start are arguments. First order with eta = 1 is the ancestral sampler of BBDM, I2SB and
DDPM; second order with eta = 0 is DPM-Solver++(2M) (Lu et al. 2022) = DBIM of order 2 (Zheng et al. 2025), which works
on every bridge because zeta = (x_t - b x1) / a is an ordinary diffusion with noise level sigma = s / a.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge, extrapolation
from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import Card, Model
from surveybridge.bridge_core.prediction import Predictor
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.settings import Precision
from surveybridge.bridge_core.spans import span
from surveybridge.kernels.bridge_step import StepCoefficients, StepTable, bridge_step
from surveybridge.kernels.sky_noise import SkyNoise, sky_noise

END = 2**16 - 2
"""Noise step of the bridge's end, which no update uses."""

NoiseSource = SkyNoise | Callable[[int], Tensor]


def sample(
    model: Model,
    x1: Tensor,
    direction: Direction,
    steps: Sequence[int],
    *,
    start: Tensor,
    noise: NoiseSource | None = None,
    eta: float = 0.0,
    order: int = 2,
    renoise: bool = False,
    precision: Precision = "float32",
    context: Context | None = None,
    trajectory: list[Tensor] | None = None,
    end: Tensor | None = None,
    answer: Tensor | None = None,
) -> Tensor:
    """Draw x0 given x1.

    Parameters
    ----------
    model
        Network and card; the card's clamp bounds x0 at every step.
    x1
        float32 [N, C, H, W], observed endpoint in network units.
    direction
        Of the model's problem.
    steps
        Strictly decreasing table indices; one network evaluation each. After the last, x0 itself is returned.
    start
        float32 [N, C, H, W], the state at steps[0]: x1 (as published), `begin`, or `Bridge.q_sample` of a midpoint.
    noise
        z of the update after step i, as ``noise(i)`` or as the sky's own with step number i; needed where eta > 0.
    eta
        0 deterministic .. 1 ancestral.
    order
        1, or 2 for the multistep correction from the x0 of the step before.
    renoise
        Forget what stood for the unknown x0 in the start: the first transition, a long step from the table's end, has
        eta 1, whatever `eta` is. Where the start had nothing of x0 (`Objective.end_share`) it has new noise alone.
    precision
        Of the network; the state is always float32.
    context
        What the network is told beside x1; see `Predictor`.
    trajectory
        If given, the state after every step is appended.
    end
        float32 [N, C, H, W], the bridge's end; by default x1 (see `bridge_end`).
    answer
        [N, C, H, W], what the network says of the start, where that is known already: then it is not called there.

    Returns
    -------
    Tensor
        float32 [N, C, H, W] in network units.
    """
    predictor = model.predictor(x1, direction, steps, precision, context)
    return Trajectory(model, x1 if end is None else end, predictor, steps, eta, order, renoise=renoise).run(
        start, noise, trajectory, answer
    )


class Trajectory:
    """The steps of a sampler, prepared for one batch: `run` does nothing but call the network and the update in turn.

    Coefficients and embeddings lie on the device, and states are written in place. On a GPU `run` neither waits for
    the device nor copies anything to it, so that a CUDA graph can hold all of it. Arguments are those of `sample`, with
    the `Model.predictor` of the same steps, and x1 the bridge's end.
    """

    def __init__(
        self,
        model: Model,
        x1: Tensor,
        predictor: Predictor,
        steps: Sequence[int],
        eta: float,
        order: int,
        *,
        renoise: bool,
    ) -> None:
        check_steps(model.card.bridge, steps)
        if order not in (1, 2):
            raise BridgeError(f"sampler order {order} is not 1 or 2")
        self.x1, self.clamp = x1, model.card.clamp
        self.table = StepTable.of(step_coefficients(model, steps, eta, order, renoise=renoise), x1.device)
        self.predict = predictor
        u, v = model.card.objective.input_table(model.card.bridge)
        self.scale = float(u[steps[0]]), float(v[steps[0]])

    def run(
        self,
        start: Tensor,
        noise: NoiseSource | None,
        trajectory: list[Tensor] | None = None,
        answer: Tensor | None = None,
    ) -> Tensor:
        """Run from `start`, the state at the first step, to x0; `answer` is what the network says of it, if known."""
        u, v = self.scale
        x, x0 = start.clone(memory_format=torch.contiguous_format), torch.empty_like(self.x1)
        self.predict.input.copy_(x * u + self.x1 * v)
        for i, k in enumerate(self.table.rows):
            if answer is not None and i == 0:
                pred = answer
            else:
                with span("network"):
                    pred = self.predict(i, x)
            z = noise(i) if callable(noise) and k.d != 0 else noise
            with span("update"):
                bridge_step(
                    x,
                    pred,
                    self.x1,
                    self.table,
                    i,
                    noise=z if isinstance(z, Tensor | SkyNoise) else None,
                    clamp=self.clamp,
                    x0_prev=x0 if i else None,
                    out=(x, x0),
                    next_input=self.predict.input if i + 1 < len(self.table.rows) else None,
                )
            if trajectory is not None:
                trajectory.append(x.clone())
        return x


def sample_heun(
    model: Model,
    x1: Tensor,
    direction: Direction,
    steps: Sequence[int],
    *,
    start: Tensor,
    precision: Precision = "float32",
) -> Tensor:
    """Draw x0 given x1 with the deterministic second-order sampler of Karras et al. 2022, algorithm 1.

    It calls the network 2 len(steps) - 1 times: each step goes down as first order does (eta 0), looks at the slope
    there, and goes again with the mean of both slopes; the last returns x0. Arguments as for `sample`. It is here to be
    compared (`benchmarks/samplers.py`): the multistep sampler gets as far with half the calls.
    """
    bridge = model.card.bridge
    check_steps(bridge, steps)
    a, b, sigma = (v.tolist() for v in (bridge.a, bridge.b, bridge.sigma))
    x = start
    for t, s in itertools.pairwise(steps):
        zeta = (x - b[t] * x1) / a[t]
        slope = (zeta - denoise(model, x, x1, t, direction, precision)) / sigma[t]
        below = zeta + (sigma[s] - sigma[t]) * slope
        there = denoise(model, a[s] * below + b[s] * x1, x1, s, direction, precision)
        slope_below = (below - there) / sigma[s]
        x = a[s] * (zeta + (sigma[s] - sigma[t]) * 0.5 * (slope + slope_below)) + b[s] * x1
    return denoise(model, x, x1, steps[-1], direction, precision)


def denoise(
    model: Model,
    x: Tensor,
    x1: Tensor,
    t: int,
    direction: Direction,
    precision: Precision = "float32",
    context: Context | None = None,
) -> Tensor:
    """The network's E[x0 | x_t = x, x1], float32 [N, C, H, W], within the card's clamp."""
    return x0_of(model.card, x, x1, t, model.predict(x, x1, t, direction, precision, context))


def x0_of(card: Card, x: Tensor, x1: Tensor, t: int, pred: Tensor) -> Tensor:
    """E[x0 | x_t = x, x1], float32 [N, C, H, W], by the network's output `pred`, within the card's clamp."""
    p, q, r = (float(v[t]) for v in card.objective.table(card.bridge))
    x0 = p * (x + r * x1) + q * pred.float()
    return x0.clamp(*card.clamp) if card.clamp else x0


def bridge_end(card: Card, x1: Tensor, noise: SkyNoise) -> Tensor:
    """The end at which the bridges of a batch begin: x1 or, where the card says so, with noise of the sky's own."""
    return x1 + card.end_noise * draw(noise, END, x1) if card.end_noise else x1


def begin(card: Card, x1: Tensor, t: int, z: Tensor) -> Tensor:
    """State at the first step, t: `boot`, or with nothing in the place of x0 where the network has learnt to see none.

    Arguments as for `boot`, with the card of the network instead of its bridge, and x1 the bridge's end.
    """
    if not starts_without_x0(card, t):
        return boot(card.bridge, x1, t, z)
    return float(card.bridge.b[t]) * x1 + float(card.bridge.s[t]) * z


def starts_without_x0(card: Card, t: int) -> bool:
    """Whether states at step t had nothing of x0 in training."""
    return bool(card.objective.without_x0(card.bridge, torch.tensor(t)))


def boot(bridge: Bridge, x1: Tensor, t: int, z: Tensor) -> Tensor:
    """State at a high noise level without a network call: q_sample with x1 in the place of the unknown x0."""
    a, b, s = (float(v[t]) for v in (bridge.a, bridge.b, bridge.s))
    return (a + b) * x1 + s * z


def window_noise(
    seed: int, stream: int, rows: Sequence[tuple[int, int]], corners: Sequence[tuple[int, int]], device: torch.device
) -> SkyNoise:
    """The sky's noise for a batch whose rows are (window, sample), windows by the global (y, x) of their corners."""

    def column(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    noise = SkyNoise(
        seed=seed,
        stream=stream,
        sample=column([sample for _, sample in rows]),
        y0=column([corners[window][0] for window, _ in rows]),
        x0=column([corners[window][1] for window, _ in rows]),
    )
    return noise.to(device)


def draw(noise: SkyNoise, step: int, like: Tensor) -> Tensor:
    """The sky's own noise for windows shaped as `like` [N, C, H, W], float32 on its device."""
    return sky_noise(noise, step, (like.shape[1], like.shape[2], like.shape[3]), device=like.device)


def step_coefficients(
    model: Model, steps: Sequence[int], eta: float, order: int, *, renoise: bool = False
) -> Iterator[StepCoefficients]:
    """Coefficients of the fused update after each network evaluation, as `bridge_step` takes them."""
    bridge = model.card.bridge
    table = model.card.objective.table(bridge)
    scale = model.card.objective.input_table(bridge)
    lam = -bridge.sigma.log()
    for i, t in enumerate(steps):
        p, q, r = (float(v[t]) for v in table)
        if i == len(steps) - 1:
            yield StepCoefficients(p, q, r, h=0.0, a=0.0, b=1.0, c=0.0, d=0.0)
            return
        s = steps[i + 1]
        correction = 0.0
        # the last update is of first order, as DPM-Solver++ does it: extrapolating over it adds variance
        if order == 2 and 0 < i < len(steps) - 2:
            correction = float(extrapolation(lam[s] - lam[t], lam[t] - lam[steps[i - 1]], eta))
        if starts_without_x0(model.card, t):
            k, p_x0, q_x1, w = 0.0, *(float(column[s]) for column in (bridge.a, bridge.b, bridge.s))
        else:
            k, p_x0, q_x1, w = bridge.transition(t, s, 1.0 if renoise and i == 0 else eta)
        u, v = (float(column[s]) for column in scale)
        yield StepCoefficients(p, q, r, h=correction, a=k, b=p_x0, c=q_x1, d=w, u=u, v=v)


def uniform_steps(start: int, count: int) -> list[int]:
    """Steps evenly spaced in t from `start` to 0, rounded as the published program rounds them, without duplicates."""
    if start == 0 or count == 1:
        return [start, 0] if start else [0]
    raw = torch.linspace(start, 0, min(count, start + 1)).round().long().tolist()
    return sorted({int(t) for t in raw}, reverse=True)


def bridge_steps(bridge: Bridge, start: int, count: int) -> list[int]:
    """Return steps from `start` to 0, uniform in b, the share of x1: those of the published program on any table.

    On a table that is linear in m they are `uniform_steps`, and so they are on a bridge that x1 has no share in.
    """
    if bridge.b[start] == bridge.b[0]:
        return uniform_steps(start, count)
    wanted = torch.linspace(float(bridge.b[start]), float(bridge.b[0]), max(count, 2), dtype=torch.float64)
    return sorted({start, 0, *(int((bridge.b - b).abs().argmin()) for b in wanted)}, reverse=True)


def step_at(bridge: Bridge, sigma: float) -> int:
    """Index of the table's entry nearest to a noise level."""
    return int((bridge.sigma.log() - math.log(sigma)).abs().argmin())


def rho_steps(bridge: Bridge, count: int, sigma_max: float = 5.0, rho: float = 7.0) -> list[int]:
    """Return steps uniform in sigma^(1/rho) from sigma_max down to the table's end (Karras et al. 2022, eq. (5))."""
    low, high = float(bridge.sigma[0]) ** (1 / rho), min(sigma_max, float(bridge.sigma[-1])) ** (1 / rho)
    grid = (high + torch.linspace(0, 1, count, dtype=torch.float64) * (low - high)) ** rho
    return sorted({step_at(bridge, sigma) for sigma in grid.tolist()}, reverse=True)


def end_then_rho_steps(bridge: Bridge, count: int, sigma_max: float = 5.0) -> list[int]:
    """The table's end, where the state is all noise, then `rho_steps`: `count` network evaluations in all.

    At the end it matters little what stands for the unknown x0 in `boot`, and with `renoise` less still; begun at
    sigma_max the difference between the surveys would survive in part (10% of the flux, docs/notes/).
    """
    last = bridge.num_steps - 1
    return sorted({last, *(rho_steps(bridge, count - 1, sigma_max) if count > 1 else [])}, reverse=True)


def check_steps(bridge: Bridge, steps: Sequence[int]) -> None:
    """Refuse steps that are not strictly decreasing inside the table."""
    if not steps or any(b >= a for a, b in itertools.pairwise(steps)):
        raise BridgeError(f"steps {list(steps)} are not strictly decreasing")
    if steps[0] >= bridge.num_steps or steps[-1] < 0:
        raise BridgeError(f"steps {steps[0]}..{steps[-1]} leave the bridge's table 0..{bridge.num_steps - 1}")
