"""The map of the tiles of runs on the sky, with the status of each."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy.wcs import WCS
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch
from numpy.typing import NDArray

from surveybridge.jobs.reporting.plots import BLACK, ORANGE, PALE, WIDTH, Panel, Plot, canvas, svg_url
from surveybridge.storage.celestial import celestial_wcs
from surveybridge.storage.problems import ProblemTable

if TYPE_CHECKING:
    from surveybridge.storage.runs import RunFolder

HEADING = "Sky coverage"
COLOURS = {"ok": PALE, "pending": "white", "failed": ORANGE, "quarantined": BLACK}
DRAWN = ("pending", "ok", "failed", "quarantined")
"""Later ones are drawn over earlier ones: what is pending in one run may be done in another."""
EDGE = "#5a6570"
MARKERS = {"failed": "X", "quarantined": "D"}
"""Drawn over a tile at a size that is seen, however many tiles there are."""
LABEL = 1.2
"""Inches that the label of a right ascension takes."""
RASTERED = 2000
"""So many tiles are drawn as pixels, since a browser is slow with as many shapes."""


@dataclass(frozen=True)
class Mapped:
    """A run, the tiles of its store (schema `MANIFEST`; None if unreadable, and why), its ledger rows that stand."""

    run: RunFolder
    manifest: pa.Table | None
    trouble: str | None
    rows: pa.Table


def sky_plot(runs: Sequence[Mapped], candidates: pa.Table | None, pixel: float) -> Plot:
    """Map the tiles' cores by status, and the candidates that the page shows.

    Parameters
    ----------
    runs : sequence of Mapped
        At least one.
    candidates : pyarrow.Table or None
        With ra and dec, ICRS deg; None where the run makes maps only.
    pixel : float
        arcsec, where no finished tile says it.
    """
    unknown = [(one.run.url, one.trouble) for one in runs if one.trouble is not None]
    reasons = "; ".join(f"{url}: {why}" if len(runs) > 1 else why for url, why in unknown)
    unreadable = f"The tile store cannot be read, and only it knows where tiles lie: {reasons}" if unknown else ""
    fields = [field for one in runs for field in _fields(one)]
    if not fields:
        return Plot(HEADING, unreadable or "The tile store has no tiles.")
    statuses = np.concatenate([tile_statuses(manifest, rows) for manifest, rows, _ in fields])
    corners = np.concatenate([tile_corners(manifest, grid, pixel) for manifest, _, grid in fields])
    sky = _north_up(*middle(corners.reshape(-1, 2)), "ZEA", 1 / 3600)
    flat = sky.wcs_world2pix(corners.reshape(-1, 2), 0).reshape(corners.shape)
    low, high = flat.min((0, 1)), flat.max((0, 1))
    low, high = low - 0.05 * (high - low).max(), high + 0.05 * (high - low).max()
    width, height = high - low
    counts = {status: int((statuses == status).sum()) for status in COLOURS}
    tall = float(np.clip(WIDTH * height / width, 1.5, 4.5))
    labels = int(np.clip(tall * width / height / LABEL, 1, 4))  # of right ascension, next to each other
    with canvas(tall + 0.4) as figure:
        axes = figure.add_subplot(projection=sky, xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        _draw_tiles(axes, flat, statuses)
        if candidates is not None:
            shown = sky.wcs_world2pix(_places(candidates), 0)
            axes.scatter(*shown.T, s=14, facecolors="none", edgecolors=BLACK, linewidths=0.7, zorder=4)
        named = (("RA (ICRS, deg)", labels), ("Dec (ICRS, deg)", 4))
        for coordinate, (label, number) in zip(axes.coords, named, strict=True):
            coordinate.set_format_unit("deg", decimal=True)
            coordinate.set_axislabel(label)
            coordinate.set_ticks(number=number)
            coordinate.grid(color="0.5", alpha=0.35, linewidth=0.5)
        handles = [
            Patch(facecolor=colour, edgecolor=EDGE, label=f"{status} ({counts[status]})")
            for status, colour in COLOURS.items()
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
        src = svg_url(figure)
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    outlines = [grid is not None for _, _, grid in fields]
    outline = "its outline is that of a finished tile's grid" if any(outlines) else ""
    if not all(outlines):
        plain = f"drawn as {pixel:g}″ pixels, north up"
        outline = f"{outline}, or {plain} where there is none" if outline else plain
    circles = "" if candidates is None else " Circles are the candidates below."
    return Plot(
        HEADING,
        f"Each shape is the core of a tile ({outline}). A cross marks a failed tile, a diamond one that was "
        "quarantined because it ended its process again and again. Pending tiles have no result yet, or were ingested "
        f"anew.{circles}" + (unreadable and f" {unreadable}"),
        (Panel(src, f"Map of the {len(flat)} tiles of the store in right ascension and declination: {said}."),),
    )


def _fields(mapped: Mapped) -> list[tuple[pa.Table, pa.Table, WCS | None]]:
    """The tiles of each pixel grid, their ledger rows, and the grid where it is known."""
    if mapped.manifest is None:
        return []
    found = []
    for grid_id in mapped.manifest["grid_id"].unique().to_pylist():
        same = pc.is_in(mapped.manifest["grid_id"], value_set=pa.array([grid_id], pa.string()))
        manifest = mapped.manifest.filter(same)
        rows = mapped.rows.filter(pc.is_in(mapped.rows["tile_id"], value_set=manifest["tile_id"].combine_chunks()))
        found.append((manifest, rows, tile_grid(mapped.run, rows)))
    return found


def tile_statuses(manifest: pa.Table, rows: pa.Table) -> NDArray[np.str_]:
    """Status of each tile of the manifest: that of its ledger row, or pending."""
    found = pc.index_in(manifest["tile_id"].combine_chunks(), value_set=rows["tile_id"].combine_chunks())
    return np.asarray(pc.fill_null(rows["status"].combine_chunks().take(found), "pending").to_pylist(), str)


def finest_pixel(problem: ProblemTable) -> float:
    """Pixel scale, arcsec, of the grid that tiles are made on, where no finished tile says it."""
    return min((end["pixel_scale"] for end in problem["endpoints"] if end["pixel_scale"]), default=1.0)


def tile_corners(manifest: pa.Table, grid: WCS | None, pixel: float) -> NDArray[np.float64]:
    """Corners of the tiles' cores, [N, 4, (ra, dec)] in ICRS deg; `pixel` as in `sky_plot`."""
    centres = _places(manifest)
    size = np.stack([manifest["core_width"].to_numpy(), manifest["core_height"].to_numpy()], -1)
    pixels = grid or _north_up(*middle(centres), "TAN", pixel / 3600)
    offsets = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    corners = pixels.wcs_world2pix(centres, 0)[:, None] + offsets * size[:, None]
    return np.asarray(pixels.wcs_pix2world(corners.reshape(-1, 2), 0)).reshape(-1, 4, 2)


