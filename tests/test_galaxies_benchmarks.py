"""The benchmarks of generated galaxies: what their tables say of sets that are known."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import bridge_pairs, downstream, galaxies, galaxy_features
from surveybridge.storage.pair_writer import PairLayout, PairWriter
from surveybridge.storage.pairs import read_ids, read_pairs
from surveybridge.storage.problems import default_problem
from tests import tiny

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store, and another of the same population."""
    folder = tmp_path_factory.mktemp("pairs")
    return tiny.write_pairs(folder / "one.zarr", 20), tiny.write_pairs(folder / "other.zarr", 16)


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    module.main()


def test_the_source_is_as_far_from_itself_as_its_floor_and_every_stamp_of_it_is_memorised(
    stores, tmp_path, monkeypatch, capsys
):
    source, test = stores
    out = tmp_path / "galaxies.json"
    wanted = ["--source", source, "--test", test, "--made", f"copies={source}", "--halves", 6, "--out", out]
    run(galaxies, monkeypatch, *wanted)
    found = json.loads(out.read_text())
    average = next(row for row in found["rows"] if row["statistic"] == "average")
    assert average["copies / floor"] < 1.2 < 2 < average["Gaussian fields / floor"]
    low, high = average["floor"]["interval"]
    assert low <= average["floor"]["mean"] <= high
    copies = next(row for row in found["nearest"] if row["set"] == "copies")
    assert copies["quantiles"][-1] < 2e-3 and copies["nearer"] == 1.0
    said = capsys.readouterr().out
    assert "| average |" in said and "| copies | 0.00" in said and "| power spectrum |" in said


def test_stamps_of_a_bridge_stand_beside_the_observed_ones_that_they_were_drawn_for(
    stores, tmp_path, monkeypatch, capsys
):
    url = tmp_path / "drawn.zarr"
    some = ["--pairs", stores[0], "--out", url, "--to", "lsst", "--start", 3, "--count", 5, "--evaluations", 2]
    run(bridge_pairs, monkeypatch, *some)
    made, source = read_pairs(str(url)), read_pairs(stores[0], start=3, stop=8)
    assert read_ids(str(url)) == read_ids(stores[0], 3, 8)
    assert np.array_equal(made.ends["euclid"], source.ends["euclid"]) and made.noise == source.noise
    # of the same objects, in nJy: bright where they are bright, with noise of its own
    for drawn, true in zip(made.ends["lsst"][:, 2], source.ends["lsst"][:, 2], strict=True):
        assert 0.5 < np.corrcoef(drawn.ravel(), true.ravel())[0, 1] < 0.9999
    assert "5 pairs" in capsys.readouterr().out


def test_a_denoiser_learns_and_its_table_compares_with_real_images_alone(stores, tmp_path, monkeypatch, capsys):
    real, test = stores
    out = tmp_path / "downstream.json"
    sizes = ["--steps", 3, "--networks", 1, "--base", 4, "--blocks", 1, "--real-count", 8, "--test-count", 6]
    run(downstream, monkeypatch, "--real", real, "--made", test, "--test", test, "--alphas", 0, 1, *sizes, "--out", out)
    rows = json.loads(out.read_text())["rows"]
    assert {row["setting"] for row in rows} == {"alpha 0", "alpha 1", "augmented", "as few"}
    assert {row["shift"] for row in rows} == set(downstream.SHIFTS)
    for row in rows:
        assert row["interval"][0] <= row["gain"] <= row["interval"][1]
        assert row["setting"] != "alpha 0" or row["gain"] == 0
    assert "| augmented |" in capsys.readouterr().out


def test_a_network_that_is_trained_longer_errs_less(stores):
    images = downstream.images_of(stores[0], 8)[..., 20:44, 20:44]
    errors = []
    for steps in (2, 40):
        torch.manual_seed(0)
        network = downstream.fit(downstream.Denoiser(8, 1), (images, images), 0.0, steps, 0, augmented=False)
        errors.append(downstream.judge(network, images, downstream.SHIFTS["as trained"]).mean())
    assert errors[1] < 0.9 * errors[0]


def test_the_published_network_has_half_a_million_parameters():
    count = sum(parameter.numel() for parameter in downstream.Denoiser().parameters())
    assert count == pytest.approx(0.52e6, rel=0.02)


def test_an_image_is_observed_through_its_psf_with_its_noise():
    point = torch.zeros(1, 1, 64, 64)
    point[..., 32, 32] = 1e6
    generator = torch.Generator().manual_seed(0)
    how = downstream.Shift(noise=5.0, sigma=3.0)
    seen, wanted = downstream.observed(point, how, generator)
    assert float(seen[..., 32, 32]) == pytest.approx(1e6 / (2 * math.pi * 9), rel=0.02)
    assert float(seen[..., :12, :].std()) == pytest.approx(20.0, rel=0.1)
    assert torch.equal(wanted, point)
    coarse, _ = downstream.observed(point, downstream.Shift(coarse=2), generator)
    assert coarse.shape == (1, 1, 32, 32)


