from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from surveybridge.kernels.blend import blend
from tests.kernels.guards import guarded_results

# size, stride, margin; box
CASES = [
    (64, 40, 8, (0, 80, 3, 77)),
    (16, 16, 0, (-513, -480, 7, 31)),
    (32, 9, 4, (100, 101, -50, 13)),
    (8, 3, 1, (-5, 6, 0, 1)),
]


def taper_of(size: int, stride: int, margin: int) -> Tensor:
    used = torch.arange(size - 2 * margin, dtype=torch.float64)
    ramp = torch.minimum(used, used.flip(0)) + 1
    zero = torch.zeros(margin, dtype=torch.float64)
    return torch.cat([zero, (ramp / (size - 2 * margin - stride + 1)).clamp(max=1), zero])


def windows(size: int, stride: int, box: tuple[int, int, int, int]) -> list[tuple[int, int]]:
    """All corners of the grid whose windows touch the box, and some further off."""
    y0, y1, x0, x1 = box
    rows = range((y0 - size) // stride * stride, y1 + 2 * stride, stride)
    return [(y, x) for y in rows for x in range((x0 - size) // stride * stride, x1 + 2 * stride, stride)]


def moments(count: int, bands: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    shape = (count, bands, size, size)
    return torch.randn(shape, generator=generator) * 100, torch.rand(shape, generator=generator) + 0.1


def same_bits(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return all(np.array_equal(x.numpy(), y.numpy(), equal_nan=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("size", "stride", "margin", "box"), CASES)
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_interpreted_triton_equals_naive_within_its_nan_guard_bands(size, stride, margin, box, share):
    corners = windows(size, stride, box)
    kept = torch.randperm(len(corners), generator=torch.Generator().manual_seed(1))[: round(share * len(corners))]
    corners = [corners[i] for i in kept.tolist()]  # shuffled, with holes
    mean, variance = moments(len(corners), 2, size)
    taper = taper_of(size, stride, margin)
    expected = blend(mean, variance, corners, taper, box, stride=stride, impl="naive")
    result = (2, box[1] - box[0], box[3] - box[2])
    with guarded_results(result, 2):
        found = blend(mean, variance, corners, taper, box, stride=stride, impl="triton")
    assert same_bits(expected, found)
    assert bool(found[0].isnan().any()) == (share < 1 and stride * 2 >= size)


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_one_pixel_is_the_weighted_mixture_by_hand(impl):
    size, stride, margin, box = CASES[0]
    corners, taper = windows(size, stride, box), taper_of(size, stride, margin)
    mean, variance = moments(len(corners), 1, size)
    y, x = 48, 53  # four windows reach it
    over = [(i, y - top, x - left) for i, (top, left) in enumerate(corners) if 0 <= y - top < 64 and 0 <= x - left < 64]
    w = torch.stack([taper[py] * taper[px] for _, py, px in over])
    m = torch.stack([mean[i, 0, py, px].double() for i, py, px in over])
    v = torch.stack([variance[i, 0, py, px].double() for i, py, px in over])
    expected = (w * m).sum() / w.sum()
    found = blend(mean, variance, corners, taper, (y, y + 1, x, x + 1), stride=stride, impl=impl)
    assert len(over) == 4
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-6)
    assert float(found[1]) ** 2 == pytest.approx(float((w * (v + (m - expected) ** 2)).sum() / w.sum()), rel=1e-6)


def test_an_empty_box_is_empty():
    mean, variance = moments(1, 2, 8)
    for impl in ("naive", "triton"):
        found = blend(mean, variance, [(0, 0)], taper_of(8, 3, 1), (0, 0, 0, 5), stride=3, impl=impl)
        assert found[0].shape == (2, 0, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corners": [(0, 1)]}, "1 of 1 corners are not multiples of the stride 3, first [(0, 1)]"),
        ({"mean": torch.zeros(2, 1, 8, 8)}, "mean has shape [2, 1, 8, 8] and variance [1, 1, 8, 8] but 1 corners"),
        ({"taper": torch.zeros(8)}, "taper are torch.float32, torch.float32, torch.float32"),
    ],
)
def test_a_wrong_request_is_refused_with_both_values(change, message):
    request = {
        "mean": torch.zeros(1, 1, 8, 8),
        "variance": torch.zeros(1, 1, 8, 8),
        "corners": [(0, 0)],
        "taper": taper_of(8, 3, 1),
        "box": (0, 8, 0, 8),
    }
    with pytest.raises(ValueError) as refused:
        blend(**(request | change), stride=3)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
