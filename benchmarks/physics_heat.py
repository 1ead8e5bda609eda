"""The heat equation run backward: which way of learning finds the field that was, and how many steps does it need.

    python -m benchmarks.physics_heat [--passes 20000]

The experiment of SMDP (arXiv 2301.10250) with a small budget: Gaussian random fields of power k^-4 on 32 x 32 points
of the periodic square [0, 2 pi]^2, standardised, after t = 0.2 of du/dt = Laplace(u), with noise of 0.01. Learnt are
the score of the process with forcing 0.1, by single steps and by windows that grow, and a U-Net and a Fourier neural
operator that see (u(0.2), u(0)) alone. All have about as many weights, and as many passes of a field through the
network in training. Beside them are the exact score of the process, and the exact posterior of what is observed.

For each it prints the mean squared difference between the answer and the true field, both carried forward to t = 0.2,
and the mean absolute difference of the logarithms of their radial spectra, k = 1 to 10. 0 is best in both; what an
exact draw from the posterior has is the least that a draw can be asked for.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surveybridge.bridge_core.physics import Heat, filtered, frequencies
from surveybridge.bridge_core.smdp import ODE, SDE, Process

RESULTS = Path(__file__).parent / "results" / "physics_heat.json"

SIDE, END, FORCING, SEEN_NOISE = 32, 0.2, 0.1, 0.01
HEAT = Heat(1.0, 2 * math.pi / SIDE)
PROCESS = Process(HEAT, FORCING)
BINS = range(1, 11)
STEPS = (8, 16, 32, 64, 128)
"""Of the reverse processes; each trajectory of the training has one of them, so that all have been seen."""
WINDOW = 8
"""States of the longest window."""
SINGLE = 0.7
"""Share of the training of windows that goes by single steps."""
BATCH, WINDOWS = 16, 4
"""Fields of a step of the optimiser, and those of a step that has a window of each."""


def wavenumbers() -> Tensor:
    """|k| of the modes of `torch.fft.rfft2`, whole numbers along each axis: float64 [32, 17]."""
    ky, kx = (SIDE * f for f in frequencies((SIDE, SIDE)))
    return torch.hypot(ky, kx)


def power() -> Tensor:
    """Power of the fields by mode, k^-4 and none at k = 0, in units of white noise of variance 1: float64 [32, 17]."""
    k = wavenumbers()
    raw = torch.where(k > 0, k.clamp(min=1) ** -4, 0.0)
    twice = torch.full_like(raw, 2.0)  # each column stands for its conjugate too, but for the first and the last
    twice[:, [0, -1]] = 1.0
    return raw * SIDE**2 / (raw * twice).sum()


def fields(count: int, generator: torch.Generator) -> Tensor:
    """Random fields of power k^-4 with mean 0 and variance 1, float32 [N, 1, 32, 32]."""
    white = torch.randn(count, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return filtered(white, power().sqrt()).float()


def observed(x0: Tensor, generator: torch.Generator) -> Tensor:
    """What is given: fields at the end, with noise."""
    return HEAT.forward(x0, END) + SEEN_NOISE * torch.randn(x0.shape, generator=generator)


class UNet(nn.Module):
    """A small U-Net on a torus: [N, C, H, W] to [N, 1, H, W]."""

    def __init__(self, inputs: int, widths: tuple[int, ...] = (16, 32, 48)) -> None:
        super().__init__()
        before = (inputs, *widths[:-1])
        self.down = nn.ModuleList(block(*pair) for pair in zip(before, widths, strict=True))
        upward = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.up = nn.ModuleList(block(low + high, high) for low, high in upward)
        self.last, self.skip = nn.Conv2d(widths[0], 1, 1), nn.Conv2d(inputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Answer [N, 1, H, W]."""
        kept, inputs = [], x
        for level, down in enumerate(self.down):
            x = down(F.avg_pool2d(x, 2) if level else x)
            kept.append(x)
        for up, high in zip(self.up, kept[-2::-1], strict=True):
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), high], 1))
        return self.last(x) + self.skip(inputs)


