"""Intervals of a checkpoint that sharpens images, calibrated on simulated skies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.metrics import interval_width
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.sharpening import PAD, observed_windows
from surveybridge.bridge_core.translate import window_samples
from surveybridge.jobs.reporting.page import _recalibration
from surveybridge.jobs.training import skies as drawn_skies
from surveybridge.jobs.translating.config import Config
from surveybridge.jobs.translating.engine import translate
from surveybridge.jobs.translating.request import check
from surveybridge.storage.pairs import read_pairs
from surveybridge.storage.runs import RunFolder
from tests import tiny
from tests.jobs.test_translate_seeing import checkpoint, one_tile, seen

pytestmark = pytest.mark.long  # it draws samples

LEARNT, K, STEPS = 32, 4, 5
HOW = [f"--samples={K}", f"--steps={STEPS}"]


@pytest.fixture(scope="module")
def skies(tmp_path_factory) -> str:
    """44 sharp skies, 32 of which a calibration may see."""
    store = tmp_path_factory.mktemp("skies") / "skies.zarr"
    assert (
        main(["simulate-pairs", "--grid", "sharp", "--out", str(store), "--count", "44", "--executor", "serial"]) == 0
    )
    return str(store)


@pytest.fixture(scope="module")
def calibrated(skies, tmp_path_factory) -> str:
    """A checkpoint of random weights with the factors of its intervals."""
    folder = tmp_path_factory.mktemp("calibrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_skies, "KEPT", 8)
        words = [
            "--pairs",
            skies,
            "--limit",
            str(LEARNT),
            "--checkpoint",
            checkpoint(folder),
            "--out",
            str(folder / "out"),
        ]
        assert main(["calibrate", *words, *HOW]) == 0
    return str(folder / "out" / "seeing.safetensors")


def test_intervals_hold_on_other_skies_under_other_conditions(skies, calibrated, monkeypatch):
    monkeypatch.setattr(drawn_skies, "KEPT", 8)
    model = load_checkpoint(calibrated).to("cpu", "bfloat16")
    direction = model.card.problem.directions[0]
    pairs = read_pairs(skies, "mosaic", LEARNT, None, problem=model.card.problem.table)
    sky, generator = torch.from_numpy(pairs.ends["sharp"]), torch.Generator().manual_seed(71)
    context = drawn_skies.Observations(model.card, 96, (71, 0)).draw(len(sky), generator)
    image = observed_windows(model.card, direction.wanted.forward(sky, 3), context, generator)
    corners = [(300 * n, 40) for n in range(len(sky))]
    drawn = window_samples(model, direction, image, corners, Sampling(samples=K, steps=STEPS, seed=9), context=context)
    mean, std, truth = drawn.mean(1).numpy(), drawn.std(1).numpy(), sky[..., PAD:-PAD, PAD:-PAD].numpy()
    factors = np.stack([model.card.calibrated(direction).factors(one, direction) for one in mean])
    pull = np.abs(truth - mean) / std / interval_width(0.68, K)
    signal = (
        mean / np.array([scale.noise for scale in model.card.calibrated(direction).scales(direction)])[:, None, None]
    )
    # the network knows nothing: intervals of bright pixels were too narrow, those of faint ones are wide and stay so
    for low, high in ((3, 8), (20, 50)):
        counted = ((signal > low) & (signal < high))[..., 8:-8, 8:-8]
        raw, ours = (float((pull < width)[..., 8:-8, 8:-8][counted].mean()) for width in (1.0, factors))
        if low == 3:
            assert raw == ours > 0.88
        else:
            assert raw < 0.48
            assert ours == pytest.approx(0.68, abs=0.12)


def test_a_run_with_calibrated_intervals_has_the_factors_of_its_card(calibrated, tmp_path):
    store = one_tile(tmp_path / "tiles", lambda tile: seen(tile, alone=True))
    mosaics = []
    for name in ("raw", "calibrated"):
        settings = {"store": store, "checkpoint": calibrated, "to": "sharp", "executor": "serial", "samples": 2}
        run = tmp_path / name
        assert translate(check(Config(**settings, run=str(run), steps=2, calibrated=name != "raw"))).exit_code == 0
        (tile,) = RunFolder.open(str(run)).ledger()["tile_id"].to_pylist()
        mosaics.append(RunFolder.open(str(run)).read_tile_mosaic(tile))
    raw, ours = mosaics
    card = load_checkpoint(calibrated).card
    scales = card.calibrated(card.problem.directions[0]).intervals["lsst->sharp"]
    for plane, band in enumerate("gri"):
        assert np.array_equal(raw.mean[plane], ours.mean[plane], equal_nan=True)
        expected = raw.std[plane] * scales[band].of(raw.mean[plane])
        assert ours.std[plane] == pytest.approx(expected, rel=1e-6, nan_ok=True)
        assert scales[band].factor != (1.0,)
    said = _recalibration(RunFolder.open(str(run)).run_json)["calibrated"]
    assert "32 simulated skies with seeing (" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--store", "tiles"], "give --pairs with sharp skies"),
        (["--pairs", "SKIES", "--draws", "3"], "--draws with checkpoint seeing is for lens scores"),
        (["--pairs", "SKIES", "--limit", "31"], "31 skies in SKIES, but a calibration needs 32"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(words, said, skies, tmp_path, capsys):
    words = [skies if word == "SKIES" else word for word in words]
    arguments = [*words, "--checkpoint", checkpoint(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["calibrate", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said.replace("SKIES", skies) in line


def test_a_checkpoint_with_a_lens_score_has_no_intervals_from_pairs(tmp_path, capsys):
    path = tiny.write_checkpoint(tmp_path, "t")
    assert main(["calibrate", "--pairs", "p.zarr", "--samples", "4", "--checkpoint", path, "--out", str(tmp_path)]) == 2
    assert "--samples with checkpoint t is for intervals" in capsys.readouterr().err
