"""Bridges by Fourier mode: chains, noise of a finite reach, and bits that overlapping windows share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.physics import Seeing
from surveybridge.bridge_core.spectral import REACH, SpectralBridge, coloured_noise, convolved, finite_kernel
from surveybridge.kernels.sky_noise import SkyNoise
from surveybridge.storage.psf import Gaussian, Moffat, Psf, PsfImage

SHAPE = (64, 64)
MOFFAT = Moffat(0.74, 3.1)


def bridge_of(psf: Psf = MOFFAT, correlation: float = 0.0) -> SpectralBridge:
    share = torch.logspace(-4, 0, 50, dtype=torch.float64)
    log_transfer = Seeing(Gaussian(0.16), psf, 0.1).log_transfer(SHAPE)
    lags = correlation ** torch.arange(33, dtype=torch.float64)
    line = torch.fft.fft(torch.cat([lags, lags[1:-1].flip(0)])).real
    return SpectralBridge(share, log_transfer, 1.7 * line[:, None] * line[None, :33])


def window(y0: int, x0: int, sample: int = 3) -> SkyNoise:
    return SkyNoise(77, 1, *(torch.tensor([v], dtype=torch.int32) for v in (sample, y0, x0)))


def test_a_mode_goes_as_the_bridge_of_its_own_numbers():
    spectral = bridge_of(correlation=0.4)
    for mode in [(0, 0), (3, 5), (60, 11)]:
        a, s = (torch.stack([f(t) for t in range(50)])[(slice(None), *mode)] for f in (spectral.a, spectral.s))
        one = Bridge("diffusion", {}, a, torch.zeros_like(a), s)
        for eta in (0.0, 0.6, 1.0):
            k, p, _, w = one.transition(44, 21, eta)
            found = spectral.transition(44, 21, eta)
            assert [float(v[mode]) for v in found] == pytest.approx([k, p, w], rel=1e-9, abs=1e-12)


def test_two_steps_up_are_one():
    """A state at m1, blurred and with the noise of the way to m2, is a state at m2: so is an image of another night."""
    spectral = bridge_of(correlation=0.3)
    for low, high in ((10, 30), (30, 49)):
        ratio = spectral.a(high) / spectral.a(low)
        added = spectral.s(high) ** 2 - ratio.abs() ** 2 * spectral.s(low) ** 2
        assert float(added.min()) > 0
        k, p, w = spectral.transition(high, low)
        # and down again: the marginals of the lower step
        assert torch.allclose(k * spectral.a(high) + p, spectral.a(low))
        assert torch.allclose(k**2 * spectral.s(high) ** 2 + w**2, spectral.s(low) ** 2)


def test_a_psf_without_symmetry_has_complex_steps():
    y, x = np.mgrid[-12:13, -12:13]
    stamp = np.exp(-(x**2 + y**2) / 18.0) + 0.3 * np.exp(-((x - 4) ** 2 + y**2) / 18.0)
    spectral = bridge_of(PsfImage.of(stamp, 0.1, "a test"))
    assert spectral.log_transfer.is_complex()
    k, p, w = spectral.transition(40, 12)
    assert torch.allclose(k * spectral.a(40) + p, spectral.a(12))
    assert torch.allclose(k.abs() ** 2 * spectral.s(40) ** 2 + w**2, spectral.s(12) ** 2)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_noise_of_the_sky_has_the_power_that_is_asked(correlation):
    spectral = bridge_of(correlation=correlation)
    factor = spectral.s(49)
    noise = SkyNoise(
        5, 0, torch.arange(200, dtype=torch.int32), *(torch.zeros(200, dtype=torch.int32) for _ in range(2))
    )
    z = coloured_noise(noise, 4, factor[None], (1, *SHAPE)).double()[:, 0]
    assert float(z.var()) == pytest.approx(1.7, rel=0.02)
    # in windows that do not repeat: by the covariance at lags
    expected = torch.fft.irfft2(spectral.power, s=SHAPE)
    for dy, dx in ((0, 1), (1, 0), (1, 2), (4, 0)):
        found = (z[:, dy:, dx:] * z[:, : 64 - dy, : 64 - dx]).mean()
        assert float(found) == pytest.approx(float(expected[dy, dx]), abs=0.02 * 1.7)


def test_overlapping_windows_share_the_bits_of_their_noise():
    factor = bridge_of(correlation=0.6).transition(30, 12).w[None].expand(3, -1, -1)
    one = coloured_noise(window(1000, -40), 7, factor, (3, 64, 64))
    other = coloured_noise(window(1037, -9), 7, factor, (3, 48, 80))
    assert torch.equal(one[:, :, 37:, 31:], other[:, :, :27, :33])
    assert float(one.std()) > 0.01
    together = SkyNoise(77, 1, *(torch.tensor(v, dtype=torch.int32) for v in ([9, 3, 2], [0, 1000, 5], [0, -40, 5])))
    assert torch.equal(coloured_noise(together, 7, factor, (3, 64, 64))[1], one[0])


def test_a_finite_kernel_keeps_the_flux_and_nearly_all_of_the_transfer():
    factor = bridge_of().a(49)
    kernel = finite_kernel(factor, 64)
    assert kernel.shape == (2 * REACH + 1, 2 * REACH + 1)
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-12)
    image = torch.zeros(1, 64 + 2 * REACH, 64 + 2 * REACH)
    image[0, 40, 45] = 250.0
    finite = convolved(image, kernel)[0]
    whole = torch.fft.irfft2(torch.fft.rfft2(image[0, REACH:-REACH, REACH:-REACH].double()) * factor, s=SHAPE)
    assert float((finite - whole).abs().max() / whole.max()) < 0.06
    assert math.isclose(float(finite.sum()), 250.0, rel_tol=1e-4)
    with pytest.raises(BridgeError, match="give more modes"):
        finite_kernel(factor[:16, :9], 16)
