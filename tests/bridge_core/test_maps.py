"""Mean and standard deviation from one evaluation: moments in closed form, and a head that learns a width."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.checkpoint import check_shipped, head_file, load_checkpoint, shipped_checkpoints
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.maps import (
    INSIDE,
    Evaluated,
    MapsHead,
    check_maps,
    evaluate_once,
    flux_moments,
    load_head,
    width_loss,
)
from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.sampler import denoise
from surveybridge.bridge_core.settings import PatchGrid, Sampling
from surveybridge.bridge_core.stretch import LinearStretch, Stretch
from surveybridge.bridge_core.translate import opening_of, sampler_steps, window_samples
from tests.bridge_core.models import PROBLEM, SOFTENING, TINY, TO_EUCLID, TO_LSST, make_card, random_model

DIRECTIONS = pytest.mark.parametrize("direction", [TO_EUCLID, TO_LSST], ids=str)


def card(bridge: Bridge | None = None) -> Card:
    return replace(make_card(bridge), objective=Objective("edm", sigma_data=0.3, end_share=0.1))


def windows(count: int = 3, side: int = 16) -> tuple[Tensor, list[tuple[int, int]]]:
    drawn = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(5))
    return 0.2 * drawn, [(0, 64 * row) for row in range(count)]


@pytest.mark.parametrize("offset", [0.0, -1.0])
@pytest.mark.parametrize("mean", [-0.3, 0.0, 0.1, 0.8])
@pytest.mark.parametrize("std", [0.02, 0.1, 0.2])
def test_moments_of_a_flux_are_those_of_samples_that_are_gaussian_in_asinh(mean, std, offset):
    stretch = Stretch({"VIS": 4.0}, offset=offset)
    # all of them: sums over a fine grid, with the density as weights
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    density = torch.softmax(-z.square() / 2, 0)
    flux = stretch.inverse((mean + offset + std * z).view(-1, 1, 1, 1), ("VIS",)).flatten()
    flux_mean = (density * flux).sum()
    flux_std = (density * (flux - flux_mean).square()).sum().sqrt()
    width = flux_std / (4.0 * math.cosh(mean / stretch.scale))
    found = stretch.moments(
        torch.full((1, 1, 1), mean + offset, dtype=torch.float64), width.log().view(1, 1, 1), ("VIS",)
    )
    torch.testing.assert_close(found[1].flatten()[0], flux_std)
    torch.testing.assert_close(found[0].flatten()[0], flux_mean, rtol=1e-6, atol=1e-6)


def test_a_flux_without_a_width_is_that_of_the_network_units():
    stretch, flux = Stretch({"g": 0.7, "r": 0.8}), torch.tensor([[[-3.0, 0.0, 5e4]], [[1.0, 2.0, 1e6]]])
    mean, std = stretch.moments(stretch.forward(flux, ("g", "r")), torch.full_like(flux, -30.0), ("g", "r"))
    torch.testing.assert_close(mean, flux, rtol=1e-5, atol=1e-5)
    assert float((std / flux.abs().clamp(min=1)).max()) < 1e-12


@DIRECTIONS
def test_the_mean_is_what_the_network_says_of_the_start_that_samples_share(direction):
    model, (x1, corners) = random_model(card()), windows()
    how = Sampling(seed=7, steps=3, precision="float32", shared_start=True, patches=PatchGrid(16, 4, 4))
    steps = sampler_steps(model.card, how)
    opening = opening_of(model, direction, x1, corners, (how, steps))
    assert opening is not None
    seen = evaluate_once(model, direction, x1, corners, seed=7)
    torch.testing.assert_close(seen.mean, denoise(model, opening.state, x1, steps[0], direction))
    assert seen.features.shape == (3, TINY.base, 8, 8) and seen.emb.shape == (3, TINY.time_dim)


@DIRECTIONS
def test_a_window_says_the_same_whatever_else_is_in_the_batch(direction):
    model, (x1, corners) = random_model(card()), windows()
    torch.manual_seed(1)
    head = MapsHead(TINY)
    together = flux_moments(head, direction, evaluate_once(model, direction, x1, corners))
    for row in range(len(x1)):
        alone = evaluate_once(model, direction, x1[row : row + 1], corners[row : row + 1])
        for whole, part in zip(together, flux_moments(head, direction, alone), strict=True):
            assert part.shape == (1, len(direction.wanted.bands), 16, 16)
            torch.testing.assert_close(part[0], whole[row])


def fit(head: MapsHead, seen: Evaluated, truth: Callable[[], Tensor], steps: int = 150) -> None:
    """Fit to a new truth at every step, as there are too few pixels to fit to one."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        width_loss(head, TO_EUCLID, seen, truth(), bright_weight=0.0).backward()
        optimizer.step()


