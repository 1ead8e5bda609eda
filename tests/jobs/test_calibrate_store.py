"""Calibrate on a tile store: intervals that are wrong by a known factor come right on another field, for who asks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.metrics import interval_width
from surveybridge.bridge_core.network import UNet
from surveybridge.bridge_core.recalibration import Recalibration
from surveybridge.jobs.report import Config as ReportConfig
from surveybridge.storage.images import MASK_PLANES
from surveybridge.storage.ingest import Field, cut_tile, tile_boxes
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import TileStore
from tests import tiny
from tests.bridge_core.models import AnalyticModel
from tests.storage.fits_files import gaussians

pytestmark = pytest.mark.long

SIDE = 320
TAU = 0.11
"""True scatter of VIS around what LSST lets expect, network units."""
QUICK = ("--samples", "4", "--steps", "9")
K = 4


def too_small(level: torch.Tensor) -> torch.Tensor:
    """Stated scatter over the true one, by the observed level in network units: 0.8 in the sky, 0.45 on bright ones."""
    return 0.8 - 0.35 * torch.clamp(level, 0, 1)


def denoise(zeta: torch.Tensor, sigma: float, x1: torch.Tensor, direction: Any) -> torch.Tensor:
    """Posterior mean of a channel where VIS scatters around the mean of g, r, i by too little."""
    level = x1.mean(1, keepdim=True)
    tau = TAU * too_small(level)
    seen, noise = zeta.mean(1, keepdim=True), sigma**2 / zeta.shape[1]  # three channels show one band
    return ((noise * level + tau**2 * seen) / (noise + tau**2)).expand_as(zeta)


def make_field(seed: int, side: int = SIDE) -> Field:
    """LSST as blobs, and a VIS that scatters around it just as `TAU` says; with masks."""
    rng = np.random.default_rng(seed)
    places = [(y, x) for y, x in rng.uniform(0, side, (60, 2))]
    plain = tiny.make_image("lsst", side)
    light = gaussians((side, side), places, 4.0, 4000.0)
    flux = (light + 0.05 * rng.normal(size=plain.flux.shape)).astype(np.float32)
    flux[plain.mask & MASK_PLANES["NO_DATA"] != 0] = np.nan
    lsst = replace(plain, flux=flux)
    ends = [tiny.fitted(end) for end in tiny.PROBLEM.endpoints]
    observed, wanted = ends
    level = observed.forward(torch.from_numpy(np.nan_to_num(flux)), 3).mean(0, keepdim=True)
    drawn = level + TAU * torch.from_numpy(rng.normal(size=level.shape))
    vis = tiny.make_image("euclid", side)
    shown = wanted.inverse(drawn.float().expand(3, -1, -1)).numpy().astype(np.float32)
    shown[vis.mask & MASK_PLANES["NO_DATA"] != 0] = np.nan
    shown[vis.mask & MASK_PLANES["BAD"] != 0] = 1e6  # must not count
    return Field({"lsst": lsst, "euclid": replace(vis, flux=shown)}, "euclid")


def write_store(path: Path, seed: int, side: int = SIDE) -> str:
    field, store = make_field(seed, side), TileStore.create(str(path))
    boxes = tile_boxes(field.shape, side // 2, 64)
    store.write_manifest([store.write_tile(cut_tile(field, box)) for box in boxes])
    return str(path)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Two fields, and a checkpoint; what it says is `denoise`, whatever its weights are."""
    folder = tmp_path_factory.mktemp("calibrate")
    for name, seed in (("here", 1), ("there", 2)):
        write_store(folder / name, seed)
    tiny.write_checkpoint(folder, patch="tile")
    return folder


@pytest.fixture(scope="module", autouse=True)
def analytic() -> Any:
    """Every checkpoint that is loaded predicts as `denoise` does."""
    from surveybridge.bridge_core import checkpoint

    def make(card: Any, weights: Any, sha256: str) -> AnalyticModel:
        network = UNet(card.network)
        network.load_state_dict(weights)
        return AnalyticModel(card, network, sha256, denoise)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "make_model", make)
        yield


@pytest.fixture(scope="module")
def calibrated(work) -> str:
    where = ("--store", str(work / "here"), "--checkpoint", str(work / "tiny"), "--out", str(work / "out"))
    assert main(["calibrate", *where, "--to", "euclid", *QUICK]) == 0
    return str(work / "out" / "tiny")


@pytest.fixture(scope="module")
def runs(work, calibrated) -> dict[str, RunFolder]:
    """The other field, translated with and without."""
    found = {}
    for name, flags in (("raw", ()), ("calibrated", ("--calibrated",))):
        url = str(work / f"run-{name}")
        where = ("--store", str(work / "there"), "--run", url, "--checkpoint", calibrated, "--executor", "serial")
        assert main(["translate", *where, *QUICK, *flags]) == 0
        found[name] = RunFolder.open(url)
    return found


