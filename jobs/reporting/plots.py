"""The common parts of a report's plots: their style, and how they get into the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, GREY, BLACK = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#8a8f98", "#1b1f24"
PALE = "#8fc1e3"
"""Told apart by all eyes (after Okabe & Ito 2008), and by lightness."""

WIDTH = 3.7
"""Inches: text of a panel is as large as that of the page where a phone shows it."""

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "legend.frameon": False,
    "svg.hashsalt": "surveybridge",  # equal plots are equal bytes
}


@dataclass(frozen=True)
class Panel:
    """A picture of the page: its data URL, and a description for those who cannot see it."""

    src: str
    alt: str


@dataclass(frozen=True)
class Plot:
    """A plot of the page, or why there is none.

    Parameters
    ----------
    heading : str
        Its title.
    caption : str
        How to read it; without a panel, why there is none.
    panels : tuple of Panel
        Side by side, or below each other where the page is narrow.
    """

    heading: str
    caption: str
    panels: tuple[Panel, ...] = ()


def panel(draw: Callable[[Axes], None], alt: str) -> Panel:
    """Return what `draw` puts into its axes, at the size at which a phone shows it."""
    with canvas(2.8) as figure:
        draw(figure.add_subplot())
        return Panel(svg_url(figure), alt)


@contextmanager
def canvas(height: float) -> Iterator[Figure]:
    """Return a figure of this height in inches, as wide as all panels, in the report's style."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure


def svg_url(figure: Figure) -> str:
    """A figure as a data URL of its SVG; call it inside `canvas`."""
    with io.BytesIO() as file:
        figure.savefig(file, format="svg", dpi=300, metadata={"Date": None})
        return data_url("image/svg+xml", file.getvalue())


def data_url(kind: str, data: bytes) -> str:
    """A file as a data URL, which the page carries in itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
