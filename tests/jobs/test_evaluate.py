"""Evaluate: what it writes, that it is the same however the work is shared out, and numbers that are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from surveybridge.__main__ import main
from surveybridge.bridge_core.evaluation import LEVELS, REGIONS
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.stretch import Stretch
from surveybridge.jobs import demo
from surveybridge.jobs import evaluate as job
from surveybridge.jobs.evaluating import plots, ranking
from surveybridge.jobs.evaluating import stages as evaluation_stages
from surveybridge.jobs.evaluating.blocks import PARTS
from surveybridge.jobs.evaluating.summary import _photometry, summarise
from surveybridge.jobs.translating.config import Config
from surveybridge.storage.evaluation_schemas import EVALUATED_IMAGES, EVALUATED_PIXELS, EVALUATED_SCORES
from surveybridge.storage.pairs import NOMINAL, WHITE, read_pairs
from surveybridge.storage.schema import conform
from tests import tiny

pytestmark = pytest.mark.long  # two dozen evaluations

QUICK = ["--samples", "3", "--steps", "2", "--score-samples", "2", "--score-steps", "2", "--precision", "float32"]
PLOTS = ["anomalies.png", "calibration.png", "photometry.png"]
FILES = ["images.parquet", "metrics.json", "pixels.parquet", "scores.parquet", *PLOTS]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Regular objects, anomalies, and a checkpoint."""
    folder = tmp_path_factory.mktemp("stores")
    regular = tiny.write_pairs(folder / "regular.zarr", 10)
    lenses = tiny.write_pairs(folder / "lenses.zarr", 6)
    classes = ["deflector_like", "field_galaxy"] * 5
    table = pa.table({"id": [f"regular.zarr-{k:06d}" for k in range(10)], "central_class": classes})
    pq.write_table(table, folder / "regular.parquet")
    return regular, lenses, tiny.write_checkpoint(folder)


