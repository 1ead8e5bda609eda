"""The smallest inputs that go all the way: a random-weights checkpoint, a field of Gaussian blobs, a few pairs."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.checkpoint import save_checkpoint
from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.network import NetworkConfig, UNet
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.problem import Endpoint, Problem
from surveybridge.bridge_core.stretch import Stretch
from surveybridge.storage.images import MASK_PLANES, SurveyImage
from surveybridge.storage.ingest import Field, cut_tile, tile_boxes
from surveybridge.storage.problems import default_problem
from surveybridge.storage.tiles import Tile, TileStore
from tests.storage.fits_files import gaussians, tan_wcs

SIDE = 192
"""Pixels of the field: two tiles of 96 each way."""

BLOBS = [
    (30.2, 40.1),
    (48.0, 150.7),
    (95.5, 60.3),
    (95.6, 140.2),
    (70.4, 95.4),
    (130.9, 95.5),
    (150.1, 31.8),
    (160.6, 165.0),
]
"""(y, x) of the objects: four of them within a pixel of the border between tiles (95.5)."""

SIGMA = {"g": 0.33, "r": 0.34, "i": 0.53, "VIS": 2.02}
"""Noise of a pixel, nJy."""

PROBLEM = Problem.from_table(default_problem())
SURVEY_BANDS = {end.name: end.bands for end in PROBLEM.endpoints}

SEEING = {"lsst": 7.3, "euclid": 1.6}
"""FWHM in pixels."""


def fitted(end: Endpoint) -> Endpoint:
    """An end of the default problem as a checkpoint on Euclid's grid has it."""
    return replace(end, pixel_scale=0.1, stretch=Stretch({band: 2 * SIGMA[band] for band in end.bands}))


def problem_with(**changes: Mapping[str, Any]) -> Problem:
    """The problem of the tiny checkpoint with some ends changed, as ``lsst={"pixel_scale": 0.3}``."""
    return PROBLEM.with_endpoints([replace(fitted(end), **changes.get(end.name, {})) for end in PROBLEM.endpoints])


LARGER = NetworkConfig(base=8, stem=2, norm="pixel")
"""A network with work to be measured, or interrupted."""


def write_checkpoint(folder: Path, name: str = "tiny", *, seed: int = 0, **card: Any) -> str:
    """Write random weights of the smallest network and return the checkpoint's path."""
    torch.manual_seed(seed)
    fields: dict[str, Any] = {
        "name": name,
        "grid": "mosaic",
        "bridge": Bridge.brownian(m_min=1e-4),
        "network": NetworkConfig(base=4, blocks=1, stem=2, norm="pixel"),
        "objective": Objective("edm", sigma_data=0.3, log_sigma_mean=-1.2, log_sigma_std=1.4),
        "problem": PROBLEM.with_endpoints([fitted(end) for end in PROBLEM.endpoints]),
    }
    made = Card(**(fields | card))
    save_checkpoint(made, UNet(made.network).state_dict(), folder / name)
    return str(folder / name)


def make_image(survey: str, side: int = SIDE) -> SurveyImage:
    """The blobs as one survey sees them: seeing, white noise, a masked column, two rows without data."""
    bands = SURVEY_BANDS[survey]
    rng = np.random.default_rng(len(bands))
    sigma = SEEING[survey] / 2.3548
    sky = gaussians((side, side), BLOBS, sigma, 600.0)
    noise = np.array([SIGMA[band] for band in bands], np.float32)[:, None, None]
    flux = (sky + noise * rng.normal(size=(len(bands), side, side))).astype(np.float32)
    variance = np.broadcast_to(noise**2, flux.shape).copy()
    mask = np.zeros(flux.shape, np.uint8)
    mask[:, :, 60 if survey == "lsst" else 130] = MASK_PLANES["BAD"]
    mask[:, :2] = MASK_PLANES["NO_DATA"]
    flux[:, :2] = variance[:, :2] = np.nan
    return SurveyImage(
        survey=survey,
        bands=bands,
        flux=flux,
        variance=variance,
        mask=mask,
        wcs_header=tan_wcs((side, side), 0.1).to_header_string(),
        pixel_scale=0.1,
        psf_fwhm=tuple(0.05 * SEEING[survey] for _ in bands),  # the blobs are wider: galaxies
        zero_point=31.4,
        noise_correlation=tuple(0.0 for _ in bands),
    )


