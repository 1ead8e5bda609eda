"""The list of candidates on a page: sorting, filters and shuffle over all candidates in memory."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from surveybridge.jobs.vetting.book import Book
from surveybridge.storage.problems import ProblemTable
from surveybridge.storage.query import EVERY_ROW, query
from surveybridge.storage.regions import Cone
from surveybridge.storage.schema import detection_column, shown_bands
from surveybridge.storage.views import Urls, problem_at

MEMBER = ("object_id", "rank", "system_rank", "score", "kind", "ra", "dec")
"""What is read of the members of systems."""

KEPT_LISTS = 16
"""So many orders are kept: 4 MB each for a million candidates."""


class ListRequest(BaseModel):
    """A page's request; the list is a pure function of it and of the grades until `at`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sort: Literal["rank", "shuffle", "brightest", "faintest", "signal", "false_alarm", "recent"] = "rank"
    seed: int = Field(0, ge=0, lt=1 << 32, description="of the shuffle")
    show: Literal["all", "ungraded", "graded", "A", "B", "C", "X", "lenses", "commented", "disputed"] = "all"
    text: str = Field("", max_length=200, description="part of an object's or a tile's name, or of a comment")
    top: int | None = Field(None, ge=1, description="rank at most")
    signal: float | None = Field(None, description="S/N at least, in the band on which objects are found")
    at: int | None = Field(None, ge=0, description="grades until then, microseconds since 1970")


def shown(problem: ProblemTable) -> list[str]:
    """Columns of a candidate that pages show."""
    first = ("object_id", "tile_id", "ra", "dec", "rank", "score", "score_std", "false_alarm", "score_asbridge")
    return [*first, *shown_bands(problem), "flags", "system_members", "model_id", "run_id"]


def read(urls: Urls, cone: tuple[float, float, float] | None, top: int | None) -> pa.Table:
    """The candidates of runs or a catalog, in a cone, at most `top`: columns `shown` and _healpix_29, by rank."""
    problem = problem_at(urls)
    columns = None if problem["catalog"] is None else [*shown(problem), "_healpix_29"]  # which the query refuses
    return query(urls, None if cone is None else Cone(*cone), top, columns=columns, thumbnails=False)


def read_members(urls: Urls, cone: tuple[float, float, float] | None, table: pa.Table) -> pa.Table | None:
    """All rows of the systems of which `table` (from `read`) has a row, if one has several; columns `MEMBER`."""
    if not (pc.max(table["system_members"]).as_py() or 1) > 1:
        return None
    region = None if cone is None else Cone(*cone)
    found = query(urls, region, columns=list(MEMBER), thumbnails=False, listing=EVERY_ROW)
    return found.filter(pc.is_in(found["rank"], value_set=table["rank"].combine_chunks()))


