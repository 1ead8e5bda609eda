"""Is it normal and white? Fixed seeds, so a bound of four standard errors cannot flicker."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from surveybridge.kernels.sky_noise import SkyNoise, sky_noise

SIDE = 512
BOUND = 4 / SIDE  # four standard errors of a correlation over SIDE^2 pixels


@pytest.fixture(scope="module")
def field() -> torch.Tensor:
    """[sample 2, band 4, SIDE, SIDE] at one step."""
    corner = torch.full((2,), -100)
    return sky_noise(SkyNoise(2024, 0, torch.arange(2), corner, corner), 17, (4, SIDE, SIDE))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def test_moments_are_those_of_a_standard_normal(field):
    for z in field.double().flatten(0, 1):
        n = z.numel()
        assert abs(z.mean()) < 4 / n**0.5
        assert abs(z.var() - 1) < 4 * (2 / n) ** 0.5
        assert abs((z**3).mean()) < 4 * (15 / n) ** 0.5
        assert abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5


def test_the_distribution_is_normal_in_every_band(field):
    for z in field.flatten(0, 1):
        assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0, 4.0])
def test_tails_hold_their_share(field, sigma):
    expected = float(field.numel() * stats.norm.sf(sigma))
    for tail in (field > sigma, field < -sigma):
        assert abs(int(tail.sum()) - expected) < 4 * expected**0.5


def test_bands_and_samples_are_independent_also_in_their_squares(field):
    planes = field.flatten(0, 1).flatten(1)
    for power in (1, 2):
        matrix = torch.corrcoef(planes.double() ** power) - torch.eye(8)
        assert matrix.abs().max() < BOUND


@pytest.mark.parametrize("lag", [(0, 1), (1, 0), (1, 1), (0, 2), (64, 0), (0, 64)])
def test_neighbouring_pixels_are_independent_also_in_their_squares(field, lag):
    y, x = lag
    a, b = field[0, :, y:, x:], field[0, :, : SIDE - y, : SIDE - x]
    for power in (1, 2):
        assert abs(correlation(a**power, b**power)) < BOUND / 1.5  # of four bands, less the edge


def test_steps_are_independent(field):
    corner = torch.full((2,), -100)
    noise = SkyNoise(2024, 0, torch.arange(2), corner, corner)
    for step in (16, 18, 17 + 256):
        assert abs(correlation(field, sky_noise(noise, step, (4, SIDE, SIDE)))) < BOUND / 2


def test_the_power_spectrum_is_flat(field):
    power = torch.fft.fft2(field.double()).abs().square() / SIDE**2
    frequency = torch.fft.fftfreq(SIDE)
    radius = torch.hypot(frequency[:, None], frequency[None])
    for low in (0.002, 0.02, 0.1, 0.2, 0.3, 0.4):
        ring = power[..., (radius >= low) & (radius < low + 0.1)]
        assert abs(ring.mean() - 1) < 4 / (ring.numel() / 2) ** 0.5
