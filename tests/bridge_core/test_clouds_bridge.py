"""Switches of Astro-DSB: a noisy end (M1), the clean image beside the state (M2), the target in all channels (M0)."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.problem import Endpoint, Problem
from surveybridge.bridge_core.sampler import END, begin, bridge_end, draw, sample, window_noise
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.stretch import AxialStretch, Log10Stretch, MixedStretch
from surveybridge.bridge_core.training import Batch, augment, bridge_loss, rescaled, step_generator
from surveybridge.bridge_core.translate import START, sampler_steps, window_samples
from tests.bridge_core.models import TINY, make_card, random_model


def dex(band: str, offset: float) -> Log10Stretch:
    return Log10Stretch({band: offset}, {band: 0.8}, {band: 1e-9})


SEEN = Endpoint(
    "seen",
    ("N", "psi"),
    0.0,
    "",
    False,
    "mixed",
    stretch=MixedStretch({"N": dex("N", 22.0), "psi": AxialStretch()}),
    units=("cm-2", "rad"),
    kinds=("log10", "axial"),
)
FIELD = Endpoint("field", ("B",), 0.0, "uG", False, "log10", stretch=dex("B", 1.0))
PROBLEM = Problem("dust", (SEEN, FIELD), wanted="field")
THERE = PROBLEM.to("field")
SIDE = 16


def card_of(end_noise: float = 0.0, clean_input: bool = True, spread: bool = True) -> Card:
    ends = (SEEN, replace(FIELD, spread=spread))
    return replace(
        make_card(Bridge.schrodinger(), "i2sb", replace(TINY, image_channels=3)),
        problem=PROBLEM.with_endpoints(ends),
        end_noise=end_noise,
        clean_input=clean_input,
    )


def pairs_of(card: Card, count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    log = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    seen = torch.stack([10 ** (22 + 0.4 * log[:, 0]), log[:, 1]], 1)
    first, second = card.problem.endpoints
    return first.forward(seen, 3), second.forward(10 ** (1 + 0.3 * log[:, 2:]), 3)


def batch_of(card: Card, seed: int = 0) -> Batch:
    ends = pairs_of(card)
    return Batch.draw(card, ends, torch.ones(len(ends[0]), dtype=torch.long), step_generator(seed, 0, 0))


class Spy(torch.nn.Module):
    """Remembers the network's input, and predicts what it is given."""

    def __init__(self, prediction: Tensor | None = None) -> None:
        super().__init__()
        self.prediction, self.seen = prediction, torch.empty(0)

    def forward(self, x: Tensor, t: Tensor, direction: Tensor) -> Tensor:
        self.seen = x.float()
        own = torch.zeros(len(x), 3, *x.shape[-2:]) if self.prediction is None else self.prediction
        return torch.cat([torch.full_like(own, 99.0), own], 1)


# ---- M1: the bridge's end


def test_states_of_training_lead_to_an_end_with_noise_of_its_own():
    card = card_of(end_noise=0.1)
    batch, spy = batch_of(card), Spy()
    bridge_loss(spy, card, batch)
    end = batch.first + 0.1 * batch.end_eps
    a, b, s = (v.float()[batch.t][:, None, None, None] for v in (card.bridge.a, card.bridge.b, card.bridge.s))
    state = a * batch.second + b * end + s * batch.eps
    torch.testing.assert_close(spy.seen[:, :3], state, rtol=0, atol=1e-5)
    # the network still sees the clean image in its slot, and the wanted one's is empty
    assert torch.equal(spy.seen[:, 3:6], batch.first) and not spy.seen[:, 6:].any()
    # another noise than that of the state, another in every batch
    both = torch.stack([batch.end_eps.flatten(), batch.eps.flatten(), batch_of(card, 1).end_eps.flatten()])
    assert float((torch.corrcoef(both) - torch.eye(3)).abs().max()) < 0.1
    assert float(batch.end_eps.std()) == pytest.approx(1, abs=0.05)


