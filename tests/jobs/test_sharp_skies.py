"""Simulated skies without noise, and the observations of them that a training draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.network import NetworkConfig
from surveybridge.bridge_core.objective import WIENER, Objective
from surveybridge.bridge_core.physics import Seeing
from surveybridge.bridge_core.problem import Problem
from surveybridge.bridge_core.sharpening import PAD, SkyBatch, prior_power, tables
from surveybridge.bridge_core.stretch import LinearStretch
from surveybridge.bridge_core.training import step_generator
from surveybridge.jobs.simulating.scenes import SceneSpec
from surveybridge.jobs.simulating.sharp_skies import draw_skies
from surveybridge.jobs.training import skies
from surveybridge.storage.problems import read_problem
from surveybridge.storage.psf import Gaussian, Kolmogorov, psf_of

SPEC = SceneSpec(size=96, windows=6, grid="sharp")
UNITS = {"g": 0.8, "r": 0.8, "i": 1.2}


@pytest.fixture(scope="module")
def windows():
    return draw_skies(SPEC, 31, [2, 5])


def card_of(prior: tuple[float, ...]) -> Card:
    problem = Problem.from_table(read_problem("seeing"))
    ends = [replace(end, pixel_scale=0.1, stretch=LinearStretch(UNITS)) for end in problem.endpoints]
    network = NetworkConfig(base=8, stem=2, norm="pixel", conditions=True)
    bridge = Bridge.seeing("gaussian:0.16", num_steps=50)
    return Card("t", "mosaic", problem.with_endpoints(ends), bridge, network, Objective(WIENER, prior=prior))


def test_lsst_is_the_sharp_sky_through_its_seeing_and_noise(windows):
    inner = np.s_[20:-20, 20:-20]
    for n in range(len(windows.sharp)):
        for band in range(3):
            fwhm, wing = (float(windows.conditions[f"lsst_{name}"][n, band]) for name in ("fwhm", "wing"))
            psf = Kolmogorov(fwhm) if abs(wing - 0.196) < 1e-4 else psf_of(fwhm, wing)
            assert psf is not None
            seeing = Seeing(Gaussian(0.16), psf, 0.1, (0.1, 0.2))
            blurred = seeing.forward(windows.sharp[n, band].double(), 1.0)
            pull = ((windows.lsst[n, band] - blurred) / windows.lsst_sigma[n, band])[inner]
            # where light adds no noise of its own, and a PSF's ellipticity does not show
            faint = blurred[inner] < 2 * windows.lsst_sigma[n, band][inner]
            if int(faint.sum()) > 1000:
                assert float(pull[faint].std()) == pytest.approx(1.0, abs=0.15)
                assert float(pull[faint].mean()) == pytest.approx(0.0, abs=0.3)
    assert bool(torch.isfinite(windows.lsst).all())


def test_observations_that_are_drawn_are_those_of_their_psfs_and_noise(windows, monkeypatch):
    monkeypatch.setattr(skies, "KEPT", 12)
    card = card_of(prior_power(windows.sharp / torch.tensor(list(UNITS.values()))[:, None, None]))
    drawn = skies.Observations(card, 96, (4, 0))
    known = 0
    for n in range(12):
        for band in range(3):
            _, fwhm, wing, _ = drawn.numbers[n, :, band].tolist()
            psf = Kolmogorov(fwhm) if abs(wing - 0.196) < 1e-4 else psf_of(fwhm, wing)
            assert psf is not None
            expected = Seeing(Gaussian(0.16), psf, 0.1, (0.1, 0.2)).log_transfer((96, 96)).exp()
            found = drawn.log_transfer[n, band].exp()
            # those that are drawn may be elliptical
            known += float((found - expected).abs().max()) < 0.06
    assert known >= 30
    context = drawn.draw(40, torch.Generator().manual_seed(1))
    bridge, _ = tables(card, context)
    sky = torch.zeros(40, 3, 96, 96)
    batch = SkyBatch(
        sky, torch.full((40,), 49), torch.randn(sky.shape, generator=torch.Generator().manual_seed(2)), context
    )
    noise = batch.state(bridge, batch.t).std((-2, -1))
    # the told logarithm is of the noise in units of 0.125, and the process has a floor of a hundredth beside it
    told = 0.125 * context.maps[:, :3, 0, 0].exp() * 1.01**0.5
    assert torch.allclose(noise.mean(0), told.mean(0), rtol=0.05)
    ratio = noise / told
    assert float((ratio - 1).abs().mean()) < 0.1


def test_a_step_sees_the_same_whoever_draws_it(windows, monkeypatch):
    monkeypatch.setattr(skies, "KEPT", 4)
    card = card_of((1.0,) * 25)
    drawn = skies.Observations(card, 96, (4, 0))

    def batch() -> SkyBatch:
        generator = step_generator(9, 17, 3)
        turned = skies.turned(windows.sharp[:4], generator)
        return SkyBatch.draw(card, turned, drawn.draw(4, generator), generator)

    one, other = batch(), batch()
    assert torch.equal(one.eps, other.eps) and torch.equal(one.sky, other.sky) and torch.equal(one.t, other.t)
    assert one.context.physics is not None and other.context.physics is not None
    assert torch.equal(one.context.physics.power, other.context.physics.power)
    joined = SkyBatch.join([one, other])
    assert len(joined) == 8 and joined.sky.shape == (8, 3, 96, 96)
    assert joined.state(tables(card, joined.context)[0], joined.t).shape == (8, 3, 96 - 2 * PAD, 96 - 2 * PAD)
