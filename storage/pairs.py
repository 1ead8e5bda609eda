"""Pair stores: stamps of the same sky position in both surveys, the training data of a bridge.

A Zarr v3 group with ``lsst`` [N, 64, 64, 3] gri, ``euclid`` [N, 64, 64] VIS and ``id`` [N]; float32 nJy per pixel, sky
subtracted; the numbers of the instruments in the group's attributes under ``bands``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import FsspecStore

from storage.coregister import resample_stamps
from storage.errors import StorageError

LSST_BANDS = ("g", "r", "i")
EUCLID_BANDS = ("VIS",)
GRIDS = ("mosaic", "cutout")


@dataclass(frozen=True)
class Pairs:
    """Stamps of both surveys on the grid of the network.

    Parameters
    ----------
    lsst
        float32 [N, 3, H, W] nJy per pixel.
    euclid
        float32 [N, 1, H, W] nJy per pixel.
    pixel_scale
        Arcsec by survey, on this grid.
    noise
        Standard deviation of the sky noise by band in nJy, scaled by pixel area to this grid's pixels.
    name
        Name of the store.
    """

    lsst: NDArray[np.float32]
    euclid: NDArray[np.float32]
    pixel_scale: dict[str, float]
    noise: dict[str, float]
    name: str


def read_pairs(
    url: str, grid: str = "mosaic", limit: int | None = None, storage_options: Mapping[str, Any] | None = None
) -> Pairs:
    """Read a pair store and bring it onto a grid.

    Parameters
    ----------
    url
        Local path or fsspec URL of the Zarr group.
    grid
        ``mosaic``: the central half of the LSST stamp on the Euclid pixels; ``cutout``: as stored.
    limit
        First so many pairs.

    Raises
    ------
    StorageError
        Where it is no pair store, or the stamps' scales don't fit the grid.
    """
    if grid not in GRIDS:
        raise StorageError(f"grid {grid!r} is not one of {GRIDS}")
    try:
        store = (
            FsspecStore.from_url(url, storage_options=dict(storage_options or {}), read_only=True)
            if "://" in url
            else url
        )
        group = zarr.open_group(store, mode="r")
        lsst, euclid = group["lsst"], group["euclid"]
        bands: Any = group.attrs["bands"]
    except (KeyError, FileNotFoundError, ValueError) as error:
        raise StorageError(
            f"{url}: not a pair store ({error}); it needs arrays lsst, euclid and the attribute bands"
        ) from error
    if not isinstance(lsst, zarr.Array) or not isinstance(euclid, zarr.Array) or lsst.shape[0] != euclid.shape[0]:
        raise StorageError(f"{url}: lsst and euclid must be arrays of equal length")
    scale_lsst, scale_euclid = bands["g"]["pixel_arcsec"], bands["VIS"]["pixel_arcsec"]
    ratio = round(scale_lsst / scale_euclid)
    if grid == "mosaic" and abs(ratio * scale_euclid - scale_lsst) > 1e-6:
        raise StorageError(f'{url}: LSST pixels of {scale_lsst}" are not a multiple of Euclid\'s {scale_euclid}"')
    stop = lsst.shape[0] if limit is None else min(limit, lsst.shape[0])
    stamps = np.asarray(lsst[:stop], dtype=np.float32)
    vis = np.asarray(euclid[:stop], dtype=np.float32)[:, None]
    noise = {band: float(bands[band]["sigma_noise"]) for band in (*LSST_BANDS, *EUCLID_BANDS)}
    name = str(group.attrs.get("name", url.rstrip("/").rsplit("/", 1)[-1]))
    if grid == "cutout":
        gri = np.ascontiguousarray(stamps.transpose(0, 3, 1, 2))
        return Pairs(gri, vis, {"lsst": scale_lsst, "euclid": scale_euclid}, noise, name)
    for band in LSST_BANDS:
        noise[band] /= ratio**2
    gri = resample_stamps(stamps, scale=ratio, out=vis.shape[-1])
    return Pairs(gri, vis, {"lsst": scale_euclid, "euclid": scale_euclid}, noise, name)
