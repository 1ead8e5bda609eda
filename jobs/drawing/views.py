"""Parts of the figures of a run: the data shown, their scales, and single views, marks, bars and captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from surveybridge.jobs.drawing.overlay import bar_length, directions
from surveybridge.jobs.drawing.rendering import GREY, Image, bright, log_scale, noise, noises
from surveybridge.storage.orientation import Orientation
from surveybridge.storage.problems import EndpointTable, bands_title, main_plane, rgb_planes

CANDIDATE, TRUE_LENS = "#d62728", "#1f77b4"
_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True)
class Field:
    """Everything a panel shows, on one pixel grid: images in their units with NaN where unknown, places in pixels.

    Parameters
    ----------
    ends : tuple of EndpointTable
        Both endpoints, the one with the objects second.
    images : tuple of ndarray [C, H, W] float32
        Of both.
    wanted : EndpointTable
        What was translated to.
    mean, std : ndarray [C, H, W] float32
        The translation, and its standard deviation.
    scale : float
        Pixel side, arcsec.
    directions : Orientation
        Of the grid, at its middle.
    candidates : ndarray [N, 2] float64
        Their x, y, in the order of their ranks.
    lenses : ndarray [L, 2] float64
        The true lenses' x, y.
    """

    ends: tuple[EndpointTable, EndpointTable]
    images: tuple[Image, Image]
    wanted: EndpointTable
    mean: Image
    std: Image
    scale: float
    directions: Orientation
    candidates: NDArray[np.float64]
    lenses: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.mean.shape[1:]
        return int(height), int(width)

    def main(self, place: int) -> Image:
        """The band [H, W] that stands for an endpoint in grey."""
        plane: Image = self.images[place][main_plane(self.ends[place])]
        return plane

    def cut(self, x0: int, y0: int, side: int) -> Field:
        """A square part; places move along."""
        here = (..., slice(y0, y0 + side), slice(x0, x0 + side))
        return replace(
            self,
            images=(self.images[0][here], self.images[1][here]),
            mean=self.mean[here],
            std=self.std[here],
            candidates=self.candidates - [x0, y0],
            lenses=self.lenses - [x0, y0],
        )


@dataclass(frozen=True)
class Scales:
    """Scales from pixel values to brightness, the same in both rows.

    `sigma` is the noise of what is shown as red, green and blue, [3], by endpoint; `grey` the scale of what is not;
    `flux` that of the endpoint with the objects, and of what is translated to it; `std` that of the uncertainty.
    """

    sigma: Mapping[str, Image]
    grey: Mapping[str, Normalize]
    flux: Normalize
    std: Normalize

    @classmethod
    def of(cls, field: Field) -> Scales:
        """Stretches from the noise of the images themselves."""
        planes = {end["name"]: rgb_planes(end) for end in field.ends}
        images = {end["name"]: image for end, image in zip(field.ends, field.images, strict=True)}
        wanted = main_plane(field.wanted)
        flux = grey_norm(field.ends[1], field.main(1) if np.isfinite(field.main(1)).any() else field.mean[wanted])
        std = field.std[wanted]
        spread = float(np.nanmedian(std)) if np.isfinite(std).any() else 1.0
        return cls(
            {name: noises(images[name][rgb]) for name, rgb in planes.items() if rgb},
            {field.ends[0]["name"]: grey_norm(field.ends[0], field.main(0)), field.ends[1]["name"]: flux},
            flux,
            AsinhNorm(linear_width=2 * spread, vmin=0, vmax=bright(std, 99.9, 10 * spread)),
        )


def grey_norm(end: EndpointTable, image: Image) -> Normalize:
    """Scale of an image in grey, from its own noise, or from its range where it is no flux."""
    if end["stretch"] == "log10":
        return log_scale(image)
    sigma = noise(image)
    return AsinhNorm(linear_width=2.5 * sigma, vmin=-2 * sigma, vmax=bright(image, 99.97, 100 * sigma))


def titles(field: Field) -> tuple[str, ...]:
    """Return the titles of the five columns."""
    other, main = (f"{end['title']} {end['bands'][main_plane(end)]}" for end in field.ends)
    first, second = (
        bands_title(end) if end["rgb"] else plain for end, plain in zip(field.ends, (other, main), strict=True)
    )
    band = field.wanted["bands"][main_plane(field.wanted)]
    to = bands_title(field.wanted) if field.wanted["rgb"] else band
    return (
        f"{first}, co-registered",
        second,
        f"translated {to}: posterior mean",
        f"posterior standard deviation, {band}",
        f"top candidates on {main}",
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
        Values, or red, green and blue in 0..1.
    colours, norm : str, Normalize
        Name of the colour map and scale of the values; neither for a colour image.

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
    height, width = field.shape
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
    height, width = field.shape
    while arcsec / field.scale > 0.5 * width:
        arcsec /= 2
    x, y, length = 0.05 * width, 0.05 * height, arcsec / field.scale
    axis.plot([x, x + length], [y, y], color=colour, lw=2.5, solid_capstyle="butt")
    axis.text(x + length / 2, y + 0.015 * height, f"{arcsec:g}″", color=colour, ha="center", va="bottom")


def compass(axis: Axes, field: Field) -> None:
    """North and east in the upper left corner."""
    height, width = field.shape
    length, start = 0.07 * width, np.array([0.12 * width, height - 0.12 * width])
    for name, direction in ((name, np.array(vector)) for name, vector in directions(field.directions).items()):
        end = start + length * direction
        axis.annotate("", tuple(end), tuple(start), arrowprops={"arrowstyle": "->", "color": "white", "lw": 1.4})
        x, y = end + 0.022 * width * direction
        axis.text(x, y, name, color="white", ha="center", va="center")


def stamp_marks(axis: Axes, found: Orientation, pixels: int) -> None:
    """A bar of known length and the directions on a stamp that `imshow` shows with its first row above."""
    side = pixels * found.pixel
    length, outline = bar_length(side) / found.pixel, [withStroke(linewidth=2.5, foreground="black")]
    x, y = 0.05 * pixels, 0.94 * pixels
    style: dict[str, Any] = {"color": "white", "path_effects": outline}
    axis.plot([x, x + length], [y, y], lw=1.8, solid_capstyle="butt", **style)
    text: dict[str, Any] = {"fontsize": 7.5, "ha": "center", "va": "center", "weight": "bold", **style}
    axis.text(x + length / 2, y - 0.07 * pixels, f"{bar_length(side):g}″", **text)
    for name, (right, up) in directions(found).items():
        start, reach = 0.2 * pixels, 0.11 * pixels
        axis.plot([start, start + reach * right], [start, start - reach * up], lw=1.2, **style)
        axis.text(start + 1.55 * reach * right, start - 1.55 * reach * up, name, **text)


def colour_bar(axis: Axes, drawn: AxesImage, label: str) -> None:
    """The scale of a drawn image, lying in `axis`, with round fluxes as ticks."""
    bar = axis.figure.colorbar(drawn, cax=axis, orientation="horizontal")
    bar.set_label(label)
    if not isinstance(drawn.norm, AsinhNorm):
        return
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


def rgb_caption(axis: Axes, end: EndpointTable, scales: Scales) -> None:
    """The noise that the colour image of an endpoint is stretched by, under the view."""
    noise = ", ".join(f"{sigma:.2g}" for sigma in scales.sigma[end["name"]])
    bands = ", ".join(end["rgb"] or ())
    text = f"{bands} as red, green, blue; asinh of the flux\nnoise {noise} {end['unit']} / pixel"
    axis.text(0, -0.02, text, transform=axis.transAxes, va="top")


def _ticks(norm: Callable[..., Any]) -> list[float]:
    """Round fluxes inside the scale, as many as stand apart."""
    chosen: list[float] = []
    for tick in _TICKS:
        if norm(tick) <= 1 and (not chosen or norm(tick) - norm(chosen[-1]) > 0.05):
            chosen.append(tick)
    return chosen
