"""The server of the grading page: one page, its pictures, and JSON over the candidates and grades of runs."""

from __future__ import annotations

import asyncio
import datetime
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from surveybridge.jobs.drawing.archives import links
from surveybridge.jobs.drawing.overlay import overlay
from surveybridge.jobs.drawing.rendering import channels, end_headings, views, wide_views
from surveybridge.jobs.vetting.book import Book, Row, count_grades
from surveybridge.jobs.vetting.guard import guard
from surveybridge.jobs.vetting.listing import Candidates, ListRequest
from surveybridge.jobs.vetting.pictures import Look, Object, Pictures
from surveybridge.jobs.vetting.stamps import member, stamp
from surveybridge.jobs.vetting.summary import csv_bytes, graded_table, summary
from surveybridge.storage.errors import StorageError
from surveybridge.storage.flags import in_words
from surveybridge.storage.grades import GRADE_NAMES, Seen, check_grader
from surveybridge.storage.orientation import Orientation
from surveybridge.storage.photometry import ab_zero_point
from surveybridge.storage.problems import ProblemTable, band_columns, shown_ends
from surveybridge.storage.schema import detection_column
from surveybridge.version import __version__

FILES = {
    "page.html": "text/html",
    "vet.css": "text/css",
    "vet.js": "text/javascript",
    "grades.js": "text/javascript",
    "draw.js": "text/javascript",
    "hands.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
"""Files that the server gives out besides answers; no other file is ever read for a request."""

PAGE = 240
"""Candidates in one answer, at most."""

SCREENFUL = 24
"""Candidates whose thumbnails are read before the page asks for them; the rest would delay these."""

MAX_BODY = 64 << 10

LARGEST_SIDE = 20.0
"""Of stamps, arcsec."""

LATE = 30 * 86400.0
"""Seconds that an entry may have waited in a browser, for a server that was away."""

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass
class Session:
    """The state of one server.

    Parameters
    ----------
    candidates : Candidates
        In memory.
    book : Book
        Their grades.
    pictures : Pictures
        Of the candidates.
    grader : str or None
        Who grades; None if every page says it.
    name : str
        Where the candidates are from: URLs of runs, or of a catalog.
    """

    candidates: Candidates
    book: Book
    pictures: Pictures
    grader: str | None
    name: str
    started: str = field(default_factory=lambda: f"{time.time_ns():x}")

    def prefetch(self, places: Iterable[int]) -> None:
        """Begin to read thumbnails, because a page will ask for their pictures."""
        self.pictures.prefetch(map(_object, self.candidates.rows(places)))


class PageRequest(ListRequest):
    """A part of a list."""

    grader: str = ""
    offset: int = Field(0, ge=0)
    limit: int = Field(60, ge=0, le=PAGE)
    reveal: bool = Field(False, description="also what others think")


class LookRequest(BaseModel):
    """How a candidate is to be shown."""

    model_config = ConfigDict(extra="forbid")

    object: str = ""
    stretch: float = Field(1.0, ge=0.05, le=50)
    channel: int | None = Field(None, ge=0, description="single bands; by default colours")
    side: float = Field(0.0, ge=0, le=LARGEST_SIDE, description="of the surroundings, arcsec; 0: the thumbnails")
    v: str = Field("", description="another server, another picture")


class OverlayRequest(BaseModel):
    """Scale and directions to lay over stamps."""

    model_config = ConfigDict(extra="forbid")

    north: float = Field(ge=-360, le=360, description="anticlockwise from up, degrees")
    mirrored: bool = False
    side: float = Field(gt=0, description="of the stamp, arcsec")
    text: float = Field(7.0, ge=2, le=20, description="size of the letters, percent of the stamp's side")


class GradeRequest(BaseModel):
    """One act of grading."""

    model_config = ConfigDict(extra="forbid", strict=True)

    entry: str = Field(pattern="^[0-9a-f]{32}$", description="made by the page: sent twice, it counts once")
    object_id: str = Field(max_length=1000)
    grader: str = ""
    grade: str | None = None
    comment: str = ""
    age: float = Field(0.0, ge=0, le=LATE, description="seconds since it was given")


SESSION = web.AppKey("session", Session)


def make_app(session: Session, host: str, token: str | None) -> web.Application:
    """The application; `host` is the address that it is bound to, `token` what every request must have."""
    app = web.Application(middlewares=[guard(host, token)], client_max_size=MAX_BODY)
    app[SESSION] = session
    app.router.add_get("/", _page)
    app.router.add_get("/static/{name}", _file)
    app.router.add_get("/api/session", _session)
    app.router.add_get("/api/candidates", _candidates)
    app.router.add_get("/api/picture", _picture)
    app.router.add_get("/api/surroundings", _surroundings)
    app.router.add_get("/api/overlay", _overlay)
    app.router.add_post("/api/grades", _grade)
    app.router.add_get("/api/summary", _summary)
    app.router.add_get("/api/graded.csv", _export)

    async def close(app: web.Application) -> None:
        session.pictures.close()

    app.on_cleanup.append(close)
    return app


async def _page(request: web.Request) -> web.Response:
    return _static("page.html")


async def _file(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    if name not in FILES:
        raise web.HTTPNotFound(text="no such file")
    return _static(name)


def _static(name: str) -> web.Response:
    body = resources.files("surveybridge.jobs.vetting").joinpath(name).read_bytes()
    return web.Response(body=body, content_type=FILES[name], charset="utf-8", headers={"Cache-Control": "no-cache"})


async def _session(request: web.Request) -> web.Response:
    session = request.app[SESSION]
    runs = session.book.runs
    problem = runs[0].problem
    return _json(
        {
            "run": session.name,
            "key": " ".join([*(str(run.run_json.get("run_id", "")) for run in runs), session.name]),
            "grader": session.grader,
            "candidates": len(session.candidates),
            "grades": GRADE_NAMES,
            "views": views(problem),
            "looks": _looks(problem),
            **_words(problem),
            "version": __version__,
            "started": session.started,
        }
    )


def _words(problem: ProblemTable) -> dict[str, Any]:
    """Return the page's names for the endpoints and their bands."""
    columns, ends = band_columns(problem), shown_ends(problem)
    return {
        "ends": [
            {
                "name": end["name"],
                "title": end["title"],
                "bands": end["bands"],
                "fluxes": [f"flux_{columns[end['name'], band]}" for band in end["bands"]],
                "unit": end["unit"],
                "zero_point": ab_zero_point(end["unit"]),
            }
            for end in ends
        ],
        "band": ends[1]["bands"][0],
        "signal": f"snr_{detection_column(problem)}",
    }


def _looks(problem: ProblemTable) -> list[dict[str, Any]]:
    """In colour, then band by band: the name of each look, and the headings of its pictures."""
    several = channels(problem) if channels(problem) > 1 else 0
    return [
        {
            "name": "colour" if channel is None else " | ".join(end_headings(problem, channel).values()),
            "views": views(problem, channel),
            "wide": wide_views(problem, channel),
        }
        for channel in (None, *range(several))
    ]


async def _candidates(request: web.Request) -> web.Response:
    """Return a part of a list with the grader's own grades, and the grader's progress."""
    session = request.app[SESSION]
    asked = _parsed(PageRequest, request.query)
    grader = _grader(session, asked.grader)
    list_request = ListRequest(**{name: getattr(asked, name) for name in ListRequest.model_fields})
    if list_request.at is None:
        list_request = list_request.model_copy(update={"at": time.time_ns() // 1000})

    def answer() -> dict[str, Any]:
        session.book.refresh()
        order = session.candidates.listed(list_request, grader, session.book)
        places = order[asked.offset : asked.offset + asked.limit].tolist()
        session.prefetch(places[:SCREENFUL])
        rows = session.candidates.rows(places)
        mine = session.book.of(grader)
        for row in rows:
            row["mine"] = _opinion(mine.get(row["object_id"]))
            found = session.pictures.directions(_object(row))
            row["stamp"] = stamp(found)
            row["links"] = links(row["ra"], row["dec"])
            row["flags_said"] = in_words(row["flags"])
            row["members"] = [member(one, row, found) for one in session.candidates.members(row)]
            if asked.reveal:
                row["others"] = [_opinion(other) for other in session.book.others(grader, row["object_id"])]
        graded = [name for name, row in mine.items() if row["grade"]]
        return {
            "at": list_request.at,
            "total": len(order),
            "graded": session.candidates.count(order, graded),
            "counts": count_grades(mine),
            "rows": rows,
        }

    return _json(await asyncio.to_thread(answer))


async def _overlay(request: web.Request) -> web.Response:
    asked = _parsed(OverlayRequest, request.query)
    body = overlay(Orientation(asked.north, asked.mirrored, 0.0), asked.side, asked.text)
    return web.Response(text=body, content_type="image/svg+xml", headers={"Cache-Control": "private, max-age=86400"})


async def _picture(request: web.Request) -> web.Response:
    """The views of one candidate side by side."""
    session = request.app[SESSION]
    asked = _parsed(LookRequest, request.query)
    one = _asked_object(session, asked.object)
    several = channels(session.book.runs[0].problem)
    if asked.channel is not None and asked.channel >= several:
        raise web.HTTPBadRequest(text=f"channel {asked.channel} lies outside 0..{several - 1}")
    look = Look(asked.stretch, asked.channel, asked.side)
    # Shielded, since a page that leaves must not cancel what another may be waiting for.
    body = await asyncio.shield(asyncio.wrap_future(session.pictures.strip(one, look)))
    return web.Response(body=body, content_type="image/png", headers={"Cache-Control": "private, max-age=86400"})


async def _surroundings(request: web.Request) -> web.Response:
    """What to lay over the pictures of a candidate's surroundings, and what of them is missing."""
    session = request.app[SESSION]
    asked = _parsed(LookRequest, request.query)
    future = session.pictures.surroundings(_asked_object(session, asked.object), asked.side)
    found = await asyncio.shield(asyncio.wrap_future(future))
    return _json({**(stamp(found.directions, found.side) or {}), "missing": found.missing})


def _object(row: Mapping[str, Any]) -> Object:
    return Object(row["object_id"], row["tile_id"], row["run_id"], row["ra"], row["dec"])


def _asked_object(session: Session, name: str) -> Object:
    place = session.candidates.place.get(name)
    if place is None:
        raise web.HTTPNotFound(text=f"no candidate {name!r}")
    return _object(session.candidates.rows([place])[0])


async def _grade(request: web.Request) -> web.Response:
    """Write one entry; the answer means that it is in its run folder."""
    session = request.app[SESSION]
    asked = _parsed(GradeRequest, await _document(request))
    grader = _grader(session, asked.grader)
    place = session.candidates.place.get(asked.object_id)
    if place is None:
        raise web.HTTPNotFound(text=f"no candidate {asked.object_id!r}")
    (seen,) = session.candidates.rows([place])
    graded_at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=asked.age)
    try:
        row = await asyncio.shield(
            asyncio.to_thread(
                session.book.add, grader, asked.object_id, asked.grade, asked.comment, asked.entry,
                graded_at=graded_at, seen=Seen(seen["rank"], seen["model_id"], seen["run_id"]),
            )
        )  # fmt: skip
    except StorageError as error:
        raise web.HTTPBadRequest(text=str(error)) from None
    return _json({"saved": asked.entry, "mine": _opinion(row), "counts": session.book.counts(grader)})


async def _summary(request: web.Request) -> web.Response:
    session = request.app[SESSION]
    grader = session.grader or request.query.get("grader", "")
    found = await asyncio.to_thread(lambda: summary(session.candidates.table, session.book.latest(), grader))
    return _json(found)


async def _export(request: web.Request) -> web.Response:
    session = request.app[SESSION]
    body = await asyncio.to_thread(lambda: csv_bytes(graded_table(session.candidates.table, session.book.latest())))
    headers = {"Content-Disposition": 'attachment; filename="graded.csv"', "Cache-Control": "no-store"}
    return web.Response(body=body, content_type="text/csv", charset="utf-8", headers=headers)


def _grader(session: Session, said: str) -> str:
    try:
        return session.grader or check_grader(said)
    except StorageError as error:
        raise web.HTTPBadRequest(text=str(error)) from None


async def _document(request: web.Request) -> Any:
    try:
        return await request.json()
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"not JSON: {error}") from None


def _parsed(model: type[ModelT], values: Mapping[str, Any]) -> ModelT:
    try:
        return model.model_validate(dict(values))
    except (ValidationError, TypeError, ValueError) as error:
        details = error.errors() if isinstance(error, ValidationError) else []
        said = "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in details)
        raise web.HTTPBadRequest(text=said or "not a JSON object") from None


def _opinion(row: Row | None) -> dict[str, Any] | None:
    if not row:
        return None
    return {name: row[name] for name in ("grader", "grade", "comment")} | {"graded_at": row["graded_at"].isoformat()}


def _json(document: Mapping[str, Any]) -> web.Response:
    return web.Response(
        text=json.dumps(_plain(document), allow_nan=False),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value
