"""One step of training, its average, and a resume that nobody can tell from an undisturbed run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.network import NetworkConfig, UNet, channels_last
from surveybridge.bridge_core.training import (
    Batch,
    Recipe,
    TrainState,
    augment,
    bridge_loss,
    brightness_weight,
    power_of_width,
    step_generator,
    wanted_of,
)
from tests.bridge_core.models import PROBLEM, TINY, make_card

pytestmark = pytest.mark.long

PIXEL = NetworkConfig(base=8, stem=2, norm="pixel")
RECIPE = Recipe(learning_rate=2e-3, warmup_steps=5, batch_size=8, seed=4)


def toy_pairs(count: int = 32, size: int = 16) -> tuple[Tensor, Tensor]:
    """One blob a pair: LSST shows it broad in three colours, Euclid sharp."""
    generator = torch.Generator().manual_seed(9)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centres = torch.rand(count, 2, generator=generator) * size
    squared = (y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2
    colours = torch.tensor([0.5, 0.8, 1.0]).view(1, 3, 1, 1)
    lsst = colours * torch.exp(-squared / 18.0)[:, None]
    return lsst, torch.exp(-squared / 4.0)[:, None].expand(-1, 3, -1, -1).contiguous()


def both_ways(card: Card, lsst: Tensor, euclid: Tensor, generator: torch.Generator) -> Batch:
    return Batch.draw(card, (lsst, euclid), wanted_of(card.problem, len(lsst)), generator)


def make_state(network: NetworkConfig = TINY) -> TrainState:
    torch.manual_seed(1)
    return TrainState(channels_last(UNet(network)), RECIPE)


def train(state: TrainState, card: Card, steps: int, horizon: int = 60) -> list[float]:
    """The training job's loop without its session."""
    lsst, euclid = toy_pairs()
    losses = []
    for _ in range(steps):
        generator = step_generator(RECIPE.seed, state.step, 0)
        rows = torch.randint(0, len(lsst), (RECIPE.batch_size,), generator=generator)
        x, y = augment((lsst[rows], euclid[rows]), PROBLEM, generator, roll=True)
        loss = bridge_loss(state.network, card, both_ways(card, x, y, generator))
        loss.backward()
        state.update(state.step / horizon)
        losses.append(float(loss.detach()))
    return losses


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


# ---- learning


def test_what_the_network_sees_at_the_end_does_not_depend_on_x0_where_the_objective_says_so():
    """The loss of a network that answers 0 is that of its targets: there x0 itself, with no part of it in the state."""
    card = make_card(Bridge.brownian(m_min=2e-5, m_max=0.98, spacing="logit"), "edm")
    card = replace(card, objective=replace(card.objective, end_share=0.5))
    seen: list[Tensor] = []

    class Listener(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, direction: Tensor) -> Tensor:
            seen.append(x[:, :3])
            return torch.zeros(len(x), 6, *x.shape[2:])

    lsst, euclid = toy_pairs(8)
    last = torch.full((8,), card.bridge.num_steps - 1)
    losses = []
    for brighter in (1.0, 5.0):
        batch = replace(both_ways(card, lsst, brighter * euclid, step_generator(1, 0, 0)), t=last)
        batch = replace(batch, index=torch.ones(8, dtype=torch.long))
        losses.append(float(bridge_loss(Listener(), card, batch)))
    torch.testing.assert_close(seen[0], seen[1])
    p, q, r = (float(column[-1]) for column in card.objective.table(card.bridge))
    b, s = float(card.bridge.b[-1]), float(card.bridge.s[-1])
    expected = ((5 * euclid - p * ((b + r) * lsst + s * batch.eps)) / q) ** 2
    assert losses[1] == pytest.approx(float(expected.mean()), rel=1e-3)


def evaluate(state: TrainState, card: Card) -> float:
    """Loss on all pairs with noise that is the same at every call."""
    with torch.no_grad():
        return float(bridge_loss(state.network, card, both_ways(card, *toy_pairs(), step_generator(99, 0, 0))))


@pytest.mark.parametrize(
    ("objective", "share"), [("eps", 0.92), ("grad", 0.85), ("maxnll", 0.93), ("i2sb", 0.9), ("edm", 0.85)]
)
def test_loss_falls_on_a_toy_problem(objective, share):
    state, card = make_state(), make_card(objective=objective)
    before = evaluate(state, card)
    losses = train(state, card, 40)
    assert all(map(math.isfinite, losses))
    assert evaluate(state, card) < share * before


@pytest.mark.parametrize("bridge", [Bridge.schrodinger(), Bridge.diffusion()])
def test_other_bridges_train_alike(bridge):
    state, card = make_state(), make_card(bridge)
    before = evaluate(state, card)
    train(state, card, 20)
    assert evaluate(state, card) < 0.95 * before


