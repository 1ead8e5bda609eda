"""What `benchmarks.skies` measures in one simulated field, and how the fields of a condition are summed up.

Everything is measured against the truth: fluxes against the noise-free image of VIS under the same condition, pixels
against its noisy one, and candidates against the table of objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import sep
import torch
from numpy.typing import NDArray

from surveybridge.bridge_core.metrics import interval_width
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.patches import cut
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.scene import cut_context, look
from surveybridge.bridge_core.settings import PatchGrid, Sampling, WholeTile
from surveybridge.bridge_core.stretch import Stretch
from surveybridge.bridge_core.translate import agreement_of, whole_samples, window_samples, with_shared_start
from surveybridge.jobs.simulating.field import SimulatedField
from surveybridge.jobs.simulating.population import Catalogue
from surveybridge.jobs.translating.light import compared_light, relation_for
from surveybridge.jobs.translating.scene import scene_of, wanted_conditions
from surveybridge.jobs.translating.windows import halo_of_tile, windows_for
from surveybridge.jobs.translating.wishes import Wishes
from surveybridge.storage.pairs import WHITE
from surveybridge.storage.tiles import Tile

Floats = NDArray[np.float64]

FAINTEST = {"galaxy": 24.5, "star": 23.0}
"""i magnitude to which objects are translated."""
GALAXY_ARCSEC, STAR_ARCSEC = 0.5, 0.2
"""Radii in which fluxes are measured."""
USED = PatchGrid.size // 2 - PatchGrid.margin
"""Pixels to each side of a window's middle that count: what lies further out lacks context."""
EDGE = PatchGrid.size
"""Pixels from the edge of a field within which nothing is measured."""
LENS_ARCSEC, STAR_MATCH_ARCSEC = 2.5, 0.5
"""A row of the catalog so near to a lens (deflector and arcs), or to a star, is that."""
BRIGHT_SIGMAS = 3.0
FALSE_ALARM = 0.01
FIRST = 0.05
"""Share of the systems that somebody looks at."""
RESAMPLES = 1000
SAMPLES = 4
"""K of each window."""
DISPLAY = Stretch.asbridge({"VIS": 2.022}, {"VIS": WHITE["VIS"][0]})
"""AS-Bridge's display of VIS, the same under all conditions."""


@dataclass(frozen=True)
class Sums:
    """What one or several fields gave; `joined` puts fields together.

    Attributes
    ----------
    galaxies : float64 [N]
        Translated over true flux within `GALAXY_ARCSEC`.
    stars : float64 [M, 2]
        i magnitude, and translated over true flux within `STAR_ARCSEC`.
    windows : float64 [W, 4]
        Sums over the bright pixels of a window: number, inside the 68% interval, variance and squared error in the
        display.
    candidates : DataFrame
        Rows of the catalog: field, system, score, false_alarm, kind, lens (its number, or -1), star.
    lenses : int
        Number of lenses in the fields.
    """

    galaxies: Floats
    stars: Floats
    windows: Floats
    candidates: pd.DataFrame
    lenses: int

    @classmethod
    def joined(cls, parts: list[Sums]) -> Sums:
        """Sums of all fields, with lenses and systems numbered through."""
        earlier = np.cumsum([0, *(part.lenses for part in parts[:-1])])
        return cls(
            np.concatenate([part.galaxies for part in parts]),
            np.concatenate([part.stars for part in parts]),
            np.concatenate([part.windows for part in parts]),
            pd.concat(
                [
                    part.candidates.assign(
                        system=f"{n} " + part.candidates.system,
                        lens=part.candidates.lens.where(part.candidates.lens < 0, part.candidates.lens + before),
                    )
                    for n, (part, before) in enumerate(zip(parts, earlier, strict=True))
                ],
                ignore_index=True,
            ),
            sum(part.lenses for part in parts),
        )


