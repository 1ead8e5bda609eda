"""Figures of a run: the field in five views, and the top candidates with their reconstructions.

Both endpoints are shown on the grid of the tiles, in their units per pixel. Grey is where nothing is known: masked
pixels, and places that no tile covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.wcs import WCS
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from surveybridge.jobs.drawing import views
from surveybridge.jobs.drawing.rendering import candidate_pictures, lupton_rgb
from surveybridge.jobs.drawing.rendering import views as candidate_views
from surveybridge.jobs.drawing.views import Field, Scales
from surveybridge.storage.celestial import celestial_wcs, sky_to_pixel
from surveybridge.storage.orientation import RunGrids, orientation
from surveybridge.storage.photometry import ab_zero_point
from surveybridge.storage.problems import ProblemTable, band_columns, main_plane, rgb_planes, shown_ends, wanted_end
from surveybridge.storage.query import query
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import CELL
from surveybridge.storage.tiles import TileStore
from surveybridge.storage.units import njy_per_unit

ZOOM = "#ffb000"
ZOOM_ARCSEC = 20.0
MATCH_ARCSEC = 1.0
"""A candidate this near to a true lens is that lens."""
_PANEL, _GAP = 5.0, 0.12
"""Side of a view and the space between views, inches."""
_STYLE: dict[Any, Any] = {"font.size": 10, "axes.titlesize": 12, "axes.linewidth": 0.6, "figure.facecolor": "white"}


def draw_panel(
    run_url: str,
    store_url: str,
    out_png: str | Path,
    truth: str | Path | pa.Table | None = None,
    top: int = 10,
) -> None:
    """Draw both endpoints, translated mean, its standard deviation and the top candidates; below, a part enlarged.

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
        If either URL is not what it should be, the run has no finished tile, or its mosaic would be larger than
        `RunFolder.read_mosaic` allows; that is refused before any pixel is read.
    """
    field = _read_field(run_url, store_url, truth, top)
    side = min(round(ZOOM_ARCSEC / field.scale), *field.shape)
    x0, y0 = _interesting(field, side)
    part, scales = field.cut(x0, y0, side), Scales.of(field)
    height, width = field.shape
    tall = _PANEL * height / width
    with rc_context(_STYLE):
        figure = Figure(figsize=(5 * _PANEL + 4 * _GAP + 0.2, tall + _PANEL + 1.25), dpi=110)
        FigureCanvasAgg(figure)
        for column, title in enumerate(views.titles(field)):
            left = 0.1 + column * (_PANEL + _GAP)
            above = views.axes_at(figure, left, 0.8 + _PANEL + _GAP, _PANEL, tall)
            below = views.axes_at(figure, left, 0.8, _PANEL, _PANEL)
            above.set_title(title, loc="left")
            _draw_view(above, field, column, scales, bar_arcsec=20)
            drawn = _draw_view(below, part, column, scales, bar_arcsec=5)
            above.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), side, side, fill=False, ec=ZOOM, lw=1.2))
            for spine in below.spines.values():
                spine.set(edgecolor=ZOOM, linewidth=2)
            if drawn is not None:
                unit = field.ends[column]["unit"] if column < 2 else field.wanted["unit"]
                what = "flux" if njy_per_unit(unit) else "value"
                label = f"{'standard deviation' if column == 3 else what}, {unit} / pixel"
                views.colour_bar(views.axes_at(figure, left + 0.2, 0.57, _PANEL - 0.4, 0.13), drawn, label)
            if column == 0:
                views.compass(above, field)
                if field.ends[0]["rgb"]:
                    views.rgb_caption(below, field.ends[0], scales)
            if column == 4:
                views.legend(below, field)
        figure.savefig(out_png, metadata={"Software": "surveybridge"})


def draw_candidates(run_url: str, out_png: str | Path, top: int = 10) -> None:
    """Draw the thumbnails of the top candidates: both endpoints, reconstruction and error, with score and coordinates.

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
        If `run_url` is not a run folder, or its run makes maps only.
    """
    rows = query(run_url, top=top).to_pylist()
    run = RunFolder.open(run_url)
    problem, grids = run.problem, RunGrids(run)
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
            _draw_candidate(axes, row, problem, headings=line == 0)
            found = grids.directions(row["tile_id"], row["ra"], row["dec"])
            if found is not None:
                views.stamp_marks(axes[0], found, CELL)
        if not rows:
            figure.text(0.5, 0.5, "this run has no candidates", ha="center", va="center")
        else:
            title = shown_ends(problem)[1]["title"]
            note = (
                f"{CELL} x {CELL} pixels{_of_sky(problem)}; {title} and reconstruction of a row share one asinh scale; "
                "reconstruction and error are model-generated"
            )
            figure.text(0.01, 0.06 / figure.get_figheight(), note, fontsize=9, color="0.35")
        figure.savefig(out_png, metadata={"Software": "surveybridge"})


def _of_sky(problem: ProblemTable) -> str:
    side = CELL * shown_ends(problem)[1]["pixel_scale"]
    return f" of the sky, {side:.3g}″ x {side:.3g}″" if side else ""


def _read_field(run_url: str, store_url: str, truth: str | Path | pa.Table | None, top: int) -> Field:
    """The run's mosaic, the store's images under it, candidates and true lenses."""
    run, store = RunFolder.open(run_url), TileStore.open(store_url)
    mosaic = run.read_mosaic()  # before the store, as it refuses what is too large
    tiles = run.ok_tiles()
    first = run.read_tile_mosaic(tiles[0])
    wcs, first_wcs = (celestial_wcs(header) for header in (mosaic.wcs_header, first.wcs_header))
    x0, y0 = np.round(first.core_origin[::-1] - (wcs.wcs.crpix - first_wcs.wcs.crpix)).astype(int)  # of the field
    shape = mosaic.coverage.shape
    ends = shown_ends(run.problem)
    images = (
        np.full((len(ends[0]["bands"]), *shape), np.nan, np.float32),
        np.full((len(ends[1]["bands"]), *shape), np.nan, np.float32),
    )
    for tile in (store.read_tile(tile_id, halo=0) for tile_id in tiles):  # never all in memory
        row, left = tile.core_origin[0] - y0, tile.core_origin[1] - x0
        there = (slice(None), slice(row, row + tile.shape[0]), slice(left, left + tile.shape[1]))
        for target, end in zip(images, ends, strict=True):
            if end["name"] in tile.images:
                image = tile.images[end["name"]]
                target[there] = np.where(image.valid, image.flux, np.nan)
    candidates = np.zeros((0, 2))
    if not run.maps_only:
        found = query(run_url, top=top, thumbnails=False)
        candidates = np.array([found["x"].to_numpy() - x0, found["y"].to_numpy() - y0], np.float64).T
    scale = float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600)
    ra, dec = (float(v) for v in wcs.all_pix2world((shape[1] - 1) / 2, (shape[0] - 1) / 2, 0))
    places = (candidates.reshape(-1, 2), _lenses(truth, wcs, shape))
    wanted = wanted_end(run.run_json)
    return Field(ends, images, wanted, mosaic.mean, mosaic.std, scale, orientation(wcs, ra, dec), *places)


def _lenses(truth: str | Path | pa.Table | None, wcs: WCS, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Pixel places of the true lenses inside the image, [L, 2]."""
    if truth is None:
        return np.zeros((0, 2))
    table = truth if isinstance(truth, pa.Table) else pq.read_table(truth, columns=["kind", "ra", "dec"])
    lens = np.array([kind == "lens" for kind in table["kind"].to_pylist()], bool)
    y, x = sky_to_pixel(wcs, table["ra"].to_numpy()[lens], table["dec"].to_numpy()[lens])
    inside = (x > -0.5) & (y > -0.5) & (x < shape[1] - 0.5) & (y < shape[0] - 0.5)
    return np.stack([x[inside], y[inside]], axis=-1)