def evaluate(stores, out, *more: str, plotted: bool = False) -> int:
    """Evaluate with rough intervals of the ranking, and as a rule without plots: they take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "DRAWS", 10)
        if not plotted:
            patch.setattr(plots, "draw", lambda found, tables: {})
        return main(request(stores, out, *more))


def request(stores, out, *more: str) -> list[str]:
    regular, lenses, checkpoint = stores
    where = ["--pairs", regular, "--anomalies", lenses, "--checkpoint", checkpoint, "--out", str(out)]
    return ["evaluate", *where, *QUICK, *more]


@pytest.fixture(scope="module")
def evaluated(stores, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    assert main(request(stores, out)) == 0
    return out


def metrics_of(out: Path):
    return json.loads((out / "metrics.json").read_text())


def test_it_leaves_metrics_tables_and_plots(evaluated):
    assert sorted(path.name for path in evaluated.iterdir() if path.is_file()) == sorted(FILES)
    assert not [path for path in evaluated.rglob("*") if "parts" in path.parts and path.is_file()]
    for name in PLOTS:
        assert (evaluated / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = metrics_of(evaluated)
    for name in ("energy_score", "crps", "coverage", "spread_skill"):
        assert set(found[name]) == {"lsst->euclid", "euclid->lsst"}
    for part in (found["anomaly"], found["anomaly"]["deflector_like"]):
        for score in (part["score"], *part["baselines"].values()):
            assert {"auroc", "aupr", "fpr_at_tpr", "precision_at"} <= set(score)
    assert (found["anomaly"]["regular"], found["anomaly"]["deflector_like"]["regular"]) == (10, 5)
    assert found["checkpoint"]["name"] == "tiny" and found["pairs"] == {"pairs": 10, "anomalies": 6}
    images, pixels, scores = (pq.read_table(evaluated / f"{name}.parquet") for name in ("images", "pixels", "scores"))
    assert (images.num_rows, pixels.num_rows, scores.num_rows) == (20, 10 * 4 * len(REGIONS), 16)
    assert images["object_id"][:2].to_pylist() == ["regular.zarr-000000", "regular.zarr-000001"]


def test_intervals_hold_their_values(evaluated):
    def check(node) -> int:
        if isinstance(node, dict) and set(node) >= {"value", "interval"}:
            low, high = node["interval"]
            if node["value"] is None:
                return 0
            assert low <= node["value"] <= high or node["value"] == pytest.approx(low, rel=0.3), node
            return 1
        return sum(map(check, node.values())) if isinstance(node, dict) else 0

    assert check(metrics_of(evaluated)) > 50


def same_tables(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES if name.endswith("parquet"))


def test_ray_gives_the_same_files(stores, tmp_path, monkeypatch, ray_cluster):
    monkeypatch.setattr(job, "BLOCK", 4)  # several blocks of each store, for two workers
    assert evaluate(stores, tmp_path / "serial") == 0
    assert evaluate(stores, tmp_path / "ray", "--executor", "ray", "--workers", "2") == 0
    assert same_tables(tmp_path / "serial", tmp_path / "ray")
    one, other = (metrics_of(tmp_path / name) for name in ("serial", "ray"))
    assert all(one[name] == other[name] for name in one if name != "config")


def test_blocks_change_nothing(stores, evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "BLOCK", 3)
    assert evaluate(stores, tmp_path) == 0
    for name in ("images", "pixels", "scores"):
        one, other = (pq.read_table(out / f"{name}.parquet") for out in (evaluated, tmp_path))
        assert one["object_id"].to_pylist() == other["object_id"].to_pylist()
        for column in ("energy_score", "crps", "score"):
            if column in one.column_names:  # another number of stamps in a call rounds otherwise
                np.testing.assert_allclose(one[column].to_numpy(), other[column].to_numpy(), rtol=1e-4)


def test_a_limit_takes_the_first_pairs(stores, evaluated, tmp_path):
    assert evaluate(stores, tmp_path, "--limit", "4", "--direction", "lsst->euclid") == 0
    assert set(metrics_of(tmp_path)["crps"]) == {"lsst->euclid"}
    images = pq.read_table(tmp_path / "images.parquet")
    assert images["object_id"].to_pylist() == [f"regular.zarr-{k:06d}" for k in range(4)]


def test_a_damaged_store_is_refused(stores, tmp_path, capsys):
    regular = Path(tiny.write_pairs(tmp_path / "bad.zarr", 10))
    chunk = max((regular / "euclid").rglob("c/*/*/*"), key=lambda path: path.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:100])
    assert evaluate((str(regular), *stores[1:]), tmp_path / "out") == 2
    assert "bad.zarr: pairs 0 to 1 cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pairs_that_cannot_be_judged_are_told_and_nothing_is_summarised(stores, tmp_path, monkeypatch, caplog):
    def broken(*arguments):
        raise RuntimeError("no such luck")

    monkeypatch.setattr("surveybridge.bridge_core.evaluation.image_scores", broken)
    assert evaluate(stores, tmp_path / "out") == 1
    assert "pairs-00000000: RuntimeError: no such luck" in caplog.text
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--pairs", "absent.zarr"], ["absent.zarr", "not a pair store"]),
        (["--checkpoint", "mosaic-v9"], ["mosaic-v9.safetensors does not exist"]),
        (["--samples", "1"], ["--samples 1"]),
    ],
)
def test_a_wrong_request_is_refused_in_a_line(stores, tmp_path, capsys, change, said):
    assert evaluate(stores, tmp_path / "out", *change) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(words in line for words in said)
    assert not (tmp_path / "out").exists()


def test_an_evaluation_replaces_an_earlier_one_and_leaves_other_files_alone(stores, tmp_path):
    regular, _, checkpoint = stores
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "notes.txt").write_text("mine")
    left = tmp_path / PARTS / "pairs-00000000.scores.parquet"
    left.parent.mkdir()
    left.write_bytes(b"of an evaluation that failed")
    (tmp_path / "scores.parquet").write_bytes(b"of an earlier one")
    assert main(["evaluate", "--pairs", regular, "--checkpoint", checkpoint, "--out", str(tmp_path), *QUICK]) == 0
    assert "anomaly" not in metrics_of(tmp_path)
    assert not left.exists() and not (tmp_path / "scores.parquet").exists()
    assert (tmp_path / "parts" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_very_few_pairs_are_judged_too(stores, tmp_path, capsys, limit):
    assert evaluate(stores, tmp_path, "--limit", str(limit), plotted=limit == 1) == 0
    assert f"anomalies: {limit} against {limit} regular (all)" in capsys.readouterr().out


def test_a_black_stamp_is_judged_too(stores, tmp_path):
    regular = tiny.write_pairs(tmp_path / "black.zarr", 6)
    euclid = zarr.open_group(regular)["euclid"]
    assert isinstance(euclid, zarr.Array)
    euclid[2] = np.zeros((64, 64), np.float32)
    assert evaluate((regular, *stores[1:]), tmp_path / "out") == 0
    assert metrics_of(tmp_path / "out")["photometry"]["lsst->euclid"]["VIS"]["objects"] == 5


def test_stamps_that_patches_do_not_tile_are_refused(stores, tmp_path, capsys):
    group = zarr.open_group(stores[0], mode="r")
    small = zarr.open_group(str(tmp_path / "small.zarr"), mode="w", attributes=dict(group.attrs))
    small.create_array("lsst", data=np.asarray(group["lsst"])[:, 8:56, 8:56])
    small.create_array("euclid", data=np.asarray(group["euclid"])[:, 8:56, 8:56])
    assert evaluate((str(tmp_path / "small.zarr"), *stores[1:]), tmp_path / "out") == 2
    assert "stamps of 48 x 48 pixels, but patches at all scales need multiples of 64" in capsys.readouterr().err


def test_out_that_is_a_file_is_refused(stores, tmp_path, capsys):
    (tmp_path / "out").write_text("thesis")
    assert evaluate(stores, tmp_path / "out") == 2
    assert "out is a file; give a folder" in capsys.readouterr().err


def test_a_checkpoint_for_other_pixels_is_refused(stores, tmp_path, capsys):
    coarse = tiny.write_checkpoint(tmp_path, "coarse", problem=tiny.problem_with(lsst={"pixel_scale": 0.3}))
    assert evaluate(stores, tmp_path / "out", "--checkpoint", coarse) == 2
    assert 'lsst pixel scale 0.100" on the mosaic grid but checkpoint coarse expects 0.300"' in capsys.readouterr().err


def test_eight_bit_stores_are_for_checkpoints_that_see_the_display(stores, tmp_path, capsys):
    bytes_store = eight_bit_copy(stores[0], tmp_path / "bytes.zarr")
    assert evaluate((bytes_store, *stores[1:]), tmp_path / "out") == 2
    assert "bytes.zarr: 8-bit display values have no flux; give stamps in nJy" in capsys.readouterr().err


def eight_bit_copy(store: str, path: Path) -> str:
    """The stamps as AS-Bridge's data sets hold them: its display, rounded to bytes."""
    pairs = read_pairs(store, "cutout")
    shown = {}
    for name, images in pairs.ends.items():
        bands = pairs.bands[name]
        noise = {band: NOMINAL[band]["sigma_noise"] for band in bands}
        stretch = Stretch.asbridge(noise, {band: WHITE[band][0] for band in bands})
        unit = (stretch.forward(torch.from_numpy(images), bands).numpy() + 1) / 2
        shown[name] = np.rint(255 * np.clip(unit, 0, 1)).astype(np.uint8)
    group = zarr.open_group(str(path), mode="w")
    group.create_array("lsst", data=np.ascontiguousarray(shown["lsst"].transpose(0, 2, 3, 1)))
    group.create_array("euclid", data=shown["euclid"][:, 0])
    return str(path)