def test_loss_of_a_perfect_network_is_zero_in_both_directions():
    # x0 = 0 = x1: the target of edm is -c_skip zeta / c_out
    card, n = make_card(), 8

    class Perfect(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, direction: Tensor) -> Tensor:
            sigma = card.bridge.sigma[t][:, None, None, None].float()
            # input c_in zeta; -c_skip zeta / c_out = -(sigma_data / sigma) c_in zeta
            wanted = -(card.objective.sigma_data / sigma) * x[:, :3]
            other = torch.full_like(wanted, 1e3)
            to_euclid = direction.view(-1, 1, 1, 1).bool()
            return torch.cat([torch.where(to_euclid, other, wanted), torch.where(to_euclid, wanted, other)], 1)

    zero = torch.zeros(n, 3, 8, 8)
    assert float(bridge_loss(Perfect(), card, both_ways(card, zero, zero, step_generator(0, 0, 0)))) < 1e-8


def test_first_half_of_a_batch_goes_to_euclid_and_the_second_back():
    seen: list[Tensor] = []

    class Spy(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, direction: Tensor) -> Tensor:
            seen.extend([x, direction])
            return torch.zeros(len(x), 6, *x.shape[-2:], requires_grad=True)

    lsst, euclid = torch.full((4, 3, 8, 8), 2.0), torch.full((4, 3, 8, 8), 5.0)
    card = make_card()
    bridge_loss(Spy(), card, both_ways(card, lsst, euclid, step_generator(0, 0, 0)))
    x, direction = seen
    assert direction.tolist() == [1, 1, 0, 0]
    assert (x[:2, 3:6] == 2).all()
    assert not x[:2, 6:].any()
    assert (x[2:, 6:] == 5).all()
    assert not x[2:, 3:6].any()


# ---- resume


@pytest.mark.parametrize("norm", ["pixel", "group"])
def test_resumed_run_is_the_undisturbed_one_bit_for_bit(tmp_path: Path, norm: str):
    network = NetworkConfig(base=8, multipliers=(1, 2), blocks=1, time_dim=16, norm=norm)
    card = make_card(network=network)
    straight = make_state(network)
    losses = train(straight, card, 12)

    first = make_state(network)
    begun = train(first, card, 5)
    first.seconds = 12.5
    first.save(tmp_path / "deep" / "state")
    second = make_state(network)
    train(second, card, 2)  # whatever was there before is overwritten
    second.load(tmp_path / "deep" / "state")
    assert second.step == 5
    assert second.seconds == 12.5
    ended = train(second, card, 7)

    assert begun + ended == losses
    assert same(dict(second.network.state_dict()), dict(straight.network.state_dict()))
    for width, average in straight.averages.items():
        assert same(second.averages[width], average)
    assert second.step == straight.step == 12


def test_state_of_an_untrained_network_saves_and_loads(tmp_path: Path):
    state = make_state()
    state.save(tmp_path)
    other = make_state()
    train(other, make_card(), 2)
    other.load(tmp_path)
    assert other.step == 0
    assert same(dict(other.network.state_dict()), dict(state.network.state_dict()))
    # and its optimiser starts anew as well
    assert train(other, make_card(), 3) == train(state, make_card(), 3)


