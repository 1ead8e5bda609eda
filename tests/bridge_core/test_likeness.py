"""Statistics of light against closed forms, and distances that tell like from unlike."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from surveybridge.bridge_core.light import amplitudes, colour, concentration, light, m20, smoothness
from surveybridge.bridge_core.likeness import (
    Measured,
    distances,
    frechet,
    gaussian_fields,
    halves,
    interval,
    kernel_distance,
    measure,
    nearest,
)

SCALE = 0.05


def gaussian(sigma: float, side: int = 48, y: float = 0.0, x: float = 0.0) -> torch.Tensor:
    """A round Gaussian of unit flux, sigma and offsets in arcsec."""
    places = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * SCALE
    return (
        torch.exp(-0.5 * ((places[:, None] - y) ** 2 + (places - x) ** 2) / sigma**2)
        * SCALE**2
        / (2 * math.pi * sigma**2)
    )


def test_the_concentration_of_a_gaussian_and_of_a_disk_are_those_of_their_closed_forms():
    # all of a narrow Gaussian is within the circle: r(q) = sigma sqrt(-2 ln(1 - q))
    expected = 5 * math.log10(math.sqrt(math.log(0.2) / math.log(0.8)))
    assert float(concentration(gaussian(0.2), SCALE)) == pytest.approx(expected, abs=0.02)
    disk = torch.ones(48, 48)  # uniform within the circle: r(q) goes as the root of q
    assert float(concentration(disk, SCALE)) == pytest.approx(5 * math.log10(2.0), abs=0.01)


def test_m20_of_a_gaussian_is_its_closed_form_about_its_own_centre():
    # the brightest fifth of the flux lies within u = r^2 / 2 sigma^2 < -ln 0.8; its share of the moment is
    # 1 - e^-u (1 + u)
    u = -math.log(0.8)
    expected = math.log10(1 - math.exp(-u) * (1 + u))
    assert float(m20(gaussian(0.22), SCALE)) == pytest.approx(expected, abs=0.05)
    assert float(m20(gaussian(0.2, y=0.1, x=-0.05), SCALE)) == pytest.approx(float(m20(gaussian(0.2), SCALE)), abs=0.05)


def test_two_points_are_less_centred_than_one_object():
    two = gaussian(0.1, x=0.4) + gaussian(0.1, x=-0.4)
    assert float(m20(two, SCALE)) > float(m20(gaussian(0.3), SCALE)) + 0.5


def test_smoothness_is_that_of_knots_and_not_of_the_noise_of_the_sky():
    smooth = 100 * gaussian(0.3)
    knots = smooth.clone()
    knots[24::8, 12::8] += 1.0
    assert float(smoothness(knots, SCALE)) > float(smoothness(smooth, SCALE)) + 0.01
    noise = torch.randn(200, 48, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = smoothness(5000 * gaussian(0.3) + noise, SCALE)
    plain = float(smoothness(5000 * gaussian(0.3), SCALE))
    # unsubtracted, the noise of as many pixels would add 0.1
    assert float(noisy.mean()) == pytest.approx(plain, abs=0.02)


def test_empty_sky_has_no_statistics_and_no_colour():
    empty = -gaussian(0.3)
    found = light(empty[None], SCALE)
    assert all(torch.isnan(found[name]).all() for name in ("m20", "concentration", "smoothness", "size", "bulge_gm20"))
    assert torch.isnan(colour(empty, gaussian(0.3), SCALE))
    assert float(colour(gaussian(0.3), 2.5 * gaussian(0.3), SCALE)) == pytest.approx(2.5 * math.log10(2.5))


def test_the_bulge_statistic_follows_from_gini_and_m20():
    found = light(torch.stack([gaussian(0.1), gaussian(0.4)]), SCALE)
    expected = -0.693 * found["m20"] + 4.95 * found["gini"] - 3.96
    torch.testing.assert_close(found["bulge_gm20"], expected)
    assert found["bulge_gm20"][0] > found["bulge_gm20"][1]


def test_a_wave_has_its_amplitude_in_the_ring_of_its_frequency():
    x = torch.arange(32, dtype=torch.float64)
    wave = 3.0 * torch.cos(2 * math.pi * 5 * x / 32).expand(32, 32)
    found = 10 ** amplitudes(wave[None] + 7.0)[0]
    assert float(found[0]) == pytest.approx(7.0)
    in_ring = sum(round(math.hypot(y, z)) == 5 for y in range(-16, 16) for z in range(-16, 16))
    assert float(found[5]) == pytest.approx(2 * 1.5 / in_ring)
    assert float(found[8]) < 1e-9


def stamps(count: int, spread: float, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(math.log(0.25), spread, count))
    return (
        torch.stack([1000 * gaussian(size, 24) for size in sizes]).float()
        + torch.from_numpy(rng.normal(0, 0.2, (count, 24, 24))).float()
    )


def measured(count: int, spread: float, seed: int) -> Measured:
    images = stamps(count, spread, seed)
    blue = torch.linspace(0.3, 0.7, count)[:, None, None] * images
    return measure(images, SCALE, blue, images)


def test_distances_are_the_means_of_group_means_and_grow_with_what_differs():
    source, like, unlike = measured(60, 0.3, 0), measured(60, 0.3, 1), measured(60, 0.9, 2)
    found, other = distances(like, source), distances(unlike, source)
    groups = [found[name] for name in ("morphology", "power spectrum", "colours")]
    assert found["average"] == pytest.approx(sum(groups) / 3)
    assert other["average"] > 2 * found["average"]
    shifted = Measured(
        source.morphology, {name: values + 0.25 for name, values in source.spectrum.items()}, source.colours
    )
    assert distances(shifted, source)["power spectrum"] == pytest.approx(0.25)  # dex, in no unit of the source
    assert distances(shifted, source)["morphology"] == 0


def test_the_floor_is_that_of_halves_of_the_source():
    source, unlike = measured(60, 0.3, 0), measured(60, 0.9, 2)
    of_source, of_unlike = (list(halves(made, source, 12, seed=1)) for made in (source, unlike))
    floor = float(np.mean([other["average"] for _, other in of_source]))
    assert float(np.mean([one["average"] for one, _ in of_source])) == pytest.approx(floor, rel=0.5)
    assert float(np.mean([one["average"] for one, _ in of_unlike])) > 2 * floor
    with pytest.raises(ValueError, match="20 stamps were made, but half of the source are 30"):
        next(halves(source.rows(np.arange(20)), source, 1, seed=0))


def test_gaussian_fields_have_the_power_of_the_images_and_nothing_else_of_them():
    images = stamps(200, 0.3, 0)[:, None].expand(-1, 2, -1, -1) * torch.tensor([1.0, 2.0])[:, None, None]
    fields = gaussian_fields(images, seed=0)
    power, of_fields = ((torch.fft.fft2(x.double()).abs() ** 2).mean(0) for x in (images, fields))
    assert float((of_fields / power).log().mean()) == pytest.approx(0, abs=0.05)
    assert torch.allclose(2 * fields[:, 0], fields[:, 1], rtol=1e-3, atol=1e-3)
    assert abs(float(fields[:, 0, 12, 12].mean())) < float(images[:, 0, 12, 12].mean()) / 2


def test_a_copy_is_found_however_it_is_turned():
    training, others = stamps(30, 0.5, 0), stamps(4, 0.5, 9)
    copies = torch.stack([torch.rot90(training[3], 1, (0, 1)), training[8].flip(1)])
    assert float(nearest(copies, training).max()) < 3e-3
    assert float(nearest(others, training).min()) > 1e-2


def test_the_frechet_distance_of_normal_features_is_its_closed_form():
    rng = torch.Generator().manual_seed(0)
    one = torch.randn(40_000, 3, generator=rng)
    other = 2 * torch.randn(40_000, 3, generator=rng) + torch.tensor([1.0, 0.0, 0.0])
    assert frechet(one, other) == pytest.approx(1 + 3 * (1 - 2) ** 2, rel=0.03)
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)


def test_the_kernel_distance_has_no_bias_and_sees_a_shift():
    rng = torch.Generator().manual_seed(0)
    found = [kernel_distance(*torch.randn(2, 60, 4, generator=rng)) for _ in range(60)]
    assert abs(float(np.mean(found))) < 3 * float(np.std(found)) / math.sqrt(60)
    assert kernel_distance(torch.randn(60, 4, generator=rng), torch.randn(60, 4, generator=rng) + 1) > max(found)


def test_an_interval_holds_its_share():
    assert interval(list(range(1001))) == pytest.approx((25, 975))
