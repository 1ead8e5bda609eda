"""Score matching with a drift: constants of the losses, inference with an exact score, and the toy."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from benchmarks import physics_toy
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.physics import Heat
from surveybridge.bridge_core.smdp import ODE, SDE, Corrector, Direction, Process
from surveybridge.bridge_core.spectral import SpectralBridge, sample_spectral

SHAPE = (16, 16)
STEP, TIME = 0.01, 0.4


class Decay:
    """Linear drift P(x) = -rate x of single numbers."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def forward(self, x: Tensor, dt: float | Tensor) -> Tensor:
        return x * math.exp(-self.rate * dt)

    def log_transfer(self, shape: tuple[int, int]) -> Tensor:
        return torch.full(shape, -self.rate)


@pytest.fixture(scope="module")
def pair():
    """States at two times of a decay from a Gaussian, whose sample has the very moments of the process: float64 [2, N].

    With it the lower variance, the factor and the variance of the step's noise.
    """
    generator = torch.Generator().manual_seed(11)
    both = torch.linalg.qr(torch.randn(500, 2, generator=generator, dtype=torch.float64))[0] * math.sqrt(500)
    below = 1.69 * math.exp(-1.6 * TIME) + 0.36 * TIME
    r, q = math.exp(-0.8 * STEP), 0.6**2 * STEP
    low = math.sqrt(below) * both[:, 0]
    return Process(Decay(0.8), 0.6), torch.stack([low, r * low + math.sqrt(q) * both[:, 1]]), below, r, q


def slope_of(process: Process, states: Tensor, c: float, direction: Direction) -> float:
    """The number s of a score s x that makes a window loss smallest."""
    times, slope = [TIME, TIME + STEP], torch.zeros((), dtype=torch.float64, requires_grad=True)

    def gradient(value: Tensor) -> Tensor:
        loss = process.window_loss(lambda x, t: value * x, states, times, c=c, direction=direction)
        return torch.autograd.grad(loss, value)[0]

    # the loss is a parabola in the slope: two of its gradients say where it is smallest
    first, second = gradient(slope), gradient(slope.detach().sub(1).requires_grad_())
    return float(first / (second - first))


def test_a_step_down_learns_the_conditional_mean(pair):
    process, states, below, r, q = pair
    slope = slope_of(process, states, SDE, "backward")
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    down = process.step_down(x, TIME + STEP, STEP, slope * x, SDE)
    assert torch.allclose(down, x * r * below / (r * r * below + q), rtol=1e-4)


def test_which_multiple_of_the_score_each_loss_learns(pair):
    process, states, below, r, q = pair
    score = -1 / (r * r * below + q)
    assert slope_of(process, states, SDE, "backward") == pytest.approx(score, rel=0.03)
    assert slope_of(process, states, ODE, "backward") == pytest.approx(2 * score, rel=0.03)
    assert slope_of(process, states, ODE, "bidirectional") == pytest.approx(score, rel=0.03)
    assert slope_of(process, states, ODE, "forward") == pytest.approx(0.0, abs=0.02 * abs(score))


def test_a_longer_window_takes_each_step_from_the_one_before():
    process = Process(Decay(1.1), 0.2)
    states = process.simulate(
        torch.ones(6, dtype=torch.float64), [0.0, 0.1, 0.2, 0.3], torch.Generator().manual_seed(1)
    )
    times = [0.0, 0.1, 0.2, 0.3]
    x, expected = states[3], 0.0
    for index in (2, 1, 0):
        x = 2 * x - process.operator.forward(x, 0.1) + 0.1 * 0.5 * 0.04 * (-3.0 * x)
        expected += float((x - states[index]).square().mean())
    loss = process.window_loss(lambda x, t: -3.0 * x, states, times)
    assert float(loss) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(BridgeError, match="give 2 or more"):
        process.window_loss(lambda x, t: x, states[:1], times[:1])