def _interesting(field: Field, side: int) -> tuple[int, int]:
    """Corner (x0, y0) of the part to enlarge: the best candidate that is a lens, any lens, the best candidate."""
    height, width = field.shape
    near = np.linalg.norm(field.candidates[:, None] - field.lenses[None], axis=-1) * field.scale < MATCH_ARCSEC
    found = field.candidates[near.any(axis=1)]
    places = np.concatenate([found, field.lenses, field.candidates, [[width / 2, height / 2]]])
    x0, y0 = (np.round(places[0]) - side // 2).astype(int)
    return int(np.clip(x0, 0, width - side)), int(np.clip(y0, 0, height - side))


def _draw_view(axis: Axes, field: Field, column: int, scales: Scales, bar_arcsec: float) -> AxesImage | None:
    """Draw one of the five views; return what its colour bar needs, or None if it has no bar."""
    drawn = None
    if column == 3:
        drawn = views.draw_image(axis, field.std[main_plane(field.wanted)], "magma", scales.std)
    elif column == 4:
        shown = field.main(1) if np.isfinite(field.main(1)).any() else field.main(0)
        views.draw_image(axis, shown, "gray_r", scales.flux)
        views.mark(axis, field)
    else:
        end, image = [*zip(field.ends, field.images, strict=True), (field.wanted, field.mean)][column]
        planes = rgb_planes(end)
        if planes is not None:
            views.draw_image(axis, lupton_rgb(image[planes], scales.sigma[end["name"]]))
        else:
            drawn = views.draw_image(axis, image[main_plane(end)], "gray", scales.grey[end["name"]])
    views.scale_bar(axis, field, bar_arcsec, "black" if column == 4 else "white")
    return drawn


def _draw_candidate(axes: Sequence[Axes], row: dict[str, Any], problem: ProblemTable, headings: bool) -> None:
    """One row of thumbnails with its line of text."""
    pictures = candidate_pictures(row, problem)
    shown = {name: heading for name, heading in candidate_views(problem).items() if name != "residual"} | {
        "error": "error"
    }
    for axis, name in zip(axes, shown, strict=True):
        axis.imshow(pictures[name])
        axis.set(xticks=[], yticks=[])
    if headings:
        for axis, heading in zip(axes, shown.values(), strict=True):
            axis.set_title(heading, fontsize=11, pad=20)
    text = f"{row['rank']}.  score {row['score']:.3g}"
    if row["score_std"] is not None and np.isfinite(row["score_std"]):
        text += f" ± {row['score_std']:.2g}"
    text += f"    ra {row['ra']:.5f}  dec {row['dec']:+.5f}"
    catalog = shown_ends(problem)[1]
    band = catalog["bands"][0]
    flux, zero_point = row[f"flux_{band_columns(problem)[catalog['name'], band]}"], ab_zero_point(catalog["unit"])
    if flux is not None and flux > 0 and zero_point is not None:
        text += f"    {band} {zero_point - 2.5 * np.log10(flux):.1f} mag"
    axes[0].text(0, 1.03, text, transform=axes[0].transAxes, fontsize=9.5, va="bottom")
