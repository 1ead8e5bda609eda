"""How two images lie on each other: a shift and a turn that are known come out, and little data says nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from surveybridge.bridge_core.detection import Sources
from surveybridge.bridge_core.registration import STEP, common_shift, measured_offset, typical_offset

SHAPE = (600, 400)


def sources(places: NDArray[np.float64], snr: float = 50.0) -> Sources:
    n = len(places)
    ones, none = np.ones(n, np.float32), np.zeros(n, np.int32)
    return Sources(
        x=places[:, 1], y=places[:, 0], a=ones, b=ones, theta=0 * ones, flags=none, pixels=none + 9, snr=snr * ones,
        touches=none > 0,
    )  # fmt: skip


def sky(count: int, seed: int = 2) -> NDArray[np.float64]:
    """Objects on a jittered grid, so that none has two possible counterparts."""
    rng = np.random.default_rng(seed)
    lines, columns = np.meshgrid(np.arange(10, SHAPE[0], 25), np.arange(10, SHAPE[1], 25), indexing="ij")
    places = np.stack([lines.ravel(), columns.ravel()], -1) + rng.uniform(-5, 5, (lines.size, 2))
    return rng.permutation(places)[:count]


def measured(first: NDArray[np.float64], second: NDArray[np.float64], snr: float = 50.0) -> float:
    return typical_offset(sources(first, snr), sources(second), SHAPE, reach=4.0, smallest=0.05, largest_error=0.2)


@pytest.mark.parametrize("shift", [(0.7, -0.4), (0.0, 1.5), (-0.2, 0.1)])
def test_a_shift_is_measured_by_axis_to_the_step_of_the_scale(shift):
    places, rng = sky(120), np.random.default_rng(5)
    moved = places + shift + rng.normal(0, 0.2, places.shape)
    moved[:20] += rng.uniform(1.5, 2.5, (20, 2))  # blends, whose centres are elsewhere
    expected = math.hypot(*shift) / math.sqrt(2)
    assert abs(math.log(measured(places, moved) / expected)) < 0.75 * math.log(STEP)


def test_a_turn_is_measured_over_the_whole_image():
    places, turn = sky(200), 0.003
    middle = (np.array(SHAPE) - 1) / 2
    moved = places + turn * np.stack([places[:, 1] - middle[1], -(places[:, 0] - middle[0])], -1)
    moved += np.random.default_rng(6).normal(0, 0.1, places.shape)
    expected = turn * math.sqrt((SHAPE[0] ** 2 + SHAPE[1] ** 2) / 24)
    assert abs(math.log(measured(places, moved) / expected)) < 0.75 * math.log(STEP)


def test_images_that_lie_on_each_other_have_the_smallest_offset():
    places = sky(150)
    noisy = places + np.random.default_rng(7).normal(0, 0.3, places.shape)
    assert measured(places, noisy) == pytest.approx(0.05)


def test_nothing_is_said_where_too_few_bright_objects_are_seen_or_they_scatter_too_much():
    places = sky(150)
    assert math.isnan(measured(places[:7], places[:7]))
    assert math.isnan(measured(places, places, snr=9.0))
    assert math.isnan(measured(places[:0], places))
    scattered = places[:20] + np.random.default_rng(8).normal(0, 1.3, (20, 2))
    assert math.isnan(measured(places[:20], scattered))


def test_a_shift_far_beyond_the_distance_of_neighbours_is_found():
    places, rng = sky(300), np.random.default_rng(9)
    moved = places + np.array([17.0, -11.0]) + rng.normal(0, 0.3, places.shape)
    moved[:60] = rng.uniform((0, 0), SHAPE, (60, 2))  # objects that the first does not show
    found = common_shift(sources(places), sources(moved), search=30.0, width=3.0)
    assert found == pytest.approx((17.0, -11.0), abs=0.1)


def test_objects_of_two_skies_share_no_shift():
    one, other = (np.random.default_rng(seed).uniform((0, 0), SHAPE, (300, 2)) for seed in (1, 2))
    assert common_shift(sources(one), sources(other), search=30.0, width=3.0) is None
    assert common_shift(sources(sky(300)), sources(sky(0)), search=30.0, width=3.0) is None


def test_shift_and_turn_come_out_with_errors_that_hold():
    """Of 60 skies with noise, the shift is within two standard errors as often as it should be."""
    inside, errors = 0, []
    for seed in range(60):
        places, rng = sky(150, seed=seed), np.random.default_rng(1000 + seed)
        moved = places + np.array([0.4, -0.3]) + rng.normal(0, 0.25, places.shape)
        found = measured_offset(sources(places), sources(moved), (300.0, 200.0), reach=4.0)
        assert found is not None and found.objects > 120
        off = (np.array(found.shift) - (0.4, -0.3)) / np.sqrt(found.variances[:2])
        inside += int((np.abs(off) < 2).sum())
        errors.append(np.sqrt(found.variances[0]))
    assert 105 <= inside <= 119  # 114.5 of 120 are expected
    assert np.median(errors) == pytest.approx(0.25 / np.sqrt(150), rel=0.15)
