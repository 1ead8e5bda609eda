"""Factors of the standard deviation: exact on a sky whose errors are known, careful where there is little of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from surveybridge.bridge_core.metrics import interval_width
from surveybridge.bridge_core.pulls import BLOCK, KNOTS, PullCounts, fit_scale, held_out_coverage
from surveybridge.bridge_core.recalibration import StdScale

K = 6
NOISE = 1.7


def wrong(snr: Any) -> Any:
    """Stated standard deviation over the true one: right in the sky, 2.3 times too small on the brightest pixels."""
    return 1 / (1 + 0.2 * np.arcsinh(np.maximum(snr, 0)))


def sky(seed: int, height: int, width: int, brightness: float = 200.0) -> tuple[Any, Any, Any]:
    """Predicted mean and std of K samples, and what was observed: one source a block, Gaussian errors."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    blobs = np.exp(-0.5 * (((y % BLOCK) - 16) ** 2 + ((x % BLOCK) - 16) ** 2) / 4.0**2)
    peaks = brightness * rng.random((height // BLOCK, width // BLOCK)) ** 3
    truth = NOISE * np.kron(peaks, np.ones((BLOCK, BLOCK))) * blobs
    error = NOISE * np.sqrt(1 + (0.05 * truth / NOISE) ** 2)
    samples = truth + error * rng.normal(size=(K, height, width))
    mean = samples.mean(0)
    return mean, samples.std(0, ddof=1) * wrong(mean / NOISE), truth + error * rng.normal(size=truth.shape)


def counted(mean: Any, std: Any, observed: Any, usable: Any = None, origin: tuple[int, int] = (0, 0)) -> PullCounts:
    everywhere = np.ones(mean.shape, bool) if usable is None else usable
    return PullCounts.of(mean / NOISE, (observed - mean) / std, everywhere, origin)


def held(mean: Any, std: Any, observed: Any, scale: StdScale, low: float, high: float) -> float:
    part = (mean / NOISE > low) & (mean / NOISE <= high)
    pull = np.abs(observed - mean) / (std * scale.of(mean))
    return float((pull[part] <= interval_width(0.68, K)).mean())


def test_intervals_of_another_sky_hold_their_share_at_every_brightness():
    learnt, judged = sky(1, 640, 640), sky(2, 640, 640)
    scale = fit_scale(counted(*learnt), NOISE, K)
    before = counted(*judged).coverage(K)
    assert before.between(3.0, KNOTS[-1]) < 0.55  # there was something to mend
    assert held(*judged, scale, -np.inf, np.inf) == pytest.approx(0.68, abs=0.01)
    for low, high in ((-np.inf, 1), (1, 3), (3, 8), (8, 20), (20, 200)):
        assert held(*judged, scale, low, high) == pytest.approx(0.68, abs=0.015)
    found = scale.of(np.array([0.0, 2.0, 10.0, 50.0]) * NOISE)
    assert found == pytest.approx(1 / wrong(np.array([0.0, 2.0, 10.0, 50.0])), rel=0.06)


def test_the_coverage_that_is_told_is_that_of_pixels_it_was_not_learnt_on():
    counts = counted(*sky(3, 320, 320))
    told = held_out_coverage(counts, NOISE, K)
    assert told.pixels.sum() == 320 * 320
    assert told.between(3.0, KNOTS[-1]) == pytest.approx(0.68, abs=0.02)
    random = np.random.default_rng(0).normal(size=counts.pixels.shape).argsort(0).argsort(0)  # and it can fail
    shuffled = PullCounts(np.take_along_axis(counts.pixels, random, 0) * (random % 2), counts.blocks)
    assert held_out_coverage(shuffled, NOISE, K).between(3.0, KNOTS[-1]) != told.between(3.0, KNOTS[-1])


def test_factors_may_be_kept_from_making_intervals_narrower():
    mean, std, observed = sky(4, 320, 320)
    counts = counted(mean, 1.6 * std, observed)  # too unsure of faint pixels, too sure of bright ones
    free, kept = fit_scale(counts, NOISE, K), fit_scale(counts, NOISE, K, 1.0)
    assert min(free.factor) < 0.7 < 1 < max(free.factor)
    assert kept.factor == tuple(max(one, 1.0) for one in free.factor)
    assert kept.snr == free.snr
    told = held_out_coverage(counts, NOISE, K, 1.0)
    assert told.between(KNOTS[0], 1.0) == pytest.approx(counts.coverage(K).between(KNOTS[0], 1.0), abs=0.01)
    assert told.between(20.0, KNOTS[-1]) == pytest.approx(0.68, abs=0.05)


def test_the_number_of_samples_does_not_enter_the_factor():
    rng = np.random.default_rng(7)
    found = []
    for k in (3, 24):
        samples, observed = rng.normal(size=(k, 256, 256)), rng.normal(size=(256, 256))
        counts = PullCounts.of(
            0 * observed, (observed - samples.mean(0)) / samples.std(0, ddof=1), observed < 9, (0, 0)
        )
        found.append(fit_scale(counts, 1.0, k).factor[0])
    assert found == pytest.approx([1.0, 1.0], abs=0.01)


@pytest.mark.parametrize(("blocks", "most"), [(1, 1.15), (2, 1.4), (64, 2.3)])
def test_a_factor_that_few_blocks_support_stays_near_1(blocks, most):
    rng = np.random.default_rng(5)
    pull = 2.2 * rng.standard_t(K - 1, (BLOCK, blocks * BLOCK)) * np.sqrt(1 + 1 / K)
    scale = fit_scale(PullCounts.of(0 * pull, pull, pull < np.inf, (0, 0)), NOISE, K)
    assert scale.blocks == (blocks,)
    assert scale.pixels == (blocks * BLOCK**2,)
    assert 1.0 < scale.factor[0] < most
    if blocks == 64:
        assert scale.factor[0] == pytest.approx(2.2, rel=0.02)


def test_pixels_that_are_not_independent_make_the_error_larger():
    errors: dict[str, list[float]] = {"apart": [], "alike": []}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        pulls = {
            "apart": rng.normal(size=(256, 256)),
            "alike": np.kron(rng.normal(size=(8, 8)), np.ones((BLOCK, BLOCK))),
        }
        for name, pull in pulls.items():
            counts = PullCounts.of(0 * pull, pull, pull < np.inf, (0, 0))
            errors[name].append(fit_scale(counts, NOISE, K).error[0])
    # 64 blocks of one number each; of a normal variable sqrt(p (1 - p)) over the slope is 0.96
    assert np.mean(errors["alike"]) == pytest.approx(0.96 / np.sqrt(64), rel=0.3)
    assert np.mean(errors["apart"]) < 0.02


def test_tiles_add_up_to_the_field_and_masked_or_unknown_pixels_do_not_count():
    mean, std, observed = sky(4, 128, 128)
    std = std.copy()
    std[3, 5], usable = np.nan, np.ones(mean.shape, bool)
    usable[60:70] = False
    whole = counted(mean, std, observed, usable, (640, 320))
    halves = [
        counted(mean[rows], std[rows], observed[rows], usable[rows], (640 + rows.start, 320))
        for rows in (slice(0, 64), slice(64, 128))
    ]
    both = PullCounts.zero() + halves[1] + halves[0]
    assert (both.pixels == whole.pixels).all()
    assert (both.blocks == whole.blocks).all()
    assert whole.pixels.sum() == 118 * 128 - 1


def test_nothing_to_learn_from_leaves_things_as_they_are():
    assert fit_scale(PullCounts.zero(), NOISE, K).of(np.array([-5.0, 0, 900])).tolist() == [1, 1, 1]


def test_the_raw_standard_deviation_is_recovered():
    scale = StdScale(NOISE, (0.1, 4.0, 30.0), (0.93, 1.4, 2.1), (0.1,) * 3, (9,) * 3, (9,) * 3)
    mean = np.geomspace(0.01, 1e4, 400).astype(np.float32)
    std = (1 + 0.1 * mean).astype(np.float32)
    stored = (std * scale.of(mean)).astype(np.float32)
    assert scale.raw(mean, stored) == pytest.approx(std, rel=3e-7)
    assert scale.of(np.array([-1e9, 1e9])).tolist() == pytest.approx([0.93, 2.1])
    assert StdScale.from_card(scale.card) == scale
