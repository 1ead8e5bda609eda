"""The sampler with a denoiser that is known exactly: what it draws must have the moments of the exact posterior.

x0 | x1 ~ N(GAIN x1 + OFFSET, TAU^2) in every pixel. The last network call returns the posterior mean at the table's
lowest noise level, so the variance comes out as TAU^2 times `shrink` (0.96 to 1.00) even from perfect steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.sampler import (
    begin,
    boot,
    bridge_steps,
    draw,
    end_then_rho_steps,
    rho_steps,
    sample,
    sample_heun,
    step_at,
    step_coefficients,
    uniform_steps,
)
from surveybridge.bridge_core.spans import listening
from surveybridge.kernels.sky_noise import SkyNoise
from tests.bridge_core.models import (
    TO_EUCLID,
    TO_LSST,
    AnalyticModel,
    analytic_model,
    gaussian_denoiser,
    make_card,
    random_model,
)

GAIN, OFFSET, TAU = 0.8, 0.1, 0.3
BRIDGES: dict[str, Callable[..., Bridge]] = {
    "brownian": Bridge.brownian,
    "schrodinger": Bridge.schrodinger,
    "diffusion": Bridge.diffusion,
}
SHAPE = (40, 3, 16, 16)
X1 = 0.5


def make(kind: str = "brownian", objective: str = "edm", clamp: tuple[float, float] | None = None) -> AnalyticModel:
    card = make_card(BRIDGES[kind](), objective, clamp=clamp)
    return analytic_model(gaussian_denoiser(GAIN, OFFSET, TAU), card)


def observed() -> Tensor:
    return torch.full(SHAPE, X1)


def at(model: AnalyticModel, t: int) -> Tensor:
    """Exact draws of x_t given x1: x0 from its posterior, then the forward process."""
    x0 = GAIN * X1 + OFFSET + TAU * torch.randn(SHAPE)
    return model.card.bridge.q_sample(x0, observed(), torch.full((SHAPE[0],), t), torch.randn(SHAPE))


def fresh(step: int) -> Tensor:
    return torch.randn(SHAPE)


def shrink(model: AnalyticModel) -> float:
    return TAU**2 / (TAU**2 + float(model.card.bridge.sigma[0]) ** 2)


def moments(model: AnalyticModel, x: Tensor) -> tuple[float, float]:
    """Error of the mean in units of TAU, and variance over the exact one."""
    return float(x.mean() - GAIN * X1 - OFFSET) / TAU, float(x.var()) / (TAU**2 * shrink(model))


# ---- the right distribution


@pytest.mark.parametrize("kind", sorted(BRIDGES))
def test_second_order_on_the_rho_grid_draws_the_posterior_in_thirty_steps(kind):
    model = make(kind)
    steps = rho_steps(model.card.bridge, 30)
    x = sample(model, observed(), TO_EUCLID, steps, start=at(model, steps[0]))
    mean, variance = moments(model, x)
    assert mean == pytest.approx(0, abs=0.03)
    assert variance == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("count", [3, 8, 10])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", sorted(BRIDGES))
def test_deterministic_sampler_is_dpm_solver_in_zeta(kind, order, count):
    model = make(kind)
    steps = rho_steps(model.card.bridge, count)
    start = at(model, steps[0])
    x = sample(model, observed(), TO_EUCLID, steps, start=start, order=order)
    # the same solver written for zeta alone (Lu et al. 2022, algorithm 2 for the data prediction model), float64
    bridge, prior = model.card.bridge, GAIN * X1 + OFFSET
    sigma = [float(bridge.sigma[t]) for t in steps]
    zeta = (start.double() - bridge.b[steps[0]] * X1) / bridge.a[steps[0]]
    before = None
    for i, now in enumerate(sigma):
        x0 = (now**2 * prior + TAU**2 * zeta) / (now**2 + TAU**2)
        if i + 1 == len(sigma):
            break
        h = math.log(now / sigma[i + 1])
        last = i + 2 == len(sigma)  # the solver drops to first order there
        slope = 0.0 if order == 1 or before is None or last else (x0 - before) / math.log(sigma[i - 1] / now)
        zeta = sigma[i + 1] / now * zeta + (1 - math.exp(-h)) * x0 + (h - 1 + math.exp(-h)) * slope
        before = x0
    torch.testing.assert_close(x.double(), x0, rtol=0, atol=3e-5)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("kind", sorted(BRIDGES))
def test_many_first_order_steps_draw_the_posterior(kind, eta):
    model = make(kind)
    steps = rho_steps(model.card.bridge, 120)
    x = sample(model, observed(), TO_EUCLID, steps, start=at(model, steps[0]), noise=fresh, eta=eta, order=1)
    mean, variance = moments(model, x)
    assert mean == pytest.approx(0, abs=0.03)
    assert variance == pytest.approx(1, abs=0.09)  # the first order misses 1 / steps of it


@pytest.mark.parametrize("kind", sorted(BRIDGES))
def test_second_order_beats_first_at_equal_steps(kind):
    model = make(kind)
    steps = rho_steps(model.card.bridge, 30)
    start = at(model, steps[0])
    error = {}
    for order in (1, 2):
        _, variance = moments(model, sample(model, observed(), TO_EUCLID, steps, start=start, order=order))
        error[order] = abs(variance - 1)
    assert error[2] < 0.4 * error[1]


def test_more_steps_converge_at_the_order_asked_for():
    model = make()
    start = at(model, 900)

    def end(count: int, order: int) -> Tensor:
        steps = rho_steps(model.card.bridge, count, sigma_max=float(model.card.bridge.sigma[900]))
        assert steps[0] == 900
        return sample(model, observed(), TO_EUCLID, steps, start=start, order=order)

    truth = end(400, 2)
    first = [float((end(n, 1) - truth).abs().mean()) for n in (4, 16)]
    second = [float((end(n, 2) - truth).abs().mean()) for n in (4, 16)]
    assert first[0] / first[1] == pytest.approx(4, abs=1)
    assert second[0] / second[1] > 12  # 16 but for steps that snap to the table


@pytest.mark.parametrize("objective", ["eps", "grad", "maxnll", "i2sb", "edm"])
def test_objective_is_a_choice_of_words_only(objective):
    model = make(objective=objective)
    steps, start = [900, 500, 100, 0], at(make(), 900)
    x = sample(model, observed(), TO_EUCLID, steps, start=start)
    torch.testing.assert_close(x, sample(make(), observed(), TO_EUCLID, steps, start=start), rtol=0, atol=3e-5)


# ---- where it starts


def test_published_start_from_the_observed_end():
    model = make()
    steps = [*range(999, -1, -4), 0]
    x = sample(model, observed(), TO_EUCLID, steps, start=observed(), noise=fresh, eta=1.0, order=1)
    mean, variance = moments(model, x)
    assert mean == pytest.approx(0, abs=0.03)
    # uniform steps crowd at high noise: part of the variance is missing (the reference keeps 0.67 to 0.76 at 200)
    assert 0.75 < variance < 1.02


def test_schrodinger_start_from_the_observed_end():
    model = make("schrodinger")
    steps = [*range(999, -1, -4), 0]
    x = sample(model, observed(), TO_EUCLID, steps, start=observed(), noise=fresh, eta=1.0, order=1)
    mean, variance = moments(model, x)
    assert mean == pytest.approx(0, abs=0.03)
    assert variance == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", sorted(BRIDGES))
def test_boot_is_a_start_without_a_network_call(kind):
    model = make(kind)
    bridge = model.card.bridge
    steps = rho_steps(bridge, 20, sigma_max=5.0)
    z = torch.randn(SHAPE)
    start = boot(bridge, observed(), steps[0], z)
    torch.testing.assert_close(
        start, bridge.q_sample(observed(), observed(), torch.full((SHAPE[0],), steps[0]), z), rtol=0, atol=1e-5
    )
    x = sample(model, observed(), TO_EUCLID, steps, start=start)
    mean, variance = moments(model, x)
    assert len(model.calls) == len(steps)
    # x1 in the place of x0 shifts zeta by far less than sigma_max = 5
    assert mean == pytest.approx(0, abs=0.03)
    assert variance == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("eta", "order"), [(0.0, 2), (1.0, 1)])
def test_midpoint_start_forgets_nothing_that_is_not_noise(eta, order):
    model = make()
    truth = GAIN * X1 + OFFSET + 3 * TAU  # an unusual object
    t = 200
    start = model.card.bridge.q_sample(torch.full(SHAPE, truth), observed(), torch.full((40,), t), torch.randn(SHAPE))
    sigma = float(model.card.bridge.sigma[t])
    steps = uniform_steps(t, 60)
    x = sample(model, observed(), TO_EUCLID, steps, start=start, noise=fresh, eta=eta, order=order)
    # the posterior of x0 given zeta = truth + sigma eps is between prior mean and truth
    weight = TAU**2 / (TAU**2 + sigma**2)
    expected = weight * truth + (1 - weight) * (GAIN * X1 + OFFSET) if eta else None
    if expected is not None:
        assert float(x.mean()) == pytest.approx(expected, abs=0.02)
    else:  # the flow maps z-scores: (truth - mean) / sqrt(TAU^2 + sigma^2) is kept
        scale = TAU / (TAU**2 + sigma**2) ** 0.5
        assert float(x.mean()) == pytest.approx(GAIN * X1 + OFFSET + scale * 3 * TAU, abs=0.02)


# ---- noise


def sky(stream: int = 7) -> SkyNoise:
    n = torch.arange(SHAPE[0], dtype=torch.int32)
    return SkyNoise(seed=5, stream=stream, sample=n % 4, y0=16 * (n // 4), x0=torch.zeros_like(n))


def test_sky_noise_and_its_tensors_give_the_same_bits():
    model, noise = make(), sky()
    steps, start = [800, 400, 100, 3], at(make(), 800)
    fused = sample(model, observed(), TO_EUCLID, steps, start=start, noise=noise, eta=1.0, order=1)
    given = sample(
        model, observed(), TO_EUCLID, steps, start=start, noise=lambda i: draw(noise, i, start), eta=1.0, order=1
    )
    assert torch.equal(fused, given)
    other = sample(model, observed(), TO_EUCLID, steps, start=start, noise=sky(8), eta=1.0, order=1)
    assert not torch.equal(fused, other)


def test_every_update_draws_once_with_its_own_number_and_the_last_none():
    numbers: list[int] = []

    def noise(step: int) -> Tensor:
        numbers.append(step)
        return torch.randn(SHAPE)

    model = make()
    sample(model, observed(), TO_EUCLID, [800, 400, 100, 3], start=observed(), noise=noise, eta=1.0, order=1)
    assert numbers == [0, 1, 2]
    assert model.calls == [800, 400, 100, 3]


def test_deterministic_sampler_needs_no_noise_and_reads_none():
    model = make()
    start = at(model, 800)
    x = sample(model, observed(), TO_EUCLID, [800, 100, 3], start=start)
    assert torch.equal(x, sample(model, observed(), TO_EUCLID, [800, 100, 3], start=start, noise=sky()))


def test_noise_that_is_needed_but_absent_is_refused():
    with pytest.raises(ValueError, match="noise"):
        sample(make(), observed(), TO_EUCLID, [800, 100], start=observed(), eta=1.0, order=1)


# ---- mechanics


def test_clamp_of_the_card_bounds_x0_at_every_step():
    bounds = (-0.05, 0.5)
    bridge, bound = Bridge.brownian(), make(clamp=bounds)
    start = at(bound, 900)
    steps: list[int] = [900, 400, 0]
    states: list[Tensor] = []
    x = sample(bound, observed(), TO_EUCLID, steps, start=start, order=1, trajectory=states)
    assert torch.equal(x, x.clamp(*bounds))
    # the first update was made with a bounded x0 as well
    zeta = (start.double() - bridge.b[900] * X1) / bridge.a[900]
    sigma = float(bridge.sigma[900])
    x0 = bound.denoise(zeta, sigma, observed().double(), TO_EUCLID)
    assert float(x0.max()) > bounds[1]
    k, p, q, _ = bridge.transition(900, 400, 0.0)
    expected = k * start.double() + p * x0.clamp(*bounds) + q * X1
    torch.testing.assert_close(states[0].double(), expected, rtol=0, atol=1e-5)


def test_trajectory_holds_every_state_and_ends_with_the_result():
    states: list[Tensor] = []
    model = make()
    x = sample(model, observed(), TO_EUCLID, [900, 400, 100, 0], start=at(model, 900), trajectory=states)
    assert len(states) == 4
    assert torch.equal(states[-1], x)


def test_one_step_is_the_denoiser_itself():
    model = make()
    start = at(model, 700)
    bridge = model.card.bridge
    zeta = (start.double() - bridge.b[700] * X1) / bridge.a[700]
    expected = model.denoise(zeta, float(bridge.sigma[700]), observed().double(), TO_EUCLID)
    x = sample(model, observed(), TO_EUCLID, [700], start=start)
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-5)


def test_input_is_left_as_it_was():
    model, x1 = random_model(), torch.randn(2, 3, 16, 16)
    start = torch.randn_like(x1)
    kept = x1.clone(), start.clone()
    sample(model, x1, TO_LSST, [900, 100, 0], start=start)
    assert torch.equal(x1, kept[0])
    assert torch.equal(start, kept[1])


def test_directions_use_their_own_head():
    model, x1 = random_model(), torch.randn(2, 3, 16, 16)
    there, back = (sample(model, x1, d, [900, 100], start=x1) for d in (TO_EUCLID, TO_LSST))
    assert not torch.allclose(there, back, atol=1e-3)
    assert there.dtype == torch.float32
    # network arithmetic in bfloat16 stays near, and the state is float32 all the same
    half = sample(model, x1, TO_EUCLID, [900, 100], start=x1, precision="bfloat16")
    assert half.dtype == torch.float32
    assert 0 < float((half - there).abs().max()) < 0.1


@pytest.mark.parametrize("steps", [[], [5, 5], [3, 7], [1000, 4], [4, -1]])
def test_steps_that_do_not_go_down_the_table_are_refused(steps):
    with pytest.raises(BridgeError, match="steps"):
        sample(make(), observed(), TO_EUCLID, steps, start=observed())


def test_unknown_order_is_refused():
    with pytest.raises(BridgeError, match="order 3"):
        sample(make(), observed(), TO_EUCLID, [5, 0], start=observed(), order=3)


# ---- grids and coefficients


@pytest.mark.parametrize("kind", sorted(BRIDGES))
@pytest.mark.parametrize("count", [1, 2, 8, 50])
def test_rho_steps_follow_karras_equation_5(kind, count):
    bridge = BRIDGES[kind]()
    steps = rho_steps(bridge, count, sigma_max=3.0)
    assert steps == sorted(set(steps), reverse=True)
    assert float(bridge.sigma[steps[0]]) == pytest.approx(3.0, rel=0.02)
    if count > 1:
        assert steps[-1] == 0
    if count == 8:
        root = [float(bridge.sigma[t]) ** (1 / 7) for t in steps]
        gaps = [a - b for a, b in itertools.pairwise(root)]
        assert len(steps) == 8
        assert max(gaps) - min(gaps) < 0.25 * max(gaps)  # the table is coarse at its low end


def test_sigma_beyond_the_table_starts_at_its_end():
    assert rho_steps(Bridge.brownian(), 8, sigma_max=1e6)[0] == 999


@pytest.mark.parametrize("kind", sorted(BRIDGES))
def test_translation_starts_at_the_end_where_the_boot_is_the_forward_process(kind):
    bridge = BRIDGES[kind]()
    steps = end_then_rho_steps(bridge, 8)
    assert steps[0] == 999
    assert len(steps) == 8
    assert steps[1:] == rho_steps(bridge, 7)
    assert end_then_rho_steps(bridge, 1) == [999]
    # what stands for x0 there weighs less than a tenth of the noise
    assert float(bridge.a[999]) < 0.1 * float(bridge.s[999])


def test_uniform_steps_go_evenly_to_zero():
    assert uniform_steps(200, 5) == [200, 150, 100, 50, 0]
    assert uniform_steps(3, 40) == [3, 2, 1, 0]
    assert uniform_steps(0, 4) == [0]


def test_second_order_correction_is_that_of_dpm_solver_2m():
    model = make()
    steps = [900, 500, 200, 20, 0]
    lam = [-float(torch.log(model.card.bridge.sigma[t])) for t in steps]
    rows = list(step_coefficients(model, steps, 0.0, 2))
    assert rows[0].h == 0  # no step before it
    for i in (1, 2):
        h, before = lam[i + 1] - lam[i], lam[i] - lam[i - 1]
        # weight of the slope in the integral of e^l (x0 + slope (l - l_i)), by the midpoint rule
        grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * h
        exact = float((grid.exp() * grid).sum() / grid.exp().sum())
        assert rows[i].h == pytest.approx(exact / before, rel=1e-6)
    assert rows[3].h == 0  # the last update is of first order
    assert rows[4][3:8] == (0.0, 0.0, 1.0, 0.0, 0.0)
    assert all(row.d == 0 for row in rows)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_second_order_correction_with_noise_is_that_of_the_sde(eta):
    model = make()
    bridge, steps = model.card.bridge, [900, 500, 200, 20, 0]
    lam = [-float(torch.log(bridge.sigma[t])) for t in steps]
    rows = list(step_coefficients(model, steps, eta, 2))
    for i in (1, 2):
        h, before = lam[i + 1] - lam[i], lam[i] - lam[i - 1]
        # d zeta / d lambda = -rate (zeta - x0), rate so that zeta keeps over h what the transition keeps of it
        k = bridge.transition(steps[i], steps[i + 1], eta).k
        rate = -math.log(k * float(bridge.a[steps[i]] / bridge.a[steps[i + 1]])) / h
        grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * h
        weight = (-rate * (h - grid)).exp()
        assert rows[i].h == pytest.approx(float((weight * grid).sum() / weight.sum()) / before, rel=1e-6)


def test_second_order_beats_first_with_noise_as_well():
    model = make()
    steps = rho_steps(model.card.bridge, 20)
    start, error = at(model, steps[0]), {}
    for order in (1, 2):
        x = sample(model, observed(), TO_EUCLID, steps, start=start, noise=fresh, eta=1.0, order=order)
        error[order] = abs(moments(model, x)[1] - 1)
    assert error[2] < 0.5 * error[1]


@pytest.mark.parametrize("kind", BRIDGES)
def test_heun_draws_the_posterior_and_converges_at_second_order(kind):
    model = make(kind)
    errors = []
    for count in (8, 16, 32):
        model.calls.clear()
        steps = rho_steps(model.card.bridge, count)
        x = sample_heun(model, observed(), TO_EUCLID, steps, start=at(model, steps[0]))
        assert len(model.calls) == 2 * len(steps) - 1
        errors.append(abs(moments(model, x)[1] - 1))
    assert errors[2] < 0.05
    assert errors[0] > errors[2]


def test_steps_even_in_the_share_of_the_observed_survey_are_the_published_ones_on_its_table():
    published = Bridge.brownian()
    assert bridge_steps(published, 200, 8) == uniform_steps(200, 8)
    assert step_at(published, 0.7089) == 200
    even = Bridge.brownian(m_min=2e-5, m_max=0.98, spacing="logit")
    shares = even.b[bridge_steps(even, step_at(even, 0.7089), 8)]
    assert shares[0] == pytest.approx(float(published.b[200]), rel=0.01)
    assert torch.diff(shares).tolist() == pytest.approx([-float(shares[0]) / 7] * 7, rel=0.05)
    noise = Bridge.diffusion()
    assert bridge_steps(noise, 100, 5) == uniform_steps(100, 5)


def test_noise_in_the_first_step_forgets_what_stood_for_the_unknown_image():
    """From the table's end with x1 in the place of x0, a twentieth of the posterior width stays, or next to nothing."""
    card = make_card(Bridge.brownian(m_min=2e-5, m_max=0.98, spacing="logit"), "edm")
    model = analytic_model(gaussian_denoiser(0.0, 0.0, 0.1), card)
    steps = end_then_rho_steps(card.bridge, 8, 0.8)
    x1 = observed()
    means = []
    for renoise in (False, True):
        start = boot(card.bridge, x1, steps[0], torch.randn(SHAPE))
        x = sample(model, x1, TO_EUCLID, steps, start=start, noise=fresh, eta=0.0, order=2, renoise=renoise)
        means.append(abs(float(x.mean())) / 0.1)
        assert float(x.var()) / 0.01 == pytest.approx(1.05, abs=0.06)
    assert means[0] > 0.03
    assert means[1] < 0.012


