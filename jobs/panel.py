"""Figures of a run: the field in five views, and the top candidates with what the model made of them.

Both surveys are shown on the Euclid pixel grid, in nJy per pixel. Grey is where nothing is known: masked pixels, and
places that no tile covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io.fits import Header
from astropy.wcs import WCS
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from storage.query import query
from storage.runs import RunFolder
from storage.tiles import TileStore

Image = NDArray[np.float32]

GREY = (0.55, 0.55, 0.58)
"""Colour of what is not known."""
CANDIDATE, TRUE_LENS, ZOOM = "#d62728", "#1f77b4", "#ffb000"
ZOOM_ARCSEC = 20.0
MATCH_ARCSEC = 1.0
"""A candidate this near to a true lens is that lens."""
_PANEL, _GAP = 5.0, 0.12
"""Side of a view and the space between views, inches."""
_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_RGB_WEIGHTS = np.array([0.8, 1.1, 1.7])[:, None, None]
"""Of i, r, g: a typical faint galaxy comes out neither red nor blue."""
_STYLE: dict[Any, Any] = {"font.size": 10, "axes.titlesize": 12, "axes.linewidth": 0.6, "figure.facecolor": "white"}


@dataclass(frozen=True)
class _Field:
    """Everything a panel shows, on one pixel grid: images [H, W] in nJy with NaN where unknown, places in pixels."""

    lsst: Image  # [3, H, W], i r g: what becomes red, green and blue
    euclid: Image
    mean: Image  # [C, H, W]
    std: Image
    bands: tuple[str, ...]
    scale: float
    north: NDArray[np.float64]  # [2], unit vector along x y
    candidates: NDArray[np.float64]  # [N, 2], x y, in the order of their ranks
    lenses: NDArray[np.float64]  # [L, 2], x y

    def cut(self, x0: int, y0: int, side: int) -> _Field:
        """A square part; places move along."""
        here = (..., slice(y0, y0 + side), slice(x0, x0 + side))
        images = (self.lsst[here], self.euclid[here], self.mean[here], self.std[here])
        places = (self.candidates - [x0, y0], self.lenses - [x0, y0])
        return _Field(*images, self.bands, self.scale, self.north, *places)


@dataclass(frozen=True)
class _Scales:
    """How fluxes become brightness, the same in both rows."""

    lsst_sigma: Image  # [3]
    flux: Normalize
    std: Normalize


def draw_panel(
    run_url: str,
    store_url: str,
    out_png: str | Path,
    truth: str | Path | pa.Table | None = None,
    top: int = 10,
) -> None:
    """Draw LSST, Euclid, translated mean, its standard deviation and the top candidates; below, a part enlarged.

    Parameters
    ----------
    run_url, store_url : str
        The run folder and the tile store that it was made from.
    out_png : path
        The figure: two rows of five views, each 550 pixels wide.
    truth : path or pyarrow.Table, optional
        Truth table of a simulated field (columns kind, ra, dec in degrees): rows of kind "lens" are marked.
    top : int
        How many candidates to mark.

    Raises
    ------
    StorageError
        If either URL is not what it should be, or the run has no finished tile.
    """
    field = _read_field(run_url, store_url, truth, top)
    side = min(round(ZOOM_ARCSEC / field.scale), *field.euclid.shape)
    x0, y0 = _interesting(field, side)
    scales = _scales(field)
    height, width = field.euclid.shape
    tall = _PANEL * height / width
    with rc_context(_STYLE):
        figure = Figure(figsize=(5 * _PANEL + 4 * _GAP + 0.2, tall + _PANEL + 1.25), dpi=110)
        FigureCanvasAgg(figure)
        part = field.cut(x0, y0, side)
        for column in range(5):
            left = 0.1 + column * (_PANEL + _GAP)
            above = _axes(figure, left, 0.8 + _PANEL + _GAP, _PANEL, tall)
            below = _axes(figure, left, 0.8, _PANEL, _PANEL)
            above.set_title(_titles(field)[column], loc="left")
            _draw_view(above, field, column, scales, bar_arcsec=20)
            drawn = _draw_view(below, part, column, scales, bar_arcsec=5)
            above.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), side, side, fill=False, ec=ZOOM, lw=1.2))
            for spine in below.spines.values():
                spine.set(edgecolor=ZOOM, linewidth=2)
            if drawn is not None:
                bar = figure.colorbar(
                    drawn, cax=_axes(figure, left + 0.2, 0.57, _PANEL - 0.4, 0.13), orientation="horizontal"
                )
                bar.set_label("standard deviation, nJy / pixel" if column == 3 else "flux, nJy / pixel")
                bar.set_ticks(_ticks(drawn.norm))
                bar.set_ticks([], minor=True)
                bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            if column == 0:
                _compass(above, field)
                below.text(0, -0.02, _rgb_caption(scales), transform=below.transAxes, va="top")
            if column == 4:
                below.legend(
                    handles=_legend(field), loc="upper left", bbox_to_anchor=(-0.03, 0.0), frameon=False, ncols=2
                )
        figure.savefig(out_png, metadata={"Software": "surveybridge"})


def draw_candidates(run_url: str, out_png: str | Path, top: int = 10) -> None:
    """Draw the thumbnails of the top candidates: LSST, Euclid, reconstruction and error, with score and coordinates.

    Parameters
    ----------
    run_url : str
        The run folder.
    out_png : path
        The figure.
    top : int
        How many; fewer if the run has fewer.

    Raises
    ------
    StorageError
        If `run_url` is not a run folder.
    """
    rows = query(run_url, top=top).to_pylist()
    blocks = 2 if len(rows) > 1 else 1
    lines = max(1, -(-len(rows) // blocks))
    with rc_context(_STYLE):
        figure = Figure(figsize=(8.6 * blocks, 2.25 * lines + 0.9), dpi=130)
        FigureCanvasAgg(figure)
        bottom, ceiling = 0.3 / figure.get_figheight(), 1 - 0.55 / figure.get_figheight()
        grid = figure.add_gridspec(
            lines, 4 * blocks + blocks - 1, left=0.01, right=0.99, bottom=bottom, top=ceiling, wspace=0.03, hspace=0.24,
            width_ratios=([1, 1, 1, 1, 0.12] * blocks)[:-1],
        )  # fmt: skip
        for k, row in enumerate(rows):
            line, block = k % lines, k // lines
            axes = [figure.add_subplot(grid[line, 5 * block + column]) for column in range(4)]
            _draw_candidate(axes, row, headings=line == 0)
        if not rows:
            figure.text(0.5, 0.5, "this run has no candidates", ha="center", va="center")
        else:
            note = (
                "64 x 64 pixels; Euclid and reconstruction of a row share one asinh scale; "
                "reconstruction and error are model-generated"
            )
            figure.text(0.01, 0.06 / figure.get_figheight(), note, fontsize=9, color="0.35")
        figure.savefig(out_png, metadata={"Software": "surveybridge"})


def lupton_rgb(flux: NDArray[np.floating[Any]], sigma: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Colour image by the asinh stretch of the summed flux that keeps colours (Lupton et al. 2004, eq. 1-2).

    Parameters
    ----------
    flux : ndarray [3, H, W]
        Red, green and blue, nJy; NaN where unknown.
    sigma : ndarray [3]
        Noise of each; the stretch is in units of it.

    Returns
    -------
    ndarray [H, W, 3] float64
        0..1; `GREY` where any band is unknown.
    """
    known = np.isfinite(flux).all(axis=0)
    weighted = np.nan_to_num(flux) * _RGB_WEIGHTS
    intensity = weighted.mean(axis=0)
    soft = 5.0 * float(np.sqrt(np.mean(np.square(np.ravel(sigma) * _RGB_WEIGHTS.ravel()))))
    lifted = np.maximum(intensity, 0.0) + 0.1 * soft  # the sky is dark grey, not black
    stretched = np.arcsinh(lifted / soft) / np.arcsinh(60.0)
    rgb = np.moveaxis((weighted + 0.1 * soft) * stretched / lifted, 0, -1)
    rgb = np.clip(rgb / np.maximum(rgb.max(axis=-1, keepdims=True), 1.0), 0, 1)  # keep the hue where it is too bright
    rgb[~known] = GREY
    return rgb


