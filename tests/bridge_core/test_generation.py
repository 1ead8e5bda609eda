"""Generators: what a network is told, what it makes, and that a stamp depends on its seed and number alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from surveybridge.bridge_core import generate as generating
from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.checkpoint import load_checkpoint, save_checkpoint
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.generate import generate, generator_direction
from surveybridge.bridge_core.generation import DROPPED, DROPPED_ALL, Generation, forgotten
from surveybridge.bridge_core.model import Card, Model
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.problem import Endpoint
from surveybridge.bridge_core.sampler import rho_steps
from surveybridge.bridge_core.stretch import Stretch
from surveybridge.bridge_core.translate import translate_tile
from tests.bridge_core.models import PROBLEM, TINY, make_card, random_model

SIDE = 8
NOISE = {"lsst": {"g": 0.35, "r": 0.4, "i": 0.55}, "euclid": {"VIS": 2.0}}
PROPERTIES = {"magnitude": torch.tensor([21.0, 23.0, 25.0]), "size": torch.tensor([0.1, 0.4, 1.6])}


def card_of(ends=("lsst", "euclid"), properties=PROPERTIES) -> Card:
    generation = Generation.fit(PROBLEM, ends, SIDE, NOISE, properties)
    network = replace(TINY, image_channels=generation.planes(PROBLEM), properties=len(generation.properties))
    card = make_card(Bridge.diffusion(200), network=network)
    return replace(card, generation=generation)


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(card_of())


def unknown(count: int, properties: int = 2) -> torch.Tensor:
    return torch.full((count, properties), math.nan)


def test_stamps_are_those_of_all_ends_in_their_units_and_bands(model):
    made = generate(model, range(3), unknown(3), seed=1, steps=2)
    assert {name: tuple(stamps.shape) for name, stamps in made.items()} == {
        "lsst": (3, 3, 8, 8),
        "euclid": (3, 1, 8, 8),
    }
    assert all(torch.isfinite(stamps).all() for stamps in made.values())
    only = generate(random_model(card_of(("euclid",), {})), range(2), unknown(2, 0), seed=1, steps=2)
    assert {name: tuple(stamps.shape) for name, stamps in only.items()} == {"euclid": (2, 1, 8, 8)}


def test_a_stamp_is_the_same_to_the_bit_whatever_is_drawn_with_it(model, monkeypatch):
    alone = generate(model, [5], unknown(1), seed=1, steps=3)
    among = generate(model, [3, 9, 5, 70_000], torch.cat([unknown(2) * 0 + 0.3, unknown(2)]), seed=1, steps=3)
    monkeypatch.setattr(generating, "PASS", 2)
    in_passes = generate(model, range(7), unknown(7), seed=1, steps=3)
    for name, stamps in alone.items():
        assert torch.equal(among[name][2], stamps[0])
        torch.testing.assert_close(in_passes[name][5], stamps[0])


def test_stamps_of_other_numbers_and_seeds_differ(model):
    first, other = (generate(model, [0, 1], unknown(2), seed=seed, steps=2)["euclid"] for seed in (1, 2))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, other)


def test_what_is_asked_for_reaches_the_network(model):
    # the last layer of the embedding begins with zeros
    torch.manual_seed(0)
    weights = {name: value.clone() for name, value in model.network.state_dict().items()}
    weights["condition_embed.2.weight"].normal_()
    asked = random_model(model.card)
    asked.network.load_state_dict(weights)
    values = torch.tensor([[21.0, 0.4], [25.0, 0.4], [math.nan, math.nan]])
    made = [generate(asked, [0], row[None], seed=1, steps=2)["euclid"] for row in values]
    assert not torch.equal(made[0], made[1]) and not torch.equal(made[1], made[2])


def test_properties_are_told_in_standard_deviations_beside_whether_they_are_known():
    generation = card_of().generation
    assert generation is not None
    told = generation.told(torch.tensor([[23.0, 0.4], [25.0, math.nan], [99.0, 1.6]])).vector
    spread = math.log(4)
    assert generation.properties["size"] == pytest.approx((math.log(0.4), spread), abs=1e-3)
    expected = [[0, 0, 1, 1], [1, 0, 1, 0], [4, 1, 1, 1]]
    torch.testing.assert_close(told, torch.tensor(expected, dtype=torch.float32), atol=1e-3, rtol=0)


def test_each_property_is_forgotten_as_often_as_it_says():
    kept = torch.isfinite(forgotten(torch.zeros(20_000, 2), torch.Generator().manual_seed(0)))
    assert float(kept.float().mean()) == pytest.approx((1 - DROPPED) * (1 - DROPPED_ALL), abs=0.01)
    nothing = DROPPED_ALL + (1 - DROPPED_ALL) * DROPPED**2
    assert float((~kept).all(1).float().mean()) == pytest.approx(nothing, abs=0.01)


def test_a_known_denoiser_makes_the_images_that_it_knows(model, monkeypatch):
    """With E[x0 | x_t] of one image, every stamp is that image, whichever noise it began with."""
    image = torch.linspace(-0.5, 1.5, 4 * SIDE * SIDE).view(1, 4, SIDE, SIDE)
    card = model.card
    p, q, _ = card.objective.table(card.bridge)
    steps = rho_steps(card.bridge, 4, generating.SIGMA_MAX)

    class Known:
        def __init__(self, x1: torch.Tensor) -> None:
            self.input = torch.empty_like(x1)

        def __call__(self, step: int, x_t: torch.Tensor) -> torch.Tensor:
            return (image - float(p[steps[step]]) * x_t) / float(q[steps[step]])

    monkeypatch.setattr(Model, "predictor", lambda self, x1, *rest: Known(x1))
    made = generate(model, range(3), unknown(3), seed=4, steps=4)
    end = card.problem["euclid"]
    torch.testing.assert_close(end.forward(made["euclid"], 1), image[:, 3:].expand(3, -1, -1, -1), atol=1e-4, rtol=0)
    assert generator_direction(card.problem).index == 0


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_a_network_that_knows_nothing_makes_the_sky(model, monkeypatch, noise):
    """What the objective knows of the noise reaches the stamps: with 20 evaluations their spread is that of the sky."""
    card = replace(model.card, objective=Objective("edm", sigma_data=0.5, noise=noise), bridge=Bridge.diffusion())

    class Silent:
        def __init__(self, x1: torch.Tensor) -> None:
            self.input = torch.empty_like(x1)

        def __call__(self, step: int, x_t: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x_t)

    monkeypatch.setattr(Model, "predictor", lambda self, x1, *rest: Silent(x1))
    made = generate(replace(model, card=card), range(32), unknown(32), seed=2)
    shown = torch.cat([end.forward(made[end.name], len(end.bands)) for end in card.problem.endpoints], 1)
    assert shown.std().item() == pytest.approx(noise, rel=0.05)
    assert shown.mean().item() == pytest.approx(0, abs=noise / 20)


def test_the_sky_in_network_units_is_that_of_the_stretch():
    generation = card_of().generation
    assert generation is not None

    # softening of 2 sigma shows sigma as scale asinh(1/2), whatever the band
    def shown(end: Endpoint, scale: float) -> Endpoint:
        return replace(end, stretch=Stretch({band: 2 * NOISE[end.name][band] for band in end.bands}, scale, -1.0))

    ends = [shown(end, 0.2) for end in PROBLEM.endpoints]
    assert generation.sky(PROBLEM.with_endpoints(ends)) == pytest.approx(0.2 * math.asinh(0.5), abs=1e-4)
    unlike = shown(ends[0], 0.4)
    both = math.hypot(0.4, 0.2) / math.sqrt(2) * math.asinh(0.5)
    assert generation.sky(PROBLEM.with_endpoints([unlike, ends[1]])) == pytest.approx(both, abs=1e-4)
    unknown_noise = replace(generation, noise={"lsst": {"g": 0.3}})
    assert unknown_noise.sky(PROBLEM.with_endpoints(ends)) == 0


def test_a_generator_comes_back_from_its_file_as_it_was(model, tmp_path):
    file = save_checkpoint(model.card, model.network.state_dict(), tmp_path / "made")
    again = load_checkpoint(file)
    assert again.card.to_json() == model.card.to_json()
    assert again.card.generation == model.card.generation
    before, after = (generate(one, [0], unknown(1), seed=1, steps=2) for one in (model, again))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert '"generation"' not in save_checkpoint(make_card(), {}, tmp_path / "other").with_suffix(".json").read_text()


def test_a_network_that_translates_makes_nothing_from_noise():
    with pytest.raises(BridgeError, match=r"tiny translates images .* train --generate"):
        generate(random_model(), [0], unknown(1, 0), seed=0)


def test_a_generator_translates_no_tile(model):
    with pytest.raises(BridgeError, match=r"tiny makes images from noise and translates none"):
        translate_tile(model, model.card.problem.to("euclid"), cast("Any", None))


@pytest.mark.parametrize(
    ("ends", "properties", "message"),
    [
        (("euclid", "euclid"), {}, "name each once"),
        ((), {}, "are none; name each once"),
        (("hubble",), {}, "'hubble' is not an endpoint"),
        (("euclid",), {"redshift": torch.tensor([0.5, 0.5])}, "known of 2 of 2 pairs, and the same in all"),
        (("euclid",), {"size": torch.tensor([math.nan, -1.0])}, "known of 0 of 2"),
    ],
)
def test_what_cannot_be_generated_is_refused(ends, properties, message):
    with pytest.raises(BridgeError, match=message):
        Generation.fit(PROBLEM, ends, SIDE, NOISE, properties)


def test_properties_of_another_number_are_refused(model):
    with pytest.raises(BridgeError, match=r"properties are \[2, 1\], but 2 stamps of tiny have 2 each"):
        generate(model, [0, 1], unknown(2, 1), seed=0)
