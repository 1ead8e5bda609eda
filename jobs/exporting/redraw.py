"""The posterior samples of a run, drawn again for a part of its sky: the run's own to the bit, on the same machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from surveybridge.jobs.config import RequestError
from surveybridge.jobs.running.progress import progress
from surveybridge.jobs.running.threads import threads
from surveybridge.jobs.translating.homogenising import Homogenisation
from surveybridge.jobs.translating.light import compared_light, relation_of
from surveybridge.jobs.translating.request import checkpoint_of, read_model, sampling_of
from surveybridge.jobs.translating.scene import prepared, scene_of, wanted_conditions
from surveybridge.jobs.translating.wishes import Wishes

if TYPE_CHECKING:
    from surveybridge.bridge_core.model import Model
    from surveybridge.storage.footprint import Box
    from surveybridge.storage.mosaics import StitchedMosaic
    from surveybridge.storage.runs import RunFolder
    from surveybridge.storage.tiles import Tile, TileStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Redrawn:
    """Samples float32 [K, C, H, W], nJy, and how far their mean and std lie from those that the run stored, nJy.

    Those of a calibrated run depart from their mean by the factors of its standard deviations.
    """

    samples: NDArray[np.float32]
    largest_difference: float


def redraw(
    run: RunFolder,
    region: Box,
    boxes: Mapping[str, Box],
    stored: StitchedMosaic,
    count: int,
    checkpoint: str | None = None,
    store_url: str | None = None,
) -> Redrawn:
    """Draw the first samples of a run again.

    Parameters
    ----------
    run
        The run; its tile store is read, too.
    region
        Global pixels.
    boxes
        Cores of the ok tiles that touch it, global pixels.
    stored
        What the run says of the region, to compare with.
    count
        Samples wanted, at most the run's.
    checkpoint, store_url
        Where the run's checkpoint and its tile store lie now; by default where the run found them.
    """
    import torch

    from surveybridge.bridge_core.redraw import redraw_tile
    from surveybridge.bridge_core.settings import DEFAULT_BATCH
    from surveybridge.bridge_core.translate import recalibrated, recalibrated_samples
    from surveybridge.storage.footprint import overlap
    from surveybridge.storage.tiles import TileStore

    facts = run.run_json
    if not facts["samples"]:
        raise RequestError(f"--samples {count}, but run {run.url} made maps without samples; leave --samples out")
    if count > facts["samples"]:
        raise RequestError(f"--samples {count}, but run {run.url} drew {facts['samples']}; give at most as many")
    model = _model_of(run, checkpoint)
    store = TileStore.open(store_url or run.store_url)
    contents, run_fields = _contents(run), run.fields()
    homogenisation = Homogenisation.of_document(facts.get("homogenise"))
    wishes, relation = Wishes.of_document(facts.get("wanted")), relation_of(facts)
    settings = facts.get("config", {})
    torch.set_num_threads(threads(settings.get("workers", 1)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    how = replace(sampling_of(facts, model.card), batch=settings.get("batch") or DEFAULT_BATCH[device.type])
    model.to(device, how.precision)
    direction = model.card.problem.direction(facts["direction"])
    samples = np.full((count, *stored.mean.shape), np.nan, np.float32)
    mean, std = np.full_like(stored.mean, np.nan), np.full_like(stored.std, np.nan)
    for tile_id, box in progress(boxes.items(), "samples", total=len(boxes)):
        part = overlap(box, region)
        if part is None:
            continue
        tile = _read_tile(store, tile_id, contents[tile_id], run.url)
        if homogenisation is not None:
            tile = homogenisation.applied(tile, run_fields.get(tile.grid_id))
        tile = prepared(model.card, tile)
        (y0, y1, x0, x1), (top, left) = part, tile.origin
        scene = scene_of(tile, direction.observed.name, device, model.card)
        here = (y0 - top, y1 - top, x0 - left, x1 - left)
        wanted = wanted_conditions(model.card, tile, direction, wishes)
        consistency, _ = compared_light(model.card, relation, tile, direction, wanted, how.patches)
        posterior, drawn = redraw_tile(model, direction, scene, how, here, wanted, consistency)
        if facts.get("calibrated"):
            posterior = recalibrated(model, direction, posterior)
            drawn = recalibrated_samples(model, direction, posterior.mean, drawn)
        there = (slice(y0 - region[0], y1 - region[0]), slice(x0 - region[2], x1 - region[2]))
        samples[:, :, *there] = drawn[:count].numpy()
        mean[:, *there], std[:, *there] = posterior.mean.numpy(), posterior.std.numpy()
    difference = max(_largest(mean, stored.mean), _largest(std, stored.std))
    if difference:
        log.warning(
            "samples of %s: their mean and std differ from the run's by up to %.3g nJy (another kind of processor, or "
            "version); the file's headers say so",
            run.url,
            difference,
        )
    return Redrawn(samples, difference)


def _model_of(run: RunFolder, checkpoint: str | None) -> Model:
    """The checkpoint of the run, refused if it is another."""
    path = checkpoint or checkpoint_of(run)
    model = read_model(path)
    wanted = run.run_json["checkpoint_sha256"]
    if model.sha256 != wanted:
        raise RequestError(
            f"checkpoint {path} has SHA-256 {model.sha256[:12]} but run {run.url} was made by {wanted[:12]}; "
            "give that one as --checkpoint"
        )
    return model


def _contents(run: RunFolder) -> dict[str, Any]:
    rows = run.ledger(["tile_id", "content"])
    return dict(zip(rows["tile_id"].to_pylist(), rows["content"].to_pylist(), strict=True))


def _read_tile(store: TileStore, tile_id: str, content: str | None, run_url: str) -> Tile:
    """A tile with the pixels that the run translated."""
    from surveybridge.storage.tiles import tile_content

    tile = store.read_tile(tile_id)
    found = tile_content(tile)
    if content is not None and found != content:
        raise RequestError(
            f"tile {tile_id}: {store.url} holds pixels {found[:12]} but run {run_url} translated {content[:12]}; the "
            "tile was ingested anew, translate it again"
        )
    return tile


def _largest(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Largest difference; infinite where one is known and the other is not."""
    if not np.array_equal(np.isnan(one), np.isnan(other)):
        return float("inf")
    return float(np.nanmax(np.abs(one.astype(float) - other), initial=0.0))
