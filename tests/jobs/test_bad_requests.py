"""A wrong request: exit 2, one line that names the place, both values and the remedy, and nothing written."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from surveybridge.__main__ import main
from surveybridge.bridge_core.network import NetworkConfig
from surveybridge.cluster import connect, training
from surveybridge.jobs.config import RequestError
from surveybridge.storage.tiles import TileStore
from tests import tiny
from tests.storage.fits_files import tan_wcs, write_survey_file

EUCLID, LSST = (130, 140), (90, 95)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("store") / "tiles", tile_size=tiny.SIDE)


def refused(capsys, *argv) -> str:
    """Run the command; it must exit 2 and say one line on stderr and nothing on stdout, which is returned."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    prefix = f"surveybridge {argv[0]}: error: "
    assert lines[0].startswith(prefix)
    return lines[0].removeprefix(prefix)


def write_fits(folder, case: str) -> tuple[str, list[str]]:
    """A Euclid file and three LSST files with one thing wrong."""
    euclid, lsst = tan_wcs(EUCLID, 0.1), tan_wcs(LSST, 0.2)
    if case == "no overlap":
        lsst = tan_wcs(LSST, 0.2, ra=53.2)
    headers = {band: {"BUNIT": "nJy", "FILTER": band} for band in "gri"}
    if case == "zero point":
        headers["r"] = {"MAGZERO": "27 mag", "FILTER": "r"}
    vis = write_survey_file(folder / "vis.fits", np.ones(EUCLID), None if case == "no WCS" else euclid)
    paths = [write_survey_file(folder / f"{b}.fits", np.ones(LSST), lsst, header=headers[b]) for b in "gri"]
    return vis, paths[:2] if case == "missing band" else paths


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("missing band", ["g.fits", "r.fits", "2 values", "g,r,i", "give one per band"]),
        ("no WCS", ["vis.fits", "no celestial WCS", "CTYPE1 absent", "expected RA---TAN", "solve the astrometry"]),
        ("zero point", ["r.fits", "MAGZERO", "'27 mag'", "expected a number"]),
        ("no overlap", ["vis.fits", "g.fits", "RA 53.00000", "RA 53.20000", "give images of the same sky"]),
    ],
)
def test_ingest_refuses(tmp_path, capsys, case, said):
    vis, lsst = write_fits(tmp_path, case)
    target = tmp_path / "out" / "store"
    line = refused(capsys, "ingest", "--euclid", vis, "--lsst", *lsst, "--store", target, "--tile-size", 64)
    for words in said:
        assert words in line
    assert not target.parent.exists()


def without_lsst(tile):
    return replace(tile, images={"euclid": tile.images["euclid"]})


