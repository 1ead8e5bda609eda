"""Flux consistency of a run: by which relation light is brought to agree, and what it takes on a tile."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surveybridge.bridge_core.light_relation import LightRelation
from surveybridge.bridge_core.settings import WholeTile, Windows
from surveybridge.jobs.translating.scene import half_noise_power
from surveybridge.storage.domain import other_filters
from surveybridge.storage.homogenise import native_pixel, noise_lags
from surveybridge.storage.psf import Psf, psf_of

if TYPE_CHECKING:
    from surveybridge.bridge_core.conditions import Conditions
    from surveybridge.bridge_core.consistency import BandOptics, Consistency
    from surveybridge.bridge_core.model import Card
    from surveybridge.bridge_core.problem import Direction, Endpoint
    from surveybridge.storage.images import SurveyImage
    from surveybridge.storage.tiles import Tile


def relation_for(card: Card, direction: Direction, windows: Windows) -> LightRelation | None:
    """Return the relation by which new runs bring light to agree; None where the card has none that is for this."""
    relation = card.consistency
    if relation is None or str(direction) not in relation.error or not isinstance(windows, WholeTile):
        return None
    return relation


def relation_of(run_json: Mapping[str, Any]) -> LightRelation | None:
    """Return the relation that a run states; None where its light stays as the network has it."""
    stated = run_json.get("consistency")
    return LightRelation.from_card(stated) if stated else None


def compared_light(
    card: Card,
    relation: LightRelation | None,
    tile: Tile,
    direction: Direction,
    wanted: Conditions | None,
    windows: Windows,
) -> tuple[Consistency | None, str]:
    """Find how the light of a tile is brought to agree, or why it is not.

    Parameters
    ----------
    relation
        Of the run; None where light stays as the network has it.
    tile
        As the network is shown it.
    wanted
        How the wanted end is to be observed.
    windows
        Through which the network sees the tile.

    Returns
    -------
    Consistency or None
    str
        Why there is none although there is a relation; else "".
    """
    if relation is None:
        return None, ""
    if strange := other_filters(tile.domain):
        return None, "; ".join(strange)  # whose colours the relation does not know
    from surveybridge.bridge_core.consistency import consistency_of

    optics = {}
    for end, known in ((direction.observed, None), (direction.wanted, wanted)):
        bands = end_optics(tile, end, known)
        if isinstance(bands, str):
            return None, bands
        optics[end.name] = bands
    image = tile.shown[direction.observed.name]
    if not all(math.isfinite(sigma) for sigma in image.sky_noise):
        return None, f"the noise of {image.survey} is not known"
    noise = [
        (sigma, functools.partial(half_noise_power, noise_lags(image, number)))
        for number, sigma in enumerate(image.sky_noise)
    ]
    y0, y1, x0, x1 = tile.core
    core = (y1 - y0, x1 - x0)
    found = consistency_of(
        relation, card.problem, direction, optics, noise, image.pixel_scale, core, halo=windows.reach
    )
    if found.margin > windows.reach:
        return None, f"PSFs need {found.margin} pixels around a tile and the network sees {windows.reach}"
    return found, ""


def unchanged(said: str | None, why: str) -> str:
    """What a row of the ledger says of PSFs, and why light stays as the network has it."""
    return "; ".join(text for text in (said, f"light is not compared: {why}") if text)


def end_optics(tile: Tile, end: Endpoint, asked: Conditions | None) -> list[BandOptics] | str:
    """Return PSFs and pixels of the bands of an end, or which of them is not known.

    `asked` says how the wanted end is to be observed; the PSF of the observed end is that of its image.
    """
    from surveybridge.bridge_core.consistency import BandOptics

    image, bands = tile.shown.get(end.name), []
    for number, band in enumerate(end.bands):
        psf: Psf | None = None if image is None else image.psf(number)
        if asked is not None and not (image is not None and _as_observed(image, number, asked)):
            psf = psf_of(asked.fwhm[number], asked.wing[number])
        if psf is None:
            return f"the PSF of {end.name} {band} is not known"
        # of an end without an image nobody knows the detector's pixels
        pixel = end.pixel_scale if image is None else native_pixel(image, number)
        bands.append(BandOptics(psf, psf.fwhm, pixel))
    return bands


def _as_observed(image: SurveyImage, band: int, asked: Conditions) -> bool:
    """Whether a band is asked for with the PSF of its own image, of which the wings may be unknown."""
    own, wanted = ((of[band] for of in pair) for pair in ((image.psf_fwhm, image.psf_wing), (asked.fwhm, asked.wing)))
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(own, wanted, strict=True))
