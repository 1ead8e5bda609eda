"""A tile as a Zarr v3 group: a group for each survey with `flux`, `variance` and `mask`, each one shard.

Where images of the PSF are known, they are the array `psf`: [C, h, w], each in the middle of its plane, with 0 around
those of fewer pixels and for bands without one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from surveybridge.storage.errors import DamagedData, StorageError
from surveybridge.storage.grids import shifted_header
from surveybridge.storage.images import MASK_PLANES, SurveyImage
from surveybridge.storage.objectstore import Folder, check_name
from surveybridge.storage.psf import Psf, PsfImage, parse_psf
from surveybridge.storage.shards import SHARD_KEY, read_shard, write_shard
from surveybridge.storage.units import squared_unit

CHUNK = 256
"""Side of a chunk inside the shard, pixels: what cutout services and viewers fetch; workers read whole shards."""

_ARRAYS = ("flux", "variance", "mask")

_PSF = "psf"
"""The array of images of the PSF, which a survey need not have."""

_IMAGE = "image"
"""What the attribute `psf_model` says of a band whose PSF is an image."""

_UNWRITTEN = np.uint8(255)
"""Fill value of masks: what a lost shard reads as elsewhere, and no ingest writes."""


def tile_files(images: Mapping[str, SurveyImage], attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a tile by path: Zarr encodes in memory, so that storing them is our own (order, retries)."""
    contents: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(contents), attributes=dict(attributes))
    for image in images.values():
        _write_image(group, image)
    files = {path: data.to_bytes() for path, data in contents.items()}
    below = {
        path.removesuffix("/zarr.json"): json.loads(data)
        for path, data in sorted(files.items())
        if path.endswith("/zarr.json")
    }
    # As zarr.consolidate_metadata writes it; other readers may leave it aside.
    consolidated = {"kind": "inline", "must_understand": False, "metadata": below}
    head = json.loads(files["zarr.json"]) | {"consolidated_metadata": consolidated}
    return files | {"zarr.json": json.dumps(head).encode()}


def read_group(folder: Folder, group: str, tile_id: str) -> tuple[dict[str, Any], dict[str, SurveyImage]]:
    """Attributes of a tile and its images by survey: one request, and then one for each array, concurrently.

    Parameters
    ----------
    folder : Folder
        The store.
    group : str
        The tile's group in it.
    tile_id : str
        For messages.

    Raises
    ------
    FileNotFoundError
        If there is no such group.
    DamagedData
        As `read_image`.
    """
    head = _parse(folder.read(group, "zarr.json"), tile_id)
    try:
        attributes: dict[str, Any] = head["attributes"]
        surveys = [check_name(str(name), "survey") for name in attributes["surveys"]]
    except KeyError as error:
        raise DamagedData(f"tile {tile_id} lacks {error} in its zarr.json; ingest the tile again") from error
    arrays = [path for survey in surveys for path in array_paths(survey)]
    metadata = (head.get("consolidated_metadata") or {}).get("metadata")
    arrays += [path for survey in surveys if (path := f"{survey}/{_PSF}") in (metadata or {})]
    # Whole shards even for a small halo: one request each, and the chunks' checksums are all looked at.
    wanted = [f"{group}/{path}/{SHARD_KEY}" for path in arrays]
    if metadata is None:  # a store from before 0.2: the metadata lies with each array
        wanted += [f"{group}/{path}/zarr.json" for path in (*surveys, *arrays)]
    found = {path.removeprefix(f"{group}/"): data for path, data in folder.read_existing(wanted).items()}
    if metadata is None:
        metadata = {
            path.removesuffix("/zarr.json"): _parse(data, tile_id)
            for path, data in found.items()
            if path.endswith("/zarr.json")
        }
    shards = {path.removesuffix(f"/{SHARD_KEY}"): data for path, data in found.items()}
    return attributes, {name: read_image(metadata, shards, name, tile_id) for name in surveys}


def _parse(data: bytes, tile_id: str) -> dict[str, Any]:
    """A zarr.json document of a tile."""
    try:
        document: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise DamagedData(f"tile {tile_id}: a zarr.json is not JSON ({error}); ingest the tile again") from error
    return document


def _write_image(tile_group: zarr.Group, image: SurveyImage) -> None:
    """Write `image` as the group `<survey>` of its tile."""
    survey = tile_group.create_group(image.survey, attributes=_image_attributes(image))
    write_shard(survey, "flux", image.flux, np.float32(np.nan), CHUNK)
    write_shard(survey, "variance", image.variance, np.float32(np.nan), CHUNK)
    write_shard(survey, "mask", image.mask, _UNWRITTEN, CHUNK)
    if any(isinstance(psf, PsfImage) for psf in image.psf_model):
        write_shard(survey, _PSF, _psf_planes(image.psf_model), 0.0, CHUNK)


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
    arrays: dict[str, Any] = {}
    for path in (survey, *array_paths(survey)):
        if path not in metadata:
            raise DamagedData(f"tile {tile_id}: {path} is missing; ingest the tile again")
    for name, path in zip(_ARRAYS, array_paths(survey), strict=True):
        arrays[name] = _read_array(metadata, shards, path, tile_id)
    planes = _read_array(metadata, shards, f"{survey}/{_PSF}", tile_id) if f"{survey}/{_PSF}" in metadata else None
    try:
        a: dict[str, Any] = dict(metadata[survey]["attributes"])
        image = image_of(survey, a, arrays, planes)
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


