"""Sharp skies drawn through the seeing of an image: the closed form, and a network that learns what it lacks."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import Card, Model
from surveybridge.bridge_core.network import NetworkConfig, UNet, channels_last
from surveybridge.bridge_core.objective import WIENER, Objective
from surveybridge.bridge_core.physics import Seeing, filtered
from surveybridge.bridge_core.problem import Endpoint, Problem
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.sharpening import (
    KNOTS,
    PAD,
    Linear,
    SkyBatch,
    about_both_means,
    observed_windows,
    prior_modes,
    prior_power,
    sky_loss,
    tables,
)
from surveybridge.bridge_core.spectral import Physics
from surveybridge.bridge_core.stretch import LinearStretch
from surveybridge.bridge_core.training import Recipe, TrainState
from surveybridge.bridge_core.translate import window_samples
from surveybridge.storage.psf import Gaussian, Moffat, Psf

SIDE = 32
GRID = SIDE + 2 * PAD
SHARP = Gaussian(0.16)
TRUE = tuple(float(v) for v in 0.02 * (0.05 + KNOTS) ** -1.6)
"""Power of the sky of these tests at `KNOTS`."""

HALF = tuple(0.5 * value for value in TRUE)


def model_of(prior: tuple[float, ...], base: int = 8) -> Model:
    """A model of one band with an untrained network."""
    stretch = LinearStretch({"r": 2.0})
    ends = Endpoint("ground", ("r",), 0.1, stretch=stretch), Endpoint("sharp", ("r",), 0.1, stretch=stretch)
    network = NetworkConfig(base=base, multipliers=(1, 2), time_dim=64, image_channels=1, norm="pixel", conditions=True)
    bridge = Bridge.seeing("gaussian:0.16", num_steps=200)
    problem = Problem("seeing", ends, wanted="sharp")
    card = Card("test", "mosaic", problem, bridge, network, Objective(WIENER, prior=prior))
    torch.manual_seed(3)
    return Model(card, channels_last(UNet(network)).eval(), "")


def silent(prior: tuple[float, ...]) -> Model:
    """A model whose network, the smallest, says that nothing is missing from the Wiener filter."""
    model = model_of(prior, base=1)
    torch.nn.init.zeros_(model.network.final_conv.weight)
    assert model.network.final_conv.bias is not None
    torch.nn.init.zeros_(model.network.final_conv.bias)
    return model


def context_of(psfs: list[Psf], sigma: Tensor) -> Context:
    """What a network is told of windows with some PSFs and white noise sigma [N], network units."""
    seeings = [Seeing(SHARP, psf, 0.1).log_transfer((GRID, GRID)) for psf in psfs]
    log_transfer = torch.stack(seeings)[:, None]
    power = (sigma.double() ** 2).view(-1, 1, 1, 1).expand(log_transfer.shape)
    told = Context.blank(torch.ones(len(psfs), 1, SIDE, SIDE, dtype=torch.bool))
    maps = torch.cat([sigma.float().log().view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE), told.maps[:, 1:]], 1)
    vector = told.vector.clone()
    vector[:, 0] = torch.tensor([math.log(psf.fwhm / 0.1) - 1.2 for psf in psfs])
    vector[:, 1] = torch.tensor([4 * psf.wing - 0.4 for psf in psfs])
    return Context(maps, vector, Physics(log_transfer, power.clone()))


def gaussian_skies(count: int, generator: torch.Generator) -> Tensor:
    """Skies of the power `TRUE`, float32 [N, 1, GRID, GRID]."""
    z = torch.randn(count, 1, GRID, GRID, generator=generator)
    return filtered(z, prior_modes(TRUE, (GRID, GRID)).sqrt())


def judge(model: Model, psf: Psf, sigma: float, count: int = 8, seed: int = 1) -> tuple[float, float, list[float]]:
    """Coverage of 68%, mean error over its standard deviation, and variance by mode over the closed form, low first."""
    generator = torch.Generator().manual_seed(seed)
    sky = gaussian_skies(count, generator)
    context = context_of([psf] * count, torch.full((count,), sigma))
    image = observed_windows(model.card, sky, context, generator)
    bridge, _ = tables(model.card, context)
    power = bridge.power
    how = Sampling(samples=8, steps=16, seed=seed, precision="float32")
    corners = [(1000 * n, 77) for n in range(count)]
    direction = model.card.problem.directions[0]
    drawn = window_samples(model, direction, image, corners, how, context=context)[:, :, 0] / 2
    inner = np.s_[..., 8:-8, 8:-8]
    samples, truth = drawn[inner], sky[:, 0, PAD:-PAD, PAD:-PAD][inner]
    mean, std = samples.mean(1), samples.std(1)
    # half of the mean is the single answer, which has no noise of samples
    own = math.sqrt(1 + 1 / 32)
    inside = float(((truth - mean).abs() < std * own).float().mean())
    a2, prior = bridge.a(-1).abs()[0, 0] ** 2, prior_modes(TRUE, (GRID, GRID))
    posterior = prior * power[0, 0] / (a2 * prior + power[0, 0])
    bias = float((mean - truth).square().mean().sqrt()) / own
    # variance of pixels of images that keep a band of modes; edges are as the middle is
    departure = torch.nn.functional.pad(drawn - drawn.mean(1, keepdim=True), (PAD,) * 4, mode="reflect")
    known = a2 * prior > power[0, 0]
    ratios = []
    for modes in (known, ~known & (prior > 0)):
        kept = filtered(departure, modes.float())[..., PAD:-PAD, PAD:-PAD][inner]
        weight = torch.full(modes.shape, 2.0, dtype=torch.float64)
        weight[:, 0] = weight[:, -1] = 1
        expected = (posterior * modes * weight).sum() / GRID**2
        ratios.append(float(kept.square().mean() * 8 / 7 / expected))
    return inside, bias / float(std.square().mean().sqrt()), ratios


def test_the_power_of_a_sky_is_read_off_it():
    found = prior_power(gaussian_skies(300, torch.Generator().manual_seed(8)))
    # beyond the first knots, between which the power changes much
    assert found[3:] == pytest.approx(TRUE[3:], rel=0.1)


@functools.cache
def exact(fwhm: float, beta: float, sigma: float) -> tuple[float, float, list[float]]:
    """What is said of the exact denoiser by FWHM, beta and noise: two tests ask for the same."""
    return judge(silent(TRUE), Moffat(fwhm, beta), sigma)


def test_without_a_network_a_gaussian_sky_comes_with_its_posterior():
    for inside, error, ratios in (judge(silent(TRUE), Gaussian(0.6), 0.3), exact(0.7, 3.0, 0.2)):
        assert inside == pytest.approx(0.68, abs=0.04)
        assert error == pytest.approx(1.0, abs=0.08)
        assert ratios[0] == pytest.approx(1.0, abs=0.15)


def test_the_scale_follows_light_and_the_state_alone():
    model = model_of(TRUE)
    generator = torch.Generator().manual_seed(2)
    context = context_of([Gaussian(0.7)], torch.tensor([0.3]))
    bridge, prior = tables(model.card, context)
    sky = gaussian_skies(1, generator)
    faint = Linear.of(
        bridge, prior, SkyBatch(sky, torch.tensor([120]), torch.randn(sky.shape), context).state(bridge, 120), 120
    )
    bright = sky.clone()
    bright[0, 0, GRID // 2, GRID // 2] += 4e4
    seen = Linear.of(
        bridge, prior, SkyBatch(bright, torch.tensor([120]), torch.randn(sky.shape), context).state(bridge, 120), 120
    )
    assert seen.inputs.shape == (1, 3, SIDE, SIDE)
    assert float(seen.scale[0, 0, 16, 16] / faint.scale[0, 0, 16, 16]) > 100
    target = (bright[..., PAD:-PAD, PAD:-PAD] - seen.x0) / seen.scale
    # what the network has to say stays within what bfloat16 can hold next to 1
    assert float(target.abs().max()) < 64 < 1000 < float((bright[..., PAD:-PAD, PAD:-PAD] - seen.x0).abs().max())


def test_an_image_of_unknown_seeing_is_refused():
    model, direction = model_of(TRUE), model_of(TRUE).card.problem.directions[0]
    with pytest.raises(BridgeError, match="no PSF is stated"):
        window_samples(model, direction, torch.zeros(1, 1, SIDE, SIDE), [(0, 0)], Sampling(samples=2))


@pytest.fixture(scope="module")
def trained():
    """A small network that was told half of the power of the sky, trained over a range of seeing and noise."""
    model = model_of(HALF, base=16)
    model.network.train()
    state = TrainState(model.network, Recipe(learning_rate=3e-3, warmup_steps=20, ema_widths=(0.1,)))
    generator, steps, batch = torch.Generator().manual_seed(0), 640, 16
    numbers = torch.rand(60, 2, generator=generator) * torch.tensor([0.75, 2.5]) + torch.tensor([0.45, 2.5])
    kept = context_of([Moffat(*of) for of in numbers.tolist()], torch.ones(60))
    for step in range(steps):
        seen = kept.rows(torch.randint(0, 60, (batch,), generator=generator))
        sigma = (0.1 * 5 ** torch.rand(batch, generator=generator)).view(-1, 1, 1, 1)
        maps = torch.cat([sigma.log().expand(-1, 1, SIDE, SIDE), seen.maps[:, 1:]], 1)
        assert seen.physics is not None
        physics = Physics(seen.physics.log_transfer, seen.physics.power * sigma.double().square())
        context = Context(maps, seen.vector, physics)
        drawn = SkyBatch.draw(model.card, gaussian_skies(batch, generator), context, generator)
        sky_loss(model.network, model.card, drawn).backward()
        state.update(step / steps)
    model.network.load_state_dict(state.averages[0.1])
    model.network.eval()
    return model


@pytest.fixture(scope="module")
def judged(trained):
    """What is said of the trained network by FWHM, beta and noise: two tests ask for the same."""
    return functools.cache(lambda fwhm, beta, sigma: judge(trained, Moffat(fwhm, beta), sigma))


@pytest.mark.long
def test_a_network_learns_what_the_closed_form_lacks(judged):
    before, _, _ = judge(silent(HALF), Moffat(0.7, 3.0), 0.2)
    inside, error, ratios = judged(0.7, 3.0, 0.2)
    assert before < 0.6
    assert inside == pytest.approx(0.68, abs=0.05)
    assert error == pytest.approx(1.0, abs=0.1)
    # a small network is a little less sure than the closed form, of the modes that it sees
    assert 0.9 < ratios[0] < 1.3


@pytest.mark.long
def test_the_variance_of_modes_that_are_seen_is_that_of_the_exact_denoiser(judged):
    # of the same windows and steps, which have errors of their own
    of = ((0.7, 3.0, 0.2), (0.85, 2.7, 0.45), (1.1, 3.3, 0.12))
    found, known = (np.array([judge_of(*one)[2][0] for one in of]) for judge_of in (judged, exact))
    assert np.mean(found / known) == pytest.approx(1.0, abs=0.1)


@pytest.mark.long
@pytest.mark.parametrize(("fwhm", "beta", "sigma"), [(0.55, 4.0, 0.12), (0.85, 2.7, 0.45), (1.1, 3.3, 0.12)])
def test_coverage_holds_through_any_seeing_of_the_range(judged, fwhm, beta, sigma):
    inside, _, _ = judged(fwhm, beta, sigma)
    assert inside == pytest.approx(0.68, abs=0.05)


def test_samples_lie_about_their_own_mean_and_the_single_answer():
    generator = torch.Generator().manual_seed(5)
    samples, answer = torch.randn(2, 6, 1, 40, 40, generator=generator), torch.zeros(2, 1, 40, 40)
    answer[1] = 30.0
    for count in (6, 5):
        moved = about_both_means(samples[:, :count], answer)
        torch.testing.assert_close(moved.mean(1), (samples[:, :count].mean(1) + answer) / 2)
        # where they agree within the noise of a mean, samples scatter as before; where they don't, they say so
        assert float(moved[0].var(0).mean().sqrt()) == pytest.approx(1.0, abs=0.03)
        assert float(moved[1].std(0).mean()) == pytest.approx(15 * (count // 2 * 2 / (count - 1)) ** 0.5, rel=0.03)