def make_field() -> Field:
    """Both surveys on one grid."""
    return Field({name: make_image(name) for name in SURVEY_BANDS}, "euclid")


def write_store(
    path: Path, *, tile_size: int = SIDE // 2, halo: int = 64, edit: Callable[[Tile], Tile] | None = None
) -> str:
    """Cut the field into tiles t0000.., change them by `edit`, write the store and return its path."""
    if edit is None:
        shutil.copytree(_plain_store(tile_size, halo), path, dirs_exist_ok=True)
    else:
        _write_store(path, tile_size, halo, edit)
    return str(path)


def _write_store(path: Path, tile_size: int, halo: int, edit: Callable[[Tile], Tile]) -> None:
    field = make_field()
    store = TileStore.create(str(path))
    boxes = tile_boxes(field.shape, tile_size, halo)
    store.write_manifest([store.write_tile(edit(cut_tile(field, box))) for box in boxes])


@functools.cache
def _plain_store(tile_size: int, halo: int) -> Path:
    """A store as it is, to be copied: to write it takes twenty times as long, and a store does not know its place."""
    folder = Path(tempfile.mkdtemp(prefix="tiny", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _write_store(folder / "store", tile_size, halo, lambda tile: tile)
    return folder / "store"


def with_images(tile: Tile, **images: SurveyImage) -> Tile:
    """The same tile with other images of some ends."""
    return replace(tile, images={**tile.images, **images})


def without_data(image: SurveyImage) -> SurveyImage:
    """The same image with every pixel NaN and NO_DATA."""
    nothing = np.full_like(image.flux, np.nan)
    return replace(image, flux=nothing, variance=nothing, mask=np.full_like(image.mask, MASK_PLANES["NO_DATA"]))


def damage_tile(store: str, tile_id: str, array: str = "lsst/flux") -> Callable[[], None]:
    """Flip bytes in the middle of a shard; returns what repairs it."""
    shard = max((Path(store) / "tiles" / tile_id / array).rglob("c/*/*/*"), key=lambda file: file.stat().st_size)
    good = shard.read_bytes()
    middle = len(good) // 3
    shard.write_bytes(good[:middle] + bytes(byte ^ 0xFF for byte in good[middle : middle + 64]) + good[middle + 64 :])

    def repair() -> None:
        shard.write_bytes(good)

    return repair


def write_pairs(path: Path, count: int = 24, **attributes: Any) -> str:
    """Write a pair store: a round galaxy in the middle of every stamp, in nJy, with noise."""
    rng = np.random.default_rng(1)
    numbers = {
        band: {"pixel_arcsec": 0.1 if band == "VIS" else 0.2, "sigma_noise": sigma * (1 if band == "VIS" else 4)}
        for band, sigma in SIGMA.items()
    }
    group = zarr.open_group(str(path), mode="w", attributes={"name": path.name, "bands": numbers} | attributes)
    centre = [(31.5, 31.5)]
    for name, sigma, bands in (("lsst", 2.0, "gri"), ("euclid", 2.5, ("VIS",))):
        flux = rng.uniform(200, 2000, (count, 1, 1, 1)) * gaussians((64, 64), centre, sigma, 1.0)[..., None]
        noise = np.array([numbers[band]["sigma_noise"] for band in bands])
        stamps: NDArray[Any] = flux + noise * rng.normal(size=(count, 64, 64, len(bands)))
        group.create_array(name, data=(stamps if name == "lsst" else stamps[..., 0]).astype(np.float32))
    return str(path)


def files_of(folder: str | Path, *parts: str) -> dict[str, bytes]:
    """Content of the files below a folder, by relative path."""
    root = Path(folder).joinpath(*parts)
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}