def test_a_network_that_learnt_to_begin_with_nothing_forgets_what_it_still_sees_at_the_end():
    """A denoiser that still answers to a tenth of what stands for x0: of x1 nothing is left where nothing stood."""
    bridge = Bridge.brownian(m_min=2e-5, m_max=0.98, spacing="logit")
    answers = 0.1

    def seen(zeta: Tensor, sigma: float, x1: Tensor, direction: Direction) -> Tensor:
        exact = zeta * 0.01 / (0.01 + sigma**2)
        return exact + answers * zeta.mean((1, 2, 3), keepdim=True) if sigma > 5 else exact

    x1 = 3 + torch.zeros(SHAPE)
    means = []
    for share in (0.0, 0.1):
        card = make_card(bridge, "edm")
        card = replace(card, objective=replace(card.objective, end_share=share))
        model = analytic_model(seen, card)
        steps = end_then_rho_steps(bridge, 8, 0.8)
        start = begin(card, x1, steps[0], torch.randn(SHAPE))
        x = sample(model, x1, TO_EUCLID, steps, start=start, noise=fresh, eta=0.0, order=2, renoise=True)
        means.append(abs(float(x.mean())) / 0.1)
        assert float(x.var()) / 0.01 == pytest.approx(1.05, abs=0.06)
    assert means[0] > 0.03
    assert means[1] < 0.012


