"""Objectives: the quantity that the network predicts, and how x0 follows from it.

Every objective is linear: x0 = P (x_t + R x1) + Q pred, so one fused kernel serves all. The target and its weight in
the loss follow from the same three numbers. `eps`, `grad` and `maxnll` are AS-Bridge's; `i2sb` is that of Astro-DSB and
of the image-to-image Schrodinger bridge (Liu et al. 2023), x_t - x0 over the forward noise level s / sqrt(a) of a
Schrodinger bridge; `edm` is the preconditioning of Karras et al. 2022 (table 1) in the bridge's own noise level
sigma = s / a, which exists for every bridge because zeta = (x_t - b x1) / a = x0 + sigma eps.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.errors import BridgeError

OBJECTIVES = ("eps", "grad", "maxnll", "i2sb", "edm")
WIENER = "wiener"


@dataclass(frozen=True)
class Objective:
    """Name and, for `edm`, the standard deviation of the data and the log-normal distribution of sigma in training.

    Parameters
    ----------
    name
        ``eps`` (the noise), ``grad`` (x_t - x0), ``maxnll`` (the noise, its error weighted by s_t^2), ``i2sb``
        (x_t - x0 over the forward noise level), ``edm``, or ``wiener``, which only `Bridge.seeing` has: what is missing
        from the Wiener filter of x_t (`sharpening`).
    sigma_data
        Standard deviation of x0 in network units.
    log_sigma_mean, log_sigma_std
        Mean and standard deviation of ln sigma when training with `edm`; the others draw t uniformly.
    end_share
        Share of the states in training that lie at the table's end and have nothing of x0 in them: b x1 + s eps. What
        the network says there is E[x0 | x1], and a sampler may begin with it (`sampler.begin`). With 0 the states of
        the end are as all others; only `edm` can do without x0.
    noise
        Standard deviation, in network units, of white noise that x0 holds and the network need not learn: where there
        is nothing else in x0, `edm` is exact with a network that answers 0. With 0 all of x0 is to be learnt.
    prior
        Of `wiener`: mean power of x0 at `spectral.KNOTS`, in network units squared.
    """

    name: str = "eps"
    sigma_data: float = 0.5
    log_sigma_mean: float = -1.0
    log_sigma_std: float = 1.4
    end_share: float = 0.0
    noise: float = 0.0
    prior: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an unknown name, a share that is none, and noise below 0."""
        if self.name not in (*OBJECTIVES, WIENER):
            raise BridgeError(f"objective {self.name!r} is not one of {(*OBJECTIVES, WIENER)}")
        if not 0 <= self.end_share < 1 or (self.end_share and self.name != "edm"):
            raise BridgeError(
                f"objective {self.name!r}, share of states at the bridge's end {self.end_share:g}: give a share from 0 "
                "to below 1 with edm, 0 with others"
            )
        if not self.noise >= 0 or (self.noise and self.name != "edm"):
            raise BridgeError(
                f"objective {self.name!r}, noise {self.noise:g} network units: give 0 or more with edm, 0 with others"
            )

    @property
    def card(self) -> dict[str, Any]:
        """JSON form; `from_card` reads it."""
        card = {
            name: value for name, value in asdict(self).items() if name not in ("end_share", "noise", "prior") or value
        }
        return card | ({"prior": list(self.prior)} if self.prior else {})

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Objective:
        """Read what `card` wrote."""
        return cls(**{**card, "prior": tuple(card.get("prior", ()))})

    def table(self, bridge: Bridge) -> tuple[Tensor, Tensor, Tensor]:
        """P, Q, R of x0 = P (x_t + R x1) + Q pred, each float64 [T]."""
        a, b, s = bridge.a, bridge.b, bridge.s
        if self.name == WIENER:
            raise BridgeError(f"objective {self.name} has a factor for each Fourier mode, which no table holds")
        if self.name == "grad":
            return torch.ones_like(a), -torch.ones_like(a), torch.zeros_like(a)
        if self.name == "i2sb":
            return torch.ones_like(a), -s / a.sqrt(), torch.zeros_like(a)
        if self.name == "edm":
            variance = bridge.sigma**2 + self.sigma_data**2
            c_out = bridge.sigma * self.sigma_data / variance.sqrt()
            still = self.noise or self.sigma_data
            c_skip = still**2 / (bridge.sigma**2 + still**2)
            return c_skip / a, c_out, -b
        return 1 / a, -s / a, -b

    def input_table(self, bridge: Bridge) -> tuple[Tensor, Tensor]:
        """u, v of the network's first input u x_t + v x1, each float64 [T]; only `edm` scales it (c_in zeta)."""
        if self.name == "edm":
            c_in = (bridge.sigma**2 + self.sigma_data**2).rsqrt()
            return c_in / bridge.a, -c_in * bridge.b / bridge.a
        return torch.ones_like(bridge.a), torch.zeros_like(bridge.a)

    def target(
        self, bridge: Bridge, t: Tensor, x_t: Tensor, x0: Tensor, x1: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the target of the network, [N, C, H, W], and the weight of its squared error, [N, 1, 1, 1]."""
        one = torch.ones(len(t), 1, 1, 1, device=x0.device)
        if self.name in ("eps", "maxnll"):
            s = bridge.s.to(x0.device, x0.dtype)[t][:, None, None, None]
            # the published program multiplies prediction and target by s_t^2, so the squared error by s_t^4
            return eps, s**4 if self.name == "maxnll" else one
        if self.name == "grad":
            return x_t - x0, one
        p, q, r = (v.to(x0.device, x0.dtype)[t][:, None, None, None] for v in self.table(bridge))
        return (x0 - p * (x_t + r * x1)) / q, one

    def without_x0(self, bridge: Bridge, t: Tensor) -> Tensor:
        """Which training states have nothing of x0 in them, bool of the shape of the steps t."""
        return (t == bridge.num_steps - 1) & (self.end_share > 0)

    def draw_steps(self, bridge: Bridge, count: int, generator: torch.Generator) -> Tensor:
        """Training steps t, int64 [count]: uniform; for `edm` log-normal in sigma; for `wiener` denser at the end.

        What a sample through the seeing will be is decided in the first steps down, at large t.
        """
        if self.name == WIENER:
            share = torch.rand(count, generator=generator, dtype=torch.float64).sqrt()
            return (share * bridge.num_steps).long().clamp(max=bridge.num_steps - 1)
        if self.name != "edm":
            return torch.randint(0, bridge.num_steps, (count,), generator=generator)
        log_sigma = bridge.sigma.log()
        z = (log_sigma - self.log_sigma_mean) / self.log_sigma_std
        # each table entry stands for the interval of ln sigma around it; normal density times width
        width = torch.gradient(log_sigma)[0]
        density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) * width
        if self.end_share:
            density[-1] = density[:-1].sum() * self.end_share / (1 - self.end_share)
        return torch.multinomial(density, count, replacement=True, generator=generator)
