"""Which loss learns a score that brings a toy with two pasts back to both of them, and how much data does it need.

The toy of SMDP (arXiv 2301.10250): dx = -7 sign(x) x^2 dt + 0.03 dW from x = +1 or -1, over t = 0 to 10, where both
have ended around 0. Q is twice the smaller share of 1000 ends, even in -0.1 .. 0.1, that go back to within `HIT` of +1
or -1: 1 is a fair draw from the posterior. `python -m benchmarks.physics_toy` trains each loss on 2500, 250 and 25
trajectories and prints Q of the reverse SDE and of the probability flow; a minute each. `--trajectories 25` does one
count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from surveybridge.bridge_core.physics import Quadratic
from surveybridge.bridge_core.smdp import ODE, SDE, Process

RESULTS = Path(__file__).parent / "results" / "physics_toy.json"

TIMES = (10 * torch.linspace(0, 1, 201, dtype=torch.float64) ** 2).tolist()
"""Dense near 0, where states move fast."""
TOY = Quadratic(7.0)
FORCING = 0.03
HIT = 0.1
"""Of the distance from the start, by which a draw may miss it."""
ENDS = 1000
WINDOW = 20
"""States of the longest window."""
SINGLE = 0.9
"""Share of the training after which windows begin to grow."""
WIDTHS = (30, 30, 25, 20, 10)


class Score(nn.Module):
    """An MLP on (x, ln t) with the widths of the published program; its output is the score times g^2."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (2, *WIDTHS), []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Score of states [N] at one time, or at a time each."""
        log_t = torch.log(torch.as_tensor(t, dtype=x.dtype) + 1e-2).expand_as(x)
        return self.layers(torch.stack([4 * x, 0.5 * log_t], -1))[..., 0] / FORCING


def process() -> Process:
    """The toy."""
    return Process(TOY, FORCING)


def trajectories(count: int, seed: int = 0) -> Tensor:
    """Trajectories from +1 and -1 in turn, float32 [201, count]."""
    x0 = torch.ones(count, dtype=torch.float64)
    x0[1::2] = -1
    return process().simulate(x0, TIMES, torch.Generator().manual_seed(seed), substeps=4).float()


def one_step(score: Score, states: Tensor, rows: tuple[Tensor, Tensor], share: float) -> Tensor:
    """Loss of single steps of the reverse SDE, each pair at its own time."""
    m, n = rows
    times = torch.tensor(TIMES)
    dt, below, above = times[m + 1] - times[m], states[m, n], states[m + 1, n]
    down = 2 * above - TOY.forward(above, dt) + dt * SDE * FORCING**2 * score(above, times[m + 1])
    return ((below - down).square() / (FORCING**2 * dt)).mean()


def multi_step(score: Score, states: Tensor, rows: tuple[Tensor, Tensor], share: float) -> Tensor:
    """Loss of windows that grow to `WINDOW` states, both ways, all at one time; of single steps in the first part."""
    if share < SINGLE:
        return one_step(score, states, rows, share)
    size = 2 + round((share - SINGLE) / (1 - SINGLE) * (WINDOW - 2))
    m, n = int(rows[0][0]) % (len(states) - size), rows[1]
    window = states[m : m + size, n]
    times = TIMES[m : m + size]
    loss = process().window_loss(score, window, times, c=ODE, direction="bidirectional")
    return loss / (FORCING**2 * (times[-1] - times[0]))


def implicit(score: Score, states: Tensor, rows: tuple[Tensor, Tensor], share: float) -> Tensor:
    """Implicit score matching (Hyvarinen 2005): ds/dx + s^2 / 2, in units of the noise."""
    m, n = rows
    x = states[m + 1, n].requires_grad_()
    s = score(x, torch.tensor(TIMES)[m + 1])
    (slope,) = torch.autograd.grad(s.sum(), x, create_graph=True)
    return FORCING**2 * (slope + s.square() / 2).mean()


def sliced(score: Score, states: Tensor, rows: tuple[Tensor, Tensor], share: float) -> Tensor:
    """Sliced score matching with reduced variance (Song et al. 2019) of (t, x) jointly: Rademacher slices."""
    m, n = rows
    x = states[m + 1, n].requires_grad_()
    s = score(x, torch.tensor(TIMES)[m + 1])
    v = torch.randint(0, 2, x.shape).float() * 2 - 1
    (slope,) = torch.autograd.grad((s * v).sum(), x, create_graph=True)
    return FORCING**2 * (slope * v + s.square() / 2).mean()


Loss = Callable[[Score, Tensor, tuple[Tensor, Tensor], float], Tensor]
LOSSES: dict[str, Loss] = {"1-step": one_step, "ISM": implicit, "SSM-VR": sliced, "multi-step": multi_step}
STEPS = {"1-step": 4500, "ISM": 4500, "SSM-VR": 4500, "multi-step": 5000}
"""Of the optimiser; one of windows computes up to 76 times as much as one of `one_step`."""


def train(loss: Loss, states: Tensor, steps: int, batch: int = 1024, seed: int = 0) -> Score:
    """Train a score on trajectories [M + 1, N] and, as physics and starts are odd, on the same mirrored at 0.

    Its weights are the mean of those of the second half of the steps.
    """
    torch.manual_seed(seed)
    score = Score()
    average = AveragedModel(score)
    optimizer = torch.optim.Adam(score.parameters(), lr=3e-3, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    count, both = states.shape[1], torch.cat([states, -states], 1)
    for step in range(steps):
        m, n = torch.randint(0, len(states) - 1, (batch // 2,)), torch.randint(0, count, (batch // 2,))
        optimizer.zero_grad()
        (2 * loss(score, both, (torch.cat([m, m]), torch.cat([n, n + count])), step / steps)).backward()
        nn.utils.clip_grad_norm_(score.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step >= steps // 2:
            average.update_parameters(score)
    score.load_state_dict(average.module.state_dict())
    return score


@torch.no_grad()
def quality(score: Score, *, sde: bool, hit: float = HIT, seed: int = 1) -> float:
    """Q of a score under the reverse SDE or the probability flow."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.linspace(-0.1, 0.1, ENDS)
    noise = (lambda step: torch.randn(ENDS, generator=generator)) if sde else None
    start = process().reverse(score, ends, TIMES[::-1], noise)
    return 2 * min(float(((start - past).abs() < hit).float().mean()) for past in (1.0, -1.0))


def main() -> None:
    """Print the table, and keep it with the rows of other counts that were there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, nargs="+", default=[2500, 250, 25])
    counts = parser.parse_args().trajectories
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = [row for row in kept if row["trajectories"] not in counts]
    for count in counts:
        states = trajectories(count)
        for name, loss in LOSSES.items():
            started = time.perf_counter()
            score = train(loss, states, STEPS[name])
            row = {
                "trajectories": count,
                "loss": name,
                "seconds": round(time.perf_counter() - started, 1),
                "Q_sde": round(quality(score, sde=True), 3),
                "Q_ode": round(quality(score, sde=False), 3),
            }
            print(row, flush=True)
            rows.append(row)
    rows.sort(key=lambda row: -row["trajectories"])
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
