"""Colours for pixels: images of endpoints, and the pictures of a candidate that figures and pages share.

Pictures are uint8 [H, W, 3] with the first row at the top, as browsers show them: north up where the pixel grid has
north up. Grey is where nothing is known.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import astropy.units as u
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import AsinhNorm, LogNorm, Normalize
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo

from surveybridge.storage.problems import (
    EndpointTable,
    ProblemTable,
    bands_title,
    main_plane,
    rgb_planes,
    shown_ends,
)
from surveybridge.storage.schema import CELL
from surveybridge.storage.surroundings import Surroundings

Image = NDArray[np.float32]
Picture = NDArray[np.uint8]

GREY = (0.55, 0.55, 0.58)
"""Colour of what is not known."""
_RGB_WEIGHTS = np.array([0.8, 1.1, 1.7])[:, None, None]
"""Weights of i, r, g: a typical faint galaxy comes out neither red nor blue."""


def channels(problem: ProblemTable) -> int:
    """Number of views that show single bands: that of the endpoint with the most bands."""
    return max(len(end["bands"]) for end in problem["endpoints"])


def shown_plane(end: EndpointTable, problem: ProblemTable, channel: int | None) -> int | None:
    """Index of the band that an endpoint shows in a channel: channel k of C shows band k B // C of B; None for all."""
    return None if channel is None else channel * len(end["bands"]) // channels(problem)


def views(problem: ProblemTable, channel: int | None = None) -> dict[str, str]:
    """The pictures of a candidate with their headings: both endpoints, that with the objects second, and the model's.

    The last three are model-generated, wholly or in part.
    """
    catalog = shown_ends(problem)[1]
    return {
        **end_headings(problem, channel),
        "mean": "reconstruction",
        "residual": f"{catalog['title']} − reconstruction",
        "error": "error that the score sums",
    }


def wide_views(problem: ProblemTable, channel: int | None = None) -> dict[str, str]:
    """The pictures of a candidate's surroundings with their headings; the last two are model-generated."""
    return {
        **end_headings(problem, channel),
        "translated": "translated: posterior mean",
        "std": "posterior standard deviation",
    }


def end_headings(problem: ProblemTable, channel: int | None) -> dict[str, str]:
    """Headings of both endpoints by name, with all bands or the one that a channel shows."""
    headings = {}
    for end in shown_ends(problem):
        plane = shown_plane(end, problem, channel)
        headings[end["name"]] = bands_title(end) if plane is None else f"{end['title']} {end['bands'][plane]}"
    return headings


def candidate_pictures(
    row: Mapping[str, Any], problem: ProblemTable, stretch: float = 1.0, channel: int | None = None
) -> dict[str, Picture]:
    """The pictures of one candidate by their names in `views`.

    Parameters
    ----------
    row : mapping
        A candidate with its thumbnails (flat or shaped).
    problem : ProblemTable
        What it is a candidate of.
    stretch : float
        Contrast of faint light: 1 as figures show it, more lifts the outskirts out of the noise.
    channel : int, optional
        Show single bands (`shown_plane`) in grey; by default colours where the endpoint has them.

    Returns
    -------
    dict of uint8 [64, 64, 3]
        The endpoint with the objects and its reconstruction share one scale; the residual is in units of the noise, in
        the band shown, or that which stands for the endpoint, red where the observation is brighter.
    """
    other, catalog = shown_ends(problem)
    seen, observed, mean, error = (
        np.asarray(row[f"thumbnail_{name}"], np.float32).reshape(-1, CELL, CELL)
        for name in (other["name"], catalog["name"], "mean", "error")
    )
    here, there = (shown_plane(end, problem, channel) for end in (catalog, other))
    main = main_plane(catalog) if here is None else here
    sky = noise(observed[main])
    size = np.abs(error[main])
    sigma = noises(observed)
    scale = grey_scale(observed[main], sky, stretch)
    return {
        other["name"]: _picture(seen, other, noises(seen), (None, stretch), there),
        catalog["name"]: _picture(observed, catalog, sigma, (scale, stretch), here),
        "mean": _picture(mean, catalog, sigma, (scale, stretch), here),
        "residual": colour((observed[main] - mean[main]) / sky, "RdBu_r", Normalize(-8 / stretch, 8 / stretch)),
        "error": colour(size, "magma", Normalize(0, bright(size, 99.8, 1e-6) / stretch)),
    }


