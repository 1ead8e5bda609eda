"""Sums over pixels and what follows from them, on posteriors that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from surveybridge.bridge_core.apertures import aperture
from surveybridge.bridge_core.correlate import gaussian_blur
from surveybridge.bridge_core.evaluation import (
    LEVELS,
    PIXEL_SUMS,
    REGIONS,
    PixelMeasures,
    PixelSums,
    image_scores,
    matches,
    morphology,
    photometry,
    trivial_scores,
)
from surveybridge.bridge_core.metrics import energy_score
from surveybridge.bridge_core.stretch import Stretch

SIGMA = torch.tensor([2.0, 0.5])
BANDS = ("g", "VIS")
DISPLAY = Stretch.asbridge({"g": 2.0, "VIS": 0.5}, {"g": 3000.0, "VIS": 1500.0})


def gaussian_case(spread: float, k: int = 5, n: int = 40):
    """Truth and samples around one mean, the samples `spread` times as wide as the truth."""
    mean = 10 * torch.rand(n, 2, 32, 32) * SIGMA.view(2, 1, 1)
    width = SIGMA.view(2, 1, 1)
    return mean + spread * width * torch.randn(k, *mean.shape), mean + width * torch.randn(mean.shape)


def sums_of(case) -> PixelSums:
    samples, truth = case
    return PixelSums.of(samples, truth, SIGMA, BANDS, DISPLAY)


def measures(sums: PixelSums, k: int) -> PixelMeasures:
    return PixelMeasures.of(k, **{name: getattr(sums, name).sum((0, 1)).numpy() for name in (*PIXEL_SUMS, "within")})


@pytest.mark.parametrize("k", [2, 5, 12])
def test_a_perfect_posterior_is_calibrated_for_any_number_of_samples(k):
    sums = sums_of(gaussian_case(1.0, k))
    found = measures(sums, k)
    for r in (REGIONS.index("all"), REGIONS.index("bright")):
        assert found.spread_skill[r] == pytest.approx(1, abs=0.02)
        assert found.coverage[r] == pytest.approx(LEVELS, abs=0.015)
    assert found.rmse[0] == pytest.approx(math.sqrt(1 + 1 / k), rel=0.02)
    assert found.crps[0] == pytest.approx(1 / math.sqrt(math.pi), rel=0.02)  # of N(0, 1) at a draw from it
    histogram = sums.ranks.sum((0, 1))[0] / sums.pixels.sum((0, 1))[0]
    assert histogram.tolist() == pytest.approx([1 / (k + 1)] * (k + 1), abs=0.01)


def test_one_bright_core_does_not_outweigh_the_display():
    """A core that is wrong by a thousand sigma rules the ratio of mean squares in flux, and not that in the display."""
    samples, truth = gaussian_case(1.0, 8)
    truth[0, 1, 16, 16] += 400
    found = measures(sums_of((samples, truth)), 8)
    assert found.spread_skill[0] < 0.5
    assert found.spread_skill_display[0] == pytest.approx(1, abs=0.02)


def test_a_narrow_posterior_is_found_out():
    found = measures(sums_of(gaussian_case(0.5)), 5)
    assert found.spread_skill[0] == pytest.approx(0.5 * math.sqrt(1.2 / (1 + 0.25 / 5)), rel=0.02)
    assert (found.coverage[0] < np.array(LEVELS) - 0.1).all()


def test_choosing_pixels_by_their_observed_flux_spoils_a_perfect_posterior():
    """Why `bright` goes by the predicted mean: noise that lifts a pixel above the threshold counts as an error."""
    samples, truth = gaussian_case(1.0, 8, 60)
    found = measures(PixelSums.of(samples / 4, truth / 4, SIGMA / 4, BANDS, DISPLAY), 8)
    assert found.spread_skill[REGIONS.index("bright")] == pytest.approx(1, abs=0.02)
    faint = torch.full((60, 2, 32, 32), 2.0) * SIGMA.view(2, 1, 1)
    width = SIGMA.view(2, 1, 1)
    draws = faint + width * torch.randn(9, *faint.shape)
    chosen = measures(PixelSums.of(draws[:8], draws[8], SIGMA, BANDS, DISPLAY), 8)
    assert chosen.spread_skill[REGIONS.index("bright_truth")] < 0.75


def test_sums_of_parts_are_the_sums_of_the_whole():
    samples, truth = gaussian_case(0.8, 4, 12)
    whole = PixelSums.of(samples, truth, SIGMA, BANDS, DISPLAY)
    parts = [PixelSums.of(samples[:, some], truth[some], SIGMA, BANDS, DISPLAY) for some in (slice(0, 5), slice(5, 12))]
    for name in ("pixels", "squared_error", "variance", "crps", "within", "ranks"):
        joined = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(joined, getattr(whole, name), rtol=1e-12, atol=0)
    assert (whole.ranks.sum(-1) == whole.pixels).all()
    assert (whole.pixels[:, :, REGIONS.index("all")] == 32 * 32).all()


def test_no_pixel_is_no_measure_and_no_warning():
    zeros = np.zeros(1)
    found = PixelMeasures.of(5, **dict.fromkeys(PIXEL_SUMS, zeros), within=np.zeros((1, 4)))
    assert np.isnan([found.rmse[0], found.crps[0], found.spread_skill[0], found.coverage[0, 0]]).all()


def test_energy_score_is_that_of_asbridge_display_with_vis_repeated():
    noise, top = {"VIS": 2.0}, {"VIS": 1500.0}
    display = Stretch.asbridge(noise, top)
    samples, truth = 300 * torch.rand(3, 4, 1, 64, 64), 300 * torch.rand(4, 1, 64, 64)
    found = image_scores(samples, truth, ("VIS",), display)
    unit = [(torch.asinh(f / 6) / math.asinh(250)) * 2 - 1 for f in (samples, truth)]
    expected = math.sqrt(3) * energy_score(unit[0], unit[1])
    assert found["energy_score"] == pytest.approx(expected.numpy(), rel=1e-4)
    assert np.all(found["energy_score_fair"] < found["energy_score"])


def test_asbridge_stretch_has_sky_at_minus_one_and_the_top_at_one():
    stretch = Stretch.asbridge({"g": 1.3}, {"g": 3000.0})
    flux = torch.tensor([0.0, 3000.0, 1e6, -1e6]).view(4, 1, 1, 1)
    assert stretch.forward(flux, ("g",)).flatten().tolist() == pytest.approx([-1, 1, 1, -1.4], abs=1e-6)
    some = torch.tensor([-2.0, 0.5, 80.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(stretch.inverse(stretch.forward(some, ("g",)), ("g",)), some, rtol=1e-4, atol=1e-4)
    assert Stretch.from_card(stretch.card) == stretch


def test_photometry_is_the_flux_in_the_circle():
    truth = torch.zeros(2, 1, 64, 64)
    truth[:, :, 31:33, 31:33] = 25.0
    samples = truth + torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1, 1)
    found = photometry(samples, truth, ("VIS",), pixel_scale=0.1)
    assert found["flux_VIS"] == pytest.approx([100, 100]) and found["flux_VIS_mean"] == pytest.approx([100, 100])
    area = math.pi * 10**2
    assert found["flux_VIS_std"] == pytest.approx([math.sqrt(2) * area] * 2, rel=0.01)
    assert float(aperture((64, 64), 10.0).sum()) == pytest.approx(area, rel=0.01)


def test_blur_keeps_flux_and_has_its_width():
    point = torch.zeros(1, 1, 65, 65)
    point[..., 32, 32] = 1
    blurred = gaussian_blur(point, 3.0)[0, 0]
    x = torch.arange(65.0) - 32
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)
    assert float((blurred.sum(0) * x**2).sum()) == pytest.approx(9, rel=0.04)


def test_trivial_scores_rank_by_flux_and_by_structure():
    lsst, euclid = torch.zeros(3, 3, 64, 64), torch.zeros(3, 1, 64, 64)
    lsst[1, 2, 30:34, 30:34] = 10.0
    euclid[2, 0, 10, 10] = 100.0
    found = trivial_scores(lsst, euclid, 0.2, 2.0)
    assert found["central_flux"].argmax() == 1 and found["inverse_flux"].argmin() == 1
    assert found["total_flux"].argmax() == 2 and found["smooth_residual"].argmax() == 2


def test_places_match_once_at_most_and_as_many_as_can():
    true = np.array([[0.0, 0.0], [2.0, 0.0], [50.0, 50.0]])
    # The first is near both of the first two: it is left for the one that the second cannot reach.
    found = np.array([[1.0, 0.0], [3.5, 0.0], [90.0, 0.0]])
    assert matches(found, true, reach=2.0) == 2
    assert matches(found[:1], true, reach=2.0) == 1
    assert matches(np.zeros((0, 2)), true, reach=2.0) == matches(found, np.zeros((0, 2)), reach=2.0) == 0


def test_a_source_at_another_place_is_counted_but_not_matched():
    y, x = np.mgrid[:64, :64]

    def image(*places):
        return torch.tensor(sum(300 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 8) for a, b in places))[
            None, None
        ].float()

    truth = image((20, 20), (44, 40))
    samples = torch.stack([image((20, 21), (44, 40)), image((20, 20), (30, 52))])
    columns = morphology(samples, truth, torch.tensor([2.0]), pixel_scale=0.1)
    assert columns["sources"].tolist() == [2] and columns["sources_samples"].tolist() == [[2, 2]]
    assert columns["sources_matched_samples"].tolist() == [[2, 1]]