def test_a_perfect_prediction_of_a_noisy_bridge_costs_nothing_and_gives_x0_back():
    card = card_of(end_noise=0.1)
    batch, spy = batch_of(card), Spy()
    bridge_loss(spy, card, batch)
    forward = (card.bridge.s / card.bridge.a.sqrt()).float()[batch.t][:, None, None, None]
    perfect = (spy.seen[:, :3] - batch.second) / forward  # the published label: of the state, whatever its end
    assert float(bridge_loss(Spy(perfect), card, batch)) < 1e-6
    torch.testing.assert_close(spy.seen[:, :3] - forward * perfect, batch.second, rtol=0, atol=1e-5)


def test_without_noise_a_batch_draws_what_it_always_drew():
    noisy, plain = batch_of(card_of(end_noise=0.1)), batch_of(card_of())
    assert torch.equal(noisy.eps, plain.eps) and torch.equal(noisy.t, plain.t)
    assert plain.end_eps.shape == (4, 0, SIDE, SIDE) and len(Batch.join([plain, plain])) == 8


CORNERS = [(0, 0), (0, 6)]
ROWS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_windows_share_the_noise_of_the_end_where_they_overlap_and_samples_do_not():
    card, x1 = card_of(end_noise=0.1), torch.zeros(4, 3, SIDE, SIDE)
    noise = window_noise(5, THERE.index, ROWS, CORNERS, x1.device)
    end = bridge_end(card, x1, noise)
    assert torch.equal(end[0, :, :, 6:], end[2, :, :, : SIDE - 6])
    assert float(end.std()) == pytest.approx(0.1, rel=0.1)
    assert float((end[0] * end[1]).mean()) / 0.01 == pytest.approx(0, abs=0.1)
    assert END != START and not torch.equal(end, 0.1 * draw(noise, START, x1))
    assert bridge_end(card_of(), x1, noise) is x1


@pytest.mark.parametrize("end_noise", [0.0, 0.1])
def test_samples_begin_at_the_end_that_was_trained_and_see_the_clean_image(end_noise):
    card = card_of(end_noise=end_noise)
    model, windows = random_model(card), pairs_of(card, 2)[0]
    how = Sampling(samples=2, steps=3, seed=5, precision="float32")
    drawn = window_samples(model, THERE, windows, CORNERS, how)
    noise = window_noise(5, THERE.index, ROWS, CORNERS, windows.device)
    x1, steps = windows[[0, 0, 1, 1]], sampler_steps(card, how)
    end = x1 + end_noise * draw(noise, END, x1)
    start = begin(card, end, steps[0], draw(noise, START, x1))
    a, b, s = (float(v[-1]) for v in (card.bridge.a, card.bridge.b, card.bridge.s))
    torch.testing.assert_close(start, (a + b) * end + s * draw(noise, START, x1))
    u = sample(model, x1, THERE, steps, start=start, noise=noise, renoise=True, end=end)
    assert torch.equal(drawn.flatten(0, 1), THERE.wanted.inverse(u))
    if end_noise:  # the end matters to the samples by itself, not only through the start
        other = sample(model, x1, THERE, steps, start=start, noise=noise, renoise=True)
        assert not torch.equal(u, other)


# ---- M2: the clean image


def test_without_the_clean_image_the_slot_is_empty_in_training_and_in_sampling():
    card = card_of(clean_input=False)
    batch, spy = batch_of(card), Spy()
    bridge_loss(spy, card, batch)
    assert not spy.seen[:, 3:].any() and spy.seen[:, :3].any()
    dark, shown = random_model(card), random_model(card_of())
    x_t, x1 = torch.randn(2, 2, 3, SIDE, SIDE)
    assert torch.equal(dark.predict(x_t, x1, 400, THERE), shown.predict(x_t, torch.zeros_like(x1), 400, THERE))
    assert not torch.equal(dark.predict(x_t, x1, 400, THERE), shown.predict(x_t, x1, 400, THERE))


# ---- M0: the target in all channels


def test_a_target_that_is_not_repeated_is_the_first_channel_and_the_others_go_to_zero():
    field = replace(FIELD, spread=False)
    strength = 10 ** torch.randn(2, 1, SIDE, SIDE)
    u = field.forward(strength, 3)
    assert torch.equal(u[:, :1], field.forward(strength, 1)) and not u[:, 1:].any()
    noisy = u + torch.cat([torch.zeros_like(u[:, :1]), torch.randn_like(u[:, 1:])], 1)
    torch.testing.assert_close(field.inverse(noisy), strength, rtol=1e-4, atol=0)
    every = FIELD.forward(strength, 3)
    assert torch.equal(every, every[:, :1].expand_as(every))
    shifted = every + torch.tensor([0.3, -0.1, -0.2])[:, None, None]
    torch.testing.assert_close(FIELD.inverse(shifted), strength, rtol=1e-4, atol=0)


