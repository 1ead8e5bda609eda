"""The comparison with another commit: its measures, of tables and fields in which they are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from astropy.wcs import WCS
from scipy import stats

from benchmarks import since
from benchmarks.field_measures import Field
from benchmarks.since import Shares
from surveybridge.bridge_core.evaluation import LEVELS, REGIONS

SIDE = 4 * since.SQUARE


def field(scale: float = 1.0) -> Field:
    """One band, whose posterior is a normal distribution about the truth, and its mean `scale` times as bright."""
    rng, wcs = np.random.default_rng(3), WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [53.0, -28.0], [SIDE / 2] * 2, [-0.1 / 3600, 0.1 / 3600]
    y, x = np.indices((SIDE, SIDE))
    light = 40 * np.exp(-(((y - SIDE / 2) ** 2 + (x - SIDE / 2) ** 2) / 200))[None]
    std = np.full((1, SIDE, SIDE), 2.0, np.float32)
    true = (light + std * rng.standard_normal(light.shape)).astype(np.float32)
    known = np.ones((SIDE, SIDE), bool)
    planes = {"mean": (scale * light).astype(np.float32), "std": std, "true": true, "sigma": std}
    return Field(("VIS",), known=known, wcs=wcs, origin=(0, 0), edges=[], samples=200, **planes)


def truth() -> pd.DataFrame:
    """One galaxy in the middle."""
    row = {"kind": "galaxy", "mag_i": 20.0, "mag_VIS": 20.0, "lensed_mag_VIS": np.nan}
    return pd.DataFrame([row | {"ra": 53.0, "dec": -28.0}])


def test_a_field_is_compared_in_the_pixels_that_both_know():
    right, bright = field(), field(1.05)
    hole = np.ones((SIDE, SIDE), bool)
    hole[:100] = False
    found = since.measures_of_fields({"before": replace(right, known=hole), "after": bright}, truth())
    assert found["before"]["68% holds, sky"].value == pytest.approx(0.68, abs=0.01)
    assert found["before"]["68% holds, sky"].whole.sum() == found["after"]["68% holds, sky"].whole.sum()
    assert found["before"]["CRPS, sky"].value == pytest.approx(0.564, abs=0.01)  # 1 / sqrt(pi), the least on average
    ratio = found["after"]["flux, VIS"].value / found["before"]["flux, VIS"].value
    assert ratio == pytest.approx(1.05, rel=0.01)


def test_the_score_of_a_normal_distribution_is_the_integral_that_defines_it():
    rng = np.random.default_rng(1)
    error, std = rng.normal(0, 3, 50), rng.uniform(0.5, 4, 50)
    x = np.linspace(-40, 40, 80_001)[:, None]
    squared = (stats.norm.cdf(x / std) - (x >= error)) ** 2
    np.testing.assert_allclose(since.normal_crps(error, std), squared.sum(0) * 1e-3, atol=2e-3)


def test_squares_cover_an_image_and_are_as_large_as_said():
    found = since.squares((SIDE, SIDE + 5))
    assert (np.bincount(found.ravel()) <= since.SQUARE**2).all() and found.max() == 4 * 5 - 1
    assert np.bincount(found.ravel()).sum() == SIDE * (SIDE + 5)


def pair_tables(energy: list[float], within: float) -> tuple[pa.Table, pa.Table]:
    """Tables of an evaluation of two bands, in which a share of the pixels lies within every interval."""
    images = pa.table({"direction": ["there"] * len(energy), "energy_score_fair": energy})
    rows = len(energy) * 2 * len(REGIONS)
    pixels = {"direction": ["there"] * rows, "pixels": [100.0] * rows, "crps": [55.0] * rows}
    return images, pa.table({**pixels, "within": [[100.0 * within] * len(LEVELS)] * rows})


def test_what_two_codes_make_of_the_same_pairs_is_compared_pair_by_pair():
    energy = list(np.random.default_rng(2).uniform(1, 9, 40))
    sides = {
        "before": since.measures_of_pairs(*pair_tables(energy, 0.6), "there"),
        "after": since.measures_of_pairs(*pair_tables([value + 0.5 for value in energy], 0.7), "there"),
    }
    rows = {row["measure"]: row for row in since.rows_of("pairs", "there", sides)}
    score = rows["fair energy score"]
    assert score["before"]["value"] == pytest.approx(np.mean(energy))
    low, high = score["before"]["interval"]
    assert high - low > 0.5  # of pairs that differ much
    assert score["difference"] == {"value": pytest.approx(0.5), "interval": [pytest.approx(0.5), pytest.approx(0.5)]}
    assert rows["68% holds, S/N > 3"]["after"]["value"] == pytest.approx(0.7)
    assert rows["CRPS, sky"]["difference"]["value"] == 0


def test_shares_are_ratios_of_sums_not_means_of_ratios():
    found = Shares(np.array([1.0, 30.0]), np.array([10.0, 40.0]))
    assert found.value == pytest.approx(31 / 50)
    assert set(np.round(found.drawn(), 6)) <= {0.1, 0.62, 0.75}
