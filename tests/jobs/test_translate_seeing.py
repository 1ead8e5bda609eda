"""A checkpoint that goes through the seeing, on stores of LSST, with and without Euclid beside it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.conditions import ConditionRanges
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.network import NetworkConfig
from surveybridge.bridge_core.objective import WIENER, Objective
from surveybridge.bridge_core.problem import Problem
from surveybridge.bridge_core.stretch import LinearStretch
from surveybridge.jobs import evaluate, train
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.translating.config import Config
from surveybridge.jobs.translating.engine import translate
from surveybridge.jobs.translating.request import check
from surveybridge.storage.ingest import cut_tile, tile_boxes
from surveybridge.storage.problems import read_problem
from surveybridge.storage.psf import Moffat
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import Tile, TileStore
from tests import tiny

PRIOR = tuple(float(v) for v in 30 * (0.02 + np.linspace(0, 0.72, 25)) ** -2)


def checkpoint(folder) -> str:
    problem = Problem.from_table(read_problem("seeing"))
    stretch = LinearStretch({"g": 0.8, "r": 0.8, "i": 1.2})
    problem = problem.with_endpoints([replace(end, pixel_scale=0.1, stretch=stretch) for end in problem.endpoints])
    network = NetworkConfig(base=4, blocks=1, stem=2, norm="pixel", conditions=True)
    bridge = Bridge.seeing("gaussian:0.16", num_steps=60)
    trained = ConditionRanges({"lsst": {"fwhm": dict.fromkeys("gri", (0.1, 1.4))}})
    return tiny.write_checkpoint(
        folder,
        "seeing",
        problem=problem,
        bridge=bridge,
        network=network,
        objective=Objective(WIENER, prior=PRIOR),
        conditions=trained,
    )


def seen(tile: Tile, *, alone: bool, psf: bool = True) -> Tile:
    image = tile.images["lsst"]
    if psf:
        image = replace(image, psf_wing=(0.3,) * 3, psf_model=(Moffat(0.72, 1 / 0.3),) * 3)
    others = {} if alone else {name: other for name, other in tile.images.items() if name != "lsst"}
    return replace(tile, images={"lsst": image, **others})


def one_tile(path: Path, edit: Callable[[Tile], Tile]) -> str:
    """A store of the first tile of the tiny field."""
    field, store = tiny.make_field(), TileStore.create(str(path))
    box = next(iter(tile_boxes(field.shape, 48, 64)))
    store.write_manifest([store.write_tile(edit(cut_tile(field, box)))])
    return str(path)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeing")
    return {alone: one_tile(folder / f"tiles{alone}", functools.partial(seen, alone=alone)) for alone in (True, False)}


def config_of(store: str, path: str, folder, **more) -> Config:
    return Config(
        store=store,
        run=str(folder),
        checkpoint=path,
        to="sharp",
        executor="serial",
        samples=2,
        precision="float32",
        **more,
    )


def test_lsst_alone_is_sharpened_as_it_is_beside_euclid(stores, tmp_path):
    path, found = checkpoint(tmp_path), {}
    for alone, store in stores.items():
        request = check(config_of(store, path, tmp_path / f"run{alone}"))
        assert request.config.steps == 16
        request = check(config_of(store, path, tmp_path / f"run{alone}", steps=3))
        assert translate(request).exit_code == 0
        run = RunFolder.open(str(tmp_path / f"run{alone}"))
        assert run.run_json["direction"] == "lsst->sharp"
        assert set(run.ledger()["domain"].to_pylist()) == {"in"}
        found[alone] = {tile: run.read_tile_mosaic(tile) for tile in run.ledger()["tile_id"].to_pylist()}
    for tile, mosaic in found[True].items():
        other = found[False][tile]
        assert mosaic.bands == ("g", "r", "i") and mosaic.unit == "nJy"
        assert np.array_equal(mosaic.mean, other.mean, equal_nan=True)
        assert np.array_equal(mosaic.std, other.std, equal_nan=True)
    assert np.nanmax(mosaic.std) > 0


def test_the_psf_of_the_store_decides(stores, tmp_path):
    path = checkpoint(tmp_path)

    def wider(tile: Tile) -> Tile:
        tile = seen(tile, alone=True)
        return tiny.with_images(tile, lsst=replace(tile.images["lsst"], psf_model=(Moffat(1.0, 1 / 0.3),) * 3))

    means = []
    for name, store in (("as it is", stores[True]), ("wider", one_tile(tmp_path / "wider tiles", wider))):
        translate(check(config_of(store, path, tmp_path / name, steps=3)))
        run = RunFolder.open(str(tmp_path / name))
        means.append(run.read_tile_mosaic(run.ledger()["tile_id"][0].as_py()).mean)
    # a wider PSF explains the same image by a sharper sky
    assert np.nanmax(means[1]) > 1.05 * np.nanmax(means[0])


def test_a_tile_of_unknown_seeing_fails_with_its_reason(tmp_path):
    store = one_tile(tmp_path / "tiles", lambda tile: seen(tile, alone=True, psf=False))
    tally = translate(check(config_of(store, checkpoint(tmp_path), tmp_path / "run", steps=2)))
    assert tally.exit_code == 3
    assert all("ingest with --psf" in reason for _, reason in tally.failures)


def test_it_goes_one_way(stores, tmp_path):
    config = config_of(stores[True], checkpoint(tmp_path), tmp_path / "run").model_copy(update={"to": "lsst"})
    with pytest.raises(BridgeError, match="goes one way, to sharp"):
        check(config)


def test_pairs_as_they_are_do_not_judge_it(tmp_path):
    with pytest.raises(RequestError, match="translate a tile store"):
        evaluate.check(evaluate.Config(pairs="pairs.zarr", out=str(tmp_path / "out"), checkpoint=checkpoint(tmp_path)))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"objective": "edm"}, "give --bridge seeing --objective wiener"),
        ({"bridge": "brownian"}, "give --bridge seeing --objective wiener"),
        ({"crop": 32}, "--crop 32, but skies"),
        ({"rescale": 0.5}, "--rescale 0.5, but skies"),
    ],
)
def test_what_a_training_of_skies_cannot_have_is_refused(tmp_path, asked, message):
    settings = {"pairs": "s.zarr", "out": str(tmp_path), "steps": 2, "bridge": "seeing", "objective": "wiener"} | asked
    with pytest.raises(RequestError, match=message):
        train.run(train.Config(**settings))
