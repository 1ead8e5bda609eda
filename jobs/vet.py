"""Grade candidates in the browser: pictures, keys A B C X, several graders, purity and agreement so far.

Starts a web server on this machine and prints its address; stop it with Ctrl-C. Of several runs, or of a published
catalog, it shows one list. Each grade is in the folder of the run that the candidate is from, under `grades/`, before
the page says so: A certain, B probable, C possible, X no lens. Nothing is ever overwritten, and each grader has a
folder of their own. On another address than the loopback one the server asks for a token, which is part of
the address that it prints (SURVEYBRIDGE_TOKEN in the environment sets it).
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError, SkyCircle, Texts

if TYPE_CHECKING:
    import socket

    from surveybridge.jobs.vetting.server import Session

EXAMPLES = """
  surveybridge vet --run runs/field --grader "Ada L."
  surveybridge vet --run s3://survey/runs/dr1 --top 2000
  surveybridge vet --run s3://survey/runs/north s3://survey/runs/south
  surveybridge vet --run s3://survey/catalog --top 500
  surveybridge vet --run runs/field --host 0.0.0.0
  surveybridge vet --run runs/field --export graded.csv
"""

TOKEN_VARIABLE = "SURVEYBRIDGE_TOKEN"
SHORTEST_TOKEN = 16

log = logging.getLogger(__name__)


class Config(JobConfig):
    """Settings of `surveybridge vet`."""

    writes = ("export",)

    run: Texts = Field(min_length=1, description="run folders, or one published catalog: paths or s3:// URLs")
    grader: str | None = Field(
        None,
        description="name of the grader; without it each page asks for one, and several graders may share a server",
    )
    top: int | None = Field(None, ge=1, description="show only the first N of the ranking")
    cone: SkyCircle = Field(
        None,
        description="RA,DEC,ARCSEC: show only candidates within this distance; ICRS, deg or 10:00:24,-02:12:00,...",
    )
    store: str | None = Field(
        None, description="where the run's tile store lies now; stamps larger than the thumbnails are read from it"
    )
    host: str = Field("127.0.0.1", description="address to listen on; any but a loopback address asks for a token")
    port: int = Field(8642, ge=0, le=65535, description="port to listen on, 0 for any")
    export: str | None = Field(
        None, description="write the graded candidates to this CSV file (path or s3:// URL), print a summary, and exit"
    )


def run(config: Config) -> int:
    """Serve until Ctrl-C or SIGTERM, then return 0."""
    from surveybridge.storage.grades import check_grader

    grader = None if config.grader is None else check_grader(config.grader)
    if config.export is not None:
        return export(config, config.export)

    import asyncio

    from surveybridge.jobs.vetting.guard import is_loopback

    token = None if is_loopback(config.host) and TOKEN_VARIABLE not in os.environ else _token()
    with _bound(config.host, config.port) as listening:
        session = open_session(config, grader)
        asyncio.run(_serve(session, listening, config.host, token))
    return 0


def open_session(config: Config, grader: str | None) -> Session:
    """Read candidates and grades; thumbnails are left where they are."""
    from surveybridge.jobs.vetting.book import Book
    from surveybridge.jobs.vetting.listing import Candidates, read, read_members
    from surveybridge.jobs.vetting.pictures import Pictures
    from surveybridge.jobs.vetting.server import SCREENFUL, Session
    from surveybridge.storage.grades import compact_grades
    from surveybridge.storage.places import check_writable
    from surveybridge.storage.views import open_views

    start = time.monotonic()
    views = open_views(config.run)
    runs = views.folders()
    for run in runs:
        check_writable(run.url)  # grades are written there
    table = read(config.run, config.cone, config.top)
    if table.num_rows == 0:
        raise RequestError(f"run {views.name} has no candidate to grade here; translate tiles, or ask for more")
    if grader is not None:
        for run in runs:
            compact_grades(run, grader)
    book = Book(runs)
    log.info("%d candidates and %d grades in %.1f s", table.num_rows, book.history.num_rows, time.monotonic() - start)
    candidates = Candidates(table, runs[0].problem, read_members(config.run, config.cone, table))
    session = Session(candidates, book, Pictures(runs, config.store), grader, views.name)
    session.prefetch(range(min(SCREENFUL, table.num_rows)))
    return session


def export(config: Config, where: str) -> int:
    """Write the graded candidates and print the summary."""
    from surveybridge.jobs.vetting.listing import read
    from surveybridge.jobs.vetting.summary import csv_bytes, graded_table, summary, text
    from surveybridge.storage.grades import latest_grades, read_grades
    from surveybridge.storage.objectstore import file_at
    from surveybridge.storage.views import open_views

    table = read(config.run, config.cone, config.top)
    latest = latest_grades(read_grades(*open_views(config.run).folders()))
    folder, name = file_at(where)
    folder.put(csv_bytes(graded_table(table, latest)), name)
    print(text(summary(table, latest, config.grader)))
    return 0


async def _serve(session: Session, listening: socket.socket, host: str, token: str | None) -> None:
    import asyncio
    import signal

    from aiohttp import web

    from surveybridge.jobs.vetting.server import make_app

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # What is being written is finished before the server ends.
    runner = web.AppRunner(make_app(session, host, token), access_log=None, shutdown_timeout=10.0)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    print(_address(host, listening.getsockname()[1], token), flush=True)
    await stop.wait()
    await runner.cleanup()


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket; RequestError, before anything is read, if the address cannot be had."""
    import socket

    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        reason = error.strerror or error
        raise RequestError(f"cannot listen on {host} port {port}: {reason}; give another --host or --port") from None


def _token() -> str:
    import secrets

    token = os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24)
    if len(token) < SHORTEST_TOKEN:
        raise RequestError(f"{TOKEN_VARIABLE} has {len(token)} characters; give at least {SHORTEST_TOKEN}")
    return token


def _address(host: str, port: int, token: str | None) -> str:
    import socket

    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + ("" if token is None else f"?token={token}")
