"""The three tables against their papers' equations, written here a second time, and against their own processes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.errors import BridgeError

PATHS = 40_000
X0, X1 = 0.7, -0.4
PAIRS = [(999, 998), (999, 500), (500, 499), (300, 40), (2, 1), (1, 0)]
MAKERS: dict[str, Callable[..., Bridge]] = {
    "brownian": Bridge.brownian,
    "schrodinger": Bridge.schrodinger,
    "diffusion": Bridge.diffusion,
}


@pytest.fixture(params=sorted(MAKERS))
def bridge(request: pytest.FixtureRequest) -> Bridge:
    return MAKERS[request.param]()


def assert_moments(x: torch.Tensor, mean: float, std: float) -> None:
    """Five standard errors, of a Gaussian's mean and variance."""
    n = x.numel()
    assert abs(float(x.mean()) - mean) < 5 * std / n**0.5
    assert abs(float(x.var()) / std**2 - 1) < 5 * (2 / n) ** 0.5


def conditional(mean_s, mean_t, cov_ss, cov_st, cov_tt):
    """k, p, q, w of x_s given x_t for a jointly Gaussian pair with means m[0] x0 + m[1] x1."""
    k = cov_st / cov_tt
    p, q = (mean_s[i] - k * mean_t[i] for i in (0, 1))
    return k, p, q, np.sqrt(max(cov_ss - cov_st**2 / cov_tt, 0.0))


def brownian_m() -> np.ndarray:
    return np.linspace(0.001, 0.999, 1000)


