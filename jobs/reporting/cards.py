"""The top candidates of a run as a page shows them: pictures, numbers in words, and where else to look."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from surveybridge.jobs.drawing.archives import links
from surveybridge.jobs.drawing.overlay import overlay, said
from surveybridge.jobs.drawing.rendering import Picture, candidate_pictures, png, views
from surveybridge.jobs.reporting.plots import data_url
from surveybridge.storage.flags import in_words
from surveybridge.storage.orientation import Orientation
from surveybridge.storage.photometry import ab_zero_point
from surveybridge.storage.problems import ProblemTable, band_columns, endpoint, shown_ends
from surveybridge.storage.schema import CELL, stamp_array, thumbnail_names

MODELLED = ("mean", "residual", "error")
"""Pictures that are model-generated, wholly or in part."""
HEADINGS = {"mean": "mean of reconstructions", "error": "minimum error"}
"""Headings of these pictures on a card."""
DETECTED = 3.0
"""Signal to noise below which a magnitude is an upper limit of as many sigma."""


@dataclass(frozen=True)
class Shown:
    """One picture of a card: heading, description and data URL; whether a model made it."""

    heading: str
    alt: str
    src: str
    modelled: bool


@dataclass(frozen=True)
class Card:
    """One candidate. All texts are plain: the page escapes them. `grades` is what each grader thinks, if anybody.

    `over` is the address of what lies over its pictures, scale and directions, empty where they are not known.
    """

    rank: int
    object_id: str
    place: str
    facts: dict[str, str]
    magnitudes: list[tuple[str, str, str]]
    pictures: list[Shown]
    over: str
    links: dict[str, str]
    grades: str


Directions = Callable[[Mapping[str, Any]], Orientation | None]


def cards(candidates: pa.Table, problem: ProblemTable, directions: Directions) -> list[Card]:
    """The cards of candidates of a problem, by rank; `directions` are those on a row's stamps."""
    names = thumbnail_names(candidates.schema)
    stamps = {name: stamp_array(candidates, name) for name in names}  # not as lists of Python's numbers
    rows = candidates.drop_columns(list(names)).to_pylist()
    pixel = shown_ends(problem)[1]["pixel_scale"]
    return [
        _card(
            row,
            problem,
            candidate_pictures({name: stamp[place] for name, stamp in stamps.items()}, problem),
            _nearby(row, rows[:place], CELL / 2 * pixel),
            directions(row),
            made=bool(np.isfinite(stamps["thumbnail_mean"][place]).any()),
        )
        for place, row in enumerate(rows)
    ]


def _card(
    row: Mapping[str, Any],
    problem: ProblemTable,
    pictures: Mapping[str, Picture],
    nearby: str,
    found: Orientation | None,
    *,
    made: bool,
) -> Card:
    """Return the card of a row; `made` says whether it was reconstructed."""
    ra, dec = float(row["ra"]), float(row["dec"])
    side = None if found is None else CELL * found.pixel
    headings = views(problem) | HEADINGS
    if not made:
        headings |= {name: f"{headings[name]}: none" for name in MODELLED}
    return Card(
        rank=row["rank"],
        object_id=row["object_id"],
        place=f"{ra:.6f} {dec:+.6f}",
        facts={
            "score": _with_error(row["score"], row["score_std"]),
            "false alarms": _number(row["false_alarm"], ".2g"),
            "AS-Bridge score": _number(row["score_asbridge"], ".3g") if made else "not reconstructed",
            "tile": row["tile_id"],
            **({} if found is None or side is None else {"stamps": said(found, side)}),
            "flags": in_words(row["flags"]),
            **({"domain": row["domain"]} if (row.get("domain") or "in") != "in" else {}),
            **({"system": f"{row['system_members']} objects"} if (row.get("system_members") or 1) > 1 else {}),
            **({"in the picture": nearby} if nearby else {}),
        },
        magnitudes=[
            (
                band,
                brightness(row[f"flux_{column}"], row[f"snr_{column}"], endpoint(problem, name)["unit"]),
                _snr(row[f"snr_{column}"]),
            )
            for (name, band), column in band_columns(problem).items()
        ],
        pictures=[
            Shown(
                headings[name],
                f"{headings[name]} of candidate {row['rank']}, {row['object_id']}",
                data_url("image/png", png(pictures[name])),
                name in MODELLED,
            )
            for name in views(problem)
        ],
        over="" if found is None or side is None else data_url("image/svg+xml", overlay(found, side).encode()),
        links=links(ra, dec),
        grades=row.get("grades") or "",
    )


def brightness(flux: float | None, snr: float | None, unit: str = "nJy") -> str:
    """AB magnitude of a flux (of what is none, its value); `> m` where it is below 3 sigma, `–` where not known."""
    zero_point = ab_zero_point(unit)
    if zero_point is None:
        return "–" if flux is None or not math.isfinite(flux) else f"{flux:.3g} {unit}"
    if flux is None or snr is None or not (math.isfinite(flux) and math.isfinite(snr)) or flux == 0 or snr == 0:
        return "–"
    if snr < DETECTED or flux < 0:
        return f"> {zero_point - 2.5 * math.log10(DETECTED * abs(flux / snr)):.2f}"
    return f"{zero_point - 2.5 * math.log10(flux):.2f}"


def _nearby(row: Mapping[str, Any], before: Sequence[Mapping[str, Any]], reach: float) -> str:
    """Candidates of higher rank so near (arcsec) that a blend or the same object may stand in the list twice."""
    found = []
    for other in before:
        along_ra = (row["ra"] - other["ra"] + 180) % 360 - 180
        distance = 3600 * math.hypot(along_ra * math.cos(math.radians(row["dec"])), row["dec"] - other["dec"])
        if distance < reach:
            found.append(f"candidate {other['rank']} at {distance:.1f}″")
    return ", ".join(found)


def _with_error(value: float | None, error: float | None) -> str:
    known = error is not None and math.isfinite(error)
    return _number(value, ".3g") + (f" ± {error:.2g}" if known else "")


def _snr(value: float | None) -> str:
    return _number(value, ".3g" if value is not None and abs(value) < 100 else ".0f")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None or not math.isfinite(value) else format(value, form)