class Candidates:
    """The candidates that are to be graded, one a system.

    Parameters
    ----------
    table : pyarrow.Table
        From `read`, or at least the columns `shown` and _healpix_29, by rank.
    problem : ProblemTable
        What they are candidates of.
    members : pyarrow.Table, optional
        From `read_members`.
    """

    def __init__(self, table: pa.Table, problem: ProblemTable, members: pa.Table | None = None) -> None:
        self._members: dict[int, list[dict[str, Any]]] = {}
        for row in [] if members is None else members.to_pylist():
            self._members.setdefault(row["rank"], []).append(row)
        self.shown = shown(problem)
        band = detection_column(problem)
        self._signal = f"snr_{band}"
        self._descending = {"brightest": f"flux_{band}", "signal": self._signal}
        self._ascending = {"faintest": f"flux_{band}", "false_alarm": "false_alarm"}
        self.table = table.select([*self.shown, "_healpix_29"]).combine_chunks()
        self.place = {name: row for row, name in enumerate(self.table["object_id"].to_pylist())}
        self._orders: dict[tuple[str, int], NDArray[np.int32]] = {}
        self._lists: dict[tuple[str, ListRequest], NDArray[np.int32]] = {}

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def rows(self, places: Iterable[int]) -> list[dict[str, Any]]:
        """Columns `shown` of some candidates."""
        taken = self.table.select(self.shown).take(pa.array(places, pa.int64()))
        return [dict(row) for row in taken.to_pylist()]

    def members(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The objects of a candidate's system, by their ranks in it, itself first; none if it is alone."""
        found = self._members.get(row["rank"], [])
        return sorted(found, key=lambda one: one["object_id"] != row["object_id"]) if len(found) > 1 else []

    def listed(self, asked: ListRequest, grader: str, book: Book) -> NDArray[np.int32]:
        """Rows of the table in the order asked for.

        Parameters
        ----------
        asked : ListRequest
            With `at`, so that grading does not move what is still to come.
        grader : str
            Whose grades `show` and the order `recent` mean.
        book : Book
            All grades.
        """
        key = (grader, asked)
        if key not in self._lists:
            while len(self._lists) >= KEPT_LISTS:
                self._lists.pop(next(iter(self._lists)), None)
            self._lists[key] = self._list(asked, grader, book)
        return self._lists[key]

    def count(self, order: NDArray[np.int32], names: Iterable[str]) -> int:
        """Count how many of the objects are in a list."""
        return int(np.count_nonzero(self._mask(names)[order]))

    def _list(self, asked: ListRequest, grader: str, book: Book) -> NDArray[np.int32]:
        until = None if asked.at is None else datetime.datetime.fromtimestamp(asked.at / 1e6, datetime.UTC)
        mine = book.of(grader, until)
        keep = self._graded(asked.show, mine, book, until) & self._found(asked.text, mine)
        if asked.top is not None:
            keep &= self.table["rank"].to_numpy() <= asked.top
        if asked.signal is not None:
            keep &= np.nan_to_num(self.table[self._signal].to_numpy(), nan=-np.inf) >= asked.signal
        if asked.sort == "recent":
            last = sorted(mine.values(), key=lambda row: row["graded_at"], reverse=True)
            order = np.array([self.place[row["object_id"]] for row in last if row["object_id"] in self.place], np.int32)
        else:
            order = self._order(asked.sort, asked.seed)
        return order[keep[order]]

    def _order(self, sort: str, seed: int) -> NDArray[np.int32]:
        """All rows, sorted; equal ones by rank."""
        key = (sort, seed if sort == "shuffle" else 0)
        if key not in self._orders:
            while len(self._orders) >= KEPT_LISTS:
                self._orders.pop(next(iter(self._orders)), None)
            if sort == "rank":
                order = np.arange(len(self))
            elif sort == "shuffle":
                order = np.argsort(shuffle_keys(self.table["_healpix_29"].to_numpy(), seed), kind="stable")
            else:
                column = self._descending.get(sort) or self._ascending[sort]
                values = self.table[column].to_numpy().astype(np.float64)
                order = np.argsort(-values if sort in self._descending else values, kind="stable")  # NaN last
            self._orders[key] = order.astype(np.int32)
        return self._orders[key]

    def _graded(
        self, show: str, mine: Mapping[str, Mapping[str, Any]], book: Book, until: datetime.datetime | None
    ) -> NDArray[np.bool_]:
        if show == "all":
            return np.ones(len(self), bool)
        if show == "disputed":
            chosen: Iterable[str] = book.disputed(until)
        elif show == "commented":
            chosen = (name for name, row in mine.items() if row["comment"])
        else:
            wanted = {"lenses": "AB", "graded": "ABCX", "ungraded": "ABCX"}.get(show, show)
            chosen = (name for name, row in mine.items() if row["grade"] and row["grade"] in wanted)
        mask = self._mask(chosen)
        return ~mask if show == "ungraded" else mask

    def _found(self, text: str, mine: Mapping[str, Mapping[str, Any]]) -> NDArray[np.bool_]:
        text = text.strip()
        if not text:
            return np.ones(len(self), bool)
        columns = (self.table[name] for name in ("object_id", "tile_id"))
        hits = [pc.match_substring(column, text, ignore_case=True).to_numpy() for column in columns]
        commented = (name for name, row in mine.items() if text.lower() in (row["comment"] or "").lower())
        return np.asarray(hits[0] | hits[1] | self._mask(commented))

    def _mask(self, names: Iterable[str]) -> NDArray[np.bool_]:
        mask = np.zeros(len(self), bool)
        mask[[self.place[name] for name in names if name in self.place]] = True
        return mask


def shuffle_keys(healpix: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Sort keys of a shuffle: a function of seed and position on the sky, so that new candidates move no others.

    Parameters
    ----------
    healpix : int64 [N]
        Column `_healpix_29`.
    seed : int
        0 to 2^32 - 1.

    Returns
    -------
    uint64 [N]
    """
    # The finaliser of SplitMix64 (Steele, Lea & Flood 2014), on seed and position.
    x = healpix.astype(np.uint64) + np.uint64(((seed + 1) * 0x9E3779B97F4A7C15) % 2**64)
    for _ in range(2):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return x
