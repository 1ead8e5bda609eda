"""Export of a whole run to a folder, one tile at a time: a FITS file per tile, a picture, MOCs and HiPS."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveybridge.jobs.drawing.overview import Overview
from surveybridge.jobs.running.progress import progress
from surveybridge.storage.fits_mosaics import about, fits_bytes, mosaic_hdus, provenance_cards
from surveybridge.storage.footprint import Box, around, core_boxes, global_wcs, header_box, moc_hdus, moc_of
from surveybridge.storage.hips import check_reproject, write_hips
from surveybridge.storage.mosaics import MosaicHeader, StitchedMosaic, TileMosaic, header_from, stitch
from surveybridge.storage.problems import wanted_end
from surveybridge.storage.published import standing_rows
from surveybridge.storage.tiles import TileStore
from surveybridge.storage.units import njy_per_unit

if TYPE_CHECKING:
    from mocpy import MOC

    from surveybridge.storage.objectstore import Folder
    from surveybridge.storage.runs import RunFolder

CACHE_BYTES = 1 << 30
"""Tiles kept in memory while HiPS tiles are made of them."""

SQUARE_DEGREES = 4 * np.pi * np.degrees(1) ** 2
"""Area of the whole sky."""


def export_folder(
    source: RunFolder,
    ledger: pa.Table,
    out: Folder,
    wanted: Collection[str],
    *,
    store: str | None = None,
    lossless: bool = False,
) -> None:
    """Write what was asked for, and print where it is.

    Parameters
    ----------
    source
        The run.
    ledger
        Its ledger, with an ok tile at least.
    out
        Gets `fits/<tile>.fits`, `overview.png`, `footprint.moc.fits`, `failed.moc.fits`, `hips/<plane>_<band>/`.
    wanted
        Of fits, png, moc, hips.
    store
        Where the run's tile store lies now, for the places of failed tiles; by default where the run found it.
    lossless
        As `mosaic_hdus`.
    """
    if "hips" in wanted:
        check_reproject()
    ok = ledger.filter(pc.equal(ledger["status"], "ok"))
    tiles: list[str] = ok["tile_id"].to_pylist()
    headers = source.mosaic_headers(tiles)
    whole = around(map(header_box, headers))
    # before the hours that the rest may take: this refuses where the store's manifest is gone
    if "moc" in wanted:
        _put_mocs(source, store, ledger, headers, out)
    overview = Overview(whole, wanted_end(source.run_json)) if "png" in wanted else None
    if "fits" in wanted or overview is not None:
        for index, tile_id in enumerate(progress(tiles, "export")):
            tile = source.read_tile_mosaic(tile_id)
            if "fits" in wanted:
                mosaic = StitchedMosaic(tile.mean, tile.std, tile.coverage, tile.wcs_header, tile.unit)
                hdus = mosaic_hdus(mosaic, tile.bands, source.run_json, ok.slice(index, 1), lossless=lossless)
                out.put(fits_bytes(hdus), "fits", f"{tile_id}.fits")
            if overview is not None:
                overview.add(tile.mean, tile.std, tile.core_origin)
    if "fits" in wanted:
        print(f"{out.file_url('fits')}: {len(tiles)} tiles")
    if overview is not None:
        overview.put(out, "overview.png", about(source.run_json))
    if "hips" in wanted:
        _put_hips(source, ledger, headers, whole, out)


def source_manifest(source: RunFolder, store: str | None) -> pa.Table:
    """The manifest of the store that a run translated, which may lie elsewhere now."""
    return TileStore.open(store or source.store_url).manifest()


def places(source: RunFolder, ledger: pa.Table, store: str | None) -> dict[str, Box]:
    """Cores of the tiles of a ledger: as it says, and before version 4 as the store says of tiles of the same content.

    Raises
    ------
    StorageError
        If it does not say, and there is no store.
    """
    found = core_boxes(ledger)
    if len(found) == ledger.num_rows:
        return found
    # of the manifest's rows those of tiles in the ledger, with the content that is there
    return core_boxes(standing_rows(ledger, source_manifest(source, store))) | found


def _put_mocs(
    source: RunFolder, store: str | None, ledger: pa.Table, headers: Sequence[MosaicHeader], out: Folder
) -> None:
    """Cores of the ok tiles, and of those that failed or were quarantined (an empty MOC where none did)."""
    failed: list[str] = ledger.filter(pc.not_equal(ledger["status"], "ok"))["tile_id"].to_pylist()
    where = places(source, ledger, store) if failed else {}
    wcs = global_wcs(headers[0])
    cards = {key: value for key, value, _ in provenance_cards(source.run_json)}
    for name, boxes, what in (
        ("footprint", [header_box(header) for header in headers], "cores of the tiles that are translated"),
        ("failed", [where[tile] for tile in failed if tile in where], "cores of the tiles that failed"),
    ):
        moc = moc_of(boxes, wcs)
        file = f"{name}.moc.fits"
        out.put(fits_bytes(moc_hdus(moc, cards, [f"{what}: {len(boxes)}"])), file)
        print(f"{out.file_url(file)}: {len(boxes)} tiles, {moc.sky_fraction * SQUARE_DEGREES:.4g} square degrees")


def _put_hips(source: RunFolder, ledger: pa.Table, headers: Sequence[MosaicHeader], whole: Box, out: Folder) -> None:
    """`hips/mean_<band>` and `hips/std_<band>`, each with the MOC of the footprint in it."""
    first = headers[0]
    y0, y1, x0, x1 = whole
    corner = header_from(first.wcs_header, y0 - first.core_origin[0], x0 - first.core_origin[1])
    moc = moc_of(map(header_box, headers), global_wcs(first))
    reader = _Planes(source, headers, (y0, x0))
    tile = reader.read_tile(first.tile_id)
    sigma = float(np.nanmedian(tile.std))
    cuts = {"mean": (-2 * sigma, 30 * sigma), "std": (0.0, 5 * sigma)}
    if njy_per_unit(first.unit) is None:  # no sky around zero
        low, high = np.nanpercentile(tile.mean, [1, 99])
        cuts["mean"] = (float(low), float(high))
    for plane in ("mean", "std"):
        for index, band in enumerate(first.bands):
            name = f"{plane}_{band}"
            with tempfile.TemporaryDirectory() as scratch:
                target = Path(out.path("hips", name)) if out.is_local else Path(scratch) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                write_hips(
                    target,
                    functools.partial(reader.read, plane, index),
                    corner,
                    (y1 - y0, x1 - x0),
                    _properties(source, ledger, name, first.unit, cuts[plane]),
                )
                _finish(target, moc, out, name)
            print(f"{out.file_url('hips', name)}: HiPS, for Aladin")


def _finish(target: Path, moc: MOC, out: Folder, name: str) -> None:
    """Add the footprint, and copy everything to its destination if that is not here."""
    moc.save(str(target / "Moc.fits"), format="fits")
    if not out.is_local:
        for file in sorted(path for path in target.rglob("*") if path.is_file()):
            out.put(file.read_bytes(), "hips", name, *file.relative_to(target).parts)


class _Planes:
    """Pixels of a box of the mosaic, from the tiles that touch it; the tiles read last stay in memory."""

    def __init__(self, source: RunFolder, headers: Sequence[MosaicHeader], origin: tuple[int, int]) -> None:
        self.headers = headers
        self.origin = origin
        self.boxes = np.array([header_box(header) for header in headers])
        height, width = np.max([header.shape for header in headers], axis=0)
        tile_bytes = 4 * (2 * len(headers[0].bands) + 1) * int(height) * int(width)
        cached = functools.lru_cache(maxsize=max(4, CACHE_BYTES // tile_bytes))
        self.read_tile: functools._lru_cache_wrapper[TileMosaic] = cached(source.read_tile_mosaic)

    def read(self, plane: str, index: int, box: Box) -> NDArray[np.float32]:
        """Return band `index` of mean or std in a box that counts from `origin`; NaN where there is no tile."""
        y0, y1, x0, x1 = (n + self.origin[axis] for axis, n in zip((0, 0, 1, 1), box, strict=True))
        b = self.boxes
        touching = np.flatnonzero((b[:, 0] < y1) & (b[:, 1] > y0) & (b[:, 2] < x1) & (b[:, 3] > x0))
        if not touching.size:
            return np.full((y1 - y0, x1 - x0), np.nan, np.float32)
        stitched = stitch([self.headers[i] for i in touching.tolist()], self.read_tile, (y0, y1, x0, x1))
        planes: NDArray[np.float32] = getattr(stitched, plane)
        return planes[index]


def _properties(source: RunFolder, ledger: pa.Table, name: str, unit: str, cuts: tuple[float, float]) -> dict[str, str]:
    """Return a HiPS's description of itself (IVOA HiPS 1.0); `cuts` are the contrast with which a viewer begins."""
    run_id = str(source.run_json.get("run_id"))
    plane, _, band = name.partition("_")
    what = {"mean": "posterior mean", "std": "posterior standard deviation"}[plane]
    done = max(ledger["finished_at"].drop_null().to_pylist())
    return {
        "creator_did": f"ivo://surveybridge/P/{run_id}/{name}",
        "obs_title": f"SurveyBridge {run_id}, {band}: {what} (model-generated)",
        "obs_description": f"{about(source.run_json)} This plane: {what} of {band}, {unit} in a pixel of the mosaic.",
        "hips_creator": f"surveybridge {source.run_json.get('code_version')}",
        "hips_release_date": f"{done:%Y-%m-%dT%H:%MZ}",
        "hips_status": "private master clonableOnce",
        "hips_pixel_cut": f"{cuts[0]:.4g} {cuts[1]:.4g}",
    }
