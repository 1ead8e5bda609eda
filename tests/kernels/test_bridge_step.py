from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from surveybridge.kernels.bridge_step import StepCoefficients, StepTable, bridge_step
from surveybridge.kernels.dispatch import Impl
from surveybridge.kernels.sky_noise import SkyNoise, sky_noise
from tests.kernels.guards import guarded, guarded_results

pytestmark = pytest.mark.long

K = StepCoefficients(p=1.3, q=-0.53, r=0.217, h=0.117, a=0.33, b=0.41, c=0.23, d=0.31, u=1.7, v=-0.61)
SHAPES = [(1, 1, 1, 1), (3, 3, 23, 41), (2, 4, 16, 32), (1, 2, 1, 513), (5, 1, 27, 19), (2, 6, 9, 17)]
ROOT = Path(__file__).parents[2]


def inputs(shape: tuple[int, int, int, int], seed: int = 0) -> dict[str, Tensor]:
    """The five tensors, each in a layout that callers have, inside NaN guard bands."""
    n, c, h, w = shape
    layouts = {
        "x_t": guarded(shape)[0],
        "pred": guarded((n, 2 * c, h, w))[0][:, c:],  # a network's second head
        "x1": guarded((n, h, w, c))[0].permute(0, 3, 1, 2),  # channels last
        "x0_prev": guarded((n, c, w, h))[0].transpose(2, 3),  # needs a copy
        "z": guarded((c, n, h, w))[0].transpose(0, 1),
    }
    generator = torch.Generator().manual_seed(seed)
    for tensor in layouts.values():
        tensor.copy_(torch.randn(shape, generator=generator))
    return layouts


def at(step: int, k: StepCoefficients = K) -> tuple[StepTable, int]:
    """A table with `k` at `step`, and NaN at all other steps."""
    nan = StepCoefficients(*[torch.nan] * len(k))
    return StepTable.of([nan] * step + [k, nan]), step


def sky(n: int) -> SkyNoise:
    return SkyNoise(2**63 + 5, 3, torch.arange(n), torch.arange(n) * 40 - 7, torch.arange(n) * -50 + 2**31)


def numpy_step(t: dict[str, Tensor], k: StepCoefficients, clamp: tuple[float, float] | None) -> tuple[np.ndarray, ...]:
    """The update in NumPy's float32, one rounding an operation, in the order that the docstrings state."""
    p, q, r, h, a, b, c, d = (np.float32(value) for value in k[:8])
    x_t, pred, x1, prev, z = (t[name].numpy() for name in ("x_t", "pred", "x1", "x0_prev", "z"))
    x0 = (p * (x_t + (r * x1))) + (q * pred)
    if clamp is not None:
        x0 = np.clip(x0, np.float32(clamp[0]), np.float32(clamp[1]))
    wanted = x0 + h * (x0 - prev)
    return (((a * x_t) + (b * wanted)) + (c * x1)) + (d * z), x0


def same_bits(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(left.view(torch.int32), right.view(torch.int32)) for left, right in zip(a, b, strict=True))


@pytest.mark.parametrize("clamp", [None, (-1.0, 1.0)])
def test_naive_rounds_once_an_operation_in_the_stated_order(clamp):
    t = inputs((3, 3, 23, 41))
    x_s, x0 = bridge_step(
        t["x_t"], t["pred"], t["x1"], *at(0), noise=t["z"], clamp=clamp, x0_prev=t["x0_prev"], impl="naive"
    )
    expected_s, expected_0 = numpy_step(t, K, clamp)
    assert x0.numpy().tobytes() == expected_0.tobytes()
    assert x_s.numpy().tobytes() == expected_s.tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("noise", ["none", "given", "sky"])
