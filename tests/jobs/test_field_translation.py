"""Acceptance on the shared field with the shipped checkpoint: flux and calibration of the translation, both ways.

The whole field takes an hour of a CPU (`python -m benchmarks.field`). Here it is ingested as a whole, but translated
only where it is measured: a small tile around each isolated galaxy, through the same store, job and run folder.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.field_measures import coverages, flux_ratios, ideal_coverage, isolated_galaxies, read_field
from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT, shipped_checkpoints
from surveybridge.jobs import translate
from surveybridge.storage import ingest
from surveybridge.storage.problems import default_problem
from surveybridge.storage.tiles import TileStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DEFAULT_CHECKPOINT not in shipped_checkpoints(), reason="no checkpoint ships with this tree"),
]

REACH = 11
"""Half the side of a small tile's core: the radius of the aperture and a pixel."""
HALO = 64
"""A window of the network that touches the core never leaves this."""


@pytest.fixture(scope="module")
def stamps(shared_data, tmp_path_factory):
    """Store of a small tile around each isolated galaxy i < 23.5, and the rows of the truth table."""
    folder = shared_data / "field"
    images = {
        "lsst": {band: str(folder / f"field_lsst_{band}.fits") for band in "gri"},
        "euclid": {"VIS": str(folder / "field_euclid_vis.fits")},
    }
    field = ingest.read_field(default_problem(), images, "euclid")
    known = np.logical_and.reduce([image.valid.all(axis=0) for image in field.images.values()])
    galaxies = isolated_galaxies(pd.read_parquet(folder / "field_truth.parquet"), known, field.images["euclid"].wcs)
    store = TileStore.create(str(tmp_path_factory.mktemp("stamps") / "store"))
    rows = []
    for tile_id, ra, dec in zip(galaxies.id, galaxies.ra, galaxies.dec, strict=True):
        x, y = (round(float(v)) for v in field.images["euclid"].wcs.all_world2pix(ra, dec, 0))
        core = (y - REACH, y + REACH + 1, x - REACH, x + REACH + 1)
        rows.append(store.write_tile(ingest.cut_tile(field, ingest.TileBox(tile_id, core, outer(core, known.shape)))))
    store.write_manifest(rows)
    return store.url, galaxies


def outer(core, shape):
    """The core and its halo, inside the field."""
    (y0, y1, x0, x1), (height, width) = core, shape
    return max(y0 - HALO, 0), min(y1 + HALO, height), max(x0 - HALO, 0), min(x1 + HALO, width)


@pytest.fixture(scope="module", params=["lsst->euclid", "euclid->lsst"])
def translated(request, stamps, tmp_path_factory):
    """The run as `surveybridge translate` makes it unless told otherwise (scores apart: they are not measured).

    The way back, which has no bound of 5%, has half the samples to save time.
    """
    store, galaxies = stamps
    run = str(tmp_path_factory.mktemp("translated") / "run")
    settings = {"direction": request.param, "executor": "serial", "score_samples": 2, "score_steps": 1}
    if request.param == "euclid->lsst":
        settings["samples"] = 4
    assert translate.run(translate.Config(store=store, run=run, **settings)) == 0
    return read_field(run, store), galaxies


def test_flux_of_isolated_galaxies_is_that_of_the_wanted_survey(translated):
    field, galaxies = translated
    assert len(galaxies) > 40
    for band, ratio in flux_ratios(field, galaxies, diameter_arcsec=2.0).items():
        assert ratio["galaxies"] == len(galaxies)
        # VIS follows from gri. The colours of a galaxy do not follow from VIS: single ratios scatter by half, their
        # median has the error that comes with it, and a mean of skewed posteriors lies above most truths
        bound = 0.05 if band == "VIS" else 0.1 + 3 * ratio["median_error"]
        assert ratio["median"] == pytest.approx(1, abs=bound), (band, ratio)


def test_share_of_bright_pixels_within_1_std_is_plausible(translated):
    field, _ = translated
    for band, choices in coverages(field).items():
        for choice in ("true_snr>3", "mean_snr>3"):
            within = choices[choice]
            assert within["pixels"] > 2000
            # of a perfect posterior with so few samples; the observed pixels above 3 sigma are those the noise raised
            ideal = ideal_coverage(field.samples)["68.3%"]
            assert 0.8 < within["68.3%"] / ideal < 1.35, (band, choice, within, ideal)
            assert within["68.3%"] < within["90%"] < within["95%"]


def test_perfect_samples_would_lie_within_1_std_as_often_as_said():
    rng = np.random.default_rng(1)
    for samples in (4, 8):
        draws = rng.normal(size=(samples + 1, 200_000))
        pull = (draws[0] - draws[1:].mean(axis=0)) / draws[1:].std(axis=0, ddof=1)
        for name, width in (("68.3%", 1.0), ("90%", 1.645), ("95%", 1.96)):
            assert np.mean(np.abs(pull) < width) == pytest.approx(ideal_coverage(samples)[name], abs=0.005)
