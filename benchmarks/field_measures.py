"""Measures of a translated field: aperture fluxes, shares of pixels within 1, 1.645 and 1.96 std, seams.

Everything is measured on the stitched mosaic against the wanted endpoint's own image on the same grid, noise included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import sep
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy import stats

from surveybridge.bridge_core.settings import PatchGrid
from surveybridge.storage.photometry import flux_from_magnitude
from surveybridge.storage.problems import wanted_end
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import TileStore

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Fluxes = NDArray[np.float64]

WIDTHS = {"68.3%": 1.0, "90%": 1.645, "95%": 1.96}
"""Half-widths in std of the intervals, by what they hold of a normal distribution."""


@dataclass(frozen=True)
class Field:
    """Translated and true images of the finished tiles on one grid; `known` where both exist and nothing is masked.

    Parameters
    ----------
    bands : tuple of str
        Of the wanted survey.
    mean, std : float32 [C, H, W]
        Posterior, nJy per pixel.
    true, sigma : float32 [C, H, W]
        The wanted survey's image and the square root of its variance.
    known : bool [H, W]
        Wanted survey valid in all bands, observed survey valid, posterior finite.
    origin : (y, x)
        Global pixel of array pixel [0, 0].
    edges : list of (y0, y1, x0, x1)
        Cores of the tiles in array pixels.
    samples : int
        K of the run.
    """

    bands: tuple[str, ...]
    mean: Image
    std: Image
    true: Image
    sigma: Image
    known: Mask
    wcs: WCS
    origin: tuple[int, int]
    edges: list[tuple[int, int, int, int]]
    samples: int


class Images(NamedTuple):
    """A survey's image over some tiles of a store: flux and sigma [C, H, W], where both surveys are valid [H, W]."""

    flux: Image
    sigma: Image
    valid: Mask
    wcs: WCS
    origin: tuple[int, int]
    edges: list[tuple[int, int, int, int]]


def read_field(run_url: str, store_url: str) -> Field:
    """Stitch a run's finished tiles, and the images of the store under them."""
    run = RunFolder.open(run_url)
    images = read_images(store_url, wanted_end(run.run_json)["name"], run.ok_tiles())
    mosaic = run.read_mosaic()
    known = images.valid & np.isfinite(mosaic.mean).all(axis=0) & (mosaic.coverage > 0)
    return Field(
        bands=run.read_tile_mosaic(run.ok_tiles()[0]).bands,
        mean=mosaic.mean,
        std=mosaic.std,
        true=images.flux,
        sigma=images.sigma,
        known=known,
        wcs=images.wcs,
        origin=images.origin,
        edges=images.edges,
        samples=int(run.run_json["samples"]),
    )


def read_images(store_url: str, survey: str, tile_ids: Sequence[str] | None = None) -> Images:
    """Stitch a survey's image from the cores of some tiles (by default all)."""
    store = TileStore.open(store_url)
    wanted = tile_ids if tile_ids is not None else store.manifest()["tile_id"].to_pylist()
    tiles = [store.read_tile(tile_id, halo=0) for tile_id in wanted]
    y0, x0 = (min(tile.core_origin[axis] for tile in tiles) for axis in (0, 1))
    boxes = [
        (y - y0, y - y0 + tile.core_shape[0], x - x0, x - x0 + tile.core_shape[1])
        for tile, (y, x) in ((tile, tile.core_origin) for tile in tiles)
    ]
    shape = (max(box[1] for box in boxes), max(box[3] for box in boxes))
    flux = np.full((len(tiles[0].images[survey].bands), *shape), np.nan, np.float32)
    sigma, valid = np.full_like(flux, np.nan), np.zeros(shape, bool)
    for tile, (top, bottom, left, right) in zip(tiles, boxes, strict=True):
        there, image = (slice(top, bottom), slice(left, right)), tile.images[survey]
        flux[:, *there], sigma[:, *there] = image.flux, np.sqrt(image.variance)
        valid[there] = np.logical_and.reduce([each.valid.all(axis=0) for each in tile.images.values()])
    wcs = tiles[0].images[survey].wcs.deepcopy()
    wcs.wcs.crpix += (boxes[0][2], boxes[0][0])
    return Images(flux, sigma, valid, wcs, (y0, x0), boxes)