def translate_request(case: str, folder, store: str, checkpoint: str) -> tuple[str, str, list[str]]:
    """Store, checkpoint and further arguments with one thing wrong."""
    native = tiny.problem_with(lsst={"pixel_scale": 0.2})
    match case:
        case "cutout grid":
            return store, tiny.write_checkpoint(folder, "stamps", grid="cutout", problem=native), []
        case "pixel scale":
            return store, tiny.write_checkpoint(folder, "coarse", problem=native), []
        case "bands":
            return (
                store,
                tiny.write_checkpoint(folder, "rgb", problem=tiny.problem_with(lsst={"bands": ("i", "r", "g")})),
                [],
            )
        case "not a store":
            (folder / "thesis.tex").write_text("years of work")
            return str(folder), checkpoint, []
        case "no store":
            return str(folder / "absent"), checkpoint, []
        case "store is a file":
            (folder / "store.fits").write_bytes(b"SIMPLE")
            return str(folder / "store.fits"), checkpoint, []
        case "unfinished store":
            shutil.copytree(store, folder / "tiles")
            (folder / "tiles" / "manifest.parquet").unlink()
            return str(folder / "tiles"), checkpoint, []
        case "empty store":
            TileStore.create(str(folder / "empty")).write_manifest([])
            return str(folder / "empty"), checkpoint, []
        case "no checkpoint":
            return store, str(folder / "mosaic-v9"), []
        case "damaged checkpoint":
            (folder / "tiny.safetensors").write_bytes(b"not tensors")
            shutil.copy(f"{checkpoint}.json", folder / "tiny.json")
            return store, str(folder / "tiny"), []
        case "no survey":
            return tiny.write_store(folder / "vis", tile_size=tiny.SIDE, edit=without_lsst), checkpoint, []
        case "one sample":
            return store, checkpoint, ["--samples", "1"]
        case "odd patch":
            return store, checkpoint, ["--patch", "100"]
        case "patch beyond the halo":
            return tiny.write_store(folder / "two", tile_size=tiny.SIDE // 2), checkpoint, ["--patch", "128"]
        case "tile beyond the halo":
            narrow = tiny.write_store(folder / "narrow", tile_size=tiny.SIDE // 2, halo=40)
            return narrow, checkpoint, ["--patch", "tile"]
        case "tile for statistics of a window":
            network = NetworkConfig(base=8, multipliers=(1, 2), blocks=1, stem=2, norm="group")
            return store, tiny.write_checkpoint(folder, "grouped", network=network), ["--patch", "tile"]
    raise AssertionError(case)


TRANSLATE = {
    "cutout grid": ["checkpoint stamps", "cutout", "mosaic", "tiles", "choose a mosaic checkpoint"],
    "pixel scale": [
        "t0000",
        'lsst pixel scale 0.100"',
        "checkpoint coarse",
        '0.200"',
        "re-ingest",
        "another checkpoint",
    ],
    "bands": ["t0000", "g,r,i", "checkpoint rgb", "i,r,g", "re-ingest"],
    "not a store": ["is not a tile store", "thesis.tex", "surveybridge ingest"],
    "no store": ["absent is not a tile store", "nothing", "surveybridge ingest"],
    "store is a file": ["store.fits is not a tile store", "a file", "surveybridge ingest"],
    "unfinished store": ["tiles has no manifest", "surveybridge ingest"],
    "empty store": ["empty has 0 tiles", "ingest"],
    "no checkpoint": ["mosaic-v9.safetensors does not exist", "shipped checkpoints"],
    "damaged checkpoint": ["tiny: cannot be read", "save it again"],
    "no survey": ["vis: none of its 1 tiles has lsst", "lsst->euclid"],
    "odd patch": ["--patch 100", "'tile', 64 or 128"],
    "patch beyond the halo": ["--patch 128 reaches 119", "hold 64", "--halo 119", "--patch 64"],
    "tile beyond the halo": ["--patch tile reaches 64", "hold 40", "--halo 64", "--patch 64"],
    "tile for statistics of a window": ["--patch tile", "checkpoint grouped", "norm group", "--patch 64"],
    "one sample": ["--samples 1", "give at least 2"],
}


@pytest.mark.parametrize("executor", ["serial", "ray"])
@pytest.mark.parametrize("case", TRANSLATE)
def test_translate_refuses(tmp_path, store, checkpoint, capsys, case, executor):
    import ray

    bad_store, bad_checkpoint, more = translate_request(case, tmp_path, store, checkpoint)
    before, running = tiny.files_of(tmp_path), ray.is_initialized()
    target = tmp_path / "out" / "run"
    what = ["--store", bad_store, "--run", target, "--checkpoint", bad_checkpoint, "--executor", executor]
    line = refused(capsys, "translate", *what, *more)
    for words in TRANSLATE[case]:
        assert words in line
    assert not target.parent.exists()
    assert tiny.files_of(tmp_path) == before
    assert ray.is_initialized() == running  # refused before Ray starts


def test_published_weights_are_refused_with_the_reason(tmp_path, store, shared_data, capsys):
    path = shared_data / "golden" / "asbridge_base32.pth"
    line = refused(capsys, "translate", "--store", store, "--run", tmp_path / "run", "--checkpoint", path)
    for words in ("checkpoint asbridge_base32", "cutout grid", "mosaic tiles", "choose a mosaic checkpoint"):
        assert words in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "said"), [(None, "FileNotFoundError"), (b"no torch file", "Weights only load failed")]
)
def test_a_pth_that_is_none_is_refused(tmp_path, store, capsys, content, said):
    path = tmp_path / "model.pth"
    if content:
        path.write_bytes(content)
    line = refused(capsys, "translate", "--store", store, "--run", tmp_path / "run", "--checkpoint", path)
    assert "model.pth: cannot be read" in line and said in line
    assert not (tmp_path / "run").exists()


QUICK = ["--samples", "2", "--steps", "1", "--score-samples", "2", "--score-steps", "1", "--executor", "serial"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("checkpoint", ["checkpoint_sha256"]),
        ("--steps=2", ["steps 1", "2"]),
        ("--seed=7", ["seed 0", "7"]),
        ("--direction=euclid->lsst", ["direction 'lsst->euclid'", "'euclid->lsst'"]),
    ],
)
def test_a_run_folder_of_another_run_is_refused_with_both_values(tmp_path, store, checkpoint, capsys, change, said):
    run = tmp_path / "run"
    what = ["translate", "--store", store, "--run", str(run)]
    assert main([*what, "--checkpoint", checkpoint, *QUICK]) == 0
    before = tiny.files_of(run)
    settings = dict(zip(QUICK[::2], QUICK[1::2], strict=True)) | {"--checkpoint": checkpoint}
    if change == "checkpoint":
        settings["--checkpoint"] = tiny.write_checkpoint(tmp_path, seed=1)
        from surveybridge.bridge_core.checkpoint import load_checkpoint

        said = [*said, *(load_checkpoint(path).sha256 for path in (checkpoint, settings["--checkpoint"]))]
    else:
        name, _, value = change.partition("=")
        settings[name] = value
    line = refused(capsys, *what, *(word for pair in settings.items() for word in pair))
    for words in [*said, str(run), "give another --run URL"]:
        assert words in line
    assert tiny.files_of(run) == before


