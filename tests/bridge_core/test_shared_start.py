"""One start for all samples of a window: fewer evaluations, and samples that vary as much about the same mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import Card, Model
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.redraw import redraw_tile
from surveybridge.bridge_core.settings import PatchGrid, Sampling, WholeTile
from surveybridge.bridge_core.translate import (
    opening_of,
    sampler_steps,
    shares_start,
    translate_tile,
    window_samples,
    with_shared_start,
)
from tests.bridge_core.models import TINY, TO_EUCLID, TO_LSST, analytic_model, make_card, random_model
from tests.bridge_core.test_whole_tile import assert_close, same, scene, sky

pytestmark = pytest.mark.long

PATCHES = PatchGrid(32, 14, 8)
GRIDS = pytest.mark.parametrize("grid", [WholeTile(), PATCHES], ids=["whole", "patches"])
HOW = Sampling(samples=3, steps=3, seed=7, batch=4, precision="float32", shared_start=True)


def card(bridge: Bridge | None = None) -> Card:
    return replace(make_card(bridge), objective=Objective("edm", sigma_data=0.3, end_share=0.1))


def evaluations(model: Model, how: Sampling, direction: Direction = TO_EUCLID) -> int:
    """Windows that went through the network to translate a tile, and its number of windows."""
    seen: list[int] = []
    hook = model.network.final_conv.register_forward_hook(lambda _, given, out: seen.append(len(out)))
    found = translate_tile(model, direction, view(direction), how)
    hook.remove()
    assert sum(seen) % found.windows == 0
    return sum(seen) // found.windows


def view(direction: Direction = TO_EUCLID):
    return scene(sky(len(direction.observed.bands), 200, 170), (64, 130, 64, 110), (40, -24))


@GRIDS
@pytest.mark.parametrize("samples", [2, 8])
def test_the_network_sees_the_start_once_a_window(grid, samples):
    model, how = random_model(card()), replace(HOW, samples=samples, patches=grid)
    assert evaluations(model, how) == samples * 2 + 1 == how.evaluations(3)
    own = replace(how, shared_start=False)
    assert evaluations(model, own) == samples * 3 == own.evaluations(3)


@GRIDS
@pytest.mark.parametrize("direction", [TO_EUCLID, TO_LSST], ids=str)
def test_samples_of_a_network_that_knows_the_mean_at_the_end_are_those_with_starts_of_their_own(grid, direction):
    made = card()
    last = float(made.bridge.sigma[-1])
    gain, channels = 0.5, len(direction.wanted.bands)

    def perfect(zeta: Tensor, sigma: float, x1: Tensor, _: Direction) -> Tensor:
        mean = gain * x1
        return mean if sigma == last else (sigma**2 * mean + 0.04 * zeta) / (sigma**2 + 0.04)

    model, how = analytic_model(perfect, made), replace(HOW, patches=grid, steps=6)
    one, other = (
        redraw_tile(model, direction, view(direction), replace(how, shared_start=shared), (70, 90, 70, 100))[1]
        for shared in (True, False)
    )
    assert one.shape == (3, channels, 20, 30) and (one[0] - one[1]).abs().mean() > 0.01
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@GRIDS
def test_samples_differ_and_the_first_is_that_with_its_own_start(grid):
    model, how = random_model(card()), replace(HOW, patches=grid, batch=1)
    shared, own = (
        redraw_tile(model, TO_EUCLID, view(), replace(how, shared_start=one), view().core)[1] for one in (True, False)
    )
    torch.testing.assert_close(shared[0], own[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(shared[1], own[1], atol=1e-3)  # this network has learnt nothing
    assert (shared[0] - shared[1]).abs().mean() > 0.5 * (own[0] - own[1]).abs().mean()


@GRIDS
def test_first_samples_stay_when_more_are_drawn(grid):
    model, how = random_model(card()), replace(HOW, patches=grid, batch=1)
    two, eight = (redraw_tile(model, TO_EUCLID, view(), replace(how, samples=k), (70, 80, 70, 90))[1] for k in (2, 8))
    assert torch.equal(two, eight[:2]) and not torch.allclose(eight[3], eight[4], atol=1e-2)


def test_every_batch_of_samples_begins_with_the_same_bits():
    model, windows = random_model(card()), torch.randn(1, 3, 64, 72)
    steps = sampler_steps(model.card, HOW)
    first, *others = (
        opening_of(model, TO_EUCLID, windows, [(8, 16)], (replace(HOW, samples=k, batch=batch), steps))
        for k, batch in ((2, 1), (3, 2), (8, 1000))
    )
    assert first is not None
    for opening in others:
        assert opening is not None
        assert torch.equal(first.state, opening.state) and torch.equal(first.answer, opening.answer)
    drawn = [
        window_samples(model, TO_EUCLID, windows, [(8, 16)], replace(HOW, samples=6, batch=batch))
        for batch in (1, 4, 1000)
    ]
    for other in drawn[1:]:
        torch.testing.assert_close(drawn[0], other, rtol=1e-5, atol=1e-5)


@GRIDS
@pytest.mark.parametrize("direction", [TO_EUCLID, TO_LSST], ids=str)
@pytest.mark.parametrize("batch", [1, 4])
def test_samples_drawn_again_have_the_moments_of_the_translation_to_the_bit(grid, direction, batch):
    model, shown, how = random_model(card()), view(direction), replace(HOW, patches=grid, batch=batch)
    shown.valid[:, 70:80, 60:75] = False
    whole = translate_tile(model, direction, shown, how)
    posterior, samples = redraw_tile(model, direction, shown, how, shown.core)
    assert same(whole, posterior)
    part, cut = redraw_tile(model, direction, shown, how, (90, 100, 64, 71))
    there = (slice(26, 36), slice(0, 7))
    assert torch.equal(cut, samples[:, :, *there])
    assert torch.equal(part.mean, whole.mean[:, *there]) and torch.equal(part.std, whole.std[:, *there])


def test_patches_whose_steps_see_no_farther_than_their_margin_say_what_the_whole_tile_says():
    model, how = random_model(card()), replace(HOW, steps=2)
    margin = 2 * (TINY.reach + 1)
    shown = scene(sky(3, 220, 224), (90, 130, 90, 130), (1003, -520))
    whole = translate_tile(model, TO_EUCLID, shown, replace(how, patches=WholeTile(margin)))
    patches = translate_tile(model, TO_EUCLID, shown, replace(how, patches=PatchGrid(2 * margin + 24, 24, margin)))
    assert_close(whole, patches)


# ---- where samples may share it


@pytest.mark.parametrize(
    ("made", "how"),
    [
        (make_card(), HOW),  # its start has something of x0
        (card(), replace(HOW, steps=1)),  # all samples would be the same
        (card(), replace(HOW, from_end=False)),
        (replace(card(), end_noise=0.1), HOW),  # the end of the bridge is one's own
    ],
    ids=["x0", "one step", "middle", "noisy end"],
)
def test_a_start_that_is_not_forgotten_is_refused(made, how):
    assert not shares_start(made, how) and not with_shared_start(made, how).shared_start
    how = replace(how, patches=WholeTile())
    with pytest.raises(BridgeError, match=r"tiny: samples of \d steps from \d+ .* cannot share a start"):
        translate_tile(random_model(made), TO_EUCLID, view(), how)


def test_of_the_shipped_checkpoints_only_mosaic_v3_begins_without_the_wanted_image():
    shared = {name: shares_start(load_checkpoint(name).card, Sampling()) for name in ("mosaic-v2", "mosaic-v3")}
    assert shared == {"mosaic-v2": False, "mosaic-v3": True}


# ---- what the shipped network makes of it


@pytest.fixture(scope="module")
def drawn() -> dict[bool, Tensor]:
    """16 samples of a window of blobs by the default network, in network units, by whether they share their start."""
    model = load_checkpoint("mosaic-v3").to("cpu", "bfloat16")
    direction = model.card.problem.to("euclid")
    x1 = direction.observed.forward(sky(3, 128, 128, seed=5), model.card.network.image_channels)[None]
    how = Sampling(samples=16, seed=3)
    return {
        shared: direction.wanted.forward(
            window_samples(model, direction, x1, [(0, 0)], replace(how, shared_start=shared))[0], 1
        )
        for shared in (True, False)
    }


def test_samples_vary_as_much(drawn):
    shared, own = (drawn[one].double().var(0) for one in (True, False))
    assert float(shared.mean() / own.mean()) == pytest.approx(1, abs=0.01)
    assert float((shared / own).log().mean()) == pytest.approx(0, abs=0.01)


def test_their_mean_is_as_near_as_sampling_lets_it_be(drawn):
    shared, own = drawn[True].double(), drawn[False].double()
    variance = (shared.var(0) + own.var(0)) / 16
    # both have the same noise after the start, so they are far nearer than two independent means
    assert float(((shared.mean(0) - own.mean(0)).square() / variance).mean().sqrt()) < 0.1
    assert abs(float((shared.mean(0) - own.mean(0)).mean() / own.std(0).mean())) < 0.005