def isolated_galaxies(
    truth: pd.DataFrame,
    known: Mask,
    wcs: WCS,
    faintest_i: float = 23.5,
    clear_arcsec: float = 2.0,
    neighbours: float = 0.1,
) -> pd.DataFrame:
    """Return the rows of the truth table that are galaxies brighter than `faintest_i`, inside, unmasked and isolated.

    Isolated: the truth table's other objects within 3" have together less than `neighbours` of its VIS flux. Unmasked:
    all pixels of the square that reaches `clear_arcsec` to each side are known.
    """
    scale = pixel_arcsec(wcs)
    x, y = wcs.all_world2pix(truth.ra, truth.dec, 0)
    lensed = truth.lensed_mag_VIS.to_numpy()
    flux = flux_from_magnitude(truth.mag_VIS) + np.where(np.isfinite(lensed), flux_from_magnitude(lensed), 0.0)
    reach = int(np.ceil(clear_arcsec / scale))
    height, width = known.shape
    kept = np.zeros(len(truth), bool)
    for n in np.flatnonzero((truth.kind == "galaxy") & (truth.mag_i < faintest_i)):
        column, line = round(float(x[n])), round(float(y[n]))
        if not (reach <= column < width - reach and reach <= line < height - reach):
            continue
        away = scale * np.hypot(x - x[n], y - y[n])
        alone = flux[(away > 0) & (away < 3.0)].sum() <= neighbours * flux[n]
        kept[n] = alone and known[line - reach : line + reach + 1, column - reach : column + reach + 1].all()
    return truth[kept]


def pixel_arcsec(wcs: WCS) -> float:
    """Return the side of a pixel, arcsec."""
    return float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600)


def flux_ratios(field: Field, galaxies: pd.DataFrame, diameter_arcsec: float) -> dict[str, Any]:
    """Return translated over true aperture flux by band: median, its standard error, 16 and 84%, and number."""
    result: dict[str, Any] = {}
    for band, (mean, true) in aperture_fluxes(field, galaxies, diameter_arcsec).items():
        ratio = mean / true
        low, middle, high = np.percentile(ratio, [16, 50, 84]) if len(ratio) else [np.nan] * 3
        error = 1.253 * (high - low) / 2 / max(len(ratio), 1) ** 0.5  # of a median, normal distribution
        result[band] = {
            "median": middle, "median_error": error, "p16": low, "p84": high, "galaxies": len(ratio),
            "sum_over_sum": float(mean.sum() / true.sum()),
        }  # fmt: skip
    return result


def aperture_fluxes(field: Field, galaxies: pd.DataFrame, diameter_arcsec: float) -> dict[str, tuple[Fluxes, Fluxes]]:
    """Return translated and true flux within an aperture by band, each float64 [N], nJy."""
    radius = diameter_arcsec / 2 / pixel_arcsec(field.wcs)
    x, y = field.wcs.all_world2pix(galaxies.ra, galaxies.dec, 0)

    def measured(plane: Image) -> Fluxes:
        found: Fluxes = sep.sum_circle(np.ascontiguousarray(np.nan_to_num(plane)), x, y, radius)[0]
        return found

    return {band: (measured(field.mean[k]), measured(field.true[k])) for k, band in enumerate(field.bands)}


def coverages(field: Field) -> dict[str, Any]:
    """Return the share of true pixels within 1, 1.645 and 1.96 std of the mean, by choice of pixels and by band.

    Choosing pixels by the noisy truth (`true_snr`) takes those with upward noise and is biased low; `model_snr` chooses
    by the posterior's mean over its std, `mean_snr` by its mean over the sigma of the true image. `ideal` is
    what a perfectly calibrated posterior of K samples would give: (truth - mean) / std then is sqrt(1 + 1/K) times
    Student's t of K - 1 degrees of freedom.
    """
    result: dict[str, Any] = {}
    for k, band in enumerate(field.bands):
        mean, std, true, sigma = (
            plane[k][field.known].astype(np.float64) for plane in (field.mean, field.std, field.true, field.sigma)
        )
        snr = mean / sigma
        chosen = {
            "true_snr>3": true > 3 * sigma,
            "model_snr>3": mean > 3 * std,
            "mean_snr>3": snr > 3,
            "mean_snr 3-10": (snr > 3) & (snr <= 10),
            "mean_snr 10-30": (snr > 10) & (snr <= 30),
            "mean_snr>30": snr > 30,
            "sky": np.abs(snr) < 1,
            "all": np.ones_like(snr, bool),
        }
        result[band] = {name: pulls((true - mean)[where], std[where]) for name, where in chosen.items()}
    return result


def ideal_coverage(samples: int) -> dict[str, float]:
    """Return what `coverages` would give if the K samples and the truth came from one normal distribution."""
    widening = np.sqrt(1 + 1 / samples)
    return {name: float(1 - 2 * stats.t.sf(width / widening, samples - 1)) for name, width in WIDTHS.items()}


