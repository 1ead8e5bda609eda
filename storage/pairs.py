"""Pair stores: stamps of the same sky position in both surveys, the training data of a bridge.

A Zarr v3 group with ``lsst`` [N, 64, 64, 3] gri, ``euclid`` [N, 64, 64] VIS and ``id`` [N]; float32 nJy per pixel, sky
subtracted; the numbers of the instruments in the group's attributes under ``bands``.

AS-Bridge's own data sets have the same layout in 8 bits: display values, whose flux is not known. Where a caller takes
them, they are given nominal fluxes, which its display turns back into the same values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from surveybridge.storage.coregister import resample_stamps
from surveybridge.storage.errors import DamagedData, StorageError, StorageUnavailable
from surveybridge.storage.objectstore import Folder, zarr_store
from surveybridge.storage.parquet import read_parquet

LSST_BANDS = ("g", "r", "i")
EUCLID_BANDS = ("VIS",)
GRIDS = ("mosaic", "cutout")

WHITE = {"lsst": (3000.0, 0.2), "euclid": (1500.0, 0.1)}
"""Flux in nJy that AS-Bridge's display shows white, and the pixel in arcsec that it is of."""

NOMINAL = {
    "g": {"pixel_arcsec": 0.2, "sigma_noise": 1.3},
    "r": {"pixel_arcsec": 0.2, "sigma_noise": 1.3},
    "i": {"pixel_arcsec": 0.2, "sigma_noise": 2.1},
    "VIS": {"pixel_arcsec": 0.1, "sigma_noise": 2.0},
}
"""Numbers of the instruments that 8-bit stores do not state: about LSST's ten years and Euclid's wide survey."""


LABELS = ("central_class", "blended_lsst")
"""What an evaluation asks of the table beside a pair store."""


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
    stored
        Pairs in the store, of which these may be a part.
    """

    lsst: NDArray[np.float32]
    euclid: NDArray[np.float32]
    pixel_scale: dict[str, float]
    noise: dict[str, float]
    name: str
    stored: int


def read_pairs(
    url: str,
    grid: str = "mosaic",
    start: int = 0,
    stop: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    *,
    eight_bit: bool = False,
) -> Pairs:
    """Read pairs `start` to `stop` (exclusive) of a store and bring them onto a grid; other chunks are not touched.

    Parameters
    ----------
    url
        Local path or fsspec URL of the Zarr group.
    grid
        ``mosaic``: the central half of the LSST stamp on the Euclid pixels; ``cutout``: as stored.
    start, stop
        Range of rows; by default to the end. A stop beyond the end is the end.
    eight_bit
        Take AS-Bridge's display values as well, with nominal fluxes.

    Raises
    ------
    StorageError
        Where it is no pair store, or the stamps' scales don't fit the grid.
    """
    if grid not in GRIDS:
        raise StorageError(f"grid {grid!r} is not one of {GRIDS}")
    lsst, euclid, attributes = _open(url, storage_options)
    display = lsst.dtype == np.uint8 and euclid.dtype == np.uint8
    if display and not eight_bit:
        raise StorageError(f"{url}: 8-bit display values have no flux; give stamps in nJy (float32)")
    numbers = NOMINAL if display else _numbers(attributes.get("bands"), url)
    scale_lsst, scale_euclid = numbers["g"]["pixel_arcsec"], numbers["VIS"]["pixel_arcsec"]
    ratio = round(scale_lsst / scale_euclid)
    if grid == "mosaic" and abs(ratio * scale_euclid - scale_lsst) > 1e-6:
        raise StorageError(
            f'{url}: LSST pixels of {scale_lsst:g}" are no multiple of Euclid\'s {scale_euclid:g}"; '
            "resample the stamps, or train on the cutout grid"
        )
    try:
        stamps = np.asarray(lsst[start:stop], dtype=np.float32)
        vis = np.asarray(euclid[start:stop], dtype=np.float32)[:, None]
    except StorageUnavailable:
        raise
    except Exception as error:  # a codec raises what it likes
        last = min(stop or lsst.shape[0], lsst.shape[0])
        reason = f"{type(error).__name__}: {error}"
        raise DamagedData(f"{url}: pairs {start} to {last} cannot be read ({reason}); write the store again") from error
    if display:
        stamps = np.stack([_nominal_flux(stamps[..., c], band) for c, band in enumerate(LSST_BANDS)], -1)
        vis = _nominal_flux(vis, "VIS")
    if not (np.isfinite(stamps).all() and np.isfinite(vis).all()):
        raise StorageError(
            f"{url}: pairs {start} to {start + len(vis)} hold NaN or infinite flux; leave such stamps out"
        )
    noise = {band: numbers[band]["sigma_noise"] for band in (*LSST_BANDS, *EUCLID_BANDS)}
    name = str(attributes.get("name", url.rstrip("/").rsplit("/", 1)[-1]))
    gri = np.ascontiguousarray(stamps.transpose(0, 3, 1, 2))
    pairs = Pairs(gri, vis, {"lsst": scale_lsst, "euclid": scale_euclid}, noise, name, lsst.shape[0])
    return pairs if grid == "cutout" else on_mosaic_grid(pairs)


def on_mosaic_grid(pairs: Pairs) -> Pairs:
    """Pairs on their own pixels, LSST's a multiple of Euclid's -> the central part of LSST on Euclid's pixels."""
    ratio = round(pairs.pixel_scale["lsst"] / pairs.pixel_scale["euclid"])
    return replace(
        pairs,
        lsst=resample_stamps(pairs.lsst.transpose(0, 2, 3, 1), scale=ratio, out=pairs.euclid.shape[-1]),
        pixel_scale={survey: pairs.pixel_scale["euclid"] for survey in pairs.pixel_scale},
        noise={band: sigma / ratio**2 if band in LSST_BANDS else sigma for band, sigma in pairs.noise.items()},
    )


