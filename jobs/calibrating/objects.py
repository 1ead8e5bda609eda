"""Ordinary objects of tiles, and the same galaxies with simulated arcs around them, as the catalog would have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from surveybridge.jobs.translating.candidates import RunFacts, find_candidates
from surveybridge.jobs.translating.rates import rate_inputs
from surveybridge.jobs.translating.scene import conditions_of
from surveybridge.storage.flags import CUTS
from surveybridge.storage.problems import described

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from surveybridge.bridge_core.model import Model
    from surveybridge.bridge_core.settings import Scoring
    from surveybridge.storage.images import SurveyImage
    from surveybridge.storage.problems import ProblemTable
    from surveybridge.storage.tiles import Tile

KEPT = ("object_id", "system_id", "ra", "dec", "x", "y", "kind", "flags", "score", "false_alarm")
"""Columns of the catalog that are kept."""
HOSTS = 1 / 3
"""The brightest share of a tile's ordinary objects, which get arcs: what could be a deflector."""
APART_ARCSEC = 8.0
"""Between two hosts: more than a score looks at."""
STAMP_ARCSEC = 12.8
"""Side of the stamp on which arcs are drawn."""
NEAR_ARCSEC = 0.5
"""An object so near to a host is the host with its arcs."""
BRIGHT_SNR = 10.0
"""S/N of pixels by which the gain of an image is told from its variance."""
LEAST_SHARE = 0.01
"""Share of the sky's variance that sources must add in such pixels for a gain to be known."""


def measure_objects(model: Model, tile: Tile, how: Scoring, device: torch.device) -> pa.Table:
    """Ordinary objects of a tile's core: columns of `KEPT`, flux, colour, and the tile's conditions by name."""
    found = find_candidates(model, tile, how, RunFacts("calibration"), device).rows
    scored = model.card.problem.scored
    if scored is None or found.num_rows == 0:
        return pa.table({})
    inputs = rate_inputs(
        {name: found[name] for name in found.column_names}, tile, scored, described(model.card.problem.table)
    )
    table = (
        found.select(KEPT).append_column("flux", pa.array(inputs.flux)).append_column("colour", pa.array(inputs.colour))
    )
    for name, value in inputs.conditions.items():
        table = table.append_column(name, pa.array(np.full(len(table), value)))
    ordinary = (
        (np.array(table["kind"].to_pylist()) == "object")
        & (table["flags"].to_numpy() & CUTS == 0)
        & np.isfinite(table["score"].to_numpy())
    )
    return table.filter(pa.array(ordinary))


def measure_lenses(
    model: Model,
    tile: Tile,
    ordinary: pa.Table,
    how: Scoring,
    device: torch.device,
    *,
    number: int,
    seed: int,
    shown: Callable[[Tile], Tile] = lambda tile: tile,
) -> pa.Table:
    """Up to `number` of a tile's brighter objects with arcs around them, as `measure_objects`; one row a lens found.

    `shown` makes of a tile what a network is shown.
    """
    places = hosts(ordinary, tile, number)
    if not len(places):
        return ordinary.slice(0, 0)
    lit = with_arcs(tile, places, described(model.card.problem.table), np.random.default_rng([seed, *tile.origin]))
    found = measure_objects(model, shown(lit), how, device)
    if found.num_rows == 0:
        return ordinary.slice(0, 0)
    scale = next(iter(tile.images.values())).pixel_scale
    there = np.stack([found["x"].to_numpy(), found["y"].to_numpy()], 1)
    apart = np.linalg.norm(there[:, None] - places[None], axis=-1) * scale
    return found.take(
        pa.array([row for row, away in zip(apart.argmin(0), apart.min(0), strict=True) if away < NEAR_ARCSEC])
    )


def hosts(ordinary: pa.Table, tile: Tile, number: int) -> NDArray[np.float64]:
    """Global (x, y) of objects that get arcs: bright ones, brightest first, apart from each other; float64 [M, 2]."""
    if ordinary.num_rows == 0:
        return np.zeros((0, 2))
    flux = ordinary["flux"].to_numpy()
    bright = np.argsort(-flux)[: max(1, round(HOSTS * len(flux)))]
    apart = APART_ARCSEC / next(iter(tile.images.values())).pixel_scale
    chosen: list[NDArray[np.float64]] = []
    for x, y in zip(ordinary["x"].to_numpy()[bright], ordinary["y"].to_numpy()[bright], strict=True):
        place = np.array([x, y])
        if len(chosen) < number and all(np.hypot(*(place - other)) > apart for other in chosen):
            chosen.append(place)
    return np.array(chosen).reshape(-1, 2)


