"""A picture of the house: `python -m docs.house` draws its import graph into docs/house.svg, or names its circles."""

from __future__ import annotations

import functools
import html
import itertools
import sys
from collections.abc import Iterable, Sequence

from docs.imports import ALLOWED, GROUND, ROOT, Graph, circles, files_of, graph_of, room_of, rooms_of

LIBRARIES = {"cluster": "#b45309", "storage": "#047857", "bridge_core": "#1d4ed8"}
HOLDS = {
    "cluster": "everything Ray",
    "storage": "everything on disk or S3",
    "bridge_core": "the mathematics, on tensors",
    "kernels": "fused operations",
}
WIDTH, MARGIN, BOX, GAP = 1080, 24, (190, 74), 56
"""Pixels: of the picture, of its edge, of a room, and between two floors."""
PASSING, PASSAGE = "> ", 20
"""An arrow that passes a floor, and the pixels it has there."""


def draw(graph: Graph) -> str:
    """The house as SVG: doors, the floors of rooms with their arrows, and the libraries below."""
    doors = sorted(module for module in graph if room_of(module) == "doors")
    lines = [", ".join(map(_job, doors))]
    for door in doors:
        if opened := sorted(map(_job, graph[door] & set(doors))):
            lines.append(f"{_job(door)} opens {', '.join(opened)}")
    top, deep = MARGIN + 68, 32 + 17 * len(lines)
    parts = [
        *_strip(MARGIN, 44, "surveybridge JOB", "surveybridge/__main__.py"),
        *_down(WIDTH / 2, MARGIN + 44, top),
        *_strip(top, deep, "doors: jobs/*.py, one a job", *lines),
        *_down(WIDTH / 2, top + deep, top + deep + 24),
    ]
    rooms, ground = _draw_rooms(graph, doors, top + deep + 24)
    libraries, bottom = _draw_libraries(ground)
    height = bottom + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">\n'
        f"<style>{STYLE}</style>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#475569"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n'
    )
    return head + "\n".join([*parts, *rooms, *libraries]) + "\n</svg>\n"


def _draw_rooms(graph: Graph, doors: list[str], top: int) -> tuple[list[str], int]:
    """The rooms in their frame, and where that ends."""
    everything = rooms_of(graph)
    inside = {room for room in everything if room.startswith("jobs.") and room not in GROUND}
    rooms = {room: everything[room] & inside for room in sorted(inside)}
    places = _places(floors_of(rooms))
    edge = [top + 40 + n * (BOX[1] + GAP) for n in range(len(places))]
    below = edge[-1] + BOX[1] + 20
    height = below + 44 + 14 - top
    parts = [
        _rect(MARGIN, top, WIDTH - 2 * MARGIN, height, "#f8fafc"),
        _text(MARGIN + 14, top + 24, "rooms: jobs/*/, behind the doors; a room imports no door", "title"),
    ]
    for (x, n), (u, m), ends in _arrows(places, rooms):
        parts.append(_arrow((x, edge[n] + BOX[1]), (u, edge[m] - ends), tip=ends))
        if not ends:
            parts.append(f'<path class="line" d="M{u:g} {edge[m]:g}v{BOX[1]}"/>')
    for n, floor in enumerate(places):
        for room in sorted(inside & floor.keys()):
            used = [_job(door) for door in doors if any(room_of(other) == room for other in graph[door])]
            dots = [name for name in LIBRARIES if name in everything[room]]
            parts += _room(floor[room] - BOX[0] / 2, edge[n], _job(room), used, dots)
    files = ", ".join(f"{module.replace('.', '/')}.py" for module in sorted(GROUND))
    parts += _strip(below, 44, "the ground of all jobs", files, inset=14)
    return parts, top + height


