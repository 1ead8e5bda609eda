"""Rivals by adversarial training: shapes, noise, what they learn, their state and their files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from surveybridge.bridge_core.comparators import oasis
from surveybridge.bridge_core.comparators.budget import Budget
from surveybridge.bridge_core.comparators.comparator import (
    METHODS,
    Comparator,
    ComparatorCard,
    load_comparator,
    new_network,
    save_comparator,
)
from surveybridge.bridge_core.comparators.shape import Shape, condition
from surveybridge.bridge_core.comparators.training import AdversarialRecipe, AdversarialTraining
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.metrics import energy_score
from surveybridge.bridge_core.stretch import Stretch
from surveybridge.bridge_core.training import step_generator
from tests.bridge_core.models import PROBLEM

pytestmark = pytest.mark.long

SIDE = 16
NOISE = {"g": 0.33, "r": 0.34, "i": 0.53, "VIS": 2.0}
TOP = {"g": 300.0, "r": 300.0, "i": 300.0, "VIS": 1500.0}


def problem_of(scales=(0.1, 0.1)):
    """LSST and Euclid in AS-Bridge's display."""
    display = Stretch.asbridge(NOISE, TOP)
    return PROBLEM.with_endpoints(
        [
            replace(end, pixel_scale=scale, stretch=display.of_bands(end.bands))
            for end, scale in zip(PROBLEM.endpoints, scales, strict=True)
        ]
    )


DISPLAYED = problem_of()


def pairs(count=8):
    """Round galaxies without noise, in network units of both ends, [N, 3, SIDE, SIDE] each."""
    generator = torch.Generator().manual_seed(4)
    y, x = (6 * (torch.rand(count, generator=generator) - 0.5) + 7.5 for _ in range(2))
    flux = 10 ** (1.5 + torch.rand(count, generator=generator))
    pixel = torch.arange(SIDE)
    r2 = (pixel[:, None] - y[:, None, None]) ** 2 + (pixel - x[:, None, None]) ** 2
    wide, narrow = (flux[:, None, None, None] * torch.exp(-r2 / (2 * s**2))[:, None] for s in (3.0, 1.5))
    first, second = DISPLAYED.endpoints
    return first.forward(wide * torch.tensor([0.4, 0.7, 1.0])[:, None, None], 3), second.forward(4 * narrow, 3)


def untrained(method, problem=DISPLAYED, width=2, seed=0):
    shapes = {str(direction): Shape.of(direction, SIDE, width) for direction in problem.directions}
    networks = {name: new_network(method, shape, seed).eval() for name, shape in shapes.items()}
    return Comparator(ComparatorCard(method, problem, shapes, {"made": "by a test"}), networks)


