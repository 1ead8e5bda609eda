"""What benchmarks add up themselves: the cost of a square degree, the time to a score, the steps of ingest."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits

from benchmarks import clouds_samplers, conditions, ingest, kernels, preparing, square_degree, table1, table2, train
from benchmarks.memory import crowded_tile
from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.checkpoint import load_card
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.sampler import sample, window_noise
from surveybridge.bridge_core.settings import PatchGrid, Sampling, Scoring, WholeTile
from surveybridge.jobs.planning.rates import Rates
from surveybridge.jobs.translating.config import Config
from surveybridge.jobs.translating.request import check
from surveybridge.storage.tiles import TileStore
from tests import tiny
from tests.bridge_core.models import TO_EUCLID, make_card, random_model

RATES = Rates(
    device="CPU", gpus=0, threads=2, tiles=1, tile_side=96, seconds=1.0, load=5.0, read=1e-9, translate=1e-3,
    score=2e-3, detect=1e-6, write_tile=0.01, write_pixel=1e-8, live=1.0, sources_per_pixel=1e-4, stored=0.4,
    mosaic_bytes=10.0, candidates_bytes=20_000, source_bytes=90_000, ledger_bytes=8_000, gpu_bytes=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def request_(tmp_path_factory):
    folder = tmp_path_factory.mktemp("square")
    store = tiny.write_store(folder / "tiles")
    checkpoint = tiny.write_checkpoint(folder)
    return check(Config(store=store, run=str(folder / "run"), checkpoint=checkpoint, executor="serial"))


def test_every_benchmark_finds_what_it_imports():
    names = [file.stem for file in Path(kernels.__file__).parent.glob("*.py")]
    assert "seeing" in names
    for name in names:
        importlib.import_module(f"benchmarks.{name}")  # ImportError where something has moved


@pytest.mark.parametrize("grid", [PatchGrid(), square_degree.LARGE, WholeTile()])
def test_a_square_degree_costs_what_its_formula_says(request_, grid):
    tile = TileStore.open(request_.config.store).read_tile("t0000")
    manifest = square_degree.square_degree(tile, 512, 64)
    row = square_degree.row_of(square_degree.Setting("one", 4, 6, grid), request_, manifest, tile, RATES)
    pixels = 36_000**2
    if isinstance(grid, WholeTile):
        seen = pixels * (640 / 512) ** 2
    else:  # tiles begin at multiples of 8, as the strides do
        across = (512 + grid.size - 2 * grid.margin - 8) / grid.stride
        seen = pixels * (across * grid.size / 512) ** 2
    evaluations = seen / 64**2 * 4 * 6
    assert row["evaluations"]["translate"] == pytest.approx(evaluations, rel=1e-3)
    sources = pixels * 1e-4
    assert row["sources"] == pytest.approx(sources, rel=1e-4)
    tiles = pixels / 512**2
    seconds = tiles * 640**2 * 4 * 9 * 1e-9 + evaluations * 1e-3 + tiles * 0.01 + pixels * 1e-8
    seconds += row["evaluations"]["score"] * 2e-3 + tiles * 640**2 * 1e-6
    # two threads are two cores, and loading is no part of it
    assert row["hours"] == pytest.approx(2 * seconds / 3600, rel=2e-3)


def test_where_samples_share_their_start_a_square_degree_has_fewer_evaluations(tmp_path):
    store = tiny.write_store(tmp_path / "tiles")
    checkpoint = tiny.write_checkpoint(tmp_path, objective=Objective("edm", end_share=0.1), patch="tile")
    request = check(Config(store=store, run=str(tmp_path / "run"), checkpoint=checkpoint, executor="serial"))
    tile = TileStore.open(store).read_tile("t0000")
    manifest = square_degree.square_degree(tile, 512, 64)
    settings = (square_degree.Setting("one", 4, 6, WholeTile(), own_starts=own) for own in (False, True))
    shared, own = (square_degree.row_of(one, request, manifest, tile, RATES) for one in settings)
    assert shared["evaluations"]["translate"] / own["evaluations"]["translate"] == pytest.approx(21 / 24, rel=1e-6)


def test_a_gpu_is_held_while_its_model_works(request_):
    tile = TileStore.open(request_.config.store).read_tile("t0000")
    manifest = square_degree.square_degree(tile, 512, 64)
    on_ray = replace(request_, config=request_.config.model_copy(update={"executor": "ray"}))
    row = square_degree.row_of(
        square_degree.Setting("one", 4, 6, PatchGrid()), on_ray, manifest, tile, replace(RATES, gpus=1)
    )
    assert row["hours"] == pytest.approx(row["stage_hours"]["translate"] + row["stage_hours"]["score"], rel=1e-3)


def test_what_a_tile_costs_before_a_network_sees_it_is_all_of_its_parts():
    tile = crowded_tile(120, load_card().problem)
    objects, spent = preparing.prepared_once(load_card(), tile)
    assert objects >= 4
    assert all(spent[name] > 0 for name in (*preparing.PARTS, *preparing.BESIDE))
    assert sum(spent[name] for name in preparing.PARTS if name != "thumbnails") < spent["all"]
    assert spent["thumbnails"] < spent["objects"]


def test_the_time_to_a_score_is_that_of_the_first_report_that_reached_it():
    energies = [0.09, 0.07, 0.072, 0.05]
    log = [
        {"step": str(k), "seconds": str(60 * k), "pairs": str(32 * k), "validation_energy": str(energy)}
        for k, energy in enumerate(energies, 1)
    ]
    assert train.time_to(log, 0.075)["first"]["seconds"] == 120
    assert train.time_to(log, None)["first"]["seconds"] == 240  # within 2% of the best
    assert train.time_to(log, 0.01)["first"] is None


def test_a_short_training_reports_scores_and_rates_by_batch(tmp_path):
    pairs = tiny.write_pairs(tmp_path / "pairs", 40)
    settings = train.settings_of(pairs, base=8, validation=8, shards=2)
    training_shards = train.shards_of(settings)
    rows = train.rates(settings, training_shards, train.CPU, [4, 8], ["bfloat16", "float32"], steps=1, rounds=1)
    assert [(row["precision"], row["batch"]) for row in rows] == [
        *(("bfloat16", 4), ("bfloat16", 8)),
        *(("float32", 4), ("float32", 8)),
    ]
    assert all(row["pairs_per_second"] == row["batch"] / row["seconds_a_step"] > 0 for row in rows)
    log = list(train.short_training(settings, training_shards, train.CPU, seconds=0.5, reports=2))
    assert len(log) == 2 and log[1]["pairs"] > log[0]["pairs"] > 0
    assert train.time_to(log, None)["first"]


@pytest.mark.long
def test_the_steps_of_ingest_sum_to_what_ingest_takes(shared_data, tmp_path):
    taken = ingest.steps(corner(shared_data / "field", tmp_path / "field"), tmp_path / "store")
    assert tuple(taken) == ("read FITS", "sky statistics", "co-register", "write", "all of them", "ingest")
    wall, cpu = (sum(taken[step][k] for step in ingest.STEPS[:4]) for k in range(2))
    assert (wall, cpu) == pytest.approx(taken["all of them"])
    # by CPU time, which other users of the machine do not lengthen; statistics are taken once more, so caches differ
    assert taken["ingest"][1] == pytest.approx(cpu, rel=0.3)
    assert TileStore.open(tmp_path / "store").manifest().num_rows == 4


def corner(field: Path, folder: Path) -> Path:
    """The shared field with a quarter of its Euclid image, which takes a third of the time."""
    folder.mkdir()
    for band in "gri":
        (folder / f"field_lsst_{band}.fits").symlink_to(field / f"field_lsst_{band}.fits")
    with fits.open(field / "field_euclid_vis.fits") as hdus:
        for hdu in hdus:
            if hdu.data is not None:
                hdu.data = hdu.data[:1024, :1024]
        hdus.writeto(folder / "field_euclid_vis.fits")
    return folder


def test_published_steps_of_clouds_go_down_all_of_the_table_or_evenly():
    assert clouds_samplers.published_steps(1000, 999) == list(range(999, -1, -1))
    assert clouds_samplers.published_steps(1000, 4) == [999, 749, 500, 250, 0]  # 749.25, 499.5 to even, 249.75


def test_the_published_sampler_of_clouds_is_ours_of_first_order_with_all_noise():
    """But for the weight of a thousandth of the end, and for the last x0, which ours asks of the network."""
    bridge = Bridge.schrodinger()
    model = random_model(make_card(bridge, "i2sb"))
    windows, how = torch.randn(2, 3, 16, 16), Sampling(samples=2, steps=40, seed=3, precision="float32")
    states = clouds_samplers.published(model, TO_EUCLID, windows, how)
    assert states.shape == (2, 2, 1, 16, 16)
    steps = clouds_samplers.published_steps(1000, 40)
    noise = window_noise(3, TO_EUCLID.index, [(0, 1), (1, 1)], clouds_samplers.corners_of(windows), windows.device)
    kept: list[torch.Tensor] = []
    sample(model, windows, TO_EUCLID, steps, start=windows, noise=noise, eta=1.0, order=1, trajectory=kept)
    expected = TO_EUCLID.wanted.inverse(kept[-2] if len(kept) == len(steps) else kept[-1])
    # the noise of our last step, into index 0, is left out there
    spread = float((states[1] - expected).std() / expected.std())
    assert spread < 0.1
    torch.testing.assert_close(clouds_samplers.forward_variance(bridge)[-1].sqrt().item(), 0.37554, atol=1e-5, rtol=0)


def test_scores_of_clouds_are_in_dex_and_leave_out_what_is_not_known():
    truth = torch.randn(6, 1, 8, 8)
    samples = truth + 0.1 + 0.2 * torch.randn(9, 6, 1, 8, 8)
    truth[0, 0, 0, 0] = torch.nan
    found = clouds_samplers.scores(samples, truth)
    assert found["single_mean"] == pytest.approx(0.1, abs=0.03) and found["single_std"] == pytest.approx(0.2, rel=0.1)
    assert found["median_std"] < 0.5 * found["single_std"] and 0.05 < found["crps"] < 0.12


def test_what_a_condition_is_worth_is_that_of_all_pairs_with_an_interval_over_pairs():
    rng = np.random.default_rng(3)
    bright = rng.integers(50, 150, 120).astype(float)
    energy = rng.uniform(1, 2, 120)
    best = {"sky": np.stack([energy, bright, 0.68 * bright, bright, bright], 1)}
    worse = {"sky": np.stack([1.2 * energy, bright, rng.binomial(bright.astype(int), 0.5), 0.25 * bright, bright], 1)}
    found = conditions.measures(worse, best)
    assert found["energy sky"] == pytest.approx((1.2, 1.2, 1.2))
    assert found["spread/skill sky"] == pytest.approx((0.5, 0.5, 0.5))
    value, low, high = found["68% sky"]
    assert low < 0.5 < high and low < value < high and 0.005 < high - low < 0.04
    assert "| worse | 1.200 [1.200, 1.200] |" in conditions.table(
        {"everything": conditions.measures(best, best), "worse": found}
    )


def test_kernels_are_timed_on_the_layouts_of_the_sampler():
    timed = {variant.name: variant for variant in kernels.variants(2, 16, "cpu", ("naive",))}
    first, second = (timed[f"{order} order step"].call.keywords for order in ("first", "second"))
    assert "x0_prev" not in first and second["x0_prev"].shape == (2, 3, 16, 16)
    assert [step["table"].rows[step["step"]].h for step in (first, second)] == [0, 0.2]
    assert first["next_input"].stride() == (16 * 16 * 9, 1, 16 * 9, 9)
    model = random_model(make_card()).to("cpu", "bfloat16")
    predictor = model.predictor(torch.zeros(2, 3, 16, 16), TO_EUCLID, [9], "bfloat16")
    assert predictor.input.stride() == first["next_input"].stride()
    pred = timed["first order step"].call.args[1]
    assert pred.stride() == predictor(0, torch.zeros(2, 3, 16, 16)).stride()
    # 8 x 8 pixels of 32 channels in bfloat16, read and written
    assert timed["norm, FiLM and SiLU"].bytes == 2 * 32 * 8 * 8 * 4


def test_on_a_gpu_the_device_is_timed_over_twenty_calls_between_two_events(monkeypatch):
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def elapsed_time(self, other: Event) -> float:
            return 5.0  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    assert kernels.clock(lambda: log.append("call"), True, kernels.CALLS) == pytest.approx(0.005 / 20)
    assert log == ["event", *["call"] * 20, "event", "wait"]


@pytest.mark.long
@pytest.mark.parametrize("grid", ["mosaic", "cutout"])
def test_table_1_trains_its_rivals_once_and_judges_both_directions(grid, tmp_path, monkeypatch, capsys):
    store = tiny.write_pairs(tmp_path / "pairs", 12)
    command = ["table1", "--train", store, "--test", store, "--runs", str(tmp_path / "runs"), "--steps", "1"]
    command += ["--limit", "2", "--samples", "2", "--base", "8", "--width", "2", "--grid", grid]
    command += ["--rivals", "pix2pix", "ours"]
    monkeypatch.setattr("sys.argv", [*command, "--out", str(tmp_path)])
    monkeypatch.setattr("benchmarks.objectives.NFE", 2)
    monkeypatch.setattr(table1, "REPORT_STEPS", 1)
    table1.main()
    first = json.loads((tmp_path / "table1.json").read_text())
    trained = tiny.files_of(tmp_path / "runs")
    table1.main()
    assert json.loads((tmp_path / "table1.json").read_text()) == first
    assert tiny.files_of(tmp_path / "runs") == trained
    for direction in (0, 1):
        (line,) = (tmp_path / "runs" / f"pix2pix-0-{direction}.log.csv").read_text().splitlines()
        assert line.startswith("1,") and float(line.split(",")[3]) > 0
    rows = first["rows"]
    assert [(row["rival"], row["direction"]) for row in rows] == [
        (rival, way) for rival in ("pix2pix", "ours") for way in ("lsst->euclid", "euclid->lsst")
    ]
    # two networks of one direction see as many pairs as one network of both
    assert [row["steps"] for row in rows] == [2, 2, 2, 2] and {row["images"] for row in rows} == {32}
    for row in rows:
        low, high = row["energy_score_fair"]["interval"]
        assert low <= row["energy_score_fair"]["value"] <= high
        assert row["energy_score_fair"]["value"] < row["energy_score"]["value"]
    assert capsys.readouterr().out.count("lsst->euclid") == 4
    monkeypatch.setattr("sys.argv", [*command[:-2], "gan"])
    with pytest.raises(SystemExit, match="'gan' is not one of pix2pix, spade, oasis, palette"):
        table1.main()


@pytest.mark.long
def test_table_2_scores_lenses_and_ordinary_objects_by_all_rivals(tmp_path, monkeypatch):
    store, lenses = tiny.write_pairs(tmp_path / "pairs", 6), tiny.write_pairs(tmp_path / "lenses", 6)
    checkpoint = tiny.write_checkpoint(tmp_path)
    command = ["table2", "--train", store, "--regular", store, "--lenses", lenses, "--checkpoint", checkpoint]
    command += ["--runs", str(tmp_path / "runs"), "--steps", "1", "--base", "8", "--limit", "3", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr(table2, "Scoring", lambda seed: Scoring(samples=2, steps=1, seed=seed))
    monkeypatch.setattr(table2, "EfficientNetFeatures", missing)
    table2.main()
    rows = json.loads((tmp_path / "table2.json").read_text())["rows"]
    assert [row["score"] for row in rows] == [
        *("central_flux", "total_flux", "inverse_flux", "smooth_residual", "AS-Bridge", "ours"),
        *("DeCo-Diff euclid", "DeCo-Diff euclid / flux", "DeCo-Diff lsst", "DeCo-Diff lsst and euclid"),
        "CFM self-taught",
    ]
    # both stores hold the same objects, so no score tells them apart
    by_name = {row["score"]: row for row in rows}
    for name in ("central_flux", "DeCo-Diff lsst", "CFM self-taught"):
        assert by_name[name]["auroc"]["value"] == pytest.approx(0.5)
    assert {row["against"] for row in rows} == {"all"}


def missing():
    raise BridgeError("EfficientNet is not installed")