def test_something_else_at_the_runs_place_is_left_alone(tmp_path, store, checkpoint, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    line = refused(capsys, "translate", "--store", store, "--run", tmp_path, "--checkpoint", checkpoint, *QUICK)
    assert "thesis.tex" in line and "give another --run URL" in line
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["--minutes or --steps", "minutes=None", "steps=None"]),
        (["--steps", 4, "--minutes", 1], ["--minutes or --steps", "minutes=1.0", "steps=4"]),
        (["--steps", 4], ["8 pairs", "128", "--validation"]),
        (["--steps", 4, "--validation", 4, "--limit", 4], ["4 pairs", "4 are kept", "--validation"]),
        (["--steps", 4, "--validation", 2], ["8 pairs", "2 are kept", "8 shards", "--validation"]),
        (["--steps", 4, "--batch-size", 8], ["batch size 8", "8 shards", "multiple of 16"]),
        (["--steps", 4, "--workers", 9], ["9 workers", "8 shards", "--shards 9"]),
        (["--steps", 4, "--workers", "3,2"], ["--workers 3,2", "MIN,MAX"]),
        (["--steps", 4, "--accumulate", 3], ["--accumulate 3", "8 shards", "divisor"]),
    ],
)
def test_train_refuses(tmp_path, capsys, arguments, said):
    pairs = tiny.write_pairs(tmp_path / "pairs.zarr", 8)
    line = refused(capsys, "train", "--pairs", pairs, "--out", tmp_path / "out", *arguments)
    for words in said:
        assert words in line
    assert not (tmp_path / "out").exists()


def test_train_refuses_the_folder_of_another_model(tmp_path, capsys, monkeypatch):
    def no_ray(slots: int) -> bool:
        raise RequestError("it came as far as Ray")

    monkeypatch.setattr(connect, "start_ray", no_ray)
    pairs = tiny.write_pairs(tmp_path / "pairs.zarr", 12)
    out = tmp_path / "out"
    what = ["train", "--pairs", pairs, "--out", out, "--shards", 1, "--batch-size", 4, "--validation", 4]
    assert refused(capsys, *what, "--steps", 4, "--base", 8) == "it came as far as Ray" and not out.exists()
    monkeypatch.setattr(connect, "start_ray", lambda slots: True)
    monkeypatch.setattr(training, "fit", lambda *_, **__: no_ray(1))
    monkeypatch.setattr(connect, "stop_ray", lambda: None)
    refused(capsys, *what, "--steps", 4, "--base", 8)
    before = tiny.files_of(out)
    assert list(before) == ["training.json"]
    assert refused(capsys, *what, "--steps", 9, "--base", 8, "--patience", 3) == "it came as far as Ray"  # longer
    (tmp_path / "moved").mkdir()
    out.rename(tmp_path / "moved" / "out")
    moved = ["train", "--pairs", pairs, "--out", tmp_path / "moved" / "out", *what[5:], "--steps", 4]
    assert refused(capsys, *moved, "--base", 8) == "it came as far as Ray"
    for change, there, here in (
        (("--base", 16, "--seed", 3), "base 8, seed 0", "base 16, seed 3"),
        (("--base", 8, "--name", "sparse"), "holds model bridge with name 'bridge'", "of sparse with name 'sparse'"),
    ):
        line = refused(capsys, *moved, *change)
        assert there in line and here in line and str(tmp_path / "moved" / "out") in line and "another --out" in line
    assert tiny.files_of(tmp_path / "moved" / "out") == before

    older = tmp_path / "older"  # of a version that noted nothing
    tiny.write_checkpoint(older, "vis-v1")
    line = refused(capsys, "train", "--pairs", pairs, "--out", older, *what[5:], "--steps", 4)
    assert "holds model vis-v1, but this training is of bridge" in line and "--name vis-v1" in line


def test_train_refuses_what_is_no_pair_store(tmp_path, store, capsys):
    line = refused(capsys, "train", "--pairs", store, "--out", tmp_path / "out", "--steps", 4)
    assert "not a pair store" in line and store in line
    assert not (tmp_path / "out").exists()
