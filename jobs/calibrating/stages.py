"""A tile from reading to what it says of a checkpoint, in the three stages of `cluster.stages`."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from surveybridge.cluster.stages import Outcome, Stages
from surveybridge.jobs.running.progress import log_context, start_worker
from surveybridge.jobs.translating.homogenising import Homogenisation

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from surveybridge.bridge_core.problem import Direction, Endpoint
    from surveybridge.bridge_core.pulls import PullCounts
    from surveybridge.bridge_core.settings import Sampling, Scoring
    from surveybridge.bridge_core.translate import Posterior
    from surveybridge.storage.crossmatch import Targets
    from surveybridge.storage.fields import FieldGrid
    from surveybridge.storage.held_back import HeldBack
    from surveybridge.storage.images import SurveyImage
    from surveybridge.storage.tiles import Tile

PARTS = "calibrate-parts"
"""Folder below the output in which the tiles leave what they found."""
MIN_COVERAGE = 0.5
"""Pixels with a smaller share of observed input within the seeing are left out."""

Counts = dict[str, dict[str, "PullCounts"]]
"""By direction and band."""


@dataclass(frozen=True)
class Settings:
    """The settings of the stages."""

    store: str
    checkpoint: str | None
    out: str
    noise: Mapping[str, Mapping[str, float]]
    """By direction and wanted band: what predicted signals are divided by."""
    sampling: Sampling
    scoring: Scoring | None
    """How objects are scored; None leaves the rates of false alarms as they are."""
    homogenisation: Homogenisation | None
    """The PSFs to which images are brought, as `translate` does by itself."""
    lenses: int
    """Objects of a tile that get arcs."""
    held_back: HeldBack | None
    """Of the sky, the part that counts; None for all."""
    known_lenses: Targets | None = field(repr=False)
    """Objects near these are not ordinary."""
    batch: int | None
    threads: int
    fields: Mapping[str, FieldGrid] = field(repr=False)
    """The fields of the store, which say how far its tiles reach beyond their cores."""
    filesystems: Mapping[str, Mapping[str, Any]] = field(repr=False)  # fsspec's options by protocol: secrets


@dataclass(frozen=True)
class Found:
    """What a tile says: counts of pulls, and its ordinary objects and lenses; None where none are scored."""

    counts: Counts
    ordinary: pa.Table | None
    lenses: pa.Table | None


def calibration_stages(settings: Settings) -> Stages:
    """The three stages."""
    return Stages(
        make_read=functools.partial(TileReader, settings),
        make_model=functools.partial(TileMeasurer, settings),
        make_write=functools.partial(TileWriter, settings),
    )


def parts(tile_id: str) -> dict[str, str]:
    """Files of a tile by what they hold, relative to the output."""
    return {
        "counts": f"{PARTS}/{tile_id}.npz",
        "ordinary": f"{PARTS}/{tile_id}.ordinary.parquet",
        "lenses": f"{PARTS}/{tile_id}.lenses.parquet",
    }


class TileReader:
    """Reads tiles."""

    def __init__(self, settings: Settings) -> None:
        from surveybridge.storage.tiles import TileStore

        start_worker(settings.filesystems)
        self.store = TileStore.open(settings.store)

    def __call__(self, tile_id: str) -> Tile:
        """Core and halo of a tile."""
        return self.store.read_tile(tile_id)


class TileMeasurer:
    """Translates tiles and holds the result against what the other survey observed: the stage with the network."""

    def __init__(self, settings: Settings) -> None:
        import torch

        from surveybridge.bridge_core.settings import DEFAULT_BATCH
        from surveybridge.jobs.translating.request import read_model

        start_worker(settings.filesystems)
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = read_model(settings.checkpoint).to(self.device, settings.sampling.precision)
        batch = settings.batch or DEFAULT_BATCH[self.device.type]
        self.sampling = replace(settings.sampling, batch=batch)
        self.scoring = settings.scoring and replace(settings.scoring, batch=batch)

    def __call__(self, tile_id: str, tile: Tile) -> Found:
        """Counts in all directions, and objects."""
        with log_context(tile=tile_id):
            return self.measure(tile)

    def measure(self, tile: Tile) -> Found:
        """Do the same as a call, without its log context."""
        from surveybridge.bridge_core.translate import translate_tile
        from surveybridge.jobs.calibrating.objects import measure_lenses, measure_objects
        from surveybridge.jobs.translating.light import compared_light, relation_for
        from surveybridge.jobs.translating.scene import prepared, scene_of, wanted_conditions

        tile = prepared(self.model.card, tile)
        shown = self.shown(tile)
        held = held_pixels(tile, self.settings.held_back)
        counts: Counts = {}
        for name, noise in self.settings.noise.items():
            direction = self.model.card.problem.direction(name)
            wanted = wanted_conditions(self.model.card, tile, direction)
            relation = relation_for(self.model.card, direction, self.sampling.patches)
            consistency, _ = compared_light(self.model.card, relation, shown, direction, wanted, self.sampling.patches)
            scene = scene_of(shown, direction.observed.name, self.device, self.model.card)
            posterior = translate_tile(
                self.model, direction, scene, self.sampling, wanted=wanted, consistency=consistency
            )
            counts[name] = pulls_of(posterior, tile, direction, noise, held)
        if self.scoring is None:
            return Found(counts, None, None)
        ordinary = measure_objects(self.model, shown, self.scoring, self.device)
        if self.settings.held_back is not None and ordinary.num_rows:
            ordinary = ordinary.filter(
                self.settings.held_back.at(ordinary["ra"].to_numpy(), ordinary["dec"].to_numpy())
            )
        ordinary = without_known(ordinary, self.settings.known_lenses)
        lenses = None
        if self.settings.lenses and ordinary.num_rows:
            lenses = measure_lenses(
                self.model,
                tile,
                ordinary,
                self.scoring,
                self.device,
                number=self.settings.lenses,
                seed=self.sampling.seed,
                shown=self.shown,
            )
        return Found(counts, ordinary, lenses)

    def shown(self, tile: Tile) -> Tile:
        """The tile as a network is shown it."""
        how = self.settings.homogenisation
        return tile if how is None else how.applied(tile, self.settings.fields.get(tile.field))


class TileWriter:
    """Writes what a tile found as files of its own."""

    def __init__(self, settings: Settings) -> None:
        from surveybridge.storage.objectstore import Folder

        start_worker(settings.filesystems)
        self.folder = Folder.at(settings.out)

    def __call__(self, outcome: Outcome) -> dict[str, Any]:
        """Receipt: tile_id, status, reason."""
        import numpy as np

        from surveybridge.storage.parquet import parquet_bytes

        if outcome.failure is not None:
            return {"tile_id": outcome.item, "status": "failed", "reason": outcome.failure.reason}
        found: Found = outcome.value
        arrays = {
            f"{direction}|{band}|{name}": getattr(counts, name)
            for direction, bands in found.counts.items()
            for band, counts in bands.items()
            for name in ("pixels", "blocks")
        }
        names = parts(outcome.item)
        with io.BytesIO() as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            self.folder.put(file.getvalue(), names["counts"])
        for what, table in (("ordinary", found.ordinary), ("lenses", found.lenses)):
            if table is not None and table.num_rows:
                self.folder.put(parquet_bytes(table), names[what])
        return {"tile_id": outcome.item, "status": "ok"}


def read_counts(data: bytes) -> Counts:
    """Counts as `TileWriter` wrote them."""
    import numpy as np

    from surveybridge.bridge_core.pulls import PullCounts

    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        keys = [name.removesuffix("|pixels").split("|") for name in arrays.files if name.endswith("|pixels")]
        found: Counts = {}
        for direction, band in keys:
            both = (arrays[f"{direction}|{band}|{name}"] for name in ("pixels", "blocks"))
            found.setdefault(direction, {})[band] = PullCounts(*both)
        return found


def pulls_of(
    posterior: Posterior,
    tile: Tile,
    direction: Direction,
    noise: Mapping[str, float],
    counted: NDArray[np.bool_] | bool = True,
) -> dict[str, PullCounts]:
    """Counts of a tile's core by wanted band: where both ends are usable, and enough of the input around is."""
    import numpy as np

    from surveybridge.bridge_core.pulls import PullCounts
    from surveybridge.bridge_core.stretch import departure

    wanted, image = direction.wanted, tile.images[direction.wanted.name]
    y0, y1, x0, x1 = tile.core
    covered = (posterior.coverage.numpy() >= MIN_COVERAGE) & counted
    observed, valid = image.flux[:, y0:y1, x0:x1], image.valid[:, y0:y1, x0:x1]
    found = {}
    for plane, band in enumerate(wanted.bands):
        mean, std = posterior.mean[plane].numpy(), posterior.std[plane].numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            pull = departure(wanted.stretch, observed[plane] - mean) / std
        snr = np.zeros_like(mean) if wanted.kind == "axial" else mean / noise[band]
        found[band] = PullCounts.of(snr, pull, valid[plane] & covered, tile.core_origin)
    return found


