"""What a sample costs, counted, not timed: a change that makes it dearer must say so here."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import launches
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.network import NetworkConfig, UNet, bfloat16_is_fast
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.translate import window_samples
from surveybridge.kernels.pixel_norm import cpp
from tests.bridge_core.models import TINY, TO_EUCLID, make_card, random_model

WINDOWS, SIDE = 4, 64


@pytest.fixture(scope="module")
def model() -> Model:
    return load_checkpoint().to("cpu", "bfloat16")


def one_call(model: Model) -> tuple[Counter[str], int]:
    """Operators of one network evaluation by name, and the bytes that it allocates a window."""
    predictor = model.predictor(torch.randn(WINDOWS, 3, SIDE, SIDE), TO_EUCLID, [100], "bfloat16")
    state = torch.randn(WINDOWS, 3, SIDE, SIDE)
    predictor(0, state)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        predictor(0, state)
    averages = recorded.key_averages()
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in averages)
    return Counter({event.key.removeprefix("aten::"): event.count for event in averages}), allocated // WINDOWS


def flops(network: UNet) -> int:
    """Of one evaluation of one window."""
    inputs = torch.zeros(1, network.config.input_channels, SIDE, SIDE)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.eval()(inputs, torch.zeros(1), torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops()


def test_a_network_call_has_no_more_operators_than_before(model, monkeypatch):
    monkeypatch.setattr(cpp, "loaded", lambda: False)  # else each norm, with FiLM and SiLU, is one operator
    operators, _ = one_call(model)
    most = {"mkldnn_convolution": 39, "native_layer_norm": 29, "add": 28, "cat": 3, "addmm": 14}
    in_place = {"mul_": 14, "add_": 14, "silu_": 29, "mul": 0, "silu": 0}
    assert {name: operators[name] for name in most | in_place} == most | in_place
    # weights lie in the type that they are used in, and the input is written in it
    assert operators["_to_copy"] <= 14 + (0 if bfloat16_is_fast() else 4 * 39)
    assert operators["clone"] + operators["contiguous"] <= 4


def test_a_network_call_allocates_no_more_than_six_megabytes_a_window(model):
    _, allocated = one_call(model)
    assert 1 << 20 < allocated < (6.5e6 if bfloat16_is_fast() else 14e6)


def test_an_evaluation_on_a_gpu_launches_half_of_what_autocast_does_and_moves_two_fifths_of_the_bytes():
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    before, after = (launches.count(512, SIDE, way) for way in ("autocast", "fused"))
    assert before.kernels.total() == 285
    assert before.bytes / 512 == pytest.approx(30.4e6, rel=0.01)
    # nothing is cast, nothing is normalised or activated beside the kernel, and of the sums only the residuals remain
    assert after.kernels == {
        "conv2d": 39, "bias": 39, "pixel_norm_silu": 29, "linear": 14, "add": 14,
        "cat": 3, "upsample_nearest2d": 2, "pixel_unshuffle": 1, "pixel_shuffle": 1,
    }  # fmt: skip
    assert after.bytes / 512 < 11.8e6


def test_with_the_kernel_of_convolutions_it_launches_37_and_moves_a_sixth_of_the_bytes():
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    found = launches.count(512, SIDE, "convolved")
    # a norm for each skip connection, and nothing else: no copy, cast, sum, concatenation, or change of layout
    assert found.kernels == {"conv3x3": 34, "pixel_norm_silu": 3}
    assert found.kernels.total() <= 60
    assert 4e6 < found.bytes / 512 < 5e6


@pytest.mark.parametrize(("norm", "cast"), [("pixel", False), ("group", True)])
def test_weights_that_are_rounded_to_bfloat16_need_no_autocast_but_those_of_group_norm(norm, cast):
    rounded = random_model(make_card(network=replace(TINY, norm=norm))).to("cpu", "bfloat16")
    seen: list[tuple[bool, torch.dtype]] = []
    rounded.network.final_conv.register_forward_hook(
        lambda module, given, out: seen.append((torch.is_autocast_enabled("cpu"), given[0].dtype))
    )
    rounded.predict(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), 40, TO_EUCLID, "bfloat16")
    assert seen == [(cast, torch.bfloat16)]


def test_the_default_does_a_five_hundredth_of_the_arithmetic_of_the_published_sampler(model):
    own, published = flops(load_checkpoint().network), flops(UNet(NetworkConfig()))
    assert published == pytest.approx(12.6e9, rel=0.01)
    assert own == pytest.approx(0.835e9, rel=0.01)
    assert 200 * published / (Sampling().steps * own) > 500


def test_a_batch_of_samples_calls_the_network_once_a_step(model):
    how, calls = Sampling(samples=2, batch=WINDOWS), []
    hook = model.network.final_conv.register_forward_hook(lambda *_: calls.append(1))
    window_samples(model, TO_EUCLID, torch.zeros(WINDOWS // 2, 3, 32, 32), [(0, 0), (0, 40)], how)
    hook.remove()
    assert len(calls) == how.steps == 6


def test_the_network_is_one_graph_to_the_compiler():
    torch._dynamo.reset()
    network = UNet(TINY).eval()  # of the layers of any other
    explained = torch._dynamo.explain(network.given)(
        torch.zeros(1, TINY.input_channels, 16, 16), torch.zeros(1, TINY.time_dim)
    )
    assert explained.graph_count == 1
    assert explained.graph_break_count == 0