def _draw_libraries(top: int) -> tuple[list[str], int]:
    """The libraries below the jobs, whose frame ends at `top`, and where they end."""
    third, ground = (WIDTH - 2 * MARGIN - 2 * 20) / 3, top + GAP
    parts: list[str] = []
    for k, name in enumerate(LIBRARIES):
        x = MARGIN + k * (third + 20)
        parts += _down(x + third / 2, top, ground) + _library(x, ground, third, name)
        for lower in sorted(ALLOWED[name]):
            parts += _down(x + third / 2, ground + 52, ground + 52 + GAP)
            parts += _library(x, ground + 52 + GAP, third, lower)
    return parts, ground + 52 + GAP + 52


def _job(module: str) -> str:
    return module.removeprefix("jobs.")


STYLE = (
    "text{font-family:'DejaVu Sans',Helvetica,Arial,sans-serif;fill:#1e293b;font-size:12px}"
    ".title{font-size:14px;font-weight:bold}.small{font-size:11px;fill:#475569}"
    ".line{fill:none;stroke:#475569;stroke-width:1.4}.arrow{marker-end:url(#tip)}"
)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, fill: str, stroke: str = "#94a3b8") -> str:
    where = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {where} rx="6" fill="{fill}" stroke="{stroke}"/>'


def _strip(top: float, height: float, title: str, *lines: str, inset: float = 0) -> list[str]:
    """A box over the whole width but for an inset, its lines in the middle."""
    parts = [
        _rect(MARGIN + inset, top, WIDTH - 2 * (MARGIN + inset), height, "#eef2ff"),
        _text(WIDTH / 2, top + 19, title, "title", "middle"),
    ]
    return parts + [_text(WIDTH / 2, top + 37 + 17 * k, line, "small", "middle") for k, line in enumerate(lines)]


def _down(x: float, start: float, end: float) -> list[str]:
    return [f'<path class="line arrow" d="M{x:g} {start:g}V{end - 1:g}"/>']


def _arrow(start: tuple[float, float], end: tuple[float, float], *, tip: bool) -> str:
    """From a floor to the next, as a curve that leaves and arrives upright."""
    (x, y), (u, v) = start, end
    bend = (v - y) / 2
    kind = "line arrow" if tip else "line"
    return f'<path class="{kind}" d="M{x:g} {y:g}C{x:g} {y + bend:g} {u:g} {v - bend:g} {u:g} {v:g}"/>'


def _room(x: float, y: float, name: str, doors: list[str], libraries: list[str]) -> list[str]:
    """A room: its name, the doors that lead into it, and a dot for each library that it uses."""
    parts = [_rect(x, y, *BOX, "white"), _text(x + 12, y + 21, name, "title")]
    half = (len(doors) + 1) // 2 if len(", ".join(doors)) > 26 else len(doors)
    for k, some in enumerate(filter(None, (doors[:half], doors[half:]))):
        text = ("from " if k == 0 else "") + ", ".join(some) + ("," if k == 0 and half < len(doors) else "")
        parts.append(_text(x + 12, y + 42 + 17 * k, text, "small"))
    if not doors:
        parts.append(_text(x + 12, y + 42, "from other rooms", "small"))
    for k, library in enumerate(reversed(libraries)):
        parts.append(f'<circle cx="{x + BOX[0] - 16 - 16 * k:g}" cy="{y + 17:g}" r="5" fill="{LIBRARIES[library]}"/>')
    return parts


def _library(x: float, y: float, width: float, name: str) -> list[str]:
    colour = LIBRARIES.get(name, "#475569")
    return [
        _rect(x, y, width, 52, "white", colour),
        f'<circle cx="{x + 18:g}" cy="{y + 17:g}" r="5" fill="{colour}"/>',
        _text(x + 32, y + 22, name, "title"),
        _text(x + 32, y + 40, HOLDS[name], "small"),
    ]