def test_the_head_learns_a_known_width_and_leaves_the_samples_bits():
    model, (x1, corners) = random_model(card()), windows(8, 32)
    how = Sampling(samples=2, steps=2, precision="float32", patches=PatchGrid(32, 16, 4))
    before = window_samples(model, TO_EUCLID, x1, corners, how)
    seen = evaluate_once(model, TO_EUCLID, x1, corners)
    torch.manual_seed(1)
    head = MapsHead(TINY)
    mean, _ = flux_moments(head, TO_EUCLID, seen)
    known = 3.0  # nJy about a mean that the width hardly moves
    generator = torch.Generator().manual_seed(2)

    def truth() -> Tensor:
        noisy = mean.detach() + known * torch.randn(mean.shape, generator=generator)
        return TO_EUCLID.wanted.forward(noisy, 3)

    fit(head, seen, truth)
    mean_now, std = flux_moments(head, TO_EUCLID, seen)
    off = (TO_EUCLID.wanted.inverse(truth()) - mean_now).abs()
    assert float((off <= std).detach().float().mean()) == pytest.approx(INSIDE, abs=0.02)
    assert float(std.detach().median()) == pytest.approx(known, rel=0.05)
    assert torch.equal(window_samples(model, TO_EUCLID, x1, corners, how), before)


def test_errors_that_nobody_could_foresee_do_not_widen_the_sky():
    model, (x1, corners) = random_model(card()), windows(8, 32)
    seen = evaluate_once(model, TO_EUCLID, x1, corners)
    torch.manual_seed(1)
    head = MapsHead(TINY)
    mean, _ = flux_moments(head, TO_EUCLID, seen)
    generator = torch.Generator().manual_seed(2)

    def truth() -> Tensor:
        noisy = mean.detach() + 3.0 * torch.randn(mean.shape, generator=generator)
        struck = torch.rand(mean.shape, generator=generator) < 0.005
        return TO_EUCLID.wanted.forward(noisy + 1e4 * struck, 3)

    fit(head, seen, truth)
    assert float(flux_moments(head, TO_EUCLID, seen)[1].detach().median()) == pytest.approx(3.0, rel=0.06)


def test_pixels_without_data_teach_nothing():
    model, (x1, corners) = random_model(card()), windows()
    seen = evaluate_once(model, TO_EUCLID, x1, corners)
    torch.manual_seed(1)
    head = MapsHead(TINY)
    truth = 0.1 * torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(3)).expand(-1, 3, -1, -1).clone()
    truth[:, :, 8:] = torch.nan

    def gradient(wanted: Tensor) -> Tensor:
        return torch.autograd.grad(width_loss(head, TO_EUCLID, seen, wanted), head.last.weight)[0]

    found = gradient(truth)
    assert found.isfinite().all() and found.any()
    assert not gradient(torch.full_like(truth, torch.nan)).any()


def test_checkpoints_of_which_one_evaluation_says_no_moments_are_refused():
    check_maps(card())
    with pytest.raises(BridgeError, match=r"has not learnt to begin with nothing.*--end-share"):
        check_maps(make_card())
    with pytest.raises(BridgeError, match="has not learnt to begin"):
        check_maps(replace(card(), end_noise=0.1))
    ends = [replace(PROBLEM.endpoints[0], stretch=LinearStretch({"g": 1.0, "r": 1.0, "i": 1.0})), PROBLEM.endpoints[1]]
    with pytest.raises(BridgeError, match="lsst has no asinh stretch"):
        check_maps(replace(card(), problem=PROBLEM.with_endpoints(ends)))
    clipped = [replace(end, stretch=Stretch(SOFTENING, clip=(-1.0, 1.0))) for end in PROBLEM.endpoints]
    with pytest.raises(BridgeError, match="without bounds"):
        check_maps(replace(card(), problem=PROBLEM.with_endpoints(clipped)))


def test_the_shipped_checkpoint_has_a_head_that_says_the_noise_of_a_sky_and_is_no_checkpoint_itself():
    assert not [name for name in shipped_checkpoints() if "maps" in name]
    check_shipped("mosaic-v3")
    model = load_checkpoint("mosaic-v3")
    head = load_head(model, head_file("mosaic-v3"))
    noise = torch.tensor([0.33, 0.34, 0.53])[:, None, None]  # nJy, that of its pairs on Euclid's pixels
    flux = noise * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    seen = evaluate_once(model, TO_EUCLID, model.card.problem["lsst"].forward(flux, 3), [(0, 0), (0, 64)])
    _, std = flux_moments(head, model.card.problem.to("euclid"), seen)
    assert float(std.median()) == pytest.approx(2.0, rel=0.2)
