"""The anomaly score: what the model cannot reconcile, and nothing of what is masked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from surveybridge.bridge_core import anomaly
from surveybridge.bridge_core.anomaly import anomaly_score, jackknife_std, score_bounds, score_sources
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.scene import Scene
from surveybridge.bridge_core.settings import Scoring
from tests.bridge_core.models import analytic_model, gaussian_denoiser, make_card, random_model

HOW = Scoring(samples=4, midpoint=0.7089, steps=6, seed=3, batch=8, size=32, precision="float32")
CENTRES = [(140, 240), (140, 300), (180, 250)]
ORIGIN = (100, 200)


def blob(centre: tuple[int, int], peak: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(128) + ORIGIN[0], torch.arange(128) + ORIGIN[1], indexing="ij")
    return peak * torch.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 18.0)


def scene(flux: Tensor, valid: Tensor, origin: tuple[int, int] = ORIGIN) -> Scene:
    return Scene(flux, valid, origin, (0, flux.shape[1], 0, flux.shape[2]), 1.0)


def surveys(in_lsst: list[bool]) -> tuple[Scene, Scene]:
    """Three equal sources in Euclid, of which LSST sees those marked; network units agree where both do."""
    seen = sum(blob(c, 10.0) for c, here in zip(CENTRES, in_lsst, strict=True) if here) + torch.zeros(128, 128)
    everything = sum(blob(c, 10.0) for c in CENTRES) + torch.zeros(128, 128)
    scale = torch.tensor([0.7, 0.8, 1.1]).view(3, 1, 1)  # the softenings of gri
    valid = torch.ones(3, 128, 128, dtype=torch.bool)
    return scene(seen * scale, valid), scene(4.0 * everything[None], valid[:1])


def simple_model() -> Model:
    """It believes that Euclid shows what LSST shows, within 0.05 network units."""
    return analytic_model(gaussian_denoiser(1.0, 0.0, 0.05))


# ---- the score itself


def test_score_is_the_published_arithmetic():
    samples, truth = torch.rand(4, 2, 3, 6, 6) * 2 - 1, torch.rand(2, 3, 6, 6) * 2 - 1
    x, y = (samples + 1) / 2, (truth + 1) / 2
    score = anomaly_score(samples, truth)
    smallest = ((x - y) ** 2).mean(2).min(0).values
    torch.testing.assert_close(score.map, smallest)
    torch.testing.assert_close(score.err, smallest.mean((1, 2)))
    per_channel = ((x - y) ** 2).min(0).values.sum((2, 3)) / y.sum((2, 3))
    torch.testing.assert_close(score.norm, per_channel.mean(1))


def test_more_reconstructions_never_raise_the_score():
    samples, truth = torch.rand(6, 2, 3, 6, 6), torch.rand(2, 3, 6, 6)
    scores = torch.stack([anomaly_score(samples[:k], truth, (0.0, 1.0)).norm for k in range(1, 7)])
    assert (scores.diff(dim=0) <= 0).all()


def test_reconstruction_that_is_right_scores_zero():
    truth = torch.rand(2, 3, 6, 6)
    samples = torch.stack([torch.rand_like(truth), truth])
    assert anomaly_score(samples, truth, (0.0, 1.0)).norm.tolist() == [0, 0]


def test_masked_pixels_count_neither_as_error_nor_as_flux():
    samples, truth = torch.rand(4, 1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    valid = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    valid[..., 4:] = False
    masked = anomaly_score(samples, truth, (0.0, 1.0), valid)
    cropped = anomaly_score(samples[..., :4], truth[..., :4], (0.0, 1.0))
    torch.testing.assert_close(masked.norm, cropped.norm)
    torch.testing.assert_close(masked.err, cropped.err)
    assert (masked.map[..., 4:] == 0).all()
    nothing = anomaly_score(samples, truth, (0.0, 1.0), torch.zeros_like(valid))
    assert nothing.norm.tolist() == [0]
    assert nothing.err.tolist() == [0]


# ---- sources of a tile


def test_euclid_source_that_lsst_does_not_have_scores_highest():
    lsst, euclid = surveys([True, False, True])
    scores = score_sources(simple_model(), lsst, euclid, CENTRES, HOW)
    assert scores.score.dtype == torch.float64
    assert scores.score.argmax() == 1
    assert float(scores.score[1]) > 5 * float(scores.score[[0, 2]].max())
    # and the residual is at the source, in nJy, missing flux positive
    assert scores.error.shape == (3, 1, 32, 32)
    peak = int(scores.error[1, 0].flatten().argmax())
    assert abs(peak // 32 - 16) <= 2
    assert abs(peak % 32 - 16) <= 2
    assert float(scores.error[1, 0].max()) > 10
    # consistent ones come back in nJy
    expected = euclid.flux[0, 40 - 16 : 40 + 16, 40 - 16 : 40 + 16]
    assert float((scores.mean[0, 0] - expected).abs().max()) < 0.25 * 40


def test_score_of_a_source_is_the_same_in_any_order_batch_and_company():
    model, (lsst, euclid) = random_model(), surveys([True, False, True])
    scores = score_sources(model, lsst, euclid, CENTRES, HOW)
    back = score_sources(model, lsst, euclid, CENTRES[::-1], replace(HOW, batch=3))
    alone = score_sources(model, lsst, euclid, CENTRES[1:2], HOW)
    for name in ("score", "score_std", "mean", "error"):
        there = getattr(scores, name)
        torch.testing.assert_close(getattr(back, name).flip(0), there, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(getattr(alone, name), there[1:2], rtol=1e-4, atol=1e-4)


def test_sources_scored_in_several_groups_have_the_scores_of_one_group(monkeypatch):
    model, (lsst, euclid) = random_model(), surveys([True, False, True])
    how = replace(HOW, batch=2)
    together = score_sources(model, lsst, euclid, CENTRES, how)
    monkeypatch.setattr(anomaly, "GROUP", 2)  # two sources and one
    apart = score_sources(model, lsst, euclid, CENTRES, how)
    for name in ("score", "score_std", "mean", "error"):
        torch.testing.assert_close(getattr(apart, name), getattr(together, name), rtol=1e-6, atol=1e-6)


def test_neighbouring_tile_gives_the_source_the_same_score():
    model, (lsst, euclid) = random_model(), surveys([True, False, True])
    here = score_sources(model, lsst, euclid, CENTRES[:1], HOW)
    part = (slice(None), slice(10, 100), slice(7, 90))
    there = score_sources(
        model,
        scene(lsst.flux[part], lsst.valid[part], (ORIGIN[0] + 10, ORIGIN[1] + 7)),
        scene(euclid.flux[part], euclid.valid[part], (ORIGIN[0] + 10, ORIGIN[1] + 7)),
        CENTRES[:1],
        HOW,
    )
    torch.testing.assert_close(there.score, here.score, rtol=1e-5, atol=0)
    torch.testing.assert_close(there.mean, here.mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("other", [(140, 300), (180, 240)])
def test_sources_alike_at_two_places_have_noise_of_their_own(other):
    both = blob(CENTRES[0], 10.0) + blob(other, 10.0)
    valid = torch.ones(3, 128, 128, dtype=torch.bool)
    scores = score_sources(
        random_model(),
        scene(both.expand(3, -1, -1), valid),
        scene(both[None], valid[:1]),
        [CENTRES[0], other],
        HOW,
    )
    assert float(scores.score[0]) != float(scores.score[1])
    assert float((scores.mean[0] - scores.mean[1]).abs().max()) > 0.1


def test_scores_repeat_bit_for_bit_and_follow_the_seed():
    model, (lsst, euclid) = random_model(), surveys([True, True, True])
    first = score_sources(model, lsst, euclid, CENTRES, HOW)
    assert torch.equal(first.score, score_sources(model, lsst, euclid, CENTRES, HOW).score)
    other = score_sources(model, lsst, euclid, CENTRES, replace(HOW, seed=4))
    assert not torch.equal(first.score, other.score)


def test_ancestral_settings_of_the_paper_run():
    lsst, euclid = surveys([True, False, True])
    published = replace(HOW, samples=5, steps=40, eta=1.0, order=1)
    scores = score_sources(simple_model(), lsst, euclid, CENTRES, published)
    assert scores.score.argmax() == 1
    assert (scores.score_std > 0).all()


def test_what_masked_pixels_hold_does_not_matter():
    model, (lsst, euclid) = random_model(), surveys([True, False, True])
    valid = [lsst.valid.clone(), euclid.valid.clone()]
    valid[0][1, 30:36, 30:50] = False
    valid[1][0, 44:46, :] = False
    results = []
    for garbage in (0.0, torch.nan, 1e30):
        results.append(
            score_sources(
                model,
                scene(lsst.flux.masked_fill(~valid[0], garbage), valid[0]),
                scene(euclid.flux.masked_fill(~valid[1], garbage), valid[1]),
                CENTRES,
                HOW,
            )
        )
    for other in results[1:]:
        for name in ("score", "score_std", "mean", "error"):
            assert torch.equal(getattr(other, name).nan_to_num(-1), getattr(results[0], name).nan_to_num(-1))
    hole = ~(valid[0].all(0) & valid[1].all(0))[40 - 16 : 40 + 16, 40 - 16 : 40 + 16]
    assert hole.any()
    assert results[0].mean[0, 0][hole].isnan().all()
    assert results[0].mean[0, 0][~hole].isfinite().all()


def test_masked_disagreement_is_no_error():
    lsst, euclid = surveys([True, False, True])
    valid = euclid.valid.clone()
    # the source that LSST lacks, (80, 50) in the array
    valid[0, 80 - 14 : 80 + 15, 50 - 14 : 50 + 15] = False
    open_sky = score_sources(simple_model(), lsst, euclid, CENTRES[2:], HOW)
    seen = score_sources(simple_model(), *surveys([True, False, False]), CENTRES[2:], HOW)
    masked = score_sources(
        simple_model(), surveys([True, False, False])[0], scene(euclid.flux, valid), CENTRES[2:], HOW
    )
    assert float(seen.error.nan_to_num(0).abs().max()) > 10
    assert float(masked.error.nan_to_num(0).abs().max()) < 2
    assert float(open_sky.error.nan_to_num(0).abs().max()) < 5


def test_jackknife_is_that_of_leaving_one_reconstruction_out():
    samples, truth = torch.rand(3, 2, 3, 6, 6), torch.rand(2, 3, 6, 6)
    pairs = [anomaly_score(samples[[i, j]], truth, (0.0, 1.0)).norm.double() for i, j in ((1, 2), (0, 2), (0, 1))]
    without = torch.stack(pairs)
    expected = (2 / 3 * ((without - without.mean(0)) ** 2).sum(0)).sqrt()
    torch.testing.assert_close(jackknife_std(samples, truth, (0.0, 1.0)), expected)
    same = truth.expand(3, -1, -1, -1, -1)
    assert jackknife_std(same, truth, (0.0, 1.0)).tolist() == [0, 0]


def test_every_source_has_the_spread_of_its_own_reconstructions():
    lsst, euclid = surveys([True, False, True])
    scores = score_sources(random_model(), lsst, euclid, CENTRES, HOW)
    assert (scores.score_std > 0).all()
    # one reconstruction fewer, the same others: the score can only rise
    fewer = score_sources(random_model(), lsst, euclid, CENTRES, replace(HOW, samples=3))
    assert (fewer.score >= scores.score).all()


def test_source_beside_the_edge_of_the_array_counts_what_is_there():
    model, (lsst, euclid) = simple_model(), surveys([True, True, True])
    scores = score_sources(model, lsst, euclid, [(ORIGIN[0] + 2, ORIGIN[1] + 2)], HOW)
    assert scores.score.isfinite().all()
    assert scores.mean[0, 0, :14].isnan().all()
    assert scores.mean[0, 0, 14:, 14:].isfinite().all()


def test_no_sources_give_empty_scores():
    lsst, euclid = surveys([True, True, True])
    scores = score_sources(simple_model(), lsst, euclid, [], HOW)
    assert scores.score.shape == (0,)
    assert scores.mean.shape == (0, 1, 32, 32)


def test_scoring_that_has_no_spread_is_refused():
    with pytest.raises(BridgeError, match="samples 1"):
        Scoring(samples=1)


def test_bounds_are_the_clamp_where_there_is_one_and_sky_to_bright_elsewhere():
    model = simple_model()
    low, high = score_bounds(model)
    assert low == 0
    assert high == pytest.approx(1.9, abs=0.01)  # 0.25 asinh(1000)
    bare = make_card(clamp=(-1.0, 1.0))
    assert score_bounds(replace(model, card=bare)) == (-1.0, 1.0)


def test_source_with_too_little_left_has_no_score():
    model, (lsst, euclid) = simple_model(), surveys([True, True, True])
    mostly_masked = scene(lsst.flux, torch.zeros_like(lsst.valid))
    mostly_masked.valid[:, :20, :] = True
    scores = score_sources(model, mostly_masked, euclid, [(ORIGIN[0] + 32, ORIGIN[1] + 32)], HOW)
    assert scores.score.isnan().all()
    assert scores.score_std.isnan().all()
