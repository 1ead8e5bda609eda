"""From the FITS images of two surveys to a tile store on the Euclid pixel grid.

Everything that can be wrong with the request is found before the first byte is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from astropy.wcs.utils import wcs_to_celestial_frame

from surveybridge.storage.coregister import coregister
from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_images import Noise, read_mer, read_rubin
from surveybridge.storage.grids import describe_footprint, overlap_fraction, shifted_header
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.tiles import Tile, TileStore

MIN_TILE_SIZE = 64
"""Pixels: the window that the network sees."""

NATIVE_SCALE = {"lsst": 0.2, "euclid": 0.1}
"""arcsec per pixel of the survey itself."""


@dataclass(frozen=True)
class Field:
    """Both surveys on the Euclid pixel grid, ready to be cut."""

    lsst: SurveyImage
    euclid: SurveyImage

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.euclid.flux.shape[1:]
        return int(height), int(width)

    @property
    def grid_id(self) -> str:
        """Name of the pixel grid: a digest of its WCS and shape, so that the same grid has the same name anywhere."""
        return "euclid-" + hashlib.sha256(f"{self.euclid.wcs_header}{self.shape}".encode()).hexdigest()[:12]


def ingest_field(
    euclid_path: str,
    lsst_paths: Mapping[str, str],
    store_url: str,
    *,
    tile_size: int = 512,
    halo: int = 64,
    storage_options: Mapping[str, Any] | None = None,
    watch: Callable[[Iterable[Tile], int], Iterable[Tile]] | None = None,
    **how: Any,
) -> list[dict[str, Any]]:
    """Read, co-register, cut, and write a tile store.

    Parameters
    ----------
    euclid_path : str
        FITS file or URL, `FILE[EXT]` to name an extension.
    lsst_paths : mapping of band to path
        g, r and i.
    store_url : str
        Where the store goes, local or s3://.
    tile_size, halo : int
        Pixels of the Euclid grid; tiles at the edge are smaller, halos end at the field's edge.
    storage_options : mapping, optional
        For fsspec, input files and store alike.
    watch : callable (tiles, total) -> tiles, optional
        Wrapped around the tiles as they are written: a progress bar.
    **how
        Passed to `read_field`.

    Returns
    -------
    list of dict
        Rows of the manifest.

    Raises
    ------
    StorageError
        The request is wrong; nothing has been written.
    """
    check_tiling(tile_size, halo)
    field = read_field(euclid_path, lsst_paths, storage_options=storage_options, **how)
    boxes = [box for box in tile_boxes(field.shape, tile_size, halo) if _has_data(field, box)]
    if not any(len(cut_tile(field, box).images) == 2 for box in boxes):
        raise StorageError(
            f"{euclid_path}: no tile in which both surveys have usable pixels (of {len(boxes)} with any); give images "
            "whose unmasked areas overlap"
        )
    store = TileStore.create(store_url, grid_id=field.grid_id, storage_options=storage_options)
    tiles: Iterable[Tile] = (cut_tile(field, box) for box in boxes)
    rows = [store.write_tile(tile) for tile in (watch(tiles, len(boxes)) if watch else tiles)]
    store.write_manifest(rows)
    return rows


def read_field(
    euclid_path: str,
    lsst_paths: Mapping[str, str],
    *,
    euclid_rms: str | None = None,
    euclid_psf_fwhm: float | None = None,
    euclid_noise: Noise = "file",
    lsst_psf_fwhm: Mapping[str, float] | None = None,
    lsst_noise: Noise = "auto",
    storage_options: Mapping[str, Any] | None = None,
) -> Field:
    """Read both surveys and bring LSST onto the Euclid grid.

    Parameters
    ----------
    euclid_path, lsst_paths
        As `ingest_field`.
    euclid_rms : str, optional
        RMS map in a file of its own.
    euclid_psf_fwhm, lsst_psf_fwhm : float, mapping of band to float, optional
        arcsec; override what the files say.
    euclid_noise, lsst_noise : "auto", "file" or "sky"
        As `read_rubin`.
    storage_options : mapping, optional
        For fsspec.

    Raises
    ------
    StorageError
        A file is unusable, or the surveys do not overlap.
    """
    euclid = read_mer(
        euclid_path, euclid_rms, noise=euclid_noise, psf_fwhm=euclid_psf_fwhm, storage_options=storage_options
    )
    lsst = read_rubin(lsst_paths, noise=lsst_noise, psf_fwhm=lsst_psf_fwhm, storage_options=storage_options)
    frame = wcs_to_celestial_frame(euclid.wcs).name
    if frame != "icrs":
        raise StorageError(
            f"{euclid_path}: celestial frame {frame}, expected icrs, in which catalogue positions are given; "
            "convert the WCS (RADESYS = 'ICRS')"
        )
    shapes = [image.flux.shape[1:] for image in (euclid, lsst)]
    covered = overlap_fraction(euclid.wcs, shapes[0], lsst.wcs, shapes[1])
    if covered == 0 and overlap_fraction(lsst.wcs, shapes[1], euclid.wcs, shapes[0]) == 0:
        raise StorageError(
            f"surveys do not overlap: {euclid_path} is at {describe_footprint(euclid.wcs, shapes[0])}, "
            f"{lsst_paths['g']} at {describe_footprint(lsst.wcs, shapes[1])}; give images of the same sky"
        )
    notes = {"domain": describe_domain(lsst, euclid), "lsst_coverage": f"{covered:.4f} of the Euclid grid"}
    lsst = coregister(lsst, euclid.wcs_header, (int(shapes[0][0]), int(shapes[0][1])))
    return Field(
        lsst=replace(lsst, provenance=lsst.provenance | notes),
        euclid=replace(euclid, provenance=euclid.provenance | notes),
    )


def describe_domain(lsst: SurveyImage, euclid: SurveyImage) -> str:
    """Say whether these are the surveys that models are trained on: "in", or "out: " and what stands in for what."""
    reasons = []
    for image in (lsst, euclid):
        filters = {band: image.provenance.get(f"{band}.filter", "not stated") for band in image.bands}
        # Rubin's physical filters are g_6, r_57, i_39; a file that states no filter is taken at its word
        strange = [
            f"{name} as {band}"
            for band, name in filters.items()
            if name != "not stated" and name.lower().removeprefix("lsst_").split("_")[0] != band.lower()
        ]
        if strange:
            reasons.append(f"{image.survey} bands are {', '.join(strange)}")
        native = NATIVE_SCALE[image.survey]
        if abs(image.pixel_scale / native - 1) > 0.05:
            reasons.append(f'{image.survey} pixels are {image.pixel_scale:.3g}", not {native:g}"')
    return "out: " + "; ".join(reasons) if reasons else "in"


@dataclass(frozen=True)
class TileBox:
    """Where a tile lies on the grid, half-open global pixels: what it owns (core) and what it holds (outer)."""

    tile_id: str
    core: tuple[int, int, int, int]
    outer: tuple[int, int, int, int]


def tile_boxes(shape: tuple[int, int], tile_size: int, halo: int) -> Iterator[TileBox]:
    """Cut a grid into tiles, row-major, t0000 first. Cores partition the grid; halos end at its edge."""
    height, width = shape
    corners = [(y, x) for y in range(0, height, tile_size) for x in range(0, width, tile_size)]
    for number, (y, x) in enumerate(corners):
        core = (y, min(y + tile_size, height), x, min(x + tile_size, width))
        outer = (max(y - halo, 0), min(core[1] + halo, height), max(x - halo, 0), min(core[3] + halo, width))
        yield TileBox(f"t{number:04d}", core, outer)


def cut_tile(field: Field, box: TileBox) -> Tile:
    """Cut one tile; a survey without a usable pixel in it is None."""
    y0, y1, x0, x1 = box.outer
    core = (box.core[0] - y0, box.core[1] - y0, box.core[2] - x0, box.core[3] - x0)
    header = shifted_header(field.euclid.wcs_header, y0, x0)
    images = {}
    for image in (field.lsst, field.euclid):
        cut = np.s_[:, y0:y1, x0:x1]
        if (image.mask[cut] == 0).any():
            images[image.survey] = replace(
                image, flux=image.flux[cut], variance=image.variance[cut], mask=image.mask[cut], wcs_header=header
            )
    return Tile(box.tile_id, images.get("lsst"), images.get("euclid"), core, (y0, x0), field.grid_id)


def check_tiling(tile_size: int, halo: int) -> None:
    """Refuse a tiling that cannot be translated."""
    if tile_size < MIN_TILE_SIZE:
        raise StorageError(f"tile size {tile_size} px is below {MIN_TILE_SIZE} px, the network's window; enlarge it")
    if halo < 0:
        raise StorageError(f"halo {halo} px is negative; give 0 or more")


def _has_data(field: Field, box: TileBox) -> bool:
    y0, y1, x0, x1 = box.outer
    return any(bool((image.mask[:, y0:y1, x0:x1] == 0).any()) for image in (field.lsst, field.euclid))