def _read_field(run_url: str, store_url: str, truth: str | Path | pa.Table | None, top: int) -> _Field:
    """The run's mosaic, the store's images under it, candidates and true lenses."""
    run, store = RunFolder.open(run_url), TileStore.open(store_url)
    mosaic = run.read_mosaic()
    tiles = run.ok_tiles()
    bands = run.read_tile_mosaic(tiles[0]).bands
    shape = mosaic.coverage.shape
    lsst, euclid = (np.full((n, *shape), np.nan, np.float32) for n in (3, 1))
    cores = {tile_id: store.read_tile(tile_id, halo=0) for tile_id in tiles}
    y0, x0 = (min(tile.core_origin[axis] for tile in cores.values()) for axis in (0, 1))
    for tile in cores.values():
        top_row, left = tile.core_origin[0] - y0, tile.core_origin[1] - x0
        there = (slice(None), slice(top_row, top_row + tile.shape[0]), slice(left, left + tile.shape[1]))
        for target, image in ((lsst, tile.lsst), (euclid, tile.euclid)):
            if image is not None:
                target[there] = np.where(image.valid, image.flux, np.nan)
    wcs = WCS(Header.fromstring(mosaic.wcs_header))
    found = query(run_url, top=top, thumbnails=False)
    candidates = np.array([found["x"].to_numpy() - x0, found["y"].to_numpy() - y0], np.float64).T
    scale = float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600)
    north = np.linalg.solve(wcs.pixel_scale_matrix, [0.0, 1.0])
    places = (candidates.reshape(-1, 2), _lenses(truth, wcs, shape))
    images = (lsst[::-1], euclid[0], mosaic.mean, mosaic.std)
    return _Field(*images, bands, scale, north / np.linalg.norm(north), *places)


