"""Scores of a probabilistic translation."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from surveybridge.bridge_core.metrics import (
    coverage_within,
    crps,
    energy_score,
    interval_width,
    patch_energy_score,
    ranks,
    unit_range,
)


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


def test_fair_energy_score_leaves_out_the_pairs_of_a_sample_with_itself():
    samples, truth = torch.rand(3, 2, 1, 4, 4).double() * 2 - 1, torch.rand(2, 1, 4, 4).double() * 2 - 1
    for n in range(2):
        x, y = (samples[:, n].flatten(1) + 1) / 2, (truth[n].flatten() + 1) / 2
        to_truth = sum(float((x[k] - y).norm()) for k in range(3)) / 3
        among = sum(float((x[i] - x[j]).norm()) for i in range(3) for j in range(3) if i != j) / 6
        fair = float(energy_score(samples, truth, fair=True)[n])
        assert fair == pytest.approx(to_truth - among / 2, rel=1e-12)
        assert float(energy_score(samples, truth)[n]) - fair == pytest.approx(among / 6, rel=1e-9)


@pytest.mark.parametrize("k", [2, 5, 16])
def test_crps_is_its_definition_and_that_of_scoringrules(k, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)  # with it, scoringrules compiles as it is imported, for 3 s
    import scoringrules

    samples, truth = torch.randn(k, 40, 3).double(), torch.randn(40, 3).double()
    among = sum((samples[i] - samples[j]).abs() for i in range(k) for j in range(k)) / (k * (k - 1))
    torch.testing.assert_close(crps(samples, truth), (samples - truth).abs().mean(0) - among / 2)
    theirs = scoringrules.crps_ensemble(truth.numpy(), samples.numpy(), m_axis=0, estimator="fair")
    torch.testing.assert_close(crps(samples, truth), torch.from_numpy(theirs))


@pytest.mark.parametrize("k", [2, 8])
def test_fair_crps_of_gaussian_samples_is_the_closed_form_for_any_number_of_them(k):
    """CRPS of N(mu, sigma) at y, Gneiting & Raftery 2007: sigma (w (2 Phi(w) - 1) + 2 phi(w) - 1 / sqrt(pi))."""
    mu, sigma, y = 0.4, 1.5, 2.0
    normal, w = torch.distributions.Normal(0.0, 1.0), torch.tensor((y - mu) / sigma)
    exact = sigma * (w * (2 * normal.cdf(w) - 1) + 2 * normal.log_prob(w).exp() - 1 / math.sqrt(math.pi))
    found = crps(mu + sigma * torch.randn(k, 400_000).double(), torch.full((400_000,), y).double())
    assert float(found.mean()) == pytest.approx(float(exact), abs=4 * float(found.std()) / 400_000**0.5)


def test_patches_of_one_pixel_have_the_crps():
    samples, truth = torch.randn(4, 3, 2, 8, 8).double(), torch.randn(3, 2, 8, 8).double()
    (score,) = patch_energy_score(samples[:, :, :1], truth[:, :1], scales=(1,), patch=1)
    torch.testing.assert_close(score, crps(samples[:, :, 0], truth[:, 0]).mean((1, 2)))


def test_patch_scores_see_structure_that_single_pixels_do_not():
    smooth = torch.randn(9, 60, 1, 8, 8).repeat_interleave(8, 3).repeat_interleave(8, 4)
    shuffled = smooth[:8].flatten(3)[..., torch.randperm(64 * 64)].unflatten(3, (64, 64))
    pixel = [float(crps(s, smooth[8]).mean()) for s in (smooth[:8], shuffled)]
    patches = [[float(score.mean()) for score in patch_energy_score(s, smooth[8])] for s in (smooth[:8], shuffled)]
    assert pixel[0] == pytest.approx(pixel[1], rel=0.02)
    assert patches[1][2] > 1.2 * patches[0][2]


def test_ranks_of_equal_distributions_are_uniform():
    draws = torch.randn(6, 200_000)
    counts = torch.bincount(ranks(draws[:5], draws[5]), minlength=6) / 200_000
    assert counts.tolist() == pytest.approx([1 / 6] * 6, abs=0.004)


@pytest.mark.parametrize("k", [2, 5, 8])
@pytest.mark.parametrize("probability", [0.5, 0.68, 0.95])
def test_the_interval_of_few_samples_holds_the_truth_as_often_as_it_says(k, probability):
    draws = torch.randn(k + 1, 200_000).double()
    mean, std = draws[:k].mean(0), draws[:k].std(0)
    width = interval_width(probability, k)
    (share,) = coverage_within(mean, std, draws[k], torch.ones_like(mean, dtype=torch.bool), (width,))
    assert share == pytest.approx(probability, abs=0.005)
