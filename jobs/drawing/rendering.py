"""How fluxes become colours: the LSST colour image, and the pictures of a candidate that figures and pages share.

Pictures are uint8 [H, W, 3] with the first row at the top, as browsers show them: north up where the pixel grid has
north up. Grey is where nothing is known.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import AsinhNorm, Normalize
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo

from surveybridge.storage.schema import CELL

Image = NDArray[np.float32]
Picture = NDArray[np.uint8]

GREY = (0.55, 0.55, 0.58)
"""Colour of what is not known."""
VIEWS = {
    "lsst": "LSST gri",
    "euclid": "Euclid VIS",
    "mean": "reconstruction",
    "residual": "Euclid − reconstruction",
    "error": "error that the score sums",
}
"""Pictures of a candidate, with their headings; the last three are model-generated, wholly or in part."""
_RGB_WEIGHTS = np.array([0.8, 1.1, 1.7])[:, None, None]
"""Of i, r, g: a typical faint galaxy comes out neither red nor blue."""


def candidate_pictures(row: Mapping[str, Any], stretch: float = 1.0) -> dict[str, Picture]:
    """The pictures of one candidate by their names in `VIEWS`.

    Parameters
    ----------
    row : mapping
        A row of `storage.schema.CANDIDATES` with its thumbnails (nJy, flat or shaped).
    stretch : float
        Contrast of faint light: 1 as figures show it, more lifts the outskirts out of the noise.

    Returns
    -------
    dict of uint8 [64, 64, 3]
        Euclid and its reconstruction share one asinh scale; the residual is in units of Euclid's noise, red where
        Euclid is brighter.
    """
    lsst, euclid, mean, error = (
        np.asarray(row[f"thumbnail_{name}"], np.float32).reshape(-1, CELL, CELL)
        for name in ("lsst", "euclid", "mean", "error")
    )
    sigma = np.array([noise(plane) for plane in lsst], np.float32)
    sky = noise(euclid)
    flux = AsinhNorm(linear_width=3 * sky / stretch, vmin=-2 * sky, vmax=bright(euclid, 99.8, 30 * sky))
    size = np.abs(error[-1])
    return {
        "lsst": _upright(lupton_rgb(lsst[::-1], sigma[::-1], stretch)),
        "euclid": colour(euclid[-1], "gray", flux),
        "mean": colour(mean[-1], "gray", flux),
        "residual": colour((euclid[-1] - mean[-1]) / sky, "RdBu_r", Normalize(-8 / stretch, 8 / stretch)),
        "error": colour(size, "magma", Normalize(0, bright(size, 99.8, 1e-6) / stretch)),
    }


def sky_picture(flux: NDArray[np.floating[Any]], sigma: NDArray[np.floating[Any]], stretch: float = 1.0) -> Picture:
    """A part of the sky [C, H, W] nJy, `sigma` [C] of it: in colour for gri, grey for one band, `GREY` where NaN."""
    if len(flux) == 3:
        return _upright(lupton_rgb(flux[::-1], sigma[::-1], stretch))
    sky = float(sigma[-1])
    scale = AsinhNorm(linear_width=3 * sky / stretch, vmin=-2 * sky, vmax=bright(flux[-1], 99.8, 30 * sky))
    return colour(flux[-1], "gray", scale)


def colour(image: NDArray[np.floating[Any]], colours: str, norm: Normalize) -> Picture:
    """Fluxes [H, W] in a colour map, NaN in `GREY`, first row at the top."""
    mapped = colormaps[colours].with_extremes(bad=GREY)(norm(np.ma.masked_invalid(image)))
    return _upright(mapped[..., :3])


def png(picture: Picture, description: str = "") -> bytes:
    """A picture as a PNG file, with a text chunk `Description` in it."""
    chunks = PngInfo()
    if description:
        chunks.add_text("Description", description)
    with io.BytesIO() as file:
        PILImage.fromarray(picture).save(file, "PNG", pnginfo=chunks)
        return file.getvalue()


def lupton_rgb(
    flux: NDArray[np.floating[Any]], sigma: NDArray[np.floating[Any]], stretch: float = 1.0
) -> NDArray[np.float64]:
    """Colour image by the asinh stretch of the summed flux that keeps colours (Lupton et al. 2004, eq. 1-2).

    Parameters
    ----------
    flux : ndarray [3, H, W]
        Red, green and blue, nJy; NaN where unknown.
    sigma : ndarray [3]
        Noise of each; the stretch is in units of it.
    stretch : float
        More than 1 lifts faint light.

    Returns
    -------
    ndarray [H, W, 3] float64
        0..1, rows as in `flux`; `GREY` where any band is unknown.
    """
    known = np.isfinite(flux).all(axis=0)
    weighted = np.nan_to_num(flux) * _RGB_WEIGHTS
    intensity = weighted.mean(axis=0)
    soft = 5.0 * float(np.sqrt(np.mean(np.square(np.ravel(sigma) * _RGB_WEIGHTS.ravel())))) / stretch
    lifted = np.maximum(intensity, 0.0) + 0.1 * soft  # the sky is dark grey, not black
    stretched = np.arcsinh(lifted / soft) / np.arcsinh(60.0 * stretch)
    rgb = np.moveaxis((weighted + 0.1 * soft) * stretched / lifted, 0, -1)
    rgb = np.clip(rgb / np.maximum(rgb.max(axis=-1, keepdims=True), 1.0), 0, 1)  # keep the hue where it is too bright
    rgb[~known] = GREY
    return rgb


def noise(image: Image) -> float:
    """Robust standard deviation of the pixels; 1 where nothing is known."""
    known = image[np.isfinite(image)]
    if known.size == 0:
        return 1.0
    return float(1.4826 * np.median(np.abs(known - np.median(known)))) or 1.0


def bright(image: Image, percentile: float, least: float) -> float:
    """Upper end of a scale: a high percentile of what is known, but not below `least`."""
    known = image[np.isfinite(image)]
    return max(least, float(np.percentile(known, percentile))) if known.size else least


def _upright(rgb: NDArray[np.floating[Any]]) -> Picture:
    return np.ascontiguousarray(np.round(255 * rgb[::-1]).astype(np.uint8))
