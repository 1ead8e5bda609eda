"""What a network is told beside the pixels: the same in training and in translation, and nothing of what is masked."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from surveybridge.bridge_core.conditions import ConditionRanges, Conditions
from surveybridge.bridge_core.context import Context, PairConditions, context_of, noise_map, vector_size
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.network import UNet
from surveybridge.bridge_core.scene import Scene
from surveybridge.bridge_core.settings import PatchGrid, Sampling
from surveybridge.bridge_core.training import Batch, bridge_loss, wanted_of
from surveybridge.bridge_core.translate import translate_tile
from tests.bridge_core.models import PROBLEM, make_card

CARD = make_card()
CARD = replace(CARD, network=replace(CARD.network, conditions=True, norm="pixel"))
C = CARD.network.image_channels
FIRST, SECOND = PROBLEM.endpoints
THERE, BACK = PROBLEM.to(SECOND.name), PROBLEM.to(FIRST.name)
SEEN = {
    FIRST.name: Conditions((0.3, 0.4, 0.5), (0.9, 0.8, 0.7), (0.2, 0.3, math.nan), (0.6, 0.6, 0.6), math.nan),
    SECOND.name: Conditions((1.5,), (0.17,), (0.0,), (0.1,), 0.03),
}


def told_model(seed: int = 4) -> Model:
    """A network that heeds what it is told."""
    torch.manual_seed(seed)
    network = UNet(CARD.network)
    torch.nn.init.normal_(network.get_parameter("condition_embed.2.weight"), std=0.3)
    return Model(CARD, network.eval().requires_grad_(False), "0" * 64)


def tables(conditions: Conditions, n: int = 1) -> Tensor:
    names = ("noise", "fwhm", "wing", "correlation")
    return torch.tensor([[getattr(conditions, name) for name in names]]).expand(n, -1, -1)


@pytest.mark.parametrize("direction", [THERE, BACK])
def test_training_and_translation_tell_a_network_the_same(direction):
    sizes = {end.name: len(end.bands) for end in PROBLEM.endpoints}
    sigma = {name: torch.rand(bands, 8, 8) + 0.2 for name, bands in sizes.items()}
    valid = torch.rand(sizes[direction.observed.name], 8, 8) > 0.3
    there = context_of(direction, C, sigma[direction.observed.name], valid, SEEN)
    known = {direction.observed.name: valid}
    noise = [
        noise_map(end, sigma[end.name].where(known.get(end.name, torch.tensor(True)), math.nan)[None], C)
        for end in PROBLEM.endpoints
    ]
    pairs = PairConditions(
        (tables(SEEN[FIRST.name]), tables(SEEN[SECOND.name])), (noise[0], noise[1]), torch.tensor([0.03])
    )
    wanted = torch.tensor([direction.index])
    seen = valid.repeat_interleave(C // len(valid), 0)[None]
    here = pairs.context(PROBLEM, wanted, seen)
    if direction is BACK:  # the registration is stated by the wanted end
        assert not torch.equal(here.vector, there.vector)
        pairs = replace(pairs, registration=torch.tensor([math.nan]))
        here = pairs.context(PROBLEM, wanted, seen)
    assert torch.equal(here.maps, there.maps)
    assert torch.equal(here.vector, there.vector)
    assert there.vector.shape == (1, vector_size(C))


def test_the_pattern_of_interpolation_is_no_noise():
    """Pixels between those of the image are calmer; what is told is the noise around, whatever the phase."""
    stripes = torch.full((1, 3, 32, 32), 0.4)
    stripes[..., ::2] *= 0.6
    told = noise_map(FIRST, stripes, C)[..., 6:-6, 6:-6]
    expected = math.sqrt((0.4**2 + 0.24**2) / 2)
    flat = noise_map(FIRST, torch.full_like(stripes, expected), C)[..., 6:-6, 6:-6]
    torch.testing.assert_close(told, flat, rtol=0, atol=0.01)


def test_unknown_conditions_are_flagged_and_masked_pixels_tell_no_noise():
    valid = torch.ones(3, 4, 4, dtype=torch.bool)
    valid[1, 2, 2] = False
    sigma = torch.full((3, 4, 4), 0.7)
    sigma[1, 2, 2] = math.nan
    context = context_of(THERE, C, sigma, valid, {FIRST.name: Conditions.unknown(3), SECOND.name: SEEN[SECOND.name]})
    noise, known = context.maps[0].split(C)
    assert bool(torch.isfinite(context.maps).all())
    assert (noise[1, 2, 2], known[1, 2, 2]) == (0, 0)
    assert float(noise[0, 2, 2]) != 0
    values, flags = context.vector[0].chunk(2)
    # of the observed end only the noise, which the maps hold; of the wanted one all; and the registration
    assert flags.tolist() == [1.0] * C + [0.0] * 3 * C + [1.0] * 4 * C + [1.0]
    assert not values[flags == 0].any()


def test_what_is_forgotten_in_training_is_forgotten_in_known_shares():
    n = 4000
    pairs = PairConditions(
        (tables(SEEN[FIRST.name], n), tables(SEEN[SECOND.name], n)),
        (torch.ones(n, C, 1, 1), torch.ones(n, C, 1, 1)),
        torch.full((n,), 0.02),
    )
    known = torch.ones(n, C, 1, 1, dtype=torch.bool)
    context = pairs.dropped(torch.Generator().manual_seed(1)).context(PROBLEM, torch.ones(n).long(), known)
    flags = context.vector.chunk(2, 1)[1]
    assert abs(float((flags[:, C] == 0).float().mean()) - 0.19) < 0.025  # 0.1, and 0.1 of everything
    assert abs(float((flags == 0).all(1).float().mean()) - 0.1) < 0.02
    assert torch.equal((context.maps[:, 0, 0, 0] == 0), flags[:, 0] == 0)


def test_a_new_network_heeds_no_conditions_until_it_is_trained():
    torch.manual_seed(0)
    network = UNet(CARD.network).eval()
    with torch.no_grad():
        network.init_conv.weight[:, 3 * C * CARD.network.stem**2 :] = 0
    x, t = torch.randn(2, 5 * C, 16, 16), torch.tensor([3.0, 400.0])
    told = torch.randn(2, vector_size(C))
    plain = network(x, t, torch.tensor([0, 1]), torch.zeros_like(told))
    assert torch.equal(network(x, t, torch.tensor([0, 1]), told), plain)


HOW = Sampling(samples=2, steps=2, seed=3, precision="float32", patches=PatchGrid(32, 16, 4))


def scene(core: tuple[int, int, int, int], **told) -> Scene:
    generator = torch.Generator().manual_seed(8)
    flux = torch.randn(3, 96, 96, generator=generator)
    sigma = 0.3 + torch.rand(3, 96, 96, generator=generator)
    return Scene(flux, torch.ones_like(flux, dtype=torch.bool), (0, 0), core, 6.0, **{"sigma": sigma} | told)


def test_translation_depends_on_what_is_asked_and_on_what_was_seen():
    model, core = told_model(), (40, 56, 40, 56)
    seen, wanted = SEEN[FIRST.name], SEEN[SECOND.name]
    plain = translate_tile(model, THERE, scene(core, conditions=seen), HOW, wanted=wanted).mean
    deeper = replace(wanted, noise=(0.5,))
    sharper = replace(seen, fwhm=(0.5, 0.5, 0.5))
    assert not torch.equal(plain, translate_tile(model, THERE, scene(core, conditions=seen), HOW, wanted=deeper).mean)
    assert not torch.equal(
        plain, translate_tile(model, THERE, scene(core, conditions=sharper), HOW, wanted=wanted).mean
    )
    assert not torch.equal(
        plain, translate_tile(model, THERE, scene(core, conditions=seen, sigma=None), HOW, wanted=wanted).mean
    )


def test_neighbouring_cores_of_a_tile_are_one_image_when_told_the_same():
    model = told_model()
    told = {"conditions": SEEN[FIRST.name]}
    whole = translate_tile(model, THERE, scene((32, 64, 32, 64), **told), HOW, wanted=SEEN[SECOND.name])
    left = translate_tile(model, THERE, scene((32, 64, 32, 48), **told), HOW, wanted=SEEN[SECOND.name])
    right = translate_tile(model, THERE, scene((32, 64, 48, 64), **told), HOW, wanted=SEEN[SECOND.name])
    torch.testing.assert_close(torch.cat([left.mean, right.mean], -1), whole.mean, rtol=1e-5, atol=1e-5)


def test_where_nothing_is_asked_the_typical_conditions_of_the_training_are():
    model, seen = told_model(), SEEN[FIRST.name]
    asked = SEEN[SECOND.name]
    band = SECOND.bands[0]
    nominal = {"noise": {band: 1.5}, "fwhm": {band: 0.17}, "wing": {band: 0.0}, "correlation": {band: 0.1}}
    stated = replace(model, card=replace(CARD, conditions=ConditionRanges({}, {SECOND.name: nominal})))
    core = (40, 56, 40, 56)
    found = translate_tile(stated, THERE, scene(core, conditions=seen), HOW).mean
    without = replace(asked, registration=math.nan)
    assert torch.equal(found, translate_tile(model, THERE, scene(core, conditions=seen), HOW, wanted=without).mean)


def test_a_batch_of_the_told_is_one_of_each():
    """Windows of one batch may differ in what is told of them."""
    model = told_model()
    x1 = torch.randn(2, C, 32, 32)
    vectors = [torch.randn(1, vector_size(C)) for _ in range(2)]
    maps = torch.randn(2, 2 * C, 32, 32)
    both = model.predict(x1, x1, 300, THERE, context=Context(maps, torch.cat(vectors)))
    for k in range(2):
        some = slice(k, k + 1)
        alone = model.predict(x1[some], x1[some], 300, THERE, context=Context(maps[some], vectors[k]))
        torch.testing.assert_close(both[some], alone, rtol=1e-4, atol=1e-5)


def test_the_loss_sees_the_context():
    model = told_model()
    ends = torch.randn(4, C, 16, 16), torch.randn(4, C, 16, 16)
    wanted = wanted_of(PROBLEM, 4)
    context = Context(torch.randn(4, 2 * C, 16, 16), torch.randn(4, vector_size(C)))
    losses = [
        float(bridge_loss(model.network, CARD, Batch.draw(CARD, ends, wanted, torch.Generator().manual_seed(2), told)))
        for told in (None, context)
    ]
    assert losses[0] != losses[1]
