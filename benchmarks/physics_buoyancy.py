"""Smoke that rose around obstacles, run backward: what does a learned score add to physics, and to one answer at once.

    python -m benchmarks.physics_buoyancy [--passes 8000]

The experiment of SMDP (arXiv 2301.10250) with a small solver of our own (`benchmarks.smoke`): 32 x 32 cells, a source
that has made smoke before the start, boxes and discs in its way, 32 steps, and noise of 0.01 a step in smoke and
velocity. A step down is the solver's with negative time, as published: its step forward subtracted grows without limit
here. Learnt are the score, by single steps and by windows that grow, and a network of the same layers that sees
(end, start) alone. All know the obstacles, and have as many passes of a state through the network in training.

For scenes that were not trained on it prints mean squared errors: of the smoke and of the velocity at the start, and of
the smoke at the end, when the solver carries the answer and the true start there; and for samples of the reverse SDE
how far they scatter, over how far their mean errs: 1 is what a posterior has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.physics_heat import Loss, cost_of, train, window_size
from benchmarks.smoke import SIDE, Smoke, scenes, starts
from surveybridge.bridge_core.smdp import ODE, SDE, Process

RESULTS = Path(__file__).parent / "results" / "physics_buoyancy.json"

STEPS = 32
"""Of a trajectory, each of one unit of time."""
FORCING = 0.01
TIMES = [float(t) for t in range(STEPS + 1)]
TOGETHER = 2
"""Scenes of a step of the optimiser."""
BATCH, WINDOWS = 8, 2
"""States of each of them, and those of a step that has a window of each."""
WINDOW = 8
"""States of the longest window."""
SINGLE = 0.7
"""Share of the training of windows that goes by single steps."""
SAMPLES = 8


@dataclass(frozen=True)
class Runs:
    """Simulated trajectories.

    Parameters
    ----------
    solver
        Of M scenes.
    states
        [STEPS + 1, M, K, 3, 32, 32], K trajectories in each.
    """

    solver: Smoke
    states: Tensor

    @property
    def start(self) -> Tensor:
        """States [M K, 3, 32, 32] at the start."""
        return self.states[0].flatten(0, 1)

    @property
    def end(self) -> Tensor:
        """States [M K, 3, 32, 32] at the end, which are what is observed."""
        return self.states[-1].flatten(0, 1)


def process(solver: Smoke) -> Process:
    """The process of some scenes."""
    return Process(solver, FORCING, negative_time=True)


def simulated(count: int, each: int, seed: int) -> Runs:
    """Trajectories in some scenes."""
    generator = torch.Generator().manual_seed(seed)
    solver = Smoke.around(scenes(count, generator))
    states = process(solver).simulate(starts(solver, each, generator), TIMES, generator)
    return Runs(solver, states.view(STEPS + 1, count, each, 3, SIDE, SIDE))


class Correction(nn.Module):
    """Dilated convolutions that see a state, a step of the solver, a time, the obstacles and where the walls are.

    [N, 3, H, W] twice, [N] in units of `STEPS`, and [N, 1, H, W], to [N, 3, H, W].
    """

    def __init__(self, width: int = 24, dilations: tuple[int, ...] = (1, 2, 4, 2)) -> None:
        super().__init__()
        self.first = nn.Conv2d(10, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=d, dilation=d)),
                *(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=d, dilation=d)),
            )
            for d in dilations
        )
        self.last = nn.Sequential(nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor, step: Tensor, t: Tensor, fluid: Tensor) -> Tensor:
        """Answer for states."""
        clock = t.view(-1, 1, 1, 1).expand_as(fluid)
        row = torch.linspace(-1, 1, SIDE).expand_as(fluid)
        h = self.first(torch.cat([x, step, fluid, clock, row, row.mT], 1))
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


@dataclass(frozen=True)
class Score:
    """The score of a network, whose answer is in units of the noise of a step."""

    network: nn.Module
    solver: Smoke

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Score of states [N, 3, H, W] at one time, or at one each."""
        fluid = self.solver.fluid.repeat_interleave(len(x) // len(self.solver.fluid), 0)
        clock = torch.as_tensor(t, dtype=x.dtype).expand(len(x)) / STEPS
        return self.network(x, 10 * (x - self.solver.forward(x, -1.0)), clock, fluid) / FORCING


Drawn = tuple[Smoke, Tensor]
"""Some scenes, and all states [STEPS + 1, N, 3, 32, 32] of trajectories in them."""


def drawn(runs: Runs, step: int, generator: torch.Generator) -> Drawn:
    """Trajectories of a step of the training."""
    rows = torch.randperm(len(runs.solver.fluid), generator=generator)[:TOGETHER]
    which = torch.randint(0, runs.states.shape[2], (len(rows), BATCH), generator=generator)
    return runs.solver.scenes(rows), runs.states[:, rows[:, None], which].flatten(1, 2)


def one_step(network: nn.Module, batch: Drawn, share: float, generator: torch.Generator) -> tuple[Tensor, int]:
    """Loss of single steps of the reverse SDE, each state at its own time, and the passes that it took."""
    solver, states = batch
    n = torch.arange(states.shape[1])
    m = torch.randint(0, STEPS, (len(n),), generator=generator)
    below, above = states[m, n], states[m + 1, n]
    down = process(solver).step_down(above, STEPS, 1.0, Score(network, solver)(above, m + 1.0), SDE)
    return (below - down).square().mean() / FORCING**2, len(n)


def windows(network: nn.Module, batch: Drawn, share: float, generator: torch.Generator) -> tuple[Tensor, int]:
    """Loss of windows that grow to `WINDOW` states, both ways, of a part of the states; of single steps at first."""
    if share < SINGLE:
        return one_step(network, batch, share, generator)
    solver, states = batch
    part = states.unflatten(1, (-1, BATCH))[:, :, :WINDOWS].flatten(1, 2)
    size = window_size(share, SINGLE, WINDOW)
    m = int(torch.randint(0, STEPS + 2 - size, (1,), generator=generator))
    both = process(solver).window_loss(
        Score(network, solver), part[m : m + size], TIMES[m : m + size], c=ODE, direction="bidirectional"
    )
    return both / (FORCING**2 * (size - 1)), 2 * (size - 1) * part.shape[1]


def at_once(network: nn.Module, batch: Drawn, share: float, generator: torch.Generator) -> tuple[Tensor, int]:
    """Squared error of the answer to the end."""
    solver, states = batch
    return (answered(network, solver, states[-1]) - states[0]).square().mean() / FORCING, states.shape[1]


def answered(network: nn.Module, solver: Smoke, end: Tensor) -> Tensor:
    """Starts [N, 3, H, W] that a network says at once; it too sees one step of the solver back."""
    return FORCING * Score(network, solver)(end, STEPS)


@torch.no_grad()
def backward(score: Callable[[Tensor, float], Tensor], runs: Runs, samples: int | None) -> Tensor:
    """Starts from which the ends may have come, [samples, M K, 3, 32, 32]; one by the ODE if `samples` is None."""
    generator, end = torch.Generator().manual_seed(7), runs.end
    # the samples of a state lie next to each other, and so do states of a scene
    x = end.repeat_interleave(samples or 1, 0)
    noise = None if samples is None else lambda step: torch.randn(x.shape, generator=generator)
    found = process(runs.solver).reverse(score, x, TIMES[::-1], noise)
    return found.unflatten(0, (len(end), -1)).transpose(0, 1)


def forward(solver: Smoke, x: Tensor) -> Tensor:
    """States at the end of a simulation without noise."""
    for _ in range(STEPS):
        x = solver.forward(x, 1.0)
    return x


@torch.no_grad()
def measured(answer: Tensor, runs: Runs) -> dict[str, float]:
    """The errors of answers [M K, 3, 32, 32] in the cells that are free."""
    fluid = runs.solver.fluid.repeat_interleave(runs.states.shape[2], 0)

    def error(found: Tensor, true: Tensor) -> float:
        return float(f"{float(((found - true) * fluid).square().sum() / (fluid.sum() * found.shape[1])):.3g}")

    ends = [forward(runs.solver, x)[:, :1] for x in (answer, runs.start)]
    return {
        "start_smoke": error(answer[:, :1], runs.start[:, :1]),
        "start_velocity": error(answer[:, 1:], runs.start[:, 1:]),
        "end_smoke": error(*ends),
    }


def spread(samples: Tensor, runs: Runs) -> float:
    """Scatter of the smoke of samples [S, M K, 3, 32, 32] over the error of their mean, which 1 + 1 / S belongs to."""
    fluid = runs.solver.fluid.repeat_interleave(runs.states.shape[2], 0)
    smoke = samples[:, :, :1] * fluid
    off = (smoke.mean(0) - runs.start[:, :1] * fluid).square().sum()
    return round(float((smoke.var(0).sum() * (1 + 1 / len(samples)) / off).sqrt()), 3)


def table(training: Runs, judged: Runs, passes: int) -> list[dict[str, object]]:
    """Train all, and print and return the rows of the table."""
    rows: list[dict[str, object]] = []

    def add(method: str, answer: Tensor, **more: float) -> None:
        rows.append({"method": method, **measured(answer, judged), **more})
        print(rows[-1], flush=True)

    def trained(loss: Loss[Drawn]) -> tuple[Correction, dict[str, int]]:
        torch.manual_seed(0)
        network = Correction()
        return network, cost_of(network, train(network, loss, partial(drawn, training), passes))

    add("the end itself", judged.end)
    add("physics alone", backward(lambda x, t: torch.zeros_like(x), judged, None)[0])
    for name, loss in (("single steps", one_step), ("windows", windows)):
        network, cost = trained(loss)
        score = Score(network, judged.solver)
        add(f"{name}, ODE", backward(score, judged, None)[0], **cost)
        samples = backward(score, judged, SAMPLES)
        add(f"{name}, SDE, one sample", samples[0], **cost)
        add(f"{name}, SDE, mean of {SAMPLES}", samples.mean(0), **cost, spread=spread(samples, judged))
    network, cost = trained(at_once)
    with torch.no_grad():
        add("at once", answered(network, judged.solver, judged.end), **cost)
    return rows


def main() -> None:
    """Print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=8_000, help="of a state through each network, in training")
    parser.add_argument("--scenes", type=int, default=40, help="for training, with 8 trajectories each")
    parser.add_argument("--judged", type=int, default=6, help="scenes that are judged, with 4 trajectories each")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    training, judged = simulated(arguments.scenes, 8, seed=0), simulated(arguments.judged, 4, seed=1)
    rows = table(training, judged, arguments.passes)
    arguments.out.write_text(json.dumps({"passes": arguments.passes, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
