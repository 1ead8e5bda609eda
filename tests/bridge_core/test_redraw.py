"""Samples drawn again: those of the translation to the bit, wherever the region lies, for as few network calls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from surveybridge.bridge_core import translate as core
from surveybridge.bridge_core.redraw import redraw_tile
from surveybridge.bridge_core.sampler import sample
from surveybridge.bridge_core.scene import Scene
from surveybridge.bridge_core.settings import PatchGrid, Sampling
from surveybridge.bridge_core.translate import translate_tile
from tests.bridge_core.models import TO_EUCLID, TO_LSST, random_model

pytestmark = pytest.mark.long

# small windows, so that there is more than one group of them; and they share batches, as 3 does not divide 4
HOW = Sampling(samples=3, steps=2, seed=5, batch=4, precision="float32", patches=PatchGrid(32, 14, 8))
ORIGIN = (1000, -520)
CORE = (64, 200, 64, 160)


@pytest.fixture(scope="module", params=[TO_EUCLID, TO_LSST], ids=str)
def tile(request):
    torch.manual_seed(2)
    flux = 5 * torch.randn(len(request.param.observed.bands), 264, 224)
    valid = torch.ones(flux.shape, dtype=torch.bool)
    valid[:, 100:104, 70:130] = False
    return random_model(), request.param, Scene(flux, valid, ORIGIN, CORE, 5.0), HOW


def redraw(tile, region):
    model, direction, scene, how = tile
    return redraw_tile(model, direction, scene, how, region)


def test_moments_of_the_samples_are_the_translation_to_the_bit(tile):
    whole = translate_tile(*tile)
    assert whole.windows > HOW.group and whole.windows % HOW.group
    posterior, samples = redraw(tile, CORE)
    for name in ("mean", "std", "coverage"):
        assert torch.equal(getattr(posterior, name).nan_to_num(-1), getattr(whole, name).nan_to_num(-1)), name
    assert samples.shape == (HOW.samples, *whole.mean.shape)
    hole = whole.coverage <= 0
    assert hole.any() and samples[:, :, hole].isnan().all() and samples[:, :, ~hole].isfinite().all()
    mean = samples.double().mean(0)[:, ~hole]
    torch.testing.assert_close(mean, whole.mean.double()[:, ~hole], rtol=1e-6, atol=1e-6)
    assert (samples[0] - samples[1])[:, ~hole].abs().mean() > 0.01


@pytest.mark.parametrize("region", [(64, 65, 64, 65), (95, 130, 100, 140), (150, 200, 120, 160)])
def test_a_part_is_cut_from_the_whole_bit_for_bit(tile, region):
    whole, everything = redraw(tile, CORE)
    part, samples = redraw(tile, region)
    there = (slice(region[0] - CORE[0], region[1] - CORE[0]), slice(region[2] - CORE[2], region[3] - CORE[2]))
    assert torch.equal(samples.nan_to_num(-1), everything[:, :, *there].nan_to_num(-1))
    assert torch.equal(part.mean.nan_to_num(-1), whole.mean[:, *there].nan_to_num(-1))
    assert torch.equal(part.std.nan_to_num(-1), whole.std[:, *there].nan_to_num(-1))


def test_batches_without_a_window_of_the_region_are_left_out(tile, monkeypatch):
    rows: list[int] = []

    def count(model, conditions, *arguments, **named):
        rows.append(len(conditions))
        return sample(model, conditions, *arguments, **named)

    monkeypatch.setattr(core, "sample", count)
    posterior, _ = redraw(tile, (150, 151, 150, 151))
    assert 0 < posterior.windows <= 4
    # a window's 3 samples lie in at most 2 batches of 4, which may begin with its neighbour's
    assert 0 < sum(rows) <= 2 * HOW.batch * posterior.windows
    rows.clear()
    whole = translate_tile(*tile)
    assert sum(rows) == whole.windows * HOW.samples > 4 * 2 * HOW.batch


def test_a_region_that_nobody_observed_is_nan(tile):
    model, direction, scene, how = tile
    nothing = replace(scene, valid=torch.zeros_like(scene.valid))
    posterior, samples = redraw_tile(model, direction, nothing, how, (70, 80, 70, 90))
    assert posterior.windows == 0
    assert samples.shape[-2:] == (10, 20) and samples.isnan().all() and posterior.mean.isnan().all()


def test_another_seed_is_another_sample(tile):
    region = (150, 160, 150, 160)
    _, one = redraw(tile, region)
    _, other = redraw((*tile[:3], replace(HOW, seed=6)), region)
    assert not torch.allclose(one, other, atol=1e-2)
