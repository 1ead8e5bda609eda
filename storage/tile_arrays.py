"""One survey image as a Zarr v3 group: `flux`, `variance` and `mask`, each one shard, and attributes for the rest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import zarr
from astropy.io.fits import Header
from astropy.wcs import WCS
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from storage.errors import StorageError
from storage.images import MASK_PLANES, SurveyImage

CHUNK = 256
"""Side of a chunk inside the shard, pixels: what a read with a small halo fetches."""

_UNWRITTEN = np.uint8(255)
"""Fill value of masks: what a lost shard reads as, and no ingest writes."""


def write_image(tile_group: zarr.Group, image: SurveyImage) -> None:
    """Write `image` as the group `<survey>` of its tile."""
    survey = tile_group.create_group(image.survey, attributes=_image_attributes(image))
    _write_array(survey, "flux", image.flux, np.float32(np.nan))
    _write_array(survey, "variance", image.variance, np.float32(np.nan))
    _write_array(survey, "mask", image.mask, _UNWRITTEN)


def read_image(group: zarr.Group, survey: str, tile_id: str, box: tuple[int, int, int, int]) -> SurveyImage:
    """Read the pixels `box` = (y0, y1, x0, x1) of one survey.

    Raises
    ------
    StorageError
        If an array or attribute is missing, a chunk fails its checksum, or a shard is gone.
    """
    y0, y1, x0, x1 = box
    arrays = {}
    for name in ("flux", "variance", "mask"):
        try:
            arrays[name] = np.asarray(_array(group, f"{survey}/{name}", tile_id)[:, y0:y1, x0:x1])
        except (ValueError, RuntimeError) as error:  # a checksum, a length, or Blosc's own complaint
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            raise StorageError(
                f"tile {tile_id}: {survey}/{name} cannot be read ({first_line}); ingest the tile again"
            ) from error
    try:
        a: dict[str, Any] = dict(group[survey].attrs)
        image = SurveyImage(
            survey=survey,
            bands=tuple(str(band) for band in a["bands"]),
            wcs_header=shifted_header(str(a["wcs"]), y0, x0) if (y0 or x0) else str(a["wcs"]),
            pixel_scale=float(a["pixel_scale"]),
            psf_fwhm=tuple(math.nan if value is None else float(value) for value in a["psf_fwhm"]),
            zero_point=float(a["zero_point"]),
            noise_correlation=tuple(float(value) for value in a["noise_correlation"]),
            provenance={str(key): str(value) for key, value in a["provenance"].items()},
            **arrays,
        )
    except KeyError as error:
        raise StorageError(f"tile {tile_id}: {survey} lacks the attribute {error}; ingest the tile again") from error
    if (image.mask == _UNWRITTEN).any():
        raise StorageError(f"tile {tile_id}: {survey}/mask has lost its data; ingest the tile again")
    # A lost flux or variance shard reads as its fill value: NaN where the mask says that there is data.
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


def image_shape(tile_group: zarr.Group, survey: str, tile_id: str) -> tuple[int, int]:
    """Height and width of the stored arrays of one survey."""
    height, width = _array(tile_group, f"{survey}/flux", tile_id).shape[1:]
    return int(height), int(width)


def shifted_header(wcs_header: str, y: int, x: int) -> str:
    """WCS header of the array that starts at pixel (y, x) of the array that `wcs_header` describes."""
    wcs = WCS(Header.fromstring(wcs_header))
    wcs.wcs.crpix -= (x, y)
    return str(wcs.to_header_string())


def _image_attributes(image: SurveyImage) -> dict[str, Any]:
    return {
        "bands": list(image.bands),
        "wcs": image.wcs_header,
        "pixel_scale": image.pixel_scale,
        "psf_fwhm": [None if math.isnan(value) else value for value in map(float, image.psf_fwhm)],
        "zero_point": image.zero_point,
        "noise_correlation": [float(value) for value in image.noise_correlation],
        "mask_planes": dict(MASK_PLANES),
        "provenance": dict(image.provenance),
        "units": {"flux": "nJy", "variance": "nJy2", "pixel_scale": "arcsec", "psf_fwhm": "arcsec"},
    }


def _write_array(group: zarr.Group, name: str, data: NDArray[Any], fill_value: Any) -> None:
    bands, height, width = data.shape
    chunk = (1, min(CHUNK, height), min(CHUNK, width))
    shard = (bands, math.ceil(height / chunk[1]) * chunk[1], math.ceil(width / chunk[2]) * chunk[2])
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=chunk,
        shards=shard,
        compressors=[BloscCodec(cname="zstd", clevel=5, shuffle=BloscShuffle.bitshuffle), Crc32cCodec()],
        fill_value=fill_value,
        dimension_names=("band", "y", "x"),
        config={"write_empty_chunks": True},  # a missing shard is damage, not emptiness
    )
    array[...] = data


def _array(group: zarr.Group, path: str, tile_id: str) -> zarr.Array[Any]:
    try:
        array = group[path]
    except KeyError as error:
        raise StorageError(f"tile {tile_id}: {path} is missing; ingest the tile again") from error
    if not isinstance(array, zarr.Array):
        raise StorageError(f"tile {tile_id}: {path} is a group, not an array; ingest the tile again")
    return array