def test_a_solver_that_knows_negative_time_takes_the_step_down_itself():
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    for negative_time, factor in ((True, math.exp(0.8 * STEP)), (False, 2 - math.exp(-0.8 * STEP))):
        process = Process(Decay(0.8), 0.6, negative_time)
        down = process.step_down(x, TIME, STEP, -x, SDE)
        torch.testing.assert_close(down, (factor - STEP * 0.36) * x, rtol=1e-12, atol=0)


def gaussian_field() -> tuple[Tensor, Heat, float]:
    """Power [H, W // 2 + 1] of a field, its operator, and the variance of white noise at the end."""
    k = (-Heat().log_transfer(SHAPE)).sqrt()
    return 0.6 * (0.5 + k) ** -3.0, Heat(0.5), 0.02


def power_ratio(values: Tensor, expected: Tensor, bins: list[Tensor]) -> list[float]:
    """Measured over expected power of fields [N, H, W] in bins of modes."""
    power = torch.fft.rfft2(values).abs().square().mean(0) / math.prod(SHAPE)
    return [float(power[b].sum() / expected[b].sum()) for b in bins]


@pytest.fixture(scope="module")
def observed():
    """One observed field, drawn from the prior, and the exact posterior of what it was."""
    power, heat, variance = gaussian_field()
    time, generator = 2.5, torch.Generator().manual_seed(5)
    a = (time * heat.log_transfer(SHAPE)).exp()
    z = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    y = torch.fft.irfft2(torch.fft.rfft2(z[0]) * power.sqrt() * a, s=SHAPE) + variance**0.5 * z[1]
    mean = torch.fft.irfft2(torch.fft.rfft2(y) * a * power / (a * a * power + variance), s=SHAPE)
    k = (-Heat().log_transfer(SHAPE)).sqrt()
    edges = [0.0, 0.6, 1.0, 1.5, 2.2]
    bins = [(k > low) & (k <= high) for low, high in itertools.pairwise(edges)]
    return power, heat, variance, time, y, mean, bins


def exact_score(power: Tensor, a: Tensor, noise: Tensor):
    """Score of a Gaussian field by its states' power."""
    return lambda x: -torch.fft.irfft2(torch.fft.rfft2(x) / (a * a * power + noise), s=SHAPE)


@pytest.mark.parametrize("law", ["survey", "white"])
def test_the_reverse_sde_draws_from_the_posterior_under_both_laws_of_noise(observed, law):
    power, heat, variance, time, y, _, bins = observed
    rate = -heat.log_transfer(SHAPE)
    # the paper's white forcing ends at another noise than the survey's, so it begins at an image with that noise
    white = variance / time
    end = (
        white * torch.where(rate > 0, (1 - torch.exp(-2 * rate * time)) / (2 * rate), time) if law == "white" else None
    )

    def noise_at(t: float) -> Tensor:
        if law == "survey":
            return torch.full_like(rate, variance * t / time)
        return white * torch.where(rate > 0, (1 - torch.exp(-2 * rate * t)) / (2 * rate), t)

    def forcing(t: float) -> Tensor:
        g2 = variance / time + 2 * rate * variance * t / time if law == "survey" else torch.full_like(rate, white)
        return g2.sqrt()

    noise_end = noise_at(time) if end is None else end
    a_end = (-time * rate).exp()
    expected_mean = torch.fft.irfft2(torch.fft.rfft2(y) * a_end * power / (a_end * a_end * power + noise_end), s=SHAPE)
    generator, draws, steps = torch.Generator().manual_seed(9), 96, 512
    # dense near 0, where the finest modes are decided
    times = [time * (1 - i / steps) ** 2 for i in range(steps + 1)]
    x = Process(heat, forcing).reverse(
        lambda x, t: exact_score(power, (-t * rate).exp(), noise_at(t))(x),
        y.expand(draws, *SHAPE),
        times,
        lambda step: torch.randn(draws, *SHAPE, generator=generator, dtype=torch.float64),
    )
    check(x, expected_mean, power * noise_end / (a_end**2 * power + noise_end), bins, 0.03)