def with_arcs(tile: Tile, places: NDArray[np.float64], table: ProblemTable, rng: np.random.Generator) -> Tile:
    """Return a tile with simulated arcs around some places, seen through each band's own PSF, with photon noise.

    Parameters
    ----------
    tile
        With images of bands for which sources are simulated.
    places
        Global (x, y), float64 [M, 2].
    table
        The problem, for the pixels on which the surveys were taken.
    rng
        Draws lenses and photons.
    """
    from surveybridge.jobs.simulating.injection import ArcLight, draw_lens, with_photons

    catalog = tile.images[str(table["catalog"])]
    sigma = conditions_of(catalog).noise[0] * (0.1 / catalog.pixel_scale)
    drawn = [(place - (tile.origin[1], tile.origin[0]), draw_lens(rng, sigma).images) for place in places]
    sizes = {name: 2 * round(STAMP_ARCSEC / image.pixel_scale / 2) + 1 for name, image in tile.images.items()}
    seen = {end["name"]: views(tile.images[end["name"]], end["pixel_scale"]) for end in table["endpoints"]}
    expected: dict[str, list[Any]] = {name: [] for name in seen}  # of each end, by arcs and then by band
    for (x, y), arcs in drawn:
        arc_light = ArcLight.of(arcs)
        offset = x - round(x), y - round(y)
        for name, some in seen.items():
            expected[name].append([arc_light.expected(view, sizes[name], offset) for view in some])
    images = {}
    for name, some in seen.items():
        image, size = tile.images[name], sizes[name]
        flux, variance = image.flux.copy(), image.variance.copy()
        for plane, view in enumerate(some):
            for ((x, y), _), bands in zip(drawn, expected[name], strict=True):
                column, line = round(x), round(y)
                light = with_photons(bands[plane], view.gain, rng)
                here, part = _overlap(flux.shape[1:], line - size // 2, column - size // 2, size)
                flux[plane][here] += light[part].astype(np.float32)
                if view.gain is not None:
                    variance[plane][here] += (light[part] / view.gain).astype(np.float32)
        images[name] = replace(image, flux=flux, variance=variance)
    return replace(tile, images=images, seen={})


def views(image: SurveyImage, native: float) -> list[Any]:
    """How each band of an image sees light (`ArcView`): its PSF, the pixels it was taken on, and its gain."""
    from surveybridge.jobs.simulating.injection import ArcView, moffat

    found = []
    for plane, band in enumerate(image.bands):
        fwhm, wing = image.psf_fwhm[plane], image.psf_wing[plane]
        psf = moffat(fwhm if fwhm > 0 else 2 * image.pixel_scale, wing if wing > 0 else 0.0)  # NaN is unknown
        found.append(ArcView(band, image.pixel_scale, max(native, image.pixel_scale), psf, gain_of(image, plane)))
    return found


def gain_of(image: SurveyImage, plane: int) -> float | None:
    """Electrons per unit of flux, by how the variance grows with the flux; None where it does not."""
    flux, variance, valid = image.flux[plane], image.variance[plane], image.valid[plane]
    sky = float(np.median(variance[valid])) if valid.any() else np.nan
    bright = valid & (flux > BRIGHT_SNR * np.sqrt(sky))
    if not bright.any():
        return None
    slope = float(np.median((variance[bright] - sky) / flux[bright]))
    return 1 / slope if slope * float(np.median(flux[bright])) > LEAST_SHARE * sky else None


def _overlap(shape: tuple[int, ...], y: int, x: int, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of an image and of a stamp at (y, x) where the two overlap."""
    (y0, y1), (x0, x1) = ((min(max(at, 0), n), min(max(at + size, 0), n)) for at, n in ((y, shape[0]), (x, shape[1])))
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