def block(before: int, after: int) -> nn.Sequential:
    """Two convolutions, each with a norm."""
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [nn.Conv2d(width, after, 3, padding=1, padding_mode="circular"), nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(*layers)


class FourierOperator(nn.Module):
    """A Fourier neural operator (Li et al. 2021): four layers that mix the lowest modes, [N, 1, H, W] to the same."""

    def __init__(self, width: int = 10, modes: int = 8) -> None:
        super().__init__()
        self.modes = modes
        self.first, self.last = nn.Conv2d(1, width, 1), nn.Conv2d(width, 1, 1)
        self.local = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(4))
        self.weights = nn.Parameter(torch.randn(4, width, width, 2 * modes, modes, 2) / width)

    def forward(self, x: Tensor) -> Tensor:
        """Answer [N, 1, H, W]."""
        x, m = self.first(x), self.modes
        rows = [*range(m), *range(SIDE - m, SIDE)]
        for local, weight in zip(self.local, torch.view_as_complex(self.weights), strict=True):
            mixed = torch.zeros(len(x), len(weight), SIDE, SIDE // 2 + 1, dtype=torch.complex64)
            mixed[:, :, rows, :m] = torch.einsum("nihw,iohw->nohw", torch.fft.rfft2(x)[:, :, rows, :m], weight)
            x = F.gelu(torch.fft.irfft2(mixed, s=(SIDE, SIDE)) + local(x))
        return self.last(x)


@dataclass(frozen=True)
class Score:
    """The score of a network that also sees the solver's step, as the `update 2` variants of the published code do.

    Its answer, and the solver's step, are in units of the noise of a step dt: then it need not be told dt.
    """

    network: nn.Module
    dt: float

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Score of states [N, 1, H, W] at one time, or at one each."""
        unit = FORCING * math.sqrt(self.dt)
        solver = (HEAT.forward(x, self.dt) - x) / unit
        clock = (torch.as_tensor(t, dtype=x.dtype) / END).view(-1, 1, 1, 1).expand_as(x)
        return self.network(torch.cat([x, solver, clock], 1)) / unit


def score_network() -> UNet:
    """A network for `Score` that begins at g^2 s = 2 P, the score of a state in equilibrium.

    The finest modes are in equilibrium nearly always, where forward and reverse process are the same.
    """
    network = UNet(3)
    with torch.no_grad():
        network.skip.weight[0, :, 0, 0] = torch.tensor([0.0, 2.0, 0.0])
        network.last.weight *= 0.1
    return network


def exact_score(x: Tensor, t: float) -> Tensor:
    """Score of the process: that of a Gaussian of the power that the fields and the forcing have at t."""
    rate = -HEAT.log_transfer((SIDE, SIDE))
    left = torch.exp(-2 * t * rate)
    noise = FORCING**2 * torch.where(rate > 0, (1 - left) / (2 * rate.clamp(min=1)), t)
    return -filtered(x, 1 / (left * power() + noise))


def posterior(seen: Tensor, z: Tensor | None) -> Tensor:
    """The mean of all fields that may have led to what is observed, or with white noise z a draw of them."""
    passed = torch.exp(END * HEAT.log_transfer((SIDE, SIDE)))
    total = passed**2 * power() + SEEN_NOISE**2
    mean = filtered(seen, passed * power() / total)
    return mean if z is None else mean + SEEN_NOISE * filtered(z, (power() / total).sqrt())


def trajectories(x0: Tensor, generator: torch.Generator) -> tuple[Tensor, list[float]]:
    """States [M + 1, N, 1, H, W] of the process at the times of one of `STEPS`, and these."""
    count = STEPS[int(torch.randint(0, len(STEPS), (1,), generator=generator))]
    times = [END * n / count for n in range(count + 1)]
    return PROCESS.simulate(x0, times, generator), times


def one_step(network: nn.Module, x0: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, int]:
    """Loss of single steps of the reverse SDE, each state at its own time, and the passes that it took."""
    states, times = trajectories(x0, generator)
    n = torch.arange(len(x0))
    m = torch.randint(0, len(times) - 1, (len(n),), generator=generator)
    dt, below, above = times[1], states[m, n], states[m + 1, n]
    down = PROCESS.step_down(above, END, dt, Score(network, dt)(above, (m + 1) * dt), SDE)
    return (below - down).square().mean() / (FORCING**2 * dt), len(x0)


def window_size(share: float, single: float, longest: int) -> int:
    """States of the windows at a share of the training, of which `single` goes by single steps: from 3 up."""
    return 3 + round((share - single) / (1 - single) * (longest - 3))


def windows(network: nn.Module, x0: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, int]:
    """Loss of windows that grow to `WINDOW` states, both ways, of a part of the fields; of single steps at first."""
    if share < SINGLE:
        return one_step(network, x0, share, generator)
    size = window_size(share, SINGLE, WINDOW)
    states, times = trajectories(x0[:WINDOWS], generator)
    m = int(torch.randint(0, len(times) + 1 - size, (1,), generator=generator))
    score, dt = Score(network, times[1]), times[1]
    both = PROCESS.window_loss(score, states[m : m + size], times[m : m + size], c=ODE, direction="bidirectional")
    return both / (FORCING**2 * dt * (size - 1)), 2 * (size - 1) * WINDOWS


def at_once(network: nn.Module, x0: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, int]:
    """Squared error of the answer to what is observed."""
    return (network(observed(x0, generator)) - x0).square().mean(), len(x0)


def drawn(x0: Tensor, step: int, generator: torch.Generator) -> Tensor:
    """Fields of a step of the training, turned and mirrored."""
    rows = torch.randint(0, len(x0), (BATCH,), generator=generator)
    return torch.rot90(x0[rows], step % 4, (2, 3)).flip(3 if step % 8 < 4 else 2)


Batch = TypeVar("Batch")
Loss = Callable[[nn.Module, Batch, float, torch.Generator], tuple[Tensor, int]]
Draw = Callable[[int, torch.Generator], Batch]


def train(network: nn.Module, loss: Loss[Batch], draw: Draw[Batch], passes: int) -> float:
    """Train until `passes` states went through the network, as a loss counts them.

    Parameters
    ----------
    network
        What is trained.
    loss
        Of the network, what was drawn and the share of the training that is over, with a generator: a loss [] and the
        passes that it took.
    draw
        What a step of the optimiser sees, of the number of the step.

    Returns
    -------
    Seconds of the processor.
    """
    generator, started = torch.Generator().manual_seed(1), time.process_time()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    done = step = 0
    while done < passes:
        share = done / passes
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (0.5 + 0.5 * math.cos(math.pi * share))
        batch = draw(step, generator)
        optimizer.zero_grad()
        value, taken = loss(network, batch, share, generator)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        done, step = done + taken, step + 1
    return time.process_time() - started


def profile(x: Tensor) -> Tensor:
    """Radial profile of the amplitudes of fields, [N, bins]."""
    k = wavenumbers().round()
    amplitude = torch.fft.rfft2(x[:, 0]).abs()
    return torch.stack([amplitude[:, k == one].mean(1) for one in BINS], 1)


def measured(answer: Tensor, x0: Tensor) -> dict[str, float]:
    """The numbers of the table, and the mean squared error of the field itself, which may be huge."""
    answer, x0 = answer.double(), x0.double()
    rest = (HEAT.forward(answer, END) - HEAT.forward(x0, END)).square().mean()
    spectral = (profile(answer).log() - profile(x0).log()).abs().mean()
    error = (answer - x0).square().mean()
    return {name: float(f"{float(v):.3g}") for name, v in zip(MEASURES, (rest, spectral, error), strict=True)}


MEASURES = ("reconstruction", "spectral", "error")


@torch.no_grad()
def backward(score: Callable[[Tensor, float], Tensor], seen: Tensor, steps: int, *, sde: bool) -> Tensor:
    """The fields from which the observed ones may have come."""
    generator = torch.Generator().manual_seed(7)
    noise = (lambda step: torch.randn(seen.shape, generator=generator)) if sde else None
    times = [END * (1 - n / steps) for n in range(steps + 1)]
    return PROCESS.reverse(score, seen, times, noise)


def table(training: Tensor, judged: Tensor, passes: int) -> list[dict[str, object]]:
    """Train all, and print and return the rows of the table, with the passes spent."""
    generator = torch.Generator().manual_seed(2)
    seen = observed(judged, generator)
    rows: list[dict[str, object]] = []

    def add(method: str, steps: int, answer: Tensor, cost: dict[str, int]) -> None:
        rows.append({"method": method, "steps": steps, **measured(answer, judged), **cost})
        print(rows[-1], flush=True)

    add("what is observed", 0, seen, {})
    add("posterior mean, exact", 0, posterior(seen, None), {})
    add("posterior draw, exact", 0, posterior(seen, torch.randn(seen.shape, generator=generator)), {})
    losses: dict[str, Loss[Tensor] | None] = {"exact score": None, "single steps": one_step, "windows": windows}
    for name, loss in losses.items():
        torch.manual_seed(0)
        network, cost = score_network(), {}
        if loss is not None:
            cost = cost_of(network, train(network, loss, partial(drawn, training), passes))
        for sde in (True, False):
            for steps in STEPS:
                score = exact_score if loss is None else Score(network, END / steps)
                add(f"{name}, {'SDE' if sde else 'ODE'}", steps, backward(score, seen, steps, sde=sde), cost)
    makers: dict[str, Callable[[], nn.Module]] = {"U-Net": lambda: UNet(1), "Fourier operator": FourierOperator}
    for name, make in makers.items():
        torch.manual_seed(0)
        rival = make()
        cost = cost_of(rival, train(rival, at_once, partial(drawn, training), passes))
        with torch.no_grad():
            add(name, 1, rival(seen), cost)
    return rows


def cost_of(network: nn.Module, seconds: float) -> dict[str, int]:
    """Weights and seconds of the processor of a training."""
    return {"weights": sum(p.numel() for p in network.parameters()), "seconds": round(seconds)}


def main() -> None:
    """Print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=20_000, help="of a field through each network, in training")
    parser.add_argument("--fields", type=int, default=2500, help="for training")
    parser.add_argument("--judged", type=int, default=64, help="fields that are judged")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    training, judged = fields(arguments.fields, generator), fields(arguments.judged, generator)
    rows = table(training, judged, arguments.passes)
    arguments.out.write_text(json.dumps({"passes": arguments.passes, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
