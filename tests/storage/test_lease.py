"""The lease: of all drivers one writes, a dead one is followed, and who lost it notices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from surveybridge.storage.lease import FILE, Lease, LeaseHeld, LeaseLost, read_holder
from surveybridge.storage.objectstore import Folder

pytestmark = pytest.mark.long

DRIVER = """
import json, sys, time
from surveybridge.storage.lease import Lease, LeaseHeld
from surveybridge.storage.objectstore import Folder
url, options, seconds, ttl = sys.argv[1], json.loads(sys.argv[2]), *map(float, sys.argv[3:])
folder = Folder.at(url, options)
folder.exists("lease.json")  # connected before the start
print("ready", flush=True)
sys.stdin.readline()
try:
    with Lease.acquire(folder, ttl=ttl):
        print("held", flush=True)
        time.sleep(seconds)
except LeaseHeld as error:
    print("refused", error, flush=True)
"""


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    if request.param == "local":
        return Folder.at(tmp_path / "run")
    return Folder.at(request.getfixturevalue("bucket") + "/run", request.getfixturevalue("options"))


def drive(folder: Folder, seconds: float = 30.0, ttl: float = 60.0) -> subprocess.Popen[str]:
    """Another process that takes the lease once it is told to (`go`)."""
    arguments = [folder.url, json.dumps(folder.storage_options), str(seconds), str(ttl)]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def go(*processes: subprocess.Popen[str]) -> None:
    """Let them go together."""
    for process in processes:
        assert says(process) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def document(folder: Folder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.read(FILE))
    return found


def rewrite(folder: Folder, **entries: Any) -> None:
    """Change the document as a machine elsewhere would."""
    folder.put(json.dumps(document(folder) | entries).encode(), FILE)


def hold(folder: Folder, **entries: Any) -> None:
    """A document of somebody else."""
    Lease.acquire(folder).release()
    rewrite(folder, **({"holder": "other", "released": False, "expires_at": time.time() + 60} | entries))


def test_a_second_driver_is_refused_and_told_who_until_when_and_what_to_do(folder):
    with Lease.acquire(folder, note={"job": "translate"}) as lease:
        lease.check()
        with pytest.raises(
            LeaseHeld, match=rf"by process {os.getpid()} on .* UTC \((60|5\d) s from now\) .* another --run"
        ):
            Lease.acquire(folder)
        holder = read_holder(folder)
        assert holder is not None
        assert (holder.pid, holder.note) == (os.getpid(), {"job": "translate"})
        assert holder.started <= time.time() < holder.expires_at <= time.time() + 60
    assert read_holder(folder) is None
    with pytest.raises(LeaseLost, match="was given back"):
        lease.check()
    Lease.acquire(folder).release()


def test_of_drivers_that_start_together_exactly_one_wins(folder):
    for _ in range(2):
        drivers = [drive(folder) for _ in range(3)]
        try:
            go(*drivers)
            words = [says(driver).split()[0] for driver in drivers]
            assert sorted(words) == ["held", "refused", "refused"]
        finally:
            for driver in drivers:
                end(driver)  # the next round takes over from a dead holder, and again only one does


def test_a_killed_driver_of_this_machine_is_followed_at_once(folder, caplog):
    driver = drive(folder)
    try:
        go(driver)
        assert says(driver) == "held"
        with pytest.raises(LeaseHeld, match=f"process {driver.pid} "):
            Lease.acquire(folder)
        os.kill(driver.pid, signal.SIGKILL)
        time.sleep(0.2)  # not waited for: a zombie counts as dead
        start = time.monotonic()
        Lease.acquire(folder).release()
        assert time.monotonic() - start < 5
        assert f"took over the lease of process {driver.pid}" in caplog.text and "its process is gone" in caplog.text
    finally:
        end(driver)


def test_a_pid_that_was_given_to_another_process_is_not_the_holder(folder):
    hold(folder, pid=os.getpid(), process_started=1)
    assert read_holder(folder) is None
    Lease.acquire(folder).release()


def test_a_holder_on_another_machine_is_followed_when_its_time_is_over(folder):
    hold(folder, host="elsewhere", machine="other", pid=1, expires_at=time.time() + 1.5)
    with pytest.raises(LeaseHeld, match="process 1 on elsewhere"):
        Lease.acquire(folder)
    start = time.monotonic()
    Lease.acquire(folder, wait=20).release()
    assert 0.5 < time.monotonic() - start < 15


def test_a_lease_is_renewed_while_it_is_held(folder):
    with Lease.acquire(folder, ttl=2.0) as lease:
        first = document(folder)["expires_at"]
        time.sleep(3.0)
        lease.check()
        assert document(folder)["expires_at"] > first + 1
        with pytest.raises(LeaseHeld):
            Lease.acquire(folder)


def test_who_was_taken_over_notices_and_leaves_the_other_alone(folder):
    with Lease.acquire(folder, ttl=2.0) as lease:
        hold_now = document(folder) | {"holder": "other", "host": "elsewhere", "pid": 7}
        folder.put(json.dumps(hold_now).encode(), FILE)
        with pytest.raises(LeaseLost, match="taken by process 7 on elsewhere; stop writing"):
            for _ in range(100):
                lease.check()
                time.sleep(0.1)
        with pytest.raises(LeaseLost):
            lease.check()
    assert document(folder) == hold_now


def test_a_lease_that_cannot_be_renewed_in_time_is_lost(tmp_path, monkeypatch):
    with Lease.acquire(Folder.at(tmp_path), ttl=1.0) as lease:

        def away(*_: Any) -> None:
            raise ConnectionError("no route")

        monkeypatch.setattr(Folder, "replace", away)
        lease.check()
        time.sleep(1.3)
        with pytest.raises(LeaseLost, match="could not be renewed for 1 s"):
            lease.check()
    monkeypatch.undo()
    time.sleep(0.1)
    Lease.acquire(Folder.at(tmp_path)).release()  # expired, although its process lives


def test_progress_is_published_with_the_next_renewal_and_stays(folder):
    with Lease.acquire(folder, ttl=1.0) as lease:
        lease.publish({"done": 3, "in_flight": ["a"]})
        for _ in range(100):
            if document(folder)["progress"]:
                break
            time.sleep(0.1)
        assert document(folder)["progress"] == {"done": 3, "in_flight": ["a"]}
        lease.publish({"done": 4})
        with pytest.raises(ValueError, match="JSON"):
            lease.publish({"rate": float("nan")})
    assert document(folder)["progress"] == {"done": 4}


def test_an_error_of_the_body_is_not_hidden_and_gives_the_lease_back(folder):
    with pytest.raises(KeyError, match="mine"), Lease.acquire(folder):
        raise KeyError("mine")
    assert read_holder(folder) is None


def test_a_damaged_document_does_not_stop_anybody(folder):
    folder.put(b"{", FILE)
    assert read_holder(folder) is None
    Lease.acquire(folder).release()


def test_a_time_to_live_must_be_one(tmp_path):
    with pytest.raises(ValueError, match=r"ttl 0\.0 s; give a number above 0"):
        Lease.acquire(Folder.at(tmp_path), ttl=0.0)
