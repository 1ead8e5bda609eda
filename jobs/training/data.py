"""The pairs of a training: which rows of a store, and whether they fit the checkpoint from which it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surveybridge.jobs.config import RequestError

if TYPE_CHECKING:
    from surveybridge.bridge_core.model import Card, Model
    from surveybridge.storage.pairs import Pairs

VALIDATION = 128
"""Pairs that are kept for validation where nothing else is asked for."""


def check_start(start: Model, pairs: Pairs) -> None:
    """Refuse pairs on other pixels than those of the checkpoint from which a training goes on."""
    for end in start.card.problem.endpoints:
        scale = pairs.pixel_scale[end.name] or end.pixel_scale
        end.check(pairs.bands[end.name], pairs.units[end.name], scale, what=pairs.name, model=start.card.name)


def check_crop(crop: int | None, card: Card, pairs: Pairs) -> None:
    """Refuse a part, of `crop` pixels a side, that the pairs do not have or that the network cannot halve."""
    if crop is None:
        return
    if card.grid == "cutout":
        raise RequestError(f"--crop {crop}: pairs of the cutout grid have no part that is the same sky; leave it out")
    side = min(length for stamps in pairs.ends.values() for length in stamps.shape[-2:])
    multiple = card.network.window_multiple
    if crop > side or crop % multiple:
        raise RequestError(
            f"--crop {crop}: give a multiple of {multiple}, the network's, up to {side}, the side of the pairs"
        )


def split_of(url: str, limit: int | None, validation: int | None, shards: int) -> dict[str, int]:
    """Which rows of a pair store are for training, and which for validation.

    Of a store that holds sky back, the rows for validation are taken from those, and the others are for training; of
    any other store the last rows that are used are for validation.

    Parameters
    ----------
    url
        Of the pair store.
    limit
        Pairs to use in all; by default all.
    validation
        Pairs for validation; by default `VALIDATION`, or as many as are held back.
    shards
        Each needs a pair for training.

    Returns
    -------
    dict
        ``available``: pairs that are used; ``validation``: how many of them are for validation; of a store that holds
        sky back also ``validation_start``, the first row of these.
    """
    from surveybridge.storage.pair_store import held_back_of, open_store

    store = open_store(url, None)
    held = held_back_of(store)
    if held and validation is not None and validation > held:
        raise RequestError(
            f"{url} holds {held} pairs back for validation, but --validation asks for {validation}; give {held} or "
            "fewer, or cut a store with a larger --hold-back"
        )
    kept = validation or (min(VALIDATION, held) if held else VALIDATION)
    free = store.count - (held or kept)
    training = free if limit is None else min(free, limit - kept)
    if training < shards:
        raise RequestError(
            f"{url}: {max(training, 0) + kept} pairs to use, but {kept} are kept for validation and each of {shards} "
            "shards needs one; give a smaller --validation or more pairs"
        )
    found = {"available": training + kept, "validation": kept}
    return found | ({"validation_start": free} if held else {})
