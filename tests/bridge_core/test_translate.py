"""Tiles: the same sky whatever the tiling, the batch and the order, in nJy, and nothing from masked pixels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.patches import blend
from surveybridge.bridge_core.problem import Direction, from_channels, to_channels
from surveybridge.bridge_core.scene import Scene, observed_units
from surveybridge.bridge_core.settings import PatchGrid, Sampling
from surveybridge.bridge_core.stretch import Stretch
from surveybridge.bridge_core.translate import Posterior, translate_tile, window_moments
from tests.bridge_core.models import (
    PROBLEM,
    SOFTENING,
    TO_EUCLID,
    TO_LSST,
    analytic_model,
    gaussian_denoiser,
    random_model,
)

pytestmark = pytest.mark.long

GRID = PatchGrid()
HOW = Sampling(samples=2, steps=2, seed=11, batch=16, precision="float32")
CORE = (64, 128, 64, 128)
# the state is float32, values in network units are below 3, and sinh turns an error of du into du / 0.25 relative
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def sky(bands: int, height: int = 192, width: int = 192) -> tuple[Tensor, Tensor]:
    """Blobs of some tens of nJy on noise, everything valid."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    flux = torch.randn(bands, height, width)
    for peak, yc, xc, s in ((40, 80, 85, 3), (15, 120, 70, 5), (90, 100, 118, 2), (25, 60, 130, 4)):
        flux += peak * torch.exp(-((y - yc) ** 2 + (x - xc) ** 2) / (2 * s * s))
    return flux, torch.ones(bands, height, width, dtype=torch.bool)


def translate(model: Model, flux: Tensor, valid: Tensor, direction: Direction = TO_EUCLID, **changes) -> Posterior:
    how = {"how": HOW} | {name: changes.pop(name) for name in ("how", "corners") if name in changes}
    scene = replace(Scene(flux, valid, origin=(0, 0), core=CORE, psf_fwhm=5.0), **changes)
    return translate_tile(model, model.card.problem.direction(str(direction)), scene, **how)


def assert_same(a: Posterior, b: Posterior, rtol: float = 0.0, atol: float = 0.0) -> None:
    for name in ("mean", "std", "coverage"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), equal_nan=True, rtol=rtol, atol=atol)


# ---- tiling


def test_tiles_stitch_to_what_one_big_tile_gives():
    model, origin = random_model(), (1000, -500)
    flux, valid = sky(3, 256, 256)
    valid[:, 100:103, 90:140] = False  # a bad row across the seam
    whole = translate(model, flux, valid, origin=origin, core=(64, 192, 64, 192))
    mean, std, coverage = torch.zeros(1, 128, 128), torch.zeros(1, 128, 128), torch.zeros(128, 128)
    for y in (0, 64):
        for x in (0, 64):
            part = (slice(y, y + 192), slice(x, x + 192))
            tile = translate(model, flux[:, *part], valid[:, *part], origin=(origin[0] + y, origin[1] + x))
            assert 1 < tile.windows < whole.windows
            to = (slice(y, y + 64), slice(x, x + 64))
            mean[:, *to], std[:, *to], coverage[to] = tile.mean, tile.std, tile.coverage
    assert_same(whole, Posterior(mean, std, coverage, 0), **TOLERANCE)
    assert float(whole.std.nanmean()) > 0.1


@pytest.mark.parametrize("steps", [1, 2])
def test_chunks_with_a_margin_of_the_reach_are_the_tile_translated_whole(steps):
    """The network has no statistics of the window; each of its calls sees one reach further."""
    model, (flux, valid) = random_model(), sky(3)
    margin = steps * (model.card.network.reach + 1)
    how = replace(HOW, steps=steps)
    whole = translate(model, flux, valid, how=replace(how, patches=PatchGrid(2 * margin + 152, 152, margin)))
    chunks = translate(model, flux, valid, how=replace(how, patches=PatchGrid(2 * margin + 24, 24, margin)))
    assert whole.windows < chunks.windows
    assert_same(whole, chunks, **TOLERANCE)
    without = translate(model, flux, valid, how=replace(how, patches=PatchGrid(48, 48, 0)))
    assert not torch.allclose(whole.mean, without.mean, atol=1e-2)


