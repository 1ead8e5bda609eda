"""The model's view of a tile: one endpoint as tensors, once every image is known to fit the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surveybridge.storage.images import seeing

if TYPE_CHECKING:
    import torch

    from surveybridge.bridge_core.model import Model
    from surveybridge.bridge_core.translate import Scene
    from surveybridge.storage.tiles import Tile


def scene_of(tile: Tile, endpoint: str, device: torch.device) -> Scene:
    """Return one endpoint of a tile, core and halo, on a device."""
    import torch

    from surveybridge.bridge_core.translate import Scene

    image = tile.images[endpoint]
    return Scene(
        torch.from_numpy(image.flux).to(device),
        torch.from_numpy(image.valid).to(device),
        origin=tile.origin,
        core=tile.core,
        psf_fwhm=seeing(image) / image.pixel_scale,
    )


def check_tile(model: Model, tile: Tile) -> None:
    """Refuse a tile with an image that does not match the data on which the model was trained."""
    card = model.card
    for name, image in tile.images.items():
        card.problem[name].check(
            image.bands, image.unit, image.pixel_scale, what=f"tile {tile.tile_id}", model=card.name
        )
