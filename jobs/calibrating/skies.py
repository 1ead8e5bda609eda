"""Intervals of a checkpoint that sharpens images, held against simulated skies: no telescope observes the truth."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.bridge_core.pulls import PullCounts, fit_scale
from surveybridge.bridge_core.recalibration import Recalibration
from surveybridge.bridge_core.settings import PatchGrid, Sampling
from surveybridge.bridge_core.sharpening import PAD, observed_windows
from surveybridge.bridge_core.translate import window_samples
from surveybridge.jobs.calibrating.store import print_scale
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.running.progress import progress
from surveybridge.jobs.training.skies import Observations
from surveybridge.storage.pairs import read_pairs
from surveybridge.storage.runs import without_secrets

if TYPE_CHECKING:
    from surveybridge.bridge_core.model import Card, Model
    from surveybridge.jobs.calibrating.pairs import PairRows

Floats = NDArray[np.float32]

GROUP = 8
"""Skies that are sharpened at a time."""
APART = 1024
"""Pixels between the places of two skies, so that each has noise of its own."""
FEWEST = 32
"""Skies that a calibration needs."""
LEAST = 1.0
"""Smallest factor. Where the mean is faint most pixels are sky, and few hold light that the image does not show: an
interval that holds 68% of all of them would be far too narrow for these few."""


def calibrate_on_skies(model: Model, stores: Sequence[PairRows], how: Sampling) -> Card:
    """Observe skies as a training does, sharpen them, print how often the truth lies in the interval, and learn.

    Parameters
    ----------
    model
        Whose bridge goes through the seeing of an image.
    stores
        Pair stores of sharp skies. Seeing, wings, depth and correlation of the noise are drawn for each sky.
    how
        Samples and steps; `seed` is that of observations and noise.

    Returns
    -------
    Card
        That of the model with its recalibration. Predicted signals are divided by the median noise of all observations.

    Raises
    ------
    RequestError
        If there are too few skies.
    """
    model.to("cpu", how.precision)
    card, direction = model.card, model.card.problem.directions[0]
    wanted = direction.wanted
    skies = torch.cat([_read(card, rows) for rows in stores])
    if len(skies) < FEWEST:
        raise RequestError(
            f"{len(skies)} skies in {', '.join(without_secrets(rows.url) for rows in stores)}, but a calibration needs "
            f"{FEWEST}; give more, or leave out --limit"
        )
    observations = Observations(card, skies.shape[-1], (how.seed, 1))
    noise = {
        band: float(f"{value:.4g}")
        for band, value in zip(wanted.bands, observations.typical_noise().tolist(), strict=True)
    }
    counts = {band: PullCounts.zero() for band in wanted.bands}
    groups = _sharpened(model, skies, observations, how)
    for corners, sky, mean, std in progress(groups, "calibrate", total=-(-len(skies) // GROUP), unit="groups of skies"):
        pulls, everywhere = (sky - mean) / std, np.ones(sky.shape[-2:], np.bool_)
        for (plane, band), (n, corner) in itertools.product(enumerate(wanted.bands), enumerate(corners)):
            counts[band] += PullCounts.of(mean[n, plane] / noise[band], pulls[n, plane], everywhere, corner)
    scales = {band: fit_scale(counts[band], noise[band], how.samples, LEAST) for band in wanted.bands}
    for band, scale in scales.items():
        print_scale(f"{direction} {band}", counts[band], scale, how.samples, LEAST)
    provenance = {
        "checkpoint": card.name,
        "checkpoint_sha256": model.sha256,
        "pairs": [without_secrets(rows.url) for rows in stores],
        "skies": len(skies),
        "samples": how.samples,
        "steps": how.steps,
        "seed": how.seed,
    }
    return replace(card, recalibration=Recalibration({str(direction): scales}, provenance=provenance))


def _read(card: Card, rows: PairRows) -> Tensor:
    """Sharp skies of a store without missing pixels, float32 [N, B, G, G] in the wanted endpoint's unit."""
    wanted = card.problem.directions[0].wanted
    pairs = read_pairs(rows.url, card.grid, rows.start, rows.stop, problem=card.problem.table)
    skies = torch.from_numpy(pairs.ends[wanted.name])
    return skies[skies.isfinite().all(dim=(1, 2, 3))]


def _sharpened(
    model: Model, skies: Tensor, observations: Observations, how: Sampling
) -> Iterator[tuple[list[tuple[int, int]], Floats, Floats, Floats]]:
    """Corners of some skies; the skies, and mean and std of their samples, each [N, B, H, W], without the margin."""
    card, direction = model.card, model.card.problem.directions[0]
    wanted, generator = direction.wanted, torch.Generator().manual_seed(how.seed)
    inner = np.s_[..., PatchGrid.margin : -PatchGrid.margin, PatchGrid.margin : -PatchGrid.margin]
    for first in range(0, len(skies), GROUP):
        sky = skies[first : first + GROUP]
        corners = [(APART * n, 0) for n in range(first, first + len(sky))]
        context = observations.draw(len(sky), generator)
        units = wanted.forward(sky, card.network.image_channels)
        seen = observed_windows(card, units, context, generator)
        drawn = window_samples(model, direction, seen, corners, how, context=context)
        truth, mean, std = (x[inner].numpy() for x in (sky[..., PAD:-PAD, PAD:-PAD], drawn.mean(1), drawn.std(1)))
        yield corners, truth, mean, std