def wide_pictures(
    found: Surroundings,
    problem: ProblemTable,
    wanted: EndpointTable,
    stretch: float = 1.0,
    channel: int | None = None,
) -> dict[str, Picture]:
    """The pictures of a candidate's surroundings by their names in `wide_views`.

    Parameters
    ----------
    found : Surroundings
        From `storage.surroundings`.
    problem, wanted : ProblemTable, EndpointTable
        The problem, and the endpoint that the run translates to.
    stretch, channel : float, int
        As of `candidate_pictures`.
    """
    pictures = {
        end["name"]: _sky_of(found.observed[end["name"]], end, stretch, shown_plane(end, problem, channel))
        for end in shown_ends(problem)
    }
    plane = shown_plane(wanted, problem, channel)
    std = found.std[main_plane(wanted) if plane is None else plane]
    return pictures | {
        "translated": _sky_of(found.mean, wanted, stretch, plane),
        "std": colour(std, "magma", Normalize(0, bright(std, 99.8, 1e-6) / stretch)),
    }


def _sky_of(values: Image, end: EndpointTable, stretch: float, plane: int | None) -> Picture:
    return sky_picture(values, noises(values), end, stretch, plane)


def sky_picture(
    values: NDArray[np.floating[Any]],
    sigma: NDArray[np.floating[Any]],
    end: EndpointTable,
    stretch: float = 1.0,
    plane: int | None = None,
) -> Picture:
    """A part of the sky [C, H, W] as an endpoint shows it, `sigma` [C] of it, `GREY` where NaN.

    In colour where the endpoint has `rgb` and no `plane` is given, else one band in grey: fluxes by asinh, densities by
    their logarithm, angles by a colour that repeats after half a turn.
    """
    shown = values[main_plane(end) if plane is None else plane]
    if end["stretch"] == "log10":
        return colour(shown, "gray", log_scale(shown))
    if end["stretch"] == "axial":
        half_turn = float(u.Quantity(180, u.deg).to_value(end["unit"]))
        return colour(np.mod(shown, half_turn), "twilight", Normalize(0, half_turn))
    return _picture(values, end, sigma, (None, stretch), plane)


def grey_scale(image: NDArray[np.floating[Any]], sigma: float, stretch: float = 1.0) -> Normalize:
    """Scale of an image in grey with a sky noise."""
    return AsinhNorm(linear_width=3 * sigma / stretch, vmin=-2 * sigma, vmax=bright(image, 99.8, 30 * sigma))


def log_scale(image: NDArray[np.floating[Any]]) -> Normalize:
    """Logarithmic scale over what is positive."""
    positive = image[np.isfinite(image) & (image > 0)]
    low, high = np.percentile(positive, [1, 99.8]) if positive.size else (1.0, 10.0)
    return LogNorm(low, max(high, 1.01 * low), clip=True)


def _picture(
    values: NDArray[np.floating[Any]],
    end: EndpointTable,
    sigma: NDArray[np.floating[Any]],
    contrast: tuple[Normalize | None, float],
    plane: int | None,
) -> Picture:
    """In colour, or one band in grey by the scale of `contrast`; its other part is the stretch."""
    scale, stretch = contrast
    planes = rgb_planes(end) if plane is None else None
    if planes is not None:
        return _upright(lupton_rgb(values[planes], sigma[planes], stretch))
    main = main_plane(end) if plane is None else plane
    return colour(values[main], "gray", scale or grey_scale(values[main], float(sigma[main]), stretch))


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
        Red, green and blue; NaN where unknown.
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


def noises(planes: Image) -> NDArray[np.float32]:
    """`noise` of each plane."""
    return np.array([noise(plane) for plane in planes], np.float32)


def bright(image: Image, percentile: float, least: float) -> float:
    """Return the upper end of a scale: a high percentile of the known values, but at least `least`."""
    known = image[np.isfinite(image)]
    return max(least, float(np.percentile(known, percentile))) if known.size else least


def _upright(rgb: NDArray[np.floating[Any]]) -> Picture:
    return np.ascontiguousarray(np.round(255 * rgb[::-1]).astype(np.uint8))
