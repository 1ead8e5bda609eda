"""One survey image as a Zarr v3 group: `flux`, `variance` and `mask`, each one shard, and attributes for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import zarr

from surveybridge.storage.errors import DamagedData, StorageError
from surveybridge.storage.grids import shifted_header
from surveybridge.storage.images import MASK_PLANES, SurveyImage
from surveybridge.storage.shards import read_shard, write_shard
from surveybridge.storage.units import squared_unit

CHUNK = 256
"""Side of a chunk inside the shard, pixels: what cutout services and viewers fetch; workers read whole shards."""

_ARRAYS = ("flux", "variance", "mask")

_UNWRITTEN = np.uint8(255)
"""Fill value of masks: what a lost shard reads as elsewhere, and no ingest writes."""


def write_image(tile_group: zarr.Group, image: SurveyImage) -> None:
    """Write `image` as the group `<survey>` of its tile."""
    survey = tile_group.create_group(image.survey, attributes=_image_attributes(image))
    write_shard(survey, "flux", image.flux, np.float32(np.nan), CHUNK)
    write_shard(survey, "variance", image.variance, np.float32(np.nan), CHUNK)
    write_shard(survey, "mask", image.mask, _UNWRITTEN, CHUNK)


def array_paths(survey: str) -> list[str]:
    """Paths of a survey's arrays, relative to the tile."""
    return [f"{survey}/{name}" for name in _ARRAYS]


def read_image(
    metadata: Mapping[str, Mapping[str, Any]], shards: Mapping[str, bytes], survey: str, tile_id: str
) -> SurveyImage:
    """One survey, whole.

    Parameters
    ----------
    metadata : mapping of path to mapping
        The tile's zarr.json documents: the survey's and its arrays'.
    shards : mapping of path to bytes
        The arrays' shards.
    survey, tile_id : str
        Which.

    Raises
    ------
    DamagedData
        If an array or attribute is missing, a chunk fails its checksum, or a shard is gone.
    """
    arrays = {}
    for path in (survey, *array_paths(survey)):
        if path not in metadata:
            raise DamagedData(f"tile {tile_id}: {path} is missing; ingest the tile again")
    for name, path in zip(_ARRAYS, array_paths(survey), strict=True):
        if path not in shards:
            raise DamagedData(f"tile {tile_id}: {path} has lost its data; ingest the tile again")
        try:
            arrays[name] = read_shard(metadata[path], shards[path])
        except (ValueError, RuntimeError) as error:  # a checksum, a length, or Blosc's own complaint
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            raise DamagedData(f"tile {tile_id}: {path} cannot be read ({first_line}); ingest the tile again") from error
    try:
        a: dict[str, Any] = dict(metadata[survey]["attributes"])
        image = SurveyImage(
            survey=survey,
            bands=tuple(str(band) for band in a["bands"]),
            wcs_header=str(a["wcs"]),
            pixel_scale=float(a["pixel_scale"]),
            psf_fwhm=tuple(math.nan if value is None else float(value) for value in a["psf_fwhm"]),
            zero_point=math.nan if a["zero_point"] is None else float(a["zero_point"]),
            noise_correlation=tuple(float(value) for value in a["noise_correlation"]),
            provenance={str(key): str(value) for key, value in a["provenance"].items()},
            unit=str(a["units"]["flux"]) if "units" in a else "nJy",
            extensive=bool(a.get("extensive", True)),
            **arrays,
        )
    except KeyError as error:
        raise DamagedData(f"tile {tile_id}: {survey} lacks the attribute {error}; ingest the tile again") from error
    check_pixels(tile_id, image)
    for plane, bit in MASK_PLANES.items():
        if a["mask_planes"].get(plane) != bit:
            raise StorageError(
                f"tile {tile_id}: {survey} mask plane {plane} is {a['mask_planes'].get(plane)} in the store but {bit} "
                "in this program; ingest the tile again"
            )
    return image


def check_pixels(tile_id: str, image: SurveyImage) -> None:
    """Refuse an image without flux or variance where its mask says that there is data."""
    holes = (image.mask & MASK_PLANES["NO_DATA"] == 0) & ~(np.isfinite(image.flux) & np.isfinite(image.variance))
    if holes.any():
        raise StorageError(
            f"tile {tile_id}: {image.survey} has {int(holes.sum())} of {holes.size} pixels without flux or variance "
            "that the mask does not mark NO_DATA; ingest the tile again"
        )


def crop_image(image: SurveyImage, box: tuple[int, int, int, int]) -> SurveyImage:
    """The pixels `box` = (y0, y1, x0, x1) of an image, with the WCS that belongs to them."""
    y0, y1, x0, x1 = box
    if box == (0, image.flux.shape[1], 0, image.flux.shape[2]):
        return image
    return replace(
        image,
        flux=np.ascontiguousarray(image.flux[:, y0:y1, x0:x1]),
        variance=np.ascontiguousarray(image.variance[:, y0:y1, x0:x1]),
        mask=np.ascontiguousarray(image.mask[:, y0:y1, x0:x1]),
        wcs_header=shifted_header(image.wcs_header, y0, x0),
    )


def _image_attributes(image: SurveyImage) -> dict[str, Any]:
    units = {
        "flux": image.unit,
        "variance": squared_unit(image.unit),
        "pixel_scale": "arcsec",
        "psf_fwhm": "arcsec",
    }
    attributes = {
        "bands": list(image.bands),
        "wcs": image.wcs_header,
        "pixel_scale": image.pixel_scale,
        "psf_fwhm": [None if math.isnan(value) else value for value in map(float, image.psf_fwhm)],
        "zero_point": None if math.isnan(image.zero_point) else image.zero_point,
        "noise_correlation": [float(value) for value in image.noise_correlation],
        "mask_planes": dict(MASK_PLANES),
        "provenance": dict(image.provenance),
        "units": units,
    }
    return attributes if image.extensive else attributes | {"extensive": False}