def recalibration(path: str | Path) -> Recalibration:
    found = load_checkpoint(path).card.recalibration
    assert found is not None
    return found


def pixels(run: RunFolder, work: Path) -> tuple[Any, Any, Any]:
    """Mean, std and what VIS observed, of the pixels that both have."""
    store, parts = TileStore.open(str(work / "there")), []
    for tile_id in run.ok_tiles():
        tile, mosaic = store.read_tile(tile_id, halo=0), run.read_tile_mosaic(tile_id)
        image = tile.images["euclid"]
        here = image.valid[0] & np.isfinite(mosaic.std[0])
        parts.append(np.stack([mosaic.mean[0][here], mosaic.std[0][here], image.flux[0][here]]))
    mean, std, observed = np.concatenate(parts, 1).astype(np.float64)
    return mean, std, observed


def inside(run: RunFolder, work: Path, low: float = -np.inf, high: float = np.inf) -> float:
    mean, std, observed = pixels(run, work)
    here = (mean > low) & (mean <= high)
    return float((np.abs(observed - mean) <= interval_width(0.68, K) * std)[here].mean())


def test_intervals_on_another_field_hold_68_percent_at_every_brightness(runs, work):
    noise = tiny.SIGMA["VIS"]
    assert inside(runs["raw"], work) < 0.6
    assert inside(runs["raw"], work, 3 * noise) < 0.5
    assert inside(runs["calibrated"], work) == pytest.approx(0.68, abs=0.01)
    for low, high in ((-np.inf, noise), (noise, 3 * noise), (3 * noise, 8 * noise), (8 * noise, np.inf)):
        assert inside(runs["calibrated"], work, low, high) == pytest.approx(0.68, abs=0.015)


def test_means_stay_and_the_raw_standard_deviation_can_be_had_back(runs, calibrated):
    scale = recalibration(calibrated).intervals["lsst->euclid"]["VIS"]
    for tile_id in runs["raw"].ok_tiles():
        raw, ours = (runs[name].read_tile_mosaic(tile_id) for name in ("raw", "calibrated"))
        assert np.array_equal(raw.mean, ours.mean, equal_nan=True)
        known = np.isfinite(raw.std[0])
        assert (ours.std[0][known] > 1.1 * raw.std[0][known]).all()
        assert scale.raw(ours.mean[0], ours.std[0])[known] == pytest.approx(raw.std[0][known], rel=1e-6)
        assert raw.recalibration is None
        assert ours.recalibration["bands"]["VIS"]["factor"] == list(scale.factor)


def test_a_run_says_what_was_applied_and_is_not_mixed_with_another(runs, work, calibrated, capsys):
    raw, ours = (runs[name].run_json for name in ("raw", "calibrated"))
    assert not {"calibrated", "recalibration"} & (raw.keys() | raw["fingerprint"].keys())
    assert ours["fingerprint"]["calibrated"] is True
    assert (ours["recalibration"]["tiles"], ours["recalibration"]["checkpoint"]) == (4, "tiny")
    assert ours["recalibration"]["store"] == TileStore.open(str(work / "here")).url
    assert ours["run_id"] != raw["run_id"]
    for name, flags in (("calibrated", ()), ("raw", ("--calibrated",))):
        where = ("--store", str(work / "there"), "--run", runs[name].url, "--checkpoint", calibrated)
        assert main(["translate", *where, "--executor", "serial", *QUICK, *flags]) == 2
        assert "has calibrated" in capsys.readouterr().err


def test_fits_files_report_and_samples_are_of_the_calibrated_run(runs, work, tmp_path):
    from astropy.io import fits

    from surveybridge.jobs.reporting.page import page

    assert main(["export", "--run", runs["calibrated"].url, "--out", str(tmp_path / "all.fits"), "--lossless"]) == 0
    with fits.open(tmp_path / "all.fits") as hdus:
        assert hdus["STD_VIS"].header["SB_CALIB"] is True
    assert ReportConfig(run=(runs["raw"].url,), out="o").top == 30
    html = page(runs["calibrated"].url, 0)
    assert "4 tiles of" in html
    assert "std of VIS by 1." in html
    assert "std of VIS by" not in page(runs["raw"].url, 0)
    candidates = runs["calibrated"].read_candidates(runs["calibrated"].ok_tiles()[0])
    cutout = f"{candidates['ra'][0].as_py()},{candidates['dec'][0].as_py()},3"
    out = str(tmp_path / "cut.fits")
    assert main(["export", "--run", runs["calibrated"].url, "--out", out, "--cutout", cutout, "--samples", "4"]) == 0
    with fits.open(out) as hdus:
        header, drawn = hdus["SAMPLES_VIS"].header, hdus["SAMPLES_VIS"].data
        assert header["SB_SAME"] is True
        # where windows overlap their samples average, so that they scatter by no more than std
        ratio = drawn.std(0, ddof=1) / hdus["STD_VIS"].data
        assert np.nanmax(ratio) == pytest.approx(1.0, abs=0.1)


