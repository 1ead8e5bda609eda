"""How many steps a sample through the seeing needs, of which order and where, for its variance to be right.

    python -m benchmarks.spectral_steps

A Gaussian sky of power (0.05 + k)^-2.5 behind a Gaussian seeing of 3.1 pixels and white noise of 0.1, with the exact
denoiser: mean and covariance of what `sample_spectral` draws follow in closed form, mode by mode. It prints the
variance over that of the posterior at seven k, rad per pixel, and writes benchmarks/results/spectral_steps.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from surveybridge.bridge_core.spectral import SpectralBridge

RESULTS = Path(__file__).parent / "results" / "spectral_steps.json"

K = torch.tensor([0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.6], dtype=torch.float64)
PRIOR = (0.05 + K) ** -2.5
NOISE = 0.1**2
LOG_TRANSFER = -0.5 * (3.1 * K) ** 2
LEAST = 1e-3
"""Share m of the first step of the table."""
GRIDS = {"even in s": 1.0, "even in s^(1/2)": 2.0, "even in s^(1/7)": 7.0}
STEPS = (6, 10, 16, 32)


def variance_ratio(count: int, order: int, rho: float) -> Tensor:
    """Variance of the samples over that of the posterior, by mode."""
    low = LEAST ** (0.5 / rho)
    share = (low + (1 - low) * torch.linspace(0, 1, count, dtype=torch.float64)) ** (2 * rho)
    bridge = SpectralBridge(share, LOG_TRANSFER, torch.full_like(K, NOISE))
    covariance = torch.zeros(len(K), 2, 2, dtype=torch.float64)  # of the state, and of the last estimate of x0
    for t in range(count - 1, 0, -1):
        filter_ = bridge.wiener(t, PRIOR)
        k, p, w = bridge.transition(t, t - 1)
        second = order == 2 and 1 < t < count - 1
        c = bridge.extrapolation(t + 1, t, t - 1, 1.0) if second else torch.zeros_like(K)
        step = torch.stack([torch.stack([k + p * (1 + c) * filter_, -p * c], -1), torch.stack([filter_, 0 * p], -1)], 1)
        covariance = step @ covariance @ step.mT
        covariance[:, 0, 0] += w**2
    found = bridge.wiener(0, PRIOR) ** 2 * covariance[:, 0, 0]
    a = bridge.a(-1)
    return found / (PRIOR * NOISE / (a**2 * PRIOR + NOISE))


def main() -> None:
    """Print and keep the table."""
    rows = []
    for order in (1, 2):
        for name, rho in GRIDS.items():
            for count in STEPS:
                ratios = [round(float(v), 2) for v in variance_ratio(count, order, rho)]
                rows.append({"order": order, "steps": count, "grid": name, "variance": ratios})
                print(f"order {order}, {count:2} steps {name:15}", *(f"{v:5.2f}" for v in ratios))
    RESULTS.write_text(json.dumps({"k": K.tolist(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