def test_an_angle_that_is_not_repeated_turns_with_its_image():
    angle = Endpoint("angle", ("psi",), 0.0, "rad", False, "axial", stretch=AxialStretch(), spread=False)
    assert angle.flips(4).tolist() == [1, 2, 0, 0]
    problem = Problem("p", (replace(SEEN, name="other"), angle), wanted="angle")
    u = angle.forward(torch.rand(1, 1, 8, 8), 3)
    for seed in range(6):
        ends = torch.zeros(1, 3, 8, 8), u
        _, turned = augment(ends, problem, torch.Generator().manual_seed(seed), roll=False)
        torch.testing.assert_close(turned[:, :2].square().sum(), u.square().sum(), rtol=1e-5, atol=0)
        assert not turned[:, 2].any()


# ---- the card


def test_a_card_says_the_switches_that_are_not_as_they_always_were():
    plain = card_of().to_json()
    assert not {"end_noise", "clean_input"} & plain.keys()
    assert not any("spread" in end for end in plain["problem"]["endpoints"])
    card = card_of(end_noise=0.1, clean_input=False, spread=False)
    again = Card.from_json(json.loads(json.dumps(card.to_json())))
    assert (again.end_noise, again.clean_input, again.problem["field"].spread) == (0.1, False, False)
    assert again.problem["seen"].spread and again.objective == Objective("i2sb", sigma_data=0.3)
    read = Card.from_json(plain)
    assert (read.end_noise, read.clean_input, read.problem["field"].spread) == (0.0, True, True)


# ---- the unit of density, which is free


def test_a_common_factor_moves_each_quantity_by_its_power_and_angles_not_at_all():
    first, second = replace(SEEN, scaling=(1.0, 0.0)), replace(FIELD, scaling=(0.5,))
    problem = PROBLEM.with_endpoints([first, second])
    log = torch.randn(6, 3, SIDE, SIDE)
    seen, field = torch.stack([10 ** (22 + 0.4 * log[:, 0]), log[:, 1]], 1), 10 ** (1 + 0.3 * log[:, 2:])
    seen[0, 0, 3, 4] = torch.nan
    ends = first.forward(seen, 3), second.forward(field, 3)
    one, other = rescaled(ends, problem, torch.Generator().manual_seed(3), 1.4)
    factors = first.inverse(one)[:, 0] / seen[:, 0]
    assert bool(torch.isnan(factors[0, 3, 4])) and int(torch.isnan(factors).sum()) == 1
    factor = factors.flatten(1).nanmedian(1).values
    torch.testing.assert_close(factors.nan_to_num(nan=float(factor[0])), factor[:, None, None].expand_as(factors))
    torch.testing.assert_close(
        second.inverse(other)[:, 0] / field[:, 0], factor.sqrt()[:, None, None].expand(6, 16, 16)
    )
    assert torch.equal(one[:, 1:], ends[0][:, 1:])
    assert len(set(factor.log10().tolist())) == 6 and float(factor.log10().abs().max()) <= 0.7
    many = rescaled((torch.zeros(999, 3, 1, 1), torch.zeros(999, 3, 1, 1)), problem, torch.Generator(), 1.4)[0]
    # even in the logarithm, and 0 in the middle
    spread = many[:, 0].flatten() / 0.8
    assert float(spread.mean()) == pytest.approx(0, abs=0.04)
    assert float(spread.std()) == pytest.approx(1.4 / 12**0.5, rel=0.05)


def test_a_target_that_is_one_channel_scales_in_that_alone():
    field = replace(FIELD, spread=False, scaling=(0.5,))
    assert field.scaled(3).tolist() == pytest.approx([0.4, 0, 0])
    assert replace(field, spread=True).scaled(3).tolist() == pytest.approx([0.4, 0.4, 0.4])
    assert FIELD.scaled(3).tolist() == [0, 0, 0]