def floors_of(rooms: Graph) -> list[list[str]]:
    """Rooms in floors from the top, each as low as what it imports allows, so that arrows point downwards only.

    An arrow that passes a floor has a place on it, "> room": those to one room pass together.
    """
    depth: dict[str, int] = {}
    while len(depth) < len(rooms):
        for room in [room for room in rooms if room not in depth and rooms[room] <= depth.keys()]:
            depth[room] = 1 + max((depth[below] for below in rooms[room]), default=-1)
    floors: list[list[str]] = [[] for _ in range(1 + max(depth.values()))]
    for room in sorted(rooms):
        floors[-1 - depth[room]].append(room)
        above = [other for other in rooms if room in rooms[other]]
        for passed in range(depth[room] + 1, max((depth[other] for other in above), default=0)):
            floors[-1 - passed].append(f"{PASSING}{room}")
    pieces = _pieces(floors, rooms)
    for _ in range(3):
        for k, floor in enumerate(floors):
            places = _places(floors)
            ends = [(one, places[m][other]) for (one, n), (other, m), _ in pieces if n == k]
            ends += [(other, places[n][one]) for (one, n), (other, m), _ in pieces if m == k]
            floors[k] = _in_order(floor, ends)
    return floors


def _in_order(floor: list[str], ends: list[tuple[str, float]]) -> list[str]:
    """Rooms of a floor from the left so that arrows from them to `ends` go sideways least, squared and summed.

    Where a room stands follows from which are left of it, in whatever order.
    """
    widths, space = _widths(floor)

    def sideways(room: str, left: frozenset[str]) -> float:
        middle = MARGIN + sum(widths[other] + space for other in left) + (space + widths[room]) / 2
        return sum((middle - x) ** 2 for one, x in ends if one == room)

    @functools.cache
    def others(left: frozenset[str]) -> tuple[float, list[str]]:
        """How far those go that are not `left`, in their best order."""
        choices = []
        for room in floor:
            if room not in left:
                far, order = others(left | {room})
                choices.append((sideways(room, left) + far, [room, *order]))
        return min(choices, key=lambda choice: choice[0], default=(0.0, []))

    return others(frozenset())[1]


def _widths(floor: list[str]) -> tuple[dict[str, float], float]:
    """Width of each room and of each arrow that passes, and the space between two; pixels."""
    widths: dict[str, float] = {room: PASSAGE if room.startswith(PASSING) else BOX[0] for room in floor}
    return widths, (WIDTH - 2 * MARGIN - sum(widths.values())) / len(floor)


def _places(floors: list[list[str]]) -> list[dict[str, float]]:
    """By floor: the middle of each room and of each arrow that passes, pixels from the left."""
    found = []
    for floor in floors:
        widths, space = _widths(floor)
        starts = itertools.accumulate((width + space for width in widths.values()), initial=MARGIN + space / 2)
        found.append({room: start + widths[room] / 2 for room, start in zip(floor, starts, strict=False)})
    return found


def _arrows(places: list[dict[str, float]], rooms: Graph) -> list[tuple[tuple[float, int], tuple[float, int], bool]]:
    """Pieces of arrows from (x, floor) to (x, next floor), and whether they end there."""
    return sorted(
        ((places[n][one], n), (places[m][other], m), ends) for (one, n), (other, m), ends in _pieces(places, rooms)
    )


def _pieces(floors: Sequence[Iterable[str]], rooms: Graph) -> set[tuple[tuple[str, int], tuple[str, int], bool]]:
    """Pieces of arrows from (room, floor) to (room, next floor), and whether they end there."""
    floor_of = {room: n for n, floor in enumerate(floors) for room in floor if not room.startswith(PASSING)}
    found = set()
    for room, below in rooms.items():
        for other in below:
            start = room, floor_of[room]
            for n in range(floor_of[room] + 1, floor_of[other]):
                found.add((start, (f"{PASSING}{other}", n), False))
                start = f"{PASSING}{other}", n
            found.add((start, (other, floor_of[other]), True))
    return found


def main() -> int:
    """Draw the house, and say which circles it has; 1 where it has any."""
    graph = graph_of(files_of())
    found = circles(graph) + circles(rooms_of(graph))
    for circle in found:
        print("circle: " + " -> ".join([*circle, circle[0]]))
    if not found:
        picture = ROOT / "docs" / "house.svg"
        picture.write_text(draw(graph), encoding="utf-8")
        arrows = sum(map(len, graph.values()))
        print(f"no circles: {len(graph)} modules, {arrows} imports; drawn in {picture.relative_to(ROOT)}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
