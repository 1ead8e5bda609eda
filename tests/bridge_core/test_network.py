"""Shape, options and refusals of the U-Net (its numbers are held by the golden test)."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from surveybridge.bridge_core import network
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.network import Conv2d, NetworkConfig, UNet, channels_last

SMALL = {"base": 8, "multipliers": (1, 2), "blocks": 1, "time_dim": 16}


def make(**changes) -> UNet:
    torch.manual_seed(0)
    return UNet(NetworkConfig(**{**SMALL, **changes})).eval().requires_grad_(False)


def run(network: UNet, x: torch.Tensor, t: int = 300, direction: int = 1) -> torch.Tensor:
    return network(x, torch.full((len(x),), t), torch.full((len(x),), direction))


def test_defaults_are_asbridges_twelve_million_parameters():
    network = UNet()
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(12.03e6, abs=0.005e6)
    assert network.init_conv.in_channels == 9
    assert network.final_conv.out_channels == 6
    assert {m.num_groups for m in network.modules() if isinstance(m, torch.nn.GroupNorm)} == {8}


@pytest.mark.parametrize("norm", ["group", "pixel"])
@pytest.mark.parametrize("stem", [1, 2])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 4)])
def test_nine_channels_go_in_and_six_come_out_at_the_same_size(norm, stem, multipliers):
    out = run(make(norm=norm, stem=stem, multipliers=multipliers), torch.randn(2, 9, 16, 24))
    assert out.shape == (2, 6, 16, 24)
    assert out.isfinite().all()


def test_direction_and_time_change_the_result():
    network, x = make(), torch.randn(1, 9, 16, 16)
    base = run(network, x)
    assert not torch.allclose(base, run(network, x, direction=0), atol=1e-3)
    assert not torch.allclose(base, run(network, x, t=700), atol=1e-3)


def test_every_row_has_its_own_time_and_direction():
    network, x = make(), torch.randn(3, 9, 16, 16)
    t, direction = torch.tensor([1, 500, 999]), torch.tensor([0, 1, 0])
    together = network(x, t, direction)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], run(network, x[i : i + 1], int(t[i]), int(direction[i])))


def test_pixel_norm_does_not_let_far_pixels_in_and_group_norm_does():
    x = torch.randn(1, 9, 16, 128)
    changed = x.clone()
    changed[..., :8] += 100.0
    for norm, same in (("pixel", True), ("group", False)):
        network = make(norm=norm)
        near, far = run(network, x), run(network, changed)
        assert not torch.allclose(near[..., :8], far[..., :8], atol=1e-2)
        assert torch.allclose(near[..., 80:], far[..., 80:], atol=1e-6) == same


def test_pixel_norm_makes_a_window_equal_to_its_part_of_a_wider_one():
    network, x = make(norm="pixel", stem=2), torch.randn(1, 9, 32, 160)
    torch.testing.assert_close(run(network, x[..., :128])[..., :64], run(network, x)[..., :64], rtol=0, atol=1e-5)


def test_stem_of_two_sees_pixel_blocks_and_has_a_quarter_of_the_positions():
    network = make(stem=2)
    assert network.init_conv.in_channels == 36
    assert network.final_conv.out_channels == 24
    shapes: list[torch.Size] = []
    network.init_conv.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    assert run(network, torch.randn(1, 9, 16, 24)).shape == (1, 6, 16, 24)
    assert shapes == [(1, 8, 8, 12)]


@pytest.mark.parametrize(("stem", "multiple"), [(1, 4), (2, 8)])
def test_window_that_does_not_halve_is_refused_with_both_numbers(stem, multiple):
    network = make(multipliers=(1, 2, 4), stem=stem)
    assert network.config.window_multiple == multiple
    with pytest.raises(BridgeError, match=rf"16 x 18 .* multiples of {multiple}"):
        run(network, torch.zeros(1, 9, 16, 18))


def test_memory_format_changes_nothing():
    x = torch.randn(2, 9, 16, 16)
    plain = run(make(norm="pixel"), x)
    torch.testing.assert_close(run(channels_last(make(norm="pixel")), x), plain, rtol=1e-5, atol=1e-5)


def test_bfloat16_autocast_stays_near_float32():
    network, x = make(norm="pixel", stem=2), torch.randn(2, 9, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = run(network, x)
    assert out.dtype == torch.bfloat16
    assert float((out.float() - run(network, x)).abs().max()) < 0.05


def test_config_goes_through_json():
    config = NetworkConfig(base=16, multipliers=(1, 3), stem=2, norm="pixel")
    assert NetworkConfig.from_card(json.loads(json.dumps(config.card))) == config


def test_unknown_norm_is_refused():
    with pytest.raises(BridgeError, match="'batch'"):
        UNet(NetworkConfig(norm="batch"))


@pytest.mark.parametrize(("stem", "multipliers", "blocks"), [(1, (1, 2), 1), (2, (1, 2), 1), (2, (1, 1, 2), 1)])
def test_no_pixel_beyond_the_reach_is_seen_and_nearly_all_within(stem, multipliers, blocks):
    config = NetworkConfig(base=8, multipliers=multipliers, blocks=blocks, time_dim=16, norm="pixel", stem=stem)
    torch.manual_seed(0)
    network = UNet(config).eval()
    size = 2 * config.reach + 3 * config.window_multiple
    size += -size % config.window_multiple
    x = torch.randn(1, 9, size, size, requires_grad=True)
    t, direction = torch.tensor([5]), torch.tensor([1])
    middle = size // 2
    network(x, t, direction)[..., middle, middle].sum().backward()
    assert x.grad is not None
    seen = torch.nonzero(x.grad.abs().sum((0, 1)))
    distance = int((seen - middle).abs().max())
    assert config.reach - config.window_multiple <= distance <= config.reach


def test_shipped_network_sees_167_pixels():
    assert NetworkConfig(base=32, stem=2, norm="pixel").reach == 167


@pytest.fixture
def summed_in_float32(monkeypatch):
    """This processor has no instructions for bfloat16, or has to do without."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("no oneDNN here: convolutions of bfloat16 are PyTorch's own")
    monkeypatch.setattr(network, "bfloat16_is_fast", lambda: False)


