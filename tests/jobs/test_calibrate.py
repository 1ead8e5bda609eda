"""Calibrate: arcs go into both surveys alike, and a checkpoint learns a lens score from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from surveybridge.__main__ import main
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.evaluating import plots, ranking
from surveybridge.jobs.simulating import injection
from surveybridge.jobs.simulating.injection import SOURCES, ArcLight, ArcView, draw_lens, inject
from surveybridge.jobs.simulating.observing import INSTRUMENTS
from surveybridge.storage.pairs import on_mosaic_grid, read_pairs
from tests import tiny

pytestmark = pytest.mark.long  # arcs are drawn and scored

COUNT = 100


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """A pair store with its table: half of the galaxies are like deflectors."""
    folder = tmp_path_factory.mktemp("pairs")
    path = tiny.write_pairs(folder / "regular.zarr", COUNT)
    ids = [f"regular.zarr-{k:06d}" for k in range(COUNT)]
    classes = ["deflector_like", "field_galaxy"] * (COUNT // 2)
    pq.write_table(pa.table({"id": ids, "central_class": classes}), folder / "regular.parquet")
    return path


@pytest.fixture(scope="module")
def calibrated(store, tmp_path_factory):
    """Checkpoint before and after."""
    folder = tmp_path_factory.mktemp("checkpoint")
    before = tiny.write_checkpoint(folder)
    out = folder / "calibrated"
    assert main(["calibrate", "--pairs", store, "--checkpoint", before, "--out", str(out), "--draws", "2"]) == 0
    return before, str(out / "tiny")


# -- arcs --


def test_arcs_bring_the_flux_that_was_drawn_to_every_band():
    rng = np.random.default_rng(3)
    lens = draw_lens(rng)
    light_of = ArcLight.of(lens.images)
    for instrument in INSTRUMENTS:
        stamp = light_of.stamp(ArcView.of(instrument), 128, (0.0, 0.0), rng)
        assert stamp.sum() == pytest.approx(lens.images.flux[instrument.band], rel=0.05)
        y, x = np.indices(stamp.shape)
        light = np.clip(stamp, 0, None)
        radius = np.hypot(y - 63.5, x - 63.5) * instrument.pixel_scale
        # images lie about an Einstein radius away, seen through the PSF
        assert (light * radius).sum() / light.sum() == pytest.approx(lens.theta_e, abs=0.6 * lens.theta_e + 0.2)


def test_arcs_are_centred_where_they_are_put():
    rng = np.random.default_rng(3)
    images = draw_lens(rng).images
    ring = replace(images, shape=images.shape + images.shape[::-1] + images.shape[:, ::-1] + images.shape[::-1, ::-1])
    light_of = ArcLight.of(ring)
    for instrument in INSTRUMENTS:
        offset = (0.8 / instrument.pixel_scale, -0.4 / instrument.pixel_scale)
        stamp = light_of.stamp(ArcView.of(instrument), 128, offset, rng)
        y, x = np.indices(stamp.shape) - 63.5
        place = np.array([(stamp * axis).sum() for axis in (x, y)]) / stamp.sum() * instrument.pixel_scale
        assert place == pytest.approx([0.8, -0.4], abs=0.06)


def test_a_light_that_has_been_drawn_in_other_bands_is_drawn_the_same_to_the_bit():
    images = draw_lens(np.random.default_rng(4)).images
    shared = ArcLight.of(images)
    for instrument in INSTRUMENTS:
        view = ArcView.of(instrument)
        again, anew = (light.expected(view, 96, (0.3, -0.2)) for light in (shared, ArcLight.of(images)))
        assert np.array_equal(again, anew) and again.max() > 0


def test_only_arcs_are_added_and_the_same_in_both_surveys(store):
    pairs = read_pairs(store, "cutout", 0, 8)
    lenses, drawn, rows = inject(pairs, [1, 4, 6], seed=2)
    assert rows == [1, 4, 6]
    for k, row in enumerate(rows):
        for survey, bands in (("lsst", ("g", "r", "i")), ("euclid", ("VIS",))):
            added = lenses.ends[survey][k] - pairs.ends[survey][row]
            assert added.min() > -1e-3  # photons are not negative
            for band, light in zip(bands, added, strict=True):
                assert light.sum() == pytest.approx(drawn[k].images.flux[band], rel=0.1)


def test_injection_is_the_same_again_and_leaves_out_what_is_too_faint(store, monkeypatch):
    pairs = read_pairs(store, "cutout", 0, 6)
    one, _, rows = inject(pairs, range(6), seed=5)
    other, _, _ = inject(pairs, range(6), seed=5)
    assert all(np.array_equal(one.ends[end], other.ends[end]) for end in ("lsst", "euclid"))
    monkeypatch.setattr(injection, "SOURCES", replace(SOURCES, mag_i=(25.9, 26.0), min_snr=300.0))
    with pytest.raises(RequestError, match="no arcs"):
        inject(pairs, rows[:1], seed=5)
    coarse = replace(pairs, pixel_scale={"lsst": 0.3, "euclid": 0.1})
    with pytest.raises(RequestError, match=r'g has pixels of 0\.300", but arcs are drawn for the 0\.200" of LSST'):
        inject(coarse, rows[:1], seed=5)


def test_mosaic_grid_of_stamps_is_that_of_the_reader(store):
    there, here = read_pairs(store, "mosaic", 0, 3), on_mosaic_grid(read_pairs(store, "cutout", 0, 3))
    assert np.array_equal(there.ends["lsst"], here.ends["lsst"])
    assert (there.noise, there.pixel_scale) == (here.noise, here.pixel_scale)


# -- the job --


def test_weights_stay_and_the_card_gains_a_score(calibrated):
    before, after = (load_checkpoint(path) for path in calibrated)
    assert after.card.discriminant is not None
    assert replace(after.card, discriminant=None).to_json() == before.card.to_json()
    assert after.sha256 != before.sha256
    for name, value in before.network.state_dict().items():
        assert value.equal(after.network.state_dict()[name])
    assert len(after.card.discriminant.weight) == 70
    assert (np.diff(after.card.discriminant.tail) > 0).all()


def test_it_says_how_well_it_does_on_what_it_had_not_seen(store, calibrated, tmp_path, capsys):
    command = ["calibrate", "--pairs", store, "--checkpoint", calibrated[0], "--out", str(tmp_path), "--draws", "2"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "50 lenses made of 50 of 100 regular objects" in text
    assert "no lens seen: Mahalanobis" in text
    assert load_checkpoint(tmp_path / "tiny").card.discriminant == load_checkpoint(calibrated[1]).card.discriminant


def test_evaluation_scores_with_it(store, calibrated, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda found, tables: {})
    monkeypatch.setattr(ranking, "DRAWS", 10)
    where = ["--pairs", store, "--anomalies", store, "--checkpoint", calibrated[1], "--out", str(tmp_path)]
    quick = ["--limit", "8", "--samples", "2", "--steps", "2", "--score-samples", "2", "--score-steps", "2"]
    assert main(["evaluate", *where, *quick]) == 0
    scores = pq.read_table(tmp_path / "scores.parquet")
    assert scores["false_alarm"].null_count == 0
    assert scores["score"].to_pylist() != scores["score_asbridge"].to_pylist()


def test_a_store_without_its_table_is_refused(calibrated, tmp_path, capsys):
    bare = tiny.write_pairs(tmp_path / "bare.zarr", 8)
    assert main(["calibrate", "--pairs", bare, "--checkpoint", calibrated[0], "--out", str(tmp_path / "o")]) == 2
    assert "0 of 8 pairs are deflector_like by the table beside the store" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_published_weights_are_refused(store, shared_data, tmp_path, capsys):
    weights = str(shared_data / "golden" / "asbridge_base32.pth")
    assert main(["calibrate", "--pairs", store, "--checkpoint", weights, "--out", str(tmp_path / "o")]) == 2
    assert "has no stretch" in capsys.readouterr().err
