"""Whether a tile, and each object in it, lies in the domain of a checkpoint: filters, pixels, and observing conditions.

What an ingest knows, filters and pixel scales, stands in the tile; what the checkpoint has seen in training stands in
its card. Both are put together here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from surveybridge.bridge_core.conditions import Conditions
from surveybridge.jobs.translating.scene import conditions_of
from surveybridge.storage.domain import PIXEL_PC, of_other_pixels, with_reasons
from surveybridge.storage.flags import NEAR_ARCSEC
from surveybridge.storage.images import noise_in

if TYPE_CHECKING:
    from surveybridge.bridge_core.model import Card
    from surveybridge.jobs.translating.homogenising import Homogenisation
    from surveybridge.storage.homogenise import BandPlan
    from surveybridge.storage.images import SurveyImage
    from surveybridge.storage.tiles import Tile, TileStore


def foreseen_conditions(image: SurveyImage, noise: tuple[float, ...], plans: Sequence[BandPlan]) -> Conditions:
    """Return how an image will be shown to the network: as it was observed, or homogenised.

    Parameters
    ----------
    image
        Needs no pixels.
    noise
        Of a pixel, by band.
    plans
        What is done to its PSFs, by band; none: nothing.
    """
    as_it_is = zip(noise, image.psf_fwhm, image.psf_wing, image.noise_correlation, strict=True)
    bands = list(as_it_is)
    for band, plan in enumerate(plans):
        if (how := plan.matching) is not None:
            bands[band] = (noise[band] * how.noise, how.reached.fwhm, how.reached.wing, how.correlation)
    sigma, fwhm, wing, correlation = (tuple(float(value) for value in of) for of in zip(*bands, strict=True))
    return Conditions(sigma, fwhm, wing, correlation)


def tile_domain(card: Card, tile: Tile) -> str | None:
    """Return "in", or "out: " and the reasons, of a tile and a checkpoint; None where neither says anything.

    Homogenised images count as the network is shown them.
    """
    reasons = card.outside({name: conditions_of(image) for name, image in tile.shown.items()})
    reasons += other_pixels(card, tile.images)
    return with_reasons(tile.domain, reasons, known=card.conditions is not None)


def other_pixels(card: Card, images: Mapping[str, SurveyImage]) -> list[str]:
    """Why pixels of a physical size are not those of the training; nothing where one of both is not known."""
    found = []
    for name, image in images.items():
        stated = float(image.provenance.get(PIXEL_PC, "nan"))
        if of_other_pixels(stated, card.pixel_pc):
            found.append(f"{name} pixels {stated:.3g} pc (trained on {card.pixel_pc:.3g})")
    return found


def foreseen_domains(
    card: Card, store: TileStore, manifest: pa.Table, homogenisation: Homogenisation | None
) -> pa.Table:
    """Return the rows of a manifest with what `tile_domain` will say, from the attributes of the tiles, not the pixels.

    Of tiles that an earlier version ingested the noise is not known before they are read.
    """
    if card.conditions is None and card.pixel_pc is None:
        return manifest
    from surveybridge.storage.manifests import fields_of

    rows = manifest.select(["tile_id", "field", "core_height", "core_width", "domain"]).to_pylist()
    stated, fields = store.stated([row["tile_id"] for row in rows]), fields_of(manifest)
    said = []
    for row in rows:
        field = fields.get(row["field"])
        alone = field is not None and (row["core_height"], row["core_width"]) == tuple(field.shape)
        halo = None if field is None or alone else field.halo
        seen = {}
        for end, (image, noise) in stated.get(row["tile_id"], {}).items():
            changed = homogenisation is not None and end in homogenisation.psfs
            plans = homogenisation.plans(image, halo) if changed and homogenisation is not None else []
            seen[end] = foreseen_conditions(image, noise, plans)
        heads = {end: image for end, (image, _) in stated.get(row["tile_id"], {}).items()}
        reasons = card.outside(seen) + other_pixels(card, heads)
        said.append(with_reasons(row["domain"], reasons, known=card.conditions is not None))
    place = manifest.column_names.index("domain")
    return manifest.set_column(place, manifest.schema.field("domain"), pa.array(said, pa.string()))


def object_domains(card: Card, tile: Tile, x: NDArray[np.float64], y: NDArray[np.float64]) -> list[str | None]:
    """Return the same of objects: that of the tile, but with the noise around each.

    Parameters
    ----------
    card
        Of the checkpoint.
    tile
        Core and halo.
    x, y
        float64 [N], array pixels.
    """
    if card.conditions is None:
        return [tile.domain] * len(x)
    column, line = (np.floor(place + 0.5).astype(int) for place in (x, y))
    near = {}
    for name, image in tile.shown.items():
        half = round(NEAR_ARCSEC / image.pixel_scale)
        boxes = [
            (slice(max(row - half, 0), row + half + 1), slice(max(place - half, 0), place + half + 1))
            for row, place in zip(line, column, strict=True)
        ]
        near[name] = noise_in(image, boxes)

    @functools.cache  # to two digits, many have the same
    def said(noises: tuple[tuple[float, ...], ...]) -> str | None:
        """What is said of an object with these noises around it, by image and band."""
        here = {}
        for noise, (name, image) in zip(noises, tile.shown.items(), strict=True):
            filled = (of_tile if math.isnan(one) else one for one, of_tile in zip(noise, image.sky_noise, strict=True))
            here[name] = Conditions(tuple(filled), image.psf_fwhm, image.psf_wing, image.noise_correlation)
        return with_reasons(tile.domain, card.outside(here), known=True)

    return [said(noises) for noises in zip(*near.values(), strict=True)]