def test_origin_moves_the_noise():
    model, (flux, valid) = random_model(), sky(3)
    here, there = translate(model, flux, valid), translate(model, flux, valid, origin=(40, 80))
    # the same windows of the array, other noise
    assert not torch.allclose(here.mean, there.mean, atol=1e-2)


# ---- batch, order, seed


@pytest.mark.parametrize("batch", [1, 4])
def test_batch_size_does_not_matter(batch):
    model, (flux, valid) = random_model(), sky(3)
    one = translate(model, flux, valid)
    assert_same(one, translate(model, flux, valid, how=replace(HOW, batch=batch)), **TOLERANCE)


def test_order_of_windows_does_not_matter():
    model, (flux, valid) = random_model(), sky(3)
    corners = GRID.windows((192, 192), (0, 0), CORE)
    one = translate(model, flux, valid)
    assert one.windows == len(corners) > 1
    assert_same(one, translate(model, flux, valid, corners=corners[::-1]), **TOLERANCE)


def test_same_seed_gives_the_same_bits_and_another_one_another_draw():
    model, (flux, valid) = random_model(), sky(3)
    one = translate(model, flux, valid)
    assert_same(one, translate(model, flux, valid))
    assert not torch.allclose(one.mean, translate(model, flux, valid, how=replace(HOW, seed=12)).mean, atol=1e-2)


def test_first_samples_stay_when_more_are_drawn():
    model, (flux, valid) = random_model(), sky(3)
    x1 = observed_units(model, TO_EUCLID.observed, flux, valid)
    two = window_moments(model, TO_EUCLID, x1, [(40, 40)], (0, 0), HOW)
    three = window_moments(model, TO_EUCLID, x1, [(40, 40)], (0, 0), replace(HOW, samples=3))
    # the third sample follows from both means; its share of the variance must fit
    third = 3 * three[0] - 2 * two[0]
    expected = (two[1] + 2 / 3 * (third - two[0]) ** 2) / 2
    torch.testing.assert_close(three[1], expected, rtol=1e-2, atol=1e-2)


# ---- units and bands


def identity_model() -> Model:
    return analytic_model(lambda zeta, sigma, x1, direction: x1)


@pytest.mark.parametrize("direction", [TO_EUCLID, TO_LSST], ids=str)
def test_identity_denoiser_returns_the_tile(direction):
    model = identity_model()
    same = dict.fromkeys(SOFTENING, 2.0)
    ends = [replace(end, stretch=Stretch(same).of_bands(end.bands)) for end in model.card.problem.endpoints]
    card = replace(model.card, problem=model.card.problem.with_endpoints(ends))
    flux, valid = sky(1)
    flux = flux.expand(3, -1, -1) if direction == TO_EUCLID else flux
    valid = valid.expand(len(flux), -1, -1)
    out = translate(replace(model, card=card), flux, valid, direction)
    y0, y1, x0, x1 = CORE
    expected = flux[:1, y0:y1, x0:x1].expand(1 if direction == TO_EUCLID else 3, -1, -1)
    torch.testing.assert_close(out.mean, expected, rtol=1e-5, atol=1e-5)
    assert float(out.std.max()) < 1e-3
    torch.testing.assert_close(out.coverage, torch.ones(64, 64), rtol=0, atol=1e-5)


def test_output_is_in_the_wanted_surveys_njy():
    flux, valid = sky(1)
    out = translate(identity_model(), flux, valid, TO_LSST)
    # equal network units: flux scales as the softening of the bands
    y0, y1, x0, x1 = CORE
    for band, name in enumerate("gri"):
        expected = flux[0, y0:y1, x0:x1] * SOFTENING[name] / SOFTENING["VIS"]
        torch.testing.assert_close(out.mean[band], expected, rtol=1e-5, atol=1e-5)


def test_vis_goes_in_three_times_and_comes_out_as_their_mean():
    u = torch.randn(1, 8, 8)
    assert torch.equal(to_channels(u, 3), torch.stack([u[0]] * 3))
    gri = torch.randn(3, 8, 8)
    assert to_channels(gri, 3) is gri
    torch.testing.assert_close(from_channels(gri, 1), gri.mean(0, keepdim=True))
    assert from_channels(gri, 3) is gri

    def denoise(zeta: Tensor, sigma: float, x1: Tensor, direction: Direction) -> Tensor:
        assert direction.index == 0
        assert torch.equal(x1[:, 0], x1[:, 1])
        assert torch.equal(x1[:, 0], x1[:, 2])
        return x1 * torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1)

    flux, valid = sky(1)
    out = translate(analytic_model(denoise), flux, valid, TO_LSST)
    u1 = TO_LSST.observed.forward(flux[:, 64:128, 64:128], 1)
    for band, (name, gain) in enumerate(zip("gri", (0.5, 1.0, 2.0), strict=True)):
        expected = TO_LSST.wanted.fitted.inverse(gain * u1, (name,))[0]
        torch.testing.assert_close(out.mean[band], expected, rtol=1e-4, atol=1e-4)