def check(x: Tensor, mean: Tensor, variance: Tensor, bins: list[Tensor], limit: float) -> None:
    """Draws [K, H, W] have a mean and a variance by mode: the mean to 3 sigma, the variance to a share and 3 sigma."""
    draws = len(x)
    spread = power_ratio(x - x.mean(0), variance * (1 - 1 / draws), bins)
    off = power_ratio((x.mean(0) - mean)[None], variance / draws, bins)
    for ratio, squared, modes in zip(spread, off, bins, strict=True):
        count = int(modes.sum())  # each a complex number, or two that are conjugates
        assert ratio == pytest.approx(1.0, abs=limit + 3 * math.sqrt(2 / (draws * count)))
        assert squared < 1 + 3 * math.sqrt(2 / count) + draws * limit**2


def spectral(heat: Heat, variance: float, time: float) -> SpectralBridge:
    share = torch.linspace(0.01, 1, 600, dtype=torch.float64) ** 2
    log_transfer = time * heat.log_transfer(SHAPE)
    return SpectralBridge(share, log_transfer, torch.full_like(log_transfer, variance))


def coloured(generator: torch.Generator, draws: int):
    def noise(step: int, w: Tensor) -> Tensor:
        z = torch.randn(draws, *SHAPE, generator=generator, dtype=torch.float64)
        return torch.fft.irfft2(torch.fft.rfft2(z) * w, s=SHAPE)

    return noise


@pytest.mark.parametrize(("order", "count", "limit"), [(1, 512, 0.03), (2, 20, 0.1)])
def test_steps_of_the_table_draw_from_the_posterior(observed, order, count, limit):
    power, heat, variance, time, y, mean, bins = observed
    bridge, draws = spectral(heat, variance, time), 96
    # even in the standard deviation of the noise
    wanted = torch.linspace(1, float(bridge.share[0]) ** 0.5, count, dtype=torch.float64) ** 2
    steps = sorted({int((bridge.share - m).abs().argmin()) for m in wanted}, reverse=True)

    def denoise(x: Tensor, t: int) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * bridge.wiener(t, power), s=SHAPE)

    noise = coloured(torch.Generator().manual_seed(2), draws)
    x = sample_spectral(bridge, denoise, y.expand(draws, *SHAPE), steps, noise, order=order)
    check(x, mean, power * variance / (bridge.a(-1) ** 2 * power + variance), bins, limit)


def test_the_probability_flow_ends_at_its_closed_form(observed):
    power, heat, variance, time, y, _, bins = observed
    bridge = spectral(heat, variance, time)

    def denoise(x: Tensor, t: int) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * bridge.wiener(t, power), s=SHAPE)

    x = sample_spectral(bridge, denoise, y, list(range(599, -1, -2)), None, eta=0.0)
    a = bridge.a(-1)
    closed = torch.fft.rfft2(y) * (power / (a**2 * power + variance)).sqrt()
    found = torch.fft.rfft2(x)
    for modes in bins:
        ratio = (found[modes] / closed[modes]).real
        assert float(ratio.mean()) == pytest.approx(1.0, abs=0.05)


def test_a_corrector_leaves_the_states_as_they_are():
    generator = torch.Generator().manual_seed(4)
    x = 0.7 * torch.randn(60_000, generator=generator, dtype=torch.float64)
    correct = Corrector(40, 0.01, lambda after, step: torch.randn(60_000, generator=generator, dtype=torch.float64))
    after = correct(lambda x, t: -x / 0.49, x, 1.0, 0)
    assert float(after.std()) == pytest.approx(0.7, rel=0.02)
    # and brings others there
    assert float(correct(lambda x, t: -x / 0.49, 0 * x + 2, 1.0, 0).mean()) < 1.0


@pytest.mark.long
def test_the_toy_goes_back_to_both_of_its_pasts():
    """Q of the reverse SDE, twice the share of ends that come back to within a tenth of the rarer start."""
    states = physics_toy.trajectories(2500, seed=5)
    score = physics_toy.train(physics_toy.one_step, states, steps=4500, seed=5)
    assert physics_toy.quality(score, sde=True) >= 0.9
    assert physics_toy.quality(physics_toy.Score(), sde=True) < 0.1
