"""Separable correlation: that of SciPy, and of each image the same bits whatever others there are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from surveybridge.bridge_core.correlate import added_along, blur, correlated, gaussian_blur

LINE = torch.tensor([0.1, 0.5, 1.0, 0.3, -0.2])


@pytest.mark.parametrize("shape", [(1, 9, 7), (3, 40, 24)])
def test_it_is_that_of_scipy_with_zeros_beyond_the_edge(shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    expected = image.numpy().astype(float)
    for axis in (1, 2):
        expected = correlate1d(expected, LINE.numpy(), axis, mode="constant")
    np.testing.assert_allclose(blur(image, LINE), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(correlated(image, LINE), blur(image, LINE)[:, 2:-2, 2:-2])
    for added in (added_along(image, LINE), added_along(image[0], LINE)[None]):
        np.testing.assert_allclose(added, expected[: len(added), 2:-2, 2:-2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", [32, 64, 100, 300])
def test_an_image_has_the_same_bits_alone_and_among_others(dtype, side):
    images = torch.rand(40, side, side, dtype=dtype, generator=torch.Generator().manual_seed(side))
    for length in (5, 11, 19):
        line = torch.linspace(-1.5, 1.2, length, dtype=dtype).exp()
        together = blur(images, line)
        for some in (slice(0, 1), slice(3, 5), slice(7, 24)):
            assert torch.equal(blur(images[some], line), together[some])


def test_no_images_are_no_images():
    assert gaussian_blur(torch.zeros(0, 1, 20, 20), 1.5).shape == (0, 1, 20, 20)
