"""Training that begins with the weights of a checkpoint, and pairs whose conditions the network is told."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from surveybridge.bridge_core.checkpoint import save_checkpoint
from surveybridge.bridge_core.context import Context, noise_map, vector_size
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import make_model, start_weights
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.train import Config, from_anywhere, run
from surveybridge.jobs.training.card import asked_problem, end_share_of, next_card, start_of
from surveybridge.jobs.training.images import Images, ranges_of
from surveybridge.jobs.training.worker import make_recipe, read_shard
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.pair_writer import PairLayout, PairWriter
from surveybridge.storage.pairs import read_all_conditions, read_pairs, states_conditions
from surveybridge.storage.problems import default_problem
from tests.bridge_core.models import TINY, make_card, random_model
from tests.jobs.training_runs import settings_of, train

SIDE, COUNT = 64, 24
TOLD = replace(TINY, conditions=True)
SIZES = {"base": 8, "batch_size": 8, "shards": 2, "validation": 4, "steps": 2, "report_steps": 1}


@pytest.fixture(scope="module")
def told_pairs(tmp_path_factory) -> str:
    """Pairs that state their conditions; LSST's noise doubles from pair to pair, and some pixels are masked."""
    folder = tmp_path_factory.mktemp("told") / "pairs.zarr"
    layout = PairLayout(
        default_problem(), COUNT, (SIDE, SIDE), 0.1, "told", sigma=("lsst",), gain=("euclid",), registration=True
    )
    rng = np.random.default_rng(5)
    lsst, euclid = rng.normal(size=(COUNT, SIDE, SIDE, 3)), rng.normal(size=(COUNT, SIDE, SIDE, 1))
    lsst[:, :3] = np.nan
    noise = np.repeat(0.3 * 2.0 ** (np.arange(COUNT) % 3), 3).reshape(COUNT, 3)
    sigma = np.broadcast_to(noise[:, None, None], lsst.shape)
    rows = {
        "lsst": lsst,
        "euclid": euclid,
        "lsst_noise": noise,
        "lsst_sigma": sigma,
        "lsst_fwhm": np.full((COUNT, 3), 0.9),
        "lsst_wing": np.full((COUNT, 3), np.nan),
        "lsst_correlation": np.full((COUNT, 3), 0.7),
        "euclid_noise": np.full((COUNT, 1), 2.0),
        "euclid_fwhm": np.full((COUNT, 1), 0.16),
        "euclid_wing": np.zeros((COUNT, 1)),
        "euclid_correlation": np.zeros((COUNT, 1)),
        "euclid_gain": np.full((COUNT, 1), 12.0),
        "registration": np.full(COUNT, 0.02),
    }
    writer = PairWriter.open(str(folder), layout)
    names = [f"p{k}" for k in range(COUNT)]
    writer.write(0, names, {name: values.astype(np.float32) for name, values in rows.items()})
    writer.finish()
    return str(Folder.at(str(folder)).url)


def test_a_network_that_is_told_conditions_begins_as_the_one_that_is_not():
    old = random_model()
    told = make_card(network=TOLD).network
    new = make_model(make_card(network=TOLD), start_weights(old, told), "")
    direction = old.card.problem.directions[0]
    channels = told.image_channels
    x = torch.randn(2, channels, 16, 16)
    context = Context(torch.randn(2, 2 * channels, 16, 16), torch.randn(2, vector_size(channels)))
    before, after = old.predict(x, x, 300, direction), new.predict(x, x, 300, direction, context=context)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


def test_another_network_cannot_go_on_from_a_checkpoint():
    with pytest.raises(BridgeError, match="go on with the same"):
        start_weights(random_model(), replace(TINY, stem=4))
    with pytest.raises(BridgeError, match="go on with the same"):
        start_weights(random_model(make_card(network=TOLD)), make_card().network)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"base": 16}, "--base 16"),
        ({"problem": "p.toml"}, "--problem p.toml"),
        ({"grid": "cutout"}, "--grid is cutout"),
    ],
)
def test_a_checkpoint_and_another_network_or_grid_are_refused(asked, message):
    with pytest.raises(RequestError, match=message):
        start_of("mosaic-v2", asked)


def test_pairs_tell_the_network_what_they_state(told_pairs):
    assert states_conditions(told_pairs)
    start = start_of("mosaic-v2", {})
    assert start is not None
    config = settings_of(told_pairs, COUNT, **SIZES) | {"conditions": True}
    pairs = read_pairs(told_pairs, conditions=True)
    card = next_card(config, start, pairs, {})
    assert card.network.conditions and not start.card.network.conditions
    images = Images.of(card, pairs)
    (lsst, _), known = images.rows(card, torch.arange(3))
    assert known is not None
    assert bool(torch.isnan(lsst[:, :, :3]).all()) and bool(torch.isfinite(lsst[:, :, 3:]).all())
    # noise doubles from pair to pair, and VIS has that of its own light
    assert torch.allclose(known.noise[0][1] - known.noise[0][0], torch.tensor(math.log(2.0)), atol=1e-4)
    flux = torch.from_numpy(pairs.ends["euclid"][0, 0])
    expected = noise_map(card.problem["euclid"], (4.0 + flux.clamp(min=0) / 12.0).sqrt()[None, None], 3)
    torch.testing.assert_close(known.noise[1][:1], expected, rtol=0, atol=1e-4)
    ranges = ranges_of(card.problem, read_all_conditions(told_pairs, "mosaic", COUNT, default_problem()))
    assert ranges.ranges["lsst"]["noise"]["g"] == pytest.approx((0.3, 1.2))
    assert "wing" not in ranges.ranges["lsst"]
    assert ranges.nominal["euclid"]["fwhm"]["VIS"] == pytest.approx(0.16)


