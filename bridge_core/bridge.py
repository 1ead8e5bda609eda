"""A bridge is a table of coefficients: x_t = a_t x0 + b_t x1 + s_t eps.

x0 is the wanted survey, x1 the observed one. Three constructors fill the same three vectors: the Brownian bridge of
AS-Bridge (BBDM, Li et al. 2023), the Schrodinger bridge of Astro-DSB (I2SB, Liu et al. 2023) and conditional
diffusion (DDPM, Ho et al. 2020; Palette, Saharia et al. 2022), for which b = 0. Everything else (sampler, objectives,
anomaly score, fused kernel) reads only the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.kernels.transfer import to_device


class Transition(NamedTuple):
    """Coefficients of x_s = k x_t + p x0 + q x1 + w z, the step from t to an earlier s."""

    k: float
    p: float
    q: float
    w: float


@dataclass(frozen=True, eq=False)
class Bridge:
    """Forward process x_t = a_t x0 + b_t x1 + s_t eps, t = 0 (nearly x0) .. T-1 (nearly x1, or noise).

    Parameters
    ----------
    kind
        Constructor that made it: ``brownian``, ``schrodinger``, ``diffusion``, ``regression`` or ``seeing``.
    parameters
        Arguments of that constructor, as written in the checkpoint card.
    a, b, s
        float64 [T] on the CPU: weights of x0, of x1 and of the unit normal deviate.
    """

    kind: str
    parameters: dict[str, Any]
    a: Tensor
    b: Tensor
    s: Tensor

    @classmethod
    def brownian(
        cls,
        num_steps: int = 1000,
        max_var: float = 1.0,
        m_min: float = 0.001,
        m_max: float = 0.999,
        spacing: str = "linear",
    ) -> Bridge:
        """Brownian bridge of BBDM eq. (4) as AS-Bridge uses it: a = 1 - m, b = m, s^2 = 2 (m - m^2) max_var.

        AS-Bridge spaces m evenly (``linear``), which leaves a handful of entries below the noise of a faint sky.
        ``logit`` spaces ln (m / (1 - m)) evenly, and with it ln sigma: sigma^2 = 2 max_var m / (1 - m).
        """
        if spacing == "linear":
            # the published program holds m in float32, and 1 - m near m = 0.999 feels the rounding
            m = torch.linspace(m_min, m_max, num_steps, dtype=torch.float32).double()
        elif spacing == "logit":
            ends = torch.tensor([m_min, m_max], dtype=torch.float64).logit()
            m = torch.linspace(float(ends[0]), float(ends[1]), num_steps, dtype=torch.float64).sigmoid()
        else:
            raise BridgeError(f"brownian bridge: spacing {spacing!r} is not 'linear' or 'logit'")
        parameters = {"num_steps": num_steps, "max_var": max_var, "m_min": m_min, "m_max": m_max, "spacing": spacing}
        return cls("brownian", parameters, 1 - m, m, (2 * (m - m**2) * max_var).sqrt())

    @classmethod
    def schrodinger(cls, num_steps: int = 1000, beta_max: float = 0.3, beta_min: float = 0.1) -> Bridge:
        """Schrodinger bridge of I2SB eq. (11), with the symmetric quadratic betas of its sec. 4 and of Astro-DSB.

        The betas rise as the square of a line from beta_min / T to beta_max / T over T steps; the first half is taken
        and mirrored. With sigma^2 the sum of the betas up to t and sigmabar^2 the sum from t on, x_t is the product of
        the two Gaussians around the ends: a = sigmabar^2 / n, b = sigma^2 / n, s^2 = sigma^2 sigmabar^2 / n, where
        n = sigma^2 + sigmabar^2.
        """
        if num_steps % 2:
            raise BridgeError(
                f"schrodinger bridge: num_steps {num_steps} is odd but the betas are mirrored; use an even number"
            )
        root = torch.linspace(
            math.sqrt(beta_min / num_steps), math.sqrt(beta_max / num_steps), num_steps, dtype=torch.float64
        )
        half = root[: num_steps // 2] ** 2
        betas = torch.cat([half, half.flip(0)])
        forward = betas.cumsum(0)
        backward = betas.flip(0).cumsum(0).flip(0)
        total = forward + backward
        parameters = {"num_steps": num_steps, "beta_max": beta_max, "beta_min": beta_min}
        return cls("schrodinger", parameters, backward / total, forward / total, (forward * backward / total).sqrt())

    @classmethod
    def diffusion(cls, num_steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 2e-2) -> Bridge:
        """Variance-preserving diffusion with linear betas, DDPM eq. (4): a^2 = prod(1 - beta), b = 0, s^2 = 1 - a^2."""
        betas = torch.linspace(beta_min, beta_max, num_steps, dtype=torch.float64)
        alpha_bar = (1 - betas).cumprod(0)
        parameters = {"num_steps": num_steps, "beta_min": beta_min, "beta_max": beta_max}
        return cls("diffusion", parameters, alpha_bar.sqrt(), torch.zeros_like(betas), (1 - alpha_bar).sqrt())

    @classmethod
    def regression(cls) -> Bridge:
        """No bridge: one step, whose state is x1 itself, so that a network that takes x1 to x0 is a baseline like any.

        With the objective ``grad`` it learns the mean of x1 - x0, by least squares, and every sample is x1 less that.
        """
        nothing = torch.zeros(1, dtype=torch.float64)
        return cls("regression", {}, nothing, torch.ones(1, dtype=torch.float64), nothing.clone())

    @classmethod
    def seeing(cls, sharp: str, num_steps: int = 400, m_min: float = 1e-3) -> Bridge:
        """Seeing and noise that grow together from a sharp sky to the observed image, which is the state at the end.

        The table is that of a mode which seeing leaves alone, in units of the noise at the end: a = 1, b = 0 and
        s^2 = m, the share of the way; what an image's own seeing and noise make of it, `spectral` says.

        Parameters
        ----------
        sharp
            PSF of the wanted sky, such as ``gaussian:0.16`` (arcsec).
        num_steps, m_min
            T, and the share m of the first step; s is even in between.
        """
        s = torch.linspace(math.sqrt(m_min), 1, num_steps, dtype=torch.float64)
        parameters = {"sharp": sharp, "num_steps": num_steps, "m_min": m_min}
        return cls("seeing", parameters, torch.ones_like(s), torch.zeros_like(s), s)

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Bridge:
        """Build from ``{"kind": ..., **parameters}``, as `card` wrote it."""
        parameters = dict(card)
        kind = parameters.pop("kind", None)
        constructors: dict[str, Callable[..., Bridge]] = {
            "brownian": cls.brownian,
            "schrodinger": cls.schrodinger,
            "diffusion": cls.diffusion,
            "regression": cls.regression,
            "seeing": cls.seeing,
        }
        if kind not in constructors:
            raise BridgeError(f"bridge kind {kind!r} is not one of {sorted(constructors)}")
        return constructors[kind](**parameters)

    @property
    def card(self) -> dict[str, Any]:
        """JSON form, read back by `from_card`."""
        return {"kind": self.kind, **self.parameters}

    @property
    def num_steps(self) -> int:
        """T, the length of the table."""
        return len(self.a)

    @property
    def sigma(self) -> Tensor:
        """Noise level of zeta = (x_t - b x1) / a = x0 + sigma eps, float64 [T]: the bridge seen as an EDM diffusion."""
        return self.s / self.a

    def q_sample(self, x0: Tensor, x1: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Draw x_t from the forward process.

        Parameters
        ----------
        x0, x1, eps
            [N, C, H, W], eps unit normal.
        t
            int64 [N].
        """
        a, b, s = (to_device(v.to(x0.dtype), x0.device)[t][:, None, None, None] for v in (self.a, self.b, self.s))
        return a * x0 + b * x1 + s * eps

    def transition(self, t: int, s: int, eta: float = 1.0) -> Transition:
        """Posterior p(x_s | x_t, x0, x1) for s < t, in the family that keeps the marginals of the forward process.

        With eta = 1 it is the Markov posterior (BBDM eq. (9), I2SB eq. (4), DDPM eq. (7)): k = a_t s_s^2 / (a_s s_t^2)
        and w^2 = s_s^2 - k^2 s_t^2. Smaller eta scales w, and k^2 = (s_s^2 - w^2) / s_t^2 keeps the variance (DBIM,
        Zheng et al. 2025; DDIM, Song et al. 2021). AS-Bridge's program equals this at eta = 1; at other eta it
        scales the noise without moving the mean, which loses variance, and is not reproduced.
        """
        if not 0 <= s < t < self.num_steps:
            raise BridgeError(f"transition {t} -> {s} is not a step down within 0..{self.num_steps - 1}")
        if not 0 <= eta <= 1:
            raise BridgeError(f"eta {eta} is outside 0..1")
        (a_t, s_t, b_t), (a_s, s_s, b_s) = ([v[step] for v in (self.a, self.s, self.b)] for step in (t, s))
        k, w = state_and_noise((a_t, s_t), (a_s, s_s), eta)
        return Transition(float(k), float(a_s - k * a_t), float(b_s - k * b_t), float(w))