SHAPES = [(60, 32, 3, 1), (64, 64, 3, 1), (32, 32, 3, 2), (24, 8, 3, 1), (96, 32, 1, 1)]
"""Channels in and out, size and stride of convolutions of networks, large and small."""


@pytest.mark.parametrize(("given", "made", "size", "stride"), SHAPES)
def test_a_convolution_of_bfloat16_is_the_exact_sum_rounded_once(summed_in_float32, given, made, size, stride):
    torch.manual_seed(5)
    layer = Conv2d(given, made, size, stride, padding=size // 2).bfloat16()
    assert layer.bias is not None
    x = torch.randn(3, given, 16, 24).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = layer(x)
        terms = x.double(), layer.weight.double(), layer.bias.double()
        sizes = terms[0].abs(), terms[1].abs(), terms[2].abs()
        exact, size_of_terms = (F.conv2d(*values, stride, size // 2) for values in (terms, sizes))
    assert found.dtype == torch.bfloat16
    ulp = 2.0 ** (torch.frexp(exact)[1] - 8)
    assert ((found.double() - exact).abs() <= ulp / 2 + 1e-6 * size_of_terms).all()  # and what float32 loses


@pytest.mark.parametrize(("given", "made", "size", "stride"), SHAPES)
def test_its_bits_depend_neither_on_the_batch_nor_on_the_window(summed_in_float32, given, made, size, stride):
    torch.manual_seed(6)
    layer = Conv2d(given, made, size, stride, padding=size // 2).bfloat16()
    x = torch.randn(5, given, 80, 64).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        whole = layer(x)
        assert torch.equal(layer(x[3:4]), whole[3:4])
        for height, width in ((8, 8), (12, 24), (48, 40)):
            part = layer(x[:, :, 8 : 8 + height, 16 : 16 + width].contiguous(memory_format=torch.channels_last))
            top, left = 8 // stride, 16 // stride
            there = whole[:, :, top : top + part.shape[2], left : left + part.shape[3]]
            assert torch.equal(part[:, :, 1:-1, 1:-1], there[:, :, 1:-1, 1:-1])


def test_a_training_step_in_bfloat16_has_the_gradients_of_one_in_float32(summed_in_float32):
    torch.manual_seed(7)
    x, gradients = torch.randn(4, 9, 32, 32), []
    for precision in (False, True):
        learner = make().train().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision):
            said = run(learner, x)
        assert said.dtype == (torch.bfloat16 if precision else torch.float32)
        said.float().square().mean().backward()
        gradients.append(
            torch.cat([weight.grad.flatten() for weight in learner.parameters() if weight.grad is not None])
        )
    assert 0 < (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()
