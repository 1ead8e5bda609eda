"""Learn from pairs how the light of one end follows from the other's, for flux consistency (`bridge_core.consistency`).

Light is measured in a wide Gaussian around the middle of each stamp, at the resolution that both ends share. Bright
stamps tell the weights of the bands and the scatter of colours; what the network says of some of them, its errors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.bridge_core.consistency import BandOptics, kernels_of
from surveybridge.bridge_core.light_relation import LightRelation
from surveybridge.bridge_core.physics import filtered
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.translate import window_samples, with_shared_start
from surveybridge.jobs.calibrating.maps import blocks
from surveybridge.jobs.config import RequestError
from surveybridge.storage.pairs import Pairs, read_pairs
from surveybridge.storage.psf import psf_of

if TYPE_CHECKING:
    from surveybridge.bridge_core.model import Card, Model
    from surveybridge.bridge_core.problem import Direction, Endpoint, Problem

log = logging.getLogger(__name__)

PAIRS = 4096
"""Pairs of a store that are looked at where nothing else is asked for."""
TRANSLATED = 256
"""Bright pairs of a store, at most, that are translated, in each direction."""
APERTURE = 6.0
"""Standard deviation, pixels, of the Gaussian in which light is measured: so wide that pixels of detectors, which pair
stores do not state, hardly matter."""
BRIGHT = 250.0
"""Light of a bright stamp over the noise of the catalog's band in the aperture, as if it were white."""
FEWEST = 30
"""Bright pairs below which nothing is learnt."""
STEPS = 20
"""Of the fit, in which stamps far off come to count less (Huber 1964)."""
HUBER = 1.345
"""Scatter beyond which they do."""
LEAST_ERROR = 0.01
"""Of a network's light: what cannot be told from the scatter of colours."""

Values = NDArray[np.float64]


class Light(NamedTuple):
    """The light of some stamps in the aperture, in the units of the ends.

    there: float64 [N], of the catalog's band; others: float64 [N, B], of the other end's bands.
    """

    there: Values
    others: Values


def read(card: Card, url: str, start: int, count: int) -> Pairs:
    """Some pairs of a store, with all that it states of how they were observed."""
    return read_pairs(url, card.grid, start, start + count, problem=card.problem.table, conditions=True)


def fit_relation(model: Model, stores: Sequence[Pairs], seed: int = 0, batch: int = 16) -> LightRelation:
    """Learn the weights of the bands, the scatter, and the network's errors, from the bright pairs of some stores.

    Parameters
    ----------
    model
        Its network is rounded to bfloat16, which is final.
    stores
        Pairs with the PSFs and the noise of every band.
    seed
        Key of the noise of the samples.
    batch
        Windows in one call of the network.

    Raises
    ------
    RequestError
        Where the problem has no catalog or its light does not add up, or too few pairs are bright and known.
    """
    problem = model.card.problem
    check_problem(problem)
    bright, lights = zip(*(bright_pairs(problem, pairs) for pairs in stores), strict=True)
    number = sum(map(len, bright))
    if number < FEWEST:
        raise RequestError(
            f"{number} of {sum(map(len, stores))} pairs are complete, of known PSF and noise, and so bright that their "
            f"light can be compared, but at least {FEWEST} are needed; give more pairs, or a larger --limit"
        )
    weights, scatter = fitted(Light(*(np.concatenate(of) for of in zip(*lights, strict=True))))
    model.to("cpu", "bfloat16")
    some = [pairs.rows(slice(TRANSLATED)) for pairs in bright]
    error = {}
    for direction in problem.directions:
        off = np.concatenate(
            [light_errors(model, direction, pairs, weights, Sampling(seed=seed, batch=batch)) for pairs in some]
        )
        error[str(direction)] = math.sqrt(max(half_range(off) ** 2 - scatter**2, LEAST_ERROR**2))
        log.info(
            "%s: light of %d pairs is off by %.3f, of which colours make %.3f",
            direction,
            len(off),
            half_range(off),
            scatter,
        )
    end, other = ends_of(problem)
    return LightRelation(
        band=end.bands[0],
        weights={band: float(f"{weight:.4g}") for band, weight in zip(other.bands, weights, strict=True)},
        scatter=float(f"{scatter:.3g}"),
        error={direction: float(f"{value:.3g}") for direction, value in error.items()},
        provenance={"pairs": [pairs.name for pairs in stores], "bright": number, "translated": sum(map(len, some))},
    )


def check_problem(problem: Problem) -> None:
    """Refuse a problem whose ends have no light in common."""
    if problem.catalog is None or not all(
        end.extensive and end.kind in ("asinh", "linear") for end in problem.endpoints
    ):
        raise RequestError(
            f"problem {problem.name}: light is compared in the first band of the end with the catalog, and both ends "
            "have to be of fluxes; leave --consistency out"
        )


