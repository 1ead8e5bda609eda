"""Where a run's tiles lie on the sky, and what became of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy.wcs import WCS
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from jobs.reporting.plots import BLACK, ORANGE, WIDTH, Panel, Plot, canvas, svg_url
from storage.grids import celestial_wcs

if TYPE_CHECKING:
    from storage.runs import RunFolder

HEADING = "Sky coverage"
COLOURS = {"ok": "#8fc1e3", "pending": "white", "failed": ORANGE, "quarantined": BLACK}
MARKERS = {"failed": "X", "quarantined": "D"}
"""Drawn over a tile at a size that is seen, however many tiles there are."""
EUCLID_PIXEL = 0.1 / 3600
"""Degrees; of the grid that tiles are made on, where no finished tile says it."""
RASTERED = 2000
"""So many tiles are drawn as pixels, since a browser is slow with as many shapes."""


def sky_plot(manifest: pa.Table | None, trouble: str | None, rows: pa.Table, grid: WCS | None) -> Plot:
    """Map the tiles' cores by status.

    Parameters
    ----------
    manifest : pyarrow.Table or None
        Tiles of the store, schema `MANIFEST`; None where it cannot be read, with the reason in `trouble`.
    trouble : str or None
        Why there is no manifest.
    rows : pyarrow.Table
        Ledger rows that stand.
    grid : WCS or None
        Of the tiles' pixel grid (`tile_grid`); None takes Euclid's pixels with north up.
    """
    if manifest is None:
        return Plot(HEADING, f"The tile store cannot be read, and only it knows where tiles lie: {trouble}")
    if manifest.num_rows == 0:
        return Plot(HEADING, "The tile store has no tiles.")
    statuses = tile_statuses(manifest, rows)
    counts = {status: int((statuses == status).sum()) for status in COLOURS}
    corners = tile_corners(manifest, grid)
    sky = _display(manifest)
    flat = sky.wcs_world2pix(corners.reshape(-1, 2), 0).reshape(corners.shape)
    low, high = flat.min((0, 1)), flat.max((0, 1))
    margin = 0.05 * float((high - low).max())
    width, height = high - low + 2 * margin
    with canvas(float(np.clip(WIDTH * height / width, 1.5, 4.5)) + 0.4) as figure:
        axes = figure.add_subplot(projection=sky)
        axes.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin))
        order = np.argsort([list(COLOURS).index(status) for status in statuses], kind="stable")
        axes.add_collection(
            PolyCollection(
                list(flat[order]),
                facecolors=[COLOURS[status] for status in statuses[order]],
                edgecolors="#5a6570",
                linewidths=min(0.6, 20 / np.sqrt(len(flat))),
                rasterized=len(flat) > RASTERED,
            ),
            autolim=False,
        )
        for status, marker in MARKERS.items():
            x, y = flat[statuses == status].mean(1).T
            size = float(np.clip(3000 / len(flat), 5, 40))
            axes.scatter(x, y, s=size, marker=marker, c=COLOURS[status], edgecolors="white", linewidths=0.7, zorder=3)
        for coordinate, label in zip(axes.coords, ("RA (ICRS, deg)", "Dec (ICRS, deg)"), strict=True):
            coordinate.set_format_unit("deg", decimal=True)
            coordinate.set_axislabel(label)
            coordinate.set_ticks(number=4)
            coordinate.grid(color="0.5", alpha=0.35, linewidth=0.5)
        figure.legend(handles=_legend(counts), loc="outside upper center", ncols=2)
        src = svg_url(figure)
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    outline = "its outline is that of a finished tile's grid" if grid is not None else "drawn as 0.1″ pixels, north up"
    return Plot(
        HEADING,
        f"Each shape is the core of a tile ({outline}). A cross marks a failed tile, a diamond one that was "
        "quarantined because it ended its process again and again. Pending tiles have no result yet, or were ingested "
        "anew.",
        (Panel(src, f"Map of the {len(flat)} tiles of the store in right ascension and declination: {said}."),),
    )


def tile_statuses(manifest: pa.Table, rows: pa.Table) -> NDArray[np.str_]:
    """Status of each tile of the manifest: that of its ledger row, or pending."""
    found = pc.index_in(manifest["tile_id"].combine_chunks(), value_set=rows["tile_id"].combine_chunks())
    return np.asarray(pc.fill_null(rows["status"].combine_chunks().take(found), "pending").to_pylist(), str)


def tile_corners(manifest: pa.Table, grid: WCS | None) -> NDArray[np.float64]:
    """Corners of the tiles' cores, [N, 4, (ra, dec)] in ICRS deg."""
    centres = np.stack([manifest["ra"].to_numpy(), manifest["dec"].to_numpy()], -1)
    size = np.stack([manifest["core_width"].to_numpy(), manifest["core_height"].to_numpy()], -1)
    pixels = grid or _north_up(*middle(centres), "TAN", EUCLID_PIXEL)
    offsets = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    corners = pixels.wcs_world2pix(centres, 0)[:, None] + offsets * size[:, None]
    return np.asarray(pixels.wcs_pix2world(corners.reshape(-1, 2), 0)).reshape(-1, 4, 2)


def tile_grid(run: RunFolder, rows: pa.Table) -> WCS | None:
    """The pixel grid that the run's tiles are cut from, as the mosaic of a finished one says it; None without one."""
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    return celestial_wcs(run.read_tile_mosaic(ok["tile_id"][0].as_py()).wcs_header) if ok.num_rows else None


def middle(centres: NDArray[np.float64]) -> tuple[float, float]:
    """Mean direction of [N, (ra, dec)] deg, right ascension in 0..360."""
    ra, dec = np.deg2rad(centres).T
    x, y, z = (np.cos(dec) * np.cos(ra)).mean(), (np.cos(dec) * np.sin(ra)).mean(), np.sin(dec).mean()
    return float(np.rad2deg(np.arctan2(y, x)) % 360), float(np.rad2deg(np.arctan2(z, np.hypot(x, y))))


def _display(manifest: pa.Table) -> WCS:
    """What the map is drawn in: equal-area around the tiles, pixels of an arcsecond, north up."""
    centres = np.stack([manifest["ra"].to_numpy(), manifest["dec"].to_numpy()], -1)
    return _north_up(*middle(centres), "ZEA", 1 / 3600)


def _north_up(ra: float, dec: float, projection: str, pixel: float) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---{projection}", f"DEC--{projection}"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [1, 1]
    wcs.wcs.cdelt = [-pixel, pixel]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    return wcs


def _legend(counts: dict[str, int]) -> list[Patch | Line2D]:
    return [
        Patch(facecolor=COLOURS[status], edgecolor="#5a6570", label=f"{status} ({count})")
        for status, count in counts.items()
    ]
