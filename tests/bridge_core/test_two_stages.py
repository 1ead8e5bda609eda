"""Scoring in two stages: every source has its lens score, and only those in front reconstructions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from surveybridge.bridge_core.anomaly import SourceScores, score_sources, score_windows
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.residuals import Cutouts
from surveybridge.bridge_core.scene import Scene
from surveybridge.bridge_core.settings import Precision, Scoring
from tests.bridge_core.models import make_card, random_model
from tests.bridge_core.test_residuals import discriminant

HOW = Scoring(samples=3, steps=2, seed=5, batch=4, precision="float32")
LENS = ("score", "score_std", "false_alarm")
MADE = ("published", "mean", "error")
CENTRES = [(y, x) for y in (130, 170, 210) for x in (230, 270, 310)]
EVERY_WAY = pytest.mark.parametrize("precision", ["float32", "bfloat16"])


def model_of(precision: Precision = "float32") -> Model:
    model = random_model(replace(make_card(), discriminant=discriminant()))
    return model.to(torch.device("cpu"), precision)


def sky(lost: tuple[slice, slice] | None = None) -> tuple[Scene, Scene]:
    """Nine places of a tile of noise, as both surveys see it."""
    torch.manual_seed(11)
    lsst, euclid = 3 * torch.randn(3, 160, 160), 10 * torch.randn(1, 160, 160)
    valid = torch.ones(3, 160, 160, dtype=torch.bool)
    if lost is not None:
        valid[(slice(None), *lost)] = False
    box = (0, 160, 0, 160)
    return Scene(lsst, valid, (90, 190), box, 1.0), Scene(euclid, valid[:1], (90, 190), box, 1.0)


def counted(model: Model, centres: list[tuple[int, int]], how: Scoring) -> tuple[SourceScores, list[int]]:
    """Scores, and the number of rows in each call of the network meanwhile."""
    rows: list[int] = []
    hook = model.network.init_conv.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    found = score_sources(model, *sky(), centres, how)
    hook.remove()
    return found, rows


@EVERY_WAY
def test_what_one_stage_gives_is_what_two_give_as_far_as_they_go(precision):
    model, how = model_of(precision), replace(HOW, precision=precision)
    whole = score_sources(model, *sky(), CENTRES, how)
    assert whole.reconstructed.all() and all(getattr(whole, name).isfinite().all() for name in MADE)
    rate = float(whole.false_alarm.sort().values[3])
    found = score_sources(model, *sky(), CENTRES, replace(how, reconstruct=rate))
    for name in LENS:
        assert torch.equal(getattr(found, name), getattr(whole, name))
    assert torch.equal(found.reconstructed, whole.false_alarm <= rate)
    assert int(found.reconstructed.sum()) == 4
    for name in MADE:
        there, here = getattr(whole, name), getattr(found, name)
        assert here[~found.reconstructed].isnan().all()
        there, here = there[found.reconstructed], here[found.reconstructed]
        if precision == "bfloat16":  # whose sums do not depend on the batch
            assert torch.equal(here, there)
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


def test_those_in_front_are_reconstructed_whoever_else_there_is():
    model = model_of()
    rate = float(score_sources(model, *sky(), CENTRES, HOW).false_alarm.sort().values[4]) * 1.001
    how = replace(HOW, reconstruct=rate)
    together = score_sources(model, *sky(), CENTRES, how)
    assert together.reconstructed.sum() == 5
    back = score_sources(model, *sky(), CENTRES[::-1], replace(how, batch=2))
    assert torch.equal(back.reconstructed.flip(0), together.reconstructed)
    for place in (0, 3, 7):  # alone, and cut out as another tile would
        observed, wanted = (replace_scene(scene, y=(6, 155), x=(3, 160)) if place % 2 else scene for scene in sky())
        alone = score_sources(model, observed, wanted, [CENTRES[place]], how)
        assert bool(alone.reconstructed[0]) == bool(together.reconstructed[place])
        torch.testing.assert_close(alone.mean[0], together.mean[place], rtol=1e-4, atol=1e-3, equal_nan=True)


def replace_scene(scene: Scene, y: tuple[int, int], x: tuple[int, int]) -> Scene:
    part = (slice(None), slice(*y), slice(*x))
    origin = (scene.origin[0] + y[0], scene.origin[1] + x[0])
    return Scene(scene.flux[part], scene.valid[part], origin, (0, y[1] - y[0], 0, x[1] - x[0]), 1.0)


def test_a_source_that_is_not_reconstructed_costs_its_lens_score_alone():
    model = model_of()
    found, rows = counted(model, CENTRES, replace(HOW, reconstruct=0.0))
    draws = discriminant().draws
    assert sum(rows) == 2 * draws * len(CENTRES)
    assert not found.reconstructed.any() and found.score.isfinite().all() and found.published.isnan().all()
    assert rows == [3] * len(rows)  # nine of at most four are three of three, and no four, four and one
    one = float(found.false_alarm.min())
    _, rows = counted(model, CENTRES[:7], replace(HOW, reconstruct=one))
    lens = 2 * draws * 2
    assert sorted(set(rows[:lens])) == [3, 4]
    reconstructed = int((found.false_alarm[:7] <= one).sum())
    assert sum(rows[lens:]) == reconstructed * HOW.samples * HOW.steps


def test_without_a_lens_score_everything_is_reconstructed():
    model, (observed, wanted) = random_model(), sky()
    whole, few = (
        score_sources(model, observed, wanted, CENTRES, replace(HOW, reconstruct=share)) for share in (1.0, 0.01)
    )
    for one, other in zip(whole, few, strict=True):
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
    assert few.reconstructed.all() and torch.equal(few.score, few.published)


def test_what_is_largely_masked_is_no_candidate_and_is_reconstructed_only_with_all_others():
    model, scenes = model_of(), sky(lost=(slice(0, 74), slice(0, 80)))
    whole, few = (score_sources(model, *scenes, CENTRES, replace(HOW, reconstruct=one)) for one in (1.0, 0.9999))
    unknown = whole.score.isnan()
    assert unknown.tolist() == [True] + [False] * 8
    assert whole.reconstructed.all() and whole.published[0].isnan()
    assert not few.reconstructed[0] and few.reconstructed[1:].any()
    assert few.false_alarm[0].isnan()


def test_cutouts_of_pairs_are_scored_as_those_of_tiles():
    model = model_of()
    torch.manual_seed(2)
    lsst, euclid = 0.1 * torch.randn(2, 5, 3, 64, 64)
    pairs = Cutouts(
        lsst, euclid[:, :1].expand(-1, 3, -1, -1), torch.ones(5, 1, 64, 64).bool(), [(0, 64 * k) for k in range(5)]
    )
    whole = score_windows(model, pairs, HOW)
    rate = float(whole.false_alarm.median())
    few = score_windows(model, pairs, replace(HOW, reconstruct=rate))
    assert few.reconstructed.sum() == 3 and torch.equal(few.score, whole.score)
    torch.testing.assert_close(few.published[few.reconstructed], whole.published[few.reconstructed], rtol=1e-5, atol=0)


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_what_is_no_rate_is_refused(share):
    with pytest.raises(BridgeError, match=r"score reconstruct .* 0 \(none\) to 1 \(all\)"):
        Scoring(reconstruct=share)
