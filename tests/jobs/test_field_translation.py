"""Acceptance on the shared field with the shipped checkpoint: flux and calibration of the translation, both ways.

The whole field takes an hour of a CPU (`python -m benchmarks.field`). Here it is ingested as a whole, but translated
only where it is measured: a small tile around each isolated galaxy, through the same store, job and run folder. All of
its sources are scored, once for several files: what leads the list of candidates is a matter of all of them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.field_measures import coverages, flux_ratios, ideal_coverage, isolated_galaxies, read_field
from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT, shipped_checkpoints
from surveybridge.jobs import translate
from surveybridge.jobs.translating import stages
from surveybridge.jobs.translating.candidates import Candidates, schema_of_maps_only
from surveybridge.storage import ingest
from surveybridge.storage.flags import BITS, CUTS
from surveybridge.storage.query import EVERY_ROW, Listing, query
from surveybridge.storage.tiles import TileStore

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(DEFAULT_CHECKPOINT not in shipped_checkpoints(), reason="no checkpoint ships with this tree"),
]

REACH = 11
"""Half the side of a small tile's core: the radius of the aperture and a pixel."""
HALO = 64
"""A window of the network that touches the core never leaves this."""


@pytest.fixture(scope="module")
def whole(shared_field):
    """The field, both surveys on one grid."""
    return shared_field


@pytest.fixture(scope="module")
def truth(shared_data):
    """What is in the field."""
    return pd.read_parquet(shared_data / "field" / "field_truth.parquet")


@pytest.fixture(scope="module")
def stamps(whole, truth, tmp_path_factory):
    """Store of a small tile around each isolated galaxy i < 23.5, and the rows of the truth table."""
    field = whole
    known = np.logical_and.reduce([image.valid.all(axis=0) for image in field.images.values()])
    galaxies = isolated_galaxies(truth, known, field.images["euclid"].wcs)
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
    """The run as `surveybridge translate` makes it unless told otherwise, of two samples to save time.

    No galaxy is scored, which would take half of it: scores are those of the whole field.
    """
    store, galaxies = stamps
    run = str(tmp_path_factory.mktemp("translated") / "run")
    settings = {"direction": request.param, "executor": "serial", "samples": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "score_objects", lambda *_: Candidates(schema_of_maps_only(), {}))
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


@pytest.fixture(scope="module")
def catalogued(shared_field_run):
    """A run with the candidates of the whole field."""
    return shared_field_run.url


def near(rows, truth, arcsec):
    """For each row the nearest object of the truth, if it is near enough."""
    along = (rows.ra.to_numpy()[:, None] - truth.ra.to_numpy()) * np.cos(np.radians(truth.dec.to_numpy()))
    apart = 3600 * np.hypot(along, rows.dec.to_numpy()[:, None] - truth.dec.to_numpy())
    return np.where(apart.min(axis=1) <= arcsec, apart.argmin(axis=1), -1)


def test_each_lens_leads_at_most_one_row_and_no_star_is_among_the_first_systems(catalogued, truth):
    lenses, stars = truth[truth.kind == "lens"], truth[truth.kind == "star"]
    rows = query(catalogued, thumbnails=False).to_pandas()
    everything = query(catalogued, thumbnails=False, listing=EVERY_ROW).to_pandas()
    pieces = near(everything, lenses, 3.0)
    leaders = [int(place) for place in near(rows, lenses, 1.5) if place >= 0]
    assert len(leaders) == len(set(leaders)) == len(lenses) == 8
    assert (pieces >= 0).sum() > 8  # arcs are objects of their own, and members
    first = rows.head(20)
    assert (near(first, stars, 1.5) < 0).all() and (first["flags"] & BITS["SATURATED"] == 0).all()
    assert len({int(place) for place in near(first, lenses, 1.5) if place >= 0}) >= 7
    listed = query(catalogued, thumbnails=False, listing=Listing("star")).to_pandas()
    assert len(listed) >= 15 and (near(listed, stars, 0.3) >= 0).mean() > 0.9
    assert set(everything.kind[near(everything, stars, 0.3) >= 0]) == {"star", "saturated"}


def test_magnitudes_and_flags_of_ordinary_galaxies_are_to_be_trusted(catalogued, truth):
    rows = query(catalogued, thumbnails=False).to_pandas()
    ordinary = rows[(rows["flags"] & CUTS == 0) & (rows.snr_VIS > 20)]
    assert len(ordinary) > 0.7 * (rows.snr_VIS > 20).sum() and (ordinary.masked == 0).all()
    galaxies = truth[truth.kind != "star"]
    matched = near(ordinary, galaxies, 0.5)
    assert (matched >= 0).mean() > 0.95
    small = galaxies.iloc[matched[matched >= 0]]
    magnitude = ordinary[matched >= 0].mag_VIS.to_numpy()[small.re.to_numpy() < 0.25]
    assert np.median(magnitude - small.mag_VIS[small.re < 0.25]) == pytest.approx(0.0, abs=0.1)


def test_perfect_samples_would_lie_within_1_std_as_often_as_said():
    rng = np.random.default_rng(1)
    for samples in (4, 8):
        draws = rng.normal(size=(samples + 1, 200_000))
        pull = (draws[0] - draws[1:].mean(axis=0)) / draws[1:].std(axis=0, ddof=1)
        for name, width in (("68.3%", 1.0), ("90%", 1.645), ("95%", 1.96)):
            assert np.mean(np.abs(pull) < width) == pytest.approx(ideal_coverage(samples)[name], abs=0.005)
