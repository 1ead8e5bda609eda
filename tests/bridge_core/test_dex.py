"""Errors in dex: against closed forms, direct computation on all pixels, and any split of the work."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from surveybridge.bridge_core.dex import BINS, ESTIMATES, REACH, DexMeasures, DexSums, core_of, quantiles
from surveybridge.bridge_core.evaluation import LEVELS

SPREAD, BIAS, OFFSET = 0.17, 0.06, 2.3


def gaussian_case(k, side, seed, *, truth_like_samples=True):
    """Log-normal samples around a hidden mean; the truth is one more of them, shifted by BIAS."""
    generator = torch.Generator().manual_seed(seed)
    hidden = OFFSET + 0.4 * torch.randn(3, 1, side, side, generator=generator, dtype=torch.float64)
    noise = SPREAD * torch.randn(k + 1, 3, 1, side, side, generator=generator, dtype=torch.float64)
    truth = 10 ** (hidden + noise[0] * truth_like_samples - BIAS)
    return 10 ** (hidden + noise[1:]), truth


def measures(sums: DexSums) -> DexMeasures:
    return DexMeasures.of({name: values.sum(0) for name, values in sums.arrays().items()})


def test_of_a_perfect_log_normal_posterior_all_is_as_it_must_be():
    k = 9
    samples, truth = gaussian_case(k, 160, 1)
    found = measures(DexSums.of(samples * 10 ** (-BIAS), truth, torch.ones_like(truth, dtype=torch.bool)))
    single, mean, median = range(3)
    assert found.bias[0, [single, median]] == pytest.approx(0, abs=0.003)
    # ln of the mean of k log-normal samples: s^2 / 2 less what few samples miss
    shift = math.log(10) * SPREAD**2 / 2 * (1 - 1 / k)
    assert found.bias[0, mean] == pytest.approx(shift, abs=0.003)
    assert found.scatter[0, single] == pytest.approx(math.sqrt(2) * SPREAD, rel=0.01)
    assert found.scatter[0, mean] == pytest.approx(SPREAD * math.sqrt(1 + 1 / k), rel=0.01)
    assert found.half_width[0, single] == pytest.approx(math.sqrt(2) * SPREAD * norm.ppf(0.84), rel=0.01)
    assert found.core_scatter[0, single] == pytest.approx(math.sqrt(2) * SPREAD, rel=0.01)
    assert found.factor_two[0, single] == pytest.approx(
        2 * norm.cdf(math.log10(2) / (math.sqrt(2) * SPREAD)) - 1, abs=0.005
    )
    # fair CRPS of a Gaussian forecast of its own truth (Gneiting & Raftery 2007, sec. 4.2): s / sqrt(pi)
    assert found.crps[0] == pytest.approx(SPREAD / math.sqrt(math.pi), rel=0.01)
    assert found.spread[0] == pytest.approx(SPREAD, rel=0.01)
    assert found.coverage[0] == pytest.approx(LEVELS, abs=0.005)
    assert found.pit[0] == pytest.approx([1 / (k + 1)] * (k + 1), abs=0.005)
    # of a log-normal error with variance v of ln: mean e^(v/2) - 1, variance (e^v - 1) e^v
    v = 2 * (math.log(10) * SPREAD) ** 2
    assert found.relative_bias[0, single] == pytest.approx(math.exp(v / 2) - 1, rel=0.03)
    assert found.relative_scatter[0, single] == pytest.approx(math.sqrt((math.exp(v) - 1) * math.exp(v)), rel=0.05)


def test_a_bias_is_told_from_scatter_in_all_estimates():
    samples, truth = gaussian_case(5, 64, 2)
    found = measures(DexSums.of(samples, truth, torch.ones_like(truth, dtype=torch.bool)))
    for where in (found.bias, found.core_bias, found.middle):
        assert where[0, 0] == pytest.approx(BIAS, abs=0.01)
    assert found.pit[0, 0] > found.pit[0, -1]


def test_copies_of_one_guess_cover_nothing_and_their_crps_is_the_mean_error():
    _, truth = gaussian_case(2, 32, 3)
    guess = torch.full_like(truth, 10**OFFSET)
    sums = DexSums.of(guess.expand(4, *guess.shape), truth, torch.ones_like(truth, dtype=torch.bool))
    found = measures(sums)
    r = (guess / truth).log10()
    assert found.crps[0] == pytest.approx(float(r.abs().mean()))
    assert (found.coverage == 0).all() and found.spread[0] == 0
    assert np.ptp(found.bias) == pytest.approx(0, abs=1e-12) and found.bias[0, 0] == pytest.approx(float(r.mean()))
    assert found.scatter[0, 1] == pytest.approx(float(r.std(correction=0)))


def test_what_is_not_valid_is_not_read():
    samples, truth = gaussian_case(4, 24, 4)
    valid = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    spoilt, hidden = samples.clone(), truth.clone()
    spoilt[:, ~valid], hidden[~valid] = torch.nan, -1.0
    one, other = DexSums.of(samples, truth, valid).arrays(), DexSums.of(spoilt, hidden, valid).arrays()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])
    assert one["pixels"].sum() == int(valid.sum()) and 0 < one["pixels"].sum() < valid.numel()
    assert one["histogram"].sum() == 3 * one["pixels"].sum() and one["ranks"].sum() == one["pixels"].sum()


def test_sums_of_parts_are_the_sums_of_the_whole():
    samples, truth = gaussian_case(4, 16, 5)
    valid = torch.ones_like(truth, dtype=torch.bool)
    whole = DexSums.of(samples, truth, valid).arrays()
    for n in range(3):
        part = DexSums.of(samples[:, n : n + 1], truth[n : n + 1], valid[n : n + 1]).arrays()
        for name, values in whole.items():
            np.testing.assert_array_equal(values[n], part[name][0])


def test_values_of_1e22_have_a_mean():
    truth = torch.full((1, 1, 4, 4), 1e22)
    samples = torch.stack([truth, truth * 3])
    found = measures(DexSums.of(samples, truth, torch.ones_like(truth, dtype=torch.bool)))
    assert found.bias[0] == pytest.approx([0, math.log10(2), math.log10(3) / 2], abs=1e-6)


@pytest.mark.parametrize(("bad", "side"), [(torch.inf, -1), (torch.nan, -1), (0.0, 0), (-3.0, -1)])
def test_a_prediction_that_is_no_number_above_0_is_as_wrong_as_can_be(bad, side):
    samples, truth = gaussian_case(4, 16, 10)
    valid = torch.ones_like(truth, dtype=torch.bool)
    good = DexSums.of(samples, truth, valid)
    samples[:, 1, 0, 2, 3] = bad
    found = DexSums.of(samples, truth, valid)
    assert all(np.isfinite(values).all() for values in found.arrays().values())
    assert found.histogram[1, 0, :, side].tolist() == [1, 1, 1] and found.crps[1, 0] > good.crps[1, 0] + 30
    assert (found.histogram[[0, 2]] == good.histogram[[0, 2]]).all()


def test_no_pixel_gives_no_number():
    samples, truth = gaussian_case(3, 8, 6)
    found = measures(DexSums.of(samples, truth, torch.zeros_like(truth, dtype=torch.bool)))
    for values in vars(found).values():
        assert np.isnan(values).all()


def histogram_of(values):
    counts = np.histogram(values, np.linspace(-REACH, REACH, BINS + 1))[0]
    return np.concatenate([[np.sum(values < -REACH)], counts, [np.sum(values > REACH)]]).astype(float)


@pytest.mark.parametrize(("bias", "scatter"), [(0.0, 0.05), (-0.4, 0.3), (1.2, 0.9)])
def test_the_core_of_a_distribution_is_a_gaussian_without_its_wings(bias, scatter):
    rng = np.random.default_rng(7)
    gaussian = rng.normal(bias, scatter, 200_000)
    wing = rng.uniform(bias + 4 * scatter, bias + 4 * scatter + 2, 20_000)
    both = np.stack([histogram_of(gaussian), histogram_of(np.concatenate([gaussian, wing]))])
    mean, deviation = core_of(both)
    assert mean == pytest.approx([bias, bias], abs=0.02 * scatter)
    assert deviation == pytest.approx([scatter, scatter], rel=0.01)
    assert np.concatenate([gaussian, wing]).std() > 1.1 * scatter


def test_a_core_narrower_than_a_bin_is_found():
    mean, deviation = core_of(histogram_of(np.full(1000, 0.1234)))
    assert mean == pytest.approx(0.1234, abs=0.005) and 0 <= deviation < 0.002


def test_quantiles_are_those_of_the_values_and_end_at_the_last_edge():
    values = np.random.default_rng(8).standard_t(2, 100_000) * 0.4
    values = values[np.abs(values) < REACH]
    found = quantiles(histogram_of(values), (0.05, 0.16, 0.5, 0.84))
    assert found == pytest.approx(np.quantile(values, [0.05, 0.16, 0.5, 0.84]), abs=0.003)
    beyond = np.concatenate([np.full(30, -REACH - 1), np.full(30, REACH + 2)])
    assert quantiles(histogram_of(beyond), (0.16, 0.84)) == (-REACH, REACH)


def test_there_is_an_estimate_for_each_column():
    samples, truth = gaussian_case(3, 8, 9)
    sums = DexSums.of(samples, truth, torch.ones_like(truth, dtype=torch.bool))
    assert sums.residual.shape == (3, 1, len(ESTIMATES)) and sums.histogram.shape[-1] == BINS + 2
