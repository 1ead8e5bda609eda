"""What the sampler itself does to mean and variance, given a denoiser that is known exactly.

    python benchmarks/exact_denoiser.py

x0 | x1 is Gaussian with mean 0.5 x1 and standard deviation tau (network units) in every pixel, on the bridge of the
shipped checkpoint. It prints the samples' variance over the true one, and the bias of their mean (x1 = 1) over tau,
for a start at sigma_max with x1 in the place of x0, for one at the table's end, and for that with a noised first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.model import Card, Model
from surveybridge.bridge_core.network import NetworkConfig, UNet
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.prediction import Predictor
from surveybridge.bridge_core.problem import Direction, Endpoint, Problem
from surveybridge.bridge_core.sampler import boot, end_then_rho_steps, rho_steps, sample
from surveybridge.bridge_core.settings import Precision

GAIN = 0.5
SHAPE = (64, 3, 32, 32)
SIGMA_MAX = 2.0
PROBLEM = Problem("exact", (Endpoint("x1", ("a", "b", "c"), 0.0), Endpoint("x0", ("a", "b", "c"), 0.0)))


@dataclass(frozen=True, eq=False)
class ExactModel(Model):
    """A model that predicts what a perfect network would, for the objective `grad` (x_t - x0)."""

    tau: float = 0.1

    def predictor(self, x1: Tensor, direction: Direction, times: Sequence[int], precision: Precision) -> ExactPredictor:
        """Return the exact predictor; it needs no network."""
        return ExactPredictor(self.card.bridge, self.tau, x1, times)


class ExactPredictor(Predictor):
    """A predictor of x_t minus the mean of x0 given x_t and x1."""

    def __init__(self, bridge: Bridge, tau: float, x1: Tensor, times: Sequence[int]) -> None:
        self.bridge, self.tau, self.x1, self.times = bridge, tau, x1, times
        self.input = torch.empty_like(x1)

    def __call__(self, step: int, x_t: Tensor) -> Tensor:
        """Return the output at ``times[step]``."""
        a, b, s = (float(v[self.times[step]]) for v in (self.bridge.a, self.bridge.b, self.bridge.s))
        gain = a * self.tau**2 / (a**2 * self.tau**2 + s**2)
        return x_t - (GAIN * self.x1 + gain * (x_t - b * self.x1 - a * GAIN * self.x1))


def main() -> None:
    """Print a line for each width of the posterior and each number of steps."""
    network = NetworkConfig(base=8)
    card = Card(
        name="exact",
        grid="mosaic",
        problem=PROBLEM,
        bridge=Bridge.brownian(m_min=2e-5, m_max=0.98, spacing="logit"),
        network=network,
        objective=Objective("grad"),
    )
    settings = [(1, 0.0), (1, 1.0), (2, 0.0), (2, 1.0)]
    print(
        "variance / true, (order, eta):   " + "  ".join(f"({o}, {eta:.0f})" for o, eta in settings) + "  bias/tau from"
    )
    print("  tau steps                                                       sigma_max    end renoised")
    for tau in (0.05, 0.1, 0.3):
        model = ExactModel(card, UNet(network), "", tau)
        for count in (6, 8, 12, 20):
            steps = end_then_rho_steps(card.bridge, count, SIGMA_MAX)
            draws = [draw(model, steps, order, eta, renoise=True) for order, eta in settings]
            shares = "  ".join(f"{float(x.var()) / tau**2:6.2f}" for x in draws)
            early = draw(model, rho_steps(card.bridge, count, SIGMA_MAX), 2, 0.0)
            kept = draw(model, steps, 2, 0.0)
            biases = [float(x.mean() - GAIN) / tau for x in (early, kept, draws[2])]
            print(f"{tau:5.2f} {count:5d} {'':21s} {shares}      {biases[0]:9.3f} {biases[1]:6.3f} {biases[2]:7.3f}")


def draw(model: ExactModel, steps: list[int], order: int, eta: float, *, renoise: bool = False) -> Tensor:
    """Return samples at x1 = 1, [N, C, H, W]."""
    generator = torch.Generator().manual_seed(0)
    x1 = torch.ones(SHAPE)
    start = boot(model.card.bridge, x1, steps[0], torch.randn(SHAPE, generator=generator))
    return sample(
        model,
        x1,
        PROBLEM.to("x0"),
        steps,
        start=start,
        noise=lambda _: torch.randn(SHAPE, generator=generator),
        eta=eta,
        order=order,
        renoise=renoise,
    )


if __name__ == "__main__":
    main()
