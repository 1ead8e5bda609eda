from __future__ import annotations

import pytest
import torch
from torch import Tensor

from surveybridge.kernels.accumulate import Accumulated, accumulate
from tests.kernels.guards import guarded, guarded_results

SHAPES = [(1, 1, 1), (3, 2, 7, 5), (2, 8, 3, 23, 41), (5, 5, 1, 513), (1, 33, 2, 16, 16)]


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    tensor = guarded(shape)[0]
    return tensor.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def same_bits(a: Accumulated, b: Accumulated) -> bool:
    return all(
        x is y is None or (x is not None and y is not None and torch.equal(x.view(torch.int32), y.view(torch.int32)))
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_and_closest_sample_are_those_of_float64(shape):
    samples, target = drawn(shape) * 40 + 1000, drawn((shape[0], *shape[2:]), 1) * 40 + 1000
    found, exact = accumulate(samples, target), samples.double()
    torch.testing.assert_close(found.mean.double(), exact.mean(1), rtol=3e-7, atol=0)
    deviation = ((exact - exact.mean(1, keepdim=True)) ** 2).sum(1)
    torch.testing.assert_close(found.m2.double(), deviation, rtol=1e-3, atol=1e-6 * shape[1])
    assert found.least is not None
    torch.testing.assert_close(found.least, ((samples - target[:, None]) ** 2).amin(1), rtol=0, atol=0)


def test_the_scatter_of_faint_noise_on_a_bright_pixel_survives():
    # the naive formula, mean of squares less square of mean, has no digit left here in float32
    samples = 1e5 + drawn((1, 64, 100))
    torch.testing.assert_close(accumulate(samples).m2.double() / 63, samples.double().var(1), rtol=1e-2, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_target", [False, True])
def test_interpreted_triton_equals_naive_within_its_nan_guard_bands(shape, with_target):
    samples, result = drawn(shape), (shape[0], *shape[2:])
    target = drawn(result, 1) if with_target else None
    expected = accumulate(samples, target, impl="naive")
    with guarded_results(result, 3 if with_target else 2):
        found = accumulate(samples, target, impl="triton")
    assert same_bits(expected, found)
    assert not any(tensor.isnan().any() for tensor in found if tensor is not None)


@pytest.mark.parametrize("impl", ["naive", "triton"])
@pytest.mark.parametrize("with_target", [False, True])
def test_samples_in_parts_give_the_bits_of_all_in_one(impl, with_target):
    samples = drawn((2, 9, 3, 23, 41)) * 40 + 1000
    target = drawn((2, 3, 23, 41), 1) * 40 + 1000 if with_target else None
    found, count = None, 0
    for size in (1, 4, 2, 2):
        part = samples[:, count : count + size]
        with guarded_results((2, 3, 23, 41), (3 if with_target else 2) * (impl == "triton")):
            before, found = found, accumulate(part, target, since=found, count=count, impl=impl)
        assert before is None or not same_bits(before, found)  # what was found so far stays as it was
        count += size
    assert found is not None and same_bits(accumulate(samples, target), found)


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_samples_may_lie_first_and_nan_stays_nan(impl):
    samples = drawn((2, 4, 3, 5))
    samples[1, 2, 0, 0] = torch.nan
    first = samples.transpose(0, 1).contiguous()  # [K, P, ...]
    found = accumulate(first.transpose(0, 1), samples[:, 0].contiguous(), impl=impl)
    assert found.least is not None
    for tensor in found:
        assert tensor is not None and tensor.isnan().sum() == 1 and tensor[1, 0, 0].isnan()
        assert tensor.is_contiguous()
    assert int((found.least == 0).sum()) == found.least.numel() - 1


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_no_window_gives_no_moments(impl):
    assert accumulate(torch.empty(0, 4, 3, 5), impl=impl).mean.shape == (0, 3, 5)


@pytest.mark.parametrize(
    ("samples", "target", "message"),
    [
        (torch.zeros(2, 0, 3), None, "samples are torch.float32 [2, 0, 3] but must be float32 [P, K, ...]"),
        (torch.zeros(2, 4, 3).double(), None, "samples are torch.float64 [2, 4, 3]"),
        (
            torch.zeros(2, 4, 3),
            torch.zeros(2, 4),
            "target is torch.float32 [2, 4] but must be float32 [2, 3]",
        ),
        (torch.zeros(2, 4, 3), torch.zeros(2, 3, device="meta"), "target is on meta but samples on cpu"),
    ],
)
def test_a_wrong_request_is_refused_with_both_values(samples, target, message):
    with pytest.raises(ValueError) as refused:
        accumulate(samples, target)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_samples_that_do_not_go_on_from_those_before_are_refused():
    samples, before = torch.zeros(2, 4, 3), accumulate(torch.zeros(2, 4, 5))
    for since, count, target, message in (
        (None, 3, None, "3 samples before these, unknown"),
        (before, 0, None, "0 samples before these, known"),
        (before, 4, None, "shape [2, 5], no target, but these [2, 3], no target"),
        (accumulate(samples), 4, torch.zeros(2, 3), "[2, 3], no target, but these [2, 3], a target"),
    ):
        with pytest.raises(ValueError) as refused:
            accumulate(samples, target, since=since, count=count)
        assert message in str(refused.value)