def ends_of(problem: Problem) -> tuple[Endpoint, Endpoint]:
    """The end with the catalog, and the other."""
    assert problem.scored is not None
    return problem.scored.wanted, problem.scored.observed


def bright_pairs(problem: Problem, pairs: Pairs) -> tuple[Pairs, Light]:
    """Pairs that are complete, of known PSF and noise, and bright in the catalog's band; and their light."""
    end, _ = ends_of(problem)
    complete = np.logical_and.reduce([np.isfinite(images).all((1, 2, 3)) for images in pairs.ends.values()])
    known = [row for row in np.flatnonzero(complete).tolist() if optics_of(problem, pairs, row) is not None]
    pairs = pairs.rows(known)
    assert pairs.conditions is not None
    light = light_of(problem, pairs, pairs.ends)
    noise = pairs.conditions.ends[end.name].noise[:, 0] * float(aperture(pairs).square().sum().sqrt())
    bright: list[int] = np.flatnonzero(light.there > BRIGHT * noise).tolist()
    return pairs.rows(bright), Light(light.there[bright], light.others[bright])


def optics_of(problem: Problem, pairs: Pairs, row: int) -> tuple[BandOptics, tuple[BandOptics, ...]] | None:
    """The catalog's band of a pair, and those of the other end; None where a PSF or a noise is not known."""
    assert pairs.conditions is not None
    end, other = ends_of(problem)
    found = []
    for one, bands in ((end, end.bands[:1]), (other, other.bands)):
        stated = pairs.conditions.ends[one.name]
        for number, _ in enumerate(bands):
            psf = psf_of(float(stated.fwhm[row, number]), float(stated.wing[row, number]))
            if psf is None or not math.isfinite(stated.noise[row, number]):
                return None
            found.append(BandOptics(psf, psf.fwhm, pairs.pixel_scale[one.name]))
    return found[0], tuple(found[1:])


def aperture(pairs: Pairs) -> Tensor:
    """The weight of every pixel, float32 [H, W]; 1 in the middle."""
    height, width = next(iter(pairs.ends.values())).shape[-2:]
    y, x = (torch.arange(side) - (side - 1) / 2 for side in (height, width))
    return torch.exp(-(y[:, None] ** 2 + x**2) / (2 * APERTURE**2))


def light_of(problem: Problem, pairs: Pairs, images: Mapping[str, NDArray[np.float32]]) -> Light:
    """The light of images [N, B, H, W] by endpoint that were observed as some pairs were."""
    (end, other), weight = ends_of(problem), aperture(pairs)
    shape = (weight.shape[0], weight.shape[1])
    there, others = [], []
    for row in range(len(pairs)):
        optics = optics_of(problem, pairs, row)
        assert optics is not None
        kernels = kernels_of(*optics, pairs.pixel_scale[end.name], shape, min(shape) // 2 - 1)
        sharp = filtered(torch.from_numpy(images[end.name][row, :1]), kernels.around)
        blurred = filtered(torch.from_numpy(images[other.name][row]), kernels.others)
        there.append(float((sharp[0] * weight).sum()))
        others.append((blurred * weight).sum((-2, -1)).tolist())
    return Light(np.array(there), np.array(others).reshape(len(pairs), len(other.bands)))


def fitted(light: Light) -> tuple[Values, float]:
    """Weights of the other end's bands, [B], by which their light is that of the catalog's band; and the scatter."""
    shares = light.others / light.there[:, None]
    counts = np.ones(len(shares))
    for _ in range(STEPS):
        root = np.sqrt(counts)
        weights = np.linalg.lstsq(shares * root[:, None], root, rcond=None)[0]
        off = np.abs(shares @ weights - 1)
        counts = np.minimum(1, HUBER * half_range(shares @ weights) / np.maximum(off, 1e-9))
    return np.asarray(weights, np.float64), half_range(shares @ weights)


def light_errors(model: Model, direction: Direction, pairs: Pairs, weights: Values, how: Sampling) -> Values:
    """How far the light that was observed lies from what the mean of the samples says, as a share of it, [N]."""
    card, problem = model.card, model.card.problem
    how, means = with_shared_start(card, how), []
    shown = pairs if card.network.conditions else replace(pairs, conditions=None)
    for block in blocks(card, direction, shown, 16):
        drawn = window_samples(model, direction, block.observed, block.corners, how, context=block.context)
        means.append(drawn.mean(1).numpy())
    said = np.concatenate(means)
    found = light_of(problem, pairs, {**pairs.ends, direction.wanted.name: said})
    relation = found.others @ weights
    seen, told = (relation, found.there) if direction.wanted.name == problem.catalog else (found.there, relation)
    return seen / told - 1


def half_range(values: Values) -> float:
    """Half the range of the middle 68%, for a Gaussian its standard deviation."""
    low, high = np.quantile(values, [0.16, 0.84])
    return float(high - low) / 2
