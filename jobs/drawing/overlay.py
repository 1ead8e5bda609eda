"""What lies over a stamp: a bar of known length and arrows to north and east, as SVG that browsers scale."""

from __future__ import annotations

import math

from surveybridge.storage.orientation import Orientation

_LENGTHS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
"""Lengths of bars, arcsec."""

_ARROW = 11.0
"""Length of an arrow, percent of the stamp's side."""


def bar_length(side: float) -> float:
    """Length of the bar for a stamp of a side, both arcsec: the largest round one up to 0.35 of it."""
    return max((length for length in _LENGTHS if length <= 0.35 * side), default=_LENGTHS[0])


def directions(found: Orientation) -> dict[str, tuple[float, float]]:
    """Unit vectors of N and E in a picture: to the right, and up."""
    north = math.radians(found.north)
    east = north + math.radians(-90 if found.mirrored else 90)
    return {name: (-math.sin(angle), math.cos(angle)) for name, angle in (("N", north), ("E", east))}


def offset(found: Orientation, here: tuple[float, float], there: tuple[float, float]) -> tuple[float, float]:
    """Pixels to the right and up from one position to another nearby, ICRS degrees."""
    along_ra = (there[0] - here[0] + 180) % 360 - 180
    east, north = 3600 * along_ra * math.cos(math.radians(here[1])), 3600 * (there[1] - here[1])
    arrows = directions(found)
    right, up = ((north * arrows["N"][k] + east * arrows["E"][k]) / found.pixel for k in (0, 1))
    return right, up


def said(found: Orientation, side: float) -> str:
    """The same in words."""
    turn = (found.north + 180) % 360 - 180
    up = "up" if abs(turn) < 0.5 else f"{abs(turn):.0f}° {'left' if turn > 0 else 'right'} of up"
    east = "clockwise (mirrored)" if found.mirrored else "anticlockwise"
    return f"{side:.3g}″ × {side:.3g}″, bar {bar_length(side):g}″, north {up}, east {east} of it"


def overlay(found: Orientation, side: float, text: float = 7.0) -> str:
    """SVG, transparent, to be laid over a square stamp.

    Parameters
    ----------
    found : Orientation
        Of the stamp's pixel grid, first row below.
    side : float
        Of the stamp, arcsec.
    text : float
        Size of the letters, percent of the stamp's side.
    """
    length = bar_length(side)
    width = 100 * length / side
    start = 4 + _ARROW + text, 4 + _ARROW + text
    lines = [_line(5, 95, 5 + width, 95)]
    words = [_word(5 + width / 2, 92.5, text, f"{length:g}″")]
    for name, (right, up) in directions(found).items():
        tip = start[0] + _ARROW * right, start[1] - _ARROW * up
        lines.append(_line(*start, *tip))
        if name == "N":  # the head
            for turn in (150, -150):
                cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
                back = 0.4 * _ARROW * (right * cos - up * sin), 0.4 * _ARROW * (right * sin + up * cos)
                lines.append(_line(*tip, tip[0] + back[0], tip[1] - back[1]))
        reach = _ARROW + 0.75 * text
        words.append(_word(start[0] + reach * right, start[1] - reach * up + 0.36 * text, text, name))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100" width="300" height="300">'
        f"<title>{said(found, side)}</title>"
        # Dark and wide below white, so that all is seen on bright sources and pale residuals, too.
        f'<g stroke="#000" stroke-opacity="0.8" stroke-width="3" stroke-linecap="square">{"".join(lines)}</g>'
        f'<g stroke="#fff" stroke-width="1.2">{"".join(lines)}</g>{"".join(words)}</svg>'
    )


def _line(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<path d="M{x0:.2f} {y0:.2f}L{x1:.2f} {y1:.2f}"/>'


def _word(x: float, y: float, size: float, text: str) -> str:
    return (
        f'<text x="{x:.2f}" y="{y:.2f}" font-size="{size:g}" font-family="sans-serif" font-weight="600" '
        f'text-anchor="middle" fill="#fff" stroke="#000" stroke-opacity="0.8" stroke-width="{0.3 * size:.2f}" '
        f'stroke-linejoin="round" paint-order="stroke">{text}</text>'
    )