def test_eight_bit_stamps_come_back_as_they_were_shown(stores, tmp_path):
    path = eight_bit_copy(stores[0], tmp_path / "bytes.zarr")
    pairs = read_pairs(path, "cutout", eight_bit=True)
    again = evaluation_stages.display_stretch(pairs)
    for name, images in pairs.ends.items():
        bands = pairs.bands[name]
        shown = (again[name].forward(torch.from_numpy(images), bands) + 1) / 2 * 255
        stored = np.asarray(zarr.open_group(path, mode="r")[name]).astype(np.float32)
        stored = stored.transpose(0, 3, 1, 2) if name == "lsst" else stored[:, None]
        np.testing.assert_allclose(shown.numpy(), stored, atol=1e-3)


# -- numbers that are known --


def made_tables() -> tuple[pa.Table, pa.Table, pa.Table]:
    """Tables of 40 pairs whose sums give known measures, and scores that a flux explains in part."""
    rng, samples = np.random.default_rng(0), 4
    ids = [f"o{k:02d}" for k in range(40)]
    images = {"object_id": ids, "direction": ["lsst->euclid"] * 40, "energy_score": np.arange(40.0)}
    images |= {"energy_score_fair": np.arange(40.0) - 1, "flux_VIS": np.full(40, 100.0)}
    images |= {f"patch_energy_{s}": np.full(40, 0.5) for s in (1, 2, 4, 8)}
    shape = rng.normal(size=40)
    for name in ("size", "ellipticity", "bulge", "gini", "asymmetry"):
        images |= {name: shape, f"{name}_samples": [[value + 0.5] * samples for value in shape]}
    images |= {"power": [[1.0, 2.0]] * 40, "power_samples": [[1.0, 3.0]] * 40}
    images |= {"sources": np.full(40, 2.0), "sources_samples": [[2.0, 2.0, 2.0, 1.0]] * 40}
    images |= {"sources_matched_samples": [[2.0, 1.0, 2.0, 1.0]] * 40}
    images |= {
        "blended_lsst": [True, False] * 20,
        "flux_VIS_mean": 90 + rng.normal(size=40),
        "flux_VIS_std": np.full(40, 5.0),
    }
    rows = [(name, region) for name in ids for region in REGIONS]
    pixels = {
        "object_id": [name for name, _ in rows],
        "direction": ["lsst->euclid"] * len(rows),
        "band": ["VIS"] * len(rows),
        "region": [region for _, region in rows],
        "pixels": [100.0] * len(rows),
        "squared_error": [125.0] * len(rows),
        "variance": [81.0] * len(rows),
        "crps": [56.0] * len(rows),
        "within": [[40.0, 60.0, 80.0, 90.0]] * len(rows),
        "ranks": [[20.0] * (samples + 1)] * len(rows),
    }
    anomalous = np.arange(300) < 100
    flux = rng.normal(size=300) + anomalous
    scores = {
        "object_id": [f"s{k}" for k in range(300)],
        "anomalous": anomalous.tolist(),
        "central_class": [None] * 100 + ["deflector_like", "field_galaxy"] * 100,
        "score": anomalous.astype(float),
        "score_std": np.zeros(300),
        "central_flux": flux,
        "total_flux": flux,
        "inverse_flux": -flux,
        "smooth_residual": rng.normal(size=300),
    }
    wanted = ((images, EVALUATED_IMAGES), (pixels, EVALUATED_PIXELS), (scores, EVALUATED_SCORES))
    images_table, pixels_table, scores_table = (conform(pa.table(t), schema, "made") for t, schema in wanted)
    return images_table, pixels_table, scores_table