def tile_grid(run: RunFolder, rows: pa.Table) -> WCS | None:
    """The pixel grid that the run's tiles are cut from, as the mosaic of a finished one says it; None without one."""
    for tile_id in rows.filter(pc.equal(rows["status"], "ok"))["tile_id"].slice(0, 1).to_pylist():
        with contextlib.suppress(FileNotFoundError):  # the catalog may have been kept without the mosaics
            return celestial_wcs(run.mosaic_headers([tile_id])[0].wcs_header)
    return None


def middle(centres: NDArray[np.float64]) -> tuple[float, float]:
    """Mean direction of [N, (ra, dec)] deg, right ascension in 0..360."""
    ra, dec = np.deg2rad(centres).T
    x, y, z = (np.cos(dec) * np.cos(ra)).mean(), (np.cos(dec) * np.sin(ra)).mean(), np.sin(dec).mean()
    return float(np.rad2deg(np.arctan2(y, x)) % 360), float(np.rad2deg(np.arctan2(z, np.hypot(x, y))))


def _draw_tiles(axes: Axes, corners: NDArray[np.float64], statuses: NDArray[np.str_]) -> None:
    order = np.argsort([DRAWN.index(status) for status in statuses], kind="stable")
    axes.add_collection(
        PolyCollection(
            list(corners[order]),
            facecolors=[COLOURS[status] for status in statuses[order]],
            edgecolors=EDGE,
            linewidths=min(0.6, 20 / np.sqrt(len(corners))),
            rasterized=len(corners) > RASTERED,
        ),
        autolim=False,
    )
    size = float(np.clip(3000 / len(corners), 5, 40))
    for status, marker in MARKERS.items():
        x, y = corners[statuses == status].mean(1).T
        edge = size / 50
        axes.scatter(x, y, s=size, marker=marker, c=COLOURS[status], edgecolors="white", linewidths=edge, zorder=3)


def _places(table: pa.Table) -> NDArray[np.float64]:
    """Columns ra and dec as [N, 2]."""
    return np.stack([table["ra"].to_numpy(), table["dec"].to_numpy()], -1)


def _north_up(ra: float, dec: float, projection: str, pixel: float) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---{projection}", f"DEC--{projection}"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [1, 1]
    wcs.wcs.cdelt = [-pixel, pixel]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    return wcs
