"""What the network predicts: a perfect prediction gives x0 back, for every objective and bridge."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.objective import OBJECTIVES, Objective

BRIDGES: dict[str, Callable[..., Bridge]] = {
    "brownian": Bridge.brownian,
    "schrodinger": Bridge.schrodinger,
    "diffusion": Bridge.diffusion,
}
TIMES = torch.tensor([0, 1, 250, 600, 999])


def column(table: torch.Tensor) -> torch.Tensor:
    return table[TIMES][:, None, None, None]


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(3, 5, 2, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize("kind", sorted(BRIDGES))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_perfect_prediction_gives_x0_back(batch, kind, name):
    (x0, x1, eps), bridge, objective = batch, BRIDGES[kind](), Objective(name, sigma_data=0.3)
    x_t = bridge.q_sample(x0, x1, TIMES, eps)
    target, weight = objective.target(bridge, TIMES, x_t, x0, x1, eps)
    p, q, r = map(column, objective.table(bridge))
    torch.testing.assert_close(p * (x_t + r * x1) + q * target, x0, rtol=0, atol=1e-9)
    assert target.shape == x0.shape
    assert weight.shape == (5, 1, 1, 1)


@pytest.mark.parametrize("kind", sorted(BRIDGES))
def test_targets_are_the_papers(batch, kind):
    (x0, x1, eps), bridge = batch, BRIDGES[kind]()
    x_t = bridge.q_sample(x0, x1, TIMES, eps)

    def target(name):
        return Objective(name).target(bridge, TIMES, x_t, x0, x1, eps)

    assert torch.equal(target("eps")[0], eps)
    assert torch.equal(target("grad")[0], x_t - x0)
    assert torch.equal(target("maxnll")[0], eps)
    torch.testing.assert_close(target("maxnll")[1].double(), column(bridge.s**4), rtol=1e-6, atol=0)
    assert all((target(name)[1] == 1).all() for name in ("eps", "grad", "i2sb", "edm"))


def test_i2sb_is_the_distance_to_x0_over_the_forward_noise_of_astro_dsb(batch):
    """Variances are sums of the betas forward and backward, both with that of t; I2SB's 500, and mirrored."""
    (x0, x1, eps), bridge = batch, Bridge.schrodinger(1000, 0.3, 0.1)
    half = torch.linspace(math.sqrt(0.1 / 1000), math.sqrt(0.3 / 1000), 1000, dtype=torch.float64)[:500] ** 2
    betas = torch.cat([half, half.flip(0)])
    forward = betas.cumsum(0).sqrt()
    assert float(forward[0]) == pytest.approx(0.01, rel=1e-6) and float(forward[-1]) == pytest.approx(0.37554, abs=1e-5)
    assert float(bridge.s.max()) == pytest.approx(0.18789, abs=1e-5)
    assert float(bridge.a[0]) == pytest.approx(0.999291, abs=1e-6)
    x_t = bridge.q_sample(x0, x1, TIMES, eps)
    target, _ = Objective("i2sb").target(bridge, TIMES, x_t, x0, x1, eps)
    torch.testing.assert_close(target, (x_t - x0) / column(forward), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n", "p"), [(999, 900), (600, 1), (500, 499), (2, 1)])
def test_a_step_with_all_noise_is_that_of_astro_dsb(batch, n, p):
    """x_p = (delta^2 x0 + sigma_p^2 x_n) / sigma_n^2 and a standard deviation of sigma_p delta / sigma_n.

    Both variances hold the beta of their step, so their sum changes by a thousandth along the bridge. Our step keeps
    the marginals exactly, by a weight of x1 as small as that; the published one leaves it out.
    """
    bridge = Bridge.schrodinger(1000, 0.3, 0.1)
    forward = bridge.s / bridge.a.sqrt()
    step = bridge.transition(n, p, eta=1.0)
    variance_n, variance_p = float(forward[n] ** 2), float(forward[p] ** 2)
    delta = variance_n - variance_p
    x0, x_n = batch[0], batch[2]
    mean = step.k * x_n + step.p * x0 + step.q * batch[1]
    assert abs(step.q) < 1e-3
    torch.testing.assert_close(mean, (delta * x0 + variance_p * x_n) / variance_n, rtol=0, atol=3e-3)
    assert step.k == pytest.approx(variance_p / variance_n, rel=1e-9)
    assert step.w == pytest.approx(math.sqrt(variance_p * delta / variance_n), rel=1e-3)


@pytest.mark.parametrize("kind", sorted(BRIDGES))
def test_edm_is_table_1_of_karras_2022_in_zeta(batch, kind):
    (x0, x1, eps), bridge, objective = batch, BRIDGES[kind](), Objective("edm", sigma_data=0.3)
    sigma, sd = column(bridge.sigma), 0.3
    zeta = x0 + sigma * eps
    x_t = bridge.q_sample(x0, x1, TIMES, eps)
    c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / (sigma**2 + sd**2).sqrt()
    target, _ = objective.target(bridge, TIMES, x_t, x0, x1, eps)
    torch.testing.assert_close(target, (x0 - c_skip * zeta) / c_out, rtol=1e-7, atol=1e-7)
    u, v = map(column, objective.input_table(bridge))
    torch.testing.assert_close(u * x_t + v * x1, zeta / (sigma**2 + sd**2).sqrt(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", sorted(BRIDGES))
def test_where_x0_is_noise_alone_edm_needs_nothing_of_the_network(kind):
    """P (x_t + R x1) is then E[x0 | x_t, x1]: the regression of x0 on it has slope 1 at every noise level."""
    bridge, objective = BRIDGES[kind](), Objective("edm", sigma_data=0.4, noise=0.07)
    x0, x1, eps = torch.randn(3, 5, 1, 400, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x0 = 0.07 * x0
    x_t = bridge.q_sample(x0, x1, TIMES, eps)
    p, _, r = map(column, objective.table(bridge))
    expected = p * (x_t + r * x1)
    slope = (x0 * expected).mean((1, 2, 3)) / expected.square().mean((1, 2, 3))
    # of 160 000 pixels; where sigma is large, little of x0 is in x_t, and the slope is that much less certain
    error = 1 / 400 * bridge.sigma[TIMES] / 0.07
    assert ((slope - 1).abs() < 5 * error + 1e-9).all()
    target, _ = objective.target(bridge, TIMES, x_t, x0, x1, eps)
    q = column(objective.table(bridge)[1])
    torch.testing.assert_close(expected + q * target, x0, rtol=0, atol=1e-9)


def test_noise_that_is_known_is_in_the_card_where_there_is_some():
    assert "noise" not in Objective("edm").card
    known = Objective("edm", noise=0.12)
    assert Objective.from_card(json.loads(json.dumps(known.card))) == known
    with pytest.raises(BridgeError, match=r"noise -0\.1"):
        Objective("edm", noise=-0.1)
    with pytest.raises(BridgeError, match=r"eps.*noise 0\.1"):
        Objective("eps", noise=0.1)


def test_edm_keeps_input_and_target_at_unit_variance():
    bridge, objective, n = Bridge.brownian(), Objective("edm", sigma_data=0.3), 20_000
    for t in (0, 300, 999):
        times = torch.full((n,), t)
        x0, x1, eps = 0.3 * torch.randn(n, 1, 1, 1).double(), torch.zeros(n, 1, 1, 1).double(), torch.randn(n, 1, 1, 1)
        x_t = bridge.q_sample(x0, x1, times, eps.double())
        target, _ = objective.target(bridge, times, x_t, x0, x1, eps.double())
        u, _ = objective.input_table(bridge)
        assert float(target.var()) == pytest.approx(1, abs=0.05)
        assert float((u[t] * x_t).var()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", ["eps", "grad", "maxnll", "i2sb"])
def test_published_objectives_leave_the_input_as_it_is(name):
    u, v = Objective(name).input_table(Bridge.brownian())
    assert (u == 1).all()
    assert (v == 0).all()


@pytest.mark.parametrize("name", ["eps", "grad", "maxnll", "i2sb"])
def test_published_objectives_draw_every_step_alike(name):
    t = Objective(name).draw_steps(Bridge.brownian(), 100_000, torch.Generator().manual_seed(1))
    counts = torch.bincount(t, minlength=1000).float()
    assert t.dtype == torch.int64
    assert len(counts) == 1000
    # chi-square per degree of freedom of 1000 bins: 1 +- 0.045
    assert float(((counts - 100) ** 2 / 100).sum() / 999) == pytest.approx(1, abs=0.2)


def test_steps_through_the_seeing_are_drawn_in_proportion_to_their_number():
    t = Objective("wiener", prior=(1.0,) * 25).draw_steps(Bridge.brownian(), 200_000, torch.Generator().manual_seed(1))
    counts = torch.bincount(t, minlength=1000).double().view(10, 100).sum(1)
    assert torch.allclose(counts / 200_000, (2 * torch.arange(10) + 1).double() / 100, atol=0.004)


@pytest.mark.parametrize("kind", ["brownian", "diffusion"])
def test_edm_draws_sigma_log_normally(kind):
    bridge = BRIDGES[kind]()
    objective = Objective("edm", log_sigma_mean=0.5, log_sigma_std=0.6)  # well inside either table
    t = objective.draw_steps(bridge, 100_000, torch.Generator().manual_seed(1))
    log_sigma = bridge.sigma.log()[t]
    assert float(log_sigma.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(log_sigma.std()) == pytest.approx(0.6, abs=0.02)
    assert float((log_sigma < 0.5).double().mean()) == pytest.approx(0.5, abs=0.02)


def test_a_share_of_the_states_lies_at_the_end_and_has_nothing_of_x0():
    bridge = Bridge.brownian(m_min=2e-5, m_max=0.98, spacing="logit")
    objective = Objective("edm", log_sigma_mean=-1.4, log_sigma_std=1.5, end_share=0.2)
    t = objective.draw_steps(bridge, 100_000, torch.Generator().manual_seed(1))
    assert float(objective.without_x0(bridge, t).double().mean()) == pytest.approx(0.2, abs=0.005)
    others = bridge.sigma.log()[t[t < 999]]
    assert float((others < -1.4).double().mean()) == pytest.approx(0.5, abs=0.02)
    assert not Objective("edm").without_x0(bridge, t).any()


def test_a_share_at_the_end_is_in_the_card_where_there_is_one():
    objective = Objective("edm", end_share=0.1)
    assert Objective.from_card(json.loads(json.dumps(objective.card))) == objective
    assert "end_share" not in Objective("edm").card
    for name, share in (("eps", 0.1), ("edm", 1.0), ("edm", -0.1)):
        with pytest.raises(BridgeError, match=rf"{share:g}: give a share"):
            Objective(name, end_share=share)


def test_drawing_depends_on_the_generator_only():
    def draw(seed):
        return Objective("edm").draw_steps(Bridge.brownian(), 50, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(4), draw(4))
    assert not torch.equal(draw(4), draw(5))


def test_card_round_trip_and_unknown_name():
    objective = Objective("edm", 0.4, -0.7, 1.1)
    assert Objective.from_card(json.loads(json.dumps(objective.card))) == objective
    with pytest.raises(BridgeError, match=r"'v'.*eps"):
        Objective("v")
