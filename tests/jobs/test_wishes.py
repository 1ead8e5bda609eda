"""What a user asks of the wanted end: its depth and PSF."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from surveybridge.bridge_core.checkpoint import save_checkpoint
from surveybridge.bridge_core.conditions import ConditionRanges, Conditions
from surveybridge.jobs import translate
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.translating.wishes import Wishes
from surveybridge.storage.runs import RunFolder
from tests import tiny
from tests.bridge_core.models import TINY, TO_EUCLID, make_card, random_model

RANGES = ConditionRanges({"euclid": {"noise": {"VIS": (1.0, 3.0)}, "fwhm": {"VIS": (0.13, 0.21)}}})
CARD = replace(make_card(network=replace(TINY, conditions=True)), conditions=RANGES)


def test_what_is_asked_takes_the_place_of_what_is_known_and_survives_the_run_folder():
    wishes = Wishes.read(CARD, TO_EUCLID, ["VIS=1.25"], ["VIS=moffat:0.18,4"])
    assert wishes is not None
    assert Wishes.of_document(wishes.document) == wishes
    known = Conditions((2.0,), (0.16,), (0.0,), (0.3,), 0.02)
    assert wishes.applied(("VIS",), known) == Conditions((1.25,), (0.18,), (0.25,), (0.3,), 0.02)
    only = Wishes.read(CARD, TO_EUCLID, ["VIS=2.5"], [])
    assert only is not None
    assert only.applied(("VIS",), known) == replace(known, noise=(2.5,))


def test_nothing_is_asked_by_default():
    assert Wishes.read(make_card(), TO_EUCLID, (), ()) is None
    assert Wishes.of_document(None) is None


@pytest.mark.parametrize(
    ("noise", "psf", "message"),
    [
        (["VIS=0.2"], [], r"cannot give euclid VIS noise 0\.2 nJy \(trained on 1 nJy to 3 nJy\)"),
        ([], ["VIS=gaussian:0.5"], r"seeing 0\.5"),
        (["r=1"], [], "a band of the wanted end, VIS"),
        (["VIS"], [], "expected BAND=VALUE"),
        (["VIS=-1"], [], "above 0"),
        ([], ["VIS=airy:0.2"], "expected gaussian:FWHM"),
    ],
)
def test_what_cannot_be_given_is_refused(noise, psf, message):
    with pytest.raises(RequestError, match=message):
        Wishes.read(CARD, TO_EUCLID, noise, psf)


def test_a_network_that_is_told_no_conditions_cannot_be_asked():
    with pytest.raises(RequestError, match="is told no such thing"):
        Wishes.read(make_card(), TO_EUCLID, ["VIS=1"], [])


def test_a_gaussian_has_no_wings():
    wishes = Wishes.read(CARD, TO_EUCLID, [], ["VIS=gaussian:0.2"])
    assert wishes is not None
    found = wishes.applied(("VIS",), Conditions.unknown(1))
    assert found.fwhm == (0.2,) and found.wing == (0.0,)
    assert math.isnan(found.noise[0])


def test_what_is_asked_makes_another_run_with_other_pixels(tmp_path):
    tiny.write_store(tmp_path / "tiles")
    model = random_model(CARD)
    torch.nn.init.normal_(model.network.get_parameter("condition_embed.2.weight"), std=0.5)
    checkpoint = str(save_checkpoint(CARD, model.network.state_dict(), tmp_path / "told"))
    means = []
    for name, asked in (("plain", ()), ("deep", ("VIS=1.25",))):
        config = translate.Config(
            store=str(tmp_path / "tiles"), run=str(tmp_path / name), checkpoint=checkpoint, wanted_noise=asked,
            samples=2, steps=1, score_samples=2, score_steps=1, executor="serial", precision="float32",
        )  # fmt: skip
        assert translate.run(config) == 0
        run = RunFolder.open(config.run)
        assert run.run_json.get("wanted") == ({"noise": {"VIS": 1.25}, "psf": {}} if asked else None)
        means.append(run.read_mosaic().mean)
    known = np.isfinite(means[0])
    assert np.array_equal(known, np.isfinite(means[1]))
    assert not np.array_equal(means[0][known], means[1][known])
    first, second = (RunFolder.open(str(tmp_path / name)).run_json["run_id"] for name in ("plain", "deep"))
    assert first != second
