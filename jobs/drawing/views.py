"""Parts of the figures of a run: what is shown, on which scale, and the views, marks, bars and captions one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from surveybridge.jobs.drawing.rendering import GREY, Image, bright, noise

CANDIDATE, TRUE_LENS = "#d62728", "#1f77b4"
_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True)
class Field:
    """Everything a panel shows, on one pixel grid: images in nJy with NaN where unknown, places in pixels.

    Parameters
    ----------
    lsst : ndarray [3, H, W] float32
        i, r, g: what becomes red, green and blue.
    euclid : ndarray [H, W] float32
        VIS.
    mean, std : ndarray [C, H, W] float32
        The translation, and its standard deviation.
    bands : tuple of str
        Of mean and std.
    scale : float
        Pixel side, arcsec.
    north : ndarray [2] float64
        Unit vector along x, y.
    candidates : ndarray [N, 2] float64
        Their x, y, in the order of their ranks.
    lenses : ndarray [L, 2] float64
        The true lenses' x, y.
    """

    lsst: Image
    euclid: Image
    mean: Image
    std: Image
    bands: tuple[str, ...]
    scale: float
    north: NDArray[np.float64]
    candidates: NDArray[np.float64]
    lenses: NDArray[np.float64]

    def cut(self, x0: int, y0: int, side: int) -> Field:
        """A square part; places move along."""
        here = (..., slice(y0, y0 + side), slice(x0, x0 + side))
        images = (self.lsst[here], self.euclid[here], self.mean[here], self.std[here])
        places = (self.candidates - [x0, y0], self.lenses - [x0, y0])
        return Field(*images, self.bands, self.scale, self.north, *places)


@dataclass(frozen=True)
class Scales:
    """How fluxes become brightness, the same in both rows; `lsst_sigma` [3] is the noise of i, r, g in nJy."""

    lsst_sigma: Image
    flux: Normalize
    std: Normalize

    @classmethod
    def of(cls, field: Field) -> Scales:
        """Stretches from the noise of the images themselves."""
        lsst = np.array([noise(plane) for plane in field.lsst], np.float32)
        shown = field.euclid if np.isfinite(field.euclid).any() else field.mean[-1]
        sigma = noise(shown)
        flux = AsinhNorm(linear_width=2.5 * sigma, vmin=-2 * sigma, vmax=bright(shown, 99.97, 100 * sigma))
        std = field.std[-1]
        spread = float(np.nanmedian(std)) if np.isfinite(std).any() else 1.0
        return cls(lsst, flux, AsinhNorm(linear_width=2 * spread, vmin=0, vmax=bright(std, 99.9, 10 * spread)))


def titles(field: Field) -> tuple[str, ...]:
    """What the five columns are."""
    to = "LSST gri" if len(field.bands) == 3 else field.bands[-1]
    return (
        "LSST gri, co-registered",
        "Euclid VIS",
        f"translated {to}: posterior mean",
        f"posterior standard deviation, {field.bands[-1]}",
        "top candidates on Euclid VIS",
    )


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def draw_image(
    axis: Axes, image: NDArray[np.floating[Any]], colours: str | None = None, norm: Normalize | None = None
) -> AxesImage:
    """Show one image without ticks, NaN in `GREY`.

    Parameters
    ----------
    axis : Axes
        Where.
    image : ndarray [H, W] or [H, W, 3]
        Fluxes in nJy, or red, green and blue in 0..1.
    colours, norm : str, Normalize
        Name of the colour map and scale of the fluxes; neither for a colour image.

    Returns
    -------
    AxesImage
        What `colour_bar` needs.
    """
    height, width = image.shape[:2]
    colour_map = colormaps[colours].with_extremes(bad=GREY) if colours else None
    drawn = axis.imshow(image, origin="lower", cmap=colour_map, norm=norm)
    axis.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5))
    return drawn


def mark(axis: Axes, field: Field) -> None:
    """Circles with ranks around candidates, squares around true lenses."""
    height, width = field.euclid.shape
    radius = max(0.018 * width, 1.2 / field.scale)
    for x, y in field.lenses:
        if -radius < x < width + radius and -radius < y < height + radius:
            corner, side = (x - 1.35 * radius, y - 1.35 * radius), 2.7 * radius
            axis.add_patch(Rectangle(corner, side, side, fill=False, ec=TRUE_LENS, lw=1.6))
    for rank, (x, y) in enumerate(field.candidates, start=1):
        if not (0 <= x < width and 0 <= y < height):
            continue
        axis.add_patch(Circle((x, y), radius, fill=False, ec=CANDIDATE, lw=1.6))
        below = y > height - 4 * radius
        place = (x, y - 1.45 * radius) if below else (x, y + 1.45 * radius)
        vertical = "top" if below else "bottom"
        label = axis.text(*place, str(rank), color=CANDIDATE, ha="center", va=vertical, weight="bold", clip_on=True)
        label.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.8})


def scale_bar(axis: Axes, field: Field, arcsec: float, colour: str) -> None:
    """A bar of known length in the lower left corner; halved until it takes at most half of the width."""
    height, width = field.euclid.shape
    while arcsec / field.scale > 0.5 * width:
        arcsec /= 2
    x, y, length = 0.05 * width, 0.05 * height, arcsec / field.scale
    axis.plot([x, x + length], [y, y], color=colour, lw=2.5, solid_capstyle="butt")
    axis.text(x + length / 2, y + 0.015 * height, f"{arcsec:g}″", color=colour, ha="center", va="bottom")


def compass(axis: Axes, field: Field) -> None:
    """North and east in the upper left corner."""
    height, width = field.euclid.shape
    length, start = 0.07 * width, np.array([0.12 * width, height - 0.12 * width])
    for name, direction in (("N", field.north), ("E", np.array([-field.north[1], field.north[0]]))):
        end = start + length * direction
        axis.annotate("", tuple(end), tuple(start), arrowprops={"arrowstyle": "->", "color": "white", "lw": 1.4})
        x, y = end + 0.022 * width * direction
        axis.text(x, y, name, color="white", ha="center", va="center")


def colour_bar(axis: Axes, drawn: AxesImage, label: str) -> None:
    """The scale of a drawn image, lying in `axis`, with round fluxes as ticks."""
    bar = axis.figure.colorbar(drawn, cax=axis, orientation="horizontal")
    bar.set_label(label)
    bar.set_ticks(_ticks(drawn.norm))
    bar.set_ticks([], minor=True)
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def legend(axis: Axes, field: Field) -> None:
    """Keys of the marks that are there, and of grey, under the view."""
    keys = [Line2D([], [], ls="", marker="o", mfc="none", mec=CANDIDATE, ms=11, mew=1.6, label="candidate, with rank")]
    if len(field.lenses):
        keys.append(Line2D([], [], ls="", marker="s", mfc="none", mec=TRUE_LENS, ms=11, mew=1.6, label="true lens"))
    keys.append(Line2D([], [], ls="", marker="s", mfc=GREY, mec="none", ms=11, label="masked, or no data"))
    axis.legend(handles=keys, loc="upper left", bbox_to_anchor=(-0.03, 0.0), frameon=False, ncols=2)


def rgb_caption(axis: Axes, scales: Scales) -> None:
    """The noise that the colour image is stretched by, under the view."""
    i, r, g = scales.lsst_sigma
    text = f"i, r, g as red, green, blue; asinh of the flux\nnoise {i:.2g}, {r:.2g}, {g:.2g} nJy / pixel"
    axis.text(0, -0.02, text, transform=axis.transAxes, va="top")


def _ticks(norm: Callable[..., Any]) -> list[float]:
    """Round fluxes inside the scale, as many as stand apart."""
    chosen: list[float] = []
    for tick in _TICKS:
        if norm(tick) <= 1 and (not chosen or norm(tick) - norm(chosen[-1]) > 0.05):
            chosen.append(tick)
    return chosen
