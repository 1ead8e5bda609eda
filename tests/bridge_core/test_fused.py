"""The network as a GPU evaluates it, in plain torch and in Triton's interpreter, next to the network itself."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from surveybridge.bridge_core import fused
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.fused import FusedUNet
from surveybridge.bridge_core.network import NetworkConfig, PixelNorm, UNet, channels_last, for_bfloat16
from tests.bridge_core.models import TO_EUCLID, make_card, random_model
from tests.kernels.guards import rounding_to_nearest

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
pytestmark = pytest.mark.long  # products in Triton's interpreter

SMALL = NetworkConfig(base=16, multipliers=(1, 2), blocks=1, time_dim=16, norm="pixel", stem=2)
OTHERS = {
    "small": SMALL,
    "as published but for the norm": replace(SMALL, base=32, multipliers=(1, 2, 4), blocks=2, stem=1),
    "one resolution": replace(SMALL, multipliers=(2,), image_channels=1),
    "told conditions": replace(SMALL, base=32, conditions=True),
}


def random_network(config: NetworkConfig) -> UNet:
    """Of random weights; those of norms, which a new network has at one, too."""
    torch.manual_seed(5)
    network = channels_last(UNet(config).eval().requires_grad_(False))
    for norm in (module for module in network.modules() if isinstance(module, PixelNorm)):
        norm.weight.normal_(1, 0.2)
        norm.bias.normal_(0, 0.2)
    return network


def images(config: NetworkConfig, n: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    """The input of a network and an embedding for each sample."""
    x = torch.randn(n, config.input_channels, h, w).contiguous(memory_format=torch.channels_last)
    return x, torch.randn(n, config.time_dim)


def interpreted(network: UNet, x: Tensor, emb: Tensor, head: int = 1) -> Tensor:
    """What the kernels give for a network in bfloat16."""
    way = FusedUNet(network, head, impl="triton")
    with torch.inference_mode(), rounding_to_nearest():
        return way(x.bfloat16(), way.films(emb.bfloat16()))


def rms_off(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_in_float32_it_is_the_network(config, head):
    network = random_network(config)
    for rows in (1, 2):
        x, emb = images(config, 2, 16, 24)
        channels = config.image_channels
        expected = network.given(x, emb[:rows])[:, head * channels : (head + 1) * channels]
        way = FusedUNet(network, head, impl="naive")
        torch.testing.assert_close(way(x, way.films(emb[:rows])), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_kernels_in_bfloat16_are_as_near_to_float32_as_torch_in_bfloat16(config):
    network = random_network(config)
    x, emb = images(config, 2, 4, 16)
    x, emb = x.bfloat16().float(), emb.bfloat16().float()
    expected = network.given(x, emb)[:, config.image_channels :]
    rounded = for_bfloat16(copy.deepcopy(network))
    torchs = rms_off(rounded.given(x.bfloat16(), emb.bfloat16())[:, config.image_channels :], expected)
    found = interpreted(rounded, x, emb)
    assert found.shape == expected.shape and found.dtype == torch.bfloat16
    print(f"rms off float32: kernels {rms_off(found, expected):.4f}, torch {torchs:.4f}")
    assert rms_off(found, expected) < min(0.01, torchs)


def test_the_shipped_network_is_as_near_to_float32():
    network = channels_last(load_checkpoint().network)
    x, emb = images(network.config, 1, 8, 24)
    emb = network.embed(torch.full((1,), 100), torch.ones(1, dtype=torch.long))
    expected = network.given(x, emb)[:, 3:]
    rounded = for_bfloat16(copy.deepcopy(network))
    torchs = rms_off(rounded.given(x.bfloat16(), emb.bfloat16())[:, 3:], expected)
    off = rms_off(interpreted(rounded, x, emb), expected)
    print(f"rms off float32: kernels {off:.4f}, torch {torchs:.4f}")
    assert off < min(0.01, torchs)


def test_a_sample_has_the_same_bits_in_every_batch():
    network = for_bfloat16(random_network(SMALL))
    x, emb = images(SMALL, 36, 4, 4)  # 144 pixels, of which a program has 128
    whole = interpreted(network, x, emb)
    for batch in (1, 5):
        assert torch.equal(interpreted(network, x[36 - batch :], emb[36 - batch :]), whole[36 - batch :])


def test_a_cropped_window_has_the_same_bits_beyond_the_reach():
    config = replace(SMALL, stem=1)
    network = for_bfloat16(random_network(config))
    x, emb = images(config, 1, 2, 96)
    whole, left = interpreted(network, x, emb), 24
    cropped = interpreted(network, x[..., left:], emb)
    reach = config.reach
    assert 0 < reach < 60
    assert torch.equal(cropped[..., reach:], whole[..., left + reach :])
    assert not torch.equal(cropped, whole[..., left:])


def test_a_prediction_on_cuda_takes_the_kernels(monkeypatch):
    model = random_model(make_card(network=SMALL)).to("cpu", "bfloat16")
    x = torch.randn(2, 3, 8, 12)
    predictor = model.predictor(x, TO_EUCLID, [40, 80], "bfloat16")
    expected = [predictor(step, x) for step in (0, 1)]
    for module in ("bridge_core.fused", "kernels.conv3x3", "kernels.pixel_norm"):  # as on CUDA
        monkeypatch.setattr(f"surveybridge.{module}.choose_impl", lambda impl, device: "triton")
    monkeypatch.setattr(UNet, "given", None)
    predictor = model.predictor(x, TO_EUCLID, [40, 80], "bfloat16")
    found = [predictor(step, x) for step in (0, 1)]
    for step in (0, 1):
        assert found[step].stride() == expected[step].contiguous().stride()
        assert rms_off(found[step], expected[step].float()) < 0.03
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("change", "precision"),
    [
        ({"norm": "group"}, "bfloat16"),
        ({"base": 8}, "bfloat16"),
        ({"base": 48}, "bfloat16"),
        ({"multipliers": (1, 16)}, "bfloat16"),
        ({}, "float32"),
    ],
)
def test_a_network_that_the_kernels_do_not_fit_goes_on_as_before(change, precision, monkeypatch):
    network = random_model(make_card(network=replace(SMALL, **change))).to("cpu", precision).network
    fitting = random_model(make_card(network=SMALL)).to("cpu", "bfloat16").network
    cpu = torch.device("cpu")
    assert not fused.takes(fitting, cpu)
    monkeypatch.setattr(fused, "choose_impl", lambda impl, device: "triton")  # as on CUDA
    assert fused.takes(fitting, cpu) and not fused.takes(network, cpu)


def test_a_window_that_cannot_be_halved_is_refused():
    with pytest.raises(
        BridgeError, match="window of 6 x 8 pixels but this network halves them down from multiples of 4"
    ):
        interpreted(for_bfloat16(random_network(SMALL)), *images(SMALL, 1, 6, 8))