def test_training_images_come_from_the_generated_set_as_often_as_alpha_says():
    real, made = torch.zeros(5, 1, 8, 8), torch.ones(3, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    share = np.mean([float(downstream.drawn((real, made), 0.8, generator, augmented=False).mean()) for _ in range(200)])
    assert share == pytest.approx(0.8, abs=0.03)
    varied = downstream.drawn((torch.ones(5, 1, 8, 8), made), 0.0, generator, augmented=True)[:, 0, 4, 4]
    assert float(varied.min()) < 0.9 and float(varied.max()) > 1.1


def test_what_was_asked_for_is_measured_beside_the_stamps_of_the_source_that_are_like_it(stores):
    source, url = read_pairs(stores[0]), stores[0]
    fluxes = source.ends["euclid"].sum((1, 2, 3))
    magnitudes = 31.4 - 2.5 * np.log10(fluxes)
    pq.write_table(pa.table({"id": read_ids(url), "mag_VIS": magnitudes}), url.replace(".zarr", ".parquet"))
    brightest = np.argsort(magnitudes)[:2]
    made = url.replace("one", "made")
    table = default_problem()
    layout = PairLayout(table, 2, (64, 64), 0.1, "made", conditions=False, attributes={"given": {"magnitude": 1.0}})
    writer = PairWriter.open(made, layout)
    lsst, euclid = (source.ends[name][brightest].transpose(0, 2, 3, 1) for name in ("lsst", "euclid"))
    writer.write(0, ["a", "b"], {"lsst": lsst, "euclid": euclid})
    writer.finish()
    row = galaxies.obedience(url, source, made)
    assert row["made"] == pytest.approx(row["source"])
    assert row["made"]["magnitude"] == pytest.approx(np.median(magnitudes[brightest]), abs=0.1)
    assert "| magnitude 1 |" in "\n".join(galaxies.obedience_lines([row]))


def test_stamps_are_shown_by_their_own_range_or_by_one_asinh(stores):
    pairs = read_pairs(stores[0])
    brighter = replace(pairs, ends={**pairs.ends, "euclid": 3 * pairs.ends["euclid"]})
    assert torch.equal(galaxy_features.by_range(pairs), galaxy_features.by_range(brighter))
    one, other = galaxy_features.by_asinh(pairs), galaxy_features.by_asinh(brighter)
    assert one.shape == (20, 3, 64, 64) and float(one.min()) >= 0 and float(one.max()) <= 1
    assert float(other[:, 0, 32, 32].mean()) > float(one[:, 0, 32, 32].mean()) + 0.05


def test_features_of_the_source_are_at_their_floor_and_shifted_ones_are_not():
    generator = torch.Generator().manual_seed(0)
    source, like = torch.randn(400, 6, generator=generator), torch.randn(200, 6, generator=generator)
    rows = galaxy_features.rows_of("range", source, {"like": like, "shifted": like + 0.5}, 6)
    assert [row["distance"] for row in rows] == list(galaxy_features.DISTANCES)
    for row in rows:
        assert row["shifted"]["mean"] > row["floor"]["interval"][1] and row["shifted"]["mean"] > 4 * row["like"]["mean"]


def test_the_features_of_copies_are_at_the_floor(stores, tmp_path, monkeypatch, capsys):
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra comparators")
    out = tmp_path / "features.json"
    wanted = ["--source", stores[0], "--made", f"other={stores[1]}", "--count", 10, "--halves", 2, "--out", out]
    run(galaxy_features, monkeypatch, *wanted)
    row = json.loads(out.read_text())["rows"][0]
    assert row["other"]["mean"] < 3 * row["floor"]["mean"]
    assert "| range | FD-lite0 |" in capsys.readouterr().out


def test_what_a_set_has_none_of_is_a_dash():
    row: dict[str, Any] = {"statistic": "colour of early types", "floor": {"mean": 0.02, "interval": (0.01, 0.03)}}
    row |= {"made": galaxies._summary([0.1, math.nan]), "made / floor": None}
    assert galaxies.lines_of([row])[-1] == "| colour of early types | 2.00 [1.00, 3.00] | - | - |"


def test_the_share_that_is_nearer_is_that_below_a_hundredth_of_the_test():
    test, made = torch.linspace(1, 2, 101), torch.tensor([0.5, 1.005, 1.5, 1.6])
    rows = galaxies.memorised({"test": test, "made": made})
    assert rows[1]["nearer"] == 0.5 and rows[1]["quantiles"][0] == 0.5
    assert rows[0]["nearer"] == pytest.approx(1 / 101)