def test_saved_state_is_tensors_only(tmp_path: Path):
    state = make_state()
    train(state, make_card(), 1)
    state.save(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["state.safetensors"]


# ---- average


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_power_of_width_gives_the_numbers_of_edm2(width, gamma):
    assert power_of_width(width) == pytest.approx(gamma, abs=0.005)


def test_average_is_the_power_law_of_edm2():
    state = make_state()
    snapshots = []
    for _ in range(6):
        train(state, make_card(), 1)
        snapshots.append(state.network.state_dict()["init_conv.bias"].clone().double())
    # weight of step k is the increase of (k / n)^(gamma + 1), the integral of eq. (121), as products of 1 - beta
    gamma = power_of_width(0.05)
    n = len(snapshots)
    beta = [(1 - 1 / k) ** (gamma + 1) for k in range(1, n + 1)]
    expected = torch.zeros_like(snapshots[0])
    for b, value in zip(beta, snapshots, strict=True):
        expected = b * expected + (1 - b) * value
    torch.testing.assert_close(state.averages[0.05]["init_conv.bias"].double(), expected, rtol=1e-6, atol=1e-7)
    weights = [(k / n) ** (gamma + 1) - ((k - 1) / n) ** (gamma + 1) for k in range(1, n + 1)]
    direct = sum(w * v for w, v in zip(weights, snapshots, strict=True))
    torch.testing.assert_close(expected, direct)


def test_average_is_kept_apart_from_the_network():
    state = make_state()
    train(state, make_card(), 3)
    assert not torch.equal(state.averages[0.05]["init_conv.weight"], state.network.state_dict()["init_conv.weight"])


# ---- recipe


def test_learning_rate_warms_up_and_comes_to_rest():
    recipe = Recipe(learning_rate=1.0, warmup_steps=10)
    assert recipe.learning_rate_at(0, 0.0) == pytest.approx(0.1)
    assert recipe.learning_rate_at(9, 0.0) == pytest.approx(1.0)
    assert recipe.learning_rate_at(500, 0.5) == pytest.approx(0.5)
    assert recipe.learning_rate_at(999, 1.0) == pytest.approx(0.0)
    assert recipe.learning_rate_at(999, 1.7) == pytest.approx(0.0)


def test_gradient_is_clipped_and_its_norm_reported():
    state, card, clipped = make_state(), make_card(), 0.0

    def measure(*_: object) -> None:
        nonlocal clipped
        clipped = math.sqrt(
            sum(float(p.grad.double().square().sum()) for p in state.network.parameters() if p.grad is not None)
        )

    state.optimizer.register_step_pre_hook(measure)
    batch = both_ways(card, *toy_pairs(8), step_generator(0, 0, 0))
    (1e6 * bridge_loss(state.network, card, batch)).backward()
    assert state.update(0.0) > 1e3
    assert clipped == pytest.approx(RECIPE.gradient_clip, rel=1e-3)
    assert all(p.grad is None for p in state.network.parameters())  # the next step starts from nothing


def test_gradients_of_shards_add_up_to_those_of_the_batch():
    """In any order to float32; in one pass to 5%, because autocast rounds each pass's sums over pixels to bfloat16."""
    card = make_card(network=PIXEL)
    shards = [both_ways(card, *toy_pairs(8), step_generator(3, 7, shard)) for shard in range(4)]
    gradients = []
    for passes in (shards, shards[::-1], [Batch.join(shards)]):
        state = make_state(PIXEL)
        for batch in passes:
            (bridge_loss(state.network, card, batch) * len(batch) / 32).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in state.network.parameters() if p.grad is not None]))
    one, other, joined = gradients
    assert float((one - other).norm() / one.norm()) < 1e-6
    assert float((one - joined).norm() / one.norm()) < 0.05


# ---- randomness


def test_generators_differ_by_shard_step_and_seed_and_repeat():
    def draw(*key: int) -> Tensor:
        return torch.rand(4, generator=step_generator(*key))

    keys = [(s, k, r) for s in (0, 1, 7) for k in (0, 1, 2, 10_000) for r in (0, 1, 2, 3)]
    draws = torch.stack([draw(*key) for key in keys])
    assert len(draws.unique(dim=0)) == len(keys)
    assert torch.equal(draw(7, 3, 1), draw(7, 3, 1))


@pytest.mark.parametrize(("shards", "steps"), [(8, 300_000_000), (64, 20_000_000), (1024, 1_600_000)])
def test_shards_never_meet_within_a_long_run(shards, steps):
    # torch's CPU generator keeps 32 bits of the seed; so many steps of so many shards must not share a number
    starts = [step_generator(5, 0, shard).initial_seed() % 2**32 for shard in range(shards)]
    for i, a in enumerate(starts):
        for b in starts[:i]:
            assert min((a - b) % 2**32, (b - a) % 2**32) > steps


def test_both_surveys_are_turned_and_rolled_alike():
    lsst = torch.rand(64, 3, 8, 8)
    a, b = augment((lsst, lsst * 2), PROBLEM, step_generator(0, 0, 0), roll=True)
    assert torch.equal(b, a * 2)
    # pixels are moved, not made
    torch.testing.assert_close(a.flatten(2).sort().values, lsst.flatten(2).sort().values, rtol=0, atol=0)


def test_every_turn_occurs_and_half_of_the_pairs_stay_in_place():
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(800, 3, 8, 8)
    turned, _ = augment((image, image), PROBLEM, step_generator(1, 0, 0), roll=True)
    dihedral = {
        tuple(t.flatten().tolist())
        for k in range(4)
        for base in [torch.rot90(image[0, 0], k)]
        for t in (base, base.flip(1))
    }
    assert len(dihedral) == 8
    shapes = [tuple(t.flatten().tolist()) for t in turned[:, 0]]
    in_place = [s for s in shapes if s in dihedral]
    assert set(in_place) == dihedral
    assert 0.4 < len(in_place) / 800 < 0.6


def test_augmentation_repeats_with_its_generator():
    lsst, euclid = toy_pairs(8)
    first = augment((lsst, euclid), PROBLEM, step_generator(0, 5, 0), roll=True)
    assert all(
        torch.equal(x, y)
        for x, y in zip(first, augment((lsst, euclid), PROBLEM, step_generator(0, 5, 0), roll=True), strict=True)
    )
    assert not torch.equal(first[0], augment((lsst, euclid), PROBLEM, step_generator(0, 6, 0), roll=True)[0])