def test_the_state_at_the_end_has_nothing_of_x0_where_the_network_learnt_so():
    card = make_card(Bridge.brownian(m_min=2e-5, m_max=0.98, spacing="logit"), "edm")
    without = replace(card, objective=replace(card.objective, end_share=0.2))
    x1, z = observed(), torch.randn(SHAPE)
    a, b, s = (float(column[-1]) for column in (card.bridge.a, card.bridge.b, card.bridge.s))
    torch.testing.assert_close(begin(card, x1, 999, z), (a + b) * x1 + s * z)
    torch.testing.assert_close(begin(without, x1, 999, z), b * x1 + s * z)
    torch.testing.assert_close(begin(without, x1, 998, z), begin(card, x1, 998, z))


# ---- what runs between two calls of the network


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_between_two_network_calls_runs_the_update_and_no_other_operator(precision):
    model = random_model()
    x1 = torch.randn(2, 3, 16, 16)
    window = torch.arange(2, dtype=torch.int32)
    noise = SkyNoise(1, 0, window, window, window)
    steps = end_then_rho_steps(model.card.bridge, 5)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as recorded, listening(torch.profiler.record_function):
        sample(model, x1, TO_EUCLID, steps, start=x1, noise=noise, eta=1.0, precision=precision)
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in recorded.events()
        if event.name in ("network", "update")
    )
    assert [name for _, _, name in spans] == ["network", "update"] * 5
    since = spans[0][0]
    operators = [event for event in recorded.events() if event.name.startswith("aten::")]
    within = [
        event
        for event in operators
        if any(start <= event.time_range.start and event.time_range.end <= end for start, end, _ in spans)
    ]
    beside = [event.name for event in operators if event not in within and event.time_range.start >= since]
    assert len(within) > 100
    assert beside == []