def test_interpreted_triton_equals_naive_within_its_nan_guard_bands(shape, noise):
    t = inputs(shape)
    z = {"none": None, "given": t["z"], "sky": sky(shape[0])}[noise]
    for clamp, prev in product((None, (-0.7, 0.8)), (None, t["x0_prev"])):
        k = K._replace(d=0.0 if z is None else K.d, h=0.0 if prev is None else K.h)

        def step(impl: Impl, k=k, clamp=clamp, prev=prev) -> tuple[Tensor, Tensor]:
            return bridge_step(t["x_t"], t["pred"], t["x1"], *at(9, k), noise=z, clamp=clamp, x0_prev=prev, impl=impl)

        expected = step("naive")
        with guarded_results(shape, 2):
            found = step("triton")
        assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(expected, found, strict=True))
        assert same_bits(expected, found)
        assert not found[0].isnan().any() and not found[1].isnan().any()


@pytest.mark.parametrize("impl", ["naive", "triton"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_step_in_place_writes_the_networks_next_input_and_nothing_beside_it(impl, channels_last):
    t, noise = inputs((3, 3, 23, 41)), sky(3)
    expected = bridge_step(t["x_t"], t["pred"], t["x1"], *at(4), noise=noise, clamp=(-1, 1), x0_prev=t["x0_prev"])
    x, x0 = t["x_t"].clone(), t["x0_prev"].contiguous()
    stacked = torch.full((3, 9, 23, 41), torch.nan)
    if channels_last:
        stacked = stacked.contiguous(memory_format=torch.channels_last)
    found = bridge_step(
        x, t["pred"], t["x1"], *at(4), noise=noise, clamp=(-1, 1), x0_prev=x0, out=(x, x0), next_input=stacked[:, :3],
        impl=impl,
    )  # fmt: skip
    assert found[0] is x and found[1] is x0
    assert same_bits(found, expected)
    u, v = np.float32(K.u), np.float32(K.v)
    wanted = u * expected[0].numpy() + v * t["x1"].numpy()
    assert stacked[:, :3].numpy().tobytes() == wanted.tobytes()
    assert stacked[:, 3:].isnan().all()


def test_the_next_input_in_bfloat16_is_rounded_to_the_nearest():
    t, half = inputs((2, 3, 8, 9)), torch.empty(2, 3, 8, 9, dtype=torch.bfloat16)
    whole = torch.empty(2, 3, 8, 9)
    for target in (half, whole):
        bridge_step(t["x_t"], t["pred"], t["x1"], *at(0), noise=t["z"], x0_prev=t["x0_prev"], next_input=target)
    assert torch.equal(half, whole.bfloat16())


def test_launching_the_fused_step_calls_no_other_operator(monkeypatch):
    from surveybridge.kernels.bridge_step import triton as fused

    launches: list[tuple[object, ...]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **constants: launches.append(arguments)

    monkeypatch.setattr(fused, "bridge_step_kernel", Recorder())
    monkeypatch.setattr(fused, "check_launch", lambda kernel, device: None)
    n, c, h, w = 3, 3, 16, 16
    x, x1, x0, heads, stacked = (torch.randn(n, k * c, h, w) for k in (1, 1, 1, 2, 3))
    pred, target, clamp = heads[:, c:], stacked[:, :c], (-1.0, 1.0)
    window = torch.arange(n, dtype=torch.int32)
    noise, (table, step) = SkyNoise(1, 0, window, window, window), at(2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        bridge_step(
            x, pred, x1, table, step, noise=noise, clamp=clamp, x0_prev=x0, out=(x, x0), next_input=target,
            impl="triton",
        )  # fmt: skip
    assert len(launches) == 1
    assert [event.name for event in recorded.events()] == []


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_clamp_keeps_nan_and_bounds_infinities(impl):
    t = inputs((1, 1, 5, 7))
    t["pred"][0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    x_s, x0 = bridge_step(
        t["x_t"], t["pred"], t["x1"], *at(0, K._replace(h=0, d=0)), noise=None, clamp=(-0.5, 0.25), impl=impl
    )
    assert x0[0, 0, 0, 0].isnan() and x_s[0, 0, 0, 0].isnan()
    assert x0[0, 0, 0, 1:3].tolist() == [-0.5, 0.25]  # q is negative
    assert int(x0.isnan().sum()) == int(x_s.isnan().sum()) == 1
    assert float(x0.nan_to_num().min()) >= -0.5 and float(x0.nan_to_num().max()) <= 0.25


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_sky_noise_drawn_within_the_pass_is_the_sky_noise_drawn_before_it(impl):
    t, noise = inputs((3, 3, 23, 41)), sky(3)
    z = sky_noise(noise, 4, (3, 23, 41), impl="naive")
    within = bridge_step(
        t["x_t"], t["pred"], t["x1"], *at(4), noise=noise, clamp=(-1, 1), x0_prev=t["x0_prev"], impl=impl
    )
    before = bridge_step(
        t["x_t"], t["pred"], t["x1"], *at(0), noise=z, clamp=(-1, 1), x0_prev=t["x0_prev"], impl="naive"
    )
    assert same_bits(within, before)
    other_step = bridge_step(t["x_t"], t["pred"], t["x1"], *at(5, K._replace(h=0)), noise=noise, impl=impl)[0]
    assert not torch.equal(within[0], other_step)


def test_a_window_does_not_depend_on_its_batch():
    t, noise = inputs((3, 3, 23, 41)), sky(3)
    k = K._replace(h=0)
    together = bridge_step(t["x_t"], t["pred"], t["x1"], *at(2, k), noise=noise)
    alone = SkyNoise(noise.seed, noise.stream, noise.sample[1:2], noise.y0[1:2], noise.x0[1:2])
    single = bridge_step(t["x_t"][1:2], t["pred"][1:2], t["x1"][1:2], *at(2, k), noise=alone)
    assert same_bits((together[0][1:2], together[1][1:2]), single)


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_a_prediction_that_all_windows_have_in_common_need_not_be_copied(impl):
    t, noise, k = inputs((3, 3, 23, 41)), sky(3), K._replace(h=0)
    state, pred = (t[name][1:2].expand(3, -1, -1, -1) for name in ("x_t", "pred"))
    common = bridge_step(state, pred, t["x1"], *at(0, k), noise=noise, impl=impl)
    copies = (state.contiguous(), pred.contiguous())
    assert same_bits(common, bridge_step(*copies, t["x1"], *at(0, k), noise=noise, impl=impl))


def test_bfloat16_prediction_is_widened_before_any_arithmetic():
    # float32 only in the interpreter, which truncates bfloat16; the compiled kernel is held by test_compile
    t, k = inputs((2, 3, 8, 9)), K._replace(h=0, d=0)
    half = t["pred"].bfloat16()
    assert same_bits(
        bridge_step(t["x_t"], half, t["x1"], *at(0, k), noise=None),
        bridge_step(t["x_t"], half.float(), t["x1"], *at(0, k), noise=None),
    )


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_inputs_are_left_as_they_are_and_results_are_new_and_contiguous(impl):
    t = inputs((2, 3, 8, 9))
    before = {name: tensor.clone() for name, tensor in t.items()}
    results = bridge_step(t["x1"], t["pred"], t["x_t"], *at(0), noise=t["z"], x0_prev=t["x0_prev"], impl=impl)
    assert all(torch.equal(tensor, before[name]) for name, tensor in t.items())
    assert all(result.is_contiguous() and result.dtype == torch.float32 for result in results)


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_noise_and_previous_x0_are_not_read_where_their_coefficient_is_zero(impl):
    t = inputs((2, 3, 8, 9))
    nan, k = torch.full((2, 3, 8, 9), torch.nan), K._replace(h=0, d=0)
    with_nan = bridge_step(t["x_t"], t["pred"], t["x1"], *at(0, k), noise=nan, x0_prev=nan, impl=impl)
    assert same_bits(with_nan, bridge_step(t["x_t"], t["pred"], t["x1"], *at(0, k), noise=None, impl=impl))
    assert not with_nan[0].isnan().any()


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_an_empty_batch_gives_an_empty_batch(impl):
    x = torch.empty(0, 3, 8, 9)
    assert bridge_step(x, x, x, *at(0, K._replace(h=0)), noise=sky(0), impl=impl)[0].shape == (0, 3, 8, 9)


X = torch.zeros(2, 3, 8, 9)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: bridge_step(X, X, X[:, :2], *at(0), noise=X), "x1 has shape [2, 2, 8, 9] but x_t [2, 3, 8, 9]"),
        (lambda: bridge_step(X[0], X[0], X[0], *at(0), noise=X), "x_t has shape [3, 8, 9]"),
        (lambda: bridge_step(X, X.half(), X, *at(0), noise=X), "pred is torch.float16 but must be float32 or bfloat16"),
        (lambda: bridge_step(X.double(), X, X, *at(0), noise=X), "x_t is torch.float64 but must be float32"),
        (lambda: bridge_step(X, X, X, *at(0), noise=X), "h is 0.117 but x0_prev is None"),
        (lambda: bridge_step(X, X, X, *at(0), noise=None, x0_prev=X), "d is 0.31 but noise is None"),
        (lambda: bridge_step(X, X, X, *at(0), noise=X[:1], x0_prev=X), "noise has shape [1, 3, 8, 9] but"),
        (lambda: bridge_step(X, X, X, *at(0), noise=sky(3), x0_prev=X), "noise has 3 windows but x_t 2"),
        (lambda: bridge_step(X, X, X, *at(1 << 16), noise=sky(2), x0_prev=X), "step is 65536 but"),
        (lambda: bridge_step(X, X, X, *at(0), noise=X, x0_prev=X, clamp=(1.0, -1.0)), "clamp is (1.0, -1.0) but"),
        (lambda: bridge_step(X, X, X, at(3)[0], 5, noise=X), "step is 5 but the table has 5 rows"),
        (lambda: bridge_step(X, X, X, *at(0), noise=X, x0_prev=X, out=(X, X.mT)), "out x0 has shape [2, 3, 9, 8] but"),
        (
            lambda: bridge_step(X, X, X, *at(0), noise=X, x0_prev=X, out=(X[:, [0]].expand_as(X), X)),
            "out x_s has strides",
        ),
        (
            lambda: bridge_step(X, X, X, *at(0), noise=X, x0_prev=X, next_input=X.half()),
            "next_input is torch.float16 but",
        ),
        (lambda: bridge_step(X, X.to("meta"), X, *at(0), noise=X), "pred is on meta but x_t on cpu"),
    ],
)
def test_a_wrong_request_is_refused_with_both_values(request_: Callable[[], object], message: str):
    with pytest.raises(ValueError) as refused:
        request_()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env = plain | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


DRAW = """
import sys, torch

def draw(impl):
    from surveybridge.kernels.sky_noise import SkyNoise, sky_noise
    from tests.kernels.guards import guarded, guarded_results
    zero = torch.zeros(1, dtype=torch.int32)
    return sky_noise(SkyNoise(1, 0, zero, zero, zero), 0, (1, 2, 2), impl=impl)

sys.modules["triton"] = None
print(draw("auto").shape)
del sys.modules["triton"]
for name in [name for name in sys.modules if name.startswith(("surveybridge", "tests"))]:
    del sys.modules[name]
print(draw("triton").shape)
"""


def test_kernels_work_without_triton_and_with_it_on_a_cpu_outside_the_interpreter_it_is_refused_with_a_remedy():
    done = python(DRAW)
    assert "torch.Size([1, 1, 2, 2])" in done.stdout, done.stderr
    assert done.returncode == 1
    assert "ValueError: impl is 'triton' but the tensors are on cpu, not cuda; use impl='naive'" in done.stderr