def pulls(difference: NDArray[np.float64], std: NDArray[np.float64]) -> dict[str, float | int]:
    """Return shares within the widths, the number of pixels, spread over skill, and the bias in units of std."""
    if len(std) == 0:
        return {"pixels": 0}
    pull = difference / std
    shares = {name: float(np.mean(np.abs(pull) <= width)) for name, width in WIDTHS.items()}
    return shares | {
        "pixels": len(std),
        "median_pull": float(np.median(pull)),
        "robust_width": float(np.diff(np.percentile(pull, [15.87, 84.13]))[0] / 2),
        "spread_over_skill": float(np.sqrt(np.mean(std**2) / np.mean(difference**2))),
    }


def seams(field: Field, grid: PatchGrid) -> dict[str, Any]:
    """Return steps of the mean between neighbours at tile and window borders over those elsewhere; 1 means no seam.

    A step is the rms of the difference in units of the posterior's std there, over both axes. A window border is where
    a window's used part begins or ends. Sky has a mean below 2 sigma, sources one above 3 sigma, in both pixels. And
    likewise the mean std where two windows overlap, over that elsewhere.
    """
    result: dict[str, Any] = {}
    overlap = grid.size - 2 * grid.margin - grid.stride
    for k, band in enumerate(field.bands):
        snr = np.where(field.known, field.mean[k] / field.sigma[k], np.nan)
        for kind, chosen in (("sky", np.abs(snr) < 2), ("sources", snr > 3)):
            steps = {name: np.zeros(2) for name in ("tile", "window", "elsewhere")}
            levels = {name: np.zeros(2) for name in ("overlap", "elsewhere")}
            for axis in (0, 1):
                mean, std, sure = (np.moveaxis(plane, axis, 0) for plane in (field.mean[k], field.std[k], chosen))
                place = np.arange(1, len(mean))
                phase = (place + field.origin[axis] - grid.margin) % grid.stride
                pairs = sure[1:] & sure[:-1]
                variance = 0.5 * (std[1:].astype(np.float64) ** 2 + std[:-1].astype(np.float64) ** 2)
                square = np.where(pairs, np.diff(mean.astype(np.float64), axis=0) ** 2 / variance, 0.0)
                tile = np.isin(place, [edge[2 * axis] for edge in field.edges])
                window = ((phase == 0) | (phase == overlap)) & ~tile
                for name, lines in (("tile", tile), ("window", window), ("elsewhere", ~window & ~tile)):
                    steps[name] += square[lines].sum(), pairs[lines].sum()
                level = np.where(sure, std, 0.0)[1:]
                for name, lines in (("overlap", phase < overlap), ("elsewhere", phase >= overlap)):
                    levels[name] += level[lines].sum(), sure[1:][lines].sum()
            rms = {name: float(np.sqrt(total / count)) if count else np.nan for name, (total, count) in steps.items()}
            std_mean = {name: total / count if count else np.nan for name, (total, count) in levels.items()}
            result.setdefault(band, {})[kind] = {
                "step_elsewhere_std": rms["elsewhere"],
                "step_at_tile_borders": rms["tile"] / rms["elsewhere"],
                "step_at_window_borders": rms["window"] / rms["elsewhere"],
                "std_elsewhere_njy": float(std_mean["elsewhere"]),
                "std_in_window_overlaps": float(std_mean["overlap"] / std_mean["elsewhere"]),
            }
    return result


def by_phase(field: Field, grid: PatchGrid, band: int = 0) -> dict[str, NDArray[np.float64]]:
    """Return rms step and mean std of sky pixels by place in the window grid (0: first used pixel), by axis."""
    sky = field.known & (np.abs(field.mean[band]) < 2 * field.sigma[band])
    total = {name: np.zeros((2, grid.stride)) for name in ("step", "std")}
    for axis in (0, 1):
        mean, std, sure = (np.moveaxis(plane, axis, 0) for plane in (field.mean[band], field.std[band], sky))
        phase = (np.arange(1, len(mean)) + field.origin[axis] - grid.margin) % grid.stride
        pairs = sure[1:] & sure[:-1]
        square = np.where(pairs, np.diff(mean.astype(np.float64), axis=0) ** 2, 0.0).sum(axis=1)
        level = np.where(sure, std, 0).sum(axis=1)[1:]
        for name, sums, counts in (("step", square, pairs), ("std", level, sure[1:])):
            total[name][0] += np.bincount(phase, sums, grid.stride)
            total[name][1] += np.bincount(phase, counts.sum(axis=1), grid.stride)
    return {"step": np.sqrt(np.divide(*total["step"])), "std": np.divide(*total["std"])}
