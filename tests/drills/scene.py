"""The scene of the drills: three Ray nodes, an S3 server behind a proxy with faults, a tile store, a checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surveybridge.storage.objectstore import Folder
from tests import tiny, warm
from tests.storage.faults import FaultyS3

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Scene:
    """Where all drills play: a cluster, an object store behind a proxy, a tile store, a checkpoint."""

    environment: Mapping[str, str]
    storage_options: Mapping[str, Any]
    """The way to the object store that faults do not block."""
    store: str
    runs: str
    checkpoint: str
    folder: Path
    faults: FaultyS3
    servers: Servers
    tiles: list[str] = field(default_factory=list)
    reference: dict[str, Tile] = field(default_factory=dict)
    table: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Tile:
    """What a run says of a tile that is ok, to the last bit; neither wall-clock time nor where the candidates lie."""

    mosaic: bytes
    candidates: bytes
    ledger: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """Of the table of drills."""

    drill: str
    exits: Sequence[int]
    seconds: float
    again: Mapping[str, int]
    """Innocent tiles that a stage began more than once."""
    bound: Mapping[str, int]


@contextlib.contextmanager
def set_up(folder: Path) -> Iterator[Scene]:
    """Start everything, and end it afterwards."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # Ray gives its workers the lowest priority but four, so that on a busy machine they hardly run.
    environment = {**os.environ, "PYTHONPATH": path, "RAY_worker_niceness": "0"}
    with contextlib.ExitStack() as stack:
        # paths of Unix sockets hold 107 characters
        environment["RAY_TMPDIR"] = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="sb", dir="/tmp", ignore_cleanup_errors=True)
        )
        servers = Servers(stack.enter_context(_process("tests.drills.servers", environment, folder / "servers.log")))
        faults = stack.enter_context(FaultyS3(servers.endpoint))
        environment["AWS_ENDPOINT_URL"] = faults.url
        environment["RAY_ADDRESS"] = servers.start_nodes(faults.url)
        straight = {"client_kwargs": {"endpoint_url": servers.endpoint}}
        bucket = "s3://drills"
        Folder.at(bucket, straight).filesystem.mkdir("drills")
        _upload(tiny.write_store(folder / "tiles", tile_size=40, halo=16), f"{bucket}/tiles", straight)
        yield Scene(
            environment=environment,
            storage_options=straight,
            store=f"{bucket}/tiles",
            runs=f"{bucket}/runs",
            checkpoint=tiny.write_checkpoint(folder),
            folder=folder,
            faults=faults,
            servers=servers,
        )


class Servers:
    """The object store and the nodes, served by `tests.drills.servers`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.endpoint: str = self._answer()["endpoint"]

    def start_nodes(self, endpoint: str) -> str:
        """Start the cluster, which finds S3 there; its address."""
        return str(self._ask(f"start {endpoint}")["address"])

    def remove_node(self, node: str) -> None:
        """End a node as a power cut does."""
        self._ask(f"remove {node}")

    def add_node(self) -> None:
        """Add one of the same size."""
        self._ask("add")

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise AssertionError("the servers are gone; see servers.log")


@contextlib.contextmanager
def _process(module: str, environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A server that is spoken to over its pipes and ends with them."""
    command = [warm.python(), "-m", module]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        open(log, "wb") as errors,
        subprocess.Popen(command, cwd=ROOT, env=dict(environment), stderr=errors, **pipes) as server,
    ):
        try:
            yield server
        finally:
            assert server.stdin is not None
            server.stdin.close()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def _upload(local: str, url: str, options: Mapping[str, Any]) -> None:
    """Copy a folder into the object store."""
    target = Folder.at(url, options)
    files = [Path(base) / name for base, _, names in os.walk(local) for name in names]
    target.put_many({str(file.relative_to(local)): file.read_bytes() for file in files})