def test_pixels_weigh_by_the_observed_survey_alone():
    x1 = torch.zeros(1, 3, 2, 2)
    x1[0, 1, 0, 0], x1[0, 2, 1, 1] = 0.5, -3.0
    weight = brightness_weight(x1, 4.0)
    assert weight.tolist() == [[[[3.0, 1.0], [1.0, 1.0]]]]
    assert brightness_weight(x1, 0.0).unique().tolist() == [1.0]


def test_no_pair_is_rolled_where_the_surveys_have_pixels_of_their_own():
    images = torch.zeros(64, 3, 8, 8)
    images[:, :, 3:5, 3:5] = 1.0
    still, _ = augment((images, images), PROBLEM, step_generator(0, 0, 0), roll=False)
    rolled, _ = augment((images, images), PROBLEM, step_generator(0, 0, 0), roll=True)
    assert torch.equal(still, images)
    assert not torch.equal(rolled, images)


# ---- parts of pairs


def test_a_part_of_a_pair_is_the_same_part_of_both_ends():
    images = torch.rand(64, 3, 24, 24)
    a, b = augment((images, images * 2), PROBLEM, step_generator(0, 0, 0), roll=True, crop=16)
    assert a.shape == (64, 3, 16, 16) and torch.equal(b, a * 2)


def test_parts_lie_near_the_middle_of_pairs_that_are_not_rolled_and_anywhere_in_others():
    line, column = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    distance = torch.maximum((line - 31.5).abs(), (column - 31.5).abs())
    images = distance.expand(400, 3, 64, 64)
    still, _ = augment((images, images), PROBLEM, step_generator(2, 0, 0), roll=False, crop=32)
    middle = still[:, 0].flatten(1).argmin(1)
    y, x = middle // 32, middle % 32
    assert int(torch.stack([y, x]).min()) >= 9 and int(torch.stack([y, x]).max()) <= 22
    assert len(set(y.tolist())) > 8  # not where a network could learn to expect an object
    assert float(still.max()) < 28
    rolled, _ = augment((images, images), PROBLEM, step_generator(2, 0, 0), roll=True, crop=32)
    shares = (rolled[:, 0] < 2).flatten(1).any(1).float().mean()
    assert 0.55 < float(shares) < 0.8  # all that are not rolled, and about a quarter of the others
    assert float(rolled.max()) == 31.5


def test_a_pair_of_which_all_is_seen_is_augmented_as_ever():
    images = torch.rand(16, 3, 16, 16)
    plain = augment((images, images), PROBLEM, step_generator(3, 0, 0), roll=True)
    whole = augment((images, images), PROBLEM, step_generator(3, 0, 0), roll=True, crop=16)
    assert torch.equal(plain[0], whole[0])


# ---- pairs with missing pixels, and problems that go one way


def test_a_one_way_problem_wants_one_end_only():
    assert wanted_of(PROBLEM, 6).tolist() == [1, 1, 1, 0, 0, 0]
    assert wanted_of(replace(PROBLEM, wanted="euclid"), 4).tolist() == [1, 1, 1, 1]
    assert wanted_of(replace(PROBLEM, wanted="lsst"), 3).tolist() == [0, 0, 0]


def test_what_missing_pixels_would_hold_does_not_enter_the_loss():
    card, state = make_card(), make_state()
    lsst, euclid = toy_pairs(8)
    hole = torch.zeros_like(euclid, dtype=torch.bool)
    hole[:, :, 4:9, 6:12] = True
    filled = []
    for garbage in (0.0, 50.0):
        missing = euclid.masked_fill(hole, torch.nan)
        batch = both_ways(card, lsst, missing, step_generator(2, 0, 0))
        assert torch.isfinite(batch.second).all()
        assert torch.equal(~batch.known[:4], hole[:4]) and batch.known[4:].all()
        changed = replace(batch, second=torch.where(hole & batch.index.view(-1, 1, 1, 1).bool(), garbage, batch.second))
        filled.append(bridge_loss(state.network, card, batch))
        # the state x_t is made of the filled image, so only the target of the missing pixels may be anything
        assert torch.isfinite(bridge_loss(state.network, card, changed))
    assert torch.equal(filled[0], filled[1])
    filled[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in state.network.parameters() if p.grad is not None)


def test_loss_of_complete_pairs_is_the_mean_over_all_pixels():
    card, state = make_card(), make_state()
    batch = both_ways(card, *toy_pairs(8), step_generator(2, 0, 0))
    half = replace(batch, known=batch.known & (torch.arange(16) < 8))
    other = replace(batch, known=batch.known & (torch.arange(16) >= 8))
    with torch.no_grad():
        whole, left, right = (float(bridge_loss(state.network, card, b)) for b in (batch, half, other))
    assert whole == pytest.approx((left + right) / 2, rel=1e-5)