def test_measures_follow_from_the_sums():
    found = summarise(*made_tables(), samples=4)
    energy = found["energy_score"]["lsst->euclid"]
    assert (energy["published"]["value"], energy["fair"]["value"]) == (19.5, 18.5)
    assert energy["published"]["interval"] == pytest.approx([15.9, 23.1], abs=0.6)  # 1.96 x 11.5 / sqrt 40
    for region in REGIONS:
        assert found["spread_skill"]["lsst->euclid"][region]["value"] == pytest.approx(0.9)  # sqrt(1.25 x 81 / 125)
        assert found["rmse"]["lsst->euclid"][region]["value"] == pytest.approx(1.25**0.5, rel=1e-5)
        assert found["crps"]["lsst->euclid"][region]["by_band"] == {"VIS": 0.56}
        coverage = found["coverage"]["lsst->euclid"][region]
        assert [coverage[f"{level:.2f}"]["value"] for level in LEVELS] == [0.4, 0.6, 0.8, 0.9]
        assert found["ranks"]["lsst->euclid"][region] == [0.2] * 5
    flux = found["photometry"]["lsst->euclid"]["VIS"]
    assert flux["median_ratio"]["value"] == pytest.approx(0.9, abs=0.01) and flux["objects"] == 40
    shape = found["morphology"]["lsst->euclid"]
    assert set(shape) == {"size", "ellipticity", "bulge", "gini", "asymmetry"}  # no colours of one band
    assert shape["gini"]["median"] - shape["gini"]["true_median"] == pytest.approx(0.5, abs=0.05)
    assert 0.4 < shape["gini"]["wasserstein"] < 0.7
    assert found["power"]["lsst->euclid"] == [1.0, 1.5]
    sources = found["sources"]["lsst->euclid"]
    assert (sources["all"]["mean"], sources["all"]["true_mean"], sources["all"]["same_count"]) == (1.75, 2, 0.75)
    assert (sources["all"]["completeness"], sources["all"]["purity"]) == (6 / 8, pytest.approx(6 / 7, abs=1e-5))
    assert sources["blended_lsst"]["pairs"] == 20


