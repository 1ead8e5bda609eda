"""Shape statistics on images whose shapes are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from surveybridge.bridge_core.morphology import CORE_ARCSEC, RADIUS_ARCSEC, gini, power_spectrum, shapes, wasserstein

SCALE = 0.05
SIDE = 128


def gaussian(sigma_x: float, sigma_y: float, angle: float = 0.0) -> torch.Tensor:
    """Elliptical Gaussian, standard deviations in arcsec, turned by `angle`."""
    y, x = torch.meshgrid(*2 * [(torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2) * SCALE], indexing="ij")
    u, v = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
    return torch.exp(-0.5 * ((u / sigma_x) ** 2 + (v / sigma_y) ** 2))


def test_moments_of_a_gaussian_are_those_of_its_product_with_the_weight():
    """1 / s^2 adds up in a product of Gaussians; the weight has 0.5 arcsec."""
    wide, narrow = (1 / (1 / s**2 + 1 / 0.5**2) for s in (0.3, 0.2))
    for angle in (0.0, 0.7, 2.0):
        found = shapes(gaussian(0.3, 0.2, angle), SCALE)
        assert float(found["size"]) == pytest.approx(math.sqrt(wide + narrow), rel=1e-3)
        assert float(found["ellipticity"]) == pytest.approx((wide - narrow) / (wide + narrow), rel=1e-2)


def test_a_round_galaxy_is_round_symmetric_and_has_its_bulge():
    found = shapes(gaussian(0.3, 0.3), SCALE)
    assert float(found["ellipticity"]) < 1e-6 and float(found["asymmetry"]) < 1e-9
    inside = [1 - math.exp(-0.5 * (r / 0.3) ** 2) for r in (CORE_ARCSEC, RADIUS_ARCSEC)]
    assert float(found["bulge"]) == pytest.approx(inside[0] / inside[1], rel=0.01)
    assert float(shapes(gaussian(0.15, 0.15), SCALE)["bulge"]) > float(found["bulge"])


def test_half_a_galaxy_is_as_asymmetric_as_can_be():
    half = gaussian(0.3, 0.3)
    half[: SIDE // 2] = 0
    assert float(shapes(half, SCALE)["asymmetry"]) == pytest.approx(1, abs=1e-6)


def test_gini_is_its_definition_by_pairs():
    values = torch.rand(7, dtype=torch.float64) - 0.3
    x = values.abs()
    pairs = (x[:, None] - x).abs().sum() / (2 * x.mean() * 7 * 6)
    assert float(gini(values)) == pytest.approx(float(pairs), rel=1e-12)
    assert float(gini(torch.ones(50))) == pytest.approx(0, abs=1e-6)
    assert float(gini(torch.eye(50)[0])) == pytest.approx(1, abs=1e-6)


def test_empty_sky_has_no_size_and_leading_axes_pass_through():
    images = torch.stack([gaussian(0.3, 0.2), -gaussian(0.3, 0.2)]).expand(3, 2, SIDE, SIDE)
    found = shapes(images, SCALE)
    assert all(values.shape == (3, 2) for values in found.values())
    assert found["size"][:, 1].isnan().all() and not found["size"][:, 0].isnan().any()


def test_power_of_white_noise_is_flat_and_a_wave_stands_in_its_bin():
    flat = power_spectrum(torch.randn(300, 64, 64)).mean(0)
    assert float(flat.std() / flat.mean()) < 0.05
    wave = torch.cos(2 * math.pi * 0.27 * torch.arange(64.0)).expand(64, 64)
    assert int(power_spectrum(wave).argmax()) == int(0.27 / 0.5 * 16)


def test_distance_of_shifted_normals_is_the_shift():
    one, other = np.random.default_rng(1).normal(size=(2, 20_000)) + np.array([[0.5], [0.0]])
    assert wasserstein(one, other) == pytest.approx(0.5, abs=0.03)
    assert wasserstein(other, np.append(other, np.nan)) == 0
    assert math.isnan(wasserstein(one, np.ones(5)))
