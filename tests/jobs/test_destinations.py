"""Places of output: what cannot be written is refused in one line before anything is read; any name is taken."""

from __future__ import annotations

import errno
import os

import pytest

from surveybridge.__main__ import main
from surveybridge.jobs.registry import JOBS
from surveybridge.storage.errors import StorageError, StorageFull
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.runs import RunFolder
from tests import tiny
from tests.jobs.test_bad_requests import refused
from tests.storage.disks import remount, small_disk
from tests.storage.test_runs import RUN

WRITING = {
    "ingest": ("--euclid", "v.fits", "--lsst", "g.fits", "r.fits", "i.fits", "--store"),
    "train": ("--pairs", "pairs.zarr", "--steps", 4, "--out"),
    "degrade": ("--store", "tiles", "--noise", "lsst.g=2", "--out"),
    "generate": ("--checkpoint", "made", "--count", 8, "--out"),
    "pairs": ("--store", "tiles", "--out"),
    "translate": ("--store", "tiles", "--run"),
    "sweep": ("--store", "tiles", "--runs"),
    "plan": ("--store", "tiles", "--run"),  # refuses what `translate` does
    "publish": ("--run", "run", "--out"),
    "export": ("--run", "run", "--out"),
    "report": ("--run", "run", "--out"),
    "query": ("--run", "run", "--format", "csv", "--out"),
    "vet": ("--run", "run", "--export"),
    "simulate": ("--size", 400, "--out"),
    "simulate-pairs": ("--count", 8, "--out"),
    "simulate-clouds": ("--suite", "null", "--out"),
    "evaluate": ("--pairs", "pairs.zarr", "--out"),
    "calibrate": ("--pairs", "pairs.zarr", "--out"),
    "demo": ("--out",),
}


def test_the_other_jobs_write_nothing_for_users():
    assert set(JOBS) - set(WRITING) == {"submit", "status", "doctor", "inspect"}


@pytest.fixture(scope="module")
def read_only(tmp_path_factory):
    """A file system that is mounted read-only, with a folder in it."""
    with small_disk(tmp_path_factory.mktemp("disks") / "archive", kilobytes=64) as disk:
        (disk / "shelf").mkdir()
        remount(disk, "ro")
        yield disk


@pytest.mark.parametrize("job", WRITING)
def test_a_read_only_file_system_is_refused_by_every_job_that_writes(read_only, tmp_path, monkeypatch, capsys, job):
    monkeypatch.chdir(tmp_path)
    for target in (read_only / "shelf", read_only / "new" / "er" / "out.csv"):
        line = refused(capsys, job, *WRITING[job], target)
        assert f"{target} cannot be written" in line and "read-only file system" in line and "another place" in line
    assert os.listdir(tmp_path) == [] and os.listdir(read_only) == ["shelf"]


@pytest.mark.parametrize("job", WRITING)
def test_places_where_nothing_can_be_are_refused_by_every_job_that_writes(tmp_path, monkeypatch, capsys, job):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("a file")
    (tmp_path / "gone").symlink_to(tmp_path / "unmounted")
    for target, said in {
        tmp_path / "notes.txt" / "out.csv": "notes.txt is a file",
        tmp_path / "gone" / "out.csv": "unmounted, which does not exist",
        tmp_path / ("x" * 300) / "out.csv": "300 bytes, and may have 255",
    }.items():
        line = refused(capsys, job, *WRITING[job], target)
        assert f"{target} cannot be written" in line and said in line and "another place" in line
    assert sorted(os.listdir(tmp_path)) == ["gone", "notes.txt"]


def test_grades_need_a_run_folder_that_can_be_written(read_only, capsys):
    remount(read_only, "rw")
    run = read_only / "shelf" / "run"
    RunFolder.open_or_create(run, RUN)
    remount(read_only, "ro")
    line = refused(capsys, "vet", "--run", run, "--port", 0)
    assert f"{run} cannot be written" in line and "read-only file system" in line


def test_a_folder_that_only_a_write_finds_out_about_is_refused_in_one_line(capsys):
    """In /proc even root, who may write everywhere, can make nothing."""
    with pytest.raises(StorageError, match=r"surveybridge/run\.json cannot be written: No such file"):
        Folder.at("/proc/surveybridge").put(b"{}", "run.json")


def test_a_full_disk_is_told_from_a_wrong_place(monkeypatch, tmp_path):
    def full(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageFull, match="cannot be written: Disk quota exceeded; make room"):
        Folder.at(tmp_path).put(b"{}", "x.json")
    assert os.listdir(tmp_path) == []


NAMES = [("a::b", "what? #1 [x*] 50%20", "it's Übersicht {1}"), ("s3::field.zarr",)]
"""Of folders, each in the one before."""


@pytest.mark.parametrize("names", NAMES)
def test_local_paths_may_have_any_name(tmp_path, capsys, names):
    place = tmp_path.joinpath(*names)
    store, checkpoint = tiny.write_store(place / "tiles", tile_size=tiny.SIDE), tiny.write_checkpoint(place)
    assert len(Folder.at(store).names()) == 3
    quick = ["--samples", "2", "--steps", "1", "--score-samples", "2", "--score-steps", "1", "--executor", "serial"]
    run = str(place / "run")
    for command in (
        ["translate", "--store", store, "--run", run, "--checkpoint", checkpoint, *quick],
        ["status", "--run", run],
        ["publish", "--run", run],
        ["query", "--run", run, "--out", str(place / "found.csv")],
        ["query", "--run", f"{run}/catalog", "--top", "2"],
        ["query", "--run", run, "--sql", "SELECT count(*) FROM mosaics"],
        ["export", "--run", run, "--out", str(place / "field.fits")],
        ["export", "--run", run, "--out", str(place / "footprint"), "--no-fits", "--moc"],
        ["report", "--run", run, "--out", str(place / "report")],
        ["vet", "--run", run, "--export", str(place / "graded.csv")],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)
    assert "1 of 1 ok" in capsys.readouterr().out
    for name, folder in zip(names[::-1], place.parents, strict=False):
        assert os.listdir(folder) == [name]  # nothing beside it: no name was cut
    assert {"found.csv", "field.fits", "footprint", "report", "graded.csv"} <= set(os.listdir(place))