def image_of(
    survey: str,
    attributes: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]] | None = None,
    planes: NDArray[np.float64] | None = None,
) -> SurveyImage:
    """An image from its attributes; without `arrays` it has no pixels, and without `planes` no images of the PSF."""
    a, none = attributes, np.zeros((len(attributes["bands"]), 0, 0), np.float32)
    pixels: dict[str, Any] = dict(arrays or {"flux": none, "variance": none, "mask": none.astype(np.uint8)})
    return SurveyImage(
        survey=survey,
        bands=tuple(str(band) for band in a["bands"]),
        wcs_header=str(a["wcs"]),
        pixel_scale=float(a["pixel_scale"]),
        psf_fwhm=_numbers(a["psf_fwhm"]),
        zero_point=math.nan if a["zero_point"] is None else float(a["zero_point"]),
        noise_correlation=tuple(float(value) for value in a["noise_correlation"]),
        provenance={str(key): str(value) for key, value in a["provenance"].items()},
        unit=str(a["units"]["flux"]) if "units" in a else "nJy",
        extensive=bool(a.get("extensive", True)),
        psf_wing=_numbers(a.get("psf_wing", ())),
        psf_model=_psf_models(a, planes),
        **pixels,
    )


def stated_noise(attributes: Mapping[str, Any]) -> tuple[float, ...]:
    """`images.sky_noise` of an image as its attributes state it; NaN where an earlier version did not."""
    return _numbers(attributes.get("sky_noise") or (None,) * len(attributes["bands"]))


def _numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    """Numbers of JSON, in which null stands for NaN."""
    return tuple(math.nan if value is None else float(value) for value in values)


def _read_array(
    metadata: Mapping[str, Mapping[str, Any]], shards: Mapping[str, bytes], path: str, tile_id: str
) -> NDArray[Any]:
    if path not in shards:
        raise DamagedData(f"tile {tile_id}: {path} has lost its data; ingest the tile again")
    try:
        return read_shard(metadata[path], shards[path])
    except (ValueError, RuntimeError) as error:  # a checksum, a length, or Blosc's own complaint
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedData(f"tile {tile_id}: {path} cannot be read ({first_line}); ingest the tile again") from error


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
        "sky_noise": [None if math.isnan(value) else value for value in image.sky_noise],
        "mask_planes": dict(MASK_PLANES),
        "provenance": dict(image.provenance),
        "units": units,
    }
    if not image.extensive:
        attributes["extensive"] = False
    if not all(map(math.isnan, image.psf_wing)):
        attributes["psf_wing"] = [None if math.isnan(value) else value for value in map(float, image.psf_wing)]
    if any(image.psf_model):
        attributes["psf_model"] = [_IMAGE if isinstance(psf, PsfImage) else psf and str(psf) for psf in image.psf_model]
        attributes["psf_pixel_scale"] = [
            psf.pixel_scale if isinstance(psf, PsfImage) else None for psf in image.psf_model
        ]
    return attributes


def _psf_planes(models: Sequence[Psf | None]) -> NDArray[np.float64]:
    """Images of the PSF in planes of one size, each in the middle, where their shapes leave one."""
    images = [psf.values if isinstance(psf, PsfImage) else np.zeros((1, 1)) for psf in models]
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    planes = np.zeros((len(images), height, width))
    for plane, image in zip(planes, images, strict=True):
        top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
        plane[top : top + image.shape[0], left : left + image.shape[1]] = image
    return planes


def _psf_models(attributes: Mapping[str, Any], planes: NDArray[np.float64] | None) -> tuple[Psf | None, ...]:
    """The PSF of each band as `_image_attributes` and `_psf_planes` keep it; () where nothing is said."""
    said = attributes.get("psf_model", [])
    models: list[Psf | None] = []
    for band, text in enumerate(said):
        if text == _IMAGE:
            scale = float(attributes["psf_pixel_scale"][band])
            models.append(None if planes is None else PsfImage(_trimmed(planes[band]), scale))
        else:
            models.append(None if text is None else parse_psf(str(text)))
    return tuple(models)


def _trimmed(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """A plane without the rows and columns of 0 around it."""
    rows, columns = (np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0))
    return np.ascontiguousarray(plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
