"""A run with candidates to grade, a server in a thread for requests, and the command itself for browsers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from surveybridge.jobs.vetting.server import make_app
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import stamps
from tests import warm
from tests.storage.test_query import add_tile
from tests.storage.test_runs import RUN

NASTY = "<img src=x onerror='alert(1)'>\"/../../../etc/passwd&stretch=9#%00"
"""An object's name as nobody would choose it but a tester: markup, quotes, a path, parts of an address."""

TILES, EACH = 3, 25


def make_run(parent: Path | str) -> RunFolder:
    """75 candidates in three tiles, the name of one of them `NASTY`, each with a source in its pictures."""
    run = RunFolder.open_or_create(f"{parent}/run", {**RUN, "run_id": "r1"})
    for tile in range(TILES):
        rng = np.random.default_rng(tile)
        names = [f"SB J{tile}-{k:02d}" for k in range(EACH)]
        if tile == 1:
            names[7] = NASTY
        y, x = np.mgrid[-32:32, -32:32]
        source = 200 * np.exp(-(x**2 + y**2) / 40)
        pictures = {
            f"thumbnail_{name}": stamps(f"thumbnail_{name}", rng.normal(0, 3, (EACH, bands, 64, 64)) + source)
            for name, bands in (("lsst", 3), ("euclid", 1), ("mean", 1), ("error", 1))
        }
        score = 10 - tile - np.arange(EACH) / 7
        table = {
            "object_id": names,
            "ra": 53.1 + rng.random(EACH) / 100,
            "dec": -28 + rng.random(EACH) / 100,
            "score": score,
            "flux_VIS": rng.uniform(100, 1e4, EACH).astype(np.float32),
            "snr_VIS": rng.uniform(3, 300, EACH).astype(np.float32),
            "flags": pa.array([0] * EACH, pa.int32()),
            "model_id": ["m1"] * EACH,
            "run_id": ["r1"] * EACH,
        }
        add_tile(run, f"t{tile}", pa.table(table | pictures))
    return run


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Any

    def json(self) -> Any:
        return json.loads(self.body)


def request(url: str, document: Any = None, **headers: str) -> Answer:
    """GET, or POST of a JSON document or of bytes; `Content_Type` and the like are headers."""
    data = document if document is None or isinstance(document, bytes) else json.dumps(document).encode()
    named = {"Content-Type": "application/json"} if data else {}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, named), timeout=60) as reply:
            return Answer(reply.status, reply.read(), reply.headers)
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read(), error.headers)


@contextlib.contextmanager
def in_thread(session: Any, host: str = "127.0.0.1", token: str | None = None) -> Iterator[str]:
    """Serve a session in a thread of this process, as if bound to `host`; the address."""
    from aiohttp import web

    started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        runner = web.AppRunner(make_app(session, host, token), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        stop = asyncio.Event()
        started.set_result((f"http://127.0.0.1:{runner.addresses[0][1]}", asyncio.get_running_loop(), stop))
        await stop.wait()
        await runner.cleanup()

    # All of it in the thread: the main one may have Playwright's loop.
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    url, loop, stop = started.result(30)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@dataclass(frozen=True)
class Command:
    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.split(":")[2].split("/")[0])


@contextlib.contextmanager
def command(run: str, *arguments: str) -> Iterator[Command]:
    """`surveybridge vet` in a process of its own, once it has printed its address."""
    words = [warm.python(), "-m", "surveybridge", "vet", "--run", run, *arguments]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    try:
        yield Command(process, process.stdout.readline().strip())
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()