def test_weights_stay_and_the_card_says_what_is_behind_it(work, calibrated):
    before, after = (json.loads(Path(f"{path}.json").read_text()) for path in (work / "tiny", calibrated))
    found = after.pop("recalibration")
    assert after == before
    assert Path(f"{calibrated}.safetensors").read_bytes() == (work / "tiny.safetensors").read_bytes()
    assert found["version"] == 1
    scale = found["intervals"]["lsst->euclid"]["VIS"]
    assert scale["noise"] == pytest.approx(tiny.SIGMA["VIS"], rel=0.02)
    assert sum(scale["pixels"]) == pytest.approx(SIDE**2, rel=0.03)
    assert all(blocks >= 8 for blocks in scale["blocks"])
    assert found["provenance"]["samples"] == K
    assert not any((work / "out").glob("calibrate-parts/*"))


def test_few_tiles_and_both_directions(work, tmp_path, capsys, caplog):
    where = ("--store", str(work / "here"), "--checkpoint", str(work / "tiny"), "--out", str(tmp_path))
    assert main(["calibrate", *where, "--tiles", "1", *QUICK]) == 0
    said = capsys.readouterr()
    assert "1 of 4 tiles, euclid->lsst and lsst->euclid: 2 windows, " in caplog.text
    assert "network evaluations" in caplog.text
    assert "lsst->euclid VIS" in said.out
    found = recalibration(tmp_path / "tiny")
    assert {name: list(bands) for name, bands in found.intervals.items()} == {
        "euclid->lsst": ["g", "r", "i"], "lsst->euclid": ["VIS"],
    }  # fmt: skip
    assert found.false_alarms is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--calibrated",), "tiny has no recalibration; make one with `surveybridge calibrate --store"),
        (("--calibrated", "--to", "lsst"), "tiny has no recalibration"),
    ],
)
def test_a_checkpoint_without_is_refused(work, tmp_path, capsys, arguments, said):
    where = ("--store", str(work / "there"), "--checkpoint", str(work / "tiny"), "--run", str(tmp_path / "run"))
    for job in ("translate", "plan"):
        assert main([job, *where, *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_direction_that_was_not_calibrated_is_refused(work, calibrated, tmp_path, capsys):
    where = ("--store", str(work / "there"), "--checkpoint", calibrated, "--run", str(tmp_path / "run"))
    assert main(["translate", *where, "--to", "lsst", "--calibrated"]) == 2
    assert "euclid->lsst was not calibrated, only lsst->euclid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give --pairs for the lens score, or --store"),
        (("--store", "s", "--pairs", "p"), "give --pairs for the lens score, or --store"),
        (("--store", "s", "--sigma", "3"), "--sigma is for --pairs"),
        (("--pairs", "p", "--tiles", "3"), "--tiles is for --store"),
    ],
)
def test_settings_of_the_one_are_refused_with_the_other(tmp_path, capsys, arguments, said):
    assert main(["calibrate", *arguments, "--out", str(tmp_path / "o")]) == 2
    assert said in capsys.readouterr().err


def test_a_store_with_one_survey_is_refused(work, tmp_path, capsys):
    def lsst_alone(tile: Any) -> Any:
        return replace(tile, images={"lsst": tile.images["lsst"]})

    store = tiny.write_store(tmp_path / "store", edit=lsst_alone)
    where = ("--store", store, "--checkpoint", str(work / "tiny"), "--out", str(tmp_path / "o"), "--to", "euclid")
    assert main(["calibrate", *where]) == 2
    assert "none of its 4 tiles has both lsst and euclid" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_damaged_tile_is_named_and_left_out(work, tmp_path, caplog):
    store = write_store(tmp_path / "store", 3, 192)
    repairs = [tiny.damage_tile(store, "t0002", "euclid/flux")]
    where = ("--store", store, "--checkpoint", str(work / "tiny"), "--out", str(tmp_path / "o"), "--to", "euclid")
    assert main(["calibrate", *where, *QUICK]) == 3
    assert "tile t0002: DamagedData" in caplog.text
    assert recalibration(tmp_path / "o" / "tiny").provenance["tiles"] == 3
    repairs += [tiny.damage_tile(store, f"t000{k}", "euclid/flux") for k in (1, 3)]
    only = ("--store", store, "--checkpoint", str(work / "tiny"), "--out", str(tmp_path / "p"), "--to", "euclid")
    tiny.damage_tile(store, "t0000", "lsst/mask")
    assert main(["calibrate", *only, *QUICK]) in (1, 2)
    assert not list((tmp_path / "p").rglob("*.*"))
