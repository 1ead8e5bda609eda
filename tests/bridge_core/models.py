"""Models for tests: a tiny network with random weights, and denoisers that are known exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.model import Card, Model
from surveybridge.bridge_core.network import NetworkConfig, UNet
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.prediction import Predictor
from surveybridge.bridge_core.problem import Direction, Endpoint, Problem
from surveybridge.bridge_core.settings import Precision
from surveybridge.bridge_core.stretch import Stretch

SOFTENING = {"g": 0.7, "r": 0.8, "i": 1.1, "VIS": 4.0}
PROBLEM = Problem(
    "lsst-euclid",
    (
        Endpoint("lsst", ("g", "r", "i"), 0.1, stretch=Stretch(SOFTENING).of_bands("gri")),
        Endpoint("euclid", ("VIS",), 0.1, stretch=Stretch(SOFTENING).of_bands(["VIS"])),
    ),
    catalog="euclid",
)
TO_LSST, TO_EUCLID = PROBLEM.directions
TINY = NetworkConfig(base=8, multipliers=(1, 2), blocks=1, time_dim=16, norm="pixel", stem=2)


def make_card(
    bridge: Bridge | None = None,
    objective: str = "edm",
    network: NetworkConfig = TINY,
    clamp: tuple[float, float] | None = None,
) -> Card:
    return Card(
        name="tiny",
        grid="mosaic",
        problem=PROBLEM,
        bridge=bridge or Bridge.brownian(),
        network=network,
        objective=Objective(objective, sigma_data=0.3),
        clamp=clamp,
        provenance={"made": "by a test"},
    )


def random_model(card: Card | None = None) -> Model:
    """A network as initialised, the same at every call."""
    card = card or make_card()
    torch.manual_seed(3)
    return Model(card, UNet(card.network).eval().requires_grad_(False), "0" * 64)


Denoiser = Callable[[Tensor, float, Tensor, Direction], Tensor]


@dataclass(frozen=True, eq=False)
class AnalyticModel(Model):
    """Says what a perfect network would: x0 = denoise(zeta, sigma, x1, direction), zeta = x0 + sigma eps, float64."""

    denoise: Denoiser
    calls: list[int] = field(default_factory=list)

    def predictor(
        self,
        x1: Tensor,
        direction: Direction,
        times: Sequence[int],
        precision: Precision,
        context: Context | None = None,
    ) -> AnalyticPredictor:
        return AnalyticPredictor(self, x1, direction, times)


class AnalyticPredictor(Predictor):
    def __init__(self, model: AnalyticModel, x1: Tensor, direction: Direction, times: Sequence[int]) -> None:
        self.model, self.x1, self.direction, self.times = model, x1, direction, times
        self.input = torch.empty_like(x1)

    def __call__(self, step: int, x_t: Tensor) -> Tensor:
        model, t = self.model, self.times[step]
        model.calls.append(t)
        bridge = model.card.bridge
        a, b, sigma = float(bridge.a[t]), float(bridge.b[t]), float(bridge.sigma[t])
        p, q, r = (float(v[t]) for v in model.card.objective.table(bridge))
        x_t64, x1_64 = x_t.double(), self.x1.double()
        x0 = model.denoise((x_t64 - b * x1_64) / a, sigma, x1_64, self.direction)
        return ((x0 - p * (x_t64 + r * x1_64)) / q).float()


def analytic_model(denoise: Denoiser, card: Card | None = None) -> AnalyticModel:
    card = card or make_card()
    return AnalyticModel(card, UNet(TINY), "0" * 64, denoise)


def gaussian_denoiser(gain: float, offset: float, tau: float) -> Denoiser:
    """Posterior mean of x0 given zeta where x0 | x1 ~ N(gain x1 + offset, tau^2), pixel by pixel."""

    def denoise(zeta: Tensor, sigma: float, x1: Tensor, direction: Direction) -> Tensor:
        return (sigma**2 * (gain * x1 + offset) + tau**2 * zeta) / (sigma**2 + tau**2)

    return denoise
