"""Weights and card on disk: bit for bit back, and nothing wrong or executable let in."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from surveybridge.bridge_core.asbridge import import_asbridge
from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.checkpoint import check_shipped, load_checkpoint, save_checkpoint, shipped_checkpoints
from surveybridge.bridge_core.conditions import ConditionRanges
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import Card, Model, make_model
from surveybridge.bridge_core.network import NetworkConfig, channels_last, network_input
from tests.bridge_core.models import TO_EUCLID, TO_LSST, make_card, random_model


@pytest.fixture
def model() -> Model:
    return random_model()


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    return save_checkpoint(model.card, model.network.state_dict(), tmp_path / "models" / "tiny-v1.2")


def edit_card(saved: Path, **changes: object) -> None:
    file = saved.with_suffix(".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---- round trips


def test_weights_come_back_bit_for_bit(model, saved):
    loaded = load_checkpoint(saved)
    ours, theirs = model.network.state_dict(), loaded.network.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.network.parameters())
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.predict(x, x, 300, TO_EUCLID), loaded.predict(x, x, 300, TO_EUCLID))


def test_card_comes_back_whole(saved):
    card = load_checkpoint(saved).card
    assert card.to_json() == make_card().to_json()
    assert card.problem["lsst"].bands == ("g", "r", "i")
    assert card.problem.card == make_card().problem.card
    assert torch.equal(card.bridge.s, make_card().bridge.s)


@pytest.mark.parametrize("bridge", [Bridge.brownian(m_min=1e-4), Bridge.schrodinger(200, 0.5), Bridge.diffusion()])
@pytest.mark.parametrize("clamp", [None, (-1.0, 1.0)])
def test_card_goes_through_json(bridge, clamp):
    card = make_card(bridge, "eps", clamp=clamp)
    if clamp is None:
        bare = [replace(end, stretch=None) for end in card.problem.endpoints]
        card = replace(card, problem=card.problem.with_endpoints(bare))
    again = Card.from_json(json.loads(json.dumps(card.to_json())))
    assert again.to_json() == card.to_json()
    assert torch.equal(again.bridge.a, bridge.a)
    assert again.clamp == clamp


@pytest.mark.parametrize("ending", ["", ".safetensors", ".json"])
def test_either_file_or_the_name_without_ending_names_a_checkpoint(saved, ending):
    assert load_checkpoint(f"{saved.parent / 'tiny-v1.2'}{ending}").card.name == "tiny"


def test_weights_in_channels_last_memory_are_saved_alike(model, saved, tmp_path):
    weights = {
        k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in saved_weights(model).items()
    }
    other = save_checkpoint(model.card, weights, tmp_path / "nhwc")
    assert other.read_bytes() == saved.read_bytes()


def saved_weights(model: Model) -> dict[str, torch.Tensor]:
    return dict(model.network.state_dict())


def test_hash_is_of_weights_and_card(model, saved, tmp_path):
    first = load_checkpoint(saved).sha256
    assert len(first) == 64
    again = save_checkpoint(model.card, saved_weights(model), tmp_path / "again")
    assert load_checkpoint(again).sha256 == first
    renamed = save_checkpoint(replace(model.card, name="other"), saved_weights(model), tmp_path / "renamed")
    assert load_checkpoint(renamed).sha256 != first
    weights = {k: v.clone() for k, v in saved_weights(model).items()}
    weights["final_conv.bias"][0] += 1e-6
    assert load_checkpoint(save_checkpoint(model.card, weights, tmp_path / "moved")).sha256 != first


# ---- refusals


def test_missing_file_is_refused_by_name(tmp_path, saved):
    with pytest.raises(BridgeError, match=r"nowhere\.safetensors does not exist"):
        load_checkpoint(tmp_path / "nowhere")
    saved.with_suffix(".json").unlink()
    with pytest.raises(BridgeError, match=r"tiny-v1\.2\.json does not exist"):
        load_checkpoint(saved)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_corrupt_weights_are_refused(saved, content):
    saved.write_bytes(content)
    with pytest.raises(BridgeError, match="cannot be read") as caught:
        load_checkpoint(saved)
    assert "\n" not in str(caught.value)


def test_truncated_weights_are_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(BridgeError, match="cannot be read"):
        load_checkpoint(saved)


def test_card_that_is_no_card_is_refused(saved):
    for text in ("{", "{}", "[1]"):
        saved.with_suffix(".json").write_text(text)
        with pytest.raises(BridgeError):
            load_checkpoint(saved)


def test_card_of_another_version_is_refused_with_both(saved):
    edit_card(saved, card_version=7)
    with pytest.raises(BridgeError, match=r"version 7 .* reads 1"):
        load_checkpoint(saved)


def test_weights_of_another_network_are_refused(model, saved):
    edit_card(saved, network={**model.card.network.card, "base": 16})
    with pytest.raises(BridgeError, match=r"tiny: \d+ tensors differ .* init_conv"):
        load_checkpoint(saved)


def test_missing_and_unknown_tensors_are_refused(model):
    weights = saved_weights(model)
    weights.pop("final_conv.bias")
    with pytest.raises(BridgeError, match=r"1 tensors differ .* final_conv\.bias"):
        make_model(model.card, weights, "")
    with pytest.raises(BridgeError, match="first extra"):
        make_model(model.card, saved_weights(model) | {"extra": torch.zeros(1)}, "")


def test_unknown_shipped_name_lists_those_that_exist():
    with pytest.raises(BridgeError, match="shipped checkpoints"):
        load_checkpoint("no-such-model")
    assert all(isinstance(name, str) for name in shipped_checkpoints())


# ---- AS-Bridge's own layout


def published(tmp_path: Path, **extra: object) -> Path:
    config = NetworkConfig(base=8, multipliers=(1, 2, 4), blocks=2, time_dim=16)
    card = make_card(network=config)
    weights = {f"denoise_fn.{k}": v for k, v in random_model(card).network.state_dict().items()}
    m = torch.linspace(0.001, 0.999, 1000)
    path = tmp_path / "asbridge.pth"
    torch.save({"model": weights | {"m_t": m, "variance_t": 2 * (m - m**2) * 0.5}, "epoch": 3, **extra}, path)
    return path


def test_published_layout_tells_its_network_and_schedule(tmp_path):
    model = import_asbridge(published(tmp_path), "grad")
    assert model.card.network == NetworkConfig(base=8, multipliers=(1, 2, 4), blocks=2, time_dim=16)
    assert model.card.bridge.parameters["max_var"] == pytest.approx(0.5)
    assert model.card.objective.name == "grad"
    assert model.card.grid == "cutout"
    assert model.card.clamp == (-1.0, 1.0)
    assert model.card.provenance["epoch"] == 3


def test_imported_weights_save_as_safetensors(tmp_path):
    model = import_asbridge(published(tmp_path))
    again = load_checkpoint(save_checkpoint(model.card, saved_weights(model), tmp_path / "converted"))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(model.predict(x, x, 9, TO_LSST), again.predict(x, x, 9, TO_LSST))


class Bomb:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


def test_pickled_code_is_refused_and_never_run(tmp_path):
    trace = tmp_path / "executed"
    path = published(tmp_path, bomb=Bomb(trace))
    with pytest.raises(BridgeError, match=r"asbridge\.pth.*weights"):
        import_asbridge(path)
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(Bomb(trace), protocol=2))
    with pytest.raises(BridgeError, match=r"plain\.pth"):
        import_asbridge(plain)
    assert not trace.exists()
    # the bomb works: an unguarded load would have run it
    pickle.loads(plain.read_bytes())
    assert trace.exists()


def test_other_pth_files_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(BridgeError, match="not an AS-Bridge checkpoint"):
        import_asbridge(path)
    torch.save([torch.zeros(3)], path)
    with pytest.raises(BridgeError, match="not an AS-Bridge checkpoint"):
        import_asbridge(path)
    with pytest.raises(BridgeError, match=r"gone\.pth"):
        import_asbridge(tmp_path / "gone.pth")


# ---- the network's view


def test_wanted_survey_is_zero_in_the_input():
    scaled, x1 = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    both = network_input(scaled, x1, torch.tensor([0, 1]))
    assert both.shape == (2, 9, 4, 4)
    assert torch.equal(both[:, :3], scaled)
    assert torch.equal(both[0, 6:], x1[0])  # euclid->lsst: the lsst slot is empty
    assert torch.equal(both[1, 3:6], x1[1])
    assert not both[0, 3:6].any()
    assert not both[1, 6:].any()


def test_every_direction_has_its_head(model):
    x = torch.randn(2, 3, 16, 16)
    for index, direction in enumerate(make_card().problem.directions):
        u, v = (float(column[40]) for column in model.card.objective.input_table(model.card.bridge))
        inputs = network_input(x * u + x * v, x, torch.tensor([index]))
        heads = model.network(inputs, torch.full((2,), 40), torch.full((2,), index))
        torch.testing.assert_close(model.predict(x, x, 40, direction), heads[:, 3 * index : 3 * index + 3])


def test_weights_prepared_for_bfloat16_predict_what_autocast_does_to_the_bit(model):
    x = torch.randn(2, 3, 16, 16)
    channels_last(model.network)
    before = model.predict(x, x, 40, TO_EUCLID, "bfloat16")
    assert torch.equal(model.to("cpu", "bfloat16").predict(x, x, 40, TO_EUCLID, "bfloat16"), before)


def test_weights_prepared_for_bfloat16_are_refused_in_float32(model):
    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(BridgeError, match=r"precision is float32 but the weights are torch\.bfloat16; load"):
        model.to("cpu", "bfloat16").predict(x, x, 40, TO_EUCLID)


def test_a_prediction_does_not_depend_on_the_other_windows_of_its_batch(model):
    x = torch.randn(3, 3, 16, 16)
    for precision in ("float32", "bfloat16"):
        together = model.predict(x, x, 40, TO_EUCLID, precision)
        torch.testing.assert_close(together[1:2], model.predict(x[1:2], x[1:2], 40, TO_EUCLID, precision))


# ---- conditions


def test_stating_the_conditions_later_leaves_the_identity_of_a_checkpoint(model, tmp_path):
    seen = ConditionRanges({"euclid": {"fwhm": {"VIS": (0.12, 0.19)}}})
    weights = model.network.state_dict()
    bare, stated, whole, other = (
        load_checkpoint(save_checkpoint(card, weights, tmp_path / name))
        for name, card in {
            "bare": model.card,
            "stated": replace(model.card, conditions=seen),
            "whole": replace(model.card, patch="tile"),
            "other": replace(model.card, name="other"),
        }.items()
    )
    assert stated.card.conditions == seen and bare.card.conditions is None
    assert (whole.card.patch, bare.card.patch) == ("tile", 64)
    assert stated.sha256 == whole.sha256 == bare.sha256 != other.sha256


@pytest.mark.parametrize(
    ("name", "before", "noise"),
    [("mosaic-v2", "a6349fde", (0.285, 0.2926, 0.4611)), ("cutout-v1", "22dea5a1", (1.312, 1.347, 2.123))],
)
def test_shipped_cards_state_their_training_and_are_the_checkpoints_that_they_were(name, before, noise):
    check_shipped(name)
    model = load_checkpoint(name)
    assert model.sha256.startswith(before)
    assert model.card.conditions is not None
    lsst = model.card.conditions.nominal_of("lsst", ("g", "r", "i"))
    assert lsst.fwhm == (0.77, 0.73, 0.71) and lsst.wing == (0.0, 0.0, 0.0) and lsst.noise == noise
    euclid = model.card.conditions.nominal_of("euclid", ("VIS",))
    assert (euclid.fwhm, euclid.noise, euclid.correlation) == ((0.16,), (2.022,), (0.0,))
