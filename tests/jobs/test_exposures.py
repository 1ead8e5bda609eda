"""Exposures of scenes: registration, noise and what is stated of it, against what ingest makes of the same pixels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from surveybridge.jobs.simulating.components import components_of
from surveybridge.jobs.simulating.exposures import Exposure, expose, lsst_windows
from surveybridge.jobs.simulating.population import columns
from surveybridge.jobs.simulating.scenes import Scene, SceneSpec, draw_pairs, render
from surveybridge.jobs.simulating.training_skies import Observation, nominal
from surveybridge.storage.coregister import coregister, resample_stamps
from surveybridge.storage.images import MASK_PLANES, SurveyImage

pytestmark = pytest.mark.long

N = 256
SIDE = 51.2


def observation(**changes: Any) -> Observation:
    plain = replace(nominal(np.random.default_rng(0)), grid_offset=(0.0, 0.0))
    return replace(plain, **changes)


def header(scale: float, reference: tuple[float, float], turn: float = 0.0) -> str:
    """WCS in which the given 0-based pixel lies at the centre of the scene; `turn` as `Observation.grid_turn`."""
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [reference[0] + 1, reference[1] + 1]
    cos, sin = math.cos(turn), math.sin(turn)  # pixels -> (u, v), the inverse of the rotation into LSST's grid
    wcs.wcs.cd = scale / 3600 * np.array([[-1.0, 0.0], [0.0, 1.0]]) @ np.array([[cos, sin], [-sin, cos]])
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    return str(wcs.to_header_string())


def vis_header() -> str:
    return header(0.1, (SIDE / 2 / 0.1, SIDE / 2 / 0.1))


def lsst_header(o: Observation) -> str:
    return header(0.2, tuple((SIDE / 2 - 0.05 - at) / 0.2 for at in o.grid_offset), o.grid_turn)  # type: ignore[arg-type]


def survey_image(flux: np.ndarray, variance: np.ndarray, mask: np.ndarray, o: Observation) -> SurveyImage:
    return SurveyImage(
        survey="lsst", bands=("g", "r", "i"), flux=flux, variance=variance, mask=mask, wcs_header=lsst_header(o),
        pixel_scale=0.2, psf_fwhm=(0.7,) * 3, zero_point=31.4, noise_correlation=o.correlation[:3], provenance={},
    )  # fmt: skip


CASES: dict[str, dict[str, Any]] = {
    "in line": {},
    "shifted": {"grid_offset": (0.13, 0.06)},
    "turned": {"grid_offset": (0.03, 0.18), "grid_turn": math.radians(3.7)},
    "correlated": {"grid_offset": (0.17, 0.11), "correlation": (0.3, 0.5, 0.6, 0.2)},
}


@pytest.mark.parametrize("case", CASES)
def test_lsst_is_interpolated_and_described_as_ingest_does(case: str) -> None:
    o = observation(**CASES[case])
    rng = np.random.default_rng(3)
    flux = torch.from_numpy(rng.normal(size=(3, N, N)).astype(np.float32) * 5)
    saturated, bad = torch.zeros(3, N, N, dtype=torch.bool), torch.zeros(3, N, N, dtype=torch.bool)
    saturated[1, 130:133, 120:124], bad[0, :, 117], bad[2, 140, 140] = True, True, True
    starts = np.array([[201, 230], [260, 222]])
    variance = np.array(o.sky[:3], np.float32)[:, None, None] ** 2 * np.where(np.arange(N) < 131, 1.0, 1.7)
    variance = np.broadcast_to(variance, flux.shape).astype(np.float32)
    exposure = Exposure(flux, torch.from_numpy(np.sqrt(variance)), saturated, bad)
    mine = lsst_windows(exposure, starts, 64, o)
    mask = np.where(saturated, MASK_PLANES["SAT"], 0) | np.where(bad, MASK_PLANES["BAD"], 0)
    image = survey_image(flux.numpy(), variance, mask.astype(np.uint8), o)
    theirs = coregister(image, vis_header(), (512, 512))
    assert mine.correlation == pytest.approx(theirs.noise_correlation, abs=0.002)
    for k, (x, y) in enumerate(starts):
        box = np.s_[:, y : y + 64, x : x + 64]
        known = theirs.mask[box] == 0
        found = mine.flux[k].numpy()
        np.testing.assert_array_equal(np.isfinite(found), known)
        assert 0.8 < known.mean() < 1
        np.testing.assert_allclose(found[known], theirs.flux[box][known], atol=3e-3)
        off = np.abs(mine.sigma[k].numpy() / np.sqrt(theirs.variance[box]) - 1)
        assert np.median(off) < 0.01 and np.mean(off > 0.03) < 0.05  # but at the step, which is smoothed there


@pytest.mark.parametrize("correlation", [0.0, 0.35, 0.6])
def test_noise_is_as_stated(correlation: float) -> None:
    o = observation(correlation=(correlation,) * 4, grid_offset=(0.07, 0.02))
    noise = torch.Generator().manual_seed(4)
    rng = np.random.default_rng(1)
    windows, vis = [], []
    starts = np.stack(np.meshgrid(np.arange(0, 448, 64), np.arange(0, 448, 64)), -1).reshape(-1, 2)
    for _ in range(4):
        windows.append(lsst_windows(expose(torch.zeros(3, N, N), slice(0, 3), o, rng, noise), starts, 64, o))
        vis.append(expose(torch.zeros(1, 512, 512), slice(3, 4), o, rng, noise).flux[0])
    flux = torch.cat([window.flux for window in windows]).double()
    for band in range(3):
        pulls = flux[:, band] / torch.cat([window.sigma for window in windows])[:, band]
        assert pulls.std() == pytest.approx(1, rel=0.02)
        assert lag_1(flux[:, band]) == pytest.approx(windows[0].correlation[band], abs=0.02)
    euclid = torch.stack(vis).double()
    assert euclid.std() == pytest.approx(o.sky[3], rel=0.01) and lag_1(euclid) == pytest.approx(correlation, abs=0.01)


def lag_1(planes: torch.Tensor) -> float:
    products = [(planes[..., 1:] * planes[..., :-1]).mean(), (planes[..., 1:, :] * planes[..., :-1, :]).mean()]
    return float(sum(products)) / 2 / float(planes.var())


def test_photon_noise_follows_from_the_gain_that_is_stated() -> None:
    o = observation(grid_offset=(0.05, 0.11), gain=(8.0, 4.0, 2.0, 1.5))
    noise, rng, starts = torch.Generator().manual_seed(1), np.random.default_rng(1), np.array([[100, 60], [300, 310]])
    model = torch.full((3, N, N), 400.0)
    drawn = [lsst_windows(expose(model, slice(0, 3), o, rng, noise), starts, 64, o) for _ in range(12)]
    flux = torch.cat([one.flux for one in drawn]).double()
    for band in range(3):
        stated = float((drawn[0].sigma[:, band] ** 2).mean() + 100.0 / drawn[0].gain[0, band])
        assert flux[:, band].mean() == pytest.approx(100.0, rel=0.01)
        assert flux[:, band].var() == pytest.approx(stated, rel=0.05)
    vis = expose(torch.full((1, 512, 512), 400.0), slice(3, 4), o, rng, noise).flux
    assert vis.var() == pytest.approx(o.sky[3] ** 2 + 400.0 / 1.5, rel=0.02)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"grid_offset": (0.13, 0.06), "grid_turn": math.radians(-4.2)},
        {"offset": (0.04, -0.07)},
        {"turn": math.radians(0.1), "grid_turn": math.radians(2.0), "offset": (0.01, 0.02)},
    ],
)
def test_a_source_is_in_both_surveys_where_registration_says(changes: dict[str, Any]) -> None:
    o = observation(**changes)
    at = np.array([33.27, 20.41])
    row = {"u": at[:1], "v": at[1:], **{f"mag_{band}": np.array([20.0]) for band in ("g", "r", "i", "VIS")}}
    scene = Scene(0, o, columns("star", row), components_of(columns("star", row)), np.random.default_rng(0), 0)
    lsst, euclid = render([scene], torch.device("cpu"))
    start = np.round(at / 0.1).astype(int) - 32
    no = torch.zeros(3, N, N, dtype=torch.bool)
    quiet = Exposure(lsst[0], torch.ones(3, N, N), no, no)
    window = lsst_windows(quiet, start[None], 64, o).flux[0, 1].double()
    vis = euclid[0, 0, start[1] : start[1] + 64, start[0] : start[0] + 64].double()
    assert window.sum() == pytest.approx(float(vis.sum()), rel=0.002)
    np.testing.assert_allclose(centroid(vis), at / 0.1 - start, atol=0.002)
    turn = o.turn
    from_middle = at - SIDE / 2
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ from_middle
    moved = (turned + o.offset - from_middle) / 0.1
    np.testing.assert_allclose(centroid(window) - centroid(vis), moved, atol=0.01)


def centroid(image: torch.Tensor) -> np.ndarray:
    x = torch.arange(64.0, dtype=torch.float64)
    return np.array([float((image.sum(axis) * x).sum() / image.sum()) for axis in (0, 1)])


def test_stamps_on_own_pixels_are_complete_and_of_the_same_place() -> None:
    spec = SceneSpec(grid="cutout")
    drawn = draw_pairs(spec, 2, [0, 1, 2, 5])
    assert bool(torch.isfinite(drawn.lsst).all()) and bool(torch.isfinite(drawn.euclid).all())
    assert (drawn.labels["role"] != "sky").all()
    finer = torch.from_numpy(resample_stamps(drawn.lsst.permute(0, 2, 3, 1).numpy()))
    near = np.s_[:, 0, 26:38, 26:38]
    red, vis = finer[:, 2:3][near].flatten(1), drawn.euclid[near].flatten(1)
    bright = (drawn.labels["mag_i"].astype(float) < 22) & (drawn.conditions["lsst_fwhm"][:, 2].numpy() < 1.0)
    assert bright.sum() >= 8
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(red[bright].numpy(), vis[bright].numpy(), strict=True)]
    assert np.median(alike) > 0.6
    np.testing.assert_allclose(drawn.lsst_sigma[:, 0, 0, 0], drawn.conditions["lsst_noise"][:, 0])
