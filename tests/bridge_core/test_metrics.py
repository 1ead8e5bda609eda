"""Scores of a probabilistic translation."""

from __future__ import annotations

import pytest
import torch

from bridge_core.metrics import coverage_within, energy_score, unit_range


def test_unit_range_clips_and_scales():
    u = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])
    assert unit_range(u, (-1.0, 1.0)).tolist() == [0, 0, 0.5, 1, 1]
    assert unit_range(u, (0.0, 2.0)).tolist() == [0, 0, 0, 0.5, 1]


def test_energy_score_is_its_definition():
    samples, truth = torch.rand(3, 2, 1, 4, 4).double() * 2 - 1, torch.rand(2, 1, 4, 4).double() * 2 - 1
    for n in range(2):
        x, y = (samples[:, n].flatten(1) + 1) / 2, (truth[n].flatten() + 1) / 2
        to_truth = sum(float((x[k] - y).norm()) for k in range(3)) / 3
        among = sum(float((x[i] - x[j]).norm()) for i in range(3) for j in range(3)) / 9
        assert float(energy_score(samples, truth)[n]) == pytest.approx(to_truth - among / 2, rel=1e-12)


def test_perfect_samples_score_zero_and_the_order_does_not_matter():
    truth = torch.rand(4, 3, 8, 8)
    assert energy_score(truth.expand(5, -1, -1, -1, -1), truth).tolist() == [0, 0, 0, 0]
    samples = torch.rand(5, 4, 3, 8, 8)
    torch.testing.assert_close(energy_score(samples, truth), energy_score(samples.flip(0), truth))


def test_energy_score_prefers_the_right_spread():
    truth = 0.1 * torch.randn(200, 1, 4, 4)

    def score(spread: float) -> float:
        return float(energy_score(spread * torch.randn(16, 200, 1, 4, 4), truth).mean())

    assert score(0.1) < min(score(0.03), score(0.3))


def test_coverage_of_a_gaussian_is_that_of_the_tables():
    mean, std = torch.randn(1, 300, 300), torch.rand(1, 300, 300) + 0.5
    truth = mean + std * torch.randn(1, 300, 300)
    shares = coverage_within(mean, std, truth, torch.ones_like(mean, dtype=torch.bool), (1.0, 1.645, 1.96))
    assert shares == pytest.approx([0.6827, 0.9, 0.95], abs=0.006)


def test_coverage_counts_only_the_pixels_asked_for():
    mean = torch.zeros(1, 2, 2)
    truth = torch.tensor([[[0.5, 50.0], [torch.nan, 1.5]]])
    where = torch.tensor([[[True, False], [False, True]]])
    assert coverage_within(mean, torch.ones_like(mean), truth, where, (1.0, 2.0)) == [0.5, 1.0]