def measure(
    model: Model, tile: Tile, field: SimulatedField, truth: Floats, rows: pd.DataFrame, patch: int | str | None = None
) -> Sums:
    """Translate the windows with galaxies and stars of a field, and measure.

    Parameters
    ----------
    tile : Tile
        The whole field.
    truth : float64 [H, W]
        Noise-free image of VIS.
    rows : DataFrame
        Candidates of the tile.
    patch
        What the network sees at once, as of `translate`.
    """
    known = known_pixels(tile)
    places = {
        kind: places_of(objects, kind, field, known)
        for kind, objects in (("galaxy", field.galaxies), ("star", field.stars))
    }
    centres, owner = covering(np.concatenate([places["star"][:, 1:], places["galaxy"][:, 1:]]))
    drawn = translate_windows(model, tile, centres, patch=patch)
    means = drawn.mean(1)
    countable = away_from_lenses(known, field)
    stars = len(places["star"])
    return Sums(
        flux_ratios(means, centres, owner[stars:], places["galaxy"], truth, GALAXY_ARCSEC)[:, 1],
        flux_ratios(means, centres, owner[:stars], places["star"], truth, STAR_ARCSEC),
        pixel_sums(drawn, centres, *seen_by_vis(tile), countable),
        labelled(rows, field),
        len(field.lenses["u"]),
    )


def known_pixels(tile: Tile) -> NDArray[np.bool_]:
    """Pixels of which all bands of all ends are known, [H, W]."""
    return np.logical_and.reduce([image.valid.all(axis=0) for image in tile.shown.values()])


def away_from_lenses(known: NDArray[np.bool_], field: SimulatedField) -> NDArray[np.bool_]:
    """Known pixels that no lens is near, [H, W]."""
    x, y = field.euclid.pixels(*field.sky(field.lenses))
    return known & ~near(known.shape, x, y, LENS_ARCSEC / 0.1)