def state_and_noise(above: tuple[Tensor, Tensor], below: tuple[Tensor, Tensor], eta: float) -> tuple[Tensor, Tensor]:
    """The weights k of the state and w of new noise in a step down; see `Bridge.transition`.

    Parameters
    ----------
    above, below
        (a, s) of the step that is left and of that which is reached, float64 of one shape; a may be complex.
    eta
        0 to 1.
    """
    (a_t, s_t), (a_s, s_s) = above, below
    ratio = a_t / a_s
    k_markov = ratio.abs() * s_s**2 / s_t**2
    w = eta * (s_s**2 - k_markov**2 * s_t**2).clamp(min=0).sqrt()
    k = (s_s**2 - w**2).clamp(min=0).sqrt() / s_t
    return (k * (ratio / ratio.abs()).conj() if ratio.is_complex() else k), w


def extrapolation(h: Tensor, h_prev: Tensor, eta: float) -> Tensor:
    """Weight of (x0 - x0_prev) in the second-order step, from x0 extrapolated linearly in lambda = -ln sigma.

    Over a step h of lambda the deviation of zeta from x0 shrinks by e^-H = e^-h sqrt(1 - eta^2 (1 - e^-2h)): H = h for
    the ODE (eta = 0), 2 h for the SDE (eta = 1). Relative to x0 the linear part then weighs
    (e^-H + H - 1) / ((H / h) (1 - e^-H)) / h_prev: DPM-Solver++(2M) and its SDE form.
    """
    decay = h - 0.5 * ((1 - eta**2) + eta**2 * torch.exp(-2 * h)).log()
    return (torch.exp(-decay) + decay - 1) / (decay / h * (1 - torch.exp(-decay))) / h_prev
