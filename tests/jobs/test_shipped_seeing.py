"""The shipped network that sharpens images through their seeing, on skies that its training has not seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import seeing as benchmark
from surveybridge.bridge_core.checkpoint import check_shipped, load_checkpoint
from surveybridge.bridge_core.metrics import interval_width
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.sharpening import PAD, Linear, tables
from surveybridge.bridge_core.translate import window_samples
from surveybridge.storage.psf import Moffat

pytestmark = pytest.mark.long  # it draws samples


def test_it_knows_more_of_unseen_skies_than_the_wiener_filter_does_and_keeps_their_flux():
    check_shipped("seeing-v1")
    model = load_checkpoint("seeing-v1").to("cpu", "bfloat16")
    direction = model.card.problem.directions[0]
    assert model.card.bridge.kind == "seeing" and direction.wanted.name == "sharp"
    sky, _ = benchmark.skies(12, seed=4711)
    sky = sky[sky.amax((1, 2, 3)) < 600]  # without bright stars, which would decide alone
    generator = torch.Generator().manual_seed(3)
    x1, context, sigma = benchmark.observed(model, sky, Moffat(0.8, 3.0), 1.0, generator)
    how = Sampling(samples=4, steps=12, seed=2)
    drawn = window_samples(model, direction, x1, [(99 * n, 7) for n in range(len(sky))], how, context=context)
    inner = np.s_[..., 8:-8, 8:-8]
    truth, mean = sky[..., PAD:-PAD, PAD:-PAD][inner], drawn.mean(1)[inner]
    bright = truth > 3 * sigma[:, None, None]
    last = model.card.bridge.num_steps - 1
    filtered = Linear.of(*tables(model.card, context), x1, last).x0
    errors = [
        float(((image - truth) / sigma[:, None, None])[bright].square().mean().sqrt())
        for image in (mean, direction.wanted.inverse(filtered)[inner])
    ]
    assert errors[0] < 0.6 * errors[1]
    assert float(mean[bright].sum() / truth[bright].sum()) == pytest.approx(1, abs=0.1)
    std = drawn.std(1)
    factors = np.stack([model.card.calibrated(direction).factors(one.numpy(), direction) for one in drawn.mean(1)])
    raw, ours = (
        float(((mean - truth).abs() < interval_width(0.68, how.samples) * spread[inner])[bright].float().mean())
        for spread in (std, std * torch.from_numpy(factors))
    )
    assert raw > 0.5
    assert ours == pytest.approx(0.68, abs=0.08)