def covering(places: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Middles (y, x) of the windows of a run's grid nearest to places (x, y), and the window of each place."""
    grid = PatchGrid()
    cells = np.floor((places[:, ::-1] + 0.5 - grid.size / 2) / grid.stride + 0.5).astype(np.int64)
    windows, owner = np.unique(cells.reshape(-1, 2), axis=0, return_inverse=True)
    return windows * grid.stride + grid.size // 2, owner.reshape(-1)


def translate_windows(
    model: Model,
    tile: Tile,
    centres: NDArray[np.int64],
    wishes: Wishes | None = None,
    patch: int | str | None = None,
) -> NDArray[np.float32]:
    """Samples of VIS in windows by their middles (y, x), [W, K, S, S] nJy: as a run with `wishes` translates them."""
    windows = windows_for(model.card, patch, halo_of_tile(tile))
    how = with_shared_start(model.card, Sampling(samples=SAMPLES, patches=windows))
    return drawn_windows(model, model.card.problem.to("euclid"), tile, centres, how, wishes)[:, :, 0]


def drawn_windows(
    model: Model,
    direction: Direction,
    tile: Tile,
    centres: NDArray[np.int64],
    how: Sampling,
    wishes: Wishes | None = None,
) -> NDArray[np.float32]:
    """Samples of all bands of a direction's wanted end in windows by their middles (y, x), [W, K, B, S, S]."""
    grid = PatchGrid()
    scene = scene_of(tile, direction.observed.name, torch.device("cpu"), model.card)
    half = grid.size // 2
    corners = [(int(y) - half, int(x) - half) for y, x in centres]
    wanted = wanted_conditions(model.card, tile, direction, wishes)
    if isinstance(how.patches, WholeTile):
        seen = look(model, direction, scene, how, wanted=wanted)
        relation = relation_for(model.card, direction, how.patches)
        agreeing, _ = compared_light(model.card, relation, tile, direction, wanted, how.patches)
        agreement = agreement_of(seen, how, agreeing, scene)
        field = torch.cat(list(whole_samples(model, direction, seen, how, agreement)), dim=1)[0].numpy()
        top, left = seen.box[0], seen.box[2]
        return np.stack([field[..., y - top :, x - left :][..., : grid.size, : grid.size] for y, x in corners])
    seen = look(model, direction, scene, how, corners, wanted)
    if len(seen.live) != len(corners):
        raise ValueError(f"{len(corners) - len(seen.live)} windows show nothing, but hold objects that are known")
    windows = cut(seen.x1, corners, scene.origin, grid.size)
    told = cut_context(seen.context, corners, scene.origin, grid.size)
    return window_samples(model, direction, windows, corners, how, context=told).numpy()


def flux_ratios(
    means: NDArray[np.float32],
    centres: NDArray[np.int64],
    owner: NDArray[np.int64],
    places: Floats,
    truth: Floats,
    radius_arcsec: float,
) -> Floats:
    """Magnitude and translated over true flux of objects, [N, 2].

    Parameters
    ----------
    means : float32 [W, S, S]
        Mean translation of the windows.
    centres : int64 [W, 2]
        Their middles (y, x).
    owner : int64 [N]
        The window of each object.
    places : float64 [N, 3]
        i magnitude, x, y.
    truth : float64 [H, W]
    radius_arcsec : float
    """
    radius, half = radius_arcsec / 0.1, means.shape[-1] // 2
    ratios = np.zeros((len(places), 2))
    for n, (magnitude, x, y) in enumerate(places):
        cy, cx = centres[owner[n]]
        translated = sep.sum_circle(np.ascontiguousarray(means[owner[n]]), [x - cx + half], [y - cy + half], radius)[0]
        ratios[n] = magnitude, translated[0] / sep.sum_circle(truth, [x], [y], radius)[0][0]
    return ratios


def seen_by_vis(tile: Tile) -> tuple[Floats, float]:
    """The image of VIS, [H, W], and the noise of its sky, nJy."""
    image = tile.images["euclid"]
    return image.flux[0].astype(np.float64), float(np.sqrt(np.median(image.variance[0][image.valid[0]])))


def pixel_sums(
    drawn: NDArray[np.float32],
    centres: NDArray[np.int64],
    truth: Floats,
    sigma: float,
    countable: NDArray[np.bool_],
    display: Stretch = DISPLAY,
) -> Floats:
    """Return `Sums.windows`: bright pixels are those whose mean is above 3 sigma; each counts in one window.

    Parameters
    ----------
    drawn : float32 [W, K, S, S]
        Samples in the windows.
    centres : int64 [W, 2]
        Their middles (y, x).
    truth : float64 [H, W]
        What is predicted, of the whole field.
    sigma : float
        Noise of a pixel.
    countable : bool [H, W]
        Pixels that may be counted.
    display : Stretch
        Of one band, in which variance and squared error are taken.
    """
    samples, half = drawn.shape[1], drawn.shape[2] // 2
    width = interval_width(0.68, samples)
    bands = tuple(display.softening)
    left, sums = countable.copy(), np.zeros((len(drawn), 4))
    inner = np.s_[half - USED : half + USED]
    for n, (y, x) in enumerate(centres):
        there = (slice(y - USED, y + USED), slice(x - USED, x + USED))
        part = torch.from_numpy(drawn[n][:, inner, inner]).double()
        true = torch.from_numpy(truth[there])
        mean, std = part.mean(0), part.std(0)
        bright = (mean > BRIGHT_SIGMAS * sigma) & torch.from_numpy(left[there])
        left[there] = False
        shown = display.forward(part.float()[:, None], bands)[:, 0].double()
        shown_true = display.forward(true.float()[None], bands)[0].double()
        sums[n] = (
            int(bright.sum()),
            int(((true - mean).abs() <= width * std)[bright].sum()),
            float(shown.var(0)[bright].sum()),
            float(((shown_true - shown.mean(0)) ** 2)[bright].sum()),
        )
    return sums


def share_inside(windows: Floats) -> float:
    """Share of the bright pixels of `Sums.windows` whose truth lies in the 68% interval."""
    return float(windows[:, 1].sum() / windows[:, 0].sum())


def spread_over_error(windows: Floats) -> float:
    """Spread of the samples over the error of their mean in the display, by `Sums.windows`."""
    return float(np.sqrt((1 + 1 / SAMPLES) * windows[:, 2].sum() / windows[:, 3].sum()))


def labelled(rows: pd.DataFrame, field: SimulatedField) -> pd.DataFrame:
    """Return `Sums.candidates`, with what each row is."""
    found = rows[["system_id", "score", "false_alarm", "kind"]].rename(columns={"system_id": "system"})
    place = rows[["x", "y"]].to_numpy(float)
    found["lens"] = _nearest(place, field.lenses, field, LENS_ARCSEC)
    found["star"] = _nearest(place, field.stars, field, STAR_MATCH_ARCSEC) >= 0
    return found


def summary(sums: Sums, seed: int = 0) -> dict[str, Any]:
    """Return all measures with 95% bootstrap intervals, over objects, windows, rows or lenses."""
    rng = np.random.default_rng(seed)
    rows = sums.candidates
    objects = rows[(rows.kind == "object") & (rows.lens < 0)]
    false = np.asarray(objects.false_alarm < FALSE_ALARM, np.float64) * 1000
    found, star_share = lenses_first(rows, sums.lenses)
    stars = {
        f"{low}-{low + 1}": _boot(
            sums.stars[(sums.stars[:, 0] >= low) & (sums.stars[:, 0] < low + 1), 1], np.median, rng
        )
        for low in range(16, 23)
    }
    return {
        "sources": len(rows),
        "galaxies": len(sums.galaxies),
        "flux": _boot(sums.galaxies, np.median, rng),
        "inside_68": _boot(sums.windows, share_inside, rng),
        "spread_skill": _boot(sums.windows, spread_over_error, rng),
        "false_per_thousand": _boot(false, np.mean, rng),
        "lenses": sums.lenses,
        "lenses_first": _boot(found, np.sum, rng),
        "stars_first": star_share,
        "stars_false": float((rows.false_alarm < FALSE_ALARM)[rows.star].sum()),
        "stars_called_objects": float((rows.kind == "object")[rows.star].sum()),
        "stars_flux": {name: value for name, value in stars.items() if value["number"]},
    }


def lenses_first(rows: pd.DataFrame, lenses: int) -> tuple[Floats, int]:
    """Which lenses have a system among the first `FIRST`, 1 or 0 [L], and how many true stars lead one there.

    Systems rank as in a catalog: by their highest score, those of stars and saturated sources alone behind all others.
    """
    scores = rows.score.where(rows.kind == "object", -np.inf).fillna(-np.inf)
    ranked = rows.assign(lead=scores).sort_values("lead", ascending=False, kind="stable")
    systems = ranked.drop_duplicates("system")
    first = systems.head(int(np.ceil(FIRST * len(systems))))
    inside = rows[rows.system.isin(first.system) & (rows.lens >= 0)]
    found = np.zeros(lenses)
    found[inside.lens.unique().astype(int)] = 1.0
    return found, int((first.star & (first.lens < 0)).sum())


def near(shape: tuple[int, int], x: Floats, y: Floats, radius: float) -> NDArray[np.bool_]:
    """Pixels within a radius, pixels, of any of some places."""
    line, column = np.indices(shape)
    found = np.zeros(shape, bool)
    for one_x, one_y in zip(x, y, strict=True):
        found |= np.hypot(column - one_x, line - one_y) <= radius
    return found


def places_of(objects: Catalogue, kind: str, field: SimulatedField, known: NDArray[np.bool_]) -> Floats:
    """I magnitude, x and y of the objects to translate, [N, 3]: inside, with all of their flux known."""
    x, y = field.euclid.pixels(*field.sky(objects))
    magnitude = objects["mag_i"]
    height, width = known.shape
    inside = (x > EDGE) & (x < width - EDGE) & (y > EDGE) & (y < height - EDGE) & (magnitude < FAINTEST[kind])
    chosen = np.flatnonzero(inside)
    unknown = np.ascontiguousarray(~known, np.float32)
    lost = sep.sum_circle(unknown, x[chosen], y[chosen], 8.0)[0] if len(chosen) else np.zeros(0)
    chosen = chosen[lost == 0]
    return np.stack([magnitude[chosen], x[chosen], y[chosen]], axis=1)


def _nearest(place: Floats, objects: Catalogue, field: SimulatedField, arcsec: float) -> NDArray[np.int64]:
    """Number of the nearest object within a distance of each place [N, 2], or -1."""
    x, y = field.euclid.pixels(*field.sky(objects))
    if not len(x) or not len(place):
        return np.full(len(place), -1)
    apart = np.hypot(place[:, :1] - x, place[:, 1:] - y)
    return np.where(apart.min(1) <= arcsec / 0.1, apart.argmin(1), -1)


def _boot(values: Floats, statistic: Callable[[Floats], Any], rng: np.random.Generator) -> dict[str, Any]:
    """A statistic with the interval of its values on resampled rows."""
    if not len(values):
        return {"value": None, "interval": [None, None], "number": 0}
    drawn = [float(statistic(values[rng.integers(0, len(values), len(values))])) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": float(statistic(values)), "interval": [float(low), float(high)], "number": len(values)}
