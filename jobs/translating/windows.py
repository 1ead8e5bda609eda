"""Through which windows the network of a run sees its tiles: as asked for, as a run has begun, or what is best here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surveybridge.bridge_core.settings import WHOLE, Windows, windows_of
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.translating.config import PATCHES

if TYPE_CHECKING:
    import pyarrow as pa

    from surveybridge.bridge_core.model import Card
    from surveybridge.storage.tiles import Tile


def default_patch(card: Card, halo: int | None) -> int | str:
    """Return what a run states of its windows where nobody asks for any.

    Parameters
    ----------
    card
        Of the checkpoint.
    halo
        Smallest number of pixels around the cores of the tiles; None where there is nothing around that could be shown.

    Returns
    -------
    int or str
        The windows through which the checkpoint was measured where the tiles hold as much as these show, else the side
        of the smallest patch.
    """
    return card.patch if halo is None or halo >= windows_of(card.patch).reach else PATCHES[0]


def windows_for(card: Card, patch: int | str | None, halo: int | None) -> Windows:
    """Return the windows that are asked for, by default those of `default_patch`, as the network can take them."""
    return windows_of(patch or default_patch(card, halo), card.network.window_multiple)


def halo_of_store(manifest: pa.Table) -> int:
    """The smallest halo of the fields of a store, pixels."""
    from surveybridge.storage.manifests import fields_of

    return min((field.halo for field in fields_of(manifest).values()), default=0)


def halo_of_tile(tile: Tile) -> int | None:
    """The halo of a tile, pixels: at its widest side, because it ends at the edge of a field; None of a whole field."""
    (height, width), (y0, y1, x0, x1) = tile.shape, tile.core
    return max(y0, height - y1, x0, width - x1) or None


def check_network(card: Card, patch: int | str | None) -> None:
    """Refuse whole tiles for a checkpoint whose results depend on the size of a window."""
    if patch == WHOLE and (why := card.bound_to_a_size):
        raise RequestError(
            f"--patch {WHOLE}: results of checkpoint {card.name} depend on the size of a tile, because {why}; use "
            f"--patch {PATCHES[0]}"
        )


def check_halo(tile: Tile, patch: int | str, url: str) -> None:
    """Refuse windows that reach beyond the halo: then two tiles would not see the same sky at their border."""
    halo, reach = halo_of_tile(tile), windows_of(patch).reach
    if halo is not None and halo < reach:
        raise RequestError(
            f"--patch {patch} reaches {reach} pixels beyond the core of a tile but those of {url} hold {halo}; ingest "
            f"with --halo {reach}, or use --patch {PATCHES[0]}"
        )