def test_the_ranking_stands_beside_scores_without_a_model(monkeypatch):
    monkeypatch.setattr(ranking, "DRAWS", 40)
    anomaly = summarise(*made_tables(), samples=4)["anomaly"]
    perfect, by_flux = anomaly["score"], anomaly["baselines"]["central_flux"]
    assert (perfect["auroc"]["value"], perfect["aupr"]["value"], perfect["precision_at"]["100"]["value"]) == (1, 1, 1)
    assert perfect["fpr_at_tpr"]["0.05"]["value"] == 0 and perfect["inspection_load"]["0.5"]["value"] == 1
    assert by_flux["auroc"]["value"] == pytest.approx(0.76, abs=0.06)
    assert by_flux["auroc"]["interval"][0] < by_flux["auroc"]["value"] < by_flux["auroc"]["interval"][1]
    assert anomaly["baselines"]["inverse_flux"]["auroc"]["value"] == pytest.approx(1 - by_flux["auroc"]["value"])
    assert by_flux["matched_flux_auroc"]["value"] < 0.65 and perfect["matched_flux_auroc"]["value"] == 1
    assert anomaly["deflector_like"]["regular"] == 100


def test_objects_without_a_score_are_left_out_and_counted(monkeypatch):
    monkeypatch.setattr(ranking, "DRAWS", 10)
    images, pixels, scores = made_tables()
    values = scores["score"].to_numpy().copy()
    values[[3, 5, 150]] = np.nan, np.inf, np.nan
    place = scores.column_names.index("score")
    scores = scores.set_column(place, scores.schema.field(place), pa.array(values))
    anomaly = summarise(images, pixels, scores, samples=4)["anomaly"]
    assert anomaly["score"]["unscored"] == {"anomalous": 2, "regular": 1}
    assert anomaly["score"]["auroc"]["value"] == anomaly["score"]["aupr"]["value"] == 1
    assert anomaly["score"]["precision_at"]["500"]["value"] is None  # there are 300 objects
    nothing = scores.set_column(place, scores.schema.field(place), pa.array(np.full(300, np.nan)))
    assert summarise(images, pixels, nothing, samples=4)["anomaly"]["score"]["auroc"]["value"] is None


