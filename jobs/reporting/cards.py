"""The top candidates of a run as a page shows them: pictures, numbers in words, and where else to look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from surveybridge.jobs.drawing.rendering import VIEWS, Picture, candidate_pictures, png
from surveybridge.jobs.reporting.plots import data_url
from surveybridge.storage.schema import BANDS, THUMBNAILS, stamp_array

MODELLED = ("mean", "residual", "error")
"""Pictures that are model-generated, wholly or in part."""
HEADINGS = VIEWS | {"mean": "mean of reconstructions", "error": "minimum error"}
DETECTED = 3.0
"""Signal to noise below which a magnitude is an upper limit of as many sigma."""
NEARBY = 3.2
"""Arcsec: half a thumbnail on Euclid's grid."""
FLAGS = {1: "neighbours", 2: "deblended", 4: "saturated", 8: "edge"}


@dataclass(frozen=True)
class Shown:
    """One picture of a card: heading, description and data URL; whether a model made it."""

    heading: str
    alt: str
    src: str
    modelled: bool


@dataclass(frozen=True)
class Card:
    """One candidate. All texts are plain: the page escapes them. `grades` is what each grader thinks, if anybody."""

    rank: int
    object_id: str
    place: str
    facts: dict[str, str]
    magnitudes: list[tuple[str, str, str]]
    pictures: list[Shown]
    links: dict[str, str]
    grades: str


def cards(candidates: pa.Table) -> list[Card]:
    """The cards of rows of `storage.schema.CANDIDATES`, by rank, with their thumbnails."""
    stamps = {name: stamp_array(candidates, name) for name in THUMBNAILS}  # not as lists of Python's numbers
    rows = candidates.drop_columns(list(THUMBNAILS)).to_pylist()
    return [
        _card(
            row, candidate_pictures({name: stamp[place] for name, stamp in stamps.items()}), _nearby(row, rows[:place])
        )
        for place, row in enumerate(rows)
    ]


def _card(row: Mapping[str, Any], pictures: Mapping[str, Picture], nearby: str) -> Card:
    ra, dec = float(row["ra"]), float(row["dec"])
    return Card(
        rank=row["rank"],
        object_id=row["object_id"],
        place=f"{ra:.6f} {dec:+.6f}",
        facts={
            "score": _with_error(row["score"], row["score_std"]),
            "false alarms": _number(row["false_alarm"], ".2g"),
            "AS-Bridge score": _number(row["score_asbridge"], ".3g"),
            "tile": row["tile_id"],
            "flags": flags(row["flags"]),
            **({"in the picture": nearby} if nearby else {}),
        },
        magnitudes=[
            (band, magnitude(row[f"flux_{band}"], row[f"snr_{band}"]), _snr(row[f"snr_{band}"])) for band in BANDS
        ],
        pictures=[
            Shown(
                HEADINGS[name],
                f"{HEADINGS[name]} of candidate {row['rank']}, {row['object_id']}",
                data_url("image/png", png(pictures[name])),
                name in MODELLED,
            )
            for name in VIEWS
        ],
        links=links(ra, dec),
        grades=row.get("grades") or "",
    )


def magnitude(flux: float | None, snr: float | None) -> str:
    """AB magnitude of a flux in nJy, `31.4 - 2.5 log10 f`; `> m` where it is below 3 sigma, `–` where not known."""
    if flux is None or snr is None or not (math.isfinite(flux) and math.isfinite(snr)) or flux == 0 or snr == 0:
        return "–"
    if snr < DETECTED or flux < 0:
        return f"> {_ab(DETECTED * abs(flux / snr)):.2f}"
    return f"{_ab(flux):.2f}"


def links(ra: float, dec: float) -> dict[str, str]:
    """Pages of other archives at a position in ICRS deg, by their names."""
    target = quote(f"{ra:.6f} {dec:+.6f}")
    return {
        "Aladin Lite": f"https://aladin.cds.unistra.fr/AladinLite/?target={target}&fov=0.01",
        "Legacy Survey": f"https://www.legacysurvey.org/viewer?ra={ra:.6f}&dec={dec:.6f}&layer=ls-dr10&zoom=16"
        f"&mark={ra:.6f},{dec:.6f}",
        "ESASky": f"https://sky.esa.int/esasky/?target={target}&fov=0.01&cooframe=J2000&sci=true",
    }


def flags(bits: int | None) -> str:
    """SExtractor's flags in words."""
    if bits is None:
        return "–"
    named = [name for bit, name in FLAGS.items() if bits & bit]
    other = bits & ~sum(FLAGS)
    return ", ".join([*named, *([f"others ({other})"] if other else [])]) or "none"


def _nearby(row: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> str:
    """Candidates of higher rank so near that a blend or the same object may stand in the list twice."""
    found = []
    for other in before:
        along_ra = (row["ra"] - other["ra"] + 180) % 360 - 180
        distance = 3600 * math.hypot(along_ra * math.cos(math.radians(row["dec"])), row["dec"] - other["dec"])
        if distance < NEARBY:
            found.append(f"candidate {other['rank']} at {distance:.1f}″")
    return ", ".join(found)


def _ab(flux: float) -> float:
    return 31.4 - 2.5 * math.log10(flux)


def _with_error(value: float | None, error: float | None) -> str:
    known = error is not None and math.isfinite(error)
    return _number(value, ".3g") + (f" ± {error:.2g}" if known else "")


def _snr(value: float | None) -> str:
    return _number(value, ".3g" if value is not None and abs(value) < 100 else ".0f")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None or not math.isfinite(value) else format(value, form)