def test_mean_and_std_are_those_of_the_posterior_in_njy():
    gain, tau = 0.6, 0.2  # the start puts x1 in the place of x0, which must leave no trace
    how = Sampling(
        samples=400, steps=25, order=2, eta=1.0, seed=1, batch=200, precision="float32", patches=PatchGrid(16, 16, 0)
    )
    flux, valid = torch.full((3, 16, 16), 3.0), torch.ones(3, 16, 16, dtype=torch.bool)
    model = analytic_model(gaussian_denoiser(gain, 0.0, tau))
    out = translate(model, flux, valid, core=(0, 16, 0, 16), how=how)
    # VIS is the mean of three channels, each N(gain x1, tau^2) in network units, and sinh follows
    u1 = TO_EUCLID.observed.forward(flux, 3).mean()
    shrunk = tau**2 / (tau**2 + float(model.card.bridge.sigma[0]) ** 2) ** 0.5
    u = gain * u1 + shrunk / 3**0.5 * torch.randn(200_000, 1, 1, 1)
    exact = TO_EUCLID.wanted.inverse(u)
    assert float(out.mean.mean()) == pytest.approx(float(exact.mean()), rel=0.02)
    assert float(out.std.mean()) == pytest.approx(float(exact.std()), rel=0.03)


# ---- masks


def test_masked_pixels_are_not_used_and_not_invented():
    model, (flux, valid) = random_model(), sky(3)
    valid[:, 80:90, 100:110] = False
    valid[1, 70, :] = False
    clean = translate(model, flux, valid)
    for garbage in (torch.nan, 1e30, -7.0):
        assert_same(clean, translate(model, flux.masked_fill(~valid, garbage), valid))
    hole = ~valid.all(0)[64:128, 64:128]
    assert hole.any()
    for image in (clean.mean, clean.std):
        assert image[:, hole].isnan().all()
        assert image[:, ~hole].isfinite().all()
    assert (clean.coverage[hole] == 0).all()
    assert (clean.coverage[~hole] > 0).all()


def test_windows_without_any_observed_pixel_are_skipped():
    model, (flux, valid) = random_model(), sky(3)
    everywhere = translate(model, flux, valid).windows
    valid[:, :, 60:] = False
    out = translate(model, flux, valid, core=(64, 128, 0, 128))
    full = len(GRID.windows((192, 192), (0, 0), (64, 128, 0, 128)))
    assert 0 < out.windows < full
    assert out.mean[:, :, :60].isfinite().all()
    assert out.mean[:, :, 60:].isnan().all()
    assert everywhere > 0


def test_tile_without_any_observed_pixel_is_all_nan():
    model, (flux, valid) = random_model(), sky(3)
    out = translate(model, flux, torch.zeros_like(valid))
    assert out.windows == 0
    assert out.mean.shape == (1, 64, 64)
    assert out.mean.isnan().all()
    assert out.std.isnan().all()
    assert (out.coverage == 0).all()


# ---- uncertainty


def smooth_prior_model(tau: float = 0.25, width: float = 2.0) -> Model:
    """Posterior mean for x0 = x1 + a Gaussian random field, by a filter that, like a network, sees the window's edge.

    In Fourier space the field has power ~ exp(-width^2 k^2); the filter power / (power + sigma^2) acts on the window
    padded by its own border, so that windows which overlap disagree near their edges.
    """

    def denoise(zeta: Tensor, sigma: float, x1: Tensor, direction: Direction) -> Tensor:
        pad = 16
        residual = F.pad(zeta - x1, (pad,) * 4, mode="reflect")
        h, w = residual.shape[-2:]
        ky, kx = torch.fft.fftfreq(h, dtype=torch.float64), torch.fft.rfftfreq(w, dtype=torch.float64)
        power = torch.exp(-((2 * torch.pi * width) ** 2) * (ky[:, None] ** 2 + kx[None, :] ** 2))
        power = tau**2 * 4 * torch.pi * width**2 * power + 1e-9
        filtered = torch.fft.irfft2(torch.fft.rfft2(residual) * power / (power + sigma**2), s=(h, w))
        return x1 + filtered[..., pad:-pad, pad:-pad]

    return analytic_model(denoise)