@pytest.mark.parametrize("scales", [(0.1, 0.1), (0.2, 0.1)], ids=["mosaic", "cutout"])
@pytest.mark.parametrize("method", METHODS)
def test_samples_have_the_shape_of_the_wanted_end_and_differ_by_their_noise(method, scales):
    problem = problem_of(scales)
    comparator = untrained(method, problem)
    for network in comparator.networks.values():  # the published weights at the start say next to nothing
        for parameter in network.generator.parameters():
            parameter.data.mul_(3)
    for direction in problem.directions:
        x1 = pairs(3)[1 - direction.index]
        drawn, again, other = (
            comparator.sample(x1, direction, 2, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
        assert drawn.shape == (2, 3, 3, SIDE, SIDE) and drawn.dtype == torch.float32
        assert drawn.amin() >= -1.4 and drawn.amax() <= 1
        assert torch.equal(drawn, again)
        assert not torch.equal(drawn, other) and not torch.equal(drawn[0], drawn[1])
        if direction.wanted.planes == 1:
            assert torch.equal(drawn[:, :, 0], drawn[:, :, 2])


RATES = {"pix2pix": (2e-3, 2e-4), "spade": (2e-3, 1e-3), "oasis": (2e-3, 2e-3)}
"""Higher than published: a test has a few seconds, not days."""
LEARNT = {"pix2pix": (90, 0.25), "spade": (35, 0.2), "oasis": (20, 0.9)}
"""Steps, and the share of the first distance from the truth that may be left after them."""


@pytest.mark.parametrize("method", METHODS)
def test_a_few_pairs_are_learnt(method):
    steps, left = LEARNT[method]
    direction = DISPLAYED.to("euclid")
    network = new_network(method, Shape.of(direction, SIDE, 4), 0)
    network.rates = RATES[method]
    training = AdversarialTraining(network, AdversarialRecipe(Budget(steps=steps), batch_size=8))
    ends = pairs()
    seen, truth = condition(ends[0], direction), direction.wanted.planes_in(ends[1])
    network.fit_to(seen)

    def apart():
        with torch.no_grad():
            return float((network.generate(seen, torch.randn(8, network.deviates)) - truth).abs().mean())

    torch.manual_seed(0)
    before = apart()
    for step in range(steps):
        training.update(seen, truth, step_generator(0, step, 0))
    assert apart() < left * before, (apart(), before)


@pytest.mark.parametrize("method", METHODS)
def test_validation_judges_what_would_be_drawn_and_leaves_the_training_alone(method):
    direction = DISPLAYED.to("euclid")
    recipe = AdversarialRecipe(Budget(steps=2), batch_size=2)
    training, _ = trained(new_network(method, Shape.of(direction, SIDE, 2), 0), 2, recipe)
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    found = training.validation(direction, pairs(4))
    assert training.validation(direction, pairs(4)) == found > 0
    for name, value in training.network.state_dict().items():
        assert torch.equal(value, before[name])
    shape = training.network.shape
    card = ComparatorCard(method, DISPLAYED, {str(direction): shape})
    finished = Comparator(card, {str(direction): training.finished()})
    ends = pairs(4)
    drawn = finished.sample(ends[0], direction, 3, step_generator(0, 0, 1))[:, :, :1]
    expected = energy_score(drawn, ends[1][:, :1], fair=True).mean()
    assert found == pytest.approx(float(expected), rel=1e-4)


def trained(network, steps, recipe, path=None):
    training = AdversarialTraining(network, recipe)
    if path is not None:
        training.load(path)
    direction = DISPLAYED.to("euclid")
    losses = []
    for loss in training.run(DISPLAYED, direction, pairs()):
        losses.append((loss.generator, loss.critic))
        if loss.step == steps:
            break
    return training, losses


@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_was_interrupted_goes_on_as_if_it_had_not_been(method, tmp_path):
    shape, recipe = Shape.of(DISPLAYED.to("euclid"), SIDE, 2), AdversarialRecipe(Budget(steps=4, seed=3), batch_size=4)
    whole, losses = trained(new_network(method, shape, 0), 4, recipe)
    part, first = trained(new_network(method, shape, 0), 2, recipe)
    part.save(tmp_path / "state.safetensors")
    rest, second = trained(new_network(method, shape, 1), 4, recipe, tmp_path / "state.safetensors")
    assert first + second == losses and rest.step == 4
    for name, value in whole.finished().generator.state_dict().items():
        assert torch.equal(value, rest.finished().generator.state_dict()[name]), name


def test_a_training_ends_after_its_seconds_over_all_runs(tmp_path):
    shape, recipe = Shape.of(DISPLAYED.to("euclid"), SIDE, 2), AdversarialRecipe(Budget(seconds=0.3), batch_size=2)
    training, losses = trained(new_network("pix2pix", shape, 0), -1, recipe)
    assert losses and training.seconds >= 0.3
    training.save(tmp_path / "state.safetensors")
    _, more = trained(new_network("pix2pix", shape, 0), -1, recipe, tmp_path / "state.safetensors")
    assert more == []


@pytest.mark.parametrize("method", METHODS)
def test_a_comparator_is_read_as_it_was_written(method, tmp_path):
    comparator = untrained(method)
    save_comparator(comparator.card, comparator.networks, tmp_path / "rival")
    read = load_comparator(tmp_path / "rival")
    assert read.card.to_json() == comparator.card.to_json()
    direction = DISPLAYED.to("lsst")
    x1 = pairs(2)[1]
    one, other = (c.sample(x1, direction, 2, torch.Generator().manual_seed(0)) for c in (comparator, read))
    assert torch.equal(one, other)


def test_what_cannot_be_is_refused(tmp_path):
    comparator = untrained("pix2pix")
    direction = DISPLAYED.to("lsst")
    with pytest.raises(BridgeError, match=r"images of 8 x 8 pixels, but it was trained on 16 x 16"):
        comparator.sample(torch.zeros(1, 3, 8, 8), direction, 1, torch.Generator())
    only = Comparator(comparator.card, {"lsst->euclid": comparator.networks["lsst->euclid"]})
    with pytest.raises(BridgeError, match="was not trained from euclid to lsst, only lsst->euclid"):
        only.sample(torch.zeros(1, 3, 16, 16), direction, 1, torch.Generator())
    with pytest.raises(BridgeError, match="windows of 24 pixels"):
        Shape.of(direction, 24, 2)
    with pytest.raises(BridgeError, match="no bounds"):
        Shape.of(PROBLEM.to("lsst"), SIDE, 2)
    with pytest.raises(BridgeError, match="None steps and None seconds"):
        Budget()
    with pytest.raises(BridgeError, match="'gan' is not one of pix2pix, spade, oasis"):
        ComparatorCard("gan", DISPLAYED, {})
    with pytest.raises(BridgeError, match=r"rival.safetensors does not exist; train it first"):
        load_comparator(tmp_path / "rival")


@pytest.mark.parametrize("budget", [{"steps": 0}, {"steps": -1}, {"seconds": 0.0}, {"seconds": float("nan")}])
def test_a_budget_that_trains_nothing_is_refused(budget):
    with pytest.raises(BridgeError, match="give a number above 0"):
        Budget(**budget)


@pytest.mark.parametrize(
    ("ending", "content", "said"),
    [
        ("json", b"{nonsense", "a file is damaged"),
        ("json", b"[1]", "is a list, no card"),
        ("json", b"{}", "is no card of a comparator"),
        ("json", b'{"method": "spade", "problem": 3, "shapes": {}}', "is no card of a comparator"),
        ("safetensors", b"", "a file is damaged"),
        ("safetensors", b"x" * 64, "a file is damaged"),
    ],
)
def test_a_damaged_file_of_a_comparator_is_named(tmp_path, ending, content, said):
    comparator = untrained("spade")
    save_comparator(comparator.card, comparator.networks, tmp_path / "rival")
    (tmp_path / f"rival.{ending}").write_bytes(content)
    with pytest.raises(BridgeError, match=f"comparator .*rival: .*{said}"):
        load_comparator(tmp_path / "rival")


def test_no_sample_and_a_single_image_without_its_axis_are_refused():
    comparator, direction = untrained("spade"), DISPLAYED.directions[0]
    x1 = pairs(1)[1 - direction.index]
    for images, samples in ((x1, 0), (x1[0], 2)):
        with pytest.raises(BridgeError, match=r"give at least 1, of \[N, C, H, W\]"):
            comparator.sample(images, direction, samples, torch.Generator())


def test_the_state_of_another_training_is_refused(tmp_path):
    direction, recipe = DISPLAYED.directions[0], AdversarialRecipe(Budget(steps=1), batch_size=2)
    shape = Shape.of(direction, SIDE, 2)
    AdversarialTraining(new_network("spade", shape, 0), recipe).save(tmp_path / "state.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 64)
    for name in ("state", "cut"):
        with pytest.raises(BridgeError, match=rf"{name}.safetensors is no state of this training .*; delete it"):
            AdversarialTraining(new_network("oasis", shape, 0), recipe).load(tmp_path / f"{name}.safetensors")


def test_the_middle_of_a_wide_stamp_lies_on_the_pixels_of_the_other_end_with_its_flux():
    problem = problem_of((0.2, 0.1))
    direction = problem.to("euclid")
    flux = torch.zeros(1, 3, SIDE, SIDE)
    flux[:, :, 6:10, 7:9] = 20.0
    flux[:, :, 0, 0] = 99.0  # outside of Euclid's stamp
    seen = condition(direction.observed.forward(flux, 3), direction)
    assert seen.shape == (1, 6, SIDE, SIDE)
    there = direction.observed.inverse(seen[:, :3])
    assert float(there.sum()) == pytest.approx(3 * 8 * 20, rel=0.01)
    rows = torch.arange(SIDE) * there.sum((0, 1, 3)) / there.sum()
    assert float(rows.sum()) == pytest.approx(7.5, abs=0.01)  # it lay in the middle, and was 4 rows high
    assert torch.equal(direction.observed.inverse(seen[:, 3:]).round(), flux)


def test_a_narrow_stamp_lies_in_the_middle_of_an_empty_wide_one_with_its_flux():
    problem = problem_of((0.2, 0.1))
    direction = problem.to("lsst")
    flux = torch.zeros(1, 1, SIDE, SIDE)
    flux[..., 0:2, 0:2] = 5.0
    seen = condition(direction.observed.forward(flux, 3), direction)
    assert seen.shape == (1, 2, SIDE, SIDE)
    there = direction.observed.inverse(seen[:, :1])
    assert float(there[0, 0, 4, 4]) == pytest.approx(20, rel=1e-4)
    assert float(there.sum()) == pytest.approx(20, rel=1e-3)


def test_classes_of_oasis_are_the_sky_and_bins_of_equal_frequency():
    generator = torch.Generator().manual_seed(0)
    bright = torch.rand(4, 1, SIDE, SIDE, generator=generator) - 0.3
    sky = -1 + 0.01 * torch.randn(4, 1, SIDE, SIDE, generator=generator)
    images = torch.where(torch.arange(SIDE) < 4, bright, sky)
    network = new_network("oasis", Shape(SIDE, 2, 1, 1, 1), 0)
    assert isinstance(network, oasis.Oasis)
    network.fit_to(images)
    counts = torch.bincount(network.classes(images).flatten(), minlength=oasis.BINS + 2)
    assert counts[0] == 0 and counts.sum() == images.numel()
    assert 0.6 < counts[1] / counts.sum() < 0.78  # the sky is 3/4, but for the edge that the mean over 3 pixels blurs
    assert (counts[2:] / counts[2:].sum() - 1 / oasis.BINS).abs().max() < 0.01


def test_a_critic_of_oasis_pays_for_each_class_alike():
    classes = torch.ones(1, 4, 4, dtype=torch.long)
    classes[0, 0, 0] = 2
    logits = torch.zeros(1, 4, 4, 4)
    logits[:, 1] = 5.0  # right on 15 pixels, wrong on one
    loss = oasis._weighted(logits, classes)
    right, wrong = torch.nn.functional.cross_entropy(
        logits.flatten(2)[0].T, torch.tensor([2] + 15 * [1]), reduction="none"
    )[[1, 0]]
    assert float(loss) == pytest.approx(float((right + wrong) / 2), rel=1e-5)
