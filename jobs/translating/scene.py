"""The model's view of a tile: one endpoint as tensors, once every image is known to fit the model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from surveybridge.jobs.config import RequestError
from surveybridge.jobs.translating.registration import with_registration
from surveybridge.storage.homogenise import native_pixel, noise_lags
from surveybridge.storage.images import seeing
from surveybridge.storage.psf import parse_psf
from surveybridge.storage.psf_matching import noise_power

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from surveybridge.bridge_core.conditions import Conditions
    from surveybridge.bridge_core.model import Card
    from surveybridge.bridge_core.problem import Direction
    from surveybridge.bridge_core.scene import BandBlur, Scene
    from surveybridge.jobs.translating.wishes import Wishes
    from surveybridge.storage.images import SurveyImage
    from surveybridge.storage.tiles import Tile


def scene_of(tile: Tile, endpoint: str, device: torch.device, card: Card | None = None) -> Scene:
    """Return one endpoint of a tile, core and halo, as a network is shown it, on a device.

    For a checkpoint that goes through the seeing, whose `card` is needed, it says how each band came from a sharp sky.
    """
    import numpy as np
    import torch

    from surveybridge.bridge_core.scene import Scene

    image = tile.shown[endpoint]
    scene = Scene(
        torch.from_numpy(image.flux),
        torch.from_numpy(image.valid),
        origin=tile.origin,
        core=tile.core,
        psf_fwhm=seeing(image) / image.pixel_scale,
        sigma=torch.from_numpy(np.sqrt(image.variance)),
        conditions=conditions_of(image, tile.registration),
        blurs=() if card is None or card.bridge.kind != "seeing" else blurs_of(image, card),
    )
    return scene.to(device)


def blurs_of(image: SurveyImage, card: Card) -> tuple[BandBlur, ...]:
    """Return how the bands of an image came from a sharp sky; RequestError where a PSF is not known."""
    import functools

    from surveybridge.bridge_core.physics import Seeing
    from surveybridge.bridge_core.scene import BandBlur

    sharp, found = parse_psf(card.bridge.parameters["sharp"]), []
    for number, band in enumerate(image.bands):
        psf = image.psf(number)
        if psf is None:
            raise RequestError(
                f"{image.survey} {band}: checkpoint {card.name} goes through the seeing, but FWHM "
                f"{image.psf_fwhm[number]} and wings {image.psf_wing[number]} are not both known; ingest with --psf"
            )
        pixels = (image.pixel_scale, native_pixel(image, number))
        seeing = Seeing(sharp, psf, image.pixel_scale, pixels)
        found.append(BandBlur(seeing, functools.partial(half_noise_power, noise_lags(image, number))))
    return tuple(found)


def half_noise_power(lags: tuple[float, ...], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the power of noise by mode as `torch.fft.rfft2` has them, float64 [H, W // 2 + 1] with mean 1."""
    return noise_power(lags, shape)[:, : shape[1] // 2 + 1]


def conditions_of(image: SurveyImage, registration: float = math.nan) -> Conditions:
    """How an image was observed, from what its tile states, and how it lies on the other's, arcsec."""
    from surveybridge.bridge_core.conditions import Conditions

    return Conditions(image.sky_noise, image.psf_fwhm, image.psf_wing, image.noise_correlation, registration)


def wanted_conditions(card: Card, tile: Tile, direction: Direction, wishes: Wishes | None = None) -> Conditions | None:
    """How the wanted end is to be observed.

    As is asked; else as it was observed where the tile has it; else as those of the training typically were. None where
    nothing of that is known.
    """
    image, end = tile.images.get(direction.wanted.name), direction.wanted
    if image is not None:
        known = conditions_of(image, tile.registration)
    elif card.conditions is not None:
        known = card.conditions.nominal_of(end.name, end.bands)
    else:
        return None
    return known if wishes is None else wishes.applied(end.bands, known)


def prepared(card: Card, tile: Tile) -> Tile:
    """Return a tile as the model needs it; refused where an image does not match the data on which it was trained.

    For a model that is told conditions it is measured how the surveys lie on each other.
    """
    check_tile(card, tile)
    return with_registration(tile) if card.network.conditions else tile


def check_tile(card: Card, tile: Tile) -> None:
    """Refuse a tile with an image that does not match the data on which the model was trained.

    Images of other endpoints than those of the model's problem, which it does not look at, are let be.
    """
    known = {end.name for end in card.problem.endpoints}
    for name, image in tile.images.items():
        if name not in known:
            continue
        card.problem[name].check(
            image.bands, image.unit, image.pixel_scale, what=f"tile {tile.tile_id}", model=card.name
        )
