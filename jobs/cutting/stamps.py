"""The pixels of windows and the conditions of their images, as pair stores hold them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from surveybridge.storage.images import SurveyImage
    from surveybridge.storage.tiles import Tile

SOURCE_SIGMA = 3.0
"""Pixels that are brighter do not count as sky."""


def stamps_of(tile: Tile, corners: Sequence[tuple[int, int]], size: int) -> dict[str, NDArray[np.float32]]:
    """Arrays of some windows of a tile by name, as `storage.pair_writer` takes them.

    Parameters
    ----------
    tile : Tile
        With both ends.
    corners : sequence of (y, x)
        First pixel of each of N windows, on the grid of the tile's field.
    size : int
        Side of a window, pixels.

    Returns
    -------
    dict of str to float32 array
        By end: flux [N, size, size, B], NaN where masked; `<end>_sigma` of the same shape, the noise of each pixel from
        the variance plane; noise, fwhm, wing and correlation [N, B].
    """
    found: dict[str, NDArray[np.float32]] = {}
    for name, image in tile.images.items():
        with np.errstate(invalid="ignore"):
            sigma = np.where(image.variance > 0, np.sqrt(image.variance), np.nan)
        flux = np.where(image.valid, image.flux, np.nan)
        cut = [np.s_[:, y - tile.origin[0] :, x - tile.origin[1] :] for y, x in corners]
        planes = {"": flux, "_sigma": sigma}
        for suffix, values in planes.items():
            windows = [values[where][:, :size, :size].transpose(1, 2, 0) for where in cut]
            found[f"{name}{suffix}"] = np.stack(windows).astype(np.float32)
        found |= _conditions(name, image, found[name], found[f"{name}_sigma"])
    return found


def _conditions(
    name: str, image: SurveyImage, flux: NDArray[np.float32], sigma: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Noise of the sky in each window, and what the image says of its PSF and of the noise's correlation."""
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a window without sky has no noise of it
        sky = np.where(np.abs(flux) < SOURCE_SIGMA * sigma, sigma, np.nan)
        noise = np.nanmedian(sky, axis=(1, 2))
    stated: dict[str, Any] = {
        "fwhm": image.psf_fwhm,
        "wing": image.psf_wing,
        "correlation": image.noise_correlation,
    }
    shape = (len(flux), len(image.bands))
    constant = {key: np.broadcast_to(np.asarray(values, np.float32), shape) for key, values in stated.items()}
    return {f"{name}_{key}": np.asarray(values, np.float32) for key, values in {"noise": noise, **constant}.items()}
