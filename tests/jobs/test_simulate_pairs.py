"""The job simulate-pairs: a pair store that follows from its seed alone, and that is gone on with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from surveybridge.__main__ import main
from surveybridge.jobs.simulating import pair_blocks, scenes
from surveybridge.storage import pair_writer
from surveybridge.storage.pairs import read_ids, read_labels, read_pairs
from tests.jobs.test_bad_requests import refused


def simulate(out, *more, count=40, seed=7):
    return main(["simulate-pairs", "--out", str(out), "--count", str(count), "--seed", str(seed), *map(str, more)])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs") / "sky.zarr"
    assert simulate(out, "--executor", "serial") == 0
    return out


def stored(store, name):
    return np.asarray(zarr.open_array(store / name, mode="r")[...])


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_store_has_everything_that_a_training_is_told(store):
    pairs = read_pairs(str(store))
    assert {end: values.shape for end, values in pairs.ends.items()} == {
        "lsst": (40, 3, 64, 64),
        "euclid": (40, 1, 64, 64),
    }
    for end, bands in (("lsst", 3), ("euclid", 1)):
        for name in ("noise", "fwhm", "wing", "correlation", "gain"):
            values = stored(store, f"{end}_{name}")
            assert values.shape == (40, bands) and np.isfinite(values).all()
    assert stored(store, "lsst_fwhm").min() >= 0.45 and stored(store, "lsst_fwhm").max() <= 1.4
    assert np.isfinite(stored(store, "registration")).all()
    labels = read_labels(str(store))
    assert list(labels) == read_ids(str(store))
    assert {row["central_class"] for row in labels.values()} >= {"field_galaxy", "deflector_like", "none"}


def test_a_store_goes_on_where_it_was_stopped_and_is_the_same(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pair_writer, "BLOCK", 16)
    whole, broken = tmp_path / "whole.zarr", tmp_path / "other" / "whole.zarr"
    assert simulate(whole, "--executor", "serial") == 0
    draw: Any = scenes.draw_pairs
    drawn: list[Any] = []

    def stopping(*arguments):
        drawn.append(arguments)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(pair_blocks, "draw_pairs", stopping)
    assert simulate(broken, "--executor", "serial") == 130
    capsys.readouterr()
    assert simulate(broken, "--executor", "serial") == 0
    assert "24 of them drawn" in capsys.readouterr().out
    assert files(broken) == files(whole)
    assert (broken.parent / "whole.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert simulate(broken, "--executor", "serial") == 0 and "there already" in capsys.readouterr().out


def test_ray_tasks_write_the_same_bytes(store, tmp_path, ray_cluster):
    other = tmp_path / "sky.zarr"
    assert simulate(other, "--workers", 2) == 0
    assert files(other) == files(store)


def test_what_cannot_be_is_refused(store, tmp_path, capsys):
    new = tmp_path / "new.zarr"
    line = refused(capsys, "simulate-pairs", "--out", new, "--count", 40, "--validation", 39)
    assert "39 of 40 pairs leaves 1" in line and "give 32" in line
    line = refused(capsys, "simulate-pairs", "--out", new, "--count", 40, "--validation", 40)
    assert "give 32" in line
    line = refused(capsys, "simulate-pairs", "--out", store, "--count", 48, "--seed", 7)
    assert "count 40" in line and "another place" in line
    assert not new.exists()
    pq.read_table(store.with_suffix(".parquet"))


def test_larger_windows_show_the_same_scenes(store, tmp_path):
    out = tmp_path / "wide.zarr"
    assert simulate(out, "--executor", "serial", "--size", 96, count=20) == 0
    wide, small = read_pairs(str(out)), read_pairs(str(store))
    assert wide.ends["lsst"].shape == (20, 3, 96, 96) and wide.ends["euclid"].shape == (20, 1, 96, 96)
    # five windows of a scene instead of eight, under the conditions of that scene
    assert np.array_equal(stored(out, "lsst_fwhm")[::5], stored(store, "lsst_fwhm")[:32:8])
    labels = pq.read_table(out.with_suffix(".parquet")).to_pylist()
    assert [row["scene"] for row in labels] == [scene for scene in range(4) for _ in range(5)]
    bright = [n for n, row in enumerate(labels) if (row["mag_VIS"] or 99) < 22.5]
    middles = np.nanmax(wide.ends["euclid"][bright, 0, 45:51, 45:51], (1, 2))
    assert len(bright) > 5 and np.median(middles / stored(out, "euclid_noise")[bright, 0]) > 10
    assert small.ends["lsst"].shape[-1] == 64


@pytest.mark.parametrize(("size", "more", "said"), [(320, (), "up to 256"), (96, ("--grid", "sharp"), "have one size")])
def test_windows_that_do_not_fit_are_refused(tmp_path, capsys, size, more, said):
    out = tmp_path / "wide.zarr"
    assert said in refused(capsys, "simulate-pairs", "--out", out, "--count", 20, "--size", size, *more)
    assert not out.exists()


def test_stamps_on_own_pixels_are_read_on_both_grids(tmp_path):
    out = tmp_path / "stamps.zarr"
    assert simulate(out, "--executor", "serial", "--grid", "cutout", count=24) == 0
    own, finer = (read_pairs(str(out), grid, conditions=True) for grid in ("cutout", "mosaic"))
    assert own.pixel_scale == {"lsst": 0.2, "euclid": 0.1} and finer.pixel_scale == {"lsst": 0.1, "euclid": 0.1}
    for pairs in (own, finer):
        assert {end: values.shape[1:] for end, values in pairs.ends.items()} == {
            "lsst": (3, 64, 64), "euclid": (1, 64, 64),
        }  # fmt: skip
    before, after = (pairs.conditions.ends["lsst"] for pairs in (own, finer) if pairs.conditions is not None)
    assert np.isfinite([before.noise, before.gain, after.noise, after.gain]).all() and before.noise.shape == (24, 3)
    assert (after.noise < before.noise / 3.9).all() and (after.gain > 3.9 * before.gain).all()
    assert {row["central_class"] for row in read_labels(str(out)).values()} >= {"field_galaxy", "deflector_like"}