def test_blended_std_is_that_of_a_single_window_within_five_percent():
    model, how = smooth_prior_model(), Sampling(samples=12, steps=6, seed=2, batch=64, precision="float32")
    flux, valid = torch.full((1, 192, 192), 3.0), torch.ones(1, 192, 192, dtype=torch.bool)
    blended = translate(model, flux, valid, TO_LSST, how=how).std
    # one window that holds core and halo
    single = replace(how, patches=PatchGrid(192, 192, 0))
    x1 = observed_units(model, TO_LSST.observed, flux, valid)
    _, variance = window_moments(model, TO_LSST, x1, [(0, 0)], (0, 0), single)
    alone = variance[0, :, 64:128, 64:128].sqrt()
    assert float(blended.mean() / alone.mean()) == pytest.approx(1, abs=0.05)
    # nor at the borders of the windows (pixels 0 to 7 and 40 to 47 of each stride are in two windows)
    columns = blended.mean((0, 1)) / alone.mean((0, 1))
    assert float((columns - 1).abs().max()) < 0.1
    # the windows do differ: their own overlap is no copy
    mean, variance = window_moments(model, TO_LSST, x1, [(40, 40), (40, 80)], (0, 0), how)
    assert float((mean[0, 0, 20:40, 48:56] - mean[1, 0, 20:40, 8:16]).abs().max()) > 1e-4


def test_averaging_samples_of_windows_with_their_own_noise_would_shrink_it():
    """What the design avoids: with independent noise the mean over two windows has 1 / sqrt 2 of the deviation."""
    model = smooth_prior_model()
    noisy = Sampling(order=1, eta=1.0, sigma_max=5.0)
    how = replace(noisy, samples=60, steps=4, precision="float32", batch=64, patches=PatchGrid(32, 16, 0))
    x1 = torch.zeros(3, 64, 64)
    moments = [window_moments(model, TO_LSST, x1, [(0, 0), (0, 16)], (0, 0), replace(how, seed=s)) for s in (1, 2)]
    shared_mean, shared_var = moments[0]
    overlap = shared_mean[0, 0, 8:24, 20:28] - shared_mean[1, 0, 8:24, 4:12]
    own = moments[0][0][0, 0, 8:24, 20:28] - moments[1][0][1, 0, 8:24, 4:12]
    assert float(overlap.std()) < 0.5 * float(own.std())
    # the blend of moments keeps the deviation even then
    mixed_mean = torch.stack([moments[0][0][0], moments[1][0][1]])
    mixed_var = torch.stack([moments[0][1][0], moments[1][1][1]])
    _, std = blend([(0, 0), (0, 16)], mixed_mean, mixed_var, PatchGrid(32, 16, 0), (8, 24, 20, 28))
    assert float(std[0].mean()) >= 0.95 * float(shared_var[0, 0, 8:24, 20:28].sqrt().mean())


# ---- refusals


def test_bad_requests_are_refused():
    model, (flux, valid) = random_model(), sky(3)
    with pytest.raises(BridgeError, match="samples 1"):
        Sampling(samples=1)
    bare = PROBLEM.with_endpoints([replace(end, stretch=None) for end in PROBLEM.endpoints])
    with pytest.raises(BridgeError, match="no stretch for lsst"):
        translate(replace(model, card=replace(model.card, problem=bare)), flux, valid)
    with pytest.raises(BridgeError, match="63 x 63"):
        translate(model, flux, valid, how=replace(HOW, patches=PatchGrid(63, 40, 8)))
    with pytest.raises(BridgeError, match="192 x 192"):
        translate(model, flux, valid, core=(0, 193, 0, 64))


def test_samples_that_are_held_at_a_time_do_not_grow_with_their_number():
    held = [Sampling(samples=k).group * k for k in (2, 4, 8, 16, 32, 64)]
    assert held == [64] * 6  # four batches
    assert Sampling(samples=200).group == 1