def i2sb_betas(num_steps: int = 1000, beta_max: float = 0.3) -> np.ndarray:
    """The published program: ``make_beta_schedule(n, linear_end=beta_max / n)``, first half and its mirror."""
    betas = np.linspace(np.sqrt(1e-4), np.sqrt(beta_max / num_steps), num_steps) ** 2
    return np.concatenate([betas[: num_steps // 2], betas[: num_steps // 2][::-1]])


# ---- tables


def test_brownian_table_is_bbdm_equation_4_with_asbridge_variance():
    m = brownian_m()
    bridge = Bridge.brownian(max_var=0.7)
    np.testing.assert_allclose(bridge.a, 1 - m, atol=1e-7)
    np.testing.assert_allclose(bridge.b, m, atol=1e-7)
    np.testing.assert_allclose(bridge.s**2, 2 * (m - m * m) * 0.7, atol=3e-7)


def test_schrodinger_table_is_i2sb_equation_11():
    betas = i2sb_betas()
    fwd, bwd = np.cumsum(betas), np.flip(np.cumsum(np.flip(betas)))
    bridge = Bridge.schrodinger()
    np.testing.assert_allclose(bridge.a, bwd / (fwd + bwd), rtol=1e-12)
    np.testing.assert_allclose(bridge.b, fwd / (fwd + bwd), rtol=1e-12)
    np.testing.assert_allclose(bridge.s**2, fwd * bwd / (fwd + bwd), rtol=1e-12)


def test_diffusion_table_is_ddpm_equation_4():
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    bridge = Bridge.diffusion()
    np.testing.assert_allclose(bridge.a, np.sqrt(alpha_bar), rtol=1e-12)
    np.testing.assert_array_equal(bridge.b, 0)
    np.testing.assert_allclose(bridge.s**2, 1 - alpha_bar, rtol=1e-11)


def test_noise_level_rises_over_every_table(bridge):
    assert (bridge.sigma.diff() > 0).all()
    assert bridge.sigma.dtype == torch.float64


def test_brownian_noise_level_is_that_of_the_edm_in_disguise():
    m = brownian_m()
    np.testing.assert_allclose(Bridge.brownian().sigma, np.sqrt(2 * m / (1 - m)), rtol=1e-4)


# ---- posteriors


@pytest.mark.parametrize("t", [999, 500, 37, 1])
def test_brownian_posterior_is_bbdm_equation_13(t):
    m, delta = brownian_m(), 2 * (brownian_m() - brownian_m() ** 2)
    ratio = (1 - m[t]) / (1 - m[t - 1])
    step = delta[t] - delta[t - 1] * ratio**2
    k, p, q, w = Bridge.brownian().transition(t, t - 1)
    assert k == pytest.approx(delta[t - 1] / delta[t] * ratio, rel=2e-4)
    assert p == pytest.approx((1 - m[t - 1]) * step / delta[t], abs=1e-6)
    assert q == pytest.approx(m[t - 1] - m[t] * ratio * delta[t - 1] / delta[t], abs=2e-4)
    assert w**2 == pytest.approx(step * delta[t - 1] / delta[t], rel=2e-4)


@pytest.mark.parametrize("pair", PAIRS)
def test_brownian_posterior_is_the_conditional_of_a_brownian_bridge(pair):
    m_t, m_s = (brownian_m()[i] for i in pair)
    expected = conditional(
        (1 - m_s, m_s), (1 - m_t, m_t), 2 * m_s * (1 - m_s), 2 * m_s * (1 - m_t), 2 * m_t * (1 - m_t)
    )
    np.testing.assert_allclose(Bridge.brownian().transition(*pair), expected, atol=3e-4)


@pytest.mark.parametrize("pair", PAIRS)
def test_diffusion_posterior_is_ddpm_equation_7(pair):
    t, s = pair
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    alpha = alpha_bar[t] / alpha_bar[s]
    k, p, q, w = Bridge.diffusion().transition(t, s)
    assert k == pytest.approx(np.sqrt(alpha) * (1 - alpha_bar[s]) / (1 - alpha_bar[t]), rel=1e-9)
    assert p == pytest.approx(np.sqrt(alpha_bar[s]) * (1 - alpha) / (1 - alpha_bar[t]), rel=1e-9)
    assert q == 0
    assert w**2 == pytest.approx((1 - alpha_bar[s]) / (1 - alpha_bar[t]) * (1 - alpha), rel=1e-9)


@pytest.mark.parametrize("pair", PAIRS)
def test_schrodinger_posterior_is_i2sb_equation_4_to_one_beta(pair):
    t, s = pair
    betas = i2sb_betas()
    var = np.cumsum(betas)
    k, p, q, w = Bridge.schrodinger().transition(t, s)
    # the program's table counts beta_t on both sides, so its own posterior misses its own marginals by O(beta / sum)
    tolerance = betas.max() / betas.sum()
    assert k == pytest.approx(var[s] / var[t], rel=1e-9)
    assert p == pytest.approx((var[t] - var[s]) / var[t], abs=tolerance)
    assert q == pytest.approx(0, abs=tolerance)
    assert w**2 == pytest.approx(var[s] * (var[t] - var[s]) / var[t], abs=tolerance * betas.sum())


@pytest.mark.parametrize("pair", [(t, s) for t, s in PAIRS if t < 999])  # pinned at 999: no variance to condition on
def test_schrodinger_posterior_is_the_conditional_of_a_pinned_walk_to_one_beta(pair):
    betas = i2sb_betas()
    total = betas.sum()
    f_t, f_s = (np.cumsum(betas)[i] for i in pair)
    exact = conditional(
        (1 - f_s / total, f_s / total),
        (1 - f_t / total, f_t / total),
        f_s * (total - f_s) / total,
        f_s * (total - f_t) / total,
        f_t * (total - f_t) / total,
    )
    k, p, q, w = Bridge.schrodinger().transition(*pair)
    tolerance = 2 * betas.max() / total
    np.testing.assert_allclose((k, p, q), exact[:3], atol=tolerance)
    assert w**2 == pytest.approx(exact[3] ** 2, abs=tolerance * total)


# ---- the forward processes, step by step: of what is linear in independent noise, mean and variance are exact


def assert_table_has(bridge: Bridge, t: int, mean: float, variance: float) -> None:
    """To the rounding of tables in float32."""
    assert float(bridge.a[t] * X0 + bridge.b[t] * X1) == pytest.approx(mean, abs=1e-6)
    assert float(bridge.s[t]) ** 2 == pytest.approx(variance, rel=1e-4)


def test_brownian_chain_of_bbdm_has_the_moments_of_the_table():
    bridge, m = Bridge.brownian(), brownian_m()
    delta = 2 * (m - m * m)
    mean, variance = (1 - m[0]) * X0 + m[0] * X1, delta[0]
    for t in range(1, 1000):
        ratio = (1 - m[t]) / (1 - m[t - 1])
        step = delta[t] - delta[t - 1] * ratio**2
        assert step > 0
        mean, variance = ratio * mean + (m[t] - m[t - 1] * ratio) * X1, ratio**2 * variance + step
        assert_table_has(bridge, t, mean, variance)


def test_diffusion_chain_of_ddpm_has_the_moments_of_the_table():
    bridge, betas = Bridge.diffusion(), np.linspace(1e-4, 0.02, 1000)
    mean, variance = X0, 0.0
    for t in range(1000):
        mean, variance = np.sqrt(1 - betas[t]) * mean, (1 - betas[t]) * variance + betas[t]
        assert_table_has(bridge, t, mean, variance)


def test_pinned_random_walk_has_the_moments_of_the_schrodinger_table():
    bridge, betas = Bridge.schrodinger(), i2sb_betas()
    total, walk = betas.sum(), np.sqrt(betas)  # the walk's end, as the weight of each step's noise in it
    for t in (10, 300, 700, 990):
        f = np.cumsum(betas)[t]
        # at[t] - f / total * (walk - (X1 - X0)) is added to X0
        at = np.where(np.arange(1000) <= t, walk, 0.0)
        mean, variance = X0 + f / total * (X1 - X0), np.sum((at - f / total * walk) ** 2)
        assert abs(mean - float(bridge.a[t] * X0 + bridge.b[t] * X1)) < 0.002
        # the table counts beta_t on both sides: near the end, beta_t over what is left
        assert float(variance / bridge.s[t] ** 2) == pytest.approx(1, abs=2 * betas[t] / (total - f))


@pytest.mark.parametrize("t", [0, 200, 999])
def test_q_sample_has_the_moments_of_the_table(bridge, t):
    one = torch.ones(PATHS, 1, 1, 1)
    x = bridge.q_sample(X0 * one, X1 * one, torch.full((PATHS,), t), torch.randn(PATHS, 1, 1, 1))
    assert x.dtype == torch.float32
    assert_moments(x.double(), float(bridge.a[t] * X0 + bridge.b[t] * X1), float(bridge.s[t]))


def test_q_sample_takes_every_row_at_its_own_time(bridge):
    t = torch.tensor([0, 400, 999])
    x0, x1, eps = torch.randn(3, 3, 2, 4, 4).double()
    x = bridge.q_sample(x0, x1, t, eps)
    for i, k in enumerate(t.tolist()):
        torch.testing.assert_close(x[i], bridge.a[k] * x0[i] + bridge.b[k] * x1[i] + bridge.s[k] * eps[i])


# ---- transitions


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("pair", PAIRS)
def test_transition_keeps_the_marginals_exactly(bridge, pair, eta):
    t, s = pair
    k, p, q, w = bridge.transition(t, s, eta)
    a, b, std = (v.tolist() for v in (bridge.a, bridge.b, bridge.s))
    assert k * a[t] + p == pytest.approx(a[s], abs=1e-12)
    assert k * b[t] + q == pytest.approx(b[s], abs=1e-12)
    assert k**2 * std[t] ** 2 + w**2 == pytest.approx(std[s] ** 2, rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_chain_of_transitions_keeps_the_marginals(bridge, eta):
    steps = [999, 900, 600, 250, 60, 7]
    one = torch.ones(PATHS, 1, 1, 1, dtype=torch.float64)
    x = bridge.q_sample(X0 * one, X1 * one, torch.full((PATHS,), 999), torch.randn_like(one))
    for t, s in itertools.pairwise(steps):
        k, p, q, w = bridge.transition(t, s, eta)
        x = k * x + p * X0 + q * X1 + w * torch.randn_like(one)
        assert_moments(x, float(bridge.a[s] * X0 + bridge.b[s] * X1), float(bridge.s[s]))


def test_eta_zero_adds_no_noise_and_eta_one_most(bridge):
    widths = [bridge.transition(500, 100, eta).w for eta in (0.0, 0.5, 1.0)]
    assert widths[0] == 0
    assert widths[1] == pytest.approx(widths[2] / 2)


@pytest.mark.parametrize(("t", "s"), [(5, 5), (3, 7), (1000, 3), (4, -1)])
def test_transition_that_is_no_step_down_is_refused(bridge, t, s):
    with pytest.raises(BridgeError, match=f"{t} -> {s}"):
        bridge.transition(t, s)


def test_eta_out_of_range_is_refused(bridge):
    with pytest.raises(BridgeError, match=r"1\.5"):
        bridge.transition(5, 4, 1.5)


# ---- cards


def test_card_rebuilds_the_same_table(bridge):
    again = Bridge.from_card(json.loads(json.dumps(bridge.card)))
    for name in "abs":
        assert torch.equal(getattr(again, name), getattr(bridge, name))
    assert again.num_steps == 1000


def test_parameters_reach_the_table_through_the_card():
    bridge = Bridge.from_card({"kind": "brownian", "num_steps": 50, "m_min": 1e-4})
    assert bridge.num_steps == 50
    assert float(bridge.b[0]) == pytest.approx(1e-4)


def test_unknown_kind_and_odd_number_of_mirrored_steps_are_refused():
    with pytest.raises(BridgeError, match=r"'wormhole'.*brownian"):
        Bridge.from_card({"kind": "wormhole"})
    with pytest.raises(BridgeError, match="999 is odd"):
        Bridge.schrodinger(999)


def test_logit_spacing_is_even_in_the_logarithm_of_sigma():
    bridge = Bridge.brownian(m_min=2e-5, m_max=0.98, spacing="logit")
    steps = bridge.sigma.log().diff()
    assert float(steps.max() / steps.min()) == pytest.approx(1, abs=1e-9)
    assert (float(bridge.b[0]), float(bridge.b[-1])) == pytest.approx((2e-5, 0.98))
    assert Bridge.from_card(bridge.card).b.equal(bridge.b)


def test_unknown_spacing_is_refused():
    with pytest.raises(BridgeError, match="spacing 'even' is not"):
        Bridge.brownian(spacing="even")


def test_a_card_from_before_spacing_opens():
    card = {"kind": "brownian", "num_steps": 1000, "max_var": 1.0, "m_min": 0.0001, "m_max": 0.999}
    assert Bridge.from_card(card).b.equal(Bridge.brownian(m_min=1e-4).b)
