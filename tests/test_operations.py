"""docs/operations.md: every command of the page runs, in its order, on one machine with an S3 server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from surveybridge.storage.objectstore import Folder
from surveybridge.storage.runs import RunFolder
from tests import tiny, warm
from tests.conftest import ROOT
from tests.storage.faults import moto_server

PAGE = (ROOT / "docs" / "operations.md").read_text()
LABELLED = re.compile(r"^```(bash|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with the page's files, and an environment with a server that has the page's tile store."""
    pytest.importorskip("moto.server", reason="needs the dev extra: moto[server]")
    folder = Path(tempfile.mkdtemp(prefix="ops", dir="/tmp"))  # Ray's sockets need a short path
    with moto_server() as endpoint:
        environment = os.environ | {
            "AWS_ENDPOINT_URL": endpoint,
            "PATH": warm.path(),
            "RAY_TMPDIR": str(folder),
            "OMP_NUM_THREADS": "1",
        }
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):  # as a user's shell has them: Ray's default authentication
            environment.pop(name, None)
        store = tiny.write_store(folder / "tiles")
        filesystem = Folder.at("s3://sky", {"endpoint_url": endpoint, "key": "test", "secret": "test"}).filesystem
        if filesystem.exists("sky"):  # servers of one process share their buckets
            filesystem.rm("sky", recursive=True)
        filesystem.makedirs("sky", exist_ok=True)
        filesystem.put(store, "sky/tiles", recursive=True)
        for kind, text in LABELLED.findall(PAGE):
            if kind == "toml":
                (folder / text.split()[1]).write_text(text)
        checkpoint = tiny.write_checkpoint(folder)
        with (folder / "quick.toml").open("a") as quick:
            quick.write(f'checkpoint = "{checkpoint}"\n')
        yield folder, environment
        shutil.rmtree(folder, ignore_errors=True)


def script(folder: Path) -> str:
    """The page's commands; the head gets ports that are free here, also where other clusters run beside it.

    Random weights will do, but for the run that is stopped: that one has to take a while.
    """
    text = "\n".join(text for kind, text in LABELLED.findall(PAGE) if kind == "bash")
    for port in ("6379", "8265"):
        assert port in text
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            text = text.replace(port, str(probe.getsockname()[1]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        # the agent that starts a head's jobs; where its usual port is taken, the head takes no jobs
        agent = f"--dashboard-agent-listen-port={probe.getsockname()[1]}"
    assert text.count("ray start --head") == 1
    # Ray takes every command half a minute of a core: those on the head are enough of it
    commands = [line for line in text.splitlines() if "--config quick.toml" in line and " plan " not in line]
    assert len(commands) == 7, commands
    commands += [line for line in text.splitlines() if "ray job submit" in line]  # finds that all is done
    assert len(commands) == 8
    for line in commands:
        text = text.replace(line, re.sub(r"(surveybridge (?:translate|sweep)) ", r"\1 --executor serial ", line))
    stopped = "--config quick.toml --store s3://sky/tiles --run s3://sky/runs/second"
    assert text.count(stopped) == 2
    text = text.replace(stopped, stopped.replace("quick.toml", "quick.toml --checkpoint mosaic-v2"))
    submitted = "--samples 2 --steps 4 "
    assert text.count(submitted) == 2
    text = text.replace(submitted, f"--config {folder}/quick.toml ")
    assert "--calibrate 5" in text
    text = text.replace("--calibrate 5", "--calibrate 1")
    return text.replace("ray start --head", f"ray start --head {agent}")


@pytest.mark.slow  # a head and a dozen commands
def test_every_command_of_the_page_runs_and_leaves_what_it_says(place, monkeypatch):
    folder, environment = place
    driver = subprocess.Popen(
        ["bash", "-x", "-euo", "pipefail", "-c", script(folder)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = driver.communicate(timeout=900)
    finally:
        stop_ray_below(folder)
    assert driver.returncode == 0, printed[-5000:]
    assert printed.count("4 of 4 tiles ok, 0 failed") >= 5, printed[-5000:]
    assert "nothing new in s3://sky/tiles" in printed
    monkeypatch.setenv("AWS_ENDPOINT_URL", environment["AWS_ENDPOINT_URL"])
    for name in ("first", "second", "dr1"):
        assert len(RunFolder.open(f"s3://sky/runs/{name}").ok_tiles()) == 4
    assert Folder.at("s3://sky/nightly").exists("published.json")


def stop_ray_below(folder: Path) -> None:
    """End the head that the page starts (`ray stop` would end every Ray of this machine)."""
    for _ in range(3):
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if f"RAY_TMPDIR={folder}" in environment and "ray" in command and entry.name != str(os.getpid()):
                os.kill(int(entry.name), signal.SIGKILL)
        time.sleep(0.5)


def test_exit_codes_of_the_page_are_those_of_the_command():
    from surveybridge.__main__ import DONE, FAILED, INTERRUPTED, REFUSED, SOME_TILES_FAILED
    from surveybridge.jobs.running.drain import DRAINED

    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert codes == {DONE, FAILED, REFUSED, SOME_TILES_FAILED, INTERRUPTED, DRAINED}


def test_ledger_states_of_the_page_are_those_of_the_ledger():
    from surveybridge.storage.runs import STATUSES

    assert set(re.findall(r"^\| `(\w+)` \| [^|]*\| [^|]*\|$", PAGE, re.MULTILINE)) >= set(STATUSES)