def read_ids(url: str, start: int = 0, stop: int | None = None) -> list[str]:
    """Names of pairs `start` to `stop`: the store's array `id`, or NAME-NUMBER where it has none."""
    lsst, _, attributes = _open(url, None)
    count = lsst.shape[0] if stop is None else min(stop, lsst.shape[0])
    try:
        ids = zarr.open_array(zarr_store(Folder.at(url)), path="id", mode="r")
    except FileNotFoundError:
        name = attributes.get("name", url.rstrip("/").rsplit("/", 1)[-1])
        return [f"{name}-{number:06d}" for number in range(start, count)]
    return [str(value) for value in np.asarray(ids[start:count])]


def read_labels(url: str) -> dict[str, dict[str, Any]]:
    """`LABELS` by id from the table beside a pair store (NAME.parquet of NAME.zarr); empty without one."""
    path = url.rstrip("/").removesuffix(".zarr") + ".parquet"
    folder, _, name = path.rpartition("/")
    try:
        table = read_parquet(Folder.at(folder or ".").read(name))
    except FileNotFoundError:
        return {}
    known = table.select([name for name in ("id", *LABELS) if name in table.column_names])
    return {row["id"]: row for row in known.to_pylist() if "id" in row}


def _open(
    url: str, storage_options: Mapping[str, Any] | None
) -> tuple[zarr.Array[Any], zarr.Array[Any], dict[str, Any]]:
    """Arrays lsst and euclid and the attributes of a pair store."""
    try:
        group = zarr.open_group(zarr_store(Folder.at(url, storage_options)), mode="r")
        lsst, euclid = group["lsst"], group["euclid"]
    except (KeyError, FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise StorageError(
            f"{url}: not a pair store ({error}); it needs arrays lsst, euclid and the attribute bands"
        ) from error
    shapes: list[tuple[int, ...]] = [getattr(array, "shape", ()) for array in (lsst, euclid)]
    if (
        not isinstance(lsst, zarr.Array)
        or not isinstance(euclid, zarr.Array)
        or [len(shape) for shape in shapes] != [4, 3]
        or shapes[0][0] != shapes[1][0]
        or shapes[0][-1] != len(LSST_BANDS)
    ):
        raise StorageError(
            f"{url}: lsst is {shapes[0]} and euclid {shapes[1]}; a pair store has [N, H, W, 3] gri and [N, H, W] VIS"
        )
    return lsst, euclid, dict(group.attrs)


def _nominal_flux(values: NDArray[np.float32], band: str) -> NDArray[np.float32]:
    """Flux that AS-Bridge's display shows as a value 0..255: v / 255 = asinh(f / 3 sigma) / asinh(white / 3 sigma)."""
    softening = 3 * NOMINAL[band]["sigma_noise"]
    white = WHITE["euclid" if band == "VIS" else "lsst"][0]
    return np.asarray(softening * np.sinh(values / 255 * np.arcsinh(white / softening)), np.float32)


def _numbers(bands: Any, url: str) -> dict[str, dict[str, float]]:
    """Pixel scale and noise by band from the attribute `bands`."""
    numbers = {}
    for band in (*LSST_BANDS, *EUCLID_BANDS):
        try:
            numbers[band] = {key: float(bands[band][key]) for key in ("pixel_arcsec", "sigma_noise")}
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"{url}: the attribute bands has no number pixel_arcsec or sigma_noise for {band} ({error!r}); "
                "a pair store states both for g, r, i and VIS"
            ) from error
    return numbers