def test_old_pairs_state_their_conditions_as_numbers_of_their_bands(tmp_path):
    from tests import tiny

    url = tiny.write_pairs(tmp_path / "tiny.zarr", 3)
    assert not states_conditions(url)
    stamps, mosaic = (read_pairs(url, grid, conditions=True).conditions for grid in ("cutout", "mosaic"))
    assert stamps is not None and mosaic is not None
    own, there = stamps.ends["lsst"], mosaic.ends["lsst"]
    # white noise of 0.2" pixels, interpolated to 0.1": less than a quarter of it, and shared by neighbours
    assert np.all(own.correlation == 0)
    assert np.all((there.noise < 0.25 * own.noise) & (there.noise > 0.2 * own.noise))
    assert np.all((there.correlation > 0.6) & (there.correlation < 0.8))
    assert np.array_equal(mosaic.ends["euclid"].noise, stamps.ends["euclid"].noise)


def test_training_goes_on_from_the_weights_of_a_checkpoint(tmp_path, told_pairs):
    model = random_model(make_card())
    path = save_checkpoint(model.card, model.network.state_dict(), tmp_path / "start")
    start = start_of(str(path), {})
    assert start is not None
    config = settings_of(told_pairs, COUNT, **SIZES) | {"conditions": True, "learning_rate": 1e-9}
    card = next_card(config, start, read_pairs(told_pairs, conditions=True), {"learning_rate": 1e-9})
    assert card.provenance["from"]["name"] == start.card.name
    curve = train(1, tmp_path / "run", config | {"card": card.to_json(), "start": str(path)})
    assert len(curve) == 2
    after = load_file(tmp_path / "run" / "000002" / "state.safetensors")
    for name, value in start_weights(start, card.network).items():
        if "condition_embed" not in name:
            torch.testing.assert_close(after[f"network.{name}"], value, rtol=0, atol=1e-7)
    assert read_shard(config | {"card": card.to_json()}, card, 0).training.conditions is not None


def test_a_step_sees_the_part_that_is_asked_for_with_what_is_told_of_it(told_pairs):
    card = make_card(network=TOLD)
    config = settings_of(told_pairs, COUNT, **SIZES) | {"conditions": True, "crop": 32}
    recipe = make_recipe(config)
    assert recipe.crop == 32
    batch = read_shard(config | {"card": card.to_json()}, card, 0).draw(card, recipe, 0)
    assert batch.first.shape == batch.known.shape == (4, 3, 32, 32)
    assert batch.maps.shape == (4, 2 * 3, 32, 32)


@pytest.mark.parametrize(
    ("crop", "grid", "message"),
    [(72, "mosaic", "up to 64"), (36, "mosaic", "a multiple of 8"), (32, "cutout", "no part that is the same sky")],
)
def test_a_part_that_pairs_do_not_have_or_the_network_cannot_halve_is_refused(
    tmp_path, told_pairs, crop, grid, message
):
    config = Config(pairs=told_pairs, out=str(tmp_path), steps=1, crop=crop, grid=grid, validation=8, conditions=False)
    with pytest.raises(RequestError, match=rf"--crop {crop}: .*{message}"):
        run(config)
    assert not list(tmp_path.iterdir())


def test_networks_that_are_told_conditions_learn_to_begin_with_nothing():
    assert end_share_of(None, "edm", None, told=True) == 0.1
    assert end_share_of(None, "edm", None, told=False) == end_share_of(None, "eps", None, told=True) == 0.0
    assert end_share_of(0.3, "edm", None, told=False) == 0.3
    assert end_share_of(0.0, "edm", None, told=True) == 0.0
    card = make_card()
    start = random_model(replace(card, objective=replace(card.objective, end_share=0.2)))
    assert end_share_of(None, "edm", start, told=True) == 0.2
    assert end_share_of(None, "eps", random_model(make_card()), told=True) == 0.1  # a checkpoint brings its objective
    with pytest.raises(RequestError, match=r"--end-share 0\.1 needs the objective edm, but it is eps"):
        end_share_of(0.1, "eps", None, told=False)


def test_the_problem_of_the_pairs_is_trained_where_no_checkpoint_is_named(told_pairs):
    assert start_of(None, {"base": 16}) is None
    assert asked_problem(None, None, told_pairs).name == "lsst-euclid"


def test_workers_find_a_checkpoint_of_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert from_anywhere("runs/mine/bridge") == str(tmp_path / "runs" / "mine" / "bridge")
    assert from_anywhere("mosaic-v3") == "mosaic-v3"
    assert from_anywhere(None) is None
