"""Connect: Ray is started where there is none, apart from the driver's signals, and ended by who started it."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from surveybridge.cluster.errors import ClusterError
from surveybridge.cluster.scratch import ROOM_BYTES, scratch_folder
from tests.conftest import ROOT
from tests.storage.disks import remount, small_disk

SCRIPT = """
import os, signal
from surveybridge.jobs.running.progress import setup_logging
setup_logging()
signal.signal(signal.SIGTERM, lambda number, frame: print("asked to end", flush=True))
from surveybridge.cluster.connect import start_ray, stop_ray
import ray
assert start_ray(5)
assert not start_ray(5)
assert ray.cluster_resources()["CPU"] >= 6

@ray.remote
def work():
    return os.getpid()

one = ray.get(work.remote())
os.killpg(0, signal.SIGTERM)  # as a batch system does
assert ray.get(work.remote()) > 0 and one != os.getpid()
assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) == 64
with open("/proc/net/unix") as sockets:
    print([line.split()[-1] for line in sockets if "/sockets/raylet" in line and f"_{os.getpid()}/" in line])
stop_ray()
assert not ray.is_initialized()
"""


@pytest.mark.slow  # a cluster of its own
def test_ray_is_started_apart_with_a_token_and_in_a_folder_that_it_can_use(tmp_path):
    """Also with a TMPDIR that Ray cannot use, and a home where nothing can be written."""
    unusable = tmp_path / "übermäßig langer Name" / ("x" * 80)
    unusable.mkdir(parents=True)
    known = {name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_MODE", "RAY_TMPDIR")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=known | {"TMPDIR": str(unusable), "HOME": "/proc", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    assert "asked to end" in done.stdout.splitlines()
    assert "'/tmp/ray/session_" in done.stdout
    assert "Traceback" not in done.stderr and "oken authentication" not in done.stderr, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if " WARNING " in line)
    assert f"Ray's files go to /tmp/ray: TMPDIR {unusable} has " in line and "its sockets leave" in line


def test_an_address_where_nobody_listens_is_refused_at_once(monkeypatch):
    from surveybridge.cluster.connect import start_ray

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{probe.getsockname()[1]}")
        with pytest.raises(ClusterError, match=r"Ray at 127\.0\.0\.1:\d+ cannot be reached \(Connection refused"):
            start_ray(1)


@pytest.fixture
def elsewhere(monkeypatch):
    """No other places to fall back on than one that is short."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    folder = tempfile.mkdtemp(prefix="sb", dir="/tmp")
    monkeypatch.setattr("surveybridge.cluster.scratch.OTHERS", (folder,))
    yield folder
    os.rmdir(folder)


def test_rays_folder_is_where_ray_would_put_it(elsewhere, monkeypatch, caplog):
    monkeypatch.setenv("TMPDIR", elsewhere)
    assert str(scratch_folder()) == f"{elsewhere}/ray"
    monkeypatch.setenv("TMPDIR", "/nowhere/that/is")
    monkeypatch.setenv("RAY_TMPDIR", elsewhere)
    assert str(scratch_folder()) == f"{elsewhere}/ray"
    assert caplog.records == []


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("/tmp/" + "d" * 33, "has 42 bytes with /ray, but its sockets leave 41"),
        ("/tmp/Å-disk", "has characters that Ray does not take"),
        ("/tmp/my disk", "has characters that Ray does not take"),
        ("/proc/self/status", "is not a folder that can be written"),
    ],
)
def test_a_folder_that_ray_cannot_use_is_replaced_and_a_line_says_so(
    elsewhere, monkeypatch, caplog, variable, place, why
):
    monkeypatch.setenv(variable, place)
    with caplog.at_level(logging.WARNING):
        assert str(scratch_folder()) == f"{elsewhere}/ray"
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(f"Ray's files go to {elsewhere}/ray: {variable} {place} {why}")


def test_a_folder_on_a_full_or_read_only_disk_is_none_for_ray(elsewhere, monkeypatch):
    path = tempfile.mkdtemp(prefix="sb", dir="/tmp")
    os.rmdir(path)
    with small_disk(Path(path), kilobytes=256):
        monkeypatch.setenv("TMPDIR", path)
        assert str(scratch_folder()) == f"{elsewhere}/ray"
        monkeypatch.setattr("surveybridge.cluster.scratch.OTHERS", ())
        with pytest.raises(
            ClusterError, match=f"TMPDIR {path} has 0 MiB free, but Ray's logs need {ROOM_BYTES >> 20};"
        ):
            scratch_folder()
        remount(Path(path), "ro")
        with pytest.raises(ClusterError, match="is not a folder that can be written; set RAY_TMPDIR to a short path"):
            scratch_folder()
    os.rmdir(path)
