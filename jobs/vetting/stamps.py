"""What pages lay over stamps: scale and directions, and the places of a system's objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from surveybridge.jobs.drawing.overlay import offset, said
from surveybridge.storage.orientation import Orientation
from surveybridge.storage.schema import CELL


def stamp(found: Orientation | None, side: float | None = None) -> dict[str, Any] | None:
    """What a page lays over stamps of a side, arcsec, by default that of the thumbnails, and the same in words."""
    if found is None:
        return None
    side = CELL * found.pixel if side is None else side
    pixels = round(side / found.pixel)
    # Rounded, so that all candidates of a grid share one picture in the browser.
    overlaid = {"north": round(found.north, 1), "mirrored": int(found.mirrored), "side": f"{side:.4g}"}
    return {"side": side, "pixels": pixels, "said": said(found, side), "overlay": f"api/overlay?{urlencode(overlaid)}"}


def member(one: Mapping[str, Any], row: Mapping[str, Any], found: Orientation | None) -> dict[str, Any]:
    """An object of a candidate's system, and how many pixels to the right and up of the candidate it lies.

    By its place on the sky, since a system that a border between fields divides lies on two grids.
    """
    facts = {name: one[name] for name in ("object_id", "score", "kind")}
    if found is None:
        return facts
    right, up = offset(found, (row["ra"], row["dec"]), (one["ra"], one["dec"]))
    return facts | {"dx": right, "dy": up}