@pytest.mark.parametrize("k", [2, 8])
def test_errors_of_fluxes_are_judged_alike_for_any_number_of_samples(k):
    rng = np.random.default_rng(k)
    draws = 100 + 5 * rng.normal(size=(k + 1, 4000))
    fluxes = {"flux_VIS": draws[k], "flux_VIS_mean": draws[:k].mean(0), "flux_VIS_std": draws[:k].std(0, ddof=1)}
    found = _photometry(conform(pa.table({"object_id": ["o"] * 4000, **fluxes}), EVALUATED_IMAGES, "made"), k)
    assert found["VIS"]["coverage_0.68"]["value"] == pytest.approx(0.68, abs=0.03)


def test_without_anomalies_there_is_no_ranking():
    images, pixels, _ = made_tables()
    assert "anomaly" not in summarise(images, pixels, None, samples=4)


def published(shared_data: Path) -> list[str]:
    """AS-Bridge's checkpoint and a sampler that suits it."""
    sampler = ["--samples", "5", "--steps", "8", "--order", "2", "--eta", "0", "--sigma-max", "3", "--no-from-end"]
    return [
        "--checkpoint",
        str(shared_data / "golden" / "asbridge_base32.pth"),
        "--direction",
        "lsst->euclid",
        *sampler,
    ]


@pytest.fixture(scope="module")
def of_published(shared_data, tmp_path_factory) -> Path:
    """AS-Bridge's weights judged on 16 pairs, without plots."""
    pairs = str(shared_data / "pairs" / "test_regular.zarr")
    out = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw", lambda found, tables: {})
        where = ["--pairs", pairs, "--limit", "16", "--out", str(out)]
        assert main(["evaluate", *where, *published(shared_data)]) == 0
    return out


def test_published_weights_have_the_energy_score_that_was_found_for_them(of_published):
    """On these weights and pairs, 2M with 8 steps from sigma 3 gave 6.77 (K = 5, all of 64 pairs) with other noise."""
    score = metrics_of(of_published)["energy_score"]["lsst->euclid"]["published"]
    assert score["value"] == pytest.approx(6.77, abs=1.0)
    assert score["interval"][0] < 6.77 < score["interval"][1] + 0.5


def test_published_weights_score_alike_on_eight_bit_stamps(of_published, shared_data, tmp_path, monkeypatch):
    """Their own data sets hold what their display shows, rounded to 1/255 of its range."""
    pairs = eight_bit_copy(str(shared_data / "pairs" / "test_regular.zarr"), tmp_path / "bytes.zarr")
    monkeypatch.setattr(plots, "draw", lambda found, tables: {})
    where = ["--pairs", pairs, "--limit", "4", "--out", str(tmp_path / "out")]
    assert main(["evaluate", *where, *published(shared_data)]) == 0
    of_flux = pq.read_table(of_published / "images.parquet")["energy_score"].to_numpy()[:4].mean()
    assert metrics_of(tmp_path / "out")["energy_score"]["lsst->euclid"]["published"]["value"] == pytest.approx(
        of_flux, rel=0.1
    )


def test_jobs_draw_samples_as_the_library_does_unless_told_otherwise():
    how, evaluation = Sampling(), job.Config(pairs="p", out="o")
    for name in ("samples", "steps", "order", "eta", "sigma_max", "from_end"):
        assert getattr(evaluation, name) == getattr(how, name), name
    for sampling in (Config(store="s", run="r").sampling, demo.Config()):
        assert (sampling.samples, sampling.steps) == (how.samples, how.steps)