def without_known(objects: pa.Table, lenses: Targets | None) -> pa.Table:
    """Objects that are not near a known lens."""
    import pyarrow.compute as pc

    from surveybridge.storage.crossmatch import match

    if lenses is None or not objects.num_rows:
        return objects
    near = match(objects, lenses)["object_id"]
    return objects.filter(pc.invert(pc.is_in(objects["object_id"], near)))


def held_pixels(tile: Tile, held_back: HeldBack | None) -> NDArray[np.bool_] | bool:
    """Pixels of a tile's core that count, bool [H, W]; True for all."""
    import numpy as np

    if held_back is None:
        return True
    y0, y1, x0, x1 = tile.core
    y, x = np.mgrid[y0:y1, x0:x1]
    ra, dec = next(iter(tile.images.values())).wcs.all_pix2world(x.ravel(), y.ravel(), 0)
    return held_back.at(ra, dec).reshape(y.shape)


def noise_of(end: Endpoint, image: SurveyImage) -> dict[str, float]:
    """What predicted signals of each band are divided by: the noise of the sky, the typical value where that is 0."""
    import numpy as np

    from surveybridge.jobs.translating.scene import conditions_of

    found = {}
    for plane, (band, noise) in enumerate(zip(end.bands, conditions_of(image).noise, strict=True)):
        usable = image.valid[plane]
        if not (np.isfinite(noise) and noise > 0):
            noise = float(np.median(np.abs(image.flux[plane][usable]))) if usable.any() else 0.0
        found[band] = float(f"{noise:.4g}") if np.isfinite(noise) and noise > 0 else 1.0
    return found