def _lenses(truth: str | Path | pa.Table | None, wcs: WCS, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Pixel places of the true lenses inside the image, [L, 2]."""
    if truth is None:
        return np.zeros((0, 2))
    table = truth if isinstance(truth, pa.Table) else pq.read_table(truth, columns=["kind", "ra", "dec"])
    lens = np.array([kind == "lens" for kind in table["kind"].to_pylist()], bool)
    x, y = wcs.world_to_pixel_values(table["ra"].to_numpy()[lens], table["dec"].to_numpy()[lens])
    inside = (x > -0.5) & (y > -0.5) & (x < shape[1] - 0.5) & (y < shape[0] - 0.5)
    return np.stack([x[inside], y[inside]], axis=-1)


def _interesting(field: _Field, side: int) -> tuple[int, int]:
    """Corner (x0, y0) of the part to enlarge: the best candidate that is a lens, any lens, the best candidate."""
    height, width = field.euclid.shape
    near = np.linalg.norm(field.candidates[:, None] - field.lenses[None], axis=-1) * field.scale < MATCH_ARCSEC
    found = field.candidates[near.any(axis=1)]
    places = np.concatenate([found, field.lenses, field.candidates, [[width / 2, height / 2]]])
    x0, y0 = (np.round(places[0]) - side // 2).astype(int)
    return int(np.clip(x0, 0, width - side)), int(np.clip(y0, 0, height - side))


def _scales(field: _Field) -> _Scales:
    """Stretches from the noise of the images themselves."""
    lsst = np.array([_noise(plane) for plane in field.lsst], np.float32)
    shown = field.euclid if np.isfinite(field.euclid).any() else field.mean[-1]
    sigma = _noise(shown)
    flux = AsinhNorm(linear_width=2.5 * sigma, vmin=-2 * sigma, vmax=_bright(shown, 99.97, 100 * sigma))
    std = field.std[-1]
    spread = float(np.nanmedian(std)) if np.isfinite(std).any() else 1.0
    return _Scales(lsst, flux, AsinhNorm(linear_width=2 * spread, vmin=0, vmax=_bright(std, 99.9, 10 * spread)))


def _noise(image: Image) -> float:
    """Robust standard deviation of the pixels; 1 where nothing is known."""
    known = image[np.isfinite(image)]
    if known.size == 0:
        return 1.0
    return float(1.4826 * np.median(np.abs(known - np.median(known)))) or 1.0


def _bright(image: Image, percentile: float, least: float) -> float:
    """Upper end of a scale: a high percentile of what is known, but not below `least`."""
    known = image[np.isfinite(image)]
    return max(least, float(np.percentile(known, percentile))) if known.size else least


def _draw_view(axis: Axes, field: _Field, column: int, scales: _Scales, bar_arcsec: float) -> Any:
    """One of the five views; returns what a colour bar needs, or None for a colour image."""
    translated_to_lsst = len(field.bands) == 3
    drawn = None
    if column == 0 or (column == 2 and translated_to_lsst):
        axis.imshow(lupton_rgb(field.lsst if column == 0 else field.mean[::-1], scales.lsst_sigma), origin="lower")
    elif column == 3:
        drawn = axis.imshow(field.std[-1], origin="lower", cmap=_with_grey("magma"), norm=scales.std)
    elif column == 4:
        shown = field.euclid if np.isfinite(field.euclid).any() else field.lsst[0]
        axis.imshow(shown, origin="lower", cmap=_with_grey("gray_r"), norm=scales.flux)
    else:
        shown = field.euclid if column == 1 else field.mean[-1]
        drawn = axis.imshow(shown, origin="lower", cmap=_with_grey("gray"), norm=scales.flux)
    height, width = field.euclid.shape
    axis.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5))
    if column == 4:
        _mark(axis, field)
    _scale_bar(axis, field, bar_arcsec, "black" if column == 4 else "white")
    return drawn


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _mark(axis: Axes, field: _Field) -> None:
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


def _scale_bar(axis: Axes, field: _Field, arcsec: float, colour: str) -> None:
    """A bar of known length in the lower left corner."""
    height, width = field.euclid.shape
    while arcsec / field.scale > 0.5 * width:
        arcsec /= 2
    x, y, length = 0.05 * width, 0.05 * height, arcsec / field.scale
    axis.plot([x, x + length], [y, y], color=colour, lw=2.5, solid_capstyle="butt")
    axis.text(x + length / 2, y + 0.015 * height, f"{arcsec:g}″", color=colour, ha="center", va="bottom")


def _ticks(norm: Normalize) -> list[float]:
    """Round fluxes inside the scale, as many as stand apart."""
    chosen: list[float] = []
    for tick in _TICKS:
        if norm(tick) <= 1 and (not chosen or norm(tick) - norm(chosen[-1]) > 0.05):
            chosen.append(tick)
    return chosen


def _compass(axis: Axes, field: _Field) -> None:
    """North and east in the upper left corner."""
    height, width = field.euclid.shape
    length, start = 0.07 * width, np.array([0.12 * width, height - 0.12 * width])
    for name, direction in (("N", field.north), ("E", np.array([-field.north[1], field.north[0]]))):
        end = start + length * direction
        axis.annotate("", tuple(end), tuple(start), arrowprops={"arrowstyle": "->", "color": "white", "lw": 1.4})
        x, y = end + 0.022 * width * direction
        axis.text(x, y, name, color="white", ha="center", va="center")


def _draw_candidate(axes: Sequence[Axes], row: dict[str, Any], headings: bool) -> None:
    """One row of thumbnails with its line of text."""
    stamps = {
        name: np.asarray(row[f"thumbnail_{name}"], np.float32).reshape(-1, 64, 64)
        for name in ("lsst", "euclid", "mean", "error")
    }
    sigma = np.array([_noise(plane) for plane in stamps["lsst"]], np.float32)
    axes[0].imshow(lupton_rgb(stamps["lsst"][::-1], sigma[::-1]), origin="lower")
    noise = _noise(stamps["euclid"])
    flux = AsinhNorm(linear_width=3 * noise, vmin=-2 * noise, vmax=_bright(stamps["euclid"], 99.8, 30 * noise))
    for axis, name in zip(axes[1:3], ("euclid", "mean"), strict=True):
        axis.imshow(stamps[name][-1], origin="lower", cmap=_with_grey("gray"), norm=flux)
    error = np.abs(stamps["error"][-1])
    axes[3].imshow(error, origin="lower", cmap=_with_grey("magma"), vmin=0, vmax=_bright(error, 99.8, 1e-6))
    for axis, heading in zip(axes, ("LSST gri", "Euclid VIS", "reconstruction", "error"), strict=True):
        axis.set(xticks=[], yticks=[])
        if headings:
            axis.set_title(heading, fontsize=11, pad=20)
    text = f"{row['rank']}.  score {row['score']:.3g}"
    if row["score_std"] is not None and np.isfinite(row["score_std"]):
        text += f" ± {row['score_std']:.2g}"
    text += f"    ra {row['ra']:.5f}  dec {row['dec']:+.5f}"
    if row["flux_VIS"] is not None and row["flux_VIS"] > 0:
        text += f"    VIS {31.4 - 2.5 * np.log10(row['flux_VIS']):.1f} mag"
    axes[0].text(0, 1.03, text, transform=axes[0].transAxes, fontsize=9.5, va="bottom")


def _with_grey(name: str) -> Any:
    """A colour map that shows NaN in `GREY`."""
    return colormaps[name].with_extremes(bad=GREY)


def _titles(field: _Field) -> tuple[str, ...]:
    """What the five columns are."""
    to = "LSST gri" if len(field.bands) == 3 else field.bands[-1]
    return (
        "LSST gri, co-registered",
        "Euclid VIS",
        f"translated {to}: posterior mean",
        f"posterior standard deviation, {field.bands[-1]}",
        "top candidates on Euclid VIS",
    )


def _rgb_caption(scales: _Scales) -> str:
    """The noise that the colour image is stretched by."""
    i, r, g = scales.lsst_sigma
    return f"i, r, g as red, green, blue; asinh of the flux\nnoise {i:.2g}, {r:.2g}, {g:.2g} nJy / pixel"


def _legend(field: _Field) -> list[Line2D]:
    """Keys of the marks that are there, and of grey."""
    keys = [Line2D([], [], ls="", marker="o", mfc="none", mec=CANDIDATE, ms=11, mew=1.6, label="candidate, with rank")]
    if len(field.lenses):
        keys.append(Line2D([], [], ls="", marker="s", mfc="none", mec=TRUE_LENS, ms=11, mew=1.6, label="true lens"))
    keys.append(Line2D([], [], ls="", marker="s", mfc=GREY, mec="none", ms=11, label="masked, or no data"))
    return keys
