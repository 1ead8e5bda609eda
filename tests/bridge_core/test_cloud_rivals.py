"""Rivals of a bridge that need no training or one fit: three power laws, polarisation angles, widths of structure."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.polarisation import LEAST, angle_dispersion, field_strength
from surveybridge.bridge_core.power_laws import PowerLaws
from surveybridge.bridge_core.widths import DEPTH, channels, depth

# -- three power laws --


def broken(x, breaks=(21.2, 22.1), slopes=(0.4, 1.3, 2.2)):
    b1, b2 = breaks
    return (
        1.5
        + slopes[0] * (x - 21)
        + (slopes[1] - slopes[0]) * np.maximum(x - b1, 0)
        + (slopes[2] - slopes[1]) * np.maximum(x - b2, 0)
    )


def test_broken_power_laws_are_found_again():
    rng = np.random.default_rng(1)
    x = rng.uniform(20.5, 23, 40_000)
    laws = PowerLaws.fit(torch.from_numpy(10**x), torch.from_numpy(10 ** (broken(x) + rng.normal(0, 0.1, x.shape))))
    _, c1, c2, c3 = laws.coefficients
    assert (c1, c1 + c2, c1 + c2 + c3) == pytest.approx((0.4, 1.3, 2.2), abs=0.05)
    assert laws.breaks == pytest.approx((21.2, 22.1), abs=0.07)
    grid = np.linspace(20.5, 23, 50)
    np.testing.assert_allclose(laws(torch.from_numpy(10**grid)).log10(), broken(grid), atol=0.02)


def test_no_other_breaks_of_its_grid_fit_better():
    rng = np.random.default_rng(2)
    x = np.sort(rng.normal(0, 0.5, 500))
    y = np.sin(3 * x) + rng.normal(0, 0.1, 500)
    laws = PowerLaws.fit(torch.from_numpy(10**x), torch.from_numpy(10**y))
    squares = float(((laws(torch.from_numpy(10**x)).log10().numpy() - y) ** 2).sum())
    breaks = np.quantile(x, np.linspace(0.02, 0.98, 40))
    best = min(
        np.linalg.lstsq(np.stack([np.ones(500), x, np.maximum(x - a, 0), np.maximum(x - b, 0)], 1), y, rcond=None)[1][0]
        for i, a in enumerate(breaks)
        for b in breaks[i + 1 :]
    )
    assert squares == pytest.approx(best, rel=1e-6)


def test_pixels_without_data_are_left_out_of_the_fit_and_have_no_prediction():
    rng = np.random.default_rng(3)
    x = rng.uniform(20.5, 23, 3000)
    column, density = torch.from_numpy(10**x), torch.from_numpy(10 ** broken(x))
    whole = PowerLaws.fit(column, density)
    spoilt = torch.cat([column, torch.tensor([torch.nan, 0.0, 1e22, -1e22])])
    more = torch.cat([density, torch.tensor([1e9, 1e9, torch.nan, 1e9])])
    assert PowerLaws.fit(spoilt, more) == whole
    assert torch.isfinite(whole(spoilt)).tolist()[-4:] == [False, False, True, False]


def test_a_pure_power_law_and_few_different_values_are_fitted_too():
    column = torch.tensor([1e20, 1e21, 1e22, 1e23] * 5, dtype=torch.float64)
    laws = PowerLaws.fit(column, 1e-19 * column)
    np.testing.assert_allclose(laws(column) / (1e-19 * column), 1, rtol=1e-3)
    with pytest.raises(BridgeError, match="with different observed values"):
        PowerLaws.fit(torch.full((40,), 1e21), torch.full((40,), 1e3))
    with pytest.raises(BridgeError, match="but 4 of 4 have both values"):
        PowerLaws.fit(column[:4], column[:4])


# -- polarisation --


@pytest.mark.parametrize(("scatter", "mean"), [(0.1, 0.3), (0.3, math.pi / 2), (0.25, -1.5)])
def test_the_scatter_of_angles_is_found_across_the_seam(scatter, mean):
    generator = torch.Generator().manual_seed(4)
    psi = mean + scatter * torch.randn(2, 41, 41, generator=generator, dtype=torch.float64)
    psi = (psi + math.pi / 2) % math.pi - math.pi / 2
    found = angle_dispersion(psi, 41)[:, 20, 20]
    assert found.tolist() == pytest.approx([scatter] * 2, rel=0.05)


def test_boxes_end_at_the_edge_and_at_gaps():
    psi = 0.2 * torch.randn(1, 15, 15, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    psi[0, :, 8:] = torch.nan
    found = angle_dispersion(psi, 5)
    corner = psi[0, :3, :3]
    length = torch.hypot((2 * corner).cos().mean(), (2 * corner).sin().mean())
    assert float(found[0, 0, 0]) == pytest.approx(0.5 * math.sqrt(-2 * math.log(float(length))))
    assert torch.isfinite(found[0, :, 9]).all() and torch.isnan(found[0, :, 10:]).all()
    assert (angle_dispersion(torch.full((1, 9, 9), 0.7), 3) == LEAST).all()


def test_the_field_is_that_of_crutcher_in_his_units():
    # Crutcher 2004, eq. (2): B_pos = 9.3 sqrt(n(H2)) dv / sigma_phi uG; dv the FWHM in km/s, sigma_phi in degrees
    molecules, width, degrees = 3e4, 0.9, 12.0
    found = field_strength(
        torch.tensor(2 * molecules, dtype=torch.float64),
        torch.tensor(1e5 * width / math.sqrt(8 * math.log(2))),
        torch.tensor(math.radians(degrees)),
    )
    assert float(found) == pytest.approx(9.3 * math.sqrt(molecules) * width / degrees, rel=0.02)


# -- widths --


def blobs(sigma, side=96):
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    middle = (side - 1) / 2
    return torch.exp(-((y - middle) ** 2 + (x - middle) ** 2) / (2 * sigma**2))[None]


def test_channels_add_up_and_none_is_negative():
    image = blobs(5) + 0.3 + 0.2 * torch.rand(1, 96, 96, generator=torch.Generator().manual_seed(6))
    parts, scales = channels(image)
    assert len(parts) == len(scales) and (parts >= -1e-12).all()
    torch.testing.assert_close(parts.sum(0), image)


def test_a_wider_blob_is_deeper_in_proportion():
    depths = [float(depth(blobs(sigma) + 1e-6)[0, 47, 47]) for sigma in (3.0, 6.0)]
    assert depths[1] / depths[0] == pytest.approx(2, rel=0.25)
    # half of a Gaussian's peak has diffused away when the kernel is as wide as it
    assert depths[0] == pytest.approx(DEPTH * 3.0, rel=0.25)


def test_the_unit_of_a_column_does_not_change_its_depth():
    image = blobs(4) + 0.1
    torch.testing.assert_close(depth((1e22 * image).float()), depth(image), rtol=1e-4, atol=0)
